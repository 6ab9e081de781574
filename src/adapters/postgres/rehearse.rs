//! What a sever and its undo need of a standby, asked before they are needed: the setting that they change is
//! written with the value that it shall have in any case.

use std::time::Duration;

use serde::Deserialize;

use super::connect::{Connect, Database, Deadline, Secret};
use super::error::not_begun;
use super::setting;
use crate::ports::EffectError;

/// What came of a rehearsal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rehearsed {
    /// Why a sever, its undo or a promotion would fail, where they would.
    pub obstacle: Option<String>,
    /// The `primary_conninfo` that another one took the place of.
    pub replaced: Option<Secret>,
    /// Whether WAL was streaming before.
    pub streamed: bool,
}

const LOOK: &str = "
SELECT pg_catalog.json_build_object(
  'standby', pg_catalog.pg_is_in_recovery(),
  'conninfo', pg_catalog.current_setting('primary_conninfo'),
  'fixed', (
    SELECT pg_catalog.string_agg(name, ', ' ORDER BY name) FROM pg_catalog.pg_settings
    WHERE source IN ('command line', 'environment variable')
      AND (name = 'primary_conninfo' OR name = 'synchronous_standby_names' AND setting <> '')),
  'streams', EXISTS (SELECT FROM pg_catalog.pg_stat_wal_receiver WHERE status = 'streaming')
)::pg_catalog.text";

#[derive(Deserialize)]
struct Look {
    standby: bool,
    conninfo: String,
    fixed: Option<String>,
    streams: bool,
}

/// Writes what a standby shall run with, as a sever and a reconnect do, and applies it where it runs with
/// something else; without a `conninfo` what it has. An empty `primary_conninfo` is somebody's wish, and stays, unless the server has only just
/// been started (`fresh`). `None`: this is no standby.
///
/// An error is no answer about the sever: the server was not asked, or did not say.
///
/// Needs a superuser, as the agent is over the local socket.
pub async fn rehearse(
    connect: &Connect,
    conninfo: Option<&Secret>,
    fresh: bool,
    deadline: Duration,
) -> Result<Option<Rehearsed>, EffectError> {
    let deadline = Deadline::after(deadline);
    let database = Database::open(connect, deadline.left())
        .await
        .map_err(not_begun)?;
    let look: Look = database.read(LOOK, &[], deadline.left()).await?;
    if !look.standby {
        return Ok(None);
    }
    let rehearsed = |obstacle, replaced| {
        Ok(Some(Rehearsed {
            obstacle,
            replaced,
            streamed: look.streams,
        }))
    };
    // What we write would be taken, and have no effect (postgres.md P27).
    if let Some(fixed) = &look.fixed {
        let why =
            format!("{fixed} is given on the command line of `postgres`, which takes precedence");
        return rehearsed(Some(why), None);
    }
    let wanted = match conninfo {
        Some(conninfo) if fresh || !look.conninfo.is_empty() => {
            let version: Version = database.read(VERSION, &[], deadline.left()).await?;
            version.with_dbname(conninfo.expose(), connect.dbname().unwrap_or("postgres"))
        }
        Some(_) | None => look.conninfo.clone(),
    };
    setting::nobody_else(&database, deadline).await?;
    let name = "primary_conninfo";
    match setting::write(&database, name, &wanted, deadline).await {
        Ok(()) => {}
        Err(error) if error.state().is_some() => return rehearsed(Some(error.to_string()), None),
        Err(error) => return Err(error.into()),
    }
    if wanted == look.conninfo {
        return rehearsed(None, None);
    }
    setting::apply(&database, name, &wanted, deadline).await?;
    let was = Secret::new(look.conninfo.as_str());
    rehearsed(None, Some(was))
}

/// What decides about a database in `primary_conninfo`.
#[derive(Deserialize)]
pub(super) struct Version {
    version: u32,
    syncs_slots: Option<String>,
}

/// Reads a [`Version`].
pub(super) const VERSION: &str = "
SELECT pg_catalog.json_build_object(
  'version', pg_catalog.current_setting('server_version_num')::pg_catalog.int4,
  'syncs_slots', pg_catalog.current_setting('sync_replication_slots', true)
)::pg_catalog.text";

impl Version {
    /// From version 17 on a standby synchronises logical slots only where its `primary_conninfo` names a
    /// database (postgres.md P29): the one that the connection string names, else `dbname`.
    pub(super) fn with_dbname(&self, conninfo: &str, dbname: &str) -> String {
        let syncs = self.version >= 170_000 && self.syncs_slots.as_deref() == Some("on");
        if syncs && parameter(conninfo, "dbname").is_none() {
            format!("{conninfo} dbname={dbname}")
        } else {
            conninfo.to_owned()
        }
    }
}

/// A parameter of a connection string, as it is written.
fn parameter<'c>(conninfo: &'c str, name: &str) -> Option<&'c str> {
    conninfo
        .split_whitespace()
        .find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_named_where_slots_are_synchronised_by_it() {
        let version = |version, syncs: &str| Version {
            version,
            syncs_slots: Some(syncs.to_owned()),
        };
        let ours = "host=a user=r";
        assert_eq!(version(170_010, "off").with_dbname(ours, "app"), ours);
        assert_eq!(version(150_018, "on").with_dbname(ours, "app"), ours);
        let named = "host=a user=r dbname=app";
        assert_eq!(version(170_010, "on").with_dbname(ours, "app"), named);
        assert_eq!(version(180_004, "on").with_dbname(named, "other"), named);
    }
}
