//! What a traffic target answers, and the one guard that every write of it passes (invariants.md I9).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::topology::{SiteName, Topology};
use super::units::Epoch;

/// One traffic target's answer: the share of users that each site gets, and the epoch noted beside
/// it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The weight of each site; 0 is off. Only the ratio matters.
    pub weights: BTreeMap<SiteName, u16>,
    /// The epoch of the change that made this answer; `None` if no epoch is noted.
    pub epoch: Option<Epoch>,
}

impl Answer {
    /// All users to one site of the group.
    pub fn only(site: &SiteName, topology: &Topology, epoch: Epoch) -> Self {
        let weight = |name: &SiteName| (name.clone(), if name == site { 100 } else { 0 });
        Self {
            weights: topology.sites().into_iter().map(weight).collect(),
            epoch: Some(epoch),
        }
    }

    /// The sites that users reach: those with a weight above 0.
    pub fn sites_on(&self) -> impl Iterator<Item = &SiteName> {
        self.weights
            .iter()
            .filter(|(_, weight)| **weight > 0)
            .map(|(site, _)| site)
    }

    /// Whether users reach this site and no other.
    pub fn is_only(&self, site: &SiteName) -> bool {
        let mut on = self.sites_on();
        on.next() == Some(site) && on.next().is_none()
    }
}

/// Why a traffic write is forbidden.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForbiddenAnswer {
    /// No site would be on.
    #[error("no site would be on: users would get an error, or every site (all weights zero)")]
    NobodyOn,
    /// Both sites would be on, and users would write at both.
    #[error("{0} sites would be on: the database takes writes at only one")]
    SeveralOn(usize),
    /// Users would be sent to a database that takes no writes.
    #[error("site `{on}` would be on, but the write lease is at `{active}`")]
    FencedOn {
        /// The site that would be on.
        on: SiteName,
        /// The site that holds the write lease.
        active: SiteName,
    },
    /// The answer names a site that the group does not have.
    #[error("site `{0}` is not one of this group")]
    Foreign(SiteName),
}

/// The one check just before the write is sent: refuses every forbidden answer (invariants.md I9).
pub fn guard_answer(
    answer: &Answer,
    topology: &Topology,
    active: &SiteName,
) -> Result<(), ForbiddenAnswer> {
    if let Some(foreign) = answer.weights.keys().find(|site| !topology.has(site)) {
        return Err(ForbiddenAnswer::Foreign(foreign.clone()));
    }
    let on: Vec<&SiteName> = answer.sites_on().collect();
    match on.as_slice() {
        [] => Err(ForbiddenAnswer::NobodyOn),
        [only] if *only == active => Ok(()),
        [only] => Err(ForbiddenAnswer::FencedOn {
            on: (*only).clone(),
            active: active.clone(),
        }),
        several => Err(ForbiddenAnswer::SeveralOn(several.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::situation::samples::{aws, gcp};
    use super::*;

    fn topology() -> Topology {
        let group = "shop".parse().unwrap();
        Topology {
            group,
            first: aws(),
            second: gcp(),
            traffic: Vec::new(),
        }
    }

    fn guard(weights: &[(&str, u16)]) -> Result<(), ForbiddenAnswer> {
        let weights: BTreeMap<_, _> = weights
            .iter()
            .map(|(site, weight)| (site.parse().unwrap(), *weight))
            .collect();
        guard_answer(
            &Answer {
                weights,
                epoch: Some(Epoch(2)),
            },
            &topology(),
            &gcp(),
        )
    }

    #[test]
    fn no_traffic_write_may_leave_a_forbidden_answer() {
        assert_eq!(guard(&[("aws", 0), ("gcp", 100)]), Ok(()));
        assert_eq!(guard(&[]), Err(ForbiddenAnswer::NobodyOn));
        assert_eq!(
            guard(&[("aws", 0), ("gcp", 0)]),
            Err(ForbiddenAnswer::NobodyOn)
        );
        assert_eq!(
            guard(&[("aws", 1), ("gcp", 1)]),
            Err(ForbiddenAnswer::SeveralOn(2))
        );
        assert!(matches!(
            guard(&[("aws", 1)]),
            Err(ForbiddenAnswer::FencedOn { .. })
        ));
        assert!(matches!(
            guard(&[("gcp", 1), ("paris", 0)]),
            Err(ForbiddenAnswer::Foreign(_))
        ));
    }

    #[test]
    fn an_answer_with_two_sites_on_is_not_only_one() {
        let weights = BTreeMap::from([(aws(), 1), (gcp(), 1)]);
        let answer = Answer {
            weights,
            epoch: None,
        };
        assert!(!answer.is_only(&aws()));
        assert_eq!(answer.sites_on().count(), 2);
    }
}
