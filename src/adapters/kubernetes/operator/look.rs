//! What a `Cluster` object says. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::FENCED;
use crate::adapters::kubernetes::{ClusterError, Object, Place, Version};

/// Which instances the operator keeps down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FencedInstances {
    /// None.
    None,
    /// These.
    Some(BTreeSet<String>),
    /// All.
    All,
}

/// What an instance said of itself to the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reported {
    /// Whether it takes writes.
    pub is_primary: bool,
    /// Its timeline.
    pub timeline: Option<u64>,
}

/// How a `Cluster` stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorLook {
    /// Which object, and which state of it.
    pub version: Version,
    /// Its own name in the topology: `spec.replica.self`.
    pub own: Option<String>,
    /// Which site is the primary of the topology: `spec.replica.primary`.
    pub primary: Option<String>,
    /// What is kept down.
    pub fenced: FencedInstances,
    /// The instances that there are.
    pub instances: BTreeSet<String>,
    /// How many of them serve.
    pub ready: u64,
    /// Those that the operator calls healthy.
    pub healthy: BTreeSet<String>,
    /// What each said last.
    pub reported: BTreeMap<String, Reported>,
    /// Which instance leads.
    pub current_primary: Option<String>,
    /// Which one is to lead: another one while the operator moves the primary inside its site.
    pub target_primary: Option<String>,
    /// The timeline of the leading one.
    pub timeline: Option<u64>,
    /// The operator's own words.
    pub phase: Option<String>,
    /// What a planned promotion of the other site needs: there once this one was demoted cleanly.
    pub demotion_token: Option<String>,
    /// The token with which this one was promoted last.
    pub last_promotion_token: Option<String>,
}

/// Why the operator's status is no proof of a fence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Open {
    /// Not all instances are to be kept down.
    NotFenced,
    /// It is not known which instances there are.
    NoInstances,
    /// The operator still counts some as serving.
    Serving {
        /// How many.
        ready: u64,
        /// Those that it calls healthy.
        healthy: BTreeSet<String>,
    },
}

impl fmt::Display for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Open::NotFenced => write!(f, "`{FENCED}` does not name all instances"),
            Open::NoInstances => f.write_str("the operator names no instance"),
            Open::Serving { ready, healthy } => {
                let healthy: Vec<&str> = healthy.iter().map(String::as_str).collect();
                write!(f, "the operator counts {ready} ready instances")?;
                if healthy.is_empty() {
                    return Ok(());
                }
                write!(f, " and calls {} healthy", healthy.join(", "))
            }
        }
    }
}

fn words(value: &Value) -> BTreeSet<String> {
    let words = value.as_array().into_iter().flatten();
    let words = words.filter_map(Value::as_str);
    words.map(ToOwned::to_owned).collect()
}

impl OperatorLook {
    pub(super) fn read(object: &Object) -> Result<Self, ClusterError> {
        let text = |pointer: &str| {
            let text = object.text(pointer).filter(|text| !text.is_empty());
            text.map(ToOwned::to_owned)
        };
        let status = &object.value()["status"];
        let reported = status["instancesReportedState"].as_object();
        let reported = reported.into_iter().flatten().map(|(name, state)| {
            let reported = Reported {
                is_primary: state["isPrimary"].as_bool() == Some(true),
                timeline: state["timeLineID"].as_u64(),
            };
            (name.clone(), reported)
        });
        Ok(Self {
            version: object.version()?,
            own: text("/spec/replica/self"),
            primary: text("/spec/replica/primary"),
            fenced: fenced(object.annotation(FENCED))?,
            instances: words(&status["instanceNames"]),
            ready: object.number("/status/readyInstances").unwrap_or(0),
            healthy: words(&status["instancesStatus"]["healthy"]),
            reported: reported.collect(),
            current_primary: text("/status/currentPrimary"),
            target_primary: text("/status/targetPrimary"),
            timeline: object.number("/status/timelineID"),
            phase: text("/status/phase"),
            demotion_token: text("/status/demotionToken"),
            last_promotion_token: text("/status/lastPromotionToken"),
        })
    }

    pub(super) fn own_name(&self, place: &Place) -> Result<&str, ClusterError> {
        self.own.as_deref().ok_or_else(|| {
            ClusterError::Refused(format!(
                "{} has no `spec.replica.self`: it is in no distributed topology",
                place.shown()
            ))
        })
    }

    /// Why this is no proof of a fence. `None`: as far as the operator can tell, nothing serves. That
    /// every one of [`OperatorLook::instances`] refuses a connection has still to be seen.
    pub fn open(&self) -> Option<Open> {
        if self.fenced != FencedInstances::All {
            return Some(Open::NotFenced);
        }
        if self.instances.is_empty() {
            return Some(Open::NoInstances);
        }
        let serving = self.ready > 0 || !self.healthy.is_empty();
        serving.then(|| Open::Serving {
            ready: self.ready,
            healthy: self.healthy.clone(),
        })
    }

    /// Whether the operator moves the primary inside its site: no move of the group.
    pub fn moves_inside(&self) -> bool {
        self.current_primary != self.target_primary
    }
}

fn fenced(annotation: Option<&str>) -> Result<FencedInstances, ClusterError> {
    let Some(text) = annotation.filter(|text| !text.is_empty()) else {
        return Ok(FencedInstances::None);
    };
    let names: BTreeSet<String> = serde_json::from_str(text).map_err(|_cause| {
        ClusterError::Refused(format!("`{FENCED}` is `{text}`, which is no list of names"))
    })?;
    Ok(if names.is_empty() {
        FencedInstances::None
    } else if names.contains("*") {
        FencedInstances::All
    } else {
        FencedInstances::Some(names)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn look(annotation: Value, status: Value) -> Result<OperatorLook, ClusterError> {
        OperatorLook::read(&Object(json!({
            "metadata": {"uid": "u", "resourceVersion": "7", "annotations": {FENCED: annotation}},
            "status": status,
        })))
    }

    #[test]
    fn a_status_is_a_proof_only_when_all_is_kept_down_and_nothing_serves() {
        let down = json!({"instanceNames": ["db-1"], "readyInstances": 0});
        let open = |annotation, status| look(annotation, status).unwrap().open();
        assert_eq!(open(json!("[\"*\"]"), down.clone()), None);
        assert_eq!(
            open(json!("[\"db-1\"]"), down.clone()),
            Some(Open::NotFenced)
        );
        assert_eq!(open(json!("[]"), down.clone()), Some(Open::NotFenced));
        assert_eq!(open(Value::Null, down), Some(Open::NotFenced));
        assert_eq!(open(json!("[\"*\"]"), json!({})), Some(Open::NoInstances));
        let ready = json!({"instanceNames": ["db-1"], "readyInstances": 1});
        let said = open(json!("[\"*\"]"), ready).unwrap();
        assert_eq!(said.to_string(), "the operator counts 1 ready instances");
        let healthy = json!({"instanceNames": ["db-1"], "instancesStatus": {"healthy": ["db-1"]}});
        let said = open(json!("[\"*\"]"), healthy).unwrap();
        assert!(said.to_string().contains("calls db-1 healthy"), "{said}");
        assert!(look(json!("yes"), json!({})).is_err());
    }

    #[test]
    fn a_move_inside_the_site_is_told_from_one_of_the_group() {
        let status = json!({
            "currentPrimary": "db-1", "targetPrimary": "db-2", "timelineID": 4,
            "instancesReportedState": {"db-1": {"isPrimary": true, "timeLineID": 4}},
        });
        let moving = look(Value::Null, status).unwrap();
        assert!(moving.moves_inside());
        assert_eq!(moving.timeline, Some(4));
        assert!(moving.reported["db-1"].is_primary);
        let still = json!({"currentPrimary": "db-1", "targetPrimary": "db-1"});
        assert!(!look(Value::Null, still).unwrap().moves_inside());
    }
}
