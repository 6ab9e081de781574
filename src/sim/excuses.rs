//! What is held against no guard: the time that a thawed host, or the end of a server that somebody
//! else started, takes.

use std::time::Duration;

use super::machine::{Machine, STRANGER_ENDS_WITHIN, Truth};
use crate::engine::policy::{GUARD_TICK, Policy};

/// Whether a host is frozen, or thawed so lately that its guard may not be through, or writes by a
/// server that its guard could not have ended yet: exceptions of one writer (invariants.md I1).
pub(super) fn is_excused(at: Truth, machine: &Machine, policy: &Policy) -> bool {
    let window = thaw_window(policy);
    let lately = |thawed| at.saturating_sub(thawed) <= window;
    machine.frozen || machine.thawed.is_some_and(lately) || is_by_hand(at, machine)
}

/// Whether what writes at a host was started by somebody else, a moment ago or where no guard can
/// see it: that is a person's doing, until the guard had the time to end it.
fn is_by_hand(at: Truth, machine: &Machine) -> bool {
    machine.by_hand.is_some_and(|it| {
        let fresh = at.saturating_sub(it.since) <= STRANGER_ENDS_WITHIN;
        it.seen.is_none() || fresh
    })
}

/// How long an overlap after a thaw may last at most.
fn thaw_window(policy: &Policy) -> Duration {
    GUARD_TICK.saturating_add(policy.lease.fence.longest())
}
