//! What controller, agents and observers need of the outside world. Each port has a real side in `adapters` and a
//! scripted or simulated one in the tests. No port knows another.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::engine::answer::Answer;
use crate::engine::credential::CredentialFacts;
use crate::engine::observation::Finding;
use crate::engine::topology::{SiteName, Target, TargetName};
use crate::engine::units::{MonoTime, WallTime};
use crate::wire::{ObserverAnswer, ObserverReport, Order, OrderAnswer};

pub use crate::engine::effect::{EffectError, LastError};
pub use crate::wire::sealed::{Signer, Verifier};

mod site;

pub use self::site::{
    AgentLinks, AgentMemory, AgentStore, Ledger, LocalDatabase, LocalLook, LocalRight, Server,
    Succession, Synchronous, Workloads,
};

/// The two clocks. `MonoTime` judges limits, `WallTime` is for people and logs; neither can be
/// had in any other way.
#[async_trait]
pub trait Clock: Send + Sync + fmt::Debug {
    /// Now, on this machine's monotonic clock (which goes on while the machine is suspended).
    fn now(&self) -> MonoTime;
    /// Now, as people write it.
    fn wall(&self) -> WallTime;
    /// Waits.
    async fn sleep(&self, wait: Duration);
}

/// Whether a change may still be made, asked once more just before the wire: a process that stood
/// still since it decided must not go on as if no time had passed (invariants.md I9, I10).
pub type Still<'s> = &'s (dyn Fn() -> Result<(), EffectError> + Send + Sync);

/// Something that decides which site users reach: a DNS zone, a load balancer.
///
/// A change is read, and applied by compare-and-swap against exactly what was read, if it still may
/// be.
#[async_trait]
pub trait Traffic: Send + Sync + fmt::Debug {
    /// The name in the configuration.
    fn name(&self) -> &TargetName;

    /// Reads what is there now, from the system that would be written to.
    async fn read(&self) -> Result<Versioned, EffectError>;

    /// Replaces `from` with `to`; fails with `Conflict` when `from` is no longer what is there.
    /// Returns when the system says that the change is made (for Route 53: `INSYNC`).
    /// `note` goes into the change where the system keeps one (a plan id). `still` is asked last
    /// of all before the change is sent: its error is the answer, and nothing was sent.
    async fn apply(
        &self,
        from: &Versioned,
        to: &Answer,
        note: &str,
        still: Still<'_>,
    ) -> Result<(), EffectError>;

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

/// Looks at targets: one look, one finding. Never errs: what went wrong is the finding.
#[async_trait]
pub trait Probe: Send + Sync + fmt::Debug {
    /// Looks at a target, within a time.
    async fn look(&self, target: &Target, within: Duration) -> Finding;

    /// How many more connections the database of a site takes from roles without privileges, on
    /// a fresh connection of the role that looks; an error where it takes none. `None` where this
    /// cannot be told, or somebody else will tell it.
    async fn room(&self, _site: &SiteName, _within: Duration) -> Option<Result<u64, String>> {
        None
    }

    /// How many anchors answer, of how many there are.
    async fn anchors(&self, within: Duration) -> (u32, u32);
}

/// What a process knows of the certificates and secrets that it holds or sees.
pub trait Credentials: Send + Sync + fmt::Debug {
    /// What is to be reported now.
    fn facts(&self) -> CredentialFacts;
}

/// The controller's way to the agents.
#[async_trait]
pub trait Agents: Send + Sync + fmt::Debug {
    /// Gives an order, directly or through the other site's agent, and waits for what came of it, in
    /// the words of the agent that it is for. A lost connection, a time-out or an answer that this
    /// agent did not sign is `Unknown`, unless the order certainly did not arrive.
    async fn order(&self, order: &Order, by: Way, within: Duration) -> OrderAnswer;
}

/// How an order travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the controller to the agent it is for.
    Direct,
    /// Through the agent of the other site.
    Relayed,
}

/// Looks at the service as its users do.
#[async_trait]
pub trait FrontDoor: Send + Sync + fmt::Debug {
    /// Enters by the addresses that users would get, and says which site answered at each, or why
    /// none did. Writes and reads back where the configuration says how.
    async fn enter(
        &self,
        expected: &SiteName,
        within: Duration,
    ) -> Vec<(String, Result<SiteName, OutsideFault>)>;
}

/// Why something could not be kept, or not be learned from where it is kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot be kept: {0}")]
pub struct StoreError(pub String);

/// Why an entry was not made durable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The log is not as this controller left it: another may write it. Nothing more may be written,
    /// and nothing be done by it.
    #[error("the decision log is not this controller's any more: {0}")]
    Conflict(String),
    /// The entry is not in the log, and does not come into it. It may be tried again.
    #[error("the decision log cannot be written: {0}")]
    Failed(String),
    /// The entry may be found in the log by whoever opens it next. The next one that is written here
    /// takes its place.
    #[error("the decision log cannot be written, and may hold the entry all the same: {0}")]
    Unknown(String),
}

/// Where the decision log is kept. Opening it verifies it; this is what remains to be done.
#[async_trait]
pub trait LogStore: Send + fmt::Debug {
    /// Writes one line, and returns only when it is durable. What an earlier call that failed has
    /// left is taken away first.
    async fn append(&mut self, line: &[u8]) -> Result<(), AppendError>;

    /// How often [`LogStore::look`] is worth while; `None`: never.
    fn look_every(&self) -> Option<Duration> {
        None
    }

    /// Whether the log is still where, and as, it was left.
    async fn look(&mut self) -> Result<(), AppendError> {
        Ok(())
    }
}

/// Which of several controllers leads.
#[async_trait]
pub trait LeaseStore: Send + Sync + fmt::Debug {
    /// Begins to lead, or goes on, for so long from when the store hears of it, by its clock and
    /// with the drift that the policy allows for added; `false`: another controller leads.
    async fn lead(&self, lasting: Duration) -> Result<bool, StoreError>;
}

/// An extra observer's way to the controller.
#[async_trait]
pub trait ObserverLink: Send + Sync + fmt::Debug {
    /// Reports what was seen.
    async fn report(
        &self,
        report: &ObserverReport,
        within: Duration,
    ) -> Result<ObserverAnswer, EffectError>;
}
