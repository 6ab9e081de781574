//! What the controller knows, kept as facts with their times, and put together into a
//! [`Situation`] whenever one is needed. Synchronous: the loop around it is `control.rs`.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::engine::chain::Recent;
use crate::engine::claims::Claims;
use crate::engine::credential::CredentialFacts;
use crate::engine::detector::Detector;
use crate::engine::instance::Instance;
use crate::engine::lease::{LastRight, LeaseBook, can_wait_out};
use crate::engine::observation::{
    DatabaseFacts, Facts, Finding, Observation, PositionHistory, PositionSample,
};
use crate::engine::policy::Policy;
use crate::engine::rehearsal::{Found, Rehearsals};
use crate::engine::replay::ReplayWatch;
use crate::engine::saga::{GroupState, Moment};
use crate::engine::situation::{
    Aged, AgentFacts, ControllerFacts, ObserverFacts, OpenPlan, Replication, Request,
    SecondInstance, SiteFacts, Situation,
};
use crate::engine::skew::Skew;
use crate::engine::step::DeclaredLoss;
use crate::engine::synchrony::RpoWindow;
use crate::engine::topology::{
    ObserverName, Role, SiteName, Target, TargetKind, Topology, Vantage,
};
use crate::engine::units::{Bytes, Epoch, Lsn, MonoTime, WallTime};
use crate::engine::waits::Waits;
use crate::engine::witness::{Log, Testimony};

mod fleet;
mod from_log;
mod instances;
mod marks;
mod reports;
mod witnesses;

use self::fleet::Programs;
use self::from_log::{automation_of, book_of};
use self::marks::Marks;
use self::witnesses::Said;

/// What the controller knows.
#[derive(Debug)]
pub struct Brain {
    topology: Topology,
    policy: Policy,
    in_charge_since: MonoTime,
    /// This life of this controller, for the marks on its answers.
    life: u64,
    /// Which start of which machine this is: moments of its log on the same one are on our clock.
    boot: String,
    detector: Detector,
    book: LeaseBook,
    /// Which site the position readings are about.
    readings_of: SiteName,
    readings: PositionHistory,
    standby: Option<StandbyReading>,
    replay: ReplayWatch,
    waits: Waits,
    claims: Claims,
    databases: BTreeMap<SiteName, (MonoTime, DatabaseFacts)>,
    agents: BTreeMap<SiteName, (MonoTime, AgentFacts)>,
    marks: Marks,
    /// How far each agent's wall clock is from ours.
    clocks: BTreeMap<SiteName, Skew>,
    /// The extra observers that are believed, and when each last reported.
    observers: BTreeMap<ObserverName, Option<MonoTime>>,
    /// When a look of the controller itself last got an answer from a site.
    reached: BTreeMap<SiteName, MonoTime>,
    /// When the instance of each site's agent that counts last reported, however late.
    counted: BTreeMap<SiteName, MonoTime>,
    /// The last instance of each site's agent that reported and does not count.
    seconds: BTreeMap<SiteName, (MonoTime, SecondInstance)>,
    /// What each instance of a site's agent last said of the right to take writes.
    said: BTreeMap<(SiteName, Option<Instance>), Said>,
    /// What others remember, held against the log.
    heard: Testimony,
    /// The last entries of the log.
    recent: Recent,
    anchors: (u32, u32),
    /// What each process says of its certificates and secrets.
    credentials: BTreeMap<Vantage, CredentialFacts>,
    rehearsals: Rehearsals,
    programs: Programs,
}

#[derive(Debug, Clone, Copy)]
struct StandbyReading {
    read: MonoTime,
    position: Lsn,
    heartbeat: u64,
    advanced: MonoTime,
}

impl Brain {
    /// A brain that takes over at `now`: it knows the log and nothing else. `life` is any number
    /// that no other life of a controller has.
    pub fn new(
        topology: Topology,
        policy: Policy,
        group: &GroupState,
        now: MonoTime,
        life: u64,
    ) -> Self {
        Self {
            in_charge_since: now,
            life,
            boot: String::new(),
            detector: Detector::default(),
            book: book_of(group, now),
            readings_of: group.active.clone(),
            readings: PositionHistory::default(),
            standby: None,
            replay: ReplayWatch::default(),
            waits: Waits::default(),
            claims: Claims::default(),
            databases: BTreeMap::new(),
            agents: BTreeMap::new(),
            marks: Marks::default(),
            clocks: BTreeMap::new(),
            observers: BTreeMap::new(),
            reached: BTreeMap::new(),
            counted: BTreeMap::new(),
            seconds: BTreeMap::new(),
            said: BTreeMap::new(),
            heard: Testimony::default(),
            recent: Recent::default(),
            anchors: (0, 0),
            credentials: BTreeMap::new(),
            rehearsals: Rehearsals::default(),
            programs: Programs::default(),
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

    /// The same, on this start of this machine, as entries of the log name it.
    #[must_use]
    pub fn booted(mut self, boot: String) -> Self {
        self.boot = boot;
        self
    }

    fn moment(&self, now: MonoTime, wall: WallTime) -> Moment {
        Moment {
            wall,
            mono: now.0,
            boot: self.boot.clone(),
        }
    }

    /// Begins every window anew: evidence from before `now` says nothing any more.
    pub fn begin_anew(&mut self, now: MonoTime) {
        self.detector = Detector::default();
        self.in_charge_since = now;
    }

    /// The policy in force.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// What the group consists of.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// How many anchors answered, of how many; and what this process says of its certificates.
    pub fn surroundings(&mut self, anchors: (u32, u32), own: CredentialFacts) {
        self.anchors = anchors;
        self.credentials(Vantage::Controller, own);
    }

    /// What a process says of its certificates and secrets.
    pub fn credentials(&mut self, of: Vantage, facts: CredentialFacts) {
        self.credentials.insert(of, facts.clipped());
    }

    fn refused_secrets(&self) -> Vec<String> {
        let all = self.credentials.iter();
        all.flat_map(|(who, facts)| facts.refused.iter().map(move |why| format!("{who}: {why}")))
            .collect()
    }

    /// Takes in a slow look at what the steps after a promotion would need.
    pub fn rehearsed(&mut self, began: MonoTime, found: Vec<Found>) {
        self.rehearsals.take(began, found);
    }

    /// Takes in an observation of our own. One into which a standstill fell is late because of us.
    pub fn observe(&mut self, observation: &Observation) {
        if observation.began < self.in_charge_since {
            return;
        }
        self.take(observation, Duration::ZERO);
    }

    /// Takes in an observation that was under way for so long at most.
    fn take(&mut self, observation: &Observation, way: Duration) {
        self.detector.observe(observation, &self.policy.detect);
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
            self.database(site, observation, database, way);
        }
    }

    fn database(
        &mut self,
        site: &SiteName,
        observation: &Observation,
        facts: &DatabaseFacts,
        way: Duration,
    ) {
        let own = match &observation.vantage {
            Vantage::Controller => true,
            Vantage::Agent(from) => from == site,
            Vantage::Observer(_) => false,
        };
        let standby = own && facts.role == Role::Standby;
        self.heard.database(site, facts.epoch, standby);
        let newest = self.databases.get(site).map(|(began, _)| *began);
        if newest.is_some_and(|newest| newest > observation.began) {
            return;
        }
        self.databases
            .insert(site.clone(), (observation.began, facts.clone()));
        let active = *site == self.readings_of;
        match facts.role {
            // A reading that looked younger than it is would have what was acknowledged meanwhile
            // count as safe: the longest way that it can have had is added to its age. And one that
            // the passive side made up would make what is lost seem less.
            Role::Primary if active => {
                if own {
                    let sample = PositionSample {
                        began: observation.began.minus(way),
                        position: facts.position,
                    };
                    self.readings.add(sample);
                    let standby = self.topology.peer(site);
                    self.readings.confirm(facts.flushed_by(standby));
                }
                self.waits.seen(observation.began, &facts.commits_waiting);
            }
            Role::Standby if !active => {
                // The longest way that it can have had: its word must not seem later than it is.
                let since = observation.began.minus(way);
                self.claims.said(since, facts.position);
                self.standby_read(observation.began, facts);
            }
            Role::Primary | Role::Standby => {}
        }
    }

    fn standby_read(&mut self, read: MonoTime, facts: &DatabaseFacts) {
        // Rows that could not be read say nothing: later they would seem to have advanced.
        let before = self.standby.map_or(0, |last| last.heartbeat);
        let heartbeat = facts
            .heartbeat
            .as_ref()
            .map_or(before, |heartbeat| heartbeat.sequence);
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
        self.replay.seen(read, facts);
    }

    /// What follows from the log without anybody saying so: a plan that failed before its pivot, or was
    /// undone, gives the right back, and readings of the old primary are worth nothing under a new one.
    pub fn follow(&mut self, group: &GroupState) {
        let back = match &group.open {
            None => Some(&group.active).filter(|_| self.book.holder.is_none()),
            Some(saga) => saga.gives_back_to(),
        };
        if let Some(site) = back.filter(|site| self.book.holder.as_ref() != Some(*site)) {
            tracing::warn!(%site, epoch = self.book.epoch.0, "the right is given back");
            self.book.pass_to(site.clone());
        }
        if self.readings_of != group.active {
            self.readings_of = group.active.clone();
            self.readings.clear();
            self.standby = None;
            self.replay = ReplayWatch::default();
            self.waits = Waits::default();
            self.claims = Claims::default();
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

    /// What would be lost if the standby, cut off, stands at `position` (invariants.md I5). Where the active side
    /// never told this process how it stands, what the plan recorded is used.
    pub fn declare(
        &self,
        position: Lsn,
        group: &GroupState,
        now: MonoTime,
        wall: WallTime,
    ) -> DeclaredLoss {
        // What somebody else of its name confirmed, and it does not have, is lost all the same.
        let replaced = group.replaced.is_some();
        if !replaced && group.window == RpoWindow::Closed && self.claims.covered_by(position) {
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
        let recorded = group.open.as_ref();
        let recorded_bytes = recorded.and_then(|saga| saga.plan.loss.bytes);
        let recorded_window = recorded.and_then(|saga| {
            let opened = &saga.opened;
            let before = opened.wall.since(saga.plan.known_at);
            let since = opened.ago(&self.moment(now, wall)).saturating_add(before);
            Some(saga.plan.loss.window?.saturating_add(since))
        });
        let window = known.covered.filter(|_| !replaced).or(recorded_window);
        DeclaredLoss {
            from_lsn: position,
            from: window.map(|window| wall.minus(window)),
            until: wall,
            window,
            estimate: known
                .confirmed
                .filter(|_| !replaced)
                .and_then(|_| known.loss_estimate())
                .or(recorded_bytes),
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
        self.rehearsals.follow(&group.active, now);
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
            automation: automation_of(group, &self.moment(now, wall)),
            plan: group.open.as_ref().map(|saga| OpenPlan {
                id: saga.id,
                to: saga.plan.route.to.clone(),
                stuck: saga.stuck.is_some(),
                walking,
            }),
            sites,
            observers: self.observers_at(now),
            certificates: CredentialFacts::ends_at(self.credentials.values(), wall),
            refused_secrets: self.refused_secrets(),
            rehearsals: self.rehearsals.at(now),
            replication: Replication {
                replay: self.replay.known(),
                commits_wait: self.waits.longest(),
                replaced: group.replaced.is_some(),
                contradicted: self
                    .claims
                    .contradicted()
                    .filter(|_| group.window.is_closed())
                    .map(|it| it.claimed.bytes_since(it.had)),
                ..Replication::at(now, &self.readings, standby, advanced)
            },
            window: group.window,
            can_wait_out: planned
                || (last.site == group.active && can_wait_out(&self.policy.lease, &last)),
            request,
            log: self.heard.facts(Log {
                state: group,
                recent: &self.recent,
            }),
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
            clock: self.clocks.get(site).copied(),
            second: aged(&self.seconds, site, now),
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
