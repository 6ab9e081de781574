//! Why a statement of ours on our own tables does not come to its end, and whether others are
//! served meanwhile: what concerns only us condemns nobody (invariants.md I14).

use std::time::Duration;

use serde::Deserialize;
use tokio_postgres::types::Type;

use super::connect::{Database, Deadline};
use super::error::SqlError;
use crate::engine::observation::ProbeFailure;
use crate::engine::text::counted;
use crate::engine::units::{Lsn, as_millis};

/// What a session of ours waits for, and what those wait for that it waits for.
#[derive(Debug, Default, Deserialize)]
struct Waits {
    /// `Lock/relation`, say; `None` where it is not known, or the session does not wait.
    own: Option<String>,
    /// The same of the sessions of ours that hold what it waits for.
    ours: Vec<String>,
    /// How many others hold what it waits for.
    others: u32,
}

/// The session is cancelled, because it would keep its connection and its locks.
///
/// Sessions that hold a lock wait for others again: the chain is followed for a few links.
const WAITS: &str = "
WITH RECURSIVE chain(pid, depth) AS (
  SELECT $1, 0
  UNION
  SELECT holder, depth + 1 FROM chain, unnest(pg_blocking_pids(chain.pid)) AS holder
  WHERE depth < 5
), session AS MATERIALIZED (
  SELECT chain.pid, depth, application_name = 'failover' AS ours,
    wait_event_type || '/' || wait_event AS waits
  FROM chain LEFT JOIN pg_stat_activity AS activity USING (pid)
), cancelled AS MATERIALIZED (
  SELECT pg_cancel_backend($1) AS sent FROM (SELECT count(*) FROM session) AS seen
)
SELECT json_build_object(
  'own', (SELECT max(waits) FROM session WHERE depth = 0),
  'ours', (SELECT COALESCE(json_agg(waits), '[]'::json) FROM session
           WHERE depth > 0 AND ours AND waits IS NOT NULL),
  'others', (SELECT count(DISTINCT pid) FROM session WHERE depth > 0 AND ours IS NOT TRUE)
)::text FROM cancelled";

/// What an error of a statement on our own tables says about the database. For one that did not
/// come, the server is asked on a second connection what it waits for.
pub(super) async fn explain(
    database: &Database,
    pid: i32,
    error: SqlError,
    deadline: Deadline,
) -> ProbeFailure {
    if error.state() == Some("42P01") {
        return ProbeFailure::Blocked(
            "the schema `failover` is missing: the active site's agent creates it when it starts"
                .to_owned(),
        );
    }
    let SqlError::Timeout(limit) = error else {
        return error.into();
    };
    let waits = async {
        let second = database.beside(deadline.left()).await?;
        let pid = [(&pid as _, Type::INT4)];
        let waits: Waits = second.read(WAITS, &pid, deadline.left()).await?;
        Ok::<_, ProbeFailure>(waits)
    };
    match waits.await {
        Ok(waits) => sort(limit, &waits),
        Err(failure) => ProbeFailure::CannotWrite(format!(
            "no commit within {limit} ms, and a second connection finds no reason: {failure}"
        )),
    }
}

/// Locks are somebody's doing, and only ours are waited for. One that a session of our own holds
/// while the disk does not answer is the disk's.
fn sort(limit: u64, waits: &Waits) -> ProbeFailure {
    let of_the_disk = |event: &str| event.starts_with("IO/") || event.starts_with("LWLock/");
    let own = waits.own.as_deref();
    let seen = own.unwrap_or("nothing known");
    if let Some(event) = waits.ours.iter().find(|event| of_the_disk(event)) {
        return ProbeFailure::CannotWrite(format!(
            "no commit within {limit} ms: it waits for `{seen}` of a session of ours that waits \
             for `{event}`"
        ));
    }
    if own.is_none_or(of_the_disk) {
        return ProbeFailure::CannotWrite(format!(
            "no commit within {limit} ms: it waits for `{seen}`"
        ));
    }
    ProbeFailure::Blocked(format!(
        "no answer within {limit} ms: it waits for `{seen}`, held by {}",
        counted(u64::from(waits.others), "other session", "other sessions")
    ))
}

#[derive(Deserialize)]
struct Work {
    flushed: Lsn,
    others: bool,
}

/// Whether others are seen to commit: the log is flushed beyond where it stood as the look began,
/// and sessions that are not ours have begun or ended something since. Whoever only holds a lock
/// has not.
const WORK: &str = "
SELECT json_build_object(
  'flushed', pg_current_wal_flush_lsn(),
  'others', EXISTS (
    SELECT FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND application_name <> 'failover'
      AND pid <> pg_backend_pid()
      AND GREATEST(state_change, xact_start)
        > clock_timestamp() - $1 * interval '1 millisecond')
)::text";

const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Users who commit less often than that may as well wait for the next look.
const LONGEST: Duration = Duration::from_millis(500);

/// Looks for commits of others since the log stood at `began`, for half a second at most.
pub(super) async fn others_commit(database: &Database, began: Lsn, deadline: Deadline) -> bool {
    // A little is left for the answer to come in time.
    let (left, look) = (deadline.left(), deadline);
    let deadline = Deadline::after((left / 10 * 9).min(LONGEST));
    let Ok(second) = database.beside(deadline.left()).await else {
        return false;
    };
    loop {
        let since = i32::try_from(as_millis(look.took())).unwrap_or(i32::MAX);
        let since = [(&since as _, Type::INT4)];
        let work: Result<Work, SqlError> = second.read(WORK, &since, deadline.left()).await;
        match work {
            Ok(work) if work.flushed > began && work.others => return true,
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, took_ms = as_millis(deadline.took()), "cannot see others");
                return false;
            }
        }
        if !deadline.pause(LOOK_EVERY).await {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_told_from_a_disk_that_does_not_answer() {
        let waits = |own: &str, ours: &[&str], others| Waits {
            own: (!own.is_empty()).then(|| own.to_owned()),
            ours: ours.iter().map(ToString::to_string).collect(),
            others,
        };
        for (waits, against) in [
            (waits("Lock/relation", &[], 1), false),
            (waits("Lock/transactionid", &[], 1), false),
            (waits("Lock/relation", &["Lock/relation"], 1), false),
            (waits("Timeout/PgSleep", &[], 0), false),
            (waits("Client/ClientRead", &[], 0), false),
            (waits("IO/WALSync", &[], 0), true),
            (waits("IO/DataFileExtend", &[], 0), true),
            (waits("LWLock/WALWrite", &[], 0), true),
            // The session of the look before hangs in its commit, and holds the row.
            (waits("Lock/transactionid", &["IO/WALSync"], 0), true),
            (waits("", &[], 0), true),
        ] {
            let failure = sort(500, &waits);
            assert_eq!(
                failure.speaks_against_target(),
                against,
                "{waits:?}: {failure}"
            );
        }
    }
}
