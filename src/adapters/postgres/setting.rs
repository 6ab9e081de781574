//! Settings that are changed for good, by `ALTER SYSTEM`.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::connect::{Database, Deadline};
use super::error::SqlError;
use crate::ports::{EffectError, LastError};

/// Sets a setting that a reload changes, and returns when a session of the server has taken it
/// up. Survives a restart. Allowed on a standby too: it writes a file, not WAL (postgres.md P27).
pub(super) async fn set(
    database: &Database,
    name: &str,
    value: &str,
    deadline: Deadline,
) -> Result<(), EffectError> {
    nobody_else(database, deadline).await?;
    write(database, name, value, deadline).await?;
    apply(database, name, value, deadline).await
}

/// Refuses while another `ALTER SYSTEM` of ours is under way, of an agent that gave up waiting, say: it could
/// still come into force after this one.
pub(super) async fn nobody_else(
    database: &Database,
    deadline: Deadline,
) -> Result<(), EffectError> {
    const OTHERS: &str = "
        SELECT pg_catalog.count(*)::pg_catalog.text FROM pg_catalog.pg_stat_activity
        WHERE application_name = 'failover' AND pid <> pg_catalog.pg_backend_pid()
          AND state = 'active' AND query LIKE 'ALTER SYSTEM%'";
    let others: u64 = database.read(OTHERS, &[], deadline.left()).await?;
    if others > 0 {
        let why = "another `ALTER SYSTEM` of ours is still under way".to_owned();
        return Err(EffectError::Failed(why));
    }
    Ok(())
}

/// Writes a setting into the file of `ALTER SYSTEM`, without telling the server.
pub(super) async fn write(
    database: &Database,
    name: &str,
    value: &str,
    deadline: Deadline,
) -> Result<(), SqlError> {
    // `ALTER SYSTEM` takes no parameters; the server itself quotes best.
    let statement: String = database
        .read(
            "SELECT pg_catalog.to_json(pg_catalog.format('ALTER SYSTEM SET %I = %L', $1, $2))::pg_catalog.text",
            &[(&name, Type::TEXT), (&value, Type::TEXT)],
            deadline.left(),
        )
        .await?;
    database.run(&statement, deadline.left()).await
}

/// Has the server read its files, and returns when a session of it has taken the setting up.
pub(super) async fn apply(
    database: &Database,
    name: &str,
    value: &str,
    deadline: Deadline,
) -> Result<(), EffectError> {
    database
        .run("SELECT pg_catalog.pg_reload_conf()", deadline.left())
        .await?;
    let mut last = LastError::default();
    loop {
        let now: Result<String, _> = database
            .read(
                "SELECT pg_catalog.to_json(pg_catalog.current_setting($1))::pg_catalog.text",
                &[(&name, Type::TEXT)],
                deadline.left(),
            )
            .await;
        match now {
            Ok(now) if now == value => return Ok(()),
            Ok(_) => last.say(
                format!(
                    "`{name}` was set by `ALTER SYSTEM` but the server does not apply it: is it \
                     also set on the command line of `postgres`"
                ),
                false,
            ),
            Err(error) if error.is_late() => last.say(error.to_string(), true),
            Err(error) => return Err(error.into()),
        }
        if !deadline.pause(Duration::from_millis(3)).await {
            return Err(EffectError::Unknown(last.tell()));
        }
    }
}
