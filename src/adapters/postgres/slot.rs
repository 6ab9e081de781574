//! The replication slot on a primary that its standby asks for: no slot moves with a failover
//! (postgres.md P28).

use std::time::Duration;

use serde::Deserialize;
use tokio_postgres::types::Type;

use super::connect::{Connect, Database, Deadline};
use super::error::not_begun;
use crate::ports::EffectError;

#[derive(Deserialize)]
struct Look {
    primary: bool,
    physical: Option<bool>,
    active: bool,
    lost: bool,
}

/// Makes a physical slot where it is missing, and anew where it was invalidated: it holds no WAL any more, and no
/// standby can use it. Says what was done; `None`: it is there and of use.
///
/// Needs a superuser, or the attribute `REPLICATION`.
pub async fn keep_slot(
    connect: &Connect,
    name: &str,
    deadline: Duration,
) -> Result<Option<&'static str>, EffectError> {
    const LOOK: &str = "
        SELECT pg_catalog.json_build_object(
          'primary', NOT pg_catalog.pg_is_in_recovery(),
          'physical', (SELECT slot_type = 'physical' FROM pg_catalog.pg_replication_slots
                       WHERE slot_name = $1),
          'active', COALESCE((SELECT active FROM pg_catalog.pg_replication_slots
                              WHERE slot_name = $1), false),
          'lost', COALESCE((SELECT wal_status = 'lost' FROM pg_catalog.pg_replication_slots
                            WHERE slot_name = $1), false)
        )::pg_catalog.text";
    const MAKE: &str = "
        SELECT pg_catalog.to_json(slot_name)::pg_catalog.text
        FROM pg_catalog.pg_create_physical_replication_slot($1, true)";
    const DROP: &str = "
        SELECT pg_catalog.to_json(pg_catalog.pg_drop_replication_slot($1)::pg_catalog.text)::pg_catalog.text";
    let deadline = Deadline::after(deadline);
    let database = Database::open(connect, deadline.left())
        .await
        .map_err(not_begun)?;
    let slot = [(
        &name as &(dyn tokio_postgres::types::ToSql + Sync),
        Type::NAME,
    )];
    let look: Look = database.read(LOOK, &slot, deadline.left()).await?;
    let done = match (look.primary, look.physical) {
        (false, _) => return Ok(None),
        (true, Some(false)) => {
            let why = format!("the slot `{name}` is a logical one, which no standby can use");
            return Err(EffectError::Refused(why));
        }
        (true, Some(true)) if !look.lost || look.active => return Ok(None),
        (true, Some(true)) => {
            let _dropped: String = database.read(DROP, &slot, deadline.left()).await?;
            "invalidated, and recreated"
        }
        (true, None) => "missing, and created",
    };
    let _made: String = database.read(MAKE, &slot, deadline.left()).await?;
    Ok(Some(done))
}
