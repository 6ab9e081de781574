//! What the steps after the promotion will need, tried beforehand: the slow looks at traffic
//! targets, their name servers, the front door and the standby's connections. What follows from
//! them is judged in `rehearsed.rs`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::text::clip;
use super::topology::{SiteName, TargetName};
use super::units::{MonoTime, millis};

/// What is tried.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "of")]
pub enum Subject {
    /// The system behind a traffic target: read with the credential that writes it, and its change
    /// rehearsed.
    Traffic {
        /// Which.
        target: TargetName,
    },
    /// One place that users' resolvers ask for a target.
    Place {
        /// The target.
        target: TargetName,
        /// The place.
        place: String,
    },
    /// The way users enter, at the active site.
    FrontDoor,
    /// The connections that the standby has left for the role that verifies.
    Connections,
}

/// What is wrong with something that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// Of which kind.
    pub kind: TroubleKind,
    /// What was said.
    pub why: String,
    /// Since when each look has found it so.
    #[serde(rename = "since_ms", with = "millis")]
    pub since: Duration,
}

/// What kind of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TroubleKind {
    /// It gives no answer: it may be lost with the active site.
    Silent,
    /// It answers, and leads elsewhere than to the active site.
    Astray,
    /// It answers, and says no, or holds what is not ours: a step that needs it would fail.
    Refused,
    /// It works, and there is little left of it.
    Scarce,
}

/// What the last look at something came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rehearsal {
    /// What was looked at.
    #[serde(flatten)]
    pub subject: Subject,
    /// How old the look is.
    #[serde(rename = "age_ms", with = "millis")]
    pub age: Duration,
    /// What was wrong, if anything was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<Trouble>,
}

/// What one look found.
pub type Found = (Subject, Option<(TroubleKind, String)>);

/// What is known from the slow looks.
#[derive(Debug, Default)]
pub struct Rehearsals {
    /// What began before this says nothing: another site was active.
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
    /// Forgets everything that was looked at while another site was active.
    pub fn follow(&mut self, active: &SiteName, now: MonoTime) {
        if self.active.as_ref() != Some(active) {
            self.active = Some(active.clone());
            self.not_before = now;
            self.seen.clear();
        }
    }

    /// Takes in a look that began then.
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

    /// What is known at a moment.
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
