//! Sites that are clusters: fenced by what a kubelet said, and by nothing less.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use failover::engine::chain::{Body, read_line};
use failover::engine::lease::FenceProof;
use failover::engine::step::{Event, Fact, Step};
use failover::ports::{EffectError, FencedBefore, FencedProof, InfrastructureFence, Still};
use failover::sim::cluster::SimInfrastructure;
use failover::sim::faults::Fault;
use failover::sim::invariant::Invariant;
use failover::sim::processes::Plant;
use failover::sim::run::{Setup, run};

use super::planted::planted;
use super::{check, finds};

/// Both sites are clusters, whatever the seed says.
#[derive(Debug)]
struct Clusters;

impl Plant for Clusters {
    fn clusters(&self, _drawn: bool) -> bool {
        true
    }
}

/// What a fence by a cluster is for, and what gets in its way.
const OFTEN: &[Fault] = &[
    Fault::Isolation,
    Fault::Isolation,
    Fault::Isolation,
    Fault::Power,
    Fault::HostFrozen,
    Fault::Links,
    Fault::Controller,
    Fault::Slow,
    Fault::Person,
    Fault::Person,
    Fault::Rebuild,
];

/// With rights so long that nothing is waited out before a kubelet, or a cloud, can say something.
fn in_clusters(seed: u64, plant: impl Plant + 'static) -> Setup {
    let mut setup = planted(seed, plant);
    setup.faults = OFTEN;
    setup.policy.lease.lease_ttl = Duration::from_secs(20);
    setup
}

#[expect(
    clippy::print_stdout,
    clippy::wildcard_enum_match_arm,
    reason = "the figures are worth seeing, and few kinds of entries matter"
)]
#[test]
fn nothing_breaks_and_kubelets_prove_fences_that_are_given_back_where_the_plan_is() {
    let (mut proven, mut given_back) = (0, 0);
    for seed in 0..100 {
        let report = check(&in_clusters(seed, Clusters));
        let mut found = false;
        for line in &report.log {
            let (_, entry) = read_line(line.trim_ascii_end()).unwrap();
            match entry.body {
                Body::Step {
                    event:
                        Event::Done {
                            fact:
                                Fact::Fenced {
                                    proof: FenceProof::Infrastructure { .. },
                                },
                        },
                    ..
                } => proven += 1,
                Body::Plan { .. } => found = false,
                Body::Step {
                    event: Event::Found { .. },
                    ..
                } => found = true,
                Body::Step {
                    event: Event::Undone,
                    step: Step::Fence,
                    ..
                } if found => given_back += 1,
                _ => {}
            }
        }
    }
    println!("{proven} fences proven by a kubelet, {given_back} given back");
    assert!(proven >= 5, "{proven}");
    assert!(given_back >= 1, "{given_back}");
}

/// Takes a pod whose object is gone for one that has ended.
#[derive(Debug)]
struct ObjectGone(Arc<SimInfrastructure>);

#[async_trait]
impl InfrastructureFence for ObjectGone {
    async fn look(&self) -> Result<FencedBefore, EffectError> {
        self.0.look().await
    }
    async fn rehearse(&self) -> Result<(), EffectError> {
        self.0.rehearse().await
    }
    async fn fence(
        &self,
        before: &FencedBefore,
        holder: Option<&str>,
        _within: Duration,
        still: Still<'_>,
    ) -> Result<FencedProof, EffectError> {
        let seen = self.0.seen().await?;
        if !seen.listed {
            return Ok(FencedProof {
                text: "the pod is gone".to_owned(),
                token: before.token.clone(),
            });
        }
        let shortly = Duration::from_millis(50);
        self.0.fence(before, holder, shortly, still).await
    }
    async fn recheck(&self, _proof: &FencedProof) -> Result<(), EffectError> {
        Ok(())
    }
    async fn undo(&self, before: &FencedBefore, mark: &str) -> Result<(), EffectError> {
        self.0.undo(before, mark).await
    }
}

#[derive(Debug)]
struct PlantObjectGone;

impl Plant for PlantObjectGone {
    fn clusters(&self, _drawn: bool) -> bool {
        true
    }
    fn infrastructure(&self, of: Arc<SimInfrastructure>) -> Arc<dyn InfrastructureFence> {
        Arc::new(ObjectGone(of))
    }
}

#[test]
fn a_pod_whose_object_is_gone_and_that_counts_as_ended_is_seen() {
    let words = "counts as fenced by Infrastructure";
    finds(Invariant::FenceBeforePromote, words, |seed| {
        in_clusters(seed, PlantObjectGone)
    });
}

#[test]
fn a_seed_is_the_same_twice_with_clusters() {
    let [first, second] = [0, 1].map(|_| run(&in_clusters(7, Clusters)).unwrap().fingerprint);
    assert_eq!(first, second);
}
