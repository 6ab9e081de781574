//! What can happen to a group, as its log tells it: when, what, and what is impossible.

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
    /// By the wall clock.
    pub wall: WallTime,
    /// By the monotonic clock of that machine, since its start.
    #[serde(rename = "mono_ms", with = "millis")]
    pub mono: Duration,
    /// Which start of which machine.
    pub boot: String,
}

impl Moment {
    /// How long ago it was, seen from `now`: by the monotonic clock, which nobody sets, as long as the
    /// machine has run since; else there is only the wall clock.
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
    /// It failed before the pivot, and was taken back: the old site has its right, and what could not be
    /// tidied up is named by the steps' events.
    Undone {
        /// Why it failed.
        why: String,
    },
    /// It can go neither forward nor back without a person.
    Stuck {
        /// Why.
        why: String,
    },
}

/// What happened, as far as the state of the group is concerned. The decision log carries these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happening<'e> {
    /// A person's command was accepted.
    Commanded {
        /// Who.
        operator: &'e str,
        /// What.
        command: &'e Command,
    },
    /// A plan was opened.
    Planned(&'e Plan),
    /// A step of it changed.
    Stepped {
        /// The plan.
        plan: u64,
        /// The step's index.
        index: usize,
        /// What happened to it.
        event: &'e Event,
    },
    /// The RPO window opened or closed.
    Windowed(&'e WindowChange),
    /// A site's right and word are those of one instance.
    Named(&'e InstanceChange),
    /// It ended.
    Ended {
        /// The plan.
        plan: u64,
        /// How.
        ending: &'e Ending,
    },
}

/// A log that tells something impossible: it is not one of ours, or a rule was broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SagaError {
    /// There is one recovery at a time (invariants.md I8).
    #[error("plan {0} is opened while plan {1} is open")]
    SecondPlan(u64, u64),
    /// A plan that cannot be walked.
    #[error("plan {0} is none that can be walked: {1}")]
    Misshapen(u64, Misshapen),
    /// About a plan that is not open.
    #[error("it is about plan {0}, which is not open")]
    NoSuchPlan(u64),
    /// About a step that the plan does not have.
    #[error("it is about step {0}, which the plan does not have")]
    NoSuchStep(usize),
    /// A step cannot change like this.
    #[error(transparent)]
    Illegal(#[from] IllegalTransition),
    /// A plan declared what may be lost: until its promotion that must stay true.
    #[error("the RPO window is opened while plan {0} is open")]
    WindowInPlan(u64),
    /// About a window that is not open.
    #[error("the RPO window of entry {0} is closed, which is not open")]
    NoSuchWindow(u64),
    /// The plan's epoch does not follow on the group's.
    #[error("the plan's epoch is {0}, but the group is in {1}")]
    EpochGap(Epoch, Epoch),
    /// An epoch only grows.
    #[error("epoch {0} is adopted, but the group is in {1}")]
    EpochBack(Epoch, Epoch),
}
