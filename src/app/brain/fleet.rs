//! Which program each process of the group runs, by its own word: for people, and nothing rests on it.

use std::collections::BTreeMap;

use super::Brain;
use crate::engine::format::WrittenBy;
use crate::engine::saga::GroupState;
use crate::engine::topology::{ObserverName, SiteName};
use crate::wire::written::{FORMAT, Written};
use crate::wire::{Fleet, Report};

/// What those who report said of themselves last.
#[derive(Debug, Default)]
pub(super) struct Programs {
    agents: BTreeMap<SiteName, WrittenBy>,
    guards: BTreeMap<SiteName, WrittenBy>,
    observers: BTreeMap<ObserverName, WrittenBy>,
}

impl Brain {
    /// Takes in which program wrote a report of an agent, if that is the one that counts at its site.
    pub fn agent_runs(&mut self, written: &Written<Report>, group: &GroupState) {
        let report = &written.message;
        if !Self::counts(report, group) {
            return;
        }
        let (site, by) = (report.site.clone(), written.by.clone());
        match report.guard.clone() {
            Some(guard) => drop(self.programs.guards.insert(site.clone(), guard.clipped())),
            None => drop(self.programs.guards.remove(&site)),
        }
        self.programs.agents.insert(site, by);
    }

    /// The same for an observer that is believed.
    pub fn observer_runs(&mut self, name: ObserverName, by: WrittenBy) {
        self.programs.observers.insert(name, by);
    }

    /// Which program each process runs.
    pub fn fleet(&self) -> Fleet {
        let Programs {
            agents,
            guards,
            observers,
        } = &self.programs;
        let ours = WrittenBy::ours(FORMAT);
        Fleet::new(ours, agents.clone(), guards.clone(), observers.clone())
    }
}
