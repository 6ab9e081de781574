//! What a process says of the certificates and secrets that it holds or sees: when they end, and
//! which new ones it found and does not use.
//!
//! An end is a moment of the wall clock, because certificates say it so. Nothing here decides
//! whether somebody is let in; that is for whoever checks a certificate.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::units::{WallTime, millis};

const DAY: Duration = Duration::from_secs(86_400);

/// How long before its end a certificate becomes a reason that people read: time for an order, a
/// review and a change window.
pub const WARNED: Duration = DAY.saturating_mul(30);

/// How long before its end the controller is not ready any more: somebody has to act this week.
pub const URGENT: Duration = DAY.saturating_mul(7);

/// For how long after its end a certificate of the controller or an agent is still believed by the
/// others of our processes, if nothing else speaks against it. A date alone must not stop
/// production; thirty days are red in status and readiness all the while.
pub const GRACE: Duration = DAY.saturating_mul(30);

/// How many ends and refusals one process reports at most: its own and those of two databases, two
/// services and the front door are fewer.
const MOST: usize = 16;

/// The longest name or text of them, in characters.
const LONGEST: usize = 200;

/// When a certificate ends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CertificateEnd {
    /// Whose it is, as people say it: `aws.agent.shop`, `authority`, `database@gcp`.
    pub owner: String,
    /// The last moment at which it counts.
    pub until: WallTime,
}

/// What one process says of its certificates and secrets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialFacts {
    /// The ends of those that it holds or sees.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ends: Vec<CertificateEnd>,
    /// Files that were replaced and whose new content it does not use, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<String>,
}

/// What is known of a certificate at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateFacts {
    /// Whose it is.
    pub owner: String,
    /// Its end, by the wall clock.
    pub until: WallTime,
    /// How long that is from now; zero when it is over.
    #[serde(rename = "left_ms", with = "millis")]
    pub left: Duration,
}

impl CredentialFacts {
    /// The same, no larger than a process of ours makes it.
    pub fn bounded(mut self) -> Self {
        let short = |text: &mut String| {
            if text.chars().count() > LONGEST {
                *text = text.chars().take(LONGEST).collect();
            }
        };
        self.ends.truncate(MOST);
        self.refused.truncate(MOST);
        self.ends.iter_mut().for_each(|end| short(&mut end.owner));
        self.refused.iter_mut().for_each(short);
        self
    }

    /// What follows for `now` from what several processes say, the nearest end first. Of one
    /// owner, whose certificate two processes see differently, the earlier end counts.
    pub fn ends_at<'f>(
        all: impl IntoIterator<Item = &'f CredentialFacts>,
        now: WallTime,
    ) -> Vec<CertificateFacts> {
        let mut earliest = std::collections::BTreeMap::new();
        for end in all.into_iter().flat_map(|facts| &facts.ends) {
            let known = earliest.entry(end.owner.clone()).or_insert(end.until);
            *known = end.until.min(*known);
        }
        let facts = earliest.into_iter().map(|(owner, until)| CertificateFacts {
            owner,
            until,
            left: until.since(now),
        });
        let mut facts: Vec<CertificateFacts> = facts.collect();
        facts.sort_by_key(|facts| facts.until);
        facts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(owner: &str, until: u64) -> CertificateEnd {
        CertificateEnd {
            owner: owner.to_owned(),
            until: WallTime(until),
        }
    }

    #[test]
    fn the_nearest_end_comes_first_and_of_one_owner_the_earlier_counts() {
        let ours = CredentialFacts {
            ends: vec![end("controller", 9000), end("database@aws", 4000)],
            refused: Vec::new(),
        };
        let agents = CredentialFacts {
            ends: vec![end("database@aws", 3000), end("aws.agent.shop", 1000)],
            refused: Vec::new(),
        };
        let known = CredentialFacts::ends_at([&ours, &agents], WallTime(2000));
        let shown: Vec<_> = known
            .iter()
            .map(|facts| (facts.owner.as_str(), facts.left.as_millis()))
            .collect();
        let wanted = [
            ("aws.agent.shop", 0),
            ("database@aws", 1000),
            ("controller", 7000),
        ];
        assert_eq!(shown, wanted);
    }

    #[test]
    fn nobody_makes_it_larger_than_we_do() {
        let facts = CredentialFacts {
            ends: vec![end(&"é".repeat(5000), 1); 500],
            refused: vec!["x".repeat(5000); 500],
        };
        let facts = facts.bounded();
        assert_eq!((facts.ends.len(), facts.refused.len()), (MOST, MOST));
        let longest = |text: &String| text.chars().count() == LONGEST;
        assert!(facts.refused.iter().all(longest));
        assert!(facts.ends.iter().map(|end| &end.owner).all(longest));
    }
}
