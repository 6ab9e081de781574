//! What the partition table shows: each row run from seeds, and what is read off the runs.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use super::failure::{again, told};
use super::machine::Truth;
use super::partitions::{Row, Span};
use super::run::{Course, Report, RunError, Setup};
use super::seeds::in_order;
use crate::agent::guard::LEASE_EXPIRED;
use crate::engine::chain::{Body, Entry, read_line};
use crate::engine::decision::{Decision, Verdict};
use crate::engine::lease::FenceProof;
use crate::engine::loss::DeclaredLoss;
use crate::engine::policy::Policy;
use crate::engine::reason::Code;
use crate::engine::step::{Event, Fact};
use crate::engine::units::Bytes;

/// How rows are measured.
#[derive(Debug, Clone)]
pub struct Walk<'p> {
    /// Under which policy.
    pub policy: &'p Policy,
    /// Where that is, to say how a run is seen again.
    pub file: &'p Path,
    /// From which seeds, each row the same.
    pub seeds: Range<u64>,
    /// How many runs at once.
    pub jobs: NonZeroUsize,
}

impl Walk<'_> {
    /// Measures a row. What comes of it does not depend on how many run at once.
    pub fn over(&self, row: Row) -> Result<Measured, RunError> {
        let lasting = Span::of(self.policy).lasting();
        let setup = |seed| {
            let mut setup = Setup::new(seed, lasting, self.policy.clone());
            setup.course = Course::Partition(row);
            setup
        };
        let seen = |report: Report| {
            let again = again(&setup(report.seed), Some(self.file));
            Seen::of(&report, &again)
        };
        let mut measured = Measured::default();
        in_order(self.seeds.clone(), self.jobs, setup, seen, |seen| {
            measured.take(seen);
        })?;
        Ok(measured)
    }
}

/// What came of one run.
#[derive(Debug, Clone)]
pub struct Seen {
    /// What was decided: to fail over, or else what stood at the end.
    pub decision: Option<Decision>,
    /// From the fault until the other site took writes.
    pub writable: Option<Duration>,
    /// What was declared before the promotion.
    pub declared: Option<DeclaredLoss>,
    /// How the old primary was proven fenced.
    pub proof: Option<FenceProof>,
    /// From the fault until the active site had fenced itself.
    pub fenced_itself: Option<Duration>,
    /// Acknowledged writes that are lost.
    pub lost: usize,
    /// What did not hold, and how to see it again.
    pub broken: Option<String>,
}

impl Seen {
    /// Reads it off a run.
    pub fn of(report: &Report, again: &str) -> Seen {
        let mut seen = Seen {
            decision: None,
            writable: report.writable,
            declared: None,
            proof: None,
            fenced_itself: fenced_itself(report),
            lost: report.writes.1,
            broken: told(report, again),
        };
        for line in &report.log {
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            if let Ok((_, entry)) = read_line(line) {
                seen.take(entry);
            }
        }
        seen
    }

    fn take(&mut self, entry: Entry) {
        match entry.body {
            Body::Decision { decision, .. } => {
                let last = self.decision.as_ref().map(|last| &last.verdict);
                if !matches!(last, Some(Verdict::FailOver { .. })) {
                    self.decision = Some(*decision);
                }
            }
            Body::Step {
                event: Event::Done { fact },
                ..
            } => match fact {
                Fact::Fenced { proof } => self.proof = Some(proof),
                Fact::Declared { loss, .. } => self.declared = Some(loss),
                Fact::Done
                | Fact::Epoch { .. }
                | Fact::Severed { .. }
                | Fact::Promoted { .. }
                | Fact::Moved { .. }
                | Fact::NotMoved { .. }
                | Fact::Seen { .. } => {}
            },
            Body::Opened { .. }
            | Body::Command { .. }
            | Body::Plan { .. }
            | Body::Step { .. }
            | Body::Outcome { .. }
            | Body::Window { .. }
            | Body::Instance { .. }
            | Body::Note { .. } => {}
        }
    }

    /// The verdict and its leading reason.
    pub fn verdict(&self) -> (&'static str, Option<Code>) {
        let Some(decision) = &self.decision else {
            return ("nothing", None);
        };
        let word = match decision.verdict {
            Verdict::Hold => "hold",
            Verdict::Prepare => "prepare",
            Verdict::FailOver { .. } if self.writable.is_none() => "fail over, undone",
            Verdict::FailOver { .. } => "fail over",
            Verdict::SwitchOver { .. } => "switch over",
            Verdict::Resume { .. } => "resume",
            Verdict::Escalate => "escalate",
        };
        (word, decision.reasons.first().map(|reason| reason.code))
    }

    /// Who was fenced, and how that is known.
    pub fn fenced(&self) -> &'static str {
        match &self.proof {
            None if self.fenced_itself.is_some() => "A fences itself",
            None => "nobody",
            Some(FenceProof::Agent { relayed: false, .. }) => "A, direct (F1)",
            Some(FenceProof::Agent { relayed: true, .. }) => "A, relayed by P (F1)",
            Some(FenceProof::Infrastructure { .. }) => "A, by its infrastructure (F2)",
            Some(FenceProof::WaitedOut { .. }) => "A, waited out (F3)",
            Some(FenceProof::Override { .. }) => "A, a person vouches (F4)",
        }
    }
}

fn fenced_itself(report: &Report) -> Option<Duration> {
    let fault = report.fault?;
    let by_itself = |(_, cause): &&(Truth, String)| cause == LEASE_EXPIRED;
    let mut after = report.fences.iter().filter(|(ended, _)| *ended >= fault);
    let (ended, _) = after.find(by_itself)?;
    Some(ended.saturating_sub(fault))
}

/// What came of a row over all its seeds.
#[derive(Debug, Clone, Default)]
pub struct Measured {
    /// Each verdict with its leading reason that there was.
    pub verdicts: BTreeSet<(&'static str, Option<Code>)>,
    /// Who was fenced, and how that is known.
    pub fenced: BTreeSet<&'static str>,
    /// From the fault until the other site took writes, sorted.
    pub writable: Vec<Duration>,
    /// From the fault until the active site had fenced itself, the latest.
    pub fenced_itself: Option<Duration>,
    /// The longest window that was declared.
    pub window: Option<Duration>,
    /// The largest estimate that was declared.
    pub estimate: Option<Bytes>,
    /// Whether something was declared without knowing since when, or how much.
    pub unknown: bool,
    /// The most acknowledged writes that were lost in one run.
    pub lost: usize,
    /// What did not hold, and how to see it again.
    pub broken: Vec<String>,
}

impl Measured {
    /// Takes in one run.
    fn take(&mut self, seen: Seen) {
        self.verdicts.insert(seen.verdict());
        self.fenced.insert(seen.fenced());
        self.writable.extend(seen.writable);
        self.writable.sort_unstable();
        self.fenced_itself = self.fenced_itself.max(seen.fenced_itself);
        if let Some(declared) = seen.declared.as_ref().filter(|loss| !loss.nothing) {
            self.window = self.window.max(declared.window);
            self.estimate = self.estimate.max(declared.estimate);
            self.unknown |= declared.window.is_none() || declared.estimate.is_none();
        }
        self.lost = self.lost.max(seen.lost);
        self.broken.extend(seen.broken);
    }

    /// The time to writable of the run in the middle.
    pub fn median(&self) -> Option<Duration> {
        let middle = self.writable.len().saturating_sub(1) / 2;
        self.writable.get(middle).copied()
    }

    /// The longest time to writable.
    pub fn worst(&self) -> Option<Duration> {
        self.writable.last().copied()
    }
}
