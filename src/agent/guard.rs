//! The guard: a small process that owns PostgreSQL and ends it when the right to take writes runs
//! out, whatever the agent is doing (DESIGN.md section 6).
//!
//! It has no network (its proof of a fence, a refused connection to its own port, apart), no async
//! runtime and no opinion: the agent says when to start, until when writes are allowed, and when
//! to fence. It never starts PostgreSQL by itself. When the guard dies, the kernel ends PostgreSQL
//! ([`postmaster::exec`]). What it cannot survive is being frozen itself: then nobody looks at the
//! deadline until it thaws; that is the one exception of invariant 1.
//!
//! The loop below is `run`; each turn looks at the deadline *before* it obeys a command, so that a
//! renewal that was waiting while we were frozen comes too late.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, WaitOptions, getpid, set_child_subreaper, setsid, wait};

use self::fence::Fence;
use self::postmaster::{Habitat, Postmaster};
use self::wire::{Ticket, Wire};
use super::guard_protocol::{
    Exit, FenceMarker, FenceMethod, FenceProof, GuardCommand, GuardConfig, GuardEvent, GuardReply,
    GuardStatus, Right, StartAs, boottime_ns,
};
use crate::engine::units::Epoch;

pub mod postmaster;
mod fence;
mod marker;
mod wire;

/// The longest the guard waits before it looks around.
const TICK: Duration = Duration::from_millis(100);
/// The same while it fences.
const FENCE_TICK: Duration = Duration::from_millis(10);

/// The cause of a fence by the deadline.
pub const LEASE_EXPIRED: &str = "lease-expired";
/// The cause of a fence of a standby that somebody promoted behind the agent's back.
pub const PROMOTED_WITHOUT_RIGHT: &str = "promoted-without-right";
/// The cause of a fence of what an earlier guard, which died, had started.
pub const ORPHANED: &str = "orphaned";

/// Why the guard does not start, or ends.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The settings are wrong.
    #[error("cannot use the guard's settings: {0}")]
    Config(String),
    /// Another guard runs.
    #[error("another guard holds `{0}`: use it, or end it first with the command `quit`")]
    Locked(String),
    /// PostgreSQL runs here and we did not start it.
    #[error(
        "a PostgreSQL that no guard started uses `{data_dir}` (processes {pids:?}): stop it first"
    )]
    Foreign {
        /// PGDATA.
        data_dir: String,
        /// Its processes.
        pids: Vec<i32>,
    },
    /// The system says no.
    #[error("cannot {what}: {cause}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The system's word.
        cause: io::Error,
    },
}

fn io_error<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> GuardError {
    move |cause| GuardError::Io {
        what,
        cause: cause.into(),
    }
}

/// Runs the guard with the settings in `config` until it is told to quit. An error ends it, and
/// with it, by the kernel, PostgreSQL.
pub fn run(config: &Path) -> Result<(), GuardError> {
    let text = fs::read(config).map_err(io_error("read the guard's settings"))?;
    let config: GuardConfig =
        serde_json::from_slice(&text).map_err(|cause| GuardError::Config(cause.to_string()))?;
    config.addresses().map_err(GuardError::Config)?;
    // Away from the agent's terminal and session, so that what ends the agent does not end us.
    // Fails when we lead a group already, which is as good.
    if let Err(cause) = setsid() {
        tracing::debug!(%cause, "own session already");
    }
    // Orphans of PostgreSQL become our children: found by descent, and reaped.
    set_child_subreaper(Some(getpid())).map_err(io_error("adopt orphans"))?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&config.state_dir)
        .map_err(io_error("create `state_dir`"))?;
    let _lock = lock(&config)?;
    let mut guard = Guard::new(config)?;
    while !guard.quit {
        guard
            .wire
            .wait(guard.postmaster.as_ref().map(|it| &it.fd), guard.patience())
            .map_err(io_error("wait"))?;
        guard.reap();
        guard.keep_time();
        for (ticket, command) in guard.wire.commands() {
            guard.keep_time();
            if let Some(reply) = guard.obey(ticket, command) {
                guard.wire.reply(ticket, reply);
            }
        }
        guard.wire.flush();
    }
    fs::remove_file(guard.config.socket()).map_err(io_error("remove the socket"))
}

/// Makes a second guard of the same state folder impossible; the kernel gives the lock back when we
/// die.
fn lock(config: &GuardConfig) -> Result<File, GuardError> {
    let path = config.state_dir.join("guard.lock");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(io_error("open the lock"))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_held| GuardError::Locked(path.display().to_string()))?;
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", getpid().as_raw_pid()))
        .map_err(io_error("write the lock"))?;
    Ok(file)
}

#[derive(Debug)]
struct Guard {
    config: GuardConfig,
    habitat: Habitat,
    wire: Wire,
    postmaster: Option<Postmaster>,
    started_as_standby: bool,
    right: Option<Right>,
    /// The highest seen.
    epoch: Epoch,
    marker: Option<FenceMarker>,
    fence: Option<Fence>,
    /// Who waits for a stop.
    stopping: Vec<Ticket>,
    last_proof: Option<FenceProof>,
    last_exit: Option<Exit>,
    quit: bool,
}

impl Guard {
    fn new(config: GuardConfig) -> Result<Self, GuardError> {
        let habitat = Habitat::new(&config);
        let left = habitat.processes().map_err(io_error("read `/proc`"))?;
        if !left.is_empty() && !postmaster::was_ours(&config) {
            return Err(GuardError::Foreign {
                data_dir: config.data_dir.display().to_string(),
                pids: left.into_keys().collect(),
            });
        }
        let marker = marker::read(&config.state_dir).map_err(io_error("read `fenced.json`"))?;
        let mut guard = Self {
            wire: Wire::listen(&config.socket()).map_err(io_error("listen"))?,
            habitat,
            postmaster: None,
            started_as_standby: false,
            right: None,
            epoch: marker.as_ref().map_or(Epoch(0), |marker| marker.epoch),
            marker,
            fence: None,
            stopping: Vec::new(),
            last_proof: None,
            last_exit: None,
            quit: false,
            config,
        };
        if !left.is_empty() {
            guard.begin_fence(ORPHANED, guard.epoch, None);
        }
        Ok(guard)
    }

    /// How long nothing needs to be looked at.
    fn patience(&self) -> Duration {
        if self.fence.is_some() {
            return FENCE_TICK;
        }
        self.right.map_or(TICK, |right| {
            TICK.min(Duration::from_nanos(
                right.deadline_ns.saturating_sub(boottime_ns()),
            ))
        })
    }

    /// Begins the fence that is due, or carries the one under way a bit further.
    fn keep_time(&mut self) {
        if self.fence.is_none() {
            match self.right {
                Some(right) if boottime_ns() >= right.deadline_ns => {
                    self.begin_fence(LEASE_EXPIRED, right.epoch, None);
                }
                None if self.postmaster.is_some() && !self.standby_signal() => {
                    self.begin_fence(PROMOTED_WITHOUT_RIGHT, self.epoch, None);
                }
                Some(_) | None => {}
            }
        }
        self.carry_on_fence();
    }

    /// Takes note of processes that ended. PostgreSQL is not started again: the agent decides.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if self.postmaster.as_ref().is_none_or(|it| it.pid != pid) {
                continue;
            }
            let exit = Exit {
                status: match (status.exit_status(), status.terminating_signal()) {
                    (Some(0), _) => Exit::CLEAN.to_owned(),
                    (Some(code), _) => format!("exit status {code}"),
                    (None, Some(signal)) => format!("signal {signal}"),
                    (None, None) => format!("status {status:?}"),
                },
                expected: self.fence.is_some() || !self.stopping.is_empty(),
            };
            tracing::info!(
                status = exit.status,
                expected = exit.expected,
                "PostgreSQL ended"
            );
            self.postmaster = None;
            // An orderly stop ends the right without a fence; after a crash it stays armed, since
            // sessions may outlive their first process.
            if exit.is_clean() && !self.stopping.is_empty() && self.fence.is_none() {
                self.right = None;
            }
            for ticket in std::mem::take(&mut self.stopping) {
                let status = exit.status.clone();
                self.wire.reply(ticket, GuardReply::Stopped { status });
            }
            self.wire.tell_all(&GuardEvent::Exited(exit.clone()));
            self.last_exit = Some(exit);
        }
    }

    /// Does what a command says. `None`: the reply comes later.
    fn obey(&mut self, ticket: Ticket, command: GuardCommand) -> Option<GuardReply> {
        let answer = match command {
            GuardCommand::Start { r#as } => self.start(r#as),
            GuardCommand::Right {
                epoch,
                deadline_ns,
                stop,
            } => {
                self.config.stop = stop;
                self.arm(Right { epoch, deadline_ns })
                    .map(GuardReply::Right)
            }
            GuardCommand::Renounce {} => self.renounce(),
            GuardCommand::Unfence { epoch } => self.unfence(epoch),
            GuardCommand::Quit {} => self.may_quit(),
            GuardCommand::Status {} => Ok(GuardReply::Status(Box::new(self.status()))),
            GuardCommand::Fence { cause, epoch } => {
                if epoch < self.epoch {
                    Err(format!(
                        "an order to fence epoch {epoch} is old: this is epoch {}",
                        self.epoch
                    ))
                } else {
                    self.epoch = epoch;
                    self.begin_fence(&cause, epoch, Some(ticket));
                    return None;
                }
            }
            GuardCommand::Stop {} => match &self.postmaster {
                Some(postmaster) => {
                    postmaster.signal(Signal::INT);
                    self.stopping.push(ticket);
                    return None;
                }
                None => Ok(GuardReply::Stopped {
                    status: "did not run".to_owned(),
                }),
            },
        };
        Some(answer.unwrap_or_else(|why| GuardReply::Refused { why }))
    }

    fn start(&mut self, role: StartAs) -> Result<GuardReply, String> {
        let standby = role == StartAs::Standby;
        if let Some(postmaster) = &self.postmaster {
            let pid = postmaster.pid.as_raw_pid();
            return if standby == self.started_as_standby && self.fence.is_none() {
                Ok(GuardReply::Started { pid })
            } else {
                Err(format!(
                    "PostgreSQL runs otherwise (process {pid}): stop it first"
                ))
            };
        }
        if self.fence.is_some() {
            return Err("a fence is under way: wait for its end".to_owned());
        }
        let left = self
            .habitat
            .processes()
            .map_err(|cause| cause.to_string())?;
        if !left.is_empty() {
            return Err(format!(
                "processes of an earlier run are still there ({:?}): fence first",
                left.into_keys().collect::<Vec<_>>()
            ));
        }
        match (role, self.standby_signal()) {
            (StartAs::Standby, false) => {
                return Err("`standby.signal` is absent: this would become a primary".to_owned());
            }
            (StartAs::Primary { .. }, true) => {
                return Err("`standby.signal` is there: this would become a standby".to_owned());
            }
            (StartAs::Standby, true) => self.right = None,
            (StartAs::Primary { epoch, deadline_ns }, false) => {
                self.arm(Right { epoch, deadline_ns })?;
            }
        }
        let started = Postmaster::start(&self.config)
            .map_err(|cause| format!("cannot start PostgreSQL: {cause}"))?;
        let pid = started.pid.as_raw_pid();
        tracing::info!(pid, standby, "PostgreSQL started");
        self.postmaster = Some(started);
        self.started_as_standby = standby;
        Ok(GuardReply::Started { pid })
    }

    /// The one way by which a right comes into being or grows.
    fn arm(&mut self, asked: Right) -> Result<Right, String> {
        if self.fence.is_some() {
            return Err("a fence is under way: the right is over".to_owned());
        }
        if asked.epoch < self.epoch {
            return Err(format!(
                "epoch {} is over: this is epoch {}",
                asked.epoch, self.epoch
            ));
        }
        if let Some(marker) = self.marker.as_ref().filter(|it| it.epoch >= asked.epoch) {
            return Err(format!(
                "fenced at epoch {} ({}): `unfence` with a newer right first",
                marker.epoch, marker.cause
            ));
        }
        if asked.deadline_ns <= boottime_ns() {
            return Err("the deadline has passed already: get a new lease first".to_owned());
        }
        let held = self.right.filter(|held| held.epoch == asked.epoch);
        let right = Right {
            epoch: asked.epoch,
            deadline_ns: held
                .map_or(0, |held| held.deadline_ns)
                .max(asked.deadline_ns),
        };
        self.epoch = asked.epoch;
        self.right = Some(right);
        Ok(right)
    }

    fn renounce(&mut self) -> Result<GuardReply, String> {
        if self.fence.is_some() {
            return Err("a fence is under way: wait for its end".to_owned());
        }
        if self.postmaster.is_some() && !self.standby_signal() {
            return Err("a primary runs: stop or fence it first".to_owned());
        }
        self.right = None;
        Ok(GuardReply::Done {})
    }

    fn unfence(&mut self, epoch: Epoch) -> Result<GuardReply, String> {
        if self.fence.is_some() {
            return Err("a fence is under way: wait for its end".to_owned());
        }
        if let Some(marker) = self.marker.as_ref().filter(|it| it.epoch > epoch) {
            return Err(format!(
                "fenced at epoch {}: epoch {epoch} cannot lift that",
                marker.epoch
            ));
        }
        marker::remove(&self.config.state_dir)
            .map_err(|cause| format!("cannot remove `fenced.json`: {cause}"))?;
        self.marker = None;
        Ok(GuardReply::Done {})
    }

    fn may_quit(&mut self) -> Result<GuardReply, String> {
        if self.postmaster.is_some() || self.fence.is_some() {
            return Err("PostgreSQL runs, or is being fenced: stop it first".to_owned());
        }
        self.quit = true;
        Ok(GuardReply::Done {})
    }

    fn status(&self) -> GuardStatus {
        let postmaster_pid = self
            .postmaster
            .as_ref()
            .map(|it| it.pid)
            .map(Pid::as_raw_pid);
        GuardStatus {
            guard_pid: getpid().as_raw_pid(),
            postmaster_pid,
            started_as_standby: postmaster_pid.map(|_| self.started_as_standby),
            right: self.right,
            epoch: self.epoch,
            fencing: self.fence.is_some(),
            marker: self.marker.clone(),
            last_proof: self.last_proof.clone(),
            last_exit: self.last_exit.clone(),
            config: self.config.clone(),
        }
    }

    fn standby_signal(&self) -> bool {
        self.config.data_dir.join("standby.signal").exists()
    }
}
