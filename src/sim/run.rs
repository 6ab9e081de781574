//! One seed, from its first moment to its last.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::checks::Checks;
use super::cluster;
use super::faults::{self, Fault, Kill};
use super::invariant::{Invariant, Violation};
use super::liar;
use super::machine::Truth;
use super::observer;
use super::partitions::{self, Row};
use super::processes::{Honest, Plant, RESTART, Seat, start_agent, start_controller};
use super::world::{Clocks, Node, World};
use crate::engine::policy::Policy;
use crate::engine::topology::Topology;

/// What a run is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Course {
    /// Faults of every kind, for the whole time.
    Faults,
    /// Nothing goes wrong.
    Calm,
    /// The active site is lost for good after a while, and nothing else goes wrong.
    SiteLost,
    /// A person asks for a takeover of a healthy pair, and the standby can never be severed.
    SeverFails,
    /// The active site is replaced and comes back, and somebody starts its database where no guard
    /// can see it. Nothing else goes wrong.
    StartedByHand,
    /// One row of the partition table happens, and nothing else goes wrong.
    Partition(Row),
}

/// So far apart are wall clocks on which nothing may rest, in milliseconds.
pub const HOURS: u64 = 6 * 3_600_000;

/// What to run.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The seed.
    pub seed: u64,
    /// How much virtual time.
    pub lasting: Duration,
    /// The policy.
    pub policy: Policy,
    /// What goes wrong.
    pub course: Course,
    /// What goes wrong by chance, in [`Course::Faults`]: each as often as it stands here.
    pub faults: &'static [Fault],
    /// How far clocks are apart; `None`: as far as the policy bears.
    pub drift_ppm: Option<u64>,
    /// How far wall clocks are apart, in milliseconds; `None`: hours where faults are of every kind, since
    /// nothing may rest on them, else a second.
    pub wall_ms: Option<u64>,
    /// What is planted.
    pub plant: Arc<dyn Plant>,
}

impl Setup {
    /// Faults of every kind from a seed, under a policy.
    pub fn new(seed: u64, lasting: Duration, policy: Policy) -> Self {
        Self {
            seed,
            lasting,
            policy,
            course: Course::Faults,
            faults: Fault::OFTEN,
            drift_ppm: None,
            wall_ms: None,
            plant: Arc::new(Honest),
        }
    }
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// What did not hold.
    pub violations: Vec<Violation>,
    /// Every event that was kept, in one line each.
    pub events: Vec<String>,
    /// The decision log, line by line.
    pub log: Vec<Vec<u8>>,
    /// A digest of every event: equal for two runs of one seed.
    pub fingerprint: u64,
    /// Writes that were acknowledged, and how many of them are lost.
    pub writes: (usize, usize),
    /// Writes that a host acknowledged beside another after it was frozen and thawed.
    pub after_thaw: u64,
    /// Plans opened, done, undone, stuck.
    pub plans: BTreeMap<&'static str, u64>,
    /// How many promotions there were.
    pub promotions: usize,
    /// When what the course is about went wrong.
    pub fault: Option<Truth>,
    /// From then until the other site took writes.
    pub writable: Option<Duration>,
    /// The fences of the site that was active first: when each ended, and why it began.
    pub fences: Vec<(Truth, String)>,
}

/// Why a run could not be made.
#[derive(Debug, thiserror::Error)]
#[error("the simulator cannot run: {0}")]
pub struct RunError(String);

fn topology() -> Result<Topology, RunError> {
    let wrong = |error: crate::engine::units::UnitError| RunError(error.to_string());
    Ok(Topology {
        group: "shop".parse().map_err(wrong)?,
        first: "aws".parse().map_err(wrong)?,
        second: "gcp".parse().map_err(wrong)?,
        traffic: vec!["dns".parse().map_err(wrong)?],
    })
}

/// Runs one seed.
pub fn run(setup: &Setup) -> Result<Report, RunError> {
    let topology = topology()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .map_err(|error| RunError(error.to_string()))?;
    Ok(runtime.block_on(live(setup, topology)))
}

/// When the site is lost, in [`Course::SiteLost`].
const LOST_AT: Duration = Duration::from_secs(60);

/// How long the site that was active may take to write again once a plan failed before its pivot.
const BACK_WITHIN: Duration = Duration::from_secs(5);

/// The world of a seed, with an observer in a share of those in which things go wrong by chance. The
/// partition table is about a policy as it is.
fn made(setup: &Setup, topology: Topology, clocks: Clocks) -> Arc<World> {
    let mut policy = setup.policy.clone();
    let observed = match setup.course {
        Course::Partition(_) => None,
        Course::Faults
        | Course::Calm
        | Course::SiteLost
        | Course::SeverFails
        | Course::StartedByHand => observer::of_seed(setup.seed),
    };
    let observer = observed.map(|(name, quorum)| {
        // A lost observer may then keep a lost site from being replaced, which is no mistake.
        if setup.course == Course::Faults {
            policy.detect.quorum = quorum;
        }
        name
    });
    let world = World::new(setup.seed, policy, topology, clocks, observer.clone());
    if let Some(name) = observer {
        tokio::spawn(observer::keep(Arc::clone(&world), name));
    }
    let drawn = setup.course == Course::Faults && cluster::of_seed(setup.seed);
    if setup.plant.clusters(drawn) {
        cluster::found(&world);
    }
    let drawn = setup.course == Course::Faults && liar::of_seed(setup.seed);
    if setup.plant.lies(drawn) {
        world.with(|state, _| {
            state.liar = Some(Node::Second);
            state.boasts = state.chance.percent(50);
        });
    }
    world
}

/// One controller, and a second one that stands by in some of the worlds in which things go wrong.
fn keep_controllers(
    world: &Arc<World>,
    plant: &Arc<dyn Plant>,
    killed: [mpsc::UnboundedReceiver<Duration>; 2],
    crashes: bool,
) {
    let two = crashes && world.with(|state, _| state.chance.percent(50));
    let count = if two { 2 } else { 1 };
    for (which, killed) in killed.into_iter().enumerate().take(count) {
        let (world, plant) = (Arc::clone(world), Arc::clone(plant));
        tokio::spawn(keep_controller(world, which, plant, killed, crashes));
    }
}

async fn live(setup: &Setup, topology: Topology) -> Report {
    let drift = u64::from(setup.policy.lease.clock_drift_ppm);
    let clocks = Clocks {
        drift_ppm: setup.drift_ppm.unwrap_or(drift),
        wall_ms: setup.wall_ms.unwrap_or(match setup.course {
            Course::Faults => HOURS,
            Course::Calm
            | Course::SiteLost
            | Course::SeverFails
            | Course::StartedByHand
            | Course::Partition(_) => 1_000,
        }),
    };
    let world = made(setup, topology, clocks);
    let (lead, lead_killed) = mpsc::unbounded_channel();
    let (other, other_killed) = mpsc::unbounded_channel();
    let (first, first_killed) = mpsc::unbounded_channel();
    let (second, second_killed) = mpsc::unbounded_channel();
    let kill = Kill {
        controllers: [lead, other],
        agents: [first, second],
        plant: Arc::clone(&setup.plant),
    };
    let plant = &setup.plant;
    let crashes = setup.course == Course::Faults;
    tokio::spawn(keep_agent(
        Arc::clone(&world),
        Node::First,
        Arc::clone(plant),
        first_killed,
    ));
    tokio::spawn(keep_agent(
        Arc::clone(&world),
        Node::Second,
        Arc::clone(plant),
        second_killed,
    ));
    keep_controllers(&world, plant, [lead_killed, other_killed], crashes);
    tokio::spawn(faults::clients(Arc::clone(&world)));
    match setup.course {
        Course::Faults => drop(tokio::spawn(faults::for_ever(
            Arc::clone(&world),
            kill.clone(),
            setup.faults,
        ))),
        Course::Calm => {}
        Course::SeverFails => drop(tokio::spawn(faults::never_severed(Arc::clone(&world)))),
        Course::Partition(row) => drop(tokio::spawn(partitions::happen(Arc::clone(&world), row))),
        Course::StartedByHand => drop(tokio::spawn(started_by_hand(Arc::clone(&world)))),
        Course::SiteLost => {
            let world = Arc::clone(&world);
            tokio::spawn(async move {
                let late = world.with(|state, _| state.chance.millis(0, 5_000));
                tokio::time::sleep(LOST_AT.saturating_add(late)).await;
                world.trace(|| "A  is lost for good".to_owned());
                world.with(|state, now| {
                    state.fault = Some(now);
                    state.machine(Node::First).lose_power(now);
                });
                world.changed();
            });
        }
    }
    tokio::time::sleep(setup.lasting).await;
    drop(kill);
    conclude(setup, &world)
}

/// How long the old site stays away, and is back, in [`Course::StartedByHand`].
const AWAY: Duration = Duration::from_secs(20);
/// For how long the second primary runs.
const SECOND_RUNS: Duration = Duration::from_secs(15);

async fn started_by_hand(world: Arc<World>) {
    tokio::time::sleep(LOST_AT).await;
    world.trace(|| "A  loses power".to_owned());
    world.with(|state, now| state.machine(Node::First).lose_power(now));
    world.changed();
    tokio::time::sleep(AWAY).await;
    world.with(|state, _| state.machine(Node::First).boot());
    world.changed();
    tokio::time::sleep(AWAY).await;
    let started = world.with(|state, now| {
        let replaced = state.machine(Node::Second).could_write(now);
        let started = replaced && faults::start_by_hand(state, now, Node::First, now, None);
        state.fault = started.then_some(now);
        started
    });
    if !started {
        return;
    }
    tokio::time::sleep(SECOND_RUNS).await;
    world.with(|state, _| state.machine(Node::First).crash("signal 9"));
}

fn conclude(setup: &Setup, world: &World) -> Report {
    world.with(|state, now| {
        let log = std::mem::take(&mut state.log);
        let (fault, checks) = (state.fault, &mut state.checks);
        checks.audit(now, &log);
        let promoted = checks.promoted.first().map(|(at, ..)| *at);
        let writable = promoted
            .zip(fault)
            .map(|(at, fault)| at.saturating_sub(fault));
        judge(setup, checks, writable, now);
        if setup.course == Course::StartedByHand {
            judge_second(setup, checks, fault, now);
        }
        let fences = state.machine(Node::First).fences.clone();
        let checks = &state.checks;
        Report {
            log,
            seed: setup.seed,
            violations: checks.violations.clone(),
            events: checks.last_events(usize::MAX),
            fingerprint: checks.fingerprint,
            writes: checks.writes(),
            after_thaw: checks.after_thaw,
            plans: checks.plans.clone(),
            promotions: checks.promoted.len(),
            fault,
            writable,
            fences,
        }
    })
}

/// What must have happened by the end.
fn judge(setup: &Setup, checks: &mut Checks, writable: Option<Duration>, now: Truth) {
    let opened = checks.plans.get("opened").copied().unwrap_or(0);
    match setup.course {
        Course::Faults | Course::Partition(_) | Course::StartedByHand => {}
        Course::SeverFails => {
            // The sever is tried for so long; then production is to be back at once.
            let most = setup.policy.steps.other.saturating_add(BACK_WITHIN);
            let gap = checks.longest_gap(LOST_AT, now);
            if opened == 0 || gap > most {
                let what =
                    format!("no write for {gap:?} around a plan that failed: {opened} opened");
                checks.violated(Invariant::Liveness, now, what);
            }
        }
        Course::Calm => {
            if opened > 0 {
                let what = "a healthy pair was failed over".to_owned();
                checks.violated(Invariant::Liveness, now, what);
            }
        }
        Course::SiteLost => {
            let worst = crate::engine::timers::timers(&setup.policy);
            let worst = worst.first().and_then(|timer| timer.worst);
            // The ways of messages are the world's, not the policy's.
            let worst = worst.map(|worst| worst.saturating_add(Duration::from_millis(500)));
            if writable.is_none() || writable > worst {
                let what =
                    format!("writable after {writable:?}, the policy's worst case is {worst:?}");
                checks.violated(Invariant::Liveness, now, what);
            }
        }
    }
}

/// Two primaries are told while both run, and not when one does.
fn judge_second(setup: &Setup, checks: &mut Checks, began: Option<Truth>, now: Truth) {
    let Some(began) = began else {
        let what = "the lost site was not replaced, or came back as a primary".to_owned();
        return checks.violated(Invariant::Liveness, now, what);
    };
    let detect = &setup.policy.detect;
    let looks = detect.probe_every.saturating_add(detect.probe_timeout);
    let within = detect.stale_after.saturating_add(looks.saturating_mul(2));
    let told: Vec<Truth> = checks.two_primaries.clone();
    let fits = |at: &Truth| *at >= began && *at <= began.saturating_add(within);
    if !told.iter().any(fits) {
        let what = format!(
            "two primaries from {began:?} on, and nobody is called within {within:?}: {told:?}"
        );
        checks.violated(Invariant::SeenNow, now, what);
    } else if let Some(early) = told.iter().find(|at| **at < began) {
        let what = format!("two primaries are told at {early:?}, and there was one");
        checks.violated(Invariant::SeenNow, now, what);
    }
}

async fn keep_agent(
    world: Arc<World>,
    node: Node,
    plant: Arc<dyn Plant>,
    mut killed: mpsc::UnboundedReceiver<Duration>,
) {
    loop {
        world.until(|state| state.machine(node).answers()).await;
        let starting = tokio::select! {
            biased;
            () = world.until(|state| !state.machine(node).up) => continue,
            started = start_agent(&world, Seat::on_host(node), &plant) => started,
        };
        let mut wait = RESTART;
        match starting {
            Ok(mut process) => {
                let why = tokio::select! {
                    biased;
                    () = world.until(|state| !state.machine(node).up) => "power".to_owned(),
                    asked = killed.recv() => {
                        wait = asked.unwrap_or(RESTART);
                        "killed".to_owned()
                    }
                    why = process.ended() => why,
                };
                process.kill(&world);
                note_end(&world, node, &why);
            }
            Err(error) => world.trace(|| format!("{node}  agent does not start: {error:#}")),
        }
        world.with(|state, _| *state.agent(node) = None);
        tokio::time::sleep(wait).await;
    }
}

fn note_end(world: &World, node: Node, why: &str) {
    world.trace(|| format!("{node}  ends: {why}"));
    if why.starts_with("PANIC") {
        world.with(|state, now| {
            state
                .checks
                .violated(Invariant::Liveness, now, format!("{node} broke: {why}"));
        });
    }
}

async fn keep_controller(
    world: Arc<World>,
    which: usize,
    plant: Arc<dyn Plant>,
    mut killed: mpsc::UnboundedReceiver<Duration>,
    crashes: bool,
) {
    loop {
        let (drilled, mut drill) = mpsc::unbounded_channel();
        let after = world.with(|state, _| {
            let armed = crashes && state.chance.percent(60);
            if armed {
                state.chance.below(50).saturating_add(1)
            } else {
                0
            }
        });
        let mut wait = RESTART;
        let started = start_controller(&world, which, &plant, after, drilled);
        let starting = tokio::select! {
            biased;
            started = started => started,
            Some(asked) = killed.recv() => {
                tokio::time::sleep(asked).await;
                continue;
            }
        };
        match starting {
            Ok(mut process) => {
                let why = tokio::select! {
                    biased;
                    Some(()) = drill.recv() => {
                        wait = world.with(|state, _| state.chance.millis(50, 8_000));
                        "killed at a moment".to_owned()
                    }
                    asked = killed.recv() => {
                        wait = asked.unwrap_or(RESTART);
                        "killed".to_owned()
                    }
                    why = process.ended() => why,
                };
                process.kill(&world);
                note_end(&world, Node::Neutral, &why);
            }
            Err(error) => world.trace(|| format!("N  controller does not start: {error:#}")),
        }
        world.with(|state, _| state.controllers[which] = None);
        tokio::time::sleep(wait).await;
    }
}
