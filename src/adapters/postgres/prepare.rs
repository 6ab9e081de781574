//! The schema `failover`, who may use it, and the epoch that is written into it.

use std::time::Duration;

use serde::Deserialize;
use tokio_postgres::types::Type;

use super::connect::{Database, Deadline};
use crate::engine::topology::SiteName;
use crate::engine::units::Epoch;
use crate::ports::EffectError;

/// Whether schema and tables are there, and ours: made by a superuser and not changed since by
/// anybody else. What somebody else owns may run whatever they like with the rights of whoever
/// writes to it, by a trigger, a rule, a default, a view (postgres.md P43).
///
/// Triggers and rules that fire in ordinary sessions only are no concern: a superuser's session of
/// ours lets none of them fire.
const INSPECT: &str = "
WITH schema AS (
  SELECT nsp.oid, rolsuper AS trusted FROM pg_namespace AS nsp
  LEFT JOIN pg_roles AS owner ON owner.oid = nspowner WHERE nspname = 'failover'
), wanted(name, columns) AS (
  VALUES ('heartbeat', ARRAY['site text', 'vantage text', 'sequence bigint',
                             'written timestamp with time zone']),
         ('epoch', ARRAY['one boolean', 'epoch bigint', 'site text',
                         'written timestamp with time zone'])
), found AS (
  SELECT wanted.name, wanted.columns, rel.oid, rel.relkind, rel.relpersistence,
    rel.relrowsecurity, owner.rolsuper AS trusted
  FROM wanted, schema
  JOIN pg_class AS rel ON rel.relnamespace = schema.oid
  LEFT JOIN pg_roles AS owner ON owner.oid = rel.relowner
  WHERE rel.relname = wanted.name
), strange AS (
  SELECT 'the schema belongs to a role that is no superuser' AS why
  FROM schema WHERE trusted IS NOT TRUE
  UNION ALL
  SELECT format('`%s` belongs to a role that is no superuser', name)
  FROM found WHERE trusted IS NOT TRUE
  UNION ALL
  SELECT format('`%s` is no ordinary table', name) FROM found
  WHERE relkind <> 'r' OR relpersistence <> 'p'
    OR EXISTS (SELECT FROM pg_inherits WHERE inhrelid = oid OR inhparent = oid)
  UNION ALL
  SELECT format('`%s` has row security', name) FROM found WHERE relrowsecurity
  UNION ALL
  SELECT format('`%s` has a trigger that always fires', name) FROM found
  WHERE EXISTS (SELECT FROM pg_trigger WHERE tgrelid = found.oid AND tgenabled IN ('A', 'R')
                AND NOT tgisinternal)
  UNION ALL
  SELECT format('`%s` has a rule that always fires', name) FROM found
  WHERE EXISTS (SELECT FROM pg_rewrite WHERE ev_class = found.oid AND ev_enabled IN ('A', 'R'))
  UNION ALL
  SELECT format('`%s` has other columns', name) FROM found
  WHERE NOT columns <@ ARRAY(
      SELECT attname || ' ' || format_type(atttypid, atttypmod) FROM pg_attribute
      WHERE attrelid = found.oid AND attnum > 0 AND NOT attisdropped)
    OR EXISTS (SELECT FROM pg_attribute WHERE attrelid = found.oid AND attnum > 0
               AND NOT attisdropped AND attgenerated <> '')
  UNION ALL
  SELECT format('`%s` computes something on a write', name) FROM found
  WHERE EXISTS (SELECT FROM pg_attrdef
                WHERE adrelid = found.oid AND pg_get_expr(adbin, adrelid) <> 'true')
    OR EXISTS (SELECT FROM pg_constraint WHERE conrelid = found.oid AND contype = 'c'
               AND pg_get_constraintdef(oid) <> 'CHECK (one)')
    OR EXISTS (SELECT FROM pg_index WHERE indrelid = found.oid
               AND (indexprs IS NOT NULL OR indpred IS NOT NULL))
  UNION ALL
  SELECT format('`%s` has no primary key', name) FROM found
  WHERE relkind = 'r' AND NOT EXISTS (
    SELECT FROM pg_index WHERE indrelid = found.oid AND indisprimary AND indisvalid)
)
SELECT json_build_object(
  'schema', EXISTS (SELECT FROM schema),
  'missing', (SELECT COALESCE(json_agg(name), '[]'::json) FROM wanted
              WHERE name NOT IN (SELECT name FROM found)),
  'strange', (SELECT COALESCE(json_agg(why), '[]'::json) FROM strange)
)::text";

#[derive(Deserialize)]
struct Inspected {
    schema: bool,
    missing: Vec<String>,
    strange: Vec<String>,
}

const SCHEMA: &str = "CREATE SCHEMA failover;";

const HEARTBEAT: &str = "
CREATE TABLE failover.heartbeat (
  site text NOT NULL,
  vantage text NOT NULL,
  sequence bigint NOT NULL,
  written timestamptz NOT NULL,
  PRIMARY KEY (site, vantage)
);";

const EPOCH: &str = "
CREATE TABLE failover.epoch (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  epoch bigint NOT NULL,
  site text NOT NULL,
  written timestamptz NOT NULL
);";

/// Creates the schema `failover` with its two tables where they are missing; where all is there,
/// nothing is changed, so that nothing which forbids changes is met. A schema of that name that is
/// not ours is set aside under another name and kept. Needs a superuser, and a primary.
pub async fn prepare(database: &Database, timeout: Duration) -> Result<(), EffectError> {
    let deadline = Deadline::after(timeout);
    let found: Inspected = database.read(INSPECT, &[], deadline.left()).await?;
    let mut statements = String::new();
    let anew = !found.schema || !found.strange.is_empty();
    if found.schema && anew {
        let aside: String = database
            .read(
                "SELECT to_json(format('failover_set_aside_%s',
                   to_char(clock_timestamp(), 'YYYYMMDD_HH24MISS_MS')))::text",
                &[],
                deadline.left(),
            )
            .await?;
        let why = found.strange.join(", ");
        tracing::warn!(%why, %aside, "a schema `failover` that is not ours is set aside");
        statements.push_str(&format!("ALTER SCHEMA failover RENAME TO {aside};"));
    }
    if anew {
        statements.push_str(SCHEMA);
    }
    for (name, table) in [("heartbeat", HEARTBEAT), ("epoch", EPOCH)] {
        if anew || found.missing.iter().any(|missing| missing == name) {
            statements.push_str(table);
        }
    }
    if statements.is_empty() {
        return Ok(());
    }
    // One transaction: all of it or nothing.
    Ok(database.run(&statements, deadline.left()).await?)
}

/// Lets `role` look and write heartbeats, and no more: `pg_read_all_stats`, so that the columns of
/// the views on replication are not hidden from it (postgres.md P11), its heartbeat, the epoch to read
/// and, from PostgreSQL 16 on, the reserved connections (postgres.md P39). What it has is not granted
/// again. Needs a superuser.
pub async fn allow_monitoring(
    database: &Database,
    role: &str,
    timeout: Duration,
) -> Result<(), EffectError> {
    const GRANTS: &str = "
        SELECT to_json(COALESCE(string_agg(format(statement, $1), ';'), ''))::text
        FROM (VALUES
          ('GRANT pg_read_all_stats TO %I', pg_has_role($1, 'pg_read_all_stats', 'USAGE')),
          ('GRANT USAGE ON SCHEMA failover TO %I', has_schema_privilege($1, 'failover', 'USAGE')),
          ('GRANT SELECT, INSERT, UPDATE ON failover.heartbeat TO %I',
            has_table_privilege($1, 'failover.heartbeat', 'SELECT')
            AND has_table_privilege($1, 'failover.heartbeat', 'INSERT')
            AND has_table_privilege($1, 'failover.heartbeat', 'UPDATE')),
          ('GRANT SELECT ON failover.epoch TO %I',
            has_table_privilege($1, 'failover.epoch', 'SELECT')),
          ('REVOKE INSERT, UPDATE ON failover.epoch FROM %I',
            NOT has_table_privilege($1, 'failover.epoch', 'INSERT')
            AND NOT has_table_privilege($1, 'failover.epoch', 'UPDATE')),
          ('GRANT pg_use_reserved_connections TO %I', CASE
            WHEN current_setting('server_version_num')::int < 160000 THEN true
            ELSE pg_has_role($1, 'pg_use_reserved_connections', 'USAGE') END)
        ) AS rights(statement, held)
        WHERE NOT held";
    let deadline = Deadline::after(timeout);
    let grants: String = database
        .read(GRANTS, &[(&role, Type::TEXT)], timeout)
        .await?;
    if grants.is_empty() {
        return Ok(());
    }
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
