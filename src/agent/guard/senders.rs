//! WAL senders at the end of a fast shutdown. PostgreSQL ends its sessions, writes its last
//! checkpoint, and then waits until each standby has confirmed all of it: a standby that is cut off
//! never does, and a stop that needs 50 ms lasts until it is escalated (postgres.md P35).

use std::fs;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::postmaster::{Processes, parent_of};

/// How long a connected standby may take to confirm the last WAL once every session has ended:
/// several round trips across an ocean.
pub(super) const CONFIRMED_WITHIN: Duration = Duration::from_millis(150);

/// The processes that PostgreSQL keeps for its last checkpoint, by their titles. None of them
/// acknowledges a write.
const LAST: [&str; 7] = [
    "checkpointer",
    "walsender",
    "archiver",
    "logger",
    "stats collector",
    "io worker",
    "walsummarizer",
];

/// Whether a process with this title is one of those.
fn is_of_the_last(title: &str) -> bool {
    LAST.iter().any(|name| title.contains(name))
}

/// The senders of a server that shuts down, once every session has ended.
pub(super) fn left_alone(first: Pid, seen: &Processes) -> Vec<i32> {
    let parent = first.as_raw_pid();
    let children = seen.keys().filter(|pid| parent_of(**pid) == Some(parent));
    let titled: Vec<(i32, String)> = children.map(|pid| (*pid, title(*pid))).collect();
    if !titled.iter().all(|(_, title)| is_of_the_last(title)) {
        return Vec::new();
    }
    let senders = titled
        .into_iter()
        .filter(|(_, title)| title.contains("walsender"));
    senders.map(|(pid, _)| pid).collect()
}

/// Ends senders. The shutdown stays clean; a standby that lacks the rest fetches it when the
/// database runs again, or as part of a rewind.
pub(super) fn hang_up(first: Pid, senders: &[i32]) {
    for pid in senders {
        let handle = Pid::from_raw(*pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        // Its parent is checked after the handle is opened: a reused pid is spared.
        let handle = handle.filter(|_| parent_of(*pid) == Some(first.as_raw_pid()));
        if let Some(handle) = handle
            && let Err(cause) = pidfd_send_signal(handle, Signal::TERM)
        {
            tracing::debug!(%cause, "a sender was gone already");
        }
    }
}

/// A process's command line; empty if it has ended.
fn title(pid: i32) -> String {
    let title = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&title).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_told_from_what_is_there_until_the_end() {
        for title in [
            "postgres: aws: checkpointer ",
            "postgres: walsender replicator 127.0.0.1(42) streaming 0/3000148",
            "postgres: io worker 0",
        ] {
            assert!(is_of_the_last(title), "{title}");
        }
        for title in [
            "postgres: aws: app app 127.0.0.1(42) idle",
            "postgres: walwriter ",
            "postgres: autovacuum launcher ",
            "",
        ] {
            assert!(!is_of_the_last(title), "{title}");
        }
    }
}
