//! What a process reports about the certificates and secrets that it holds or sees: when they
//! expire, and which new ones it refused.
//!
//! Expiry is a moment on the wall clock, because certificates define it so. Nothing here
//! decides whether a connection is accepted; the TLS adapters do.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::document::human;
use super::reason::{Code, Reason};
use super::text::{WORD_LIMIT, clip_fact, clip_to};
use super::units::{WallTime, millis};

const DAY: Duration = Duration::from_secs(86_400);

/// How long before expiry a certificate is reported: time for an order, a review and a change
/// window.
pub const WARNED: Duration = DAY.saturating_mul(30);

/// How long before expiry the controller stops being ready: somebody must act this week.
pub const URGENT: Duration = DAY.saturating_mul(7);

/// How long after expiry our processes still trust a certificate of the controller or an agent, if
/// nothing else is wrong with it. A date alone must not stop production; status and readiness are
/// red for these thirty days.
pub const GRACE: Duration = DAY.saturating_mul(30);

/// The most expiries that one process reports: its own and those of two databases, two services and
/// the front door are fewer.
const MOST: usize = 10;

/// The most refusals that one process reports: each names a file that somebody replaced.
const MOST_REFUSED: usize = 4;

/// The expiry of one certificate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CertificateEnd {
    /// The holder, as shown to people: `aws.agent.shop`, `authority`, `database@gcp`.
    pub owner: String,
    /// The last moment at which it is valid.
    pub until: WallTime,
}

/// One process's report about certificates and secrets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialFacts {
    /// The expiries of those that it holds or sees.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ends: Vec<CertificateEnd>,
    /// Files that were replaced and whose new content it refused, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<String>,
}

/// One certificate's expiry, seen at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateFacts {
    /// The holder.
    pub owner: String,
    /// Its expiry, by the wall clock.
    pub until: WallTime,
    /// How long until then; zero if it has expired.
    #[serde(rename = "left_ms", with = "millis")]
    pub left: Duration,
}

impl CredentialFacts {
    /// The report limited to what a process of ours would send, and safe to display.
    pub fn clipped(mut self) -> Self {
        self.ends.truncate(MOST);
        self.refused.truncate(MOST_REFUSED);
        self.ends.shrink_to_fit();
        self.refused.shrink_to_fit();
        for end in &mut self.ends {
            clip_to(&mut end.owner, WORD_LIMIT);
        }
        self.refused.iter_mut().for_each(clip_fact);
        self
    }

    /// The facts at `now` from several processes' reports, the nearest expiry first. If two
    /// processes report different certificates of one holder, the earlier expiry counts.
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

/// The reasons to report: the nearest expiry, if it is near, and refused files.
pub fn trouble(certificates: &[CertificateFacts], refused: &[String]) -> Vec<Reason> {
    let nearest = certificates.first().filter(|end| end.left <= WARNED);
    let ending = nearest.map(|end| {
        let (code, limit) = if end.left <= URGENT {
            (Code::CertificateUrgent, URGENT)
        } else {
            (Code::CertificateEnding, WARNED)
        };
        // Whole minutes: milliseconds are noise over a month.
        let minutes = end.left.as_secs().checked_div(60).unwrap_or_default();
        let left = Duration::from_secs(minutes.saturating_mul(60));
        let verb = if end.left.is_zero() {
            "expired"
        } else {
            "expires"
        };
        let also = certificates.iter().skip(1);
        let also = also.filter(|end| end.left <= WARNED).count();
        let others = if also == 0 {
            String::new()
        } else {
            format!(", and {also} more within {}", human(WARNED))
        };
        let why = format!("that of {} {verb} at {}{others}", end.owner, end.until);
        Reason::time(code, left, limit).because(why)
    });
    let refused = (!refused.is_empty()).then(|| {
        let why = refused.join("; ");
        Reason::word(Code::SecretRefused, "the old one", "the new one").because(why)
    });
    ending.into_iter().chain(refused).collect()
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
        let facts = facts.clipped();
        let counts = (facts.ends.len(), facts.refused.len());
        assert_eq!(counts, (MOST, MOST_REFUSED));
        let limit = super::super::text::FACT_LIMIT;
        assert!(facts.refused.iter().all(|text| text.len() <= limit));
        assert!(facts.ends.iter().all(|end| end.owner.len() <= WORD_LIMIT));
    }

    #[test]
    fn a_certificate_is_told_of_for_thirty_days_and_urgently_for_seven() {
        let facts = |left: Duration| CertificateFacts {
            owner: "aws.agent.shop".to_owned(),
            until: WallTime(1_800_000_000_000),
            left,
        };
        for (left, code) in [
            (DAY * 31, None),
            (DAY * 30, Some(Code::CertificateEnding)),
            (DAY * 8, Some(Code::CertificateEnding)),
            (DAY * 7, Some(Code::CertificateUrgent)),
            (Duration::ZERO, Some(Code::CertificateUrgent)),
        ] {
            let said = trouble(&[facts(left), facts(DAY * 400)], &[]);
            let codes: Vec<Code> = said.iter().map(|reason| reason.code).collect();
            assert_eq!(codes, Vec::from_iter(code), "{left:?}");
        }
        let said = trouble(&[facts(Duration::ZERO), facts(DAY)], &["x: y".to_owned()]);
        let texts: Vec<String> = said.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "certificate-urgent: 0s (limit 7days); that of aws.agent.shop expired at 2027-01-15T08:00:00.000Z, and 1 more within 30days",
                "secret-refused: the old one (limit the new one); x: y",
            ]
        );
    }
}
