//! The fence by the old site's infrastructure (invariants.md F2): what was there is in the log before it
//! is changed, the proof is read again before the pivot, and a plan that is given up gives it back.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Steps, note};
use crate::engine::chain::Body;
use crate::engine::fencing::machine_to_end;
use crate::engine::lasting::Lasting;
use crate::engine::lease::{FenceProof, LastRight};
use crate::engine::saga::OpenSaga;
use crate::engine::step::{Event, Fact, Step};
use crate::engine::units::MonoTime;
use crate::ports::{EffectError, FencedBefore, FencedProof, InfrastructureFence, LastError};

/// How long it is between two attempts.
const AGAIN: Duration = Duration::from_millis(200);

impl Steps {
    /// What fences the old site, if it has such a thing.
    pub(super) fn infrastructure_of(
        &self,
        saga: &OpenSaga,
    ) -> Option<&Arc<dyn InfrastructureFence>> {
        self.world.infrastructure.get(&saga.plan.route.from)
    }

    /// Has the old site's infrastructure fence it, until it confirms. Never returns if there is none.
    pub(super) async fn by_infrastructure(
        &self,
        saga: &OpenSaga,
        last: &LastRight,
        deadline: MonoTime,
        heard: &Mutex<LastError>,
    ) -> FenceProof {
        let Some(infrastructure) = self.infrastructure_of(saga) else {
            return std::future::pending().await;
        };
        let Some(machine) = machine_to_end(saga, last) else {
            let text = "the agent has not said on which machine it holds the right";
            note(heard, &EffectError::Refused(text.to_owned()));
            return std::future::pending().await;
        };
        let found = saga.found.as_ref();
        let mut before = found.map(|found| FencedBefore {
            token: found.before.clone(),
        });
        let mut untold = Lasting::default();
        loop {
            let proven = async {
                let before = match &before {
                    Some(before) => before,
                    None => before.insert(self.found(saga, infrastructure, machine).await?),
                };
                let within = self.clock.now().until(deadline);
                let still = || self.may_fence(saga);
                infrastructure
                    .fence(before, Some(machine), within, &still)
                    .await
            };
            let error = match proven.await {
                Ok(FencedProof { text: said, token }) => {
                    return FenceProof::Infrastructure { said, token };
                }
                Err(error) => error,
            };
            note(heard, &error);
            if let Some(lasting) = untold.again(error.text(), self.clock.now()) {
                let what = "no proof of the infrastructure yet";
                tracing::warn!(%error, lasting.times, lasting.ms, "{what}");
            }
            if let EffectError::Refused(_) = error {
                // It stays so: the other ways may still prove it.
                return std::future::pending().await;
            }
            self.clock.sleep(AGAIN).await;
        }
    }

    /// What is there now, once the log has it.
    async fn found(
        &self,
        saga: &OpenSaga,
        infrastructure: &Arc<dyn InfrastructureFence>,
        machine: &str,
    ) -> Result<FencedBefore, EffectError> {
        let before = infrastructure.look().await?;
        let index = saga.plan.steps.iter().position(Step::proves_fence);
        let Some(index) = index else {
            return Err(EffectError::Refused("the plan has no fence".to_owned()));
        };
        let body = Body::Step {
            plan: saga.id,
            index,
            step: Step::Fence,
            event: Event::Found {
                before: before.token.clone(),
                machine: machine.to_owned(),
            },
        };
        let written = self.journal.append("controller", body).await;
        written.map_err(|error| EffectError::Failed(error.to_string()))?;
        Ok(before)
    }

    /// Whether the plan may still change the old site's infrastructure (invariants.md I9, I10).
    fn may_fence(&self, saga: &OpenSaga) -> Result<(), EffectError> {
        self.world.leadership.left()?;
        let open = self.journal.state().open;
        let goes_on = open.is_some_and(|open| open.id == saga.id && open.broken.is_none());
        if goes_on {
            Ok(())
        } else {
            let text = format!("plan {} does not go on", saga.id);
            Err(EffectError::Refused(text))
        }
    }

    /// Reads again what the infrastructure's proof rests on: an old primary that was started again
    /// since is not fenced.
    pub(super) async fn still_fenced(&self, saga: &OpenSaga) -> Result<(), EffectError> {
        let Some(Fact::Fenced {
            proof: FenceProof::Infrastructure { said, token },
        }) = saga.fact(&Step::Fence)
        else {
            return Ok(());
        };
        let Some(infrastructure) = self.infrastructure_of(saga) else {
            let text =
                "the infrastructure that confirmed the fence is not in the configuration any more";
            return Err(EffectError::Refused(text.to_owned()));
        };
        let proof = FencedProof {
            text: said.clone(),
            token: token.clone(),
        };
        infrastructure.recheck(&proof).await
    }

    /// Gives back what was there before the fence, and keeps out a change that is still under way.
    pub(super) async fn give_back(&self, saga: &OpenSaga) -> Result<(), EffectError> {
        let Some(found) = &saga.found else {
            return Ok(());
        };
        let Some(infrastructure) = self.infrastructure_of(saga) else {
            let text = "what was there before the fence is in the log, and the infrastructure not in the configuration any more";
            return Err(EffectError::Failed(text.to_owned()));
        };
        let mark = format!("plan-{}-undone-{}", saga.id, self.clock.now().0.as_micros());
        let before = FencedBefore {
            token: found.before.clone(),
        };
        infrastructure.undo(&before, &mark).await
    }
}
