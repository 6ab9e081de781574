//! What the records in a hosted zone mean, and which ones an answer needs. Sends nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::rr::{Name, RData, RecordType};
use serde::{Deserialize, Serialize};

use crate::adapters::dns;
use crate::engine::answer::Answer;
use crate::engine::topology::{SiteName, TargetName};
use crate::engine::units::Epoch;

/// The largest weight that Route 53 takes, by its API's definition.
const WEIGHT_LIMIT: u16 = 255;
/// The longest set identifier, in characters.
const IDENTIFIER_LIMIT: usize = 128;

/// The type of the weighted records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Kind {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Names.
    Cname,
}

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
    /// The name of that zone, `example.org`.
    pub zone: String,
    /// The record, `app.example.org`; at or below the zone (below, for `CNAME`).
    pub record: String,
    /// The type of the record. A service with IPv4 and IPv6 addresses is two targets.
    pub kind: Kind,
    /// How long resolvers may keep an answer, in seconds; 60 is usual for a failover record.
    pub ttl_seconds: u32,
    /// The record of each site.
    pub sites: BTreeMap<SiteName, SiteRecord>,
    /// The name servers of the zone's delegation set, each asked directly.
    pub name_servers: Vec<SocketAddr>,
    /// How long a name server may take for an answer.
    pub dns_timeout: Duration,
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
    settings: Settings,
    record: Name,
    note: Name,
}

impl Kind {
    /// The type as Route 53 writes it.
    pub(super) fn wire(self) -> &'static str {
        match self {
            Kind::A => "A",
            Kind::Aaaa => "AAAA",
            Kind::Cname => "CNAME",
        }
    }

    /// The type as a name server knows it.
    pub(super) fn dns(self) -> RecordType {
        match self {
            Kind::A => RecordType::A,
            Kind::Aaaa => RecordType::AAAA,
            Kind::Cname => RecordType::CNAME,
        }
    }

    /// A value in the one form in which two can be compared; `None` if it is not of this type.
    fn canonical(self, value: &str) -> Option<String> {
        match self {
            Kind::A => value.parse().ok().map(|ip: Ipv4Addr| ip.to_string()),
            Kind::Aaaa => value.parse().ok().map(|ip: Ipv6Addr| ip.to_string()),
            Kind::Cname => dns::plain_name(value).ok().map(|name| name.to_string()),
        }
    }
}

impl Layout {
    /// Checks the settings; the error says which one cannot work.
    pub(super) fn new(settings: Settings) -> Result<Self, String> {
        let wrong = |cause: String| format!("`{}`: {cause}", settings.name);
        let zone = dns::plain_name(&settings.zone).map_err(wrong)?;
        let record = dns::plain_name(&settings.record).map_err(wrong)?;
        let note = dns::note_name(&record).map_err(wrong)?;
        if !zone.zone_of(&record) {
            return Err(wrong(format!("record `{record}` is not in zone `{zone}`")));
        }
        if settings.kind == Kind::Cname && zone == record {
            return Err(wrong(format!("zone `{zone}` itself cannot be a `CNAME`")));
        }
        let mut identifiers = BTreeSet::new();
        let mut values = BTreeSet::new();
        for (site, place) in &settings.sites {
            let Some(value) = settings.kind.canonical(&place.value) else {
                let (value, kind) = (&place.value, settings.kind.wire());
                return Err(wrong(format!(
                    "`{value}` of site `{site}` is not one value of a record of type {kind}"
                )));
            };
            if !values.insert(value) {
                return Err(wrong(format!(
                    "`{}` is the value of two sites",
                    place.value
                )));
            }
            let identifier = identifier(site, place);
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
            settings,
            record,
            note,
        })
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn record(&self) -> &Name {
        &self.record
    }

    pub(super) fn note(&self) -> &Name {
        &self.note
    }

    /// The note's name as Route 53 takes it.
    /// A record that is not there: a note that nobody writes.
    pub(super) fn absent(&self) -> Stored {
        Stored {
            name: self.note_text(),
            kind: "TXT".to_owned(),
            set_identifier: None,
            weight: None,
            ttl: Some(i64::from(self.settings.ttl_seconds)),
            values: vec!["\"rehearsal\"".to_owned()],
            health_check: None,
            beyond: None,
        }
    }

    pub(super) fn note_text(&self) -> String {
        self.note.to_string()
    }

    /// Finds out whose the records are that were listed. Whatever is not ours is an error that
    /// shows it.
    pub(super) fn adopt(&self, listed: Vec<Stored>, notes: Vec<Stored>) -> Result<Held, String> {
        let mut sites = BTreeMap::new();
        let place = format!("`{}` {}", self.settings.record, self.settings.kind.wire());
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
                self.note,
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
        self.owner_of(value)
    }

    fn owner_of(&self, value: &str) -> Option<&SiteName> {
        let value = self.settings.kind.canonical(value)?;
        let same = |place: &SiteRecord| {
            self.settings.kind.canonical(&place.value).as_deref() == Some(value.as_str())
        };
        let mut sites = self.settings.sites.iter();
        sites.find(|(_, place)| same(place)).map(|(site, _)| site)
    }

    fn epoch(&self, held: &Held) -> Result<Option<Epoch>, String> {
        let Some(note) = &held.note else {
            return Ok(None);
        };
        let quoted = match note.values.as_slice() {
            [value] if note.set_identifier.is_none() && note.beyond.is_none() => value
                .strip_prefix('"')
                .and_then(|rest| rest.strip_suffix('"')),
            _ => None,
        };
        let text = quoted.ok_or_else(|| {
            format!(
                "`{}` is {}, not a note of ours: remove it",
                self.note,
                note.shown()
            )
        })?;
        dns::note_epoch(text).map(Some)
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
        let weights = self
            .settings
            .sites
            .keys()
            .map(weight)
            .collect::<Result<_, _>>()?;
        let epoch = self.epoch(held)?;
        Ok(Answer { weights, epoch })
    }

    /// The records for an answer, in place of `old`. All get the same TTL, as Route 53 demands.
    pub(super) fn content(&self, to: &Answer, old: &Held) -> Result<Held, String> {
        if to.sites_on().next().is_none() {
            return Err(
                "all weights would be 0, which Route 53 answers with every site: \
                        keep one on"
                    .into(),
            );
        }
        if let Some(stranger) = to
            .weights
            .keys()
            .find(|site| !self.settings.sites.contains_key(site))
        {
            return Err(format!(
                "site `{stranger}` has no record here: configure it"
            ));
        }
        let ttl = Some(i64::from(self.settings.ttl_seconds));
        let mut sites = BTreeMap::new();
        for (site, place) in &self.settings.sites {
            let weight = to.weights.get(site).copied().unwrap_or(0);
            if weight > WEIGHT_LIMIT {
                return Err(format!(
                    "weight {weight} for site `{site}` is above {WEIGHT_LIMIT}, the most that \
                     Route 53 takes"
                ));
            }
            let before = old.sites.get(site);
            let record = Stored {
                name: self.record.to_string(),
                kind: self.settings.kind.wire().into(),
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

    /// The answer that a name server was seen to give: every site that came up is on.
    pub(super) fn seen(&self, records: &[RData], notes: &[RData]) -> Result<Answer, String> {
        let mut weights: BTreeMap<_, _> = self
            .settings
            .sites
            .keys()
            .map(|site| (site.clone(), 0))
            .collect();
        for data in records {
            let value = if let RData::A(v4) = data {
                IpAddr::V4(v4.0).to_string()
            } else if let RData::AAAA(v6) = data {
                IpAddr::V6(v6.0).to_string()
            } else {
                data.to_string()
            };
            let site = self
                .owner_of(&value)
                .ok_or_else(|| format!("answers `{value}`, which is no configured site's"))?;
            weights.insert(site.clone(), dns::ON);
        }
        let epoch = match notes {
            [] => None,
            [note] => Some(dns::note_epoch(&note.to_string())?),
            [..] => return Err(format!("`{}` has {} records", self.note, notes.len())),
        };
        Ok(Answer { weights, epoch })
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
