//! One condition before acting: whether it holds, and the measured value and limit.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::reason::Reason;

/// One condition before a failover: a gate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gate {
    /// Whether it is open, so that a failover may pass.
    pub open: bool,
    /// The measured value and its limit.
    pub reason: Reason,
}

pub(super) fn gate(open: bool, reason: Reason) -> Gate {
    Gate { open, reason }
}

/// An age as a reason shows it; an unbounded one is capped.
pub(super) fn at_most_a_day(age: Duration) -> Duration {
    age.min(Duration::from_secs(86_400))
}
