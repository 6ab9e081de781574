//! What a promotion would lose: an estimate while it is being thought of, and the window that a
//! plan declares once the old side cannot add to it any more (invariants.md I5).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::reason::{Code, Reason};
use super::replication::Replication;
use super::synchrony::RpoWindow;
use super::units::{Bytes, Lsn, WallTime, millis};

/// What would be lost: from where, since when, how much.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossEstimate {
    /// An estimate in bytes of WAL; `None` where the active side never said how far it is.
    pub bytes: Option<Bytes>,
    /// How long ago the window begins: what was acknowledged before is safe.
    #[serde(rename = "window_ms", with = "millis::option")]
    pub window: Option<Duration>,
}

impl LossEstimate {
    /// Nobody can say.
    pub const UNKNOWN: Self = Self {
        bytes: None,
        window: None,
    };

    /// Certainly nothing.
    pub const NOTHING: Self = Self {
        bytes: Some(Bytes(0)),
        window: Some(Duration::ZERO),
    };

    /// Whether both are known.
    pub fn is_known(&self) -> bool {
        self.bytes.is_some() && self.window.is_some()
    }
}

/// What a plan recorded when it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedLoss {
    /// The estimate.
    #[serde(flatten)]
    pub loss: LossEstimate,
    /// How long ago that was known.
    #[serde(rename = "ago_ms", with = "millis")]
    pub ago: Duration,
}

impl RecordedLoss {
    /// What follows from it by now: the window begins where it began.
    pub fn by_now(&self) -> LossEstimate {
        let LossEstimate { bytes, window } = self.loss;
        LossEstimate {
            bytes,
            window: window.map(|window| window.saturating_add(self.ago)),
        }
    }
}

/// The window of writes that an unplanned failover may lose, stated before the promotion
/// (invariants.md I5). No acknowledged write outside it is ever lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeclaredLoss {
    /// The standby has everything up to here.
    pub from_lsn: Lsn,
    /// Whatever was acknowledged before this moment is safe; `None` where the old primary's
    /// position was never seen, so that nothing can be said.
    pub from: Option<WallTime>,
    /// After this moment the old side has acknowledged nothing.
    pub until: WallTime,
    /// How long the window is.
    #[serde(rename = "window_ms", with = "millis::option")]
    pub window: Option<Duration>,
    /// An estimate of what it holds, in bytes of WAL.
    pub estimate: Option<Bytes>,
    /// How old the last knowledge of the old primary's position was.
    #[serde(rename = "knowledge_ms", with = "millis::option")]
    pub knowledge: Option<Duration>,
    /// Certainly nothing is lost: every commit waited for the standby.
    pub nothing: bool,
}

/// Everything that the declaration of a loss rests on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossEvidence {
    /// When it was so. The old side has acknowledged nothing after that.
    pub at: WallTime,
    /// Where the standby stands, cut off.
    pub position: Lsn,
    /// Whether every commit waited for it.
    pub window: RpoWindow,
    /// How much was confirmed under its name while commits waited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed: Option<Lsn>,
    /// What is known of the way there, with the standby at that position.
    pub replication: Replication,
    /// What the plan recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recorded: Option<RecordedLoss>,
}

impl LossEvidence {
    /// What may be lost. Where the active side never told this process how it stands, what the plan
    /// recorded is used.
    pub fn declare(&self) -> DeclaredLoss {
        if self.is_complete() {
            return DeclaredLoss {
                from_lsn: self.position,
                from: Some(self.at),
                until: self.at,
                window: Some(Duration::ZERO),
                estimate: Some(Bytes(0)),
                knowledge: Some(Duration::ZERO),
                nothing: true,
            };
        }
        let recorded = self.recorded.as_ref().map(RecordedLoss::by_now);
        let recorded = recorded.unwrap_or(LossEstimate::UNKNOWN);
        let known = Some(&self.replication).filter(|known| !known.replaced);
        let window = known.and_then(|known| known.covered).or(recorded.window);
        let estimate = known
            .filter(|known| known.confirmed.is_some())
            .and_then(Replication::loss_estimate);
        DeclaredLoss {
            from_lsn: self.position,
            from: window.map(|window| self.at.minus(window)),
            until: self.at,
            window,
            estimate: estimate.or(recorded.bytes),
            knowledge: self.replication.primary.as_ref().map(|read| read.age),
            nothing: false,
        }
    }

    /// Whether the standby certainly has all that was acknowledged. What somebody else of its name
    /// confirmed, and it does not have, is lost all the same.
    fn is_complete(&self) -> bool {
        let has_it = self.claimed.is_none_or(|claimed| claimed <= self.position);
        !self.replication.replaced && self.window.is_closed() && has_it
    }
}

impl DeclaredLoss {
    /// That it is more than may be lost.
    pub fn over(&self, limit: Bytes) -> Option<Reason> {
        let estimate = self.estimate.filter(|estimate| *estimate > limit)?;
        Some(Reason::bytes(Code::LossOverLimit, estimate, limit))
    }
}

#[cfg(test)]
mod tests {
    use super::super::units::Aged;
    use super::*;

    const fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    /// The standby stands at 900. The active side was last seen at 1,000, three seconds ago, and
    /// confirmed 900; what it had four seconds ago is at the standby.
    fn evidence() -> LossEvidence {
        LossEvidence {
            at: WallTime(60_000),
            position: Lsn(900),
            window: RpoWindow::Open { entry: 1 },
            claimed: None,
            replication: Replication {
                primary: Some(Aged {
                    age: seconds(3),
                    fact: Lsn(1000),
                }),
                standby: Some(Aged {
                    age: seconds(0),
                    fact: Lsn(900),
                }),
                confirmed: Some(Lsn(900)),
                covered: Some(seconds(4)),
                rate: Bytes(10),
                ..Replication::default()
            },
            recorded: Some(RecordedLoss {
                loss: LossEstimate {
                    bytes: Some(Bytes(5000)),
                    window: Some(seconds(20)),
                },
                ago: seconds(10),
            }),
        }
    }

    fn with(change: impl FnOnce(&mut LossEvidence)) -> LossEvidence {
        let mut evidence = evidence();
        change(&mut evidence);
        evidence
    }

    #[test]
    fn the_table() {
        let closed = |claimed| {
            with(|it| {
                it.window = RpoWindow::Closed;
                it.claimed = claimed;
            })
        };
        let unseen = |it: &mut LossEvidence| it.replication = Replication::default();
        /// Name, evidence, estimate in bytes, window in seconds, whether nothing is lost.
        type Row = (&'static str, LossEvidence, Option<u64>, Option<u64>, bool);
        #[rustfmt::skip]
        let table: [Row; 9] = [
            ("what was seen, and written since", evidence(), Some(130), Some(4), false),
            ("the active side confirmed less", with(|it| it.replication.confirmed = Some(Lsn(500))), Some(530), Some(4), false),
            ("it never said so", with(|it| { it.replication.confirmed = None; it.replication.covered = None; }),
                Some(5000), Some(30), false),
            ("nothing was seen by this process", with(unseen), Some(5000), Some(30), false),
            ("nor recorded", with(|it| { unseen(it); it.recorded = None; }), None, None, false),
            ("another installation took over", with(|it| it.replication.replaced = true), Some(5000), Some(30), false),
            ("every commit waited", closed(None), Some(0), Some(0), true),
            ("and the standby has what was confirmed", closed(Some(Lsn(900))), Some(0), Some(0), true),
            ("it has less than was confirmed", closed(Some(Lsn(901))), Some(130), Some(4), false),
        ];
        for (name, evidence, bytes, window, nothing) in table {
            let loss = evidence.declare();
            assert_eq!(loss.estimate, bytes.map(Bytes), "{name}");
            assert_eq!(loss.window, window.map(seconds), "{name}");
            assert_eq!(loss.nothing, nothing, "{name}");
            let from = window.map(|window| WallTime(60_000 - window * 1000));
            assert_eq!((loss.from, loss.until), (from, WallTime(60_000)), "{name}");
            let text = serde_json::to_string(&evidence).unwrap();
            let read: LossEvidence = serde_json::from_str(&text).unwrap();
            assert_eq!(read.declare(), loss, "{name}: follows from its record");
        }
    }

    #[test]
    fn only_what_is_known_to_be_too_much_is() {
        let over = |evidence: LossEvidence, limit| {
            let over = evidence.declare().over(Bytes(limit));
            over.map(|reason| reason.to_string())
        };
        assert_eq!(over(evidence(), 130), None);
        let told = over(evidence(), 129).unwrap();
        assert_eq!(told, "loss-over-limit: 130 B (limit 129 B)");
        let unknown = with(|it| (it.replication, it.recorded) = (Replication::default(), None));
        assert_eq!(over(unknown, 0), None);
    }
}
