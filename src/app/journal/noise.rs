//! What outsiders can cause as often as they like: the first event is logged at once, and after
//! that a count with its origins once a minute. So nobody can fill the log by connecting, and
//! nobody can hide behind somebody noisier.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use crate::engine::chain::Body;
use crate::engine::text::{FACT_LIMIT, NAME_LIMIT, clip_to};
use crate::engine::units::MonoTime;

/// The minimum time between two notes of one kind.
pub const NOTE_EVERY: Duration = Duration::from_secs(60);

/// How many origins are counted separately in one note. All others are counted together.
const COUNTED_APART: usize = 8;

/// The kind of event: the codes of the notes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Noise {
    /// A connection was rejected before any request.
    ConnectionRejected,
    /// Somebody reported under the name of an agent that they are not.
    AgentRejected,
    /// Somebody reported under the name of an observer that they are not, or about what an observer
    /// does not probe.
    ObserverRejected,
    /// An agent reported about something that it does not probe.
    TargetRejected,
    /// An agent or an observer of a later program reported what this controller does not understand.
    ReportNotUnderstood,
    /// A command of a person was refused.
    CommandRefused,
    /// Verdicts changed too often to log each one.
    DecisionsLeftOut,
}

impl Noise {
    /// The stable code.
    pub fn code(self) -> &'static str {
        match self {
            Noise::ConnectionRejected => "connection-rejected",
            Noise::AgentRejected => "agent-rejected",
            Noise::ObserverRejected => "observer-rejected",
            Noise::TargetRejected => "target-rejected",
            Noise::ReportNotUnderstood => "report-not-understood",
            Noise::CommandRefused => "command-refused",
            Noise::DecisionsLeftOut => "decisions-left-out",
        }
    }
}

/// One event.
#[derive(Debug)]
pub(super) struct Told {
    noise: Noise,
    who: String,
    text: String,
}

impl Told {
    pub(super) fn new(noise: Noise, who: &str, text: &str) -> Self {
        let mut who = who.to_owned();
        clip_to(&mut who, NAME_LIMIT);
        let mut text = text.to_owned();
        clip_to(&mut text, FACT_LIMIT);
        Self { noise, who, text }
    }
}

/// The events of each kind that are not logged yet.
#[derive(Debug, Default)]
pub(super) struct Unsaid(BTreeMap<Noise, Burst>);

#[derive(Debug)]
struct Burst {
    /// When the last note was written.
    noted: MonoTime,
    count: u64,
    by: BTreeMap<String, u64>,
    latest: String,
}

impl Unsaid {
    /// Adds an event; returns what must be logged now, if anything.
    pub(super) fn take(&mut self, told: Told, now: MonoTime) -> Option<Body> {
        let Told { noise, who, text } = told;
        let Some(burst) = self.0.get_mut(&noise) else {
            let burst = Burst {
                noted: now,
                count: 0,
                by: BTreeMap::new(),
                latest: String::new(),
            };
            self.0.insert(noise, burst);
            return Some(note(noise, text));
        };
        burst.count = burst.count.saturating_add(1);
        if burst.by.len() < COUNTED_APART || burst.by.contains_key(&who) {
            let times = burst.by.entry(who).or_default();
            *times = times.saturating_add(1);
        }
        burst.latest = text;
        None
    }

    /// When something must be logged next.
    pub(super) fn due(&self) -> Option<MonoTime> {
        let due = self.0.values().map(|burst| burst.noted.plus(NOTE_EVERY));
        due.min()
    }

    /// What must be logged by now. A kind that has been quiet is forgotten: its next event is
    /// logged at once.
    pub(super) fn flush(&mut self, now: MonoTime) -> Vec<Body> {
        let mut notes = Vec::new();
        self.0.retain(|noise, burst| {
            if now.since(burst.noted) < NOTE_EVERY {
                return true;
            }
            if burst.count == 0 {
                return false;
            }
            notes.push(note(*noise, burst.summary()));
            burst.noted = now;
            burst.count = 0;
            burst.by.clear();
            true
        });
        notes
    }
}

impl Burst {
    fn summary(&self) -> String {
        let mut text = format!("{} more within {} s, by", self.count, NOTE_EVERY.as_secs());
        let mut rest = self.count;
        for (who, times) in &self.by {
            // Writing to a String cannot fail.
            write!(text, " {who} ({times}),").unwrap_or_default();
            rest = rest.saturating_sub(*times);
        }
        if rest > 0 {
            write!(text, " others ({rest}),").unwrap_or_default();
        }
        write!(text, " the last: {}", self.latest).unwrap_or_default();
        text
    }
}

fn note(noise: Noise, text: String) -> Body {
    tracing::warn!(code = noise.code(), text, "noted");
    Body::Note {
        code: noise.code().to_owned(),
        text,
    }
    .clipped()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> MonoTime {
        MonoTime(Duration::from_secs(seconds))
    }

    fn text(body: Body) -> String {
        let Body::Note { text, .. } = body else {
            panic!("{body:?}");
        };
        text
    }

    #[test]
    fn the_first_is_written_at_once_and_the_rest_is_counted() {
        let mut unsaid = Unsaid::default();
        let told = |who: &str| Told::new(Noise::AgentRejected, who, "not an agent");
        assert_eq!(unsaid.due(), None);
        let first = unsaid.take(told("gcp"), at(100)).unwrap();
        assert_eq!(text(first), "not an agent");
        for _ in 0..5000 {
            assert_eq!(unsaid.take(told("gcp"), at(101)), None);
        }
        assert_eq!(unsaid.take(told("rome"), at(102)), None);
        // Another kind does not wait for this one.
        let other = Told::new(Noise::CommandRefused, "bob", "no");
        assert!(unsaid.take(other, at(103)).is_some());
        assert_eq!(unsaid.due(), Some(at(160)));
        assert!(unsaid.flush(at(159)).is_empty());
        let notes: Vec<String> = unsaid.flush(at(160)).into_iter().map(text).collect();
        assert_eq!(
            notes,
            ["5001 more within 60 s, by gcp (5000), rome (1), the last: not an agent"]
        );
        assert!(unsaid.flush(at(219)).is_empty());
        assert!(unsaid.flush(at(220)).is_empty(), "nothing came");
        assert!(unsaid.take(told("gcp"), at(221)).is_some());
    }

    #[test]
    fn many_who_knock_take_bounded_memory_and_one_bounded_note() {
        let mut unsaid = Unsaid::default();
        for who in 0..100_000 {
            let long = "x".repeat(500);
            let told = Told::new(Noise::ConnectionRejected, &format!("{who}{long}"), &long);
            unsaid.take(told, at(1));
        }
        assert_eq!(unsaid.0.len(), 1);
        assert_eq!(unsaid.0[&Noise::ConnectionRejected].by.len(), COUNTED_APART);
        let notes = unsaid.flush(at(100));
        assert_eq!(notes.len(), 1);
        let text = text(notes.into_iter().next().unwrap());
        assert!(
            text.starts_with("99999 more within 60 s, by 1xxx"),
            "{text}"
        );
        assert!(text.len() <= crate::engine::text::TEXT_LIMIT);
    }
}
