//! A seed in which an invariant did not hold, for people: what, the last events before it, and the
//! command that runs it again.

use std::path::Path;

use super::run::{Course, Report, Setup};

/// How many events are shown.
const SHOWN: usize = 20;

/// The command that runs a seed again; `policy` is the file where it is not `policies/fast.toml`.
pub fn again(setup: &Setup, policy: Option<&Path>) -> String {
    let seed = setup.seed;
    let minutes = setup.lasting.as_secs() / 60;
    let simulate = format!("failover simulate --from {seed} --seeds 1 --minutes {minutes}");
    let file = policy.map(|file| format!(" --policy '{}'", file.display()));
    let file = file.unwrap_or_default();
    match setup.course {
        Course::Faults => format!("{simulate}{file} --trace"),
        Course::Calm => format!("{simulate} --course calm{file} --trace"),
        Course::SiteLost => format!("{simulate} --course site-lost{file} --trace"),
        Course::SeverFails => format!("{simulate} --course sever-fails{file} --trace"),
        Course::StartedByHand => format!("{simulate} --course started-by-hand{file} --trace"),
        Course::Partition(_) => {
            let fast = Path::new("policies/fast.toml").display();
            let file = policy.map_or(fast, Path::display);
            format!("failover policy table --policy '{file}' --from {seed} --seeds 1")
        }
    }
}

/// What did not hold first, with the events that led there; `None` where everything held.
pub fn told(report: &Report, again: &str) -> Option<String> {
    let first = report.violations.first()?;
    let events = &report.events;
    let end = events.iter().position(|event| event.contains("VIOLATION"));
    let end = end.map_or(events.len(), |end| end.saturating_add(1));
    let mut text = format!(
        "seed {}: {} at {:.3} s: {}",
        report.seed,
        first.invariant,
        first.at.as_secs_f64(),
        first.what
    );
    let last = events.iter().take(end).skip(end.saturating_sub(SHOWN));
    for line in last
        .map(String::as_str)
        .chain([format!("again: {again}").as_str()])
    {
        text.push_str("\n  ");
        text.push_str(line);
    }
    Some(text)
}
