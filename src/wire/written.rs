//! How a message is written and read: which program wrote it stands in it, and what a later program
//! added is ignored or refused, as each message says (docs/formats.md).

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::engine::format::{Format, PROGRAM, WrittenBy, not_understood};
use crate::engine::text::clipped;

/// The format of messages between processes.
pub const FORMAT: Format = Format::new(1, 1);

/// What becomes of a field that the reader does not know. A kind that it does not know is always refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// It is ignored: one more fact harms nothing.
    Ignored,
    /// The message is refused: half of it must not be obeyed.
    Refused,
    /// The message is refused where it stands in one of these fields, which move a right; elsewhere it is
    /// ignored.
    RefusedIn(&'static [&'static str]),
}

/// What one process says to another, or keeps for the one after it.
pub trait Message: Serialize + DeserializeOwned {
    /// What people call it.
    const NAME: &'static str;
    /// Who reads it.
    const READER: &'static str;
    /// What becomes of a field that the reader does not know.
    const UNKNOWN: Unknown;
    /// The format in which it is written, and the latest that is read.
    const FORMAT: Format = FORMAT;
}

/// A message with the word of who wrote it. In JSON that stands beside the message's own fields as
/// `written_by`: a program of before formats had numbers takes no notice of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Written<T> {
    /// Who wrote it.
    #[serde(rename = "written_by")]
    pub by: WrittenBy,
    /// What it says.
    #[serde(flatten)]
    pub message: T,
}

/// Why a message is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotUnderstood {
    /// It is no such message.
    #[error("the {name} cannot be read: {cause}")]
    Garbled {
        /// What it should have been.
        name: &'static str,
        /// What is wrong with it.
        cause: String,
    },
    /// A later program wrote it, in words that this one does not know.
    #[error(
        "the {name} is of {by}, and this {reader}, failover {PROGRAM}, does not understand it: {cause}: upgrade the {reader} first"
    )]
    Later {
        /// What it should have been.
        name: &'static str,
        /// Who does not understand it.
        reader: &'static str,
        /// Who wrote it.
        by: WrittenBy,
        /// What is not understood.
        cause: String,
    },
}

/// What stands in every message, however much else in it is not understood.
#[derive(Default, Deserialize)]
struct Head {
    #[serde(default)]
    written_by: Option<WrittenBy>,
    /// How reports named their program before formats had numbers.
    #[serde(default)]
    version: Option<String>,
}

impl<'t, T: Message> Written<&'t T> {
    /// A message of this program.
    pub fn ours(message: &'t T) -> Self {
        let by = WrittenBy::ours(T::FORMAT);
        Self { by, message }
    }
}

impl<T: Message> Written<T> {
    /// A message of this program that others are handed without its being sent.
    pub fn new(message: T) -> Self {
        let by = WrittenBy::ours(T::FORMAT);
        Self { by, message }
    }

    /// Reads a message.
    pub fn read(bytes: &[u8]) -> Result<Self, NotUnderstood> {
        let head: Option<Head> =
            serde_json::from_slice(bytes).map_err(|cause| garbled::<T>(&cause))?;
        let head = head.unwrap_or_default();
        let by = head.written_by.unwrap_or_else(|| WrittenBy {
            program: head.version.unwrap_or_default(),
            format: Format::UNNUMBERED,
        });
        let by = by.clipped();
        if !T::FORMAT.reads(by.format) {
            let cause = format!("formats are read up to {}.x", T::FORMAT.major);
            return Err(refused::<T>(by, cause));
        }
        let message: T =
            serde_json::from_slice(bytes).map_err(|cause| refused::<T>(by.clone(), cause))?;
        match lost(bytes, &message).map_err(|cause| garbled::<T>(&cause))? {
            Some(field) => Err(refused::<T>(by, format!("unknown field `{field}`"))),
            None => Ok(Self { by, message }),
        }
    }
}

/// The first field of a message that was not understood, where that is a reason to refuse it.
fn lost<T: Message>(bytes: &[u8], message: &T) -> Result<Option<String>, serde_json::Error> {
    if T::UNKNOWN == Unknown::Ignored {
        return Ok(None);
    }
    let mut found: Value = serde_json::from_slice(bytes)?;
    if let Value::Object(fields) = &mut found {
        fields.retain(|name, _| match T::UNKNOWN {
            Unknown::RefusedIn(binding) => binding.contains(&name.as_str()),
            Unknown::Refused | Unknown::Ignored => name != "written_by",
        });
    }
    Ok(not_understood(&found, &serde_json::to_value(message)?))
}

fn garbled<T: Message>(cause: &serde_json::Error) -> NotUnderstood {
    NotUnderstood::Garbled {
        name: T::NAME,
        cause: clipped(cause.to_string()),
    }
}

fn refused<T: Message>(by: WrittenBy, cause: impl ToString) -> NotUnderstood {
    let cause = clipped(cause.to_string());
    if by.format <= T::FORMAT {
        return NotUnderstood::Garbled {
            name: T::NAME,
            cause,
        };
    }
    NotUnderstood::Later {
        name: T::NAME,
        reader: T::READER,
        by,
        cause,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::wire::{HoldAsk, Order, PeerAnswer, PeerQuestion, PromoteAsk, ReportAnswer, What};

    fn question() -> Value {
        json!({"site": "aws", "epoch": 2, "mark": {"life": 1, "at_ms": 5}})
    }

    fn order() -> Value {
        json!({
            "plan": 3, "group": "shop", "site": "aws", "epoch": 2, "mark": {"life": 1, "at_ms": 5},
            "valid_for_ms": 5, "check_only": false, "what": "fence"
        })
    }

    fn read<T: Message>(message: &Value) -> Result<Written<T>, NotUnderstood> {
        Written::read(message.to_string().as_bytes())
    }

    /// The same with something set, by its path.
    fn with(mut message: Value, path: &str, value: Value) -> Value {
        let (parent, name) = path.rsplit_once('/').unwrap();
        message.pointer_mut(parent).unwrap()[name] = value;
        message
    }

    fn by(program: &str, format: &str) -> Value {
        json!({"program": program, "format": format})
    }

    #[test]
    fn what_is_written_says_by_whom_and_is_read() {
        let ask = HoldAsk {
            reason: "disks".to_owned(),
            lasting: std::time::Duration::from_secs(5),
        };
        let text = serde_json::to_value(Written::ours(&ask)).unwrap();
        let ours = by(PROGRAM, &FORMAT.to_string());
        assert_eq!(
            text,
            json!({"written_by": ours, "reason": "disks", "for_ms": 5000})
        );
        let found = read::<HoldAsk>(&text).unwrap();
        assert_eq!((found.by, found.message), (WrittenBy::ours(FORMAT), ask));
    }

    #[test]
    fn who_says_nothing_of_itself_is_of_before_formats_had_numbers() {
        let found = read::<PeerQuestion>(&question()).unwrap();
        assert_eq!(found.by, WrittenBy::default());
        // As a report said it then.
        let named = with(question(), "/version", json!("0.0.9"));
        let found = read::<PeerQuestion>(&named).unwrap();
        assert_eq!(found.by.program, "0.0.9");
        assert_eq!(found.by.format, Format::UNNUMBERED);
    }

    #[test]
    fn another_major_format_is_refused_by_name_whatever_stands_in_it() {
        let later = by("7.1.0", "2.0");
        for message in [question(), json!({"asked": "something else"})] {
            let message = with(message, "/written_by", later.clone());
            let refused = read::<PeerQuestion>(&message).unwrap_err();
            assert_eq!(
                refused.to_string(),
                format!(
                    "the question of the other agent is of failover 7.1.0 (format 2.0), and this agent, failover {PROGRAM}, does not understand it: formats are read up to 1.x: upgrade the agent first"
                )
            );
        }
    }

    #[test]
    fn one_more_fact_is_ignored_and_one_more_word_in_an_order_is_refused() {
        let later = by("7.1.0", "1.9");
        let facts = with(question(), "/written_by", later.clone());
        let facts = with(facts, "/mark/later", json!(7));
        let facts = with(facts, "/later", json!({"of": "a kind"}));
        assert_eq!(read::<PeerQuestion>(&facts).unwrap().message.epoch.0, 2);
        let table = [
            ("/later", json!(true), "unknown field `later`"),
            ("/mark/later", json!([1]), "unknown field `mark.later`"),
            ("/what", json!("burn"), "unknown variant `burn`"),
        ];
        for (path, value, why) in table {
            let order = with(order(), path, value);
            let refused = read::<Order>(&order).unwrap_err().to_string();
            assert!(
                refused.contains(why) && !refused.contains("upgrade"),
                "{refused}"
            );
            let order = with(order, "/written_by", later.clone());
            let refused = read::<Order>(&order).unwrap_err().to_string();
            let whose = "failover 7.1.0 (format 1.9)";
            for told in [why, whose, "upgrade the agent first"] {
                assert!(refused.contains(told), "{refused}");
            }
        }
        // What says nothing is no word more.
        let order = with(order(), "/later", json!(false));
        assert_eq!(read::<Order>(&order).unwrap().message.what, What::Fence);
    }

    #[test]
    fn a_dry_run_by_another_name_is_not_taken_for_the_real_thing() {
        let ask = json!({"to": "gcp", "reason": "x", "accept_data_loss": null, "override_fence": false, "dry_run": false});
        assert!(read::<PromoteAsk>(&ask).is_ok());
        let refused = read::<PromoteAsk>(&with(ask, "/only_rehearse", json!(true)));
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("unknown field `only_rehearse`"), "{text}");
    }

    #[test]
    fn only_what_moves_a_right_is_strict_in_the_answer_to_a_report() {
        let timers =
            crate::engine::policy::Policy::read("p", include_str!("../../policies/fast.toml"))
                .unwrap()
                .lease;
        let answer = json!({
            "receipt": {"postmark": {"life": 1, "at_ms": 5}, "taken": true}, "epoch": 2, "holder": "aws",
            "grant": {"Ok": {"epoch": 2}}, "window": {"window": "open", "entry": 1}, "timers": timers,
            "probe_every_ms": 1, "probe_timeout_ms": 1, "restart_grace_ms": 1
        });
        assert!(read::<ReportAnswer>(&answer).is_ok());
        for path in ["/later", "/receipt/later", "/receipt/postmark/later"] {
            let answer = with(answer.clone(), path, json!(1));
            assert!(read::<ReportAnswer>(&answer).is_ok(), "{path}");
        }
        for path in [
            "/grant/Ok/later",
            "/window/later",
            "/timers/later",
            "/timers/fence/later",
        ] {
            let answer = with(answer.clone(), path, json!(1));
            let refused = read::<ReportAnswer>(&answer).unwrap_err().to_string();
            let named = path[1..].replace('/', ".");
            assert!(
                refused.contains(&format!("unknown field `{named}`")),
                "{refused}"
            );
        }
    }

    #[test]
    fn what_is_no_message_is_called_by_its_name() {
        for bytes in ["", "null", "[]", "{", "\"x\"", "7", "{\"written_by\":7}"] {
            let refused = Written::<PeerAnswer>::read(bytes.as_bytes()).unwrap_err();
            assert!(
                matches!(refused, NotUnderstood::Garbled { .. }),
                "{refused}"
            );
            let text = refused.to_string();
            assert!(
                text.starts_with("the answer of the other agent cannot be read: "),
                "{text}"
            );
        }
        let long = json!({"to": "x".repeat(100_000)}).to_string();
        let refused = Written::<PromoteAsk>::read(long.as_bytes()).unwrap_err();
        assert!(refused.to_string().len() < 1500);
    }
}
