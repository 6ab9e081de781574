//! How often the control loop logs what others can trigger again and again.

use std::time::Duration;

use super::Control;
use crate::app::journal::Noise;
use crate::engine::decision::{Decision, Signature};
use crate::engine::rate::Rate;
use crate::engine::synchrony::WindowChange;
use crate::engine::units::MonoTime;
use crate::wire::Report;

/// How often decisions that change nothing are logged, each with its evidence: a failover changes
/// its reasons about ten times.
const DECISIONS: Rate = Rate {
    burst: 40,
    every: Duration::from_secs(5),
};

/// The minimum time between two closings of the RPO window. An agent attempts one every ten seconds
/// at most.
const CLOSE_EVERY: Duration = Duration::from_secs(5);

impl Control {
    /// Whether a decision that differs from the last one in the log is written down now. What acts
    /// always is. Somebody who makes the verdict change with each report does not fill the
    /// log; what is left out is written down as soon as there is room, if it still is so.
    pub(super) fn may_log(&mut self, decision: &Decision, signature: &Signature) -> bool {
        if decision.verdict.acts() {
            return true;
        }
        let may = self.decisions.spend(DECISIONS, self.clock.now());
        if !may {
            self.decide_by(self.decisions.allowed_at(DECISIONS));
        }
        if !may && self.left_out.as_ref() != Some(signature) {
            self.left_out = Some(signature.clone());
            let verdict = &decision.verdict;
            let text = "verdict or reasons change faster than they are written down";
            self.journal.tell(Noise::DecisionsLeftOut, verdict, text);
        }
        may
    }

    /// Whether the window may change now. It opens whenever it must; an agent's report that it can
    /// close, so that it may open again, is believed only once in a while.
    pub(super) fn may_change(&mut self, change: &WindowChange, now: MonoTime) -> bool {
        match change {
            WindowChange::Opened { .. } => true,
            WindowChange::Closed { .. } => {
                let may = self
                    .closed
                    .is_none_or(|last| now.since(last) >= CLOSE_EVERY);
                if may {
                    self.closed = Some(now);
                }
                may
            }
        }
    }

    /// Logs an agent that reports about what it does not probe, and ignores that part.
    pub(super) fn tell_of_foreign(&self, report: &Report) {
        if let Some(foreign) = self.brain.foreign(&report.observations) {
            let site = &report.site;
            let text =
                format!("the agent of `{site}` reports of `{foreign}`, which it does not probe");
            self.journal.tell(Noise::TargetRejected, site, &text);
        }
    }
}
