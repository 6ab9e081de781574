//! The schema `failover`, and the epoch that is written into it.

use std::time::Duration;

use serde::Deserialize;
use tokio_postgres::types::Type;

use super::connect::{Database, Deadline};
use crate::engine::topology::SiteName;
use crate::engine::units::Epoch;
use crate::ports::EffectError;

/// What we write promises nobody anything: it must not wait for a synchronous standby that stalls.
const DO_NOT_WAIT: &str = "SET synchronous_commit = local";

/// The lock keeps two agents that prepare at once from failing each other.
const SCHEMA: &str = "
SELECT pg_advisory_xact_lock(hashtext('failover.prepare'));
CREATE SCHEMA IF NOT EXISTS failover;
CREATE TABLE IF NOT EXISTS failover.heartbeat (
  site text NOT NULL,
  vantage text NOT NULL,
  sequence bigint NOT NULL,
  written timestamptz NOT NULL,
  PRIMARY KEY (site, vantage)
);
CREATE TABLE IF NOT EXISTS failover.epoch (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  epoch bigint NOT NULL,
  site text NOT NULL,
  written timestamptz NOT NULL
);";

/// Creates the schema `failover` with its two tables where they are missing. Needs a role that
/// may create schemas in the database, and a primary.
pub async fn prepare(database: &Database, timeout: Duration) -> Result<(), EffectError> {
    database.run(DO_NOT_WAIT, timeout).await?;
    Ok(database.run(SCHEMA, timeout).await?)
}

/// Lets `role` watch and write heartbeats: `pg_monitor` (POSTGRES.md row 12), the two tables and,
/// from PostgreSQL 16 on, the reserved connections (row 38). Needs a superuser.
pub async fn allow_monitoring(
    database: &Database,
    role: &str,
    timeout: Duration,
) -> Result<(), EffectError> {
    const GRANTS: &str = "
        SELECT to_json(format('
            GRANT pg_monitor TO %1$I;
            GRANT USAGE ON SCHEMA failover TO %1$I;
            GRANT SELECT, INSERT, UPDATE ON failover.heartbeat, failover.epoch TO %1$I;', $1)
          || CASE WHEN current_setting('server_version_num')::int >= 160000
             THEN format('GRANT pg_use_reserved_connections TO %I;', $1) ELSE '' END)::text";
    let deadline = Deadline::after(timeout);
    database.run(DO_NOT_WAIT, timeout).await?;
    let grants: String = database
        .read(GRANTS, &[(&role, Type::TEXT)], timeout)
        .await?;
    Ok(database.run(&grants, deadline.left()).await?)
}

/// Writes the epoch and reads it back. Only raises it: the same epoch of the same site is done
/// already, anything newer is a `Conflict`.
///
/// A commit that hangs ends as `Unknown` after `timeout`.
pub async fn write_epoch(
    database: &Database,
    epoch: Epoch,
    site: &SiteName,
    timeout: Duration,
) -> Result<(), EffectError> {
    const RAISE: &str = "
        WITH raised AS (
          INSERT INTO failover.epoch AS row (epoch, site, written)
          VALUES ($1, $2, clock_timestamp())
          ON CONFLICT (one) DO UPDATE
          SET epoch = excluded.epoch, site = excluded.site, written = excluded.written
          WHERE row.epoch < excluded.epoch
          RETURNING 1
        ) SELECT count(*)::text FROM raised";
    const READ: &str =
        "SELECT json_build_object('epoch', epoch, 'site', site)::text FROM failover.epoch";
    #[derive(Deserialize)]
    struct EpochRow {
        epoch: u64,
        site: SiteName,
    }

    let deadline = Deadline::after(timeout);
    let number = i64::try_from(epoch.0)
        .map_err(|_cause| EffectError::Refused(format!("epoch {epoch} does not fit a `bigint`")))?;
    database.run(DO_NOT_WAIT, timeout).await?;
    let _raised: u64 = database
        .read(
            RAISE,
            &[(&number, Type::INT8), (&site.as_str(), Type::TEXT)],
            timeout,
        )
        .await?;
    let row: EpochRow = database.read(READ, &[], deadline.left()).await?;
    if row.epoch == epoch.0 && row.site == *site {
        return Ok(());
    }
    Err(EffectError::Conflict(format!(
        "the database holds epoch {} of `{}`, not {epoch} of `{site}`",
        row.epoch, row.site
    )))
}
