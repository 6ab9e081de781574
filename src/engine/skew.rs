//! How far two wall clocks are apart. None of our rules depends on them, but external systems do: a
//! name server rejects a TSIG key, a cloud a signature, and either side a certificate when a clock
//! is some minutes off. So the skew is measured all the time and reported long before that.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::document::human;
use super::units::{WallTime, as_millis, millis};

/// How far clocks may differ before it is reported: a fifth of the 300 s that TSIG and cloud
/// signatures tolerate.
pub const LIMIT: Duration = Duration::from_mins(1);

/// How far another wall clock is from ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skew {
    /// By how many milliseconds it is ahead of ours; negative if it is behind.
    pub ahead_ms: i64,
    /// The uncertainty in either direction: the transit times of the messages are unknown.
    #[serde(rename = "within_ms", with = "millis")]
    pub within: Duration,
}

impl Skew {
    /// The skew, if another clock showed `theirs` at most `way` before ours showed `ours`.
    pub fn measured(theirs: WallTime, ours: WallTime, way: Duration) -> Self {
        // Whole milliseconds, because that is how it is recorded and replayed.
        let half = Duration::from_millis(as_millis(way).div_ceil(2));
        let read = ours.minus(half);
        let signed = |millis: u64| i64::try_from(millis).unwrap_or(i64::MAX);
        Self {
            ahead_ms: signed(theirs.0).saturating_sub(signed(read.0)),
            within: half,
        }
    }

    /// The least by which the clocks differ.
    pub fn at_least(self) -> Duration {
        let apart = Duration::from_millis(self.ahead_ms.unsigned_abs());
        apart.saturating_sub(self.within)
    }
}

impl fmt::Display for Skew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let apart = Duration::from_millis(self.ahead_ms.unsigned_abs());
        let ms = as_millis(apart);
        // No finer than it is measured.
        let whole = if ms < 10_000 {
            ms
        } else {
            ms.saturating_sub(ms % 1000)
        };
        let side = if self.ahead_ms < 0 { "behind" } else { "ahead" };
        write!(f, "{} {side}", human(Duration::from_millis(whole)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_way_may_have_taken_does_not_count_as_skew() {
        let at = |ms: u64| WallTime(1_790_000_000_000 + ms);
        let way = Duration::from_millis(400);
        for (theirs, ours, ahead, least) in [
            (0, 400, -200, 0),
            (0, 0, 200, 0),
            (10_000, 0, 10_200, 10_000),
            (0, 10_400, -10_200, 10_000),
        ] {
            let skew = Skew::measured(at(theirs), at(ours), way);
            assert_eq!(skew.ahead_ms, ahead);
            assert_eq!(skew.at_least(), Duration::from_millis(least));
        }
        let last = Skew::measured(WallTime(u64::MAX), WallTime(0), way);
        assert!(last.at_least() > LIMIT);
        assert_eq!(
            Skew::measured(at(0), at(10_800_123), way).to_string(),
            "2h 59m 59s behind"
        );
    }
}
