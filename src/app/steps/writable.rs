//! Whether the new primary takes writes: seen by the controller itself, or reported by its agent.

use super::{Outcome, Steps};
use crate::app::control::Input;
use crate::engine::observation::{DatabaseFacts, Facts, Finding};
use crate::engine::saga::OpenSaga;
use crate::engine::situation::{AgentFacts, LocalDatabase};
use crate::engine::step::Fact;
use crate::engine::topology::{Role, Target, TargetKind};
use crate::engine::units::Epoch;
use crate::ports::EffectError;

impl Steps {
    /// Checks that the new primary takes a write in its epoch. If the controller is not authorised,
    /// cannot connect, or is blocked from its own rows, it relies on the agent: on the agent's
    /// probe, which wrote and read back after the promotion, since it saw the epoch; or, if that is
    /// kept out by the same cause (a password, a grant, a lock), on the agent's report that it
    /// wrote the epoch itself and read it back.
    pub(super) async fn verify_writable(&self, saga: &OpenSaga) -> Outcome {
        let target = Target {
            site: saga.plan.route.to.clone(),
            kind: TargetKind::Database,
        };
        let within = self.policy.detect.probe_timeout;
        let not_yet = |why: String| Err(EffectError::Failed(why));
        match self.world.probe.look(&target, within).await {
            Finding::Good(Facts::Database(facts)) => {
                match (not_writable(&facts, saga.plan.route.epoch), &facts.blocked) {
                    (None, _) => Ok(Fact::Done),
                    (Some(_), Some(blocked)) if facts.role == Role::Primary => {
                        self.agent_vouches(saga, blocked).await
                    }
                    (Some(why), _) => not_yet(why),
                }
            }
            Finding::Good(Facts::Api | Facts::Agent) => not_yet("no database answered".to_owned()),
            Finding::Bad(failure) => self.agent_vouches(saga, &failure.to_string()).await,
        }
    }

    async fn agent_vouches(&self, saga: &OpenSaga, kept_out: &str) -> Outcome {
        let (to, epoch) = (&saga.plan.route.to, saga.plan.route.epoch);
        let situation = self.control.ask(|answer| Input::Look(None, answer)).await?;
        let limit = self.policy.detect.stale_after;
        let site = situation.sites.get(to);
        let look = site.and_then(|site| site.database.as_ref()?.within(limit));
        let agent = site.and_then(|site| site.agent.as_ref()?.within(limit));
        let what = match look.map(|facts| not_writable(facts, epoch)) {
            Some(None) => "was seen by its agent, not from here",
            Some(Some(_)) | None if agent.is_some_and(|agent| wrote(agent, epoch)) => {
                "was done by its agent, which read it back; probes are kept out"
            }
            Some(Some(why)) => {
                return Err(EffectError::Failed(format!(
                    "{kept_out}; its agent says: {why}"
                )));
            }
            None => return Err(EffectError::Failed(kept_out.to_owned())),
        };
        let text = format!("the write at `{to}` {what}: {kept_out}");
        self.note("writable-by-the-agents-word", text).await?;
        Ok(Fact::Done)
    }
}

fn wrote(agent: &AgentFacts, epoch: Epoch) -> bool {
    agent.epoch_written == Some(epoch)
        && agent.fenced.is_none()
        && agent.database == LocalDatabase::Up
}

/// What prevents a database from taking writes in an epoch.
fn not_writable(facts: &DatabaseFacts, epoch: Epoch) -> Option<String> {
    if facts.role != Role::Primary {
        Some("it is a standby".to_owned())
    } else if facts.write_took.is_none() {
        Some("it took no write".to_owned())
    } else if let Some(names) = facts.waits_in_vain() {
        // Its users would hang, and our own writes do not show it (postgres.md P24).
        Some(format!(
            "its commits wait for {names}, and nothing streams under that name"
        ))
    } else if facts.epoch != Some(epoch) {
        let row = facts.epoch;
        let row = row.map_or("nothing".to_owned(), |epoch| epoch.to_string());
        Some(format!("its epoch row says {row}, not {epoch}"))
    } else {
        None
    }
}
