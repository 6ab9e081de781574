//! An agent that counts its right from the moment at which the answer arrived, instead of from
//! before it asked, where answers are held up on their way.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;

use failover::engine::policy::Policy;
use failover::ports::{AgentLinks, EffectError, LocalDatabase};
use failover::sim::invariant::Invariant;
use failover::sim::processes::Plant;
use failover::sim::run::Setup;
use failover::sim::world::{Node, World};
use failover::wire::{PeerAnswer, PeerQuestion, Report, ReportAnswer};

use super::planted::{Guard, cut_off};
use super::{FAST, finds, holds};

/// How long each answer of the controller to the active site is held up: less than a question may take.
const HELD_UP: Duration = Duration::from_millis(1_500);

/// Answers that are held up, and what the agent makes of it.
#[derive(Debug, Clone, Default)]
struct SlowAnswers {
    /// Whether a right ends so much later, as if counted from the answer.
    from_arrival: bool,
    /// How long the last answer took.
    took: Arc<Mutex<Duration>>,
}

#[derive(Debug)]
struct Slow {
    of: Arc<dyn AgentLinks>,
    took: Arc<Mutex<Duration>>,
}

#[async_trait]
impl AgentLinks for Slow {
    async fn report(&self, report: &Report, within: Duration) -> Result<ReportAnswer, EffectError> {
        let asked = tokio::time::Instant::now();
        let answer = self.of.report(report, within).await?;
        // Only there: the other site would be promoted later.
        if report.site.as_str() == "aws" {
            tokio::time::sleep(HELD_UP.saturating_sub(asked.elapsed())).await;
            *self.took.lock().unwrap() = asked.elapsed();
        }
        Ok(answer)
    }
    async fn ask_peer(
        &self,
        question: &PeerQuestion,
        within: Duration,
    ) -> Result<PeerAnswer, EffectError> {
        self.of.ask_peer(question, within).await
    }
}

impl Plant for SlowAnswers {
    fn links(&self, of: Arc<dyn AgentLinks>, _world: &Arc<World>) -> Arc<dyn AgentLinks> {
        let took = Arc::clone(&self.took);
        Arc::new(Slow { of, took })
    }
    fn database(&self, of: LocalDatabase, _world: &Arc<World>, _node: Node) -> LocalDatabase {
        let Self { from_arrival, took } = self.clone();
        let longer = move || {
            if from_arrival {
                *took.lock().unwrap()
            } else {
                Duration::ZERO
            }
        };
        Guard::longer(of, longer)
    }
}

/// The active site is cut off and users reach it, so that all rests on the right's end. A right
/// that outlives the sever's, and no more margin than the policy allows.
fn setup(seed: u64, from_arrival: bool) -> Setup {
    let text = FAST
        .replace("renew_every = \"500ms\"", "renew_every = \"1s\"")
        .replace("lease_ttl = \"1s 500ms\"", "lease_ttl = \"10s\"")
        .replace("fence_within = \"650ms\"", "fence_within = \"400ms\"")
        .replace("fence_fast = \"300ms\"", "fence_fast = \"100ms\"")
        .replace("fence_immediate = \"150ms\"", "fence_immediate = \"100ms\"")
        .replace("margin = \"200ms\"", "margin = \"50ms\"");
    let mut setup = cut_off(seed, Policy::read("long-rights.toml", &text).unwrap());
    setup.plant = Arc::new(SlowAnswers {
        from_arrival,
        ..SlowAnswers::default()
    });
    setup
}

#[test]
fn a_right_that_is_counted_from_the_arrival_of_the_answer_makes_two_writers() {
    finds(Invariant::OneWriter, "beside", |seed| setup(seed, true));
}

#[test]
fn answers_that_are_held_up_harm_nobody_who_counts_from_before_he_asked() {
    holds(1, |seed| setup(seed, false));
}
