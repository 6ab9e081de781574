//! The pivot: the promotion, and its outcome.

use super::{Outcome, Steps, unexpected};
use crate::engine::saga::OpenSaga;
use crate::engine::step::Fact;
use crate::engine::units::MonoTime;
use crate::ports::{EffectError, Way};
use crate::wire::{Came, What};

impl Steps {
    pub(super) async fn promote(&self, saga: &OpenSaga, deadline: MonoTime) -> Outcome {
        let to = &saga.plan.route.to;
        if !saga.is_fenced() {
            return Err(EffectError::Refused(
                "the old primary is not fenced".to_owned(),
            ));
        }
        self.still_fenced(saga).await?;
        self.pass_to(to).await?;
        match self
            .order(saga, to, What::Promote, Way::Direct, false, deadline)
            .await?
        {
            Came::Promoted {
                timeline,
                position,
                already,
            } => Ok(Fact::Promoted {
                timeline,
                position,
                already,
            }),
            other @ (Came::Done | Came::NotDone | Came::Fenced { .. } | Came::Severed { .. }) => {
                Err(unexpected(&other))
            }
        }
    }

    /// Asks for the site's promise that a promotion that has not happened, as far as is known, will
    /// not happen; returns its fact if it did happen.
    pub async fn desist(
        &self,
        saga: &OpenSaga,
        deadline: MonoTime,
    ) -> Result<Option<Fact>, EffectError> {
        let to = &saga.plan.route.to;
        let came = self.order(saga, to, What::Desist, Way::Direct, false, deadline);
        match came.await? {
            Came::Done => Ok(None),
            Came::Promoted {
                timeline, position, ..
            } => Ok(Some(Fact::Promoted {
                timeline,
                position,
                already: true,
            })),
            other @ (Came::NotDone | Came::Fenced { .. } | Came::Severed { .. }) => {
                Err(unexpected(&other))
            }
        }
    }

    /// Whether the promotion has happened: its fact, or a clear "no".
    pub(super) async fn promoted(
        &self,
        saga: &OpenSaga,
        deadline: MonoTime,
    ) -> Result<Option<Fact>, EffectError> {
        let to = &saga.plan.route.to;
        let came = self.order(saga, to, What::Promote, Way::Direct, true, deadline);
        match came.await? {
            Came::Promoted {
                timeline, position, ..
            } => {
                // The lease follows the promotion, whoever saw it happen.
                self.pass_to(to).await?;
                Ok(Some(Fact::Promoted {
                    timeline,
                    position,
                    already: true,
                }))
            }
            Came::NotDone => Ok(None),
            other @ (Came::Done | Came::Fenced { .. } | Came::Severed { .. }) => {
                Err(unexpected(&other))
            }
        }
    }
}
