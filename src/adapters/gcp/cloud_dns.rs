//! Traffic by a weighted record set in Google Cloud DNS, beside a TXT record with the epoch note.
//!
//! A change deletes and adds record sets as a whole or not at all, and a deletion must repeat exactly
//! what is there: that is our compare-and-swap. Never a `patch` of a record set, where the last
//! writer wins, and never a failed change in pieces.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use google_cloud_dns_v1::client::{Changes, ManagedZones, ResourceRecordSets};
use google_cloud_dns_v1::model::change::Status;
use google_cloud_dns_v1::model::{Change, ResourceRecordSet};
use hickory_proto::rr::Name;

use super::records::Held;
use super::{Access, Caller, Rehearsed, client, request_id};
use crate::adapters::weighted::{Place, Weighted};
use crate::engine::answer::Answer;
use crate::engine::receipt::Receipt;
use crate::engine::topology::{SiteName, TargetName};
use crate::ports::{Clock, Confirmation, EffectError, OutsideView, Still, Traffic, Versioned};

/// The name of a change's id in a receipt. Google calls a change `done` when it has told its name
/// servers, which need not have it yet.
const CHANGE: &str = "change";

/// How Google names the part of a change that does not fit what is there.
const DELETIONS: &str = "entity.change.deletions";

/// What one target is made of.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The target's name.
    pub name: TargetName,
    /// The project of the zone.
    pub project: String,
    /// The zone's name in the project, `shop-zone`.
    pub managed_zone: String,
    /// Where the record lies.
    pub place: Place,
    /// The value of each site's record.
    pub values: BTreeMap<SiteName, String>,
    /// How long one call to Google may take.
    pub timeout: Duration,
}

/// A traffic target in a managed zone.
#[derive(Debug)]
pub struct CloudDns {
    name: TargetName,
    project: String,
    managed_zone: String,
    weighted: Weighted,
    caller: Caller,
    zones: ManagedZones,
    sets: ResourceRecordSets,
    changes: Changes,
    /// The managed zone was seen to be that of our record.
    is_ours: AtomicBool,
    rehearsed: Rehearsed,
}

impl CloudDns {
    /// Checks the settings; `Refused` says which one cannot work. Sends nothing.
    pub async fn new(
        settings: Settings,
        access: &Access,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, EffectError> {
        let name = settings.name;
        let weighted = Weighted::new(settings.place, &settings.values)
            .map_err(|cause| EffectError::Refused(format!("`{name}`: {cause}")))?;
        Ok(Self {
            name,
            project: settings.project,
            managed_zone: settings.managed_zone,
            weighted,
            caller: Caller::new(access, settings.timeout, clock),
            zones: client!(ManagedZones::builder(), access),
            sets: client!(ResourceRecordSets::builder(), access),
            changes: client!(Changes::builder(), access),
            is_ours: AtomicBool::new(false),
            rehearsed: Rehearsed::default(),
        })
    }

    fn refused(&self, cause: &str) -> EffectError {
        EffectError::Refused(format!("`{}`: {cause}", self.name))
    }

    /// A zone of this name may be another one's, a private twin say: what is written there moves
    /// nobody.
    async fn see_the_zone(&self) -> Result<(), EffectError> {
        if self.is_ours.load(Ordering::Relaxed) {
            return Ok(());
        }
        let zone = self.zones.get();
        let zone = zone
            .set_project(&self.project)
            .set_managed_zone(&self.managed_zone);
        let found = self.caller.look(zone.send()).await?.dns_name;
        let found = found.unwrap_or_default();
        if found.to_ascii_lowercase() != self.weighted.zone.to_string() {
            return Err(self.refused(&format!(
                "managed zone `{}` is of `{found}`, not of `{}`",
                self.managed_zone, self.weighted.zone
            )));
        }
        self.is_ours.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// The record set of this name and type, if there is one.
    async fn set_of(
        &self,
        name: &Name,
        kind: &str,
    ) -> Result<Option<ResourceRecordSet>, EffectError> {
        let list = self.sets.list();
        let list = list
            .set_project(&self.project)
            .set_managed_zone(&self.managed_zone)
            .set_name(name.to_string())
            .set_type(kind);
        let found = self.caller.look(list.send()).await?.rrsets;
        let wanted = name.to_string();
        let same = |set: &ResourceRecordSet| {
            let name = set.name.as_deref().unwrap_or_default();
            name.eq_ignore_ascii_case(&wanted) && set.r#type.as_deref() == Some(kind)
        };
        Ok(found.into_iter().find(same))
    }

    async fn held(&self) -> Result<Held, EffectError> {
        self.see_the_zone().await?;
        let (record, note) = tokio::try_join!(
            self.set_of(&self.weighted.record, self.weighted.kind.wire()),
            self.set_of(&self.weighted.note, "TXT"),
        )?;
        Ok(Held { record, note })
    }

    /// Deletes and adds in one change; its id, and the name that we gave the request.
    async fn swap(
        &self,
        deletions: Vec<ResourceRecordSet>,
        additions: Vec<ResourceRecordSet>,
        still: Still<'_>,
    ) -> Result<(String, String), EffectError> {
        let request = request_id()?;
        let body = Change::new()
            .set_deletions(deletions)
            .set_additions(additions);
        let create = self.changes.create();
        let create = create
            .set_project(&self.project)
            .set_managed_zone(&self.managed_zone)
            .set_client_operation_id(request.clone())
            .set_body(body);
        self.caller.ready().await?;
        still()?;
        let sent = self.caller.change(create.send()).await;
        let made = sent.map_err(|error| match error {
            // A deletion of what is not there is "not found", as the zone would be.
            EffectError::Refused(text) if text.contains(DELETIONS) => EffectError::Conflict(text),
            other @ (EffectError::Failed(_)
            | EffectError::Refused(_)
            | EffectError::Unknown(_)
            | EffectError::Late(_)
            | EffectError::Conflict(_)) => other,
        })?;
        let id = made.id.ok_or_else(|| {
            EffectError::Unknown("Google answers to a change without an id".to_owned())
        })?;
        Ok((id, request))
    }

    fn parse(&self, token: &str) -> Result<Held, EffectError> {
        serde_json::from_str(token)
            .map_err(|cause| self.refused(&format!("the token is not of this target: {cause}")))
    }
}

#[async_trait]
impl Traffic for CloudDns {
    fn name(&self) -> &TargetName {
        &self.name
    }

    async fn read(&self) -> Result<Versioned, EffectError> {
        let held = self.held().await?;
        let refused = |cause: String| self.refused(&cause);
        let answer = held.answer(&self.weighted).map_err(refused)?;
        let token = serde_json::to_string(&held).map_err(|cause| refused(cause.to_string()))?;
        Ok(Versioned { answer, token })
    }

    async fn apply(
        &self,
        from: &Versioned,
        to: &Answer,
        _note: &str,
        still: Still<'_>,
    ) -> Result<Receipt, EffectError> {
        let old = self.parse(&from.token)?;
        let new = old
            .replaced_by(to, &self.weighted)
            .map_err(|cause| self.refused(&cause))?;
        let receipt = Receipt::replacing(old.shown(), new.shown());
        let (change, request) = self.swap(old.sets(), new.sets(), still).await?;
        Ok(receipt.named(CHANGE, change).named("request", request))
    }

    async fn confirm(&self, receipt: &Receipt) -> Result<Confirmation, EffectError> {
        let change = receipt.ids.get(CHANGE);
        let change = change.ok_or_else(|| self.refused("the receipt has no change id"))?;
        let get = self.changes.get();
        let get = get
            .set_project(&self.project)
            .set_managed_zone(&self.managed_zone)
            .set_change_id(change);
        let found = self.caller.look(get.send()).await?;
        Ok(if found.status == Some(Status::Done) {
            Confirmation::Made
        } else {
            Confirmation::Pending
        })
    }

    /// Cloud DNS has no dry run. But it says who may not write before it looks at what is written,
    /// and a change that deletes a record that is not there is refused as a whole.
    async fn rehearse(&self, _from: &Versioned) -> Result<(), EffectError> {
        if self.rehearsed.lately(self.caller.clock.as_ref()) {
            return Ok(());
        }
        let absent = Held::absent(&self.weighted);
        match self.swap(vec![absent], Vec::new(), &|| Ok(())).await {
            Ok(_) | Err(EffectError::Conflict(_)) => {
                self.rehearsed.now(self.caller.clock.as_ref());
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn verify_outside(&self) -> Vec<OutsideView> {
        self.weighted.verify_outside().await
    }
}
