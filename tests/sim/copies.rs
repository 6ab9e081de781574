//! Mistakes about who speaks for a site, and about a log that is not the newest: what the wire says
//! of instances, or of what others remember, is taken away.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;

use failover::engine::answer::Answer;
use failover::engine::observation::{Facts, Finding};
use failover::engine::receipt::Receipt;
use failover::engine::topology::{Target, TargetName};
use failover::engine::units::Epoch;
use failover::ports::{
    AgentLinks, Confirmation, EffectError, OutsideView, Probe, Still, Traffic, Versioned,
};
use failover::sim::faults::Fault;
use failover::sim::invariant::Invariant;
use failover::sim::processes::Plant;
use failover::sim::world::World;
use failover::wire::{PeerAnswer, PeerQuestion, Report, ReportAnswer};

use super::planted::planted;
use super::{finds, minutes};

/// Agents that name no instance, so that the right is a site's.
#[derive(Debug)]
struct Nameless(Arc<dyn AgentLinks>);

#[async_trait]
impl AgentLinks for Nameless {
    async fn report(&self, report: &Report, within: Duration) -> Result<ReportAnswer, EffectError> {
        let report = Report {
            instance: None,
            ..report.clone()
        };
        self.0.report(&report, within).await
    }

    async fn ask_peer(
        &self,
        question: &PeerQuestion,
        within: Duration,
    ) -> Result<PeerAnswer, EffectError> {
        let question = PeerQuestion {
            instance: None,
            ..question.clone()
        };
        self.0.ask_peer(&question, within).await
    }
}

#[derive(Debug)]
struct PlantNameless;

impl Plant for PlantNameless {
    fn links(&self, of: Arc<dyn AgentLinks>, _world: &Arc<World>) -> Arc<dyn AgentLinks> {
        Arc::new(Nameless(of))
    }
}

#[test]
fn a_right_that_is_a_sites_and_not_an_instances_makes_two_writers() {
    finds(Invariant::OneWriter, "beside a copy", |seed| {
        let mut setup = planted(seed, PlantNameless);
        setup.lasting = minutes(5);
        setup
    });
}

/// Agents that never speak of more than the controller told them, or of a right they hold.
#[derive(Debug)]
struct Meek {
    of: Arc<dyn AgentLinks>,
    told: Mutex<Epoch>,
}

#[async_trait]
impl AgentLinks for Meek {
    async fn report(&self, report: &Report, within: Duration) -> Result<ReportAnswer, EffectError> {
        let told = *self.told.lock().unwrap();
        let mut meek = report.clone();
        let most = |epoch: Option<Epoch>| epoch.filter(|epoch| *epoch <= told);
        meek.epoch = meek.epoch.min(told);
        meek.facts.fenced = most(meek.facts.fenced);
        meek.facts.severed = most(meek.facts.severed);
        (meek.holds, meek.log) = (false, None);
        let answer = self.of.report(&meek, within).await?;
        *self.told.lock().unwrap() = answer.epoch;
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

/// Looks that do not see the epoch row.
#[derive(Debug)]
struct Rowless(Arc<dyn Probe>);

#[async_trait]
impl Probe for Rowless {
    async fn look(&self, target: &Target, within: Duration) -> Finding {
        let mut found = self.0.look(target, within).await;
        if let Finding::Good(Facts::Database(facts)) = &mut found {
            facts.epoch = None;
        }
        found
    }

    async fn anchors(&self, within: Duration) -> (u32, u32) {
        self.0.anchors(within).await
    }
}

/// A traffic target whose note nobody reads.
#[derive(Debug)]
struct Noteless(Arc<dyn Traffic>);

#[async_trait]
impl Traffic for Noteless {
    fn name(&self) -> &TargetName {
        self.0.name()
    }
    async fn read(&self) -> Result<Versioned, EffectError> {
        let mut read = self.0.read().await?;
        read.answer.epoch = None;
        Ok(read)
    }
    async fn rehearse(&self, from: &Versioned) -> Result<(), EffectError> {
        self.0.rehearse(from).await
    }
    async fn apply(
        &self,
        from: &Versioned,
        to: &Answer,
        note: &str,
        still: Still<'_>,
    ) -> Result<Receipt, EffectError> {
        self.0.apply(from, to, note, still).await
    }
    async fn confirm(&self, receipt: &Receipt) -> Result<Confirmation, EffectError> {
        self.0.confirm(receipt).await
    }
    async fn verify_outside(&self) -> Vec<OutsideView> {
        self.0.verify_outside().await
    }
}

/// Nobody remembers more than the log holds.
#[derive(Debug)]
struct PlantNobodyKnows;

impl Plant for PlantNobodyKnows {
    fn links(&self, of: Arc<dyn AgentLinks>, _world: &Arc<World>) -> Arc<dyn AgentLinks> {
        let told = Mutex::default();
        Arc::new(Meek { of, told })
    }
    fn probe(&self, of: Arc<dyn Probe>, _world: &Arc<World>) -> Arc<dyn Probe> {
        Arc::new(Rowless(of))
    }
    fn traffic(&self, of: Arc<dyn Traffic>) -> Arc<dyn Traffic> {
        Arc::new(Noteless(of))
    }
}

#[test]
fn a_right_that_is_granted_on_an_old_log_makes_two_writers() {
    finds(Invariant::OneWriter, "beside", |seed| {
        let mut setup = planted(seed, PlantNobodyKnows);
        setup.lasting = minutes(5);
        // What it takes: a site that is cut off and replaced, a log from before that, and agents that
        // were not told anything since they began.
        setup.faults = &[
            Fault::Isolation,
            Fault::Isolation,
            Fault::Links,
            Fault::LogRestored,
            Fault::AgentKilled,
            Fault::AgentKilled,
        ];
        setup
    });
}
