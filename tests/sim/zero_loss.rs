//! Zero-loss mode: what is declared to lose nothing loses nothing.

use std::sync::Arc;

use failover::engine::chain::{Body, Chain};
use failover::engine::policy::Policy;
use failover::engine::step::{Event, Fact};
use failover::engine::synchrony::WindowChange;
use failover::sim::invariant::Invariant;
use failover::sim::run::{Course, Report, Setup};

use super::planted::PlantGuard;
use super::{FAST, finds, minutes};

/// `policies/fast.toml`, with commits that wait.
fn text(on_stall: &str) -> String {
    FAST.replace("durability = \"async\"", "durability = \"sync\"")
        .replace("\"release-after 5s\"", &format!("\"{on_stall}\""))
}

pub(crate) fn policy(on_stall: &str) -> Policy {
    let policy = Policy::read("sync.toml", &text(on_stall)).unwrap();
    assert_ne!(policy, super::policy());
    policy
}

fn check(setup: &Setup, on_stall: &str) -> Report {
    super::check_under(setup, &text(on_stall))
}

/// How often the window was closed, and how many of the declarations said that nothing is lost.
fn counted(report: &Report) -> (usize, usize, usize) {
    let mut chain = Chain::default();
    let (mut closed, mut nothing, mut declared) = (0, 0, 0);
    for line in &report.log {
        let entry = chain.take(line.strip_suffix(b"\n").unwrap()).unwrap();
        if let Body::Window {
            change: WindowChange::Closed { .. },
        } = &entry.body
        {
            closed += 1;
        }
        if let Body::Step {
            event: Event::Done {
                fact: Fact::Declared { loss, .. },
            },
            ..
        } = &entry.body
        {
            declared += 1;
            nothing += usize::from(loss.nothing);
        }
    }
    (closed, nothing, declared)
}

#[test]
fn every_invariant_holds_where_commits_wait() {
    let mut sum = (0, 0, 0);
    for seed in 7000..7090 {
        let stall = ["release-after 1s", "release-after 5s", "block"][(seed % 3) as usize];
        let report = check(&Setup::new(seed, minutes(2), policy(stall)), stall);
        let (closed, nothing, declared) = counted(&report);
        sum = (sum.0 + closed, sum.1 + nothing, sum.2 + declared);
    }
    let (closed, nothing, declared) = sum;
    assert!(closed > 60, "the window is hardly ever closed: {sum:?}");
    assert!(nothing > 10 && nothing < declared, "{sum:?}");
}

#[test]
fn a_lost_site_loses_nothing_that_was_acknowledged() {
    for seed in 0..20 {
        let mut setup = Setup::new(seed, minutes(2), policy("block"));
        setup.course = Course::SiteLost;
        let report = check(&setup, "block");
        assert_eq!(report.writes.1, 0, "seed {seed}");
        assert_eq!(counted(&report), (1, 1, 1), "seed {seed}");
        assert!(report.writable.is_some(), "seed {seed}");
    }
}

#[test]
fn a_healthy_pair_keeps_its_window_closed() {
    for seed in 0..5 {
        let mut setup = Setup::new(seed, minutes(3), policy("release-after 1s"));
        setup.course = Course::Calm;
        let report = check(&setup, "release-after 1s");
        assert_eq!(counted(&report), (1, 0, 0), "seed {seed}");
    }
}

#[test]
fn commits_that_only_seem_to_wait_are_seen() {
    finds(Invariant::DeclaredLoss, "is lost, but declared", |seed| {
        let mut setup = Setup::new(seed, minutes(3), policy("block"));
        setup.plant = Arc::new(PlantGuard {
            pretends_to_wait: true,
            ..PlantGuard::honest()
        });
        setup
    });
}
