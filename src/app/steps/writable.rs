//! The step that sees the new primary take a write.

use super::{Outcome, Steps};
use crate::app::control::Input;
use crate::engine::saga::OpenSaga;
use crate::engine::step::Fact;
use crate::engine::topology::{Target, TargetKind};
use crate::engine::writable::{SeenBy, takes_writes};
use crate::ports::EffectError;

impl Steps {
    /// Looks, and asks what is known of the site by others.
    pub(super) async fn verify_writable(&self, saga: &OpenSaga) -> Outcome {
        let (to, detect) = (&saga.plan.route.to, &self.policy.detect);
        let target = Target {
            site: to.clone(),
            kind: TargetKind::Database,
        };
        let look = self.world.probe.look(&target, detect.probe_timeout).await;
        let situation = self.control.ask(|answer| Input::Look(None, answer)).await?;
        let (site, epoch) = (situation.sites.get(to), saga.plan.route.epoch);
        let seen = takes_writes(&look, site, epoch, detect.stale_after);
        if let SeenBy::Agent(what) = seen.map_err(EffectError::Failed)? {
            let text = format!("the write at `{to}` {what}");
            self.note("writable-by-the-agents-word", text).await?;
        }
        Ok(Fact::Done)
    }
}
