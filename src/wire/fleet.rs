//! Which program each process of a group runs, by its own word.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::engine::format::WrittenBy;
use crate::engine::topology::{ObserverName, SiteName};

/// Which program each process of a group runs: for people, and nothing is decided by it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fleet {
    /// The controller.
    pub controller: WrittenBy,
    /// Each agent that reported.
    pub agents: BTreeMap<SiteName, WrittenBy>,
    /// The guard of each of them, which an upgrade leaves as it is for as long as its database runs.
    pub guards: BTreeMap<SiteName, WrittenBy>,
    /// Each extra observer that reported.
    pub observers: BTreeMap<ObserverName, WrittenBy>,
    /// Whether they are not all the same: an upgrade is under way, or was left half done.
    pub mixed: bool,
}

impl Fleet {
    /// A controller and who reports to it.
    pub fn new(
        controller: WrittenBy,
        agents: BTreeMap<SiteName, WrittenBy>,
        guards: BTreeMap<SiteName, WrittenBy>,
        observers: BTreeMap<ObserverName, WrittenBy>,
    ) -> Self {
        let mut reporters = agents.values().chain(observers.values());
        // A guard has a format of its own.
        let other_guard = |guard: &WrittenBy| guard.program != controller.program;
        let mixed = reporters.any(|by| *by != controller) || guards.values().any(other_guard);
        Self {
            controller,
            agents,
            guards,
            observers,
            mixed,
        }
    }

    /// Each process with what it runs, for people.
    pub fn members(&self) -> impl Iterator<Item = (String, &WrittenBy)> {
        let named = |kind: &'static str| move |(name, by)| (format!("{kind} {name}"), by);
        let agents = self.agents.iter().map(|(site, by)| (site.as_str(), by));
        let guards = self.guards.iter().map(|(site, by)| (site.as_str(), by));
        let observers = self.observers.iter().map(|(name, by)| (name.as_str(), by));
        std::iter::once(("controller".to_owned(), &self.controller))
            .chain(agents.map(named("agent")))
            .chain(guards.map(named("guard")))
            .chain(observers.map(named("observer")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::format::Format;

    #[test]
    fn a_fleet_is_mixed_as_soon_as_one_of_it_is_another() {
        let by = |program: &str, minor: u32| WrittenBy {
            program: program.to_owned(),
            format: Format::new(1, minor),
        };
        let fleet = |agent: WrittenBy, guard: WrittenBy, observer: WrittenBy| {
            let site = || "aws".parse().unwrap();
            let observers = [("paris".parse().unwrap(), observer)].into();
            let (agents, guards) = ([(site(), agent)].into(), [(site(), guard)].into());
            Fleet::new(by("2.0.0", 3), agents, guards, observers)
        };
        let ours = || by("2.0.0", 3);
        let same = fleet(ours(), by("2.0.0", 0), ours());
        assert!(!same.mixed);
        let told: Vec<String> = same.members().map(|(name, _)| name).collect();
        assert_eq!(
            told,
            ["controller", "agent aws", "guard aws", "observer paris"]
        );
        for mixed in [
            fleet(by("1.9.0", 3), ours(), ours()),
            fleet(by("2.0.0", 2), ours(), ours()),
            fleet(WrittenBy::default(), ours(), ours()),
            fleet(ours(), by("1.9.0", 3), ours()),
            fleet(ours(), WrittenBy::default(), ours()),
            fleet(ours(), ours(), by("1.9.0", 3)),
        ] {
            assert!(mixed.mixed, "{mixed:?}");
        }
    }
}
