//! The port to the cluster around an agent: how it stands.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use super::EffectError;

/// Looks at the cluster that a site runs in.
#[async_trait]
pub trait ClusterHealth: Send + Sync + fmt::Debug {
    /// How it stands now, read from its store. An error: its API server does not answer, or says that it
    /// is not ready.
    async fn look(&self) -> Result<ClusterLook, EffectError>;

    /// How old the token in use is; `None` where the credential is none that is renewed.
    fn credential_age(&self) -> Option<Duration> {
        None
    }
}

/// A cluster whose API server is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterLook {
    /// The version of the API server: `v1.36.2`.
    pub version: String,
    /// Its nodes; `None`: our role may not see them.
    pub nodes: Option<Vec<NodeStanding>>,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStanding {
    /// Its name.
    pub name: String,
    /// Whether it is ready; `None`: its kubelet has not said for a while.
    pub ready: Option<bool>,
    /// The version of its kubelet.
    pub kubelet: Option<String>,
}
