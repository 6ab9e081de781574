//! The fence by a simulated cluster.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::changed;
use crate::ports::{EffectError, FencedBefore, FencedProof, InfrastructureFence, Still};
use crate::sim::network::{NoAnswer, ask};
use crate::sim::site_ports::Place;
use crate::sim::world::{Node, World};

/// How long it waits for an answer of the API server.
const ANSWERS: Duration = Duration::from_secs(2);
/// How long it is between two looks.
const LOOKS: Duration = Duration::from_millis(100);

/// What the API server says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The version of the StatefulSet.
    pub version: u64,
    /// Whether a pod is wanted.
    pub wanted: bool,
    /// The pod's uid.
    pub pod: u64,
    /// Whether there is an object of it.
    pub listed: bool,
    /// Whether its kubelet said that it has ended.
    pub ended: bool,
    /// Whether the cloud says that the machine is gone, and its Node is.
    pub gone: bool,
}

/// The way to a site's cluster.
#[derive(Debug)]
pub struct SimInfrastructure {
    place: Place,
    node: Node,
    /// Of which pods a kubelet said that they ended.
    ended: Mutex<BTreeSet<u64>>,
}

impl SimInfrastructure {
    /// Of the controller at a place.
    pub fn new(place: Place, node: Node) -> Self {
        Self {
            place,
            node,
            ended: Mutex::default(),
        }
    }

    /// Asks the API server. What it is asked may happen long after the asker gave up.
    async fn ask<T: Send + 'static>(
        &self,
        asked: impl Fn(&Arc<World>, Node) -> T + Clone + Send + Sync + 'static,
    ) -> Result<T, NoAnswer> {
        self.place.work(1, 30).await;
        let (world, node) = (Arc::clone(&self.place.world), self.node);
        let there = move || {
            let (world, asked) = (Arc::clone(&world), asked.clone());
            async move {
                let down = world.with(|state, now| {
                    let cluster = state.cluster(node);
                    cluster.map_or(Duration::ZERO, |it| it.down.saturating_sub(now))
                });
                tokio::time::sleep(down).await;
                Some(asked(&world, node))
            }
        };
        // Its address is the cloud's: what leads there is not what leads to the site's hosts.
        let way = (Node::Neutral, Node::Clients);
        let answer = ask(&self.place.world, way, ANSWERS, there).await;
        self.place.world.alive(&self.place.life).await;
        answer
    }

    /// What is there now.
    pub async fn seen(&self) -> Result<Seen, EffectError> {
        let seen = self.ask(|world, node| {
            world.with(|state, now| {
                state.cluster(node).map(|cluster| Seen {
                    version: cluster.version,
                    wanted: cluster.wanted,
                    pod: cluster.pod,
                    listed: cluster.listed,
                    ended: cluster.ended,
                    gone: cluster.machine_is_gone(now),
                })
            })
        });
        let silent = |_| EffectError::Failed("no answer of the API server".to_owned());
        let seen = seen.await.map_err(silent)?;
        seen.ok_or_else(|| EffectError::Refused("there is no cluster".to_owned()))
    }

    /// Changes the replicas if the set is still at a version.
    async fn scale(&self, version: u64, wanted: bool) -> Result<(), EffectError> {
        let scaled = self.ask(move |world, node| {
            let made = world.with(|state, _| {
                let cluster = state.cluster(node);
                cluster.is_some_and(|cluster| {
                    let fits = cluster.version == version;
                    if fits {
                        cluster.scale(wanted);
                    }
                    fits
                })
            });
            changed(world, node);
            made
        });
        match scaled.await {
            Ok(true) => Ok(()),
            Ok(false) => Err(EffectError::Conflict("another version".to_owned())),
            Err(NoAnswer::Refused) => Err(EffectError::Failed("refused".to_owned())),
            Err(NoAnswer::TimedOut) => Err(EffectError::Unknown("no answer".to_owned())),
        }
    }

    /// What of it is proof that the pod has ended.
    fn proof(&self, pod: u64, seen: &Seen) -> Option<FencedProof> {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.ended {
            ended.insert(seen.pod);
        }
        let said = ended.contains(&pod);
        let text = if said {
            format!("the kubelet says that pod {pod} has ended")
        } else {
            format!("the machine of pod {pod} is gone")
        };
        let token = written(seen).ok()?;
        (said || seen.gone).then_some(FencedProof { text, token })
    }
}

fn written(seen: &Seen) -> Result<String, EffectError> {
    serde_json::to_string(seen).map_err(|error| EffectError::Refused(error.to_string()))
}

fn read(token: &str) -> Result<Seen, EffectError> {
    serde_json::from_str(token).map_err(|error| EffectError::Refused(error.to_string()))
}

#[async_trait]
impl InfrastructureFence for SimInfrastructure {
    async fn look(&self) -> Result<FencedBefore, EffectError> {
        let token = written(&self.seen().await?)?;
        Ok(FencedBefore { token })
    }

    async fn rehearse(&self) -> Result<(), EffectError> {
        self.seen().await.map(drop)
    }

    async fn fence(
        &self,
        before: &FencedBefore,
        holder: Option<&str>,
        within: Duration,
        still: Still<'_>,
    ) -> Result<FencedProof, EffectError> {
        let before = read(&before.token)?;
        if holder.is_some_and(|holder| holder != before.pod.to_string()) {
            let text = "the pod that held the right was gone before";
            return Err(EffectError::Refused(text.to_owned()));
        }
        let now = self.seen().await?;
        still()?;
        let world = &self.place.world;
        world.with(|state, now| state.checks.ends_pods(now));
        self.scale(now.version, false).await?;
        let until = tokio::time::Instant::now() + within;
        loop {
            let seen = self.seen().await?;
            if let Some(proof) = self.proof(before.pod, &seen) {
                return Ok(proof);
            }
            if tokio::time::Instant::now() >= until {
                return Err(EffectError::Failed("the pod has not ended".to_owned()));
            }
            tokio::time::sleep(LOOKS).await;
        }
    }

    async fn recheck(&self, proof: &FencedProof) -> Result<(), EffectError> {
        let (proof, now) = (read(&proof.token)?, self.seen().await?);
        if now.wanted || now.pod != proof.pod || now.version < proof.version {
            return Err(EffectError::Refused("it was put back".to_owned()));
        }
        Ok(())
    }

    async fn undo(&self, before: &FencedBefore, _mark: &str) -> Result<(), EffectError> {
        let before = read(&before.token)?;
        let now = self.seen().await?;
        self.scale(now.version, before.wanted).await
    }
}
