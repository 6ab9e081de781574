//! Whether the new primary takes writes: seen by the controller itself, or by the agent beside it.

use super::{Outcome, Steps};
use crate::app::control::Input;
use crate::engine::observation::{DatabaseFacts, Facts, Finding};
use crate::engine::saga::OpenSaga;
use crate::engine::step::Fact;
use crate::engine::topology::{Role, Target, TargetKind};
use crate::engine::units::Epoch;
use crate::ports::EffectError;

impl Steps {
    /// Sees the new primary take a write in its epoch. Where the controller itself is not let in,
    /// or does not get there, the agent's look stands for its own: that one wrote and read back,
    /// after the promotion, since it saw the epoch.
    pub(super) async fn verify_writable(&self, saga: &OpenSaga) -> Outcome {
        let route = &saga.plan.route;
        let target = Target {
            site: route.to.clone(),
            kind: TargetKind::Database,
        };
        let within = self.policy.detect.probe_timeout;
        let not_yet = |why: String| Err(EffectError::Failed(why));
        match self.world.probe.look(&target, within).await {
            Finding::Good(Facts::Database(facts)) => match not_writable(&facts, route.epoch) {
                None => Ok(Fact::Done),
                Some(why) => not_yet(why),
            },
            Finding::Good(Facts::Api | Facts::Agent) => not_yet("no database answered".to_owned()),
            Finding::Bad(failure) => {
                let situation = self.control.ask(|answer| Input::Look(None, answer)).await?;
                let site = situation.sites.get(&route.to);
                let told = site.and_then(|site| site.database.as_ref());
                let told = told.and_then(|told| told.within(self.policy.detect.stale_after));
                let why = match told.map(|facts| not_writable(facts, route.epoch)) {
                    Some(None) => {
                        let text = format!(
                            "the write at `{}` was seen by its agent, not from here: {failure}",
                            route.to
                        );
                        self.note("writable-by-the-agents-word", text).await?;
                        return Ok(Fact::Done);
                    }
                    Some(Some(why)) => format!("{failure}; its agent says: {why}"),
                    None => failure.to_string(),
                };
                not_yet(why)
            }
        }
    }
}

/// What is missing for a database to take writes in an epoch.
fn not_writable(facts: &DatabaseFacts, epoch: Epoch) -> Option<String> {
    if facts.role != Role::Primary {
        Some("it is a standby".to_owned())
    } else if facts.write_took.is_none() {
        Some("it took no write".to_owned())
    } else if let Some(names) = facts.waits_in_vain() {
        Some(format!(
            "its commits wait for {names}, and nobody of that name streams"
        ))
    } else if facts.epoch != Some(epoch) {
        let row = facts.epoch;
        let row = row.map_or("nothing".to_owned(), |epoch| epoch.to_string());
        Some(format!("its epoch row says {row}, not {epoch}"))
    } else {
        None
    }
}
