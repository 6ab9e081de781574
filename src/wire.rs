//! The messages between controller, agents, observers and the command line. Plain data: who sends
//! it and what is done with it is elsewhere.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::chain::LogMark;
use crate::engine::credential::CredentialFacts;
use crate::engine::data::Data;
use crate::engine::decision::Decision;
use crate::engine::format::WrittenBy;
use crate::engine::instance::Instance;
use crate::engine::lease::Refusal;
use crate::engine::observation::{Finding, Observation};
use crate::engine::policy::LeaseTimers;
use crate::engine::readiness::{self, Check};
use crate::engine::saga::{GroupState, OpenSaga};
use crate::engine::situation::{AgentFacts, Situation};
use crate::engine::synchrony::RpoWindow;
use crate::engine::topology::{GroupName, ObserverName, SiteName, Target, Vantage};
use crate::engine::units::{Epoch, MonoTime, WallTime, millis};

pub mod written;
mod orders;
pub mod sealed;
pub mod unsent;
mod asks;
mod fleet;
mod rules;

pub use self::asks::{AdoptAsk, AdoptInstanceAsk, HoldAsk, PromoteAnswer, PromoteAsk, ReleaseAsk};
pub use self::fleet::Fleet;

pub use orders::{Came, Order, OrderAnswer, RelayAnswer, Relayed, What};

use self::sealed::Sealed;

/// How often to probe, and how long one probe may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rhythm {
    /// From the start of one probe to the start of the next.
    #[serde(rename = "every_ms", with = "millis")]
    pub every: Duration,
    /// The longest that one probe may take.
    #[serde(rename = "within_ms", with = "millis")]
    pub within: Duration,
}

/// An observation in transit: ages instead of moments, because the clocks of two machines share
/// nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentObservation {
    /// The observed target.
    pub target: Target,
    /// How long before sending the probe began.
    #[serde(rename = "began_ms", with = "millis")]
    pub began: Duration,
    /// How long before sending it ended.
    #[serde(rename = "ended_ms", with = "millis")]
    pub ended: Duration,
    /// The result.
    pub finding: Finding,
}

impl SentObservation {
    /// The observation in the form in which it is sent at `now`.
    pub fn pack(observation: &Observation, now: MonoTime) -> Self {
        Self {
            target: observation.target.clone(),
            began: now.since(observation.began),
            ended: now.since(observation.ended),
            finding: observation.finding.clone().clipped(&[]),
        }
    }

    /// What it is to a process that received it at `received`: as old as the sender said, not
    /// counting the way, which was short (see [`Intake`]). Evidence of a failure so never looks
    /// older than it is. `sites`: those of the group.
    pub fn unpack(self, vantage: Vantage, received: MonoTime, sites: &[&SiteName]) -> Observation {
        Observation {
            target: self.target,
            vantage,
            began: received.minus(self.began),
            ended: received.minus(self.ended),
            finding: self.finding.clipped(sites),
        }
    }
}

/// When a process sent something, on its own monotonic clock, which nobody else can read. It
/// returns to that process: the controller's mark with the next report, which therefore was made
/// later; an agent's mark with the next order, which therefore expires on the agent's own clock, no
/// matter how many wall clocks are wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Postmark {
    /// Identifies one run of one process: another run cannot use it. Random, below 2^53.
    pub life: u64,
    /// Milliseconds on that process's monotonic clock.
    #[serde(rename = "at_ms", with = "millis")]
    pub at: Duration,
}

/// The last answer that a process had received when it made a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// When that answer was sent.
    pub postmark: Postmark,
    /// How long ago it arrived, by the reporter's clock.
    #[serde(rename = "ago_ms", with = "millis")]
    pub ago: Duration,
}

/// The controller's answer to a report as such.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intake {
    /// For the next report.
    pub postmark: Postmark,
    /// Whether the report was believed. Not if it may have been in transit for longer than a probe
    /// may take, as the first one always may.
    pub taken: bool,
}

/// An agent's report to the controller, which also requests the write lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Its group.
    pub group: GroupName,
    /// Its site. The controller believes it only from a certificate of that site.
    pub site: SiteName,
    /// The highest epoch it knows.
    pub epoch: Epoch,
    /// Whether it requests the write lease in that epoch.
    pub asks: bool,
    /// The instance of the agent; `None` from an older program.
    #[serde(default)]
    pub instance: Option<Instance>,
    /// Whether its lease in that epoch has not expired since it was granted.
    #[serde(default)]
    pub holds: bool,
    /// The end of the controller's log when it last heard of it.
    #[serde(default)]
    pub log: Option<LogMark>,
    /// Its facts about its own site.
    pub facts: AgentFacts,
    /// Its observations since its last report: at most [`OBSERVATIONS`].
    pub observations: Vec<SentObservation>,
    /// Its facts about certificates and secrets.
    #[serde(default)]
    pub credentials: CredentialFacts,
    /// The controller's last answer; `None` before the first.
    pub heard: Option<Heard>,
    /// When it was sent, by the agent's own clock: a mark for orders to it.
    pub mark: Postmark,
    /// The agent's wall clock at that moment: for comparison only.
    pub wall: WallTime,
    /// The peer agent's newest mark, for orders to that agent that this one relays; `None` before
    /// its first question.
    #[serde(default)]
    pub peer_mark: Option<Heard>,
    /// Which program its guard runs, and in which format it is spoken to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<WrittenBy>,
    /// The version of the program, for a controller that looks for it here only.
    pub version: String,
}

/// The controller's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportAnswer {
    /// What it says of the report itself.
    #[serde(rename = "receipt")]
    pub intake: Intake,
    /// The present epoch.
    pub epoch: Epoch,
    /// The site that may hold the lease in it; `None` during a plan.
    pub holder: Option<SiteName>,
    /// The lease, if it was requested and granted; or why not.
    pub grant: Option<Result<Grant, Refusal>>,
    /// The instance of the other site whose questions and answers count; `None` if the controller
    /// names none.
    #[serde(default)]
    pub peer: Option<Instance>,
    /// The end of the controller's log; `None` while it may be the wrong log.
    #[serde(default)]
    pub log: Option<LogMark>,
    /// Whether commits must wait for the standby: an open window is the permission to go on without
    /// it. `None`: nothing is required. A passive site is permitted nothing.
    pub window: Option<RpoWindow>,
    /// To the active site: the replication slot that the standby needs there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standby_slot: Option<String>,
    /// The timers that the agent counts with, granted or not.
    pub timers: LeaseTimers,
    /// How often to probe each target.
    #[serde(rename = "probe_every_ms", with = "millis")]
    pub probe_every: Duration,
    /// How long one probe may take.
    #[serde(rename = "probe_timeout_ms", with = "millis")]
    pub probe_timeout: Duration,
    /// How long to try restarting a database that died. Zero: not at all.
    #[serde(rename = "restart_grace_ms", with = "millis")]
    pub restart_grace: Duration,
}

/// An extra observer's report to the controller. It requests and is granted nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObserverReport {
    /// Its group.
    pub group: GroupName,
    /// Its name. The controller believes it only from a certificate of that name.
    pub name: ObserverName,
    /// Its observations since its last report: at most [`OBSERVATIONS`].
    pub observations: Vec<SentObservation>,
    /// The controller's last answer; `None` before the first.
    pub heard: Option<Heard>,
    /// The version of the program, for a controller that looks for it here only.
    pub version: String,
}

/// The controller's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObserverAnswer {
    /// What it says of the report itself.
    #[serde(rename = "receipt")]
    pub intake: Intake,
    /// How to go on looking. Reports come as often as looks.
    pub rhythm: Rhythm,
}

/// A granted lease: valid for `lease_ttl` from before its request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The epoch in which it is granted.
    pub epoch: Epoch,
}

/// One agent's question to the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerQuestion {
    /// The asking site.
    pub site: SiteName,
    /// The epoch in which it holds the lease, or the highest it knows.
    pub epoch: Epoch,
    /// When it asked, by its own clock.
    pub mark: Postmark,
    /// The instance of the asking agent.
    #[serde(default)]
    pub instance: Option<Instance>,
}

/// The answer to a [`Question`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerAnswer {
    /// Whether the asker's lease is over. Then the answer is no vouch.
    pub superseded: bool,
    /// Whether the asker is the instance of its site that this agent vouches for. Otherwise the
    /// answer is no vouch.
    #[serde(default = "yes")]
    pub vouches: bool,
    /// The instance of the answering agent.
    #[serde(default)]
    pub instance: Option<Instance>,
    /// The controller's order that superseded the asker, a sever or a promotion: with it the answer
    /// is an order to fence, without it nobody obeys.
    #[serde(default)]
    pub order: Option<Sealed>,
    /// The highest epoch that the answering agent knows. For people: it moves no epoch.
    pub epoch: Epoch,
    /// Its wall clock: for comparison only.
    pub wall: WallTime,
}

/// The default of a field that an older program does not send.
fn yes() -> bool {
    true
}

/// The controller's state: `failover status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The version of this format.
    pub schema_version: u32,
    /// When it was made.
    pub at: WallTime,
    /// The version of the controller.
    pub version: String,
    /// Which program each process of the group runs.
    #[serde(default)]
    pub fleet: Fleet,
    /// The name of the policy's file and whether it may act.
    pub policy: String,
    /// What the policy asks of the data; `None` from an older controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Data>,
    /// Everything the last decision rests on.
    pub situation: Situation,
    /// The last decision, gate by gate.
    pub decision: Decision,
    /// The open plan, step by step.
    pub plan: Option<PlanStatus>,
    /// The number and digest of the last entry of the decision log.
    pub log: (u64, String),
}

/// What would block a failover: `failover check`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// The version of this format.
    pub schema_version: u32,
    /// When it was evaluated.
    pub at: WallTime,
    /// The group.
    pub group: GroupName,
    /// The site that is active.
    pub active: SiteName,
    /// The site that a failover would make active.
    pub passive: SiteName,
    /// Whether nothing blocks.
    pub ready: bool,
    /// Every check.
    pub checks: Vec<Check>,
}

impl Readiness {
    /// The readiness that follows from a status.
    pub fn of(status: &Status) -> Self {
        let situation = &status.situation;
        let checks = readiness::checks(&status.decision);
        Self {
            schema_version: 1,
            at: status.at,
            group: situation.group.clone(),
            active: situation.active.clone(),
            passive: situation.passive.clone(),
            ready: readiness::obstacles(&status.decision).is_empty(),
            checks,
        }
    }
}

/// An open plan, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanStatus {
    /// Its number.
    pub id: u64,
    /// The site that it makes active.
    pub to: SiteName,
    /// Each step and its state.
    pub steps: Vec<(String, String)>,
    /// Why it needs an operator, if it does.
    pub stuck: Option<String>,
}

impl PlanStatus {
    /// The open plan of a group, if there is one.
    pub fn of(state: &GroupState) -> Option<Self> {
        state.open.as_ref().map(|saga: &OpenSaga| Self {
            id: saga.id,
            to: saga.plan.route.to.clone(),
            steps: saga
                .plan
                .steps
                .iter()
                .zip(&saga.states)
                .map(|(step, state)| (step.to_string(), state.name().to_owned()))
                .collect(),
            stuck: saga.stuck.clone(),
        })
    }
}

/// A part of the decision log: the lines as in its file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPart {
    /// The lines, without line feeds.
    pub lines: Vec<String>,
    /// The number of the log's last entry.
    pub last: u64,
}

/// Where a process takes the messages of a group: the paths below are the same for every group.
pub fn place_of(group: &GroupName) -> String {
    format!("{ONLY_PLACE}{GROUPS_PATH}/{group}")
}

/// The place of a process's only group, from before each group had one of its own.
pub const ONLY_PLACE: &str = "/v1";
/// Where the controller lists its groups; below it is the place of each.
pub const GROUPS_PATH: &str = "/groups";

/// Where an agent takes orders, signed by the controller.
pub const ORDER_PATH: &str = "/order";
/// Where an agent takes orders that it must relay to the other one.
pub const RELAY_PATH: &str = "/relay";
/// Where an agent answers the other one's questions.
pub const PEER_PATH: &str = "/peer";
/// Where the controller takes reports.
pub const REPORT_PATH: &str = "/report";
/// Where the controller takes reports of extra observers.
pub const OBSERVED_PATH: &str = "/observed";

/// The groups of a controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Groups {
    /// Their names.
    pub groups: Vec<GroupName>,
}

/// The most observations in one report. There are four targets, and the newest of each is sent.
pub const OBSERVATIONS: usize = 16;

/// The longest report of an agent, in bytes. Two databases with all texts at their limits take
/// about 50 KiB; the rest is reserve.
pub const REPORT_LIMIT: usize = 256 * 1024;

/// The longest report of an observer, in bytes: the same, from a place that may be unprotected.
pub const OBSERVED_LIMIT: usize = 64 * 1024;

/// The longest order, peer question or operator's command, in bytes. Each has some hundred.
pub const MESSAGE_LIMIT: usize = 16 * 1024;

/// Refuses a report with more observations than ours ever send.
pub fn check_count(observations: &[SentObservation]) -> Result<(), String> {
    match observations.len() {
        0..=OBSERVATIONS => Ok(()),
        many => Err(format!(
            "the report has {many} observations, the limit is {OBSERVATIONS}: send only the newest of each target"
        )),
    }
}
