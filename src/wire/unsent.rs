//! Observations that an agent or an observer must send: the newest of each target, kept until it
//! was believed. A controller that was away gets the current state, not the history. The mark of
//! its last answer goes with them and tells it how long they were in transit.

use std::collections::BTreeMap;

use tokio::sync::mpsc;

use super::{Heard, Intake, Postmark, SentObservation};
use crate::engine::observation::{Finding, Observation};
use crate::engine::topology::Target;
use crate::engine::units::MonoTime;

/// Observations not yet sent.
#[derive(Debug)]
pub struct Unsent {
    seen: mpsc::Receiver<Observation>,
    newest: BTreeMap<Target, Observation>,
    /// For each target, whether the last observation sent was good.
    sent: BTreeMap<Target, bool>,
    /// The controller's last answer, and when it arrived.
    heard: Option<(Postmark, MonoTime)>,
}

impl Unsent {
    /// Empty. `seen` delivers new observations.
    pub fn new(seen: mpsc::Receiver<Observation>) -> Self {
        Self {
            seen,
            newest: BTreeMap::new(),
            sent: BTreeMap::new(),
            heard: None,
        }
    }

    /// The newest of each target, in the form in which it is sent at `now`.
    pub fn pack(&mut self, now: MonoTime) -> Vec<SentObservation> {
        while let Ok(observation) = self.seen.try_recv() {
            self.take(observation);
        }
        let newest = self.newest.values();
        newest
            .map(|each| SentObservation::pack(each, now))
            .collect()
    }

    /// The controller's last answer, for a report made at `now`.
    pub fn heard(&self, now: MonoTime) -> Option<Heard> {
        self.heard.map(|(postmark, arrived)| Heard {
            postmark,
            ago: now.since(arrived),
        })
    }

    /// An answer to what was packed last arrived at `now`. What was not taken in is sent with the
    /// next report; whether that should go at once, because the answer is the first of a controller,
    /// which can take in only what is sent after it.
    pub fn answered(&mut self, intake: Intake, now: MonoTime) -> bool {
        if intake.taken {
            let told = std::mem::take(&mut self.newest).into_iter();
            self.sent
                .extend(told.map(|(target, each)| (target, is_good(&each))));
        }
        let last = self.heard.replace((intake.postmark, now));
        last.is_none_or(|(last, _)| last.life != intake.postmark.life)
    }

    /// Receives observations until one contradicts the last that was sent about its target: a
    /// failure or a recovery is worth a report of its own. Never returns once no probe runs any
    /// more.
    pub async fn change(&mut self) {
        while let Some(observation) = self.seen.recv().await {
            if self.take(observation) {
                return;
            }
        }
        std::future::pending::<()>().await;
    }

    /// Whether the observation changes what was sent.
    fn take(&mut self, observation: Observation) -> bool {
        let target = observation.target.clone();
        let changed = self.sent.get(&target) != Some(&is_good(&observation));
        self.newest.insert(target, observation);
        changed
    }
}

fn is_good(observation: &Observation) -> bool {
    matches!(observation.finding, Finding::Good(_))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::engine::observation::{Facts, ProbeFailure};
    use crate::engine::topology::{TargetKind, Vantage};

    fn moment(seconds: u64) -> MonoTime {
        MonoTime(Duration::from_secs(seconds))
    }

    fn saw(kind: TargetKind, second: u64, finding: Finding) -> Observation {
        let site = "aws".parse().unwrap();
        Observation {
            target: Target { site, kind },
            vantage: Vantage::Controller,
            began: moment(second),
            ended: moment(second),
            finding,
        }
    }

    fn good() -> Finding {
        Finding::Good(Facts::Api)
    }

    fn intake(life: u64, second: u64, taken: bool) -> Intake {
        let at = Duration::from_secs(second);
        Intake {
            postmark: Postmark { life, at },
            taken,
        }
    }

    #[test]
    fn the_last_answer_goes_along_and_the_first_of_a_controller_is_answered_at_once() {
        let (_seen, observations) = mpsc::channel(8);
        let mut unsent = Unsent::new(observations);
        assert_eq!(unsent.heard(moment(9)), None);
        assert!(unsent.answered(intake(7, 100, false), moment(10)));
        assert!(!unsent.answered(intake(7, 101, true), moment(11)));
        let heard = unsent.heard(moment(14)).unwrap();
        assert_eq!(heard.postmark, intake(7, 101, true).postmark);
        assert_eq!(heard.ago, Duration::from_secs(3));
        assert!(unsent.answered(intake(8, 102, false), moment(12)));
    }

    #[test]
    fn the_newest_of_each_target_is_sent_until_it_has_arrived() {
        let (seen, observations) = mpsc::channel(8);
        let mut unsent = Unsent::new(observations);
        seen.try_send(saw(TargetKind::Api, 1, good())).unwrap();
        seen.try_send(saw(TargetKind::Api, 2, good())).unwrap();
        seen.try_send(saw(TargetKind::Database, 1, good())).unwrap();
        let ages = |sent: Vec<SentObservation>| -> Vec<u64> {
            sent.iter().map(|each| each.began.as_secs()).collect()
        };
        assert_eq!(ages(unsent.pack(moment(3))), [1, 2]);
        assert_eq!(ages(unsent.pack(moment(4))), [2, 3], "it did not arrive");
        unsent.answered(intake(1, 4, false), moment(4));
        assert_eq!(ages(unsent.pack(moment(4))), [2, 3], "not taken in");
        unsent.answered(intake(1, 4, true), moment(4));
        assert!(unsent.pack(moment(5)).is_empty());
    }

    #[tokio::test]
    async fn what_differs_from_what_was_sent_is_news() {
        let (seen, observations) = mpsc::channel(8);
        let mut unsent = Unsent::new(observations);
        seen.try_send(saw(TargetKind::Api, 1, good())).unwrap();
        unsent.change().await;
        unsent.answered(intake(1, 1, true), moment(1));
        seen.try_send(saw(TargetKind::Api, 2, good())).unwrap();
        let bad = Finding::Bad(ProbeFailure::Refused);
        seen.try_send(saw(TargetKind::Api, 3, bad.clone())).unwrap();
        unsent.change().await;
        let sent = unsent.pack(moment(3));
        assert_eq!(sent.len(), 1);
        assert_eq!(sent[0].finding, bad, "the good look was no news");
    }
}
