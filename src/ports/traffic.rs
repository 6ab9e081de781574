//! The port to whatever decides which site users reach, and what users get by it.

use std::fmt;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::EffectError;
use crate::engine::answer::Answer;
use crate::engine::receipt::Receipt;
use crate::engine::topology::TargetName;

/// Whether a change may still be made, asked once more just before the wire: a process that stood
/// still since it decided must not go on as if no time had passed (invariants.md I9, I10).
pub type Still<'s> = &'s (dyn Fn() -> Result<(), EffectError> + Send + Sync);

/// Something that decides which site users reach: a DNS zone, a load balancer.
///
/// A change is read, and applied by compare-and-swap against exactly what was read, if it still may
/// be. From then on two things are asked side by side: what users get, which decides, and what the
/// system says of the change, which is evidence. `tests/lab/traffic` holds every kind to this.
#[async_trait]
pub trait Traffic: Send + Sync + fmt::Debug {
    /// The name in the configuration.
    fn name(&self) -> &TargetName;

    /// Reads what is there now, from the system that would be written to.
    async fn read(&self) -> Result<Versioned, EffectError>;

    /// Replaces `from` with `to`; fails with `Conflict` when `from` is no longer what is there, and
    /// with `Unknown` when the answer was lost: it is neither repeated nor looked for here. Returns
    /// as soon as the system has taken the change, with what it answered.
    /// `note` goes into the change where the system keeps one (a plan id). `still` is asked last
    /// of all before the change is sent: its error is the answer, and nothing was sent.
    async fn apply(
        &self,
        from: &Versioned,
        to: &Answer,
        note: &str,
        still: Still<'_>,
    ) -> Result<Receipt, EffectError>;

    /// Asks the system once whether the change of this receipt is made by now, wherever the system
    /// makes it. An error says only that it could not be asked.
    async fn confirm(&self, receipt: &Receipt) -> Result<Confirmation, EffectError>;

    /// Has the system say whether it would let us replace what was read, without changing anything.
    /// `Refused` where it would not; a yes also where the system has no way to tell.
    async fn rehearse(&self, from: &Versioned) -> Result<(), EffectError>;

    /// Asks every place that users' resolvers ask, on its own, what it answers now. One view for
    /// each place; a place that shows nothing, or not ours, is an `Err` in its row.
    async fn verify_outside(&self) -> Vec<OutsideView>;
}

/// An answer with what is needed to replace exactly it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// What is there.
    pub answer: Answer,
    /// The target's own form of what is there, opaque to everybody else.
    pub token: String,
}

/// What a system says of a change that it took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Confirmation {
    /// It is made, as far as the system itself can tell.
    Made,
    /// Not yet, or not everywhere.
    Pending,
    /// It was taken and is not made after all: why.
    Void(String),
}

impl fmt::Display for Confirmation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Confirmation::Made => f.write_str("made"),
            Confirmation::Pending => f.write_str("not made everywhere yet"),
            Confirmation::Void(why) => write!(f, "not made: {why}"),
        }
    }
}

/// What one outside place answers for a traffic target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutsideView {
    /// Which place: a name server's address, say.
    pub place: String,
    /// What it answers, or why that is not to be had.
    pub answer: Result<Answer, OutsideFault>,
}

/// Why a place outside does not show what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "text")]
pub enum OutsideFault {
    /// It gives no answer that anybody would follow: unknown, not wrong. Whoever asks there goes
    /// on to the next place.
    #[error("{0}")]
    Unseen(String),
    /// It answers, and leads its askers astray.
    #[error("{0}")]
    Wrong(String),
}
