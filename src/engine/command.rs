//! What people order, as the decision log keeps it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::instance::Instance;
use super::situation::Request;
use super::topology::SiteName;
use super::units::{Epoch, WallTime, as_millis};

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
