//! Settings that are changed for good, by `ALTER SYSTEM`.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::connect::{Database, Deadline};
use crate::ports::{EffectError, LastError};

/// Sets a setting that a reload changes, and returns when a session of the server has taken it
/// up. Survives a restart. Allowed on a standby too: it writes a file, not WAL.
pub(super) async fn set(
    database: &Database,
    name: &str,
    value: &str,
    deadline: Deadline,
) -> Result<(), EffectError> {
    // `ALTER SYSTEM` takes no parameters; the server itself quotes best.
    let statement: String = database
        .read(
            "SELECT to_json(format('ALTER SYSTEM SET %I = %L', $1, $2))::text",
            &[(&name, Type::TEXT), (&value, Type::TEXT)],
            deadline.left(),
        )
        .await?;
    database.run(&statement, deadline.left()).await?;
    database
        .run("SELECT pg_reload_conf()", deadline.left())
        .await?;
    let mut last = LastError::default();
    loop {
        let now: Result<String, _> = database
            .read(
                "SELECT to_json(current_setting($1))::text",
                &[(&name, Type::TEXT)],
                deadline.left(),
            )
            .await;
        match now {
            Ok(now) if now == value => return Ok(()),
            Ok(_) => last.say(
                format!(
                    "`{name}` was set by `ALTER SYSTEM` but the server does not take it up: is it \
                     set on the command line of `postgres` too"
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
