//! The contract of the port `Traffic`, held against every kind of target, each on its own system or
//! a double of it. What only one kind does is tested beside it.

pub(crate) mod backend_rig;
mod clauses;
pub(crate) mod cloud_dns_rig;
mod rfc2136_rig;
mod route53_rig;
pub(crate) mod wire;

use async_trait::async_trait;
use failover::engine::answer::Answer;
use failover::engine::topology::{SiteName, Topology};
use failover::engine::units::Epoch;
use failover::ports::Traffic;

/// One kind of target on its system, and what a test does to that system behind the target's back.
#[async_trait]
pub(crate) trait Rig: Sized + Send + Sync {
    /// A system that leads nobody anywhere yet, or to the first site.
    async fn start() -> Self;
    fn target(&self) -> &dyn Traffic;
    /// How many changes came over the wire.
    fn changes_sent(&self) -> usize;
    /// The next change takes effect, and its answer is lost.
    fn lose_next_answer(&self);
    /// Somebody else changes what is there, so that it still can be read.
    async fn meddle(&self);
    /// Lets users' side have what stands in the system.
    async fn publish(&self);
}

pub(crate) fn site(name: &str) -> SiteName {
    name.parse().unwrap()
}

pub(crate) fn topology() -> Topology {
    Topology {
        group: "shop".parse().unwrap(),
        first: site("aws"),
        second: site("gcp"),
        traffic: Vec::new(),
    }
}

pub(crate) fn only(name: &str, epoch: u64) -> Answer {
    Answer::only(&site(name), &topology(), Epoch(epoch))
}

macro_rules! contract {
    ($kind:ident, $rig:ty) => {
        mod $kind {
            use super::Rig;

            contract!(@clauses $rig:
                a_change_is_read_applied_confirmed_and_seen_from_outside
                a_stale_token_is_a_conflict_and_changes_nothing
                a_writer_in_between_makes_a_conflict
                a_lost_answer_is_unknown_and_a_new_read_shows_the_change
                a_change_that_may_not_be_made_any_more_is_not_sent
                a_forbidden_answer_never_leaves
                a_token_of_another_target_is_refused_before_sending
                a_rehearsal_changes_nothing
            );
        }
    };
    (@clauses $rig:ty: $($clause:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $clause() {
                super::clauses::$clause(&<$rig>::start().await).await;
            }
        )*
    };
}

contract!(rfc2136, super::rfc2136_rig::Rfc2136Rig);
contract!(route53, super::route53_rig::Route53Rig);
contract!(cloud_dns, super::cloud_dns_rig::CloudDnsRig);
contract!(google_backend, super::backend_rig::BackendRig);
