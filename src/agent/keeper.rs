//! Keeps the right to take writes, and the database within it: the one task of an agent that
//! changes anything. Everything comes in by one queue; what takes long (a promotion) runs beside
//! it, so that the right goes on being renewed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::engine::chain::LogMark;
use crate::engine::instance::Instance;
use crate::engine::lease::{Holder, Refusal};
use crate::engine::situation::{AgentFacts, LocalDatabase as DatabaseState, SeverRehearsal};
use crate::engine::skew::Skew;
use crate::engine::synchrony::Synchrony;
use crate::engine::topology::{GroupName, Role, SiteName};
use crate::engine::units::{Epoch, MonoTime};
use crate::ports::{
    AgentMemory, AgentStore, Clock, EffectError, LocalDatabase, LocalLook, StoreError, Verifier,
    Workloads,
};
use crate::wire::sealed::SignedOrder;
use crate::wire::{OrderAnswer, PeerAnswer, PeerQuestion, Postmark, ReportAnswer};

mod durability;
mod lives;
mod marking;
mod rehearsing;
mod orders;
mod peer;
mod right;
mod shown;

pub use self::shown::Shown;

use self::durability::{Step, Told};
use self::lives::Lives;
pub use self::marking::Marked;
use self::marking::Marking;
use self::orders::Promoting;
use self::rehearsing::{Rehearsing, Slot};
use self::right::adopt;
use super::recovery::Recovery;

/// How many messages may wait: reports and questions come one at a time, orders a few.
const WAITING: usize = 64;

/// How often it looks at the guard, however much arrives.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How long one piece of local SQL may take.
const SQL: Duration = Duration::from_secs(5);

/// What comes in.
#[derive(Debug)]
pub enum News {
    /// The controller answered a report that was sent after this moment.
    Answered(MonoTime, Box<ReportAnswer>),
    /// The other agent answered a question that was sent after this moment.
    PeerAnswered(MonoTime, PeerAnswer),
    /// The other agent asks.
    PeerAsks(PeerQuestion, oneshot::Sender<PeerAnswer>),
    /// An order of the controller.
    Ordered(Box<SignedOrder>, oneshot::Sender<OrderAnswer>),
    /// The guard has news: look at it now.
    Look,
    /// The promotion that ran beside is over.
    Promoted(OrderAnswer),
    /// Workloads that did not answer are being started for this plan.
    StartingFor(u64),
    /// What came of writing this epoch into the database.
    Marked(Epoch, Marked),
    /// What came of a rehearsal of the sever that began at this moment.
    Rehearsed(MonoTime, Result<Option<SeverRehearsal>, EffectError>),
    /// What came of looking after the slot that the other site's standby asks for.
    SlotKept(Result<(), EffectError>),
    /// What came of a step to keep the standby synchronous.
    Synchronised(Step),
    /// What came of connecting a standby again that was severed for this epoch.
    Reconnected(Epoch, Result<(), EffectError>),
}

/// The keeper.
#[derive(Debug)]
pub struct Keeper {
    /// Which of the agents of this site, one after the other, this is.
    life: u64,
    /// By which orders are known as the controller's.
    controller: Arc<dyn Verifier>,
    group: GroupName,
    site: SiteName,
    instance: Instance,
    peer: SiteName,
    database: Arc<dyn LocalDatabase>,
    workloads: Option<Arc<dyn Workloads>>,
    store: Arc<dyn AgentStore>,
    clock: Arc<dyn Clock>,
    memory: AgentMemory,
    holder: Option<Holder>,
    look: LocalLook,
    /// Whether the guard answered when it was last asked.
    guarded: bool,
    /// As what it last ran, as far as this agent knows.
    ran_as: Option<Role>,
    /// Since when the database is down.
    down: Option<(MonoTime, String)>,
    /// Its recovery, while it runs and does not serve yet.
    recovery: Option<Recovery>,
    lives: Lives,
    restart_grace: Duration,
    peer_answered: Option<MonoTime>,
    /// How far the other agent's wall clock was from ours at that answer.
    peer_clock: Option<Skew>,
    peer_mark: Option<(Postmark, MonoTime)>,
    /// Why the other agent's word that we are superseded was not believed, when it last was not.
    disbelieved: Option<String>,
    /// When it last let a right of the other site stand; its own start where it did not since.
    vouched: MonoTime,
    /// How far the controller's log goes, as it last heard.
    log: Option<LogMark>,
    /// When that was last kept.
    log_kept: MonoTime,
    /// Why the controller last refused the right.
    refused: Option<Refusal>,
    /// Who waits for the promotion that runs beside.
    promoting: Option<Promoting>,
    marking: Marking,
    /// The epoch that the database was seen to hold as it was written.
    epoch_written: Option<Epoch>,
    rehearsing: Rehearsing,
    slot: Slot,
    synchrony: Synchrony,
    /// What the controller last said of the RPO window; `None` before it said anything.
    told: Option<Told>,
    /// Whether a step to keep the standby synchronous runs beside.
    synchronising: bool,
    /// Whether the standby is being connected again beside.
    reconnecting: bool,
    news: mpsc::Receiver<News>,
    sender: mpsc::Sender<News>,
    shown: watch::Sender<Shown>,
}

/// What a keeper works with.
#[derive(Debug)]
pub struct Parts {
    /// A number that no other agent has, and none had before this one: for its marks.
    pub life: u64,
    /// By which orders are known as the controller's.
    pub controller: Arc<dyn Verifier>,
    /// The group it belongs to.
    pub group: GroupName,
    /// Its site.
    pub site: SiteName,
    /// Which installation of the site's agent this is.
    pub instance: Instance,
    /// The other one, whose database is the standby where ours is the primary.
    pub peer: SiteName,
    /// Its database.
    pub database: Arc<dyn LocalDatabase>,
    /// Its workloads, if it looks after any.
    pub workloads: Option<Arc<dyn Workloads>>,
    /// Its memory.
    pub store: Arc<dyn AgentStore>,
    /// Its clock.
    pub clock: Arc<dyn Clock>,
}

impl Keeper {
    /// A keeper that takes up where the one before it ended: it remembers epochs, and adopts a
    /// guard that still holds a right.
    pub async fn begin(
        parts: Parts,
    ) -> Result<(Self, mpsc::Sender<News>, watch::Receiver<Shown>), EffectError> {
        let memory = parts.store.load().await.map_err(lost)?.unwrap_or_default();
        let look = parts.database.look().await?;
        let now = parts.clock.now();
        let (sender, news) = mpsc::channel(WAITING);
        let mut keeper = Self {
            life: parts.life,
            controller: parts.controller,
            group: parts.group,
            site: parts.site,
            instance: parts.instance,
            peer: parts.peer,
            database: parts.database,
            workloads: parts.workloads,
            store: parts.store,
            clock: parts.clock,
            holder: adopt(&memory, &look, now),
            log: memory.log,
            log_kept: now,
            vouched: now,
            refused: None,
            memory,
            guarded: true,
            ran_as: None,
            down: None,
            recovery: None,
            lives: Lives::default(),
            restart_grace: Duration::ZERO,
            peer_answered: None,
            peer_clock: None,
            peer_mark: None,
            disbelieved: None,
            promoting: None,
            marking: Marking::Due(now),
            epoch_written: None,
            rehearsing: Rehearsing::default(),
            slot: Slot::default(),
            synchrony: Synchrony::default(),
            told: None,
            synchronising: false,
            reconnecting: false,
            news,
            sender: sender.clone(),
            shown: watch::Sender::new(nothing_shown(now)),
            look,
        };
        // Before anything is said: a database that is down must not pass for one that is up.
        keeper.look().await;
        keeper.show();
        let shown = keeper.shown.subscribe();
        Ok((keeper, sender, shown))
    }

    /// Keeps the database within its right, until nobody can send news any more.
    pub async fn run(mut self) {
        let mut next_look = self.clock.now().plus(LOOK_EVERY);
        loop {
            let wait = self.clock.now().until(next_look);
            let news = if wait.is_zero() {
                Some(News::Look)
            } else {
                tokio::select! {
                    biased;
                    news = self.news.recv() => news,
                    () = self.clock.sleep(wait) => Some(News::Look),
                }
            };
            let Some(news) = news else { return };
            if matches!(news, News::Look) {
                next_look = self.clock.now().plus(LOOK_EVERY);
            }
            self.take(news).await;
            self.show();
        }
    }

    /// Runs beside the keeper what may hang, and brings it what came of it.
    fn beside(&self, work: impl Future<Output = News> + Send + 'static) {
        let sender = self.sender.clone();
        tokio::spawn(async move {
            // A keeper that is gone has nobody to tell.
            drop(sender.send(work.await).await);
        });
    }

    async fn take(&mut self, news: News) {
        // First of all: an answer that waited while we were frozen must not bring back a right
        // for which the guard has fenced already.
        self.drop_right_that_is_over();
        match news {
            News::Answered(asked, answer) => self.answered(asked, *answer).await,
            News::PeerAnswered(asked, answer) => self.peer_answered(asked, answer).await,
            News::PeerAsks(question, answer) => {
                self.peer_mark = Some((question.mark, self.clock.now()));
                // An asker that is gone needs no answer.
                drop(answer.send(self.answer_peer(&question).await));
            }
            News::Ordered(order, answer) => self.ordered(*order, answer).await,
            News::Look => self.look().await,
            News::Promoted(came) => self.promoted(came).await,
            News::StartingFor(plan) => {
                let started_for = Some(plan);
                self.remember(AgentMemory {
                    started_for,
                    ..self.memory.clone()
                })
                .await;
            }
            News::Marked(epoch, came) => self.marked(epoch, came),
            News::Rehearsed(began, came) => self.rehearsed(began, came),
            News::SlotKept(kept) => self.slot_kept(kept),
            News::Synchronised(step) => self.synchronised(step).await,
            News::Reconnected(severed, came) => self.reconnected(severed, came).await,
        }
    }

    /// Asks the guard how things stand; whether it answered.
    async fn refresh(&mut self) -> bool {
        match self.database.look().await {
            Ok(look) => self.look = look,
            Err(error) => {
                tracing::error!(%error, "the guard does not answer");
                self.guarded = false;
                return false;
            }
        }
        self.guarded = true;
        self.follow_its_lives();
        if !self.look.running() {
            self.synchrony.down();
        }
        true
    }

    async fn look(&mut self) {
        if !self.refresh().await {
            return;
        }
        self.drop_right_that_is_over();
        let primary = self.look.role() == Role::Primary && self.look.running();
        if primary && self.promoting.is_none() {
            self.remember_promoting(None).await;
        }
        self.keep_in_step().await;
        let now = self.clock.now();
        self.start_again(now).await;
        self.keep_log_mark(now).await;
        self.mark(now);
        self.rehearse(now);
        self.keep_slot(now);
        self.synchronise();
    }

    /// Role and right must fit each other.
    async fn keep_in_step(&mut self) {
        if self.promoting.is_some() || !self.look.running() {
            return;
        }
        let armed = self.look.right.is_some();
        // The guard does it already: a fence of our own would be remembered as an order, and the
        // database would not wait for its right to come back.
        let being_fenced = self
            .look
            .fenced
            .as_ref()
            .is_some_and(|(epoch, _)| *epoch >= self.memory.epoch);
        let may_come = self.memory.promoting.is_some();
        let standby = self.look.role() == Role::Standby;
        if standby && !may_come && (armed || self.holder.is_some()) {
            // A promotion did not come about; or it did just now, and the guard knows better.
            match self.database.release_right().await {
                Ok(()) => self.holder = None,
                Err(error) => tracing::debug!(%error, "the guard's deadline is not disarmed"),
            }
        } else if self.look.role() == Role::Primary
            && !armed
            && self.holder.is_none()
            && !being_fenced
        {
            // Promoted or started by somebody else.
            let epoch = self.memory.epoch;
            if let Err(error) = self.fence(epoch, "primary without a right").await {
                tracing::error!(%error, "the fence is not proven");
            }
        }
    }

    /// Keeps something; what cannot be kept was not done.
    async fn remember(&mut self, mut memory: AgentMemory) -> bool {
        if memory == self.memory {
            return true;
        }
        memory.log = self.log;
        match self.store.save(&memory).await {
            Ok(()) => {
                self.memory = memory;
                true
            }
            Err(error) => {
                tracing::error!(%error, "the agent's memory cannot be written");
                false
            }
        }
    }

    /// Fences. The word that it is fenced is durable before the database is stopped, so that a
    /// restart in between cannot revive it.
    async fn fence(&mut self, epoch: Epoch, cause: &str) -> Result<String, EffectError> {
        let fenced = self.memory.fenced.max(Some(epoch));
        self.kept(AgentMemory {
            fenced,
            ..self.memory.clone()
        })
        .await?;
        self.holder = None;
        let said = self.database.fence(epoch, cause).await?;
        tracing::warn!(epoch = epoch.0, cause, %said, "fenced");
        self.refresh().await;
        Ok(said)
    }
}

fn lost(error: StoreError) -> EffectError {
    EffectError::Failed(error.to_string())
}

/// What is shown before the first look.
fn nothing_shown(now: MonoTime) -> Shown {
    Shown {
        epoch: Epoch(0),
        asks: false,
        right: None,
        right_in: None,
        log: None,
        primary: false,
        facts: AgentFacts {
            database: DatabaseState::Up,
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
        peer_mark: None,
        guard: None,
        at: now,
    }
}
