//! Whether WAL still arrives at the standby, as looks at it show: while it does, the active
//! database lives.

use super::observation::DatabaseFacts;
use super::units::{Lsn, MonoTime};

/// What the looks at a standby showed.
#[derive(Debug, Clone, Copy)]
struct Reading {
    read: MonoTime,
    position: Lsn,
    heartbeat: u64,
    advanced: MonoTime,
}

/// The looks at a standby's position.
#[derive(Debug, Clone, Copy, Default)]
pub struct Arrivals {
    last: Option<Reading>,
}

impl Arrivals {
    /// Takes in what the standby said on a look that began at `read`.
    pub fn seen(&mut self, read: MonoTime, facts: &DatabaseFacts) {
        // Rows that could not be read say nothing: later they would seem to have advanced.
        let before = self.last.map_or(0, |last| last.heartbeat);
        let heartbeat = facts.heartbeat.as_ref();
        let heartbeat = heartbeat.map_or(before, |heartbeat| heartbeat.sequence);
        let position = facts.position;
        let advanced = match self.last {
            // The first reading says nothing about advancing: it may have stood there for hours.
            // But it may also just have come, so the benefit of the doubt is the primary's.
            None => read,
            Some(last) if position > last.position || heartbeat > last.heartbeat => read,
            Some(last) => last.advanced,
        };
        self.last = Some(Reading {
            read,
            position,
            heartbeat,
            advanced,
        });
    }

    /// The last reading's moment and position.
    pub fn last(&self) -> Option<(MonoTime, Lsn)> {
        self.last.map(|last| (last.read, last.position))
    }

    /// When the standby was last seen to advance.
    pub fn advanced(&self) -> Option<MonoTime> {
        self.last.map(|last| last.advanced)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::observation::Heartbeat;
    use super::super::situation::samples::{aws, gcp, healthy};
    use super::super::units::WallTime;
    use super::*;

    fn at(seconds: u64) -> MonoTime {
        MonoTime(Duration::from_secs(seconds))
    }

    fn says(position: u64, sequence: Option<u64>) -> DatabaseFacts {
        let situation = healthy().with_database(gcp(), |facts| {
            facts.position = Lsn(position);
            facts.heartbeat = sequence.map(|sequence| Heartbeat {
                sequence,
                site: aws(),
                written: WallTime(0),
            });
        });
        situation.sites[&gcp()].database.clone().unwrap().fact.own()
    }

    #[test]
    fn it_advances_with_position_or_heartbeat_and_from_the_first_look() {
        let mut arrivals = Arrivals::default();
        assert_eq!((arrivals.last(), arrivals.advanced()), (None, None));
        // When it was read, what it said, and when it had advanced.
        #[rustfmt::skip]
        let table = [
            ("the first look", 1, says(100, Some(5)), 1),
            ("nothing came", 2, says(100, Some(5)), 1),
            ("WAL came", 3, says(101, Some(5)), 3),
            ("a heartbeat came", 4, says(101, Some(6)), 4),
            ("our rows cannot be read", 5, says(101, None), 4),
            ("they can again, and say what they said", 6, says(101, Some(6)), 4),
        ];
        for (name, second, facts, advanced) in table {
            arrivals.seen(at(second), &facts);
            assert_eq!(arrivals.advanced(), Some(at(advanced)), "{name}");
            assert_eq!(arrivals.last(), Some((at(second), facts.position)));
        }
    }
}
