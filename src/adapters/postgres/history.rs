//! Where a timeline comes from. Two timelines with one number are not one timeline (postgres.md P2);
//! a standby whose history is not part of the primary's can never follow it (postgres.md P4).

use std::time::Duration;

use tokio_postgres::types::Type;

use super::connect::Database;
use crate::engine::observation::ProbeFailure;
use crate::engine::units::{Lsn, Timeline};

/// The end of one timeline in the history of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switch {
    /// The timeline that was left.
    pub timeline: Timeline,
    /// Where it was left: nothing from here on belongs to the history.
    pub at: Lsn,
}

/// A timeline and all that it descends from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    timeline: Timeline,
    switches: Vec<Switch>,
}

/// Why a text is not the history of a timeline.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "line {line} of the history of timeline {timeline} is invalid: {why}: fetch the file again \
     from the server that created the timeline"
)]
pub struct HistoryError {
    timeline: Timeline,
    line: usize,
    why: String,
}

impl History {
    /// Reads the text of `0000000N.history`; timeline 1 has none, give an empty text.
    pub fn parse(timeline: Timeline, text: &str) -> Result<Self, HistoryError> {
        let mut switches: Vec<Switch> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line_text = line.trim();
            if line_text.is_empty() || line_text.starts_with('#') {
                continue;
            }
            let wrong = |why: &str| HistoryError {
                timeline,
                line: index + 1,
                why: why.to_owned(),
            };
            let mut words = line_text.split_whitespace();
            let parent = words
                .next()
                .and_then(|word| word.parse().ok().map(Timeline))
                .ok_or_else(|| wrong("it does not start with the number of a timeline"))?;
            let at: Lsn = words
                .next()
                .and_then(|word| word.parse().ok())
                .ok_or_else(|| wrong("no log position follows the timeline"))?;
            if parent >= timeline {
                return Err(wrong("a timeline descends from lower ones only"));
            }
            if switches
                .last()
                .is_some_and(|last| last.timeline >= parent || last.at > at)
            {
                return Err(wrong("it lies before the line above"));
            }
            switches.push(Switch {
                timeline: parent,
                at,
            });
        }
        Ok(Self { timeline, switches })
    }

    /// The timeline itself.
    pub fn timeline(&self) -> Timeline {
        self.timeline
    }

    /// The timelines it descends from, oldest first.
    pub fn switches(&self) -> &[Switch] {
        &self.switches
    }

    /// Whether everything up to `position` on `timeline` is part of this history: a standby that
    /// has it can follow a server on this timeline, and has nothing that the server lacks as long
    /// as the server itself is that far.
    pub fn holds(&self, timeline: Timeline, position: Lsn) -> bool {
        timeline == self.timeline
            || self
                .switches
                .iter()
                .any(|switch| switch.timeline == timeline && position <= switch.at)
    }

    /// Whether `other` is this timeline or one that it descends from, by the whole line of
    /// switches and not by numbers alone.
    pub fn descends_from(&self, other: &History) -> bool {
        if self.timeline == other.timeline {
            return self.switches == other.switches;
        }
        let shared = self
            .switches
            .iter()
            .position(|switch| switch.timeline == other.timeline);
        shared.is_some_and(|count| self.switches.get(..count) == Some(&other.switches))
    }
}

/// Reads the history of `timeline` from a server that has it. Needs a superuser, or
/// `pg_read_server_files` with EXECUTE on `pg_read_file(text)`.
pub async fn read_history(
    database: &Database,
    timeline: Timeline,
    timeout: Duration,
) -> Result<History, ProbeFailure> {
    let text: String = if timeline <= Timeline(1) {
        String::new()
    } else {
        let file = format!("pg_wal/{:08X}.history", timeline.0);
        database
            .read(
                "SELECT to_json(pg_read_file($1))::text",
                &[(&file, Type::TEXT)],
                timeout,
            )
            .await?
    };
    History::parse(timeline, &text).map_err(|error| ProbeFailure::Protocol(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREE: &str = "1\t0/3000000\tno recovery target specified\n\n2\t0/5000060\tbefore x\n";

    fn history(timeline: u32, text: &str) -> History {
        History::parse(Timeline(timeline), text).unwrap()
    }

    #[test]
    fn a_position_beyond_the_fork_is_not_part_of_the_history() {
        let three = history(3, THREE);
        assert!(three.holds(Timeline(1), Lsn(0x300_0000)));
        assert!(!three.holds(Timeline(1), Lsn(0x300_0001)));
        assert!(three.holds(Timeline(2), Lsn(0x500_0060)));
        assert!(three.holds(Timeline(3), Lsn(0x900_0000)));
        assert!(!three.holds(Timeline(4), Lsn(0)));
    }

    #[test]
    fn two_timelines_with_one_number_are_told_apart_by_where_they_forked() {
        let ours = history(2, "1\t0/3000000\tx");
        let theirs = history(2, "1\t0/3000100\tx");
        assert!(ours.descends_from(&ours) && !ours.descends_from(&theirs));
        let three = history(3, THREE);
        assert!(three.descends_from(&ours) && !three.descends_from(&theirs));
        assert!(three.descends_from(&history(1, "")));
        assert!(!ours.descends_from(&three));
    }

    #[test]
    fn a_broken_history_names_its_line() {
        for (text, line) in [
            ("x\t0/1", 1),
            ("1", 1),
            ("1\tnowhere", 1),
            ("1\t0/2\tx\n3\t0/3\tx", 2),
            ("1\t0/3\tx\n2\t0/2\tx", 2),
        ] {
            let error = History::parse(Timeline(3), text).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("line {line} ")),
                "{text}: {error}"
            );
        }
    }
}
