//! One condition before acting: checked, with what was measured against which limit.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::reason::Reason;

/// One condition, checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gate {
    /// Whether it lets a failover pass.
    pub open: bool,
    /// What was measured against which limit.
    pub reason: Reason,
}

pub(super) fn gate(open: bool, reason: Reason) -> Gate {
    Gate { open, reason }
}

/// An age that may be endless, as a reason shows it.
pub(super) fn at_most_a_day(age: Duration) -> Duration {
    age.min(Duration::from_secs(86_400))
}
