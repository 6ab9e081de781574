//! The questions and answers between the agents of the two sites, each with one instance of the
//! other; and what an agent remembers of the controller's log, for a controller that lost it.

use std::time::Duration;

use super::Keeper;
use crate::engine::instance::{Vouched, deals_with};
use crate::engine::lease::{Refusal, is_superseded};
use crate::engine::skew::Skew;
use crate::engine::units::MonoTime;
use crate::ports::AgentMemory;
use crate::wire::{Grant, PeerAnswer, PeerQuestion};

/// How often at most the end of the controller's log is stored just for itself: it moves with each
/// entry, and nothing waits for it.
const KEEP_LOG_EVERY: Duration = Duration::from_secs(30);

impl Keeper {
    pub(super) async fn peer_answered(&mut self, asked: MonoTime, answer: PeerAnswer) {
        self.peer_answered = self.peer_answered.max(Some(asked));
        let way = self.clock.now().since(asked);
        self.peer_clock = Some(Skew::measured(answer.wall, self.clock.wall(), way));
        if answer.superseded {
            return self.told_superseded(&answer).await;
        }
        if !answer.vouches || !deals_with(self.memory.peer, answer.instance) {
            tracing::debug!(
                vouches = answer.vouches,
                instance = ?answer.instance.map(|instance| instance.to_string()),
                "an answer that does not count: it is from, or for, another instance"
            );
            return;
        }
        self.deal_with(answer.instance).await;
        if let Some(holder) = &mut self.holder {
            holder.peer_answered(asked);
            self.push_right().await;
        }
    }

    /// Vouches for the asker, or not. The instance that it accepts is stored, so that no other one
    /// gets an answer after a restart.
    pub(super) async fn answer_peer(&mut self, question: &PeerQuestion) -> PeerAnswer {
        let AgentMemory {
            epoch,
            severed,
            peer,
            ..
        } = self.memory;
        let superseded = is_superseded(question.epoch, severed, epoch);
        let vouches = deals_with(peer, question.instance);
        if vouches {
            self.deal_with(question.instance).await;
            if !superseded {
                self.vouched = self.clock.now();
            }
        }
        PeerAnswer {
            superseded,
            order: self.memory.obeyed.clone().filter(|_| superseded),
            vouches,
            instance: Some(self.instance),
            epoch: epoch.max(severed.unwrap_or_default()),
            wall: self.clock.wall(),
        }
    }

    /// Accepts the first instance of the other site that it hears, until the controller names
    /// another.
    async fn deal_with(&mut self, peer: Option<crate::engine::instance::Instance>) {
        if self.memory.peer.is_none() && peer.is_some() {
            self.remember(AgentMemory {
                peer,
                ..self.memory.clone()
            })
            .await;
        }
    }

    pub(super) fn shown_vouched(&self, now: MonoTime) -> Vouched {
        Vouched {
            instance: self.memory.peer,
            age: now.since(self.vouched),
        }
    }

    /// Logs it once when the controller refuses the lease for a new reason.
    pub(super) fn tell_refusal(&mut self, grant: Option<&Result<Grant, Refusal>>) {
        let refused = grant.and_then(|grant| grant.as_ref().err());
        let telling = |refused: &Refusal| match refused {
            Refusal::OtherInstance { counts, .. } => (1, *counts),
            Refusal::LogBehind { .. } => (2, None),
            Refusal::LogUnwitnessed => (3, None),
            Refusal::Superseded { .. } | Refusal::FromTheFuture { .. } => (4, None),
        };
        let changed = refused.map(telling) != self.refused.as_ref().map(telling);
        self.refused = refused.cloned();
        match refused.filter(|_| changed) {
            Some(refusal @ Refusal::OtherInstance { .. }) => {
                tracing::error!(instance = %self.instance, %refusal, "this is a second instance of the site: it gets no write lease");
            }
            Some(refusal) => tracing::warn!(%refusal, "no write lease"),
            None => {}
        }
    }

    /// Occasionally stores the end of the controller's log.
    pub(super) async fn keep_log_mark(&mut self, now: MonoTime) {
        let due = now.since(self.log_kept) >= KEEP_LOG_EVERY;
        if due && self.log != self.memory.log {
            self.log_kept = now;
            let log = self.log;
            self.remember(AgentMemory {
                log,
                ..self.memory.clone()
            })
            .await;
        }
    }
}
