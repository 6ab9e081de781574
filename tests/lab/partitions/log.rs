//! The decision log of a lab, and what is read from it.

use std::io::{Read, Seek, SeekFrom};

use failover::engine::chain::{Body, Entry, read_line};
use failover::engine::lease::FenceProof;
use failover::engine::loss::DeclaredLoss;
use failover::engine::saga::Ending;
use failover::engine::step::{Event, Fact, Step};
use failover::engine::synchrony::WindowChange;
use failover::engine::units::WallTime;

use super::table::Measured;

/// The decision log, read as it grows.
pub(super) struct Log {
    pub(super) path: std::path::PathBuf,
    pub(super) read_to: u64,
    pub(super) entries: Vec<Entry>,
}

impl Log {
    /// Takes in what is new.
    pub(super) fn read(&mut self) -> &[Entry] {
        let mut file = std::fs::File::open(&self.path).unwrap();
        file.seek(SeekFrom::Start(self.read_to)).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        // A line without its end is being written.
        for line in text
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
        {
            self.read_to += u64::try_from(line.len()).unwrap();
            let (_, entry) = read_line(line.trim_end().as_bytes()).unwrap();
            self.entries.push(entry);
        }
        &self.entries
    }
}

pub(super) fn milliseconds(from: WallTime, to: WallTime) -> u64 {
    to.0.saturating_sub(from.0)
}

/// Whether every commit waits for the standby.
pub(super) fn is_closed(entries: &[Entry]) -> bool {
    let mut changes = entries.iter().rev().filter_map(|entry| match &entry.body {
        Body::Window { change } => Some(change),
        _ => None,
    });
    matches!(changes.next(), Some(WindowChange::Closed { .. }))
}

/// When commits were first permitted to go on without the standby.
pub(super) fn opened(entries: &[Entry]) -> Option<WallTime> {
    let opened = |entry: &&Entry| {
        matches!(
            &entry.body,
            Body::Window {
                change: WindowChange::Opened { .. }
            }
        )
    };
    entries.iter().find(opened).map(|entry| entry.at)
}

/// The loss that was declared.
fn declared(entries: &[Entry]) -> Option<&DeclaredLoss> {
    entries.iter().rev().find_map(|entry| match &entry.body {
        Body::Step {
            event: Event::Done {
                fact: Fact::Declared { loss, .. },
            },
            ..
        } => Some(loss),
        _ => None,
    })
}

/// The window that may be lost, as it was declared; `None` where nothing may.
pub(super) fn window(entries: &[Entry]) -> Option<(WallTime, WallTime)> {
    let loss = declared(entries).filter(|loss| !loss.nothing)?;
    Some((loss.from?, loss.until))
}

pub(super) fn from_log(entries: &[Entry], at: WallTime) -> Measured {
    let mut measured = Measured {
        declared: declared(entries).cloned(),
        ..Measured::default()
    };
    for entry in entries {
        match &entry.body {
            Body::Step {
                step: Step::VerifyWritable,
                event: Event::Done { .. },
                ..
            } => measured.after_ms = Some(milliseconds(at, entry.at)),
            Body::Step {
                event:
                    Event::Done {
                        fact: Fact::Fenced { proof },
                    },
                ..
            } => {
                measured.proof = Some(
                    match proof {
                        FenceProof::Agent { relayed: true, .. } => "F1, relayed",
                        FenceProof::Agent { .. } => "F1",
                        FenceProof::Infrastructure { .. } => "F2",
                        FenceProof::WaitedOut { .. } => "F3",
                        FenceProof::Override { .. } => "F4",
                    }
                    .to_owned(),
                );
            }
            Body::Outcome { ending, .. } if *ending != Ending::Done => {
                measured.problems.push(format!("the plan ended {ending:?}"));
            }
            _ => {}
        }
    }
    measured
}

pub(super) fn decisions(entries: &[Entry]) -> String {
    let lines = entries.iter().filter_map(|entry| match &entry.body {
        Body::Decision { decision, .. } => {
            let reasons: Vec<_> = decision.reasons.iter().map(ToString::to_string).collect();
            Some(format!("{} ({})", decision.verdict, reasons.join("; ")))
        }
        Body::Step { step, event, .. } => Some(format!("{step} {event:?}")),
        Body::Window { change } => Some(change.to_string()),
        _ => None,
    });
    lines.collect::<Vec<_>>().join("\n    ")
}
