//! Which program wrote something, in which format, and what of it was understood (docs/formats.md).
//!
//! A format has two numbers. The first one rises when something old is said otherwise than before: who
//! does not know that number refuses all of it. The second one rises with each field and kind that is
//! added: who does not know those reads the rest, and ignores or refuses them as each format says.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::text::{WORD_LIMIT, clip_to};
use super::units::{UnitError, serde_as_text};

/// The version of this program.
pub const PROGRAM: &str = env!("CARGO_PKG_VERSION");

/// The version of a format; prints as `1.0`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Format {
    /// Rises when something is said otherwise than before.
    pub major: u32,
    /// Rises when something is added.
    pub minor: u32,
}

impl Format {
    /// What was written before formats had numbers. Read for good.
    pub const UNNUMBERED: Format = Format::new(0, 0);

    /// The format of these numbers.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// Whether a reader of this format reads what is written in another one.
    pub fn reads(self, written: Format) -> bool {
        written.major <= self.major
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl std::str::FromStr for Format {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let numbers = text
            .split_once('.')
            .and_then(|(major, minor)| Some(Self::new(major.parse().ok()?, minor.parse().ok()?)));
        numbers.ok_or_else(|| UnitError::new(text, "the version of a format", "1.0"))
    }
}

serde_as_text!(Format);

/// Which program wrote something, and in which format.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrittenBy {
    /// The version of the program; empty where an earlier one did not say it.
    #[serde(default)]
    pub program: String,
    /// The version of the format.
    #[serde(default)]
    pub format: Format,
}

impl WrittenBy {
    /// This program, in a format.
    pub fn ours(format: Format) -> Self {
        Self {
            program: PROGRAM.to_owned(),
            format,
        }
    }

    /// The same within the limits of what is kept.
    #[must_use]
    pub fn clipped(mut self) -> Self {
        clip_to(&mut self.program, WORD_LIMIT);
        self
    }
}

impl fmt::Display for WrittenBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.program.as_str() {
            "" => f.write_str("an earlier failover")?,
            program => write!(f, "failover {program}")?,
        }
        match self.format {
            Format::UNNUMBERED => f.write_str(" (before formats had numbers)"),
            format => write!(f, " (format {format})"),
        }
    }
}

/// The first field of what was found that is not in what was understood of it, as a path. A field that
/// is added to a format says nothing where it is `null`, `false`, 0 or empty, so that one is no loss.
pub fn not_understood(found: &Value, understood: &Value) -> Option<String> {
    let below = |name: String, found: &Value, understood: Option<&Value>| match understood {
        None => (!says_nothing(found)).then_some(name),
        Some(understood) => {
            let inner = not_understood(found, understood)?;
            Some(format!("{name}.{inner}"))
        }
    };
    match (found, understood) {
        (Value::Object(found), Value::Object(understood)) => found
            .iter()
            .find_map(|(name, value)| below(name.clone(), value, understood.get(name))),
        (Value::Array(found), Value::Array(understood)) => found
            .iter()
            .enumerate()
            .find_map(|(index, value)| below(index.to_string(), value, understood.get(index))),
        _ => None,
    }
}

fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(yes) => !yes,
        Value::Number(number) => number.as_u64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(all) => all.is_empty(),
        Value::Object(all) => all.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn formats_print_parse_and_compare_by_number() {
        for text in ["0.0", "1.0", "1.12", "10.3"] {
            assert_eq!(text.parse::<Format>().unwrap().to_string(), text);
        }
        for text in ["", "1", "1.", ".1", "1.0.0", "-1.0", "a.b", "1.99999999999"] {
            assert!(text.parse::<Format>().is_err(), "{text}");
        }
        let ours = Format::new(1, 2);
        assert!(ours < Format::new(1, 10));
        for read in [Format::UNNUMBERED, Format::new(1, 0), Format::new(1, 99)] {
            assert!(ours.reads(read), "{read}");
        }
        assert!(!ours.reads(Format::new(2, 0)));
    }

    #[test]
    fn what_is_lost_in_reading_is_named_however_deep_it_stands() {
        let table = [
            (json!({"a": 1}), json!({"a": 1, "b": 2}), None),
            (json!({"a": 1, "b": 2}), json!({"a": 1}), Some("b")),
            (
                json!({"a": [{"b": 1}, {"c": {"d": "x"}}]}),
                json!({"a": [{"b": 1}, {"c": {}}]}),
                Some("a.1.c.d"),
            ),
            (json!([1, 2]), json!([1]), Some("1")),
            // Another way to write the same, which a reader may choose.
            (json!({"a": "0/01"}), json!({"a": "0/1"}), None),
            (json!("x"), json!({"a": 1}), None),
        ];
        for (found, understood, lost) in table {
            assert_eq!(not_understood(&found, &understood).as_deref(), lost);
        }
        for nothing in [
            json!(null),
            json!(false),
            json!(0),
            json!(""),
            json!([]),
            json!({}),
        ] {
            let found = json!({"a": 1, "new": nothing});
            assert_eq!(not_understood(&found, &json!({"a": 1})), None, "{found}");
        }
        for something in [json!(true), json!(1), json!(-1), json!("x"), json!([0])] {
            let found = json!({"a": 1, "new": something});
            let lost = not_understood(&found, &json!({"a": 1}));
            assert_eq!(lost.as_deref(), Some("new"), "{found}");
        }
    }

    #[test]
    fn who_wrote_something_is_said_in_words() {
        let ours = WrittenBy::ours(Format::new(1, 0));
        assert_eq!(ours.to_string(), format!("failover {PROGRAM} (format 1.0)"));
        let earlier = WrittenBy::default();
        let text = "an earlier failover (before formats had numbers)";
        assert_eq!(earlier.to_string(), text);
        let loud = WrittenBy {
            program: "9\u{1b}".repeat(1000),
            ..ours
        };
        let kept = loud.clipped().program;
        assert!(
            kept.len() <= WORD_LIMIT && !kept.contains('\u{1b}'),
            "{kept}"
        );
        // Whatever a later program adds here, these two stay.
        let later: WrittenBy =
            serde_json::from_str(r#"{"program":"2.0.0","format":"2.1","commit":"abc"}"#).unwrap();
        assert_eq!((later.program.as_str(), later.format.major), ("2.0.0", 2));
    }
}
