//! Quantities with their units: log positions, bytes, epochs, timelines and two kinds of time.
//!
//! Nothing here knows what a quantity is used for. Every unit parses and prints in its usual
//! notation, and only operations that make sense compile (an [`Lsn`] minus an [`Lsn`] is [`Bytes`];
//! an `Lsn` plus an `Lsn` is an error).

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::text::{WORD_LIMIT, clip_to};

/// Why a text is not a quantity, with the text found and the correct form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is not {what}: write it like `{example}`")]
pub struct UnitError {
    found: String,
    what: &'static str,
    example: &'static str,
}

impl UnitError {
    /// An error about `found`, which should have been `what`, written like `example`.
    pub fn new(found: &str, what: &'static str, example: &'static str) -> Self {
        let mut found = found.to_owned();
        clip_to(&mut found, WORD_LIMIT);
        Self {
            found,
            what,
            example,
        }
    }
}

/// A position in PostgreSQL's write-ahead log: prints and parses as `16/B374D848`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// How many bytes of WAL lie between `earlier` and this position; zero if it is not earlier.
    pub fn bytes_since(self, earlier: Lsn) -> Bytes {
        Bytes::of(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = || UnitError::new(text, "a log position", "16/B374D848");
        let (high, low) = text.split_once('/').ok_or_else(wrong)?;
        let part = |hex: &str| {
            // `from_str_radix` would accept a sign, PostgreSQL does not.
            hex.bytes()
                .all(|b| b.is_ascii_hexdigit())
                .then(|| u32::from_str_radix(hex, 16).ok())
                .flatten()
                .ok_or_else(wrong)
        };
        Ok(Lsn(u64::from(part(high)?) << 32 | u64::from(part(low)?)))
    }
}

/// An amount of data. Displayed for people (`1.2 GiB`), parsed from `16MiB`, `16 MiB` or `512`, and
/// a plain number of bytes in the decision log: at most [`LARGEST_EXACT`], which is 8 PiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

const BYTE_UNITS: [(&str, u32); 5] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];

impl Bytes {
    /// This many bytes, capped at the largest amount.
    pub fn of(count: u64) -> Self {
        Bytes(count.min(LARGEST_EXACT))
    }

    /// This many mebibytes.
    pub const fn mib(count: u64) -> Self {
        Bytes(count.saturating_mul(1 << 20))
    }

    /// The sum, capped at the largest amount.
    #[must_use]
    pub fn plus(self, other: Bytes) -> Bytes {
        Bytes::of(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, shift) in BYTE_UNITS {
            let unit = 1u64 << shift;
            if self.0 >= unit {
                let whole = self.0 >> shift;
                let tenth =
                    u128::from(self.0 & (unit.saturating_sub(1))).saturating_mul(10) >> shift;
                return if tenth == 0 {
                    write!(f, "{whole} {name}")
                } else {
                    write!(f, "{whole}.{tenth} {name}")
                };
            }
        }
        f.write_str("0 B")
    }
}

impl FromStr for Bytes {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = || UnitError::new(text, "an amount of data", "16MiB");
        let trimmed = text.trim();
        let (number, shift) = BYTE_UNITS
            .iter()
            .find_map(|(name, shift)| Some((trimmed.strip_suffix(name)?.trim_end(), *shift)))
            .unwrap_or((trimmed, 0));
        let number: u64 = number.parse().map_err(|_cause| wrong())?;
        let bytes = number.checked_mul(1 << shift);
        bytes
            .filter(|bytes| *bytes <= LARGEST_EXACT)
            .map(Bytes)
            .ok_or_else(wrong)
    }
}

/// The number that grows with each change of the active site: a fencing token. At most
/// [`LARGEST_EXACT`] wherever it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The next epoch. An epoch can only be raised.
    #[must_use]
    pub fn next(self) -> Epoch {
        Epoch(self.0.saturating_add(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Epoch {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = || UnitError::new(text, "an epoch", "7");
        text.parse().map(Epoch).map_err(|_cause| wrong())
    }
}

/// A PostgreSQL timeline. Not an identity: two sites can both reach timeline 2 independently
/// (postgres.md P2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timeline(pub u32);

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A PostgreSQL system identifier: a pair has the same one on both sites (postgres.md P1). A text
/// in the log, because it exceeds JSON's exact numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SystemId(pub u64);

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SystemId {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        text.parse()
            .map(SystemId)
            .map_err(|_cause| UnitError::new(text, "a system identifier", "7301234567890123456"))
    }
}

/// A moment on one machine's monotonic clock. For limits, leases and windows; it never leaves the
/// process: what is logged or sent is an age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MonoTime(pub Duration);

impl MonoTime {
    /// How long ago `earlier` was, in whole milliseconds; zero if it is later.
    ///
    /// Whole, because that is how ages are recorded: a decision on them must replay from the record
    /// (invariants.md I11).
    pub fn since(self, earlier: MonoTime) -> Duration {
        Duration::from_millis(as_millis(self.0.saturating_sub(earlier.0)))
    }

    /// The time until `later`, for waiting: exact, unlike an age. Zero if it has passed.
    pub fn until(self, later: MonoTime) -> Duration {
        later.0.saturating_sub(self.0)
    }

    /// The moment `wait` later.
    #[must_use]
    pub fn plus(self, wait: Duration) -> MonoTime {
        MonoTime(self.0.saturating_add(wait))
    }

    /// The moment `age` earlier, but not before the clock's start.
    #[must_use]
    pub fn minus(self, age: Duration) -> MonoTime {
        MonoTime(self.0.saturating_sub(age))
    }
}

/// A moment on the wall clock, in milliseconds since 1970 UTC. For people and logs; no limit is
/// judged by it. Prints and parses as RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct WallTime(pub u64);

impl WallTime {
    /// The moment `age` earlier.
    #[must_use]
    pub fn minus(self, age: Duration) -> WallTime {
        WallTime(self.0.saturating_sub(as_millis(age)))
    }

    /// How long ago `earlier` was; zero if it is later.
    pub fn since(self, earlier: WallTime) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// The last moment that RFC 3339 can write, in milliseconds: the end of the year 9999.
pub const LAST_WALL_MILLIS: u64 = 253_402_300_799_999;

impl fmt::Display for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = Duration::from_millis(self.0.min(LAST_WALL_MILLIS));
        let moment = std::time::UNIX_EPOCH
            .checked_add(shown)
            .unwrap_or(std::time::UNIX_EPOCH);
        humantime::format_rfc3339_millis(moment).fmt(f)
    }
}

impl FromStr for WallTime {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = || UnitError::new(text, "a moment", "2026-11-21T03:00:00.000Z");
        let moment = humantime::parse_rfc3339(text).map_err(|_cause| wrong())?;
        let since = moment
            .duration_since(std::time::UNIX_EPOCH)
            .map_err(|_cause| wrong())?;
        Ok(WallTime(as_millis(since)))
    }
}

/// The largest whole number that every JSON reader keeps exactly: 2^53 - 1. No number in the
/// decision log or on the wire is larger.
pub const LARGEST_EXACT: u64 = 9_007_199_254_740_991;

/// Serde for whole numbers up to [`LARGEST_EXACT`]; refuses a larger one, which would be rounded.
pub mod exact {
    use super::{Deserialize, Deserializer, LARGEST_EXACT, Serialize, Serializer};

    /// Writes the number.
    pub fn serialize<S: Serializer>(value: &u64, to: S) -> Result<S::Ok, S::Error> {
        value.serialize(to)
    }

    /// Reads it.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        let number = u64::deserialize(from)?;
        if number > LARGEST_EXACT {
            let text = format!("{number} is larger than 2^53 - 1, and would be rounded");
            return Err(serde::de::Error::custom(text));
        }
        Ok(number)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        exact::deserialize(from).map(Bytes)
    }
}

impl<'de> Deserialize<'de> for Epoch {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        exact::deserialize(from).map(Epoch)
    }
}

/// The whole milliseconds of a duration, capped at the largest exact JSON number.
pub fn as_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis())
        .unwrap_or(u64::MAX)
        .min(LARGEST_EXACT)
}

/// A fact with its age.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aged<T> {
    /// How old it is.
    #[serde(rename = "age_ms", with = "millis")]
    pub age: Duration,
    /// The fact.
    pub fact: T,
}

impl<T> Aged<T> {
    /// The fact, if it is no older than `limit`.
    pub fn within(&self, limit: Duration) -> Option<&T> {
        (self.age <= limit).then_some(&self.fact)
    }
}

/// A value that many hold and few change: copies are one until one of them is changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Shared<T>(Arc<T>);

impl<T: Clone> Shared<T> {
    /// The value for whoever wants one of its own.
    pub fn own(self) -> T {
        Arc::unwrap_or_clone(self.0)
    }
}

impl<T> From<T> for Shared<T> {
    fn from(value: T) -> Self {
        Self(Arc::new(value))
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Clone> DerefMut for Shared<T> {
    fn deref_mut(&mut self) -> &mut T {
        Arc::make_mut(&mut self.0)
    }
}

/// Serialises a [`Duration`] as whole milliseconds: the form of the decision log and the wire,
/// in fields whose names end in `_ms`.
pub mod millis {
    use super::{Deserialize, Deserializer, Duration, Serialize, Serializer, as_millis};

    /// A received value may be larger than what is recorded: both must lead to the same decision.
    fn exact(millis: u64) -> Duration {
        Duration::from_millis(millis.min(super::LARGEST_EXACT))
    }

    /// Writes whole milliseconds.
    pub fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        as_millis(*value).serialize(to)
    }

    /// Reads whole milliseconds.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(exact)
    }

    /// The same for a duration that may be unknown.
    pub mod option {
        use super::{Deserialize, Deserializer, Duration, Serialize, Serializer, as_millis};

        /// Writes whole milliseconds or null.
        pub fn serialize<S: Serializer>(
            value: &Option<Duration>,
            to: S,
        ) -> Result<S::Ok, S::Error> {
            value.map(as_millis).serialize(to)
        }

        /// Reads whole milliseconds or null.
        pub fn deserialize<'de, D: Deserializer<'de>>(
            from: D,
        ) -> Result<Option<Duration>, D::Error> {
            Ok(Option::<u64>::deserialize(from)?.map(super::exact))
        }
    }
}

/// Implements serde through `Display` and `FromStr`, for units that are texts in the log.
macro_rules! serde_as_text {
    ($($name:ty),*) => {$(
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str> as serde::Deserialize<'de>>::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

serde_as_text!(Lsn, SystemId, WallTime);
pub(crate) use serde_as_text;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_position_prints_and_parses_as_postgresql_does() {
        for text in ["0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF", "1/0"] {
            assert_eq!(text.parse::<Lsn>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "16",
            "16/",
            "/1",
            "16/+1",
            "1/123456789",
            "x/1",
            "1/1/1",
        ] {
            assert!(text.parse::<Lsn>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_distance_of_two_positions_is_bytes_and_never_negative() {
        assert_eq!(Lsn(10).bytes_since(Lsn(4)), Bytes(6));
        assert_eq!(Lsn(4).bytes_since(Lsn(10)), Bytes(0));
    }

    #[test]
    fn bytes_print_as_people_read_them() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (16 << 20, "16 MiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }

    #[test]
    fn bytes_parse_with_and_without_unit() {
        assert_eq!("16MiB".parse(), Ok(Bytes::mib(16)));
        assert_eq!("16 MiB".parse(), Ok(Bytes::mib(16)));
        assert_eq!("512".parse(), Ok(Bytes(512)));
        for text in ["", "MiB", "-1", "1.5GiB", "99999999999TiB", "16 MB"] {
            let error = text.parse::<Bytes>().unwrap_err().to_string();
            assert!(error.contains("16MiB"), "shows the right form: {error}");
        }
    }

    #[test]
    fn wall_time_round_trips_through_rfc_3339() {
        let time = WallTime(1_790_000_000_123);
        assert_eq!(time.to_string().parse(), Ok(time));
        assert_eq!(WallTime(u64::MAX).to_string(), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn an_age_is_what_its_record_says() {
        let (earlier, now) = (
            MonoTime(Duration::from_nanos(1)),
            MonoTime(Duration::from_millis(7)),
        );
        assert_eq!(now.since(earlier), Duration::from_millis(6));
        let sent = 90_071_992_547_409_935u64;
        let read: Duration = millis::deserialize(serde_json::json!(sent)).unwrap();
        let recorded: Duration = millis::deserialize(serde_json::json!(as_millis(read))).unwrap();
        assert_eq!(read, recorded);
    }

    #[test]
    fn times_never_wrap() {
        assert_eq!(
            MonoTime::default().minus(Duration::MAX),
            MonoTime::default()
        );
        assert_eq!(
            MonoTime(Duration::MAX).plus(Duration::MAX),
            MonoTime(Duration::MAX)
        );
        assert_eq!(
            MonoTime::default().since(MonoTime(Duration::MAX)),
            Duration::ZERO
        );
    }
}
