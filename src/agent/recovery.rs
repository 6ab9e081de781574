//! Distinguishes a database that recovers after a crash from a dead one: by its progress
//! (postgres.md P15).

use crate::engine::situation::LocalDatabase;
use crate::engine::units::MonoTime;

/// The CPU time of the recovering processes, in kernel ticks: the one that replays, and the one
/// that writes the final checkpoint. It grows as long as either does something. A stopped process,
/// or one that waits for a hanging disk, uses none. Others do not count: the postmaster forks for
/// every connection attempt, including our own probes.
pub(super) fn work_of(postmaster: i32) -> u64 {
    let children = format!("/proc/{postmaster}/task/{postmaster}/children");
    let children = std::fs::read_to_string(children).unwrap_or_default();
    let recovers = |pid: &&str| {
        let title = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let title = String::from_utf8_lossy(&title);
        ["startup", "checkpointer"]
            .iter()
            .any(|name| title.contains(name))
    };
    let all = children.split_whitespace().filter(recovers);
    // One that ended meanwhile is ignored.
    let stat = |pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    let ticks = all.filter_map(|pid| ticks(&stat(pid)?));
    ticks.fold(0, u64::saturating_add)
}

/// User and system time in a line of `/proc/PID/stat`. The name before may contain spaces and
/// brackets.
fn ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

/// A recovery under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Recovery {
    /// Since when the database has not served.
    pub(super) since: MonoTime,
    work: u64,
    advanced: MonoTime,
}

impl Recovery {
    /// The state after a check, given the state before.
    pub(super) fn seen(before: Option<Self>, since: MonoTime, work: u64, now: MonoTime) -> Self {
        match before {
            Some(last) if last.work == work => last,
            Some(last) => Self {
                work,
                advanced: now,
                ..last
            },
            None => Self {
                since,
                work,
                advanced: now,
            },
        }
    }

    pub(super) fn shown(&self, now: MonoTime) -> LocalDatabase {
        LocalDatabase::Recovering {
            since: now.since(self.since),
            still: now.since(self.advanced),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn processor_time_is_read_behind_whatever_name_a_process_has() {
        let line = "7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 12 30 0 0 20 0 1 0 5 6 7";
        assert_eq!(ticks(line), Some(42));
        assert_eq!(ticks("7 (cut"), None);
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(work_of(own), 0, "nothing of ours recovers");
    }

    #[test]
    fn a_recovery_counts_from_the_crash_and_stands_still_from_its_last_work() {
        let at = |seconds| MonoTime(Duration::from_secs(seconds));
        let first = Recovery::seen(None, at(10), 5, at(12));
        let works = Recovery::seen(Some(first), at(13), 6, at(13));
        let still = Recovery::seen(Some(works), at(20), 6, at(20));
        let LocalDatabase::Recovering { since, still } = still.shown(at(21)) else {
            panic!("it recovers");
        };
        assert_eq!((since.as_secs(), still.as_secs()), (11, 8));
    }
}
