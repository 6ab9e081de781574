//! The decision log's entries and the chain of digests that links them.
//!
//! One line per entry: 64 hexadecimal digits, a space, and the entry as RFC 8785 canonical
//! JSON. The digits are the SHA-256 of exactly the JSON's bytes; the JSON contains the digest of
//! the previous line. So an auditor can check a log with a few lines in any language.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::decision::Decision;
pub use super::digest::{Digest, Fit, LogMark, Recent};
use super::format::{Format, PROGRAM, not_understood};
use super::instance::InstanceChange;
use super::plan::Plan;
use super::saga::{Command, Ending, GroupState, Happening, Moment, SagaError};
use super::situation::Situation;
use super::step::{Event, Step};
use super::synchrony::WindowChange;
use super::text::{WORD_LIMIT, clip, clip_to, clipped};
use super::topology::{GroupName, Topology};
use super::units::{Epoch, WallTime};

/// The format of the entries that are written.
pub const FORMAT: Format = Format::new(1, 1);

/// One entry of the decision log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// From 1 upwards, without gaps.
    pub seq: u64,
    /// Wall-clock time: for people only.
    pub at: WallTime,
    /// Milliseconds on the monotonic clock of the boot `boot`: for durations.
    pub mono_ms: u64,
    /// Identifies one boot of one machine.
    pub boot: String,
    /// The group it is about.
    pub group: GroupName,
    /// The epoch it was written in.
    pub epoch: Epoch,
    /// Who wrote it: `controller`, or the operator whose command it is.
    pub actor: String,
    /// The version of the program that wrote it.
    pub version: String,
    /// The digest of policy and configuration in force.
    pub settings: Digest,
    /// The kind of entry, with its content.
    pub body: Body,
    /// The digest of the previous entry; zeros in the first.
    pub previous: Digest,
}

impl Entry {
    /// Wall-clock and monotonic time of the entry.
    fn moment(&self) -> Moment {
        Moment {
            wall: self.at,
            mono: Duration::from_millis(self.mono_ms),
            boot: self.boot.clone(),
        }
    }
}

/// The content of an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "entry")]
pub enum Body {
    /// The log begins. Always the first entry, and only that one.
    Opened {
        /// What the log is about.
        topology: Topology,
        /// The format in which it begins; `None` from before formats had numbers.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        format: Option<Format>,
    },
    /// An operator's command was accepted.
    Command {
        /// The command, with its operator and reason.
        command: Command,
    },
    /// The engine decided, on this evidence.
    Decision {
        /// The verdict, reasons and gates.
        decision: Box<Decision>,
        /// The evidence: replaying it must lead to the same decision.
        situation: Box<Situation>,
    },
    /// A plan was opened. Its number is this entry's `seq`.
    Plan {
        /// The plan.
        plan: Box<Plan>,
    },
    /// A step changed.
    Step {
        /// The plan's number.
        plan: u64,
        /// The step's index in it.
        index: usize,
        /// The step itself.
        step: Step,
        /// What happened to it.
        event: Event,
    },
    /// A plan ended.
    Outcome {
        /// The plan's number.
        plan: u64,
        /// Done, undone or stuck.
        ending: Ending,
    },
    /// From here on the active site may, or may not, acknowledge writes that its standby does not
    /// have.
    Window {
        /// Opened or closed.
        change: WindowChange,
    },
    /// From here on a site's lease and its agent's reports are those of one instance.
    Instance {
        /// The site, its new instance and its previous one.
        change: InstanceChange,
    },
    /// Something worth finding here later.
    Note {
        /// A stable code.
        code: String,
        /// The note itself, for people.
        text: String,
    },
}

impl Body {
    /// The entry with all its texts bounded. What a decision, a plan or a command holds was bounded
    /// on arrival: a decision must follow again from the situation logged beside it.
    #[must_use]
    pub fn clipped(mut self) -> Self {
        match &mut self {
            Body::Step { event, .. } => event.clip(),
            Body::Outcome { ending, .. } => match ending {
                Ending::Done => {}
                Ending::Undone { why } | Ending::Stuck { why } => clip(why),
            },
            Body::Window { change } => match change {
                WindowChange::Opened { why } => clip(why),
                WindowChange::Closed { .. } => {}
            },
            Body::Note { code, text } => {
                clip_to(code, WORD_LIMIT);
                clip(text);
            }
            Body::Opened { .. }
            | Body::Command { .. }
            | Body::Decision { .. }
            | Body::Plan { .. }
            | Body::Instance { .. } => {}
        }
        self
    }

    /// What the entry means for the state of the group; `None` if nothing.
    pub fn happening<'e>(&'e self, actor: &'e str) -> Option<Happening<'e>> {
        match self {
            Body::Command { command } => Some(Happening::Commanded {
                operator: actor,
                command,
            }),
            Body::Plan { plan } => Some(Happening::Planned(plan)),
            Body::Step {
                plan, index, event, ..
            } => Some(Happening::Stepped {
                plan: *plan,
                index: *index,
                event,
            }),
            Body::Window { change } => Some(Happening::Windowed(change)),
            Body::Instance { change } => Some(Happening::Named(change)),
            Body::Outcome { plan, ending } => Some(Happening::Ended {
                plan: *plan,
                ending,
            }),
            Body::Opened { .. } | Body::Decision { .. } | Body::Note { .. } => None,
        }
    }
}

/// Why a line does not verify.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// It is not 64 digits, a space and JSON.
    #[error("the line is not 64 hexadecimal digits, a space and JSON")]
    Form,
    /// The digest is not that of the JSON: the line was altered.
    #[error("the digest does not fit the entry: something in it was altered")]
    Digest,
    /// The JSON is not an entry.
    #[error("the entry cannot be read: {0}")]
    Entry(String),
    /// Another version wrote what this one does not know; its digest fits.
    #[error(
        "failover {version} wrote it, and this one, failover {PROGRAM}, does not understand it: {what}"
    )]
    NotUnderstood {
        /// The version that wrote it.
        version: String,
        /// What is not understood.
        what: String,
    },
    /// It does not follow on the entry before.
    #[error("it does not follow on the entry before it: one was altered, removed or added")]
    Link,
    /// Its number does not follow the previous one.
    #[error("it has number {found}, expected {expected}")]
    Number {
        /// The number in the entry.
        found: u64,
        /// The number that should be there.
        expected: u64,
    },
    /// The first entry is not `opened`, or a later one is.
    #[error(
        "a log must begin with one entry that says what it is about, and have no other such entry"
    )]
    Opening,
    /// Longer than the limit.
    #[error("it is longer than {limit} bytes")]
    TooLong {
        /// The limit in bytes.
        limit: usize,
    },
    /// The entry would not read back as it was written, such as a number that JSON rounds.
    #[error("it would read back as something else: {0}")]
    Unfaithful(String),
    /// The entry contradicts the state of the group.
    #[error("it records something impossible: {0}")]
    Saga(#[from] SagaError),
}

/// The end of a chain, and what the chain amounts to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// The number of entries.
    pub entries: u64,
    /// The digest of the last entry; zeros if there is none.
    pub head: Digest,
    /// The digests of the last entries.
    pub recent: Recent,
    /// What the log is about, and the state of the group; `None` before the first entry.
    pub about: Option<(Topology, GroupState)>,
}

impl Default for Chain {
    /// An empty chain.
    fn default() -> Self {
        Self {
            entries: 0,
            head: Digest::ZERO,
            recent: Recent::default(),
            about: None,
        }
    }
}

impl Chain {
    /// The state of the group; `None` before the first entry.
    pub fn state(&self) -> Option<&GroupState> {
        self.about.as_ref().map(|(_, state)| state)
    }

    /// Verifies one line (without its line feed) and applies it.
    pub fn take(&mut self, line: &[u8]) -> Result<Entry, Broken> {
        let (digest, entry) = read_line(line)?;
        self.follow(digest, &entry)?;
        Ok(entry)
    }

    /// Applies a new entry and returns its line, with the line feed. An entry that is refused, such
    /// as one that would not read back byte for byte, changes nothing.
    pub fn append(&mut self, entry: &Entry) -> Result<Vec<u8>, Broken> {
        let json = canonical(entry)?;
        let read = faithful(entry, &json)?;
        let digest = Digest::of(&json);
        self.follow(digest, &read)?;
        let mut line = digest.to_string().into_bytes();
        line.push(b' ');
        line.extend(json);
        line.push(b'\n');
        Ok(line)
    }

    fn follow(&mut self, digest: Digest, entry: &Entry) -> Result<(), Broken> {
        let expected = self.entries.saturating_add(1);
        if entry.previous != self.head {
            return Err(Broken::Link);
        }
        if entry.seq != expected {
            return Err(Broken::Number {
                found: entry.seq,
                expected,
            });
        }
        match (&entry.body, &mut self.about) {
            (Body::Opened { topology, .. }, about @ None) => {
                *about = Some((topology.clone(), GroupState::new(topology)));
            }
            (Body::Opened { .. }, Some(_)) | (_, None) => return Err(Broken::Opening),
            (body, Some((_, state))) => {
                if let Some(happening) = body.happening(&entry.actor) {
                    let mut next = state.clone();
                    next.apply(entry.seq, &entry.moment(), &happening)?;
                    *state = next;
                }
            }
        }
        self.entries = expected;
        self.head = digest;
        self.recent.push(digest);
        Ok(())
    }
}

/// The length of the digest and the space at the start of a line.
const DIGEST_DIGITS: usize = 64;

/// The longest line that is written, in bytes. A decision with its evidence takes about 10 KiB, and
/// 100 KiB if every text in it has its maximum length.
pub const WRITTEN_LINE: usize = 1 << 20;

/// The longest line that is read. It stays above every writing limit, past and future: no change of
/// that limit may make a log unreadable.
pub const READ_LINE: usize = 64 << 20;
const _: () = assert!(WRITTEN_LINE < READ_LINE);

/// The entry as its line will be read. An error if that is not the entry that was to be written.
fn faithful(entry: &Entry, json: &[u8]) -> Result<Entry, Broken> {
    let unfaithful = |cause: serde_json::Error| Broken::Unfaithful(clipped(cause.to_string()));
    let longest = WRITTEN_LINE.saturating_sub(DIGEST_DIGITS.saturating_add(2));
    if json.len() > longest {
        let limit = WRITTEN_LINE;
        return Err(Broken::TooLong { limit });
    }
    // Canonical JSON writes every number as a double: rounding shows in the values only.
    let wanted = serde_json::to_value(entry).map_err(unfaithful)?;
    let found: serde_json::Value = serde_json::from_slice(json).map_err(unfaithful)?;
    if wanted != found {
        let text = "a number in it is larger than 2^53 - 1".to_owned();
        return Err(Broken::Unfaithful(text));
    }
    let read: Entry = serde_json::from_slice(json).map_err(unfaithful)?;
    if canonical(&read)? != json {
        let text = "it would not read back byte for byte".to_owned();
        return Err(Broken::Unfaithful(text));
    }
    Ok(read)
}

/// Reads one line (without its line feed) and checks its digest, but not its place in the chain.
pub fn read_line(line: &[u8]) -> Result<(Digest, Entry), Broken> {
    if line.len() >= READ_LINE {
        return Err(Broken::TooLong { limit: READ_LINE });
    }
    let (front, rest) = line.split_at_checked(DIGEST_DIGITS).ok_or(Broken::Form)?;
    let json = rest.strip_prefix(b" ").ok_or(Broken::Form)?;
    let front = std::str::from_utf8(front).map_err(|_cause| Broken::Form)?;
    let digest: Digest = front.parse().map_err(|_cause| Broken::Form)?;
    if Digest::of(json) != digest {
        return Err(Broken::Digest);
    }
    let entry = understood(json).map_err(|what| match serde_json::from_slice(json) {
        Ok(Version { version }) => Broken::NotUnderstood {
            version: clipped(version),
            what: clipped(what),
        },
        Err(_) => Broken::Entry(clipped(what)),
    })?;
    Ok((digest, entry))
}

/// What every entry says, however much else in it is not understood.
#[derive(Deserialize)]
struct Version {
    version: String,
}

/// The entry in a line; or what of it is not understood. The state of the group follows from entries, so
/// nothing of one is passed over, but for the evidence of a decision, from which no state follows.
fn understood(json: &[u8]) -> Result<Entry, String> {
    let entry: Entry = serde_json::from_slice(json).map_err(|cause| cause.to_string())?;
    if let Body::Opened {
        format: Some(format),
        ..
    } = &entry.body
        && !FORMAT.reads(*format)
    {
        return Err(format!("the log is of format {format}"));
    }
    if matches!(entry.body, Body::Decision { .. }) {
        return Ok(entry);
    }
    let found = serde_json::from_slice(json).map_err(|cause| cause.to_string())?;
    let read = serde_json::to_value(&entry).map_err(|cause| cause.to_string())?;
    match not_understood(&found, &read) {
        None => Ok(entry),
        Some(field) => Err(format!("unknown field `{field}`")),
    }
}

/// RFC 8785 canonical JSON.
pub fn canonical<T: Serialize>(value: &T) -> Result<Vec<u8>, Broken> {
    serde_json_canonicalizer::to_vec(value).map_err(|cause| Broken::Entry(cause.to_string()))
}

#[cfg(test)]
mod tests {
    use super::super::decision::decide;
    use super::super::policy::Policy;
    use super::super::situation::samples::{aws, gcp, healthy};
    use super::*;

    fn topology() -> Topology {
        Topology {
            group: "shop".parse().unwrap(),
            first: aws(),
            second: gcp(),
            traffic: vec![],
        }
    }

    fn note(chain: &Chain, text: &str) -> Entry {
        entry(
            chain,
            Body::Note {
                code: "test".into(),
                text: text.into(),
            },
        )
    }

    fn entry(chain: &Chain, body: Body) -> Entry {
        Entry {
            seq: chain.entries + 1,
            at: WallTime(1_790_000_000_000),
            mono_ms: 5,
            boot: "b".into(),
            group: "shop".parse().unwrap(),
            epoch: Epoch(1),
            actor: "controller".into(),
            version: "0".into(),
            settings: Digest::ZERO,
            body,
            previous: chain.head,
        }
    }

    fn four_lines() -> Vec<u8> {
        let mut chain = Chain::default();
        let opened = Body::Opened {
            topology: topology(),
            format: Some(FORMAT),
        };
        let mut log = chain.append(&entry(&chain.clone(), opened)).unwrap();
        let policy = Policy::read("p", include_str!("../../policies/fast.toml")).unwrap();
        let decision = Box::new(decide(&healthy(), &policy));
        let body = Body::Decision {
            decision,
            situation: Box::new(healthy()),
        };
        log.extend(
            chain
                .append(&note(&chain.clone(), "ü \"quoted\" \u{7}"))
                .unwrap(),
        );
        log.extend(chain.append(&entry(&chain.clone(), body)).unwrap());
        log.extend(chain.append(&note(&chain.clone(), "last")).unwrap());
        log
    }

    fn verify(log: &[u8]) -> Result<u64, (u64, Broken)> {
        let mut chain = Chain::default();
        for line in log.split_inclusive(|byte| *byte == b'\n') {
            let line = line
                .strip_suffix(b"\n")
                .ok_or((chain.entries + 1, Broken::Form))?;
            chain
                .take(line)
                .map_err(|broken| (chain.entries + 1, broken))?;
        }
        Ok(chain.entries)
    }

    #[test]
    fn what_is_appended_verifies_and_reads_back() {
        assert_eq!(verify(&four_lines()), Ok(4));
    }

    #[test]
    fn every_altered_byte_is_found_and_its_entry_named() {
        let log = four_lines();
        let mut number = 1;
        for at in 0..log.len() {
            for flip in [1, 0x20, 0x80] {
                let mut altered = log.clone();
                altered[at] ^= flip;
                let (named, _) = verify(&altered).unwrap_err();
                assert_eq!(named, number, "byte {at} flipped by {flip:#x}");
            }
            number += u64::from(log[at] == b'\n');
        }
    }

    #[test]
    fn a_missing_and_a_doubled_entry_are_found() {
        let log = four_lines();
        let lines: Vec<&[u8]> = log.split_inclusive(|byte| *byte == b'\n').collect();
        assert_eq!(
            verify(&[lines[0], lines[2]].concat()),
            Err((2, Broken::Link))
        );
        assert_eq!(
            verify(&[lines[0], lines[0]].concat()),
            Err((2, Broken::Link))
        );
        assert_eq!(
            verify(&[lines[1], lines[2]].concat()),
            Err((1, Broken::Link))
        );
    }

    #[test]
    fn an_entry_that_would_not_read_back_is_refused_and_changes_nothing() {
        let mut chain = Chain::default();
        let opened = Body::Opened {
            topology: topology(),
            format: Some(FORMAT),
        };
        chain.append(&entry(&chain.clone(), opened)).unwrap();
        let before = chain.clone();
        let mut refuse = |change: &dyn Fn(&mut Entry)| {
            let mut entry = note(&chain, "x");
            change(&mut entry);
            let refused = chain.append(&entry).unwrap_err();
            assert_eq!(chain, before, "{refused}");
            refused
        };
        for number in [u64::MAX, (1 << 53) + 1, 1 << 53] {
            let refused = refuse(&|entry| entry.epoch = Epoch(number));
            assert!(matches!(refused, Broken::Unfaithful(_)), "{refused}");
        }
        let refused = refuse(&|entry| entry.mono_ms = (1 << 53) + 1);
        assert!(refused.to_string().contains("2^53"), "{refused}");
        let long = |length: usize| Body::Note {
            code: "n".into(),
            text: "x".repeat(length),
        };
        let refused = refuse(&|entry| entry.body = long(WRITTEN_LINE));
        let limit = WRITTEN_LINE;
        assert_eq!(refused, Broken::TooLong { limit });
        let rest = canonical(&note(&before, "")).unwrap().len() + DIGEST_DIGITS + 2;
        let refused = refuse(&|entry| entry.body = long(WRITTEN_LINE - rest + 4));
        assert_eq!(refused, Broken::TooLong { limit });
        let longest = entry(&chain, long(WRITTEN_LINE - rest + 3));
        assert_eq!(chain.append(&longest).unwrap().len(), WRITTEN_LINE);
    }

    /// One entry of each kind.
    fn one_of_each() -> Vec<serde_json::Value> {
        let policy = Policy::read("p", include_str!("../../policies/fast.toml")).unwrap();
        let last = super::super::lease::LastRight {
            site: aws(),
            granted: super::super::units::MonoTime::default(),
            alive: Some(true),
            machine: None,
        };
        let plan = Plan::failover(&healthy().active_lost(), &topology(), &last, WallTime(0));
        let started = |index: usize| Body::Step {
            plan: 4,
            index,
            step: plan.steps[index].clone(),
            event: Event::Started,
        };
        let done = |fact| Body::Step {
            plan: 4,
            index: 0,
            step: plan.steps[0].clone(),
            event: Event::Done { fact },
        };
        let bodies = [
            Body::Opened {
                topology: topology(),
                format: Some(FORMAT),
            },
            Body::Command {
                command: Command::Release {
                    reason: "x".into(),
                    rebuilt: true,
                },
            },
            Body::Decision {
                decision: Box::new(decide(&healthy(), &policy)),
                situation: Box::new(healthy()),
            },
            Body::Plan {
                plan: Box::new(plan.clone()),
            },
            started(0),
            done(super::super::step::Fact::Done),
            Body::Instance {
                change: InstanceChange {
                    site: aws(),
                    instance: "68bb8cb31b3ca56bf8ddc6e5641e7cc5@414f3880665df00f"
                        .parse()
                        .unwrap(),
                    before: None,
                },
            },
            Body::Outcome {
                plan: 4,
                ending: Ending::Undone { why: "x".into() },
            },
            Body::Window {
                change: WindowChange::Opened { why: "x".into() },
            },
            Body::Note {
                code: "x".into(),
                text: "x".into(),
            },
        ];
        let entries = bodies.map(|body| entry(&Chain::default(), body));
        let json = entries.map(|entry| serde_json::to_value(entry).unwrap());
        json.into()
    }

    /// Every object in a value, by its path.
    fn objects(value: &serde_json::Value, path: &str, found: &mut Vec<String>) {
        use serde_json::Value;

        match value {
            Value::Object(fields) => {
                found.push(path.to_owned());
                for (name, value) in fields {
                    objects(value, &format!("{path}/{name}"), found);
                }
            }
            Value::Array(all) => {
                for (index, value) in all.iter().enumerate() {
                    objects(value, &format!("{path}/{index}"), found);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    fn read(entry: &serde_json::Value) -> Result<Entry, Broken> {
        let json = canonical(entry).unwrap();
        let line = [format!("{} ", Digest::of(&json)).into_bytes(), json].concat();
        read_line(&line).map(|(_, entry)| entry)
    }

    #[test]
    fn what_a_later_program_wrote_into_an_entry_is_refused_by_name_wherever_it_stands() {
        let mut refused = 0;
        for mut entry in one_of_each() {
            assert!(read(&entry).is_ok(), "{entry}");
            entry["version"] = "7.1.0".into();
            let with = |place: &str, value: serde_json::Value| {
                let mut later = entry.clone();
                later.pointer_mut(place).unwrap()["later"] = value;
                read(&later)
            };
            if entry["body"]["entry"] == "decision" {
                // No state follows from its evidence.
                for place in ["", "/decision/loss", "/situation", "/situation/replication"] {
                    assert!(with(&format!("/body{place}"), 7.into()).is_ok(), "{place}");
                }
                continue;
            }
            let mut places = Vec::new();
            objects(&entry, "", &mut places);
            for place in places {
                let text = with(&place, 7.into()).unwrap_err().to_string();
                let field = format!("{place}/later")[1..].replace('/', ".");
                let whose = "failover 7.1.0 wrote it, and this one";
                for told in [whose, &format!("unknown field `{field}`")] {
                    assert!(text.contains(told), "{text}");
                }
                refused += 1;
                // What says nothing is no word more.
                assert!(with(&place, false.into()).is_ok(), "{place} of {entry}");
            }
        }
        assert!(refused > 40, "only {refused} places");
    }

    #[test]
    fn an_unknown_kind_of_entry_and_a_later_format_are_refused_by_name() {
        let [opened, note] = [0, 9].map(|index| one_of_each().swap_remove(index));
        let table = [
            (&note, "/body/entry", "mirror", "unknown variant `mirror`"),
            (&opened, "/body/format", "2.0", "the log is of format 2.0"),
        ];
        for (entry, path, value, what) in table {
            let mut later = entry.clone();
            later["version"] = "7.1.0".into();
            *later.pointer_mut(path).unwrap() = value.into();
            let Err(Broken::NotUnderstood {
                version,
                what: told,
            }) = read(&later)
            else {
                panic!("{later} is read");
            };
            assert_eq!(version, "7.1.0");
            assert!(told.contains(what), "{told}");
        }
        // Another second number is no reason.
        let mut minor = opened.clone();
        minor["body"]["format"] = "1.9".into();
        assert!(read(&minor).is_ok());
        // Nor is none: a log of before formats had numbers.
        minor["body"].as_object_mut().unwrap().remove("format");
        assert!(read(&minor).is_ok());
    }

    #[test]
    fn what_a_step_or_a_note_says_is_cut_before_it_is_written() {
        use super::super::text::TEXT_LIMIT;

        let long = || "\n".repeat(1 << 20);
        let bodies = [
            Body::Note {
                code: long(),
                text: long(),
            },
            Body::Window {
                change: WindowChange::Opened { why: long() },
            },
            Body::Outcome {
                plan: 7,
                ending: Ending::Stuck { why: long() },
            },
            Body::Step {
                plan: 7,
                index: 0,
                step: Step::VerifyOutside,
                event: Event::Failed { why: long() },
            },
            Body::Step {
                plan: 7,
                index: 0,
                step: Step::VerifyOutside,
                event: Event::Done {
                    fact: super::super::step::Fact::Seen {
                        places: (0..200)
                            .map(|n| (format!("{n}") + &"\n".repeat(5000), "\n".repeat(5000)))
                            .collect(),
                        unseen: std::collections::BTreeMap::new(),
                        receipts: std::collections::BTreeMap::new(),
                        confirmed: [("dns".parse().unwrap(), long())].into(),
                    },
                },
            },
            Body::Step {
                plan: 7,
                index: 0,
                step: Step::VerifyOutside,
                event: Event::Done {
                    fact: super::super::step::Fact::Moved {
                        already: false,
                        receipt: Some(
                            super::super::receipt::Receipt::replacing(
                                vec![long(); 200],
                                vec![long(); 200],
                            )
                            .named("change", long()),
                        ),
                    },
                },
            },
        ];
        for body in bodies {
            let cut = body.clipped();
            let json = canonical(&cut).unwrap();
            assert!(json.len() < 128 * TEXT_LIMIT, "{} bytes", json.len());
            assert_eq!(cut.clone().clipped(), cut);
        }
    }
}
