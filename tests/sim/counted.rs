//! An agent that counts its right from the moment at which the answer arrived, instead of from
//! before it asked.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;

use failover::engine::policy::Policy;
use failover::engine::topology::SiteName;
use failover::ports::{AgentLinks, EffectError, LocalDatabase};
use failover::sim::checks::Invariant;
use failover::sim::processes::Plant;
use failover::sim::run::Setup;
use failover::sim::world::{Node, World};
use failover::wire::{PeerAnswer, PeerQuestion, Report, ReportAnswer};

use super::planted::{Guard, PlantGuard, planted};
use super::{FAST, finds};

/// How long the last answers took to come, site by site: so much later does a right end that is
/// counted from their arrival.
#[derive(Debug, Clone, Default)]
struct PlantArrival(Arc<Mutex<BTreeMap<SiteName, [Duration; 2]>>>);

impl PlantArrival {
    fn took(&self, site: &SiteName, which: usize, took: Duration) {
        self.0.lock().unwrap().entry(site.clone()).or_default()[which] = took;
    }
}

#[derive(Debug)]
struct Timed {
    of: Arc<dyn AgentLinks>,
    plant: PlantArrival,
}

#[async_trait]
impl AgentLinks for Timed {
    async fn report(&self, report: &Report, within: Duration) -> Result<ReportAnswer, EffectError> {
        let asked = tokio::time::Instant::now();
        let answer = self.of.report(report, within).await?;
        self.plant.took(&report.site, 0, asked.elapsed());
        Ok(answer)
    }
    async fn ask_peer(
        &self,
        question: &PeerQuestion,
        within: Duration,
    ) -> Result<PeerAnswer, EffectError> {
        let asked = tokio::time::Instant::now();
        let answer = self.of.ask_peer(question, within).await?;
        self.plant.took(&question.site, 1, asked.elapsed());
        Ok(answer)
    }
}

impl Plant for PlantArrival {
    fn links(&self, of: Arc<dyn AgentLinks>) -> Arc<dyn AgentLinks> {
        let plant = self.clone();
        Arc::new(Timed { of, plant })
    }
    fn database(
        &self,
        of: Arc<dyn LocalDatabase>,
        world: &Arc<World>,
        node: Node,
    ) -> Arc<dyn LocalDatabase> {
        // Only an answer that was long under way makes a difference: lines that lose much.
        world.with(|state, _| state.lossy = 30);
        let topology = &world.topology;
        let site = if node == Node::First {
            topology.first.clone()
        } else {
            topology.second.clone()
        };
        let took = Arc::clone(&self.0);
        let longer = move || {
            let took = took.lock().unwrap().get(&site).copied();
            took.unwrap_or_default()
                .into_iter()
                .max()
                .unwrap_or_default()
        };
        let plant = PlantGuard::honest();
        Arc::new(Guard::longer(of, plant, Arc::new(longer)))
    }
}

#[test]
fn a_right_that_is_counted_from_the_arrival_of_the_answer_makes_two_writers() {
    // Long questions, and no more margin than the policy allows.
    let text = FAST
        .replace("renew_every = \"500ms\"", "renew_every = \"1s\"")
        .replace("peer_every = \"300ms\"", "peer_every = \"1s\"")
        .replace("peer_ttl = \"1s 200ms\"", "peer_ttl = \"3s\"")
        .replace("fence_within = \"1s\"", "fence_within = \"400ms\"")
        .replace("fence_fast = \"500ms\"", "fence_fast = \"100ms\"")
        .replace("fence_immediate = \"250ms\"", "fence_immediate = \"100ms\"")
        .replace("fence_kill = \"150ms\"", "fence_kill = \"100ms\"")
        .replace("margin = \"200ms\"", "margin = \"50ms\"");
    let policy = Policy::read("long-questions.toml", &text).unwrap();
    finds(Invariant::FenceBeforePromote, "can write", |seed| {
        let mut setup: Setup = planted(seed, PlantArrival::default());
        setup.policy = policy.clone();
        setup
    });
}
