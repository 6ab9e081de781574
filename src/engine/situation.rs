//! Everything that a decision is based on, as plain data: ages instead of moments, so that a
//! recorded situation replays anywhere, a year later, to the same decision (invariants.md I11).

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::credential::CertificateFacts;
use super::detector::{Health, State};
use super::instance::{Instance, Vouched};
use super::lease::Enforcer;
use super::loss::{LossEstimate, RecordedLoss};
use super::observation::DatabaseFacts;
use super::rehearsal::Rehearsal;
use super::replication::Replication;
use super::skew::Skew;
use super::synchrony::{RpoWindow, SyncFacts};
use super::text::{NAME_LIMIT, clip_fact, clip_to};
use super::topology::{GroupName, ObserverName, SiteName, TargetKind};
use super::units::{Aged, Bytes, Epoch, Shared, WallTime, millis};

/// Everything that is known at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Situation {
    /// The group it is about.
    pub group: GroupName,
    /// The current epoch.
    pub epoch: Epoch,
    /// The site that holds the write lease, or held it last.
    pub active: SiteName,
    /// The other site.
    pub passive: SiteName,
    /// About the controller itself.
    pub controller: ControllerFacts,
    /// Whether automation may act.
    pub automation: AutomationState,
    /// The open plan, if any.
    pub plan: Option<OpenPlan>,
    /// Each site.
    pub sites: BTreeMap<SiteName, SiteFacts>,
    /// Each extra observer that the controller's configuration names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub observers: BTreeMap<ObserverName, ObserverFacts>,
    /// When the certificates expire that our processes hold or see, the nearest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<CertificateFacts>,
    /// Files with secrets whose new content one of our processes refuses, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused_secrets: Vec<String>,
    /// What the steps after a promotion would need, as last rehearsed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rehearsals: Vec<Rehearsal>,
    /// The state of replication from the active database to the standby.
    pub replication: Replication,
    /// Whether the active site may acknowledge writes that its standby does not have.
    pub window: RpoWindow,
    /// Whether the old primary's last lease can be waited out (F3).
    pub can_wait_out: bool,
    /// The operator's request, if any.
    pub request: Option<Request>,
    /// Whether the decision log can be trusted to be current, and be written.
    #[serde(default, skip_serializing_if = "LogFacts::says_nothing")]
    pub log: LogFacts,
}

/// Whether the decision log can be trusted: it may be outdated or the wrong one; and whether it
/// takes entries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogFacts {
    /// Who knows more than the log, and what.
    pub behind: Option<LogBehind>,
    /// Whether nobody has confirmed since this controller started that the log is current.
    pub unwitnessed: bool,
    /// The log takes no entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<LogStopped>,
}

impl LogFacts {
    /// Whether automation may rely on it.
    pub fn is_sound(&self) -> bool {
        self.behind.is_none() && !self.unwitnessed
    }

    /// Whether there is nothing to report.
    fn says_nothing(&self) -> bool {
        self.is_sound() && self.stopped.is_none()
    }
}

/// The decision log takes no entry: nothing is done that cannot be logged first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogStopped {
    /// How long.
    #[serde(rename = "lasting_ms", with = "millis")]
    pub lasting: Duration,
    /// The error of the last attempt; `None` while one is running.
    pub cause: Option<String>,
}

/// Somebody knows more than the decision log says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogBehind {
    /// The witness.
    pub witness: String,
    /// What it knows.
    pub knows: String,
    /// What the log says.
    pub holds: String,
}

/// About the controller itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllerFacts {
    /// How long it has been in charge.
    #[serde(rename = "in_charge_ms", with = "millis")]
    pub in_charge: Duration,
    /// How many anchors (hosts that depend on neither site) it reaches.
    pub anchors_reached: u32,
    /// How many anchors are configured. With none, anchors say nothing.
    pub anchors: u32,
}

/// Whether automation may act.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AutomationState {
    /// The hold, if an operator stopped it.
    pub hold: Option<HoldFacts>,
    /// Whether it is disarmed since a failover and not yet re-armed.
    pub disarmed: bool,
    /// How long ago the last failover ended.
    #[serde(rename = "last_failover_ms", with = "millis::option")]
    pub last_failover: Option<Duration>,
}

/// A hold by an operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldFacts {
    /// The operator.
    pub operator: String,
    /// The operator's reason.
    pub reason: String,
    /// When it ends, by the wall clock.
    pub until: WallTime,
    /// How long until then.
    #[serde(rename = "left_ms", with = "millis")]
    pub left: Duration,
}

/// An open plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenPlan {
    /// Its number: its entry's `seq` in the decision log.
    pub id: u64,
    /// The site that it makes active.
    pub to: SiteName,
    /// Whether it is stuck and needs an operator.
    pub stuck: bool,
    /// Whether this process is executing it. Otherwise it must be resumed.
    pub walking: bool,
    /// Whether its first step judges everything anew, as though it were not open.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rechecking: bool,
    /// What it recorded as lost, for what cannot be seen any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recorded: Option<RecordedLoss>,
}

/// What is known about one site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteFacts {
    /// The health of each target.
    pub health: BTreeMap<TargetKind, Health>,
    /// Whether the controller's own probes recently got an answer from there: what it sends
    /// arrives.
    pub reached: bool,
    /// The newest good answer of its database, with its age.
    pub database: Option<Aged<Shared<DatabaseFacts>>>,
    /// The newest report of its agent, with its age.
    pub agent: Option<Aged<Shared<AgentFacts>>>,
    /// How far its wall clock was from the controller's at that report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<Skew>,
    /// Another instance of its agent that reports beside the one that counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second: Option<Aged<Shared<SecondInstance>>>,
}

/// An instance of a site's agent whose reports do not count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecondInstance {
    /// The instance; `None` if it names none.
    pub instance: Option<Instance>,
    /// The instance that counts.
    pub counts: Option<Instance>,
    /// Why it does not count, for people.
    pub why: String,
}

impl SiteFacts {
    /// The health of a target; unknown if there is none.
    pub fn state(&self, kind: TargetKind) -> State {
        self.health
            .get(&kind)
            .map_or(State::Unknown, |health| health.state)
    }

    /// Whether the controller recently heard anything from the site: an answer, or its agent's
    /// report, which may arrive even if nothing gets there.
    pub fn heard(&self, limit: Duration) -> bool {
        self.reached || self.agent.as_ref().is_some_and(|agent| agent.age <= limit)
    }
}

/// What an agent reports of its own site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentFacts {
    /// Its database, as the guard that owns it sees it.
    pub database: LocalDatabase,
    /// The epoch in which the site was fenced, if it is.
    pub fenced: Option<Epoch>,
    /// The epoch for which the standby was severed, if it is.
    pub severed: Option<Epoch>,
    /// Whether what enforces the deadline of the right to take writes answered when it was last asked.
    pub guarded: bool,
    /// What that is; an agent of an earlier version, which does not say, has a guard.
    #[serde(default)]
    pub enforced_by: Enforcer,
    /// What its infrastructure calls the machine it runs on: the uid of its pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// How old the newest answer of the other agent is.
    #[serde(rename = "peer_ms", with = "millis::option")]
    pub peer: Option<Duration>,
    /// How far the peer agent's wall clock was from its own at that answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_clock: Option<Skew>,
    /// How it keeps commits waiting for the standby, if the policy requires that.
    pub synchrony: Option<SyncFacts>,
    /// Of a primary: the epoch that the agent has written to it and read back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch_written: Option<Epoch>,
    /// Of a standby: the result of rehearsing a sever and its undo.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rehearsal: Option<SeverRehearsal>,
    /// Of a standby: the replication slot that it uses on its primary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<String>,
    /// The instance of the other site that it last vouched for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vouched: Option<Vouched>,
    /// The instance of the other site whose questions and answers it accepts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deals_with: Option<Instance>,
    /// What is in the data folder or at the port of its database and was not started by its guard,
    /// described for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub foreign: Option<String>,
    /// The keys of the agent's file whose changed values its database does not use yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending: Vec<String>,
}

/// The result of rehearsing what a sever and its undo need: the same settings are written with
/// their current values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeverRehearsal {
    /// The age of the rehearsal.
    #[serde(rename = "ago_ms", with = "millis")]
    pub ago: Duration,
    /// Why it would fail, if it would.
    pub obstacle: Option<String>,
}

/// As many keys as `[postgres]` has.
const KEYS_KEPT: usize = 13;

/// A key's length, at most, and a uid's.
const KEY_LIMIT: usize = 40;

impl AgentFacts {
    /// The facts with all texts bounded.
    #[must_use]
    pub fn clipped(mut self) -> Self {
        if let LocalDatabase::Down { why, .. } = &mut self.database {
            clip_fact(why);
        }
        if let Some(obstacle) = self
            .synchrony
            .as_mut()
            .and_then(|sync| sync.obstacle.as_mut())
        {
            clip_fact(obstacle);
        }
        let rehearsal = self.rehearsal.as_mut();
        if let Some(obstacle) = rehearsal.and_then(|it| it.obstacle.as_mut()) {
            clip_fact(obstacle);
        }
        if let Some(slot) = &mut self.slot {
            clip_to(slot, NAME_LIMIT);
        }
        if let Some(foreign) = &mut self.foreign {
            clip_fact(foreign);
        }
        if let Some(machine) = &mut self.machine {
            clip_to(machine, KEY_LIMIT);
        }
        self.pending.truncate(KEYS_KEPT);
        self.pending.shrink_to_fit();
        for key in &mut self.pending {
            clip_to(key, KEY_LIMIT);
        }
        self
    }
}

/// A database's state, as its guard and agent see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum LocalDatabase {
    /// It runs.
    Up,
    /// It is down because the site holds no write lease, and starts when it gets one.
    Waiting {
        /// How long.
        #[serde(rename = "since_ms", with = "millis")]
        since: Duration,
    },
    /// It runs, but is still recovering from a crash and accepts no connections.
    Recovering {
        /// How long it has not served.
        #[serde(rename = "since_ms", with = "millis")]
        since: Duration,
        /// How long none of its processes has made progress.
        #[serde(rename = "still_ms", with = "millis")]
        still: Duration,
    },
    /// It is down.
    Down {
        /// How long.
        #[serde(rename = "since_ms", with = "millis")]
        since: Duration,
        /// The reason, if known.
        why: String,
    },
}

/// What is known about an extra observer. Its observations are among the votes of each target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObserverFacts {
    /// The age of its newest report; `None` if this controller never had one.
    #[serde(rename = "age_ms", with = "millis::option")]
    pub age: Option<Duration>,
}

impl ObserverFacts {
    /// Whether it has not reported within `limit`.
    pub fn is_silent(&self, limit: Duration) -> bool {
        self.age.is_none_or(|age| age > limit)
    }
}

/// What a person asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The operator.
    pub operator: String,
    /// The operator's reason.
    pub reason: String,
    /// The site to make active.
    pub to: SiteName,
    /// The loss that the operator accepts, instead of the policy's limits.
    pub accept_data_loss: Option<Bytes>,
    /// Whether the operator asserts that the old primary cannot write (F4).
    pub override_fence: bool,
    /// Whether the operator accepts that the standby replays for longer than the policy allows.
    #[serde(default)]
    pub accept_replay: bool,
}

impl Situation {
    /// The active site's facts.
    pub fn active_site(&self) -> Option<&SiteFacts> {
        self.sites.get(&self.active)
    }

    /// The passive site's facts.
    pub fn passive_site(&self) -> Option<&SiteFacts> {
        self.sites.get(&self.passive)
    }

    /// The plan that is open and goes its way: not the one whose first step judges anew whether it
    /// should.
    pub fn plan_under_way(&self) -> Option<&OpenPlan> {
        self.plan.as_ref().filter(|plan| !plan.rechecking)
    }

    /// What a promotion at this moment would lose. After a restart in the middle of a plan nobody
    /// may be left to say how far the active side was: then what the plan recorded counts.
    pub fn loss(&self) -> LossEstimate {
        let recorded = self.plan.as_ref().and_then(|plan| plan.recorded.as_ref());
        match (self.seen_loss(), recorded) {
            (seen, Some(recorded)) if !seen.is_known() => recorded.by_now(),
            (seen, _) => seen,
        }
    }

    fn seen_loss(&self) -> LossEstimate {
        let replication = &self.replication;
        if replication.replaced {
            return LossEstimate::UNKNOWN;
        }
        if self.window.is_closed() && replication.contradicted.is_none() {
            return LossEstimate::NOTHING;
        }
        LossEstimate {
            bytes: replication.loss_estimate().max(replication.contradicted),
            window: replication.covered,
        }
    }
}

/// Builders for tests: the healthy pair, and small changes to it.
#[cfg(test)]
pub(crate) mod samples {
    use super::super::detector::{Vote, VoteKind};
    use super::super::observation::{ReceiverFacts, ReplayPause, ReplayState};
    use super::super::topology::{Role, Vantage};
    use super::super::units::{Lsn, SystemId, Timeline};
    use super::*;

    pub(crate) fn aws() -> SiteName {
        "aws".parse().unwrap()
    }

    pub(crate) fn gcp() -> SiteName {
        "gcp".parse().unwrap()
    }

    pub(crate) const fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn health(state: State, since: Duration) -> Health {
        Health {
            state,
            since,
            why: "sample".into(),
            votes: seen_by_both(state),
        }
    }

    /// What controller and passive agent say where a target is well or failed.
    fn seen_by_both(state: State) -> Vec<Vote> {
        let kind = match state {
            State::Healthy => VoteKind::For,
            State::Failed => VoteKind::Against,
            State::Suspect | State::Unknown => return Vec::new(),
        };
        let both = [Vantage::Controller, Vantage::Agent(gcp())];
        both.map(|from| sample_vote(from, kind)).into()
    }

    fn sample_vote(from: Vantage, kind: VoteKind) -> Vote {
        Vote {
            vantage: from,
            says: "sample".into(),
            kind,
            disk_failed: false,
            blocked: None,
            since: seconds(60),
            age: seconds(0),
        }
    }

    fn database(role: Role) -> DatabaseFacts {
        DatabaseFacts {
            role,
            system_id: SystemId(7),
            timeline: Timeline(1),
            version: 150_018,
            position: Lsn(1000),
            replayed: Lsn(1000),
            receiver: (role == Role::Standby).then(|| ReceiverFacts {
                status: "streaming".into(),
                last_message: Some(seconds(0)),
            }),
            senders: Vec::new(),
            heartbeat: None,
            epoch: Some(Epoch(1)),
            replay_pause: ReplayPause::None,
            replay_state: ReplayState::AtEnd,
            apply_delay: Duration::ZERO,
            synchronous_names: String::new(),
            commits_waiting: Vec::new(),
            limits: [100, 8, 10, 0, 64],
            write_took: Some(Duration::from_millis(2)),
            blocked: None,
        }
    }

    fn site(role: Role) -> SiteFacts {
        let healthy = |kind| (kind, health(State::Healthy, seconds(600)));
        SiteFacts {
            health: TargetKind::ALL.map(healthy).into(),
            reached: true,
            database: Some(Aged {
                age: seconds(0),
                fact: database(role).into(),
            }),
            agent: Some(Aged {
                age: seconds(0),
                fact: AgentFacts {
                    database: LocalDatabase::Up,
                    fenced: None,
                    severed: None,
                    guarded: true,
                    enforced_by: Enforcer::Guard,
                    machine: None,
                    peer: Some(seconds(0)),
                    peer_clock: None,
                    synchrony: None,
                    epoch_written: None,
                    rehearsal: (role == Role::Standby).then(|| SeverRehearsal {
                        ago: seconds(1),
                        obstacle: None,
                    }),
                    slot: None,
                    vouched: None,
                    deals_with: None,
                    foreign: None,
                    pending: Vec::new(),
                }
                .into(),
            }),
            clock: None,
            second: None,
        }
    }

    /// Everything is well.
    pub(crate) fn healthy() -> Situation {
        Situation {
            group: "shop".parse().unwrap(),
            epoch: Epoch(1),
            active: aws(),
            passive: gcp(),
            controller: ControllerFacts {
                in_charge: seconds(600),
                anchors_reached: 1,
                anchors: 1,
            },
            automation: AutomationState::default(),
            plan: None,
            sites: [(aws(), site(Role::Primary)), (gcp(), site(Role::Standby))].into(),
            observers: BTreeMap::new(),
            certificates: Vec::new(),
            refused_secrets: Vec::new(),
            rehearsals: Vec::new(),
            replication: Replication {
                primary: Some(Aged {
                    age: seconds(1),
                    fact: Lsn(1000),
                }),
                standby: Some(Aged {
                    age: seconds(0),
                    fact: Lsn(1000),
                }),
                confirmed: Some(Lsn(1000)),
                covered: Some(seconds(1)),
                advanced: Some(seconds(0)),
                rate: Bytes(100),
                replay: None,
                contradicted: None,
                replaced: false,
                commits_wait: Duration::ZERO,
            },
            window: RpoWindow::Open { entry: 1 },
            can_wait_out: true,
            request: None,
            log: LogFacts::default(),
        }
    }

    impl Situation {
        pub(crate) fn change(mut self, with: impl FnOnce(&mut Situation)) -> Self {
            with(&mut self);
            self
        }

        pub(crate) fn with_site(self, name: SiteName, with: impl FnOnce(&mut SiteFacts)) -> Self {
            self.change(|all| with(all.sites.get_mut(&name).unwrap()))
        }

        pub(crate) fn with_database(
            self,
            name: SiteName,
            with: impl FnOnce(&mut DatabaseFacts),
        ) -> Self {
            self.with_site(name, |site| with(&mut site.database.as_mut().unwrap().fact))
        }

        pub(crate) fn state(
            self,
            name: SiteName,
            kind: TargetKind,
            state: State,
            since: Duration,
        ) -> Self {
            self.with_site(name, |site| {
                site.health.insert(kind, health(state, since));
            })
        }

        /// The controller has no answer from a site, and no report.
        pub(crate) fn unheard(self, name: SiteName) -> Self {
            self.with_site(name, |site| {
                site.reached = false;
                site.agent.as_mut().unwrap().age = seconds(60);
            })
        }

        /// The active site is gone: seen by a quorum, for a minute.
        pub(crate) fn active_lost(self) -> Self {
            let minute = seconds(60);
            self.unheard(aws())
                .state(aws(), TargetKind::Database, State::Failed, minute)
                .state(aws(), TargetKind::Api, State::Failed, minute)
                .state(aws(), TargetKind::Agent, State::Failed, minute)
                .with_site(aws(), |site| site.database.as_mut().unwrap().age = minute)
                .with_site(gcp(), |site| {
                    site.agent.as_mut().unwrap().fact.peer = Some(minute);
                })
                .change(|all| {
                    all.replication.primary.as_mut().unwrap().age = minute;
                    all.replication.covered = Some(seconds(61));
                    all.replication.advanced = Some(minute);
                })
        }

        /// One vantage point of the active database says something of its own.
        pub(crate) fn vote(self, from: Vantage, kind: VoteKind) -> Self {
            self.with_site(aws(), |site| {
                let health = site.health.get_mut(&TargetKind::Database).unwrap();
                health.votes.retain(|vote| vote.vantage != from);
                health.votes.push(sample_vote(from, kind));
            })
        }

        /// Something keeps our looks from our own rows in a site's database.
        pub(crate) fn blocked(self, name: SiteName, by: &str) -> Self {
            self.with_site(name, |site| {
                let health = site.health.get_mut(&TargetKind::Database).unwrap();
                for vote in &mut health.votes {
                    vote.blocked = Some(by.into());
                }
            })
        }

        /// Nobody is let in by a site's database.
        pub(crate) fn all_mute(self, name: SiteName) -> Self {
            self.with_site(name, |site| {
                let health = site.health.get_mut(&TargetKind::Database).unwrap();
                for vote in &mut health.votes {
                    vote.kind = VoteKind::Mute;
                }
            })
        }

        /// An extra observer that reported so long ago.
        pub(crate) fn observed(self, name: &str, age: Duration) -> Self {
            self.change(|all| {
                let facts = ObserverFacts { age: Some(age) };
                all.observers.insert(name.parse().unwrap(), facts);
            })
        }

        pub(crate) fn asked(self, to: SiteName) -> Self {
            self.change(|all| {
                all.request = Some(Request {
                    operator: "alice".into(),
                    reason: "drill".into(),
                    to,
                    accept_data_loss: None,
                    override_fence: false,
                    accept_replay: false,
                });
            })
        }
    }
}
