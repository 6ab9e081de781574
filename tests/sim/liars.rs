//! Words that nobody signed, clocks on which an order rests, and a plan that tidies up before it gives
//! the right back.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use failover::engine::lease::Refusal;
use failover::engine::observation::{Facts, Finding};
use failover::engine::policy::{FenceOn, Policy};
use failover::engine::topology::{SiteName, Target};
use failover::engine::units::Lsn;
use failover::ports::{AgentLinks, Agents, EffectError, Probe, Verifier, Way};
use failover::sim::invariant::Invariant;
use failover::sim::liar::of_seed;
use failover::sim::processes::Plant;
use failover::sim::run::{Course, HOURS, Setup};
use failover::sim::world::{Node, World};
use failover::wire::sealed::{Author, SealError, Signature};
use failover::wire::{Order, OrderAnswer, PeerAnswer, PeerQuestion, Report, ReportAnswer};

use super::planted::{cut_off, planted};
use super::{FAST, check, finds, long_rights, minutes, policy};

/// The same seeds as those with a liar, one after the other.
fn with_a_liar(count: usize) -> Vec<u64> {
    (0..).filter(|seed| of_seed(*seed)).take(count).collect()
}

#[test]
fn a_passive_agent_that_lies_makes_no_second_writer_and_stops_nobody() {
    for seed in with_a_liar(25) {
        check(&Setup::new(seed, minutes(2), policy()));
    }
}

#[test]
fn one_that_vouches_after_its_sever_makes_none_either_where_a_lease_is_needed() {
    let strict = FAST.replace("fence_on = \"isolated\"", "fence_on = \"lease-lost\"");
    let strict = Policy::read("strict.toml", &strict).unwrap();
    assert_eq!(strict.lease.fence_on, FenceOn::LeaseLost);
    for seed in with_a_liar(25) {
        let report = failover::sim::run::run(&Setup::new(seed, minutes(2), strict.clone()));
        let broken = report.unwrap().violations;
        assert!(broken.is_empty(), "seed {seed}: {broken:#?}");
    }
}

/// Believes every signature to be that of whom it names.
#[derive(Debug)]
struct Gullible(Author);

impl Verifier for Gullible {
    fn signed_by(&self, _message: &[u8], _signature: &Signature) -> Result<Author, SealError> {
        Ok(self.0.clone())
    }
}

/// Agents that believe whatever is shown as an order.
#[derive(Debug)]
struct PlantGullibleAgents;

impl Plant for PlantGullibleAgents {
    fn verifier(&self, _of: Arc<dyn Verifier>) -> Arc<dyn Verifier> {
        Arc::new(Gullible(Author::Controller))
    }
}

#[test]
fn an_agent_that_believes_an_unsigned_superseded_is_seen() {
    finds(Invariant::SignedWords, "superseded", |seed| {
        planted(seed, PlantGullibleAgents)
    });
}

/// Takes the word of a fence that the other agent made up for the word of the site itself.
#[derive(Debug)]
struct AsIfItsOwn(Arc<dyn Verifier>);

impl Verifier for AsIfItsOwn {
    fn signed_by(&self, message: &[u8], signature: &Signature) -> Result<Author, SealError> {
        if String::from_utf8_lossy(message).contains("believe me") {
            return Ok(Author::Agent {
                group: "shop".parse().unwrap(),
                site: "aws".parse().unwrap(),
            });
        }
        self.0.signed_by(message, signature)
    }
}

/// A controller that does not look at who signed an answer.
#[derive(Debug)]
struct PlantGullibleController;

impl Plant for PlantGullibleController {
    fn answers(&self, of: Arc<dyn Verifier>) -> Arc<dyn Verifier> {
        Arc::new(AsIfItsOwn(of))
    }
    fn lies(&self, _drawn: bool) -> bool {
        true
    }
}

#[test]
fn a_controller_that_believes_a_fence_that_the_relay_invents_is_seen() {
    // The old primary is cut off, and users reach it: until its right is over it takes writes.
    finds(Invariant::FenceBeforePromote, "counts as fenced", |seed| {
        let mut setup = cut_off(seed, long_rights());
        setup.plant = Arc::new(PlantGullibleController);
        setup
    });
}

/// A controller that goes by what the passive side says that its standby has.
#[derive(Debug)]
struct ByThePassiveSide(Arc<dyn Probe>);

#[async_trait]
impl Probe for ByThePassiveSide {
    async fn look(&self, target: &Target, within: Duration) -> Finding {
        let mut found = self.0.look(target, within).await;
        if let Finding::Good(Facts::Database(facts)) = &mut found {
            for sender in &mut facts.senders {
                sender.flushed = Some(Lsn(1 << 52));
            }
        }
        found
    }

    async fn anchors(&self, within: Duration) -> (u32, u32) {
        self.0.anchors(within).await
    }
}

#[derive(Debug)]
struct PlantByThePassiveSide;

impl Plant for PlantByThePassiveSide {
    fn probe(&self, of: Arc<dyn Probe>, _world: &Arc<World>) -> Arc<dyn Probe> {
        Arc::new(ByThePassiveSide(of))
    }
    fn lies(&self, _drawn: bool) -> bool {
        true
    }
}

#[test]
fn a_loss_that_is_declared_by_the_passive_sides_word_is_seen() {
    finds(Invariant::DeclaredLoss, "is lost", |seed| {
        planted(seed, PlantByThePassiveSide)
    });
}

/// A way to agents that refuse orders by their wall clocks.
#[derive(Debug)]
struct ByWallClocks {
    of: Arc<dyn Agents>,
    world: Arc<World>,
}

#[async_trait]
impl Agents for ByWallClocks {
    async fn order(&self, order: &Order, by: Way, within: Duration) -> OrderAnswer {
        let apart = self.world.with(|state, now| {
            let node = state.node(&order.site);
            let ours = state.skew(Node::Neutral).wall(now);
            state.skew(node).wall(now).since(ours)
        });
        if apart > within {
            return Err(EffectError::Refused("the order expired".to_owned()));
        }
        self.of.order(order, by, within).await
    }
}

#[derive(Debug)]
struct PlantByWallClocks;

impl Plant for PlantByWallClocks {
    fn agents(&self, of: Arc<dyn Agents>, world: &Arc<World>) -> Arc<dyn Agents> {
        let world = Arc::clone(world);
        Arc::new(ByWallClocks { of, world })
    }
}

#[test]
fn orders_that_rest_on_two_wall_clocks_are_seen() {
    finds(Invariant::Liveness, "writable after", |seed| {
        let mut setup = planted(seed, PlantByWallClocks);
        setup.course = Course::SiteLost;
        setup.wall_ms = Some(HOURS);
        setup
    });
}

/// Ways out of agents to a controller that gives the right back only when all is tidied up.
#[derive(Debug)]
struct TidiesFirst {
    of: Arc<dyn AgentLinks>,
    world: Arc<World>,
}

#[async_trait]
impl AgentLinks for TidiesFirst {
    async fn report(&self, report: &Report, within: Duration) -> Result<ReportAnswer, EffectError> {
        let mut answer = self.of.report(report, within).await?;
        let going_to: Option<SiteName> = self.world.with(|state, _| state.checks.going_to());
        let not_yet = going_to.is_some() && answer.holder.is_some() && answer.holder != going_to;
        // Before the epoch is raised the site holds its right as ever.
        if not_yet && answer.epoch.0 > 1 {
            let epoch = answer.epoch;
            answer.holder = None;
            answer.grant = answer.grant.map(|_| Err(Refusal::Superseded { epoch }));
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

#[derive(Debug)]
struct PlantTidiesFirst;

impl Plant for PlantTidiesFirst {
    fn links(&self, of: Arc<dyn AgentLinks>, world: &Arc<World>) -> Arc<dyn AgentLinks> {
        let world = Arc::clone(world);
        Arc::new(TidiesFirst { of, world })
    }
}

fn never_severed(seed: u64) -> Setup {
    let mut setup = Setup::new(seed, minutes(3), policy());
    setup.course = Course::SeverFails;
    setup
}

#[test]
fn a_plan_that_cannot_go_on_gives_the_right_back_within_seconds() {
    for seed in 0..20 {
        let report = check(&never_severed(seed));
        assert_eq!(report.plans.get("undone"), Some(&1), "seed {seed}");
        assert_eq!(report.promotions, 0, "seed {seed}");
    }
}

#[test]
fn a_plan_that_tidies_up_before_it_gives_the_right_back_is_seen() {
    finds(Invariant::Liveness, "around a plan that failed", |seed| {
        let mut setup = never_severed(seed);
        setup.plant = Arc::new(PlantTidiesFirst);
        setup
    });
}

/// A peer that goes on saying that the right stands, whatever it was ordered.
#[derive(Debug)]
struct Vouches(Arc<dyn AgentLinks>);

#[async_trait]
impl AgentLinks for Vouches {
    async fn report(&self, report: &Report, within: Duration) -> Result<ReportAnswer, EffectError> {
        self.0.report(report, within).await
    }
    async fn ask_peer(
        &self,
        question: &PeerQuestion,
        within: Duration,
    ) -> Result<PeerAnswer, EffectError> {
        let mut answer = self.0.ask_peer(question, within).await?;
        (answer.superseded, answer.order) = (false, None);
        Ok(answer)
    }
}

/// The active site is cut off for just so long that its standby is severed; then the other agent has
/// its word again.
#[derive(Debug)]
struct PlantVouches(Duration);

impl Plant for PlantVouches {
    fn links(&self, of: Arc<dyn AgentLinks>, world: &Arc<World>) -> Arc<dyn AgentLinks> {
        let (world, lasting) = (Arc::clone(world), self.0);
        tokio::spawn(async move {
            let between = [(Node::First, Node::Second), (Node::Second, Node::First)];
            let neutral = [(Node::First, Node::Neutral), (Node::Neutral, Node::First)];
            tokio::time::sleep(Duration::from_secs(20)).await;
            world.with(|state, now| {
                for (from, to) in between.into_iter().chain(neutral) {
                    state.set_link(now, from, to, false);
                }
            });
            tokio::time::sleep(lasting).await;
            world.with(|state, now| {
                for (from, to) in between {
                    state.set_link(now, from, to, true);
                }
            });
        });
        Arc::new(Vouches(of))
    }
}

/// What a passive agent can do that somebody has taken over, where its word alone holds a right.
#[test]
fn one_that_vouches_after_its_sever_makes_two_writers_where_its_word_suffices() {
    finds(Invariant::FenceBeforePromote, "can write", |seed| {
        let lasting = Duration::from_millis(2200 + seed % 10 * 50);
        let mut setup = planted(seed, PlantVouches(lasting));
        (setup.course, setup.policy) = (Course::Calm, long_rights());
        setup
    });
}
