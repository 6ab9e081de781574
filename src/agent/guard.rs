//! The guard: a small process that owns PostgreSQL and ends it when the write lease expires,
//! whatever the agent is doing (invariants.md I1).
//!
//! It has no network (except to prove a fence by a refused connection to its own port), no async
//! runtime and no judgement: the agent says when to start, until when writes are allowed, and when
//! to fence. It never starts PostgreSQL by itself. When the guard dies, the kernel ends PostgreSQL
//! ([`postmaster::exec`]). What it cannot survive is being frozen itself: then nothing checks the
//! deadline until it resumes, which is an exception that the invariant names.
//!
//! The loop below is `run`; each turn checks the deadline *before* it obeys a command, so that a
//! renewal that waited while we were frozen is too late.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::process::{
    Pid, Signal, WaitOptions, geteuid, getpid, getpriority_process, set_child_subreaper,
    setpriority_process, setsid, wait,
};

use self::control_file::ControlFile;
use self::fence::Fence;
use self::lookout::Lookout;
use self::postmaster::{Habitat, Postmaster, Processes};
use self::standing::{files_say, may_start};
use self::wire::{Ticket, Wire};
use super::guard_protocol::{
    Exit, FenceMarker, FenceMethod, FenceProof, GuardCommand, GuardConfig, GuardEvent, GuardReply,
    GuardStatus, PROTOCOL, Right, StartAs, boottime_ns,
};
use super::own_files;
use crate::engine::format::WrittenBy;
use crate::engine::topology::Role;
use crate::engine::units::Epoch;
use crate::wire::written::Written;

pub mod postmaster;
mod control_file;
mod fence;
mod lookout;
mod marker;
mod right;
mod senders;
mod standing;
mod wire;

/// The longest that the guard waits between two checks.
const TICK: Duration = Duration::from_millis(100);
/// The same while no server of its own runs: one that somebody else starts takes writes some 50 ms
/// after it has claimed the data folder.
const IDLE_TICK: Duration = Duration::from_millis(20);
/// The same while it fences.
const FENCE_TICK: Duration = Duration::from_millis(10);

/// If a check comes later than planned, or later than a deadline, by more than this, the guard
/// stood still: another site may take writes by now. Less than this happens to any process on a
/// busy machine.
const LATE: Duration = Duration::from_millis(500);

/// The guard's priority: the highest that is not real-time.
const FIRST: i32 = -20;

/// The cause of a fence by the deadline.
pub const LEASE_EXPIRED: &str = "lease-expired";
/// The cause of a fence of a standby that was promoted without the agent.
pub const PROMOTED_WITHOUT_RIGHT: &str = "promoted-without-right";
/// The cause of a fence of what an earlier guard, now dead, had started.
pub const ORPHANED: &str = "orphaned";
/// The cause of a fence of a server in the data folder that the guard did not start.
pub const FOREIGN: &str = "started-by-somebody-else";

/// Why the guard does not start, or ends.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The settings are wrong.
    #[error("cannot use the guard's settings: {0}")]
    Config(String),
    /// Another guard runs.
    #[error("another guard holds `{0}`: the agents of this `state_dir` use that one")]
    Locked(String),
    /// A running PostgreSQL was never handed over to a guard of this state folder.
    #[error(
        "a PostgreSQL that no guard started uses `{data_dir}` (processes {pids:?}): stop it first, \
         and keep the system from starting it"
    )]
    Foreign {
        /// PGDATA.
        data_dir: String,
        /// Its processes.
        pids: Vec<i32>,
    },
    /// A system call failed.
    #[error("cannot {what}: {cause}")]
    Io {
        /// The operation.
        what: &'static str,
        /// The system's error.
        cause: io::Error,
    },
}

fn io_error<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> GuardError {
    move |cause| GuardError::Io {
        what,
        cause: cause.into(),
    }
}

/// Runs the guard with the settings in `config` until it is told to quit. An error ends it, and the
/// kernel then ends PostgreSQL.
pub fn run(config: &Path) -> Result<(), GuardError> {
    let text = fs::read(config).map_err(io_error("read the guard's settings"))?;
    let config = Written::<GuardConfig>::read(&text)
        .map_err(|refused| GuardError::Config(refused.to_string()))?
        .message;
    config.addresses().map_err(GuardError::Config)?;
    // Leave the agent's terminal and session, so that what ends the agent does not end us. Fails if
    // we already lead a group, which is just as good.
    if let Err(cause) = setsid() {
        tracing::debug!(%cause, "own session already");
    }
    go_first();
    // Orphans of PostgreSQL become our children: found by descent, and reaped.
    set_child_subreaper(Some(getpid())).map_err(io_error("adopt orphans"))?;
    own_files::claim_folder(&config.state_dir).map_err(io_error("use `state_dir`"))?;
    let _lock = lock(&config)?;
    let mut guard = Guard::new(config)?;
    while !guard.quit {
        let wake_ns = boottime_ns().saturating_add(as_nanos(guard.patience()));
        guard
            .wire
            .wait(guard.postmaster.as_ref().map(|it| &it.fd), wake_ns)
            .map_err(io_error("wait"))?;
        guard.overslept = is_late(wake_ns);
        guard.reap();
        guard.look_out();
        guard.renounce_as_seen();
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

fn as_nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Whether something due at `due` is being done late.
fn is_late(due_ns: u64) -> bool {
    boottime_ns().saturating_sub(due_ns) > as_nanos(LATE)
}

/// Schedules this thread, and no other thread or child, before everybody else: when a host resumes,
/// all its sessions want to acknowledge at once. It sleeps except for a moment each tick. Only root
/// may; if that is not possible either (a container, a machine without `chrt`), the highest
/// priority that is not real-time must do.
fn go_first() {
    if !geteuid().is_root() {
        return;
    }
    let us = getpid().as_raw_pid().to_string();
    let asked = Command::new("/usr/bin/chrt")
        .args(["--reset-on-fork", "--fifo", "--pid", "1", &us])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if asked.is_ok_and(|status| status.success()) {
        return;
    }
    if getpriority_process(None) == Ok(0)
        && let Err(cause) = setpriority_process(None, FIRST)
    {
        tracing::debug!(%cause, "no priority before others");
    }
}

/// Makes a second guard of the same state folder impossible; the kernel releases the lock when we
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
    lookout: Lookout,
    postmaster: Option<Postmaster>,
    started_as_standby: bool,
    started_ns: u64,
    /// The content of the control file before the server was started.
    control_at_start: Option<ControlFile>,
    /// Whether a server started as a standby has been seen to take writes.
    promoted: bool,
    /// Whether the last wait ended much later than planned.
    overslept: bool,
    right: Option<Right>,
    /// The highest epoch seen.
    epoch: Epoch,
    marker: Option<FenceMarker>,
    fence: Option<Fence>,
    /// Who waits for a stop.
    stopping: Vec<Ticket>,
    /// Who has asked to give the lease up, and since when: earlier sightings may be older than a
    /// promotion.
    renouncing: Vec<(Ticket, u64)>,
    last_proof: Option<FenceProof>,
    last_exit: Option<Exit>,
    quit: bool,
}

impl Guard {
    fn new(config: GuardConfig) -> Result<Self, GuardError> {
        let habitat = Habitat::new(&config);
        let looked = habitat.processes(&Processes::new());
        let mut left = looked.map_err(io_error("read `/proc`"))?;
        let strangers = habitat.strangers(|| 0).map_err(io_error("read `/proc`"))?;
        left.extend(&strangers);
        let was_ours = postmaster::was_ours(&config);
        let intruded = postmaster::is_known(&config) && !strangers.is_empty();
        if !left.is_empty() && !was_ours && !intruded {
            return Err(GuardError::Foreign {
                data_dir: config.data_dir.display().to_string(),
                pids: left.into_keys().collect(),
            });
        }
        let marker = marker::read(&config.state_dir).map_err(io_error("read `fenced.json`"))?;
        let mut guard = Self {
            wire: Wire::listen(&config.socket()).map_err(io_error("listen"))?,
            habitat,
            lookout: Lookout::begin(&config).map_err(io_error("start a thread"))?,
            postmaster: None,
            started_as_standby: false,
            started_ns: 0,
            control_at_start: None,
            promoted: false,
            overslept: false,
            right: None,
            epoch: marker.as_ref().map_or(Epoch(0), |marker| marker.epoch),
            marker,
            fence: None,
            stopping: Vec::new(),
            renouncing: Vec::new(),
            last_proof: None,
            last_exit: None,
            quit: false,
            config,
        };
        if !left.is_empty() {
            let cause = if was_ours { ORPHANED } else { FOREIGN };
            guard.begin_fence(cause, guard.epoch, None);
        }
        Ok(guard)
    }

    /// How long until the next check.
    fn patience(&self) -> Duration {
        if let Some(fence) = &self.fence {
            return if fence.is_overdue() { TICK } else { FENCE_TICK };
        }
        let tick = if !self.renouncing.is_empty() {
            FENCE_TICK
        } else if self.postmaster.is_some() {
            TICK
        } else {
            IDLE_TICK
        };
        self.right.map_or(tick, |right| {
            tick.min(Duration::from_nanos(
                right.deadline_ns.saturating_sub(boottime_ns()),
            ))
        })
    }

    /// Begins the fence that is due, or advances the one under way.
    fn keep_time(&mut self) {
        if self.fence.is_none() {
            match self.right {
                Some(right) if boottime_ns() >= right.deadline_ns => {
                    self.begin_fence(LEASE_EXPIRED, right.epoch, None);
                }
                None if self.runs_as() == Some(Role::Primary) => {
                    self.begin_fence(PROMOTED_WITHOUT_RIGHT, self.epoch, None);
                }
                Some(_) | None => {}
            }
        }
        self.carry_on_fence();
    }

    /// Whether the guard, or the whole host, stood still until just now.
    fn is_late(&self) -> bool {
        self.overslept || self.right.is_some_and(|right| is_late(right.deadline_ns))
    }

    /// Handles processes that ended. PostgreSQL is not restarted: the agent decides.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let Some(ended) = self.postmaster.as_ref().filter(|it| it.pid == pid) else {
                continue;
            };
            let exit = Exit {
                status: match (status.exit_status(), status.terminating_signal()) {
                    (Some(0), _) => Exit::CLEAN.to_owned(),
                    (Some(code), _) => format!("exit status {code}"),
                    (None, Some(signal)) => format!("signal {signal}"),
                    (None, None) => format!("status {status:?}"),
                },
                expected: self.fence.is_some() || ended.fenced || !self.stopping.is_empty(),
                log_from: Some(ended.log_from),
            };
            tracing::info!(
                status = exit.status,
                expected = exit.expected,
                "PostgreSQL ended"
            );
            self.postmaster = None;
            self.lookout.ours_is(None);
            // An orderly stop ends the lease without a fence; after a crash it stays armed, since
            // sessions may outlive the postmaster.
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

    /// Executes a command. `None`: the reply comes later.
    fn obey(&mut self, ticket: Ticket, command: GuardCommand) -> Option<GuardReply> {
        let answer = match command {
            GuardCommand::Hello(agent) => {
                tracing::info!(%agent, "an agent says hello");
                Ok(GuardReply::Hello(WrittenBy::ours(PROTOCOL)))
            }
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
            GuardCommand::Renounce {} if self.runs_as() == Some(Role::Standby) => {
                self.renouncing.push((ticket, boottime_ns()));
                return None;
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
                    "PostgreSQL already runs in another role (process {pid}): stop it first"
                ))
            };
        }
        if self.fence.is_some() {
            return Err("a fence is under way: wait for its end".to_owned());
        }
        let left = self
            .habitat
            .processes(&self.strangers())
            .map_err(|cause| cause.to_string())?;
        if !left.is_empty() {
            return Err(format!(
                "processes of an earlier run are still there ({:?}): fence first",
                left.into_keys().collect::<Vec<_>>()
            ));
        }
        let control = ControlFile::read(&self.config.data_dir).ok();
        match (
            role,
            may_start(&files_say(&self.config.data_dir), control.as_ref())?,
        ) {
            (StartAs::Standby, Role::Primary) => {
                return Err("`standby.signal` is absent: this would become a primary".to_owned());
            }
            (StartAs::Primary { .. }, Role::Standby) => {
                return Err("`standby.signal` is there: this would become a standby".to_owned());
            }
            (StartAs::Standby, Role::Standby) => self.right = None,
            (StartAs::Primary { epoch, deadline_ns }, Role::Primary) => {
                self.arm(Right { epoch, deadline_ns })?;
            }
        }
        self.control_at_start = control;
        let started = Postmaster::start(&self.config)
            .map_err(|cause| format!("cannot start PostgreSQL: {cause}"))?;
        self.lookout.ours_is(Some(started.pid));
        let pid = started.pid.as_raw_pid();
        tracing::info!(pid, standby, "PostgreSQL started");
        self.postmaster = Some(started);
        self.started_as_standby = standby;
        (self.started_ns, self.promoted) = (boottime_ns(), false);
        Ok(GuardReply::Started { pid })
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
            runs_as: self.runs_as(),
            starts_as: self.starts_as().and_then(Result::ok),
            unfit: self.starts_as().and_then(Result::err),
            foreign: self.foreign(),
            right: self.right,
            epoch: self.epoch,
            fencing: self.fence.is_some(),
            marker: self.marker.clone(),
            last_proof: self.last_proof.clone(),
            last_exit: self.last_exit.clone(),
            config: self.config.clone(),
        }
    }
}
