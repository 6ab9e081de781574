//! Checkers of the log, shown the entries of a real run in a world in which they are wrong, or
//! with the last one gone.

use std::time::Duration;

use failover::engine::chain::{Chain, Entry};
use failover::engine::topology::Role;
use failover::sim::checks::{Checks, Truths};
use failover::sim::invariant::Invariant;
use failover::sim::machine::Machine;
use failover::sim::run::{Course, Setup, run};
use failover::sim::world::Link;

use super::{minutes, policy};

/// The entries of a run in which a site was lost.
fn entries() -> Vec<Entry> {
    let mut setup = Setup::new(1, minutes(2), policy());
    setup.course = Course::SiteLost;
    let mut chain = Chain::default();
    let log = run(&setup).unwrap().log;
    let lines = log.iter().map(|line| line.strip_suffix(b"\n").unwrap());
    lines.map(|line| chain.take(line).unwrap()).collect()
}

/// What is really so in the eyes of the checker.
struct Real {
    links_up: bool,
    active_well: bool,
}

const REAL: Real = Real {
    links_up: true,
    active_well: false,
};

/// Which invariants the checkers say are broken by a log.
fn seen(entries: Vec<Entry>, real: &Real) -> Vec<Invariant> {
    let checks = checked(entries, real);
    let broken = checks.violations.iter().map(|it| it.invariant);
    broken.filter(|it| *it != Invariant::WriteAhead).collect()
}

fn checked(entries: Vec<Entry>, real: &Real) -> Checks {
    let policy = policy();
    let stages = policy.lease.fence;
    let mut active = Machine::new("aws".parse().unwrap(), Role::Primary, stages);
    active.running = real.active_well;
    let passive = Machine::new("gcp".parse().unwrap(), Role::Standby, stages);
    let link = Link {
        up: real.links_up,
        way: Duration::ZERO,
        since: Duration::ZERO,
    };
    let truth = Truths {
        machines: [&active, &passive],
        neutral: [link; 4],
        direct: None,
        between: [link; 2],
        calm: true,
        decided: Some(true),
        moved: true,
    };
    let mut checks = Checks::new(policy);
    let mut chain = Chain::default();
    for entry in entries {
        let line = chain.append(&entry).unwrap();
        checks.logged(Duration::from_secs(60), &line, &truth);
    }
    checks
}

#[test]
fn the_log_as_it_was_written_breaks_nothing() {
    assert_eq!(seen(entries(), &REAL), []);
}

#[test]
fn a_plan_of_an_isolated_controller_is_seen() {
    let real = Real {
        links_up: false,
        ..REAL
    };
    assert_eq!(seen(entries(), &real), [Invariant::AbsenceOfEvidence]);
}

#[test]
fn a_plan_against_a_site_that_is_well_is_seen() {
    let real = Real {
        active_well: true,
        ..REAL
    };
    assert!(seen(entries(), &real).contains(&Invariant::AbsenceOfEvidence));
}

#[test]
fn a_log_that_lost_its_last_entry_does_not_verify() {
    let mut setup = Setup::new(1, minutes(2), policy());
    setup.course = Course::SiteLost;
    let log = run(&setup).unwrap().log;
    let mut chain = Chain::default();
    let lines = log.iter().map(|line| line.strip_suffix(b"\n").unwrap());
    let kept = lines.map(|line| chain.take(line).unwrap()).collect();
    let mut checks = checked(kept, &REAL);
    checks.audit(setup.lasting, &log);
    let broken = |checks: &Checks| {
        checks
            .violations
            .iter()
            .any(|it| it.invariant == Invariant::LogVerifies)
    };
    assert!(!broken(&checks));
    checks.audit(setup.lasting, &log[..log.len() - 1]);
    assert!(broken(&checks));
}
