//! `failover simulate`: the shipped controller and agents in a simulated world, seed by seed.

use std::num::NonZeroUsize;
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
use crate::sim::failure::{again, told};
use crate::sim::run::{Course, Report, Setup};
use crate::sim::seeds::{cores, in_order};

/// `failover simulate`.
#[derive(Debug, Args)]
pub struct SimulateArgs {
    /// How many seeds
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 1, value_name = "SEED")]
    from: u64,
    /// The policy; by default `policies/fast.toml`
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// How many simulated minutes for each seed
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// What goes wrong
    #[arg(long, value_enum, default_value_t = Wrong::Faults)]
    course: Wrong,
    /// How many seeds at once; by default one per core. The output is the same
    #[arg(long, value_name = "COUNT")]
    jobs: Option<NonZeroUsize>,
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
    /// An operator requests a takeover, and the standby can never be severed
    SeverFails,
    /// A replaced site comes back, and somebody starts its database by hand
    StartedByHand,
}

const FAST: &str = include_str!("../../policies/fast.toml");

/// Simulates.
pub fn run(args: &SimulateArgs, output: &Output) -> anyhow::Result<Exit> {
    let policy = args.policy()?;
    let setup = |seed| args.setup(seed, &policy);
    let jobs = args.jobs.unwrap_or_else(cores);
    let seeds = args.from..args.from.saturating_add(args.seeds);
    let clock = crate::adapters::clock::SystemClock;
    let began = clock.now();
    let mut sum = Sum::default();
    let kept = |report: Report| Kept::of(report, args, &policy);
    in_order(seeds, jobs, setup, kept, |kept| {
        sum.take(kept, output);
    })?;
    let took = as_millis(clock.now().since(began)).max(1);
    let simulated = as_millis(args.lasting()).saturating_mul(sum.seeds);
    sum.show(simulated.checked_div(took).unwrap_or(0), args, output)
}

impl SimulateArgs {
    fn policy(&self) -> anyhow::Result<Policy> {
        let Some(file) = &self.policy else {
            return Ok(Policy::read("fast.toml", FAST)?);
        };
        let text =
            std::fs::read_to_string(file).with_context(|| format!("read `{}`", file.display()))?;
        Ok(Policy::read(&file.display().to_string(), &text)?)
    }

    fn lasting(&self) -> Duration {
        Duration::from_secs(self.minutes.saturating_mul(60))
    }

    fn setup(&self, seed: u64, policy: &Policy) -> Setup {
        let mut setup = Setup::new(seed, self.lasting(), policy.clone());
        setup.course = match self.course {
            Wrong::Faults => Course::Faults,
            Wrong::Calm => Course::Calm,
            Wrong::SiteLost => Course::SiteLost,
            Wrong::SeverFails => Course::SeverFails,
            Wrong::StartedByHand => Course::StartedByHand,
        };
        setup
    }
}

/// What is kept of a seed until it is its turn to be printed.
struct Kept {
    promotions: usize,
    /// The whole run, if requested.
    trace: Option<String>,
    /// The report on a seed that broke an invariant.
    broken: Option<String>,
    violations: Vec<serde_json::Value>,
}

impl Kept {
    fn of(report: Report, args: &SimulateArgs, policy: &Policy) -> Self {
        let again = again(&args.setup(report.seed, policy), args.policy.as_deref());
        let violations = report.violations.iter().map(|violation| {
            json!({
                "seed": report.seed,
                "invariant": violation.invariant.to_string(),
                "at_ms": as_millis(violation.at),
                "what": violation.what,
            })
        });
        Self {
            promotions: report.promotions,
            trace: args
                .trace
                .then(|| format!("{}\n{}", report.events.join("\n"), summary(&report))),
            broken: told(&report, &again),
            violations: violations.collect(),
        }
    }
}

/// The result of all seeds.
#[derive(Default)]
struct Sum {
    seeds: u64,
    broken: u64,
    promotions: usize,
    violations: Vec<serde_json::Value>,
}

impl Sum {
    fn take(&mut self, kept: Kept, output: &Output) {
        if let Some(trace) = kept.trace.filter(|_| !output.is_json()) {
            output.text(trace);
        }
        if let Some(broken) = kept.broken {
            self.broken = self.broken.saturating_add(1);
            output.say(format!("{} {broken}", output.paint(Mood::Bad, "broken:")));
        }
        self.promotions = self.promotions.saturating_add(kept.promotions);
        self.violations.extend(kept.violations);
        self.seeds = self.seeds.saturating_add(1);
        if self.seeds.is_multiple_of(100) {
            output.say(format!("{} seeds, {} broken", self.seeds, self.broken));
        }
    }

    fn show(&self, times: u64, args: &SimulateArgs, output: &Output) -> anyhow::Result<Exit> {
        if output.is_json() {
            output.json(&json!({
                "schema_version": 1,
                "seeds": self.seeds,
                "violations": self.violations,
                "times_real_time": times,
            }))?;
        } else {
            let verdict = if self.broken == 0 {
                output.paint(Mood::Good, "every invariant held")
            } else {
                let broken = format!("{} seeds broke an invariant", self.broken);
                output.paint(Mood::Bad, broken)
            };
            output.text(format!(
                "{} seeds of {} min, {} promotions, {times} x real time: {verdict}",
                self.seeds, args.minutes, self.promotions
            ));
        }
        Ok(if self.broken == 0 {
            Exit::Done
        } else {
            Exit::No
        })
    }
}

fn summary(report: &Report) -> String {
    let (writes, lost) = report.writes;
    format!(
        "seed {}: {writes} writes, {lost} lost, {} after a thaw, {} promotions, plans {:?}, fingerprint {:016x}",
        report.seed, report.after_thaw, report.promotions, report.plans, report.fingerprint
    )
}
