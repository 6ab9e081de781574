//! What exists: the group, its sites, what is observed there and from where, and the traffic
//! targets.
//!
//! Names are validated when they are created, so that nothing later needs to quote or escape them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::units::{UnitError, serde_as_text};

/// The longest name; it must fit a DNS label with room for a suffix.
const NAME_LIMIT: usize = 40;

fn checked_name(
    text: &str,
    what: &'static str,
    example: &'static str,
) -> Result<String, UnitError> {
    let legal = text
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let starts = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    if legal && starts && !text.ends_with('-') && text.len() <= NAME_LIMIT {
        Ok(text.to_owned())
    } else {
        Err(UnitError::new(text, what, example))
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $example:literal) => {
        $(#[$doc])*
        ///
        /// Lower-case letters, digits and hyphens, starting with a letter; at most 40 characters.
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = UnitError;

            fn from_str(text: &str) -> Result<Self, UnitError> {
                checked_name(text, $what, $example).map($name)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        serde_as_text!($name);
    };
}

name!(
    /// The name of a site: one cloud region with a cluster and a database instance.
    SiteName, "the name of a site", "aws-frankfurt"
);
name!(
    /// The name of a group: one service that moves as a whole.
    GroupName, "the name of a group", "shop"
);
name!(
    /// The name of an extra observer. No site of its group has the same.
    ObserverName, "the name of an observer", "paris"
);
name!(
    /// The name of a traffic target: something that directs users to a site.
    TargetName, "the name of a traffic target", "dns"
);

/// The parts of a group. Always two sites: the configuration refuses more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// The service that moves as a whole.
    pub group: GroupName,
    /// The site that is active in a new log.
    pub first: SiteName,
    /// The site that is passive in a new log.
    pub second: SiteName,
    /// The traffic targets, in the order in which they are moved.
    pub traffic: Vec<TargetName>,
}

impl Topology {
    /// Both sites.
    pub fn sites(&self) -> [&SiteName; 2] {
        [&self.first, &self.second]
    }

    /// Whether the group has this site.
    pub fn has(&self, site: &SiteName) -> bool {
        self.sites().contains(&site)
    }

    /// The other site.
    pub fn peer(&self, site: &SiteName) -> &SiteName {
        if *site == self.first {
            &self.second
        } else {
            &self.first
        }
    }
}

/// The role of a PostgreSQL instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Accepts writes.
    Primary,
    /// Follows a primary.
    Standby,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Role::Primary => "primary",
            Role::Standby => "standby",
        })
    }
}

/// What is observed at a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TargetKind {
    /// The service, over HTTP, by the site's own address.
    Api,
    /// The PostgreSQL instance.
    Database,
    /// Our process at the site.
    Agent,
}

impl TargetKind {
    /// Every kind, in display order.
    pub const ALL: [TargetKind; 3] = [TargetKind::Api, TargetKind::Database, TargetKind::Agent];
}

impl fmt::Display for TargetKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            TargetKind::Api => "api",
            TargetKind::Database => "database",
            TargetKind::Agent => "agent",
        })
    }
}

/// One observed thing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Target {
    /// The site.
    pub site: SiteName,
    /// The kind of thing at that site.
    pub kind: TargetKind,
}

impl Target {
    /// The targets that are probed from outside. An agent reports by itself.
    pub fn looked_at(site: &SiteName) -> [Target; 2] {
        [TargetKind::Api, TargetKind::Database].map(|kind| Target {
            site: site.clone(),
            kind,
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.kind, self.site)
    }
}

/// Where an observation is made from. Written `controller`, `agent:aws` or `observer:paris`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Vantage {
    /// The controller in the neutral place.
    Controller,
    /// The agent at a site.
    Agent(SiteName),
    /// An extra process that only probes.
    Observer(ObserverName),
}

impl fmt::Display for Vantage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Vantage::Controller => f.write_str("controller"),
            Vantage::Agent(site) => write!(f, "agent:{site}"),
            Vantage::Observer(name) => write!(f, "observer:{name}"),
        }
    }
}

impl FromStr for Vantage {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        match text.split_once(':') {
            None if text == "controller" => Ok(Vantage::Controller),
            Some(("agent", site)) => site.parse().map(Vantage::Agent),
            Some(("observer", name)) => name.parse().map(Vantage::Observer),
            None | Some(_) => Err(UnitError::new(text, "a vantage point", "agent:aws")),
        }
    }
}

serde_as_text!(Vantage);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_when_made() {
        for good in ["a", "aws", "aws-1"] {
            assert!(good.parse::<SiteName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            "Aws",
            "1a",
            "a b",
            "a/b",
            "a'b",
            &"a".repeat(41),
        ] {
            assert!(bad.parse::<SiteName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn vantage_points_round_trip() {
        for text in ["controller", "agent:aws", "observer:paris"] {
            assert_eq!(text.parse::<Vantage>().unwrap().to_string(), text);
        }
        for text in ["", "agent", "agent:", "other:aws", "controller:x"] {
            assert!(text.parse::<Vantage>().is_err(), "{text}");
        }
    }
}
