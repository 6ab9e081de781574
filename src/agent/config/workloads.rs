//! The table `[workloads]`.

use axum::http::Uri;

use crate::adapters::kubernetes::workloads::{Kind, Which, Workload};
use crate::config::cluster::ClusterAccess;
use crate::config::{Files, Url};
use crate::engine::document::Section;

/// How the service here is started and stopped.
#[derive(Debug, Clone)]
pub struct Workloads {
    /// URL that answers 2xx when the service is ready.
    pub ready: Uri,
    /// What it is.
    pub kind: WorkloadsKind,
}

/// What the service is.
#[derive(Debug, Clone)]
pub enum WorkloadsKind {
    /// Something that two commands start and stop, each with its arguments.
    Commands {
        /// Starts it.
        start: Vec<String>,
        /// Stops it.
        stop: Vec<String>,
    },
    /// Objects of a Kubernetes cluster.
    Kubernetes(KubernetesConfig),
}

/// Objects of a Kubernetes cluster.
#[derive(Debug, Clone)]
pub struct KubernetesConfig {
    /// The cluster.
    pub cluster: ClusterAccess,
    /// Their namespace.
    pub namespace: String,
    /// They, in the order in which they are started and stopped. At least one.
    pub list: Vec<Counted>,
}

/// Some workloads, and how many replicas each has while it serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// Which.
    pub workload: Workload,
    /// At least 1; of a CronJob, which is on or suspended, exactly that.
    pub replicas: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Commands,
    Kubernetes,
}

const WAYS: [(&str, Way); 2] = [("commands", Way::Commands), ("kubernetes", Way::Kubernetes)];

const KINDS: [(&str, Kind); 3] = [
    ("Deployment", Kind::Deployment),
    ("StatefulSet", Kind::StatefulSet),
    ("CronJob", Kind::CronJob),
];

pub(super) fn build(at: &Section<'_>, files: Files<'_>) -> Option<Workloads> {
    let named = at.has("kind");
    let way = at.where_chosen(named, |at| at.choice("kind", &WAYS));
    let way = way.or((!named).then_some(Way::Commands));
    let ready = at.parsed::<Url>("ready", "http://127.0.0.1:8080/healthz");
    let commands = at.where_chosen(way == Some(Way::Commands), |at| {
        let start = at.filled_list("start", "systemctl\", \"start\", \"shop-api");
        let stop = at.filled_list("stop", "systemctl\", \"stop\", \"shop-api");
        Some(WorkloadsKind::Commands {
            start: start?,
            stop: stop?,
        })
    });
    let kubernetes = at.where_chosen(way == Some(Way::Kubernetes), |at| {
        let namespace = at.text("namespace", "shop");
        let cluster = files.cluster(&at.section("cluster"));
        let list: Vec<_> = at.each("objects").iter().map(build_counted).collect();
        if list.is_empty() {
            at.problem("objects", "`workloads.objects` is empty: name what is to be started, each in a table `[[workloads.objects]]`");
        }
        Some(WorkloadsKind::Kubernetes(KubernetesConfig {
            namespace: namespace?,
            cluster: cluster?,
            list: list.into_iter().collect::<Option<_>>()?,
        }))
    });
    let kind = match way? {
        Way::Commands => commands,
        Way::Kubernetes => kubernetes,
    };
    Some(Workloads {
        ready: ready?.0,
        kind: kind?,
    })
}

fn build_counted(at: &Section<'_>) -> Option<Counted> {
    let kind = at.choice("kind", &KINDS);
    let name = at.optional_text("name", "web");
    let labels = at.optional_text("labels", "app=shop,tier=web");
    let replicas = at.number("replicas", 1..=10_000);
    let which = match (name, labels) {
        (Some(name), None) => Some(Which::Named(name)),
        (None, Some(labels)) => Some(Which::Labelled(labels)),
        (Some(_), Some(_)) => {
            at.mistake("a workload has a `name` or `labels`, and not both: remove one");
            None
        }
        (None, None) => {
            at.mistake("a workload has a `name` or `labels`: write one, like `name = \"web\"`");
            None
        }
    };
    if kind == Some(Kind::CronJob) && replicas.is_some_and(|replicas| replicas > 1) {
        at.problem(
            "replicas",
            "a CronJob is on or suspended: write `replicas = 1`",
        );
    }
    Some(Counted {
        workload: Workload {
            kind: kind?,
            which: which?,
        },
        replicas: replicas?,
    })
}
