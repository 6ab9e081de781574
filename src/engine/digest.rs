//! A digest, and how far a log went, told by the digest of its last entry.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::units::{UnitError, serde_as_text};

/// A SHA-256 digest; prints as 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest([u8; 32]);

impl Digest {
    /// What the first entry names as the one before it.
    pub const ZERO: Digest = Digest([0; 32]);

    /// The digest of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Digest(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::str::FromStr for Digest {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = || UnitError::new(text, "a digest", "64 lower-case hexadecimal digits");
        let bytes = data_encoding::HEXLOWER
            .decode(text.as_bytes())
            .map_err(|_cause| wrong())?;
        bytes.try_into().map(Digest).map_err(|_cause| wrong())
    }
}

serde_as_text!(Digest);

/// How far a log went when somebody last saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogMark {
    /// The number of its last entry.
    pub entries: u64,
    /// The digest of that entry.
    pub head: Digest,
}

/// How many digests are kept to compare marks with: agents hear of a new end every second or so.
const RECENT: usize = 1024;

/// The beginning of a digest: enough to compare what nobody can choose, in 8 KiB.
type Beginning = u64;

fn beginning(digest: &Digest) -> Beginning {
    let bytes = digest.0.iter().take(8);
    bytes.fold(0, |beginning: u64, byte| beginning << 8 | u64::from(*byte))
}

/// The digests of a log's last entries: the last one whole, and the beginnings of all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recent {
    end: Option<LogMark>,
    beginnings: Arc<VecDeque<Beginning>>,
}

/// How a mark that somebody remembers compares with a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// The log holds that entry.
    Same,
    /// Too far back to compare.
    TooOld,
    /// The log is shorter.
    Longer,
    /// The log holds another entry there.
    Other,
}

impl Recent {
    pub(super) fn push(&mut self, digest: Digest) {
        self.end = Some(LogMark {
            entries: self.entries().saturating_add(1),
            head: digest,
        });
        let beginnings = Arc::make_mut(&mut self.beginnings);
        if beginnings.len() >= RECENT {
            beginnings.pop_front();
        }
        beginnings.push_back(beginning(&digest));
    }

    fn entries(&self) -> u64 {
        self.end.map_or(0, |end| end.entries)
    }

    /// The end of the log; `None` where it has no entry.
    pub fn end(&self) -> Option<LogMark> {
        self.end
    }

    /// Compares a mark with the log.
    pub fn fits(&self, mark: &LogMark) -> Fit {
        let Some(back) = self.entries().checked_sub(mark.entries) else {
            return Fit::Longer;
        };
        let from_end = usize::try_from(back).ok();
        let kept = from_end.and_then(|back| self.beginnings.iter().rev().nth(back));
        match kept {
            None => Fit::TooOld,
            Some(kept) if *kept == beginning(&mark.head) => Fit::Same,
            Some(_) => Fit::Other,
        }
    }
}
