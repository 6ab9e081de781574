//! From a request to its answer.

use std::collections::BTreeMap;
use std::convert::Infallible;

use axum::body::Body;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::{Value, json};

use super::faults::{Call, Fault};
use super::owners::Writer;
use super::refusal::Refusal;
use super::resources::Place;
use super::store::{Store, Wanted};
use super::writes::{How, Write};
use super::{Kept, stamp};

/// Who asks, as messages name them.
const USER: &str = "failover";

/// One request.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    verb: &'static str,
    path: String,
    place: Option<Place>,
    query: BTreeMap<String, String>,
    content_type: String,
    authorization: Option<String>,
    manager: String,
    body: Vec<u8>,
}

/// What comes of it.
pub(super) enum Answer {
    Told(Response),
    Never,
}

impl Asked {
    pub(super) fn new(method: &Method, uri: &Uri, headers: &HeaderMap, body: Vec<u8>) -> Self {
        let text = |name: header::HeaderName| {
            let value = headers.get(name)?.to_str().ok()?;
            Some(value.to_owned())
        };
        let query = axum::extract::Query::<BTreeMap<String, String>>::try_from_uri(uri);
        let query = query.map(|query| query.0).unwrap_or_default();
        let agent = text(header::USER_AGENT).unwrap_or_default();
        let agent = agent.split('/').next().unwrap_or_default().to_owned();
        let place = Place::parse(uri.path());
        let named = place.as_ref().is_some_and(|place| place.name.is_some());
        Self {
            verb: verb(method, named),
            path: uri.path().to_owned(),
            manager: query.get("fieldManager").cloned().unwrap_or(agent),
            place,
            query,
            content_type: text(header::CONTENT_TYPE).unwrap_or_default(),
            authorization: text(header::AUTHORIZATION),
            body,
        }
    }

    fn is(&self, key: &str, value: &str) -> bool {
        self.query.get(key).is_some_and(|own| own == value)
    }

    fn may_be_old(&self) -> bool {
        self.is("resourceVersion", "0")
    }

    /// The request in one line: verb, path, query.
    fn line(&self) -> String {
        let query = self.query.iter();
        let query: Vec<String> = query.map(|(key, value)| format!("{key}={value}")).collect();
        format!("{} {}?{}", self.verb, self.path, query.join("&"))
    }

    fn json(&self) -> Result<Value, Refusal> {
        if self.body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&self.body)
            .map_err(|error| Refusal::new(400, "BadRequest", error.to_string()))
    }
}

fn verb(method: &Method, named: bool) -> &'static str {
    match (method.as_str(), named) {
        ("GET", true) => "get",
        ("GET", false) => "list",
        ("POST", _) => "create",
        ("PATCH", _) => "patch",
        ("PUT", _) => "update",
        ("DELETE", true) => "delete",
        _ => "other",
    }
}

impl Kept {
    /// Records the request, and does with it what is planned, or what it asks.
    pub(super) fn answer(&mut self, asked: Asked) -> Answer {
        self.lines.push(asked.line());
        let resource = asked.place.as_ref().map(Place::resource);
        if let Some(place) = &asked.place {
            self.calls.insert(Call {
                verb: asked.verb.to_owned(),
                group: place.kind.group.to_owned(),
                resource: place.kind.resource.to_owned(),
                subresource: place.subresource.clone(),
            });
        }
        let fits = |on: &super::faults::On| {
            on.verb == asked.verb && resource.as_deref() == Some(on.resource)
        };
        let planned = self.faults.iter().position(|(on, _)| fits(on));
        let planned = planned.and_then(|at| self.faults.remove(at));
        let Some((_, fault)) = planned else {
            return self.undisturbed(&asked);
        };
        match fault {
            Fault::Answer(told) => Answer::Told(told.into_response()),
            Fault::Silence => Answer::Never,
            Fault::EffectThenSilence => {
                drop(self.carry_out(&asked));
                Answer::Never
            }
            Fault::EffectThenAnswer(told) => {
                drop(self.carry_out(&asked));
                Answer::Told(told.into_response())
            }
            Fault::EffectThenCutBody => {
                drop(self.carry_out(&asked));
                Answer::Told(cut_body())
            }
            Fault::LandsLater(told) => {
                self.late.push(asked);
                told.map_or(Answer::Never, |told| Answer::Told(told.into_response()))
            }
        }
    }

    fn undisturbed(&mut self, asked: &Asked) -> Answer {
        // Cut off from its store, a server answers what it has in memory, and nothing else.
        let access_review = asked.path.ends_with("/selfsubjectaccessreviews");
        let from_memory = asked.may_be_old() || access_review || asked.place.is_none();
        if self.cut_off && !from_memory {
            return Answer::Never;
        }
        Answer::Told(self.carry_out(asked))
    }

    /// The answer to a request that nothing disturbs.
    pub(super) fn carry_out(&mut self, asked: &Asked) -> Response {
        if !self.access.knows(asked.authorization.as_deref()) {
            return Refusal::new(401, "Unauthorized", "Unauthorized").into_response();
        }
        match asked.path.as_str() {
            "/readyz" | "/livez" if self.ready => return "ok".into_response(),
            "/readyz" | "/livez" => {
                let text = "[+]ping ok\n[-]poststarthook/rbac/bootstrap-roles failed: reason withheld\nreadyz check failed\n";
                return (StatusCode::INTERNAL_SERVER_ERROR, text).into_response();
            }
            "/version" => {
                let version = json!({"major": "1", "minor": "36", "gitVersion": "v1.36.2"});
                return axum::Json(version).into_response();
            }
            _ => {}
        }
        let Some(place) = &asked.place else {
            return (StatusCode::NOT_FOUND, "404 page not found\n").into_response();
        };
        let done = self.permitted(asked, place);
        match done {
            Ok((status, body)) => {
                let status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
                (status, axum::Json(body)).into_response()
            }
            Err(refusal) => refusal.into_response(),
        }
    }

    fn permitted(&mut self, asked: &Asked, place: &Place) -> Result<(u16, Value), Refusal> {
        if !self.access.allows(asked.verb, &place.resource()) {
            return Err(Refusal::forbidden(USER, asked.verb, place));
        }
        if place.kind.resource == "selfsubjectaccessreviews" {
            return Ok(self.reviewed(&asked.json()?));
        }
        let store = match &self.cache {
            Some(cache) if asked.may_be_old() => cache,
            Some(_) | None => &self.store,
        };
        match (asked.verb, &place.name) {
            ("get", Some(name)) => read(store, place, name),
            ("list", _) => {
                let items = store.list(place.kind, &place.namespace, &Wanted::parse(&asked.query));
                Ok((
                    200,
                    json!({
                        "kind": format!("{}List", place.kind.name),
                        "apiVersion": place.kind.api_version(),
                        "metadata": {"resourceVersion": store.version()}, "items": items,
                    }),
                ))
            }
            ("create", None) => self.create(asked, place),
            ("patch", Some(name)) => self.patch(asked, place, name),
            ("delete", Some(name)) => {
                let options = asked.json()?;
                let grace = options["gracePeriodSeconds"].as_u64();
                let uid = options["preconditions"]["uid"].as_str();
                let gone = self.store.delete(place, name, (grace, uid), &stamp())?;
                Ok((200, gone))
            }
            _ => Err(Refusal::new(
                405,
                "MethodNotAllowed",
                "the server does not allow this method on the requested resource",
            )),
        }
    }

    fn reviewed(&self, review: &Value) -> (u16, Value) {
        let asked = &review["spec"]["resourceAttributes"];
        let text = |key: &str| asked[key].as_str().unwrap_or_default();
        let mut resource = text("resource").to_owned();
        if !text("subresource").is_empty() {
            resource = format!("{resource}/{}", text("subresource"));
        }
        let allowed = self.access.allows(text("verb"), &resource);
        let mut answer = review.clone();
        answer["status"] = json!({"allowed": allowed});
        (201, answer)
    }

    fn create(&mut self, asked: &Asked, place: &Place) -> Result<(u16, Value), Refusal> {
        let body = asked.json()?;
        let unknown = place.kind.unknown_fields(&body, false);
        if let (true, Some(field)) = (asked.is("fieldValidation", "Strict"), unknown.first()) {
            let text = format!("strict decoding error: unknown field \"{field}\"");
            return Err(Refusal::new(400, "BadRequest", text));
        }
        let writer = Writer {
            manager: &asked.manager,
            operation: "Update",
            subresource: "",
        };
        let when = (stamp(), asked.is("dryRun", "All"));
        let made = self.store.create(place, &body, writer, (&when.0, when.1))?;
        Ok((201, made))
    }

    fn patch(&mut self, asked: &Asked, place: &Place, name: &str) -> Result<(u16, Value), Refusal> {
        let how = match asked.content_type.as_str() {
            "application/merge-patch+json" => How::Merge,
            "application/apply-patch+yaml" => How::Apply {
                force: asked.is("force", "true"),
            },
            other => {
                let text = format!(
                    "the body of the request was in an unknown format - accepted media types include: application/merge-patch+json, application/apply-patch+yaml, not {other}"
                );
                return Err(Refusal::new(415, "UnsupportedMediaType", text));
            }
        };
        if matches!(how, How::Apply { .. }) && !asked.query.contains_key("fieldManager") {
            let text = "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch";
            return Err(Refusal::new(422, "Invalid", text));
        }
        if self.operator_down && place.kind.resource == "clusters" && place.subresource.is_empty() {
            let text = "Internal error occurred: failed calling webhook \"mcluster.cnpg.io\": failed to call webhook: Post \"https://cnpg-webhook-service.cnpg-system.svc:443/mutate-postgresql-cnpg-io-v1-cluster?timeout=10s\": dial tcp: connect: connection refused";
            return Err(Refusal::new(500, "InternalError", text));
        }
        let body = asked.json()?;
        let now = stamp();
        self.store.write(&Write {
            place,
            name,
            how,
            body: &body,
            manager: &asked.manager,
            dry: asked.is("dryRun", "All"),
            strict: asked.is("fieldValidation", "Strict"),
            now: &now,
        })
    }
}

fn read(store: &Store, place: &Place, name: &str) -> Result<(u16, Value), Refusal> {
    let missing = || Refusal::not_found(place.kind, name);
    if place.subresource == "scale" {
        let object = store.object(place.kind, &place.namespace, name);
        let object = object.ok_or_else(missing)?;
        return Ok((200, super::writes::scale(place, object)?));
    }
    let value = store.get(place.kind, &place.namespace, name);
    Ok((200, value.ok_or_else(missing)?))
}

/// A body that promises more than it holds, and breaks off.
fn cut_body() -> Response {
    let parts = [
        Ok::<_, std::io::Error>("{\"kind\": \"Scale\", \"met".to_owned()),
        Err(std::io::Error::other("the connection broke")),
    ];
    Response::new(Body::from_stream(stream::iter(parts)))
}

/// Answers, or keeps the client waiting until it goes.
pub(super) async fn deliver(answer: Answer) -> Result<Response, Infallible> {
    match answer {
        Answer::Told(response) => Ok(response),
        Answer::Never => std::future::pending().await,
    }
}
