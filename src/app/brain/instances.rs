//! Which instance of each site's agent counts, and what is known about others that report.

use super::Brain;
use crate::engine::instance::{Instance, InstanceChange, LastWord, NotOver, right_is_over};
use crate::engine::lease::Refusal;
use crate::engine::saga::GroupState;
use crate::engine::situation::SecondInstance;
use crate::engine::topology::SiteName;
use crate::engine::units::MonoTime;
use crate::wire::Report;

impl Brain {
    /// What must be logged about instances now that one reports, before it is answered.
    ///
    /// The first instance of a site that is heard counts, and no other while that one may hold the
    /// lease, or reports. Never during a plan, whose orders are for one instance.
    pub fn instance_change(
        &self,
        report: &Report,
        group: &GroupState,
        now: MonoTime,
    ) -> Option<InstanceChange> {
        let instance = report.instance?;
        let before = group.instances.get(&report.site).copied();
        let site = &report.site;
        let quiet = group.open.is_none() && self.behind(group).is_none();
        if before == Some(instance) || !quiet {
            return None;
        }
        let fit = if *site == group.active {
            let asks = report.asks || before.is_none();
            asks && self.may_hold(report, before, now).is_ok()
        } else {
            before.is_none_or(|_| self.is_silent(site, now))
        };
        let site = site.clone();
        fit.then_some(InstanceChange {
            site,
            instance,
            before,
        })
    }

    /// Whether an instance of the active site that did not count so far may count now.
    fn may_hold(
        &self,
        report: &Report,
        before: Option<Instance>,
        now: MonoTime,
    ) -> Result<(), NotOver> {
        let site = &report.site;
        // A log without instances is an older program's, or new: an existing lease belongs to its
        // holder, and in a new group nobody had one before.
        let first = before.is_none() && (report.holds || self.heard.begins_with(site));
        if first {
            return Ok(());
        }
        let granted = self.book.granted_to(site).unwrap_or(self.in_charge_since);
        let peer = self.agents.get(self.topology.peer(site));
        let vouched = peer.and_then(|(made, facts)| Some((*made, facts.vouched?.age)));
        right_is_over(&self.policy.lease, &LastWord { granted, vouched }, now)
    }

    /// Whether the counting instance of a site has been silent for so long that another may replace
    /// it.
    fn is_silent(&self, site: &SiteName, now: MonoTime) -> bool {
        let last = self.counted.get(site).copied();
        let last = last.unwrap_or(self.in_charge_since);
        now.since(last) >= self.policy.detect.stale_after
    }

    /// Remembers that an instance that does not count has reported.
    pub(super) fn second(&mut self, report: &Report, group: &GroupState, now: MonoTime) -> Refusal {
        let site = report.site.clone();
        let counts = group.instances.get(&site).copied();
        let why = if group.open.is_some() {
            "a plan is open".to_owned()
        } else if site == group.active {
            let kept = self.may_hold(report, counts, now).err();
            kept.map_or("it asks for nothing".to_owned(), |kept| kept.to_string())
        } else {
            "the one that counts reports".to_owned()
        };
        let second = SecondInstance {
            instance: report.instance,
            counts,
            why: why.clone(),
        };
        self.seconds.insert(site, (now, second.into()));
        Refusal::OtherInstance { counts, why }
    }

    /// Whether a report comes from its site's counting instance. While the log may be the wrong
    /// one, none does.
    pub(super) fn counts(report: &Report, group: &GroupState) -> bool {
        let known = group.instances.get(&report.site);
        known.is_none() || known.copied() == report.instance
    }

    /// Remembers that a site's counting instance reported.
    pub(super) fn counts_now(&mut self, report: &Report, now: MonoTime) {
        self.counted.insert(report.site.clone(), now);
        let second = self.seconds.get(&report.site);
        if second.is_some_and(|(_, second)| second.instance == report.instance) {
            self.seconds.remove(&report.site);
        }
    }

    /// Whether an instance recently reported without counting: an operator can adopt only such an
    /// instance.
    pub fn is_second(&self, site: &SiteName, instance: Instance) -> bool {
        let second = self.seconds.get(site);
        second.is_some_and(|(_, second)| second.instance == Some(instance))
    }
}
