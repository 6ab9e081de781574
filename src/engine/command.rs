//! Operators' commands, as the decision log stores them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::instance::Instance;
use super::situation::Request;
use super::topology::SiteName;
use super::units::{Epoch, WallTime, as_millis};

/// An operator's command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "command")]
pub enum Command {
    /// Make a site active.
    Promote {
        /// The request with its operator, reason and options.
        request: Request,
    },
    /// Stop automation.
    Hold {
        /// The operator's reason.
        reason: String,
        /// When the hold ends.
        until: WallTime,
    },
    /// Resume automation: ends a hold and re-arms after a failover.
    Release {
        /// The operator's reason.
        reason: String,
        /// Whether the standby was rebuilt from the active site as it is now.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        rebuilt: bool,
    },
    /// Continue from the actual state, because the log is behind it.
    Adopt {
        /// The actual epoch.
        epoch: Epoch,
        /// The site that is active in it.
        active: SiteName,
        /// The instance of that site that holds the lease, if it reported one.
        instance: Option<Instance>,
        /// How many entries of the lost log anybody remembers: those memories no longer count.
        lost: u64,
        /// The operator's reason.
        reason: String,
    },
    /// Transfer a site's lease and reports to another instance.
    AdoptInstance {
        /// The site whose instance changes.
        site: SiteName,
        /// The instance that counts from now on.
        instance: Instance,
        /// The operator's reason.
        reason: String,
    },
}

/// The longest that a person may stop automation for.
const LONGEST_HOLD: Duration = Duration::from_secs(7 * 86_400);

impl Command {
    /// That automation stops from `now` on, unless that is for too long.
    pub fn hold(reason: String, lasting: Duration, now: WallTime) -> Result<Self, String> {
        if lasting > LONGEST_HOLD {
            return Err("a hold lasts 7 days at most, so that none is forgotten".to_owned());
        }
        let until = WallTime(now.0.saturating_add(as_millis(lasting)));
        Ok(Command::Hold { reason, until })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_has_an_end_within_a_week() {
        let hold = |days: u64| {
            let lasting = Duration::from_secs(days * 86_400);
            Command::hold("upgrade".into(), lasting, WallTime(5))
        };
        let until = WallTime(5 + 7 * 86_400_000);
        let reason = "upgrade".into();
        assert_eq!(hold(7), Ok(Command::Hold { reason, until }));
        assert!(hold(8).unwrap_err().contains("7 days at most"));
    }
}
