//! What controller, agents, observers and the command line say to each other. Plain data: who sends it and
//! what is done with it stands elsewhere.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::chain::LogMark;
use crate::engine::credential::CredentialFacts;
use crate::engine::decision::Decision;
use crate::engine::format::WrittenBy;
use crate::engine::instance::Instance;
use crate::engine::lease::Refusal;
use crate::engine::observation::{Finding, Observation};
use crate::engine::policy::LeaseTimers;
use crate::engine::readiness::{self, Check, CheckState};
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

/// How often to look, and how long one look may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rhythm {
    /// From the beginning of one look to the beginning of the next.
    #[serde(rename = "every_ms", with = "millis")]
    pub every: Duration,
    /// The longest one look may take.
    #[serde(rename = "within_ms", with = "millis")]
    pub within: Duration,
}

/// An observation on its way: ages instead of moments, because clocks of two machines share
/// nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentObservation {
    /// What was looked at.
    pub target: Target,
    /// How long ago looking began when it was sent.
    #[serde(rename = "began_ms", with = "millis")]
    pub began: Duration,
    /// How long ago it ended.
    #[serde(rename = "ended_ms", with = "millis")]
    pub ended: Duration,
    /// What was seen.
    pub finding: Finding,
}

impl SentObservation {
    /// The form in which an observation leaves a process at `now`.
    pub fn pack(observation: &Observation, now: MonoTime) -> Self {
        Self {
            target: observation.target.clone(),
            began: now.since(observation.began),
            ended: now.since(observation.ended),
            finding: observation.finding.clone().clipped(),
        }
    }

    /// What it is to a process that received it at `received`: as old as the sender said, not
    /// counting the way, which was short (see [`Receipt`]). Evidence of a failure so never looks
    /// older than it is.
    pub fn unpack(self, vantage: Vantage, received: MonoTime) -> Observation {
        Observation {
            target: self.target,
            vantage,
            began: received.minus(self.began),
            ended: received.minus(self.ended),
            finding: self.finding.clipped(),
        }
    }
}

/// When a process sent something, by its own monotonic clock, which nobody else can read. It comes back
/// to it: the controller's with the next report, which so cannot have been made before; an agent's with
/// the next order, which so is void from a moment on by the agent's own clock, however many wall clocks
/// are wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Postmark {
    /// Which process, in which of its lives: another one cannot read it. At random, below 2^53.
    pub life: u64,
    /// When.
    #[serde(rename = "at_ms", with = "millis")]
    pub at: Duration,
}

/// The last that a process had heard of another one when it made a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// When that was sent.
    pub postmark: Postmark,
    /// How long ago it arrived, by the clock of who reports.
    #[serde(rename = "ago_ms", with = "millis")]
    pub ago: Duration,
}

/// What the controller says of a report itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// For the next report.
    pub postmark: Postmark,
    /// Whether what the report says was taken in. Not where it may have been under way for longer
    /// than a look may take, as the first one always may.
    pub taken: bool,
}

/// What an agent tells the controller, and by which it asks for the right to take writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The agent's group.
    pub group: GroupName,
    /// Its site. The controller believes it only from a certificate of that site.
    pub site: SiteName,
    /// The highest epoch it knows.
    pub epoch: Epoch,
    /// Whether it asks for the right to take writes in that epoch.
    pub asks: bool,
    /// Which installation of the site's agent it is; `None` from an older program.
    #[serde(default)]
    pub instance: Option<Instance>,
    /// Whether the right that it holds in that epoch has not ended since it was granted.
    #[serde(default)]
    pub holds: bool,
    /// How far the controller's log went when it last heard of it.
    #[serde(default)]
    pub log: Option<LogMark>,
    /// What it says of itself.
    pub facts: AgentFacts,
    /// What it saw since its last report: [`OBSERVATIONS`] at most.
    pub observations: Vec<SentObservation>,
    /// What it says of its certificates and secrets.
    #[serde(default)]
    pub credentials: CredentialFacts,
    /// The controller's last answer; `None` before the first.
    pub heard: Option<Heard>,
    /// When it was sent, by the agent's own clock: for orders to it.
    pub mark: Postmark,
    /// The agent's wall clock at that moment: to be compared, and for nothing else.
    pub wall: WallTime,
    /// The other agent's newest mark, for orders that come to that one through this one; `None` before
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
    pub receipt: Receipt,
    /// The present epoch.
    pub epoch: Epoch,
    /// The site that may hold the right in it; `None` in the middle of a plan.
    pub holder: Option<SiteName>,
    /// The right, if it was asked for and granted; or why not.
    pub grant: Option<Result<Grant, Refusal>>,
    /// The instance of the other site whose questions and answers count; `None` where the
    /// controller names none.
    #[serde(default)]
    pub peer: Option<Instance>,
    /// How far the controller's log goes; `None` while it may be the wrong one.
    #[serde(default)]
    pub log: Option<LogMark>,
    /// Whether commits must wait for the standby: an open window is the permission to go on
    /// without. `None`: nothing is asked. A site that is not active is permitted nothing.
    pub window: Option<RpoWindow>,
    /// To the active site: the replication slot that the standby asks for there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standby_slot: Option<String>,
    /// The timers by which the agent counts, granted or not.
    pub timers: LeaseTimers,
    /// How often to look at each target, and how long one look may take.
    #[serde(rename = "probe_every_ms", with = "millis")]
    pub probe_every: Duration,
    /// How long one look may take.
    #[serde(rename = "probe_timeout_ms", with = "millis")]
    pub probe_timeout: Duration,
    /// How long a database that died may be tried to restart. Zero: not at all.
    #[serde(rename = "restart_grace_ms", with = "millis")]
    pub restart_grace: Duration,
}

/// What an extra observer tells the controller. Nothing is asked for, and nothing is granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObserverReport {
    /// Its group.
    pub group: GroupName,
    /// Its name. The controller believes it only from a certificate of that name.
    pub name: ObserverName,
    /// What it saw since its last report: [`OBSERVATIONS`] at most.
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
    pub receipt: Receipt,
    /// How to go on looking. Reports come as often as looks.
    pub rhythm: Rhythm,
}

/// The right to take writes, for `lease_ttl` from before it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// In which epoch.
    pub epoch: Epoch,
}

/// One agent asks the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerQuestion {
    /// Who asks.
    pub site: SiteName,
    /// The epoch in which it holds the right, or the highest it knows.
    pub epoch: Epoch,
    /// When it asked, by its own clock.
    pub mark: Postmark,
    /// Which installation of the agent asks.
    #[serde(default)]
    pub instance: Option<Instance>,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerAnswer {
    /// The asker's right is over. Not an answer that holds a right, in any case.
    pub superseded: bool,
    /// Whether the asker is the instance of its site whose right this agent lets stand. Otherwise
    /// the answer holds nothing.
    #[serde(default = "yes")]
    pub vouches: bool,
    /// Which installation of the agent answers.
    #[serde(default)]
    pub instance: Option<Instance>,
    /// The controller's order by which that is so, a sever or a promotion: with it the answer is an
    /// order to fence, without it nobody obeys.
    #[serde(default)]
    pub order: Option<Sealed>,
    /// The highest epoch that the answering agent knows. For people: no epoch moves by it.
    pub epoch: Epoch,
    /// Its wall clock: to be compared, and for nothing else.
    pub wall: WallTime,
}

/// What an answer of an older program means by saying nothing.
fn yes() -> bool {
    true
}

/// What the controller shows: `failover status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The version of this form.
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
    /// Everything the last decision rests on.
    pub situation: Situation,
    /// The last decision, gate by gate.
    pub decision: Decision,
    /// The open plan, step by step.
    pub plan: Option<PlanStatus>,
    /// The number and digest of the last entry of the decision log.
    pub log: (u64, String),
}

/// What would stand in the way of a failover: `failover check`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// The version of this form.
    pub schema_version: u32,
    /// When it was so.
    pub at: WallTime,
    /// The group.
    pub group: GroupName,
    /// The site that is active.
    pub active: SiteName,
    /// The one that a failover would lead to.
    pub passive: SiteName,
    /// Whether nothing blocks.
    pub ready: bool,
    /// Everything that was looked at.
    pub checks: Vec<Check>,
}

impl Readiness {
    /// What follows from a status.
    pub fn of(status: &Status) -> Self {
        let situation = &status.situation;
        let checks = readiness::checks(&status.decision);
        Self {
            schema_version: 1,
            at: status.at,
            group: situation.group.clone(),
            active: situation.active.clone(),
            passive: situation.passive.clone(),
            ready: readiness::worst(&checks) != CheckState::Blocks,
            checks,
        }
    }
}

/// An open plan, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanStatus {
    /// Its number.
    pub id: u64,
    /// Where it leads.
    pub to: SiteName,
    /// Each step and its state.
    pub steps: Vec<(String, String)>,
    /// Why it needs a person, if it does.
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

/// A part of the decision log: the lines as they stand in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPart {
    /// The lines, without line ends.
    pub lines: Vec<String>,
    /// The number of the last entry there is.
    pub last: u64,
}

/// Where an agent takes orders, signed by the controller.
pub const ORDER_PATH: &str = "/v1/order";
/// Where an agent takes orders that are for the other one.
pub const RELAY_PATH: &str = "/v1/relay";
/// Where an agent answers the other one.
pub const PEER_PATH: &str = "/v1/peer";
/// Where the controller takes reports.
pub const REPORT_PATH: &str = "/v1/report";
/// Where the controller takes what extra observers saw.
pub const OBSERVED_PATH: &str = "/v1/observed";

/// The most observations in one report. There are four things to look at, and of each the newest is
/// told.
pub const OBSERVATIONS: usize = 16;

/// The longest report of an agent, in bytes. Two databases with as much of everything as is kept of
/// them take about 50 KiB; the rest is for agents that keep more.
pub const REPORT_LIMIT: usize = 256 * 1024;

/// The longest report of an observer, in bytes: the same, from a place that nobody may guard.
pub const OBSERVED_LIMIT: usize = 64 * 1024;

/// The longest order, question of the other agent or command of a person, in bytes. Each has some
/// hundred.
pub const MESSAGE_LIMIT: usize = 16 * 1024;

/// Refuses a report with more observations than anything of ours sends.
pub fn check_count(observations: &[SentObservation]) -> Result<(), String> {
    match observations.len() {
        0..=OBSERVATIONS => Ok(()),
        many => Err(format!(
            "the report has {many} observations, and {OBSERVATIONS} are the most: send of each target the newest"
        )),
    }
}
