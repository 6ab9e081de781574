//! This machine's two clocks.

use std::time::Duration;

use async_trait::async_trait;
use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::engine::units::{MonoTime, WallTime, as_millis};
use crate::ports::Clock;

/// The clocks of the kernel: `CLOCK_BOOTTIME`, which goes on while the machine is suspended (a
/// lease must not look younger after a pause), and `CLOCK_REALTIME`.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

#[async_trait]
impl Clock for SystemClock {
    fn now(&self) -> MonoTime {
        MonoTime(duration(clock_gettime(ClockId::Boottime)))
    }

    fn wall(&self) -> WallTime {
        WallTime(as_millis(duration(clock_gettime(ClockId::Realtime))))
    }

    async fn sleep(&self, wait: Duration) {
        tokio::time::sleep(wait).await;
    }
}

/// Zero where the clock shows a time before its own beginning, which only a wall clock set to
/// before 1970 does.
fn duration(read: Timespec) -> Duration {
    let seconds = u64::try_from(read.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(read.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wait_passes_on_the_monotonic_clock_and_the_wall_clock_is_past_2020() {
        let began = SystemClock.now();
        SystemClock.sleep(Duration::from_millis(20)).await;
        assert!(SystemClock.now().since(began) >= Duration::from_millis(20));
        assert!(SystemClock.wall() > WallTime(1_577_836_800_000));
    }
}
