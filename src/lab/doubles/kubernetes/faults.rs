//! What goes wrong with the next request of a kind, and who may do what.

use std::collections::BTreeSet;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// Which request: a verb of the API (`get`, `list`, `create`, `patch`, `delete`) and a plural name,
/// with the subresource where there is one: `statefulsets/scale`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct On {
    /// The verb.
    pub verb: &'static str,
    /// The resource.
    pub resource: &'static str,
}

/// `verb` on `resource`.
pub const fn on(verb: &'static str, resource: &'static str) -> On {
    On { verb, resource }
}

/// What happens to a request.
#[derive(Debug, Clone)]
pub enum Fault {
    /// It has no effect and is answered thus.
    Answer(Told),
    /// It has no effect, and no answer ever comes.
    Silence,
    /// It takes effect, and no answer ever comes.
    EffectThenSilence,
    /// It takes effect and is answered thus all the same.
    EffectThenAnswer(Told),
    /// It takes effect, and the answer breaks off in the middle.
    EffectThenCutBody,
    /// It is answered thus, or not at all, and lands when the test lets it.
    LandsLater(Option<Told>),
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Told {
    /// The HTTP status.
    pub status: u16,
    /// Seconds of a header `Retry-After`.
    pub retry_after: Option<u64>,
    /// The body, which need not be JSON.
    pub body: String,
}

impl Told {
    /// A body that is no `Status`.
    pub fn text(status: u16, body: &str) -> Self {
        Self {
            status,
            retry_after: None,
            body: body.to_owned(),
        }
    }

    /// A `Status`.
    pub fn status(status: u16, reason: &str, message: &str) -> Self {
        let body = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": status,
        });
        Self::text(status, &body.to_string())
    }

    /// The API server has too much to do: plain text, as priority and fairness say it.
    pub fn throttled(seconds: u64) -> Self {
        Self {
            retry_after: Some(seconds),
            ..Self::text(429, "Too many requests, please try again later.")
        }
    }
}

impl IntoResponse for Told {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::IM_A_TEAPOT);
        let kind = if self.body.starts_with('{') {
            "application/json"
        } else {
            "text/plain; charset=utf-8"
        };
        let mut response = (status, [(header::CONTENT_TYPE, kind)], self.body).into_response();
        if let Some(seconds) = self.retry_after {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// One thing that a client did.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    /// The verb, as a rule of access has it.
    pub verb: String,
    /// The group; empty for the core.
    pub group: String,
    /// The plural name.
    pub resource: String,
    /// The subresource, or nothing.
    pub subresource: String,
}

/// Who is let in, and to what.
#[derive(Debug, Default)]
pub(super) struct Access {
    /// The tokens that are taken; `None`: whatever is there, or nothing.
    pub(super) tokens: Option<BTreeSet<String>>,
    pub(super) forbidden: BTreeSet<On>,
}

impl Access {
    pub(super) fn knows(&self, authorization: Option<&str>) -> bool {
        let token = authorization.and_then(|text| text.strip_prefix("Bearer "));
        let tokens = self.tokens.as_ref();
        tokens.is_none_or(|tokens| token.is_some_and(|token| tokens.contains(token)))
    }

    pub(super) fn allows(&self, verb: &str, resource: &str) -> bool {
        let is = |rule: &On| rule.verb == verb && rule.resource == resource;
        !self.forbidden.iter().any(is)
    }
}
