//! A seed in which an invariant did not hold, for people: what, the last events before it, and the
//! command that runs it again.

use std::fmt::Write;
use std::path::Path;

use super::run::{Course, Report, Setup};

/// How many events are shown.
const SHOWN: usize = 20;

impl Course {
    /// Its word on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Course::Faults => "faults",
            Course::Calm => "calm",
            Course::SiteLost => "site-lost",
        }
    }
}

/// The command that runs a seed again; `policy` is the file where it is not `policies/fast.toml`.
pub fn again(setup: &Setup, policy: Option<&Path>) -> String {
    let minutes = setup.lasting.as_secs() / 60;
    let mut command = format!(
        "failover simulate --from {} --seeds 1 --minutes {minutes}",
        setup.seed
    );
    if setup.course != Course::Faults {
        command.push_str(" --course ");
        command.push_str(setup.course.word());
    }
    if let Some(file) = policy {
        write!(command, " --policy '{}'", file.display()).unwrap_or_default();
    }
    command.push_str(" --trace");
    command
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
