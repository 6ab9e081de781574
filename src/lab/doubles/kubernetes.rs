//! A double of a Kubernetes API server with what stands behind it: a store with one counter of
//! versions, the controllers of StatefulSets and Deployments, and a kubelet for each node. It keeps
//! the rules that a fence and a start of workloads depend on, and records which calls were made.
//!
//! It has no watches, no lists in pages, no PUT, and of the patches only merge and apply: nothing of
//! ours uses the rest.

pub mod faults;
mod resources;
mod refusal;
mod owners;
mod store;
mod writes;
mod requests;
mod controllers;
pub mod kubelet;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, Uri};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::faults::{Access, Call, Fault, On, Told};
use self::kubelet::{Containers, Life};
use self::requests::Asked;
use self::resources::Place;
use self::store::{Store, Wanted};
use self::writes::{How, Write};
use crate::adapters::clock::SystemClock;
use crate::ports::Clock;

/// How a double behaves.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Where it listens; port 0 for any.
    pub address: SocketAddr,
    /// How often a kubelet renews its node's lease: 10 s on a real one.
    pub renew_every: Duration,
    /// How long a pod object is there after its kubelet said that it ended.
    pub lingers: Duration,
}

impl Default for Settings {
    /// On any port of the loopback interface, with everything quick.
    fn default() -> Self {
        Self {
            address: (Ipv4Addr::LOCALHOST, 0).into(),
            renew_every: Duration::from_millis(100),
            lingers: Duration::from_secs(1),
        }
    }
}

/// A running double. It ends with this value; what its pods run does not.
#[derive(Debug)]
pub struct KubernetesDouble {
    /// Where its API answers, over plain HTTP.
    pub address: SocketAddr,
    inside: Arc<Inside>,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
pub(super) struct Inside {
    settings: Settings,
    containers: Arc<dyn Containers>,
    kept: Mutex<Kept>,
    /// Counts what may have changed something.
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
pub(super) struct Kept {
    store: Store,
    /// What a read that may be old shows; `None`: what there is.
    cache: Option<Store>,
    access: Access,
    ready: bool,
    cut_off: bool,
    operator_down: bool,
    controllers_stopped: bool,
    silent: BTreeSet<String>,
    /// What really runs, by the pod's uid.
    lives: BTreeMap<String, Life>,
    faults: VecDeque<(On, Fault)>,
    late: Vec<Asked>,
    calls: BTreeSet<Call>,
    lines: Vec<String>,
}

/// A copy of everything in the store, as a backup has it.
#[derive(Debug, Clone)]
pub struct Backup(Store);

/// One object: plural name, with the subresource where there is one, namespace (empty where there is
/// none) and name.
pub type At<'a> = (&'a str, &'a str, &'a str);

/// The namespace whose uid identifies a cluster.
const IDENTITY: At<'static> = ("namespaces", "", "kube-system");
/// Where the leases of nodes are.
const NODE_LEASES: &str = "kube-node-lease";

/// Now, as objects show it: whole seconds.
fn stamp() -> String {
    let text = SystemClock.wall().to_string();
    format!("{}Z", text.get(..19).unwrap_or_default())
}

/// Now, as leases show it: microseconds.
fn fine_stamp() -> String {
    let text = SystemClock.wall().to_string();
    format!("{}000Z", text.get(..23).unwrap_or_default())
}

impl Inside {
    fn with<T>(&self, with: impl FnOnce(&mut Kept) -> T) -> T {
        let done = with(&mut self.kept.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed
            .send_modify(|count| *count = count.wrapping_add(1));
        done
    }

    /// The same where nothing changes.
    fn look<T>(&self, look: impl FnOnce(&Kept) -> T) -> T {
        look(&self.kept.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn serve(
    State(inside): State<Arc<Inside>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<axum::response::Response, std::convert::Infallible> {
    let asked = Asked::new(&method, &uri, &headers, body.to_vec());
    let answer = if method == Method::GET {
        let mut kept = inside.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.answer(asked)
    } else {
        inside.with(|kept| kept.answer(asked))
    };
    requests::deliver(answer).await
}

impl KubernetesDouble {
    /// Starts with the namespaces that every cluster has, and without a node. `containers` are what
    /// its pods run.
    pub async fn start(settings: Settings, containers: Arc<dyn Containers>) -> io::Result<Self> {
        let mut seed = [0; 4];
        aws_lc_rs::rand::fill(&mut seed).map_err(io::Error::other)?;
        let mut kept = Kept {
            ready: true,
            ..Kept::default()
        };
        kept.store.seed = u32::from_ne_bytes(seed);
        let inside = Arc::new(Inside {
            settings,
            containers,
            kept: Mutex::new(kept),
            changed: watch::Sender::new(0),
        });
        let listener = TcpListener::bind(settings.address).await?;
        let address = listener.local_addr()?;
        let app = Router::new()
            .fallback(serve)
            .with_state(Arc::clone(&inside));
        let server = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, app).await {
                tracing::error!(%error, "the double of Kubernetes ended");
            }
        });
        let behind = tokio::spawn(kubelet::run(Arc::clone(&inside)));
        let double = Self {
            address,
            inside,
            tasks: vec![server, behind],
        };
        for name in ["kube-system", "default", NODE_LEASES] {
            double.create("namespaces", "", &json!({"metadata": {"name": name}}));
        }
        Ok(double)
    }

    /// A kubeconfig file that leads here, with this token.
    pub fn kubeconfig(&self, token: &str) -> String {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "double",
            "clusters": [{"name": "double", "cluster": {"server": format!("http://{}", self.address)}}],
            "users": [{"name": "failover", "user": {"token": token}}],
            "contexts": [{"name": "double", "context": {"cluster": "double", "user": "failover"}}],
        })
        .to_string()
    }

    /// Makes an object as an operator would; what the server answered.
    pub fn create(&self, resource: &str, namespace: &str, body: &Value) -> Value {
        self.inside
            .with(|kept| kept.make(resource, namespace, body))
    }

    /// An object as it is stored, managed fields included.
    pub fn object(&self, (resource, namespace, name): At<'_>) -> Option<Value> {
        let kind = resources::named(resource)?;
        self.inside
            .look(|kept| kept.store.get(kind, namespace, name))
    }

    /// The names of the pods in a namespace.
    pub fn pods(&self, namespace: &str) -> Vec<String> {
        let Some(kind) = resources::named("pods") else {
            return Vec::new();
        };
        let all = Wanted::default();
        let pods = self
            .inside
            .look(|kept| kept.store.list(kind, namespace, &all));
        let name = |pod: &Value| pod["metadata"]["name"].as_str().map(ToOwned::to_owned);
        pods.iter().filter_map(name).collect()
    }

    /// Patches an object as somebody else: merged, or applied by force. An error is what the server
    /// would have answered.
    pub fn write_as(
        &self,
        manager: &str,
        (resource, namespace, name): At<'_>,
        (apply, body): (bool, &Value),
    ) -> Result<Value, Value> {
        let place = Place::of(resource, namespace, name).ok_or(Value::Null)?;
        let how = if apply {
            How::Apply { force: false }
        } else {
            How::Merge
        };
        let now = stamp();
        let write = Write {
            place: &place,
            name,
            how,
            body,
            manager,
            dry: false,
            strict: false,
            now: &now,
        };
        let done = self.inside.with(|kept| kept.store.write(&write));
        done.map(|(_, value)| value)
            .map_err(|refusal| refusal.body())
    }

    /// Removes an object at once, as a forced deletion does: whatever runs goes on. A pod with a
    /// finalizer stays, marked as deleted.
    pub fn vanish(&self, (resource, namespace, name): At<'_>) {
        if let Some(place) = Place::of(resource, namespace, name) {
            let gone = |kept: &mut Kept| kept.store.delete(&place, name, (Some(0), None), &stamp());
            drop(self.inside.with(gone));
        }
    }

    /// What the pod collector does with a pod of a lost node: phase `Failed`, its last container state
    /// as it was, and then nothing is left of it.
    pub fn collect(&self, namespace: &str, name: &str) {
        let failed = json!({"status": {"phase": "Failed", "reason": "NodeLost"}});
        let at = ("pods/status", namespace, name);
        if self
            .write_as("pod-garbage-collector", at, (false, &failed))
            .is_ok()
        {
            self.vanish(("pods", namespace, name));
        }
    }

    /// A node joins, and its kubelet reports. `provider` names its machine in the cloud.
    pub fn join(&self, node: &str, provider: &str) {
        self.inside.with(|kept| kept.join(node, provider));
    }

    /// Whether a node's kubelet reports; its containers run all the same. The node shows it.
    pub fn reports(&self, node: &str, reports: bool) {
        let status = if reports { "True" } else { "Unknown" };
        self.inside.with(|kept| {
            if reports {
                kept.silent.remove(node);
            } else {
                kept.silent.insert(node.to_owned());
            }
            kept.node_is(node, status);
        });
    }

    /// What really runs, by the names of pods whose objects may be gone.
    pub fn running(&self) -> Vec<String> {
        let lives = self.inside.look(|kept| kept.lives.clone());
        let runs = lives.into_values().filter(Life::runs);
        runs.map(|life| life.pod.name).collect()
    }

    /// The next request of this kind meets this; those of one kind one after another.
    pub fn next(&self, on: On, fault: Fault) {
        self.inside.with(|kept| kept.faults.push_back((on, fault)));
    }

    /// Lets the requests land that were to land later: for each whether it took effect.
    pub fn land(&self) -> Vec<bool> {
        self.inside.with(|kept| {
            let late = std::mem::take(&mut kept.late);
            let landed = late.iter().map(|asked| kept.carry_out(asked));
            landed
                .map(|response| response.status().is_success())
                .collect()
        })
    }

    /// Which calls clients made.
    pub fn calls(&self) -> BTreeSet<Call> {
        self.inside.look(|kept| kept.calls.clone())
    }

    /// Every request in one line: verb, path, query.
    pub fn lines(&self) -> Vec<String> {
        self.inside.look(|kept| kept.lines.clone())
    }

    /// Whether clients may do this.
    pub fn permit(&self, on: On, may: bool) {
        self.inside.with(|kept| {
            if may {
                kept.access.forbidden.remove(&on);
            } else {
                kept.access.forbidden.insert(on);
            }
        });
    }

    /// From now on only these tokens are taken.
    pub fn take_tokens(&self, tokens: &[&str]) {
        let tokens = tokens.iter().map(|token| (*token).to_owned()).collect();
        self.inside.with(|kept| kept.access.tokens = Some(tokens));
    }

    /// Whether `/readyz` says so.
    pub fn ready(&self, ready: bool) {
        self.inside.with(|kept| kept.ready = ready);
    }

    /// Cuts the server off from its store: what is in its cache is still read, as old as it is then.
    pub fn cut_off(&self, cut: bool) {
        self.inside.with(|kept| kept.cut_off = cut);
        self.freeze_cache(cut);
    }

    /// Reads that may be old (`resourceVersion=0`) show what there is now, whatever comes after.
    pub fn freeze_cache(&self, frozen: bool) {
        self.inside.with(|kept| {
            kept.cache = frozen.then(|| kept.store.clone());
        });
    }

    /// The operator of the databases is down, and with it its webhook.
    pub fn operator_down(&self, down: bool) {
        self.inside.with(|kept| kept.operator_down = down);
    }

    /// The controllers of Deployments and StatefulSets do nothing.
    pub fn stop_controllers(&self, stopped: bool) {
        self.inside.with(|kept| kept.controllers_stopped = stopped);
    }

    /// A copy of the store.
    pub fn backup(&self) -> Backup {
        Backup(self.inside.look(|kept| kept.store.clone()))
    }

    /// Puts the store back as it was: versions and generations go backwards, uids stay.
    pub fn restore(&self, backup: &Backup) {
        self.inside.with(|kept| kept.store = backup.0.clone());
    }

    /// Another cluster answers at this address.
    pub fn become_another_cluster(&self) {
        let (resource, namespace, name) = IDENTITY;
        self.vanish(IDENTITY);
        self.create(resource, namespace, &json!({"metadata": {"name": name}}));
    }

    /// What a planned answer looks like that quotes this object.
    pub fn quoting(&self, at: At<'_>) -> Told {
        let object = self.object(at).unwrap_or_default();
        Told::status(422, "Invalid", &format!("Invalid value: {object}"))
    }
}

impl Drop for KubernetesDouble {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}
