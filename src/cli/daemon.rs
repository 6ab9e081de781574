//! The long-running commands: controller, agent, observer, guard.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use rustix::process::{Signal, getpid, kill_process};
use tracing_subscriber::EnvFilter;

use super::exit::Exit;
use super::log_lines::subscriber;
use super::output::Output;
use crate::adapters::clock::SystemClock;
use crate::agent::config::Config;
use crate::agent::first;
use crate::app::executor::{CrashDrill, Moment};
use crate::engine::step::Step;

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
    /// In a pod: the process that started this agent, and with which it ends
    #[arg(long, value_name = "PID", hide = true)]
    below: Option<i32>,
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

/// Logs to standard error, in the form that was asked for.
pub(super) fn log_to_stderr(output: &Output) {
    let filter = EnvFilter::try_from_env("FAILOVER_LOG");
    let filter = filter.unwrap_or_else(|_unset| EnvFilter::new("info"));
    let lines = subscriber(output.is_json(), filter, std::io::stderr);
    // A second call, in a test, leaves the first in place.
    tracing::subscriber::set_global_default(lines).unwrap_or_default();
}

/// A runtime for a command that waits for many things at once.
pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")
}

/// Runs the controller.
pub fn run(args: &RunArgs, output: &Output) -> anyhow::Result<Exit> {
    log_to_stderr(output);
    let crash = args
        .crash_at
        .clone()
        .map(|at| Arc::new(CrashAt(at)) as Arc<dyn CrashDrill>);
    runtime()?.block_on(crate::app::run::run(&args.config, crash))?;
    Ok(Exit::Done)
}

/// Runs the agent; in a pod, as the first process of its container, whatever the container needs beside
/// it, and the agent below.
pub fn agent(args: &AgentArgs, output: &Output) -> anyhow::Result<Exit> {
    log_to_stderr(output);
    if let Some(above) = args.below {
        first::end_with(above)?;
    }
    let config = Config::read(&args.config)?;
    match &config.pod {
        Some(pod) if args.below.is_none() => {
            let program = std::env::current_exe().context("find this program")?;
            let agent = || first::agent_below(&program);
            // One thread, which starts the agent and lives as long as the process: the agent's end
            // is tied to the thread that started it.
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("start the runtime")?
                .block_on(first::run(&config, pod, &SystemClock, agent))?;
        }
        Some(_) | None => runtime()?.block_on(crate::agent::run::run(config))?,
    }
    Ok(Exit::Done)
}

/// Runs an extra observer.
pub fn observer(args: &ObserverArgs, output: &Output) -> anyhow::Result<Exit> {
    log_to_stderr(output);
    runtime()?.block_on(crate::observer::run::run(&args.config))?;
    Ok(Exit::Done)
}

/// Runs the guard.
pub fn guard(args: &GuardArgs, output: &Output) -> anyhow::Result<Exit> {
    log_to_stderr(output);
    crate::agent::guard::run(&args.config)?;
    Ok(Exit::Done)
}
