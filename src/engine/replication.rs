//! What is known of the way from the active database to its standby, as ages.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::position::PositionHistory;
use super::replay::Replay;
use super::units::{Aged, Bytes, Lsn, MonoTime, millis};

/// What is known of the way from the active database to the standby.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replication {
    /// The newest reading of the primary's position, and how old it is.
    pub primary: Option<Aged<Lsn>>,
    /// The newest position of the standby, and how old that reading is.
    pub standby: Option<Aged<Lsn>>,
    /// How far the standby has flushed, by the word of the active side: the passive side's own word never
    /// makes a loss smaller than that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed: Option<Lsn>,
    /// How long ago a reading of the primary began that the standby has whole: what was
    /// acknowledged before is safe.
    #[serde(rename = "covered_ms", with = "millis::option")]
    pub covered: Option<Duration>,
    /// How long ago the standby's position was last seen to advance.
    #[serde(rename = "advanced_ms", with = "millis::option")]
    pub advanced: Option<Duration>,
    /// WAL written a second, lately.
    pub rate: Bytes,
    /// How far the standby has replayed what it has; `None`: it was never seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<Replay>,
    /// While commits wait for the standby: what a stream of its name has confirmed and it does not have, by its
    /// own later word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contradicted: Option<Bytes>,
    /// Whether the active site is another installation than the one that the standby followed: what
    /// their positions have in common is then not known.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replaced: bool,
    /// For how long a commit of a user was seen to wait for a standby, as of the last look.
    #[serde(default, rename = "commits_wait_ms", with = "millis")]
    pub commits_wait: Duration,
}

impl Replication {
    /// What follows from the readings at a moment.
    pub fn at(
        now: MonoTime,
        primary: &PositionHistory,
        standby: Option<(MonoTime, Lsn)>,
        advanced: Option<MonoTime>,
    ) -> Self {
        let last = primary.last();
        let confirmed = primary.confirmed();
        let covered = standby
            .zip(confirmed)
            .and_then(|((_, has), confirmed)| primary.covered_by(has.min(confirmed)));
        Self {
            primary: last.map(|read| Aged {
                age: now.since(read.began),
                fact: read.position,
            }),
            standby: standby.map(|(read, position)| Aged {
                age: now.since(read),
                fact: position,
            }),
            confirmed,
            covered: covered.map(|reading| now.since(reading.began)),
            advanced: advanced.map(|moment| now.since(moment)),
            rate: primary.rate(),
            replay: None,
            contradicted: None,
            replaced: false,
            commits_wait: Duration::ZERO,
        }
    }

    /// For how long the standby was seen not to advance, as of its last reading: after that it may
    /// have advanced unseen, so that time does not count. `None`: it was never read.
    pub fn quiet(&self) -> Option<Duration> {
        let unseen = self.standby.as_ref()?.age;
        Some(self.advanced?.saturating_sub(unseen))
    }

    /// How far the standby is behind the newest reading of the primary.
    pub fn lag(&self) -> Option<Bytes> {
        Some(
            self.primary
                .as_ref()?
                .fact
                .bytes_since(self.standby.as_ref()?.fact),
        )
    }

    /// How long until the estimated loss, which grows with the age of the last reading, is larger than
    /// `limit`. `None`: it is already, or never will be.
    pub fn exceeds_in(&self, limit: Bytes) -> Option<Duration> {
        let last = self.primary.as_ref()?;
        let more = limit.0.checked_sub(self.lacking()?.0)?.saturating_add(1);
        let ms = u128::from(more).saturating_mul(1000);
        let rate = u128::from(self.rate.0);
        let ms = ms
            .saturating_add(rate.saturating_sub(1))
            .checked_div(rate)?;
        let exceeded = Duration::from_millis(u64::try_from(ms).unwrap_or(u64::MAX));
        let left = exceeded.checked_sub(last.age)?;
        (!left.is_zero()).then_some(left)
    }

    /// What the standby lacked at the last reading, by its own word or the active side's, whichever
    /// is less.
    fn lacking(&self) -> Option<Bytes> {
        let has = self.standby.as_ref()?.fact;
        let has = self.confirmed.map_or(has, |confirmed| has.min(confirmed));
        Some(self.primary.as_ref()?.fact.bytes_since(has))
    }

    /// What a promotion would lose, as an estimate: what the standby lacked at the last reading, by its own
    /// word or the active side's, whichever is less, and the rate of writing over the age of that
    /// reading.
    pub fn loss_estimate(&self) -> Option<Bytes> {
        let lag = self.lacking()?;
        let age = self.primary.as_ref()?.age;
        let since = u128::from(self.rate.0)
            .saturating_mul(age.as_millis())
            .checked_div(1000)?;
        Some(lag.plus(Bytes::of(u64::try_from(since).unwrap_or(u64::MAX))))
    }
}
