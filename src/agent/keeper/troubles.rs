//! What goes wrong for the keeper look after look, as long as something lasts: told when it begins,
//! now and then, and when it is over.

use std::collections::BTreeMap;
use std::fmt::Display;

use super::Keeper;
use crate::engine::lasting::{Lasting, Told};

/// What may go wrong for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Trouble {
    GuardSilent,
    DeadlineNotPushed,
    FenceUnproven,
    MemoryUnwritable,
    SlotNotKept,
    NotReconnected,
    EpochNotWritten,
    GrantsNotMade,
    CommitsDoNotWait,
    CommitsMayWait,
}

/// What goes wrong at the moment.
#[derive(Debug, Default)]
pub(super) struct Troubles(BTreeMap<Trouble, Lasting>);

/// Who is to be told: somebody who must act, or whoever reads.
enum Severity {
    Error,
    Warning,
}

impl Trouble {
    /// `times`: how often it went wrong; `None` for the first time.
    fn severity(self, times: Option<u64>) -> Severity {
        match self {
            // A host that stood still: both go on, and the question was too old.
            Trouble::GuardSilent if times.is_none() => Severity::Warning,
            Trouble::GuardSilent
            | Trouble::FenceUnproven
            | Trouble::MemoryUnwritable
            | Trouble::SlotNotKept
            | Trouble::CommitsMayWait => Severity::Error,
            Trouble::DeadlineNotPushed
            | Trouble::NotReconnected
            | Trouble::EpochNotWritten
            | Trouble::GrantsNotMade
            | Trouble::CommitsDoNotWait => Severity::Warning,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Trouble::GuardSilent => "the guard does not answer",
            // The guard will fence, and then says so.
            Trouble::DeadlineNotPushed => "the guard's deadline was not pushed",
            Trouble::FenceUnproven => "the fence is not proven",
            Trouble::MemoryUnwritable => "the agent's memory cannot be written",
            Trouble::SlotNotKept => "the slot that the standby asks for cannot be made",
            Trouble::NotReconnected => "the standby is not connected again yet",
            Trouble::EpochNotWritten => "schema and epoch are not written yet",
            Trouble::GrantsNotMade => "the grants for our looks are not made yet",
            Trouble::CommitsDoNotWait => "commits do not wait yet",
            Trouble::CommitsMayWait => "commits may still wait",
        }
    }
}

fn tell_end(what: Trouble, lasting: Option<Told>) {
    if let Some(lasting) = lasting {
        tracing::info!(lasting.times, lasting.ms, "over: {}", what.words());
    }
}

impl Keeper {
    /// It went wrong, once more or for the first time.
    pub(super) fn trouble(&mut self, what: Trouble, error: &impl Display) {
        let error = error.to_string();
        let known = self.troubles.0.entry(what).or_default();
        let Some(lasting) = known.again(&error, self.clock.now()) else {
            return;
        };
        let words = what.words();
        match what.severity(lasting.times) {
            Severity::Error => tracing::error!(error, lasting.times, lasting.ms, "{words}"),
            Severity::Warning => tracing::warn!(error, lasting.times, lasting.ms, "{words}"),
        }
    }

    /// It went well, as it does look after look: over once that has been so for a while.
    pub(super) fn well(&mut self, what: Trouble) {
        let known = self.troubles.0.get_mut(&what);
        tell_end(what, known.and_then(|known| known.well(self.clock.now())));
    }

    /// It is done, and will not go wrong any more.
    pub(super) fn over(&mut self, what: Trouble) {
        let known = self.troubles.0.get_mut(&what);
        tell_end(what, known.and_then(|known| known.over(self.clock.now())));
    }
}
