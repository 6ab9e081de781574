//! Records in a cloud's zone of which each leads to one site, with a weight, beside a TXT record with
//! the epoch note: what the values mean, and what name servers were seen to answer.
//!
//! How a cloud stores and changes such records is the business of its own adapter.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::rr::{Name, RData, RecordType};
use serde::{Deserialize, Serialize};

use super::dns::{self, Lookup, LookupError};
use crate::engine::answer::Answer;
use crate::engine::topology::SiteName;
use crate::engine::units::Epoch;
use crate::ports::{OutsideFault, OutsideView};

/// How often each name server is asked. Weighted answers are drawn at random: with two sites on
/// evenly, 4 questions miss one of them in 1 of 8 views; with one site on, none may differ.
const SAMPLES: usize = 4;

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

impl Kind {
    /// The type as the clouds write it.
    pub(super) fn wire(self) -> &'static str {
        match self {
            Kind::A => "A",
            Kind::Aaaa => "AAAA",
            Kind::Cname => "CNAME",
        }
    }

    /// The type as a name server knows it.
    fn dns(self) -> RecordType {
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

/// Where a record lies, and who is asked for it.
#[derive(Debug, Clone)]
pub struct Place {
    /// The name of the zone, `example.org`.
    pub zone: String,
    /// The record, `app.example.org`; at or below the zone (below, for `CNAME`).
    pub record: String,
    /// The type of the record. A service with IPv4 and IPv6 addresses is two targets.
    pub kind: Kind,
    /// How long resolvers may keep an answer, in seconds; 60 is usual for a failover record.
    pub ttl_seconds: u32,
    /// The name servers of the zone, each asked directly.
    pub name_servers: Vec<SocketAddr>,
    /// How long a name server may take for an answer.
    pub timeout: Duration,
}

/// A record and the value of each site in it, checked.
#[derive(Debug)]
pub(super) struct Weighted {
    pub(super) zone: Name,
    pub(super) record: Name,
    /// Where the epoch note stands.
    pub(super) note: Name,
    pub(super) kind: Kind,
    pub(super) ttl_seconds: u32,
    values: BTreeMap<SiteName, String>,
    name_servers: Vec<SocketAddr>,
    timeout: Duration,
}

impl Weighted {
    /// Checks the settings; the error says which one cannot work.
    pub(super) fn new(place: Place, values: &BTreeMap<SiteName, String>) -> Result<Self, String> {
        let zone = dns::plain_name(&place.zone)?;
        let record = dns::plain_name(&place.record)?;
        let note = dns::note_name(&record)?;
        let kind = place.kind;
        if !zone.zone_of(&record) {
            return Err(format!("record `{record}` is not in zone `{zone}`"));
        }
        if kind == Kind::Cname && zone == record {
            return Err(format!("zone `{zone}` itself cannot be a `CNAME`"));
        }
        let mut checked = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for (site, value) in values {
            let Some(canonical) = kind.canonical(value) else {
                return Err(format!(
                    "`{value}` of site `{site}` is not one value of a record of type {}",
                    kind.wire()
                ));
            };
            if !seen.insert(canonical.clone()) {
                return Err(format!("`{value}` is the value of two sites"));
            }
            checked.insert(site.clone(), canonical);
        }
        Ok(Self {
            zone,
            record,
            note,
            kind,
            ttl_seconds: place.ttl_seconds,
            values: checked,
            name_servers: place.name_servers,
            timeout: place.timeout,
        })
    }

    /// The sites, each with its value.
    pub(super) fn values(&self) -> impl Iterator<Item = (&SiteName, &String)> {
        self.values.iter()
    }

    /// Whose a record's value is. One that nobody has is drift: a change must not write it on.
    pub(super) fn owner_of(&self, value: &str) -> Option<&SiteName> {
        let value = self.kind.canonical(value)?;
        let mut sites = self.values.iter();
        sites.find(|(_, own)| **own == value).map(|(site, _)| site)
    }

    /// Refuses an answer that such records cannot give: about a site without a value, or with all
    /// weights zero, which the clouds answer with every site.
    pub(super) fn can_say(&self, answer: &Answer) -> Result<(), String> {
        if answer.sites_on().next().is_none() {
            return Err(
                "all weights would be 0, which is answered with every site: keep one on".into(),
            );
        }
        let mut sites = answer.weights.keys();
        match sites.find(|site| !self.values.contains_key(*site)) {
            Some(stranger) => Err(format!(
                "site `{stranger}` has no record here: configure it"
            )),
            None => Ok(()),
        }
    }

    /// The answer that a name server was seen to give: every site that came up is on.
    fn seen(&self, records: &[RData], notes: &[RData]) -> Result<Answer, String> {
        let sites = self.values.keys();
        let mut weights: BTreeMap<_, _> = sites.map(|site| (site.clone(), 0)).collect();
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

    /// Asks each name server, several times.
    pub(super) async fn verify_outside(&self) -> Vec<OutsideView> {
        let lookup = |name: &Name, kind| Lookup {
            name: name.clone(),
            kind,
            timeout: self.timeout,
        };
        let record = lookup(&self.record, self.kind.dns());
        let note = lookup(&self.note, RecordType::TXT);
        let seen = dns::at_each(&self.name_servers, |server| {
            let (record, note) = (record.clone(), note.clone());
            async move { sample(server, &record, &note).await }
        })
        .await;
        let mut views = Vec::new();
        for (server, found) in seen {
            let found: Result<_, LookupError> = found;
            let answer = found.map_err(OutsideFault::from);
            let answer = answer.and_then(|(records, notes)| {
                let seen = self.seen(&records, &notes);
                seen.map_err(OutsideFault::Wrong)
            });
            let place = server.to_string();
            views.push(OutsideView { place, answer });
        }
        views
    }
}

/// The epoch in the value of a TXT record as the clouds write it: with its quotation marks.
pub(super) fn epoch_of(value: &str) -> Result<Epoch, String> {
    let bare = value.strip_prefix('"');
    let bare = bare.and_then(|rest| rest.strip_suffix('"'));
    dns::note_epoch(bare.unwrap_or(value))
}

/// All that one server answers to several questions for the record, and to one for the note.
async fn sample(
    server: SocketAddr,
    record: &Lookup,
    note: &Lookup,
) -> Result<(Vec<RData>, Vec<RData>), LookupError> {
    let mut records = Vec::new();
    for _ in 0..SAMPLES {
        records.extend(record.ask(server).await?);
    }
    let notes = match note.ask(server).await {
        Err(LookupError::NxDomain) => Vec::new(),
        found => found?,
    };
    Ok((records, notes))
}
