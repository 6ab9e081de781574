//! The simulator: seeds in which every invariant must hold, and mistakes that are planted to see
//! each checker find what it is there for.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test's helpers fail the test"
)]

use std::path::Path;
use std::time::Duration;

use failover::engine::policy::Policy;
use failover::sim::failure::{again, told};
use failover::sim::invariant::Invariant;
use failover::sim::observer::of_seed;
use failover::sim::run::{Course, Report, Setup, run};
use failover::sim::seeds::in_order;

mod clusters;
mod copies;
mod counted;
mod lateness;
mod liars;
mod memory;
mod orders;
mod planted;
mod own_looks;
mod relogged;
mod table;
mod vouches;
mod zero_loss;

const FAST: &str = include_str!("../../policies/fast.toml");

/// Seeds that once broke an invariant, with their minutes. They stay, whatever they run into now.
const ONCE_BROKEN: [(u64, u64); 20] = [
    (10, 3),         // declared-loss: an agent's reading counted as younger than it was
    (14, 3),         // same-decision: decided on nanoseconds, logged in milliseconds
    (20, 5),         // same-decision
    (30, 3),         // never-a-forbidden-answer: the right had run out before traffic was moved
    (181, 1),        // never-a-forbidden-answer: frozen between the last check and the wire
    (993, 10),       // absence-of-evidence: a report that was held up for 20 s
    (1197, 1),       // absence-of-evidence: decided at once after a standstill
    (303_026, 5), // absence-of-evidence: silence of the standby passed for stillness of the primary
    (1693, 6),    // one-writer: taken back while the promotion was still coming
    (610_717, 4), // one-writer: two instances of a site that none was named of, in an open plan
    (700_213, 6), // one-writer: a log from the middle of a plan that was over took it back
    (2_000_299, 6), // one-writer: a right granted while another instance of the site was being written down
    (2_000_924, 10), // declared-loss: a copy of the active site wrote another history at the same positions
    (2_001_119, 6),  // declared-loss: the same, and the first one came back
    (2_001_072, 4), // declared-loss: a restored log held an older declaration than the promotion on its way
    (3_000_763, 7), // absence-of-evidence: a plan on what was before the log's disk stood still
    (4_000_310, 9), // one-writer: a person adopted the old site while the promotion was on its way
    (1003, 4),      // an old fence marker outlived a promotion
    (1015, 5),      // never-a-forbidden-answer
    (1027, 3),      // declared-loss: the window was reckoned back from the plan's entry
];

pub(crate) fn policy() -> Policy {
    Policy::read("fast.toml", FAST).unwrap()
}

/// The same with rights that outlast the detection of a loss.
pub(crate) fn long_rights() -> Policy {
    let long = FAST.replace("lease_ttl = \"1s 500ms\"", "lease_ttl = \"6s\"");
    Policy::read("long-rights.toml", &long).unwrap()
}

fn minutes(count: u64) -> Duration {
    Duration::from_secs(count * 60)
}

/// Runs a seed in which everything must hold, under `policies/fast.toml`.
fn check(setup: &Setup) -> Report {
    let report = run(setup).unwrap();
    if let Some(told) = told(&report, &again(setup, None)) {
        panic!("{told}");
    }
    report
}

/// Runs a seed in which everything must hold, under a policy whose text is written where the
/// command that runs the seed again finds it.
fn check_under(setup: &Setup, policy: &str) -> Report {
    let report = run(setup).unwrap();
    let name = format!("policy-of-{}.toml", setup.seed);
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if let Some(told) = told(&report, &again(setup, Some(&file))) {
        std::fs::write(&file, policy).unwrap();
        panic!("{told}");
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
fn a_seed_that_breaks_tells_what_happened_and_how_to_run_it_again() {
    let mut setup = Setup::new(7, minutes(3), policy());
    setup.course = Course::SiteLost;
    setup.policy.mode = failover::engine::policy::Mode::Observe;
    let report = run(&setup).unwrap();
    let text = told(&report, &again(&setup, Some(Path::new("my own.toml")))).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!((3..=22).contains(&lines.len()), "{text}");
    assert!(lines[0].starts_with("seed 7: liveness at 180.000 s: "));
    let [.., event, command] = lines[..] else {
        panic!("{text}");
    };
    assert!(event.contains("VIOLATION liveness"), "{text}");
    assert_eq!(
        command,
        "  again: failover simulate --from 7 --seeds 1 --minutes 3 --course site-lost \
         --policy 'my own.toml' --trace"
    );
    assert_eq!(
        again(&Setup::new(7, minutes(3), policy()), None),
        "failover simulate --from 7 --seeds 1 --minutes 3 --trace"
    );
    setup.course = Course::Calm;
    assert_eq!(told(&run(&setup).unwrap(), ""), None);
}

#[test]
fn many_jobs_hand_over_what_one_would_in_the_order_of_the_seeds() {
    let came = |jobs| {
        let mut came = Vec::new();
        let jobs = std::num::NonZeroUsize::new(jobs).unwrap();
        let setup = |seed| Setup::new(seed, minutes(1), policy());
        let kept = |report: Report| (report.seed, report.fingerprint);
        in_order(40..52, jobs, setup, kept, |kept| came.push(kept)).unwrap();
        came
    };
    let one = came(1);
    let seeds: Vec<u64> = one.iter().map(|(seed, _)| *seed).collect();
    assert_eq!(seeds, (40..52).collect::<Vec<_>>());
    assert_eq!(came(5), one);
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

/// Runs seeds until an invariant breaks, in these words, and prints at which it did; it must
/// within 500.
#[expect(
    clippy::print_stdout,
    reason = "whoever asks sees at which seed each mistake is found"
)]
pub(crate) fn finds(invariant: Invariant, words: &str, setup: impl Fn(u64) -> Setup) {
    for seed in 0..500 {
        let report = run(&setup(seed)).unwrap();
        let mut broken = report.violations.iter();
        if let Some(found) = broken.find(|it| it.invariant == invariant && it.what.contains(words))
        {
            println!("seed {seed}: {invariant}: {}", found.what);
            return;
        }
    }
    panic!("{invariant} was never seen broken: {words}");
}

/// Runs ten seeds, in which nothing may break and so many promotions come.
pub(crate) fn holds(promotions: usize, setup: impl Fn(u64) -> Setup) {
    for seed in 0..10 {
        let report = run(&setup(seed)).unwrap();
        assert!(report.violations.is_empty(), "{:#?}", report.violations);
        assert_eq!(report.promotions, promotions, "seed {seed}");
    }
}
