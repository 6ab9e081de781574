//! An extra observer where the clients are, in a share of the seeds, wired as `observer/run.rs`
//! wires it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};

use super::chance::Chance;
use super::processes::{Process, RESTART};
use super::site_ports::{Place, SimProbe, ask_controller};
use super::world::{Life, Node, SimClock, World};
use crate::app::control::Input;
use crate::engine::topology::{ObserverName, Target, Vantage};
use crate::observer::reporter::{Reporter, UNTIL_TOLD};
use crate::ports::{Clock, EffectError, ObserverLink};
use crate::prober::look_for_ever;
use crate::tasks::{Tasks, named};
use crate::wire::unsent::Unsent;
use crate::wire::written::Written;
use crate::wire::{ObserverAnswer, ObserverReport};

/// How many observations may wait.
const WAITING: usize = 256;

/// The observer of a seed, and the quorum that it makes possible where there is one. Drawn from a
/// chance of its own: a seed without one runs as if there were no observers at all.
pub fn of_seed(seed: u64) -> Option<(ObserverName, u32)> {
    let mut chance = Chance::new(!seed);
    let name = chance.percent(30).then(|| "paris".parse());
    let quorum = if chance.percent(50) { 3 } else { 2 };
    Some((name?.ok()?, quorum))
}

/// The way to the controller.
#[derive(Debug)]
struct SimLink(Place);

#[async_trait]
impl ObserverLink for SimLink {
    async fn report(
        &self,
        report: &ObserverReport,
        within: Duration,
    ) -> Result<ObserverAnswer, EffectError> {
        let written = Written::new(report.clone());
        let told = ask_controller(&self.0, within, &written, Input::ObserverReported).await?;
        told.map_err(EffectError::Refused)
    }
}

fn start(world: &Arc<World>, name: &ObserverName) -> Process {
    let life = Arc::new(Life::default());
    let place = Place {
        copy: false,
        world: Arc::clone(world),
        node: Node::Clients,
        life: Arc::clone(&life),
    };
    let clock: Arc<dyn Clock> = Arc::new(SimClock {
        world: Arc::clone(world),
        node: Node::Clients,
        life: Arc::clone(&life),
    });
    let (rhythm, told) = watch::channel(UNTIL_TOLD);
    let (seen, observations) = mpsc::channel(WAITING);
    let sites = world.topology.sites();
    let looking = look_for_ever(
        Arc::new(SimProbe(place.clone())),
        sites.into_iter().flat_map(Target::looked_at).collect(),
        Vantage::Observer(name.clone()),
        Arc::clone(&clock),
        told,
        seen,
    );
    let reporter = Reporter {
        group: world.topology.group.clone(),
        name: name.clone(),
        link: Arc::new(SimLink(place)),
        clock,
        rhythm,
    };
    let mut tasks = Tasks::new();
    tasks.spawn(named("probes", looking));
    tasks.spawn(named("reports", async move {
        reporter.report(Unsent::new(observations)).await;
    }));
    world.trace(|| "C  observer starts".to_owned());
    Process { life, tasks }
}

/// Keeps the observer running: it ends now and then for no reason, and is started again.
pub async fn keep(world: Arc<World>, name: ObserverName) {
    loop {
        let mut process = start(&world, &name);
        let lasts = world.with(|state, _| state.chance.millis(1_000, 120_000));
        let why = tokio::select! {
            biased;
            why = process.ended() => why,
            () = tokio::time::sleep(lasts) => "killed".to_owned(),
        };
        process.kill(&world);
        world.trace(|| format!("C  observer ends: {why}"));
        let wait = world.with(|state, _| state.chance.millis(0, 8_000));
        tokio::time::sleep(RESTART.saturating_add(wait)).await;
    }
}
