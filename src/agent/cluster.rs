//! Watches the cluster that a site runs in, and says how it stands. Nothing else follows from that: a
//! cluster whose API server is down may serve users very well.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::ports::{Clock, ClusterHealth, ClusterLook, EffectError};

/// How often it is looked at: three reads, of which one lists the nodes.
const EVERY: Duration = Duration::from_secs(10);

/// How a cluster was last seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterSeen {
    /// How it stood, or why nobody knows.
    pub look: Result<ClusterLook, EffectError>,
    /// How old the token in use was.
    pub credential_age: Option<Duration>,
}

/// Looks for ever.
pub async fn watch_for_ever(
    health: Arc<dyn ClusterHealth>,
    clock: Arc<dyn Clock>,
    seen: watch::Sender<Option<ClusterSeen>>,
) {
    loop {
        let look = health.look().await;
        tell(seen.borrow().as_ref().map(|seen| &seen.look), &look);
        seen.send_replace(Some(ClusterSeen {
            look,
            credential_age: health.credential_age(),
        }));
        clock.sleep(EVERY).await;
    }
}

/// Logs what has changed.
fn tell(before: Option<&Result<ClusterLook, EffectError>>, now: &Result<ClusterLook, EffectError>) {
    let well_before = before.and_then(|before| before.as_ref().ok());
    match now {
        Err(error) if before.is_none() || well_before.is_some() => {
            tracing::warn!(%error, "the cluster's API server is not ready");
        }
        Err(_same) => {}
        Ok(look) if well_before != Some(look) => {
            let nodes = look.nodes.as_deref().unwrap_or_default();
            let kubelets = nodes.iter().filter_map(|node| node.kubelet.as_deref());
            let kubelets: BTreeSet<&str> = kubelets.collect();
            let unready = nodes.iter().filter(|node| node.ready != Some(true));
            let unready: Vec<&str> = unready.map(|node| node.name.as_str()).collect();
            tracing::info!(
                version = look.version,
                nodes = nodes.len(),
                ?unready,
                ?kubelets,
                "the cluster is as follows"
            );
        }
        Ok(_same) => {}
    }
}
