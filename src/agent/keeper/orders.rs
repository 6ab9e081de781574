//! The controller's orders, and how they are obeyed. Each order may arrive twice and is idempotent.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tracing::{Instrument, Span};

use super::{Keeper, News, SQL};
use crate::engine::synchrony::Synchrony;
use crate::engine::topology::Role;
use crate::engine::units::{Epoch, MonoTime};
use crate::ports::{AgentMemory, EffectError, LocalDatabase, Workloads};
use crate::wire::sealed::{Sealed, SignedOrder};
use crate::wire::{Came, Order, OrderAnswer, What};

#[derive(Debug)]
pub(super) struct Promoting {
    pub(super) epoch: Epoch,
    /// That of the order: it begins with a grant that comes later.
    pub(super) span: Span,
    /// After this the order is void: it is not begun any more.
    until: MonoTime,
    begun: bool,
    waiting: Vec<oneshot::Sender<OrderAnswer>>,
}

impl Promoting {
    /// Tells everybody who waits that it certainly did not happen.
    fn give_up(self, why: &str) {
        for waiting in self.waiting {
            drop(waiting.send(Err(EffectError::Failed(why.to_owned()))));
        }
    }
}

impl Keeper {
    pub(super) async fn ordered(
        &mut self,
        signed: SignedOrder,
        answer: oneshot::Sender<OrderAnswer>,
    ) {
        let order = signed.order();
        let until = match self.check_order(order).and(self.valid_until(order)) {
            Ok(until) => until,
            Err(refused) => {
                drop(answer.send(Err(refused)));
                return;
            }
        };
        if order.what == What::Promote && !order.check_only {
            return self.promote(&signed, until, answer).await;
        }
        if matches!(
            order.what,
            What::StartWorkloads | What::StopWorkloads | What::AwaitWorkloads
        ) {
            return self.workloads(order, answer);
        }
        let came = self.obey(&signed).await;
        drop(answer.send(came));
    }

    /// When an order expires, on our own clock: it counts from a mark that we made. An expired
    /// order may come again with a newer mark.
    fn valid_until(&self, order: &Order) -> Result<MonoTime, EffectError> {
        let (now, made) = (self.clock.now(), MonoTime(order.mark.at));
        let until = made.plus(order.valid_for);
        let void = |why| {
            Err(EffectError::Failed(format!(
                "the order is not valid: {why}"
            )))
        };
        if order.mark.life != self.life {
            void("it is for this agent's predecessor")
        } else if now < made {
            void("its mark was not made yet")
        } else if now >= until {
            void("it was under way for too long")
        } else {
            Ok(until)
        }
    }

    fn check_order(&self, order: &Order) -> Result<(), EffectError> {
        let refuse = |why: String| Err(EffectError::Refused(why));
        // Any order of a plan makes it known: orders of earlier plans no longer count.
        let AgentMemory {
            epoch,
            severed,
            fenced,
            ..
        } = self.memory;
        let known = epoch
            .max(severed.unwrap_or_default())
            .max(fenced.unwrap_or_default());
        if order.group != self.group || order.site != self.site {
            refuse(format!(
                "the order is for `{}` of `{}`",
                order.site, order.group
            ))
        } else if let Some(other) = order.instance.filter(|wanted| *wanted != self.instance) {
            refuse(format!(
                "the order is for instance {other} of this site, and this is {}",
                self.instance
            ))
        } else if order.what == What::Promote && self.memory.desisted >= Some(order.plan) {
            refuse(format!("plan {} was given up here", order.plan))
        } else if order.what == What::Fence && self.holds_right_of(order.epoch) {
            // A late order: the plan was undone since, and the lease is ours again.
            refuse(format!(
                "this site holds the lease of epoch {} again",
                order.epoch
            ))
        } else if order.epoch < known {
            refuse(format!(
                "the order is of epoch {}, this site is in {known}",
                order.epoch
            ))
        } else {
            Ok(())
        }
    }

    fn holds_right_of(&self, epoch: Epoch) -> bool {
        let holder = self.holder.as_ref();
        holder.is_some_and(|right| right.epoch() >= epoch)
    }

    async fn obey(&mut self, signed: &SignedOrder) -> OrderAnswer {
        let order = signed.order();
        match order.what {
            What::Fence => {
                let said = self.fence(order.epoch, "ordered by the controller").await?;
                Ok(Came::Fenced { said })
            }
            What::Unfence => {
                let memory = AgentMemory {
                    fenced: None,
                    ..self.memory.clone()
                };
                self.kept(memory).await?;
                Ok(Came::Done)
            }
            // An operation beside the keeper would undo the one, and do the other.
            What::Sever | What::Reconnect if self.reconnecting => Err(EffectError::Failed(
                "the standby is being connected again after an earlier plan".to_owned(),
            )),
            What::Sever => self.sever(order.epoch, signed.sealed()).await,
            What::Reconnect => {
                self.database.succession.reconnect(SQL).await?;
                let memory = AgentMemory {
                    severed: None,
                    ..self.memory.clone()
                };
                self.kept(memory).await?;
                Ok(Came::Done)
            }
            What::Promote if self.promoting.is_some() => Err(under_way()),
            What::Promote => self.promotion_of(order.epoch).await,
            What::Desist => self.desist(order).await,
            What::StartWorkloads | What::StopWorkloads | What::AwaitWorkloads => Ok(Came::Done),
        }
    }

    /// The outcome of a promotion, whatever may have happened to it and to this agent.
    async fn promotion_of(&self, epoch: Epoch) -> OrderAnswer {
        match self.database.ledger.is_primary(SQL).await? {
            Some((timeline, position)) if self.memory.epoch == epoch => {
                // An agent that was killed right after the promotion did not get to it.
                self.database.ledger.write_epoch(epoch, SQL).await?;
                Ok(Came::Promoted {
                    timeline,
                    position,
                    already: true,
                })
            }
            // PostgreSQL finishes what it was told, whoever waits for it (postgres.md P16).
            None if self.memory.promoting.is_some() => Err(under_way()),
            Some(_) | None => Ok(Came::NotDone),
        }
    }

    /// Promises that no promotion of a plan will follow, however late an order arrives: only then
    /// may the other site take writes again. The promise is durable before it is given.
    async fn desist(&mut self, order: &Order) -> OrderAnswer {
        let begun = self.promoting.as_ref().is_some_and(|it| it.begun);
        if begun {
            return Err(under_way());
        }
        if !self.refresh().await {
            let text = "the guard does not report the state of the database";
            return Err(EffectError::Failed(text.to_owned()));
        }
        if self.look.role() == Role::Primary {
            return self.promotion_of(order.epoch).await;
        }
        if self.memory.promoting.is_some() {
            return Err(under_way());
        }
        self.kept(AgentMemory {
            desisted: self.memory.desisted.max(Some(order.plan)),
            ..self.memory.clone()
        })
        .await?;
        if let Some(promoting) = self.promoting.take() {
            promoting.give_up("the plan is given up");
        }
        self.renounce().await;
        Ok(Came::Done)
    }

    pub(super) async fn kept(&mut self, memory: AgentMemory) -> Result<(), EffectError> {
        if self.remember(memory).await {
            Ok(())
        } else {
            Err(EffectError::Failed(
                "the agent's state cannot be written".to_owned(),
            ))
        }
    }

    /// Severs. The record is durable before it is carried out: from then on the other site's agent
    /// is told that it is superseded.
    async fn sever(&mut self, epoch: Epoch, order: &Sealed) -> OrderAnswer {
        if self.look.role() == Role::Primary && self.memory.epoch >= epoch {
            let known = self.memory.epoch;
            return Err(EffectError::Unknown(format!(
                "this site was promoted in epoch {known}: the order comes from a log that is behind"
            )));
        }
        if self.look.role() == Role::Primary && self.memory.severed.is_none() {
            return Err(EffectError::Refused(
                "this site's database is no standby".to_owned(),
            ));
        }
        let severed = self.memory.severed.max(Some(epoch));
        self.kept(AgentMemory {
            severed,
            obeyed: Some(order.clone()),
            ..self.memory.clone()
        })
        .await?;
        let (position, replayed) = self.database.succession.sever(SQL).await?;
        Ok(Came::Severed {
            position,
            replayed,
            vouched_ago: Some(self.clock.now().since(self.vouched)),
        })
    }

    /// Runs beside the keeper: a supervisor on the host may take its time, the lease may not.
    fn workloads(&mut self, order: &Order, answer: oneshot::Sender<OrderAnswer>) {
        let Some(workloads) = self.workloads.clone() else {
            drop(answer.send(Ok(Came::Done)));
            return;
        };
        let (what, plan) = (order.what, order.plan);
        let started_for_it = self.memory.started_for == Some(plan);
        let sender = self.sender.clone();
        let work = async move {
            let came = match what {
                What::StartWorkloads => start_workloads(workloads.as_ref(), plan, &sender).await,
                // Only what was started for this plan is stopped.
                What::StopWorkloads if started_for_it => {
                    workloads.stop().await.map(|()| Came::Done)
                }
                What::AwaitWorkloads => workloads
                    .ready()
                    .await
                    .map(|ready| if ready { Came::Done } else { Came::NotDone }),
                What::StopWorkloads
                | What::Fence
                | What::Unfence
                | What::Sever
                | What::Reconnect
                | What::Promote
                | What::Desist => Ok(Came::Done),
            };
            drop(answer.send(came));
        };
        tokio::spawn(work.in_current_span());
    }

    /// Requests the lease in the plan's epoch; the promotion begins with its grant.
    async fn promote(
        &mut self,
        signed: &SignedOrder,
        until: MonoTime,
        answer: oneshot::Sender<OrderAnswer>,
    ) {
        let order = signed.order();
        let waiting = self
            .promoting
            .take_if(|promoting| promoting.epoch < order.epoch && !promoting.begun);
        if let Some(overtaken) = waiting {
            overtaken.give_up("a later plan promotes");
        }
        if let Some(promoting) = &mut self.promoting {
            promoting.waiting.push(answer);
            return;
        }
        if self
            .memory
            .fenced
            .is_some_and(|fenced| fenced >= order.epoch)
        {
            drop(answer.send(Err(EffectError::Refused("this site is fenced".to_owned()))));
            return;
        }
        let memory = AgentMemory {
            epoch: order.epoch,
            obeyed: Some(signed.sealed().clone()),
            ..self.memory.clone()
        };
        if let Err(error) = self.kept(memory).await {
            drop(answer.send(Err(error)));
            return;
        }
        self.promoting = Some(Promoting {
            epoch: order.epoch,
            span: Span::current(),
            until,
            begun: false,
            waiting: vec![answer],
        });
        self.begin_promotion().await;
    }

    /// The epoch of a promotion that may begin: somebody waits for it, and the lease is there.
    fn may_promote(&self) -> Option<Epoch> {
        let now = self.clock.now();
        let right = self.holder.as_ref().filter(|right| !right.is_over(now))?;
        let waits = |it: &&Promoting| !it.begun && it.epoch == right.epoch() && now < it.until;
        self.promoting.as_ref().filter(waits).map(|it| it.epoch)
    }

    /// Promotes, if that may begin. Its start is durable first: a later run of the agent must not
    /// mistake a promotion that has not happened yet for one that will not.
    pub(super) async fn begin_promotion(&mut self) {
        let Some(epoch) = self.may_promote() else {
            return;
        };
        let before = self.memory.promoting;
        if !self.remember_promoting(Some(epoch)).await {
            return;
        }
        let now = self.clock.now();
        let may = self.may_promote().is_some();
        let Some(promoting) = self.promoting.as_mut().filter(|_| may) else {
            self.remember_promoting(before).await;
            return;
        };
        promoting.begun = true;
        let within = now.until(promoting.until);
        // What is known about waiting commits is from an earlier time as a primary.
        self.synchrony = Synchrony::default();
        let (database, span) = (self.database.clone(), promoting.span.clone());
        let promotion =
            async move { News::Promoted(promote_and_mark(&database, epoch, within).await) };
        self.beside(promotion.instrument(span));
    }

    /// Stores that a promotion was begun, or that its outcome is known.
    pub(super) async fn remember_promoting(&mut self, promoting: Option<Epoch>) -> bool {
        self.remember(AgentMemory {
            promoting,
            ..self.memory.clone()
        })
        .await
    }

    /// Gives up a promotion that has not begun and will not: its time is over, or another site
    /// holds the lease in its epoch.
    pub(super) fn give_up_promotion(&mut self, elsewhere: bool) {
        let now = self.clock.now();
        let over = self
            .promoting
            .take_if(|promoting| !promoting.begun && (elsewhere || now >= promoting.until));
        if let Some(promoting) = over {
            promoting.give_up("the write lease was not granted");
        }
    }

    pub(super) async fn promoted(&mut self, came: OrderAnswer) {
        if came.is_ok() {
            let memory = AgentMemory {
                severed: None,
                fenced: None,
                promoting: None,
                ..self.memory.clone()
            };
            if !self.remember(memory).await {
                tracing::error!("promoted, but the agent's state still says severed");
            }
            // A marker of an earlier life as a primary would have the next end of this database
            // pass for a wait for the right.
            if let Err(error) = self.database.server.unfence(self.memory.epoch).await {
                tracing::error!(%error, "promoted, but the old fence marker stays");
            }
        }
        // Whoever learns that it failed may give the lease back to the other site at once.
        if matches!(came, Err(EffectError::Failed(_) | EffectError::Refused(_))) {
            self.remember_promoting(None).await;
            self.renounce().await;
        }
        tracing::info!(?came, "promotion");
        for waiting in self
            .promoting
            .take()
            .into_iter()
            .flat_map(|promoting| promoting.waiting)
        {
            drop(waiting.send(came.clone()));
        }
        self.look().await;
    }
}

fn under_way() -> EffectError {
    EffectError::Unknown("the promotion is under way".to_owned())
}

async fn promote_and_mark(database: &LocalDatabase, epoch: Epoch, within: Duration) -> OrderAnswer {
    let already = database.ledger.is_primary(SQL).await?.is_some();
    let (timeline, position) = database.succession.promote(within).await?;
    // From here the promotion has happened: whatever fails now leaves the outcome to be read.
    let unknown = |error: EffectError| EffectError::Unknown(error.to_string());
    database
        .ledger
        .write_epoch(epoch, SQL)
        .await
        .map_err(unknown)?;
    Ok(Came::Promoted {
        timeline,
        position,
        already,
    })
}

async fn start_workloads(
    workloads: &dyn Workloads,
    plan: u64,
    keeper: &mpsc::Sender<News>,
) -> OrderAnswer {
    if !workloads.ready().await.unwrap_or(false) {
        // The keeper is gone and remembers nothing; what is started then simply stays.
        drop(keeper.send(News::StartingFor(plan)).await);
        workloads.start().await?;
    }
    Ok(Came::Done)
}
