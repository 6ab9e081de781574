//! Why the server does not do what it is asked, as it writes that.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::resources::{Kind, Place};

/// A refusal: the body of a `Status`.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    code: u16,
    reason: &'static str,
    message: String,
    details: Value,
}

impl Refusal {
    pub(super) fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: Value::Null,
        }
    }

    fn of(mut self, kind: &Kind, name: &str) -> Self {
        self.details = json!({"name": name, "group": kind.group, "kind": kind.resource});
        self
    }

    pub(super) fn not_found(kind: &Kind, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", kind.shown());
        Self::new(404, "NotFound", message).of(kind, name)
    }

    pub(super) fn exists(kind: &Kind, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", kind.shown());
        Self::new(409, "AlreadyExists", message).of(kind, name)
    }

    pub(super) fn stale(kind: &Kind, name: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} \"{name}\": the object has been modified; please apply your changes to the latest version and try again",
            kind.shown()
        );
        Self::new(409, "Conflict", message).of(kind, name)
    }

    pub(super) fn other_uid(kind: &Kind, name: &str, given: &str, own: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} \"{name}\": Precondition failed: UID in precondition: {given}, UID in object meta: {own}",
            kind.shown()
        );
        Self::new(409, "Conflict", message).of(kind, name)
    }

    /// Fields that other managers own: each with its path and its owner.
    pub(super) fn owned(foreign: &[(String, String)]) -> Self {
        let causes = foreign.iter().map(|(path, owner)| {
            json!({
                "reason": "FieldManagerConflict",
                "message": format!("conflict with \"{owner}\""),
                "field": path,
            })
        });
        let shown = foreign
            .iter()
            .map(|(path, owner)| format!("conflict with \"{owner}\": {path}"));
        let message = format!(
            "Apply failed with {} conflict: {}",
            foreign.len(),
            shown.collect::<Vec<_>>().join(", ")
        );
        let mut refusal = Self::new(409, "Conflict", message);
        refusal.details = json!({"causes": causes.collect::<Vec<_>>()});
        refusal
    }

    /// With the whole object in its text, as the real one has it.
    pub(super) fn unknown_field(kind: &Kind, name: &str, field: &str, whole: &Value) -> Self {
        let message = format!(
            "{} \"{name}\" is invalid: patch: Invalid value: {whole:?}: strict decoding error: unknown field \"{field}\"",
            kind.shown(),
            whole = whole.to_string()
        );
        Self::new(422, "Invalid", message).of(kind, name)
    }

    pub(super) fn invalid(kind: &Kind, name: &str, why: &str) -> Self {
        let message = format!("{} \"{name}\" is invalid: {why}", kind.shown());
        Self::new(422, "Invalid", message).of(kind, name)
    }

    pub(super) fn forbidden(user: &str, verb: &str, place: &Place) -> Self {
        let name = place.name.as_deref().unwrap_or_default();
        let about = if name.is_empty() {
            String::new()
        } else {
            format!(" \"{name}\"")
        };
        let scope = if place.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace \"{}\"", place.namespace)
        };
        let message = format!(
            "{}{about} is forbidden: User \"{user}\" cannot {verb} resource \"{}\" in API group \"{}\" {scope}",
            place.kind.shown(),
            place.resource(),
            place.kind.group
        );
        Self::new(403, "Forbidden", message).of(place.kind, name)
    }

    pub(super) fn body(&self) -> Value {
        let mut body = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if !self.details.is_null() {
            body["details"] = self.details.clone();
        }
        body
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let code = StatusCode::from_u16(self.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (code, axum::Json(self.body())).into_response()
    }
}
