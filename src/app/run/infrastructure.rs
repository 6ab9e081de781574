//! What ends a site's database without its agent, from the configuration.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use crate::adapters::kubernetes::fence::{FenceSettings, StatefulSetFence};
use crate::adapters::reread::CredentialBook;
use crate::app::config::Config;
use crate::engine::topology::SiteName;
use crate::ports::{Clock, InfrastructureFence};

/// How long it is between two looks while pods end.
const POD_LOOKS: Duration = Duration::from_millis(100);
/// How old the last renewal of a node's lease may be. A kubelet renews every 10 s, and a cluster takes a
/// node for lost after 40 s at the earliest.
const NODE_LEASE_FRESH: Duration = Duration::from_secs(40);

/// What fences each site that is a StatefulSet of a cluster. No cluster is called yet.
pub(super) async fn make(
    config: &Config,
    clock: &Arc<dyn Clock>,
    book: &Arc<CredentialBook>,
) -> anyhow::Result<BTreeMap<SiteName, Arc<dyn InfrastructureFence>>> {
    let mut infrastructure: BTreeMap<_, Arc<dyn InfrastructureFence>> = BTreeMap::new();
    for (site, set) in &config.sites {
        let Some(set) = &set.statefulset else {
            continue;
        };
        let what = || format!("the cluster of site `{site}`");
        let cluster = set.cluster.connect(clock, book).await.with_context(what)?;
        let settings = FenceSettings {
            namespace: set.namespace.clone(),
            name: set.name.clone(),
            poll: POD_LOOKS,
            lease_fresh: NODE_LEASE_FRESH,
        };
        // No cloud is asked for machines yet: a pod on a lost machine is not proven to have ended.
        let fence = StatefulSetFence::new(Arc::new(cluster), settings, None, Arc::clone(clock));
        infrastructure.insert(site.clone(), Arc::new(fence.with_context(what)?));
    }
    Ok(infrastructure)
}
