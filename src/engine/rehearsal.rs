//! What the steps after the promotion will need, rehearsed beforehand: slow probes of traffic
//! targets, their name servers, the front door and the standby's connections. `rehearsed.rs` judges
//! the results.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::text::{FACT_LIMIT, WORD_LIMIT, clip_to};
use super::topology::{SiteName, TargetName};
use super::units::{MonoTime, millis};

/// What is rehearsed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "of")]
pub enum Subject {
    /// The system behind a traffic target: read with the credential that writes it, and its change
    /// rehearsed.
    Traffic {
        /// The traffic target.
        target: TargetName,
    },
    /// One name server that users' resolvers ask for a target.
    Place {
        /// The target.
        target: TargetName,
        /// The name server's address.
        place: String,
    },
    /// The users' entry, at the active site.
    FrontDoor,
    /// The connections left at the standby for the role that verifies.
    Connections,
    /// The fence by the active site's infrastructure (invariants.md F2).
    Infrastructure,
}

/// What is wrong with something that was rehearsed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// The kind of trouble.
    pub kind: TroubleKind,
    /// The answer or error.
    pub why: String,
    /// How long every probe has found it.
    #[serde(rename = "since_ms", with = "millis")]
    pub since: Duration,
}

/// The kind of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TroubleKind {
    /// No answer: it may be lost with the active site.
    Silent,
    /// It answers, but does not lead to the active site.
    Astray,
    /// It refuses, or holds foreign records: a step that needs it would fail.
    Refused,
    /// It works, but little of it is left.
    Scarce,
}

/// The result of the last probe of something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rehearsal {
    /// What was probed.
    #[serde(flatten)]
    pub subject: Subject,
    /// The probe's age.
    #[serde(rename = "age_ms", with = "millis")]
    pub age: Duration,
    /// What was wrong, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<Trouble>,
}

/// The result of one probe.
pub type Found = (Subject, Option<(TroubleKind, String)>);

/// The most results that are kept: four traffic targets with four name servers each, the front door
/// and the connections. Of more, some name servers are left out; everything else stays.
const KEPT: usize = 24;

/// How long a name server is remembered that the probes of its target no longer name: more than a
/// dozen slow probes.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(300);

/// The results of the slow probes.
#[derive(Debug, Default)]
pub struct Rehearsals {
    /// Probes that began before this do not count: another site was active.
    not_before: MonoTime,
    /// The site that was active then.
    active: Option<SiteName>,
    seen: BTreeMap<Subject, Seen>,
}

#[derive(Debug)]
struct Seen {
    began: MonoTime,
    trouble: Option<(TroubleKind, String, MonoTime)>,
}

impl Rehearsals {
    /// Forgets all results from when another site was active.
    pub fn follow(&mut self, active: &SiteName, now: MonoTime) {
        if self.active.as_ref() != Some(active) {
            self.active = Some(active.clone());
            self.not_before = now;
            self.seen.clear();
        }
    }

    /// Adds the result of a probe that began at `began`.
    pub fn take(&mut self, began: MonoTime, found: Vec<Found>) {
        if began < self.not_before {
            return;
        }
        let mut probed = BTreeSet::new();
        for (mut subject, trouble) in found {
            if let Subject::Traffic { target } | Subject::Place { target, .. } = &subject {
                probed.insert(target.clone());
            }
            if let Subject::Place { place, .. } = &mut subject {
                clip_to(place, WORD_LIMIT);
            }
            let before = self
                .seen
                .get(&subject)
                .and_then(|seen| seen.trouble.as_ref());
            let limit = match &subject {
                Subject::Place { .. } => WORD_LIMIT,
                Subject::Traffic { .. }
                | Subject::FrontDoor
                | Subject::Connections
                | Subject::Infrastructure => FACT_LIMIT,
            };
            let trouble = trouble.map(|(kind, mut why)| {
                clip_to(&mut why, limit);
                let lasting = before.filter(|(was, _, _)| *was == kind);
                (kind, why, lasting.map_or(began, |(_, _, since)| *since))
            });
            self.seen.insert(subject, Seen { began, trouble });
        }
        self.seen.retain(|subject, seen| match subject {
            Subject::Place { target, .. } if probed.contains(target) => {
                began.since(seen.began) < FORGOTTEN_AFTER
            }
            Subject::Place { .. }
            | Subject::Traffic { .. }
            | Subject::FrontDoor
            | Subject::Connections
            | Subject::Infrastructure => true,
        });
        while self.seen.len() > KEPT
            && let Some(least) = self.missed_least()
        {
            self.seen.remove(&least);
        }
    }

    /// The name server whose result is missed least: one that answers beside another one of its
    /// target, then a silent one, and of two the one that was probed longer ago.
    fn missed_least(&self) -> Option<Subject> {
        let places = self
            .seen
            .iter()
            .filter_map(|(subject, seen)| match subject {
                Subject::Place { target, .. } => Some((subject, target, seen)),
                Subject::Traffic { .. }
                | Subject::FrontDoor
                | Subject::Connections
                | Subject::Infrastructure => None,
            });
        let answer_of = |of: &TargetName| {
            let answers = places.clone();
            let answers =
                answers.filter(|(_, target, seen)| *target == of && seen.trouble.is_none());
            answers.count()
        };
        let least = places.clone().min_by_key(|(_, target, seen)| {
            let kind = seen.trouble.as_ref().map(|(kind, ..)| *kind);
            let rank = match kind {
                None if answer_of(target) > 1 => 0,
                Some(TroubleKind::Silent) => 1,
                Some(TroubleKind::Astray | TroubleKind::Refused | TroubleKind::Scarce) => 2,
                None => 3,
            };
            (rank, seen.began)
        });
        least.map(|(subject, ..)| subject.clone())
    }

    /// The results as of `now`.
    pub fn at(&self, now: MonoTime) -> Vec<Rehearsal> {
        let each = self.seen.iter().map(|(subject, seen)| Rehearsal {
            subject: subject.clone(),
            age: now.since(seen.began),
            trouble: seen.trouble.as_ref().map(|(kind, why, since)| Trouble {
                kind: *kind,
                why: why.clone(),
                since: now.since(*since),
            }),
        });
        each.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> MonoTime {
        MonoTime(Duration::from_secs(seconds))
    }

    fn place(number: usize) -> Subject {
        Subject::Place {
            target: "dns".parse().unwrap(),
            place: format!("10.0.0.{number}:53"),
        }
    }

    fn followed() -> Rehearsals {
        let mut known = Rehearsals::default();
        known.follow(&"aws".parse().unwrap(), at(0));
        known
    }

    #[test]
    fn a_name_server_that_is_gone_is_forgotten_after_a_while() {
        let mut known = followed();
        known.take(at(10), vec![(place(1), None), (place(2), None)]);
        let patience = FORGOTTEN_AFTER.as_secs();
        known.take(at(9 + patience), vec![(place(2), None)]);
        assert_eq!(known.at(at(400)).len(), 2, "one probe may have missed it");
        known.take(at(10 + patience), vec![(place(2), None)]);
        let left: Vec<Subject> = known.at(at(400)).into_iter().map(|it| it.subject).collect();
        assert_eq!(left, [place(2)]);
    }

    #[test]
    fn of_too_many_name_servers_the_wrong_ones_and_one_good_one_stay() {
        let mut known = followed();
        let astray = || Some((TroubleKind::Astray, "x".repeat(5000)));
        let silent = || Some((TroubleKind::Silent, "no answer".to_owned()));
        for number in 0..200 {
            let trouble = match number % 20 {
                7 => astray(),
                8 | 9 => silent(),
                _ => None,
            };
            known.take(at(10), vec![(place(number), trouble)]);
        }
        known.take(at(10), vec![(Subject::FrontDoor, None)]);
        let left = known.at(at(11));
        assert_eq!(left.len(), KEPT);
        let of = |kind: Option<TroubleKind>| {
            let of = |it: &&Rehearsal| it.trouble.as_ref().map(|trouble| trouble.kind) == kind;
            left.iter().filter(of).count()
        };
        assert_eq!(of(Some(TroubleKind::Astray)), 10);
        assert_eq!(of(None), 2, "the front door and one name server");
        let texts = left.iter().filter_map(|it| it.trouble.as_ref());
        assert!(texts.into_iter().all(|it| it.why.len() <= WORD_LIMIT));
    }
}
