//! The controller's way to the agents: signed orders over mutual TLS, directly or through the
//! other site's agent.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;

use super::keys::{Signed, SigningKey};
use super::tls::{CallError, PeerClient};
use crate::engine::topology::SiteName;
use crate::ports::{Agents, EffectError, Way};
use crate::wire::{ORDER_CONTEXT, ORDER_PATH, Order, OrderAnswer, RELAY_PATH};

/// The agents of a group, and the key that they believe.
#[derive(Debug)]
pub struct SignedOrders {
    agents: BTreeMap<SiteName, PeerClient>,
    key: SigningKey,
}

impl SignedOrders {
    /// A way to the agents of all sites.
    pub fn new(agents: BTreeMap<SiteName, PeerClient>, key: SigningKey) -> Self {
        Self { agents, key }
    }
}

impl From<CallError> for EffectError {
    fn from(error: CallError) -> Self {
        let text = error.to_string();
        if error.outcome_unknown() {
            EffectError::Unknown(text)
        } else {
            match error {
                CallError::Denied { .. } | CallError::Status { .. } => EffectError::Refused(text),
                CallError::Timeout
                | CallError::Refused
                | CallError::Unreachable(_)
                | CallError::Tls(_)
                | CallError::Lost(_)
                | CallError::Garbled(_)
                | CallError::Unsent(_) => EffectError::Failed(text),
            }
        }
    }
}

#[async_trait]
impl Agents for SignedOrders {
    async fn order(&self, order: &Order, by: Way, within: Duration) -> OrderAnswer {
        let signed = Signed::sign(order.clone(), &self.key, ORDER_CONTEXT)
            .map_err(|error| EffectError::Refused(error.to_string()))?;
        let (agent, path) = match by {
            Way::Direct => (self.agents.get(&order.site), ORDER_PATH),
            Way::Relayed => (
                self.agents
                    .iter()
                    .find(|(site, _)| **site != order.site)
                    .map(|(_, agent)| agent),
                RELAY_PATH,
            ),
        };
        let agent = agent.ok_or_else(|| {
            EffectError::Refused(format!("there is no agent at `{}`", order.site))
        })?;
        agent.post::<_, OrderAnswer>(path, &signed, within).await?
    }
}
