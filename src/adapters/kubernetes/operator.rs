//! A PostgreSQL site that CloudNativePG owns: one `Cluster` object for each site, of the operator's
//! distributed topology. Promotion, demotion and fence are patches of exactly the object that was read.
//!
//! The operator's webhooks check what the API server does not, and refuse every such patch while the
//! operator is down; the fence, too. [`OperatorCluster::rehearse`] finds that out beforehand.

mod look;

use std::sync::Arc;

use serde_json::{Value, json};

pub use look::{FencedInstances, Open, OperatorLook, Reported};

use super::object::resources;
use super::{Cluster, ClusterError, Need, Object, Place, Run};

/// The annotation by which the operator keeps instances down, and its value for all of them.
const FENCED: &str = "cnpg.io/fencedInstances";
const ALL: &str = "[\"*\"]";

/// A site's `Cluster`.
#[derive(Debug)]
pub struct OperatorCluster {
    cluster: Arc<Cluster>,
    place: Place,
}

/// How a promotion is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Promotion {
    /// The old primary is lost: what it did last is not waited for.
    Unplanned,
    /// With the token that the demoted site's `status.demotionToken` shows: the operator promotes only
    /// once all that the old primary wrote is there.
    Planned {
        /// The token.
        token: String,
    },
}

impl OperatorCluster {
    /// Sends nothing.
    pub fn new(cluster: Arc<Cluster>, namespace: &str, name: &str) -> Result<Self, ClusterError> {
        let place = Place::new(resources::DATABASE_CLUSTERS, namespace, name)?;
        Ok(Self { cluster, place })
    }

    /// What our role must allow for all of this.
    pub fn needs(&self) -> Vec<Need> {
        vec![
            Need::identity(),
            Need::on("get", &self.place, ""),
            Need::on("patch", &self.place, ""),
        ]
    }

    /// Reads how it stands.
    pub async fn look(&self) -> Result<OperatorLook, ClusterError> {
        self.cluster.identify().await?;
        OperatorLook::read(&self.cluster.get(&self.place).await?)
    }

    /// Has the server and the operator's webhooks say whether they would let us fence it now, without
    /// doing it.
    pub async fn rehearse(&self) -> Result<(), ClusterError> {
        let look = self.look().await?;
        let patch = json!({"metadata": {"annotations": {FENCED: ALL}}});
        let run = (patch, Run::Dry);
        let done = self.cluster.merge(&self.place, &look.version, run).await;
        done.map(drop)
    }

    /// Makes it the primary of the topology, where `from` still is. Done already is done. `Conflict`
    /// where a third one is the primary, or the object is no longer the one that was read.
    pub async fn promote(
        &self,
        from: &str,
        promotion: &Promotion,
    ) -> Result<OperatorLook, ClusterError> {
        let look = self.look().await?;
        let own = look.own_name(&self.place)?;
        if look.primary.as_deref() == Some(own) {
            return Ok(look);
        }
        self.expect_primary(&look, from)?;
        let token = match promotion {
            // One that is left over from another time would be waited for.
            Promotion::Unplanned => Value::Null,
            Promotion::Planned { token } if token.trim().is_empty() => {
                let said = "a planned promotion needs the demotion token of the other site";
                return Err(ClusterError::Refused(said.to_owned()));
            }
            Promotion::Planned { token } => json!(token),
        };
        let patch = json!({"spec": {"replica": {"primary": own, "promotionToken": token}}});
        self.patch(&look, patch).await
    }

    /// Makes `to` the primary of the topology, and this one follow it. Done already is done. The operator
    /// then stops it cleanly and shows the demotion token.
    pub async fn demote(&self, to: &str) -> Result<OperatorLook, ClusterError> {
        let look = self.look().await?;
        if look.primary.as_deref() == Some(to) {
            return Ok(look);
        }
        let own = look.own_name(&self.place)?;
        self.expect_primary(&look, own)?;
        let patch = json!({"spec": {"replica": {"primary": to, "promotionToken": null}}});
        self.patch(&look, patch).await
    }

    /// Has the operator shut every instance down and keep it down. Where the outcome is unknown, call it
    /// again: that settles it. Proven is it only by [`OperatorLook::open`] and a connection that each
    /// instance refuses.
    pub async fn fence(&self) -> Result<OperatorLook, ClusterError> {
        let look = self.look().await?;
        if look.fenced == FencedInstances::All {
            return Ok(look);
        }
        let patch = json!({"metadata": {"annotations": {FENCED: ALL}}});
        self.patch(&look, patch).await
    }

    /// Gives back what `before` showed. Where that is there already, another change sees to it that no
    /// earlier one can land: `mark` differs each time.
    pub async fn undo(&self, before: &OperatorLook, mark: &str) -> Result<(), ClusterError> {
        let look = self.look().await?;
        if look.version.uid != before.version.uid {
            let said = format!("{} is another object now", self.place.shown());
            return Err(ClusterError::Refused(said));
        }
        if look.fenced == before.fenced {
            return self.cluster.settle(&self.place, mark).await.map(drop);
        }
        let value = match &before.fenced {
            FencedInstances::None => Value::Null,
            FencedInstances::All => json!(ALL),
            FencedInstances::Some(names) => json!(json!(names).to_string()),
        };
        let patch = json!({"metadata": {"annotations": {FENCED: value}}});
        self.patch(&look, patch).await.map(drop)
    }

    fn expect_primary(&self, look: &OperatorLook, expected: &str) -> Result<(), ClusterError> {
        let found = look.primary.as_deref().unwrap_or("nobody");
        if found == expected {
            return Ok(());
        }
        Err(ClusterError::Conflict(format!(
            "{} names `{found}` as primary, not `{expected}`: somebody changed it",
            self.place.shown()
        )))
    }

    async fn patch(&self, look: &OperatorLook, patch: Value) -> Result<OperatorLook, ClusterError> {
        let run = (patch, Run::Real);
        let object: Object = self.cluster.merge(&self.place, &look.version, run).await?;
        OperatorLook::read(&object)
    }
}
