//! Who a certificate is for: one DNS name under `failover.internal`.

use std::fmt;
use std::str::FromStr;

use rustls::pki_types::CertificateDer;

use crate::engine::topology::{GroupName, ObserverName, SiteName};
use crate::engine::units::serde_as_text;

/// The domain of all our identities. `.internal` is reserved for private use, so that no public
/// authority can issue a name below it.
const DOMAIN: &str = ".failover.internal";

/// The holder of a certificate, as its DNS name says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Identity {
    /// `controller.failover.internal`.
    Controller,
    /// `<site>.agent.<group>.failover.internal`.
    Agent {
        /// The group that the agent belongs to.
        group: GroupName,
        /// The site where it runs.
        site: SiteName,
    },
    /// `<name>.observer.<group>.failover.internal`.
    Observer {
        /// The group that it watches.
        group: GroupName,
        /// Its name.
        name: ObserverName,
    },
    /// `<person>.operator.<group>.failover.internal`, `<person>.reader.<group>.failover.internal`.
    Operator {
        /// The person.
        name: String,
        /// The group that they look after. `None` is the older form
        /// `<person>.operator.failover.internal`: an operator of every group that believes the
        /// same authority.
        group: Option<GroupName>,
        /// What they may do.
        role: OperatorRole,
    },
    /// Another name under `failover.internal`, in full. May do nothing unless a handler says so.
    Other(String),
}

/// What a person may do with the group that they look after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OperatorRole {
    /// Look at everything, and hold, release and promote.
    Operator,
    /// Look at everything.
    Reader,
}

/// Why a name or a certificate does not say who somebody is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not one of our names.
    #[error("`{0}` is not an identity: write it like `aws.agent.shop.failover.internal`")]
    Foreign(String),
    /// None of the certificate's names is ours.
    #[error("no name under `failover.internal`")]
    NoName,
    /// More than one of the certificate's names is ours, so that it could act as either.
    #[error("more than one name under `failover.internal`: `{}` and `{}`", .0.0, .0.1)]
    Ambiguous(Box<(Identity, Identity)>),
    /// It is not a certificate.
    #[error("not a certificate: {0}")]
    Malformed(String),
}

impl Identity {
    /// Who a certificate is for. Does not say whether the certificate is to be believed.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let parsed = webpki::EndEntityCert::try_from(certificate)
            .map_err(|cause| IdentityError::Malformed(cause.to_string()))?;
        let mut ours = parsed
            .valid_dns_names()
            .filter(|name| name.to_ascii_lowercase().ends_with(DOMAIN))
            .map(str::parse::<Identity>);
        let first = ours.next().ok_or(IdentityError::NoName)??;
        match ours.next() {
            None => Ok(first),
            Some(second) => Err(IdentityError::Ambiguous(Box::new((first, second?)))),
        }
    }

    /// The name without its domain: what files are named after (`aws.agent.shop`).
    pub fn short(&self) -> String {
        match self {
            Identity::Controller => "controller".to_owned(),
            Identity::Agent { group, site } => format!("{site}.agent.{group}"),
            Identity::Observer { group, name } => format!("{name}.observer.{group}"),
            Identity::Operator { name, group, role } => {
                let role = match role {
                    OperatorRole::Operator => "operator",
                    OperatorRole::Reader => "reader",
                };
                match group {
                    Some(group) => format!("{name}.{role}.{group}"),
                    None => format!("{name}.{role}"),
                }
            }
            Identity::Other(short) => short.clone(),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{DOMAIN}", self.short())
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let foreign = || IdentityError::Foreign(text.to_owned());
        // DNS names do not differ by case.
        let lower = text.to_ascii_lowercase();
        let short = lower.strip_suffix(DOMAIN).ok_or_else(foreign)?;
        let labels: Vec<&str> = short.split('.').collect();
        if !labels.iter().all(|label| is_label(label)) {
            return Err(foreign());
        }
        let identity = match labels.as_slice() {
            ["controller"] => Identity::Controller,
            [person, "operator"] => Identity::Operator {
                name: (*person).to_owned(),
                group: None,
                role: OperatorRole::Operator,
            },
            [person, role @ ("operator" | "reader"), group] => Identity::Operator {
                name: (*person).to_owned(),
                group: Some(group.parse().map_err(|_cause| foreign())?),
                role: if *role == "reader" {
                    OperatorRole::Reader
                } else {
                    OperatorRole::Operator
                },
            },
            [site, "agent", group] => match (site.parse(), group.parse()) {
                (Ok(site), Ok(group)) => Identity::Agent { group, site },
                (Err(_), _) | (_, Err(_)) => return Err(foreign()),
            },
            [name, "observer", group] => match (name.parse(), group.parse()) {
                (Ok(name), Ok(group)) => Identity::Observer { group, name },
                (Err(_), _) | (_, Err(_)) => return Err(foreign()),
            },
            _ => Identity::Other(short.to_owned()),
        };
        Ok(identity)
    }
}

serde_as_text!(Identity);

/// Whether a text is one part of a DNS name; a `*` is not, because a wildcard names nobody.
fn is_label(text: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(legal)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_round_trip() {
        for text in [
            "controller.failover.internal",
            "aws.agent.shop.failover.internal",
            "alice.operator.failover.internal",
            "alice.operator.shop.failover.internal",
            "bob.reader.shop.failover.internal",
            "paris.observer.shop.failover.internal",
        ] {
            let identity: Identity = text.parse().unwrap();
            assert_eq!(identity.to_string(), text);
        }
        let upper: Identity = "AWS.Agent.Shop.Failover.Internal".parse().unwrap();
        assert_eq!(upper.short(), "aws.agent.shop");
    }

    #[test]
    fn names_that_only_look_like_ours_are_refused() {
        for text in [
            "",
            "failover.internal",
            ".failover.internal",
            "controller",
            "controllerxfailover.internal",
            "controller.failover.internal.example.org",
            "controller.failover.internal.",
            "*.failover.internal",
            "*.agent.shop.failover.internal",
            "1aws.agent.shop.failover.internal",
            "aws.agent..failover.internal",
            "1paris.observer.shop.failover.internal",
            "-a.operator.failover.internal",
            "a.operator.1shop.failover.internal",
            "a.reader..failover.internal",
        ] {
            assert!(text.parse::<Identity>().is_err(), "{text}");
        }
        let nested: Identity = "x.controller.failover.internal".parse().unwrap();
        assert_eq!(nested, Identity::Other("x.controller".to_owned()));
        let unbound: Identity = "bob.reader.failover.internal".parse().unwrap();
        assert_eq!(unbound, Identity::Other("bob.reader".to_owned()));
    }
}
