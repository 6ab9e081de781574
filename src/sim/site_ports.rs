//! What an agent touches beside its database, simulated: its disk, its ways out, the workloads; and
//! the probe, which the controller uses too.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::oneshot;

use super::liar;
use super::machine::{KeptOut, Machine, Truth, Written};
use super::network::{NoAnswer, ask, host, silence};
use super::seals::{SimKey, SimKeys};
use super::world::{Life, Node, World};
use crate::agent::keeper::News;
use crate::app::control::Input;
use crate::engine::credential::CredentialFacts;
use crate::engine::observation::{
    DatabaseFacts, Facts, Finding, Heartbeat, ProbeFailure, ReceiverFacts, ReplayPause,
    ReplayState, SenderFacts,
};
use crate::engine::topology::{Role, SiteName, Target, TargetKind};
use crate::engine::units::{Lsn, SystemId, Timeline, WallTime, as_millis};
use crate::ports::{
    AgentLinks, AgentMemory, AgentStore, Credentials, EffectError, Probe, StoreError, Workloads,
};
use crate::wire::sealed::{Sealed, SignedOrder, seal_answer};
use crate::wire::written;
use crate::wire::{OrderAnswer, PeerAnswer, PeerQuestion, Report, ReportAnswer};

/// Simulated links know no TLS. A certificate that turns its holder away looks like links that are
/// cut, which they are often enough.
#[derive(Debug)]
pub struct NoCertificates;

impl Credentials for NoCertificates {
    fn facts(&self) -> CredentialFacts {
        CredentialFacts::default()
    }
}

/// A process at a site.
#[derive(Debug, Clone)]
pub struct Place {
    /// The world.
    pub world: Arc<World>,
    /// Where.
    pub node: Node,
    /// Whether on the copy of the host there.
    pub copy: bool,
    /// Whose life it is.
    pub life: Arc<Life>,
}

impl Place {
    /// A moment of work: nothing of a frozen or ended process goes on.
    pub async fn work(&self, least: u64, most: u64) {
        self.world.alive(&self.life).await;
        let took = self.world.with(|state, _| state.chance.millis(least, most));
        tokio::time::sleep(took).await;
        self.world.alive(&self.life).await;
    }

    pub(super) fn trace(&self, text: impl FnOnce() -> String) {
        self.world.trace(|| format!("{}  {}", self.node, text()));
    }
}

/// The agent's disk.
#[derive(Debug)]
pub struct SimStore(pub Place);

#[async_trait]
impl AgentStore for SimStore {
    async fn load(&self) -> Result<Option<AgentMemory>, StoreError> {
        self.0.work(0, 1).await;
        Ok(self
            .0
            .world
            .with(|state, _| state.disk(self.0.node, self.0.copy).clone()))
    }

    async fn save(&self, memory: &AgentMemory) -> Result<(), StoreError> {
        self.0.work(0, 3).await;
        self.0.world.with(|state, now| {
            let site = state.machine(self.0.node).site.clone();
            if !self.0.copy {
                state.checks.agent_epoch(now, &site, memory.epoch);
            }
            *state.disk(self.0.node, self.0.copy) = Some(memory.clone());
        });
        // Durable, and killed before it knows, is possible too.
        self.0.work(0, 2).await;
        Ok(())
    }
}

/// The workloads.
#[derive(Debug)]
pub struct SimWorkloads(pub Place);

#[async_trait]
impl Workloads for SimWorkloads {
    async fn start(&self) -> Result<(), EffectError> {
        self.0.work(1, 50).await;
        self.0.world.with(|state, now| {
            let took = state.chance.millis(100, 3000);
            let machine = state.host(self.0.node, self.0.copy);
            machine.workloads = Some(now.saturating_add(took));
        });
        Ok(())
    }

    async fn stop(&self) -> Result<(), EffectError> {
        self.0.work(1, 50).await;
        self.0
            .world
            .with(|state, _| state.host(self.0.node, self.0.copy).workloads = None);
        Ok(())
    }

    async fn ready(&self) -> Result<bool, EffectError> {
        self.0.work(1, 5).await;
        let ready = |at: Option<Truth>, now| at.is_some_and(|at| at <= now);
        Ok(self
            .0
            .world
            .with(|state, now| ready(state.host(self.0.node, self.0.copy).workloads, now)))
    }
}

fn no_answer(error: NoAnswer) -> EffectError {
    match error {
        NoAnswer::Refused => EffectError::Failed("connection refused".to_owned()),
        NoAnswer::TimedOut => EffectError::Late("no answer in time".to_owned()),
    }
}

/// An agent's ways out.
#[derive(Debug)]
pub struct SimLinks(pub Place);

#[async_trait]
impl AgentLinks for SimLinks {
    async fn report(&self, report: &Report, within: Duration) -> Result<ReportAnswer, EffectError> {
        let report = liar::report(&self.0.world, self.0.node, report.clone());
        let written = written::Written::new(report);
        ask_controller(&self.0, within, &written, Input::Reported).await
    }

    async fn ask_peer(
        &self,
        question: &PeerQuestion,
        within: Duration,
    ) -> Result<PeerAnswer, EffectError> {
        self.0.work(0, 1).await;
        let peer = self.0.node.peer();
        let (world, question) = (Arc::clone(&self.0.world), question.clone());
        let asked = move || {
            let (world, question) = (Arc::clone(&world), question.clone());
            async move {
                let asked = tell(&world, peer, |answer| News::PeerAsks(question, answer));
                Some(liar::answer(&world, peer, asked.await?))
            }
        };
        let answer = ask(&self.0.world, (self.0.node, peer), within, asked).await;
        self.0.world.alive(&self.0.life).await;
        answer.map_err(no_answer)
    }
}

/// Tells a controller something from a place, and waits for its answer for at most `within`.
pub(super) async fn ask_controller<Q, T>(
    place: &Place,
    within: Duration,
    question: &Q,
    input: fn(Box<Q>, oneshot::Sender<T>) -> Input,
) -> Result<T, EffectError>
where
    Q: Clone + Send + Sync + 'static,
    T: Send + 'static,
{
    place.work(0, 1).await;
    let (world, question) = (Arc::clone(&place.world), question.clone());
    let asked = move || {
        let (world, question) = (Arc::clone(&world), Box::new(question.clone()));
        async move {
            let door = world.with(|state, _| state.a_controller())?;
            // A process that stands still takes nothing in.
            world.alive(&door.life).await;
            let asked = |answer| input(question, answer);
            let answer = door.to.ask(asked).await.ok()?;
            world.alive(&door.life).await;
            Some(answer)
        }
    };
    let ways = (place.node, Node::Neutral);
    let answer = ask(&place.world, ways, within, asked).await;
    place.world.alive(&place.life).await;
    answer.map_err(no_answer)
}

/// Tells an agent something and waits for its answer; `None` where none runs.
pub async fn tell<T>(
    world: &World,
    node: Node,
    news: impl FnOnce(oneshot::Sender<T>) -> News,
) -> Option<T> {
    if !host(world, node).await {
        return silence().await;
    }
    let door = world.with(|state, _| state.agent(node).clone())?;
    // A process that stands still takes nothing in.
    world.alive(&door.life).await;
    let (sender, answer) = oneshot::channel();
    door.to.send(news(sender)).await.ok()?;
    let answer = answer.await.ok()?;
    world.alive(&door.life).await;
    Some(answer)
}

/// Has an agent take an order that is the controller's, and sign what it says.
pub async fn take_order(world: &World, node: Node, sealed: Sealed) -> Option<Sealed> {
    let order = SignedOrder::open(sealed, &SimKeys).ok()?;
    let given = Box::new(order.clone());
    let answer: OrderAnswer = tell(world, node, |answer| News::Ordered(given, answer)).await?;
    let answer = liar::severed(world, node, answer);
    let site = world.with(|state, _| state.machine(node).site.clone());
    seal_answer(&order, answer, &SimKey::of(world, &site)).ok()
}

/// Looks at sites, from somewhere.
#[derive(Debug)]
pub struct SimProbe(pub Place);

#[async_trait]
impl Probe for SimProbe {
    async fn look(&self, target: &Target, within: Duration) -> Finding {
        self.0.work(0, 1).await;
        let (world, kind) = (Arc::clone(&self.0.world), target.kind);
        let node = world.with(|state, _| state.node(&target.site));
        let asked = move || {
            let world = Arc::clone(&world);
            async move { Some(look(&world, node, kind).await) }
        };
        let found = ask(&self.0.world, (self.0.node, node), within, asked).await;
        self.0.world.alive(&self.0.life).await;
        found.unwrap_or_else(|error| {
            Finding::Bad(match error {
                NoAnswer::Refused => ProbeFailure::Refused,
                NoAnswer::TimedOut => ProbeFailure::Timeout(as_millis(within)),
            })
        })
    }

    async fn anchors(&self, within: Duration) -> (u32, u32) {
        self.0.work(0, 1).await;
        let isolated = self
            .0
            .world
            .with(|state, _| !state.link(Node::Neutral, Node::Clients).up);
        if isolated {
            tokio::time::sleep(within).await;
        }
        (if isolated { 0 } else { 2 }, 2)
    }
}

async fn look(world: &World, node: Node, kind: TargetKind) -> Finding {
    if !host(world, node).await {
        return silence().await;
    }
    // The position is read first; the write and the answer take a little longer.
    let facts = world.with(|state, now| match kind {
        TargetKind::Api => {
            let machine = state.machine(node);
            let serves = machine.workloads.is_some_and(|at| at <= now);
            if serves {
                Ok(Facts::Api)
            } else {
                Err(ProbeFailure::Refused)
            }
        }
        TargetKind::Database => database_facts(state, now, node),
        TargetKind::Agent => Err(ProbeFailure::Protocol("agents report".to_owned())),
    });
    let took = world.with(|state, _| state.chance.millis(1, 6));
    tokio::time::sleep(took).await;
    if !host(world, node).await {
        return silence().await;
    }
    facts.map_or_else(Finding::Bad, Finding::Good)
}

/// What a primary says of its standby.
fn sender_of(machine: &Machine, standby: &SiteName) -> SenderFacts {
    let sync_state = if machine.synchronous { "sync" } else { "async" };
    SenderFacts {
        name: standby.to_string(),
        state: "streaming".to_owned(),
        flushed: Some(Lsn(machine.confirmed)),
        sync_state: sync_state.to_owned(),
    }
}

fn database_facts(
    state: &mut super::world::State,
    now: Truth,
    node: Node,
) -> Result<Facts, ProbeFailure> {
    let wall = state.skew(node).wall(now);
    let standby = state.machine(node.peer()).site.clone();
    let machine = state.machine(node);
    if !machine.running {
        return Err(ProbeFailure::Refused);
    }
    if now < machine.ready {
        return Err(ProbeFailure::NotAccepting("starting up".to_owned()));
    }
    let kept_out = machine.keeps_out(now);
    if kept_out == Some(KeptOut::Door) {
        let why = "password authentication failed (28P01)".to_owned();
        return Err(ProbeFailure::Unauthorized(why));
    }
    let position = Lsn(machine.position());
    let mut newest = machine.heartbeat.clone();
    let primary = machine.role == Role::Primary;
    if kept_out.is_some() && primary && !machine.at_work(now) {
        return Err(ProbeFailure::Blocked(
            "it waits for `Lock/relation`".to_owned(),
        ));
    }
    if primary && kept_out.is_none() {
        let sequence = newest.map_or(1, |(sequence, _)| sequence.saturating_add(1));
        let site = machine.site.clone();
        machine.commit(now, Written::Heartbeat(sequence, site.clone()));
        newest = Some((sequence, site));
    }
    if kept_out.is_some() {
        newest = None;
    }
    let epoch = machine.epoch_row.filter(|_| kept_out.is_none());
    let heard = machine.heard.map(|heard| now.saturating_sub(heard));
    let streams = heard.filter(|heard| *heard < Duration::from_secs(60) && machine.connected);
    Ok(Facts::Database(Box::new(DatabaseFacts {
        role: machine.role,
        system_id: SystemId(7),
        timeline: Timeline(machine.timeline),
        version: 150_018,
        position,
        replayed: position,
        receiver: (!primary && streams.is_some()).then(|| ReceiverFacts {
            status: "streaming".to_owned(),
            last_message: streams,
        }),
        senders: primary
            .then(|| sender_of(machine, &standby))
            .into_iter()
            .collect(),
        heartbeat: newest.map(|(sequence, site)| Heartbeat {
            sequence,
            site,
            written: WallTime(wall.0),
        }),
        epoch,
        replay_pause: ReplayPause::None,
        replay_state: ReplayState::AtEnd,
        apply_delay: Duration::ZERO,
        synchronous_names: String::new(),
        commits_waiting: Vec::new(),
        limits: [100, 8, 10, 0, 64],
        write_took: (primary && kept_out.is_none()).then_some(Duration::from_millis(2)),
        blocked: kept_out.map(|_| "it waits for `Lock/relation`".to_owned()),
    })))
}
