//! The first process of a container: it holds the lock on the volume, starts the agent, takes in
//! whoever loses its parent, and passes on that the container is to end.
//!
//! The agent is a process of its own below it. So the statuses of its children are its own affair,
//! and an agent that dies is started again while its guard and PostgreSQL go on: the container, and
//! the right with it, outlives an agent as a host does. When this process ends, the kernel ends
//! everything else in the container.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use rustix::io::Errno;
use rustix::process::{
    self, Pid, WaitOptions, WaitStatus, getpid, getppid, kill_process, set_child_subreaper,
    set_parent_process_death_signal, wait,
};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::config::{Config, PodConfig};
use super::{own_files, volume};
use crate::ports::Clock;
use crate::tasks::StopSignals;

/// The option that tells an agent of the process above it.
pub const BELOW: &str = "--below";

/// How long after an agent's end the next one is started.
const PAUSE: Duration = Duration::from_millis(250);

/// Runs agents, one after another, until the container is told to end, or nothing of an agent is
/// left. `agent` makes one's command.
pub async fn run(
    config: &Config,
    settings: &PodConfig,
    clock: &dyn Clock,
    agent: impl Fn() -> Command,
) -> anyhow::Result<()> {
    let pod = settings.sources.read()?;
    // Where another program is the first process, orphans come to us all the same.
    set_child_subreaper(Some(getpid())).context("adopt orphans")?;
    own_files::claim_folder(&config.state_dir).context("use `agent.state_dir`")?;
    let mut signals = Signals::listen()?;
    let lock = tokio::select! {
        lock = volume::lock(&config.state_dir, &pod, clock) => lock?,
        () = signals.stop.told() => return Ok(()),
    };
    lock.hand_on()?;
    volume::forget_earlier_server(&config.postgres)?;
    tracing::info!(%pod, "this container has the volume");
    loop {
        let child = agent().spawn().context("start the agent")?;
        let (status, told) = signals.until_ended(Pid::from_child(&child)).await?;
        if told {
            anyhow::ensure!(
                status.exit_status() == Some(0),
                "the agent {}",
                ended(status)
            );
            return Ok(());
        }
        anyhow::ensure!(
            reap(None)?.others,
            "the agent {}, and nothing that it started is left",
            ended(status)
        );
        tracing::warn!("the agent {}: the next one takes over", ended(status));
        tokio::select! {
            () = clock.sleep(PAUSE) => {}
            () = signals.stop.told() => return Ok(()),
        }
    }
}

/// To be called by the agent itself: it ends with the process above it, whose pid was given.
pub fn end_with(above: i32) -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(process::Signal::KILL))
        .context("end with the first process")?;
    // It may have ended before the line above.
    let parent = getppid().map(Pid::as_raw_pid);
    anyhow::ensure!(
        parent == Some(above),
        "process {above}, which started this agent, has ended"
    );
    Ok(())
}

/// What this process is told.
struct Signals {
    stop: StopSignals,
    child: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            stop: StopSignals::listen()?,
            child: signal(SignalKind::child()).context("wait for signals")?,
        })
    }

    /// Takes in everybody who ends, until the agent does: how it ended, and whether it was told to.
    async fn until_ended(&mut self, agent: Pid) -> anyhow::Result<(WaitStatus, bool)> {
        let mut told = false;
        loop {
            if let Some(status) = reap(Some(agent))?.agent {
                return Ok((status, told));
            }
            tokio::select! {
                _some = self.child.recv() => continue,
                () = self.stop.told() => {}
            }
            told = true;
            match kill_process(agent, process::Signal::TERM) {
                // It has just ended.
                Ok(()) | Err(Errno::SRCH) => {}
                Err(cause) => return Err(cause).context("pass the signal on to the agent"),
            }
        }
    }
}

/// What there was to take in.
struct Reaped {
    /// How the agent ended.
    agent: Option<WaitStatus>,
    /// Whether another child lives.
    others: bool,
}

/// Takes in all children that have ended. Nobody else in this process waits for any.
fn reap(agent: Option<Pid>) -> anyhow::Result<Reaped> {
    let mut reaped = Reaped {
        agent: None,
        others: false,
    };
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if Some(pid) == agent => reaped.agent = Some(status),
            Ok(Some(_orphan)) => {}
            Ok(None) => {
                reaped.others = true;
                return Ok(reaped);
            }
            Err(Errno::CHILD) => return Ok(reaped),
            Err(Errno::INTR) => {}
            Err(cause) => return Err(cause).context("take in children"),
        }
    }
}

fn ended(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("ended with exit status {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => format!("ended with {status:?}"),
    }
}

/// The command of an agent below this process: this program as it was started, and told who is above.
pub fn agent_below(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1));
    command.arg(BELOW).arg(getpid().as_raw_pid().to_string());
    command
}
