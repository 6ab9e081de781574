//! The clocks of this machine, with a wall clock that can be wrong.

use std::time::Duration;

use async_trait::async_trait;
use failover::engine::units::{MonoTime, WallTime};
use failover::ports::Clock;
use rustix::time::{ClockId, Timespec, clock_gettime};

#[derive(Debug, Default)]
pub(crate) struct MachineClock {
    /// How far the wall clock is ahead of the real time.
    pub(crate) ahead: Duration,
}

fn since_start(read: Timespec) -> Duration {
    let seconds = u64::try_from(read.tv_sec).unwrap();
    Duration::new(seconds, u32::try_from(read.tv_nsec).unwrap())
}

#[async_trait]
impl Clock for MachineClock {
    fn now(&self) -> MonoTime {
        MonoTime(since_start(clock_gettime(ClockId::Boottime)))
    }

    fn wall(&self) -> WallTime {
        let now = since_start(clock_gettime(ClockId::Realtime)) + self.ahead;
        WallTime(u64::try_from(now.as_millis()).unwrap())
    }

    async fn sleep(&self, wait: Duration) {
        tokio::time::sleep(wait).await;
    }
}
