//! The simulator: seeds in which every invariant must hold, and mistakes that are planted to see
//! each checker find what it is there for.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test's helpers fail the test"
)]

use std::time::Duration;

use failover::engine::policy::Policy;
use failover::sim::checks::Invariant;
use failover::sim::observer::of_seed;
use failover::sim::run::{Course, Report, Setup, run};

mod planted;
mod relogged;
mod zero_loss;

const FAST: &str = include_str!("../../policies/fast.toml");

/// Seeds that once broke an invariant, with their minutes. They stay, whatever they run into now.
const ONCE_BROKEN: [(u64, u64); 7] = [
    (10, 3),   // declared-loss: an agent's reading counted as younger than it was
    (14, 3),   // same-decision: decided on nanoseconds, logged in milliseconds
    (20, 5),   // same-decision
    (30, 3),   // never-a-forbidden-answer: the right had run out before traffic was moved
    (1003, 4), // an old fence marker outlived a promotion
    (1015, 5), // never-a-forbidden-answer
    (1027, 3), // declared-loss: the window was reckoned back from the plan's entry
];

pub(crate) fn policy() -> Policy {
    Policy::read("fast.toml", FAST).unwrap()
}

fn minutes(count: u64) -> Duration {
    Duration::from_secs(count * 60)
}

fn check(setup: &Setup) -> Report {
    let report = run(setup).unwrap();
    if let Some(first) = report.violations.first() {
        let end = report.events.iter().position(|it| it.contains("VIOLATION"));
        let end = end.unwrap_or(report.events.len());
        let last = report.events[end.saturating_sub(20)..end].join("\n");
        panic!(
            "seed {}: {} at {:?}: {}\n{last}\nagain: failover simulate --from {} --seeds 1 --minutes {} --trace",
            report.seed,
            first.invariant,
            first.at,
            first.what,
            report.seed,
            setup.lasting.as_secs() / 60
        );
    }
    report
}

#[test]
fn every_invariant_holds_under_faults_of_every_kind() {
    let mut promotions = 0;
    for seed in 5000..5100 {
        promotions += check(&Setup::new(seed, minutes(2), policy())).promotions;
    }
    assert!(
        promotions > 20,
        "only {promotions}: the faults are too tame"
    );
}

#[test]
fn seeds_that_once_broke_an_invariant_hold() {
    for (seed, lasting) in ONCE_BROKEN {
        check(&Setup::new(seed, minutes(lasting), policy()));
    }
}

#[test]
fn a_healthy_pair_is_left_alone() {
    for seed in 0..5 {
        let mut setup = Setup::new(seed, minutes(3), policy());
        setup.course = Course::Calm;
        let report = check(&setup);
        assert_eq!(report.writes.1, 0, "seed {seed}");
    }
}

#[test]
fn a_lost_site_is_replaced_within_the_worst_case_of_the_policy() {
    for seed in 0..20 {
        let mut setup = Setup::new(seed, minutes(2), policy());
        setup.course = Course::SiteLost;
        let report = check(&setup);
        assert!(report.writable.is_some(), "seed {seed}");
    }
}

#[test]
fn a_share_of_the_seeds_has_an_observer_that_sees_the_site_lost() {
    let mut voted = 0;
    for seed in 0..10 {
        let mut setup = Setup::new(seed, minutes(2), policy());
        setup.course = Course::SiteLost;
        let log = String::from_utf8(check(&setup).log.concat()).unwrap();
        let named = log.contains(r#""observers":{"paris":"#);
        assert_eq!(named, of_seed(seed).is_some(), "seed {seed}");
        voted += usize::from(log.contains("observer:paris"));
    }
    assert!((1..10).contains(&voted), "{voted} of 10");
}

#[test]
fn the_same_seed_runs_the_same_twice() {
    for seed in [1, 30, 1027] {
        let setup = Setup::new(seed, minutes(2), policy());
        let (once, twice) = (run(&setup).unwrap(), run(&setup).unwrap());
        assert_eq!(once.events, twice.events, "seed {seed}");
        assert_eq!(once.fingerprint, twice.fingerprint, "seed {seed}");
    }
}

/// Runs seeds until an invariant breaks; whether it did within 500.
pub(crate) fn finds(invariant: Invariant, setup: impl Fn(u64) -> Setup) {
    for seed in 0..500 {
        let report = run(&setup(seed)).unwrap();
        if report.violations.iter().any(|it| it.invariant == invariant) {
            return;
        }
    }
    panic!("{invariant} was never seen broken");
}
