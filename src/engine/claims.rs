//! What the primary's stream of a standby's name confirms, held against what the standby says itself. A name is
//! not a system: whoever streams under it confirms commits that only he has (postgres.md P33).

use std::collections::VecDeque;

use super::units::{Lsn, MonoTime};

/// So many claims wait for the standby's word: some minutes of reports.
const CLAIMS_KEPT: usize = 256;

/// What was confirmed under the standby's name while commits waited for it.
#[derive(Debug, Clone, Default)]
pub struct Claims {
    /// Those that the standby's own word has not covered, and when each had been made at the latest.
    open: VecDeque<(MonoTime, Lsn)>,
    highest: Option<Lsn>,
    contradicted: Option<Contradiction>,
}

/// The stream of a standby's name has confirmed more than the standby has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contradiction {
    /// What was confirmed.
    pub claimed: Lsn,
    /// What the standby had, by its own word of a later moment.
    pub had: Lsn,
}

impl Claims {
    /// So much is confirmed under the standby's name, as was seen at `by` at the latest.
    pub fn claimed(&mut self, by: MonoTime, position: Lsn) {
        if self.highest >= Some(position) {
            return;
        }
        if self.open.len() >= CLAIMS_KEPT {
            self.open.pop_back();
        }
        self.open.push_back((by, position));
        self.highest = Some(position);
    }

    /// The standby says that it has so much, on a look that began at `since` at the earliest.
    pub fn said(&mut self, since: MonoTime, position: Lsn) {
        self.open.retain(|(_, claimed)| *claimed > position);
        let mut before = self.open.iter().filter(|(by, _)| *by <= since);
        self.contradicted = before.next_back().map(|(_, claimed)| Contradiction {
            claimed: *claimed,
            had: position,
        });
    }

    /// Whether the two contradict each other, as of the standby's last word.
    pub fn contradicted(&self) -> Option<Contradiction> {
        self.contradicted
    }

    /// How much was confirmed under the standby's name; `None`: nothing.
    pub fn highest(&self) -> Option<Lsn> {
        self.highest
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> MonoTime {
        MonoTime(Duration::from_secs(seconds))
    }

    #[test]
    fn a_later_word_of_the_standby_contradicts_and_an_earlier_one_does_not() {
        let mut claims = Claims::default();
        assert_eq!(claims.highest(), None, "nothing was confirmed");
        claims.claimed(at(1), Lsn(100));
        claims.said(at(0), Lsn(50));
        assert_eq!(claims.contradicted(), None, "it may have come since");
        assert_eq!(claims.highest(), Some(Lsn(100)));
        claims.said(at(2), Lsn(100));
        claims.claimed(at(3), Lsn(300));
        claims.claimed(at(5), Lsn(500));
        claims.said(at(4), Lsn(100));
        let contradiction = Contradiction {
            claimed: Lsn(300),
            had: Lsn(100),
        };
        assert_eq!(claims.contradicted(), Some(contradiction));
        assert_eq!(claims.highest(), Some(Lsn(500)));
        claims.said(at(6), Lsn(500));
        assert_eq!(claims.contradicted(), None);
    }
}
