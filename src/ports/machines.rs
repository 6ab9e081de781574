//! The port to whoever runs the machines below a cluster.

use std::fmt;

use async_trait::async_trait;

use super::EffectError;

/// The cloud, asked for one machine.
#[async_trait]
pub trait Machines: Send + Sync + fmt::Debug {
    /// Whether a machine, by its provider id (`aws:///eu-central-1a/i-0abc`), is gone for good: ended or
    /// deleted, not stopped. An error says nothing either way.
    async fn is_gone(&self, machine: &str) -> Result<bool, EffectError>;
}
