//! What a double answers instead of what it would, and what it was asked.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// An answer that a test wants.
#[derive(Debug, Clone)]
pub struct Planned {
    /// The status.
    pub status: u16,
    /// Seconds of a header `Retry-After`.
    pub retry_after: Option<u64>,
    /// The body.
    pub body: String,
    /// Whether the request takes effect all the same.
    pub effective: bool,
}

impl Planned {
    /// A refusal in Google's form.
    pub fn refusal(status: u16, message: &str) -> Self {
        Self {
            status,
            retry_after: None,
            body: error_body(status, message).to_string(),
            effective: false,
        }
    }
}

/// An error as Google writes it.
pub fn error_body(status: u16, message: &str) -> Value {
    json!({"error": {"code": status, "message": message}})
}

/// Why a double does not do what it is asked.
#[derive(Debug)]
pub(super) struct Refusal(StatusCode, String);

pub(super) fn refuse(status: StatusCode, message: impl Into<String>) -> Refusal {
    Refusal(status, message.into())
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Refusal(status, message) = self;
        let body = error_body(status.as_u16(), &message);
        (status, axum::Json(body)).into_response()
    }
}

#[derive(Debug, Default)]
struct Pages {
    planned: VecDeque<Planned>,
    changes: Vec<String>,
    reads: usize,
}

/// The plan for the answers of a double, and its record of requests.
#[derive(Debug, Default)]
pub struct Script(Mutex<Pages>);

impl Script {
    fn with<T>(&self, with: impl FnOnce(&mut Pages) -> T) -> T {
        with(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What the next request that would change something is answered with.
    pub fn plan(&self, planned: Planned) {
        self.with(|pages| pages.planned.push_back(planned));
    }

    /// The bodies of all requests that would change something, as they came over the wire.
    pub fn changes(&self) -> Vec<String> {
        self.with(|pages| pages.changes.clone())
    }

    /// How many other requests there were.
    pub fn reads(&self) -> usize {
        self.with(|pages| pages.reads)
    }

    pub(super) fn read(&self) {
        self.with(|pages| pages.reads = pages.reads.saturating_add(1));
    }

    /// Keeps a body; what was planned for it.
    pub(super) fn change(&self, body: &str) -> Option<Planned> {
        self.with(|pages| {
            pages.changes.push(body.to_owned());
            pages.planned.pop_front()
        })
    }
}

impl IntoResponse for Planned {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::IM_A_TEAPOT);
        let wait: Option<(HeaderName, String)> = self
            .retry_after
            .map(|seconds| (header::RETRY_AFTER, seconds.to_string()));
        let kind = [(header::CONTENT_TYPE, "application/json".to_owned())];
        let headers: Vec<_> = kind.into_iter().chain(wait).collect();
        (status, axum::response::AppendHeaders(headers), self.body).into_response()
    }
}
