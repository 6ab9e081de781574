//! What others remember, compared with the decision log.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Brain;
use crate::engine::answer::Answer;
use crate::engine::chain::{LogMark, Recent};
use crate::engine::lease::LeaseBook;
use crate::engine::saga::{Command, GroupState};
use crate::engine::situation::LogBehind;
use crate::engine::topology::{Role, SiteName, TargetName};
use crate::engine::units::{Epoch, MonoTime};
use crate::engine::witness::{AgentWord, Log, Testimony};
use crate::wire::{AdoptAsk, Report};

/// How long an instance's statement about the lease is kept: many report intervals.
const SAID_KEPT: Duration = Duration::from_secs(60);

/// How many instances are kept: two of each site, and room for others that take turns.
const MOST_SAID: usize = 16;

/// An agent's last statement about the write lease.
#[derive(Debug)]
pub(super) struct Said {
    at: MonoTime,
    epoch: Epoch,
    holds: bool,
    asks: bool,
}

impl Brain {
    /// The same, comparing its log with what others remember. `began_empty`: this process created
    /// the log. `targets`: the traffic targets whose notes will be read.
    #[must_use]
    pub fn holding_against(
        mut self,
        began_empty: bool,
        targets: impl IntoIterator<Item = TargetName>,
    ) -> Self {
        self.heard = Testimony::awaited(began_empty, targets);
        self
    }

    /// Receives where the log ends.
    pub fn log_ends(&mut self, recent: Recent) {
        self.recent = recent;
    }

    /// Receives a traffic target's answer.
    pub fn traffic_says(&mut self, target: TargetName, answer: Answer) {
        self.heard.traffic(target, answer);
    }

    fn log<'b>(&'b self, group: &'b GroupState) -> Log<'b> {
        Log {
            state: group,
            recent: &self.recent,
        }
    }

    /// Who knows more than the log.
    pub fn behind(&self, group: &GroupState) -> Option<LogBehind> {
        self.heard.behind(self.log(group))
    }

    /// Receives what an agent remembers, however old its report is, before anything follows from
    /// it.
    pub fn remembers(&mut self, report: &Report, group: &GroupState, now: MonoTime) {
        let facts = &report.facts;
        let epochs = [Some(report.epoch), facts.fenced, facts.severed];
        let epoch = epochs.into_iter().flatten().max().unwrap_or_default();
        let log = Log {
            state: group,
            recent: &self.recent,
        };
        let word = AgentWord {
            site: report.site.clone(),
            epoch,
            log: report.log,
            holds: report.holds,
        };
        // From a copy only what contradicts the log counts.
        let counts = Self::counts(report, group) || word.contradicts(log);
        if counts {
            self.heard.agent(&word, log);
        }
        self.said
            .retain(|_, claim| now.since(claim.at) <= SAID_KEPT);
        let room = self.said.len() < MOST_SAID;
        if room && (counts || self.behind(group).is_some()) {
            let claim = Said {
                at: now,
                epoch: report.epoch,
                holds: report.holds,
                asks: report.asks,
            };
            let whose = (report.site.clone(), report.instance);
            self.said.insert(whose, claim);
        }
    }

    /// Whether a site without the lease may be granted it.
    pub(super) fn is_witnessed(&self, site: &SiteName, group: &GroupState) -> bool {
        group.open.is_some() || self.heard.witnessed(site, self.log(group))
    }

    /// The end of the log, for agents to remember; `None` while it may be the wrong one.
    pub(super) fn log_mark(&self, group: &GroupState) -> Option<LogMark> {
        match self.behind(group) {
            None => self.recent.end(),
            Some(_) => None,
        }
    }

    /// The command by which an operator continues the log from the actual state, if that agrees
    /// with what is seen.
    pub fn adopt(
        &self,
        ask: &AdoptAsk,
        group: &GroupState,
        now: MonoTime,
    ) -> Result<Command, String> {
        if !self.topology.has(&ask.active) {
            let [first, second] = self.topology.sites();
            return Err(format!(
                "`{}` is not a site of this group: its sites are `{first}` and `{second}`",
                ask.active
            ));
        }
        if group.open.is_none() && self.heard.facts(self.log(group)).is_sound() {
            return Err(
                "nobody knows more than the decision log: there is nothing to adopt".to_owned(),
            );
        }
        let limit = self.policy.detect.stale_after;
        let primaries = self
            .databases
            .iter()
            .filter(|(_, (seen, facts))| facts.role == Role::Primary && now.since(*seen) <= limit);
        let primaries: BTreeSet<SiteName> = primaries.map(|(site, _)| site.clone()).collect();
        let lately = self.said.iter();
        let lately = lately.filter(|(_, claim)| now.since(claim.at) <= limit);
        let lately: Vec<_> = lately.collect();
        let stands = |claim: &Said| claim.holds || (claim.asks && claim.epoch >= ask.epoch);
        let claimed = lately.iter().filter(|(_, claim)| stands(claim));
        let claimed = claimed.map(|((site, _), claim)| (site.clone(), claim.epoch));
        let holders: BTreeMap<SiteName, Epoch> = claimed.collect();
        let timeline = |site: &SiteName| Some(self.databases.get(site)?.1.timeline);
        let other = self.topology.peer(&ask.active);
        if let (Some(theirs), Some(ours)) = (timeline(other), timeline(&ask.active))
            && theirs > ours
        {
            return Err(format!(
                "the database of site `{other}` is on timeline {theirs}, that of `{}` on {ours}: it went on without it",
                ask.active
            ));
        }
        let adopted = (ask.epoch, &ask.active);
        self.heard.agrees(adopted, &holders, &primaries, group)?;
        let mut holds = lately.iter();
        let holds = holds.find(|((site, _), claim)| *site == ask.active && claim.holds);
        // What an outdated log says about instances may be just as outdated.
        let sound = self.behind(group).is_none();
        let counted = group.instances.get(&ask.active).filter(|_| sound).copied();
        let instance = holds.and_then(|((_, instance), _)| *instance).or(counted);
        Ok(Command::Adopt {
            epoch: ask.epoch,
            active: ask.active.clone(),
            instance,
            lost: self.heard.lost(self.log(group)),
            reason: ask.reason.clone(),
        })
    }

    /// Continues from the adopted state, as a process that takes over would.
    pub fn adopted(&mut self, group: &GroupState, now: MonoTime) {
        self.heard.adopted();
        self.book = LeaseBook::taken_over(group.epoch, group.active.clone(), now);
        self.seconds.clear();
        self.begin_anew(now);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::engine::policy::Policy;
    use crate::engine::situation::samples::{aws, gcp, healthy};
    use crate::engine::topology::Topology;
    use crate::engine::units::Timeline;

    fn now() -> MonoTime {
        MonoTime(Duration::from_secs(10))
    }

    /// A brain whose log is new, and to which the agent of gcp said that it knows of an epoch.
    fn told(epoch: Epoch) -> (Brain, GroupState) {
        let topology = Topology {
            group: "shop".parse().unwrap(),
            first: aws(),
            second: gcp(),
            traffic: Vec::new(),
        };
        let policy = Policy::read("fast", include_str!("../../../policies/fast.toml")).unwrap();
        let group = GroupState::new(&topology);
        let mut brain = Brain::new(topology, policy, &group, now(), 7);
        let word = AgentWord {
            site: gcp(),
            epoch,
            log: None,
            holds: false,
        };
        let log = Log {
            state: &group,
            recent: &brain.recent,
        };
        brain.heard.agent(&word, log);
        (brain, group)
    }

    fn ask(active: SiteName) -> AdoptAsk {
        AdoptAsk {
            epoch: Epoch(2),
            active,
            reason: "restored".to_owned(),
        }
    }

    #[test]
    fn nothing_is_adopted_where_nobody_knows_more_than_the_log() {
        let (brain, group) = told(Epoch(1));
        let refused = brain.adopt(&ask(aws()), &group, now()).unwrap_err();
        assert!(refused.contains("nothing to adopt"), "{refused}");
    }

    #[test]
    fn a_site_that_the_other_went_on_without_is_not_adopted() {
        let (mut brain, group) = told(Epoch(2));
        for (site, role, timeline) in [(aws(), Role::Standby, 1), (gcp(), Role::Primary, 2)] {
            let database = healthy().sites[&site].database.clone();
            let mut facts = database.unwrap().fact;
            (facts.role, facts.timeline) = (role, Timeline(timeline));
            brain.databases.insert(site, (now(), facts));
        }
        let refused = brain.adopt(&ask(aws()), &group, now()).unwrap_err();
        assert!(refused.contains("went on without it"), "{refused}");
        assert!(brain.adopt(&ask(gcp()), &group, now()).is_ok());
    }
}
