//! A policy's requirements on the data: how much may be lost, whether commits wait for the
//! standby, and how far its replay may lag.

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::document::Section;
use super::units::{Bytes, UnitError, millis};

/// The policy table `[data]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Data {
    /// The largest loss that an automatic failover may declare, in bytes of WAL.
    pub max_loss: Bytes,
    /// How far back the declared window may begin. 1 s to 1 day.
    #[serde(rename = "max_loss_window_ms", with = "millis")]
    pub max_loss_window: Duration,
    /// Whether a commit waits for the standby.
    pub durability: Durability,
    /// What happens to commits when the standby they wait for stalls.
    pub on_stall: OnStall,
    /// How long the standby may need to replay what it has received before it can take writes. 100
    /// ms to 1 h.
    #[serde(rename = "max_replay_time_ms", with = "millis")]
    pub max_replay_time: Duration,
}

/// Whether a commit waits for the standby.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// No: the loss is bounded by a gate and declared.
    Async,
    /// Yes, so that a failover loses nothing; the agent goes on without the standby only with a
    /// permission that was logged first.
    Sync,
}

/// What happens to commits when the standby they wait for stalls. Written `block` or `release-after
/// 10s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "on_stall")]
pub enum OnStall {
    /// They wait for as long as it takes.
    Block,
    /// They go on without it once it has stalled for this long.
    ReleaseAfter {
        /// The stall after which they go on. 500 ms to 1 h.
        #[serde(rename = "after_ms", with = "millis")]
        after: Duration,
    },
}

/// The shortest time after which commits may go on without a stalled standby: a link between two
/// clouds often fails for longer than less than this.
const LEAST_STALL: Duration = Duration::from_millis(500);

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

impl FromStr for OnStall {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let rule = "`block`, or `release-after` and 500ms to 1h";
        let wrong = || UnitError::new(text, rule, "release-after 10s");
        if text == "block" {
            return Ok(OnStall::Block);
        }
        let after = text.strip_prefix("release-after ").ok_or_else(wrong)?;
        let after = humantime::parse_duration(after).map_err(|_cause| wrong())?;
        if (LEAST_STALL..=HOUR).contains(&after) {
            Ok(OnStall::ReleaseAfter { after })
        } else {
            Err(wrong())
        }
    }
}

/// Reads and checks the table `[data]`.
pub(super) fn build_data(at: &Section<'_>) -> Option<Data> {
    let max_loss = at.bytes("max_loss");
    let max_loss_window = at.duration("max_loss_window", SECOND..=DAY);
    let durable = [("async", Durability::Async), ("sync", Durability::Sync)];
    let durability = at.choice("durability", &durable);
    let on_stall = at.parsed("on_stall", "release-after 10s");
    let max_replay_time = at.duration("max_replay_time", Duration::from_millis(100)..=HOUR);
    Some(Data {
        max_loss: max_loss?,
        max_loss_window: max_loss_window?,
        durability: durability?,
        on_stall: on_stall?,
        max_replay_time: max_replay_time?,
    })
}
