//! One fact about one target from one vantage point at one time; and what a fact can contain.
//!
//! An observation says what was seen, not what it means: that is the detector's job.

use std::cmp::Reverse;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::text::{NAME_LIMIT, STATE_LIMIT, clip_fact, clip_to};
use super::topology::{Role, SiteName, Target, Vantage};
use super::units::{
    Epoch, LARGEST_EXACT, LAST_WALL_MILLIS, Lsn, MonoTime, SystemId, Timeline, WallTime, exact,
    millis,
};

/// One fact about one target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// The observed target.
    pub target: Target,
    /// The vantage point.
    pub vantage: Vantage,
    /// When the probe began, on the clock of the process that judges. A target that gives no answer
    /// was unreachable from this moment on, not from when the timeout ended.
    pub began: MonoTime,
    /// When the answer, or its absence, was known.
    pub ended: MonoTime,
    /// The result.
    pub finding: Finding,
}

/// The result of a probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finding {
    /// The target answered correctly.
    Good(Facts),
    /// It did not.
    Bad(ProbeFailure),
}

impl Finding {
    /// Whether what was looked at answered itself, so that the way there and back is open. That an
    /// agent reported does not show it: nothing of ours got there.
    pub fn is_answer(&self) -> bool {
        match self {
            Finding::Good(Facts::Database(_) | Facts::Api) => true,
            Finding::Good(Facts::Agent) => false,
            Finding::Bad(failure) => failure.came_from_database(),
        }
    }

    /// The same within the limits of what is kept: whoever looks, or takes in what others saw, calls
    /// this first of all. `sites`: those of the group, as far as the caller knows them.
    #[must_use]
    pub fn clipped(mut self, sites: &[&SiteName]) -> Self {
        match &mut self {
            Finding::Good(Facts::Database(facts)) => facts.clip(sites),
            Finding::Good(Facts::Api | Facts::Agent) => {}
            Finding::Bad(failure) => failure.clip(),
        }
        self
    }
}

/// The content of a good answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Facts {
    /// The service answered.
    Api,
    /// The database answered on a fresh connection.
    Database(Box<DatabaseFacts>),
    /// The agent reported.
    Agent,
}

/// Why a probe got no good answer. The kinds differ in what they say about the target: an expired
/// password is not a dead database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum ProbeFailure {
    /// No answer in time.
    #[error("no answer within {0} ms")]
    Timeout(#[serde(with = "exact")] u64),
    /// The host refused the connection.
    #[error("connection refused")]
    Refused,
    /// There is no route to the host.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// The database is starting, stopping or recovering (SQLSTATE 57P02, 57P03; postgres.md P38).
    #[error("not accepting connections: {0}")]
    NotAccepting(String),
    /// Every connection is taken (SQLSTATE 53300): it looks dead, but is not (postgres.md P39).
    #[error("too many connections: {0}")]
    Exhausted(String),
    /// A write that should have worked did not finish: a disk that does not answer, no memory
    /// (postgres.md P40).
    #[error("cannot write: {0}")]
    CannotWrite(String),
    /// The database is alive and says that its disk is full or failing (SQLSTATE 53100, 58030;
    /// postgres.md P40).
    #[error("no space to write: {0}")]
    DiskFailed(String),
    /// What only our probes do there is refused or blocked: a lock on our tables, a missing grant,
    /// a setting. Users may be served meanwhile. Says nothing about the target's health.
    #[error("our own look is blocked: {0}")]
    Blocked(String),
    /// The probe is not authorised: password, role, certificate. Says nothing about the target's
    /// health.
    #[error("not authorised: {0}")]
    Unauthorized(String),
    /// The answer cannot be understood. Says nothing about the target's health.
    #[error("unexpected answer: {0}")]
    Protocol(String),
    /// The service reported an error (an HTTP status outside 200 to 299).
    #[error("answered with status {0}")]
    Status(u16),
}

/// What a failed probe says about its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bearing {
    /// It is evidence against the target.
    Against,
    /// Nothing: the cause is ours.
    Nothing,
    /// Unknown: it may be the target's fault or ours.
    Unknown,
}

impl ProbeFailure {
    fn clip(&mut self) {
        match self {
            ProbeFailure::Timeout(millis) => *millis = LARGEST_EXACT.min(*millis),
            ProbeFailure::Unreachable(text)
            | ProbeFailure::NotAccepting(text)
            | ProbeFailure::Exhausted(text)
            | ProbeFailure::CannotWrite(text)
            | ProbeFailure::DiskFailed(text)
            | ProbeFailure::Blocked(text)
            | ProbeFailure::Unauthorized(text)
            | ProbeFailure::Protocol(text) => clip_fact(text),
            ProbeFailure::Refused | ProbeFailure::Status(_) => {}
        }
    }

    /// What it says about the target. Only evidence against it counts; everything else leaves the
    /// target's health unknown (invariants.md I4).
    pub fn bearing(&self) -> Bearing {
        match self {
            // Not authorised, or asked too often: anything in front of the service may have said
            // so.
            ProbeFailure::Status(401 | 403 | 407 | 429)
            | ProbeFailure::Exhausted(_)
            | ProbeFailure::Blocked(_)
            | ProbeFailure::Unauthorized(_) => Bearing::Nothing,
            ProbeFailure::Timeout(_)
            | ProbeFailure::Refused
            | ProbeFailure::Unreachable(_)
            | ProbeFailure::NotAccepting(_)
            | ProbeFailure::CannotWrite(_)
            | ProbeFailure::DiskFailed(_)
            | ProbeFailure::Status(_) => Bearing::Against,
            ProbeFailure::Protocol(_) => Bearing::Unknown,
        }
    }

    /// Whether this is evidence against the target.
    pub fn speaks_against_target(&self) -> bool {
        self.bearing() == Bearing::Against
    }

    /// Whether the database itself said so, so that the network path works both ways. A refused
    /// connection does not prove that: a firewall can refuse too, and a service's status can be
    /// that of a proxy in front of it.
    pub fn came_from_database(&self) -> bool {
        match self {
            ProbeFailure::NotAccepting(_)
            | ProbeFailure::Exhausted(_)
            | ProbeFailure::CannotWrite(_)
            | ProbeFailure::DiskFailed(_)
            | ProbeFailure::Blocked(_)
            | ProbeFailure::Unauthorized(_) => true,
            ProbeFailure::Timeout(_)
            | ProbeFailure::Refused
            | ProbeFailure::Unreachable(_)
            | ProbeFailure::Protocol(_)
            | ProbeFailure::Status(_) => false,
        }
    }
}

/// What a PostgreSQL instance says about itself on a fresh connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseFacts {
    /// Primary or standby, from `pg_is_in_recovery()`.
    pub role: Role,
    /// `pg_control_system().system_identifier` (postgres.md P1).
    pub system_id: SystemId,
    /// Of a primary: from the name of the WAL file being written. Of a standby: the receiver's, or
    /// else the control file's (postgres.md P3).
    pub timeline: Timeline,
    /// `server_version_num` (postgres.md P10).
    pub version: u32,
    /// Of a primary: `pg_current_wal_insert_lsn()`, read before anything else, so that every
    /// commit acknowledged before the probe began lies below it (postgres.md P9). Of a standby: the
    /// greater of what it has received and flushed, and what it has replayed (postgres.md P5).
    pub position: Lsn,
    /// Of a standby: how far it has replayed; equal to `position` on a primary.
    pub replayed: Lsn,
    /// Of a standby: the state of its WAL receiver, if one runs.
    pub receiver: Option<ReceiverFacts>,
    /// Of a primary: its WAL senders.
    pub senders: Vec<SenderFacts>,
    /// The newest heartbeat row, if the table exists and has one.
    pub heartbeat: Option<Heartbeat>,
    /// The epoch row, if there is one.
    pub epoch: Option<Epoch>,
    /// Of a standby: whether replay is paused, and why it must be (postgres.md P20, P21).
    pub replay_pause: ReplayPause,
    /// Of a standby: what its replay is doing.
    #[serde(default)]
    pub replay_state: ReplayState,
    /// `recovery_min_apply_delay` (postgres.md P22).
    #[serde(rename = "apply_delay_ms", with = "millis")]
    pub apply_delay: Duration,
    /// `synchronous_standby_names`; empty is asynchronous (postgres.md P24).
    pub synchronous_names: String,
    /// Of a primary: the statements whose commits wait for a standby, at any level of
    /// `synchronous_commit`: each by its process and its start, at most sixteen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub commits_waiting: Vec<String>,
    /// The settings that must not be lower on a standby than on its primary (postgres.md P21):
    /// `max_connections`, `max_worker_processes`, `max_wal_senders`, `max_prepared_transactions`,
    /// `max_locks_per_transaction`, in this order.
    pub limits: [u32; 5],
    /// Of a primary: how long the heartbeat write took, including its commit; `None` on a standby.
    #[serde(rename = "write_ms", with = "millis::option")]
    pub write_took: Option<Duration>,
    /// What blocked access to our own rows, although everything else here was read and, on a
    /// primary, others were seen to commit meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked: Option<String>,
}

/// The most senders of a primary that are kept: two sites, a few readers and backups, times two.
pub const SENDERS_KEPT: usize = 16;

/// The most waiting commits that are kept: as many as a probe asks for.
const COMMITS_KEPT: usize = 16;

impl DatabaseFacts {
    /// Bounds texts, lists and numbers. The database's owner chooses most of them: the names of
    /// standbys, the rows of our tables, its clock.
    ///
    /// Of many senders those named as a site stay, the furthest first: what the standby has flushed
    /// decides how much a failover loses. Then those that commits wait for.
    fn clip(&mut self, sites: &[&SiteName]) {
        if self.senders.len() > SENDERS_KEPT {
            let is_site = |sender: &SenderFacts| sites.iter().any(|it| it.as_str() == sender.name);
            self.senders
                .sort_by_key(|it| (!is_site(it), !it.confirms(), Reverse(it.flushed)));
            self.senders.truncate(SENDERS_KEPT);
            self.senders.shrink_to_fit();
        }
        for sender in &mut self.senders {
            clip_to(&mut sender.name, NAME_LIMIT);
            clip_to(&mut sender.state, STATE_LIMIT);
            clip_to(&mut sender.sync_state, STATE_LIMIT);
        }
        if let Some(receiver) = &mut self.receiver {
            clip_to(&mut receiver.status, STATE_LIMIT);
        }
        if let ReplayState::Held { by } = &mut self.replay_state {
            clip_to(by, NAME_LIMIT);
        }
        self.commits_waiting.truncate(COMMITS_KEPT);
        self.commits_waiting.shrink_to_fit();
        for statement in &mut self.commits_waiting {
            clip_to(statement, NAME_LIMIT);
        }
        clip_fact(&mut self.synchronous_names);
        if let Some(blocked) = &mut self.blocked {
            clip_fact(blocked);
        }
        if let Some(heartbeat) = &mut self.heartbeat {
            heartbeat.sequence = heartbeat.sequence.min(LARGEST_EXACT);
            heartbeat.written = heartbeat.written.min(WallTime(LAST_WALL_MILLIS));
        }
        self.epoch = self.epoch.min(Some(Epoch(LARGEST_EXACT)));
    }

    /// Of a primary: how far the standby of this name has flushed, as the primary says; if nothing
    /// streams under that name, the most that any stream has. Of a list that may have been cut
    /// nobody knows that: the stream in question may be missing, and be behind all others.
    pub fn flushed_by(&self, standby: &SiteName) -> Option<Lsn> {
        let of = |named: bool| {
            let those = self.senders.iter();
            let those = those.filter(|sender| !named || sender.name == standby.as_str());
            those.filter_map(|sender| sender.flushed).max()
        };
        let named = self.senders.iter().any(|it| it.name == standby.as_str());
        if named || self.senders.len() >= SENDERS_KEPT {
            of(true)
        } else {
            of(false)
        }
    }

    /// The names that commits wait for although nothing streams under them (postgres.md P24).
    /// Heartbeats do not wait, so they do not show it.
    pub fn waits_in_vain(&self) -> Option<&str> {
        let waits = !self.synchronous_names.is_empty();
        let confirmed = self.senders.iter().any(SenderFacts::confirms);
        (waits && !confirmed).then_some(&self.synchronous_names)
    }
}

/// The WAL receiver of a standby (postgres.md P7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiverFacts {
    /// `streaming`, or another state that PostgreSQL reports.
    pub status: String,
    /// How long ago the primary's last message arrived, by the standby's own clock.
    #[serde(rename = "last_message_ms", with = "millis::option")]
    pub last_message: Option<Duration>,
}

impl ReceiverFacts {
    /// Whether WAL is streaming.
    pub fn is_streaming(&self) -> bool {
        self.status == "streaming"
    }
}

/// One row of `pg_stat_replication` on a primary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SenderFacts {
    /// `application_name`; must be unique over both sites (postgres.md P33).
    pub name: String,
    /// `streaming`, `catchup`, …
    pub state: String,
    /// How far the standby has flushed.
    pub flushed: Option<Lsn>,
    /// `sync`, `async`, `quorum`, `potential`.
    pub sync_state: String,
}

impl SenderFacts {
    /// Whether commits wait for this sender's standby.
    fn confirms(&self) -> bool {
        ["sync", "quorum"].contains(&self.sync_state.as_str())
    }
}

/// The newest heartbeat row: written on the primary, read on either side (postgres.md P8).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Grows with each write.
    #[serde(with = "exact")]
    pub sequence: u64,
    /// The site that wrote it.
    pub site: SiteName,
    /// When, by the clock of the database that wrote it. Compare it only with itself.
    pub written: WallTime,
}

/// Whether a standby's replay is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplayPause {
    /// It replays.
    None,
    /// Somebody requested the pause: a promotion ends it (PostgreSQL 13 and later).
    Paused,
    /// Paused because a limit is lower than the primary's: a promotion is refused until a restart
    /// (postgres.md P21).
    InsufficientLimits,
}

/// What a standby's replay is doing, as the startup process reports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "replay")]
pub enum ReplayState {
    /// It replays, or its state is unknown.
    #[default]
    Working,
    /// It waits for WAL: every whole record is replayed.
    AtEnd,
    /// Something delays it.
    Held {
        /// PostgreSQL's wait event: `RecoveryConflictSnapshot`, `RecoveryPause`, `Lock/relation`, …
        by: String,
    },
}

impl fmt::Display for ReplayPause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            ReplayPause::None => "replaying",
            ReplayPause::Paused => "paused",
            ReplayPause::InsufficientLimits => "paused: limits lower than the primary's",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::situation::samples::{aws, gcp, healthy};
    use super::*;

    fn sender(name: &str, flushed: u64, sync_state: &str) -> SenderFacts {
        SenderFacts {
            name: name.to_owned(),
            state: "streaming".to_owned(),
            flushed: Some(Lsn(flushed)),
            sync_state: sync_state.to_owned(),
        }
    }

    /// A primary with a standby that is far behind, and more streams than are kept that are not.
    fn crowded(place: usize, sync_state: &str) -> DatabaseFacts {
        let mut facts = healthy().sites[&aws()].database.clone().unwrap().fact.own();
        let others = (0..100).map(|n| sender(&format!("reader {n}"), 9000, sync_state));
        facts.senders = others.collect();
        facts.senders.insert(place, sender("gcp", 100, "async"));
        facts
    }

    #[test]
    fn a_standby_in_a_crowd_is_kept_and_never_looks_further_than_it_is() {
        for (place, sync_state) in [(0, "async"), (100, "async"), (50, "sync"), (100, "quorum")] {
            let facts = crowded(place, sync_state);
            assert_eq!(facts.flushed_by(&gcp()), Some(Lsn(100)));
            let known = Finding::Good(Facts::Database(Box::new(facts.clone())));
            let Finding::Good(Facts::Database(cut)) = known.clone().clipped(&[&aws(), &gcp()])
            else {
                panic!("it is another finding");
            };
            assert_eq!(cut.senders.len(), SENDERS_KEPT);
            assert_eq!(
                cut.flushed_by(&gcp()),
                Some(Lsn(100)),
                "{place} {sync_state}"
            );
            // Whoever cuts it without knowing the sites leaves it unknown.
            let Finding::Good(Facts::Database(cut)) = known.clipped(&[]) else {
                panic!("it is another finding");
            };
            let flushed = cut.flushed_by(&gcp());
            assert!(
                flushed.is_none() || flushed == Some(Lsn(100)),
                "{flushed:?}"
            );
        }
        // A few streams, none of them of that name: the most that any has.
        let mut few = crowded(0, "async");
        few.senders = vec![sender("walreceiver", 700, "async")];
        assert_eq!(few.flushed_by(&gcp()), Some(Lsn(700)));
        // A stream of that name that has not said yet how far it is does not get another's word.
        few.senders.push(SenderFacts {
            flushed: None,
            ..sender("gcp", 0, "async")
        });
        assert_eq!(few.flushed_by(&gcp()), None);
    }

    #[test]
    fn every_failure_of_a_look_is_sorted() {
        use Bearing::{Against, Nothing, Unknown};
        let text = || "sample".to_owned();
        for (failure, bearing) in [
            (ProbeFailure::Timeout(1000), Against),
            (ProbeFailure::Refused, Against),
            (ProbeFailure::Unreachable(text()), Against),
            (ProbeFailure::NotAccepting(text()), Against),
            (ProbeFailure::CannotWrite(text()), Against),
            (ProbeFailure::DiskFailed(text()), Against),
            (ProbeFailure::Exhausted(text()), Nothing),
            (ProbeFailure::Blocked(text()), Nothing),
            (ProbeFailure::Unauthorized(text()), Nothing),
            (ProbeFailure::Protocol(text()), Unknown),
            (ProbeFailure::Status(301), Against),
            (ProbeFailure::Status(401), Nothing),
            (ProbeFailure::Status(403), Nothing),
            (ProbeFailure::Status(404), Against),
            (ProbeFailure::Status(407), Nothing),
            (ProbeFailure::Status(429), Nothing),
            (ProbeFailure::Status(500), Against),
            (ProbeFailure::Status(503), Against),
        ] {
            assert_eq!(failure.bearing(), bearing, "{failure:?}");
        }
    }
}
