//! `failover policy`: checks policies, and shows what follows from them.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Subcommand;
use serde_json::json;

use super::exit::Exit;
use super::output::{Mood, Output};
use crate::engine::document::human;
use crate::engine::policy::{Mode, Policy};
use crate::engine::timers::{Timer, timers};
use crate::engine::units::millis;

/// `failover policy`.
#[derive(Debug, Subcommand)]
pub enum PolicyVerb {
    /// Check policies: report every mistake with file, line and the correct form
    Check {
        /// The policies
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Show what the policy does in each partition: verdict, time, loss, and who is fenced
    Table(super::table::TableArgs),
    /// Show how long each fault takes until the other site takes writes, and which setting
    /// dominates
    Timers {
        /// The policy
        file: PathBuf,
    },
}

pub(super) fn read(file: &Path) -> anyhow::Result<Policy> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("read `{}`", file.display()))?;
    Ok(Policy::read(&file.display().to_string(), &text)?)
}

/// Runs `failover policy`.
pub fn run(verb: &PolicyVerb, output: &Output) -> anyhow::Result<Exit> {
    match verb {
        PolicyVerb::Check { files } => check(files, output),
        PolicyVerb::Table(args) => super::table::run(args, output),
        PolicyVerb::Timers { file } => show_timers(file, output),
    }
}

fn check(files: &[PathBuf], output: &Output) -> anyhow::Result<Exit> {
    let mut exit = Exit::Done;
    let mut results = Vec::new();
    for file in files {
        let error = read(file).err().map(|error| super::output::said(&error));
        if output.is_json() {
            results.push(json!({"file": file, "good": error.is_none(), "problems": error}));
        } else {
            match &error {
                None => output.text(format!(
                    "{}: {}",
                    file.display(),
                    output.paint(Mood::Good, "good")
                )),
                Some(problems) => output.text(format!(
                    "{}\n{problems}",
                    output.paint(Mood::Bad, "refused:")
                )),
            }
        }
        if error.is_some() {
            exit = Exit::No;
        }
    }
    if output.is_json() {
        output.json(&json!({"schema_version": 1, "policies": results}))?;
    }
    Ok(exit)
}

#[derive(serde::Serialize)]
struct Shown<'p> {
    schema_version: u32,
    #[serde(rename = "fence_stages_ms", with = "millis")]
    fence_stages: std::time::Duration,
    #[serde(rename = "fence_within_ms", with = "millis")]
    fence_within: std::time::Duration,
    #[serde(rename = "longest_wait_out_ms", with = "millis")]
    longest_wait_out: std::time::Duration,
    timers: &'p [Timer],
}

fn show_timers(file: &Path, output: &Output) -> anyhow::Result<Exit> {
    let policy = read(file)?;
    let lease = &policy.lease;
    let timers = timers(&policy);
    if output.is_json() {
        output.json(&Shown {
            schema_version: 1,
            fence_stages: lease.fence.longest(),
            fence_within: lease.fence_within,
            longest_wait_out: lease.longest_wait_out(),
            timers: &timers,
        })?;
        return Ok(Exit::Done);
    }
    output.text(format!(
        "A fence ends within its bound:\n  fence_fast {} + fence_immediate {} + fence_kill {} + guard's tick 100ms = {}  <=  fence_within {}",
        human(lease.fence.fast), human(lease.fence.immediate), human(lease.fence.kill),
        human(lease.fence.longest()), human(lease.fence_within)
    ));
    output.text(format!(
        "A promotion that waits out the old lease begins no earlier than\n  max(last vouch + peer_ttl {}, last grant + lease_ttl {}) + fence_within {}, each x (1 + {} ppm), + margin {}\n  that is at most {} after the later of last vouch and last grant\n",
        human(lease.peer_ttl), human(lease.lease_ttl), human(lease.fence_within),
        lease.clock_drift_ppm, human(lease.margin), rounded(lease.longest_wait_out())
    ));
    output.text("Worst case from the fault until the other site takes writes:");
    if policy.mode == Mode::Observe {
        output.text("  never automatically: the policy only observes");
    }
    for timer in &timers {
        let worst = timer
            .worst
            .map_or("never automatically".to_owned(), rounded);
        output.text(format!("  {:<64} {worst}", timer.fault));
        for (index, (name, ms)) in timer.parts.iter().enumerate() {
            let note = if index == 0 {
                "   <- dominates: change this first"
            } else {
                ""
            };
            output.text(format!("      {name:<50} {ms:>8} ms{note}"));
        }
    }
    Ok(Exit::Done)
}

fn rounded(duration: std::time::Duration) -> String {
    human(std::time::Duration::from_millis(
        crate::engine::units::as_millis(duration),
    ))
}
