//! What goes wrong again and again for as long as something lasts: when that is told. Once when it
//! begins, once more for each other way in which it goes wrong, with a count at growing intervals
//! while it goes on, and once when it is over.

use std::time::Duration;

use super::units::{MonoTime, as_millis};

/// How long it is until it is told again, at first; each time doubles it.
const AGAIN: Duration = Duration::from_secs(30);

/// The longest time until it is told again. What has not come for so long begins anew.
const LONGEST: Duration = Duration::from_secs(300);

/// How long it must have been well to be over: what comes and goes each second is one thing.
const SETTLED: Duration = Duration::from_secs(5);

/// So many ways in which it goes wrong are each told at once.
const TOLD_APART: usize = 4;

/// Something that goes wrong for a while.
#[derive(Debug, Default)]
pub struct Lasting(Option<Spell>);

#[derive(Debug)]
struct Spell {
    since: MonoTime,
    last: MonoTime,
    times: u64,
    /// The ways in which it went wrong that were told.
    told: Vec<String>,
    next: MonoTime,
    pause: Duration,
    /// Since when it is well.
    well: Option<MonoTime>,
}

/// What there is to tell beside what goes wrong: nothing of the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// How often it went wrong.
    pub times: Option<u64>,
    /// For how long, in milliseconds.
    pub ms: Option<u64>,
}

impl Lasting {
    /// It went wrong at `now`, in this way; whether that is to be told.
    pub fn again(&mut self, how: &str, now: MonoTime) -> Option<Told> {
        let lasting = self.0.as_mut();
        let Some(spell) = lasting.filter(|spell| now.since(spell.last) <= LONGEST) else {
            self.0 = Some(Spell {
                since: now,
                last: now,
                times: 1,
                told: vec![how.to_owned()],
                next: now.plus(AGAIN),
                pause: AGAIN,
                well: None,
            });
            return Some(Told {
                times: None,
                ms: None,
            });
        };
        (spell.last, spell.well) = (now, None);
        spell.times = spell.times.saturating_add(1);
        let known = spell.told.iter().any(|told| told == how);
        let new = !known && spell.told.len() < TOLD_APART;
        if !new && now < spell.next {
            return None;
        }
        if new {
            spell.told.push(how.to_owned());
        } else {
            spell.pause = spell.pause.saturating_mul(2).min(LONGEST);
        }
        spell.next = now.plus(spell.pause);
        Some(spell.until(now))
    }

    /// It is well at `now`; what there is to tell once it is over.
    pub fn well(&mut self, now: MonoTime) -> Option<Told> {
        let spell = self.0.as_mut()?;
        let well = *spell.well.get_or_insert(now);
        if now.since(well) < SETTLED {
            return None;
        }
        self.0.take().map(|spell| spell.until(well))
    }

    /// It is over at `now`: what ended it does not come and go.
    pub fn over(&mut self, now: MonoTime) -> Option<Told> {
        self.0.take().map(|spell| spell.until(now))
    }
}

impl Spell {
    fn until(&self, end: MonoTime) -> Told {
        Told {
            times: Some(self.times),
            ms: Some(as_millis(end.since(self.since))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> MonoTime {
        MonoTime(Duration::from_millis(millis))
    }

    /// What is told after so many times, and after so long.
    fn told(times: u64, ms: u64) -> Told {
        Told {
            times: Some(times),
            ms: Some(ms),
        }
    }

    const FIRST: Option<Told> = Some(Told {
        times: None,
        ms: None,
    });

    #[test]
    fn an_hour_of_two_errors_a_second_is_told_a_dozen_times() {
        let mut lasting = Lasting::default();
        let hour = (0..7200u64).map(|half| at(half * 500));
        let said: Vec<Told> = hour.filter_map(|now| lasting.again("gone", now)).collect();
        let seconds = said.iter().map(|told| told.ms.unwrap_or(0) / 1000);
        let seconds: Vec<u64> = seconds.collect();
        let expected = [
            0, 30, 90, 210, 450, 750, 1050, 1350, 1650, 1950, 2250, 2550, 2850, 3150, 3450,
        ];
        assert_eq!(seconds, expected);
        assert_eq!(said[1].times, Some(61));
    }

    #[test]
    fn each_way_is_told_once_and_of_many_the_first_few() {
        let mut lasting = Lasting::default();
        assert_eq!(lasting.again("refused", at(0)), FIRST);
        assert_eq!(lasting.again("timeout", at(500)), Some(told(2, 500)));
        assert_eq!(lasting.again("refused", at(1000)), None);
        assert_eq!(lasting.again("timeout", at(1500)), None);
        let ways = (0..1000).filter_map(|way| lasting.again(&way.to_string(), at(2000)));
        assert_eq!(ways.count(), TOLD_APART - 2);
    }

    #[test]
    fn it_is_over_when_it_was_well_for_a_while_and_lasted_until_then() {
        let mut lasting = Lasting::default();
        assert_eq!(lasting.well(at(0)), None, "nothing was wrong");
        assert_eq!(lasting.again("gone", at(1000)), FIRST);
        for second in 2..60 {
            let gone = second % 2 == 0;
            let now = at(second * 1000);
            let said = if gone {
                lasting.again("gone", now)
            } else {
                lasting.well(now)
            };
            assert_eq!(said.is_some(), second == 32, "second {second}");
        }
        assert_eq!(lasting.well(at(60_000)), None);
        assert_eq!(lasting.well(at(64_999)), Some(told(30, 58_000)));
        assert_eq!(lasting.well(at(70_000)), None, "it is told once");
        assert_eq!(lasting.again("gone", at(71_000)), FIRST);
    }

    #[test]
    fn what_ends_for_good_is_over_at_once() {
        let mut lasting = Lasting::default();
        assert_eq!(lasting.over(at(0)), None);
        assert_eq!(lasting.again("gone", at(1000)), FIRST);
        assert_eq!(lasting.over(at(1500)), Some(told(1, 500)));
        assert_eq!(lasting.over(at(1500)), None);
    }

    #[test]
    fn what_has_not_come_for_long_begins_anew() {
        let mut lasting = Lasting::default();
        assert_eq!(lasting.again("gone", at(0)), FIRST);
        assert_eq!(lasting.again("gone", at(300_001)), FIRST);
    }
}
