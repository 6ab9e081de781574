//! What an outside system answered to an effect: by which names it knows the change, and what stood
//! there before and after. Evidence for people and auditors; no decision rests on it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::text::{WORD_LIMIT, clip, clip_to};

/// How many record sets are kept of a change: two for each site, and a note.
const SETS_KEPT: usize = 16;

/// The answer to one effect.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The system's own names of the change, by what they name: `change`, `operation`, `request`,
    /// `serial`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ids: BTreeMap<String, String>,
    /// What was replaced: one text for each record set or backend.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<String>,
    /// What stands there instead.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<String>,
}

impl Receipt {
    /// A receipt without a name yet.
    pub fn replacing(before: Vec<String>, after: Vec<String>) -> Self {
        Self {
            ids: BTreeMap::new(),
            before,
            after,
        }
    }

    /// The same, with one more of the system's names.
    pub fn named(mut self, of: &str, id: impl Into<String>) -> Self {
        self.ids.insert(of.to_owned(), id.into());
        self
    }

    /// Cuts what the system said to what is kept of it.
    pub fn clip(&mut self) {
        for id in self.ids.values_mut() {
            clip_to(id, WORD_LIMIT);
        }
        for sets in [&mut self.before, &mut self.after] {
            sets.truncate(SETS_KEPT);
            sets.iter_mut().for_each(clip);
        }
    }
}
