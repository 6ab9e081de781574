//! What a person asks of the controller by the command line, and what becomes of it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::decision::Decision;
use crate::engine::instance::Instance;
use crate::engine::situation::Request;
use crate::engine::topology::SiteName;
use crate::engine::units::{Bytes, Epoch, millis};

/// A person asks for a site to become active.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromoteAsk {
    /// Which.
    pub to: SiteName,
    /// Why.
    pub reason: String,
    /// The loss they accept instead of the policy's limits.
    pub accept_data_loss: Option<Bytes>,
    /// Whether they vouch that the old primary cannot write.
    pub override_fence: bool,
    /// Whether they accept that the standby replays for longer than the policy allows.
    #[serde(default)]
    pub accept_replay: bool,
    /// Only say what would be done.
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

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromoteAnswer {
    /// The decision, with every gate.
    pub decision: Decision,
    /// The plan's steps.
    pub steps: Vec<String>,
    /// The plan's number, if it was opened.
    pub plan: Option<u64>,
}

/// A person stops automation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldAsk {
    /// Why.
    pub reason: String,
    /// For how long.
    #[serde(rename = "for_ms", with = "millis")]
    pub lasting: Duration,
}

/// A person lets automation act again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseAsk {
    /// Why.
    pub reason: String,
    /// The standby was made anew from the active site as it is now.
    #[serde(default)]
    pub rebuilt: bool,
}

/// A person says how the world stands, where the log is behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptAsk {
    /// The epoch that the world is in.
    pub epoch: Epoch,
    /// The site that is active in it.
    pub active: SiteName,
    /// Why.
    pub reason: String,
}

/// A person lets another instance of a site's agent have its right and its word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptInstanceAsk {
    /// The site.
    pub site: SiteName,
    /// The instance, as `failover status` names it.
    pub instance: Instance,
    /// Why.
    pub reason: String,
}
