//! One process at a time has a log: a lock on the file itself, and one beside it that says who.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::{LogError, beside, io, open_file};
use crate::engine::text::clipped;

/// Locks the log's file, so that nobody opens it a second time by another name: a hard link, a
/// mount, a path whose `.lock` file somebody removed.
pub(super) fn lock_itself(path: &Path, file: &File) -> Result<(), LogError> {
    if locks(file) {
        return Ok(());
    }
    Err(held(path, file))
}

/// Locks a file, if nobody holds it. A process that is just being started by the one that held it
/// before holds it too, for the moment until its own program begins: so it is tried for a while.
fn locks(file: &File) -> bool {
    const TRIES: u32 = 20;
    const PAUSE: std::time::Duration = std::time::Duration::from_millis(10);
    for attempt in 1..=TRIES {
        if flock(file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return true;
        }
        if attempt < TRIES {
            #[expect(
                clippy::disallowed_methods,
                reason = "at the start, before anything else runs, and for 0.2 s in all"
            )]
            std::thread::sleep(PAUSE);
        }
    }
    false
}

/// Who holds a log: what stands beside it, or else what the kernel knows.
fn held(path: &Path, file: &File) -> LogError {
    let mut said = String::new();
    let beside = File::open(beside(path, ".lock"));
    let read = beside.and_then(|lock| lock.take(1000).read_to_string(&mut said));
    let holder = match read {
        Ok(_) if !said.trim().is_empty() => clipped(said.trim()),
        Ok(_) | Err(_) => locker(file).map_or_else(
            || "a process that did not say who it is".to_owned(),
            |pid| format!("pid {pid}, by another path or without its `.lock` file"),
        ),
    };
    LogError::Held {
        path: path.to_owned(),
        holder,
    }
}

/// The process that has a file locked, as `/proc/locks` says.
fn locker(file: &File) -> Option<String> {
    let inode = format!(":{}", file.metadata().ok()?.ino());
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let is_lock = words.next()? == "FLOCK" && words.nth(1)? == "WRITE";
        let pid = words.next()?;
        (is_lock && words.next()?.ends_with(&inode)).then(|| pid.to_owned())
    })
}

pub(super) fn take_lock(path: &Path, holder: &str) -> Result<File, LogError> {
    let lock_path = beside(path, ".lock");
    let mut lock = open_file(&lock_path)?;
    if !locks(&lock) {
        return Err(held(path, &lock));
    }
    lock.set_len(0)
        .map_err(|cause| io("write", &lock_path, cause))?;
    lock.write_all(holder.as_bytes())
        .map_err(|cause| io("write", &lock_path, cause))?;
    Ok(lock)
}
