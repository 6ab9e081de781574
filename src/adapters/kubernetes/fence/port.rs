//! The fence as the port that the controller knows.

use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::proof::{Before, End, Proof};
use super::{Doubt, Standing, StatefulSetFence};
use crate::engine::text::clipped;
use crate::ports::{EffectError, FencedBefore, FencedProof, InfrastructureFence, Still};

fn written(value: &impl Serialize) -> Result<String, EffectError> {
    serde_json::to_string(value).map_err(|cause| EffectError::Refused(cause.to_string()))
}

fn read<T: DeserializeOwned>(token: &str) -> Result<T, EffectError> {
    serde_json::from_str(token).map_err(|cause| {
        EffectError::Refused(format!("the token is of another kind of fence: {cause}"))
    })
}

/// Doubts in words. The time may have been too short, or it will never be proven.
fn unproven(doubts: &[Doubt]) -> EffectError {
    let texts: Vec<String> = doubts.iter().map(ToString::to_string).collect();
    let text = clipped(format!("not proven: {}", texts.join("; ")));
    if doubts.iter().any(Doubt::is_final) {
        EffectError::Refused(text)
    } else {
        EffectError::Failed(text)
    }
}

fn shown(proof: &Proof) -> String {
    let pods = proof.pods.iter().map(|pod| match &pod.end {
        End::Kubelet { finished_at, .. } => {
            let when = finished_at.as_deref().unwrap_or("an unknown time");
            format!("the containers of pod `{}` ended at {when}", pod.name)
        }
        End::MachineGone { machine } => {
            format!("machine `{machine}` of pod `{}` is gone", pod.name)
        }
    });
    clipped(pods.collect::<Vec<_>>().join("; "))
}

#[async_trait]
impl InfrastructureFence for StatefulSetFence {
    async fn look(&self) -> Result<FencedBefore, EffectError> {
        let before = StatefulSetFence::look(self).await?;
        Ok(FencedBefore {
            token: written(&before)?,
        })
    }

    async fn rehearse(&self) -> Result<(), EffectError> {
        Ok(StatefulSetFence::rehearse(self).await?)
    }

    async fn fence(
        &self,
        before: &FencedBefore,
        holder: Option<&str>,
        within: Duration,
        still: Still<'_>,
    ) -> Result<FencedProof, EffectError> {
        let before: Before = read(&before.token)?;
        let mut watch = self.watch(&before, &before.set, holder);
        watch.scale_down(&before, still).await?;
        match watch.wait(within).await? {
            Standing::Fenced(proof) => Ok(FencedProof {
                text: shown(&proof),
                token: written(&proof)?,
            }),
            Standing::Doubted(doubts) => Err(unproven(&doubts)),
        }
    }

    async fn recheck(&self, proof: &FencedProof) -> Result<(), EffectError> {
        let proof: Proof = read(&proof.token)?;
        let doubts = StatefulSetFence::recheck(self, &proof).await?;
        if doubts.is_empty() {
            return Ok(());
        }
        // Whatever stands in doubt now was proven before.
        Err(EffectError::Refused(unproven(&doubts).text().to_owned()))
    }

    async fn undo(&self, before: &FencedBefore, mark: &str) -> Result<(), EffectError> {
        let before: Before = read(&before.token)?;
        Ok(StatefulSetFence::undo(self, &before, mark).await?)
    }
}
