//! Messages between places. A lost one is silence until its time-out, never an error; only a host
//! that is up without the process refuses. A message that waits for a link may arrive after its
//! sender gave up.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::world::{Life, Node, World};

/// Why a question has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoAnswer {
    /// Nobody listens there: it certainly did not arrive.
    Refused,
    /// Silence.
    TimedOut,
}

/// How long a message that nobody waits for any more may still be on its way.
const STRAY: Duration = Duration::from_secs(20);

/// One way of one message.
async fn pass(world: &World, from: Node, to: Node) {
    if from == to {
        return;
    }
    let (lost, way) = world.with(|state, _| {
        let link = state.link(from, to);
        let lossy = state.lossy;
        let usual = link.way;
        let jitter = if state.chance.percent(2) {
            state.chance.millis(0, 400)
        } else {
            state.chance.millis(0, 3)
        };
        // A packet that was lost is sent again after a while.
        let again = if state.chance.percent(lossy) {
            state.chance.millis(200, 3000)
        } else {
            Duration::ZERO
        };
        (!link.up, usual.saturating_add(jitter).saturating_add(again))
    });
    if lost {
        world.until(|state| state.link(from, to).up).await;
    }
    tokio::time::sleep(way).await;
    world.until(|state| state.link(from, to).up).await;
}

/// Asks something at another place, for at most `within`. What is asked runs there whoever still
/// waits for it, and sometimes twice.
pub async fn ask<T, F>(
    world: &Arc<World>,
    (from, to): (Node, Node),
    within: Duration,
    asked: impl Fn() -> F + Send + Sync + 'static,
) -> Result<T, NoAnswer>
where
    T: Send + 'static,
    F: Future<Output = Option<T>> + Send + 'static,
{
    let (sender, answer) = oneshot::channel();
    let (stray, twice) = world.with(|state, _| {
        let twice = state.lossy > 0 && state.chance.percent(2);
        (state.chance.percent(30), twice)
    });
    let there = Arc::clone(world);
    let carried = tokio::spawn(async move {
        let way = async {
            pass(&there, from, to).await;
            let came = asked().await;
            if twice {
                drop(asked().await);
            }
            pass(&there, to, from).await;
            // Who asked may have given up.
            drop(sender.send(came));
        };
        drop(tokio::time::timeout(within.saturating_add(STRAY), way).await);
    });
    match tokio::time::timeout(within, answer).await {
        Ok(Ok(Some(came))) => Ok(came),
        Ok(Ok(None)) => Err(NoAnswer::Refused),
        Ok(Err(_)) | Err(_) => {
            if !stray {
                carried.abort();
            }
            Err(NoAnswer::TimedOut)
        }
    }
}

/// Waits until a host can do anything, if it has power; whether it has.
pub async fn host(world: &World, node: Node) -> bool {
    world
        .until(|state| {
            let machine = state.machine(node);
            !machine.up || !machine.frozen
        })
        .await;
    world.with(|state, _| state.machine(node).up)
}

/// A host without power does not even refuse.
pub async fn silence<T>() -> T {
    std::future::pending().await
}

/// A process, where it can be found.
#[derive(Debug, Clone)]
pub struct Door<T> {
    /// Its life.
    pub life: Arc<Life>,
    /// What it listens with.
    pub to: T,
}
