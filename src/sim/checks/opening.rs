//! What must be so when a plan is opened.

use super::{Checks, Truths};
use crate::engine::chain::Entry;
use crate::sim::invariant::Invariant;
use crate::sim::machine::Truth;
use crate::sim::world::Link;

impl Checks {
    pub(super) fn plan_opened(
        &mut self,
        at: Truth,
        entry: &Entry,
        asked: bool,
        truth: &Truths<'_>,
    ) {
        *self.plans.entry("opened").or_default() += 1;
        self.open = Some(entry.seq);
        (self.declared, self.fenced) = (None, false);
        if asked {
            return;
        }
        if self.disarmed {
            let what = format!("plan {} is opened by disarmed automation", entry.seq);
            self.violated(Invariant::OneRecovery, at, what);
        }
        let [active, passive] = truth.machines;
        let detect = &self.policy.detect;
        let long = detect
            .fail_after
            .saturating_add(detect.stale_after)
            .saturating_add(detect.probe_timeout);
        let lasting = |link: &Link, up: bool| link.up == up && at.saturating_sub(link.since) > long;
        if truth.neutral.iter().all(|link| lasting(link, false)) {
            let what = format!(
                "plan {} is opened by a controller that reaches nobody",
                entry.seq
            );
            self.violated(Invariant::AbsenceOfEvidence, at, what);
        }
        let well = truth.calm
            && active.could_write(at)
            && !active.frozen
            && at.saturating_sub(active.ready) > long
            && active
                .thawed
                .is_none_or(|thawed| at.saturating_sub(thawed) > long)
            && passive.answers();
        let kept_out = active
            .kept_out
            .is_some_and(|(_, until)| at.saturating_sub(until) <= long);
        let seen = truth.direct.as_ref().unwrap_or(&truth.between);
        if well && kept_out && seen.iter().all(|link| lasting(link, true)) {
            let what = format!(
                "plan {} is opened while {} serves its users and only our looks are kept out",
                entry.seq, active.site
            );
            self.violated(Invariant::OwnTrouble, at, what);
        }
        if well && truth.between.iter().all(|link| lasting(link, true)) {
            let what = format!(
                "plan {} is opened while {} is well and {} sees it",
                entry.seq, active.site, passive.site
            );
            self.violated(Invariant::AbsenceOfEvidence, at, what);
        }
        // The site that is left must itself give the cause (invariants.md I7).
        if truth.decided != Some(true) {
            let what = format!("plan {} follows no decision to fail over", entry.seq);
            self.violated(Invariant::NoAutomaticReturn, at, what);
        }
    }
}
