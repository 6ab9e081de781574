//! Ends the process that receives WAL. PostgreSQL ends it by itself only after everything received
//! is replayed, and no SQL function reaches it (postgres.md P26).

use std::fs;
use std::io;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Ends a WAL receiver, which then acknowledges nothing any more. The server keeps running.
///
/// The handle is opened before the title is read (postgres.md P15), so that a pid reused in between is
/// never hit.
pub(super) fn end(pid: i32) -> io::Result<()> {
    let found = Pid::from_raw(pid).ok_or_else(|| io::Error::other("no process has this pid"))?;
    let handle = pidfd_open(found, PidfdFlags::empty())?;
    let title = fs::read(format!("/proc/{pid}/cmdline"))?;
    if !String::from_utf8_lossy(&title).contains("walreceiver") {
        return Err(io::Error::other(format!(
            "process {pid} is no WAL receiver"
        )));
    }
    Ok(pidfd_send_signal(&handle, Signal::TERM)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_receives_no_wal_is_left_alone() {
        let refused = end(rustix::process::getpid().as_raw_pid()).unwrap_err();
        assert!(refused.to_string().contains("is no WAL receiver"));
    }
}
