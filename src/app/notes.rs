//! Reads, after a start, what each traffic target answers and which epoch stands beside it: a
//! witness of how far the world has gone.

use std::sync::Arc;
use std::time::Duration;

use super::control::{Handle, Input};
use super::executor::World;
use crate::ports::Clock;

/// How long to wait before a target is read again that gave no answer: nothing waits for it where
/// an agent or a database is a witness.
const AGAIN: Duration = Duration::from_secs(2);

/// Reads every target until each has answered once. Does not end, as no task of a controller does.
pub async fn read_notes(world: Arc<World>, clock: Arc<dyn Clock>, control: Handle) {
    for target in &world.traffic {
        loop {
            match target.read().await {
                Ok(read) => {
                    let said = Input::TrafficSays(target.name().clone(), read.answer);
                    if control.tell(said).await.is_err() {
                        return;
                    }
                    break;
                }
                Err(error) => {
                    tracing::warn!(target = %target.name(), %error, "traffic target not read yet");
                    clock.sleep(AGAIN).await;
                }
            }
        }
    }
    std::future::pending().await
}
