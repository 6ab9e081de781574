//! The pivot: a standby becomes the primary.

use std::time::Duration;

use serde::Deserialize;

use super::connect::{Connect, Database, Deadline};
use super::error::{SqlError, not_begun};
use super::setting;
use crate::engine::observation::ProbeFailure;
use crate::engine::units::{Lsn, Timeline, as_millis};
use crate::ports::{EffectError, LastError};

/// A standby that became the primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promoted {
    /// The new timeline.
    pub timeline: Timeline,
    /// Where the log stood when the server was first seen to accept writes.
    pub position: Lsn,
    /// From the call to that moment.
    pub took: Duration,
    /// It was a primary before the call, and nothing was done.
    pub already: bool,
    /// The `synchronous_standby_names` that were taken away so that commits do not wait for the
    /// old primary; `None` where there were none.
    pub synchronous_names_were: Option<String>,
}

#[derive(Deserialize)]
struct Look {
    standby: bool,
    allowed: bool,
    synchronous_names: String,
    pause: Option<String>,
    held: Option<String>,
    position: Option<Lsn>,
    timeline: Option<u32>,
}

const LOOK: &str = "
WITH me AS MATERIALIZED (SELECT pg_is_in_recovery() AS standby)
SELECT json_build_object(
  'standby', standby,
  'allowed', has_function_privilege('pg_promote(boolean, integer)', 'execute'),
  'synchronous_names', current_setting('synchronous_standby_names'),
  'pause', CASE WHEN standby THEN pg_get_wal_replay_pause_state() END,
  'held', (SELECT wait_event_type || '/' || wait_event FROM pg_stat_activity
    WHERE backend_type = 'startup' AND (wait_event LIKE 'RecoveryConflict%'
      OR wait_event_type IN ('Lock', 'BufferPin'))),
  'position', CASE WHEN NOT standby THEN pg_current_wal_insert_lsn() END,
  'timeline', CASE WHEN NOT standby THEN
    ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::bigint END
)::text FROM me";

/// `pg_promote(true)` and `pg_ctl` look every 100 ms; the promotion itself takes about 50.
const LOOK_EVERY: Duration = Duration::from_millis(3);

/// Promotes a standby and returns when it accepts writes. On a primary it does nothing and says
/// so (postgres.md P18).
///
/// A query that replay waits for would keep the promotion waiting for as long as it runs, whatever
/// `max_standby_streaming_delay` allows it: once the promotion is asked for, sessions in a transaction are ended
/// for as long as replay is held up by one (postgres.md P23).
///
/// It does not wait for a checkpoint: see [`checkpoint`]. A replay that somebody paused goes on
/// (postgres.md P20). `Unknown` is never "not promoted": once asked for, a promotion may finish at
/// any time after the deadline (postgres.md P16).
pub async fn promote(connect: &Connect, deadline: Duration) -> Result<Promoted, EffectError> {
    let deadline = Deadline::after(deadline);
    let database = Database::open(connect, deadline.left())
        .await
        .map_err(not_begun)?;
    let before: Look = database.read(LOOK, &[], deadline.left()).await?;
    if let Some(promoted) = promoted(&before, true, None, deadline) {
        return Ok(promoted);
    }
    // It would fail all the same, after the names were taken away (postgres.md P19).
    if !before.allowed {
        return Err(EffectError::Refused(
            "this role may not promote: run `GRANT EXECUTE ON FUNCTION pg_promote TO` it, or use \
             a superuser"
                .to_owned(),
        ));
    }
    // Before, not after: a standby does not use the setting, a new primary would hang its first
    // commit on it (postgres.md P24).
    let names = Some(before.synchronous_names).filter(|names| !names.is_empty());
    if let Some(names) = &names {
        setting::set(&database, "synchronous_standby_names", "", deadline).await?;
        tracing::info!(
            names,
            "cleared `synchronous_standby_names` before promotion"
        );
    }
    match database
        .read::<bool>(
            "SELECT to_json(pg_promote(false))::text",
            &[],
            deadline.left(),
        )
        .await
    {
        Ok(_sent) => {}
        Err(error) if error.state() == Some("42501") => return Err(error.into()),
        // Somebody else's promotion came first, a recovery conflict cancelled the call after it
        // was made, or no answer came: what counts is what the server says of itself from here on.
        Err(error) => tracing::warn!(%error, "no clear answer to `pg_promote`"),
    }
    watch(connect, database, names, deadline).await
}

/// Looks until the server is a primary, on a new connection where the old one breaks.
async fn watch(
    connect: &Connect,
    database: Database,
    names: Option<String>,
    deadline: Deadline,
) -> Result<Promoted, EffectError> {
    let mut database = Some(database);
    let mut seen = LastError::default();
    seen.say("nothing was seen of it since", true);
    loop {
        let look: Result<Look, SqlError> = match &database {
            Some(open) => open.read(LOOK, &[], deadline.left()).await,
            None => Err(SqlError::Answer("not connected".to_owned())),
        };
        match look {
            Ok(look) => {
                if let Some(promoted) = promoted(&look, false, names.clone(), deadline) {
                    return Ok(promoted);
                }
                let replay = match (look.pause.as_deref(), &look.held) {
                    (None | Some("not paused"), None) => "it still replays".to_owned(),
                    (None | Some("not paused"), Some(by)) => {
                        end_transactions(database.as_ref(), by, deadline).await;
                        format!("its replay is held up by `{by}`")
                    }
                    (Some(_), _) => "its replay is paused: if its limits are lower than the old \
                                primary's were, raise them and restart it"
                        .to_owned(),
                };
                seen.say(replay, false);
            }
            Err(error) => {
                if database.is_some() {
                    seen.say(error.to_string(), error.is_late());
                }
                database = match Database::open(connect, deadline.left()).await {
                    Ok(opened) => Some(opened),
                    Err(failure) => {
                        let late = matches!(failure, ProbeFailure::Timeout(_));
                        seen.say(failure.to_string(), late);
                        None
                    }
                };
            }
        }
        if !deadline.pause(LOOK_EVERY).await {
            return Err(EffectError::Unknown(format!(
                "promotion was ordered but not seen within {} ms: {}",
                as_millis(deadline.took()),
                seen.tell()
            )));
        }
    }
}

/// Ends every session of a client that is in a transaction. Which of them replay waits for PostgreSQL does not
/// say. One that cannot be ended keeps the promotion waiting, which tells so.
async fn end_transactions(database: Option<&Database>, held: &str, deadline: Deadline) {
    const END: &str = "
        SELECT count(*)::text FROM (
          SELECT pg_terminate_backend(pid) FROM pg_stat_activity
          WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
            AND xact_start IS NOT NULL OFFSET 0) AS ended";
    let Some(database) = database else { return };
    match database.read::<u64>(END, &[], deadline.left()).await {
        Ok(0) => {}
        Ok(ended) => tracing::warn!(ended, held, "ended transactions that replay waits for"),
        Err(error) => {
            tracing::warn!(%error, held, "cannot end the transactions that replay waits for");
        }
    }
}

fn promoted(
    look: &Look,
    already: bool,
    names: Option<String>,
    deadline: Deadline,
) -> Option<Promoted> {
    if look.standby {
        return None;
    }
    Some(Promoted {
        timeline: Timeline(look.timeline?),
        position: look.position?,
        took: deadline.took(),
        already,
        synchronous_names_were: names,
    })
}

/// Writes a checkpoint, which `pg_rewind` needs before it can tell the new timeline (postgres.md
/// P25). Takes as long as the disk takes: never part of the way to the first write.
pub async fn checkpoint(connect: &Connect, timeout: Duration) -> Result<(), EffectError> {
    let database = Database::open(connect, timeout).await.map_err(not_begun)?;
    Ok(database.run("CHECKPOINT", timeout).await?)
}
