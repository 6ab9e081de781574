//! Ways to the agents that say something was done which was not, and an agent that says it saw what
//! it did not see.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use failover::engine::observation::{Finding, ProbeFailure};
use failover::engine::policy::Policy;
use failover::engine::topology::TargetKind;
use failover::engine::units::{Lsn, Timeline};
use failover::ports::{AgentLinks, Agents, EffectError, Way};
use failover::sim::invariant::Invariant;
use failover::sim::processes::Plant;
use failover::sim::run::Setup;
use failover::sim::world::World;
use failover::wire::{
    Came, Order, OrderAnswer, PeerAnswer, PeerQuestion, Report, ReportAnswer, What,
};

use super::planted::{partition, planted};
use super::{finds, holds, policy};

/// What a way to the agents does with one kind of order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Instead {
    /// Swallows it.
    Swallow,
    /// Answers at once, and gives it on afterwards.
    AnswerFirst,
}

/// A way to the agents that answers one kind of order by itself.
#[derive(Debug)]
struct OwnWord {
    of: Arc<dyn Agents>,
    plant: PlantOwnWord,
}

#[async_trait]
impl Agents for OwnWord {
    async fn order(&self, order: &Order, by: Way, within: Duration) -> OrderAnswer {
        if order.what != self.plant.about {
            return self.of.order(order, by, within).await;
        }
        if self.plant.instead == Instead::AnswerFirst && !order.check_only {
            let (of, order) = (Arc::clone(&self.of), order.clone());
            tokio::spawn(async move { of.order(&order, by, within).await });
        }
        Ok(match order.what {
            What::Fence => Came::Fenced {
                said: "believe me".to_owned(),
            },
            What::Sever => Came::Severed {
                position: Lsn(0x0100_0000),
                replayed: true,
                vouched_ago: None,
            },
            What::Promote => Came::Promoted {
                timeline: Timeline(2),
                position: Lsn(0x0100_0000),
                already: false,
            },
            What::Unfence
            | What::Reconnect
            | What::Desist
            | What::StartWorkloads
            | What::StopWorkloads
            | What::AwaitWorkloads => Came::Done,
        })
    }
}

#[derive(Debug, Clone, Copy)]
struct PlantOwnWord {
    about: What,
    instead: Instead,
}

impl Plant for PlantOwnWord {
    fn agents(&self, of: Arc<dyn Agents>, _world: &Arc<World>) -> Arc<dyn Agents> {
        Arc::new(OwnWord { of, plant: *self })
    }
}

fn finds_own_word(about: What, instead: Instead, invariant: Invariant, words: &str) {
    let plant = PlantOwnWord { about, instead };
    finds(invariant, words, |seed| planted(seed, plant));
}

#[test]
fn a_promotion_without_a_fence_is_seen() {
    let (about, instead) = (What::Fence, Instead::Swallow);
    finds_own_word(
        about,
        instead,
        Invariant::FenceBeforePromote,
        "is promoted while",
    );
    finds_own_word(
        about,
        instead,
        Invariant::FenceBeforePromote,
        "counts as fenced",
    );
}

#[test]
fn a_promotion_that_is_logged_and_did_not_happen_is_seen() {
    let (about, instead) = (What::Promote, Instead::Swallow);
    finds_own_word(about, instead, Invariant::WriteAhead, "did not happen");
}

#[test]
fn an_outcome_that_is_logged_before_its_effect_is_seen() {
    let (about, instead) = (What::Promote, Instead::AnswerFirst);
    finds_own_word(about, instead, Invariant::WriteAhead, "did not happen");
}

/// Ways out of an agent that say of whatever it saw at the other site that it refused.
#[derive(Debug)]
struct Slander(Arc<dyn AgentLinks>);

#[async_trait]
impl AgentLinks for Slander {
    async fn report(&self, report: &Report, within: Duration) -> Result<ReportAnswer, EffectError> {
        let mut report = report.clone();
        for observation in &mut report.observations {
            let other = observation.target.site != report.site;
            if other && observation.target.kind == TargetKind::Database {
                observation.finding = Finding::Bad(ProbeFailure::Refused);
            }
        }
        self.0.report(&report, within).await
    }
    async fn ask_peer(
        &self,
        question: &PeerQuestion,
        within: Duration,
    ) -> Result<PeerAnswer, EffectError> {
        self.0.ask_peer(question, within).await
    }
}

/// Agents that slander, under a controller that is as patient as its policy or not at all.
#[derive(Debug)]
struct PlantSlander {
    hasty: bool,
}

impl Plant for PlantSlander {
    fn links(&self, of: Arc<dyn AgentLinks>, _world: &Arc<World>) -> Arc<dyn AgentLinks> {
        Arc::new(Slander(of))
    }
    fn policy(&self, mut of: Policy) -> Policy {
        if self.hasty {
            of.detect.fail_after = Duration::from_millis(1);
        }
        of
    }
}

/// The controller lost A, so that the word of P's agent makes the quorum.
fn slandered(seed: u64, hasty: bool) -> Setup {
    let mut setup = partition("the controller lost A", seed, policy());
    setup.plant = Arc::new(PlantSlander { hasty });
    setup
}

#[test]
fn slander_moves_nothing_while_the_standby_is_seen_to_receive() {
    holds(0, |seed| slandered(seed, false));
}

#[test]
fn a_plan_against_a_site_that_only_slander_says_is_dead_is_seen() {
    finds(Invariant::AbsenceOfEvidence, "is well and", |seed| {
        slandered(seed, true)
    });
}
