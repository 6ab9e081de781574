//! Walks an open plan, one journaled step at a time: write that it begins, do it, check it, write
//! what came of it. What the saga says is next is done next; nothing else is remembered, so that
//! a new process goes on where the last one was killed.

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
use crate::engine::policy::Policy;
use crate::engine::saga::{Ending, Next, OpenSaga};
use crate::engine::step::{Event, Fact, Kind, Step};
use crate::engine::topology::{GroupName, Topology};
use crate::engine::units::MonoTime;
use crate::ports::{Agents, Clock, EffectError, FrontDoor, LastError, Probe, Traffic};

/// Everything outside that a step may touch.
#[derive(Debug)]
pub struct World {
    /// The way to the agents.
    pub agents: Arc<dyn Agents>,
    /// To look at a target directly.
    pub probe: Arc<dyn Probe>,
    /// The traffic targets, in the order in which they are moved.
    pub traffic: Vec<Arc<dyn Traffic>>,
    /// The way users enter, if one is configured.
    pub front: Option<Arc<dyn FrontDoor>>,
    /// Whether this controller may act.
    pub leadership: Leadership,
    /// Where to end this process, for drills of a crash.
    pub crash: Option<Arc<dyn CrashDrill>>,
}

/// A moment between two writes of the log at which a crash must do no harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// Before `Started` is written.
    BeforeStarted,
    /// `Started` is durable, the effect has not begun.
    AfterStarted,
    /// The effect has happened, and nothing is written of it.
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

/// Ends the process at a moment of a step (`failover run --crash-at`), so that a drill can show
/// that the plan goes on after it.
pub trait CrashDrill: Send + Sync + fmt::Debug {
    /// Does not return if this is the moment.
    fn passed(&self, step: &Step, moment: Moment);
}

/// How long to wait before trying a step again: short at first, because most of what we wait for
/// takes milliseconds.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How long a site is asked, at the end of the pivot's time, for its word that it will not come.
const LAST_WORD: Duration = Duration::from_secs(10);

/// Walks one plan.
#[derive(Debug)]
pub struct Executor {
    group: GroupName,
    journal: Journal,
    clock: Arc<dyn Clock>,
    policy: Policy,
    steps: Steps,
    crash: Option<Arc<dyn CrashDrill>>,
}

/// What came of a step, as far as is known at the end of its time.
enum Attempt {
    Done(Fact),
    /// It certainly did not happen.
    Failed(String),
    /// Nobody knows.
    Unknown(String),
}

impl Executor {
    /// An executor that has not begun.
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

    /// Walks the open plan to its end, or until it is stuck. By a log that is behind the world nothing
    /// is done, and nothing is taken back: what it has for a plan under way may be over long since.
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
                Next::Undo { index } => {
                    let span = self.span(&saga, Some(index));
                    self.undo(&saga, index).instrument(span).await?;
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
        let Some(step) = saga.plan.steps.get(index) else {
            return Ok(());
        };
        self.moment(step, Moment::BeforeStarted);
        self.write(saga, index, Event::Started).await?;
        self.moment(step, Moment::AfterStarted);
        let deadline = self.clock.now().plus(step.limit(&self.policy.steps));
        let attempt = self.attempt(saga, step, check_first, deadline).await;
        self.moment(step, Moment::AfterEffect);
        match (attempt, step.kind()) {
            (Attempt::Done(fact), _) => self.write(saga, index, Event::Done { fact }).await?,
            // Before the pivot everything can be taken back, also what may have happened in part.
            (Attempt::Failed(why) | Attempt::Unknown(why), Kind::Check | Kind::Undoable)
            | (Attempt::Failed(why), Kind::Pivot) => {
                if self.steps.log_is_behind().await {
                    return Ok(());
                }
                self.write(saga, index, Event::Failed { why }).await?;
            }
            (Attempt::Unknown(why), Kind::Pivot)
            | (Attempt::Failed(why) | Attempt::Unknown(why), Kind::Forward) => {
                let why = format!("{step}: {why}");
                self.write(saga, index, Event::Stuck { why: why.clone() })
                    .await?;
                self.end(saga, Ending::Stuck { why }).await?;
            }
        }
        self.moment(step, Moment::AfterOutcome);
        Ok(())
    }

    /// Tries a step until it is done, certainly cannot be, or its time is over. After an attempt
    /// whose outcome is not known the world is asked before anything is repeated (invariants.md I4).
    async fn attempt(
        &mut self,
        saga: &OpenSaga,
        step: &Step,
        check_first: bool,
        deadline: MonoTime,
    ) -> Attempt {
        let mut check = check_first;
        // Whether an attempt of which nobody knows the outcome may still come to something.
        let mut doubt = check_first;
        let mut pause = FIRST_PAUSE;
        let mut last = LastError::default();
        let mut untold = Lasting::default();
        loop {
            let tried = if check {
                match self.steps.check(saga, step, deadline).await {
                    Ok(Some(fact)) => Ok(fact),
                    Ok(None) => self.steps.run(saga, step, deadline).await,
                    // Nobody knows whether it is done: that an answer came, and a clear one, says
                    // nothing of the step.
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
                EffectError::Refused(_) if step.kind() != Kind::Forward => {
                    return self.failed(saga, step, last.tell(), doubt).await;
                }
                EffectError::Unknown(_) | EffectError::Late(_) if over => {
                    return Attempt::Unknown(last.tell());
                }
                EffectError::Failed(_) | EffectError::Refused(_) | EffectError::Conflict(_)
                    if over =>
                {
                    return self.failed(saga, step, last.tell(), doubt).await;
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
    async fn failed(&self, saga: &OpenSaga, step: &Step, why: String, doubt: bool) -> Attempt {
        if step.kind() != Kind::Pivot || !doubt {
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

    async fn undo(&mut self, saga: &OpenSaga, index: usize) -> Result<(), JournalError> {
        let Some(step) = saga.plan.steps.get(index) else {
            return Ok(());
        };
        self.write(saga, index, Event::UndoStarted).await?;
        let deadline = self.clock.now().plus(step.limit(&self.policy.steps));
        let mut pause = FIRST_PAUSE;
        let mut last = LastError::default();
        let mut untold = Lasting::default();
        loop {
            let error = match self.steps.undo(saga, step, deadline).await {
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

    /// What could not be taken back in its time is left, and named. Production has its right already
    /// (`OpenSaga::gives_back_to`), so that an open plan would only keep automation from acting.
    async fn leave(&self, saga: &OpenSaga, index: usize, error: &str) -> Result<(), JournalError> {
        let Some(step) = saga.plan.steps.get(index) else {
            return Ok(());
        };
        let why = error.to_string();
        let text = format!(
            "plan {}: {step} could not be taken back: {why} (see runbooks/plan-undone.md)",
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
