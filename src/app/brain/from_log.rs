//! What a process that takes over learns from the log.

use std::time::Duration;

use crate::engine::lease::LeaseBook;
use crate::engine::saga::{GroupState, Moment};
use crate::engine::situation::{AutomationState, HoldFacts};
use crate::engine::step::Step;
use crate::engine::units::MonoTime;

/// The lease book that follows from the log.
pub(super) fn book_of(group: &GroupState, now: MonoTime) -> LeaseBook {
    let mut book = LeaseBook::taken_over(group.epoch, group.active.clone(), now);
    if let Some(saga) = &group.open {
        if saga.past_pivot() {
            book.pass_to(saga.plan.route.to.clone());
        } else if saga.begun(&Step::RaiseEpoch) {
            book.raise(group.epoch);
        }
    }
    book
}

/// Whether automation may act, according to the log.
pub(super) fn automation_of(group: &GroupState, now: &Moment) -> AutomationState {
    let hold = group.hold.as_ref();
    let hold = hold.and_then(|hold| Some((hold, hold.left(now)?)));
    let ended = group.last_plan.as_ref();
    AutomationState {
        hold: hold.map(|(hold, left)| HoldFacts {
            operator: hold.operator.clone(),
            reason: hold.reason.clone(),
            until: hold.until,
            left,
        }),
        disarmed: group.disarmed,
        last_failover: ended.map(|ended| ended.ago(now).max(Duration::from_millis(1))),
    }
}
