//! After a start, reads each traffic target's answer and the epoch noted beside it: a witness of
//! the actual epoch.

use std::sync::Arc;
use std::time::Duration;

use super::control::{Handle, Input};
use super::executor::World;
use crate::engine::lasting::Lasting;
use crate::ports::Clock;

/// How long to wait before reading a silent target again: nothing waits for it if an agent or a
/// database is a witness.
const AGAIN: Duration = Duration::from_secs(2);

/// Reads every target until each has answered once. Does not end, as no task of a controller does.
pub async fn read_notes(world: Arc<World>, clock: Arc<dyn Clock>, control: Handle) {
    for target in &world.traffic {
        let mut unread = Lasting::default();
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
                    if let Some(lasting) = unread.again(error.text(), clock.now()) {
                        let (traffic, what) = (target.name(), "traffic target not read yet");
                        tracing::warn!(%traffic, %error, lasting.times, lasting.ms, "{what}");
                    }
                    clock.sleep(AGAIN).await;
                }
            }
        }
    }
    std::future::pending::<()>().await;
}
