//! The fence by the old site's infrastructure: what is in the log before it, what is read again after it,
//! and what is given back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use failover::engine::chain::Body;
use failover::engine::lease::FenceProof;
use failover::engine::saga::Ending;
use failover::engine::step::{Event, Fact, Step};
use failover::engine::topology::SiteName;
use failover::ports::{EffectError, FencedBefore, FencedProof, InfrastructureFence, Still};

use super::stage::{Earth, Fault, Stage, aws};
use super::{after_quiet, ending, fact, play};

/// The active site's cluster: one pod, and a kubelet that ends it at once.
#[derive(Debug)]
pub(crate) struct Cluster(Arc<Stage>);

impl Cluster {
    /// The cluster of each site that is one.
    pub(crate) fn of(stage: &Arc<Stage>) -> BTreeMap<SiteName, Arc<dyn InfrastructureFence>> {
        let there = stage.change(|earth| earth.pod.is_some());
        let cluster: Arc<dyn InfrastructureFence> = Arc::new(Cluster(Arc::clone(stage)));
        there.then_some((aws(), cluster)).into_iter().collect()
    }

    fn pod(&self) -> (String, bool) {
        self.0.change(|earth| earth.pod.clone().unwrap())
    }

    /// Changes how many are wanted.
    fn scale(&self, wanted: bool) {
        self.0.change(|earth| {
            let pod = earth.pod.as_mut().unwrap();
            if pod.1 != wanted {
                pod.1 = wanted;
                let count = u8::from(wanted);
                earth.effects.push(format!("scale aws to {count}"));
                earth.aws.running &= wanted;
            }
        });
    }

    /// What a call comes to, where something goes wrong with it.
    fn fault(&self, call: &str, effect: impl FnOnce()) -> Result<(), EffectError> {
        match self.0.fate(call) {
            Some(Fault::Instead(error)) => Err(error),
            Some(Fault::After(error)) => {
                effect();
                Err(error)
            }
            None => {
                effect();
                Ok(())
            }
        }
    }
}

#[async_trait]
impl InfrastructureFence for Cluster {
    async fn look(&self) -> Result<FencedBefore, EffectError> {
        self.fault("look at the cluster", || ())?;
        let (_, wanted) = self.pod();
        let token = u8::from(wanted).to_string();
        Ok(FencedBefore { token })
    }

    async fn rehearse(&self) -> Result<(), EffectError> {
        self.fault("rehearse at the cluster", || ())
    }

    async fn fence(
        &self,
        _before: &FencedBefore,
        holder: Option<&str>,
        _within: Duration,
        still: Still<'_>,
    ) -> Result<FencedProof, EffectError> {
        still()?;
        self.fault("scale down", || self.scale(false))?;
        let (token, _) = self.pod();
        if holder != Some(token.as_str()) {
            let text = "the pod that held the right was gone before";
            return Err(EffectError::Refused(text.to_owned()));
        }
        let text = format!("pod {token} has ended");
        Ok(FencedProof { text, token })
    }

    async fn recheck(&self, proof: &FencedProof) -> Result<(), EffectError> {
        self.fault("look at the proof", || ())?;
        let (pod, wanted) = self.pod();
        if wanted || proof.token != pod {
            return Err(EffectError::Refused(
                "the replicas were put back".to_owned(),
            ));
        }
        Ok(())
    }

    async fn undo(&self, before: &FencedBefore, _mark: &str) -> Result<(), EffectError> {
        self.fault("scale back", || self.scale(before.token == "1"))
    }
}

fn in_a_pod() -> Earth {
    Earth {
        pod: Some(("pod-1".to_owned(), true)),
        ..Earth::well()
    }
}

fn effects(stage: &Stage) -> Vec<String> {
    stage.change(|earth| earth.effects.clone())
}

/// The position of an event of the fence in the story.
fn told(stage: &Stage, event: &str) -> usize {
    let story = stage.story();
    let told = story.iter().position(|line| line == event);
    told.unwrap_or_else(|| panic!("no {event}: {story:?}"))
}

#[test]
fn a_lost_site_is_fenced_by_its_infrastructure_which_is_asked_again_before_the_pivot() {
    play(async {
        let stage = Stage::new(in_a_pod());
        let _running = after_quiet(&stage, Earth::lose_aws).await;
        stage.end_of_plan().await;
        assert_eq!(ending(&stage), Ending::Done);
        let Fact::Fenced {
            proof: FenceProof::Infrastructure { said, token },
        } = fact(&stage, &Step::Fence)
        else {
            panic!("{:?}", fact(&stage, &Step::Fence));
        };
        assert_eq!(
            (said.as_str(), token.as_str()),
            ("pod pod-1 has ended", "pod-1")
        );
        let scaled = effects(&stage).iter().position(|it| it == "scale aws to 0");
        assert_eq!(
            scaled,
            Some(2),
            "once the standby is severed: {:?}",
            effects(&stage)
        );
        // What is given back was durable before it was changed.
        let log = stage.log.lock().unwrap().clone();
        let lines = stage.entries().into_iter().zip(&log);
        let mut before = lines.filter_map(|(entry, (_, earth))| {
            let Body::Step {
                event: Event::Found { before, machine },
                ..
            } = entry.body
            else {
                return None;
            };
            Some((before, machine, earth.pod.clone()))
        });
        let wanted = ("pod-1".to_owned(), true);
        let found = ("1".to_owned(), "pod-1".to_owned(), Some(wanted));
        assert_eq!(before.next(), Some(found));
        assert_eq!(before.next(), None);
        let calls = stage.calls.lock().unwrap().clone();
        let at = |call: &str| calls.iter().position(|it| it == call).unwrap();
        assert!(at("look at the proof") < at("promote"), "{calls:?}");
    });
}

#[test]
fn replicas_that_are_put_back_after_the_proof_take_the_plan_back_and_not_the_site() {
    play(async {
        let stage = Stage::new(in_a_pod());
        let put_back = EffectError::Refused("the replicas were put back".to_owned());
        stage.always("look at the proof", put_back);
        let _running = after_quiet(&stage, Earth::lose_aws).await;
        stage.end_of_plan().await;
        assert!(matches!(ending(&stage), Ending::Undone { .. }));
        assert_eq!(stage.change(|earth| earth.promotions()), 0);
        assert!(told(&stage, "promote failed") < told(&stage, "fence undone"));
        let wanted = stage.change(|earth| earth.pod.clone().unwrap().1);
        assert!(wanted, "the pod is wanted again");
    });
}

#[test]
fn where_the_infrastructure_gives_no_proof_another_one_does() {
    let silent = || EffectError::Unknown("no answer of the API server".to_owned());
    let forbidden = || EffectError::Refused("statefulsets.apps/scale: forbidden".to_owned());
    let cases: [(&str, EffectError); 4] = [
        ("look at the cluster", silent()),
        ("look at the cluster", forbidden()),
        ("scale down", silent()),
        ("scale down", forbidden()),
    ];
    for (call, error) in cases {
        play(async {
            let stage = Stage::new(in_a_pod());
            stage.always(call, error.clone());
            let _running = after_quiet(&stage, Earth::lose_aws).await;
            stage.end_of_plan().await;
            assert_eq!(ending(&stage), Ending::Done, "{call}: {error}");
            let proof = fact(&stage, &Step::Fence);
            let waited = matches!(
                proof,
                Fact::Fenced {
                    proof: FenceProof::WaitedOut { .. }
                }
            );
            assert!(waited, "{call}, {error}: {proof:?}");
        });
    }
}

#[test]
fn a_holder_outside_of_the_cluster_is_not_fenced_by_it() {
    play(async {
        let stage = Stage::new(in_a_pod());
        let running = after_quiet(&stage, |_| ()).await;
        // Its agent says no longer that it runs there.
        stage.change(|earth| earth.pod = None);
        stage.pass(Duration::from_secs(2)).await;
        stage.change(|earth| {
            earth.pod = Some(("pod-1".to_owned(), true));
            earth.lose_aws();
        });
        stage.end_of_plan().await;
        let proof = fact(&stage, &Step::Fence);
        assert!(
            matches!(
                proof,
                Fact::Fenced {
                    proof: FenceProof::WaitedOut { .. }
                }
            ),
            "{proof:?}"
        );
        let scaled = effects(&stage).contains(&"scale aws to 0".to_owned());
        assert!(!scaled, "{:?}", effects(&stage));
        drop(running);
    });
}

#[test]
fn what_was_scaled_down_is_given_back_whoever_ends_the_plan_and_also_where_the_answer_was_lost() {
    let lost = || Fault::After(EffectError::Unknown("no answer in time".to_owned()));
    for restarted in [false, true] {
        play(async {
            let stage = Stage::new(in_a_pod());
            stage.fault("scale down", lost());
            let refused = EffectError::Refused("the disk of the standby is full".to_owned());
            stage.always("promote", refused);
            let running = after_quiet(&stage, Earth::lose_aws).await;
            let failed = |stage: &Stage| stage.story().contains(&"promote failed".to_owned());
            stage.until("the promotion fails", failed).await;
            let _another = if restarted {
                drop(running);
                stage.start().await
            } else {
                running
            };
            stage.end_of_plan().await;
            assert!(matches!(ending(&stage), Ending::Undone { .. }));
            let scaled: Vec<String> = effects(&stage)
                .into_iter()
                .filter(|effect| effect.starts_with("scale"))
                .collect();
            assert_eq!(scaled, ["scale aws to 0", "scale aws to 1"], "{restarted}");
        });
    }
}
