//! What an instance says of itself, and the heartbeat that proves that it can write.

use std::time::Duration;

use serde::Deserialize;
use tokio_postgres::types::Type;

use super::connect::{Connect, Database, Deadline};
use super::error::SqlError;
use super::hindrance;
use crate::engine::observation::{
    DatabaseFacts, Heartbeat, ProbeFailure, ReceiverFacts, ReplayPause, ReplayState, SenderFacts,
};
use crate::engine::topology::{Role, SiteName, Vantage};
use crate::engine::units::{Epoch, Lsn, SystemId, Timeline, WallTime};

/// Who writes a heartbeat row: each has its own, so that no two wait for one lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeartbeatWrite {
    /// The site of the database that is written to.
    pub site: SiteName,
    /// Who writes.
    pub vantage: Vantage,
}

/// All facts in one statement. The position comes first, from a query of its own that nothing
/// may be merged into: it covers what was acknowledged before (postgres.md P9).
///
/// `pg_last_wal_receive_lsn()` alone falls back to the start of a segment when the standby
/// restarts: what it has replayed it also has (postgres.md P5). The control file's timeline lags
/// behind the receiver's, the newer of its two lags less (postgres.md P3).
const FACTS: &str = "
WITH me AS MATERIALIZED (
  SELECT pg_is_in_recovery() AS standby
), wal AS MATERIALIZED (
  SELECT standby,
    CASE WHEN standby
      THEN GREATEST(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
      ELSE pg_current_wal_insert_lsn()
    END AS position,
    CASE WHEN standby THEN pg_last_wal_replay_lsn() END AS replayed
  FROM me
)
SELECT json_build_object(
  'pid', pg_backend_pid(),
  'standby', standby,
  'position', position,
  'replayed', replayed,
  'system_id', (SELECT system_identifier FROM pg_control_system()),
  'timeline', CASE WHEN standby
    THEN COALESCE((SELECT received_tli FROM pg_stat_wal_receiver),
                  GREATEST((SELECT timeline_id FROM pg_control_checkpoint()),
                           (SELECT min_recovery_end_timeline FROM pg_control_recovery())))::bigint
    ELSE ('x' || substr(pg_walfile_name(position), 1, 8))::bit(32)::bigint
  END,
  'version', current_setting('server_version_num')::int,
  'receiver', (SELECT json_build_object(
      'status', status,
      'last_message_ms',
      GREATEST(0, extract(epoch FROM clock_timestamp() - last_msg_receipt_time) * 1000)::bigint)
    FROM pg_stat_wal_receiver),
  'senders', (SELECT COALESCE(json_agg(json_build_object(
      'name', application_name, 'state', state, 'flushed', flush_lsn, 'sync_state', sync_state)
      ORDER BY application_name, pid), '[]'::json)
    FROM pg_stat_replication),
  'pause', CASE WHEN standby THEN pg_get_wal_replay_pause_state() END,
  'startup', CASE WHEN standby THEN (
    SELECT json_build_object('type', wait_event_type, 'event', wait_event)
    FROM pg_stat_activity WHERE backend_type = 'startup') END,
  'commits_waiting', (SELECT COALESCE(json_agg(statement), '[]'::json) FROM (
    SELECT pid || '/' || extract(epoch FROM query_start) AS statement
    FROM pg_stat_activity WHERE wait_event = 'SyncRep' ORDER BY query_start LIMIT 16) AS waiting),
  'apply_delay_ms',
  (extract(epoch FROM current_setting('recovery_min_apply_delay')::interval) * 1000)::bigint,
  'synchronous_names', current_setting('synchronous_standby_names'),
  'limits', json_build_array(
    current_setting('max_connections')::int, current_setting('max_worker_processes')::int,
    current_setting('max_wal_senders')::int, current_setting('max_prepared_transactions')::int,
    current_setting('max_locks_per_transaction')::int)
)::text FROM wal";

/// The newest row is the one with the greatest sequence, not the latest time: after a failover
/// another machine's clock writes (postgres.md P8).
const ROWS: &str = "
SELECT json_build_object(
  'heartbeat', (SELECT json_build_object('sequence', sequence, 'site', site,
      'written', (extract(epoch FROM written) * 1000)::bigint)
    FROM failover.heartbeat ORDER BY sequence DESC, written DESC LIMIT 1),
  'epoch', (SELECT epoch FROM failover.epoch)
)::text";

/// The sequence grows over all rows, so that the newest one never seems to go back.
///
/// An update of one row finds its place in a page that is there, also on a disk on which no table can
/// grow any more. So it sorts more than `work_mem` holds, which needs room for a temporary file
/// (postgres.md P40).
const WRITE: &str = "
WITH room AS MATERIALIZED (
  SELECT sum(length(filler)) AS used FROM (
    SELECT repeat('x', 1000) AS filler FROM generate_series(1, 100) ORDER BY random()) AS sorted)
INSERT INTO failover.heartbeat AS row (site, vantage, sequence, written)
SELECT $1, $2, (SELECT COALESCE(max(sequence), 0) + 1 FROM failover.heartbeat), clock_timestamp()
FROM room WHERE room.used > 0
ON CONFLICT (site, vantage) DO UPDATE
SET sequence = GREATEST(excluded.sequence, row.sequence + 1), written = excluded.written
RETURNING json_build_object('sequence', sequence, 'site', site,
  'written', (extract(epoch FROM written) * 1000)::bigint)::text";

#[derive(Deserialize)]
struct FactsRow {
    pid: i32,
    standby: bool,
    position: Option<Lsn>,
    replayed: Option<Lsn>,
    system_id: i64,
    timeline: u32,
    version: u32,
    receiver: Option<ReceiverRow>,
    senders: Vec<SenderRow>,
    pause: Option<String>,
    startup: Option<StartupRow>,
    commits_waiting: Vec<String>,
    apply_delay_ms: u64,
    synchronous_names: String,
    limits: [u32; 5],
}

/// What the startup process, which replays, waits for.
#[derive(Deserialize)]
struct StartupRow {
    r#type: Option<String>,
    event: Option<String>,
}

impl StartupRow {
    /// Conflicts with queries show as `RecoveryConflict…`, as a lock, or as the pin of a buffer. Whatever else it
    /// waits for (the disk, say) is part of its work (postgres.md P23).
    fn state(self) -> ReplayState {
        let (Some(kind), Some(event)) = (self.r#type, self.event) else {
            return ReplayState::Working;
        };
        match (kind.as_str(), event.as_str()) {
            (_, "RecoveryWalStream" | "RecoveryWalAll" | "RecoveryRetrieveRetryInterval") => {
                ReplayState::AtEnd
            }
            (_, "RecoveryPause" | "RecoveryApplyDelay") => ReplayState::Held { by: event },
            (_, conflict) if conflict.starts_with("RecoveryConflict") => {
                ReplayState::Held { by: event }
            }
            ("Lock" | "BufferPin", _) => ReplayState::Held {
                by: format!("{kind}/{event}"),
            },
            (_, _) => ReplayState::Working,
        }
    }
}

#[derive(Deserialize)]
struct ReceiverRow {
    status: Option<String>,
    last_message_ms: Option<u64>,
}

#[derive(Deserialize)]
struct SenderRow {
    name: Option<String>,
    state: Option<String>,
    flushed: Option<Lsn>,
    sync_state: Option<String>,
}

#[derive(Deserialize)]
struct Rows {
    heartbeat: Option<HeartbeatRow>,
    epoch: Option<u64>,
}

#[derive(Deserialize)]
struct HeartbeatRow {
    sequence: u64,
    site: SiteName,
    written: u64,
}

impl From<HeartbeatRow> for Heartbeat {
    fn from(row: HeartbeatRow) -> Self {
        Heartbeat {
            sequence: row.sequence,
            site: row.site,
            written: WallTime(row.written),
        }
    }
}

/// Opens a fresh connection and reads the facts; `timeout` bounds the whole.
pub async fn probe(
    connect: &Connect,
    write: Option<&HeartbeatWrite>,
    timeout: Duration,
) -> Result<DatabaseFacts, ProbeFailure> {
    let deadline = Deadline::after(timeout);
    let database = Database::open(connect, timeout).await?;
    facts(&database, write, deadline.left()).await
}

/// What the instance is and where it stands, and nothing of our own tables: for a superuser's
/// session, in which nothing of somebody else may run.
pub async fn standing(connect: &Connect, timeout: Duration) -> Result<DatabaseFacts, ProbeFailure> {
    let deadline = Deadline::after(timeout);
    let database = Database::open(connect, timeout).await?;
    let row: FactsRow = database.read(FACTS, &[], deadline.left()).await?;
    assemble(row)
}

/// Reads the facts and, on a primary and where `write` asks for it, writes a heartbeat. Two round
/// trips at most where all is well; `timeout` bounds the whole.
///
/// A standby whose limits are too low reports `Paused`, never `InsufficientLimits`: PostgreSQL
/// does not tell the two pauses apart in SQL, but the facts carry the limits, and whoever has
/// both sites' facts can.
///
/// Without the schema `failover` there is neither heartbeat nor epoch. What keeps us from our own
/// rows is said in the facts where they suffice: where no write was to be made, and on
/// a primary where others are seen to commit. Else it is the failure of the look: `Blocked` where
/// the cause is ours, and against the database where the disk does not answer.
pub async fn facts(
    database: &Database,
    write: Option<&HeartbeatWrite>,
    timeout: Duration,
) -> Result<DatabaseFacts, ProbeFailure> {
    let deadline = Deadline::after(timeout);
    // Sent together, answered in this order. What is left in the end is for finding out why.
    let (row, rows) = tokio::join!(
        biased;
        database.read::<FactsRow>(FACTS, &[], timeout),
        database.read::<Rows>(ROWS, &[], timeout / 4 * 3)
    );
    let row = row?;
    let pid = row.pid;
    let mut facts = assemble(row)?;
    let write = write.filter(|_| facts.role == Role::Primary);
    let refused = match rows {
        Ok(rows) => {
            facts.heartbeat = rows.heartbeat.map(Heartbeat::from);
            facts.epoch = rows.epoch.map(Epoch);
            None
        }
        Err(error) if error.state() == Some("42P01") => None,
        Err(error) => Some(error),
    };
    let refused = match (refused, write) {
        (Some(error), _) => error,
        (None, None) => return Ok(facts),
        (None, Some(write)) => {
            let (limit, began) = (deadline.left() / 4 * 3, deadline.took());
            match write_heartbeat(database, write, limit).await {
                Ok(heartbeat) => {
                    facts.heartbeat = Some(heartbeat);
                    facts.write_took = Some(deadline.took().saturating_sub(began));
                    return Ok(facts);
                }
                Err(error) => error,
            }
        }
    };
    let failure = hindrance::explain(database, pid, refused, deadline).await;
    let stands = match (&failure, write) {
        // It lives, and is of no use.
        (ProbeFailure::DiskFailed(_), _) => false,
        (failure, None) => !failure.speaks_against_target(),
        (_, Some(_)) => hindrance::others_commit(database, facts.position, deadline).await,
    };
    if stands {
        facts.blocked = Some(failure.to_string());
        return Ok(facts);
    }
    Err(failure)
}

fn assemble(row: FactsRow) -> Result<DatabaseFacts, ProbeFailure> {
    let hidden = || {
        // Without the privilege the rows are there and their columns are null (postgres.md P11).
        ProbeFailure::Unauthorized(
            "the state of replication is hidden: run `GRANT pg_read_all_stats TO` this role"
                .to_owned(),
        )
    };
    let position = row
        .position
        .ok_or_else(|| ProbeFailure::Protocol("the server has no log position".to_owned()))?;
    let receiver = row.receiver.map(|receiver| {
        Ok::<_, ProbeFailure>(ReceiverFacts {
            status: receiver.status.ok_or_else(hidden)?,
            last_message: receiver.last_message_ms.map(Duration::from_millis),
        })
    });
    let senders = row.senders.into_iter().map(|sender| {
        Ok(SenderFacts {
            name: sender.name.ok_or_else(hidden)?,
            state: sender.state.ok_or_else(hidden)?,
            flushed: sender.flushed,
            sync_state: sender.sync_state.ok_or_else(hidden)?,
        })
    });
    Ok(DatabaseFacts {
        role: if row.standby {
            Role::Standby
        } else {
            Role::Primary
        },
        system_id: SystemId(row.system_id.cast_unsigned()),
        timeline: Timeline(row.timeline),
        version: row.version,
        position,
        // A standby that cannot say has replayed nothing that we know of.
        replayed: if row.standby {
            row.replayed.unwrap_or_default()
        } else {
            position
        },
        receiver: receiver.transpose()?,
        senders: senders.collect::<Result<_, ProbeFailure>>()?,
        heartbeat: None,
        epoch: None,
        replay_pause: match row.pause.as_deref() {
            None | Some("not paused") => ReplayPause::None,
            Some(_) => ReplayPause::Paused,
        },
        replay_state: row.startup.map(StartupRow::state).unwrap_or_default(),
        apply_delay: Duration::from_millis(row.apply_delay_ms),
        synchronous_names: row.synchronous_names,
        commits_waiting: row.commits_waiting,
        limits: row.limits,
        write_took: None,
        blocked: None,
    })
}

async fn write_heartbeat(
    database: &Database,
    write: &HeartbeatWrite,
    limit: Duration,
) -> Result<Heartbeat, SqlError> {
    let site = write.site.as_str();
    let vantage = write.vantage.to_string();
    let row: HeartbeatRow = database
        .read(WRITE, &[(&site, Type::TEXT), (&vantage, Type::TEXT)], limit)
        .await?;
    Ok(row.into())
}
