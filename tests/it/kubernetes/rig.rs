//! A cluster that we are connected to, and what a test does to it behind our back.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::http::Request;
use failover::adapters::clock::SystemClock;
use failover::adapters::kubernetes::{Access, Cluster, ClusterError, Place, Resource, Settings};
use failover::lab::doubles::kubernetes::kubelet::{Containers, Imagined};
use failover::lab::doubles::kubernetes::{self as double, KubernetesDouble};
use failover::ports::Clock;
use serde_json::{Value, json};

pub(crate) const TOKEN: &str = "the token of a test";
/// Stands in every StatefulSet, and must stand in no error.
pub(crate) const SECRET: &str = "hunter2";

pub(crate) struct Rig {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) namespace: String,
    pub(crate) kubeconfig: PathBuf,
    raw: kube::Client,
    double: Option<KubernetesDouble>,
    dir: tempfile::TempDir,
}

pub(crate) async fn until(what: &str, mut look: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !look().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait)
        .await
        .unwrap_or_else(|_| panic!("not within 20 s: {what}"));
}

pub(crate) fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock)
}

/// Connects by a kubeconfig file. `uid` is the recorded one.
pub(crate) async fn connect(
    kubeconfig: PathBuf,
    uid: Option<String>,
    timeout: Duration,
) -> Result<Cluster, ClusterError> {
    let settings = Settings {
        access: Access::Kubeconfig {
            path: kubeconfig,
            context: None,
        },
        uid,
        timeout,
    };
    Cluster::connect(settings, &clock(), &Arc::default()).await
}

pub(crate) fn write_secret(path: &std::path::Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// A workload with one container, and a secret in it.
pub(crate) fn workload(name: &str, replicas: u64) -> Value {
    let labels = json!({"app": name});
    let container = json!({
        "name": "main", "image": "registry.example/main:1",
        "env": [{"name": "PASSWORD", "value": SECRET}],
    });
    json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    })
}

impl Rig {
    /// On the double, with two nodes.
    pub(crate) async fn start() -> Self {
        Self::with(double::Settings::default(), Arc::new(Imagined)).await
    }

    pub(crate) async fn with(settings: double::Settings, containers: Arc<dyn Containers>) -> Self {
        let double = KubernetesDouble::start(settings, containers).await.unwrap();
        double.join("node-a", "aws:///eu-central-1a/i-0a");
        double.join("node-b", "aws:///eu-central-1b/i-0b");
        double.create("namespaces", "", &json!({"metadata": {"name": "shop"}}));
        let dir = tempfile::tempdir().unwrap();
        let kubeconfig = dir.path().join("kubeconfig");
        write_secret(&kubeconfig, &double.kubeconfig(TOKEN));
        Self::at(kubeconfig, "shop".to_owned(), Some(double), dir).await
    }

    /// On a real API server, where one is named.
    pub(crate) async fn real() -> Option<Self> {
        let named = std::env::var_os("KUBECONFIG_TEST")?;
        let text = std::fs::read_to_string(&named).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let kubeconfig = dir.path().join("kubeconfig");
        write_secret(&kubeconfig, &text);
        let unique = dir.path().file_name().unwrap().to_string_lossy();
        let unique: String = unique.chars().filter(char::is_ascii_alphanumeric).collect();
        let namespace = format!("failover-{}", unique.to_ascii_lowercase());
        let rig = Self::at(kubeconfig, namespace.clone(), None, dir).await;
        let body =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        rig.raw("POST", "/api/v1/namespaces", "application/json", &body)
            .await
            .unwrap();
        Some(rig)
    }

    async fn at(
        kubeconfig: PathBuf,
        namespace: String,
        double: Option<KubernetesDouble>,
        dir: tempfile::TempDir,
    ) -> Self {
        let file = kube::config::Kubeconfig::read_from(&kubeconfig).unwrap();
        let raw = kube::Client::try_from(kube::Config::try_from(file).unwrap()).unwrap();
        let cluster = connect(kubeconfig.clone(), None, Duration::from_secs(10)).await;
        Self {
            cluster: Arc::new(cluster.unwrap()),
            namespace,
            kubeconfig,
            raw,
            double,
            dir,
        }
    }

    /// Cleans up what a real server keeps.
    pub(crate) async fn end(self) {
        if self.double.is_none() {
            let path = format!("/api/v1/namespaces/{}", self.namespace);
            drop(
                self.raw("DELETE", &path, "application/json", &json!({}))
                    .await,
            );
        }
        drop(self.dir);
    }

    pub(crate) fn double(&self) -> &KubernetesDouble {
        self.double.as_ref().unwrap()
    }

    /// Connects once more, with less patience.
    pub(crate) async fn impatient(&self, timeout: Duration) -> Arc<Cluster> {
        let made = connect(self.kubeconfig.clone(), None, timeout).await;
        Arc::new(made.unwrap())
    }

    pub(crate) fn place(&self, resource: Resource, name: &str) -> Place {
        Place::new(resource, self.namespace.as_str(), name).unwrap()
    }

    fn path(&self, resource: Resource, rest: &str) -> String {
        let root = if resource.group.is_empty() {
            "api"
        } else {
            "apis"
        };
        let version = resource.api_version();
        let (namespace, plural) = (&self.namespace, resource.plural);
        format!("/{root}/{version}/namespaces/{namespace}/{plural}{rest}")
    }

    /// A request that is not ours. An error has the status.
    pub(crate) async fn raw(
        &self,
        method: &str,
        path: &str,
        kind: &str,
        body: &Value,
    ) -> Result<Value, u16> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", kind)
            .body(body.to_string().into_bytes())
            .unwrap();
        match self.raw.request_text(request).await {
            Ok(text) => Ok(serde_json::from_str(&text).unwrap()),
            Err(kube::Error::Api(status)) => Err(status.code),
            Err(other) => panic!("{other}"),
        }
    }

    pub(crate) async fn create(&self, resource: Resource, mut body: Value) -> Value {
        body["apiVersion"] = json!(resource.api_version());
        body["kind"] = json!(resource.kind);
        let path = self.path(resource, "?fieldManager=installer");
        self.raw("POST", &path, "application/json", &body)
            .await
            .unwrap()
    }

    /// A merge patch by somebody else.
    pub(crate) async fn merge(
        &self,
        resource: Resource,
        name: &str,
        body: &Value,
    ) -> Result<Value, u16> {
        let path = self.path(resource, &format!("/{name}?fieldManager=somebody"));
        self.raw("PATCH", &path, "application/merge-patch+json", body)
            .await
    }

    /// What a reconciler does: applies its manifest without force.
    pub(crate) async fn reconcile(
        &self,
        resource: Resource,
        name: &str,
        spec: &Value,
    ) -> Result<Value, u16> {
        let body = json!({
            "apiVersion": resource.api_version(), "kind": resource.kind,
            "metadata": {"name": name, "namespace": self.namespace}, "spec": spec,
        });
        let path = self.path(resource, &format!("/{name}?fieldManager=argocd"));
        self.raw("PATCH", &path, "application/apply-patch+yaml", &body)
            .await
    }
}
