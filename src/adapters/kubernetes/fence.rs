//! The fence by infrastructure: a StatefulSet is scaled to zero, and the kubelet says that its pods
//! ended. What counts as proof is in `proof`, which leases are fresh in `leases`.
//!
//! The order is: the standby is severed; [`StatefulSetFence::look`] keeps what is there then;
//! [`Watch::scale_down`] changes it; [`Watch::wait`] waits for the word;
//! [`StatefulSetFence::recheck`] reads it again before the pivot. [`StatefulSetFence::undo`] gives the
//! replicas back.

mod leases;
mod proof;
mod watch;
mod port;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub use proof::{Before, Doubt, End, PodEnd, PodSeen, Proof};

use self::leases::Leases;
use self::proof::{Word, judge_set};
pub use self::watch::Watch;
use super::changes::rivals;
use super::cluster::Listed;
use super::object::{Object, Owner, resources};
use super::{Cluster, ClusterError, Need, Place, Run, Version};
use crate::ports::{Clock, Machines, Still};

/// Where the leases of nodes are.
const NODE_LEASES: &str = "kube-node-lease";

/// What a fence is made of.
#[derive(Debug, Clone)]
pub struct FenceSettings {
    /// The StatefulSet's namespace.
    pub namespace: String,
    /// The StatefulSet.
    pub name: String,
    /// How long it is between two looks while the pods end. A pod's object may be gone a moment after its
    /// kubelet's last word: 100 ms sees that word nearly always.
    pub poll: Duration,
    /// How old the last renewal of a node's lease may be. Kubelets renew every 10 s, and a cluster takes a
    /// node for lost after 40 s to 50 s.
    pub lease_fresh: Duration,
}

/// Fences a site by scaling its StatefulSet to zero.
#[derive(Debug)]
pub struct StatefulSetFence {
    cluster: Arc<Cluster>,
    set: Place,
    settings: FenceSettings,
    machines: Option<Arc<dyn Machines>>,
    clock: Arc<dyn Clock>,
    leases: Mutex<Leases>,
    /// What kubelets said since the version at which a fence began: a wait that is begun anew goes on.
    words: Mutex<(String, BTreeMap<String, Word>)>,
}

/// Why the StatefulSet that was looked at is not what is there now.
#[derive(Debug)]
enum Found {
    Not(ClusterError),
    Doubted(Doubt, Object),
}

impl From<ClusterError> for Found {
    fn from(error: ClusterError) -> Self {
        Found::Not(error)
    }
}

/// How far a fence is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Nothing of it runs any more.
    Fenced(Proof),
    /// Not yet, or never: for each pod, or for all, why not.
    Doubted(Vec<Doubt>),
}

impl StatefulSetFence {
    /// Sends nothing. Without `machines` a pod on a lost machine is never proven to have ended.
    pub fn new(
        cluster: Arc<Cluster>,
        settings: FenceSettings,
        machines: Option<Arc<dyn Machines>>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ClusterError> {
        let (namespace, name) = (settings.namespace.clone(), settings.name.clone());
        Ok(Self {
            set: Place::new(resources::STATEFULSETS, namespace, name)?,
            cluster,
            settings,
            machines,
            clock,
            leases: Mutex::default(),
            words: Mutex::default(),
        })
    }

    /// What our role must allow for all of this.
    pub fn needs(&self) -> Vec<Need> {
        vec![
            Need::identity(),
            Need::on("get", &self.set, ""),
            Need::on("patch", &self.set, ""),
            Need::on("patch", &self.set, "scale"),
            Need::all("list", resources::PODS, &self.set.namespace),
            Need::all("get", resources::NODES, ""),
            Need::all("get", resources::LEASES, NODE_LEASES),
        ]
    }

    /// Reads what is there. Called again and again while all is well it also sees the nodes' leases being
    /// renewed, so that a fence does not have to wait for the next renewal.
    pub async fn look(&self) -> Result<Before, ClusterError> {
        let cluster = self.cluster.identify().await?;
        let set = self.cluster.get(&self.set).await?;
        let listed = self.pods(&set).await?;
        let mut pods = Vec::new();
        for pod in &listed.items {
            pods.push(self.seen(pod, true).await?);
        }
        Ok(Before {
            cluster,
            set: set.version()?,
            replicas: set.replicas(),
            pods,
            version: listed.version,
        })
    }

    /// Whoever else owns the number of replicas and may put it back.
    pub async fn rivals(&self) -> Result<Vec<Owner>, ClusterError> {
        Ok(rivals(&self.cluster.get(&self.set).await?))
    }

    /// Has the server say whether it would let us scale to zero now, without doing it.
    pub async fn rehearse(&self) -> Result<(), ClusterError> {
        self.cluster.identify().await?;
        let now = self.cluster.get(&self.set).await?.version()?;
        self.cluster
            .scale(&self.set, &now, (0, Run::Dry))
            .await
            .map(drop)
    }

    /// Scales the StatefulSet that was looked at to zero. The version that this made: from then on
    /// nothing that was sent before can land. Where the outcome is unknown, call it again: that settles
    /// it. `still` is asked last of all.
    pub async fn scale_down(
        &self,
        before: &Before,
        still: Still<'_>,
    ) -> Result<Version, ClusterError> {
        let now = self.found(before).await;
        let now = now.map_err(|error| self.refused(error))?.version()?;
        still().map_err(|error| ClusterError::Failed(error.text().to_owned()))?;
        let zero = (0, Run::Real);
        let scaled = self.cluster.scale(&self.set, &now, zero).await?;
        if scaled.replicas != 0 {
            let said = format!("{} is at {} replicas", self.set.shown(), scaled.replicas);
            return Err(ClusterError::Conflict(said));
        }
        // Only the object itself has a generation.
        let made = self.found(before).await;
        made.map_err(|error| self.refused(error))?.version()
    }

    /// The StatefulSet that was looked at, as it is now.
    async fn found(&self, before: &Before) -> Result<Object, Found> {
        let cluster = self.cluster.identify().await?;
        if cluster != before.cluster {
            return Err(Found::Not(ClusterError::OtherCluster {
                expected: before.cluster.clone(),
                found: cluster,
            }));
        }
        let now = self.cluster.get(&self.set).await?;
        match judge_set(&before.set, Some(&now)) {
            Ok(_) | Err(Doubt::Rescaled { .. }) => Ok(now),
            Err(doubt) => Err(Found::Doubted(doubt, now)),
        }
    }

    fn refused(&self, found: Found) -> ClusterError {
        match found {
            Found::Not(error) => error,
            Found::Doubted(doubt, _) => {
                ClusterError::Refused(format!("{}: {doubt}", self.set.shown()))
            }
        }
    }

    /// Watches the pods end, after [`StatefulSetFence::scale_down`] made `cut`. `holder`: the uid of the
    /// pod that held the right, where it is known.
    pub fn watch(&self, before: &Before, cut: &Version, holder: Option<&str>) -> Watch<'_> {
        let words = self.words_since(&before.version);
        Watch::new(self, (before, cut, holder), words)
    }

    fn words_since(&self, version: &str) -> BTreeMap<String, Word> {
        let kept = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.0 == version {
            kept.1.clone()
        } else {
            BTreeMap::new()
        }
    }

    fn keep_words(&self, version: &str, words: &BTreeMap<String, Word>) {
        let mut kept = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        *kept = (version.to_owned(), words.clone());
    }

    /// Reads a proof's objects again, from the store: an error or a doubt is no fence any more.
    pub async fn recheck(&self, proof: &Proof) -> Result<Vec<Doubt>, ClusterError> {
        let cluster = self.cluster.identify().await?;
        if cluster != proof.cluster {
            return Err(ClusterError::OtherCluster {
                expected: proof.cluster.clone(),
                found: cluster,
            });
        }
        let now = match self.cluster.get(&self.set).await {
            Ok(now) => now,
            Err(ClusterError::Absent(_)) => return Ok(vec![Doubt::Replaced { found: None }]),
            Err(error) => return Err(error),
        };
        if let Err(doubt) = judge_set(&proof.set, Some(&now)) {
            return Ok(vec![doubt]);
        }
        let listed = self.pods(&now).await?;
        let proven = |pod: &&Object| {
            let uid = pod.text("/metadata/uid");
            proof.pods.iter().any(|end| Some(end.uid.as_str()) == uid)
        };
        let others = listed.items.iter().filter(|pod| !proven(pod));
        let others = others.map(|pod| Doubt::Running {
            pod: pod.name().to_owned(),
            container: "every".to_owned(),
        });
        Ok(others.collect())
    }

    /// Gives back the replicas that were there before. Where they are there already, another change sees to
    /// it that no earlier one can land: `mark` differs each time. Where the outcome is unknown, call it
    /// again.
    pub async fn undo(&self, before: &Before, mark: &str) -> Result<(), ClusterError> {
        let now = match self.found(before).await {
            // There is nothing to take back of a fence that a restored store does not know.
            Err(Found::Doubted(Doubt::WentBack { .. }, now)) => now,
            other => other.map_err(|error| self.refused(error))?,
        };
        if now.replicas() == before.replicas {
            return self.cluster.settle(&self.set, mark).await.map(drop);
        }
        let (now, wanted) = (now.version()?, (before.replicas, Run::Real));
        self.cluster.scale(&self.set, &now, wanted).await.map(drop)
    }

    /// The pods that belong to the StatefulSet, by its labels and by their owner.
    async fn pods(&self, set: &Object) -> Result<Listed, ClusterError> {
        let labels = set.value()["spec"]["selector"]["matchLabels"].as_object();
        let pair = |(key, value): (&String, &serde_json::Value)| {
            Some(format!("{key}={}", value.as_str()?))
        };
        let labels: Vec<String> = labels.into_iter().flatten().filter_map(pair).collect();
        if labels.is_empty() {
            let said = format!("{} selects its pods by no labels", self.set.shown());
            return Err(ClusterError::Refused(said));
        }
        let namespace = &self.set.namespace;
        let labels = labels.join(",");
        self.cluster.list(resources::PODS, namespace, &labels).await
    }

    async fn seen(&self, pod: &Object, known: bool) -> Result<PodSeen, ClusterError> {
        let Some(name) = pod.text("/spec/nodeName").map(ToOwned::to_owned) else {
            return Ok(PodSeen::of(pod, None, known));
        };
        self.observe_lease(&name).await?;
        let place = Place::new(resources::NODES, "", name)?;
        let machine = match self.cluster.get(&place).await {
            Ok(node) => node.text("/spec/providerID").map(ToOwned::to_owned),
            Err(ClusterError::Absent(_)) => None,
            Err(error) => return Err(error),
        };
        Ok(PodSeen::of(pod, machine, known))
    }

    /// Reads a node's lease: how long ago it was renewed, at most; `None` where that was never seen.
    async fn observe_lease(&self, node: &str) -> Result<Option<Duration>, ClusterError> {
        let asked = self.clock.now();
        let place = Place::new(resources::LEASES, NODE_LEASES, node)?;
        let lease = match self.cluster.get(&place).await {
            Ok(lease) => lease,
            Err(ClusterError::Absent(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let renewed = lease.text("/spec/renewTime").unwrap_or_default().to_owned();
        let now = self.clock.now();
        let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        leases.observe(node, renewed, asked);
        Ok(leases.age(node, now))
    }

    /// Whether a node's object is gone and the cloud says the same of its machine.
    async fn machine_is_gone(&self, seen: &PodSeen) -> Result<Option<String>, ClusterError> {
        let (Some(machines), Some(node), Some(machine)) =
            (&self.machines, &seen.node, &seen.machine)
        else {
            return Ok(None);
        };
        let place = Place::new(resources::NODES, "", node.clone())?;
        match self.cluster.get(&place).await {
            Err(ClusterError::Absent(_)) => {}
            Ok(_there) => return Ok(None),
            Err(error) => return Err(error),
        }
        let gone = machines.is_gone(machine).await;
        let gone = gone.map_err(|error| ClusterError::Failed(error.to_string()))?;
        Ok(gone.then(|| machine.clone()))
    }
}
