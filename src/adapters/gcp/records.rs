//! What the record sets of a managed zone mean, and which ones an answer needs. Sends nothing.

use std::collections::BTreeMap;

use google_cloud_dns_v1::model::{
    RRSetRoutingPolicy, RRSetRoutingPolicyWrrPolicy,
    RRSetRoutingPolicyWrrPolicyWrrPolicyItem as Item, ResourceRecordSet,
};
use serde::{Deserialize, Serialize};

use crate::adapters::dns;
use crate::adapters::weighted::{Weighted, epoch_of};
use crate::engine::answer::Answer;
use crate::engine::topology::SiteName;
use crate::engine::units::Epoch;

/// What the zone holds of ours, as Google wrote it, with whatever else it said of it: the token of
/// `Versioned`, and what a deletion must repeat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Held {
    pub(super) record: Option<ResourceRecordSet>,
    pub(super) note: Option<ResourceRecordSet>,
}

impl Held {
    /// Its record sets.
    pub(super) fn sets(&self) -> Vec<ResourceRecordSet> {
        self.record.iter().chain(&self.note).cloned().collect()
    }

    /// A record set that is not there: a note that nobody writes.
    pub(super) fn absent(weighted: &Weighted) -> ResourceRecordSet {
        plain_set(weighted, "rehearsal")
    }

    /// The answer that these record sets give; an error that shows what is not ours.
    pub(super) fn answer(&self, weighted: &Weighted) -> Result<Answer, String> {
        let sites = weighted.values().map(|(site, _)| (site.clone(), 0));
        let mut weights: BTreeMap<SiteName, u16> = sites.collect();
        for (site, item) in self.items(weighted)? {
            weights.insert(site, share(item.weight)?);
        }
        let epoch = self.epoch(weighted)?;
        Ok(Answer { weights, epoch })
    }

    /// Each site's item of the record set.
    fn items(&self, weighted: &Weighted) -> Result<BTreeMap<SiteName, &Item>, String> {
        let Some(set) = &self.record else {
            return Ok(BTreeMap::new());
        };
        let place = format!("`{}` {}", weighted.record, weighted.kind.wire());
        let policy = set.routing_policy.as_ref().ok_or_else(|| {
            format!("{place} is a plain record, not a weighted one: delete it, the next move makes it anew")
        })?;
        let wrr = policy.wrr.as_ref().filter(|_| policy.geo.is_none());
        let wrr = wrr
            .filter(|_| policy.primary_backup.is_none())
            .ok_or_else(|| format!("{place} is routed by another policy than `wrr`"))?;
        let mut found = BTreeMap::new();
        for item in &wrr.items {
            let shown = item.rrdatas.join(", ");
            if policy.health_check.is_some() || item.health_checked_targets.is_some() {
                return Err(format!(
                    "{place} is health-checked at `{shown}`: Google would lead users elsewhere by itself"
                ));
            }
            let owner = match item.rrdatas.as_slice() {
                [value] => weighted.owner_of(value),
                [..] => None,
            };
            let site = owner.ok_or_else(|| {
                format!("{place} holds `{shown}`, which is no configured site's: configure its value, or remove it")
            })?;
            if found.insert(site.clone(), item).is_some() {
                return Err(format!(
                    "{place} holds `{shown}` of site `{site}` twice: remove one"
                ));
            }
        }
        Ok(found)
    }

    fn epoch(&self, weighted: &Weighted) -> Result<Option<Epoch>, String> {
        let Some(note) = &self.note else {
            return Ok(None);
        };
        match note.rrdatas.as_slice() {
            [value] if note.routing_policy.is_none() => epoch_of(value).map(Some),
            [..] => Err(format!(
                "`{}` is `{}`, not a note of ours: remove it",
                weighted.note,
                note.rrdatas.join(", ")
            )),
        }
    }

    /// The record sets for an answer, in place of these.
    pub(super) fn replaced_by(&self, to: &Answer, weighted: &Weighted) -> Result<Self, String> {
        weighted.can_say(to)?;
        let old = self.items(weighted)?;
        let items = weighted.values().map(|(site, value)| {
            let weight = to.weights.get(site).copied().unwrap_or_default();
            let mut item = match old.get(site) {
                Some(item) => (*item).clone(),
                None => Item::new().set_rrdatas([value.clone()]),
            };
            // Signatures are Google's to make.
            item.signature_rrdatas.clear();
            item.set_weight(f64::from(weight))
        });
        let wrr = RRSetRoutingPolicyWrrPolicy::new().set_items(items);
        let record = ResourceRecordSet::new()
            .set_name(weighted.record.to_string())
            .set_type(weighted.kind.wire())
            .set_ttl(ttl(weighted))
            .set_routing_policy(RRSetRoutingPolicy::new().set_wrr(wrr));
        let note = dns::note_text(to).map(|text| plain_set(weighted, &text));
        Ok(Self {
            record: Some(record),
            note,
        })
    }

    /// The record sets in words, for a receipt.
    pub(super) fn shown(&self) -> Vec<String> {
        let items = |set: &ResourceRecordSet| {
            let wrr = set.routing_policy.as_ref()?.wrr.as_ref()?;
            let items = wrr.items.iter().map(|item| {
                let weight = item.weight.unwrap_or_default();
                format!("{} weight {weight}", item.rrdatas.join(", "))
            });
            Some(items.collect::<Vec<_>>().join("; "))
        };
        let set = |set: &ResourceRecordSet| {
            let name = set.name.as_deref().unwrap_or_default();
            let kind = set.r#type.as_deref().unwrap_or_default();
            let data = items(set).unwrap_or_else(|| set.rrdatas.join(", "));
            format!("{name} {kind} {data}")
        };
        self.record.iter().chain(&self.note).map(set).collect()
    }
}

fn plain_set(weighted: &Weighted, text: &str) -> ResourceRecordSet {
    ResourceRecordSet::new()
        .set_name(weighted.note.to_string())
        .set_type("TXT")
        .set_ttl(ttl(weighted))
        .set_rrdatas([format!("\"{text}\"")])
}

fn ttl(weighted: &Weighted) -> i32 {
    i32::try_from(weighted.ttl_seconds).unwrap_or(i32::MAX)
}

/// A weight as a whole number, rounded up, so that a site that is on stays on.
fn share(weight: Option<f64>) -> Result<u16, String> {
    let weight = weight.unwrap_or_default();
    let whole = format!("{:.0}", weight.ceil());
    whole
        .parse()
        .map_err(|_range| format!("a weight of {weight} is none of ours: write 0 to 65535"))
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn a_site_that_is_on_a_little_is_on() {
        assert_eq!(share(None), Ok(0));
        assert_eq!(share(Some(0.0)), Ok(0));
        assert_eq!(share(Some(0.25)), Ok(1));
        assert_eq!(share(Some(100.0)), Ok(100));
        for weight in [f64::NAN, f64::INFINITY, 70_000.0, -2.0] {
            assert!(share(Some(weight)).is_err(), "{weight}");
        }
    }
}
