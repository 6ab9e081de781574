//! What the records in a hosted zone mean, and which ones an answer needs. Sends nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::adapters::dns;
use crate::adapters::weighted::{Place, Weighted, epoch_of};
use crate::engine::answer::Answer;
use crate::engine::topology::{SiteName, TargetName};
use crate::engine::units::Epoch;

/// The largest weight that Route 53 takes, by its API's definition.
const WEIGHT_LIMIT: u16 = 255;
/// The longest set identifier, in characters.
const IDENTIFIER_LIMIT: usize = 128;

/// The record of one site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteRecord {
    /// The site's address or name; a weighted record has exactly one.
    pub value: String,
    /// Its identifier, 1 to 128 characters; `None` means `failover-` and the site's name. A
    /// record that is there with this value under another identifier is taken as it is.
    pub set_identifier: Option<String>,
}

/// What one target is made of.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The target's name.
    pub name: TargetName,
    /// The id of the public hosted zone, `Z0123456789ABCDEFGHIJ`.
    pub zone_id: String,
    /// Where the record lies.
    pub place: Place,
    /// The record of each site.
    pub sites: BTreeMap<SiteName, SiteRecord>,
}

/// One record set as Route 53 keeps it: all that an exact `DELETE` must repeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) set_identifier: Option<String>,
    pub(super) weight: Option<i64>,
    pub(super) ttl: Option<i64>,
    pub(super) values: Vec<String>,
    pub(super) health_check: Option<String>,
    /// What else Route 53 says about the record that this file does not know how to repeat.
    pub(super) beyond: Option<String>,
}

/// What the zone holds: the token of `Versioned`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Held {
    sites: BTreeMap<SiteName, Stored>,
    note: Option<Stored>,
}

impl Held {
    /// Every record, in a stable order.
    pub(super) fn records(&self) -> impl Iterator<Item = &Stored> {
        self.sites.values().chain(&self.note)
    }

    /// The records in words, for a receipt.
    pub(super) fn shown(&self) -> Vec<String> {
        self.records().map(Stored::whole).collect()
    }
}

/// Settings that were checked.
#[derive(Debug)]
pub(super) struct Layout {
    name: TargetName,
    zone_id: String,
    sites: BTreeMap<SiteName, SiteRecord>,
    pub(super) weighted: Weighted,
}

impl Layout {
    /// Checks the settings; the error says which one cannot work.
    pub(super) fn new(settings: Settings) -> Result<Self, String> {
        let wrong = |cause: String| format!("`{}`: {cause}", settings.name);
        let sites = settings.sites.iter();
        let values = sites.map(|(site, own)| (site.clone(), own.value.clone()));
        let weighted = Weighted::new(settings.place, &values.collect()).map_err(wrong)?;
        let mut identifiers = BTreeSet::new();
        for (site, own) in &settings.sites {
            let identifier = identifier(site, own);
            if identifier.is_empty() || identifier.chars().count() > IDENTIFIER_LIMIT {
                return Err(wrong(format!(
                    "the set identifier of site `{site}` must have 1 to {IDENTIFIER_LIMIT} \
                     characters"
                )));
            }
            if !identifiers.insert(identifier.clone()) {
                return Err(wrong(format!(
                    "set identifier `{identifier}` is used twice"
                )));
            }
        }
        Ok(Self {
            name: settings.name,
            zone_id: settings.zone_id,
            sites: settings.sites,
            weighted,
        })
    }

    pub(super) fn name(&self) -> &TargetName {
        &self.name
    }

    pub(super) fn zone_id(&self) -> &str {
        &self.zone_id
    }

    /// The record and its type as Route 53 takes them.
    pub(super) fn record(&self) -> (String, &'static str) {
        let weighted = &self.weighted;
        (weighted.record.to_string(), weighted.kind.wire())
    }

    /// The note's name as Route 53 takes it.
    pub(super) fn note_text(&self) -> String {
        self.weighted.note.to_string()
    }

    /// A record that is not there: a note that nobody writes.
    pub(super) fn absent(&self) -> Stored {
        Stored {
            name: self.note_text(),
            kind: "TXT".to_owned(),
            set_identifier: None,
            weight: None,
            ttl: Some(i64::from(self.weighted.ttl_seconds)),
            values: vec!["\"rehearsal\"".to_owned()],
            health_check: None,
            beyond: None,
        }
    }

    /// Finds out whose the records are that were listed. Whatever is not ours is an error that
    /// shows it.
    pub(super) fn adopt(&self, listed: Vec<Stored>, notes: Vec<Stored>) -> Result<Held, String> {
        let mut sites = BTreeMap::new();
        let (name, kind) = self.record();
        let place = format!("`{name}` {kind}");
        for record in listed {
            let shown = record.shown();
            if let Some(beyond) = &record.beyond {
                return Err(format!(
                    "{place} holds {shown} with {beyond}: only plain weighted records are handled"
                ));
            }
            if record.set_identifier.is_none() || record.weight.is_none() {
                return Err(format!(
                    "{place} is {shown}, not a set of weighted records: delete it and create \
                     weighted ones in one batch"
                ));
            }
            let Some(site) = self.owner(&record) else {
                return Err(format!(
                    "{place} holds {shown}, which is no configured site's: configure its value \
                     and set identifier, or remove it"
                ));
            };
            if let Some(first) = sites.insert(site.clone(), record) {
                return Err(format!(
                    "{place} holds both {} and {shown} for site `{site}`: remove one",
                    first.shown()
                ));
            }
        }
        let mut notes = notes.into_iter();
        let note = notes.next();
        if let Some(second) = notes.next() {
            return Err(format!(
                "`{}` holds a second record: {}",
                self.weighted.note,
                second.shown()
            ));
        }
        let held = Held { sites, note };
        self.epoch(&held).map(|_epoch| held)
    }

    /// Whose record it is: that of the site with its value, whatever its identifier. A value that
    /// nobody has is drift even under an identifier of ours: a flip must not write it on.
    fn owner(&self, record: &Stored) -> Option<&SiteName> {
        let [value] = record.values.as_slice() else {
            return None;
        };
        self.weighted.owner_of(value)
    }

    fn epoch(&self, held: &Held) -> Result<Option<Epoch>, String> {
        let Some(note) = &held.note else {
            return Ok(None);
        };
        match note.values.as_slice() {
            [value] if note.set_identifier.is_none() && note.beyond.is_none() => {
                epoch_of(value).map(Some)
            }
            [..] => Err(format!(
                "`{}` is {}, not a note of ours: remove it",
                self.weighted.note,
                note.shown()
            )),
        }
    }

    /// The answer that these records give. Where all weights are 0, Route 53 answers every site:
    /// the weights are shown as they are.
    pub(super) fn answer(&self, held: &Held) -> Result<Answer, String> {
        let weight = |site: &SiteName| {
            let weight = held
                .sites
                .get(site)
                .and_then(|record| record.weight)
                .unwrap_or(0);
            u16::try_from(weight)
                .map(|weight| (site.clone(), weight))
                .map_err(|_range| format!("site `{site}` has weight {weight}, not 0 to 255"))
        };
        let weights = self.sites.keys().map(weight).collect::<Result<_, _>>()?;
        let epoch = self.epoch(held)?;
        Ok(Answer { weights, epoch })
    }

    /// The records for an answer, in place of `old`. All get the same TTL, as Route 53 demands.
    pub(super) fn content(&self, to: &Answer, old: &Held) -> Result<Held, String> {
        self.weighted.can_say(to)?;
        let ttl = Some(i64::from(self.weighted.ttl_seconds));
        let (name, kind) = self.record();
        let mut sites = BTreeMap::new();
        for (site, place) in &self.sites {
            let weight = to.weights.get(site).copied().unwrap_or(0);
            if weight > WEIGHT_LIMIT {
                return Err(format!(
                    "weight {weight} for site `{site}` is above {WEIGHT_LIMIT}, the most that \
                     Route 53 accepts"
                ));
            }
            let before = old.sites.get(site);
            let record = Stored {
                name: name.clone(),
                kind: kind.into(),
                set_identifier: before
                    .and_then(|record| record.set_identifier.clone())
                    .or_else(|| Some(identifier(site, place))),
                weight: Some(i64::from(weight)),
                ttl,
                values: before.map_or_else(|| vec![place.value.clone()], |r| r.values.clone()),
                health_check: before.and_then(|record| record.health_check.clone()),
                beyond: None,
            };
            sites.insert(site.clone(), record);
        }
        let note = dns::note_text(to).map(|text| Stored {
            name: self.note_text(),
            kind: "TXT".into(),
            set_identifier: None,
            weight: None,
            ttl,
            values: vec![format!("\"{text}\"")],
            health_check: None,
            beyond: None,
        });
        Ok(Held { sites, note })
    }
}

impl Stored {
    /// The record in words.
    fn shown(&self) -> String {
        let values = self.values.join(", ");
        match &self.set_identifier {
            Some(identifier) => format!("`{values}` (set identifier `{identifier}`)"),
            None => format!("`{values}` (a simple record)"),
        }
    }

    /// All of it in words.
    fn whole(&self) -> String {
        let Self { name, kind, .. } = self;
        let weight = self.weight.map(|weight| format!(" weight {weight}"));
        let identifier = self.set_identifier.as_ref().map(|of| format!(" {of}"));
        let values = self.values.join(", ");
        format!(
            "{name} {kind}{}{} {values}",
            identifier.unwrap_or_default(),
            weight.unwrap_or_default()
        )
    }
}

fn identifier(site: &SiteName, place: &SiteRecord) -> String {
    let configured = place.set_identifier.clone();
    configured.unwrap_or_else(|| format!("failover-{site}"))
}
