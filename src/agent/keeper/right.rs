//! The write lease, as far as this site holds it: counted from before its request, pushed to the
//! guard, and lost to another site.

use std::time::Duration;

use tracing::Instrument;

use super::durability::Told;
use super::troubles::Trouble;
use super::{Keeper, News, SQL};
use crate::engine::lease::Holder;
use crate::engine::policy::FenceStages;
use crate::engine::topology::Role;
use crate::engine::units::{Epoch, MonoTime};
use crate::ports::{AgentMemory, EffectError, LocalLook, LocalRight};
use crate::wire::sealed::SignedOrder;
use crate::wire::{Order, PeerAnswer, ReportAnswer, What};

/// The stages of a fence before any policy was received: those of `standard.toml`.
const STAGES_UNTIL_TOLD: FenceStages = FenceStages {
    fast: Duration::from_secs(6),
    immediate: Duration::from_secs(3),
    kill: Duration::from_secs(2),
};

impl Keeper {
    pub(super) fn drop_right_that_is_over(&mut self) {
        let now = self.clock.now();
        if self.holder.take_if(|holder| holder.is_over(now)).is_some() {
            tracing::warn!("the write lease expired");
        }
    }

    pub(super) fn right_of(&self, holder: &Holder) -> LocalRight {
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

    pub(super) async fn push_right(&mut self) {
        let Some(holder) = &self.holder else { return };
        let right = self.right_of(holder);
        match self.database.server.hold_right(&right).await {
            Ok(()) => self.well(Trouble::DeadlineNotPushed),
            Err(error) => self.trouble(Trouble::DeadlineNotPushed, &error),
        }
    }

    pub(super) async fn answered(&mut self, asked: MonoTime, answer: ReportAnswer) {
        self.answered = Some(asked);
        self.restart_grace = answer.restart_grace;
        self.told = Some(Told(answer.window));
        self.slot.name.clone_from(&answer.standby_slot);
        self.log = answer.log.or(self.log);
        self.tell_refusal(answer.grant.as_ref());
        let mut memory = self.memory.clone();
        memory.timers = Some(answer.timers.clone());
        memory.peer = answer.peer.or(memory.peer);
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
            // A delayed answer may have expired by now: nothing is begun under it.
            self.drop_right_that_is_over();
            self.push_right().await;
            self.begin_promotion().await;
            self.look().await;
        }
        let other_holds = answer.holder.is_some() && !ours;
        let promoting = self.promoting.as_ref().map(|promoting| promoting.epoch);
        self.give_up_promotion(other_holds && promoting.is_some_and(|epoch| epoch <= answer.epoch));
        if other_holds && answer.epoch > self.memory.epoch {
            self.superseded(answer.epoch).await;
        }
        if other_holds {
            self.reconnect_after(answer.epoch);
        }
    }

    /// Reconnects a standby that was severed for a plan that failed: in this epoch, not earlier
    /// than that plan's, the other site holds the lease. While a plan relies on a sever, or after
    /// its promotion, nobody says so. Runs beside the keeper, because SQL may block; retried with
    /// the next answer.
    fn reconnect_after(&mut self, epoch: Epoch) {
        let standby = self.look.runs_as == Some(Role::Standby);
        let promoting = self.promoting.is_some() || self.memory.promoting.is_some();
        let severed = self.memory.severed.filter(|severed| *severed <= epoch);
        let Some(severed) = severed.filter(|_| standby && !promoting && !self.reconnecting) else {
            return;
        };
        self.reconnecting = true;
        let database = self.database.clone();
        self.beside(
            async move { News::Reconnected(severed, database.succession.reconnect(SQL).await) },
        );
    }

    pub(super) async fn reconnected(&mut self, severed: Epoch, came: Result<(), EffectError>) {
        self.reconnecting = false;
        match came {
            Ok(()) if self.memory.severed == Some(severed) => {
                self.over(Trouble::NotReconnected);
                tracing::info!(
                    epoch = severed.0,
                    "the plan was taken back: connected again"
                );
                self.remember(AgentMemory {
                    severed: None,
                    ..self.memory.clone()
                })
                .await;
            }
            Ok(()) => {}
            Err(error) => self.trouble(Trouble::NotReconnected, &error),
        }
    }

    /// A standby needs no lease, and must not be fenced for lacking one.
    pub(super) async fn renounce(&mut self) {
        self.holder = None;
        if let Err(error) = self.database.server.release_right().await {
            tracing::warn!(%error, "the guard's deadline is not disarmed");
        }
    }

    /// The peer agent says that our lease is over. Its own statement moves nothing: it ends
    /// production only with the controller's order. But it no longer vouches for the lease either.
    pub(super) async fn told_superseded(&mut self, answer: &PeerAnswer) {
        match self.shown_order(answer) {
            Ok(order) => {
                self.disbelieved = None;
                let span = order.span();
                self.superseded(order.epoch).instrument(span).await;
            }
            // There is no right that the word could end: so it is answered to whoever has just begun
            // and knows no epoch yet, and to what was asked before the right there is now.
            Err(_) if !self.could_end_by(answer.epoch) => self.disbelieved = None,
            Err(why) => {
                if self.disbelieved.as_ref() != Some(&why) {
                    tracing::error!(%why, "the peer agent says `superseded` and is not believed");
                }
                self.disbelieved = Some(why);
            }
        }
    }

    /// Whether a right is held that whoever knows this epoch could call superseded.
    fn could_end_by(&self, known: Epoch) -> bool {
        let held = self.holder.as_ref().map(Holder::epoch);
        held.is_some_and(|held| known > held)
    }

    /// The controller's order that the other agent shows: one that was for that agent, and makes an
    /// end of our right.
    fn shown_order(&self, answer: &PeerAnswer) -> Result<Order, String> {
        let sealed = answer.order.clone();
        let sealed = sealed.ok_or("it shows no order of the controller")?;
        let signed = SignedOrder::open(sealed, self.controller.as_ref());
        let signed = signed.map_err(|error| error.to_string())?;
        let order = signed.order();
        if order.group != self.group || order.site != self.peer {
            let (site, group) = (&order.site, &order.group);
            return Err(format!("the order was for `{site}` of `{group}`"));
        }
        if !matches!(order.what, What::Sever | What::Promote) || order.check_only {
            return Err(format!("an order to {:?} ends no lease", order.what));
        }
        if order.epoch <= self.memory.epoch {
            let (epoch, ours) = (order.epoch, self.memory.epoch);
            return Err(format!(
                "the order is of epoch {epoch}, this site is in {ours}"
            ));
        }
        Ok(order.clone())
    }

    /// Another site holds the lease in a later epoch, or is about to.
    pub(super) async fn superseded(&mut self, epoch: Epoch) {
        if self.memory.fenced >= Some(epoch) || self.look.role() == Role::Standby {
            return;
        }
        tracing::warn!(epoch = epoch.0, "superseded");
        self.fence_and_tell(epoch, "superseded").await;
    }
}

/// The lease that a guard still holds from an earlier run of the agent.
pub(super) fn adopt(memory: &AgentMemory, look: &LocalLook, now: MonoTime) -> Option<Holder> {
    let (epoch, until) = look.right.filter(|(_, until)| *until > now)?;
    let timers = memory.timers.clone()?;
    let asked = until.minus(timers.lease_ttl).min(now);
    look.running()
        .then(|| Holder::granted(epoch, asked, timers))
}
