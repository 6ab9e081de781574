//! What the controller needs of the outside world. Each port has a real side in `adapters` and a
//! scripted or simulated one in the tests. No port knows another.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::engine::observation::Finding;
use crate::engine::topology::{Answer, SiteName, Target, TargetName};
use crate::engine::units::{MonoTime, WallTime};
use crate::wire::{Order, OrderAnswer};

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

/// Why a change of the world did not happen, or may have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "text")]
pub enum EffectError {
    /// It certainly did not happen, and trying again may help.
    #[error("{0}")]
    Failed(String),
    /// It certainly did not happen, and trying again will not help.
    #[error("{0}")]
    Refused(String),
    /// It may have happened: a time-out, a lost connection. Read the world again before anything
    /// else (invariant 4).
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// Somebody else changed it since it was read.
    #[error("changed by somebody else: {0}")]
    Conflict(String),
}

/// Something that decides which site users reach: a DNS zone, a load balancer.
///
/// A change is read, guarded by the engine (`gate::guard_answer`), and applied by compare-and-swap
/// against exactly what was read.
#[async_trait]
pub trait Traffic: Send + Sync + fmt::Debug {
    /// The name in the configuration.
    fn name(&self) -> &TargetName;

    /// Reads what is there now, from the system that would be written to.
    async fn read(&self) -> Result<Versioned, EffectError>;

    /// Replaces `from` with `to`; fails with `Conflict` when `from` is no longer what is there.
    /// Returns when the system says that the change is made (for Route 53: `INSYNC`).
    /// `note` goes into the change where the system keeps one (a plan id).
    async fn apply(&self, from: &Versioned, to: &Answer, note: &str) -> Result<(), EffectError>;

    /// Asks every place that users' resolvers ask, on its own, what it answers now. One view for
    /// each place; a place that does not answer is an `Err` in its row.
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
    /// What it answers, or why it does not.
    pub answer: Result<Answer, String>,
}

/// Looks at targets: one look, one finding. Never errs: what went wrong is the finding.
#[async_trait]
pub trait Probe: Send + Sync + fmt::Debug {
    /// Looks at a target, within a time.
    async fn look(&self, target: &Target, within: Duration) -> Finding;

    /// How many anchors answer, of how many there are.
    async fn anchors(&self, within: Duration) -> (u32, u32);
}

/// The controller's way to the agents.
#[async_trait]
pub trait Agents: Send + Sync + fmt::Debug {
    /// Gives an order, directly or through the other site's agent, and waits for what came of it.
    /// A lost connection or a time-out is `Unknown`, unless the order certainly did not arrive.
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
    ) -> Vec<(String, Result<SiteName, String>)>;
}

/// Why the decision log could not be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the decision log cannot be written: {0}")]
pub struct StoreError(pub String);

/// Where the decision log is kept. Opening it verifies it; this is what remains to be done.
#[async_trait]
pub trait LogStore: Send + fmt::Debug {
    /// Writes one line, and returns only when it is durable.
    async fn append(&mut self, line: &[u8]) -> Result<(), StoreError>;
}
