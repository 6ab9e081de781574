//! What a zone holds of ours: the record and the note, from and to the records of DNS.

use std::collections::BTreeSet;
use std::net::IpAddr;

use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::{Name, RData, RecordType};
use serde::{Deserialize, Serialize};

use crate::adapters::dns::LookupError;
use crate::ports::OutsideFault;

/// What the zone holds: the token of `Versioned`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Held {
    pub(super) addresses: BTreeSet<IpAddr>,
    pub(super) note: Option<String>,
}

impl Held {
    pub(super) fn records(&self, kind: RecordType) -> Vec<RData> {
        if kind == RecordType::TXT {
            let text = |note: &String| RData::TXT(TXT::new(vec![note.clone()]));
            return self.note.iter().map(text).collect();
        }
        let data = self.addresses.iter().map(|address| match address {
            IpAddr::V4(v4) => RData::A((*v4).into()),
            IpAddr::V6(v6) => RData::AAAA((*v6).into()),
        });
        data.filter(|data| data.record_type() == kind).collect()
    }

    /// From what a server answered to the three questions.
    pub(super) fn gather(
        answers: [Result<Vec<RData>, LookupError>; 3],
    ) -> Result<Self, OutsideFault> {
        let mut held = Self {
            addresses: BTreeSet::new(),
            note: None,
        };
        for answer in answers {
            let found = match answer {
                Err(LookupError::NxDomain) => Vec::new(),
                other => other?,
            };
            for data in found {
                if let RData::A(v4) = &data {
                    held.addresses.insert(v4.0.into());
                } else if let RData::AAAA(v6) = &data {
                    held.addresses.insert(v6.0.into());
                } else if let RData::TXT(text) = &data
                    && text.txt_data.len() == 1
                    && held.note.is_none()
                {
                    held.note = Some(text.to_string());
                } else {
                    let text = format!("`{data}` is not a record of ours: remove it first");
                    return Err(OutsideFault::Wrong(text));
                }
            }
        }
        Ok(held)
    }

    /// Its record sets in words, for a receipt.
    pub(super) fn shown(&self, record: &Name, note: &Name) -> Vec<String> {
        let sets = [RecordType::A, RecordType::AAAA, RecordType::TXT];
        let sets = sets.map(|kind| {
            let name = if kind == RecordType::TXT {
                note
            } else {
                record
            };
            let values: Vec<String> = self.records(kind).iter().map(RData::to_string).collect();
            (!values.is_empty()).then(|| format!("{name} {kind} {}", values.join(", ")))
        });
        sets.into_iter().flatten().collect()
    }
}
