//! Keeps the standby synchronous if the controller requires it. The rules are the engine's
//! (`engine/synchrony.rs`); here each step runs beside the keeper, because SQL may block.

use super::troubles::Trouble;
use super::{Keeper, News, SQL};
use crate::engine::synchrony::{RpoWindow, SyncFacts, SyncLook, SyncMove};
use crate::engine::topology::Role;
use crate::engine::units::{Lsn, MonoTime};
use crate::ports::{AgentMemory, EffectError};

/// What the controller reports about the RPO window; nothing if it requires nothing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Told(pub(super) Option<RpoWindow>);

/// The result of a step.
#[derive(Debug)]
pub enum Step {
    /// Of a probe that began at this moment.
    Looked(MonoTime, Result<SyncLook, EffectError>),
    /// Of making commits wait.
    Waits(Result<Lsn, EffectError>),
    /// Of letting them go on.
    GoesOn(Result<(), EffectError>),
}

impl Keeper {
    /// Starts a probe of the standby, unless a step is already running.
    pub(super) fn synchronise(&mut self) {
        let primary = self.look.role() == Role::Primary && self.look.running();
        let Some(Told(window)) = self.told else {
            return;
        };
        let concerned = window.is_some() || self.memory.closed.is_some();
        let free = !self.synchronising && self.promoting.is_none();
        if !(primary && concerned && free && self.holder.is_some()) {
            return;
        }
        self.synchronising = true;
        let (database, peer) = (self.database.clone(), self.peer.clone());
        let began = self.clock.now();
        self.beside(async move {
            let looked = database.synchronous.look_at_standby(&peer, SQL).await;
            News::Synchronised(Step::Looked(began, looked))
        });
    }

    /// Handles the end of a step: what it saw determines the next one.
    pub(super) async fn synchronised(&mut self, step: Step) {
        self.synchronising = false;
        match step {
            Step::Looked(began, Ok(look)) => {
                let closed = self.memory.closed;
                let told = self.told.and_then(|told| told.0);
                let next = self.synchrony.seen(began, look, told, closed);
                self.make(next).await;
            }
            Step::Looked(_, Err(error)) => {
                tracing::debug!(%error, "the standby is not seen from its primary");
            }
            Step::Waits(Ok(from)) => {
                tracing::info!(%from, "commits wait for the standby");
                self.over(Trouble::CommitsDoNotWait);
                self.synchrony.waits_from(from);
            }
            Step::Waits(Err(error)) => {
                self.trouble(Trouble::CommitsDoNotWait, &error);
                self.synchrony.refused(error.to_string());
            }
            Step::GoesOn(Ok(())) => {
                tracing::warn!("commits go on without the standby");
                self.over(Trouble::CommitsMayWait);
            }
            Step::GoesOn(Err(error)) => self.trouble(Trouble::CommitsMayWait, &error),
        }
    }

    async fn make(&mut self, next: SyncMove) {
        let (database, peer) = (self.database.clone(), self.peer.clone());
        match next {
            SyncMove::Nothing => {}
            SyncMove::Wait => {
                self.synchronising = true;
                self.beside(async move {
                    let waits = database.synchronous.wait_for_standby(&peer, SQL).await;
                    News::Synchronised(Step::Waits(waits))
                });
            }
            SyncMove::GoOn => {
                self.synchronising = true;
                self.beside(async move {
                    let goes_on = database.synchronous.go_on_alone(SQL).await;
                    News::Synchronised(Step::GoesOn(goes_on))
                });
            }
            SyncMove::Close(window) => {
                // Durable before it is reported: from here on the old permission is void.
                let closed = Some(window);
                self.remember(AgentMemory {
                    closed,
                    ..self.memory.clone()
                })
                .await;
            }
        }
    }

    /// The report on it: only from a primary for which the controller requires it.
    pub(super) fn shown_synchrony(&self, now: MonoTime) -> Option<SyncFacts> {
        self.told?.0?;
        if self.look.role() == Role::Standby {
            return None;
        }
        self.synchrony.facts(now, self.memory.closed)
    }
}
