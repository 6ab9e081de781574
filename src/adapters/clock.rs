//! This machine's two clocks.

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use async_trait::async_trait;
use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::engine::units::{MonoTime, WallTime, as_millis};
use crate::ports::Clock;

/// Names a file that says by how many milliseconds the wall clock is moved (`-60000`): how the lab and
/// tests have clocks that are wrong, and step. It is read each time, and moves nothing where it is not
/// there. No file of settings knows it, because nobody wants it in production.
pub const LAB_CLOCK: &str = "FAILOVER_LAB_CLOCK";

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
        let real = as_millis(duration(clock_gettime(ClockId::Realtime)));
        WallTime(real.saturating_add_signed(moved()))
    }

    async fn sleep(&self, wait: Duration) {
        tokio::time::sleep(wait).await;
    }
}

/// By how much the lab moves the wall clock.
fn moved() -> i64 {
    static FILE: LazyLock<Option<PathBuf>> =
        LazyLock::new(|| std::env::var_os(LAB_CLOCK).map(PathBuf::from));
    let text = FILE
        .as_ref()
        .and_then(|path| std::fs::read_to_string(path).ok());
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
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
