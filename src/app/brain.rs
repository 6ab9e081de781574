//! What the controller knows, kept as facts with their times, and put together into a
//! [`Situation`] whenever one is needed. Synchronous: the loop around it is `control.rs`.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::engine::detector::Detector;
use crate::engine::lease::{LastRight, LeaseBook, can_wait_out};
use crate::engine::observation::{
    DatabaseFacts, Facts, Finding, Observation, PositionHistory, PositionSample,
};
use crate::engine::policy::{Durability, Policy};
use crate::engine::saga::GroupState;
use crate::engine::situation::{
    Aged, AgentFacts, AutomationState, ControllerFacts, HoldFacts, ObserverFacts, OpenPlan,
    Replication, Request, SiteFacts, Situation,
};
use crate::engine::step::{DeclaredLoss, Step};
use crate::engine::synchrony::{RpoWindow, WindowChange, window_change};
use crate::engine::topology::{
    ObserverName, Role, SiteName, Target, TargetKind, Topology, Vantage,
};
use crate::engine::units::{Bytes, Epoch, Lsn, MonoTime, WallTime};
use crate::wire::{Grant, ObserverAnswer, ObserverReport, Report, ReportAnswer, Rhythm};

/// What the controller knows.
#[derive(Debug)]
pub struct Brain {
    topology: Topology,
    policy: Policy,
    in_charge_since: MonoTime,
    detector: Detector,
    book: LeaseBook,
    /// Which site the position readings are about.
    readings_of: SiteName,
    readings: PositionHistory,
    standby: Option<StandbyReading>,
    databases: BTreeMap<SiteName, (MonoTime, DatabaseFacts)>,
    agents: BTreeMap<SiteName, (MonoTime, AgentFacts)>,
    /// The extra observers that are believed, and when each last reported.
    observers: BTreeMap<ObserverName, Option<MonoTime>>,
    /// When a look of the controller itself last got an answer from a site.
    reached: BTreeMap<SiteName, MonoTime>,
    anchors: (u32, u32),
}

#[derive(Debug, Clone, Copy)]
struct StandbyReading {
    read: MonoTime,
    position: Lsn,
    heartbeat: u64,
    advanced: MonoTime,
}

impl Brain {
    /// A brain that takes over at `now`: it knows the log and nothing else.
    pub fn new(topology: Topology, policy: Policy, group: &GroupState, now: MonoTime) -> Self {
        Self {
            in_charge_since: now,
            detector: Detector::default(),
            book: book_of(group, now),
            readings_of: group.active.clone(),
            readings: PositionHistory::default(),
            standby: None,
            databases: BTreeMap::new(),
            agents: BTreeMap::new(),
            observers: BTreeMap::new(),
            reached: BTreeMap::new(),
            anchors: (0, 0),
            topology,
            policy,
        }
    }

    /// The same, believing these observers too.
    #[must_use]
    pub fn observed_by(mut self, observers: impl IntoIterator<Item = ObserverName>) -> Self {
        self.observers = observers.into_iter().map(|name| (name, None)).collect();
        self
    }

    /// The policy in force.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// What the group consists of.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// How many anchors answered, of how many.
    pub fn anchors(&mut self, reached: u32, of: u32) {
        self.anchors = (reached, of);
    }

    /// Takes in an observation.
    pub fn observe(&mut self, observation: &Observation) {
        self.detector.observe(observation);
        let site = &observation.target.site;
        let answered = match &observation.finding {
            Finding::Good(Facts::Database(_) | Facts::Api) => true,
            // Its report came here; nothing has shown that ours gets there.
            Finding::Good(Facts::Agent) => false,
            Finding::Bad(failure) => failure.came_from_database(),
        };
        if answered && observation.vantage == Vantage::Controller {
            self.reached.insert(site.clone(), observation.ended);
        }
        if let Finding::Good(Facts::Database(database)) = &observation.finding {
            self.database(site, observation, database);
        }
    }

    fn database(&mut self, site: &SiteName, observation: &Observation, facts: &DatabaseFacts) {
        let newest = self.databases.get(site).map(|(began, _)| *began);
        if newest.is_some_and(|newest| newest > observation.began) {
            return;
        }
        self.databases
            .insert(site.clone(), (observation.began, facts.clone()));
        let active = *site == self.readings_of;
        match facts.role {
            // An agent's reading looks younger than it is by its way here, which nobody knows: what
            // was acknowledged meanwhile would count as safe. Only our own readings bound the loss.
            Role::Primary if active && observation.vantage == Vantage::Controller => {
                let sample = PositionSample {
                    began: observation.began,
                    position: facts.position,
                };
                self.readings.add(sample);
            }
            Role::Standby if !active => self.standby_read(observation.began, facts),
            Role::Primary | Role::Standby => {}
        }
    }

    fn standby_read(&mut self, read: MonoTime, facts: &DatabaseFacts) {
        let heartbeat = facts
            .heartbeat
            .as_ref()
            .map_or(0, |heartbeat| heartbeat.sequence);
        let position = facts.position;
        let advanced = match self.standby {
            // The first reading says nothing about advancing: it may have stood there for hours.
            // But it may also just have come, so the benefit of the doubt is the primary's.
            None => read,
            Some(last) if position > last.position || heartbeat > last.heartbeat => read,
            Some(last) => last.advanced,
        };
        self.standby = Some(StandbyReading {
            read,
            position,
            heartbeat,
            advanced,
        });
    }

    /// What is to be written about the RPO window, now that an agent reports; before it is answered.
    pub fn window_change(&self, report: &Report, group: &GroupState) -> Option<WindowChange> {
        if group.open.is_some() || report.site != group.active {
            return None;
        }
        let facts = report.facts.synchrony.as_ref();
        window_change(group.window, facts, &self.policy.data)
    }

    /// Takes in an agent's report and answers it: the only place where the right to take writes is
    /// granted.
    pub fn report(&mut self, report: Report, group: &GroupState, now: MonoTime) -> ReportAnswer {
        let site = report.site;
        self.agents.insert(site.clone(), (now, report.facts));
        self.observe(&Observation {
            target: Target {
                site: site.clone(),
                kind: TargetKind::Agent,
            },
            vantage: Vantage::Controller,
            began: now,
            ended: now,
            finding: Finding::Good(Facts::Agent),
        });
        for sent in report.observations {
            self.observe(&sent.unpack(Vantage::Agent(site.clone()), now));
        }
        self.follow(group);
        let grant = report.asks.then(|| {
            let epoch = report.epoch;
            self.book.grant(&site, epoch, now).map(|()| Grant { epoch })
        });
        // Nothing is asked of an agent only once the log says that the window is open.
        let asks_nothing =
            self.policy.data.durability == Durability::Async && !group.window.is_closed();
        // A site that was left must not go on without the new primary, whatever that one may do.
        let permitted = if site == group.active {
            group.window
        } else {
            RpoWindow::Closed
        };
        ReportAnswer {
            window: (!asks_nothing).then_some(permitted),
            epoch: self.book.epoch,
            holder: self.book.holder.clone(),
            grant,
            timers: self.policy.lease.clone(),
            probe_every: self.policy.detect.probe_every,
            probe_timeout: self.policy.detect.probe_timeout,
            restart_grace: self.policy.automation.local_restart_grace,
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
        let Some(last) = self.observers.get_mut(&name) else {
            return Err(format!(
                "`{name}` is none of the observers of this controller: name it in `[[observers]]`"
            ));
        };
        let mut targets = report.observations.iter().map(|sent| &sent.target);
        let foreign = targets
            .find(|target| !self.topology.has(&target.site) || target.kind == TargetKind::Agent);
        if let Some(foreign) = foreign {
            let [first, second] = self.topology.sites();
            return Err(format!(
                "`{foreign}` is nothing for an observer to look at: give it api and database of `{first}` and `{second}`"
            ));
        }
        *last = Some(now);
        // Windows begin anew with this process, whatever age is claimed.
        let oldest = now.since(self.in_charge_since);
        for mut sent in report.observations {
            sent.began = sent.began.min(oldest);
            sent.ended = sent.ended.min(sent.began);
            let vantage = Vantage::Observer(name.clone());
            self.detector.observe(&sent.unpack(vantage, now));
        }
        let detect = &self.policy.detect;
        Ok(Rhythm {
            every: detect.probe_every,
            within: detect.probe_timeout,
        })
    }

    /// What follows from the log without anybody saying so: an undone plan gives the right back,
    /// and readings of the old primary are worth nothing under a new one.
    pub fn follow(&mut self, group: &GroupState) {
        if group.open.is_none() && self.book.holder.is_none() {
            self.book.pass_to(group.active.clone());
        }
        if self.readings_of != group.active {
            self.readings_of = group.active.clone();
            self.readings.clear();
            self.standby = None;
        }
    }

    /// Stops granting, because the epoch is raised (durably, before this is called).
    pub fn raise(&mut self, epoch: Epoch) -> LastRight {
        self.book.raise(epoch);
        self.book.last_right()
    }

    /// Lets a site hold the right.
    pub fn pass_to(&mut self, site: SiteName) {
        self.book.pass_to(site);
    }

    /// The last right of the old holder.
    pub fn last_right(&self) -> LastRight {
        self.book.last_right()
    }

    /// What would be lost if the standby, cut off, stands at `position` (invariant 5). Where the
    /// primary's position was never read by this process, what the plan recorded is used.
    pub fn declare(
        &self,
        position: Lsn,
        group: &GroupState,
        now: MonoTime,
        wall: WallTime,
    ) -> DeclaredLoss {
        if group.window == RpoWindow::Closed {
            return DeclaredLoss {
                from_lsn: position,
                from: Some(wall),
                until: wall,
                window: Some(Duration::ZERO),
                estimate: Some(Bytes(0)),
                knowledge: Some(Duration::ZERO),
                nothing: true,
            };
        }
        let standby = Some((now, position));
        let known = Replication::at(now, &self.readings, standby, None);
        let recorded = group
            .open
            .as_ref()
            .map(|saga| (saga.plan.known_at, &saga.plan.loss));
        let from = match (known.covered, recorded) {
            (Some(covered), _) => Some(wall.minus(covered)),
            (None, Some((known_at, loss))) => loss.window.map(|window| known_at.minus(window)),
            (None, None) => None,
        };
        let recorded_bytes = recorded.and_then(|(_, loss)| loss.bytes);
        DeclaredLoss {
            from_lsn: position,
            from,
            until: wall,
            window: from.map(|from| wall.since(from)),
            estimate: known.loss_estimate().or(recorded_bytes),
            knowledge: known.primary.map(|primary| primary.age),
            nothing: false,
        }
    }

    /// Puts everything together.
    pub fn situation(
        &mut self,
        group: &GroupState,
        walking: bool,
        request: Option<Request>,
        now: MonoTime,
        wall: WallTime,
    ) -> Situation {
        self.follow(group);
        let passive = self.topology.peer(&group.active).clone();
        let sites = self.topology.sites().map(Clone::clone);
        let sites = sites.into_iter().map(|site| {
            let facts = self.site(&site, now);
            (site, facts)
        });
        let sites = sites.collect();
        let standby = self.standby.map(|standby| (standby.read, standby.position));
        let advanced = self.standby.map(|standby| standby.advanced);
        let planned = group
            .open
            .as_ref()
            .is_some_and(|saga| saga.plan.can_wait_out);
        let last = self.book.last_right();
        Situation {
            group: self.topology.group.clone(),
            epoch: group.epoch,
            active: group.active.clone(),
            passive,
            controller: ControllerFacts {
                in_charge: now.since(self.in_charge_since),
                anchors_reached: self.anchors.0,
                anchors: self.anchors.1,
            },
            automation: automation_of(group, wall),
            plan: group.open.as_ref().map(|saga| OpenPlan {
                id: saga.id,
                to: saga.plan.route.to.clone(),
                stuck: saga.stuck.is_some(),
                walking,
            }),
            sites,
            observers: self.observers_at(now),
            replication: Replication::at(now, &self.readings, standby, advanced),
            window: group.window,
            can_wait_out: planned
                || (last.site == group.active && can_wait_out(&self.policy.lease, &last)),
            request,
        }
    }

    fn observers_at(&self, now: MonoTime) -> BTreeMap<ObserverName, ObserverFacts> {
        let facts = self.observers.iter().map(|(name, last)| {
            let age = last.map(|last| now.since(last));
            (name.clone(), ObserverFacts { age })
        });
        facts.collect()
    }

    fn site(&mut self, site: &SiteName, now: MonoTime) -> SiteFacts {
        let detect = &self.policy.detect;
        let health = TargetKind::ALL.map(|kind| {
            let target = Target {
                site: site.clone(),
                kind,
            };
            (kind, self.detector.health(&target, now, detect))
        });
        let fresh = |moment: &MonoTime| now.since(*moment) <= detect.stale_after;
        SiteFacts {
            health: health.into(),
            reached: self.reached.get(site).is_some_and(fresh),
            database: aged(&self.databases, site, now),
            agent: aged(&self.agents, site, now),
        }
    }
}

fn aged<T: Clone>(
    all: &BTreeMap<SiteName, (MonoTime, T)>,
    site: &SiteName,
    now: MonoTime,
) -> Option<Aged<T>> {
    all.get(site).map(|(at, fact)| Aged {
        age: now.since(*at),
        fact: fact.clone(),
    })
}

/// The book that follows from the log, for a process that takes over.
fn book_of(group: &GroupState, now: MonoTime) -> LeaseBook {
    let mut book = LeaseBook::taken_over(group.epoch, group.active.clone(), now);
    if let Some(saga) = &group.open {
        if saga.past_pivot() {
            book.pass_to(saga.plan.route.to.clone());
        } else if saga.begun(&Step::RaiseEpoch) {
            book.raise(group.epoch);
        }
    }
    book
}

fn automation_of(group: &GroupState, wall: WallTime) -> AutomationState {
    let hold = group.hold.as_ref().filter(|hold| hold.until > wall);
    AutomationState {
        hold: hold.map(|hold| HoldFacts {
            operator: hold.operator.clone(),
            reason: hold.reason.clone(),
            until: hold.until,
            left: hold.until.since(wall),
        }),
        disarmed: group.disarmed,
        last_failover: group
            .last_plan
            .map(|at| wall.since(at).max(Duration::from_millis(1))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::detector::{State, VoteKind};
    use crate::engine::observation::{Heartbeat, ProbeFailure, ReplayPause};
    use crate::engine::situation::Situation;
    use crate::engine::units::{SystemId, Timeline};
    use crate::wire::SentObservation;

    const FAST: &str = include_str!("../../policies/fast.toml");

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

    /// A controller that took over in the tenth second and believes `paris`.
    fn brain() -> Brain {
        let policy = Policy::read("fast", FAST).unwrap();
        Brain::new(
            topology(),
            policy,
            &GroupState::new(&topology()),
            second(10),
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
            apply_delay: Duration::ZERO,
            synchronous_names: String::new(),
            limits: [100, 8, 10, 0, 64],
            write_took: None,
        })))
    }

    #[test]
    fn what_an_observer_sees_is_a_vote_and_nothing_else() {
        let mut brain = brain();
        let seen = vec![saw("aws", TargetKind::Database, primary(), Duration::ZERO)];
        let told = brain.observed(report("paris", seen), second(11)).unwrap();
        assert_eq!(told.every, Duration::from_millis(250));
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
