//! Traffic by weighted records in Amazon Route 53: one record for each site, beside a TXT record
//! with the epoch note.
//!
//! Route 53 has no version of a record, but a batch that deletes each old record exactly and
//! creates each new one is applied as a whole or not at all, and a deletion must repeat every value
//! that is there: that is our compare-and-swap. Never an `UPSERT`, which overwrites whatever it
//! meets, and never a failed batch in pieces, which could leave both sites on or none.
//!
//! What records mean is in `records`, how to speak to the service in `api`.

mod records;
mod api;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;

pub use api::{Access, Api};
pub use records::{Settings, SiteRecord};

use self::records::{Held, Layout};
use crate::engine::answer::Answer;
use crate::engine::receipt::Receipt;
use crate::engine::topology::TargetName;
use crate::engine::units::as_millis;
use crate::ports::{Clock, Confirmation, EffectError, OutsideView, Still, Traffic, Versioned};

/// The name of a change's id in a receipt. Route 53 calls it `INSYNC` once every name server of the
/// zone has it, usually within 60 s.
const CHANGE: &str = "change";

/// The longest comment of a change that Route 53 takes, in characters.
const COMMENT_LIMIT: usize = 256;

/// A traffic target in a hosted zone.
#[derive(Debug)]
pub struct Route53 {
    layout: Layout,
    api: Api,
    clock: Arc<dyn Clock>,
    /// When a rehearsal last was let through, in milliseconds of the clock; 0: never.
    rehearsed: AtomicU64,
}

/// How long a rehearsal that was let through counts: each one stands in the account's audit trail.
const REHEARSE_EVERY: Duration = Duration::from_mins(10);

impl Route53 {
    /// Checks the settings; `Refused` says which one cannot work. Sends nothing.
    pub fn new(settings: Settings, api: Api, clock: Arc<dyn Clock>) -> Result<Self, EffectError> {
        let layout = Layout::new(settings).map_err(EffectError::Refused)?;
        let rehearsed = AtomicU64::new(0);
        Ok(Self {
            layout,
            api,
            clock,
            rehearsed,
        })
    }

    async fn held(&self) -> Result<Held, EffectError> {
        let (zone_id, note) = (self.layout.zone_id(), self.layout.note_text());
        let (record, kind) = self.layout.record();
        let places = self.api.list(zone_id, &record, kind);
        let notes = self.api.list(zone_id, &note, "TXT");
        let (places, notes) = tokio::try_join!(places, notes)?;
        self.layout
            .adopt(places, notes)
            .map_err(|cause| self.refused(&cause))
    }

    fn refused(&self, cause: &str) -> EffectError {
        EffectError::Refused(format!("`{}`: {cause}", self.layout.name()))
    }
}

#[async_trait]
impl Traffic for Route53 {
    fn name(&self) -> &TargetName {
        self.layout.name()
    }

    async fn read(&self) -> Result<Versioned, EffectError> {
        let held = self.held().await?;
        let refused = |cause: String| self.refused(&cause);
        let answer = self.layout.answer(&held).map_err(refused)?;
        let token = serde_json::to_string(&held).map_err(|cause| refused(cause.to_string()))?;
        Ok(Versioned { answer, token })
    }

    async fn apply(
        &self,
        from: &Versioned,
        to: &Answer,
        note: &str,
        still: Still<'_>,
    ) -> Result<Receipt, EffectError> {
        let old: Held = serde_json::from_str(&from.token)
            .map_err(|cause| self.refused(&format!("the token is for another target: {cause}")))?;
        let new = self
            .layout
            .content(to, &old)
            .map_err(|cause| self.refused(&cause))?;
        let comment: String = note.chars().take(COMMENT_LIMIT).collect();
        let zone_id = self.layout.zone_id();
        still()?;
        let change = self
            .api
            .swap(zone_id, old.records(), new.records(), &comment)
            .await?;
        Ok(Receipt::replacing(old.shown(), new.shown()).named(CHANGE, change))
    }

    async fn confirm(&self, receipt: &Receipt) -> Result<Confirmation, EffectError> {
        let change = receipt.ids.get(CHANGE);
        let change = change.ok_or_else(|| self.refused("the receipt has no change id"))?;
        Ok(if self.api.is_in_sync(change).await? {
            Confirmation::Made
        } else {
            Confirmation::Pending
        })
    }

    /// Route 53 has no dry run. But it says who may not write before it looks at what is written, and
    /// a batch that deletes a record that is not there is refused as a whole.
    async fn rehearse(&self, _from: &Versioned) -> Result<(), EffectError> {
        let now = self.clock.now();
        let last = self.rehearsed.load(Ordering::Relaxed);
        if last != 0 && as_millis(now.0) < last.saturating_add(as_millis(REHEARSE_EVERY)) {
            return Ok(());
        }
        let absent = self.layout.absent();
        let zone_id = self.layout.zone_id();
        let sent = self
            .api
            .swap(zone_id, [&absent].into_iter(), [].into_iter(), "rehearsal")
            .await;
        match sent {
            Ok(_) | Err(EffectError::Conflict(_)) => {
                self.rehearsed.store(as_millis(now.0), Ordering::Relaxed);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn verify_outside(&self) -> Vec<OutsideView> {
        self.layout.weighted.verify_outside().await
    }
}
