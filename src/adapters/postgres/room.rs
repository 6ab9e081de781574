//! How many connections a server has left for roles without privileges.

use std::time::Duration;

use serde::Deserialize;

use super::connect::{Connect, Database, Deadline};
use crate::engine::observation::ProbeFailure;

/// What is kept for superusers, and from 16 on for who is granted it, is no room for others
/// (postgres.md P39). The count includes the connection that asks.
const ROOM: &str = "
SELECT pg_catalog.json_build_object('left',
  pg_catalog.current_setting('max_connections')::pg_catalog.int8
  - pg_catalog.current_setting('superuser_reserved_connections')::pg_catalog.int8
  - COALESCE(pg_catalog.current_setting('reserved_connections', true), '0')::pg_catalog.int8
  - (SELECT pg_catalog.sum(numbackends) FROM pg_catalog.pg_stat_database)::pg_catalog.int8
)::pg_catalog.text";

#[derive(Debug, Deserialize)]
struct Room {
    left: i64,
}

/// How many more connections it takes, asked on a fresh one; `timeout` bounds the whole.
pub async fn room(connect: &Connect, timeout: Duration) -> Result<u64, ProbeFailure> {
    let deadline = Deadline::after(timeout);
    let database = Database::open(connect, timeout).await?;
    let room: Room = database.read(ROOM, &[], deadline.left()).await?;
    Ok(u64::try_from(room.left).unwrap_or(0))
}
