//! The Kubernetes cluster of a lab's site: a double of an API server, in a process of its own, whose
//! kubelet really starts and ends the site's processes. The pod of the StatefulSet is the agent with
//! guard and PostgreSQL, in a PID namespace of its own as a container has one; the pods of the
//! Deployment are the service.
//!
//! What is killed with the site is the cluster, too. What is frozen alone is an API server that does
//! not answer, while its pods go on.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use clap::ValueEnum;
use data_encoding::HEXLOWER;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Mutex;

use super::doubles::kubernetes::kubelet::{Containers, Pod};
use super::doubles::kubernetes::{KubernetesDouble, Settings};
use super::layout::SiteLayout;
use super::processes::{PLACE_VARIABLE, Processes, Who};
use crate::adapters::clock::SystemClock;
use crate::adapters::keys::write_secret;
use crate::engine::topology::SiteName;
use crate::engine::units::MonoTime;
use crate::ports::Clock;

/// Where everything of the group is.
pub const NAMESPACE: &str = "shop";
/// The database.
pub const STATEFULSET: &str = "db";
/// The service.
pub const DEPLOYMENT: &str = "web";

/// How long a container has to end when it is told to.
const GRACE: Duration = Duration::from_secs(8);
/// How long after a container's end the next one is started: a kubelet's first pause.
const PAUSE: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(100);
const LOOK_AT_ENDING: Duration = Duration::from_millis(10);

/// What the sites of a lab are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum SiteKind {
    /// Hosts, with agents and services as their processes
    #[default]
    Host,
    /// Kubernetes clusters, each with a StatefulSet of the database and a Deployment of the service
    Kubernetes,
}

impl std::fmt::Display for SiteKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self
            .to_possible_value()
            .map(|value| value.get_name().to_owned());
        f.write_str(&name.unwrap_or_default())
    }
}

/// What a cluster is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterConfig {
    site: SiteName,
    /// Where the API server listens.
    listen: SocketAddr,
    /// The only token that it takes.
    token: String,
    /// This program.
    program: PathBuf,
    /// What the pods are run with, and where their logs go.
    agent: PathBuf,
    api: PathBuf,
    dir: PathBuf,
    /// How many replicas the service has at first.
    web: u64,
}

impl ClusterConfig {
    /// Reads it.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read(path).with_context(|| format!("read `{}`", path.display()))?;
        serde_json::from_slice(&text).context("the cluster's configuration")
    }
}

/// Writes what a site's cluster is told, and a kubeconfig file that leads to it.
pub(super) fn prepare(
    site: &SiteLayout,
    (listen, web): (SocketAddr, u64),
    program: &Path,
) -> anyhow::Result<()> {
    anyhow::ensure!(
        rustix::process::geteuid().is_root(),
        "the pods of `--site kubernetes` have PID namespaces, which need the user root: run this as root"
    );
    let mut random = [0; 16];
    aws_lc_rs::rand::fill(&mut random).context("random numbers")?;
    let config = ClusterConfig {
        site: site.name.clone(),
        listen,
        token: HEXLOWER.encode(&random),
        program: program.to_owned(),
        agent: site.agent_config(),
        api: site.api_config(),
        dir: site.dir.clone(),
        web,
    };
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "lab",
        "clusters": [{"name": "lab", "cluster": {"server": format!("http://{listen}")}}],
        "users": [{"name": "failover", "user": {"token": config.token}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "failover"}}],
    });
    write_secret(&site.kubeconfig(), kubeconfig.to_string().as_bytes())?;
    write_secret(&site.cluster_config(), &serde_json::to_vec(&config)?)?;
    Ok(())
}

/// Runs a cluster until it is told to end, and ends its pods then.
pub async fn run(config: ClusterConfig) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("wait for signals")?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let mark = std::env::var(PLACE_VARIABLE).unwrap_or_default();
    let lab = mark.rsplit_once(':').map_or("alone", |(_, lab)| lab);
    let containers = Arc::new(SiteContainers {
        processes: Mutex::new(Processes::new(lab, Arc::clone(&clock))?),
        wanted: Mutex::default(),
        clock,
        config: config.clone(),
    });
    let settings = Settings {
        address: config.listen,
        ..Settings::default()
    };
    let double = KubernetesDouble::start(settings, Arc::clone(&containers) as Arc<dyn Containers>)
        .await
        .with_context(|| format!("listen at {}", config.listen))?;
    double.take_tokens(&[&config.token]);
    let node = format!("{}-node", config.site);
    double.join(&node, &format!("lab:///{node}"));
    double.create("namespaces", "", &json!({"metadata": {"name": NAMESPACE}}));
    double.create("statefulsets", NAMESPACE, &workload(STATEFULSET, 1));
    double.create("deployments", NAMESPACE, &workload(DEPLOYMENT, config.web));
    tracing::info!(listen = %config.listen, "API server of the site's cluster");
    loop {
        tokio::select! {
            _told = terminate.recv() => break,
            () = containers.clock.sleep(LOOK) => containers.tend().await?,
        }
    }
    containers.end().await;
    Ok(())
}

fn workload(name: &str, replicas: u64) -> Value {
    let labels = json!({"app": name});
    json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "main", "image": format!("lab/{name}")}]},
            },
        },
    })
}

/// What the site's pods run.
#[derive(Debug)]
struct SiteContainers {
    config: ClusterConfig,
    clock: Arc<dyn Clock>,
    /// Each pod's first process is called by the pod's uid.
    processes: Mutex<Processes>,
    /// The pods whose containers should run, and since when one of them does not.
    wanted: Mutex<BTreeMap<String, (Pod, Option<MonoTime>)>>,
}

impl SiteContainers {
    fn command(&self, pod: &Pod) -> (Command, PathBuf) {
        let ClusterConfig {
            program,
            agent,
            api,
            dir,
            ..
        } = &self.config;
        if pod.name.starts_with(&format!("{STATEFULSET}-")) {
            // A container's end is the end of its PID namespace.
            let mut command = Command::new("unshare");
            command
                .args(["--pid", "--fork", "--kill-child", "--mount-proc", "--"])
                .arg(program)
                .args(["agent", "--config"])
                .arg(agent)
                .env("POD_NAMESPACE", &pod.namespace)
                .env("POD_NAME", &pod.name)
                .env("POD_UID", &pod.uid);
            return (command, dir.join("agent.log"));
        }
        let mut command = Command::new(program);
        command.args(["lab", "site-api", "run"]).arg(api);
        (command, dir.join("api.log"))
    }

    async fn spawn(&self, pod: &Pod) {
        let (command, log) = self.command(pod);
        let place = self.config.site.to_string();
        let mut processes = self.processes.lock().await;
        if let Err(error) = processes.spawn(&pod.uid, &place, command, &log) {
            tracing::error!(pod = pod.name, %error, "a container does not start");
        }
    }

    /// Starts what has ended by itself, as a kubelet does.
    async fn tend(&self) -> anyhow::Result<()> {
        let ended = {
            let mut processes = self.processes.lock().await;
            processes.look()?;
            processes.reap()
        };
        let now = self.clock.now();
        let mut due = Vec::new();
        {
            let mut wanted = self.wanted.lock().await;
            for (uid, status) in ended {
                if let Some((pod, since)) = wanted.get_mut(&uid) {
                    tracing::warn!(pod = pod.name, %status, "a container has ended");
                    *since = Some(now);
                }
            }
            for (pod, since) in wanted.values_mut() {
                if since.is_some_and(|since| now.since(since) >= PAUSE) {
                    *since = None;
                    due.push(pod.clone());
                }
            }
        }
        for pod in due {
            self.spawn(&pod).await;
        }
        Ok(())
    }

    /// Tells a container to end, and kills what is left of it.
    async fn stop_one(&self, uid: &str) {
        let first = self.processes.lock().await.pid(uid);
        let Some(first) = first else { return };
        if let Some(told) = Pid::from_raw(self.inside(first).await) {
            // One that has just ended needs no signal.
            kill_process(told, Signal::TERM).unwrap_or_default();
        }
        let until = self.clock.now().plus(GRACE);
        while self.clock.now() < until {
            {
                let mut processes = self.processes.lock().await;
                processes.reap();
                if processes.pid(uid).is_none() {
                    return;
                }
            }
            self.clock.sleep(LOOK_AT_ENDING).await;
        }
        tracing::warn!(uid, "a container did not end in time, and is killed");
        let mut processes = self.processes.lock().await;
        if let Err(error) = processes.kill9(&Who::Tree(first)).await {
            tracing::error!(uid, %error, "a container is not killed");
        }
        processes.reap();
    }

    /// The first process of a container: that below the one which made the PID namespace.
    async fn inside(&self, first: i32) -> i32 {
        let seen = self.processes.lock().await.look().unwrap_or_default();
        let is = |pid: i32| seen.iter().find(|seen| seen.id.pid == pid);
        if is(first).is_none_or(|seen| seen.program != "unshare") {
            return first;
        }
        let below = seen.iter().find(|seen| seen.parent == first);
        below.map_or(first, |seen| seen.id.pid)
    }

    /// Ends all containers, at once.
    async fn end(&self) {
        let all = std::mem::take(&mut *self.wanted.lock().await);
        let ending = all.keys().map(|uid| self.stop_one(uid));
        futures_util::future::join_all(ending).await;
    }
}

#[async_trait]
impl Containers for SiteContainers {
    async fn start(&self, pod: &Pod) {
        let wanted = (pod.clone(), None);
        self.wanted.lock().await.insert(pod.uid.clone(), wanted);
        self.spawn(pod).await;
    }

    async fn stop(&self, pod: &Pod) {
        self.wanted.lock().await.remove(&pod.uid);
        self.stop_one(&pod.uid).await;
    }
}

/// Scales a site's StatefulSet as somebody who knows nothing of us; what it was scaled to before.
pub async fn scale_by_hand(site: &SiteLayout, replicas: u64) -> anyhow::Result<u64> {
    let path = format!("/apis/apps/v1/namespaces/{NAMESPACE}/statefulsets/{STATEFULSET}/scale");
    let read = axum::http::Request::get(&path).body(Vec::new())?;
    let read: Value = serde_json::from_str(&send_by_hand(site, read).await?)?;
    // A scale at zero has no such field.
    let before = read["spec"]["replicas"].as_u64().unwrap_or(0);
    let path = format!("{path}?fieldManager=kubectl");
    let body = json!({"spec": {"replicas": replicas}});
    let request = axum::http::Request::patch(path)
        .header("content-type", "application/merge-patch+json")
        .body(body.to_string().into_bytes())?;
    send_by_hand(site, request).await.context("scale by hand")?;
    Ok(before)
}

/// Deletes the database's pod, as somebody does who wants a new one of another version.
pub async fn delete_by_hand(site: &SiteLayout) -> anyhow::Result<()> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{STATEFULSET}-0");
    let request = axum::http::Request::delete(path).body(Vec::new())?;
    send_by_hand(site, request)
        .await
        .context("delete by hand")?;
    Ok(())
}

async fn send_by_hand(
    site: &SiteLayout,
    request: axum::http::Request<Vec<u8>>,
) -> anyhow::Result<String> {
    let file = kube::config::Kubeconfig::read_from(site.kubeconfig())?;
    let client = kube::Client::try_from(kube::Config::try_from(file)?)?;
    Ok(client.request_text(request).await?)
}
