//! A controller, assembled from its ports. The product and the simulator get theirs here, so that what is
//! shown of one holds for the other. The tests of the executor take less: a control loop and a journal, fed
//! by hand.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::brain::Brain;
use super::control::{Control, Handle, Input};
use super::executor::World;
use super::journal::{Journal, Stamp};
use super::leadership::{self, Leadership};
use super::notes::read_notes;
use crate::engine::chain::Chain;
use crate::engine::format::PROGRAM;
use crate::engine::observation::Observation;
use crate::engine::policy::Policy;
use crate::engine::topology::{ObserverName, Target, Topology, Vantage};
use crate::ports::{Clock, Credentials, LeaseStore, LogStore, Probe};
use crate::prober::look_for_ever;
use crate::tasks::{Tasks, named};
use crate::wire::{Rhythm, Status};

/// How many observations may wait to be taken in.
const WAITING: usize = 256;

/// What a controller is told, and what it has beside the world that its steps touch.
#[derive(Debug)]
pub struct Parts {
    /// The group, its sites and its traffic targets.
    pub topology: Topology,
    /// The extra observers whose reports count.
    pub observers: Vec<ObserverName>,
    /// By which it decides.
    pub policy: Policy,
    /// The name that people know the policy by.
    pub policy_name: String,
    /// A number that no other controller has, and none had before this one: for its marks.
    pub life: u64,
    /// What its entries say of it.
    pub stamp: Stamp,
    /// Its clock.
    pub clock: Arc<dyn Clock>,
    /// What it knows of its certificates and secrets.
    pub credentials: Arc<dyn Credentials>,
    /// Which of several controllers leads; `None`: the lock on its log says that it is alone.
    pub lead: Option<Arc<dyn LeaseStore>>,
}

/// A decision log as it was found, and the way to go on with it.
#[derive(Debug)]
pub struct OpenedLog {
    /// Where it goes on.
    pub store: Box<dyn LogStore>,
    /// What it amounts to.
    pub chain: Chain,
    /// What is worth an entry of what opening it came to: code and text.
    pub notes: Vec<(&'static str, String)>,
}

/// A controller that runs.
#[derive(Debug)]
pub struct Controller {
    /// The way to its control loop.
    pub handle: Handle,
    /// The way to its log.
    pub journal: Journal,
    /// What it shows.
    pub status: watch::Receiver<Option<Status>>,
    /// What it consists of.
    pub tasks: Tasks,
}

/// Waits until this controller leads, opens the log (never before: whoever led until then may have written
/// it), and starts every task of a controller but those that listen.
pub async fn assemble(
    parts: Parts,
    open: impl FnOnce() -> anyhow::Result<OpenedLog>,
    world: impl FnOnce(Leadership) -> World,
) -> anyhow::Result<Controller> {
    let mut tasks = Tasks::new();
    let clock = Arc::clone(&parts.clock);
    let leadership = lead(parts.lead, &clock, &parts.policy, &mut tasks).await;
    let opened = open()?;
    let began_empty = opened.chain.entries == 0;
    let (topology, stamp) = (parts.topology, parts.stamp);
    let boot = stamp.boot.clone();
    let (journal, writer) = Journal::open(
        opened.store,
        opened.chain,
        topology.clone(),
        Arc::clone(&clock),
        stamp,
    )
    .await?;
    let world = Arc::new(world(leadership));
    let rhythm = Rhythm {
        every: parts.policy.detect.probe_every,
        within: parts.policy.detect.probe_timeout,
    };
    let (of, policy) = (topology.clone(), parts.policy);
    let brain = Brain::new(of, policy, &journal.state(), clock.now(), parts.life)
        .booted(boot)
        .observed_by(parts.observers)
        .holding_against(began_empty, topology.traffic.iter().cloned());
    let (handle, inputs) = Handle::new();
    let (control, status) = Control::new(
        brain,
        journal.clone(),
        Arc::clone(&clock),
        Arc::clone(&world),
        (handle.clone(), inputs),
        parts.policy_name,
    );

    tasks.spawn(async { ("decision log", writer.run().await.map_err(Into::into)) });
    for (code, text) in opened.notes {
        journal.note(code, text).await?;
    }
    let started = format!("controller started: {PROGRAM}");
    journal.note("started", started).await?;
    tasks.spawn(control.rehearser().run());
    tasks.spawn(async { ("control loop", control.run().await.map_err(Into::into)) });
    let looks = Looks {
        probe: Arc::clone(&world.probe),
        clock: Arc::clone(&clock),
        rhythm,
        control: handle.clone(),
    };
    let targets = topology.sites().into_iter().flat_map(Target::looked_at);
    looks.at_targets(targets.collect(), &mut tasks);
    tasks.spawn(named("anchors", looks.at_anchors(parts.credentials)));
    tasks.spawn(named(
        "notes of traffic targets",
        read_notes(world, clock, handle.clone()),
    ));
    Ok(Controller {
        handle,
        journal,
        status,
        tasks,
    })
}

/// Waits until this controller leads, and has it go on leading.
async fn lead(
    store: Option<Arc<dyn LeaseStore>>,
    clock: &Arc<dyn Clock>,
    policy: &Policy,
    tasks: &mut Tasks,
) -> Leadership {
    let clock = Arc::clone(clock);
    let Some(store) = store else {
        return Leadership::alone(clock);
    };
    let (leads, keeping) = leadership::seek(store, clock, policy.lease.clone()).await;
    tasks.spawn(async { ("lead", Err(keeping.run().await.into())) });
    leads
}

/// How a controller looks, and whom it tells.
struct Looks {
    probe: Arc<dyn Probe>,
    clock: Arc<dyn Clock>,
    rhythm: Rhythm,
    control: Handle,
}

impl Looks {
    /// Looks at targets for ever.
    fn at_targets(&self, targets: Vec<Target>, tasks: &mut Tasks) {
        let (seen, observations) = mpsc::channel(WAITING);
        let (keep, told) = watch::channel(self.rhythm);
        let looking = look_for_ever(
            Arc::clone(&self.probe),
            targets,
            Vantage::Controller,
            Arc::clone(&self.clock),
            told,
            seen,
        );
        tasks.spawn(named("probes", async move {
            looking.await;
            drop(keep);
        }));
        let control = self.control.clone();
        tasks.spawn(named("observations", forward(observations, control)));
    }

    /// Looks at the anchors for ever, and tells of them together with what this process knows of its
    /// certificates and secrets.
    async fn at_anchors(self, credentials: Arc<dyn Credentials>) {
        loop {
            let (reached, of) = self.probe.anchors(self.rhythm.within).await;
            let seen = Input::Anchors(reached, of, credentials.facts());
            if self.control.tell(seen).await.is_err() {
                return;
            }
            self.clock.sleep(self.rhythm.every).await;
        }
    }
}

async fn forward(mut observations: mpsc::Receiver<Observation>, control: Handle) {
    while let Some(observation) = observations.recv().await {
        let seen = Input::Observed(vec![observation]);
        if control.tell(seen).await.is_err() {
            return;
        }
    }
}
