//! How late the controller notices that a window is over, of which nothing arrives to tell.

use std::time::Duration;

use failover::engine::chain::{Body, read_line};
use failover::engine::reason::Code;
use failover::engine::topology::TargetKind;
use failover::sim::run::{Course, Setup};

use super::{check, minutes, policy};

/// The most that it may be late: the ages in the log are whole milliseconds, and a decision waits for
/// the entry of the one before it.
const MOST: Duration = Duration::from_millis(25);

/// When the first decision was made that counts the active site as failed, after the window had
/// passed.
fn lateness(seed: u64) -> Option<Duration> {
    let mut setup = Setup::new(seed, minutes(2), policy());
    setup.course = Course::SiteLost;
    let report = check(&setup);
    let window = policy().detect.fail_after;
    report.log.iter().find_map(|line| {
        let (_, entry) = read_line(line.strip_suffix(b"\n").unwrap_or(line)).ok()?;
        let Body::Decision {
            decision,
            situation,
        } = entry.body
        else {
            return None;
        };
        let mut codes = decision.reasons.iter().map(|reason| reason.code);
        codes.find(|code| *code == Code::ActiveSiteFailed)?;
        let health = &situation.active_site()?.health[&TargetKind::Database];
        Some(health.since.saturating_sub(window))
    })
}

#[expect(clippy::print_stdout, reason = "the figures are worth seeing")]
#[test]
fn the_end_of_a_window_is_noticed_although_nothing_arrives() {
    let mut late: Vec<Duration> = (0..40).filter_map(lateness).collect();
    late.sort_unstable();
    assert!(late.len() >= 35, "only {} seeds tell", late.len());
    let (middle, most) = (late[late.len() / 2], late[late.len() - 1]);
    println!("late by {middle:?} in the middle and {most:?} at most");
    assert!(most <= MOST, "{late:?}");
}
