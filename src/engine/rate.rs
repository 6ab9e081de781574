//! Limits on how often something may happen: a burst, then a steady pace.

use std::collections::BTreeMap;
use std::time::Duration;

use super::units::MonoTime;

/// A rate limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// The size of a burst.
    pub burst: u32,
    /// The time after which one more is allowed.
    pub every: Duration,
}

/// The unused part of a [`Rate`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Budget {
    /// When it is full again.
    whole: MonoTime,
}

impl Budget {
    /// Whether one more is allowed now; if so, it is counted.
    pub fn spend(&mut self, rate: Rate, now: MonoTime) -> bool {
        let spent = self.whole.since(now);
        if spent > rate.every.saturating_mul(rate.burst.saturating_sub(1)) {
            return false;
        }
        self.whole = self.whole.max(now).plus(rate.every);
        true
    }

    /// From when on one more is allowed.
    pub fn allowed_at(&self, rate: Rate) -> MonoTime {
        let burst = rate.burst.saturating_sub(1);
        self.whole.minus(rate.every.saturating_mul(burst))
    }
}

/// A budget for each of many keys, of which a limited number is remembered.
#[derive(Debug, Clone)]
pub struct Budgets<K> {
    rate: Rate,
    remembered: usize,
    spent: BTreeMap<K, Budget>,
}

impl<K: Ord + Clone> Budgets<K> {
    /// Creates it with all budgets full.
    pub fn new(rate: Rate, remembered: usize) -> Self {
        Self {
            rate,
            remembered,
            spent: BTreeMap::new(),
        }
    }

    /// As [`Budget::spend`], for one key. Keys that have spent nothing lately are forgotten first.
    pub fn spend(&mut self, who: &K, now: MonoTime) -> bool {
        if self.spent.len() >= self.remembered && !self.spent.contains_key(who) {
            self.spent.retain(|_, budget| budget.whole > now);
            let least = self.spent.iter().min_by_key(|(_, budget)| budget.whole);
            let least = least.map(|(who, _)| who.clone());
            if let Some(least) = least.filter(|_| self.spent.len() >= self.remembered) {
                self.spent.remove(&least);
            }
        }
        let budget = self.spent.entry(who.clone()).or_default();
        budget.spend(self.rate, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate {
        burst: 3,
        every: Duration::from_millis(100),
    };

    fn at(millis: u64) -> MonoTime {
        MonoTime(Duration::from_millis(millis))
    }

    #[test]
    fn a_burst_and_then_the_pace() {
        let mut budget = Budget::default();
        let mut spent = |from: u64, until: u64| {
            let moments = from..until;
            moments
                .filter(|millis| budget.spend(RATE, at(*millis)))
                .count()
        };
        assert_eq!(spent(1000, 1050), 3);
        assert_eq!(spent(1050, 2000), 9);
        assert_eq!(spent(9000, 9010), 3, "rest makes it whole, and no more");
    }

    #[test]
    fn one_who_spends_all_takes_nothing_from_others_and_few_are_remembered() {
        let mut budgets = Budgets::new(RATE, 4);
        for _ in 0..100 {
            budgets.spend(&0, at(1000));
        }
        assert!(!budgets.spend(&0, at(1000)));
        assert!(budgets.spend(&1, at(1000)));
        for who in 2..1000 {
            assert!(budgets.spend(&who, at(1000)));
        }
        assert_eq!(budgets.spent.len(), 4);
        assert!(!budgets.spend(&0, at(1001)), "the worst is remembered");
    }
}
