//! The readings of the primary's position: what they say of a standby's, and how fast WAL is
//! written.

use std::collections::VecDeque;
use std::time::Duration;

use super::units::{Bytes, Lsn, MonoTime, as_millis};

/// One reading of the primary's position: every commit acknowledged before `began` is at or below
/// `position`. The declared window starts at the latest reading that the standby covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PositionSample {
    /// When the reading began.
    pub began: MonoTime,
    /// The primary's position.
    pub position: Lsn,
}

/// How many readings are kept, 6 KiB. Their spacing grows with their age: a hundredth of it over the
/// last minutes at eight readings a second, and a few hundredths over a day.
pub const SAMPLES_KEPT: usize = 256;

/// Readings this close together are as good as one, however young they are.
const CLOSE: Duration = Duration::from_secs(1);

/// The readings of the primary's position, oldest first. Of many the older ones are thinned out: a
/// reading that is gone makes the one before it count, so a loss looks larger and never smaller.
#[derive(Debug, Clone, Default)]
pub struct PositionHistory {
    samples: VecDeque<PositionSample>,
    confirmed: Option<Lsn>,
}

impl PositionHistory {
    /// Adds a reading. One that is older than the last is ignored: a late answer adds nothing.
    pub fn add(&mut self, sample: PositionSample) {
        if self
            .samples
            .back()
            .is_some_and(|last| sample.began < last.began)
        {
            return;
        }
        if self.samples.len() >= SAMPLES_KEPT {
            self.thin_out(sample.began);
        }
        self.samples.push_back(sample);
    }

    /// Drops the reading that is missed least: the one between whose neighbours the least time lies,
    /// compared with its age. The oldest and the newest stay.
    fn thin_out(&mut self, now: MonoTime) {
        let before = self.samples.iter();
        let after = self.samples.iter().skip(2);
        let inner = self.samples.iter().enumerate().skip(1);
        let each = inner.zip(before).zip(after);
        let least = each.min_by_key(|(((_, sample), before), after)| {
            let gap = as_millis(after.began.0.saturating_sub(before.began.0));
            let age = as_millis(now.since(sample.began).saturating_add(CLOSE));
            u128::from(gap)
                .saturating_mul(1 << 32)
                .checked_div(u128::from(age))
        });
        if let Some((((index, _), _), _)) = least {
            self.samples.remove(index);
        }
    }

    /// The primary reports that its standby has flushed up to `position`.
    pub fn confirm(&mut self, flushed: Option<Lsn>) {
        self.confirmed = self.confirmed.max(flushed);
    }

    /// How far the standby has flushed, as the primary reports; `None` if it never did.
    pub fn confirmed(&self) -> Option<Lsn> {
        self.confirmed
    }

    /// Forgets all readings: another primary has another history.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// The last reading.
    pub fn last(&self) -> Option<PositionSample> {
        self.samples.back().copied()
    }

    /// The latest reading that a standby at `position` covers: whatever was acknowledged before it
    /// began is safe there.
    pub fn covered_by(&self, position: Lsn) -> Option<PositionSample> {
        self.samples
            .iter()
            .rev()
            .find(|sample| sample.position <= position)
            .copied()
    }

    /// WAL written per second, over about the last half minute of readings. Zero with fewer than
    /// two.
    pub fn rate(&self) -> Bytes {
        let Some(last) = self.last() else {
            return Bytes(0);
        };
        let recent =
            |sample: &&PositionSample| last.began.since(sample.began) <= Duration::from_secs(30);
        let Some(first) = self.samples.iter().rev().take_while(recent).last() else {
            return Bytes(0);
        };
        let took = last.began.since(first.began).as_millis().max(1);
        let written = u128::from(last.position.bytes_since(first.position).0);
        let rate = written.saturating_mul(1000).checked_div(took).unwrap_or(0);
        Bytes::of(u64::try_from(rate).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(seconds: u64, position: u64) -> PositionSample {
        PositionSample {
            began: MonoTime(Duration::from_secs(seconds)),
            position: Lsn(position),
        }
    }

    #[test]
    fn what_the_standby_has_covers_the_latest_reading_at_or_below_it() {
        let mut history = PositionHistory::default();
        assert_eq!(history.covered_by(Lsn(9)), None);
        for (at, position) in [(1, 100), (2, 200), (3, 300)] {
            history.add(sample(at, position));
        }
        assert_eq!(history.covered_by(Lsn(299)), Some(sample(2, 200)));
        assert_eq!(history.covered_by(Lsn(300)), Some(sample(3, 300)));
        assert_eq!(history.covered_by(Lsn(99)), None);
    }

    #[test]
    fn a_late_answer_does_not_rewrite_history() {
        let mut history = PositionHistory::default();
        history.add(sample(2, 200));
        history.add(sample(1, 900));
        assert_eq!(history.last(), Some(sample(2, 200)));
    }

    #[test]
    fn the_rate_is_per_second_and_survives_too_few_readings() {
        let mut history = PositionHistory::default();
        assert_eq!(history.rate(), Bytes(0));
        history.add(sample(1, 100));
        assert_eq!(history.rate(), Bytes(0));
        history.add(sample(3, 2100));
        assert_eq!(history.rate(), Bytes(1000));
    }

    /// A source of numbers: splitmix64.
    fn number(of: u64) -> u64 {
        let z = of.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    #[test]
    fn thinned_out_readings_never_cover_more_and_hardly_less() {
        for seed in 0..20 {
            let (mut history, mut all) = (PositionHistory::default(), Vec::new());
            let (mut at, mut position) = (MonoTime(Duration::from_secs(1)), 0);
            for count in 0..6000 {
                let drawn = number(seed * 100_000 + count);
                at = at.plus(Duration::from_millis(drawn % 1000));
                position += (drawn >> 20) % 4096;
                let sample = PositionSample {
                    began: at,
                    position: Lsn(position),
                };
                history.add(sample);
                all.push(sample);
                assert!(history.samples.len() <= SAMPLES_KEPT);
                if count % 97 != 0 {
                    continue;
                }
                let has = Lsn(number(drawn) % (position + 1));
                let whole = all.iter().rev().find(|sample| sample.position <= has);
                let kept = history.covered_by(has).map(|sample| sample.began);
                let whole = whole.map(|sample| sample.began);
                assert!(kept <= whole, "seed {seed}: a window that looks shorter");
                let (Some(kept), Some(whole)) = (kept, whole) else {
                    assert_eq!(kept, whole, "seed {seed}: the first reading stays");
                    continue;
                };
                let age = at.since(whole);
                let most = age + age / 10 + Duration::from_secs(2);
                assert!(
                    at.since(kept) <= most,
                    "seed {seed}: {:?} of {age:?}",
                    at.since(kept)
                );
            }
        }
    }

    #[test]
    fn a_flood_of_readings_at_one_moment_leaves_the_others() {
        let mut history = PositionHistory::default();
        for second in 1..=200 {
            history.add(sample(second, second * 100));
        }
        for _ in 0..10_000 {
            history.add(sample(200, 20_000));
        }
        let kept = history.covered_by(Lsn(15_000)).unwrap().began;
        assert_eq!(kept, sample(150, 0).began);
        assert_eq!(history.rate(), Bytes(100));
    }
}
