//! What controller, agents and observers need of the outside world. Each port has a real side in `adapters` and a
//! scripted or simulated one in the tests. No port knows another.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::engine::answer::Answer;
use crate::engine::chain::LogMark;
use crate::engine::credential::CredentialFacts;
use crate::engine::format::WrittenBy;
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

/// The two clocks. `MonoTime` judges limits, `WallTime` is for people and logs; neither can be
/// had in any other way.
#[async_trait]
pub trait Clock: Send + Sync + fmt::Debug {
    /// Now, on this machine's monotonic clock (which goes on while the machine is suspended).
    fn now(&self) -> MonoTime;
    /// Now, as people write it.
    fn wall(&self) -> WallTime;
    /// Waits.
    async fn sleep(&self, wait: Duration);
}

/// Why a change of the world did not happen, or may have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "text")]
pub enum EffectError {
    /// It certainly did not happen, and trying again may help.
    #[error("{0}")]
    Failed(String),
    /// It certainly did not happen, and trying again will not help.
    #[error("{0}")]
    Refused(String),
    /// It may have happened: a time-out, a lost connection. Read the world again before anything
    /// else (invariants.md I4).
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// As `Unknown`, because the time that we gave it ourselves was over: it says nothing of the
    /// cause.
    #[error("outcome unknown: {0}")]
    Late(String),
    /// Somebody else changed it since it was read.
    #[error("changed by somebody else: {0}")]
    Conflict(String),
}

impl EffectError {
    /// What is told of it.
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

/// What is told of something that is tried again and again: the last error that is not our own
/// deadline. That the time was over is known anyway, and hides why it was not used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LastError {
    cause: Option<String>,
    late: Option<String>,
}

impl LastError {
    /// Takes in what came of a try. `over`: the time for all tries was over when it ended, so that
    /// what failed may have failed for that alone.
    pub fn note(&mut self, error: &EffectError, over: bool) {
        let late = match error {
            EffectError::Late(_) => true,
            EffectError::Failed(_) | EffectError::Unknown(_) => over && self.cause.is_some(),
            EffectError::Refused(_) | EffectError::Conflict(_) => false,
        };
        self.say(error.text(), late);
    }

    /// The same of a text; `late`: it tells of our own deadline only.
    pub fn say(&mut self, text: impl Into<String>, late: bool) {
        if late {
            self.late = Some(text.into());
        } else {
            (self.cause, self.late) = (Some(text.into()), None);
        }
    }

    /// The cause, and how it ended where that was something else.
    pub fn tell(&self) -> String {
        match (&self.cause, &self.late) {
            (Some(cause), Some(late)) if cause != late => format!("{cause}; in the end: {late}"),
            (Some(cause), _) => cause.clone(),
            (None, Some(late)) => late.clone(),
            (None, None) => "nothing came of it".to_owned(),
        }
    }
}

/// Whether a change may still be made, asked once more just before the wire: a process that stood
/// still since it decided must not go on as if no time had passed (invariants.md I9, I10).
pub type Still<'s> = &'s (dyn Fn() -> Result<(), EffectError> + Send + Sync);

/// Something that decides which site users reach: a DNS zone, a load balancer.
///
/// A change is read, and applied by compare-and-swap against exactly what was read, if it still may
/// be.
#[async_trait]
pub trait Traffic: Send + Sync + fmt::Debug {
    /// The name in the configuration.
    fn name(&self) -> &TargetName;

    /// Reads what is there now, from the system that would be written to.
    async fn read(&self) -> Result<Versioned, EffectError>;

    /// Replaces `from` with `to`; fails with `Conflict` when `from` is no longer what is there.
    /// Returns when the system says that the change is made (for Route 53: `INSYNC`).
    /// `note` goes into the change where the system keeps one (a plan id). `still` is asked last
    /// of all before the change is sent: its error is the answer, and nothing was sent.
    async fn apply(
        &self,
        from: &Versioned,
        to: &Answer,
        note: &str,
        still: Still<'_>,
    ) -> Result<(), EffectError>;

    /// Has the system say whether it would let us replace what was read, without changing anything.
    /// `Refused` where it would not; a yes also where the system has no way to tell.
    async fn rehearse(&self, from: &Versioned) -> Result<(), EffectError>;

    /// Asks every place that users' resolvers ask, on its own, what it answers now. One view for
    /// each place; a place that shows nothing, or not ours, is an `Err` in its row.
    async fn verify_outside(&self) -> Vec<OutsideView>;
}

/// An answer with what is needed to replace exactly it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// What is there.
    pub answer: Answer,
    /// The target's own form of what is there, opaque to everybody else.
    pub token: String,
}

/// What one outside place answers for a traffic target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutsideView {
    /// Which place: a name server's address, say.
    pub place: String,
    /// What it answers, or why that is not to be had.
    pub answer: Result<Answer, OutsideFault>,
}

/// Why a place outside does not show what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "text")]
pub enum OutsideFault {
    /// It gives no answer that anybody would follow: unknown, not wrong. Whoever asks there goes
    /// on to the next place.
    #[error("{0}")]
    Unseen(String),
    /// It answers, and leads its askers astray.
    #[error("{0}")]
    Wrong(String),
}

/// Looks at targets: one look, one finding. Never errs: what went wrong is the finding.
#[async_trait]
pub trait Probe: Send + Sync + fmt::Debug {
    /// Looks at a target, within a time.
    async fn look(&self, target: &Target, within: Duration) -> Finding;

    /// How many more connections the database of a site takes from roles without privileges, on
    /// a fresh connection of the role that looks; an error where it takes none. `None` where this
    /// cannot be told, or somebody else will tell it.
    async fn room(&self, _site: &SiteName, _within: Duration) -> Option<Result<u64, String>> {
        None
    }

    /// How many anchors answer, of how many there are.
    async fn anchors(&self, within: Duration) -> (u32, u32);
}

/// Signs as this process.
pub trait Signer: Send + Sync + fmt::Debug {
    /// Signs some bytes.
    fn sign(&self, message: &[u8]) -> Result<Signature, SealError>;
}

/// Knows signatures.
pub trait Verifier: Send + Sync + fmt::Debug {
    /// Who signed exactly these bytes; an error where that is nobody whose signature counts here.
    fn signed_by(&self, message: &[u8], signature: &Signature) -> Result<Author, SealError>;
}

/// What a process knows of the certificates and secrets that it holds or sees.
pub trait Credentials: Send + Sync + fmt::Debug {
    /// What is to be reported now.
    fn facts(&self) -> CredentialFacts;
}

/// The controller's way to the agents.
#[async_trait]
pub trait Agents: Send + Sync + fmt::Debug {
    /// Gives an order, directly or through the other site's agent, and waits for what came of it, in
    /// the words of the agent that it is for. A lost connection, a time-out or an answer that this
    /// agent did not sign is `Unknown`, unless the order certainly did not arrive.
    async fn order(&self, order: &Order, by: Way, within: Duration) -> OrderAnswer;
}

/// How an order travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the controller to the agent it is for.
    Direct,
    /// Through the agent of the other site.
    Relayed,
}

/// Looks at the service as its users do.
#[async_trait]
pub trait FrontDoor: Send + Sync + fmt::Debug {
    /// Enters by the addresses that users would get, and says which site answered at each, or why
    /// none did. Writes and reads back where the configuration says how.
    async fn enter(
        &self,
        expected: &SiteName,
        within: Duration,
    ) -> Vec<(String, Result<SiteName, OutsideFault>)>;
}

/// Why something could not be kept, or not be learned from where it is kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot be kept: {0}")]
pub struct StoreError(pub String);

/// Why an entry was not made durable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The log is not as this controller left it: another may write it. Nothing more may be written,
    /// and nothing be done by it.
    #[error("the decision log is not this controller's any more: {0}")]
    Conflict(String),
    /// The entry is not in the log, and does not come into it. It may be tried again.
    #[error("the decision log cannot be written: {0}")]
    Failed(String),
    /// The entry may be found in the log by whoever opens it next. The next one that is written here
    /// takes its place.
    #[error("the decision log cannot be written, and may hold the entry all the same: {0}")]
    Unknown(String),
}

/// Where the decision log is kept. Opening it verifies it; this is what remains to be done.
#[async_trait]
pub trait LogStore: Send + fmt::Debug {
    /// Writes one line, and returns only when it is durable. What an earlier call that failed has
    /// left is taken away first.
    async fn append(&mut self, line: &[u8]) -> Result<(), AppendError>;

    /// How often [`LogStore::look`] is worth while; `None`: never.
    fn look_every(&self) -> Option<Duration> {
        None
    }

    /// Whether the log is still where, and as, it was left.
    async fn look(&mut self) -> Result<(), AppendError> {
        Ok(())
    }
}

/// Which of several controllers leads.
#[async_trait]
pub trait LeaseStore: Send + Sync + fmt::Debug {
    /// Begins to lead, or goes on, for so long from when the store hears of it, by its clock and
    /// with the drift that the policy allows for added; `false`: another controller leads.
    async fn lead(&self, lasting: Duration) -> Result<bool, StoreError>;
}

/// The database beside an agent: the guard that owns it, and SQL over its local socket.
#[async_trait]
pub trait LocalDatabase: Send + Sync + fmt::Debug {
    /// How it stands. Only the guard is asked, so this answers when the database does not.
    async fn look(&self) -> Result<LocalLook, EffectError>;
    /// Starts it as a standby.
    async fn start_standby(&self) -> Result<(), EffectError>;
    /// Starts it as a primary, under a right.
    async fn start_primary(&self, right: &LocalRight) -> Result<(), EffectError>;
    /// Arms or pushes the guard's deadline.
    async fn hold_right(&self, right: &LocalRight) -> Result<(), EffectError>;
    /// Disarms the guard's deadline of a standby that is not going to be promoted after all.
    async fn release_right(&self) -> Result<(), EffectError>;
    /// Ends every session and keeps it down; answers with the proof, in words.
    async fn fence(&self, epoch: Epoch, cause: &str) -> Result<String, EffectError>;
    /// Lets it start as a primary again, in this epoch or a later one.
    async fn unfence(&self, epoch: Epoch) -> Result<(), EffectError>;
    /// Cuts a standby from its primary's WAL: the frozen position, and whether all of it is
    /// replayed.
    async fn sever(&self, within: Duration) -> Result<(Lsn, bool), EffectError>;
    /// Connects it again.
    async fn reconnect(&self, within: Duration) -> Result<(), EffectError>;
    /// Asks a standby for what a sever, its undo and a promotion will need of it, and sees to it that it runs with
    /// what the agent was told; `fresh`: it was only just started; `peer_answers`: the other site is there.
    /// `None`: it is no standby. An error says nothing about a sever.
    async fn rehearse(
        &self,
        fresh: bool,
        peer_answers: bool,
        within: Duration,
    ) -> Result<Option<SeverRehearsal>, EffectError>;
    /// The replication slot of its primary that a standby asks for, as its files say: one that never was
    /// consistent takes no question.
    fn asks_for_slot(&self) -> Option<String> {
        None
    }
    /// Makes the physical replication slot of this name on a primary, where it is missing or of no use any more.
    async fn keep_slot(&self, name: &str, within: Duration) -> Result<(), EffectError>;
    /// Whether it is a primary, from the database itself.
    async fn is_primary(&self, within: Duration) -> Result<Option<(Timeline, Lsn)>, EffectError>;
    /// Makes a standby primary: its timeline and where it begins.
    async fn promote(&self, within: Duration) -> Result<(Timeline, Lsn), EffectError>;
    /// Writes the epoch into it and reads it back; whatever that needs is made where it is missing.
    /// Done twice is done once.
    async fn write_epoch(&self, epoch: Epoch, within: Duration) -> Result<(), EffectError>;
    /// Lets controller, agents and observers look at it, where their role may not yet. A failure
    /// keeps nobody from writing.
    async fn allow_looks(&self, _within: Duration) -> Result<(), EffectError> {
        Ok(())
    }
    /// How far the standby of that name is, and whether commits wait for it.
    async fn look_at_standby(
        &self,
        standby: &SiteName,
        within: Duration,
    ) -> Result<SyncLook, EffectError>;
    /// Makes every commit wait for the standby of that name, and for nobody else: whatever is
    /// acknowledged after this returned, and lies behind the position that it returns, is there.
    /// Survives a restart.
    async fn wait_for_standby(
        &self,
        standby: &SiteName,
        within: Duration,
    ) -> Result<Lsn, EffectError>;
    /// Lets every commit go on without a standby, those that wait already too.
    async fn go_on_alone(&self, within: Duration) -> Result<(), EffectError>;
}

/// How a database stands, as its guard sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalLook {
    /// As what its files would have it start. They count at a start and at no other time.
    pub starts_as: Role,
    /// Why its files let it be started in no role, if they do not.
    pub unfit: Option<String>,
    /// What runs, if it does: from how it was started and from what it says itself, never from a
    /// file that lies there.
    pub runs_as: Option<Role>,
    /// What is in its data folder or at its port and was not started by the guard, in words.
    pub foreign: Option<String>,
    /// The settings that were changed and take effect when it is started the next time.
    pub pending: Vec<String>,
    /// Where it runs as a primary and still starts or recovers, taking nobody in: a number that
    /// grows with the work that it does.
    pub recovering: Option<u64>,
    /// The right that the guard has armed, and until when.
    pub right: Option<(Epoch, MonoTime)>,
    /// The epoch of the fence marker, if there is one, and its cause.
    pub fenced: Option<(Epoch, String)>,
    /// How it last ended, if it did.
    pub ended: Option<String>,
    /// Which program the guard runs, and in which format it is spoken to.
    pub guard: Option<WrittenBy>,
}

impl LocalLook {
    /// Whether it runs.
    pub fn running(&self) -> bool {
        self.runs_as.is_some()
    }

    /// What it is: as what it runs, and where it does not, as what it would start.
    pub fn role(&self) -> Role {
        self.runs_as.unwrap_or(self.starts_as)
    }
}

/// A right to take writes, as a guard needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalRight {
    /// In which epoch.
    pub epoch: Epoch,
    /// Until when; `None` is for ever.
    pub until: Option<MonoTime>,
    /// How to fence when it is over.
    pub fence: FenceStages,
}

/// An agent's ways to the controller and to the other agent.
#[async_trait]
pub trait AgentLinks: Send + Sync + fmt::Debug {
    /// Reports to the controller.
    async fn report(&self, report: &Report, within: Duration) -> Result<ReportAnswer, EffectError>;
    /// Asks the other agent.
    async fn ask_peer(
        &self,
        question: &PeerQuestion,
        within: Duration,
    ) -> Result<PeerAnswer, EffectError>;
}

/// An extra observer's way to the controller.
#[async_trait]
pub trait ObserverLink: Send + Sync + fmt::Debug {
    /// Reports what was seen.
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

/// Where an agent keeps what must survive it.
#[async_trait]
pub trait AgentStore: Send + Sync + fmt::Debug {
    /// What was kept last; `None` where nothing was.
    async fn load(&self) -> Result<Option<AgentMemory>, StoreError>;
    /// Keeps it; returns only when it is durable.
    async fn save(&self, memory: &AgentMemory) -> Result<(), StoreError>;
}

/// What must survive an agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentMemory {
    /// The highest epoch it knows.
    pub epoch: Epoch,
    /// The epoch for which its standby was severed.
    pub severed: Option<Epoch>,
    /// The last order to sever or to promote that it obeyed: what it shows to the other agent, whose
    /// right is over by it.
    #[serde(default)]
    pub obeyed: Option<Sealed>,
    /// The epoch in which it was fenced by order, or superseded. Unlike a fence by an expired
    /// lease this one is only lifted for an epoch in which the site holds the right.
    pub fenced: Option<Epoch>,
    /// The epoch of a promotion that was begun and of which nobody knows yet what became.
    pub promoting: Option<Epoch>,
    /// The last plan of which it promised that no promotion comes any more.
    pub desisted: Option<u64>,
    /// The plan for which it started workloads that did not answer before.
    pub started_for: Option<u64>,
    /// The timers of the last answer of the controller.
    pub timers: Option<LeaseTimers>,
    /// The RPO window that it closed last: a permission no newer than that is void.
    pub closed: Option<ClosedWindow>,
    /// The instance of the other site that it deals with: the one that the controller named last,
    /// or the first that it heard of.
    #[serde(default)]
    pub peer: Option<Instance>,
    /// How far the controller's log went when it last kept that. Not kept with each answer: what
    /// it heard since is in memory only.
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
                "`ALTER SYSTEM` is not allowed; in the end: no answer in time",
            ),
            (
                "late ones first",
                vec![late(), late(), cause()],
                "`ALTER SYSTEM` is not allowed",
            ),
            (
                "a connection that did not come about in the last milliseconds",
                vec![cause(), Failed("no answer within 20 ms".to_owned())],
                "`ALTER SYSTEM` is not allowed; in the end: no answer within 20 ms",
            ),
            (
                "a last one that nobody knows of",
                vec![cause(), Unknown("connection lost".to_owned())],
                "`ALTER SYSTEM` is not allowed; in the end: connection lost",
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
