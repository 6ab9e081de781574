//! Reports of agents and extra observers, and the answers to them.

use std::time::Duration;

use super::Brain;
use crate::engine::claims::Claims;
use crate::engine::lease::Refusal;
use crate::engine::observation::{Facts, Finding, Observation};
use crate::engine::policy::Durability;
use crate::engine::saga::GroupState;
use crate::engine::situation::AgentFacts;
use crate::engine::skew::Skew;
use crate::engine::synchrony::{RpoWindow, StandbyWord, WindowChange, window_change};
use crate::engine::topology::{SiteName, Target, TargetKind, Vantage};
use crate::engine::units::{MonoTime, WallTime};
use crate::wire::{
    Grant, Heard, Intake, ObserverAnswer, ObserverReport, Postmark, Report, ReportAnswer, Rhythm,
    SentObservation,
};

/// What a report is entitled to.
struct Standing {
    /// The lease, if it was requested and granted; or why not.
    grant: Option<Result<Grant, Refusal>>,
    /// Whether it comes from its site's counting instance.
    counts: bool,
    /// Whether nobody knows more than the log.
    sound: bool,
}

impl Brain {
    /// What must be logged about the RPO window now that an agent reports, before it is answered.
    pub fn window_change(
        &self,
        report: &Report,
        group: &GroupState,
        now: MonoTime,
    ) -> Option<WindowChange> {
        self.way(report.heard.as_ref(), now)?;
        let other = report.site != group.active || !Self::counts(report, group);
        if group.open.is_some() || other || self.behind(group).is_some() {
            return None;
        }
        let facts = report.facts.synchrony.as_ref();
        let standby = self.word_of_standby(group, now);
        window_change(group.window, facts, standby, &self.policy.data)
    }

    /// What the standby lately said itself.
    fn word_of_standby(&self, group: &GroupState, now: MonoTime) -> StandbyWord {
        let limit = self.policy.detect.stale_after;
        let of = |site: &SiteName| {
            let (read, facts) = self.databases.get(site)?;
            (now.since(*read) <= limit).then_some(&**facts)
        };
        let (standby, primary) = (of(self.topology.peer(&group.active)), of(&group.active));
        StandbyWord::of(standby, primary, self.claims.contradicted())
    }

    /// Receives an agent's report and answers it: the only place where the write lease is granted.
    pub fn report(
        &mut self,
        report: Report,
        group: &GroupState,
        now: MonoTime,
        wall: WallTime,
    ) -> ReportAnswer {
        let credentials = report.credentials.clone();
        self.credentials(Vantage::Agent(report.site.clone()), credentials);
        self.follow(group);
        self.remembers(&report, group, now);
        let way = self.way(report.heard.as_ref(), now);
        let Standing {
            grant,
            counts,
            sound,
        } = self.standing(&report, group, now);
        let active = report.site == group.active && counts && sound;
        let confirmed = report.facts.synchrony.as_ref();
        let confirmed = confirmed.and_then(|facts| facts.confirmed);
        let peer = self.topology.peer(&report.site);
        let peer = group.instances.get(peer).copied();
        let log = self.log_mark(group);
        if counts && let Some(way) = way {
            self.marked(&report.site, report.mark, report.peer_mark, now);
            let skew = Skew::measured(report.wall, wall, way);
            self.clocks.insert(report.site.clone(), skew);
            let facts = report.facts.clipped();
            self.reported(&report.site, facts, report.observations, now, way);
        }
        if !group.window.is_closed() {
            self.claims = Claims::default();
        } else if let Some(position) = confirmed.filter(|_| active) {
            self.claims.claimed(now, position);
        }
        // An agent may stop waiting only once the log says that the window is open.
        let asks_nothing =
            self.policy.data.durability == Durability::Async && !group.window.is_closed();
        // A site that was left must not go on without the new primary, whatever that one may do.
        let permitted = if active {
            group.window
        } else {
            RpoWindow::Closed
        };
        let standby_slot = active.then(|| self.slot_asked_for(group, now)).flatten();
        ReportAnswer {
            standby_slot,
            intake: self.intake(way, now),
            window: (!asks_nothing).then_some(permitted),
            epoch: self.book.epoch,
            // On a log that may be the wrong one, no site is told that the lease is its own, nor
            // that an instance does not hold it.
            holder: self.book.holder.clone().filter(|_| sound && counts),
            grant,
            peer: peer.filter(|_| sound),
            log,
            timers: self.policy.lease.clone(),
            probe_every: self.policy.detect.probe_every,
            probe_timeout: self.policy.detect.probe_timeout,
            restart_grace: self.policy.automation.local_restart_grace,
        }
    }

    /// The first observation in a report that is not of the group's services and databases, which
    /// are all that agents and observers probe. An agent's own reports show that it lives.
    pub fn foreign<'r>(&self, observations: &'r [SentObservation]) -> Option<&'r Target> {
        let mut targets = observations.iter().map(|sent| &sent.target);
        targets.find(|target| self.is_foreign(target))
    }

    fn is_foreign(&self, target: &Target) -> bool {
        !self.topology.has(&target.site) || target.kind == TargetKind::Agent
    }

    /// The slot that the standby recently used. A name that PostgreSQL would refuse is ignored.
    fn slot_asked_for(&self, group: &GroupState, now: MonoTime) -> Option<String> {
        let (made, facts) = self.agents.get(self.topology.peer(&group.active))?;
        let slot = facts.slot.as_ref()?;
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let valid = (1..=63).contains(&slot.len()) && slot.chars().all(plain);
        let fresh = now.since(*made) <= self.policy.detect.stale_after;
        (valid && fresh).then(|| slot.clone())
    }

    /// What a report is entitled to.
    fn standing(&mut self, report: &Report, group: &GroupState, now: MonoTime) -> Standing {
        if let Some(behind) = self.behind(group) {
            // Nothing was promoted past a lease that never expired, whatever is known about it
            // here.
            let epoch = report.epoch;
            let goes_on = report.holds.then_some(Grant { epoch });
            let (witness, knows) = (behind.witness, behind.knows);
            let refused = Refusal::LogBehind { witness, knows };
            let grant = report.asks.then(|| goes_on.ok_or(refused));
            return Standing {
                grant,
                counts: true,
                sound: false,
            };
        }
        let counts = Self::counts(report, group);
        let grant = if counts {
            self.counts_now(report, now);
            report.asks.then(|| self.grant(report, group, now))
        } else {
            let refused = self.second(report, group, now);
            report.asks.then_some(Err(refused))
        };
        Standing {
            grant,
            counts,
            sound: true,
        }
    }

    /// Grants the lease to a site's counting instance, or says why not.
    fn grant(
        &mut self,
        report: &Report,
        group: &GroupState,
        now: MonoTime,
    ) -> Result<Grant, Refusal> {
        let (site, epoch) = (&report.site, report.epoch);
        let holds = self.book.epoch == epoch && self.book.holder.as_ref() == Some(site);
        if holds && !report.holds && !self.is_witnessed(site, group) {
            return Err(Refusal::LogUnwitnessed);
        }
        if holds && report.instance.is_some() && !group.instances.contains_key(site) {
            // No other is named while a plan is open, or before the previous one's lease has
            // certainly expired. Until then an unexpired lease goes on, and the site that the plan
            // promotes gets it.
            let plan = group.open.as_ref();
            let goes_on = plan.is_some_and(|saga| report.holds || saga.plan.route.to == *site);
            if !goes_on {
                return Err(self.second(report, group, now));
            }
        }
        self.book.grant(site, epoch, now)?;
        self.book.granted_on(report.facts.machine.clone());
        let severed = group.instances.get(self.topology.peer(site));
        let counted = report.facts.deals_with.as_ref();
        let others = counted.is_some() && severed.is_some() && counted != severed;
        if others || !report.facts.enforced_by.is_certain() {
            self.book.cannot_wait_out();
        }
        Ok(Grant { epoch })
    }

    fn reported(
        &mut self,
        site: &SiteName,
        facts: AgentFacts,
        observations: Vec<SentObservation>,
        now: MonoTime,
        way: Duration,
    ) {
        let made = now.minus(way);
        let newest = self.agents.get(site).map(|(made, _)| *made);
        if newest.is_none_or(|newest| newest <= made) {
            self.agents.insert(site.clone(), (made, facts.into()));
        }
        let target = Target {
            site: site.clone(),
            kind: TargetKind::Agent,
        };
        let heard = Observation {
            target,
            vantage: Vantage::Controller,
            began: made,
            ended: made,
            finding: Finding::Good(Facts::Agent),
        };
        self.detector.observe(&heard, &self.policy.detect);
        let sites = self.topology.sites().map(Clone::clone);
        let sites = sites.each_ref();
        for sent in observations {
            if !self.is_foreign(&sent.target) {
                let vantage = Vantage::Agent(site.clone());
                self.take(&sent.unpack(vantage, now, &sites), way);
            }
        }
    }

    /// The longest that a report can have been in transit, if not longer than a probe may take. A
    /// delayed report describes the past: a database that was down, for example, and is up again.
    fn way(&self, heard: Option<&Heard>, now: MonoTime) -> Option<Duration> {
        let heard = heard.filter(|heard| heard.postmark.life == self.life)?;
        let since = now.0.checked_sub(heard.postmark.at)?;
        // On a fast clock it was longer.
        let drift = self
            .policy
            .lease
            .with_drift(heard.ago)
            .saturating_sub(heard.ago);
        let way = since.checked_sub(heard.ago.saturating_sub(drift))?;
        (way <= self.policy.detect.probe_timeout).then_some(way)
    }

    fn intake(&self, way: Option<Duration>, now: MonoTime) -> Intake {
        Intake {
            postmark: Postmark {
                life: self.life,
                at: now.0,
            },
            taken: way.is_some(),
        }
    }

    /// Receives an extra observer's report, and returns how to go on probing; or why it is not
    /// believed.
    ///
    /// Its observations are votes on whether targets answer, and nothing else. What a database said
    /// to it is not kept beside what it said to us and the agents: role, system and position decide
    /// which database may be promoted and what would be lost, and an observer reaches its databases
    /// at addresses of its own, which nothing here verifies. An agent's report about the standby
    /// comes from the process that will promote it. An observer would only add readings of unknown
    /// age, and a late one could make a stalled standby seem to advance.
    pub fn observed(
        &mut self,
        report: ObserverReport,
        now: MonoTime,
    ) -> Result<ObserverAnswer, String> {
        let name = report.name;
        let way = self.way(report.heard.as_ref(), now);
        if !self.observers.contains_key(&name) {
            return Err(format!(
                "`{name}` is none of the observers of this controller: name it in `[[observers]]`"
            ));
        }
        if let Some(foreign) = self.foreign(&report.observations).cloned() {
            let [first, second] = self.topology.sites();
            return Err(format!(
                "`{foreign}` is not an observer's to probe: configure api and database of `{first}` and `{second}`"
            ));
        }
        if let Some(way) = way {
            self.observers.insert(name.clone(), Some(now.minus(way)));
        }
        // Windows begin with this process, whatever age is claimed.
        let oldest = now.since(self.in_charge_since);
        let taken = way.map(|_| report.observations).unwrap_or_default();
        for mut sent in taken {
            sent.began = sent.began.min(oldest);
            sent.ended = sent.ended.min(sent.began);
            let vantage = Vantage::Observer(name.clone());
            let seen = sent.unpack(vantage, now, &self.topology.sites());
            self.detector.observe(&seen, &self.policy.detect);
        }
        let detect = &self.policy.detect;
        let rhythm = Rhythm {
            every: detect.probe_every,
            within: detect.probe_timeout,
        };
        let intake = self.intake(way, now);
        Ok(ObserverAnswer { intake, rhythm })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::engine::credential::CredentialFacts;
    use crate::engine::detector::{State, VoteKind};
    use crate::engine::lease::Enforcer;
    use crate::engine::observation::{
        DatabaseFacts, Heartbeat, ProbeFailure, ReplayPause, ReplayState,
    };
    use crate::engine::policy::Policy;
    use crate::engine::situation::{LocalDatabase, Situation};
    use crate::engine::topology::{Role, Topology};
    use crate::engine::units::{Epoch, Lsn, SystemId, Timeline};

    const FAST: &str = include_str!("../../../policies/fast.toml");

    pub(in crate::app::brain) fn topology() -> Topology {
        Topology {
            group: "shop".parse().unwrap(),
            first: "aws".parse().unwrap(),
            second: "gcp".parse().unwrap(),
            traffic: Vec::new(),
        }
    }

    fn second(count: u64) -> MonoTime {
        MonoTime(Duration::from_secs(count))
    }

    pub(in crate::app::brain) const LIFE: u64 = 7;

    /// What a process heard that answers at once.
    fn heard(at: u64) -> Heard {
        let at = Duration::from_secs(at);
        let postmark = Postmark { life: LIFE, at };
        let ago = Duration::ZERO;
        Heard { postmark, ago }
    }

    /// A controller that took over in the tenth second and believes `paris`.
    fn brain() -> Brain {
        let policy = Policy::read("fast", FAST).unwrap();
        Brain::new(
            topology(),
            policy,
            &GroupState::new(&topology()),
            second(10),
            LIFE,
        )
        .observed_by(["paris".parse().unwrap()])
    }

    fn situation(brain: &mut Brain, now: u64) -> Situation {
        let group = GroupState::new(&topology());
        brain.situation(&group, false, None, second(now), WallTime(0))
    }

    pub(in crate::app::brain) fn saw(
        site: &str,
        kind: TargetKind,
        finding: Finding,
        age: Duration,
    ) -> SentObservation {
        let site = site.parse().unwrap();
        SentObservation {
            target: Target { site, kind },
            began: age,
            ended: Duration::ZERO,
            finding,
        }
    }

    pub(in crate::app::brain) fn report(
        name: &str,
        observations: Vec<SentObservation>,
    ) -> ObserverReport {
        ObserverReport {
            group: "shop".parse().unwrap(),
            name: name.parse().unwrap(),
            observations,
            heard: Some(heard(11)),
            version: "0".to_owned(),
        }
    }

    pub(in crate::app::brain) fn primary() -> Finding {
        Finding::Good(Facts::Database(Box::new(DatabaseFacts {
            role: Role::Primary,
            system_id: SystemId(7),
            timeline: Timeline(1),
            version: 150_018,
            position: Lsn(1000),
            replayed: Lsn(1000),
            receiver: None,
            senders: Vec::new(),
            heartbeat: None::<Heartbeat>,
            epoch: Some(Epoch(1)),
            replay_pause: ReplayPause::None,
            replay_state: ReplayState::AtEnd,
            apply_delay: Duration::ZERO,
            synchronous_names: String::new(),
            commits_waiting: Vec::new(),
            limits: [100, 8, 10, 0, 64],
            write_took: None,
            blocked: None,
        })))
    }

    #[test]
    fn what_an_observer_sees_is_a_vote_and_nothing_else() {
        let mut brain = brain();
        let seen = vec![saw("aws", TargetKind::Database, primary(), Duration::ZERO)];
        let told = brain.observed(report("paris", seen), second(11)).unwrap();
        assert_eq!(told.rhythm.every, Duration::from_millis(250));
        assert!(told.intake.taken);
        let situation = situation(&mut brain, 12);
        let site = situation.active_site().unwrap();
        let votes = &site.health[&TargetKind::Database].votes;
        assert_eq!(votes.len(), 1);
        assert_eq!(votes[0].vantage.to_string(), "observer:paris");
        assert_eq!(votes[0].kind, VoteKind::For);
        assert_eq!(site.state(TargetKind::Database), State::Healthy);
        // Neither does it bound the loss, nor does the controller reach what an observer reaches.
        assert_eq!((&site.database, site.reached), (&None, false));
        assert_eq!(situation.replication.primary, None);
        let age = situation.observers[&"paris".parse().unwrap()].age;
        assert_eq!(age, Some(Duration::from_secs(1)));
    }

    /// What the agent of `aws` says, who sees its primary.
    fn word(heard: Option<Heard>) -> Report {
        Report {
            group: "shop".parse().unwrap(),
            site: "aws".parse().unwrap(),
            epoch: Epoch(1),
            asks: true,
            instance: None,
            holds: true,
            log: None,
            facts: AgentFacts {
                database: LocalDatabase::Up,
                fenced: None,
                severed: None,
                guarded: true,
                enforced_by: Enforcer::Guard,
                machine: None,
                peer: None,
                peer_clock: None,
                synchrony: None,
                epoch_written: None,
                rehearsal: None,
                slot: None,
                vouched: None,
                deals_with: None,
                foreign: None,
                pending: Vec::new(),
            },
            observations: vec![saw("aws", TargetKind::Database, primary(), Duration::ZERO)],
            heard,
            mark: heard_mark(),
            wall: WallTime(3_600_000),
            peer_mark: None,
            guard: None,
            credentials: CredentialFacts::default(),
            version: "0".to_owned(),
        }
    }

    fn heard_mark() -> Postmark {
        heard(1).postmark
    }

    #[test]
    fn a_report_that_may_have_been_held_up_has_its_answer_and_is_not_taken_in() {
        let group = GroupState::new(&topology());
        let ago = Duration::from_secs(5);
        let waited = |at| Some(Heard { ago, ..heard(at) });
        let mut foreign = heard(20);
        foreign.postmark.life += 1;
        for (mark, taken) in [
            (None, false),
            (Some(foreign), false),
            (Some(heard(18)), false),
            (Some(heard(21)), false), // not sent yet
            (waited(16), false),      // heard before it was sent
            (waited(14), false),      // the agent's clock may go fast
            (waited(15), true),
            (Some(heard(19)), true),
            (Some(heard(20)), true),
        ] {
            let mut brain = brain();
            let answer = brain.report(word(mark), &group, second(20), WallTime(0));
            assert_eq!(answer.intake.taken, taken, "{mark:?}");
            assert_eq!(answer.grant, Some(Ok(Grant { epoch: Epoch(1) })));
            assert_eq!(answer.intake.postmark, heard(20).postmark);
            let situation = situation(&mut brain, 20);
            let site = situation.active_site().unwrap();
            assert_eq!(site.agent.is_some(), taken, "{mark:?}");
            assert_eq!(site.database.is_some(), taken, "{mark:?}");

            let mut seen = report("paris", vec![]);
            seen.heard = mark;
            let told = brain.observed(seen, second(20)).unwrap();
            assert_eq!(told.intake.taken, taken, "{mark:?}");
        }
    }

    #[test]
    fn a_report_is_as_old_as_it_may_be_and_so_is_the_position_in_it() {
        let group = GroupState::new(&topology());
        let mut brain = brain();
        brain.report(word(Some(heard(19))), &group, second(20), WallTime(0));
        let known = situation(&mut brain, 21);
        // The report is a second old at most, and its clock an hour ahead of ours.
        let clock = known.active_site().unwrap().clock.unwrap();
        assert_eq!(clock.within, Duration::from_millis(500));
        assert_eq!(
            clock.at_least(),
            Duration::from_secs(3_600).saturating_sub(clock.within)
        );
        let age = known.active_site().unwrap().agent.as_ref().unwrap().age;
        assert_eq!(age, Duration::from_secs(2));
        let read = known.replication.primary.unwrap();
        assert_eq!((read.age, read.fact), (Duration::from_secs(2), Lsn(1000)));
        // An older one that arrives later changes nothing.
        let mut late = word(Some(heard(18)));
        late.facts.fenced = Some(Epoch(1));
        brain.report(late, &group, second(19), WallTime(0));
        let known = situation(&mut brain, 21);
        let agent = known.active_site().unwrap().agent.as_ref().unwrap();
        assert_eq!(agent.fact.fenced, None);
    }

    #[test]
    fn only_a_right_that_a_guard_ends_can_be_waited_out() {
        let group = GroupState::new(&topology());
        for (enforced_by, can) in [
            (Enforcer::Guard, true),
            (Enforcer::Api, false),
            (Enforcer::Nobody, false),
        ] {
            let mut brain = brain();
            let mut asks = word(Some(heard(11)));
            asks.facts.enforced_by = enforced_by;
            let answer = brain.report(asks, &group, second(12), WallTime(0));
            assert!(
                matches!(answer.grant, Some(Ok(_))),
                "it is granted all the same"
            );
            assert_eq!(
                situation(&mut brain, 13).can_wait_out,
                can,
                "{enforced_by:?}"
            );
        }
    }

    #[test]
    fn an_observer_that_is_not_named_is_told_so() {
        let mut brain = brain();
        let refused = brain.observed(report("rome", vec![]), second(11));
        assert!(
            refused
                .unwrap_err()
                .contains("`rome` is none of the observers")
        );
        let situation = situation(&mut brain, 12);
        let known: Vec<_> = situation.observers.into_iter().collect();
        assert_eq!(known.len(), 1);
        assert_eq!(known[0].1.age, None, "paris never reported");
    }

    #[test]
    fn an_observer_speaks_of_nothing_but_services_and_databases_of_the_group() {
        let mut brain = brain();
        let bad = || Finding::Bad(ProbeFailure::Refused);
        for (site, kind) in [("azure", TargetKind::Database), ("aws", TargetKind::Agent)] {
            let seen = vec![
                saw("aws", TargetKind::Api, bad(), Duration::ZERO),
                saw(site, kind, bad(), Duration::ZERO),
            ];
            let refused = brain.observed(report("paris", seen), second(11));
            assert!(refused.unwrap_err().contains(&format!("`{kind}@{site}`")));
        }
        let situation = situation(&mut brain, 12);
        let api = &situation.active_site().unwrap().health[&TargetKind::Api];
        assert!(api.votes.is_empty(), "nothing of it was taken in");
    }

    #[test]
    fn no_age_reaches_back_before_the_controllers_start() {
        let mut brain = brain();
        let bad = Finding::Bad(ProbeFailure::Refused);
        let hours = Duration::from_secs(36_000);
        let mut sent = saw("aws", TargetKind::Database, bad, hours);
        sent.ended = Duration::MAX;
        brain
            .observed(report("paris", vec![sent]), second(11))
            .unwrap();
        let situation = situation(&mut brain, 12);
        let database = &situation.active_site().unwrap().health[&TargetKind::Database];
        assert_eq!(database.votes[0].since, Duration::from_secs(2));
        assert_eq!(database.votes[0].age, Duration::from_secs(2));
    }
}
