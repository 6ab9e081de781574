//! What the agent and its guard say to each other, one JSON value per line over a Unix socket, and
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

/// Nanoseconds on `CLOCK_BOOTTIME`: the same number in every process of this host, untouched by
/// changes of the wall clock, and running on while the host is suspended. `CLOCK_MONOTONIC` stands
/// still then, so that a laptop lid or a paused VM would lengthen the right to take writes.
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
    /// asks no name server, which could keep it waiting while a deadline passes.
    pub listen_addresses: String,
    /// Where PostgreSQL's Unix socket lies.
    pub socket_dir: PathBuf,
    /// The OS user PostgreSQL runs as. Needed when we are root, since PostgreSQL refuses root.
    pub run_as: Option<String>,
    /// The guard's own folder: socket, lock, fence marker. Best on a local disk.
    pub state_dir: PathBuf,
    /// Gets the output of PostgreSQL and of the guard.
    pub log_file: PathBuf,
    /// Further settings, `name=value` each.
    pub options: Vec<String>,
    /// How long each way of stopping may take in a fence.
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

    /// The keys of the agent's file, below `postgres`, whose values are other ones in `wanted`.
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

    /// The addresses that must refuse a connection after a fence. Fails, naming the entry, where
    /// `listen_addresses` needs a name server.
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
    /// SIGINT: sessions are ended, buffers written. Waits for WAL senders, so with a standby out of
    /// reach for as long as `wal_sender_timeout` (postgres.md P35).
    pub fast_ms: u64,
    /// SIGQUIT: as in a crash.
    pub immediate_ms: u64,
    /// SIGKILL to each process, until all are gone; after it the fence is reported unproven.
    pub kill_ms: u64,
}

impl StopTimes {
    /// The longest a fence takes.
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
    /// Comes back with the reply.
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
        /// In which role it must come up.
        r#as: StartAs,
    },
    /// Pushes the deadline of the right to take writes forward. Replies `right` with the deadline
    /// that counts, which never goes back within an epoch.
    Right {
        /// Of which epoch.
        epoch: Epoch,
        /// [`boottime_ns`] at which the right ends.
        deadline_ns: u64,
        /// How to fence when it does: the policy's stages.
        stop: StopTimes,
    },
    /// No right is needed any more: this is a standby, or stopped. Refused where the guard does not
    /// see that for itself. Replies `done`.
    Renounce {},
    /// Fences now. Replies `fenced` or `unproven` when it is over.
    Fence {
        /// Why, for the record.
        cause: String,
        /// Of which epoch the right ends. Lower than the one held is refused: an old order.
        epoch: Epoch,
    },
    /// Takes the marker of a fence away, so that a start as primary is possible again. Replies
    /// `done`.
    Unfence {
        /// The epoch of the new right; at least that of the marker.
        epoch: Epoch,
    },
    /// Stops PostgreSQL fast, for an orderly shutdown: no fence, no marker. Replies `stopped` when
    /// it is down; a deadline that passes meanwhile fences.
    Stop {},
    /// Ends the guard. Refused while PostgreSQL runs. Replies `done`.
    Quit {},
    /// Replies `status`.
    Status {},
}

/// The role that a start is meant to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum StartAs {
    /// `standby.signal` must be there.
    Standby,
    /// `standby.signal` must be absent, the deadline in the future, and no fence marker of this
    /// epoch or a higher one may exist.
    Primary {
        /// Of which epoch the right is.
        epoch: Epoch,
        /// [`boottime_ns`] at which it ends.
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
    /// News for all connections.
    Event {
        /// What happened.
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
    /// PostgreSQL's first process runs.
    Started {
        /// Its id.
        pid: i32,
    },
    /// The right that counts now.
    Right(Right),
    /// Fenced, with proof.
    Fenced(FenceProof),
    /// The time is over and something is still alive; the guard goes on trying.
    Unproven {
        /// What is still alive.
        alive: String,
    },
    /// PostgreSQL is down.
    Stopped {
        /// How it ended.
        status: String,
    },
    /// How things are.
    Status(Box<GuardStatus>),
    /// Nothing was done.
    Refused {
        /// Why, and what to do next.
        why: String,
    },
}

/// News from the guard, asked for or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuardEvent {
    /// PostgreSQL's first process ended. It is not started again: the agent decides.
    Exited(Exit),
    /// A fence is over, with its proof.
    Fenced(FenceProof),
    /// A fence's time is over without proof; the guard goes on trying.
    Unproven {
        /// What is still alive.
        alive: String,
    },
    /// Said by the link, never by the guard: the connection is lost, so the guard may be dead, and
    /// PostgreSQL with it.
    Lost {},
}

/// The right to take writes, as the guard knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Right {
    /// Of which epoch.
    pub epoch: Epoch,
    /// [`boottime_ns`] at which it ends.
    pub deadline_ns: u64,
}

/// How PostgreSQL ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// `exit status 0`, `signal 9`.
    pub status: String,
    /// Whether a stop or a fence of the guard's ended it.
    pub expected: bool,
    /// Where in `log_file` its output begins, in bytes. Absent from a guard of an earlier version.
    #[serde(default)]
    pub log_from: Option<u64>,
}

impl Exit {
    /// The `status` of a shutdown that ended all sessions first.
    pub const CLEAN: &str = "exit status 0";

    /// Whether all sessions ended before the first process did.
    pub fn is_clean(&self) -> bool {
        self.status == Self::CLEAN
    }
}

/// The proof that this PostgreSQL acknowledges nothing any more (invariants.md F1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceProof {
    /// Whose right ended.
    pub epoch: Epoch,
    /// Why it was fenced.
    pub cause: String,
    /// When the proof was complete: wall clock, milliseconds since 1970 UTC.
    pub at_ms: u64,
    /// What ended it.
    pub method: FenceMethod,
    /// From the decision to fence to the proof, in milliseconds.
    pub took_ms: u64,
    /// Which places refused a connection.
    pub refused: String,
}

/// What ended PostgreSQL in a fence, from mild to harsh. Never a smart shutdown, which lets open
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

/// The durable word that this database is fenced: `fenced.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceMarker {
    /// No start as primary at this epoch or a lower one.
    pub epoch: Epoch,
    /// Why.
    pub cause: String,
    /// When the fence began: wall clock, milliseconds since 1970 UTC.
    pub at_ms: u64,
    /// Absent while the fence is under way, or when the guard died in it.
    pub proof: Option<FenceProof>,
}

/// How things are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardStatus {
    /// The guard's own process.
    pub guard_pid: i32,
    /// PostgreSQL's first process, while it runs.
    pub postmaster_pid: Option<i32>,
    /// Whether what runs was started as a standby, and may have been promoted since; absent when
    /// nothing runs.
    pub started_as_standby: Option<bool>,
    /// What runs: from how the guard started it, and from what the server has written since into
    /// its control file; never from the files that count at a start. Absent when nothing runs, and
    /// from a guard of an earlier version.
    #[serde(default)]
    pub runs_as: Option<Role>,
    /// As what its files would have it start. Absent from a guard of an earlier version.
    #[serde(default)]
    pub starts_as: Option<Role>,
    /// Why its files let it be started in no role.
    #[serde(default)]
    pub unfit: Option<String>,
    /// What the guard did not start, and is in the data folder or at the port, in words.
    #[serde(default)]
    pub foreign: Option<String>,
    /// The right to take writes, where one is armed.
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
    /// What the guard was started with.
    pub config: GuardConfig,
}
