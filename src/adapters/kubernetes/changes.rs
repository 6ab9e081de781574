//! The changes that we make, each of exactly the version that was read.

use serde_json::{Value, json};

use super::call::{Patch, Run};
use super::object::{Object, Owner};
use super::{Cluster, ClusterError, Place, Version};

/// The annotation by which an unknown outcome is settled.
const SETTLED: &str = "failover.dev/settled";

/// An object after a change, or after none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scaled {
    /// The version that the change made.
    pub resource_version: String,
    /// How many replicas are wanted now.
    pub replicas: u64,
}

impl Cluster {
    /// Sets the number of replicas by an apply on `/scale`, by force: the number is ours then, at zero,
    /// too, and whoever else applies another one meets a conflict. `Conflict` where the object is no
    /// longer the one that was read.
    pub async fn scale(
        &self,
        place: &Place,
        read: &Version,
        (replicas, run): (u64, Run),
    ) -> Result<Scaled, ClusterError> {
        let body = json!({
            "apiVersion": "autoscaling/v1", "kind": "Scale",
            "metadata": {
                "name": place.name, "namespace": place.namespace,
                "uid": read.uid, "resourceVersion": read.resource_version,
            },
            "spec": {"replicas": replicas},
        });
        let answer = self
            .send_patch(place, "scale", (Patch::Apply, run), body)
            .await?;
        let version = answer["metadata"]["resourceVersion"].as_str();
        let resource_version = version.map(ToOwned::to_owned).ok_or_else(|| {
            ClusterError::Unknown(format!("{} is scaled to no version", place.shown()))
        })?;
        // A scale at zero has no `replicas`.
        let replicas = answer["spec"]["replicas"].as_u64().unwrap_or(0);
        Ok(Scaled {
            resource_version,
            replicas,
        })
    }

    /// Merges a patch into the object that was read.
    pub async fn merge(
        &self,
        place: &Place,
        read: &Version,
        (mut patch, run): (Value, Run),
    ) -> Result<Object, ClusterError> {
        patch["metadata"]["uid"] = json!(read.uid);
        patch["metadata"]["resourceVersion"] = json!(read.resource_version);
        let answer = self
            .send_patch(place, "", (Patch::Merge, run), patch)
            .await?;
        Ok(Object(answer))
    }

    /// Sees to it that no earlier change of ours to this object can land any more, whatever became of it:
    /// by another change of the version that is there now. What it is then, is. `mark` differs each time.
    pub async fn settle(&self, place: &Place, mark: &str) -> Result<Object, ClusterError> {
        let now = self.get(place).await?;
        if now.annotation(SETTLED) == Some(mark) {
            let said = format!("`{mark}` stands there already: it would change nothing");
            return Err(ClusterError::Refused(said));
        }
        let patch = json!({"metadata": {"annotations": {SETTLED: mark}}});
        self.merge(place, &now.version()?, (patch, Run::Real)).await
    }
}

/// Who else than us owns a number of replicas, and may put it back.
pub fn rivals(object: &Object) -> Vec<Owner> {
    let mut owners = object.owners(&["spec", "replicas"]);
    owners.retain(|owner| !owner.is_ours());
    owners
}
