//! One mistake for each checker, planted through a port.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;

use failover::engine::answer::Answer;
use failover::engine::lease::Enforcer;
use failover::engine::observation::{Finding, ProbeFailure};
use failover::engine::policy::Policy;
use failover::engine::receipt::Receipt;
use failover::engine::synchrony::SyncLook;
use failover::engine::topology::{Role, SiteName, Target, TargetKind, TargetName};
use failover::engine::units::{Epoch, Lsn, MonoTime, WallTime};
use failover::ports::{
    AgentMemory, AgentStore, AppendError, Clock, Confirmation, EffectError, LocalDatabase,
    LocalLook, LocalRight, LogStore, OutsideView, Probe, Server, Still, StoreError, Synchronous,
    Traffic, Versioned,
};
use failover::sim::invariant::Invariant;
use failover::sim::machine::Mistake;
use failover::sim::partitions::{ROWS, Span};
use failover::sim::processes::{Honest, Plant};
use failover::sim::run::{Course, Setup, run};
use failover::sim::world::{Node, World};

use super::{finds, holds, minutes, policy};

pub(crate) fn planted(seed: u64, plant: impl Plant + 'static) -> Setup {
    let mut setup = Setup::new(seed, minutes(3), policy());
    setup.plant = Arc::new(plant);
    setup
}

/// A guard that says it fenced, or holds a right for longer than it was told.
pub(crate) struct Guard {
    of: Arc<dyn Server>,
    lies: bool,
    longer: Arc<dyn Fn() -> Duration + Send + Sync>,
}

impl Guard {
    /// A database whose guard holds a right for longer than it was told.
    pub(crate) fn longer(
        of: LocalDatabase,
        longer: impl Fn() -> Duration + Send + Sync + 'static,
    ) -> LocalDatabase {
        let server = Arc::new(Self {
            of: of.server,
            lies: false,
            longer: Arc::new(longer),
        });
        LocalDatabase { server, ..of }
    }
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").finish_non_exhaustive()
    }
}

#[async_trait]
impl Server for Guard {
    fn enforced_by(&self) -> Enforcer {
        self.of.enforced_by()
    }
    fn machine(&self) -> Option<String> {
        self.of.machine()
    }
    async fn look(&self) -> Result<LocalLook, EffectError> {
        self.of.look().await
    }
    async fn start_standby(&self) -> Result<(), EffectError> {
        self.of.start_standby().await
    }
    async fn start_primary(&self, right: &LocalRight) -> Result<(), EffectError> {
        self.of.start_primary(right).await
    }
    async fn hold_right(&self, right: &LocalRight) -> Result<(), EffectError> {
        let until = right.until.map(|until| until.plus((self.longer)()));
        self.of.hold_right(&LocalRight { until, ..*right }).await
    }
    async fn release_right(&self) -> Result<(), EffectError> {
        self.of.release_right().await
    }
    async fn fence(&self, epoch: Epoch, cause: &str) -> Result<String, EffectError> {
        if self.lies {
            return Ok("fenced, believe me".to_owned());
        }
        self.of.fence(epoch, cause).await
    }
    async fn unfence(&self, epoch: Epoch) -> Result<(), EffectError> {
        self.of.unfence(epoch).await
    }
}

/// A database whose commits only seem to wait.
#[derive(Debug)]
struct SeemsToWait(Arc<dyn Synchronous>);

#[async_trait]
impl Synchronous for SeemsToWait {
    async fn look_at_standby(
        &self,
        standby: &SiteName,
        within: Duration,
    ) -> Result<SyncLook, EffectError> {
        let look = self.0.look_at_standby(standby, within).await?;
        Ok(SyncLook {
            named: true,
            ..look
        })
    }
    async fn wait_for_standby(&self, _: &SiteName, _: Duration) -> Result<Lsn, EffectError> {
        Ok(Lsn(0))
    }
    async fn go_on_alone(&self, within: Duration) -> Result<(), EffectError> {
        self.0.go_on_alone(within).await
    }
}

#[derive(Debug, Clone)]
pub(crate) struct PlantGuard {
    pub(crate) lies: bool,
    pub(crate) longer: Duration,
    pub(crate) pretends_to_wait: bool,
}

impl PlantGuard {
    pub(crate) fn honest() -> Self {
        Self {
            lies: false,
            longer: Duration::ZERO,
            pretends_to_wait: false,
        }
    }
}

impl Plant for PlantGuard {
    fn database(&self, of: LocalDatabase, _world: &Arc<World>, _node: Node) -> LocalDatabase {
        let Self {
            lies,
            longer,
            pretends_to_wait,
        } = *self;
        let server = Arc::new(Guard {
            of: of.server,
            lies,
            longer: Arc::new(move || longer),
        });
        let synchronous = if pretends_to_wait {
            Arc::new(SeemsToWait(of.synchronous))
        } else {
            of.synchronous
        };
        LocalDatabase {
            server,
            synchronous,
            ..of
        }
    }
}

#[test]
fn a_guard_that_only_says_it_fenced_is_seen() {
    let plant = || PlantGuard {
        lies: true,
        ..PlantGuard::honest()
    };
    finds(Invariant::FenceBeforePromote, "can write", |seed| {
        planted(seed, plant())
    });
}

#[test]
fn a_lease_that_is_counted_too_long_makes_two_writers() {
    let plant = || PlantGuard {
        longer: Duration::from_secs(4),
        ..PlantGuard::honest()
    };
    finds(Invariant::OneWriter, "beside", |seed| {
        let mut setup = cut_off(seed, policy());
        setup.plant = Arc::new(plant());
        setup
    });
}

/// The active site is cut off and users reach it, so that all rests on its right's end.
pub(crate) fn cut_off(seed: u64, policy: Policy) -> Setup {
    partition("A is cut off, and users reach it", seed, policy)
}

/// A row of the partition table.
pub(crate) fn partition(name: &str, seed: u64, policy: Policy) -> Setup {
    let row = ROWS.into_iter().find(|row| row.name == name);
    let mut setup = Setup::new(seed, Span::of(&policy).lasting(), policy);
    setup.course = Course::Partition(row.unwrap());
    setup
}

#[test]
fn clocks_worse_than_the_policy_bears_make_two_writers() {
    finds(Invariant::OneWriter, "beside", |seed| {
        let mut setup = cut_off(seed, policy());
        setup.drift_ppm = Some(1_400_000);
        setup
    });
}

/// A disk that says durable and drops steps that began.
#[derive(Debug)]
struct Forgetful(Box<dyn LogStore>);

#[async_trait]
impl LogStore for Forgetful {
    async fn append(&mut self, line: &[u8]) -> Result<(), AppendError> {
        let text = String::from_utf8_lossy(line);
        if text.contains("\"event\":\"started\"") {
            return Ok(());
        }
        self.0.append(line).await
    }
}

#[derive(Debug)]
struct PlantForgetful;

impl Plant for PlantForgetful {
    fn log(&self, of: Box<dyn LogStore>) -> Box<dyn LogStore> {
        Box::new(Forgetful(of))
    }
}

#[test]
fn an_effect_before_its_entry_is_seen() {
    finds(Invariant::WriteAhead, "without a durable", |seed| {
        planted(seed, PlantForgetful)
    });
}

#[test]
fn a_log_with_a_hole_does_not_verify() {
    finds(Invariant::LogVerifies, "", |seed| {
        planted(seed, PlantForgetful)
    });
}

/// What a traffic target does instead of what it is asked for.
#[derive(Debug, Clone, Copy)]
enum Astray {
    /// Switches both sites on.
    Both,
    /// Switches both off.
    Nobody,
    /// Switches on the one that is left.
    TheOther,
    /// Nothing, and says it did.
    Nothing,
}

#[derive(Debug)]
struct Stray {
    of: Arc<dyn Traffic>,
    plant: Astray,
    said: Mutex<Option<Answer>>,
}

#[async_trait]
impl Traffic for Stray {
    fn name(&self) -> &TargetName {
        self.of.name()
    }
    async fn read(&self) -> Result<Versioned, EffectError> {
        let mut read = self.of.read().await?;
        if let Some(said) = self.said.lock().unwrap().clone() {
            read.answer = said;
        }
        Ok(read)
    }
    async fn apply(
        &self,
        from: &Versioned,
        to: &Answer,
        note: &str,
        still: Still<'_>,
    ) -> Result<Receipt, EffectError> {
        let mut astray = to.clone();
        let weights = astray.weights.values_mut();
        match self.plant {
            Astray::Both => weights.for_each(|weight| *weight = 50),
            Astray::Nobody => weights.for_each(|weight| *weight = 0),
            Astray::TheOther => weights.for_each(|weight| *weight = 100 - *weight),
            Astray::Nothing => {
                *self.said.lock().unwrap() = Some(to.clone());
                return Ok(Receipt::default());
            }
        }
        self.of.apply(from, &astray, note, still).await
    }
    async fn confirm(&self, receipt: &Receipt) -> Result<Confirmation, EffectError> {
        self.of.confirm(receipt).await
    }
    async fn rehearse(&self, from: &Versioned) -> Result<(), EffectError> {
        self.of.rehearse(from).await
    }

    async fn verify_outside(&self) -> Vec<OutsideView> {
        self.of.verify_outside().await
    }
}

impl Plant for Astray {
    fn traffic(&self, of: Arc<dyn Traffic>) -> Arc<dyn Traffic> {
        let (plant, said) = (*self, Mutex::default());
        Arc::new(Stray { of, plant, said })
    }
}

#[test]
fn a_forbidden_answer_is_seen() {
    for (plant, words) in [
        (Astray::Both, "both sites"),
        (Astray::Nobody, "nobody"),
        (Astray::TheOther, "which is fenced"),
    ] {
        finds(Invariant::ForbiddenAnswer, words, |seed| {
            planted(seed, plant)
        });
    }
}

#[test]
fn traffic_that_is_logged_as_moved_and_was_not_is_seen() {
    finds(Invariant::WriteAhead, "recorded as moved", |seed| {
        planted(seed, Astray::Nothing)
    });
}

/// A disk of an agent that forgets.
#[derive(Debug)]
struct Amnesia(Arc<dyn AgentStore>);

#[async_trait]
impl AgentStore for Amnesia {
    async fn load(&self) -> Result<Option<AgentMemory>, StoreError> {
        Ok(None)
    }
    async fn save(&self, memory: &AgentMemory) -> Result<(), StoreError> {
        self.0.save(memory).await
    }
}

#[derive(Debug)]
struct PlantAmnesia;

impl Plant for PlantAmnesia {
    fn store(&self, of: Arc<dyn AgentStore>) -> Arc<dyn AgentStore> {
        Arc::new(Amnesia(of))
    }
}

#[test]
fn an_epoch_that_falls_is_seen() {
    finds(Invariant::EpochMonotone, "falls from epoch", |seed| {
        planted(seed, PlantAmnesia)
    });
}

/// A wall clock of the controller that jumps, so that windows are declared wrongly.
#[derive(Debug)]
struct Jumpy(Arc<dyn Clock>);

#[async_trait]
impl Clock for Jumpy {
    fn now(&self) -> MonoTime {
        self.0.now()
    }
    fn wall(&self) -> WallTime {
        WallTime(self.0.wall().0.saturating_add(60_000))
    }
    async fn sleep(&self, wait: Duration) {
        self.0.sleep(wait).await;
    }
}

#[derive(Debug)]
struct PlantJumpy;

impl Plant for PlantJumpy {
    fn clock(&self, of: Arc<dyn Clock>, node: Node) -> Arc<dyn Clock> {
        if node == Node::Neutral {
            Arc::new(Jumpy(of))
        } else {
            of
        }
    }
}

#[test]
fn a_window_that_does_not_hold_the_loss_is_seen() {
    finds(Invariant::DeclaredLoss, "is lost, but declared", |seed| {
        let mut setup = planted(seed, PlantJumpy);
        setup.course = Course::SiteLost;
        setup
    });
}

#[test]
fn a_site_that_is_not_replaced_in_time_is_seen() {
    finds(Invariant::Liveness, "writable after", |seed| {
        let mut setup = Setup::new(seed, minutes(3), policy());
        setup.course = Course::SiteLost;
        // Observes only: it never acts.
        setup.policy.mode = failover::engine::policy::Mode::Observe;
        setup
    });
}

/// A database that dies where nothing was to go wrong.
#[derive(Debug)]
struct PlantDeath;

impl Plant for PlantDeath {
    fn database(&self, of: LocalDatabase, world: &Arc<World>, node: Node) -> LocalDatabase {
        let world = Arc::clone(world);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(30)).await;
            world.with(|state, _| state.machine(node).crash("signal 9"));
        });
        of
    }
}

#[test]
fn a_pair_that_is_failed_over_though_nothing_went_wrong_is_seen() {
    finds(Invariant::Liveness, "a healthy pair", |seed| {
        let mut setup = planted(seed, PlantDeath);
        setup.course = Course::Calm;
        setup
    });
}

/// A mistake planted in the guards, and `standby.signal` planted below the first site's primary
/// at the moment when the controller is cut off from it, where that is wanted.
#[derive(Debug)]
struct PlantMistake {
    mistake: Option<Mistake>,
    signal: bool,
}

impl Plant for PlantMistake {
    fn database(&self, of: LocalDatabase, world: &Arc<World>, node: Node) -> LocalDatabase {
        world.with(|state, _| state.machine(node).mistake = self.mistake);
        if self.signal && node == Node::First {
            let world = Arc::clone(world);
            tokio::spawn(async move {
                world
                    .until(|state| !state.link(Node::First, Node::Neutral).up)
                    .await;
                world.with(|state, now| {
                    let machine = state.machine(node);
                    if machine.role == Role::Primary {
                        machine.put_files(Role::Standby, now);
                    }
                });
            });
        }
        of
    }
}

/// The active site is cut off, with `standby.signal` below its primary.
fn cut_off_with_signal(seed: u64, mistake: Option<Mistake>) -> Setup {
    let mut setup = cut_off(seed, policy());
    setup.plant = Arc::new(PlantMistake {
        mistake,
        signal: true,
    });
    setup
}

#[test]
fn a_guard_that_believes_files_makes_two_writers() {
    finds(Invariant::OneWriter, "beside", |seed| {
        cut_off_with_signal(seed, Some(Mistake::BelievesFiles))
    });
}

#[test]
fn a_guard_that_goes_by_what_runs_fences_below_a_planted_signal_file() {
    for seed in 0..10 {
        let report = run(&cut_off_with_signal(seed, None)).unwrap();
        assert!(report.violations.is_empty(), "{:#?}", report.violations);
        assert!(!report.fences.is_empty(), "seed {seed}");
    }
}

#[test]
fn a_guard_that_leaves_strangers_alone_makes_two_writers() {
    finds(Invariant::OneWriter, "beside", |seed| {
        planted(
            seed,
            PlantMistake {
                mistake: Some(Mistake::LeavesStrangers),
                signal: false,
            },
        )
    });
}

#[test]
fn a_guard_that_gives_a_right_up_on_its_last_look_is_seen() {
    finds(Invariant::OwnHand, "promoted with a right", |seed| {
        planted(
            seed,
            PlantMistake {
                mistake: Some(Mistake::GoesByTheLastLook),
                signal: false,
            },
        )
    });
}

/// Looks that believe an old word: a database that was fenced is not looked at.
#[derive(Debug)]
struct BelievesOldWord {
    of: Arc<dyn Probe>,
    world: Arc<World>,
}

#[async_trait]
impl Probe for BelievesOldWord {
    async fn look(&self, target: &Target, within: Duration) -> Finding {
        let fenced = self.world.with(|state, _| {
            let node = state.node(&target.site);
            state.memory(node).as_ref().and_then(|memory| memory.fenced)
        });
        if target.kind == TargetKind::Database && fenced.is_some() {
            return Finding::Bad(ProbeFailure::Refused);
        }
        self.of.look(target, within).await
    }
    async fn anchors(&self, within: Duration) -> (u32, u32) {
        self.of.anchors(within).await
    }
}

#[derive(Debug)]
struct PlantOldWord;

impl Plant for PlantOldWord {
    fn probe(&self, of: Arc<dyn Probe>, world: &Arc<World>) -> Arc<dyn Probe> {
        let world = Arc::clone(world);
        Arc::new(BelievesOldWord { of, world })
    }
}

fn started_by_hand(seed: u64, plant: impl Plant + 'static) -> Setup {
    let mut setup = planted(seed, plant);
    setup.course = Course::StartedByHand;
    setup
}

#[test]
fn an_old_word_that_outweighs_what_is_seen_is_seen() {
    finds(Invariant::SeenNow, "nobody is called", |seed| {
        started_by_hand(seed, PlantOldWord)
    });
}

#[test]
fn two_primaries_are_told_while_there_are_two() {
    holds(1, |seed| started_by_hand(seed, Honest));
}
