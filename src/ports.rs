//! What controller, agents and observers need from the outside world, as traits. Each port has a
//! real implementation in `adapters` and a scripted or simulated one in the tests. No port knows
//! another.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use crate::engine::credential::CredentialFacts;
use crate::engine::observation::Finding;
use crate::engine::topology::{SiteName, Target};
use crate::engine::units::{MonoTime, WallTime};
use crate::wire::{ObserverAnswer, ObserverReport, Order, OrderAnswer};

pub use crate::engine::effect::{EffectError, LastError};
pub use crate::wire::sealed::{Signer, Verifier};

mod site;
mod cluster;
mod traffic;
mod machines;
mod infrastructure;

pub use self::cluster::{ClusterHealth, ClusterLook, NodeStanding};
pub use self::infrastructure::{FencedBefore, FencedProof, InfrastructureFence};
pub use self::machines::Machines;
pub use self::site::{
    AgentLinks, AgentMemory, AgentStore, Ledger, LocalDatabase, LocalLook, LocalRight, Server,
    Succession, Synchronous, Workloads,
};
pub use self::traffic::{Confirmation, OutsideFault, OutsideView, Still, Traffic, Versioned};

/// The two clocks. `MonoTime` is for limits, `WallTime` for people and logs; there is no other way
/// to get either.
#[async_trait]
pub trait Clock: Send + Sync + fmt::Debug {
    /// Now, on this machine's monotonic clock, which keeps running while the machine is suspended.
    fn now(&self) -> MonoTime;
    /// Now, on the wall clock.
    fn wall(&self) -> WallTime;
    /// Waits for `wait`.
    async fn sleep(&self, wait: Duration);
}

/// Looks at targets: one look, one finding. Never errs: what went wrong is the finding.
#[async_trait]
pub trait Probe: Send + Sync + fmt::Debug {
    /// Probes a target, within a time limit.
    async fn look(&self, target: &Target, within: Duration) -> Finding;

    /// How many more connections a site's database accepts from unprivileged roles, on a fresh
    /// connection of the probing role; an error if it accepts none. `None` if this cannot be
    /// determined, or another process will report it.
    async fn room(&self, _site: &SiteName, _within: Duration) -> Option<Result<u64, String>> {
        None
    }

    /// How many anchors answer, and how many there are.
    async fn anchors(&self, within: Duration) -> (u32, u32);
}

/// What a process knows of the certificates and secrets that it holds or sees.
pub trait Credentials: Send + Sync + fmt::Debug {
    /// What to report now.
    fn facts(&self) -> CredentialFacts;
}

/// The controller's connection to the agents.
#[async_trait]
pub trait Agents: Send + Sync + fmt::Debug {
    /// Gives an order, directly or relayed by the other site's agent, and waits for the receiving
    /// agent's own answer. A lost connection, a timeout or an answer that this agent did not sign
    /// is `Unknown`, unless the order certainly did not arrive.
    async fn order(&self, order: &Order, by: Way, within: Duration) -> OrderAnswer;
}

/// How an order travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the controller to the receiving agent.
    Direct,
    /// Relayed by the other site's agent.
    Relayed,
}

/// Probes the service as its users do.
#[async_trait]
pub trait FrontDoor: Send + Sync + fmt::Debug {
    /// Connects to each address that users would get, and returns which site answered there, or why
    /// none did. Also writes and reads back, if configured.
    async fn enter(
        &self,
        expected: &SiteName,
        within: Duration,
    ) -> Vec<(String, Result<SiteName, OutsideFault>)>;
}

/// Why something could not be stored or loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot be kept: {0}")]
pub struct StoreError(pub String);

/// Why an entry was not made durable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The log is not as this controller left it: another process may be writing it. Write nothing
    /// more, and do nothing based on it.
    #[error("the decision log is not this controller's any more: {0}")]
    Conflict(String),
    /// The entry is not in the log and will not be. It may be tried again.
    #[error("the decision log cannot be written: {0}")]
    Failed(String),
    /// The entry may still be found in the log by the process that opens it next. The next entry
    /// written here replaces it.
    #[error("the decision log cannot be written, and may hold the entry all the same: {0}")]
    Unknown(String),
}

/// The decision log's storage. Opening it verifies it; this is what remains to be done.
#[async_trait]
pub trait LogStore: Send + fmt::Debug {
    /// Writes one line, and returns only once it is durable. First removes whatever a failed
    /// earlier call left behind.
    async fn append(&mut self, line: &[u8]) -> Result<(), AppendError>;

    /// How often to call [`LogStore::look`]; `None`: never.
    fn look_every(&self) -> Option<Duration> {
        None
    }

    /// Checks that the log is still where, and as, it was left.
    async fn look(&mut self) -> Result<(), AppendError> {
        Ok(())
    }
}

/// Which of several controllers leads.
#[async_trait]
pub trait LeaseStore: Send + Sync + fmt::Debug {
    /// Starts or continues leading for `lasting`, counted from when the store receives the request,
    /// on its clock and with the policy's drift added; `false`: another controller leads.
    async fn lead(&self, lasting: Duration) -> Result<bool, StoreError>;
}

/// An extra observer's way to the controller.
#[async_trait]
pub trait ObserverLink: Send + Sync + fmt::Debug {
    /// Reports observations.
    async fn report(
        &self,
        report: &ObserverReport,
        within: Duration,
    ) -> Result<ObserverAnswer, EffectError>;
}
