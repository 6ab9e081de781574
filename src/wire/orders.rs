//! The controller's orders to an agent, and their outcomes.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Postmark;
use super::sealed::Sealed;
use crate::engine::effect::EffectError;
use crate::engine::instance::Instance;
use crate::engine::topology::{GroupName, SiteName};
use crate::engine::units::{Epoch, Lsn, Timeline, exact, millis};

/// An order to relay to the other agent, and how long to wait for its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relayed {
    /// The order, for the other agent.
    pub order: Sealed,
    /// How long the controller waits.
    #[serde(rename = "within_ms", with = "millis")]
    pub within: Duration,
}

/// The result of relaying an order: the answer of the receiving agent, signed by it; or the relay's
/// own report that there is none.
pub type RelayAnswer = Result<Sealed, EffectError>;

/// An order of the controller to an agent. Signed, because the peer agent may relay it: a relay can
/// delay it, but not forge or replay it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The plan it belongs to.
    #[serde(with = "exact")]
    pub plan: u64,
    /// The group.
    pub group: GroupName,
    /// The receiving site.
    pub site: SiteName,
    /// The receiving instance of that site's agent; `None` if none is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<Instance>,
    /// The epoch of the plan. An agent that knows a higher one refuses.
    pub epoch: Epoch,
    /// The newest mark of that agent that the controller knows. A later run of the agent does not
    /// obey it.
    pub mark: Postmark,
    /// How long after that mark it expires, by the agent's own clock.
    #[serde(rename = "valid_for_ms", with = "millis")]
    pub valid_for: Duration,
    /// Whether to only say if it is done already.
    pub check_only: bool,
    /// What to do.
    pub what: What,
}

/// What an agent can be ordered to do. Each is idempotent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// Make certain that the database accepts no write, and keep it so.
    Fence,
    /// Let the database start again once the lease is granted.
    Unfence,
    /// Cut the standby off from the old primary's WAL.
    Sever,
    /// Reconnect it.
    Reconnect,
    /// Make the standby primary.
    Promote,
    /// Promise that no promotion of this plan will follow, or report that it happened.
    Desist,
    /// Start the workloads.
    StartWorkloads,
    /// Stop the workloads.
    StopWorkloads,
    /// Say whether the workloads answer.
    AwaitWorkloads,
}

impl Order {
    /// What every line that is logged while it is obeyed carries, whoever logs it. An error's, so
    /// that no filter that lets a line pass leaves it without.
    pub fn span(&self) -> tracing::Span {
        tracing::error_span!(
            "order",
            group = %self.group,
            plan_id = self.plan,
            epoch = self.epoch.0,
            step = %self.what,
        )
    }
}

/// As it is sent, which is the name of a plan's step where it is one.
impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            What::Fence => "fence",
            What::Unfence => "unfence",
            What::Sever => "sever",
            What::Reconnect => "reconnect",
            What::Promote => "promote",
            What::Desist => "desist",
            What::StartWorkloads => "start-workloads",
            What::StopWorkloads => "stop-workloads",
            What::AwaitWorkloads => "await-workloads",
        })
    }
}

/// What came of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "came")]
pub enum Came {
    /// It is done.
    Done,
    /// The answer to "is it done": clearly not.
    NotDone,
    /// Fenced, with the proof.
    Fenced {
        /// The proof, as the agent describes it.
        said: String,
    },
    /// Severed, with the standby's position.
    Severed {
        /// The position that it has received.
        position: Lsn,
        /// Whether it has replayed all of that.
        replayed: bool,
        /// How long before this answer, on the agent's own clock, it last vouched for the other
        /// site: after its sever it never does. An agent that started since says when that was.
        /// `None` from an older agent: until just now.
        #[serde(
            default,
            rename = "vouched_ms_ago",
            with = "millis::option",
            skip_serializing_if = "Option::is_none"
        )]
        vouched_ago: Option<Duration>,
    },
    /// Promoted.
    Promoted {
        /// The new timeline.
        timeline: Timeline,
        /// Where it begins.
        position: Lsn,
        /// Whether it already was.
        already: bool,
    },
}

/// An agent's answer to an order.
pub type OrderAnswer = Result<Came, EffectError>;
