//! Probes targets, each independently, so that a hanging one delays no other. Used by the
//! controller, the agents and the observers.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::engine::observation::Observation;
use crate::engine::topology::{SiteName, Target, Vantage};
use crate::ports::{Clock, Probe};
use crate::wire::Rhythm;

/// Probes all targets for ever, and sends the observations; ends when the receiver is gone.
pub async fn look_for_ever(
    probe: Arc<dyn Probe>,
    targets: Vec<Target>,
    vantage: Vantage,
    clock: Arc<dyn Clock>,
    rhythm: watch::Receiver<Rhythm>,
    seen: mpsc::Sender<Observation>,
) {
    let mut looks = JoinSet::new();
    let sites: BTreeSet<SiteName> = targets.iter().map(|target| target.site.clone()).collect();
    let sites = Arc::new(sites);
    for target in targets {
        let (probe, clock) = (Arc::clone(&probe), Arc::clone(&clock));
        let (vantage, rhythm, seen) = (vantage.clone(), rhythm.clone(), seen.clone());
        let sites = Arc::clone(&sites);
        looks.spawn(async move {
            loop {
                let Rhythm { every, within } = *rhythm.borrow();
                let began = clock.now();
                let sites: Vec<&SiteName> = sites.iter().collect();
                let finding = probe.look(&target, within).await.clipped(&sites);
                let ended = clock.now();
                let target = target.clone();
                let observation = Observation {
                    target,
                    vantage: vantage.clone(),
                    began,
                    ended,
                    finding,
                };
                if seen.send(observation).await.is_err() {
                    return;
                }
                clock.sleep(every.saturating_sub(ended.since(began))).await;
            }
        });
    }
    looks.join_all().await;
}
