//! One call: sent once, within a time, and what came of it. Nothing is ever repeated here.

use std::error::Error as _;
use std::time::Duration;

use axum::http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use axum::http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use kube::client::Body;
use serde_json::Value;

use super::access::user_agent;
use super::error::Asked;
use super::{Cluster, ClusterError, MANAGER, Place, Resource};

/// The largest answer that is read: some thousand pods.
const ANSWER_LIMIT: usize = 16 * 1024 * 1024;

/// The longest that a server may ask to be left alone.
const LONGEST_QUIET: Duration = Duration::from_mins(1);

/// The kinds of patches that we send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patch {
    /// JSON merge patch.
    Merge,
    /// Server-side apply, by force.
    Apply,
}

/// Whether a change is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// It is.
    Real,
    /// The server goes through all its checks, and stores nothing.
    Dry,
}

/// What is sent.
#[derive(Debug)]
struct Call {
    asked: Asked,
    method: &'static str,
    path: String,
    content: Option<(&'static str, Value)>,
}

impl Cluster {
    pub(super) async fn read(
        &self,
        place: &Place,
        subresource: &str,
    ) -> Result<Value, ClusterError> {
        let end = if subresource.is_empty() { "" } else { "/" };
        self.send(Call {
            asked: asked("get", place.resource, subresource, false),
            method: "GET",
            path: format!("{}{end}{subresource}", place.path()),
            content: None,
        })
        .await
    }

    /// `query` is what follows the question mark.
    pub(super) async fn read_all(
        &self,
        resource: Resource,
        namespace: &str,
        query: &str,
    ) -> Result<Value, ClusterError> {
        let mark = if query.is_empty() { "" } else { "?" };
        self.send(Call {
            asked: asked("list", resource, "", false),
            method: "GET",
            path: format!("{}{mark}{query}", resource.path(namespace)),
            content: None,
        })
        .await
    }

    pub(super) async fn send_patch(
        &self,
        place: &Place,
        subresource: &str,
        (patch, run): (Patch, Run),
        body: Value,
    ) -> Result<Value, ClusterError> {
        let mut query = format!("fieldManager={MANAGER}&fieldValidation=Strict");
        let kind = match patch {
            Patch::Merge => "application/merge-patch+json",
            Patch::Apply => {
                query.push_str("&force=true");
                "application/apply-patch+yaml"
            }
        };
        if run == Run::Dry {
            query.push_str("&dryRun=All");
        }
        let end = if subresource.is_empty() { "" } else { "/" };
        self.send(Call {
            asked: asked("patch", place.resource, subresource, run == Run::Real),
            method: "PATCH",
            path: format!("{}{end}{subresource}?{query}", place.path()),
            content: Some((kind, body)),
        })
        .await
    }

    /// Creates what only asks something.
    pub(super) async fn ask(&self, resource: Resource, body: Value) -> Result<Value, ClusterError> {
        self.send(Call {
            asked: asked("create", resource, "", false),
            method: "POST",
            path: resource.path(""),
            content: Some(("application/json", body)),
        })
        .await
    }

    /// A path that is of no resource: its status and its text.
    pub(super) async fn fetch(&self, path: &str) -> Result<(StatusCode, Vec<u8>), ClusterError> {
        let call = Call {
            asked: Asked {
                verb: "get",
                resource: path.to_owned(),
                changes: false,
            },
            method: "GET",
            path: path.to_owned(),
            content: None,
        };
        let answer = self.deliver(&call).await?;
        Ok((answer.status, answer.body))
    }

    async fn send(&self, call: Call) -> Result<Value, ClusterError> {
        let answer = self.deliver(&call).await?;
        if answer.status.is_success() {
            return serde_json::from_slice(&answer.body).map_err(|cause| {
                call.asked
                    .unknown(format!("the answer cannot be read: {cause}"))
            });
        }
        let error = call
            .asked
            .error(answer.status, answer.retry_after, &answer.body);
        Err(self.doubted(error).await)
    }

    /// Sends it once. An error: there is no answer, or no whole one.
    async fn deliver(&self, call: &Call) -> Result<Answer, ClusterError> {
        let token = self.door.token().await?;
        let request = request(call, token.as_deref())?;
        let client = self.door.client();
        let sent = async {
            let response = client.send(request).await;
            let response = response.map_err(|error| no_answer(&call.asked, &error))?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, ANSWER_LIMIT).collect().await;
            let body = body.map_err(|cause| {
                call.asked
                    .unknown(format!("the answer breaks off: {cause}"))
            })?;
            Ok(Answer {
                status: head.status,
                retry_after: retry_after(head.headers.get(RETRY_AFTER)),
                body: body.to_bytes().to_vec(),
            })
        };
        match tokio::time::timeout(self.timeout, sent).await {
            Ok(answer) => answer,
            Err(_elapsed) => Err(call.asked.unknown(format!(
                "no answer of the API server within {}",
                humantime::format_duration(self.timeout)
            ))),
        }
    }
}

#[derive(Debug)]
struct Answer {
    status: StatusCode,
    retry_after: Option<Duration>,
    body: Vec<u8>,
}

fn asked(verb: &'static str, resource: Resource, subresource: &str, changes: bool) -> Asked {
    Asked {
        verb,
        resource: resource.shown(subresource),
        changes,
    }
}

fn request(call: &Call, token: Option<&str>) -> Result<Request<Body>, ClusterError> {
    let unsendable =
        |cause: &dyn std::fmt::Display| ClusterError::Refused(format!("cannot be sent: {cause}"));
    let mut builder = Request::builder()
        .method(call.method)
        .uri(&call.path)
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, user_agent());
    if let Some(token) = token {
        let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|cause| unsendable(&cause))?;
        value.set_sensitive(true);
        builder = builder.header(AUTHORIZATION, value);
    }
    let body = match &call.content {
        Some((kind, content)) => {
            builder = builder.header(CONTENT_TYPE, *kind);
            Body::from(content.to_string().into_bytes())
        }
        None => Body::empty(),
    };
    builder.body(body).map_err(|cause| unsendable(&cause))
}

/// What is known where no answer came: whether anything was sent.
fn no_answer(asked: &Asked, error: &kube::Error) -> ClusterError {
    let mut causes = vec![error.to_string()];
    let mut unsent = matches!(error, kube::Error::Auth(_));
    let mut inner = error.source();
    while let Some(cause) = inner {
        let transport = cause.downcast_ref::<hyper_util::client::legacy::Error>();
        unsent |= transport.is_some_and(hyper_util::client::legacy::Error::is_connect);
        let text = cause.to_string();
        if !causes.iter().any(|told| told.contains(&text)) {
            causes.push(text);
        }
        inner = cause.source();
    }
    let text = causes.join(": ");
    if unsent {
        let (verb, resource) = (asked.verb, &asked.resource);
        ClusterError::Failed(format!("{verb} of `{resource}`: nothing was sent: {text}"))
    } else {
        asked.unknown(text)
    }
}

/// The header `Retry-After`, where it names seconds.
fn retry_after(header: Option<&HeaderValue>) -> Option<Duration> {
    let seconds = header?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_QUIET))
}
