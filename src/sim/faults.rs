//! What goes wrong, drawn from the seed; clients that write meanwhile; and the person on call.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::cluster;
use super::copies::copied;
use super::machine::{KeptOut, Written};
use super::processes::Plant;
use super::restored::log_restored;
use super::world::{Life, Node, State, World};
use crate::app::control::{Asked, Handle, Input};
use crate::engine::units::Bytes;
use crate::wire::{HoldAsk, PromoteAsk, ReleaseAsk};

mod behind;

use behind::clock_steps;
pub use behind::start_by_hand;
use behind::{rebuild, standby_file, started_by_hand};

/// The ways to end processes.
#[derive(Debug, Clone)]
pub struct Kill {
    /// Ends a controller for a while.
    pub controllers: [mpsc::UnboundedSender<Duration>; 2],
    /// Ends an agent for a while.
    pub agents: [mpsc::UnboundedSender<Duration>; 2],
    /// What is planted in a copy, as in everything else.
    pub plant: Arc<dyn Plant>,
}

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Some directions of some links are lost.
    Links,
    /// A place is cut off from everybody.
    Isolation,
    /// PostgreSQL is killed.
    Database,
    /// An agent is killed.
    AgentKilled,
    /// An agent stands still.
    AgentFrozen,
    /// A whole host stands still.
    HostFrozen,
    /// A host loses power.
    Power,
    /// The controller is killed.
    Controller,
    /// A controller stands still.
    ControllerFrozen,
    /// Messages are lost and repeated.
    Lossy,
    /// The log's disk is full.
    DiskFull,
    /// Disk, fence, promotion and outside systems are slow, or answer ambiguously.
    Slow,
    /// The workloads of a site end.
    Workloads,
    /// A person does something.
    Person,
    /// A person makes the old primary anew as a standby.
    Rebuild,
    /// A role, a grant, a setting changes, or a table is locked: only our looks meet it.
    Settings,
    /// A wall clock is set, by hours forward or back.
    ClockSteps,
    /// A host is copied, and both run.
    Copied,
    /// The decision log is restored from a backup.
    LogRestored,
    /// `standby.signal` appears or vanishes, whatever runs.
    StandbyFile,
    /// Somebody starts PostgreSQL where the guard's does not run.
    StartedByHand,
}

impl Fault {
    /// What goes wrong where nothing else is asked for.
    pub const OFTEN: &[Fault] = &[
        Fault::Links,
        Fault::Links,
        Fault::Links,
        Fault::Isolation,
        Fault::Isolation,
        Fault::Database,
        Fault::AgentKilled,
        Fault::AgentFrozen,
        Fault::HostFrozen,
        Fault::Power,
        Fault::Controller,
        Fault::Controller,
        Fault::ControllerFrozen,
        Fault::ControllerFrozen,
        Fault::Lossy,
        Fault::DiskFull,
        Fault::Slow,
        Fault::Slow,
        Fault::Workloads,
        Fault::Person,
        Fault::Rebuild,
        Fault::Rebuild,
        Fault::Settings,
        Fault::Settings,
        Fault::ClockSteps,
        Fault::Copied,
        Fault::LogRestored,
        Fault::StandbyFile,
        Fault::StartedByHand,
    ];
}

/// Faults for ever.
pub async fn for_ever(world: Arc<World>, kill: Kill, often: &'static [Fault]) {
    let gap = world.with(|state, _| {
        state
            .chance
            .pick(&[3_000, 10_000, 40_000])
            .unwrap_or(10_000)
    });
    tokio::time::sleep(Duration::from_secs(8)).await;
    loop {
        let (fault, wait) = world.with(|state, _| {
            let fault = state.chance.pick(often).unwrap_or(Fault::Links);
            (fault, state.chance.millis(100, gap))
        });
        tokio::spawn(happen(Arc::clone(&world), kill.clone(), fault));
        tokio::time::sleep(wait).await;
    }
}

/// How long something lasts: mostly short, sometimes long.
fn lasting(state: &mut State) -> Duration {
    let most = state
        .chance
        .pick(&[800, 3_000, 10_000, 60_000])
        .unwrap_or(800);
    state.chance.millis(100, most)
}

/// One fault, from its beginning to its end.
pub async fn happen(world: Arc<World>, kill: Kill, fault: Fault) {
    let (node, lasts) = world.with(|state, _| {
        let node = state.chance.pick(&Node::SITES).unwrap_or(Node::First);
        (node, lasting(state))
    });
    world.trace(|| format!("{node}  fault {fault:?} for {} ms", lasts.as_millis()));
    match fault {
        Fault::Links => links(&world, lasts).await,
        Fault::Isolation => isolation(&world, lasts).await,
        Fault::Database => {
            world.with(|state, _| state.machine(node).crash("signal 9"));
        }
        Fault::AgentKilled => kill.agents[usize::from(node == Node::Second)]
            .send(lasts)
            .unwrap_or_default(),
        Fault::AgentFrozen => {
            let door = world.with(|state, _| state.agent(node).clone());
            frozen(&world, door.map(|door| door.life), lasts).await;
        }
        Fault::HostFrozen => host_frozen(&world, node, lasts).await,
        Fault::Power => power(&world, node, lasts).await,
        // Whichever runs.
        Fault::Controller => {
            for controller in &kill.controllers {
                controller.send(lasts).unwrap_or_default();
            }
        }
        Fault::ControllerFrozen => {
            let door = world.with(|state, _| state.a_controller());
            let life = door.map(|door| door.life);
            frozen(&world, life, lasts).await;
        }
        Fault::Lossy => {
            world.with(|state, _| state.lossy = state.chance.pick(&[2, 10, 30]).unwrap_or(2));
            tokio::time::sleep(lasts).await;
            world.with(|state, _| state.lossy = 0);
        }
        Fault::DiskFull => world.with(|state, now| disk(state, now.saturating_add(lasts))),
        Fault::Slow => world.with(|state, _| {
            state.slow_disk = state.chance.pick(&[4, 4, 40, 800]).unwrap_or(4);
            state.slow_promote = state.chance.pick(&[350, 350, 6_000, 40_000]).unwrap_or(350);
            state.ambiguous = state.chance.pick(&[0, 30]).unwrap_or(0);
            let longest = world.policy.lease.fence.longest();
            let longest = u64::try_from(longest.as_millis()).unwrap_or(0);
            let slow = state.chance.millis(1, longest);
            state.machine(node).next_fence = slow;
        }),
        Fault::Workloads => {
            world.with(|state, _| state.machine(node).workloads = None);
            tokio::time::sleep(lasts).await;
            world.with(|state, now| {
                state.machine(node).workloads.get_or_insert(now);
            });
        }
        Fault::Person => person(&world).await,
        Fault::Rebuild => rebuild(&world, node),
        Fault::ClockSteps => clock_steps(&world),
        Fault::Settings => settings(&world, node, lasts),
        Fault::Copied => copied(&world, &kill.plant, node, lasts).await,
        Fault::LogRestored => log_restored(&world, &kill, lasts).await,
        Fault::StandbyFile => standby_file(&world, node, lasts).await,
        Fault::StartedByHand => started_by_hand(&world, node),
    }
}

/// The log's disk is full, or takes writes and does not end them.
fn disk(state: &mut State, until: Duration) {
    if state.chance.percent(50) {
        state.disk_full = until;
    } else {
        state.disk_stalled = until;
    }
}

async fn links(world: &World, lasts: Duration) {
    let places = [Node::Neutral, Node::First, Node::Second];
    let cut = world.with(|state, now| {
        let mut cut = Vec::new();
        for from in places {
            for to in places {
                if from != to && state.chance.percent(35) {
                    state.set_link(now, from, to, false);
                    cut.push((from, to));
                }
            }
        }
        cut
    });
    world.trace(|| {
        let shown: Vec<String> = cut
            .iter()
            .map(|(from, to)| format!("{from}>{to}"))
            .collect();
        format!("lost {}", shown.join(" "))
    });
    mend(world, cut, lasts).await;
}

async fn mend(world: &World, cut: Vec<(Node, Node)>, lasts: Duration) {
    world.changed();
    tokio::time::sleep(lasts).await;
    world.with(|state, now| {
        for (from, to) in cut {
            state.set_link(now, from, to, true);
        }
    });
    world.changed();
}

/// Cuts a place off in both directions.
pub async fn isolation(world: &World, lasts: Duration) {
    let cut = world.with(|state, now| {
        let node = state
            .chance
            .pick(&[Node::Neutral, Node::First, Node::Second]);
        let node = node.unwrap_or(Node::First);
        // Clients may still reach a site that nobody else does.
        let clients = node == Node::Neutral || state.chance.percent(50);
        let mut cut = Vec::new();
        for other in Node::ALL {
            if other != node && (other != Node::Clients || clients) {
                cut.extend([(node, other), (other, node)]);
            }
        }
        for (from, to) in &cut {
            state.set_link(now, *from, *to, false);
        }
        state.checks.trace(now, format!("{node} isolated"));
        cut
    });
    mend(world, cut, lasts).await;
}

/// A process stands still for a while, wherever it is, and goes on.
async fn frozen(world: &World, life: Option<Arc<Life>>, lasts: Duration) {
    let Some(life) = life else { return };
    life.freeze(true);
    tokio::time::sleep(lasts).await;
    life.freeze(false);
    world.changed();
}

/// Freezes a host as a whole, and thaws it.
pub async fn host_frozen(world: &World, node: Node, lasts: Duration) {
    let door = world.with(|state, now| {
        let agent = state.agent(node).clone();
        let machine = state.machine(node);
        let fit = machine.up && !machine.frozen;
        if fit {
            machine.freeze(now);
        }
        fit.then_some(agent)
    });
    let Some(door) = door else { return };
    if let Some(door) = &door {
        door.life.freeze(true);
    }
    world.changed();
    tokio::time::sleep(lasts).await;
    world.with(|state, now| {
        let late = state.chance.millis(0, 100);
        let machine = state.machine(node);
        if machine.frozen {
            machine.thaw(now, late);
        }
    });
    if let Some(door) = &door {
        door.life.freeze(false);
    }
    world.trace(|| format!("{node}  thaws"));
    world.changed();
}

async fn power(world: &World, node: Node, lasts: Duration) {
    let back = world.with(|state, now| {
        cluster::lose_power(state, node, now);
        state.chance.percent(80)
    });
    world.changed();
    if !back {
        return;
    }
    tokio::time::sleep(lasts).await;
    world.with(|state, _| cluster::boot(state, node));
    world.trace(|| format!("{node}  boots"));
    world.changed();
}

/// Our looks are kept out: of one site, or of both, since most of it travels by replication.
fn settings(world: &World, node: Node, lasts: Duration) {
    world.with(|state, now| {
        let kept_out = state.chance.pick(&[KeptOut::Door, KeptOut::Rows]);
        let kept_out = kept_out.unwrap_or(KeptOut::Rows);
        let both = state.chance.percent(60);
        let until = now.saturating_add(lasts);
        state.machine(node).kept_out = Some((kept_out, until));
        if both {
            state.machine(node.peer()).kept_out = Some((kept_out, until));
        }
        state.checks.trace(
            now,
            format!("{node}  keeps our looks out: {kept_out:?}, both: {both}"),
        );
    });
}

/// After a while the second site's standby can be neither severed nor connected, and a person asks
/// for a takeover.
pub async fn never_severed(world: Arc<World>) {
    let late = world.with(|state, _| state.chance.millis(0, 3_000));
    tokio::time::sleep(Duration::from_secs(60).saturating_add(late)).await;
    let (door, to) = world.with(|state, now| {
        state.deaf = Some(Node::Second);
        state.fault = Some(now);
        let to = state.machine(Node::Second).site.clone();
        (state.a_controller(), to)
    });
    let ask = PromoteAsk {
        to,
        reason: "simulated".to_owned(),
        accept_data_loss: Some(Bytes::mib(1024)),
        accept_replay: true,
        override_fence: false,
        dry_run: false,
    };
    if let Some(door) = door {
        let asked = |answer| Input::Asked("ada".to_owned(), Asked::Promote(ask, answer));
        drop(door.to.ask(asked).await);
    }
}

async fn person(world: &World) {
    let Some(door) = world.with(|state, _| state.a_controller()) else {
        return;
    };
    let (what, to, lasts) = world.with(|state, _| {
        let node = state.chance.pick(&Node::SITES).unwrap_or(Node::Second);
        let to = state.machine(node).site.clone();
        (
            state.chance.below(5),
            to,
            state.chance.millis(1_000, 60_000),
        )
    });
    let who = "ada".to_owned();
    let reason = "simulated".to_owned();
    let handle: Handle = door.to.clone();
    // Whether the controller lives long enough to answer is its own affair.
    let asked = async {
        // A controller that stands still takes nothing in.
        world.alive(&door.life).await;
        match what {
            0 => drop(
                handle
                    .ask(|answer| {
                        let lasting = lasts;
                        Input::Asked(who, Asked::Hold(HoldAsk { reason, lasting }, answer))
                    })
                    .await,
            ),
            1 | 2 => drop(
                handle
                    .ask(|answer| {
                        let ask = ReleaseAsk {
                            reason,
                            rebuilt: false,
                        };
                        Input::Asked(who, Asked::Release(ask, answer))
                    })
                    .await,
            ),
            _ => {
                let ask = PromoteAsk {
                    to,
                    reason,
                    accept_data_loss: (what == 4).then_some(Bytes::mib(1024)),
                    override_fence: false,
                    accept_replay: false,
                    dry_run: false,
                };
                drop(
                    handle
                        .ask(|answer| Input::Asked(who, Asked::Promote(ask, answer)))
                        .await,
                );
            }
        }
    };
    drop(tokio::time::timeout(Duration::from_secs(10), asked).await);
}

/// Clients that write for ever: one follows the traffic, one stays at each site whatever happens.
pub async fn clients(world: Arc<World>) {
    let (every, resolver) =
        world.with(|state, _| (state.chance.millis(40, 250), state.chance.millis(0, 5_000)));
    let mut number = 0u64;
    let mut known = (Node::First, Duration::ZERO);
    loop {
        tokio::time::sleep(every).await;
        world.with(|state, now| {
            if now.saturating_sub(known.1) >= resolver {
                let site = state.traffic.0.sites_on().next().cloned();
                known = (site.map_or(known.0, |site| state.node(&site)), now);
            }
            for node in [known.0, Node::First, Node::Second] {
                let reaches =
                    state.link(Node::Clients, node).up && state.link(node, Node::Clients).up;
                number = number.saturating_add(1);
                let machine = state.machine(node);
                let end = reaches.then(|| machine.commit(now, Written::Row(number)));
                match end.flatten() {
                    Some(end) if machine.synchronous => machine.waiting.push((end, number)),
                    Some(_) => state.acknowledge(now, node, number),
                    None => {}
                }
            }
            write_at_copy(state, now, &mut number);
        });
    }
}

/// A client that stays at the copy of a host.
fn write_at_copy(state: &mut State, now: Duration, number: &mut u64) {
    let Some(copied) = &mut state.copy else {
        return;
    };
    let of = copied.of;
    *number = number.saturating_add(1);
    let row = *number;
    let (committed, waits) = {
        let machine = &mut copied.machine;
        let committed = machine.commit(now, Written::Row(row));
        (committed, machine.synchronous)
    };
    let reaches = state.link(Node::Clients, of).up && state.link(of, Node::Clients).up;
    if committed.is_some() && reaches && !waits {
        state.acknowledge_at_copy(now, row);
    }
}
