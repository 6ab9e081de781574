//! Everything that speaks SQL to PostgreSQL 14 to 18: what an instance says of itself, and the
//! few changes that a failover makes to one. Nothing here starts or stops a server.

mod session;
mod socket;
mod error;
mod connect;
mod password;
mod setting;
mod hindrance;
mod facts;
mod prepare;
mod history;
mod rehearse;
mod slot;
mod sever;
mod promote;
mod synchronous;
mod room;

pub use connect::{Connect, ConnectError, Database, Secret};
pub use facts::{HeartbeatWrite, facts, probe, standing};
pub use history::{History, HistoryError, Switch, read_history};
pub(crate) use password::PasswordFile;
pub use prepare::{allow_monitoring, prepare, write_epoch};
pub use promote::{Promoted, checkpoint, promote};
pub use rehearse::{Rehearsed, rehearse};
pub use room::room;
pub use sever::{Severed, reconnect, sever};
pub use slot::keep_slot;
pub use synchronous::{go_on_alone, look_at_standby, wait_for_standby};
