//! What is watched of hosts that were copied, and of a log that was restored.

use super::{Checks, Invariant, Truth};
use crate::engine::chain::Chain;
use crate::engine::saga::Command;
use crate::engine::step::{Fact, Step};
use crate::engine::units::Epoch;
use crate::sim::machine::Machine;

impl Checks {
    /// A host, or its copy, acknowledged a write: the other of the two must not be able to.
    pub fn wrote_beside(&mut self, at: Truth, writer: &Machine, other: &Machine, number: u64) {
        if other.could_write(at) && !self.excused(at, other) && !self.excused(at, writer) {
            let what = format!(
                "{} acknowledges row {number} beside a copy that can write too",
                writer.site
            );
            self.violated(Invariant::OneWriter, at, what);
        }
    }

    /// A standby became a primary, and there is a copy of the host before it.
    pub fn promoted_beside(&mut self, at: Truth, new: &Machine, copy: &Machine) {
        if copy.could_write(at) && !self.excused(at, copy) && !self.vouched {
            let what = format!(
                "{} is promoted while a copy of {} can write",
                new.site, copy.site
            );
            self.violated(Invariant::FenceBeforePromote, at, what);
        }
    }

    /// The log is what it was once.
    pub fn restored(&mut self, at: Truth, log: &[Vec<u8>]) {
        let mut chain = Chain::default();
        for line in log {
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            if let Err(broken) = chain.take(line) {
                return self.violated(Invariant::LogVerifies, at, broken.to_string());
            }
        }
        self.chain = chain;
        let state = self.chain.state();
        self.epoch = state.map_or(Epoch(0), |state| state.epoch);
        self.disarmed = state.is_some_and(|state| state.disarmed);
        let open = state.and_then(|state| state.open.as_ref());
        let done = |wanted: &Step| open.and_then(|saga| saga.fact(wanted).cloned());
        // A promotion that was begun by a plan that is lost had its proof.
        self.fenced |= done(&Step::Fence).is_some();
        // What a plan that is lost declared still stands for the promotion that it began.
        if let Some(Fact::Declared { loss, .. }) = done(&Step::Freeze) {
            self.declared.get_or_insert(loss);
        }
        self.open = open.map(|saga| saga.id);
        let last = self.chain.entries;
        self.steps.retain(|(plan, _), _| *plan <= last);
    }

    pub(super) fn commanded(&mut self, command: &Command) {
        match command {
            Command::Release { .. } => self.disarmed = false,
            Command::Adopt { .. } => (self.disarmed, self.open) = (true, None),
            Command::Promote { .. } | Command::Hold { .. } | Command::AdoptInstance { .. } => {}
        }
    }
}
