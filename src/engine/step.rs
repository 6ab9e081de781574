//! One unit of a plan: what kinds there are, what each promises, and how its state changes.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::lease::FenceProof;
use super::policy::StepLimits;
use super::receipt::Receipt;
use super::text::{WORD_LIMIT, clip, clip_to};
use super::topology::{SiteName, TargetName};
use super::units::{Bytes, Epoch, Lsn, Timeline, WallTime, millis};

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "step")]
pub enum Step {
    /// Checks every gate again, with fresh evidence. No undo: it changes nothing.
    Recheck,
    /// Raises the epoch: nobody is granted the right to write until the pivot. No undo: an epoch
    /// only grows; undoing the plan gives the right in the new epoch back to the old site.
    RaiseEpoch,
    /// Starts the workloads at the new site without waiting. Undo: they are stopped again.
    StartWorkloads,
    /// Cuts the standby from the old primary's WAL and tells the old primary that it is
    /// superseded. Undo: the standby is connected again.
    Sever,
    /// Makes certain that the old primary accepts no write. Undo: it may start again.
    Fence,
    /// Declares the window that may be lost, and holds it against the limits. No undo: it changes
    /// nothing.
    Freeze,
    /// Makes the standby primary. The pivot: from here there is only forward.
    Promote,
    /// Sees the new primary take a write and reads it back. Retried.
    VerifyWritable,
    /// Waits until the workloads answer. Retried.
    AwaitWorkloads,
    /// Moves one traffic target. Retried.
    MoveTraffic {
        /// Which.
        target: TargetName,
    },
    /// Sees the result from outside. Retried.
    VerifyOutside,
    /// Disarms automation, and puts down what is left to do. Retried.
    Settle,
}

/// How a step may be taken back or repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Changes nothing outside: nothing to undo.
    Check,
    /// Has an undo.
    Undoable,
    /// The step after which there is only forward.
    Pivot,
    /// After the pivot: repeated until it succeeds or its deadline passes.
    Forward,
}

impl Step {
    /// How it may be taken back or repeated.
    pub fn kind(&self) -> Kind {
        match self {
            Step::Recheck | Step::RaiseEpoch | Step::Freeze => Kind::Check,
            Step::StartWorkloads | Step::Sever | Step::Fence => Kind::Undoable,
            Step::Promote => Kind::Pivot,
            Step::VerifyWritable
            | Step::AwaitWorkloads
            | Step::MoveTraffic { .. }
            | Step::VerifyOutside
            | Step::Settle => Kind::Forward,
        }
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

/// What a step found out or brought about: evidence, and what later steps rest on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "what")]
pub enum Fact {
    /// Nothing to tell.
    Done,
    /// The epoch was raised.
    Epoch {
        /// To this.
        epoch: Epoch,
    },
    /// The standby is cut off.
    Severed {
        /// What it had received by then.
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
    },
    /// The standby is primary.
    Promoted {
        /// Its new timeline.
        timeline: Timeline,
        /// Where it begins.
        position: Lsn,
        /// Whether it already was, when the step came to it.
        already: bool,
    },
    /// A traffic target was moved.
    Moved {
        /// Whether it already answered so.
        already: bool,
        /// What its system answered to the write; `None` where that was lost, or nothing was
        /// written.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        receipt: Option<Receipt>,
    },
    /// A traffic target is out of reach, and others wait: they go first, and it is moved before
    /// the result is looked at.
    NotMoved {
        /// Why.
        why: String,
    },
    /// What was seen from outside, place by place.
    Seen {
        /// Place and what it showed.
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
                proof: FenceProof::Agent { said, .. },
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

/// The window of writes that an unplanned failover may lose, stated before the promotion
/// (invariants.md I5). No acknowledged write outside it is ever lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeclaredLoss {
    /// The standby has everything up to here.
    pub from_lsn: Lsn,
    /// Whatever was acknowledged before this moment is safe; `None` where the old primary's
    /// position was never seen, so that nothing can be said.
    pub from: Option<WallTime>,
    /// After this moment the old side has acknowledged nothing.
    pub until: WallTime,
    /// How long the window is.
    #[serde(rename = "window_ms", with = "millis::option")]
    pub window: Option<Duration>,
    /// An estimate of what it holds, in bytes of WAL.
    pub estimate: Option<Bytes>,
    /// How old the last knowledge of the old primary's position was.
    #[serde(rename = "knowledge_ms", with = "millis::option")]
    pub knowledge: Option<Duration>,
    /// Certainly nothing is lost: every commit waited for the standby.
    pub nothing: bool,
}

/// What happened to a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum Event {
    /// It begins. Durable before its effect (invariants.md I3).
    Started,
    /// It is done and verified.
    Done {
        /// What it brought.
        fact: Fact,
    },
    /// It certainly did not happen.
    Failed {
        /// Why.
        why: String,
    },
    /// Taking it back begins.
    UndoStarted,
    /// It is taken back.
    Undone,
    /// It could not be taken back: something is left, that a person or the site itself tidies up. The
    /// right to take writes was given back before.
    Left {
        /// Why.
        why: String,
    },
    /// It could not be done.
    Stuck {
        /// Why.
        why: String,
    },
}

/// How many places are kept of what was seen from outside: name servers and addresses.
const PLACES_KEPT: usize = 64;

impl Event {
    /// Cuts what others said to what is kept of it.
    pub fn clip(&mut self) {
        match self {
            Event::Failed { why } | Event::Left { why } | Event::Stuck { why } => clip(why),
            Event::Done { fact } => fact.clip(),
            Event::Started | Event::UndoStarted | Event::Undone => {}
        }
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Event::Started => "started",
            Event::Done { .. } => "done",
            Event::Failed { .. } => "failed",
            Event::UndoStarted => "undo-started",
            Event::Undone => "undone",
            Event::Left { .. } => "left",
            Event::Stuck { .. } => "stuck",
        }
    }
}

/// Where a step stands.
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
        /// What it brought.
        fact: Fact,
    },
    /// It did not happen.
    Failed {
        /// Why.
        why: String,
    },
    /// Being taken back.
    Undoing,
    /// Taken back.
    Undone,
    /// Not taken back: something is left to tidy up.
    Left {
        /// Why.
        why: String,
    },
    /// A person is needed.
    Stuck {
        /// Why.
        why: String,
    },
}

/// An event that cannot follow on a state: the log is not one of ours.
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
            // A started step that is started again was checked after a crash and found not done;
            // a stuck one is tried again by a person.
            (
                StepState::Pending
                | StepState::Started
                | StepState::Failed { .. }
                | StepState::Stuck { .. },
                Event::Started,
            ) => Ok(StepState::Started),
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
            // A step that was being taken back got stuck in logs of earlier versions.
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

/// A step of a plan leads here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The site that loses the right to take writes.
    pub from: SiteName,
    /// The one that gets it.
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
