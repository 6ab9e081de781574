//! Cutting a standby off its primary for good, and undoing that.

use std::time::Duration;

use serde::Deserialize;

use super::connect::{Connect, Database, Deadline, Secret};
use super::error::{SqlError, not_begun};
use super::rehearse::{VERSION, Version};
use super::setting;
use crate::engine::units::Lsn;
use crate::ports::EffectError;

/// A standby after it was cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Severed {
    /// The frozen position: all that arrived (postgres.md P5).
    pub position: Lsn,
    /// How much of it is replayed. Less than `position` where the last record arrived in part
    /// only, which a promotion drops (postgres.md P6), or where replay is slow, paused or held up by a
    /// query.
    pub replayed: Lsn,
    /// Whether the receiver has ended. Where it has not, WAL may still arrive: the standby is *not*
    /// severed, whatever the settings say. It is the startup process that ends it, once it has replayed
    /// all that arrived: never, where replay is paused or waits for a query (postgres.md P26).
    pub receiver_gone: bool,
    /// The process that receives, where one was seen and has not ended.
    pub receiver: Option<i32>,
    /// The `primary_conninfo` that was taken away: what [`reconnect`] needs. Empty when it had
    /// been taken away before: keep the first one.
    pub conninfo_was: Secret,
}

/// One look at how far the standby is. A receiver that still connects is no row of
/// `pg_stat_wal_receiver` yet, but is a process.
const LOOK: &str = "
SELECT json_build_object(
  'standby', pg_is_in_recovery(),
  'conninfo', current_setting('primary_conninfo'),
  'receiver', EXISTS (SELECT FROM pg_stat_wal_receiver)
    OR EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'walreceiver'),
  'receiver_pid', (SELECT pid FROM pg_stat_activity WHERE backend_type = 'walreceiver'),
  'received', GREATEST(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()),
  'replayed', pg_last_wal_replay_lsn()
)::text";

#[derive(Deserialize)]
struct Look {
    standby: bool,
    conninfo: String,
    receiver: bool,
    receiver_pid: Option<i32>,
    received: Option<Lsn>,
    replayed: Option<Lsn>,
}

const LOOK_EVERY: Duration = Duration::from_millis(10);
/// The startup process takes the new setting up by itself; a receiver that it had asked for just
/// before shows up and goes away within this many looks.
const LOOKS_WITHOUT_RECEIVER: u32 = 3;
/// Replay that stands still for so many looks (a quarter of a second) has come to the end of what
/// is whole.
const LOOKS_WITHOUT_REPLAY: u32 = 25;

/// Cuts a standby off its primary durably (a restart does not connect again), waits for the
/// receiver to end and for replay to reach what was received, and reads the frozen position.
/// Done a second time it changes nothing. `deadline` bounds the whole.
///
/// A `restore_command` is left alone: WAL from an archive can only lessen the loss.
///
/// Needs a superuser, as the agent is over the local socket.
pub async fn sever(connect: &Connect, deadline: Duration) -> Result<Severed, EffectError> {
    let deadline = Deadline::after(deadline);
    let database = Database::open(connect, deadline.left())
        .await
        .map_err(not_begun)?;
    let before: Look = database.read(LOOK, &[], deadline.left()).await?;
    if !before.standby {
        return Err(EffectError::Refused(
            "this is a primary: there is nothing to sever it from".to_owned(),
        ));
    }
    setting::set(&database, "primary_conninfo", "", deadline).await?;

    let mut seen: Option<Severed> = None;
    let (mut absent, mut still) = (0, 0);
    loop {
        let look: Look = match (database.read(LOOK, &[], deadline.left()).await, seen) {
            (Ok(look), last) => {
                seen = last;
                look
            }
            // The deadline cut this look short: the one before it is the report.
            (Err(SqlError::Timeout(_)), Some(last)) => return Ok(last),
            (Err(error), _) => return Err(error.into()),
        };
        let unknown = || EffectError::Unknown("the standby has no log position".to_owned());
        let position = look.received.ok_or_else(unknown)?;
        let replayed = look.replayed.ok_or_else(unknown)?;
        absent = if look.receiver { 0 } else { absent + 1 };
        let gone = absent >= LOOKS_WITHOUT_RECEIVER;
        let unmoved = seen.is_some_and(|last| last.receiver_gone && last.replayed == replayed);
        still = if unmoved { still + 1 } else { 0 };
        let report = Severed {
            position,
            replayed,
            receiver_gone: gone,
            receiver: look.receiver_pid.filter(|_| !gone),
            conninfo_was: Secret::new(before.conninfo.as_str()),
        };
        let replay_ended = replayed >= position || still >= LOOKS_WITHOUT_REPLAY;
        if gone && replay_ended || !deadline.pause(LOOK_EVERY).await {
            return Ok(report);
        }
        seen = Some(report);
    }
}

/// The undo of [`sever`]: gives the standby its `primary_conninfo` back, as a text, because
/// `ALTER SYSTEM RESET` would bring back what the main file says, which is not where
/// `pg_basebackup` writes it. Does not wait for streaming: the facts show it.
pub async fn reconnect(
    connect: &Connect,
    conninfo: &Secret,
    deadline: Duration,
) -> Result<(), EffectError> {
    if conninfo.expose().is_empty() {
        return Err(EffectError::Refused(
            "an empty `primary_conninfo` connects to nothing: give the one that `sever` cleared"
                .to_owned(),
        ));
    }
    let deadline = Deadline::after(deadline);
    let database = Database::open(connect, deadline.left())
        .await
        .map_err(not_begun)?;
    let look: Version = database.read(VERSION, &[], deadline.left()).await?;
    let dbname = connect.dbname().unwrap_or("postgres");
    let wanted = look.with_dbname(conninfo.expose(), dbname);
    setting::set(&database, "primary_conninfo", &wanted, deadline).await
}
