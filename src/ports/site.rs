//! What an agent needs of its site: the database, the workloads, its ways out, its memory.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{EffectError, StoreError};
use crate::engine::digest::LogMark;
use crate::engine::format::WrittenBy;
use crate::engine::instance::Instance;
use crate::engine::lease::Enforcer;
use crate::engine::policy::{FenceStages, LeaseTimers};
use crate::engine::situation::SeverRehearsal;
use crate::engine::synchrony::{ClosedWindow, SyncLook};
use crate::engine::topology::{Role, SiteName};
use crate::engine::units::{Epoch, Lsn, MonoTime, Timeline};
use crate::wire::sealed::Sealed;
use crate::wire::{PeerAnswer, PeerQuestion, Report, ReportAnswer};

/// The database beside an agent, by what is done with it. What differs between the kinds of site is the
/// server and its succession; the SQL is the same everywhere.
#[derive(Debug, Clone)]
pub struct LocalDatabase {
    /// Starts, ends and fences it.
    pub server: Arc<dyn Server>,
    /// Makes it standby or primary.
    pub succession: Arc<dyn Succession>,
    /// Keeps the epoch in it.
    pub ledger: Arc<dyn Ledger>,
    /// Keeps its standby synchronous.
    pub synchronous: Arc<dyn Synchronous>,
}

impl LocalDatabase {
    /// A database that is all of it in one.
    pub fn of<D>(database: D) -> Self
    where
        D: Server + Succession + Ledger + Synchronous + 'static,
    {
        let database = Arc::new(database);
        Self {
            server: Arc::clone(&database) as Arc<dyn Server>,
            succession: Arc::clone(&database) as Arc<dyn Succession>,
            ledger: Arc::clone(&database) as Arc<dyn Ledger>,
            synchronous: database,
        }
    }
}

/// The server beside an agent: what starts it, ends it, and keeps it from serving.
#[async_trait]
pub trait Server: Send + Sync + fmt::Debug {
    /// What ends the right to take writes when its time is over and the agent does nothing.
    fn enforced_by(&self) -> Enforcer;
    /// What the site's infrastructure calls the machine that it runs on (the uid of a pod), if there is
    /// one that can be told to end it (invariants.md F2).
    fn machine(&self) -> Option<String>;
    /// How it stands. PostgreSQL itself is not asked, so this answers when it does not.
    async fn look(&self) -> Result<LocalLook, EffectError>;
    /// Starts it as a standby.
    async fn start_standby(&self) -> Result<(), EffectError>;
    /// Starts it as a primary, under a right.
    async fn start_primary(&self, right: &LocalRight) -> Result<(), EffectError>;
    /// Arms or pushes the deadline of a right.
    async fn hold_right(&self, right: &LocalRight) -> Result<(), EffectError>;
    /// Disarms the deadline of a standby that is not going to be promoted after all.
    async fn release_right(&self) -> Result<(), EffectError>;
    /// Ends every session and keeps it down; answers with the proof, in words.
    async fn fence(&self, epoch: Epoch, cause: &str) -> Result<String, EffectError>;
    /// Lets it start as a primary again, in this epoch or a later one.
    async fn unfence(&self, epoch: Epoch) -> Result<(), EffectError>;
}

/// How a database becomes the successor of its primary.
#[async_trait]
pub trait Succession: Send + Sync + fmt::Debug {
    /// Cuts a standby from its primary's WAL: the frozen position, and whether all of it is
    /// replayed.
    async fn sever(&self, within: Duration) -> Result<(Lsn, bool), EffectError>;
    /// Connects it again.
    async fn reconnect(&self, within: Duration) -> Result<(), EffectError>;
    /// Asks a standby for what a sever, its undo and a promotion will need of it, and sees to it that it
    /// runs with what the agent was told; `fresh`: it was only just started; `peer_answers`: the other
    /// site is there. `None`: it is no standby. An error says nothing about a sever.
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
    /// Makes the physical replication slot of this name on a primary, where it is missing or of no use
    /// any more.
    async fn keep_slot(&self, name: &str, within: Duration) -> Result<(), EffectError>;
    /// Makes a standby primary: its timeline and where it begins.
    async fn promote(&self, within: Duration) -> Result<(Timeline, Lsn), EffectError>;
}

/// What is written into a database that takes writes, and read from any.
#[async_trait]
pub trait Ledger: Send + Sync + fmt::Debug {
    /// Whether it is a primary, from the database itself.
    async fn is_primary(&self, within: Duration) -> Result<Option<(Timeline, Lsn)>, EffectError>;
    /// Writes the epoch into it and reads it back; whatever that needs is made where it is missing.
    /// Done twice is done once.
    async fn write_epoch(&self, epoch: Epoch, within: Duration) -> Result<(), EffectError>;
    /// Lets controller, agents and observers look at it, where their role may not yet. A failure
    /// keeps nobody from writing.
    async fn allow_looks(&self, _within: Duration) -> Result<(), EffectError> {
        Ok(())
    }
}

/// Whether a primary's commits wait for its standby.
#[async_trait]
pub trait Synchronous: Send + Sync + fmt::Debug {
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
    /// Which program the guard runs, and in which format it is spoken to.
    pub guard: Option<WrittenBy>,
    /// How it last ended, if it did.
    pub ended: Option<String>,
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

/// The workloads beside an agent.
#[async_trait]
pub trait Workloads: Send + Sync + fmt::Debug {
    /// Starts them; returns without waiting until they answer.
    async fn start(&self) -> Result<(), EffectError>;
    /// Stops them.
    async fn stop(&self) -> Result<(), EffectError>;
    /// Whether they answer.
    async fn ready(&self) -> Result<bool, EffectError>;
    /// Why they could not be started now, as far as that can be found out without starting them. An
    /// error says nothing about that.
    async fn obstacle(&self) -> Result<Option<String>, EffectError> {
        Ok(None)
    }
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
