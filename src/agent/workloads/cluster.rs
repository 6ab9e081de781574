//! Workloads that are objects of a Kubernetes cluster.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::OnceCell;

use super::Page;
use crate::adapters::kubernetes::workloads::{Counts, KubernetesWorkloads, Outcome, Which};
use crate::adapters::kubernetes::{Cluster, ClusterError, Need, Run, resources};
use crate::adapters::reread::CredentialBook;
use crate::agent::config::{Counted, KubernetesConfig};
use crate::ports::{Clock, ClusterHealth, ClusterLook, EffectError, Workloads};

/// Deployments, StatefulSets and CronJobs, each with its count from the agent's file.
#[derive(Debug)]
pub struct ClusterWorkloads {
    config: KubernetesConfig,
    page: Page,
    clock: Arc<dyn Clock>,
    book: Arc<CredentialBook>,
    /// Connected with the first use: a credential that cannot be had keeps no agent from starting.
    lines: OnceCell<Lines>,
}

/// The lines of the file, as the adapter has them.
#[derive(Debug)]
struct Lines {
    cluster: Arc<Cluster>,
    list: Vec<Line>,
}

#[derive(Debug)]
struct Line {
    objects: KubernetesWorkloads,
    replicas: u64,
}

impl Line {
    fn new(
        cluster: &Arc<Cluster>,
        namespace: &str,
        counted: &Counted,
    ) -> Result<Self, ClusterError> {
        let list = vec![counted.workload.clone()];
        Ok(Self {
            objects: KubernetesWorkloads::new(Arc::clone(cluster), namespace, list)?,
            replicas: counted.replicas,
        })
    }

    /// How many there are to be of each.
    async fn wanted(&self) -> Result<Counts, ClusterError> {
        let mut counts = self.objects.counts().await?;
        for count in counts.values_mut() {
            *count = self.replicas;
        }
        Ok(counts)
    }
}

impl ClusterWorkloads {
    /// Connects to nothing yet.
    pub fn new(
        config: KubernetesConfig,
        page: Page,
        (clock, book): (Arc<dyn Clock>, Arc<CredentialBook>),
    ) -> Self {
        Self {
            config,
            page,
            clock,
            book,
            lines: OnceCell::new(),
        }
    }

    async fn lines(&self) -> Result<&Lines, ClusterError> {
        let connect = async || {
            let KubernetesConfig {
                cluster,
                namespace,
                list,
            } = &self.config;
            let cluster = Arc::new(cluster.connect(&self.clock, &self.book).await?);
            let lines = list
                .iter()
                .map(|counted| Line::new(&cluster, namespace, counted));
            Ok(Lines {
                list: lines.collect::<Result<_, _>>()?,
                cluster: Arc::clone(&cluster),
            })
        };
        self.lines.get_or_try_init(connect).await
    }

    /// What our role lacks.
    async fn missing(&self, lines: &Lines) -> Result<Vec<Need>, ClusterError> {
        let mut needs = vec![Need::all("create", resources::ACCESS_REVIEWS, "")];
        for need in lines.list.iter().flat_map(|line| line.objects.needs()) {
            if !needs.contains(&need) {
                needs.push(need);
            }
        }
        lines.cluster.missing(&needs).await
    }

    async fn find_obstacle(&self) -> Result<Option<String>, ClusterError> {
        let lines = self.lines().await?;
        let missing = self.missing(lines).await?;
        if !missing.is_empty() {
            let missing: Vec<String> = missing.iter().map(ToString::to_string).collect();
            return Ok(Some(format!("the role lacks: {}", missing.join(", "))));
        }
        for (line, counted) in lines.list.iter().zip(&self.config.list) {
            let wanted = line.wanted().await?;
            if let (Which::Labelled(labels), true) = (&counted.workload.which, wanted.is_empty()) {
                return Ok(Some(format!("nothing bears the labels `{labels}`")));
            }
            let rehearsed = line.objects.start(&wanted, Run::Dry).await?;
            if let Some((name, error)) = rehearsed.errors.into_iter().next() {
                // A conflict is with whoever writes it at this very moment.
                if matches!(error, ClusterError::Conflict(_)) {
                    return Ok(None);
                }
                return Err(named(&name.to_string(), error));
            }
        }
        Ok(None)
    }
}

/// An error of one workload, with its name.
fn named(name: &str, error: ClusterError) -> ClusterError {
    match error {
        ClusterError::Conflict(said) => ClusterError::Conflict(format!("`{name}`: {said}")),
        ClusterError::Unknown(said) => ClusterError::Unknown(format!("`{name}`: {said}")),
        ClusterError::Failed(said) => ClusterError::Failed(format!("`{name}`: {said}")),
        ClusterError::Absent(said) => ClusterError::Absent(format!("`{name}`: {said}")),
        ClusterError::Refused(said) => ClusterError::Refused(format!("`{name}`: {said}")),
        named @ (ClusterError::Forbidden { .. }
        | ClusterError::Unauthorized(_)
        | ClusterError::Throttled { .. }
        | ClusterError::OtherCluster { .. }) => named,
    }
}

/// Whether an error will be there in an incident, too, and is not one of this moment.
fn lasts(error: &ClusterError) -> bool {
    match error {
        ClusterError::Forbidden { .. }
        | ClusterError::Unauthorized(_)
        | ClusterError::Absent(_)
        | ClusterError::OtherCluster { .. }
        | ClusterError::Refused(_) => true,
        ClusterError::Conflict(_)
        | ClusterError::Throttled { .. }
        | ClusterError::Unknown(_)
        | ClusterError::Failed(_) => false,
    }
}

/// The first error; the others are logged. Each workload was tried, whatever became of the others.
fn done(outcome: Outcome) -> Result<(), EffectError> {
    for change in &outcome.changes {
        tracing::info!(workload = %change.workload, before = ?change.before, after = change.after, autoscaler = ?change.autoscaler, "scaled");
    }
    let mut errors = outcome.errors.into_iter();
    let Some((name, error)) = errors.next() else {
        return Ok(());
    };
    for (name, error) in errors {
        tracing::warn!(workload = %name, %error, "not scaled");
    }
    Err(self::named(&name.to_string(), error).into())
}

#[async_trait]
impl ClusterHealth for ClusterWorkloads {
    async fn look(&self) -> Result<ClusterLook, EffectError> {
        Ok(self.lines().await?.cluster.standing().await?)
    }

    fn credential_age(&self) -> Option<Duration> {
        self.lines.get()?.cluster.credential_age()
    }
}

#[async_trait]
impl Workloads for ClusterWorkloads {
    async fn start(&self) -> Result<(), EffectError> {
        let mut first = Ok(());
        for line in &self.lines().await?.list {
            let started = async {
                let wanted = line.wanted().await?;
                done(line.objects.start(&wanted, Run::Real).await?)
            };
            first = first.and(started.await);
        }
        first
    }

    async fn stop(&self) -> Result<(), EffectError> {
        let mut first = Ok(());
        for line in &self.lines().await?.list {
            let stopped = async { done(line.objects.stop(Run::Real).await?) };
            first = first.and(stopped.await);
        }
        first
    }

    async fn ready(&self) -> Result<bool, EffectError> {
        for line in &self.lines().await?.list {
            let lacking = line.objects.lacking(&line.wanted().await?).await?;
            if let Some(first) = lacking.first() {
                tracing::debug!(%first, "not ready");
                return Ok(false);
            }
        }
        Ok(self.page.answers().await)
    }

    async fn obstacle(&self) -> Result<Option<String>, EffectError> {
        match self.find_obstacle().await {
            Err(error) if lasts(&error) => Ok(Some(error.to_string())),
            found => Ok(found?),
        }
    }
}
