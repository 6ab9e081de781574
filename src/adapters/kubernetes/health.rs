//! How a cluster stands, from a few reads.

use super::{Cluster, ClusterError};
use crate::ports::{ClusterLook, NodeStanding};

impl Cluster {
    /// Whether its API server is ready, of which version it is, and what it says of the nodes.
    pub async fn standing(&self) -> Result<ClusterLook, ClusterError> {
        self.ready().await?;
        let version = self.server_version().await?;
        let nodes = match self.nodes().await {
            Ok(nodes) => Some(nodes),
            Err(ClusterError::Forbidden { .. }) => None,
            Err(error) => return Err(error),
        };
        let standing = |node: super::NodeLook| NodeStanding {
            name: node.name,
            ready: node.ready,
            kubelet: node.kubelet,
        };
        Ok(ClusterLook {
            version,
            nodes: nodes.map(|nodes| nodes.into_iter().map(standing).collect()),
        })
    }
}
