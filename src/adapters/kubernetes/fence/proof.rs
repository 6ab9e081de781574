//! What proves that the pods of a StatefulSet run nothing any more, and what does not. Pure.
//!
//! A proof is the kubelet's word: every container of the pod `terminated`, under the uid that was there
//! when the fence began, in a status written after that, by a kubelet whose node's lease is renewed. That
//! a pod's object is gone, that the node is not ready, that the replicas are 0: none of it says that a
//! process ended.

use std::cmp::Ordering;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::object::{Object, Owner, Version, compare_versions};

/// A pod when it was first seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodSeen {
    /// Its name.
    pub name: String,
    /// Its uid, which the next pod of that name does not have.
    pub uid: String,
    /// The node that it was given to.
    pub node: Option<String>,
    /// That node's machine, as the cloud names it.
    pub machine: Option<String>,
    /// All its containers had ended already: an old status.
    pub ended: bool,
    /// When its kubelet last wrote a status, by the server's clock. Compared for being the same only.
    pub kubelet_wrote: Option<String>,
}

/// What stood there when the fence began: after the sever, before the change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// The cluster's uid.
    pub cluster: String,
    /// The StatefulSet.
    pub set: Version,
    /// How many replicas it had: what an undo gives back.
    pub replicas: u64,
    /// Its pods.
    pub pods: Vec<PodSeen>,
    /// The version at which the pods were read: a status is new if it is written after it.
    pub version: String,
}

/// How a pod ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// Its kubelet said so.
    Kubelet {
        /// The version of the status.
        resource_version: String,
        /// When its last container ended, by the node's clock. For people.
        finished_at: Option<String>,
        /// How long ago the node's lease was renewed, at most, in milliseconds.
        lease_age_ms: u64,
    },
    /// Its node's object is gone, and the cloud says that the machine is, too.
    MachineGone {
        /// The machine.
        machine: String,
    },
}

/// A pod that runs nothing any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodEnd {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// How that is known.
    pub end: End,
}

/// The proof that a StatefulSet runs nothing. Read again before anything that cannot be taken back rests
/// on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The cluster's uid.
    pub cluster: String,
    /// The StatefulSet at zero. A smaller version or generation later means that the store was restored
    /// and the fence is gone.
    pub set: Version,
    /// Every pod.
    pub pods: Vec<PodEnd>,
}

/// Why something is no proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Doubt {
    /// No pod was there when the fence began, so nobody can say what became of one.
    NoPod,
    /// The pod that held the right was not there any more when the fence began.
    HolderGone {
        /// Its uid.
        uid: String,
    },
    /// A pod's object is gone, and nobody said that its containers ended.
    Vanished {
        /// The pod.
        pod: String,
    },
    /// A container did not end yet, or nobody says so.
    Running {
        /// The pod.
        pod: String,
        /// The container.
        container: String,
    },
    /// All containers ended, and their pod stays: they are started again.
    Restarts {
        /// The pod.
        pod: String,
    },
    /// The status says that all ended, and was written before the fence began.
    OldStatus {
        /// The pod.
        pod: String,
    },
    /// The status was not written by a kubelet, or not by it alone.
    NotTheKubelet {
        /// The pod.
        pod: String,
        /// Who wrote it.
        by: Vec<String>,
    },
    /// The node's lease was not seen renewed lately.
    LeaseOld {
        /// The pod.
        pod: String,
        /// Its node.
        node: String,
        /// How long ago it was renewed, at most, in milliseconds; `None`: never seen.
        age_ms: Option<u64>,
    },
    /// The replicas are not 0: somebody put them back.
    Rescaled {
        /// How many are wanted.
        replicas: u64,
        /// Who owns the number.
        by: Vec<Owner>,
    },
    /// The StatefulSet is another one, or none.
    Replaced {
        /// What was found.
        found: Option<String>,
    },
    /// The store was restored: what is read now is older than what was read before.
    WentBack {
        /// What was kept.
        kept: String,
        /// What is there.
        found: String,
    },
    /// The server's versions are no numbers and tell nothing.
    NoOrder,
}

impl Doubt {
    /// Whether waiting cannot help.
    pub fn is_final(&self) -> bool {
        match self {
            Doubt::NoPod
            | Doubt::HolderGone { .. }
            | Doubt::Vanished { .. }
            | Doubt::Replaced { .. }
            | Doubt::Rescaled { .. }
            | Doubt::WentBack { .. }
            | Doubt::NoOrder => true,
            Doubt::Running { .. }
            | Doubt::Restarts { .. }
            | Doubt::OldStatus { .. }
            | Doubt::NotTheKubelet { .. }
            | Doubt::LeaseOld { .. } => false,
        }
    }
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Doubt::NoPod => f.write_str("no pod was there when the fence began"),
            Doubt::HolderGone { uid } => {
                write!(
                    f,
                    "the pod with the write lease, uid `{uid}`, was not there when the fence began"
                )
            }
            Doubt::Vanished { pod } => write!(
                f,
                "the object of pod `{pod}` is gone, and its kubelet did not say that its containers ended"
            ),
            Doubt::Running { pod, container } => {
                write!(f, "container `{container}` of pod `{pod}` has not ended")
            }
            Doubt::Restarts { pod } => {
                write!(
                    f,
                    "pod `{pod}` is not being deleted: its containers are started again"
                )
            }
            Doubt::OldStatus { pod } => {
                write!(
                    f,
                    "the status of pod `{pod}` was written before the fence began"
                )
            }
            Doubt::NotTheKubelet { pod, by } => {
                write!(
                    f,
                    "the status of pod `{pod}` was written by {}, not by its kubelet alone",
                    by.join(", ")
                )
            }
            Doubt::LeaseOld { pod, node, age_ms } => {
                write!(f, "node `{node}` of pod `{pod}` has not renewed its lease")?;
                match age_ms {
                    Some(age) => write!(
                        f,
                        " for up to {}",
                        humantime::format_duration(Duration::from_millis(*age))
                    ),
                    None => f.write_str(" since we look"),
                }
            }
            Doubt::Rescaled { replicas, by } => {
                let by: Vec<&str> = by.iter().map(|owner| owner.manager.as_str()).collect();
                write!(
                    f,
                    "{replicas} replicas are wanted, owned by {}",
                    if by.is_empty() {
                        "nobody".to_owned()
                    } else {
                        by.join(", ")
                    }
                )
            }
            Doubt::Replaced { found: Some(uid) } => {
                write!(f, "another StatefulSet has its name, uid `{uid}`")
            }
            Doubt::Replaced { found: None } => f.write_str("the StatefulSet is gone"),
            Doubt::WentBack { kept, found } => write!(
                f,
                "the API server's store was restored: version {found} is there, {kept} was read before"
            ),
            Doubt::NoOrder => f.write_str("the API server's versions cannot be compared"),
        }
    }
}

/// What a kubelet said of a pod that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) resource_version: String,
    pub(super) finished_at: Option<String>,
}

/// The lists of containers in a status: those of the pod must all be there.
const STATUSES: [&str; 3] = [
    "containerStatuses",
    "initContainerStatuses",
    "ephemeralContainerStatuses",
];

fn statuses<'p>(pod: &'p Object, list: &str) -> impl Iterator<Item = &'p Value> {
    let found = pod.value()["status"][list].as_array();
    found.into_iter().flatten()
}

/// A container that did not end, or of which nobody says so.
fn unended(pod: &Object) -> Option<String> {
    let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
    let ended = |status: &&Value| status["state"]["terminated"].is_object();
    let all = STATUSES.iter().flat_map(|list| statuses(pod, list));
    let running = all.into_iter().find(|status| !ended(status));
    let wanted = pod.value()["spec"]["containers"].as_array();
    let silent = wanted.into_iter().flatten().find(|container| {
        let mut told = statuses(pod, STATUSES[0]);
        !told.any(|status| status["name"] == container["name"])
    });
    let nothing = statuses(pod, STATUSES[0]).next().is_none();
    running
        .or(silent)
        .map(name)
        .or_else(|| nothing.then(|| "every".to_owned()))
}

/// When the kubelet last wrote the pod's status.
fn kubelet_wrote(pod: &Object) -> Option<String> {
    let entries = pod.value()["metadata"]["managedFields"].as_array()?;
    let is = |entry: &&Value| {
        entry["manager"].as_str() == Some(KUBELET)
            && entry["subresource"].as_str() == Some("status")
    };
    let entry = entries.iter().find(is)?;
    entry["time"].as_str().map(ToOwned::to_owned)
}

const KUBELET: &str = "kubelet";

impl PodSeen {
    /// `known`: it was there when the fence began. What is said of one that came later was all written
    /// later.
    pub(super) fn of(pod: &Object, machine: Option<String>, known: bool) -> Self {
        let text = |pointer: &str| pod.text(pointer).map(ToOwned::to_owned);
        Self {
            name: pod.name().to_owned(),
            uid: text("/metadata/uid").unwrap_or_default(),
            node: text("/spec/nodeName"),
            machine,
            ended: known && unended(pod).is_none(),
            kubelet_wrote: if known { kubelet_wrote(pod) } else { None },
        }
    }
}

/// What is known of one pod from its object as it is now.
pub(super) fn judge_pod(seen: &PodSeen, since: &str, now: Option<&Object>) -> Result<Word, Doubt> {
    let pod = seen.name.clone();
    let Some(now) = now.filter(|now| now.text("/metadata/uid") == Some(seen.uid.as_str())) else {
        return Err(Doubt::Vanished { pod });
    };
    if let Some(container) = unended(now) {
        return Err(Doubt::Running { pod, container });
    }
    let owners = now.owners(&["status", STATUSES[0]]);
    let by_kubelet = |owner: &Owner| owner.manager == KUBELET && owner.subresource == "status";
    if owners.is_empty() || !owners.iter().all(by_kubelet) {
        let by = owners.into_iter().map(|owner| owner.manager).collect();
        return Err(Doubt::NotTheKubelet { pod, by });
    }
    let resource_version = now.text("/metadata/resourceVersion").unwrap_or_default();
    match compare_versions(resource_version, since) {
        None => return Err(Doubt::NoOrder),
        Some(Ordering::Less | Ordering::Equal) => return Err(Doubt::OldStatus { pod }),
        Some(Ordering::Greater) => {}
    }
    // Its object may have changed for another reason: that is no new word of the kubelet.
    if seen.ended && kubelet_wrote(now) == seen.kubelet_wrote {
        return Err(Doubt::OldStatus { pod });
    }
    if !now.is_ending() {
        return Err(Doubt::Restarts { pod });
    }
    let finished = statuses(now, STATUSES[0]);
    let finished = finished.filter_map(|one| one["state"]["terminated"]["finishedAt"].as_str());
    Ok(Word {
        resource_version: resource_version.to_owned(),
        finished_at: finished.max().map(ToOwned::to_owned),
    })
}

/// Whether the StatefulSet is still the one that was scaled to zero, and at zero.
pub(super) fn judge_set(kept: &Version, now: Option<&Object>) -> Result<Version, Doubt> {
    let Some(now) = now else {
        return Err(Doubt::Replaced { found: None });
    };
    let Ok(version) = now.version() else {
        return Err(Doubt::NoOrder);
    };
    if version.uid != kept.uid {
        let found = Some(version.uid);
        return Err(Doubt::Replaced { found });
    }
    let shown = |version: &Version| {
        format!(
            "{} (generation {})",
            version.resource_version, version.generation
        )
    };
    match version.cmp_versions(&kept.resource_version) {
        None => return Err(Doubt::NoOrder),
        Some(Ordering::Less) => {
            return Err(Doubt::WentBack {
                kept: shown(kept),
                found: shown(&version),
            });
        }
        Some(Ordering::Equal | Ordering::Greater) => {}
    }
    if version.generation < kept.generation {
        return Err(Doubt::WentBack {
            kept: shown(kept),
            found: shown(&version),
        });
    }
    match now.replicas() {
        0 => Ok(version),
        replicas => Err(Doubt::Rescaled {
            replicas,
            by: now.owners(&["spec", "replicas"]),
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A pod whose kubelet says that all has ended, at version 20.
    fn pod() -> Value {
        json!({
            "metadata": {
                "name": "db-0", "uid": "u", "resourceVersion": "20",
                "deletionTimestamp": "2026-11-27T17:00:00Z",
                "managedFields": [{
                    "manager": "kubelet", "operation": "Update", "subresource": "status",
                    "time": "2026-11-27T17:00:01Z",
                    "fieldsV1": {"f:status": {"f:containerStatuses": {}}},
                }],
            },
            "spec": {"containers": [{"name": "main"}, {"name": "sidecar"}]},
            "status": {
                "containerStatuses": [
                    {"name": "main", "state": {"terminated": {"finishedAt": "2026-11-27T17:00:00Z"}}},
                    {"name": "sidecar", "state": {"terminated": {}}},
                ],
                "initContainerStatuses": [{"name": "proxy", "state": {"terminated": {}}}],
            },
        })
    }

    fn seen() -> PodSeen {
        PodSeen {
            name: "db-0".to_owned(),
            uid: "u".to_owned(),
            node: Some("a".to_owned()),
            machine: None,
            ended: false,
            kubelet_wrote: Some("2026-11-27T16:00:00Z".to_owned()),
        }
    }

    fn judged(since: &str, change: impl FnOnce(&mut Value, &mut PodSeen)) -> Result<Word, Doubt> {
        let (mut pod, mut seen) = (pod(), seen());
        change(&mut pod, &mut seen);
        judge_pod(&seen, since, Some(&Object(pod)))
    }

    #[test]
    fn only_a_new_word_of_the_kubelet_that_all_has_ended_is_a_proof() {
        let word = judged("19", |_, _| {}).unwrap();
        assert_eq!(word.resource_version, "20");
        assert_eq!(word.finished_at.as_deref(), Some("2026-11-27T17:00:00Z"));

        type Change = fn(&mut Value, &mut PodSeen);
        type Is = fn(&Doubt) -> bool;
        #[rustfmt::skip]
        let table: Vec<(&str, Change, Is)> = vec![
            ("a container runs", |pod, _| pod["status"]["containerStatuses"][1]["state"] = json!({"running": {}}),
                |doubt| matches!(doubt, Doubt::Running { container, .. } if container == "sidecar")),
            ("one waits to be started again", |pod, _| pod["status"]["containerStatuses"][0]["state"] = json!({"waiting": {}}),
                |doubt| matches!(doubt, Doubt::Running { container, .. } if container == "main")),
            ("nobody speaks of one", |pod, _| { pod["status"]["containerStatuses"].as_array_mut().unwrap().pop(); },
                |doubt| matches!(doubt, Doubt::Running { container, .. } if container == "sidecar")),
            ("nobody speaks of any", |pod, _| { pod["status"] = json!({"phase": "Failed"}); },
                |doubt| matches!(doubt, Doubt::Running { container, .. } if container == "main")),
            ("an init container goes on", |pod, _| pod["status"]["initContainerStatuses"][0]["state"] = json!({"running": {}}),
                |doubt| matches!(doubt, Doubt::Running { container, .. } if container == "proxy")),
            ("the phase alone says it", |pod, _| {
                    pod["status"]["phase"] = json!("Failed");
                    pod["status"]["containerStatuses"][0]["state"] = json!({"running": {}});
                }, |doubt| matches!(doubt, Doubt::Running { .. })),
            ("it is another pod of that name", |pod, _| pod["metadata"]["uid"] = json!("v"),
                |doubt| matches!(doubt, Doubt::Vanished { .. })),
            ("nobody deletes it", |pod, _| pod["metadata"]["deletionTimestamp"] = Value::Null,
                |doubt| matches!(doubt, Doubt::Restarts { .. })),
            ("nobody owns the status", |pod, _| pod["metadata"]["managedFields"] = json!([]),
                |doubt| matches!(doubt, Doubt::NotTheKubelet { by, .. } if by.is_empty())),
            ("a kubelet's name, by another way", |pod, _| pod["metadata"]["managedFields"][0]["subresource"] = Value::Null,
                |doubt| matches!(doubt, Doubt::NotTheKubelet { .. })),
            ("versions that are none", |pod, _| pod["metadata"]["resourceVersion"] = json!("x"),
                |doubt| matches!(doubt, Doubt::NoOrder)),
            ("the same word as before", |_, seen| {
                    seen.ended = true;
                    seen.kubelet_wrote = Some("2026-11-27T17:00:01Z".to_owned());
                }, |doubt| matches!(doubt, Doubt::OldStatus { .. })),
        ];
        for (name, change, is) in table {
            let doubt = judged("19", change).unwrap_err();
            assert!(is(&doubt), "{name}: {doubt:?}");
        }
        for since in ["20", "21", "100"] {
            let doubt = judged(since, |_, _| {}).unwrap_err();
            assert!(
                matches!(doubt, Doubt::OldStatus { .. }),
                "{since}: {doubt:?}"
            );
        }
        let again = judged("19", |_, seen| seen.ended = true);
        assert!(again.is_ok(), "the kubelet has said it once more");
        let gone = judge_pod(&seen(), "19", None).unwrap_err();
        assert!(matches!(gone, Doubt::Vanished { .. }) && gone.is_final());
    }

    #[test]
    fn what_is_waited_for_is_told_from_what_will_never_come() {
        let seen = PodSeen::of(&Object(pod()), None, true);
        assert!(seen.ended, "an old status is known as one");
        assert!(
            !PodSeen::of(&Object(pod()), None, false).ended,
            "a pod that came later has none"
        );
        let waits = Doubt::Running {
            pod: "db-0".to_owned(),
            container: "main".to_owned(),
        };
        assert!(!waits.is_final() && Doubt::NoPod.is_final());
        let told = Doubt::LeaseOld {
            pod: "db-0".to_owned(),
            node: "a".to_owned(),
            age_ms: Some(45_000),
        };
        let expected = "node `a` of pod `db-0` has not renewed its lease for up to 45s";
        assert_eq!(told.to_string(), expected);
    }
}
