//! What the clocks of a place show.

use std::time::Duration;

use super::machine::Truth;
use crate::engine::units::{MonoTime, WallTime, as_millis};

/// What a place's clock shows.
#[derive(Debug, Clone, Copy)]
pub struct Skew {
    /// How much it runs fast, in millionths.
    pub ppm: i64,
    /// How far its wall clock is ahead, in milliseconds.
    pub wall_ms: i64,
}

/// The first moment on every wall clock: a day in 2026.
const WALL: u64 = 1_790_000_000_000;
/// The first moment on every monotonic clock.
const BOOT: Duration = Duration::from_secs(100_000);

fn scaled(duration: Duration, millionths: i64) -> Duration {
    let nanos = i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX);
    let scaled = nanos.saturating_mul(i128::from(millionths)) / 1_000_000;
    Duration::from_nanos(u64::try_from(scaled).unwrap_or(0))
}

impl Skew {
    /// The monotonic clock.
    pub fn mono(self, truth: Truth) -> MonoTime {
        MonoTime(BOOT.saturating_add(scaled(truth, 1_000_000 + self.ppm)))
    }

    /// When the monotonic clock shows this.
    pub fn truth(self, mono: MonoTime) -> Truth {
        self.lasting(mono.0.saturating_sub(BOOT))
    }

    /// How long something really lasts that lasts so long by this clock.
    pub fn lasting(self, shown: Duration) -> Duration {
        let nanos = i128::try_from(shown.as_nanos()).unwrap_or(i128::MAX);
        let truth = nanos.saturating_mul(1_000_000) / i128::from(1_000_000 + self.ppm);
        Duration::from_nanos(u64::try_from(truth).unwrap_or(0))
    }

    /// The wall clock.
    pub fn wall(self, truth: Truth) -> WallTime {
        let passed = as_millis(scaled(truth, 1_000_000 + self.ppm));
        WallTime(
            WALL.saturating_add(passed)
                .saturating_add_signed(self.wall_ms),
        )
    }
}
