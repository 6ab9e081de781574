//! What people order, as the decision log keeps it.

use serde::{Deserialize, Serialize};

use super::instance::Instance;
use super::situation::Request;
use super::topology::SiteName;
use super::units::{Epoch, WallTime};

/// What a person asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "command")]
pub enum Command {
    /// Make a site active.
    Promote {
        /// All of it.
        request: Request,
    },
    /// Stop automation.
    Hold {
        /// Why.
        reason: String,
        /// Until when.
        until: WallTime,
    },
    /// Let automation act again: ends a hold and re-arms after a failover.
    Release {
        /// Why.
        reason: String,
        /// The standby was made anew from the active site as it is now.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        rebuilt: bool,
    },
    /// Go on from how the world stands, where the log is behind it.
    Adopt {
        /// The epoch that the world is in.
        epoch: Epoch,
        /// The site that is active in it.
        active: SiteName,
        /// The instance of that site that holds the right, where it said so.
        instance: Option<Instance>,
        /// How many entries of a log that was lost anybody remembers: what they remember of it
        /// counts no more.
        lost: u64,
        /// Why.
        reason: String,
    },
    /// Let another instance of a site have its right and its word.
    AdoptInstance {
        /// The site.
        site: SiteName,
        /// The instance.
        instance: Instance,
        /// Why.
        reason: String,
    },
}
