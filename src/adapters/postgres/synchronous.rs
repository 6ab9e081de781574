//! Commits that wait for the standby (`durability = "sync"`), and commits that go on without it.

use std::time::Duration;

use serde::Deserialize;
use tokio_postgres::types::Type;

use super::connect::{Connect, Database, Deadline};
use super::error::not_begun;
use super::setting;
use crate::engine::synchrony::SyncLook;
use crate::engine::topology::SiteName;
use crate::engine::units::Lsn;
use crate::ports::EffectError;

const NAMES: &str = "synchronous_standby_names";

/// Names a standby that does not exist: while it stands, every commit waits.
const NOBODY: &str = "ANY 1 (\"failover: nobody\")";

/// Names one standby. In the agents' configuration a standby has the name of its site (postgres.md
/// P33).
fn only(standby: &SiteName) -> String {
    format!("ANY 1 (\"{standby}\")")
}

/// Where several of one name stream, and have been heard lately, somebody else confirms commits beside the
/// standby. A sender whose line is dead lingers for `wal_sender_timeout` beside the one that took its place, and
/// is not heard any more (postgres.md P7).
///
/// A default of `synchronous_commit` below `on`, of the server or of a role or database, lets
/// commits go on whatever the names say. What a session sets for itself nobody sees
/// (postgres.md P31).
const LOOK: &str = "
WITH wal AS MATERIALIZED (SELECT pg_current_wal_insert_lsn() AS position)
SELECT json_build_object(
  'names', current_setting('synchronous_standby_names'),
  'position', position,
  'flushed', (
    SELECT CASE WHEN count(DISTINCT client_addr) <= 1 THEN max(flush_lsn) END
    FROM pg_stat_replication WHERE application_name = $1 AND state = 'streaming'),
  'streams', (
    SELECT count(*) FROM pg_stat_replication
    WHERE application_name = $1 AND state IN ('streaming', 'catchup')
      AND clock_timestamp() - COALESCE(reply_time, backend_start) < interval '15 s'),
  'waiting', (SELECT COALESCE(json_agg(statement), '[]'::json) FROM (
    SELECT pid || '/' || extract(epoch FROM query_start) AS statement
    FROM pg_stat_activity WHERE wait_event = 'SyncRep' ORDER BY query_start LIMIT 16) AS waiting),
  'below', (
    SELECT string_agg(who || ' has `synchronous_commit = ' || value || '`', ', ' ORDER BY who)
    FROM (
      SELECT 'the server' AS who, reset_val AS value
      FROM pg_settings WHERE name = 'synchronous_commit'
      UNION ALL
      SELECT 'a role or database', split_part(setting, '=', 2)
      FROM pg_db_role_setting, unnest(setconfig) AS setting
      WHERE setting LIKE 'synchronous\\_commit=%') AS defaults
    WHERE lower(value) NOT IN ('on', 'true', 'yes', '1', 'remote_apply'))
)::text FROM wal";

#[derive(Deserialize)]
struct Look {
    names: String,
    position: Lsn,
    flushed: Option<Lsn>,
    streams: u32,
    waiting: Vec<String>,
    below: Option<String>,
}

/// How far the standby is, and whether commits wait for it.
pub async fn look_at_standby(
    connect: &Connect,
    standby: &SiteName,
    deadline: Duration,
) -> Result<SyncLook, EffectError> {
    let deadline = Deadline::after(deadline);
    let database = open(connect, deadline).await?;
    let name = standby.as_str();
    let look: Look = database
        .read(LOOK, &[(&name, Type::TEXT)], deadline.left())
        .await?;
    let several =
        (look.streams > 1).then(|| format!("{} streams have the name `{standby}`", look.streams));
    Ok(SyncLook {
        // Whoever was interrupted in `wait_for_standby` left commits that wait for nobody.
        named: look.names == only(standby) || look.names == NOBODY,
        position: look.position,
        flushed: look.flushed,
        waiting: look.waiting,
        obstacle: several.or(look.below),
    })
}

async fn open(connect: &Connect, deadline: Deadline) -> Result<Database, EffectError> {
    let opened = Database::open(&connect.with_default_commits(), deadline.left()).await;
    opened.map_err(not_begun)
}

/// Makes every commit wait for one standby, durably, and answers from where on it does so.
///
/// That a session has taken a new setting up does not mean that commits wait: the checkpointer
/// tells all of them, when it comes to it. So first everybody waits for a standby that does not
/// exist, until a commit of ours is seen to wait; only then the name is put right (postgres.md P30).
pub async fn wait_for_standby(
    connect: &Connect,
    standby: &SiteName,
    deadline: Duration,
) -> Result<Lsn, EffectError> {
    let deadline = Deadline::after(deadline);
    let database = open(connect, deadline).await?;
    setting::set(&database, NAMES, NOBODY, deadline).await?;
    let waits = async {
        see_a_commit_wait(&database, deadline).await?;
        let from: Lsn = database
            .read(
                "SELECT to_json(pg_current_wal_insert_lsn())::text",
                &[],
                deadline.left(),
            )
            .await?;
        setting::set(&database, NAMES, &only(standby), deadline).await?;
        Ok(from)
    };
    let waits = waits.await;
    if waits.is_err() {
        // Nobody may wait for nobody: where this does not work either, the next look tries again.
        setting::set(&database, NAMES, "", deadline).await?;
    }
    waits
}

/// Commits in a second session until that is seen to wait for a synchronous standby.
async fn see_a_commit_wait(database: &Database, deadline: Deadline) -> Result<(), EffectError> {
    let waiter = database.beside(deadline.left()).await.map_err(not_begun)?;
    let pid: i32 = waiter
        .read("SELECT pg_backend_pid()::text", &[], deadline.left())
        .await?;
    waiter
        .run("SET synchronous_commit = on", deadline.left())
        .await?;
    const COMMIT: &str = "SELECT pg_logical_emit_message(true, 'failover', 'waits')";
    const WAITS: &str = "
        SELECT EXISTS (SELECT FROM pg_stat_activity
                       WHERE pid = $1 AND wait_event = 'SyncRep')::text";
    let commits = async {
        // One that comes back did not wait: it was too early.
        while !deadline.left().is_zero() {
            waiter.run(COMMIT, deadline.left()).await?;
        }
        Ok::<(), EffectError>(())
    };
    let seen = async {
        loop {
            let waits: bool = database
                .read(WAITS, &[(&pid, Type::INT4)], deadline.left())
                .await?;
            if waits {
                return Ok(());
            }
            if !deadline.pause(Duration::from_millis(2)).await {
                let why = "no commit was seen to wait".to_owned();
                return Err(EffectError::Failed(why));
            }
        }
    };
    tokio::select! {
        seen = seen => seen?,
        ended = commits => ended?,
    }
    // It would wait on, and hold its connection, for as long as the standby does.
    const CANCEL: &str = "SELECT pg_cancel_backend($1)::text";
    let _cancelled: bool = database
        .read(CANCEL, &[(&pid, Type::INT4)], deadline.left())
        .await?;
    Ok(())
}

/// Lets every commit go on without a standby, those that wait already too. Survives a restart.
pub async fn go_on_alone(connect: &Connect, deadline: Duration) -> Result<(), EffectError> {
    let deadline = Deadline::after(deadline);
    let database = open(connect, deadline).await?;
    setting::set(&database, NAMES, "", deadline).await
}
