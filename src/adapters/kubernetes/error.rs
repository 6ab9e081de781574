//! What an API server's answer means for what was asked.

use std::time::Duration;

use axum::http::StatusCode;
use serde_json::Value;

use crate::engine::text::clipped;
use crate::ports::EffectError;

/// How long to wait where a server has too much to do and does not say how long.
const SHORT_WAIT: Duration = Duration::from_secs(1);

/// Why something did not happen, or may have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    /// Somebody else changed the object since it was read, or owns the field.
    #[error("changed by somebody else: {0}")]
    Conflict(String),
    /// Our role lacks a rule.
    #[error("not allowed to `{verb}` `{resource}`: {said}")]
    Forbidden {
        /// The verb that the rule needs.
        verb: &'static str,
        /// The resource with its group: `statefulsets.apps/scale`.
        resource: String,
        /// The server's words.
        said: String,
    },
    /// The credential is not taken: expired, revoked, or of another cluster.
    #[error("the credential is not accepted: {0}")]
    Unauthorized(String),
    /// The server has too much to do; nothing happened.
    #[error("asks to wait {}: {said}", humantime::format_duration(*.after))]
    Throttled {
        /// How long it asks to be left alone.
        after: Duration,
        /// The server's words.
        said: String,
    },
    /// There is no such object.
    #[error("not there: {0}")]
    Absent(String),
    /// It may have happened, or may happen later: see [`Cluster::settle`](super::Cluster::settle).
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// It certainly did not happen, and trying again may help: nothing was sent, or only a read failed.
    #[error("{0}")]
    Failed(String),
    /// Another cluster answers than the one that was recorded.
    #[error(
        "another cluster answers: its `kube-system` has the uid `{found}`, recorded is `{expected}`"
    )]
    OtherCluster {
        /// The recorded uid.
        expected: String,
        /// The uid that was found.
        found: String,
    },
    /// It certainly did not happen, and trying again will not help.
    #[error("{0}")]
    Refused(String),
}

impl From<ClusterError> for EffectError {
    fn from(error: ClusterError) -> Self {
        let text = error.to_string();
        match error {
            ClusterError::Conflict(said) => EffectError::Conflict(said),
            ClusterError::Unknown(said) => EffectError::Unknown(said),
            ClusterError::Unauthorized(_)
            | ClusterError::Throttled { .. }
            | ClusterError::Failed(_) => EffectError::Failed(text),
            ClusterError::Forbidden { .. }
            | ClusterError::Absent(_)
            | ClusterError::OtherCluster { .. }
            | ClusterError::Refused(_) => EffectError::Refused(text),
        }
    }
}

/// What was asked, as far as an error needs it.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) verb: &'static str,
    /// With its group and subresource.
    pub(super) resource: String,
    /// Whether it would have changed something.
    pub(super) changes: bool,
}

impl Asked {
    /// What is told of an outcome that nobody knows: of a read it does not matter.
    pub(super) fn unknown(&self, why: impl Into<String>) -> ClusterError {
        let why = format!("{} of `{}`: {}", self.verb, self.resource, why.into());
        if self.changes {
            ClusterError::Unknown(why)
        } else {
            ClusterError::Failed(why)
        }
    }

    /// The error that an answer is.
    pub(super) fn error(
        &self,
        status: StatusCode,
        retry_after: Option<Duration>,
        body: &[u8],
    ) -> ClusterError {
        let answer = serde_json::from_slice::<Value>(body).ok();
        let answer = answer.filter(|answer| answer["message"].is_string());
        let said = said(status, answer.as_ref(), body);
        let text = format!("{} of `{}`: {said}", self.verb, self.resource);
        match status.as_u16() {
            401 => ClusterError::Unauthorized(text),
            403 if said.contains(&format!("cannot {} ", self.verb)) => ClusterError::Forbidden {
                verb: self.verb,
                resource: self.resource.clone(),
                said,
            },
            404 if answer.is_some() => ClusterError::Absent(text),
            404 => ClusterError::Refused(format!(
                "{text}: this API server has no such resource in that version"
            )),
            409 => ClusterError::Conflict(text),
            429 => ClusterError::Throttled {
                after: retry_after.unwrap_or(SHORT_WAIT),
                said: text,
            },
            // A webhook is asked before anything is stored.
            500 if said.contains("failed calling webhook") => ClusterError::Failed(text),
            408 | 500.. => self.unknown(said),
            _ => ClusterError::Refused(text),
        }
    }
}

/// The server's words, bounded. A body that is no `Status` counts, too.
fn said(status: StatusCode, answer: Option<&Value>, body: &[u8]) -> String {
    let Some(answer) = answer else {
        let text = String::from_utf8_lossy(body);
        return clipped(format!("{status}: {}", text.trim()));
    };
    let message = answer["message"].as_str().unwrap_or_default();
    if status == StatusCode::UNPROCESSABLE_ENTITY {
        return clipped(format!("{status}: {}", without_object(answer, message)));
    }
    let causes = answer["details"]["causes"].as_array();
    let cause = |cause: &Value| {
        let (field, said) = (cause["field"].as_str()?, cause["message"].as_str()?);
        (!message.contains(field)).then(|| format!("{field}: {said}"))
    };
    let causes = causes.into_iter().flatten().filter_map(cause);
    let all: Vec<String> = std::iter::once(message.to_owned()).chain(causes).collect();
    clipped(format!("{status}: {}", all.join("; ")))
}

/// Such a refusal quotes the whole object, with whatever secret stands in it: told is only which field
/// is meant.
fn without_object(answer: &Value, message: &str) -> String {
    const STRICT: &str = "strict decoding error: ";
    if let Some((_, field)) = message.rsplit_once(STRICT) {
        return format!("{STRICT}{field}");
    }
    let causes = answer["details"]["causes"].as_array();
    let cause = |cause: &Value| {
        let field = cause["field"].as_str()?;
        Some(format!("`{field}` is invalid"))
    };
    let causes: Vec<String> = causes.into_iter().flatten().filter_map(cause).collect();
    if causes.is_empty() {
        return "the object is invalid".to_owned();
    }
    causes.join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(changes: bool, status: u16, body: &str) -> ClusterError {
        let asked = Asked {
            verb: "patch",
            resource: "statefulsets.apps/scale".to_owned(),
            changes,
        };
        let status = StatusCode::from_u16(status).unwrap();
        asked.error(status, None, body.as_bytes())
    }

    fn status(message: &str) -> String {
        json!({"kind": "Status", "message": message, "details": {}}).to_string()
    }

    #[test]
    fn each_answer_means_one_thing() {
        type Means = fn(&ClusterError) -> bool;
        let etcd = status("etcdserver: request timed out");
        let webhook = status("Internal error occurred: failed calling webhook \"x\": refused");
        let rbac = status("User \"failover\" cannot patch resource \"statefulsets/scale\"");
        let quota = status("pods \"db-0\" is forbidden: exceeded quota: small");
        let other = status("in words");
        #[rustfmt::skip]
        let table: Vec<(&str, u16, &str, Means)> = vec![
            ("a version", 409, &etcd, |e| matches!(e, ClusterError::Conflict(_))),
            ("no right", 403, &rbac, |e| matches!(e, ClusterError::Forbidden { verb: "patch", .. })),
            ("no quota", 403, &quota, |e| matches!(e, ClusterError::Refused(_))),
            ("no credential", 401, &other, |e| matches!(e, ClusterError::Unauthorized(_))),
            ("too much", 429, "Too many requests", |e| matches!(e, ClusterError::Throttled { after: SHORT_WAIT, .. })),
            ("no object", 404, &other, |e| matches!(e, ClusterError::Absent(_))),
            ("no such resource", 404, "404 page not found", |e| matches!(e, ClusterError::Refused(_))),
            ("the store may have done it", 500, &etcd, |e| matches!(e, ClusterError::Unknown(_))),
            ("a webhook did not answer", 500, &webhook, |e| matches!(e, ClusterError::Failed(_))),
            ("a balancer in between", 503, "<html>", |e| matches!(e, ClusterError::Unknown(_))),
            ("the server's own time-out", 504, "{\"metadata\": {}}", |e| matches!(e, ClusterError::Unknown(_))),
            ("a bad patch", 422, &other, |e| matches!(e, ClusterError::Refused(_))),
            ("another patch type", 415, &other, |e| matches!(e, ClusterError::Refused(_))),
        ];
        for (name, code, body, means) in table {
            let error = of(true, code, body);
            assert!(means(&error), "{name}: {error:?}");
        }
        for code in [500, 503, 504] {
            let error = of(false, code, &etcd);
            assert!(
                matches!(error, ClusterError::Failed(_)),
                "a read: {error:?}"
            );
        }
    }

    #[test]
    fn a_refusal_that_quotes_the_object_is_not_repeated() {
        let strict = status(
            "statefulsets \"db\" is invalid: patch: Invalid value: {\"password\": \"hunter2\"}: strict decoding error: unknown field \"spec.replica\"",
        );
        let said = of(true, 422, &strict).to_string();
        assert!(said.contains("unknown field \"spec.replica\""), "{said}");
        let wrong = json!({
            "message": "Invalid value: {\"password\": \"hunter2\"}: spec.replicas in body must be of type integer",
            "details": {"causes": [{"field": "spec.replicas", "message": "hunter2"}]},
        });
        let also = of(true, 422, &wrong.to_string()).to_string();
        assert!(also.contains("`spec.replicas` is invalid"), "{also}");
        for text in [said, also] {
            assert!(!text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn a_conflict_names_the_owner_of_the_field() {
        let body = json!({
            "message": "Apply failed with 1 conflict",
            "details": {"causes": [{"field": ".spec.replicas", "message": "conflict with \"argocd\""}]},
        });
        let said = of(true, 409, &body.to_string()).to_string();
        assert!(
            said.contains(".spec.replicas: conflict with \"argocd\""),
            "{said}"
        );
    }
}
