//! The processes under test, on simulated ports, and what starts them again.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::sync::mpsc;

use super::cluster::{SimInfrastructure, fences};
use super::controller_ports::{SimAgents, SimCrash, SimFront, SimLead, SimLog, SimTraffic};
use super::database::SimDatabase;
use super::network::Door;
use super::seals::SimKeys;
use super::site_ports::{NoCertificates, Place, SimLinks, SimProbe, SimStore, SimWorkloads};
use super::world::{Life, Node, SimClock, World};
use crate::agent;
use crate::agent::assembly::{Agent, Outlook};
use crate::app::assembly::{Controller, OpenedLog, Parts, assemble};
use crate::app::executor::World as Outside;
use crate::app::journal::Stamp;
use crate::app::leadership::Leadership;
use crate::engine::chain::{Chain, Digest};
use crate::engine::instance::Instance;
use crate::engine::policy::Policy;
use crate::engine::topology::Target;
use crate::ports::{
    AgentLinks, AgentStore, Agents, Clock, InfrastructureFence, LocalDatabase, LogStore, Probe,
    Traffic, Verifier,
};
use crate::tasks::Tasks;

/// Replaces ports by others: how a test plants a mistake and sees it found.
pub trait Plant: Send + Sync + fmt::Debug {
    /// Guard and database of a site.
    fn database(&self, of: LocalDatabase, _world: &Arc<World>, _node: Node) -> LocalDatabase {
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
    /// Whether the sites are clusters; `drawn`: the seed says so.
    fn clusters(&self, drawn: bool) -> bool {
        drawn
    }
    /// What fences a site that is a cluster.
    fn infrastructure(&self, of: Arc<SimInfrastructure>) -> Arc<dyn InfrastructureFence> {
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
    let database = plant.database(LocalDatabase::of(SimDatabase(place.clone())), world, node);
    let parts = agent::keeper::Parts {
        life: world.with(|state, _| state.a_life()),
        controller: plant.verifier(Arc::new(SimKeys)),
        group: world.topology.group.clone(),
        site: site.clone(),
        instance,
        peer: peer.clone(),
        database,
        workloads: Some(Arc::new(SimWorkloads(place.clone()))),
        store: plant.store(Arc::new(SimStore(place.clone()))),
        clock,
    };
    let targets = [&peer, &site].into_iter().flat_map(Target::looked_at);
    let outlook = Outlook {
        probe: plant.probe(Arc::new(SimProbe(place.clone())), world),
        targets: targets.collect(),
        links: plant.links(Arc::new(SimLinks(place)), world),
        credentials: Arc::new(NoCertificates),
    };
    let Agent { news, tasks, .. } = agent::assembly::assemble(parts, outlook).await?;
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
    let infrastructure = fences(place).into_iter().map(|(node, fence)| {
        let site = place
            .world
            .with(|state, _| state.machine(node).site.clone());
        (site, plant.infrastructure(fence))
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
        infrastructure: infrastructure.collect(),
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
    let parts = Parts {
        topology: world.topology.clone(),
        observers: world.observer.clone().into_iter().collect(),
        policy: plant.policy(world.policy.clone()),
        policy_name: "simulated".to_owned(),
        life: world.with(|state, _| state.a_life()),
        stamp: stamp(),
        clock,
        credentials: Arc::new(NoCertificates),
        lead: Some(Arc::new(SimLead {
            place: place.clone(),
            which,
        })),
    };
    let open = || {
        let chain = plant.remembered(world.with(|state, _| state.read_log())?);
        let lines = chain.entries;
        let place = place.clone();
        Ok(OpenedLog {
            store: plant.log(Box::new(SimLog { place, lines })),
            chain,
            notes: Vec::new(),
        })
    };
    let crash = SimCrash {
        world: Arc::clone(world),
        life: Arc::clone(&life),
        after: AtomicU64::new(crash_after),
        killed,
    };
    let probe = plant.probe(Arc::new(SimProbe(place.clone())), world);
    let outside = |leadership| outside(&place, plant.as_ref(), &probe, leadership, crash);
    let Controller { handle, tasks, .. } = assemble(parts, open, outside).await?;
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
