//! Executes an open plan, one journaled step at a time: log its start, do it, check it, log its
//! outcome. The saga says what comes next; nothing else is remembered, so that a new process
//! continues where the last one was killed.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tracing::{Instrument, Span};

use super::control::Handle;
use super::journal::{Journal, JournalError};
use super::leadership::Leadership;
use super::steps::Steps;
use crate::engine::chain::Body;
use crate::engine::lasting::Lasting;
use crate::engine::plan::Role;
use crate::engine::policy::Policy;
use crate::engine::saga::{Ending, Next, OpenSaga};
use crate::engine::step::{Event, Fact, Step, Undo};
use crate::engine::topology::{GroupName, SiteName, Topology};
use crate::engine::units::MonoTime;
use crate::ports::{
    Agents, Clock, EffectError, FrontDoor, InfrastructureFence, LastError, Probe, Traffic,
};

/// Everything outside that a step may use.
#[derive(Debug)]
pub struct World {
    /// The connection to the agents.
    pub agents: Arc<dyn Agents>,
    /// Probes a target directly.
    pub probe: Arc<dyn Probe>,
    /// The traffic targets, in the order in which they are moved.
    pub traffic: Vec<Arc<dyn Traffic>>,
    /// The users' entry, if configured.
    pub front: Option<Arc<dyn FrontDoor>>,
    /// What fences a site without its agent's help, for each site that has such a thing.
    pub infrastructure: BTreeMap<SiteName, Arc<dyn InfrastructureFence>>,
    /// Whether this controller may act.
    pub leadership: Leadership,
    /// Where to kill this process, for crash drills.
    pub crash: Option<Arc<dyn CrashDrill>>,
}

/// A moment between two log writes at which a crash must do no harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// Before `Started` is written.
    BeforeStarted,
    /// `Started` is durable, the effect has not begun.
    AfterStarted,
    /// The effect has happened, and the log does not say so yet.
    AfterEffect,
    /// The outcome is durable.
    AfterOutcome,
}

impl Moment {
    /// Every moment, in order.
    pub const ALL: [Moment; 4] = [
        Moment::BeforeStarted,
        Moment::AfterStarted,
        Moment::AfterEffect,
        Moment::AfterOutcome,
    ];
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Moment::BeforeStarted => "before-started",
            Moment::AfterStarted => "after-started",
            Moment::AfterEffect => "after-effect",
            Moment::AfterOutcome => "after-outcome",
        })
    }
}

/// Kills the process at a moment of a step (`failover run --crash-at`), so that a drill can show
/// that the plan continues.
pub trait CrashDrill: Send + Sync + fmt::Debug {
    /// Does not return if this is the moment.
    fn passed(&self, step: &Step, moment: Moment);
}

/// How long to wait before retrying a step: short at first, because most of what we wait for takes
/// milliseconds.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How long a site is asked, at the end of the pivot's time, for its promise that the promotion
/// will not happen.
const LAST_WORD: Duration = Duration::from_secs(10);

/// Executes one plan.
#[derive(Debug)]
pub struct Executor {
    group: GroupName,
    journal: Journal,
    clock: Arc<dyn Clock>,
    policy: Policy,
    steps: Steps,
    crash: Option<Arc<dyn CrashDrill>>,
}

/// A step's outcome, as far as it is known at the end of its time.
enum Attempt {
    Done(Fact),
    /// It certainly did not happen.
    Failed(String),
    /// Unknown: it may have happened.
    Unknown(String),
}

/// A step of a plan, and what becomes of it when it fails.
fn part(saga: &OpenSaga, index: usize) -> Option<(&Step, Role)> {
    let step = saga.plan.steps.get(index)?;
    Some((step, saga.plan.role(step)?))
}

impl Executor {
    /// An executor that has not started.
    pub fn new(
        journal: Journal,
        control: Handle,
        world: Arc<World>,
        clock: Arc<dyn Clock>,
        policy: Policy,
        topology: Topology,
    ) -> Self {
        let (group, crash) = (topology.group.clone(), world.crash.clone());
        let steps = Steps::new(
            world,
            control,
            journal.clone(),
            Arc::clone(&clock),
            policy.clone(),
            topology,
        );
        Self {
            group,
            journal,
            clock,
            policy,
            steps,
            crash,
        }
    }

    /// Executes the open plan to its end, or until it is stuck. On a log that is behind the world
    /// nothing is done or undone: a plan that looks open there may have ended long ago.
    pub async fn run(mut self) -> Result<(), JournalError> {
        while let Some(saga) = self.journal.state().open {
            if self.steps.log_is_behind().await {
                return Ok(());
            }
            match saga.next() {
                Next::Run { index, check_first } => {
                    let span = self.span(&saga, Some(index));
                    let step = self.step(&saga, index, check_first);
                    step.instrument(span).await?;
                }
                Next::Undo { index, undo } => {
                    let span = self.span(&saga, Some(index));
                    self.undo(&saga, index, undo).instrument(span).await?;
                }
                Next::End(ending) => {
                    let span = self.span(&saga, None);
                    self.end(&saga, ending).instrument(span).await?;
                }
                Next::Wait => return Ok(()),
            }
        }
        Ok(())
    }

    /// What every line that is logged meanwhile carries, whoever logs it. An error's, so that no
    /// filter that lets a line pass leaves it without.
    fn span(&self, saga: &OpenSaga, index: Option<usize>) -> Span {
        let step = index.and_then(|index| saga.plan.steps.get(index));
        tracing::error_span!(
            "plan",
            group = %self.group,
            plan_id = saga.id,
            epoch = saga.plan.route.epoch.0,
            step = step.map(tracing::field::display),
        )
    }

    async fn write(&self, saga: &OpenSaga, index: usize, event: Event) -> Result<(), JournalError> {
        let Some(step) = saga.plan.steps.get(index).cloned() else {
            return Ok(());
        };
        tracing::info!(event = event.name(), "step");
        self.journal
            .append(
                "controller",
                Body::Step {
                    plan: saga.id,
                    index,
                    step,
                    event,
                },
            )
            .await?;
        Ok(())
    }

    fn moment(&self, step: &Step, moment: Moment) {
        if let Some(crash) = &self.crash {
            crash.passed(step, moment);
        }
    }

    async fn step(
        &mut self,
        saga: &OpenSaga,
        index: usize,
        check_first: bool,
    ) -> Result<(), JournalError> {
        let Some((step, role)) = part(saga, index) else {
            return Ok(());
        };
        self.moment(step, Moment::BeforeStarted);
        self.write(saga, index, Event::Started).await?;
        self.moment(step, Moment::AfterStarted);
        let deadline = self.clock.now().plus(step.limit(&self.policy.steps));
        let attempt = self
            .attempt(saga, (step, role), check_first, deadline)
            .await;
        self.moment(step, Moment::AfterEffect);
        match (attempt, role) {
            (Attempt::Done(fact), _) => self.write(saga, index, Event::Done { fact }).await?,
            // Before the pivot everything can be taken back, also what may have happened in part.
            (Attempt::Failed(why) | Attempt::Unknown(why), Role::Before(_))
            | (Attempt::Failed(why), Role::Pivot) => {
                if self.steps.log_is_behind().await {
                    return Ok(());
                }
                self.write(saga, index, Event::Failed { why }).await?;
            }
            (Attempt::Unknown(why), Role::Pivot)
            | (Attempt::Failed(why) | Attempt::Unknown(why), Role::After(_)) => {
                let why = format!("{step}: {why}");
                self.write(saga, index, Event::Stuck { why: why.clone() })
                    .await?;
                self.end(saga, Ending::Stuck { why }).await?;
            }
        }
        self.moment(step, Moment::AfterOutcome);
        Ok(())
    }

    /// Retries a step until it is done, certainly cannot be, or its time is over. After an attempt
    /// with an unknown outcome, the actual state is checked before anything is repeated
    /// (invariants.md I4).
    async fn attempt(
        &mut self,
        saga: &OpenSaga,
        (step, role): (&Step, Role),
        check_first: bool,
        deadline: MonoTime,
    ) -> Attempt {
        let mut check = check_first;
        // Whether an attempt with an unknown outcome may still take effect.
        let mut doubt = check_first;
        let mut pause = FIRST_PAUSE;
        let mut last = LastError::default();
        let mut untold = Lasting::default();
        loop {
            let tried = if check {
                match self.steps.check(saga, step, deadline).await {
                    Ok(Some(fact)) => Ok(fact),
                    Ok(None) => self.steps.run(saga, step, deadline).await,
                    // The outcome is unknown: getting an answer, even a clear one, says nothing
                    // about the step.
                    Err(error @ EffectError::Late(_)) => Err(error),
                    Err(error) => Err(EffectError::Unknown(error.text().to_owned())),
                }
            } else {
                self.steps.run(saga, step, deadline).await
            };
            let error = match tried {
                Ok(fact) => return Attempt::Done(fact),
                Err(error) => error,
            };
            if let Some(lasting) = untold.again(error.text(), self.clock.now()) {
                tracing::warn!(%error, lasting.times, lasting.ms, "step not done yet");
            }
            let over = self.clock.now() >= deadline;
            last.note(&error, over);
            match error {
                EffectError::Refused(_) if !matches!(role, Role::After(_)) => {
                    return self.failed(saga, role, last.tell(), doubt).await;
                }
                EffectError::Unknown(_) | EffectError::Late(_) if over => {
                    return Attempt::Unknown(last.tell());
                }
                EffectError::Failed(_) | EffectError::Refused(_) | EffectError::Conflict(_)
                    if over =>
                {
                    return self.failed(saga, role, last.tell(), doubt).await;
                }
                EffectError::Unknown(_) | EffectError::Late(_) => (check, doubt) = (true, true),
                EffectError::Failed(_) | EffectError::Refused(_) | EffectError::Conflict(_) => {}
            }
            let left = self.clock.now().until(deadline);
            self.clock.sleep(pause.min(left)).await;
            pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
        }
    }

    /// A step failed. The pivot only once no earlier attempt can still succeed: what is taken back
    /// then lets the other site take writes.
    async fn failed(&self, saga: &OpenSaga, role: Role, why: String, doubt: bool) -> Attempt {
        if role != Role::Pivot || !doubt {
            return Attempt::Failed(why);
        }
        let deadline = self.clock.now().plus(LAST_WORD);
        let mut pause = FIRST_PAUSE;
        let mut last = LastError::default();
        let mut untold = Lasting::default();
        loop {
            let error = match self.steps.desist(saga, deadline).await {
                Ok(None) => return Attempt::Failed(why),
                Ok(Some(fact)) => return Attempt::Done(fact),
                Err(error) => error,
            };
            if let Some(lasting) = untold.again(error.text(), self.clock.now()) {
                tracing::warn!(%error, lasting.times, lasting.ms, "it may still come");
            }
            let over = self.clock.now() >= deadline;
            last.note(&error, over);
            if over {
                let last = last.tell();
                return Attempt::Unknown(format!("{why}; and it may still come: {last}"));
            }
            self.clock.sleep(pause).await;
            pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
        }
    }

    async fn undo(
        &mut self,
        saga: &OpenSaga,
        index: usize,
        undo: Undo,
    ) -> Result<(), JournalError> {
        let Some(step) = saga.plan.steps.get(index) else {
            return Ok(());
        };
        self.write(saga, index, Event::UndoStarted).await?;
        let deadline = self.clock.now().plus(step.limit(&self.policy.steps));
        let mut pause = FIRST_PAUSE;
        let mut last = LastError::default();
        let mut untold = Lasting::default();
        loop {
            let error = match self.steps.undo(saga, undo, deadline).await {
                Ok(()) => return self.write(saga, index, Event::Undone).await,
                Err(error) => error,
            };
            if let Some(lasting) = untold.again(error.text(), self.clock.now()) {
                tracing::warn!(%error, lasting.times, lasting.ms, "step not taken back yet");
            }
            let over = self.clock.now() >= deadline;
            last.note(&error, over);
            if over {
                return self.leave(saga, index, &last.tell()).await;
            }
            self.clock.sleep(pause).await;
            pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
        }
    }

    /// Whatever could not be undone in time is left, and named. Production already has its lease
    /// (`OpenSaga::gives_back_to`), so an open plan would only keep automation from acting.
    async fn leave(&self, saga: &OpenSaga, index: usize, error: &str) -> Result<(), JournalError> {
        let Some(step) = saga.plan.steps.get(index) else {
            return Ok(());
        };
        let why = error.to_string();
        let text = format!(
            "plan {}: {step} could not be undone: {why} (see runbooks/plan-undone.md)",
            saga.id
        );
        tracing::error!(%error, "left to be tidied up");
        self.journal.note("left-to-tidy-up", text).await?;
        self.write(saga, index, Event::Left { why }).await
    }

    async fn end(&self, saga: &OpenSaga, ending: Ending) -> Result<(), JournalError> {
        match &ending {
            Ending::Done => tracing::info!("plan done"),
            Ending::Undone { why } => tracing::warn!(%why, "plan undone"),
            Ending::Stuck { why } => tracing::error!(%why, "plan stuck"),
        }
        self.journal
            .append(
                "controller",
                Body::Outcome {
                    plan: saga.id,
                    ending,
                },
            )
            .await?;
        Ok(())
    }
}
