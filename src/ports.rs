//! What controller, agents and observers need from the outside world, as traits. Each port has a
//! real implementation in `adapters` and a scripted or simulated one in the tests. No port knows
//! another.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::engine::answer::Answer;
use crate::engine::chain::LogMark;
use crate::engine::credential::CredentialFacts;
use crate::engine::instance::Instance;
use crate::engine::observation::Finding;
use crate::engine::policy::{FenceStages, LeaseTimers};
use crate::engine::situation::SeverRehearsal;
use crate::engine::synchrony::{ClosedWindow, SyncLook};
use crate::engine::topology::{Role, SiteName, Target, TargetName};
use crate::engine::units::{Epoch, Lsn, MonoTime, Timeline, WallTime};
use crate::wire::sealed::{Author, SealError, Sealed, Signature};
use crate::wire::{
    ObserverAnswer, ObserverReport, Order, OrderAnswer, PeerAnswer, PeerQuestion, Report,
    ReportAnswer,
};

/// The two clocks. `MonoTime` is for limits, `WallTime` for people and logs; there is no other way
/// to get either.
#[async_trait]
pub trait Clock: Send + Sync + fmt::Debug {
    /// Now, on this machine's monotonic clock, which keeps running while the machine is suspended.
    fn now(&self) -> MonoTime;
    /// Now, on the wall clock.
    fn wall(&self) -> WallTime;
    /// Waits for `wait`.
    async fn sleep(&self, wait: Duration);
}

/// Why an effect did not happen, or may have happened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "text")]
pub enum EffectError {
    /// It certainly did not happen, and a retry may help.
    #[error("{0}")]
    Failed(String),
    /// It certainly did not happen, and a retry will not help.
    #[error("{0}")]
    Refused(String),
    /// It may have happened: a timeout, a lost connection. Look again before anything else
    /// (invariants.md I4).
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// As `Unknown`, because our own deadline was over: it says nothing about the cause.
    #[error("outcome unknown: {0}")]
    Late(String),
    /// Somebody else changed it since it was read.
    #[error("changed by somebody else: {0}")]
    Conflict(String),
}

impl EffectError {
    /// The error's text.
    pub fn text(&self) -> &str {
        match self {
            EffectError::Failed(text)
            | EffectError::Refused(text)
            | EffectError::Unknown(text)
            | EffectError::Late(text)
            | EffectError::Conflict(text) => text,
        }
    }
}

/// The error to report for something that is retried: the last one that is not our own deadline,
/// which is known anyway and would hide the cause.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LastError {
    cause: Option<String>,
    late: Option<String>,
}

impl LastError {
    /// Adds the error of an attempt. `over`: the time for all attempts was over when it ended, so
    /// it may have failed for that reason alone.
    pub fn note(&mut self, error: &EffectError, over: bool) {
        let late = match error {
            EffectError::Late(_) => true,
            EffectError::Failed(_) | EffectError::Unknown(_) => over && self.cause.is_some(),
            EffectError::Refused(_) | EffectError::Conflict(_) => false,
        };
        self.say(error.text(), late);
    }

    /// The same for a text; `late`: it is only about our own deadline.
    pub fn say(&mut self, text: impl Into<String>, late: bool) {
        if late {
            self.late = Some(text.into());
        } else {
            (self.cause, self.late) = (Some(text.into()), None);
        }
    }

    /// The cause, and how it ended if that was something else.
    pub fn tell(&self) -> String {
        match (&self.cause, &self.late) {
            (Some(cause), Some(late)) if cause != late => format!("{cause}; finally: {late}"),
            (Some(cause), _) => cause.clone(),
            (None, Some(late)) => late.clone(),
            (None, None) => "nothing came of it".to_owned(),
        }
    }
}

/// Checks whether a change may still be made, just before it is sent: a process that stood still
/// since it decided must not go on as if no time had passed (invariants.md I9, I10).
pub type Still<'s> = &'s (dyn Fn() -> Result<(), EffectError> + Send + Sync);

/// Something that directs users to a site: a DNS zone, a load balancer.
///
/// A change is read, and then applied by compare-and-swap against exactly what was read, if it is
/// still allowed.
#[async_trait]
pub trait Traffic: Send + Sync + fmt::Debug {
    /// The name in the configuration.
    fn name(&self) -> &TargetName;

    /// Reads the current answer, from the system that would be written to.
    async fn read(&self) -> Result<Versioned, EffectError>;

    /// Replaces `from` with `to`; fails with `Conflict` if `from` is not current any more. Returns
    /// once the system confirms the change (for Route 53: `INSYNC`). `note` is stored with the
    /// change if the system supports that (a plan id). `still` is called last, just before the
    /// change is sent: if it fails, its error is returned and nothing was sent.
    async fn apply(
        &self,
        from: &Versioned,
        to: &Answer,
        note: &str,
        still: Still<'_>,
    ) -> Result<(), EffectError>;

    /// Makes the system say whether we could replace what was read, without changing anything.
    /// `Refused` if not; success also if the system cannot tell.
    async fn rehearse(&self, from: &Versioned) -> Result<(), EffectError>;

    /// Asks every name server that users' resolvers ask, separately, for its current answer. One
    /// view for each; a name server without a valid answer of ours is an `Err` in its view.
    async fn verify_outside(&self) -> Vec<OutsideView>;
}

/// An answer, with what is needed to replace exactly it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// The current answer.
    pub answer: Answer,
    /// The target's own representation of it, opaque to others.
    pub token: String,
}

/// One name server's answer for a traffic target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutsideView {
    /// The name server's address.
    pub place: String,
    /// Its answer, or why there is none.
    pub answer: Result<Answer, OutsideFault>,
}

/// Why a place outside does not show the expected answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "text")]
pub enum OutsideFault {
    /// It gives no usable answer: unknown, not wrong. Clients that ask it try the next one.
    #[error("{0}")]
    Unseen(String),
    /// It answers, and leads clients to the wrong place.
    #[error("{0}")]
    Wrong(String),
}

/// Probes targets: one probe, one finding. Never fails: an error is a finding.
#[async_trait]
pub trait Probe: Send + Sync + fmt::Debug {
    /// Probes a target, within a time limit.
    async fn look(&self, target: &Target, within: Duration) -> Finding;

    /// How many more connections a site's database accepts from unprivileged roles, on a fresh
    /// connection of the probing role; an error if it accepts none. `None` if this cannot be
    /// determined, or another process will report it.
    async fn room(&self, _site: &SiteName, _within: Duration) -> Option<Result<u64, String>> {
        None
    }

    /// How many anchors answer, and how many there are.
    async fn anchors(&self, within: Duration) -> (u32, u32);
}

/// Signs as this process.
pub trait Signer: Send + Sync + fmt::Debug {
    /// Signs `bytes`.
    fn sign(&self, message: &[u8]) -> Result<Signature, SealError>;
}

/// Verifies signatures.
pub trait Verifier: Send + Sync + fmt::Debug {
    /// Who signed exactly these bytes; an error if the signature does not count here.
    fn signed_by(&self, message: &[u8], signature: &Signature) -> Result<Author, SealError>;
}

/// What a process knows about the certificates and secrets that it holds or sees.
pub trait Credentials: Send + Sync + fmt::Debug {
    /// What to report now.
    fn facts(&self) -> CredentialFacts;
}

/// The controller's connection to the agents.
#[async_trait]
pub trait Agents: Send + Sync + fmt::Debug {
    /// Gives an order, directly or relayed by the other site's agent, and waits for the receiving
    /// agent's own answer. A lost connection, a timeout or an answer that this agent did not sign
    /// is `Unknown`, unless the order certainly did not arrive.
    async fn order(&self, order: &Order, by: Way, within: Duration) -> OrderAnswer;
}

/// How an order travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the controller to the receiving agent.
    Direct,
    /// Relayed by the other site's agent.
    Relayed,
}

/// Probes the service as its users do.
#[async_trait]
pub trait FrontDoor: Send + Sync + fmt::Debug {
    /// Connects to each address that users would get, and returns which site answered there, or why
    /// none did. Also writes and reads back, if configured.
    async fn enter(
        &self,
        expected: &SiteName,
        within: Duration,
    ) -> Vec<(String, Result<SiteName, OutsideFault>)>;
}

/// Why something could not be stored or loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot be kept: {0}")]
pub struct StoreError(pub String);

/// Why an entry was not made durable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The log is not as this controller left it: another process may be writing it. Write nothing
    /// more, and do nothing based on it.
    #[error("the decision log is not this controller's any more: {0}")]
    Conflict(String),
    /// The entry is not in the log and will not be. It may be tried again.
    #[error("the decision log cannot be written: {0}")]
    Failed(String),
    /// The entry may still be found in the log by the process that opens it next. The next entry
    /// written here replaces it.
    #[error("the decision log cannot be written, and may hold the entry all the same: {0}")]
    Unknown(String),
}

/// The decision log's storage. Opening it verifies it; this is what remains to be done.
#[async_trait]
pub trait LogStore: Send + fmt::Debug {
    /// Writes one line, and returns only once it is durable. First removes whatever a failed
    /// earlier call left behind.
    async fn append(&mut self, line: &[u8]) -> Result<(), AppendError>;

    /// How often to call [`LogStore::look`]; `None`: never.
    fn look_every(&self) -> Option<Duration> {
        None
    }

    /// Checks that the log is still where, and as, it was left.
    async fn look(&mut self) -> Result<(), AppendError> {
        Ok(())
    }
}

/// Which of several controllers leads.
#[async_trait]
pub trait LeaseStore: Send + Sync + fmt::Debug {
    /// Starts or continues leading for `lasting`, counted from when the store receives the request,
    /// on its clock and with the policy's drift added; `false`: another controller leads.
    async fn lead(&self, lasting: Duration) -> Result<bool, StoreError>;
}

/// The database beside an agent: the guard that owns it, and SQL over its local socket.
#[async_trait]
pub trait LocalDatabase: Send + Sync + fmt::Debug {
    /// Its state. Asks only the guard, so it answers even if the database does not.
    async fn look(&self) -> Result<LocalLook, EffectError>;
    /// Starts it as a standby.
    async fn start_standby(&self) -> Result<(), EffectError>;
    /// Starts it as a primary, under a lease.
    async fn start_primary(&self, right: &LocalRight) -> Result<(), EffectError>;
    /// Arms or extends the guard's deadline.
    async fn hold_right(&self, right: &LocalRight) -> Result<(), EffectError>;
    /// Disarms the guard's deadline of a standby that will not be promoted after all.
    async fn release_right(&self) -> Result<(), EffectError>;
    /// Ends every session and keeps it down; returns the proof as text.
    async fn fence(&self, epoch: Epoch, cause: &str) -> Result<String, EffectError>;
    /// Allows it to start as a primary again, in this epoch or a later one.
    async fn unfence(&self, epoch: Epoch) -> Result<(), EffectError>;
    /// Cuts a standby off from its primary's WAL: returns the frozen position, and whether all of
    /// it is replayed.
    async fn sever(&self, within: Duration) -> Result<(Lsn, bool), EffectError>;
    /// Reconnects it.
    async fn reconnect(&self, within: Duration) -> Result<(), EffectError>;
    /// Rehearses on a standby what a sever, its undo and a promotion will need, and makes it use
    /// the agent's settings; `fresh`: it was just started; `peer_answers`: the other site is
    /// reachable. `None`: it is not a standby. An error says nothing about a sever.
    async fn rehearse(
        &self,
        fresh: bool,
        peer_answers: bool,
        within: Duration,
    ) -> Result<Option<SeverRehearsal>, EffectError>;
    /// The replication slot that a standby uses on its primary, from its files: a standby that
    /// never became consistent answers no queries.
    fn asks_for_slot(&self) -> Option<String> {
        None
    }
    /// Creates the physical replication slot of this name on a primary, if it is missing or
    /// invalidated.
    async fn keep_slot(&self, name: &str, within: Duration) -> Result<(), EffectError>;
    /// Whether it is a primary, according to the database itself.
    async fn is_primary(&self, within: Duration) -> Result<Option<(Timeline, Lsn)>, EffectError>;
    /// Promotes a standby: returns its timeline and where it begins.
    async fn promote(&self, within: Duration) -> Result<(Timeline, Lsn), EffectError>;
    /// Writes the epoch into it and reads it back, and first creates whatever is missing for that.
    /// Idempotent.
    async fn write_epoch(&self, epoch: Epoch, within: Duration) -> Result<(), EffectError>;
    /// Grants the role of controller, agents and observers what their probes need. A failure
    /// prevents nobody from writing.
    async fn allow_looks(&self, _within: Duration) -> Result<(), EffectError> {
        Ok(())
    }
    /// How far the standby of that name is, and whether commits wait for it.
    async fn look_at_standby(
        &self,
        standby: &SiteName,
        within: Duration,
    ) -> Result<SyncLook, EffectError>;
    /// Makes every commit wait for the standby of that name, and for no other: everything
    /// acknowledged after this returns, beyond the position that it returns, is at the standby.
    /// Survives a restart.
    async fn wait_for_standby(
        &self,
        standby: &SiteName,
        within: Duration,
    ) -> Result<Lsn, EffectError>;
    /// Lets every commit go on without a standby, including those already waiting.
    async fn go_on_alone(&self, within: Duration) -> Result<(), EffectError>;
}

/// A database's state, as its guard sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalLook {
    /// The role in which its files would start it. They count only at a start.
    pub starts_as: Role,
    /// Why its files allow no start in any role, if they do not.
    pub unfit: Option<String>,
    /// The running role, if it runs: from how it was started and from what it says itself, never
    /// from a file placed there.
    pub runs_as: Option<Role>,
    /// What is in its data folder or at its port and was not started by the guard, described for
    /// people.
    pub foreign: Option<String>,
    /// The changed settings that take effect at its next start.
    pub pending: Vec<String>,
    /// If it runs as a primary and is still starting or recovering: a number that grows with its
    /// progress.
    pub recovering: Option<u64>,
    /// The lease that the guard has armed, with its deadline.
    pub right: Option<(Epoch, MonoTime)>,
    /// The epoch and cause of the fence marker, if there is one.
    pub fenced: Option<(Epoch, String)>,
    /// How it last ended, if it did.
    pub ended: Option<String>,
}

impl LocalLook {
    /// Whether it runs.
    pub fn running(&self) -> bool {
        self.runs_as.is_some()
    }

    /// Its role: the running one or, if it is down, the one in which it would start.
    pub fn role(&self) -> Role {
        self.runs_as.unwrap_or(self.starts_as)
    }
}

/// A write lease, as a guard needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalRight {
    /// The epoch in which it is held.
    pub epoch: Epoch,
    /// When it expires; `None` is never.
    pub until: Option<MonoTime>,
    /// How to fence when it expires.
    pub fence: FenceStages,
}

/// An agent's connections to the controller and to the peer agent.
#[async_trait]
pub trait AgentLinks: Send + Sync + fmt::Debug {
    /// Reports to the controller.
    async fn report(&self, report: &Report, within: Duration) -> Result<ReportAnswer, EffectError>;
    /// Asks the peer agent.
    async fn ask_peer(
        &self,
        question: &PeerQuestion,
        within: Duration,
    ) -> Result<PeerAnswer, EffectError>;
}

/// An extra observer's connection to the controller.
#[async_trait]
pub trait ObserverLink: Send + Sync + fmt::Debug {
    /// Reports observations.
    async fn report(
        &self,
        report: &ObserverReport,
        within: Duration,
    ) -> Result<ObserverAnswer, EffectError>;
}

/// The workloads beside an agent.
#[async_trait]
pub trait Workloads: Send + Sync + fmt::Debug {
    /// Starts them; returns without waiting until they answer.
    async fn start(&self) -> Result<(), EffectError>;
    /// Stops them.
    async fn stop(&self) -> Result<(), EffectError>;
    /// Whether they answer.
    async fn ready(&self) -> Result<bool, EffectError>;
}

/// An agent's durable storage.
#[async_trait]
pub trait AgentStore: Send + Sync + fmt::Debug {
    /// The state stored last; `None` if there is none.
    async fn load(&self) -> Result<Option<AgentMemory>, StoreError>;
    /// Stores it; returns only once it is durable.
    async fn save(&self, memory: &AgentMemory) -> Result<(), StoreError>;
}

/// The state that must survive an agent's restart.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentMemory {
    /// The highest epoch it knows.
    pub epoch: Epoch,
    /// The epoch for which its standby was severed.
    pub severed: Option<Epoch>,
    /// The last order to sever or to promote that it obeyed: it shows this to the peer agent, whose
    /// lease has ended by it.
    #[serde(default)]
    pub obeyed: Option<Sealed>,
    /// The epoch in which it was fenced by order, or superseded. Unlike a fence by an expired
    /// lease, only an epoch in which the site holds the lease lifts it.
    pub fenced: Option<Epoch>,
    /// The epoch of a promotion that was begun and whose outcome is unknown.
    pub promoting: Option<Epoch>,
    /// The last plan for which it promised that no promotion will follow.
    pub desisted: Option<u64>,
    /// The plan for which it started workloads that had not answered before.
    pub started_for: Option<u64>,
    /// The timers in the controller's last answer.
    pub timers: Option<LeaseTimers>,
    /// The RPO window that it closed last: a permission that is not newer is void.
    pub closed: Option<ClosedWindow>,
    /// The instance of the other site that it accepts: the one that the controller named last, or
    /// the first that it heard.
    #[serde(default)]
    pub peer: Option<Instance>,
    /// The end of the controller's log when it was last stored. Not stored with each answer: newer
    /// ends are only in memory.
    #[serde(default)]
    pub log: Option<LogMark>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_of_ours_hides_no_cause() {
        use EffectError::{Conflict, Failed, Late, Refused, Unknown};
        let cause = || Failed("`ALTER SYSTEM` is not allowed".to_owned());
        let late = || Late("no answer in time".to_owned());
        /// What came of each try, whether it was the last, and what is told.
        type Row<'t> = (&'t str, Vec<EffectError>, &'t str);
        let table: Vec<Row<'_>> = vec![
            ("nothing was tried", vec![], "nothing came of it"),
            ("the first is late", vec![late()], "no answer in time"),
            (
                "eight with a cause, and a last one that is late",
                vec![cause(), cause(), late()],
                "`ALTER SYSTEM` is not allowed; finally: no answer in time",
            ),
            (
                "late ones first",
                vec![late(), late(), cause()],
                "`ALTER SYSTEM` is not allowed",
            ),
            (
                "a connection that did not come about in the last milliseconds",
                vec![cause(), Failed("no answer within 20 ms".to_owned())],
                "`ALTER SYSTEM` is not allowed; finally: no answer within 20 ms",
            ),
            (
                "a last one that nobody knows of",
                vec![cause(), Unknown("connection lost".to_owned())],
                "`ALTER SYSTEM` is not allowed; finally: connection lost",
            ),
            (
                "a clear no at the end",
                vec![cause(), Refused("epoch 7 is over".to_owned())],
                "epoch 7 is over",
            ),
            (
                "somebody else's change at the end",
                vec![cause(), Conflict("serial 8".to_owned())],
                "serial 8",
            ),
            (
                "the same to the end",
                vec![cause(), cause()],
                "`ALTER SYSTEM` is not allowed",
            ),
        ];
        for (name, tries, told) in table {
            let mut last = LastError::default();
            let count = tries.len();
            for (index, error) in tries.iter().enumerate() {
                last.note(error, index + 1 == count);
            }
            assert_eq!(last.tell(), told, "{name}");
        }
    }
}
