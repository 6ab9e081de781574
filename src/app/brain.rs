//! What the controller knows: facts with their times, assembled into a [`Situation`] when one is
//! needed. Synchronous: the loop around it is `control.rs`.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::engine::arrival::Arrivals;
use crate::engine::chain::Recent;
use crate::engine::claims::Claims;
use crate::engine::credential::CredentialFacts;
use crate::engine::detector::Detector;
use crate::engine::from_log::{automation_of, book_of, gives_back, recorded_loss};
use crate::engine::instance::Instance;
use crate::engine::lease::{LastRight, LeaseBook, can_wait_out};
use crate::engine::loss::LossEvidence;
use crate::engine::observation::{DatabaseFacts, Facts, Finding, Observation};
use crate::engine::policy::Policy;
use crate::engine::position::{PositionHistory, PositionSample};
use crate::engine::rehearsal::{Found, Rehearsals};
use crate::engine::replay::ReplayWatch;
use crate::engine::replication::Replication;
use crate::engine::saga::{GroupState, Moment};
use crate::engine::situation::{
    AgentFacts, ControllerFacts, ObserverFacts, OpenPlan, Request, SecondInstance, SiteFacts,
    Situation,
};
use crate::engine::skew::Skew;
use crate::engine::topology::{
    ObserverName, Role, SiteName, Target, TargetKind, Topology, Vantage,
};
use crate::engine::units::{Aged, Epoch, Lsn, MonoTime, Shared, WallTime};
use crate::engine::waits::Waits;
use crate::engine::witness::{Log, Testimony};

mod fleet;
mod horizon;
mod instances;
mod marks;
mod reports;
mod witnesses;

use self::fleet::Programs;
use self::marks::Marks;
use self::witnesses::Said;

/// The newest of something for each site, and when it was so. Shared with what is shown.
type BySite<T> = BTreeMap<SiteName, (MonoTime, Shared<T>)>;

/// What the controller knows.
#[derive(Debug)]
pub struct Brain {
    topology: Topology,
    policy: Policy,
    in_charge_since: MonoTime,
    /// Identifies this run of this controller, for the marks on its answers.
    life: u64,
    /// Identifies this boot of this machine: log entries from the same boot use our clock.
    boot: String,
    detector: Detector,
    book: LeaseBook,
    /// The site that the position readings are about.
    readings_of: SiteName,
    readings: PositionHistory,
    arrivals: Arrivals,
    replay: ReplayWatch,
    waits: Waits,
    claims: Claims,
    databases: BySite<DatabaseFacts>,
    agents: BySite<AgentFacts>,
    marks: Marks,
    /// How far each agent's wall clock is from ours.
    clocks: BTreeMap<SiteName, Skew>,
    /// The trusted extra observers, and when each last reported.
    observers: BTreeMap<ObserverName, Option<MonoTime>>,
    /// When the controller's own probe last got an answer from a site.
    reached: BTreeMap<SiteName, MonoTime>,
    /// When the counting instance of each site's agent last reported, even if delayed.
    counted: BTreeMap<SiteName, MonoTime>,
    /// The last instance of each site's agent that reported but does not count.
    seconds: BySite<SecondInstance>,
    /// What each instance of a site's agent last said about the write lease.
    said: BTreeMap<(SiteName, Option<Instance>), Said>,
    /// What others remember, compared with the log.
    heard: Testimony,
    /// The last entries of the log.
    recent: Recent,
    anchors: (u32, u32),
    /// What each process reports about its certificates and secrets.
    credentials: BTreeMap<Vantage, CredentialFacts>,
    rehearsals: Rehearsals,
    programs: Programs,
}

impl Brain {
    /// A brain that takes over at `now`: it knows only the log. `life` is a number that no other
    /// run of a controller has.
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
            arrivals: Arrivals::default(),
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

    /// The same, with these trusted observers.
    #[must_use]
    pub fn observed_by(mut self, observers: impl IntoIterator<Item = ObserverName>) -> Self {
        self.observers = observers.into_iter().map(|name| (name, None)).collect();
        self
    }

    /// The same, on this boot of this machine, as log entries identify it.
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

    /// Restarts every window: evidence from before `now` no longer counts.
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

    /// Receives how many anchors answered, of how many; and this process's facts about its
    /// certificates.
    pub fn surroundings(&mut self, anchors: (u32, u32), own: CredentialFacts) {
        self.anchors = anchors;
        self.credentials(Vantage::Controller, own);
    }

    /// Receives a process's facts about its certificates and secrets.
    pub fn credentials(&mut self, of: Vantage, facts: CredentialFacts) {
        self.credentials.insert(of, facts.clipped());
    }

    fn refused_secrets(&self) -> Vec<String> {
        let all = self.credentials.iter();
        all.flat_map(|(who, facts)| facts.refused.iter().map(move |why| format!("{who}: {why}")))
            .collect()
    }

    /// Receives the result of rehearsing what the steps after a promotion would need.
    pub fn rehearsed(&mut self, began: MonoTime, found: Vec<Found>) {
        self.rehearsals.take(began, found);
    }

    /// Receives an observation of our own. One during which we stood still is late because of us.
    pub fn observe(&mut self, observation: &Observation) {
        if observation.began < self.in_charge_since {
            return;
        }
        self.take(observation, Duration::ZERO);
    }

    /// Receives an observation that was in transit for at most `way`.
    fn take(&mut self, observation: &Observation, way: Duration) {
        self.detector.observe(observation, &self.policy.detect);
        let site = &observation.target.site;
        if observation.finding.is_answer() && observation.vantage == Vantage::Controller {
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
        let known = (observation.began, Shared::from(facts.clone()));
        self.databases.insert(site.clone(), known);
        let active = *site == self.readings_of;
        match facts.role {
            // A reading that looked younger than it is would make later acknowledged writes count
            // as safe: its longest possible transit is added to its age. And a reading that the
            // passive side made up would make the loss look smaller.
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
                // Its longest possible transit: it must not look later than it is.
                let since = observation.began.minus(way);
                self.claims.said(since, facts.position);
                self.arrivals.seen(observation.began, facts);
                self.replay.seen(observation.began, facts);
            }
            Role::Primary | Role::Standby => {}
        }
    }

    /// What follows from the log without anybody saying so: a right is given back, and readings of the
    /// old primary are worth nothing under a new one.
    pub fn follow(&mut self, group: &GroupState) {
        if let Some(site) = gives_back(group, &self.book) {
            tracing::warn!(%site, epoch = self.book.epoch.0, "the right is given back");
            self.book.pass_to(site.clone());
        }
        if self.readings_of != group.active {
            self.readings_of = group.active.clone();
            self.readings.clear();
            self.arrivals = Arrivals::default();
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

    /// Lets a site hold the lease.
    pub fn pass_to(&mut self, site: SiteName) {
        self.book.pass_to(site);
    }

    /// The old holder's last lease.
    pub fn last_right(&self) -> LastRight {
        self.book.last_right()
    }

    /// What bears on the loss if the standby, cut off, stands at `position` (invariants.md I5).
    pub fn loss_evidence(
        &self,
        position: Lsn,
        group: &GroupState,
        now: MonoTime,
        wall: WallTime,
    ) -> LossEvidence {
        let standby = Some((now, position));
        LossEvidence {
            at: wall,
            position,
            window: group.window,
            claimed: self.claims.highest(),
            replication: Replication {
                replaced: group.replaced.is_some(),
                ..Replication::at(now, &self.readings, standby, None)
            },
            recorded: recorded_loss(group, &self.moment(now, wall)),
        }
    }

    /// Assembles the situation.
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
        let (standby, advanced) = (self.arrivals.last(), self.arrivals.advanced());
        let moment = self.moment(now, wall);
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
            automation: automation_of(group, &moment),
            plan: group.open.as_ref().map(|saga| OpenPlan {
                id: saga.id,
                to: saga.plan.route.to.clone(),
                stuck: saga.stuck.is_some(),
                walking,
                rechecking: false,
                recorded: recorded_loss(group, &moment),
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
        let fresh = |moment: &MonoTime| now.since(*moment) <= detect.reached_for();
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

fn aged<T: Clone>(all: &BySite<T>, site: &SiteName, now: MonoTime) -> Option<Aged<Shared<T>>> {
    all.get(site).map(|(at, fact)| Aged {
        age: now.since(*at),
        fact: fact.clone(),
    })
}
