//! The processes under test, wired as `app/run.rs` and `agent/run.rs` wire them, and what starts
//! them again.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

use super::controller_ports::{SimAgents, SimCrash, SimFront, SimLead, SimLog, SimTraffic};
use super::database::SimDatabase;
use super::network::Door;
use super::seals::SimKeys;
use super::site_ports::{NoCertificates, Place, SimLinks, SimProbe, SimStore, SimWorkloads};
use super::world::{Life, Node, SimClock, World};
use crate::agent::keeper::{Keeper, Parts};
use crate::agent::reporter::{Pace, Reporter};
use crate::agent::run::{rhythm_of, ring_on_change};
use crate::app::brain::Brain;
use crate::app::control::{Control, Handle};
use crate::app::executor::World as Outside;
use crate::app::journal::{Journal, Stamp};
use crate::app::leadership::{self, Leadership};
use crate::app::notes::read_notes;
use crate::app::prober::look_for_ever;
use crate::app::run::{forward, watch_anchors};
use crate::engine::chain::{Chain, Digest};
use crate::engine::instance::Instance;
use crate::engine::policy::Policy;
use crate::engine::topology::{Target, Vantage};
use crate::engine::units::MonoTime;
use crate::ports::{
    AgentLinks, AgentStore, Agents, Clock, LeaseStore, LocalDatabase, LogStore, Probe, Traffic,
    Verifier,
};
use crate::wire::{Rhythm, unsent::Unsent};

/// Replaces ports by others: how a test plants a mistake and sees it found.
pub trait Plant: Send + Sync + fmt::Debug {
    /// Guard and database of a site.
    fn database(
        &self,
        of: Arc<dyn LocalDatabase>,
        _world: &Arc<World>,
        _node: Node,
    ) -> Arc<dyn LocalDatabase> {
        of
    }
    /// How an agent or a controller looks at targets.
    fn probe(&self, of: Arc<dyn Probe>, _world: &Arc<World>) -> Arc<dyn Probe> {
        of
    }
    /// An agent's ways out.
    fn links(&self, of: Arc<dyn AgentLinks>, _world: &Arc<World>) -> Arc<dyn AgentLinks> {
        of
    }
    /// An agent's disk.
    fn store(&self, of: Arc<dyn AgentStore>) -> Arc<dyn AgentStore> {
        of
    }
    /// A clock.
    fn clock(&self, of: Arc<dyn Clock>, _node: Node) -> Arc<dyn Clock> {
        of
    }
    /// By which an agent knows orders as the controller's.
    fn verifier(&self, of: Arc<dyn Verifier>) -> Arc<dyn Verifier> {
        of
    }
    /// Whether the second site's agent lies; `drawn`: the seed says so.
    fn lies(&self, drawn: bool) -> bool {
        drawn
    }
    /// By which the controller knows answers as those of an agent.
    fn answers(&self, of: Arc<dyn Verifier>) -> Arc<dyn Verifier> {
        of
    }
    /// The controller's way to the agents.
    fn agents(&self, of: Arc<dyn Agents>, _world: &Arc<World>) -> Arc<dyn Agents> {
        of
    }
    /// The traffic target.
    fn traffic(&self, of: Arc<dyn Traffic>) -> Arc<dyn Traffic> {
        of
    }
    /// The decision log's disk.
    fn log(&self, of: Box<dyn LogStore>) -> Box<dyn LogStore> {
        of
    }
    /// What a controller that starts knows from the log.
    fn remembered(&self, of: Chain) -> Chain {
        of
    }
    /// What a controller decides by.
    fn policy(&self, of: Policy) -> Policy {
        of
    }
}

/// Nothing planted.
#[derive(Debug)]
pub struct Honest;

impl Plant for Honest {}

type Tasks = JoinSet<(&'static str, anyhow::Result<()>)>;

/// How many messages may wait.
const WAITING: usize = 256;

/// A process that runs.
#[derive(Debug)]
pub struct Process {
    /// Its life.
    pub life: Arc<Life>,
    pub(super) tasks: Tasks,
}

impl Process {
    /// Kills it: nothing it was about to do happens.
    pub fn kill(&mut self, world: &World) {
        self.life.end();
        self.tasks.abort_all();
        world.changed();
    }

    /// Waits until it ends by itself.
    pub async fn ended(&mut self) -> String {
        match self.tasks.join_next().await {
            Some(Ok((name, Ok(())))) => format!("the task `{name}` ended"),
            Some(Ok((name, Err(error)))) => format!("the task `{name}` failed: {error:#}"),
            Some(Err(error)) if error.is_panic() => format!("PANIC {error}"),
            Some(Err(_)) | None => std::future::pending().await,
        }
    }
}

fn place(world: &Arc<World>, seat: Seat, life: &Arc<Life>) -> Place {
    let (world, life) = (Arc::clone(world), Arc::clone(life));
    Place {
        world,
        node: seat.node,
        copy: seat.copy.is_some(),
        life,
    }
}

/// Where an agent runs.
#[derive(Debug, Clone, Copy)]
pub struct Seat {
    /// At which site.
    pub node: Node,
    /// On which copy of the host there; `None`: on that host.
    pub copy: Option<u64>,
}

impl Seat {
    /// On a host itself.
    pub fn on_host(node: Node) -> Self {
        Self { node, copy: None }
    }

    /// Which installation of the agent it is: a copy has the id, and another place.
    fn instance(self) -> Instance {
        let own = self.node.instance();
        let place = own.place.saturating_add(self.copy.unwrap_or(0));
        Instance { place, ..own }
    }
}

fn clock(world: &Arc<World>, node: Node, life: &Arc<Life>, plant: &dyn Plant) -> Arc<dyn Clock> {
    let (world, life) = (Arc::clone(world), Arc::clone(life));
    plant.clock(Arc::new(SimClock { world, node, life }), node)
}

/// A task that ends with its name.
async fn named(
    name: &'static str,
    task: impl Future<Output = ()>,
) -> (&'static str, anyhow::Result<()>) {
    task.await;
    (name, Ok(()))
}

/// Starts the agent of a site.
pub async fn start_agent(
    world: &Arc<World>,
    seat: Seat,
    plant: &Arc<dyn Plant>,
) -> anyhow::Result<Process> {
    let node = seat.node;
    let life = Arc::new(Life::default());
    let clock = clock(world, node, &life, plant.as_ref());
    let place = place(world, seat, &life);
    let site = world.with(|state, _| state.machine(node).site.clone());
    let peer = world.topology.peer(&site).clone();
    let instance = seat.instance();
    let database = plant.database(Arc::new(SimDatabase(place.clone())), world, node);
    let agent_life = world.with(|state, _| state.a_life());
    let parts = Parts {
        life: agent_life,
        controller: plant.verifier(Arc::new(SimKeys)),
        group: world.topology.group.clone(),
        site: site.clone(),
        instance,
        peer: peer.clone(),
        database,
        workloads: Some(Arc::new(SimWorkloads(place.clone()))),
        store: plant.store(Arc::new(SimStore(place.clone()))),
        clock: Arc::clone(&clock),
    };
    let (keeper, news, shown) = Keeper::begin(parts).await?;
    let mut tasks: Tasks = JoinSet::new();
    tasks.spawn(named("keeper", keeper.run()));
    let urgent = Arc::new(Notify::new());
    tasks.spawn(ring_on_change(shown.clone(), Arc::clone(&urgent)));
    let (pace, paced) = watch::channel(Pace::default());
    let (seen, observations) = mpsc::channel(WAITING);
    let targets = [&peer, &site].into_iter().flat_map(Target::looked_at);
    let looking = look_for_ever(
        plant.probe(Arc::new(SimProbe(place.clone())), world),
        targets.collect(),
        Vantage::Agent(site.clone()),
        Arc::clone(&clock),
        rhythm_of(paced, &mut tasks),
        seen,
    );
    tasks.spawn(named("probes", looking));
    let reporter = Arc::new(Reporter {
        life: agent_life,
        group: world.topology.group.clone(),
        site,
        instance,
        links: plant.links(Arc::new(SimLinks(place)), world),
        clock,
        shown,
        news: news.clone(),
        pace,
        credentials: Arc::new(NoCertificates),
        urgent,
    });
    let asking = Arc::clone(&reporter);
    tasks.spawn(async move {
        reporter.report(Unsent::new(observations)).await;
        ("reports", Ok(()))
    });
    tasks.spawn(async move {
        asking.ask_peer().await;
        ("questions to the peer agent", Ok(()))
    });
    // Nobody knows the address of a copy.
    if seat.copy.is_none() {
        let life = Arc::clone(&life);
        world.with(|state, _| *state.agent(node) = Some(Door { life, to: news }));
    }
    world.trace(|| format!("{node}  agent starts"));
    Ok(Process { life, tasks })
}

/// Everything outside of a controller that its steps touch.
fn outside(
    place: &Place,
    plant: &dyn Plant,
    probe: &Arc<dyn Probe>,
    leadership: Leadership,
    crash: SimCrash,
) -> Outside {
    let targets = place.world.topology.traffic.iter();
    let traffic = targets.map(|name| {
        let (place, name) = (place.clone(), name.clone());
        plant.traffic(Arc::new(SimTraffic { place, name }))
    });
    let agents = SimAgents {
        place: place.clone(),
        believed: plant.answers(Arc::new(SimKeys)),
    };
    Outside {
        agents: plant.agents(Arc::new(agents), &place.world),
        probe: Arc::clone(probe),
        traffic: traffic.collect(),
        front: Some(Arc::new(SimFront(place.clone()))),
        leadership,
        crash: Some(Arc::new(crash)),
    }
}

/// The machine of the controllers, which is never started anew.
const BOOT: &str = "simulated";

fn stamp() -> Stamp {
    Stamp {
        boot: BOOT.to_owned(),
        settings: Digest::ZERO,
    }
}

/// Reads what the traffic targets answer, and ends with the process.
async fn notes(
    outside: Arc<Outside>,
    clock: Arc<dyn Clock>,
    control: Handle,
) -> (&'static str, anyhow::Result<()>) {
    read_notes(outside, clock, control).await;
    std::future::pending().await
}

/// What a controller knows that takes over.
fn brain(
    world: &World,
    policy: Policy,
    journal: &Journal,
    now: MonoTime,
    began_empty: bool,
) -> Brain {
    let life = world.with(|state, _| state.a_life());
    let topology = world.topology.clone();
    let targets = topology.traffic.clone();
    Brain::new(topology, policy, &journal.state(), now, life)
        .booted(BOOT.to_owned())
        .observed_by(world.observer.clone())
        .holding_against(began_empty, targets)
}

/// Starts the controller: what it knows it reads from the log. `crash_after` is at which moment of
/// a step it is killed, counted from its start.
pub async fn start_controller(
    world: &Arc<World>,
    which: usize,
    plant: &Arc<dyn Plant>,
    crash_after: u64,
    killed: mpsc::UnboundedSender<()>,
) -> anyhow::Result<Process> {
    let life = Arc::new(Life::default());
    let clock = clock(world, Node::Neutral, &life, plant.as_ref());
    let place = place(world, Seat::on_host(Node::Neutral), &life);
    let store: Arc<dyn LeaseStore> = Arc::new(SimLead {
        place: place.clone(),
        which,
    });
    let timers = world.policy.lease.clone();
    let (leadership, keeping) = leadership::seek(store, Arc::clone(&clock), timers).await;
    let chain = plant.remembered(world.with(|state, _| state.read_log())?);
    let began_empty = chain.entries == 0;
    let topology = world.topology.clone();
    let store = plant.log(Box::new(SimLog {
        place: place.clone(),
        lines: chain.entries,
    }));
    let (journal, writer) =
        Journal::open(store, chain, topology.clone(), Arc::clone(&clock), stamp()).await?;
    let probe = plant.probe(Arc::new(SimProbe(place.clone())), world);
    let crash = SimCrash {
        world: Arc::clone(world),
        life: Arc::clone(&life),
        after: AtomicU64::new(crash_after),
        killed,
    };
    let outside = Arc::new(outside(&place, plant.as_ref(), &probe, leadership, crash));
    let policy = plant.policy(world.policy.clone());
    let brain = brain(world, policy, &journal, clock.now(), began_empty);
    let (handle, inputs) = Handle::new();
    let (control, _status) = Control::new(
        brain,
        journal.clone(),
        Arc::clone(&clock),
        Arc::clone(&outside),
        (handle.clone(), inputs),
        "simulated".to_owned(),
    );
    let mut tasks: Tasks = JoinSet::new();
    tasks.spawn(async { ("lead", Err(keeping.run().await.into())) });
    tasks.spawn(async { ("decision log", writer.run().await.map_err(Into::into)) });
    tasks.spawn(async { ("control loop", control.run().await.map_err(Into::into)) });
    tasks.spawn(notes(outside, Arc::clone(&clock), handle.clone()));
    let targets = topology.sites().into_iter().flat_map(Target::looked_at);
    let (seen, observations) = mpsc::channel(WAITING);
    let rhythm = Rhythm {
        every: world.policy.detect.probe_every,
        within: world.policy.detect.probe_timeout,
    };
    let (keep, told) = watch::channel(rhythm);
    let looking = look_for_ever(
        Arc::clone(&probe),
        targets.collect(),
        Vantage::Controller,
        Arc::clone(&clock),
        told,
        seen,
    );
    tasks.spawn(named("probes", async move {
        looking.await;
        drop(keep);
    }));
    tasks.spawn(forward(observations, handle.clone()));
    let told = (handle.clone(), Arc::new(NoCertificates));
    tasks.spawn(watch_anchors(probe, clock, rhythm, told));
    let door = Door {
        life: Arc::clone(&life),
        to: handle,
    };
    world.with(|state, _| state.controllers[which] = Some(door));
    world.trace(|| format!("N  controller {which} leads"));
    Ok(Process { life, tasks })
}

/// How long a supervisor waits before it starts what ended.
pub const RESTART: Duration = Duration::from_secs(2);
