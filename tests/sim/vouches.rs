//! When the passive site last let the other one's right stand: what waiting rests on.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use failover::engine::policy::Policy;
use failover::ports::{Agents, Way};
use failover::sim::invariant::Invariant;
use failover::sim::processes::Plant;
use failover::sim::run::Setup;
use failover::sim::world::World;
use failover::wire::{Came, Order, OrderAnswer};

use super::planted::cut_off;
use super::{FAST, finds, holds};

/// A way to agents that makes vouches older than they were.
#[derive(Debug)]
struct Older {
    of: Arc<dyn Agents>,
    by: Duration,
}

#[async_trait]
impl Agents for Older {
    async fn order(&self, order: &Order, by: Way, within: Duration) -> OrderAnswer {
        let mut came = self.of.order(order, by, within).await?;
        if let Came::Severed { vouched_ago, .. } = &mut came {
            *vouched_ago = vouched_ago.map(|ago| ago + self.by);
        }
        Ok(came)
    }
}

#[derive(Debug)]
struct PlantOlder(Duration);

impl Plant for PlantOlder {
    fn agents(&self, of: Arc<dyn Agents>, _world: &Arc<World>) -> Arc<dyn Agents> {
        Arc::new(Older { of, by: self.0 })
    }
}

/// The active site is cut off and users reach it, under a policy by which all rests on what its
/// peer last said.
fn setup(seed: u64, older: Duration) -> Setup {
    let text = FAST.replace("peer_ttl = \"1s 200ms\"", "peer_ttl = \"6s\"");
    let mut setup = cut_off(seed, Policy::read("long-answers.toml", &text).unwrap());
    setup.plant = Arc::new(PlantOlder(older));
    setup
}

#[test]
fn a_vouch_that_is_forgotten_makes_two_writers() {
    let never = Duration::from_secs(3600);
    finds(Invariant::OneWriter, "beside", |seed| setup(seed, never));
}

#[test]
fn the_age_of_a_vouch_from_a_report_that_was_held_up_makes_two_writers() {
    let held_up = Duration::from_secs(2);
    finds(Invariant::OneWriter, "beside", |seed| setup(seed, held_up));
}

#[test]
fn a_vouch_as_old_as_it_is_makes_none() {
    holds(1, |seed| setup(seed, Duration::ZERO));
}
