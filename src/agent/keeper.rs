//! Keeps the right to take writes, and the database within it: the one task of an agent that
//! changes anything. Everything comes in by one queue; what takes long (a promotion) runs beside
//! it, so that the right goes on being renewed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::engine::lease::{Holder, is_superseded};
use crate::engine::policy::FenceStages;
use crate::engine::situation::{AgentFacts, LocalDatabase as DatabaseState};
use crate::engine::synchrony::Synchrony;
use crate::engine::topology::{GroupName, Role, SiteName};
use crate::engine::units::{Epoch, MonoTime};
use crate::ports::{
    AgentMemory, AgentStore, Clock, EffectError, LocalDatabase, LocalLook, LocalRight, StoreError,
    Workloads,
};
use crate::wire::{Order, OrderAnswer, PeerAnswer, PeerQuestion, ReportAnswer};

mod durability;
mod marking;
mod orders;

use self::durability::{Step, Told};
use self::marking::Marking;
use self::orders::Promoting;

/// How many messages may wait: reports and questions come one at a time, orders a few.
const WAITING: usize = 64;

/// How often it looks at the guard when nothing arrives.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How long a database that nobody failed over from stays down before it is started again, on top
/// of the grace for a local restart.
const NOBODY_TOOK_OVER: Duration = Duration::from_secs(5);

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
    /// A verified order.
    Ordered(Box<Order>, oneshot::Sender<OrderAnswer>),
    /// The guard has news: look at it now.
    Look,
    /// The promotion that ran beside is over.
    Promoted(OrderAnswer),
    /// Workloads that did not answer are being started for this plan.
    StartingFor(u64),
    /// What came of writing this epoch into the database.
    Marked(Epoch, Result<(), EffectError>),
    /// What came of a step to keep the standby synchronous.
    Synchronised(Step),
}

/// What the rest of the agent sees of the keeper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// The highest epoch it knows.
    pub epoch: Epoch,
    /// Whether it asks for the right to take writes.
    pub asks: bool,
    /// Until when it holds that right, if it does; `Some(None)` is for ever.
    pub right: Option<Option<MonoTime>>,
    /// Whether the database runs as a primary.
    pub primary: bool,
    /// For the report. Ages in it count from `at`.
    pub facts: AgentFacts,
    /// When this was so.
    pub at: MonoTime,
}

/// The keeper.
#[derive(Debug)]
pub struct Keeper {
    group: GroupName,
    site: SiteName,
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
    /// Since when the database is down.
    down: Option<(MonoTime, String)>,
    last_start: Option<MonoTime>,
    restart_grace: Duration,
    peer_answered: Option<MonoTime>,
    /// Who waits for the promotion that runs beside.
    promoting: Option<Promoting>,
    marking: Marking,
    synchrony: Synchrony,
    /// What the controller last said of the RPO window; `None` before it said anything.
    told: Option<Told>,
    /// Whether a step to keep the standby synchronous runs beside.
    synchronising: bool,
    news: mpsc::Receiver<News>,
    sender: mpsc::Sender<News>,
    shown: watch::Sender<Shown>,
}

/// What a keeper works with.
#[derive(Debug)]
pub struct Parts {
    /// The group it belongs to.
    pub group: GroupName,
    /// Its site.
    pub site: SiteName,
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

/// The stages of a fence before a policy was ever heard of: those of `standard.toml`.
const STAGES_UNTIL_TOLD: FenceStages = FenceStages {
    fast: Duration::from_secs(6),
    immediate: Duration::from_secs(3),
    kill: Duration::from_secs(2),
};

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
            group: parts.group,
            site: parts.site,
            peer: parts.peer,
            database: parts.database,
            workloads: parts.workloads,
            store: parts.store,
            clock: parts.clock,
            holder: adopt(&memory, &look, now),
            memory,
            guarded: true,
            down: None,
            last_start: None,
            restart_grace: Duration::ZERO,
            peer_answered: None,
            promoting: None,
            marking: Marking::Due(now),
            synchrony: Synchrony::default(),
            told: None,
            synchronising: false,
            news,
            sender: sender.clone(),
            shown: watch::Sender::new(Shown {
                epoch: Epoch(0),
                asks: false,
                right: None,
                primary: false,
                facts: AgentFacts {
                    database: DatabaseState::Up,
                    fenced: None,
                    severed: None,
                    guarded: true,
                    peer: None,
                    synchrony: None,
                },
                at: now,
            }),
            look,
        };
        if keeper.look.set_up_as == Role::Standby && !keeper.look.running {
            keeper.start_standby().await;
        }
        keeper.show();
        let shown = keeper.shown.subscribe();
        Ok((keeper, sender, shown))
    }

    /// Keeps the database within its right, until nobody can send news any more.
    pub async fn run(mut self) {
        loop {
            let news = tokio::select! {
                biased;
                news = self.news.recv() => news,
                () = self.clock.sleep(LOOK_EVERY) => Some(News::Look),
            };
            let Some(news) = news else { return };
            self.take(news).await;
            self.show();
        }
    }

    async fn take(&mut self, news: News) {
        // First of all: an answer that waited while we were frozen must not bring back a right
        // for which the guard has fenced already.
        self.drop_right_that_is_over();
        match news {
            News::Answered(asked, answer) => self.answered(asked, *answer).await,
            News::PeerAnswered(asked, answer) => self.peer_answered(asked, answer).await,
            News::PeerAsks(question, answer) => {
                // An asker that is gone needs no answer.
                drop(answer.send(self.answer_peer(&question)));
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
            News::Synchronised(step) => self.synchronised(step).await,
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
        if self.look.running {
            self.down = None;
        } else if self.down.is_none() {
            let ended = self.look.ended.clone();
            let why = ended.unwrap_or_else(|| "not started".to_owned());
            self.down = Some((self.clock.now(), why));
        }
        true
    }

    async fn look(&mut self) {
        if !self.refresh().await {
            return;
        }
        self.drop_right_that_is_over();
        self.keep_in_step().await;
        let now = self.clock.now();
        self.start_again(now).await;
        self.mark(now);
        self.synchronise();
    }

    fn drop_right_that_is_over(&mut self) {
        let now = self.clock.now();
        if self.holder.take_if(|holder| holder.is_over(now)).is_some() {
            tracing::warn!("the right to take writes ran out");
        }
    }

    /// Role and right must fit each other.
    async fn keep_in_step(&mut self) {
        if self.promoting.is_some() || !self.look.running {
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
        if self.look.set_up_as == Role::Standby && (armed || self.holder.is_some()) {
            // A promotion did not come about.
            self.renounce().await;
        } else if self.look.set_up_as == Role::Primary
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

    /// Whether it is down for no other reason than that it had no right.
    fn waits_for_right(&self) -> bool {
        let marked = self.look.fenced.is_some();
        self.look.set_up_as == Role::Primary
            && self.memory.fenced.is_none()
            && (marked || self.look.ended.is_none())
    }

    /// Starts a database that is down, where that is nobody else's decision.
    async fn start_again(&mut self, now: MonoTime) {
        let Some((since, _)) = self.down.clone() else {
            return;
        };
        let pause = Duration::from_secs(1);
        if self.last_start.is_some_and(|last| now.since(last) < pause) {
            return;
        }
        if self.look.set_up_as == Role::Standby {
            return self.start_standby().await;
        }
        let Some(holder) = self.holder.clone() else {
            return;
        };
        let down_for = now.since(since);
        let within_grace = down_for < self.restart_grace;
        let abandoned = down_for >= self.restart_grace.saturating_add(NOBODY_TOOK_OVER);
        let may = self.waits_for_right() || within_grace || abandoned;
        if self.memory.fenced.is_none() && may {
            self.start_primary(&holder, now).await;
        }
    }

    async fn start_standby(&mut self) {
        self.last_start = Some(self.clock.now());
        match self.database.start_standby().await {
            Ok(()) => tracing::info!("standby started"),
            Err(error) => tracing::error!(%error, "the standby does not start"),
        }
    }

    async fn start_primary(&mut self, holder: &Holder, now: MonoTime) {
        self.last_start = Some(now);
        let epoch = holder.epoch();
        if let Some((marked, _)) = &self.look.fenced {
            // Fenced by an expired lease, and the lease is ours again.
            if *marked > epoch {
                return;
            }
            if let Err(error) = self.database.unfence(epoch).await {
                tracing::error!(%error, "the fence cannot be lifted");
                return;
            }
        }
        match self.database.start_primary(&self.right_of(holder)).await {
            Ok(()) => tracing::info!(epoch = epoch.0, "primary started"),
            Err(error) => tracing::error!(%error, "the primary does not start"),
        }
    }

    fn right_of(&self, holder: &Holder) -> LocalRight {
        let fence = self
            .memory
            .timers
            .as_ref()
            .map_or(STAGES_UNTIL_TOLD, |timers| timers.fence);
        LocalRight {
            epoch: holder.epoch(),
            until: holder.deadline(),
            fence,
        }
    }

    async fn push_right(&mut self) {
        let Some(holder) = &self.holder else { return };
        let right = self.right_of(holder);
        if let Err(error) = self.database.hold_right(&right).await {
            // Not pushed: the guard will fence, and then says so.
            tracing::warn!(%error, "the guard's deadline was not pushed");
        }
    }

    async fn answered(&mut self, asked: MonoTime, answer: ReportAnswer) {
        self.restart_grace = answer.restart_grace;
        self.told = Some(Told(answer.window));
        let mut memory = self.memory.clone();
        memory.timers = Some(answer.timers.clone());
        let ours = answer.holder.as_ref() == Some(&self.site);
        if ours {
            memory.epoch = memory.epoch.max(answer.epoch);
            if memory.fenced.is_some_and(|fenced| fenced <= answer.epoch) {
                memory.fenced = None;
            }
        }
        if !self.remember(memory).await {
            return;
        }
        if let Some(Ok(grant)) = &answer.grant {
            match &mut self.holder {
                Some(holder) => holder.renewed(grant.epoch, asked, answer.timers),
                None => self.holder = Some(Holder::granted(grant.epoch, asked, answer.timers)),
            }
            // One that was held up on its way may be over by now: nothing is begun under it.
            self.drop_right_that_is_over();
            self.push_right().await;
            self.begin_promotion();
            self.look().await;
        }
        let other_holds = answer.holder.is_some() && !ours;
        let promoting = self.promoting.as_ref().map(|promoting| promoting.epoch);
        self.give_up_promotion(other_holds && promoting.is_some_and(|epoch| epoch <= answer.epoch));
        if other_holds && answer.epoch > self.memory.epoch {
            self.superseded(answer.epoch).await;
        }
    }

    async fn peer_answered(&mut self, asked: MonoTime, answer: PeerAnswer) {
        self.peer_answered = self.peer_answered.max(Some(asked));
        if answer.superseded {
            return self.superseded(answer.epoch).await;
        }
        if let Some(holder) = &mut self.holder {
            holder.peer_answered(asked);
            self.push_right().await;
        }
    }

    /// Another site holds the right in a later epoch, or is about to.
    async fn superseded(&mut self, epoch: Epoch) {
        if self.memory.fenced >= Some(epoch) || self.look.set_up_as == Role::Standby {
            return;
        }
        tracing::warn!(epoch = epoch.0, "superseded");
        if let Err(error) = self.fence(epoch, "superseded").await {
            tracing::error!(%error, "the fence is not proven");
        }
    }

    fn answer_peer(&self, question: &PeerQuestion) -> PeerAnswer {
        let AgentMemory { epoch, severed, .. } = self.memory;
        PeerAnswer {
            superseded: is_superseded(question.epoch, severed, epoch),
            epoch: epoch.max(severed.unwrap_or_default()),
        }
    }

    /// Keeps something; what cannot be kept was not done.
    async fn remember(&mut self, memory: AgentMemory) -> bool {
        if memory == self.memory {
            return true;
        }
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

    fn show(&self) {
        let now = self.clock.now();
        let database = match &self.down {
            None => DatabaseState::Up,
            Some((since, _)) if self.waits_for_right() => DatabaseState::Waiting {
                since: now.since(*since),
            },
            Some((since, why)) => DatabaseState::Down {
                since: now.since(*since),
                why: why.clone(),
            },
        };
        let primary = self.look.set_up_as == Role::Primary;
        let facts = AgentFacts {
            database,
            fenced: self
                .memory
                .fenced
                .max(self.look.fenced.as_ref().map(|(epoch, _)| *epoch)),
            severed: self.memory.severed,
            guarded: self.guarded,
            peer: self.peer_answered.map(|asked| now.since(asked)),
            synchrony: self.shown_synchrony(now),
        };
        let asks = self.promoting.is_some() || (primary && self.memory.fenced.is_none());
        self.shown.send_replace(Shown {
            epoch: self.memory.epoch,
            asks,
            right: self.holder.as_ref().map(Holder::deadline),
            primary: primary && self.look.running,
            facts,
            at: now,
        });
    }
}

fn lost(error: StoreError) -> EffectError {
    EffectError::Failed(error.to_string())
}

/// The right that a guard still holds from the agent before this one.
fn adopt(memory: &AgentMemory, look: &LocalLook, now: MonoTime) -> Option<Holder> {
    let (epoch, until) = look.right.filter(|(_, until)| *until > now)?;
    let timers = memory.timers.clone()?;
    let asked = until.minus(timers.lease_ttl).min(now);
    look.running.then(|| Holder::granted(epoch, asked, timers))
}
