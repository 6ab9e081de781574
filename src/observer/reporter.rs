//! Tells the controller what the observer sees, as often as it looks, and at once when something
//! changed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::engine::format::PROGRAM;
use crate::engine::lasting::Lasting;
use crate::engine::topology::{GroupName, ObserverName};
use crate::ports::{Clock, ObserverLink};
use crate::wire::unsent::Unsent;
use crate::wire::{ObserverReport, Rhythm};

/// How to look before the controller ever said how.
pub const UNTIL_TOLD: Rhythm = Rhythm {
    every: Duration::from_millis(500),
    within: Duration::from_secs(1),
};

/// How long one report may take at most: longer would keep the next one from being sent.
const LONGEST_REPORT: Duration = Duration::from_secs(2);

/// What the loop works with.
#[derive(Debug)]
pub struct Reporter {
    /// The group.
    pub group: GroupName,
    /// Our name.
    pub name: ObserverName,
    /// The way out.
    pub link: Arc<dyn ObserverLink>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// What the controller last said about how to look.
    pub rhythm: watch::Sender<Rhythm>,
}

impl Reporter {
    /// Reports for ever. A controller that rejects us may be told of us later, so that this goes
    /// on too.
    pub async fn report(&self, mut unsent: Unsent) {
        let mut refused = Lasting::default();
        loop {
            let began = self.clock.now();
            let report = ObserverReport {
                group: self.group.clone(),
                name: self.name.clone(),
                observations: unsent.pack(began),
                heard: unsent.heard(began),
                version: PROGRAM.to_owned(),
            };
            let every = self.rhythm.borrow().every;
            let mut again = false;
            let within = every.saturating_mul(2).min(LONGEST_REPORT);
            match self.link.report(&report, within).await {
                Ok(told) => {
                    let now = self.clock.now();
                    again = unsent.answered(told.intake, now);
                    if let Some(lasting) = refused.well(now) {
                        tracing::info!(
                            lasting.times,
                            lasting.ms,
                            "the controller takes reports again"
                        );
                    }
                    self.rhythm.send_if_modified(|rhythm| {
                        let changed = *rhythm != told.rhythm;
                        *rhythm = told.rhythm;
                        changed
                    });
                }
                Err(error) => {
                    if let Some(lasting) = refused.again(&error.to_string(), self.clock.now()) {
                        let what = "the controller does not take the report";
                        tracing::warn!(%error, lasting.times, lasting.ms, "{what}");
                    }
                }
            }
            if again {
                continue;
            }
            let took = self.clock.now().since(began);
            tokio::select! {
                biased;
                () = self.clock.sleep(every.saturating_sub(took)) => {}
                () = unsent.change() => {}
            }
        }
    }
}
