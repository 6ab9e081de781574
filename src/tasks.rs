//! The tasks of a process that runs until it is told to stop: each has a name, and the end of any of them
//! ends the process.

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{JoinError, JoinHandle, JoinSet};

/// Tasks by name. One that ends, with or without an error, ends the process that has it.
pub type Tasks = JoinSet<(&'static str, anyhow::Result<()>)>;

/// A task that has nothing to fail at.
pub async fn named(
    name: &'static str,
    task: impl Future<Output = ()>,
) -> (&'static str, anyhow::Result<()>) {
    task.await;
    (name, Ok(()))
}

/// What a task came to; an error where it broke. A task is cancelled only where the process ends: then
/// whoever waits for it has no more to do, and this never returns.
pub async fn outcome<T>(task: &mut JoinHandle<T>) -> Result<T, JoinError> {
    match task.await {
        Err(cause) if cause.is_cancelled() => std::future::pending().await,
        ended => ended,
    }
}

/// That this process is told to stop, from the moment on that this is made: before that, a signal ends it
/// at once.
#[derive(Debug)]
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// Listens from now on.
    pub fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("wait for signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    /// Waits for one.
    pub async fn told(&mut self) {
        tokio::select! {
            _told = self.terminate.recv() => {}
            _told = self.interrupt.recv() => {}
        }
    }
}

/// Waits for a signal to stop, or for the end of a task, which is an error: a process that lacks one of
/// its tasks must not look well.
pub async fn until_stopped(tasks: &mut Tasks) -> anyhow::Result<()> {
    until_told(tasks, &mut StopSignals::listen()?).await
}

/// The same, for a signal that may have come already.
pub async fn until_told(tasks: &mut Tasks, signals: &mut StopSignals) -> anyhow::Result<()> {
    tokio::select! {
        ended = tasks.join_next() => match ended {
            Some(Ok((name, Ok(())))) => anyhow::bail!("the task `{name}` ended unexpectedly"),
            Some(Ok((name, Err(cause)))) => Err(cause.context(format!("the task `{name}` failed"))),
            Some(Err(cause)) => Err(cause).context("a task broke"),
            None => anyhow::bail!("there is no task"),
        },
        () = signals.told() => Ok(()),
    }
}

/// A number that no other process of ours has, and none had before this one: below 2^53, which every
/// reader of JSON keeps exactly.
pub fn a_life() -> anyhow::Result<u64> {
    let mut random = [0; 8];
    aws_lc_rs::rand::fill(&mut random).context("draw a random number")?;
    Ok(u64::from_ne_bytes(random) >> 11)
}
