//! Starts a database that is down, where that is nobody else's decision.

use std::time::Duration;

use super::Keeper;
use crate::engine::lease::Holder;
use crate::engine::topology::Role;
use crate::engine::units::MonoTime;

/// How long a database that nobody failed over from stays down before it is started again, on top
/// of the grace for a local restart.
const NOBODY_TOOK_OVER: Duration = Duration::from_secs(5);

impl Keeper {
    /// Whether it is down for no other reason than that it had no right.
    pub(super) fn waits_for_right(&self) -> bool {
        let marked = self.look.fenced.is_some();
        self.look.set_up_as == Role::Primary
            && self.memory.fenced.is_none()
            && (marked || self.look.ended.is_none())
    }

    /// Starts a database that is down, where that is nobody else's decision.
    pub(super) async fn start_again(&mut self, now: MonoTime) {
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
            Ok(()) => {
                tracing::info!("standby started");
                self.rehearse_anew();
                // PostgreSQL forgets with its end what it was told to do.
                self.remember_promoting(None).await;
            }
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
}
