//! What the backends of a backend service mean, and which scalers an answer needs. Sends nothing.
//!
//! A weight of 100 is a scaler of 1, all of a site's capacity. The epoch note stands in the
//! `description` of each backend, behind what people wrote there: the list of backends is the one
//! thing that a change replaces whole, so that note and scalers change together.

use std::collections::{BTreeMap, BTreeSet};

use google_cloud_compute_v1::model::Backend;

use crate::adapters::dns;
use crate::engine::answer::Answer;
use crate::engine::topology::SiteName;
use crate::engine::units::Epoch;

/// The weight that is a scaler of 1.
const WHOLE: u16 = 100;
/// The least weight but 0: Google takes no scaler between 0 and 0.1.
const LEAST: u16 = 10;
/// How the note begins in a description.
const NOTE: &str = "[failover ";

/// Which groups of backends are whose.
#[derive(Debug)]
pub(super) struct Pool {
    groups: BTreeMap<SiteName, Vec<String>>,
}

impl Pool {
    /// Checks them; the error says what cannot work.
    pub(super) fn new(groups: BTreeMap<SiteName, Vec<String>>) -> Result<Self, String> {
        let mut seen = BTreeSet::new();
        for (site, ends) in &groups {
            if ends.is_empty() {
                return Err(format!("site `{site}` has no group: name one"));
            }
            for end in ends {
                let begins = ["zones/", "regions/", "global/", "projects/", "https://"];
                if !begins.iter().any(|begin| end.starts_with(begin)) {
                    return Err(format!(
                        "`{end}` is not the end of a group's URL: write it like `zones/europe-west3-a/networkEndpointGroups/shop`"
                    ));
                }
                if !seen.insert(end) {
                    return Err(format!("group `{end}` is of two sites, or named twice"));
                }
            }
        }
        Ok(Self { groups })
    }

    /// Whose backend it is.
    fn owner_of(&self, backend: &Backend) -> Option<&SiteName> {
        let url = backend.group.as_deref()?;
        let is = |end: &String| {
            let rest = url.strip_suffix(end.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('/'))
        };
        let mut groups = self.groups.iter();
        let owner = groups.find(|(_, ends)| ends.iter().any(is));
        owner.map(|(site, _)| site)
    }

    /// The answer that these backends give; an error that shows what is not ours. A site's weight is
    /// the mean of its backends, rounded up, so that one that is on a little is on.
    pub(super) fn answer(&self, backends: &[Backend]) -> Result<Answer, String> {
        let mut shares: BTreeMap<&SiteName, Vec<u16>> = BTreeMap::new();
        let mut epoch: Option<Epoch> = None;
        for backend in backends {
            let group = shown_group(backend);
            let site = self.owner_of(backend).ok_or_else(|| {
                format!(
                    "backend `{group}` is no configured site's: configure its group, or remove it"
                )
            })?;
            if backend.balancing_mode.is_none() {
                return Err(format!(
                    "backend `{group}` has no balancing mode, so that no capacity can be set: an internet or serverless group"
                ));
            }
            shares
                .entry(site)
                .or_default()
                .push(share(backend.capacity_scaler)?);
            epoch = epoch.max(note_of(backend)?);
        }
        let weight = |site: &SiteName| {
            let of = shares
                .get(site)
                .ok_or_else(|| format!("no backend of site `{site}` is in the backend service"))?;
            let sum: u32 = of.iter().copied().map(u32::from).sum();
            let mean = sum.div_ceil(u32::try_from(of.len()).unwrap_or(u32::MAX));
            let mean = u16::try_from(mean).unwrap_or(WHOLE);
            Ok((site.clone(), mean))
        };
        let weights = self.groups.keys().map(weight);
        let weights = weights.collect::<Result<_, String>>()?;
        Ok(Answer { weights, epoch })
    }

    /// All the backends, with the scalers for an answer.
    pub(super) fn replaced_by(
        &self,
        backends: &[Backend],
        to: &Answer,
    ) -> Result<Vec<Backend>, String> {
        // What cannot be read is not replaced.
        self.answer(backends)?;
        if to.sites_on().next().is_none() {
            return Err("every site would be drained: keep one on".into());
        }
        for (site, weight) in &to.weights {
            if !self.groups.contains_key(site) {
                return Err(format!("site `{site}` has no group here: configure it"));
            }
            if *weight != 0 && !(LEAST..=WHOLE).contains(weight) {
                return Err(format!(
                    "weight {weight} for site `{site}` cannot be written: Google takes 0 and {LEAST} to {WHOLE}"
                ));
            }
        }
        let note = dns::note_text(to);
        let changed = |backend: &Backend| {
            let weight = self.owner_of(backend).and_then(|site| to.weights.get(site));
            let weight = weight.copied().unwrap_or_default();
            let text = described(backend.description.as_deref(), note.as_deref());
            backend
                .clone()
                .set_capacity_scaler(f32::from(weight) / f32::from(WHOLE))
                .set_or_clear_description(text)
        };
        Ok(backends.iter().map(changed).collect())
    }

    /// The backends in words, for a receipt.
    pub(super) fn shown(backends: &[Backend]) -> Vec<String> {
        let shown = |backend: &Backend| {
            let scaler = backend.capacity_scaler.unwrap_or(1.0);
            let text = backend.description.as_deref().unwrap_or_default();
            let shown = format!("{} capacityScaler {scaler} {text}", shown_group(backend));
            shown.trim_end().to_owned()
        };
        backends.iter().map(shown).collect()
    }
}

/// A group without the part of its URL that all have.
fn shown_group(backend: &Backend) -> &str {
    let url = backend.group.as_deref().unwrap_or("without a group");
    url.split_once("/projects/").map_or(url, |(_, rest)| rest)
}

/// A scaler as a weight. One that is not there is 1.
fn share(scaler: Option<f32>) -> Result<u16, String> {
    let scaler = scaler.unwrap_or(1.0);
    let hundredths = format!("{:.0}", scaler * f32::from(WHOLE));
    match hundredths.parse() {
        Ok(0) if scaler > 0.0 => Ok(1),
        Ok(weight) if weight <= WHOLE => Ok(weight),
        Ok(_) | Err(_) => Err(format!("a capacity scaler of {scaler} is none")),
    }
}

/// The epoch in a backend's description, if a note of ours is there.
fn note_of(backend: &Backend) -> Result<Option<Epoch>, String> {
    let text = backend.description.as_deref().unwrap_or_default();
    let note = text.rsplit_once(NOTE).map(|(_, note)| note);
    let note = note.and_then(|note| note.strip_suffix(']'));
    note.map(dns::note_epoch).transpose()
}

/// A description with this note instead of an earlier one, behind what people wrote.
fn described(text: Option<&str>, note: Option<&str>) -> Option<String> {
    let text = text.unwrap_or_default();
    let own = text.rsplit_once(NOTE).map_or(text, |(own, _)| own);
    let note = note.map(|note| format!("{NOTE}{note}]"));
    let parts = [own.trim_end(), note.as_deref().unwrap_or_default()];
    let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    (!parts.is_empty()).then(|| parts.join(" "))
}

#[cfg(test)]
mod tests {
    use google_cloud_compute_v1::model::backend::BalancingMode;

    use super::*;
    use crate::engine::units::Epoch;

    const AWS: &str = "zones/a/networkEndpointGroups/aws";
    const GCP: [&str; 2] = [
        "zones/b/networkEndpointGroups/gcp",
        "zones/c/networkEndpointGroups/gcp",
    ];

    fn pool() -> Pool {
        let groups = [
            ("aws".parse().unwrap(), vec![AWS.to_owned()]),
            ("gcp".parse().unwrap(), GCP.map(str::to_owned).to_vec()),
        ];
        Pool::new(groups.into()).unwrap()
    }

    fn backend(end: &str, scaler: impl Into<Option<f32>>) -> Backend {
        Backend::new()
            .set_group(format!(
                "https://www.googleapis.com/compute/v1/projects/p/{end}"
            ))
            .set_balancing_mode(BalancingMode::Rate)
            .set_or_clear_capacity_scaler(scaler.into())
    }

    fn answer(aws: u16, gcp: u16, epoch: u64) -> Answer {
        let weights = [("aws".parse().unwrap(), aws), ("gcp".parse().unwrap(), gcp)];
        Answer {
            weights: weights.into(),
            epoch: Some(Epoch(epoch)),
        }
    }

    fn three(aws: f32, gcp: [f32; 2]) -> Vec<Backend> {
        vec![
            backend(AWS, aws),
            backend(GCP[0], gcp[0]),
            backend(GCP[1], gcp[1]),
        ]
    }

    #[test]
    fn a_site_that_is_on_a_little_is_on_and_one_without_a_scaler_is_on_whole() {
        let weights = |backends: &[Backend]| {
            let answer = pool().answer(backends).unwrap();
            answer.weights.into_values().collect::<Vec<_>>()
        };
        assert_eq!(weights(&three(0.0, [1.0, 1.0])), [0, 100]);
        assert_eq!(weights(&three(1.0, [0.0, 0.1])), [100, 5]);
        assert_eq!(weights(&three(0.29, [0.0, 0.0])), [29, 0]);
        let mut unset = three(0.0, [1.0, 1.0]);
        unset[0] = backend(AWS, None);
        assert_eq!(weights(&unset), [100, 100]);
    }

    #[test]
    fn a_change_replaces_scalers_and_notes_and_nothing_else() {
        let mut old = three(1.0, [0.0, 0.0]);
        old[0] = old[0]
            .clone()
            .set_description("the old cloud")
            .set_max_rate_per_endpoint(7.5_f32);
        let to = answer(0, 100, 7);
        let new = pool().replaced_by(&old, &to).unwrap();
        assert_eq!(pool().answer(&new), Ok(to.clone()));
        assert_eq!(new[0].max_rate_per_endpoint, Some(7.5));
        let text = new[0].description.as_deref();
        assert_eq!(text, Some("the old cloud [failover epoch=7 site=gcp]"));
        assert_eq!(
            new[1].description.as_deref(),
            Some("[failover epoch=7 site=gcp]")
        );
        let later = pool().replaced_by(&new, &answer(100, 0, 8)).unwrap();
        let text = later[0].description.as_deref();
        assert_eq!(text, Some("the old cloud [failover epoch=8 site=aws]"));
        let sent = serde_json::to_string(&new).unwrap();
        assert!(sent.contains(r#""capacityScaler":0.0"#), "{sent}");
    }

    #[test]
    fn what_is_not_ours_or_cannot_be_set_is_named() {
        for (backends, part) in [
            (
                vec![backend("zones/x/networkEndpointGroups/other", 1.0)],
                "zones/x",
            ),
            (
                three(1.0, [0.0, 0.0])[1..].to_vec(),
                "no backend of site `aws`",
            ),
            (vec![backend(AWS, 3.0)], "scaler of 3"),
            (
                vec![backend(AWS, 1.0).set_or_clear_balancing_mode(None::<BalancingMode>)],
                "no balancing mode",
            ),
            (
                vec![backend(AWS, 1.0).set_description("[failover epoch=x site=aws]")],
                "not a note of ours",
            ),
            (
                vec![backend("zones/not-a/networkEndpointGroups/aws", 1.0)],
                "not-a",
            ),
        ] {
            let said = pool().answer(&backends).unwrap_err();
            assert!(said.contains(part), "{said}");
        }
        for weight in [1, 9, 101] {
            let old = three(1.0, [0.0, 0.0]);
            let said = pool().replaced_by(&old, &answer(weight, 0, 1)).unwrap_err();
            assert!(said.contains("cannot be written"), "{said}");
        }
        let groups = |aws: &[&str], gcp: &[&str]| {
            let ends = |ends: &[&str]| ends.iter().map(|end| (*end).to_owned()).collect();
            let groups = [
                ("aws".parse().unwrap(), ends(aws)),
                ("gcp".parse().unwrap(), ends(gcp)),
            ];
            Pool::new(groups.into()).unwrap_err()
        };
        assert!(groups(&[], &[AWS]).contains("no group"));
        assert!(groups(&[AWS], &[AWS]).contains("two sites"));
        assert!(groups(&["shop"], &[AWS]).contains("not the end"));
    }
}
