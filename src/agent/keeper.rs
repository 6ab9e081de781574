//! Keeps the write lease, and the database within it: the one task of an agent that changes
//! anything. Everything arrives in one queue; long operations (a promotion) run beside it, so that
//! the lease is still renewed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tracing::{Instrument, Span};

use crate::engine::chain::LogMark;
use crate::engine::instance::Instance;
use crate::engine::lease::{Enforcer, Holder, Refusal};
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
use crate::wire::{OrderAnswer, PeerAnswer, PeerQuestion, Postmark, ReportAnswer, What};

mod durability;
mod lives;
mod marking;
mod rehearsing;
mod orders;
mod peer;
mod right;
mod shown;
mod troubles;

pub use self::shown::Shown;

use self::durability::{Step, Told};
use self::lives::Lives;
pub use self::marking::Marked;
use self::marking::Marking;
use self::orders::Promoting;
use self::rehearsing::{Rehearsing, Slot};
use self::right::adopt;
use self::troubles::{Trouble, Troubles};
use super::recovery::Recovery;

/// The queue's capacity: reports and questions come one at a time, orders a few.
const WAITING: usize = 64;

/// How often it checks the guard, however much arrives.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How long one piece of local SQL may take.
const SQL: Duration = Duration::from_secs(5);

/// A message to the keeper.
#[derive(Debug)]
pub enum News {
    /// The controller answered a report that was sent after this moment.
    Answered(MonoTime, Box<ReportAnswer>),
    /// The peer answered a question that was sent after this moment.
    PeerAnswered(MonoTime, PeerAnswer),
    /// The peer agent asks.
    PeerAsks(PeerQuestion, oneshot::Sender<PeerAnswer>),
    /// An order of the controller.
    Ordered(Box<SignedOrder>, oneshot::Sender<OrderAnswer>),
    /// The guard has an event: check it now.
    Look,
    /// The promotion running beside the keeper is over.
    Promoted(OrderAnswer),
    /// Workloads that did not answer are being started for this plan.
    StartingFor(u64),
    /// The result of writing this epoch into the database.
    Marked(Epoch, Marked),
    /// The result of a rehearsal of the sever that began at this moment.
    Rehearsed(MonoTime, Result<Option<SeverRehearsal>, EffectError>),
    /// The result of maintaining the slot that the other site's standby needs.
    SlotKept(Result<(), EffectError>),
    /// The result of a step to keep the standby synchronous.
    Synchronised(Step),
    /// The result of reconnecting a standby that was severed for this epoch.
    Reconnected(Epoch, Result<(), EffectError>),
}

/// The keeper.
#[derive(Debug)]
pub struct Keeper {
    /// Identifies this run of the site's agent.
    life: u64,
    /// Verifies the controller's orders.
    controller: Arc<dyn Verifier>,
    group: GroupName,
    site: SiteName,
    instance: Instance,
    peer: SiteName,
    database: LocalDatabase,
    workloads: Option<Arc<dyn Workloads>>,
    store: Arc<dyn AgentStore>,
    clock: Arc<dyn Clock>,
    memory: AgentMemory,
    holder: Option<Holder>,
    look: LocalLook,
    /// Whether the guard answered the last check.
    guarded: bool,
    /// The role in which the database last ran, as far as this agent knows.
    ran_as: Option<Role>,
    /// Since when the database has been down.
    down: Option<(MonoTime, String)>,
    /// Its recovery, while it runs but does not serve yet.
    recovery: Option<Recovery>,
    lives: Lives,
    restart_grace: Duration,
    /// When it asked the controller what that one answered last.
    answered: Option<MonoTime>,
    peer_answered: Option<MonoTime>,
    /// How far the peer agent's wall clock was from ours at that answer.
    peer_clock: Option<Skew>,
    peer_mark: Option<(Postmark, MonoTime)>,
    /// Why the peer agent's last "superseded" was not believed, if it was not.
    disbelieved: Option<String>,
    /// When it last vouched for the other site; since its own start if it has not.
    vouched: MonoTime,
    /// The end of the controller's log, as last heard.
    log: Option<LogMark>,
    /// When that was last stored.
    log_kept: MonoTime,
    /// Why the controller last refused the lease.
    refused: Option<Refusal>,
    /// Who waits for the promotion that runs beside the keeper.
    promoting: Option<Promoting>,
    marking: Marking,
    /// The epoch read back from the database after it was written.
    epoch_written: Option<Epoch>,
    rehearsing: Rehearsing,
    slot: Slot,
    synchrony: Synchrony,
    /// The RPO window that the controller last reported; `None` before its first answer.
    told: Option<Told>,
    /// Whether a step to keep the standby synchronous runs beside the keeper.
    synchronising: bool,
    /// Whether a reconnection of the standby runs beside the keeper.
    reconnecting: bool,
    troubles: Troubles,
    news: mpsc::Receiver<News>,
    sender: mpsc::Sender<News>,
    shown: watch::Sender<Shown>,
}

/// What a keeper is created from.
#[derive(Debug)]
pub struct Parts {
    /// A number that no other run of an agent has: for its marks.
    pub life: u64,
    /// Verifies the controller's orders.
    pub controller: Arc<dyn Verifier>,
    /// The group it belongs to.
    pub group: GroupName,
    /// Its site.
    pub site: SiteName,
    /// The instance of the site's agent.
    pub instance: Instance,
    /// The other site, whose database is the standby if ours is the primary.
    pub peer: SiteName,
    /// Its database.
    pub database: LocalDatabase,
    /// Its workloads, if it looks after any.
    pub workloads: Option<Arc<dyn Workloads>>,
    /// The durable state.
    pub store: Arc<dyn AgentStore>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
}

impl Keeper {
    /// A keeper that continues where the previous one ended: it remembers epochs, and adopts a
    /// guard that still holds a lease.
    pub async fn begin(
        parts: Parts,
    ) -> Result<(Self, mpsc::Sender<News>, watch::Receiver<Shown>), EffectError> {
        let memory = parts.store.load().await.map_err(lost)?.unwrap_or_default();
        let look = parts.database.server.look().await?;
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
            answered: None,
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
            troubles: Troubles::default(),
            news,
            sender: sender.clone(),
            shown: watch::Sender::new(nothing_shown(now)),
            look,
        };
        // Before anything is reported: a database that is down must not pass for one that is up.
        keeper.look().await;
        keeper.show();
        let shown = keeper.shown.subscribe();
        Ok((keeper, sender, shown))
    }

    /// Keeps the database within its lease, until all senders are gone.
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

    /// Runs something that may block beside the keeper, and sends it the result.
    fn beside(&self, work: impl Future<Output = News> + Send + 'static) {
        let sender = self.sender.clone();
        let work = async move {
            // A keeper that is gone has nobody to tell.
            drop(sender.send(work.await).await);
        };
        tokio::spawn(work.in_current_span());
    }

    async fn take(&mut self, news: News) {
        // First of all: an answer that waited while we were frozen must not revive a lease for
        // which the guard has already fenced.
        self.drop_right_that_is_over();
        match news {
            News::Answered(asked, answer) => self.answered(asked, *answer).await,
            News::PeerAnswered(asked, answer) => self.peer_answered(asked, answer).await,
            News::PeerAsks(question, answer) => {
                self.peer_mark = Some((question.mark, self.clock.now()));
                // The asker is gone and needs no answer.
                drop(answer.send(self.answer_peer(&question).await));
            }
            News::Ordered(order, answer) => {
                let span = order.order().span();
                self.ordered(*order, answer).instrument(span).await;
            }
            News::Look => self.look().await,
            News::Promoted(came) => {
                let promoting = self.promoting.as_ref();
                let span = promoting.map_or_else(Span::none, |promoting| promoting.span.clone());
                self.promoted(came).instrument(span).await;
            }
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

    /// Reads the guard's status; returns whether it answered.
    async fn refresh(&mut self) -> bool {
        match self.database.server.look().await {
            Ok(look) => self.look = look,
            Err(error) => {
                self.trouble(Trouble::GuardSilent, &error);
                self.guarded = false;
                return false;
            }
        }
        self.guarded = true;
        self.well(Trouble::GuardSilent);
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

    /// The role must match the lease.
    async fn keep_in_step(&mut self) {
        if self.promoting.is_some() || !self.look.running() {
            return;
        }
        let armed = self.look.right.is_some();
        // The guard does it already: a fence of our own would be remembered as an order, and the
        // database would not wait for its lease to return.
        let being_fenced = self
            .look
            .fenced
            .as_ref()
            .is_some_and(|(epoch, _)| *epoch >= self.memory.epoch);
        let may_come = self.memory.promoting.is_some();
        let standby = self.look.role() == Role::Standby;
        if standby && !may_come && (armed || self.holder.is_some()) {
            // A promotion did not come about; or it did just now, and the guard knows better.
            match self.database.server.release_right().await {
                Ok(()) => self.holder = None,
                Err(error) => tracing::debug!(%error, "the guard's deadline is not disarmed"),
            }
        } else if self.look.role() == Role::Primary
            && !armed
            && self.holder.is_none()
            && !being_fenced
        {
            // Somebody else promoted or started it.
            let epoch = self.memory.epoch;
            self.fence_and_tell(epoch, "primary without a right").await;
        }
    }

    /// Stores the state; what cannot be stored counts as not done.
    async fn remember(&mut self, mut memory: AgentMemory) -> bool {
        if memory == self.memory {
            return true;
        }
        memory.log = self.log;
        match self.store.save(&memory).await {
            Ok(()) => {
                self.memory = memory;
                self.over(Trouble::MemoryUnwritable);
                true
            }
            Err(error) => {
                self.trouble(Trouble::MemoryUnwritable, &error);
                false
            }
        }
    }

    /// Fences. The record that it is fenced is durable before the database is stopped, so that a
    /// restart in between cannot revive it.
    async fn fence(&mut self, epoch: Epoch, cause: &str) -> Result<String, EffectError> {
        let group = &self.group;
        let step = What::Fence;
        let span = tracing::error_span!("fence", %group, epoch = epoch.0, %step, cause);
        self.fence_now(epoch, cause).instrument(span).await
    }

    async fn fence_now(&mut self, epoch: Epoch, cause: &str) -> Result<String, EffectError> {
        let fenced = self.memory.fenced.max(Some(epoch));
        self.kept(AgentMemory {
            fenced,
            ..self.memory.clone()
        })
        .await?;
        self.holder = None;
        let said = self.database.server.fence(epoch, cause).await?;
        tracing::warn!(%said, "fenced");
        self.over(Trouble::FenceUnproven);
        self.refresh().await;
        Ok(said)
    }

    /// The same where nobody waits for the proof.
    async fn fence_and_tell(&mut self, epoch: Epoch, cause: &str) {
        if let Err(error) = self.fence(epoch, cause).await {
            self.trouble(Trouble::FenceUnproven, &error);
        }
    }
}

fn lost(error: StoreError) -> EffectError {
    EffectError::Failed(error.to_string())
}

/// The published state before the first check.
fn nothing_shown(now: MonoTime) -> Shown {
    Shown {
        epoch: Epoch(0),
        asks: false,
        right: None,
        right_in: None,
        log: None,
        answered: None,
        primary: false,
        facts: AgentFacts {
            database: DatabaseState::Up,
            fenced: None,
            severed: None,
            guarded: true,
            enforced_by: Enforcer::Guard,
            machine: None,
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
