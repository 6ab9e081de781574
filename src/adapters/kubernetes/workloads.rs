//! Deployments, StatefulSets and CronJobs of a site: how many there are, started to what they were,
//! stopped to nothing.
//!
//! A count is never made up: what was not remembered is not started. An autoscaler's minimum is raised
//! and not fought; one leaves zero alone, so the target is lifted from there, too.

mod readiness;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::json;

pub use readiness::{NotReady, not_ready};

use super::changes::rivals;
use super::object::{Object, Owner, resources};
use super::{Cluster, ClusterError, Need, Place, Resource, Run};

/// The kinds of workloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// Counted in replicas.
    Deployment,
    /// Counted in replicas.
    StatefulSet,
    /// On (1) or suspended (0).
    CronJob,
}

impl Kind {
    fn resource(self) -> Resource {
        match self {
            Kind::Deployment => resources::DEPLOYMENTS,
            Kind::StatefulSet => resources::STATEFULSETS,
            Kind::CronJob => resources::CRONJOBS,
        }
    }
}

/// Which workloads of a kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// The one of this name.
    Named(String),
    /// All that bear these labels: `app=shop,tier=web`.
    Labelled(String),
}

/// One line of a site's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Its kind.
    pub kind: Kind,
    /// Which of them.
    pub which: Which,
}

/// One workload by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Name {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.resource().kind, self.name)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.to_string()
    }
}

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let kinds = [Kind::Deployment, Kind::StatefulSet, Kind::CronJob];
        let parts = text.split_once('/');
        let found = parts.and_then(|(kind, name)| {
            let mut kinds = kinds.into_iter();
            let kind = kinds.find(|known| known.resource().kind == kind)?;
            Some(Name {
                kind,
                name: name.to_owned(),
            })
        });
        found.ok_or_else(|| format!("`{text}` names no workload: write it like `Deployment/app`"))
    }
}

/// How many there are of each, or are to be.
pub type Counts = BTreeMap<Name, u64>;

/// What was changed, so that it can be changed back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The workload, or the workload whose autoscaler it is.
    pub workload: Name,
    /// The autoscaler, where its minimum was changed and not the workload's count.
    pub autoscaler: Option<String>,
    /// The number before; `None`: the field was not there.
    pub before: Option<u64>,
    /// The number since.
    pub after: u64,
}

/// What came of starting or stopping. Each workload is tried, whatever became of the others; called again,
/// only what is missing is changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What was changed.
    pub changes: Vec<Change>,
    /// What could not be, and why.
    pub errors: Vec<(Name, ClusterError)>,
}

/// The workloads of one namespace.
#[derive(Debug)]
pub struct KubernetesWorkloads {
    cluster: Arc<Cluster>,
    namespace: String,
    /// In the order in which they are started: what makes room stands first where they are stopped.
    list: Vec<Workload>,
}

/// A workload as it was read.
#[derive(Debug)]
struct Found {
    name: Name,
    place: Place,
    object: Object,
}

impl Found {
    fn count(&self) -> u64 {
        match self.name.kind {
            Kind::Deployment | Kind::StatefulSet => self.object.replicas(),
            Kind::CronJob => {
                let suspended = self.object.value()["spec"]["suspend"].as_bool();
                u64::from(suspended != Some(true))
            }
        }
    }
}

impl KubernetesWorkloads {
    /// Sends nothing.
    pub fn new(
        cluster: Arc<Cluster>,
        namespace: &str,
        list: Vec<Workload>,
    ) -> Result<Self, ClusterError> {
        for workload in &list {
            if let Which::Named(name) = &workload.which {
                Place::new(workload.kind.resource(), namespace, name.as_str())?;
            }
        }
        Ok(Self {
            cluster,
            namespace: namespace.to_owned(),
            list,
        })
    }

    /// What our role must allow for all of this.
    pub fn needs(&self) -> Vec<Need> {
        let mut needs = vec![Need::identity()];
        let mut add = |verb, resource, subresource: &'static str, name: &str| {
            let need = Need {
                subresource,
                name: name.to_owned(),
                ..Need::all(verb, resource, &self.namespace)
            };
            if !needs.contains(&need) {
                needs.push(need);
            }
        };
        for workload in &self.list {
            let resource = workload.kind.resource();
            // A role need not allow more than the ones that are named.
            let (read, name) = match &workload.which {
                Which::Named(name) => ("get", name.as_str()),
                Which::Labelled(_) => ("list", ""),
            };
            add(read, resource, "", name);
            match workload.kind {
                Kind::Deployment | Kind::StatefulSet => {
                    add("patch", resource, "scale", name);
                    for verb in ["list", "get", "patch"] {
                        add(verb, resources::AUTOSCALERS, "", "");
                    }
                }
                Kind::CronJob => add("patch", resource, "", name),
            }
        }
        needs
    }

    /// How many replicas each has: what is worth remembering while the site serves.
    pub async fn counts(&self) -> Result<Counts, ClusterError> {
        let found = self.found().await?;
        let count = |found: Found| (found.name.clone(), found.count());
        Ok(found.into_iter().map(count).collect())
    }

    /// Starts each to its remembered count. One that was not remembered is an error: 1 would be a guess.
    pub async fn start(&self, counts: &Counts, run: Run) -> Result<Outcome, ClusterError> {
        let found = self.found().await?;
        let autoscalers = self.autoscalers(&found).await?;
        let mut outcome = Outcome::default();
        for found in found {
            let Some(count) = counts.get(&found.name) else {
                let said = format!("no count of `{}` is remembered", found.name);
                outcome
                    .errors
                    .push((found.name, ClusterError::Refused(said)));
                continue;
            };
            let autoscaler = autoscalers.iter().find(|one| aims_at(one, &found.name));
            if let Some(autoscaler) = autoscaler {
                let raised = self.raise(&found.name, autoscaler, (*count, run)).await;
                outcome.note(&found.name, raised);
            }
            // An autoscaler that runs decides the count itself, as long as it is not below.
            let managed = autoscaler.is_some() && found.count() > 0;
            if found.count() < *count && !managed {
                let set = self.set(&found, (*count, run)).await;
                outcome.note(&found.name, set);
            }
        }
        Ok(outcome)
    }

    /// Stops each: no replicas, and no jobs any more. What stands first goes first.
    pub async fn stop(&self, run: Run) -> Result<Outcome, ClusterError> {
        let mut outcome = Outcome::default();
        for found in self.found().await? {
            if found.count() > 0 {
                let set = self.set(&found, (0, run)).await;
                outcome.note(&found.name, set);
            }
        }
        Ok(outcome)
    }

    /// Changes back what was changed, the last first.
    pub async fn undo(&self, changes: &[Change]) -> Result<Outcome, ClusterError> {
        let mut outcome = Outcome::default();
        for change in changes.iter().rev() {
            let before = change.before;
            let undone = match &change.autoscaler {
                Some(autoscaler) => {
                    let place = self.place(resources::AUTOSCALERS, autoscaler)?;
                    let now = self.cluster.get(&place).await?;
                    self.set_minimum(&change.workload, &now, (before, Run::Real))
                        .await
                }
                None => {
                    let found = self
                        .one(change.workload.kind, &change.workload.name)
                        .await?;
                    let back = before.unwrap_or(0);
                    self.set(&found, (back, Run::Real)).await
                }
            };
            outcome.note(&change.workload, undone);
        }
        Ok(outcome)
    }

    /// What is not ready for these counts, in the cluster's words where it says why.
    pub async fn lacking(&self, counts: &Counts) -> Result<Vec<NotReady>, ClusterError> {
        let mut lacking = Vec::new();
        for found in self.found().await? {
            let wanted = counts.get(&found.name).copied().unwrap_or(0);
            lacking.extend(not_ready(&found.name, &found.object, wanted));
        }
        Ok(lacking)
    }

    /// Who else owns the number of each, or of its autoscaler's minimum, and may put it back.
    pub async fn rivals(&self) -> Result<Vec<(Name, Owner)>, ClusterError> {
        let found = self.found().await?;
        let autoscalers = self.autoscalers(&found).await?;
        let mut all = Vec::new();
        for found in &found {
            let own = match found.name.kind {
                Kind::Deployment | Kind::StatefulSet => rivals(&found.object),
                Kind::CronJob => others(&found.object, &["spec", "suspend"]),
            };
            let minimum = autoscalers.iter().filter(|one| aims_at(one, &found.name));
            let minimum = minimum.flat_map(|one| others(one, &["spec", "minReplicas"]));
            let named = own.into_iter().chain(minimum);
            all.extend(named.map(|owner| (found.name.clone(), owner)));
        }
        Ok(all)
    }

    fn place(&self, resource: Resource, name: &str) -> Result<Place, ClusterError> {
        Place::new(resource, self.namespace.as_str(), name)
    }

    async fn one(&self, kind: Kind, name: &str) -> Result<Found, ClusterError> {
        let place = self.place(kind.resource(), name)?;
        Ok(Found {
            object: self.cluster.get(&place).await?,
            name: Name {
                kind,
                name: name.to_owned(),
            },
            place,
        })
    }

    /// Every workload of the list, each once.
    async fn found(&self) -> Result<Vec<Found>, ClusterError> {
        self.cluster.identify().await?;
        let mut all: Vec<Found> = Vec::new();
        for workload in &self.list {
            let kind = workload.kind;
            let some = match &workload.which {
                Which::Named(name) => vec![self.one(kind, name).await?],
                Which::Labelled(labels) => {
                    let namespace = &self.namespace;
                    let listed = self
                        .cluster
                        .list(kind.resource(), namespace, labels)
                        .await?;
                    let mut found = Vec::new();
                    for object in listed.items {
                        let name = object.name().to_owned();
                        found.push(Found {
                            place: self.place(kind.resource(), &name)?,
                            name: Name { kind, name },
                            object,
                        });
                    }
                    found
                }
            };
            for found in some {
                if !all.iter().any(|known| known.name == found.name) {
                    all.push(found);
                }
            }
        }
        Ok(all)
    }

    async fn autoscalers(&self, found: &[Found]) -> Result<Vec<Object>, ClusterError> {
        let counted = |found: &Found| found.name.kind != Kind::CronJob;
        if !found.iter().any(counted) {
            return Ok(Vec::new());
        }
        let resource = resources::AUTOSCALERS;
        Ok(self
            .cluster
            .list(resource, &self.namespace, "")
            .await?
            .items)
    }

    /// Sets a count, of exactly what was read.
    async fn set(
        &self,
        found: &Found,
        (count, run): (u64, Run),
    ) -> Result<Option<Change>, ClusterError> {
        let before = found.count();
        if before == count {
            return Ok(None);
        }
        let version = found.object.version()?;
        match found.name.kind {
            Kind::Deployment | Kind::StatefulSet => {
                let wanted = (count, run);
                self.cluster.scale(&found.place, &version, wanted).await?;
            }
            Kind::CronJob => {
                let patch = json!({"spec": {"suspend": count == 0}});
                self.cluster
                    .merge(&found.place, &version, (patch, run))
                    .await?;
            }
        }
        Ok(Some(Change {
            workload: found.name.clone(),
            autoscaler: None,
            before: Some(before),
            after: count,
        }))
    }

    /// Raises an autoscaler's minimum to a count, as far as its maximum lets it.
    async fn raise(
        &self,
        workload: &Name,
        autoscaler: &Object,
        (count, run): (u64, Run),
    ) -> Result<Option<Change>, ClusterError> {
        let most = autoscaler.number("/spec/maxReplicas").unwrap_or(count);
        let least = autoscaler.number("/spec/minReplicas").unwrap_or(1);
        let wanted = count.min(most);
        if wanted <= least {
            return Ok(None);
        }
        self.set_minimum(workload, autoscaler, (Some(wanted), run))
            .await
    }

    async fn set_minimum(
        &self,
        workload: &Name,
        autoscaler: &Object,
        (minimum, run): (Option<u64>, Run),
    ) -> Result<Option<Change>, ClusterError> {
        let before = autoscaler.number("/spec/minReplicas");
        if before == minimum {
            return Ok(None);
        }
        let place = self.place(resources::AUTOSCALERS, autoscaler.name())?;
        let patch = json!({"spec": {"minReplicas": minimum}});
        let version = autoscaler.version()?;
        self.cluster.merge(&place, &version, (patch, run)).await?;
        Ok(Some(Change {
            workload: workload.clone(),
            autoscaler: Some(autoscaler.name().to_owned()),
            before,
            after: minimum.unwrap_or(1),
        }))
    }
}

impl Outcome {
    fn note(&mut self, name: &Name, done: Result<Option<Change>, ClusterError>) {
        match done {
            Ok(change) => self.changes.extend(change),
            Err(error) => self.errors.push((name.clone(), error)),
        }
    }
}

fn others(object: &Object, path: &[&str]) -> Vec<Owner> {
    let mut owners = object.owners(path);
    owners.retain(|owner| !owner.is_ours());
    owners
}

fn aims_at(autoscaler: &Object, name: &Name) -> bool {
    let target = |key: &str| autoscaler.text(&format!("/spec/scaleTargetRef/{key}"));
    target("kind") == Some(name.kind.resource().kind) && target("name") == Some(&name.name)
}
