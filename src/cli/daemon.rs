//! The long-running commands: controller, agent, observer, guard.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use rustix::process::{Signal, getpid, kill_process};

use super::exit::Exit;
use crate::app::executor::{CrashDrill, Moment};
use crate::engine::step::Step;
use crate::engine::text::clip_to;

/// `failover run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The controller's configuration
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/failover/failover.toml"
    )]
    config: PathBuf,
    /// For a crash drill: kill this process (SIGKILL) at a moment of a step, such as
    /// `promote:after-effect`; moments are before-started, after-started, after-effect and
    /// after-outcome
    #[arg(long, value_name = "STEP:MOMENT")]
    crash_at: Option<String>,
}

/// `failover agent`.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// The agent's configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/failover/agent.toml")]
    config: PathBuf,
}

/// `failover observer`.
#[derive(Debug, Args)]
pub struct ObserverArgs {
    /// The observer's configuration
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/failover/observer.toml"
    )]
    config: PathBuf,
}

/// `failover guard`.
#[derive(Debug, Args)]
pub struct GuardArgs {
    /// The settings file that the agent wrote
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Kills the process at one moment.
#[derive(Debug)]
struct CrashAt(String);

impl CrashDrill for CrashAt {
    fn passed(&self, step: &Step, moment: Moment) {
        // A step's own words may hold a space (`move-traffic dns`).
        if self.0 == format!("{step}:{moment}") {
            tracing::warn!(%step, %moment, "crash drill");
            // SIGKILL to ourselves cannot fail, and does not return.
            kill_process(getpid(), Signal::KILL).unwrap_or_default();
        }
    }
}

/// The longest line that is logged, in bytes.
const LINE_LIMIT: usize = 8 * 1024;

/// Standard error, with each event on one line, whatever text it contains.
struct OneLine;

impl Write for OneLine {
    /// The formatter hands over a whole event at once.
    fn write(&mut self, event: &[u8]) -> std::io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let mut line = text.strip_suffix('\n').unwrap_or(&text).to_owned();
        clip_to(&mut line, LINE_LIMIT);
        line.push('\n');
        std::io::stderr().lock().write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("FAILOVER_LOG")
        .unwrap_or_else(|_unset| tracing_subscriber::EnvFilter::new("info"));
    // A second call, in a test, leaves the first in place.
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| OneLine)
        .with_ansi(false)
        .try_init()
        .unwrap_or_default();
}

/// A runtime for a command that waits for many things at once.
pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")
}

/// Runs the controller.
pub fn run(args: &RunArgs) -> anyhow::Result<Exit> {
    log_to_stderr();
    let crash = args
        .crash_at
        .clone()
        .map(|at| Arc::new(CrashAt(at)) as Arc<dyn CrashDrill>);
    runtime()?.block_on(crate::app::run::run(&args.config, crash))?;
    Ok(Exit::Done)
}

/// Runs the agent.
pub fn agent(args: &AgentArgs) -> anyhow::Result<Exit> {
    log_to_stderr();
    runtime()?.block_on(crate::agent::run::run(&args.config))?;
    Ok(Exit::Done)
}

/// Runs an extra observer.
pub fn observer(args: &ObserverArgs) -> anyhow::Result<Exit> {
    log_to_stderr();
    runtime()?.block_on(crate::observer::run::run(&args.config))?;
    Ok(Exit::Done)
}

/// Runs the guard.
pub fn guard(args: &GuardArgs) -> anyhow::Result<Exit> {
    log_to_stderr();
    crate::agent::guard::run(&args.config)?;
    Ok(Exit::Done)
}
