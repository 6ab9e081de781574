//! What can happen to a group, as its log records it: when, what, and what is impossible.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::command::Command;
use super::instance::InstanceChange;
use super::plan::{Misshapen, Plan};
use super::step::{Event, IllegalTransition};
use super::synchrony::WindowChange;
use super::units::{Epoch, WallTime, as_millis, millis};

/// When an entry was written, by both clocks of the machine that wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Moment {
    /// Wall-clock time.
    pub wall: WallTime,
    /// Milliseconds on that machine's monotonic clock since its boot.
    #[serde(rename = "mono_ms", with = "millis")]
    pub mono: Duration,
    /// Identifies that boot of that machine.
    pub boot: String,
}

impl Moment {
    /// How long ago it was, seen from `now`: by the monotonic clock, which nobody sets, if the
    /// machine has not rebooted since; otherwise by the wall clock.
    pub fn ago(&self, now: &Moment) -> Duration {
        if self.boot == now.boot {
            Duration::from_millis(as_millis(now.mono.saturating_sub(self.mono)))
        } else {
            now.wall.since(self.wall)
        }
    }
}

/// How a plan ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "outcome")]
pub enum Ending {
    /// Every step is done.
    Done,
    /// It failed before the pivot and was undone: the old site has its lease, and the steps' events
    /// name what could not be cleaned up.
    Undone {
        /// Why it failed.
        why: String,
    },
    /// It can go neither forward nor back without an operator.
    Stuck {
        /// Why it is stuck.
        why: String,
    },
}

/// What happened, as far as it affects the state of the group. The decision log carries these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happening<'e> {
    /// An operator's command was accepted.
    Commanded {
        /// The operator.
        operator: &'e str,
        /// The command.
        command: &'e Command,
    },
    /// A plan was opened.
    Planned(&'e Plan),
    /// A step of it changed.
    Stepped {
        /// The plan's number.
        plan: u64,
        /// The step's index.
        index: usize,
        /// What happened to the step.
        event: &'e Event,
    },
    /// The RPO window opened or closed.
    Windowed(&'e WindowChange),
    /// A site's lease and reports are those of one instance from here on.
    Named(&'e InstanceChange),
    /// A plan ended.
    Ended {
        /// The plan's number.
        plan: u64,
        /// How it ended.
        ending: &'e Ending,
    },
}

/// A log that records something impossible: it is not one of ours, or a rule was broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SagaError {
    /// There is one recovery at a time (invariants.md I8).
    #[error("plan {0} is opened while plan {1} is open")]
    SecondPlan(u64, u64),
    /// A plan that cannot be walked.
    #[error("plan {0} is none that can be walked: {1}")]
    Misshapen(u64, Misshapen),
    /// An entry about a plan that is not open.
    #[error("it is about plan {0}, which is not open")]
    NoSuchPlan(u64),
    /// An entry about a step that the plan does not have.
    #[error("it is about step {0}, which the plan does not have")]
    NoSuchStep(usize),
    /// A state change that a step cannot make.
    #[error(transparent)]
    Illegal(#[from] IllegalTransition),
    /// The window was opened during a plan, whose declared loss must stay true until its promotion.
    #[error("the RPO window is opened while plan {0} is open")]
    WindowInPlan(u64),
    /// A window was closed that is not open.
    #[error("the RPO window of entry {0} is closed, which is not open")]
    NoSuchWindow(u64),
    /// The plan's epoch does not follow the group's.
    #[error("the plan's epoch is {0}, but the group is in {1}")]
    EpochGap(Epoch, Epoch),
    /// An adopted epoch is not higher.
    #[error("epoch {0} is adopted, but the group is in {1}")]
    EpochBack(Epoch, Epoch),
}
