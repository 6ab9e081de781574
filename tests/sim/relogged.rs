//! Checkers of the log, shown logs that the product does not write: entries of a real run,
//! altered and chained anew.

use std::time::Duration;

use failover::engine::chain::{Body, Chain, Entry};
use failover::engine::decision::Verdict;
use failover::engine::saga::Ending;
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
    decided: bool,
}

const REAL: Real = Real {
    links_up: true,
    active_well: false,
    decided: true,
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
        between: [link; 2],
        calm: true,
        decided: Some(real.decided),
        moved: true,
    };
    let mut checks = Checks::new(policy);
    let mut chain = Chain::default();
    for mut entry in entries {
        entry.seq = chain.entries + 1;
        entry.previous = chain.head;
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
fn a_decision_that_does_not_replay_is_seen() {
    let mut altered = entries();
    let first = altered.iter_mut().find_map(|entry| {
        if let Body::Decision { decision, .. } = &mut entry.body {
            return Some(decision);
        }
        None
    });
    first.unwrap().verdict = Verdict::Escalate;
    assert_eq!(seen(altered, &REAL), [Invariant::SameDecision]);
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
fn a_plan_without_cause_is_seen() {
    let real = Real {
        decided: false,
        ..REAL
    };
    assert_eq!(seen(entries(), &real), [Invariant::NoAutomaticReturn]);
}

#[test]
fn a_second_automatic_plan_by_disarmed_automation_is_seen() {
    let mut altered = entries();
    let plan = altered.iter().find_map(|entry| {
        if let Body::Plan { plan } = &entry.body {
            return Some((entry.clone(), plan.clone()));
        }
        None
    });
    let (mut again, mut plan) = plan.unwrap();
    plan.route.epoch = plan.route.epoch.next();
    let done = altered.iter().any(
        |entry| matches!(&entry.body, Body::Outcome { ending, .. } if *ending == Ending::Done),
    );
    assert!(done);
    again.epoch = altered.last().unwrap().epoch;
    again.body = Body::Plan { plan };
    altered.push(again);
    assert_eq!(seen(altered, &REAL), [Invariant::OneRecovery]);
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
