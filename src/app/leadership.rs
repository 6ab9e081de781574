//! Whether this controller may act, if there could be several: a lease of its own, counted from
//! before its request. Every effect checks [`Leadership::left`] first, so that a controller that
//! was frozen and replaced meanwhile does nothing more.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::engine::lasting::Lasting;
use crate::engine::policy::LeaseTimers;
use crate::engine::units::MonoTime;
use crate::ports::{Clock, EffectError, LeaseStore};

/// Whether this controller leads.
#[derive(Debug, Clone)]
pub struct Leadership {
    clock: Arc<dyn Clock>,
    /// When the lead ends; `None` is never.
    until: Option<watch::Receiver<MonoTime>>,
}

/// Another controller leads, or may lead by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this controller does not lead any more: another one may")]
pub struct NotLeading;

impl From<NotLeading> for EffectError {
    fn from(not: NotLeading) -> Self {
        EffectError::Failed(not.to_string())
    }
}

impl Leadership {
    /// For a controller that is alone by other means: the lock on its decision log.
    pub fn alone(clock: Arc<dyn Clock>) -> Self {
        Self { clock, until: None }
    }

    /// How much longer it certainly leads.
    pub fn left(&self) -> Result<Duration, NotLeading> {
        let Some(until) = &self.until else {
            return Ok(Duration::MAX);
        };
        let left = self.clock.now().until(*until.borrow());
        if left.is_zero() {
            return Err(NotLeading);
        }
        Ok(left)
    }
}

/// Keeps leading for as long as it can.
#[derive(Debug)]
pub struct Keeping {
    store: Arc<dyn LeaseStore>,
    clock: Arc<dyn Clock>,
    timers: LeaseTimers,
    until: watch::Sender<MonoTime>,
}

/// Waits until this controller leads. The lead is as long as a site's write lease, and is renewed
/// as often.
pub async fn seek(
    store: Arc<dyn LeaseStore>,
    clock: Arc<dyn Clock>,
    timers: LeaseTimers,
) -> (Leadership, Keeping) {
    let mut unknown = Lasting::default();
    loop {
        let asked = clock.now();
        match store.lead(timers.lease_ttl).await {
            Ok(true) => {
                let (sender, until) = watch::channel(asked.plus(timers.lease_ttl));
                let leadership = Leadership {
                    clock: Arc::clone(&clock),
                    until: Some(until),
                };
                let keeping = Keeping {
                    store,
                    clock,
                    timers,
                    until: sender,
                };
                return (leadership, keeping);
            }
            Ok(false) => {}
            Err(error) => {
                if let Some(lasting) = unknown.again(&error.to_string(), asked) {
                    tracing::warn!(%error, lasting.times, lasting.ms, "who leads is not known");
                }
            }
        }
        clock.sleep(timers.renew_every).await;
    }
}

impl Keeping {
    /// Renews until the lead is over, or another controller has it.
    pub async fn run(self) -> NotLeading {
        loop {
            self.clock.sleep(self.timers.renew_every).await;
            let asked = self.clock.now();
            if asked >= *self.until.borrow() {
                return NotLeading;
            }
            match self.store.lead(self.timers.lease_ttl).await {
                Ok(true) => drop(self.until.send_replace(asked.plus(self.timers.lease_ttl))),
                Ok(false) => return NotLeading,
                Err(error) => tracing::warn!(%error, "the lead is not renewed"),
            }
        }
    }
}
