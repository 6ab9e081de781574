//! An extra observer where the clients are, in a share of the seeds, wired as `observer/run.rs`
//! wires it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::chance::Chance;
use super::network::{NoAnswer, ask};
use super::processes::{Process, RESTART};
use super::site_ports::{Place, SimProbe};
use super::world::{Life, Node, SimClock, World};
use crate::app::control::Input;
use crate::app::prober::look_for_ever;
use crate::engine::topology::{ObserverName, Target, Vantage};
use crate::observer::reporter::{Reporter, UNTIL_TOLD};
use crate::ports::{Clock, EffectError, ObserverLink};
use crate::wire::unsent::Unsent;
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
        self.0.work(0, 1).await;
        let (world, report) = (Arc::clone(&self.0.world), report.clone());
        let asked = move || {
            let (world, report) = (Arc::clone(&world), report.clone());
            async move {
                let door = world.with(|state, _| state.a_controller())?;
                // A process that stands still takes nothing in.
                world.alive(&door.life).await;
                let asked = |answer| Input::ObserverReported(Box::new(report), answer);
                let answer = door.to.ask(asked).await.ok()?;
                world.alive(&door.life).await;
                Some(answer)
            }
        };
        let ways = (self.0.node, Node::Neutral);
        let answer = ask(&self.0.world, ways, within, asked).await;
        self.0.world.alive(&self.0.life).await;
        match answer {
            Ok(Ok(told)) => Ok(told),
            Ok(Err(why)) => Err(EffectError::Refused(why)),
            Err(NoAnswer::Refused) => Err(EffectError::Failed("connection refused".to_owned())),
            Err(NoAnswer::TimedOut) => Err(EffectError::Unknown("no answer in time".to_owned())),
        }
    }
}

fn start(world: &Arc<World>, name: &ObserverName) -> Process {
    let life = Arc::new(Life::default());
    let place = Place {
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
    let mut tasks = JoinSet::new();
    tasks.spawn(async {
        looking.await;
        ("probes", Ok(()))
    });
    tasks.spawn(async move {
        reporter.report(Unsent::new(observations)).await;
        ("reports", Ok(()))
    });
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
