//! One unit of a plan: the kinds of steps, what each guarantees, and how its state changes.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::lease::FenceProof;
use super::loss::{DeclaredLoss, LossEvidence};
use super::policy::StepLimits;
use super::receipt::Receipt;
use super::text::{WORD_LIMIT, clip, clip_to};
use super::topology::{SiteName, TargetName};
use super::units::{Epoch, Lsn, Timeline};

/// What a step does. Whether it is the pivot of a plan, and what becomes of it when it fails, follows
/// from where it stands in the plan: `plan.rs`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "step")]
pub enum Step {
    /// Checks every gate again, with fresh evidence.
    Recheck,
    /// Raises the epoch: nobody is granted the right to write until the pivot.
    RaiseEpoch,
    /// Starts the workloads at the new site without waiting.
    StartWorkloads,
    /// Cuts the standby from the old primary's WAL and tells the old primary that it is
    /// superseded.
    Sever,
    /// Makes certain that the old primary accepts no write.
    Fence,
    /// Declares the window that may be lost, and holds it against the limits.
    Freeze,
    /// Makes the standby primary.
    Promote,
    /// Sees the new primary take a write and reads it back.
    VerifyWritable,
    /// Waits until the workloads answer.
    AwaitWorkloads,
    /// Moves one traffic target.
    MoveTraffic {
        /// The traffic target.
        target: TargetName,
    },
    /// Sees the result from outside.
    VerifyOutside,
    /// Disarms automation, and puts down what is left to do.
    Settle,
}

/// How a step that was begun is taken back when its plan is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reversal {
    /// It need not be.
    Needless,
    /// By this.
    By(Undo),
    /// It cannot be.
    Impossible,
}

/// What takes a step back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undo {
    /// The workloads of the new site are stopped again.
    StopWorkloads,
    /// The standby is connected to the old primary again.
    Reconnect,
    /// The old primary may start again.
    Unfence,
}

impl Step {
    /// How it is taken back.
    pub fn reversal(&self) -> Reversal {
        match self {
            // They change nothing outside; and an epoch only grows: who gives the plan up gives the
            // right in the new epoch back to the old site.
            Step::Recheck
            | Step::RaiseEpoch
            | Step::Freeze
            | Step::VerifyWritable
            | Step::AwaitWorkloads
            | Step::VerifyOutside => Reversal::Needless,
            Step::StartWorkloads => Reversal::By(Undo::StopWorkloads),
            Step::Sever => Reversal::By(Undo::Reconnect),
            Step::Fence => Reversal::By(Undo::Unfence),
            Step::Promote | Step::MoveTraffic { .. } | Step::Settle => Reversal::Impossible,
        }
    }

    /// Whether it proves that the old primary accepts no write.
    pub fn proves_fence(&self) -> bool {
        *self == Step::Fence
    }

    /// How long it may take before it has failed (before the pivot) or is stuck (after it).
    pub fn limit(&self, limits: &StepLimits) -> Duration {
        match self {
            Step::Fence => limits.fence,
            Step::Promote => limits.promote,
            Step::AwaitWorkloads => limits.workloads,
            Step::MoveTraffic { .. } => limits.traffic,
            Step::VerifyOutside => limits.verify,
            Step::Recheck
            | Step::RaiseEpoch
            | Step::StartWorkloads
            | Step::Sever
            | Step::Freeze
            | Step::VerifyWritable
            | Step::Settle => limits.other,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Recheck => f.pad("recheck"),
            Step::RaiseEpoch => f.pad("raise-epoch"),
            Step::StartWorkloads => f.pad("start-workloads"),
            Step::Sever => f.pad("sever"),
            Step::Fence => f.pad("fence"),
            Step::Freeze => f.pad("freeze"),
            Step::Promote => f.pad("promote"),
            Step::VerifyWritable => f.pad("verify-writable"),
            Step::AwaitWorkloads => f.pad("await-workloads"),
            Step::MoveTraffic { target } => write!(f, "move-traffic {target}"),
            Step::VerifyOutside => f.pad("verify-outside"),
            Step::Settle => f.pad("settle"),
        }
    }
}

/// A step's result: evidence, and what later steps rely on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "what")]
pub enum Fact {
    /// No further details.
    Done,
    /// The epoch was raised.
    Epoch {
        /// The new epoch.
        epoch: Epoch,
    },
    /// The standby is cut off.
    Severed {
        /// The position that it had received by then.
        position: Lsn,
        /// Whether it has replayed all of it.
        replayed: bool,
    },
    /// The old primary cannot write.
    Fenced {
        /// The proof.
        proof: FenceProof,
    },
    /// What may be lost.
    Declared {
        /// The window.
        loss: DeclaredLoss,
        /// What it follows from; the log of an earlier program does not say so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        evidence: Option<Box<LossEvidence>>,
    },
    /// The standby is primary.
    Promoted {
        /// Its new timeline.
        timeline: Timeline,
        /// Where it begins.
        position: Lsn,
        /// Whether it already was when the step began.
        already: bool,
    },
    /// A traffic target was moved.
    Moved {
        /// Whether it already led to the new site.
        already: bool,
        /// What its system answered to the write; `None` where that was lost, or nothing was
        /// written.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        receipt: Option<Receipt>,
    },
    /// A traffic target is unreachable while others still wait: they go first, and it is moved
    /// before the result is verified.
    NotMoved {
        /// Why it was not moved.
        why: String,
    },
    /// The result seen from outside, place by place.
    Seen {
        /// Each place and the site that it leads to.
        places: BTreeMap<String, String>,
        /// Places that showed nothing, and why.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        unseen: BTreeMap<String, String>,
        /// What was written only now, by target, and what its system answered.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        receipts: BTreeMap<TargetName, Receipt>,
        /// What the system of each target said meanwhile of the change: evidence, not a condition.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        confirmed: BTreeMap<TargetName, String>,
    },
}

impl Fact {
    fn clip(&mut self) {
        match self {
            Fact::Fenced {
                proof: FenceProof::Agent { said, .. } | FenceProof::Infrastructure { said, .. },
            } => clip(said),
            Fact::NotMoved { why } => clip(why),
            Fact::Moved {
                receipt: Some(receipt),
                ..
            } => receipt.clip(),
            Fact::Seen {
                places,
                unseen,
                receipts,
                confirmed,
            } => {
                receipts.values_mut().for_each(Receipt::clip);
                confirmed.values_mut().for_each(clip);
                for places in [places, unseen] {
                    let kept = std::mem::take(places).into_iter().take(PLACES_KEPT);
                    *places = kept
                        .map(|(mut place, mut seen)| {
                            clip_to(&mut place, WORD_LIMIT);
                            clip(&mut seen);
                            (place, seen)
                        })
                        .collect();
                }
            }
            Fact::Fenced {
                proof: FenceProof::WaitedOut { .. } | FenceProof::Override { .. },
            }
            | Fact::Done
            | Fact::Epoch { .. }
            | Fact::Severed { .. }
            | Fact::Declared { .. }
            | Fact::Promoted { .. }
            | Fact::Moved { receipt: None, .. } => {}
        }
    }
}

/// What happened to a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum Event {
    /// It begins. Durable before its effect (invariants.md I3).
    Started,
    /// What was there before the infrastructure of the old site is told to change it. Durable before
    /// that, so that whoever takes the plan back knows what to give back.
    Found {
        /// In the infrastructure's own form.
        before: String,
        /// What the infrastructure calls the machine that held the right.
        machine: String,
    },
    /// It is done and verified.
    Done {
        /// The result.
        fact: Fact,
    },
    /// It certainly did not happen.
    Failed {
        /// The error.
        why: String,
    },
    /// Its undo begins.
    UndoStarted,
    /// It is undone.
    Undone,
    /// It could not be undone: an operator or the site itself must clean up. The old site had its
    /// lease back before.
    Left {
        /// The error.
        why: String,
    },
    /// It could not be done.
    Stuck {
        /// The error.
        why: String,
    },
}

/// How many places of the outside check are kept: name servers and addresses.
const PLACES_KEPT: usize = 64;

impl Event {
    /// Bounds the texts that come from outside.
    pub fn clip(&mut self) {
        match self {
            Event::Failed { why } | Event::Left { why } | Event::Stuck { why } => clip(why),
            Event::Done { fact } => fact.clip(),
            // Cut, what was there could not be given back.
            Event::Found { .. } | Event::Started | Event::UndoStarted | Event::Undone => {}
        }
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Event::Started => "started",
            Event::Found { .. } => "found",
            Event::Done { .. } => "done",
            Event::Failed { .. } => "failed",
            Event::UndoStarted => "undo-started",
            Event::Undone => "undone",
            Event::Left { .. } => "left",
            Event::Stuck { .. } => "stuck",
        }
    }
}

/// The state of a step.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum StepState {
    /// Not begun.
    #[default]
    Pending,
    /// Begun: whether its effect happened is not known from the log.
    Started,
    /// Done.
    Done {
        /// The result.
        fact: Fact,
    },
    /// It did not happen.
    Failed {
        /// The error.
        why: String,
    },
    /// Being undone.
    Undoing,
    /// Undone.
    Undone,
    /// Not undone: something is left to clean up.
    Left {
        /// The error.
        why: String,
    },
    /// An operator is needed.
    Stuck {
        /// The error.
        why: String,
    },
}

/// An event that is impossible in a state: the log is not one of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a step that is {state} cannot become {event}")]
pub struct IllegalTransition {
    state: &'static str,
    event: &'static str,
}

impl StepState {
    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            StepState::Pending => "pending",
            StepState::Started => "started",
            StepState::Done { .. } => "done",
            StepState::Failed { .. } => "failed",
            StepState::Undoing => "undoing",
            StepState::Undone => "undone",
            StepState::Left { .. } => "left",
            StepState::Stuck { .. } => "stuck",
        }
    }

    /// The state after an event. Total: every pair that is not listed is illegal.
    pub fn on(&self, event: &Event) -> Result<StepState, IllegalTransition> {
        match (self, event) {
            // A started step that is started again was found not done after a crash; a stuck one is
            // tried again on an operator's request.
            (
                StepState::Pending
                | StepState::Started
                | StepState::Failed { .. }
                | StepState::Stuck { .. },
                Event::Started,
            )
            | (StepState::Started, Event::Found { .. }) => Ok(StepState::Started),
            (StepState::Started, Event::Done { fact }) => {
                Ok(StepState::Done { fact: fact.clone() })
            }
            (StepState::Started, Event::Failed { why }) => {
                Ok(StepState::Failed { why: why.clone() })
            }
            // A failed step is undone too: it may have happened in part.
            (
                StepState::Done { .. }
                | StepState::Failed { .. }
                | StepState::Started
                | StepState::Undoing
                | StepState::Stuck { .. },
                Event::UndoStarted,
            ) => Ok(StepState::Undoing),
            (StepState::Undoing, Event::Undone) => Ok(StepState::Undone),
            (StepState::Undoing, Event::Left { why }) => Ok(StepState::Left { why: why.clone() }),
            // In logs of earlier versions, a step that was being undone could get stuck.
            (
                StepState::Started | StepState::Failed { .. } | StepState::Undoing,
                Event::Stuck { why },
            ) => Ok(StepState::Stuck { why: why.clone() }),
            (state, event) => Err(IllegalTransition {
                state: state.name(),
                event: event.name(),
            }),
        }
    }
}

/// The sites and the epoch of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The site that loses the write lease.
    pub from: SiteName,
    /// The site that gets it.
    pub to: SiteName,
    /// The epoch in which it will hold it.
    pub epoch: Epoch,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_listed_changes_of_state_are_legal() {
        let why = || String::from("x");
        let states = [
            StepState::Pending,
            StepState::Started,
            StepState::Done { fact: Fact::Done },
            StepState::Failed { why: why() },
            StepState::Undoing,
            StepState::Undone,
            StepState::Left { why: why() },
            StepState::Stuck { why: why() },
        ];
        let events = [
            Event::Started,
            Event::Done { fact: Fact::Done },
            Event::Failed { why: why() },
            Event::UndoStarted,
            Event::Undone,
            Event::Left { why: why() },
            Event::Stuck { why: why() },
        ];
        let table: Vec<String> = states
            .iter()
            .map(|state| {
                let to = |event| match state.on(event) {
                    Ok(next) => next.name(),
                    Err(_) => "-",
                };
                format!(
                    "{}: {}",
                    state.name(),
                    events.iter().map(to).collect::<Vec<_>>().join(" ")
                )
            })
            .collect();
        assert_eq!(
            table,
            [
                "pending: started - - - - - -",
                "started: started done failed undoing - - stuck",
                "done: - - - undoing - - -",
                "failed: started - - undoing - - stuck",
                "undoing: - - - undoing undone left stuck",
                "undone: - - - - - - -",
                "left: - - - - - - -",
                "stuck: started - - undoing - - -",
            ]
        );
    }
}
