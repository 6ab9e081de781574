//! The promises that are watched, by name, and what one that did not hold looks like. Those of
//! `docs/invariants.md` that are not here have no checker of their own: the page says what shows them.

use std::fmt;

use super::machine::Truth;
use crate::engine::chain::Broken;
use crate::engine::saga::SagaError;

/// What must always be so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// No two sites acknowledge writes in overlapping time (invariants.md I1, I13).
    OneWriter,
    /// A promotion happens only when the old primary cannot write (invariants.md I2).
    FenceBeforePromote,
    /// `Started` is durable before the effect, the outcome is written after it (invariants.md I3).
    WriteAhead,
    /// What is lost lies inside the declared window (invariants.md I5).
    DeclaredLoss,
    /// A site that is well and seen by its peer is not failed over; an isolated controller holds
    /// (invariants.md I6).
    AbsenceOfEvidence,
    /// What concerns only us condemns nobody (invariants.md I14).
    OwnTrouble,
    /// A site is not made active for being well again (invariants.md I7).
    NoAutomaticReturn,
    /// One plan at a time, and none by automation that is disarmed (invariants.md I8).
    OneRecovery,
    /// A traffic answer names one site, which is not fenced (invariants.md I9).
    ForbiddenAnswer,
    /// Epochs only grow (invariants.md I10).
    EpochMonotone,
    /// A logged decision replays (invariants.md I11).
    SameDecision,
    /// The log verifies (invariants.md I12).
    LogVerifies,
    /// A site is fenced only in an epoch that the log has: nobody else's word moves a right
    /// (invariants.md I18).
    SignedWords,
    /// We never stop production by our own hand: a promotion with a right is not fenced for the lack of
    /// one (invariants.md I17).
    OwnHand,
    /// What is seen now outweighs what was said before (invariants.md I15).
    SeenNow,
    /// A lost site is replaced within the policy's worst case, and a healthy pair is left alone
    /// (invariants.md I19).
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
