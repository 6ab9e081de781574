//! The port to whatever can keep a site's database from running without its agent's help.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{EffectError, Still};

/// Fences a site through its infrastructure (invariants.md F2).
///
/// The order is: the standby is severed; [`InfrastructureFence::look`] says what is there, and that is
/// logged; [`InfrastructureFence::fence`] changes it and waits for the proof, which is logged;
/// [`InfrastructureFence::recheck`] reads it again before the pivot. Until then
/// [`InfrastructureFence::undo`] takes it back.
#[async_trait]
pub trait InfrastructureFence: Send + Sync + fmt::Debug {
    /// What is there now. Asked again and again while all is well, it makes a later fence quicker.
    async fn look(&self) -> Result<FencedBefore, EffectError>;

    /// Whether the fence would be let through now, as far as the infrastructure can say without doing it.
    async fn rehearse(&self) -> Result<(), EffectError>;

    /// Fences what was looked at, and waits for the proof. `holder` is the id of the pod that held the
    /// right, where it is known. `still` is asked last of all before the change. Called again it goes on:
    /// that also settles an unknown outcome. An error is no proof, whatever was changed.
    async fn fence(
        &self,
        before: &FencedBefore,
        holder: Option<&str>,
        within: Duration,
        still: Still<'_>,
    ) -> Result<FencedProof, EffectError>;

    /// Reads the proof's objects again: an error is no fence any more.
    async fn recheck(&self, proof: &FencedProof) -> Result<(), EffectError>;

    /// Gives back what was there, and sees to it that no earlier change lands afterwards. `mark` differs
    /// each time. Called again it goes on.
    async fn undo(&self, before: &FencedBefore, mark: &str) -> Result<(), EffectError>;
}

/// What was there before a fence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FencedBefore {
    /// The infrastructure's own form of it, opaque to everybody else.
    pub token: String,
}

/// That nothing runs any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FencedProof {
    /// In words, for people.
    pub text: String,
    /// The infrastructure's own form of it, opaque to everybody else.
    pub token: String,
}
