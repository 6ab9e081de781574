//! Roles, grants and settings that change, and locks: only our looks meet them.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use failover::engine::observation::{Bearing, Facts, Finding, ProbeFailure};
use failover::engine::topology::Target;
use failover::ports::{LocalDatabase, Probe};
use failover::sim::invariant::Invariant;
use failover::sim::machine::KeptOut;
use failover::sim::processes::Plant;
use failover::sim::run::Course;
use failover::sim::world::{Node, World};

use super::planted::planted;
use super::{finds, holds};

/// Looks that speak against the target whatever kept them out.
#[derive(Debug)]
struct Harsh(Arc<dyn Probe>);

#[async_trait]
impl Probe for Harsh {
    async fn look(&self, target: &Target, within: Duration) -> Finding {
        let kept_out = |why: String| Finding::Bad(ProbeFailure::CannotWrite(why));
        match self.0.look(target, within).await {
            Finding::Bad(failure) if failure.bearing() != Bearing::Against => {
                kept_out(failure.to_string())
            }
            Finding::Good(Facts::Database(facts)) if facts.blocked.is_some() => {
                kept_out(facts.blocked.unwrap_or_default())
            }
            finding @ (Finding::Good(_) | Finding::Bad(_)) => finding,
        }
    }

    async fn anchors(&self, within: Duration) -> (u32, u32) {
        self.0.anchors(within).await
    }
}

/// From a moment on the looks at the active site are kept out, and nobody writes, so that nothing else
/// speaks for it.
#[derive(Debug)]
struct PlantHarsh;

impl Plant for PlantHarsh {
    fn probe(&self, of: Arc<dyn Probe>, _world: &Arc<World>) -> Arc<dyn Probe> {
        Arc::new(Harsh(of))
    }
    fn database(&self, of: LocalDatabase, world: &Arc<World>, node: Node) -> LocalDatabase {
        if node == Node::First {
            let world = Arc::clone(world);
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(20)).await;
                world.with(|state, now| {
                    state.machine(node).kept_out = Some((KeptOut::Door, Duration::MAX));
                    state.set_link(now, Node::Clients, node, false);
                });
            });
        }
        of
    }
}

#[test]
fn a_look_of_ours_that_speaks_against_the_target_is_seen() {
    finds(
        Invariant::OwnTrouble,
        "only our looks are kept out",
        |seed| {
            let mut setup = planted(seed, PlantHarsh);
            setup.course = Course::Calm;
            setup
        },
    );
}

/// From a moment on our looks are kept out at both sites, for good.
#[derive(Debug)]
struct ForGood(KeptOut);

impl Plant for ForGood {
    fn database(&self, of: LocalDatabase, world: &Arc<World>, node: Node) -> LocalDatabase {
        let (world, kept_out) = (Arc::clone(world), self.0);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(20)).await;
            world.with(|state, _| {
                state.machine(node).kept_out = Some((kept_out, Duration::MAX));
            });
        });
        of
    }
}

#[test]
fn a_pair_whose_looks_are_kept_out_is_left_alone() {
    for kept_out in [KeptOut::Door, KeptOut::Rows] {
        holds(0, |seed| {
            let mut setup = planted(seed, ForGood(kept_out));
            setup.course = Course::Calm;
            setup
        });
    }
}

#[test]
fn a_site_that_is_lost_while_looks_are_kept_from_their_rows_is_replaced() {
    holds(1, |seed| {
        let mut setup = planted(seed, ForGood(KeptOut::Rows));
        setup.course = Course::SiteLost;
        setup
    });
}
