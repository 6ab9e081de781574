//! What follows from a policy: the worst-case times from a fault until the other site takes writes,
//! and what each setting contributes.

use std::time::Duration;

use serde::Serialize;

use super::policy::{ApiFailure, Mode, OnTotalIsolation, Policy};
use super::units::{as_millis, millis};

/// One line of `failover policy timers`: a fault, its time, and the parts of that time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Timer {
    /// The fault.
    pub fault: &'static str,
    /// The worst-case time from the fault until the other site takes writes; `None` if the policy
    /// never fails over automatically.
    #[serde(rename = "worst_ms", with = "millis::option")]
    pub worst: Option<Duration>,
    /// The parts of that time, largest first.
    pub parts: Vec<(&'static str, u64)>,
}

/// The promotion, and what precedes it besides waiting: epoch, sever, position, each with its log
/// entry and round trips. The longest of ten promotions took 354 ms until the first commit:
/// PostgreSQL 15, both servers on one machine of two cores, 400 transactions a second, started with
/// `pg_promote(false)` and checked every 3 ms.
pub const PROMOTION: Duration = Duration::from_millis(800);

/// The worst-case times to writable. The first part of each dominates: change that first.
pub fn timers(policy: &Policy) -> Vec<Timer> {
    let lease = &policy.lease;
    let detect = &policy.detect;
    let twice = detect.probe_every.saturating_mul(2);
    let seen = detect.fail_after.saturating_add(twice);
    let timer = |fault, possible: bool, parts: Vec<(&'static str, Duration)>| {
        let total = parts
            .iter()
            .fold(Duration::ZERO, |sum, (_, part)| sum.saturating_add(*part));
        let mut parts: Vec<(&'static str, u64)> = parts
            .into_iter()
            .map(|(name, part)| (name, as_millis(part)))
            .collect();
        parts.sort_by_key(|(_, part)| std::cmp::Reverse(*part));
        Timer {
            fault,
            worst: (possible && policy.mode == Mode::Automatic).then_some(total),
            parts,
        }
    };
    // It runs from the loss on, in parallel with the detection.
    let wait = (
        "the rest of waiting out the lease",
        lease.longest_wait_out().saturating_sub(seen),
    );
    let detect_parts = [
        ("detect.fail_after", detect.fail_after),
        ("detect.probe_every, twice", twice),
    ];
    let promotion = ("steps between, and promotion", PROMOTION);
    let replay = ("data.max_replay_time", policy.data.max_replay_time);
    let can_wait_out = lease.on_total_isolation == OnTotalIsolation::Fence;
    let mut whole_site = detect_parts.to_vec();
    whole_site.extend([wait, replay, promotion]);
    let mut relayed = detect_parts.to_vec();
    relayed.extend([("fence_within", lease.fence_within), replay, promotion]);
    let restart = (
        "automation.local_restart_grace",
        policy.automation.local_restart_grace,
    );
    let fence_within = ("fence_within", lease.fence_within);
    let database = vec![fence_within, restart, replay, promotion];
    let mut api = detect_parts.to_vec();
    api.extend([fence_within, replay, promotion]);
    vec![
        timer(
            "whole site lost, or cut off from everybody",
            can_wait_out,
            whole_site,
        ),
        timer(
            "site cut off from the controller, not serving, peer still there",
            true,
            relayed,
        ),
        timer("database down, agent alive", true, database),
        timer(
            "service down, database healthy",
            policy.automation.api_failure == ApiFailure::Failover,
            api,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: &str = include_str!("../../policies/fast.toml");

    #[test]
    fn fast_is_writable_within_eight_seconds_of_the_loss_of_a_site() {
        let policy = Policy::read("fast.toml", FAST).unwrap();
        let worst = timers(&policy)[0].worst.unwrap();
        assert!(worst <= Duration::from_secs(8), "{worst:?}");
        let database = timers(&policy)[2].worst.unwrap();
        assert!(database <= Duration::from_secs(4), "{database:?}");
    }
}
