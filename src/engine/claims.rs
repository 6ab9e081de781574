//! What the primary's stream with the standby's name confirms, compared with what the standby
//! says itself. A name is not a system: another client that streams under it confirms commits that
//! only it has (postgres.md P33).

use std::collections::VecDeque;

use super::units::{Lsn, MonoTime};

/// The most claims that wait for the standby's report: a minute of reports. Of more the newest one
/// waits.
const CLAIMS_KEPT: usize = 64;

/// What was confirmed under the standby's name while commits waited for it.
#[derive(Debug, Clone, Default)]
pub struct Claims {
    /// The claims that the standby's own report has not covered yet, each with the latest time it
    /// was made.
    open: VecDeque<(MonoTime, Lsn)>,
    highest: Option<Lsn>,
    contradicted: Option<Contradiction>,
}

/// A stream with the standby's name confirmed more than the standby has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contradiction {
    /// The confirmed position.
    pub claimed: Lsn,
    /// The position that the standby itself reported later.
    pub had: Lsn,
}

impl Claims {
    /// `position` is confirmed under the standby's name, seen at `by` at the latest.
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

    /// The standby reports `position`, from a probe that began at `since` at the earliest.
    pub fn said(&mut self, since: MonoTime, position: Lsn) {
        self.open.retain(|(_, claimed)| *claimed > position);
        let mut before = self.open.iter().filter(|(by, _)| *by <= since);
        self.contradicted = before.next_back().map(|(_, claimed)| Contradiction {
            claimed: *claimed,
            had: position,
        });
    }

    /// The contradiction between the two, as of the standby's last report.
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
