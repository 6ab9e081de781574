//! The promises that are watched, by name, and what one that did not hold looks like.

use std::fmt;

use super::machine::Truth;
use crate::engine::chain::Broken;
use crate::engine::saga::SagaError;

/// What must always be so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// 1: no two sites acknowledge writes in overlapping time.
    OneWriter,
    /// 2: a promotion happens only when the old primary cannot write.
    FenceBeforePromote,
    /// 3: `Started` is durable before the effect, the outcome is written after it.
    WriteAhead,
    /// 5: what is lost lies inside the declared window.
    DeclaredLoss,
    /// 6: a site that is well and seen by its peer is not failed over; an isolated controller holds.
    AbsenceOfEvidence,
    /// 14: what concerns only us condemns nobody.
    OwnTrouble,
    /// 7: a site is not made active for being well again.
    NoAutomaticReturn,
    /// 8: one plan at a time, and none by automation that is disarmed.
    OneRecovery,
    /// 9: a traffic answer names one site, which is not fenced.
    ForbiddenAnswer,
    /// 10: epochs only grow.
    EpochMonotone,
    /// 11: a logged decision replays.
    SameDecision,
    /// 12: the log verifies.
    LogVerifies,
    /// A site is fenced only in an epoch that the log has: nobody else's word moves a right.
    SignedWords,
    /// 17: we never stop production by our own hand: a promotion with a right is not fenced for the lack of one.
    OwnHand,
    /// 15: what is seen now outweighs what was said before.
    SeenNow,
    /// A lost site is replaced within the policy's worst case, and a healthy pair is left alone.
    Liveness,
}

impl Invariant {
    /// Which one a line breaks that does not follow on its log.
    pub fn broken_by(line: &Broken) -> Self {
        if matches!(line, Broken::Saga(SagaError::SecondPlan(..))) {
            Invariant::OneRecovery
        } else {
            Invariant::LogVerifies
        }
    }
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Invariant::OneWriter => "one-writer",
            Invariant::FenceBeforePromote => "fence-before-promote",
            Invariant::WriteAhead => "write-ahead",
            Invariant::DeclaredLoss => "declared-loss",
            Invariant::AbsenceOfEvidence => "absence-of-evidence",
            Invariant::OwnTrouble => "own-trouble-condemns-nobody",
            Invariant::NoAutomaticReturn => "no-automatic-return",
            Invariant::OneRecovery => "one-recovery-at-a-time",
            Invariant::ForbiddenAnswer => "never-a-forbidden-answer",
            Invariant::EpochMonotone => "epoch-monotone",
            Invariant::SameDecision => "same-decision",
            Invariant::LogVerifies => "log-verifies",
            Invariant::SignedWords => "signed-words",
            Invariant::OwnHand => "own-hand",
            Invariant::SeenNow => "seen-now",
            Invariant::Liveness => "liveness",
        })
    }
}

/// An invariant that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub invariant: Invariant,
    /// When.
    pub at: Truth,
    /// What was seen.
    pub what: String,
}
