//! The handle to the control loop, for everything that sends it inputs or requests.

use std::sync::Arc;

use tokio::sync::{Notify, mpsc, oneshot};

use super::Input;

/// The queue's capacity: 16 targets from 4 vantage points, 4 rounds of them.
const WAITING: usize = 256;

/// A handle to the control loop.
#[derive(Debug, Clone)]
pub struct Handle {
    queue: mpsc::Sender<Input>,
    rehearse: Arc<Notify>,
}

/// The control loop has ended, so its callers must end too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the control loop has ended")]
pub struct Ended;

impl Handle {
    /// A handle to a control loop, and the queue that the loop reads.
    pub fn new() -> (Self, mpsc::Receiver<Input>) {
        let (queue, inputs) = mpsc::channel(WAITING);
        let rehearse = Arc::default();
        (Self { queue, rehearse }, inputs)
    }

    /// Somebody wants to know what would block a failover now: whatever pauses between two
    /// rehearsals goes on.
    pub fn rehearse(&self) {
        self.rehearse.notify_waiters();
    }

    /// Ends when somebody calls [`Handle::rehearse`].
    pub async fn asked_to_rehearse(&self) {
        self.rehearse.notified().await;
    }

    /// Sends something that has no answer.
    pub async fn tell(&self, input: Input) -> Result<(), Ended> {
        self.queue.send(input).await.map_err(|_closed| Ended)
    }

    /// Sends a request, and waits for the answer.
    pub async fn ask<T>(
        &self,
        input: impl FnOnce(oneshot::Sender<T>) -> Input,
    ) -> Result<T, Ended> {
        let (sender, answer) = oneshot::channel();
        self.tell(input(sender)).await?;
        answer.await.map_err(|_closed| Ended)
    }
}
