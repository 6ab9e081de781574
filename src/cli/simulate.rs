//! `failover simulate`: the shipped controller and agents in a simulated world, seed after seed.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde_json::json;

use super::exit::Exit;
use super::output::{Mood, Output};
use crate::engine::policy::Policy;
use crate::engine::units::as_millis;
use crate::ports::Clock;
use crate::sim::run::{Course, Report, Setup, run as run_seed};

/// `failover simulate`.
#[derive(Debug, Args)]
pub struct SimulateArgs {
    /// How many seeds
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 1, value_name = "SEED")]
    from: u64,
    /// The policy; without it that of `policies/fast.toml`
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// How many simulated minutes for each seed
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// What goes wrong
    #[arg(long, value_enum, default_value_t = Wrong::Faults)]
    course: Wrong,
    /// Print every event
    #[arg(long)]
    trace: bool,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Wrong {
    /// Faults of every kind
    Faults,
    /// Nothing
    Calm,
    /// The active site is lost for good
    SiteLost,
}

const FAST: &str = include_str!("../../policies/fast.toml");

/// How many events are shown of a seed in which an invariant did not hold.
const SHOWN: usize = 20;

/// Simulates.
pub fn run(args: &SimulateArgs, output: &Output) -> anyhow::Result<Exit> {
    let policy = match &args.policy {
        None => Policy::read("fast.toml", FAST)?,
        Some(file) => {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("read `{}`", file.display()))?;
            Policy::read(&file.display().to_string(), &text)?
        }
    };
    let lasting = Duration::from_secs(args.minutes.saturating_mul(60));
    let clock = crate::adapters::clock::SystemClock;
    let began = clock.now();
    let mut broken = Vec::new();
    let mut promotions = 0usize;
    for done in 0..args.seeds {
        let seed = args.from.saturating_add(done);
        let mut setup = Setup::new(seed, lasting, policy.clone());
        setup.course = match args.course {
            Wrong::Faults => Course::Faults,
            Wrong::Calm => Course::Calm,
            Wrong::SiteLost => Course::SiteLost,
        };
        let report = run_seed(&setup)?;
        promotions = promotions.saturating_add(report.promotions);
        if args.trace && !output.is_json() {
            output.text(report.events.join("\n"));
            output.text(summary(&report));
        }
        if !report.violations.is_empty() {
            show(&report, args, output);
            broken.push(report);
        }
        if done.saturating_add(1).is_multiple_of(100) {
            output.say(format!(
                "{} seeds, {} broken",
                done.saturating_add(1),
                broken.len()
            ));
        }
    }
    let took = as_millis(clock.now().since(began)).max(1);
    let simulated = as_millis(lasting).saturating_mul(args.seeds);
    let times = simulated.checked_div(took).unwrap_or(0);
    if output.is_json() {
        let violations: Vec<_> = broken
            .iter()
            .flat_map(|report| {
                report.violations.iter().map(|violation| {
                    json!({
                        "seed": report.seed,
                        "invariant": violation.invariant.to_string(),
                        "at_ms": as_millis(violation.at),
                        "what": violation.what,
                    })
                })
            })
            .collect();
        output.json(&json!({
            "schema_version": 1,
            "seeds": args.seeds,
            "violations": violations,
            "times_real_time": times,
        }))?;
    } else {
        let verdict = if broken.is_empty() {
            output.paint(Mood::Good, "every invariant held")
        } else {
            output.paint(
                Mood::Bad,
                format!("{} seeds broke an invariant", broken.len()),
            )
        };
        output.text(format!(
            "{} seeds of {} min, {promotions} promotions, {times} x real time: {verdict}",
            args.seeds, args.minutes
        ));
    }
    Ok(if broken.is_empty() {
        Exit::Done
    } else {
        Exit::No
    })
}

fn summary(report: &Report) -> String {
    let (writes, lost) = report.writes;
    format!(
        "seed {}: {writes} writes, {lost} lost, {} after a thaw, {} promotions, plans {:?}, fingerprint {:016x}",
        report.seed, report.after_thaw, report.promotions, report.plans, report.fingerprint
    )
}

fn show(report: &Report, args: &SimulateArgs, output: &Output) {
    let Some(first) = report.violations.first() else {
        return;
    };
    output.say(format!(
        "{} seed {}: {} at {:.3} s: {}",
        output.paint(Mood::Bad, "broken:"),
        report.seed,
        first.invariant,
        first.at.as_secs_f64(),
        first.what
    ));
    let end = report
        .events
        .iter()
        .position(|event| event.contains("VIOLATION"));
    let end = end.map_or(report.events.len(), |end| end.saturating_add(1));
    for event in report
        .events
        .iter()
        .take(end)
        .skip(end.saturating_sub(SHOWN))
    {
        output.say(format!("  {event}"));
    }
    let policy = args.policy.as_ref();
    let policy = policy.map_or(String::new(), |file| {
        format!(" --policy {}", file.display())
    });
    output.say(format!(
        "  again: failover simulate --from {} --seeds 1 --minutes {}{policy} --trace",
        report.seed, args.minutes
    ));
}
