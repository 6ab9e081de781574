//! What agents and extra observers report, and what they are answered.

use std::time::Duration;

use super::Brain;
use crate::engine::claims::Claims;
use crate::engine::lease::Refusal;
use crate::engine::observation::{Facts, Finding, Observation, ReceiverFacts};
use crate::engine::policy::Durability;
use crate::engine::saga::GroupState;
use crate::engine::situation::AgentFacts;
use crate::engine::skew::Skew;
use crate::engine::synchrony::{RpoWindow, StandbyWord, WindowChange, window_change};
use crate::engine::topology::{Role, SiteName, Target, TargetKind, Vantage};
use crate::engine::units::{MonoTime, WallTime};
use crate::wire::{
    Grant, Heard, ObserverAnswer, ObserverReport, Postmark, Receipt, Report, ReportAnswer, Rhythm,
    SentObservation,
};

/// What a report has a claim to.
struct Standing {
    /// The right, if it was asked for and granted; or why not.
    grant: Option<Result<Grant, Refusal>>,
    /// Whether it is of the instance of its site that counts.
    counts: bool,
    /// Whether nobody knows of more than the log holds.
    sound: bool,
}

impl Brain {
    /// What is to be written about the RPO window, now that an agent reports; before it is answered.
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

    /// What the standby says itself, where it lately said that it streams, from a primary of the same system and
    /// timeline.
    fn word_of_standby(&self, group: &GroupState, now: MonoTime) -> StandbyWord {
        let limit = self.policy.detect.stale_after;
        let of = |site: &SiteName| {
            let (read, facts) = self.databases.get(site)?;
            (now.since(*read) <= limit).then_some(facts)
        };
        let (standby, primary) = (of(self.topology.peer(&group.active)), of(&group.active));
        let follows = standby.filter(|standby| {
            let streams = standby
                .receiver
                .as_ref()
                .is_some_and(ReceiverFacts::is_streaming);
            let same = primary.is_none_or(|primary| {
                (primary.system_id, primary.timeline) == (standby.system_id, standby.timeline)
            });
            streams && same && standby.role == Role::Standby
        });
        StandbyWord {
            position: follows.map(|standby| standby.position),
            contradiction: self.claims.contradicted(),
        }
    }

    /// Takes in an agent's report and answers it: the only place where the right to take writes is
    /// granted.
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
        // Nothing is asked of an agent only once the log says that the window is open.
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
            receipt: self.receipt(way, now),
            window: (!asks_nothing).then_some(permitted),
            epoch: self.book.epoch,
            // By a log that may be the wrong one nobody is told that the right is theirs, nor is
            // an instance whose right it is not.
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

    /// The first of a report's observations that is of nothing that agents and observers look at:
    /// services and databases of the group. Whether an agent lives is told by its own reports.
    pub fn foreign<'r>(&self, observations: &'r [SentObservation]) -> Option<&'r Target> {
        let mut targets = observations.iter().map(|sent| &sent.target);
        targets.find(|target| self.is_foreign(target))
    }

    fn is_foreign(&self, target: &Target) -> bool {
        !self.topology.has(&target.site) || target.kind == TargetKind::Agent
    }

    /// The slot that the standby lately asked for. A name that PostgreSQL would not take is none.
    fn slot_asked_for(&self, group: &GroupState, now: MonoTime) -> Option<String> {
        let (made, facts) = self.agents.get(self.topology.peer(&group.active))?;
        let slot = facts.slot.as_ref()?;
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let valid = (1..=63).contains(&slot.len()) && slot.chars().all(plain);
        let fresh = now.since(*made) <= self.policy.detect.stale_after;
        (valid && fresh).then(|| slot.clone())
    }

    /// What a report has a claim to.
    fn standing(&mut self, report: &Report, group: &GroupState, now: MonoTime) -> Standing {
        if let Some(behind) = self.behind(group) {
            // Nobody was promoted past a right that never ended, whatever is known of it here.
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

    /// Grants the right to the instance of a site that counts, or says why not.
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
            // None is named while a plan is open, nor before the one before is certainly over. Until
            // then a right that never ended goes on, and the one that the plan promotes gets it.
            let plan = group.open.as_ref();
            let goes_on = plan.is_some_and(|saga| report.holds || saga.plan.route.to == *site);
            if !goes_on {
                return Err(self.second(report, group, now));
            }
        }
        self.book.grant(site, epoch, now)?;
        let severed = group.instances.get(self.topology.peer(site));
        let counted = report.facts.deals_with.as_ref();
        if counted.is_some() && severed.is_some() && counted != severed {
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
            self.agents.insert(site.clone(), (made, facts));
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
        for sent in observations {
            if !self.is_foreign(&sent.target) {
                self.take(&sent.unpack(Vantage::Agent(site.clone()), now), way);
            }
        }
    }

    /// How long a report was under way at most, if that is no longer than a look may take. A report
    /// that was held up says what was, not what is: of a database that was down, say, and is up
    /// again.
    fn way(&self, heard: Option<&Heard>, now: MonoTime) -> Option<Duration> {
        let heard = heard.filter(|heard| heard.postmark.life == self.life)?;
        let since = now.0.checked_sub(heard.postmark.at)?;
        // By a clock that goes fast it was longer.
        let drift = self
            .policy
            .lease
            .with_drift(heard.ago)
            .saturating_sub(heard.ago);
        let way = since.checked_sub(heard.ago.saturating_sub(drift))?;
        (way <= self.policy.detect.probe_timeout).then_some(way)
    }

    fn receipt(&self, way: Option<Duration>, now: MonoTime) -> Receipt {
        Receipt {
            postmark: Postmark {
                life: self.life,
                at: now.0,
            },
            taken: way.is_some(),
        }
    }

    /// Takes in what an extra observer saw, and tells it how to go on; or why it is not believed.
    ///
    /// What it saw are votes on whether targets answer, and nothing else. What a database said to
    /// it is not kept beside what it said to us and the agents, unlike what an agent hears: role,
    /// system and position decide which database may be promoted and what would be lost, and an
    /// observer finds its databases by addresses of its own, which nothing here vouches for. An
    /// agent's word about the standby is the word of the process that will promote it. An observer
    /// would only add readings of unknown age, a late one of which lets a standby that stands
    /// still seem to advance.
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
                "`{foreign}` is nothing for an observer to look at: give it api and database of `{first}` and `{second}`"
            ));
        }
        if let Some(way) = way {
            self.observers.insert(name.clone(), Some(now.minus(way)));
        }
        // Windows begin anew with this process, whatever age is claimed.
        let oldest = now.since(self.in_charge_since);
        let taken = way.map(|_| report.observations).unwrap_or_default();
        for mut sent in taken {
            sent.began = sent.began.min(oldest);
            sent.ended = sent.ended.min(sent.began);
            let vantage = Vantage::Observer(name.clone());
            let seen = sent.unpack(vantage, now);
            self.detector.observe(&seen, &self.policy.detect);
        }
        let detect = &self.policy.detect;
        let rhythm = Rhythm {
            every: detect.probe_every,
            within: detect.probe_timeout,
        };
        let receipt = self.receipt(way, now);
        Ok(ObserverAnswer { receipt, rhythm })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::credential::CredentialFacts;
    use crate::engine::detector::{State, VoteKind};
    use crate::engine::observation::{
        DatabaseFacts, Heartbeat, ProbeFailure, ReplayPause, ReplayState,
    };
    use crate::engine::policy::Policy;
    use crate::engine::situation::{LocalDatabase, Situation};
    use crate::engine::topology::{Role, Topology};
    use crate::engine::units::{Epoch, Lsn, SystemId, Timeline};

    const FAST: &str = include_str!("../../../policies/fast.toml");

    fn topology() -> Topology {
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

    const LIFE: u64 = 7;

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

    fn saw(site: &str, kind: TargetKind, finding: Finding, age: Duration) -> SentObservation {
        let site = site.parse().unwrap();
        SentObservation {
            target: Target { site, kind },
            began: age,
            ended: Duration::ZERO,
            finding,
        }
    }

    fn report(name: &str, observations: Vec<SentObservation>) -> ObserverReport {
        ObserverReport {
            group: "shop".parse().unwrap(),
            name: name.parse().unwrap(),
            observations,
            heard: Some(heard(11)),
            version: "0".to_owned(),
        }
    }

    fn primary() -> Finding {
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
        assert!(told.receipt.taken);
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
            assert_eq!(answer.receipt.taken, taken, "{mark:?}");
            assert_eq!(answer.grant, Some(Ok(Grant { epoch: Epoch(1) })));
            assert_eq!(answer.receipt.postmark, heard(20).postmark);
            let situation = situation(&mut brain, 20);
            let site = situation.active_site().unwrap();
            assert_eq!(site.agent.is_some(), taken, "{mark:?}");
            assert_eq!(site.database.is_some(), taken, "{mark:?}");

            let mut seen = report("paris", vec![]);
            seen.heard = mark;
            let told = brain.observed(seen, second(20)).unwrap();
            assert_eq!(told.receipt.taken, taken, "{mark:?}");
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
