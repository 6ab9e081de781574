//! How far a standby has replayed what it has received: its own position and history. A standby
//! that has everything may still be far from taking writes.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::observation::{DatabaseFacts, ReplayState};
use super::units::{Bytes, Lsn, MonoTime, millis};

/// A standby's replay as known at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replay {
    /// What it had received but not replayed at the last probe; zero if every whole record is
    /// replayed.
    pub backlog: Bytes,
    /// How long it has made no progress although there was something to replay, as of the last
    /// probe. Unobserved time does not count.
    #[serde(rename = "still_ms", with = "millis")]
    pub still: Duration,
    /// WAL replayed per second, measured while it was busy; zero if not seen yet.
    pub rate: Bytes,
    /// What delays it: PostgreSQL's wait event.
    pub held: Option<String>,
}

impl Replay {
    /// How long the backlog takes at the observed rate; `None` without one.
    pub fn time(&self) -> Option<Duration> {
        if self.backlog == Bytes(0) {
            return Some(Duration::ZERO);
        }
        let ms = u128::from(self.backlog.0).saturating_mul(1000);
        let ms = ms.checked_div(u128::from(self.rate.0))?;
        Some(Duration::from_millis(u64::try_from(ms).unwrap_or(u64::MAX)))
    }
}

/// How many busy intervals determine the rate: some seconds of probes.
const INTERVALS_KEPT: usize = 16;

#[derive(Debug, Clone)]
struct Reading {
    read: MonoTime,
    replayed: Lsn,
    backlog: Bytes,
    state: ReplayState,
}

/// The probes of a standby's replay.
#[derive(Debug, Clone, Default)]
pub struct ReplayWatch {
    last: Option<Reading>,
    /// The last probe at which it had advanced, or had nothing to do.
    moved: MonoTime,
    /// How long it was busy, and how much it replayed meanwhile.
    busy: VecDeque<(Duration, Bytes)>,
}

impl ReplayWatch {
    /// Adds what a standby said in a probe that began at `read`. Probes arrive in order.
    pub fn seen(&mut self, read: MonoTime, facts: &DatabaseFacts) {
        // The last record may have arrived in part: then every whole record is replayed
        // (postgres.md P6).
        let idle = facts.replay_state == ReplayState::AtEnd;
        let backlog = if idle {
            Bytes(0)
        } else {
            facts.position.bytes_since(facts.replayed)
        };
        match &self.last {
            // The first probe cannot show a standstill: it gets the benefit of the doubt.
            None => self.moved = read,
            Some(last) => {
                let replayed = facts.replayed.bytes_since(last.replayed);
                if backlog == Bytes(0) || replayed > Bytes(0) {
                    self.moved = read;
                }
                if last.backlog > Bytes(0) && replayed > Bytes(0) {
                    if self.busy.len() >= INTERVALS_KEPT {
                        self.busy.pop_front();
                    }
                    self.busy.push_back((read.since(last.read), replayed));
                }
            }
        }
        self.last = Some(Reading {
            read,
            replayed: facts.replayed,
            backlog,
            state: facts.replay_state.clone(),
        });
    }

    /// The current state; `None` before the first probe.
    pub fn known(&self) -> Option<Replay> {
        let last = self.last.as_ref()?;
        let took = self.busy.iter().map(|(took, _)| took.as_millis());
        let took = took.sum::<u128>().max(1);
        let done = self.busy.iter().map(|(_, done)| u128::from(done.0));
        let rate = done.sum::<u128>().saturating_mul(1000).checked_div(took);
        Some(Replay {
            backlog: last.backlog,
            still: last.read.since(self.moved),
            rate: Bytes(u64::try_from(rate.unwrap_or_default()).unwrap_or(u64::MAX)),
            held: match &last.state {
                ReplayState::Held { by } => Some(by.clone()),
                ReplayState::Working | ReplayState::AtEnd => None,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::situation::samples::{gcp, healthy};
    use super::*;

    fn at(seconds: u64) -> MonoTime {
        MonoTime(Duration::from_secs(seconds))
    }

    fn facts(received: u64, replayed: u64, state: ReplayState) -> DatabaseFacts {
        let situation = healthy().with_database(gcp(), |facts| {
            facts.position = Lsn(received);
            facts.replayed = Lsn(replayed);
            facts.replay_state = state;
        });
        situation.sites[&gcp()].database.clone().unwrap().fact.own()
    }

    fn held() -> ReplayState {
        ReplayState::Held {
            by: "RecoveryConflictSnapshot".to_owned(),
        }
    }

    #[test]
    fn replay_that_stands_still_before_something_is_seen_to() {
        let mut watch = ReplayWatch::default();
        assert_eq!(watch.known(), None);
        watch.seen(at(1), &facts(100, 100, ReplayState::AtEnd));
        watch.seen(at(2), &facts(300, 100, held()));
        watch.seen(at(9), &facts(900, 100, held()));
        let known = watch.known().unwrap();
        assert_eq!(
            (known.backlog, known.still),
            (Bytes(800), at(9).since(at(1)))
        );
        assert_eq!(known.held.as_deref(), Some("RecoveryConflictSnapshot"));
        assert_eq!(known.time(), None, "nobody saw how fast it is");
        watch.seen(at(10), &facts(900, 500, ReplayState::Working));
        let known = watch.known().unwrap();
        assert_eq!(known.still, Duration::ZERO);
        assert_eq!(known.rate, Bytes(400));
        assert_eq!(known.time(), Some(Duration::from_secs(1)));
    }

    #[test]
    fn a_standby_that_has_nothing_whole_to_replay_does_not_stand_still() {
        let mut watch = ReplayWatch::default();
        for second in 1..60 {
            watch.seen(at(second), &facts(150, 100, ReplayState::AtEnd));
        }
        let known = watch.known().unwrap();
        assert_eq!((known.backlog, known.still), (Bytes(0), Duration::ZERO));
        assert_eq!(known.time(), Some(Duration::ZERO));
    }

    #[test]
    fn only_busy_intervals_make_the_rate() {
        let mut watch = ReplayWatch::default();
        watch.seen(at(1), &facts(100, 100, ReplayState::AtEnd));
        watch.seen(at(100), &facts(5000, 1000, ReplayState::Working));
        assert_eq!(watch.known().unwrap().rate, Bytes(0), "it was idle before");
        watch.seen(at(102), &facts(5000, 3000, ReplayState::Working));
        assert_eq!(watch.known().unwrap().rate, Bytes(1000));
        assert_eq!(watch.known().unwrap().time(), Some(Duration::from_secs(2)));
    }
}
