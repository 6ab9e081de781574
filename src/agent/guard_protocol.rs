//! The messages between the agent and its guard, one JSON value per line over a Unix socket, and
//! the clock that both count on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::engine::format::{Format, WrittenBy};
use crate::engine::topology::Role;
use crate::engine::units::Epoch;
use crate::wire::written::{Message, Unknown};

/// The format of what agent and guard say to each other. A guard lives as long as its database runs, so
/// that an agent speaks to guards of many earlier programs: it says to each only what that one knows.
pub const PROTOCOL: Format = Format::new(1, 0);

/// Nanoseconds on `CLOCK_BOOTTIME`: the same number in every process of this host, unaffected by
/// changes of the wall clock, and running while the host is suspended. `CLOCK_MONOTONIC` stands
/// still then, so that a laptop lid or a paused VM would prolong the write lease.
pub fn boottime_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}

/// How the guard runs its PostgreSQL. Written by the agent as JSON, read once at start, and shown with the
/// status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardConfig {
    /// The folder with `postgres`.
    pub bin_dir: PathBuf,
    /// PGDATA.
    pub data_dir: PathBuf,
    /// TCP port.
    pub port: u16,
    /// As PostgreSQL's setting, but only addresses of this host, `localhost` and `*`: the guard
    /// does not use DNS, which could make it wait while a deadline passes.
    pub listen_addresses: String,
    /// The folder of PostgreSQL's Unix socket.
    pub socket_dir: PathBuf,
    /// The operating system user for PostgreSQL. Required for root, since PostgreSQL refuses to run
    /// as root.
    pub run_as: Option<String>,
    /// The guard's own folder: socket, lock, fence marker. Best on a local disk.
    pub state_dir: PathBuf,
    /// Receives the output of PostgreSQL and of the guard.
    pub log_file: PathBuf,
    /// Further settings, `name=value` each.
    pub options: Vec<String>,
    /// How long each stage of a fence may take.
    pub stop: StopTimes,
}

/// A guard that does not know one of its settings would run PostgreSQL otherwise than it was told.
impl Message for GuardConfig {
    const NAME: &'static str = "settings of the guard";
    const READER: &'static str = "guard";
    const UNKNOWN: Unknown = Unknown::Refused;
    const FORMAT: Format = PROTOCOL;
}

impl GuardConfig {
    /// The guard's socket.
    pub fn socket(&self) -> PathBuf {
        self.state_dir.join("guard.sock")
    }

    /// The keys of the agent's file, below `postgres`, whose values differ in `wanted`.
    pub fn differs_in(&self, wanted: &Self) -> Vec<&'static str> {
        let keys = [
            ("bin_dir", self.bin_dir != wanted.bin_dir),
            ("data_dir", self.data_dir != wanted.data_dir),
            ("port", self.port != wanted.port),
            (
                "listen_addresses",
                self.listen_addresses != wanted.listen_addresses,
            ),
            ("socket_dir", self.socket_dir != wanted.socket_dir),
            ("run_as", self.run_as != wanted.run_as),
            ("log_file", self.log_file != wanted.log_file),
            ("options", self.options != wanted.options),
        ];
        let differing = keys.into_iter().filter(|(_, differs)| *differs);
        differing.map(|(key, _)| key).collect()
    }

    /// PostgreSQL's own socket.
    pub fn postgresql_socket(&self) -> PathBuf {
        self.socket_dir.join(format!(".s.PGSQL.{}", self.port))
    }

    /// The addresses that must refuse a connection after a fence. An error that names the entry if
    /// `listen_addresses` would need DNS.
    pub fn addresses(&self) -> Result<Vec<SocketAddr>, String> {
        let mut found = Vec::new();
        for name in self.listen_addresses.split(',').map(str::trim) {
            match name {
                "" => {}
                "*" | "0.0.0.0" | "localhost" => found.push(Ipv4Addr::LOCALHOST.into()),
                "::" => found.push(Ipv6Addr::LOCALHOST.into()),
                other => found.push(other.parse::<IpAddr>().map_err(|cause| {
                    format!(
                        "`{other}` in `listen_addresses` is not an address ({cause}): write \
                         addresses of this host, `localhost` or `*`"
                    )
                })?),
            }
        }
        Ok(found
            .into_iter()
            .map(|host| SocketAddr::new(host, self.port))
            .collect())
    }
}

/// How long each way of stopping PostgreSQL may take, in milliseconds, one after the other. Their
/// sum is the longest a fence takes and must stay within the policy's `fence_within`. A stage that is not
/// known is refused wherever it stands, so that a guard names none to an agent that does not know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopTimes {
    /// SIGINT: ends sessions and writes buffers. Waits for WAL senders, so with an unreachable
    /// standby for as long as `wal_sender_timeout` (postgres.md P35).
    pub fast_ms: u64,
    /// SIGQUIT: as in a crash.
    pub immediate_ms: u64,
    /// SIGKILL to each process, until all are gone; after it the fence is reported unproven.
    pub kill_ms: u64,
}

impl StopTimes {
    /// The longest that a fence takes.
    pub fn total(&self) -> Duration {
        Duration::from_millis(
            self.fast_ms
                .saturating_add(self.immediate_ms)
                .saturating_add(self.kill_ms),
        )
    }
}

/// One line to the guard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Returned with the reply.
    pub id: u64,
    /// What to do.
    pub cmd: GuardCommand,
}

/// What the agent asks of the guard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum GuardCommand {
    /// The first on each connection: which program the agent runs, and in which format it speaks. Replies
    /// `hello` with the same of the guard. A guard of before there was one refuses it, and takes whatever
    /// else stands here.
    Hello(WrittenBy),
    /// Starts PostgreSQL, without waiting until it answers. Replies `started`, also when it runs
    /// already in the same way.
    Start {
        /// The role.
        r#as: StartAs,
    },
    /// Extends the deadline of the write lease. Replies `right` with the deadline that counts,
    /// which never moves back within an epoch.
    Right {
        /// The lease's epoch.
        epoch: Epoch,
        /// The [`boottime_ns`] at which the lease expires.
        deadline_ns: u64,
        /// How to fence then: the policy's stages.
        stop: StopTimes,
    },
    /// No lease is needed any more: this is a standby, or stopped. Refused unless the guard sees
    /// that for itself. Replies `done`.
    Renounce {},
    /// Fences now. Replies `fenced` or `unproven` when it is over.
    Fence {
        /// The cause, for the record.
        cause: String,
        /// The epoch whose lease ends. Lower than the held one is refused: an old order.
        epoch: Epoch,
    },
    /// Removes a fence's marker, so that a start as primary is possible again. Replies `done`.
    Unfence {
        /// The epoch of the new lease; at least the marker's.
        epoch: Epoch,
    },
    /// Stops PostgreSQL with a fast, clean shutdown: no fence, no marker. Replies `stopped` when it
    /// is down; a deadline that passes meanwhile fences.
    Stop {},
    /// Ends the guard. Refused while PostgreSQL runs. Replies `done`.
    Quit {},
    /// Replies `status`.
    Status {},
}

/// The role in which to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum StartAs {
    /// `standby.signal` must exist.
    Standby,
    /// `standby.signal` must be absent, the deadline in the future, and no fence marker of this
    /// epoch or a higher one may exist.
    Primary {
        /// The lease's epoch.
        epoch: Epoch,
        /// The [`boottime_ns`] at which it expires.
        deadline_ns: u64,
    },
}

/// One line from the guard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FromGuard {
    /// The answer to one request.
    Reply {
        /// The request's id.
        id: u64,
        /// The answer.
        reply: GuardReply,
    },
    /// An event for all connections.
    Event {
        /// The event.
        event: GuardEvent,
    },
}

/// The guard's answer to a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuardReply {
    /// Which program the guard runs, and in which format it speaks.
    Hello(WrittenBy),
    /// It is done.
    Done {},
    /// The postmaster runs.
    Started {
        /// Its pid.
        pid: i32,
    },
    /// The lease that counts now.
    Right(Right),
    /// Fenced, with proof.
    Fenced(FenceProof),
    /// The time is over and something is still alive; the guard keeps trying.
    Unproven {
        /// What is still alive.
        alive: String,
    },
    /// PostgreSQL is down.
    Stopped {
        /// How it ended.
        status: String,
    },
    /// The guard's status.
    Status(Box<GuardStatus>),
    /// Nothing was done.
    Refused {
        /// Why, and what to do.
        why: String,
    },
}

/// An unsolicited event from the guard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuardEvent {
    /// The postmaster ended. It is not restarted: the agent decides.
    Exited(Exit),
    /// A fence is over, with its proof.
    Fenced(FenceProof),
    /// A fence's time is over without proof; the guard keeps trying.
    Unproven {
        /// What is still alive.
        alive: String,
    },
    /// Sent by the link, never by the guard: the connection is lost, so the guard may be dead, and
    /// PostgreSQL with it.
    Lost {},
}

/// The write lease, as the guard knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Right {
    /// Its epoch.
    pub epoch: Epoch,
    /// The [`boottime_ns`] at which it expires.
    pub deadline_ns: u64,
}

/// How PostgreSQL ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// `exit status 0`, `signal 9`.
    pub status: String,
    /// Whether a stop or a fence by the guard ended it.
    pub expected: bool,
    /// The offset of its output in `log_file`, in bytes. Absent from a guard of an earlier version.
    #[serde(default)]
    pub log_from: Option<u64>,
}

impl Exit {
    /// The `status` of a clean shutdown, which ends all sessions first.
    pub const CLEAN: &str = "exit status 0";

    /// Whether all sessions ended before the postmaster did.
    pub fn is_clean(&self) -> bool {
        self.status == Self::CLEAN
    }
}

/// The proof that this PostgreSQL acknowledges nothing any more (invariants.md F1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceProof {
    /// The epoch whose lease ended.
    pub epoch: Epoch,
    /// The cause of the fence.
    pub cause: String,
    /// When the proof was complete: wall clock, milliseconds since 1970 UTC.
    pub at_ms: u64,
    /// What ended it.
    pub method: FenceMethod,
    /// From the decision to fence to the proof, in milliseconds.
    pub took_ms: u64,
    /// The addresses that refused a connection.
    pub refused: String,
}

/// What ended PostgreSQL in a fence, in order of force. Never a smart shutdown, which lets open
/// sessions commit (postgres.md P35).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FenceMethod {
    /// It did not run.
    AlreadyDown,
    /// SIGINT.
    Fast,
    /// SIGQUIT.
    Immediate,
    /// SIGKILL to each process.
    Kill,
}

/// The durable record that this database is fenced: `fenced.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceMarker {
    /// No start as primary at this epoch or a lower one.
    pub epoch: Epoch,
    /// The cause.
    pub cause: String,
    /// When the fence began: wall clock, milliseconds since 1970 UTC.
    pub at_ms: u64,
    /// Absent while the fence is under way, or when the guard died in it.
    pub proof: Option<FenceProof>,
}

/// The guard's status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardStatus {
    /// The guard's own process.
    pub guard_pid: i32,
    /// The postmaster, while it runs.
    pub postmaster_pid: Option<i32>,
    /// Whether the running server was started as a standby, and may have been promoted since;
    /// absent if none runs.
    pub started_as_standby: Option<bool>,
    /// The running role: from how the guard started it, and from what the server has written to its
    /// control file since; never from the files that count at a start. Absent if nothing runs, and
    /// from a guard of an earlier version.
    #[serde(default)]
    pub runs_as: Option<Role>,
    /// The role in which its files would start it. Absent from a guard of an earlier version.
    #[serde(default)]
    pub starts_as: Option<Role>,
    /// Why its files allow no start in any role.
    #[serde(default)]
    pub unfit: Option<String>,
    /// What is in the data folder or at the port and was not started by the guard, described for
    /// people.
    #[serde(default)]
    pub foreign: Option<String>,
    /// The write lease, if one is armed.
    pub right: Option<Right>,
    /// The highest epoch seen since the guard started.
    pub epoch: Epoch,
    /// Whether a fence is under way.
    pub fencing: bool,
    /// The fence marker on disk.
    pub marker: Option<FenceMarker>,
    /// The last proof since the guard started.
    pub last_proof: Option<FenceProof>,
    /// The last end of PostgreSQL since the guard started.
    pub last_exit: Option<Exit>,
    /// The settings that the guard was started with.
    pub config: GuardConfig,
}
