//! A site's workloads, as its agent starts, stops and rehearses them by the counts of its file.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use failover::adapters::http::HttpProber;
use failover::adapters::kubernetes::resources;
use failover::adapters::kubernetes::workloads::{Kind, Which, Workload};
use failover::agent::config::{Counted, KubernetesConfig};
use failover::agent::workloads::{ClusterWorkloads, Page};
use failover::config::cluster::{ClusterAccess, Credential};
use failover::lab::doubles::kubernetes::faults::{Fault, Told, on};
use failover::ports::{ClusterHealth, EffectError, Workloads};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::rig::{Rig, clock, until, workload};

/// A cluster with a Deployment `web`, one `worker` that bears the label `app=worker`, and a CronJob.
struct Site {
    rig: Rig,
    workloads: ClusterWorkloads,
    page: Option<JoinHandle<()>>,
}

fn counted(kind: Kind, which: Which, replicas: u64) -> Counted {
    Counted {
        workload: Workload { kind, which },
        replicas,
    }
}

fn named(kind: Kind, name: &str, replicas: u64) -> Counted {
    counted(kind, Which::Named(name.to_owned()), replicas)
}

fn labelled(labels: &str, replicas: u64) -> Counted {
    counted(
        Kind::Deployment,
        Which::Labelled(labels.to_owned()),
        replicas,
    )
}

impl Site {
    async fn with(list: Vec<Counted>) -> Self {
        let rig = Rig::start().await;
        for name in ["web", "worker"] {
            rig.create(resources::DEPLOYMENTS, workload(name, 0)).await;
        }
        let job = json!({
            "metadata": {"name": "report"},
            "spec": {"schedule": "0 4 * * *", "suspend": true, "jobTemplate": {}},
        });
        rig.create(resources::CRONJOBS, job).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/healthz", listener.local_addr().unwrap());
        let router = Router::new().route("/healthz", get(|| async { "well" }));
        let page = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        failover::adapters::tls::install_provider();
        let page_of = Page {
            url: url.parse().unwrap(),
            http: HttpProber::believing(None, &clock(), &Arc::default()).unwrap(),
        };
        let config = KubernetesConfig {
            cluster: ClusterAccess {
                credential: Credential::Kubeconfig {
                    path: rig.kubeconfig.clone(),
                    context: None,
                },
                uid: None,
                timeout: Duration::from_secs(2),
            },
            namespace: rig.namespace.clone(),
            list,
        };
        Self {
            rig,
            workloads: ClusterWorkloads::new(config, page_of, (clock(), Arc::default())),
            page: Some(page),
        }
    }

    async fn usual() -> Self {
        let list = vec![
            named(Kind::Deployment, "web", 3),
            labelled("app=worker", 2),
            named(Kind::CronJob, "report", 1),
        ];
        Self::with(list).await
    }

    fn field(&self, resource: &str, name: &str, field: &str) -> Value {
        let object = self.rig.double().object((resource, "shop", name));
        object.unwrap()["spec"][field].clone()
    }

    async fn until_ready(&self) {
        until("all is ready", async || {
            self.workloads.ready().await.unwrap()
        })
        .await;
    }
}

#[tokio::test]
async fn each_is_started_to_its_own_count_and_stopped_to_nothing() {
    let mut site = Site::usual().await;
    assert!(!site.workloads.ready().await.unwrap());
    assert_eq!(site.workloads.obstacle().await, Ok(None));
    let replicas = |site: &Site, name: &str| site.field("deployments", name, "replicas");
    assert_eq!(replicas(&site, "web"), 0, "a rehearsal starts nothing");
    site.workloads.start().await.unwrap();
    assert_eq!(replicas(&site, "web"), 3);
    assert_eq!(replicas(&site, "worker"), 2);
    assert_eq!(site.field("cronjobs", "report", "suspend"), false);
    site.until_ready().await;
    // Pods that the cluster calls available are not yet a service.
    let page = site.page.take().unwrap();
    page.abort();
    drop(page.await);
    assert!(!site.workloads.ready().await.unwrap());
    site.workloads.stop().await.unwrap();
    assert_eq!(replicas(&site, "web"), 0);
    assert_eq!(replicas(&site, "worker"), 0);
    assert_eq!(site.field("cronjobs", "report", "suspend"), true);
}

#[tokio::test]
async fn the_cluster_around_it_is_seen_with_its_nodes_as_far_as_the_role_goes() {
    let site = Site::usual().await;
    let double = site.rig.double();
    let look = ClusterHealth::look(&site.workloads).await.unwrap();
    assert_eq!(look.version, "v1.36.2");
    let nodes = look.nodes.unwrap();
    assert_eq!(nodes.len(), 2);
    assert!(nodes.iter().all(|node| node.ready == Some(true)));
    double.reports("node-b", false);
    let look = ClusterHealth::look(&site.workloads).await.unwrap();
    let silent = look.nodes.unwrap();
    let silent: Vec<_> = silent.iter().filter(|node| node.ready.is_none()).collect();
    assert_eq!(silent.len(), 1);
    assert_eq!(silent[0].name, "node-b");

    double.permit(on("list", "nodes"), false);
    let look = ClusterHealth::look(&site.workloads).await.unwrap();
    assert_eq!(look.nodes, None, "not known, and no reason for alarm");
    double.ready(false);
    let said = ClusterHealth::look(&site.workloads).await.unwrap_err();
    assert!(said.to_string().contains("not ready"), "{said}");
    assert_eq!(site.workloads.credential_age(), None);
}

#[tokio::test]
async fn a_right_that_a_start_would_need_is_missed_before_the_incident() {
    let site = Site::usual().await;
    let scale = on("patch", "deployments/scale");
    site.rig.double().permit(scale.clone(), false);
    let said = site.workloads.obstacle().await.unwrap().unwrap();
    assert!(
        said.contains("the role lacks: patch deployments.apps/scale in namespace shop"),
        "{said}"
    );
    site.rig.double().permit(scale, true);
    assert_eq!(site.workloads.obstacle().await, Ok(None));
    site.rig.double().take_tokens(&["another"]);
    let said = site.workloads.obstacle().await.unwrap().unwrap();
    assert!(said.contains("the credential is not accepted"), "{said}");
}

#[tokio::test]
async fn what_is_not_there_is_missed_before_the_incident_and_what_is_not_known_is_no_obstacle() {
    let absent = Site::with(vec![named(Kind::Deployment, "wbe", 3)]).await;
    let said = absent.workloads.obstacle().await.unwrap().unwrap();
    assert!(said.contains("not there") && said.contains("wbe"), "{said}");
    let none = Site::with(vec![labelled("app=nobody", 1)]).await;
    let said = none.workloads.obstacle().await.unwrap().unwrap();
    assert_eq!(said, "nothing bears the labels `app=nobody`");

    let site = Site::usual().await;
    let double = site.rig.double();
    double.next(
        on("patch", "deployments/scale"),
        Fault::Answer(Told::status(
            403,
            "Forbidden",
            "denied by policy: no Fridays",
        )),
    );
    let said = site.workloads.obstacle().await.unwrap().unwrap();
    assert!(
        said.contains("Deployment/web") && said.contains("no Fridays"),
        "{said}"
    );
    double.next(on("get", "deployments"), Fault::Silence);
    let said = site.workloads.obstacle().await;
    assert!(matches!(said, Err(EffectError::Failed(_))), "{said:?}");
    // Whoever starts tries each, and names the one that failed.
    double.next(
        on("patch", "deployments/scale"),
        Fault::Answer(Told::throttled(1)),
    );
    let error = site.workloads.start().await.unwrap_err().to_string();
    assert!(error.contains("wait"), "{error}");
    assert_eq!(site.field("deployments", "worker", "replicas"), 2);
    site.workloads.start().await.unwrap();
    assert_eq!(site.field("deployments", "web", "replicas"), 3);
}
