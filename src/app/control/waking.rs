//! When the control loop wakes up: at once for whatever arrives, and otherwise when something of
//! what it does has its time.

use std::future;
use std::time::Duration;

use tokio::task::{JoinError, JoinHandle};

use super::{Control, Input};
use crate::app::journal::JournalError;
use crate::engine::provenance::LOG_PATIENCE;
use crate::engine::situation::Situation;
use crate::engine::units::MonoTime;
use crate::tasks::outcome;

/// How old what is shown gets if nothing arrives. This also bounds the delay with which a change of
/// the wall clock is noticed, of which nobody tells.
pub(super) const SHOWN_EVERY: Duration = Duration::from_secs(1);

/// How much longer than a probe may take the process may be away before everything begins anew.
const SLACK: Duration = Duration::from_millis(25);

/// The end of the executor: what it returned, or that it broke.
pub(super) type ExecutorEnd = Result<Result<(), JournalError>, JoinError>;

/// What woke the loop.
#[derive(Debug)]
pub(super) enum Woken {
    /// An input.
    Input(Box<Input>),
    /// The executor ended.
    Executor(ExecutorEnd),
    /// Something that must be looked at: an entry is durable, or the log is delayed.
    Changed,
    /// Something has its time.
    Due,
    /// Nothing: only time passed.
    Beat,
}

/// Waits for the end of the executor.
async fn ended(executor: &mut Option<JoinHandle<Result<(), JournalError>>>) -> ExecutorEnd {
    match executor {
        Some(running) => outcome(running).await,
        None => future::pending().await,
    }
}

impl Control {
    /// Sleeps until something arrives or has its time; and for a beat at most.
    pub(super) async fn woken(&mut self) -> Result<Woken, JournalError> {
        let now = self.clock.now();
        let due = self.desk.due(now).into_iter().fold(self.due, MonoTime::min);
        let pause = now.until(due).min(self.beat());
        tokio::select! {
            biased;
            (then, written) = self.desk.written() => {
                self.go_on(then, written)?;
                Ok(Woken::Changed)
            }
            ended = ended(&mut self.executor) => {
                self.executor = None;
                Ok(Woken::Executor(ended))
            }
            Some(input) = self.inputs.recv() => Ok(Woken::Input(Box::new(input))),
            Ok(()) = self.view.changed() => Ok(Woken::Changed),
            Ok(()) = self.delay.changed() => Ok(Woken::Changed),
            () = self.clock.sleep(pause) => {
                let due = self.clock.now() >= due;
                Ok(if due { Woken::Due } else { Woken::Beat })
            }
        }
    }

    /// How often the loop makes sure that it runs. A standstill that is longer than a probe may take
    /// is then longer than any sleep, and no sleep is taken for one.
    fn beat(&self) -> Duration {
        let beat = self.brain.policy().detect.probe_timeout.checked_div(4);
        beat.unwrap_or(SLACK).max(SLACK)
    }

    /// A process that stood still for longer than a probe may take only knows the past: it starts
    /// over, as after a restart. A site that was failing then may be healthy now.
    pub(super) fn begin_anew_after_a_standstill(&mut self) {
        let now = self.clock.now();
        let stood_still = now.since(std::mem::replace(&mut self.went_round, now));
        let probe_timeout = self.brain.policy().detect.probe_timeout;
        if stood_still > probe_timeout.saturating_add(SLACK) {
            tracing::warn!(?stood_still, "stood still: every window begins anew");
            self.brain.begin_anew(now);
            self.due = now;
        }
    }

    /// Sets when to decide again on a situation that was assembled just now, if nothing arrives.
    pub(super) fn decide_again(&mut self, situation: &Situation) {
        let now = self.clock.now();
        let shown = now.plus(SHOWN_EVERY);
        let horizon = self.brain.horizon(situation, now);
        let horizon = horizon.map(|left| now.plus(left));
        let lead = self.world.leadership.left().ok();
        let lead = lead.map(|left| now.plus(left));
        let delay = self.journal.delay();
        let delay = delay.filter(|delay| delay.worth_a_word(now).is_none());
        let delay = delay.map(|delay| delay.since.plus(LOG_PATIENCE));
        let moments = [horizon, lead, delay].into_iter().flatten();
        self.due = moments.fold(shown, MonoTime::min);
    }

    /// Has it decided again at this moment at the latest.
    pub(super) fn decide_by(&mut self, moment: MonoTime) {
        self.due = self.due.min(moment);
    }
}
