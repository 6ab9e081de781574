//! The controller's way to the agents: signed orders over mutual TLS, directly or through the
//! other site's agent, and answers that are signed by whom the order was for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::tls::{CallError, PeerClient, TlsMaterial};
use crate::engine::topology::SiteName;
use crate::ports::{Agents, EffectError, Signer, Way};
use crate::wire::sealed::{SealError, Sealed, SignedOrder, open_answer};
use crate::wire::written::Written;
use crate::wire::{ORDER_PATH, Order, OrderAnswer, RELAY_PATH, RelayAnswer, Relayed};

/// The agents of a group, and the key that they believe.
#[derive(Debug)]
pub struct SignedOrders {
    agents: BTreeMap<SiteName, PeerClient>,
    key: Arc<dyn Signer>,
    /// By which answers are believed.
    believed: TlsMaterial,
}

impl SignedOrders {
    /// A way to the agents of all sites.
    pub fn new(
        agents: BTreeMap<SiteName, PeerClient>,
        key: impl Signer + 'static,
        believed: TlsMaterial,
    ) -> Self {
        Self {
            agents,
            key: Arc::new(key),
            believed,
        }
    }
}

impl From<CallError> for EffectError {
    fn from(error: CallError) -> Self {
        let text = error.to_string();
        if matches!(error, CallError::Timeout) {
            EffectError::Late(text)
        } else if error.outcome_unknown() {
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
        let signed = SignedOrder::seal(order.clone(), self.key.as_ref())
            .map_err(|error| EffectError::Refused(error.to_string()))?;
        let mut ways = self.agents.iter();
        let way = ways.find(|(site, _)| (**site == order.site) == (by == Way::Direct));
        let (_, agent) = way.ok_or_else(|| {
            EffectError::Refused(format!("there is no agent at `{}`", order.site))
        })?;
        let sealed = signed.sealed().clone();
        let answer: Sealed = match by {
            Way::Direct => agent.post(ORDER_PATH, &sealed, within).await?,
            Way::Relayed => {
                let order = Relayed {
                    order: sealed,
                    within,
                };
                agent
                    .post::<_, RelayAnswer>(RELAY_PATH, &Written::ours(&order), within)
                    .await??
            }
        };
        // Whatever was said, the order may have been obeyed.
        open_answer(&signed, &answer, &self.believed).unwrap_or_else(|error| {
            tracing::error!(site = %order.site, %error, ?by, "an answer to an order does not count");
            let who = format!("the agent at `{}`", order.site);
            let text = if matches!(error, SealError::NotUnderstood(_)) {
                format!("{who}: {error}")
            } else {
                format!("the answer is not signed by {who}: {error}")
            };
            Err(EffectError::Unknown(text))
        })
    }
}
