//! What runs, what would be started, and what is there that the guard did not start.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use super::control_file::ControlFile;
use super::postmaster::{self, Processes};
use super::{FOREIGN, Guard};
use crate::engine::topology::Role;

/// How long a standby's file must be missing before it is restored: a promotion that removes it
/// shows in the control file long before.
const SIGNAL_MISSED: Duration = Duration::from_secs(1);

impl Guard {
    /// The running role. A server that was started without `standby.signal` is a primary until it
    /// ends, whatever files appear. One that was started as a standby is a standby until it has
    /// written to its control file that it takes writes.
    pub(super) fn runs_as(&self) -> Option<Role> {
        // One that has ended and is not reaped yet runs no more.
        self.postmaster.as_ref().filter(|it| it.is_alive())?;
        Some(if self.started_as_standby && !self.promoted {
            Role::Standby
        } else {
            Role::Primary
        })
    }

    /// The role in which PostgreSQL would start, as the lookout saw it last; or why it must not be
    /// started.
    pub(super) fn starts_as(&self) -> Option<Result<Role, String>> {
        let sighting = self.lookout.now()?;
        if self.postmaster.is_some() {
            return Some(sighting.files_say.clone());
        }
        Some(may_start(&sighting.files_say, sighting.control.as_ref()))
    }

    /// Handles what the lookout saw: a promotion, a standby that lost its file, and servers that
    /// are not ours. Those are ended, unless ours runs at the same time: PostgreSQL prevents two
    /// servers in one data folder, and production is not stopped for what cannot be.
    pub(super) fn look_out(&mut self) {
        self.lookout.take_in();
        self.promoted |= self.was_promoted();
        if self.has_lost_its_file() {
            let pid = self.postmaster.as_ref().map(|it| it.pid);
            self.lookout.put_back_signal_of(pid);
        }
        let strangers = self.strangers();
        if !strangers.is_empty() && self.postmaster.is_none() && self.fence.is_none() {
            let pids: Vec<i32> = strangers.into_keys().collect();
            tracing::error!(
                ?pids,
                "PostgreSQL was started by somebody else: it is ended"
            );
            self.begin_fence(FOREIGN, self.epoch, None);
        }
    }

    fn was_promoted(&self) -> bool {
        if self.postmaster.is_none() || !self.started_as_standby {
            return false;
        }
        let Some(sighting) = self.lookout.now() else {
            return false;
        };
        if !sighting.is_after(self.started_ns) {
            return false;
        }
        match &sighting.control {
            Some(control) => {
                // Written by its earlier run, or by the primary that it is a copy of.
                let written = Some(control) != self.control_at_start.as_ref();
                written && control.says_production()
            }
            // A promotion removes the file before the first write (postgres.md P13).
            None => sighting.files_say == Ok(Role::Primary),
        }
    }

    /// Whether a standby runs without its file. PostgreSQL cannot be promoted then: it tries to
    /// remove the file, does not find it, and ends. With a lease armed, a promotion may be under
    /// way.
    fn has_lost_its_file(&self) -> bool {
        let sighting = self.lookout.now();
        self.right.is_none()
            && self.fence.is_none()
            && self.is_seen_in_recovery()
            && sighting.is_some_and(|it| it.without_signal_for >= SIGNAL_MISSED)
    }

    /// Whether the guard sees, right now, that the running server is a standby.
    pub(super) fn is_seen_in_recovery(&self) -> bool {
        let fresh = self.lookout.now().filter(|it| it.is_after(self.started_ns));
        let control = fresh.and_then(|sighting| sighting.control.as_ref());
        self.started_as_standby && !self.promoted && control.is_some()
    }

    /// Servers in the data folder that we did not start.
    pub(super) fn strangers(&self) -> Processes {
        let seen = self.lookout.now();
        let mut strangers = seen.map(|it| it.strangers.clone()).unwrap_or_default();
        if let Some(postmaster) = &self.postmaster {
            strangers.remove(&postmaster.pid.as_raw_pid());
        }
        strangers.retain(|pid, start| postmaster::is_alive(*pid, *start));
        strangers
    }

    /// What is there but not ours, for people.
    pub(super) fn foreign(&self) -> Option<String> {
        let data = self.config.data_dir.display();
        let strangers = self.strangers();
        let servers = strangers.keys().map(|pid| {
            let program = postmaster::program_of(*pid);
            format!("process {pid} (`{program}`)")
        });
        let servers: Vec<String> = servers.take(3).collect();
        if !servers.is_empty() {
            let servers = servers.join(", ");
            return Some(format!(
                "{servers} runs PostgreSQL in `{data}`, and the guard did not start it"
            ));
        }
        if self.postmaster.is_some() {
            return None;
        }
        let listener = self.lookout.now()?.listener.as_ref()?;
        Some(format!(
            "`{listener}` takes connections, and no server that the guard sees in `{data}` does: \
             it cannot end what this is"
        ))
    }
}

/// The role in which PostgreSQL may be started, given its files and its control file. A standby
/// that lost its file would go on as a primary on the timeline of the one that it followed: two
/// histories with one name. Only a promotion makes a standby a primary, and the control file shows
/// what it was (postgres.md P12).
pub(super) fn may_start(
    files_say: &Result<Role, String>,
    control: Option<&ControlFile>,
) -> Result<Role, String> {
    match files_say {
        Ok(Role::Primary) if control.is_some_and(ControlFile::says_following) => Err(
            "this was a standby when it ended, and `standby.signal` is gone: without it, it would \
             go on as a primary on the other site's timeline: put the file back"
                .to_owned(),
        ),
        said => said.clone(),
    }
}

/// The role in which PostgreSQL would start, by its files, which count only at a start (postgres.md
/// P13); or why it must not be started. May hang with the disk.
pub(super) fn files_say(data_dir: &Path) -> Result<Role, String> {
    let there = |name: &str| match fs::metadata(data_dir.join(name)) {
        Ok(_) => Ok(true),
        Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(false),
        Err(cause) => Err(format!("cannot see whether `{name}` is there: {cause}")),
    };
    // With both files, PostgreSQL uses this one.
    if there("standby.signal")? {
        return Ok(Role::Standby);
    }
    if there("recovery.signal")? {
        return Err(
            "`recovery.signal` is there: PostgreSQL would recover to a point in time and begin a \
             timeline that no standby follows: remove it, or recover with the agent stopped"
                .to_owned(),
        );
    }
    Ok(Role::Primary)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_start_follows_from_the_files_as_postgresql_reads_them() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        assert_eq!(files_say(folder.path()), Ok(Role::Primary));
        fs::write(file("recovery.signal"), "").unwrap();
        let why = files_say(folder.path()).unwrap_err();
        assert!(why.contains("point in time"), "{why}");
        fs::write(file("standby.signal"), "").unwrap();
        assert_eq!(files_say(folder.path()), Ok(Role::Standby));
        // PostgreSQL asks for its existence, not for what is in it.
        fs::remove_file(file("standby.signal")).unwrap();
        fs::create_dir(file("standby.signal")).unwrap();
        assert_eq!(files_say(folder.path()), Ok(Role::Standby));
        fs::remove_dir(file("standby.signal")).unwrap();
        // A link that leads in a circle says neither yes nor no.
        std::os::unix::fs::symlink("standby.signal", file("standby.signal")).unwrap();
        assert!(files_say(folder.path()).unwrap_err().contains("cannot see"));
    }
}
