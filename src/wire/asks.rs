//! Operators' requests to the controller by the command line, and their results.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::decision::Decision;
use crate::engine::instance::Instance;
use crate::engine::situation::Request;
use crate::engine::topology::SiteName;
use crate::engine::units::{Bytes, Epoch, millis};

/// A request to make a site active.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromoteAsk {
    /// The site.
    pub to: SiteName,
    /// The operator's reason.
    pub reason: String,
    /// The loss that the operator accepts instead of the policy's limits.
    pub accept_data_loss: Option<Bytes>,
    /// Whether the operator asserts that the old primary cannot write.
    pub override_fence: bool,
    /// Whether the operator accepts that the standby replays for longer than the policy allows.
    #[serde(default)]
    pub accept_replay: bool,
    /// Whether to only show what would be done.
    pub dry_run: bool,
}

impl PromoteAsk {
    /// The request as the engine sees it.
    pub fn request(&self, operator: &str) -> Request {
        Request {
            operator: operator.to_owned(),
            reason: self.reason.clone(),
            to: self.to.clone(),
            accept_data_loss: self.accept_data_loss,
            override_fence: self.override_fence,
            accept_replay: self.accept_replay,
        }
    }
}

/// The result of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromoteAnswer {
    /// The decision, with every gate.
    pub decision: Decision,
    /// The plan's steps.
    pub steps: Vec<String>,
    /// The plan's number, if it was opened.
    pub plan: Option<u64>,
}

/// A request to stop automation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldAsk {
    /// The operator's reason.
    pub reason: String,
    /// How long.
    #[serde(rename = "for_ms", with = "millis")]
    pub lasting: Duration,
}

/// A request to resume automation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseAsk {
    /// The operator's reason.
    pub reason: String,
    /// Whether the standby was rebuilt from the active site as it is now.
    #[serde(default)]
    pub rebuilt: bool,
}

/// A request to continue from the actual state, because the log is behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptAsk {
    /// The actual epoch.
    pub epoch: Epoch,
    /// The site that is active in it.
    pub active: SiteName,
    /// The operator's reason.
    pub reason: String,
}

/// A request to transfer a site's lease and reports to another instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptInstanceAsk {
    /// The site.
    pub site: SiteName,
    /// The instance, as `failover status` names it.
    pub instance: Instance,
    /// The operator's reason.
    pub reason: String,
}
