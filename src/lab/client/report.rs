//! What a client was promised, against what a database has.

use std::collections::BTreeSet;

use super::{Attempt, Outcome};
use crate::engine::topology::SiteName;

/// An attempt that was acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledgement {
    /// The number.
    pub number: i64,
    /// When the row was sent, in milliseconds since 1970.
    pub sent_ms: u64,
    /// When the acknowledgement was there.
    pub received_ms: u64,
    /// The site that acknowledged.
    pub site: SiteName,
    /// The epoch that its database had.
    pub epoch: Option<i64>,
}

/// A time without any acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// Its beginning, in milliseconds since 1970.
    pub from_ms: u64,
    /// Its end.
    pub until_ms: u64,
}

impl Gap {
    /// How long it is, in milliseconds; zero where the clock was set back in it.
    pub fn length_ms(&self) -> u64 {
        self.until_ms.saturating_sub(self.from_ms)
    }
}

/// The account of one client's attempts.
#[derive(Debug, Clone)]
pub struct Report {
    /// How many numbers were sent.
    pub attempts: usize,
    /// What was acknowledged, in the order in which the acknowledgements came.
    pub acknowledged: Vec<Acknowledgement>,
    /// What was acknowledged and is not there.
    pub lost: Vec<Acknowledgement>,
    /// When the first row was sent and the last attempt ended; `None` without attempts.
    span: Option<Gap>,
}

impl Report {
    /// Holds `attempts` against the numbers present in the database that survived.
    pub fn new(attempts: &[Attempt], present: &BTreeSet<i64>) -> Self {
        let mut acknowledged: Vec<_> = attempts.iter().filter_map(acknowledgement).collect();
        acknowledged.sort_by_key(|ack| ack.received_ms);
        let lost = acknowledged
            .iter()
            .filter(|ack| !present.contains(&ack.number))
            .cloned()
            .collect();
        let first = attempts.iter().map(|attempt| attempt.sent_ms).min();
        let last = attempts.iter().map(|attempt| attempt.ended_ms).max();
        let span = first
            .zip(last)
            .map(|(from_ms, until_ms)| Gap { from_ms, until_ms });
        Self {
            attempts: attempts.len(),
            acknowledged,
            lost,
            span,
        }
    }

    /// What was lost although its acknowledgement came before `from_ms` or after `until_ms`.
    pub fn lost_outside(&self, from_ms: u64, until_ms: u64) -> Vec<&Acknowledgement> {
        let outside = |ack: &&Acknowledgement| !(from_ms..=until_ms).contains(&ack.received_ms);
        self.lost.iter().filter(outside).collect()
    }

    /// What the old site acknowledged although it was sent when the new site had acknowledged
    /// already. Its commit is certainly later than the new site's: two sites took writes.
    pub fn by_old_after_new(&self, old: &SiteName, new: &SiteName) -> Vec<&Acknowledgement> {
        let Some(taken_over) = self.first_by(new, 0) else {
            return Vec::new();
        };
        let late =
            |ack: &&Acknowledgement| ack.site == *old && ack.sent_ms > taken_over.received_ms;
        self.acknowledged.iter().filter(late).collect()
    }

    /// What was acknowledged under an epoch below one that had been seen before it was sent: as
    /// [`Report::by_old_after_new`], and also right where roles changed more than once.
    pub fn by_stale_epoch(&self) -> Vec<&Acknowledgement> {
        let mut highest = None;
        let rising = self.acknowledged.iter().map(|ack| {
            highest = ack.epoch.max(highest);
            highest
        });
        // Up to each acknowledgement, the highest epoch seen.
        let highest: Vec<Option<i64>> = rising.collect();
        let stale = |ack: &&Acknowledgement| {
            let received = |earlier: &Acknowledgement| earlier.received_ms < ack.sent_ms;
            let seen = self.acknowledged.partition_point(received);
            seen > 0 && highest[seen - 1] > ack.epoch
        };
        self.acknowledged.iter().filter(stale).collect()
    }

    /// The first acknowledgement by a site that came at `after_ms` or later.
    pub fn first_by(&self, site: &SiteName, after_ms: u64) -> Option<&Acknowledgement> {
        let acknowledged = self.acknowledged.iter();
        let mut later = acknowledged.filter(|ack| ack.received_ms >= after_ms);
        later.find(|ack| ack.site == *site)
    }

    /// The longest time without any acknowledgement, from the first row sent to the end of the
    /// last attempt; `None` without attempts.
    pub fn longest_gap(&self) -> Option<Gap> {
        let span = self.span?;
        let times = self.acknowledged.iter().map(|ack| ack.received_ms);
        let ends = times.clone().chain([span.until_ms]);
        let begins = [span.from_ms].into_iter().chain(times);
        begins
            .zip(ends)
            .map(|(from_ms, until_ms)| Gap { from_ms, until_ms })
            .max_by_key(Gap::length_ms)
    }
}

fn acknowledgement(attempt: &Attempt) -> Option<Acknowledgement> {
    let Outcome::Acknowledged { site, epoch } = &attempt.outcome else {
        return None;
    };
    Some(Acknowledgement {
        number: attempt.number,
        sent_ms: attempt.sent_ms,
        received_ms: attempt.ended_ms,
        site: site.clone(),
        epoch: *epoch,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(number: i64, sent_ms: u64, ended_ms: u64, site: &str, epoch: i64) -> Attempt {
        let outcome = Outcome::Acknowledged {
            site: site.parse().unwrap(),
            epoch: Some(epoch),
        };
        Attempt {
            number,
            sent_ms,
            ended_ms,
            outcome,
        }
    }

    fn failed(number: i64, sent_ms: u64, ended_ms: u64) -> Attempt {
        Attempt {
            number,
            sent_ms,
            ended_ms,
            outcome: Outcome::Unacknowledged("no answer".to_owned()),
        }
    }

    fn numbers(acks: Vec<&Acknowledgement>) -> Vec<i64> {
        acks.iter().map(|ack| ack.number).collect()
    }

    /// aws acknowledges 1 to 3, gcp takes over with 5; 6 and 7 come from aws all the same.
    fn split() -> Report {
        let attempts = [
            ack(1, 100, 110, "aws", 1),
            ack(2, 120, 130, "aws", 1),
            ack(3, 140, 150, "aws", 1),
            failed(4, 160, 1160),
            ack(5, 2000, 2010, "gcp", 2),
            ack(6, 2005, 2030, "aws", 1),
            ack(7, 2011, 2020, "aws", 1),
            failed(8, 2040, 3040),
        ];
        Report::new(&attempts, &BTreeSet::from([1, 2, 4, 5]))
    }

    #[test]
    fn lost_is_what_was_acknowledged_and_is_missing() {
        let report = split();
        assert_eq!((report.attempts, report.acknowledged.len()), (8, 6));
        assert_eq!(numbers(report.lost.iter().collect()), [3, 7, 6]);
        assert_eq!(numbers(report.lost_outside(150, 2020)), [6]);
        assert_eq!(numbers(report.lost_outside(151, 3000)), [3]);
    }

    #[test]
    fn an_old_site_is_late_only_with_what_was_sent_after_the_new_site_answered() {
        let report = split();
        let [aws, gcp] = ["aws", "gcp"].map(|site| site.parse().unwrap());
        assert_eq!(numbers(report.by_old_after_new(&aws, &gcp)), [7]);
        assert_eq!(numbers(report.by_stale_epoch()), [7]);
        assert_eq!(report.first_by(&gcp, 0).unwrap().number, 5);
        assert_eq!(report.first_by(&aws, 151).unwrap().number, 7);
        assert!(report.first_by(&gcp, 2011).is_none());
    }

    #[test]
    fn the_longest_gap_counts_the_beginning_and_the_end() {
        let gap = |from_ms, until_ms| Some(Gap { from_ms, until_ms });
        assert_eq!(split().longest_gap(), gap(150, 2010));
        let none = Report::new(&[failed(1, 5, 1005), failed(2, 25, 1025)], &BTreeSet::new());
        assert_eq!(none.longest_gap(), gap(5, 1025));
        assert_eq!(Report::new(&[], &BTreeSet::new()).longest_gap(), None);
    }
}
