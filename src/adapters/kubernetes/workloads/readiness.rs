//! Whether a workload is there. Pure.

use std::fmt;

use super::{Kind, Name};
use crate::adapters::kubernetes::Object;
use crate::engine::text::clipped;

/// A workload that is not there as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotReady {
    /// Which one.
    pub workload: Name,
    /// How many replicas are available, as the controller says of what is wanted now.
    pub available: u64,
    /// How many should be.
    pub wanted: u64,
    /// Why not, in the cluster's words: a quota, an image, a node without room.
    pub why: Option<String>,
}

impl fmt::Display for NotReady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (available, wanted) = (self.available, self.wanted);
        write!(f, "`{}`: {available} of {wanted} available", self.workload)?;
        match &self.why {
            Some(why) => write!(f, ": {why}"),
            None => Ok(()),
        }
    }
}

/// What a workload lacks; `None`: nothing. A CronJob lacks nothing once it is not suspended.
pub fn not_ready(name: &Name, object: &Object, wanted: u64) -> Option<NotReady> {
    if name.kind == Kind::CronJob {
        let suspended = object.value()["spec"]["suspend"].as_bool() == Some(true);
        return (suspended && wanted > 0).then(|| NotReady {
            workload: name.clone(),
            available: 0,
            wanted: 1,
            why: Some("it is suspended".to_owned()),
        });
    }
    let generation = object.number("/metadata/generation").unwrap_or(0);
    let observed = object.number("/status/observedGeneration").unwrap_or(0);
    // What a controller says of an earlier wish tells nothing of this one.
    let current = observed >= generation;
    let available = object.number("/status/availableReplicas").unwrap_or(0);
    let available = if current { available } else { 0 };
    if available >= wanted {
        return None;
    }
    let why = if current {
        failure(object)
    } else {
        Some("its controller has not seen the change yet".to_owned())
    };
    Some(NotReady {
        workload: name.clone(),
        available,
        wanted,
        why,
    })
}

/// What a Deployment's conditions complain of.
fn failure(object: &Object) -> Option<String> {
    let conditions = object.value()["status"]["conditions"].as_array()?;
    let is = |kind: &str, status: &str| {
        let mut all = conditions.iter();
        all.find(|one| one["type"].as_str() == Some(kind) && one["status"].as_str() == Some(status))
    };
    let found = is("ReplicaFailure", "True").or_else(|| is("Progressing", "False"))?;
    found["message"].as_str().map(clipped)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn lacking(status: Value, wanted: u64) -> Option<NotReady> {
        let name = Name {
            kind: Kind::Deployment,
            name: "app".to_owned(),
        };
        let object = Object(json!({"metadata": {"generation": 4}, "status": status}));
        not_ready(&name, &object, wanted)
    }

    #[test]
    fn what_a_controller_says_of_an_earlier_wish_does_not_count() {
        let old = json!({"observedGeneration": 3, "availableReplicas": 9});
        let said = lacking(old, 3).unwrap();
        assert_eq!(said.available, 0);
        assert!(said.to_string().contains("has not seen"), "{said}");
        let now = json!({"observedGeneration": 4, "availableReplicas": 3});
        assert_eq!(lacking(now.clone(), 3), None);
        assert_eq!(lacking(now, 4).unwrap().available, 3);
        assert_eq!(lacking(json!({"observedGeneration": 4}), 0), None);
    }

    #[test]
    fn a_quota_is_told_in_the_words_of_the_api() {
        let said = "pods \"app-1\" is forbidden: exceeded quota: small, requested: cpu=2";
        let status = json!({"observedGeneration": 4, "availableReplicas": 1, "conditions": [
            {"type": "Available", "status": "True", "message": "fine"},
            {"type": "ReplicaFailure", "status": "True", "message": said},
        ]});
        let lacking = lacking(status, 3).unwrap();
        assert_eq!(lacking.why.as_deref(), Some(said));
        assert_eq!(
            lacking.to_string(),
            format!("`Deployment/app`: 1 of 3 available: {said}")
        );
    }
}
