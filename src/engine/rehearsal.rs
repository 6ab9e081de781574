//! What the steps after the promotion will need, rehearsed beforehand: slow probes of traffic
//! targets, their name servers, the front door and the standby's connections. `rehearsed.rs` judges
//! the results.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::text::clip;
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
        for (subject, trouble) in found {
            let before = self
                .seen
                .get(&subject)
                .and_then(|seen| seen.trouble.as_ref());
            let trouble = trouble.map(|(kind, mut why)| {
                clip(&mut why);
                let lasting = before.filter(|(was, _, _)| *was == kind);
                (kind, why, lasting.map_or(began, |(_, _, since)| *since))
            });
            self.seen.insert(subject, Seen { began, trouble });
        }
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
