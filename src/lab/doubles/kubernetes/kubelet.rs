//! The kubelets of all nodes: they start and end what pods run, say how it stands, and renew their
//! nodes' leases. A silent one does nothing of it, and what it ran goes on.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::resources::{self, Place};
use super::store::Wanted;
use super::{Inside, Kept, NODE_LEASES, fine_stamp, stamp};

/// A pod, as what runs it needs to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid, which another pod of the same name does not have.
    pub uid: String,
    /// The node that it was given to.
    pub node: String,
}

/// What pods run.
#[async_trait]
pub trait Containers: Send + Sync + fmt::Debug {
    /// Starts a pod's containers; returns once they run.
    async fn start(&self, pod: &Pod);
    /// Ends them; returns once nothing of them is left.
    async fn stop(&self, pod: &Pod);
}

/// Containers that are only imagined.
#[derive(Debug, Default)]
pub struct Imagined;

#[async_trait]
impl Containers for Imagined {
    async fn start(&self, _pod: &Pod) {}
    async fn stop(&self, _pod: &Pod) {}
}

/// What became of a pod's containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Starting,
    Running,
    Ending,
    Ended,
}

/// A pod and its containers, whatever its object says.
#[derive(Debug, Clone)]
pub(super) struct Life {
    pub(super) pod: Pod,
    stage: Stage,
    /// Its object is being removed.
    removing: bool,
}

impl Life {
    pub(super) fn runs(&self) -> bool {
        self.stage != Stage::Ended
    }
}

/// What takes its time.
#[derive(Debug)]
enum Job {
    Start(Pod),
    Stop(Pod),
    Remove(Pod),
}

/// Works until it is aborted.
pub(super) async fn run(inside: Arc<Inside>) {
    let mut changed = inside.changed.subscribe();
    let mut renew = tokio::time::interval(inside.settings.renew_every);
    loop {
        changed.mark_unchanged();
        let jobs = {
            let mut kept = inside
                .kept
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            let before = kept.store.version();
            kept.control();
            let jobs = kept.kubelets();
            // What one did, another may have to answer.
            if kept.store.version() != before {
                changed.mark_changed();
            }
            jobs
        };
        for job in jobs {
            tokio::spawn(work(Arc::clone(&inside), job));
        }
        tokio::select! {
            alive = changed.changed() => if alive.is_err() {
                return;
            },
            _ = renew.tick() => {
                let mut kept = inside
                    .kept
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                kept.renew();
            }
        }
    }
}

async fn work(inside: Arc<Inside>, job: Job) {
    let is = |pod: &Pod, stage: Stage| {
        inside.with(|kept| {
            if let Some(life) = kept.lives.get_mut(&pod.uid) {
                life.stage = stage;
            }
        });
    };
    match job {
        Job::Start(pod) => {
            inside.containers.start(&pod).await;
            is(&pod, Stage::Running);
        }
        Job::Stop(pod) => {
            inside.containers.stop(&pod).await;
            is(&pod, Stage::Ended);
        }
        Job::Remove(pod) => {
            tokio::time::sleep(inside.settings.lingers).await;
            inside.with(|kept| kept.remove(&pod));
        }
    }
}

/// A container's state, in words of the API.
fn statuses(pod: &Value, state: &Value) -> Value {
    let containers = pod["spec"]["containers"].as_array();
    let status = |container: &Value| {
        let running = state["running"].is_object();
        json!({
            "name": container["name"], "image": container["image"], "imageID": "",
            "ready": running, "started": running, "restartCount": 0, "state": state,
        })
    };
    containers.into_iter().flatten().map(status).collect()
}

impl Kept {
    /// Makes an object as an operator would.
    pub(super) fn make(&mut self, resource: &str, namespace: &str, body: &Value) -> Value {
        let Some(place) = Place::of(resource, namespace, "") else {
            return Value::Null;
        };
        let writer = super::owners::Writer {
            manager: "kubectl",
            operation: "Update",
            subresource: "",
        };
        match self.store.create(&place, body, writer, (&stamp(), false)) {
            Ok(made) => made,
            Err(refusal) => refusal.body(),
        }
    }

    pub(super) fn join(&mut self, node: &str, provider: &str) {
        let spec = json!({"metadata": {"name": node}, "spec": {"providerID": provider}});
        self.make("nodes", "", &spec);
        let lease = json!({
            "metadata": {"name": node},
            "spec": {"holderIdentity": node, "leaseDurationSeconds": 40, "renewTime": fine_stamp()},
        });
        self.make("leases", NODE_LEASES, &lease);
        self.node_is(node, "True");
    }

    /// What a node's condition `Ready` says.
    pub(super) fn node_is(&mut self, node: &str, status: &str) {
        let conditions = json!([{"type": "Ready", "status": status}]);
        let patch = json!({"status": {
            "conditions": conditions, "nodeInfo": {"kubeletVersion": "v1.36.2"},
        }});
        self.merge("kubelet", ("nodes/status", "", node), &patch);
    }

    /// A change by a part of the cluster; one to what is gone is nothing.
    pub(super) fn merge(
        &mut self,
        manager: &str,
        (resource, namespace, name): super::At<'_>,
        patch: &Value,
    ) {
        if let Some(place) = Place::of(resource, namespace, name) {
            drop(self.store.merge_as(manager, &place, patch, &stamp()));
        }
    }

    fn renew(&mut self) {
        let Some(kind) = resources::named("leases") else {
            return;
        };
        for lease in self.store.list(kind, NODE_LEASES, &Wanted::default()) {
            let node = lease["metadata"]["name"].as_str().unwrap_or_default();
            if !self.silent.contains(node) {
                let patch = json!({"spec": {"renewTime": fine_stamp()}});
                self.merge("kubelet", ("leases", NODE_LEASES, node), &patch);
            }
        }
    }

    pub(super) fn all(&self, resource: &str) -> Vec<Value> {
        let kind = resources::named(resource);
        let all = Wanted::default();
        kind.map(|kind| self.store.list(kind, "", &all))
            .unwrap_or_default()
    }

    /// What each kubelet that reports does now, as far as it is done at once.
    fn kubelets(&mut self) -> Vec<Job> {
        let mut jobs = Vec::new();
        let mut seen = Vec::new();
        for object in self.all("pods") {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let pod = Pod {
                namespace: text(&object["metadata"]["namespace"]),
                name: text(&object["metadata"]["name"]),
                uid: text(&object["metadata"]["uid"]),
                node: text(&object["spec"]["nodeName"]),
            };
            seen.push(pod.uid.clone());
            if !pod.node.is_empty() && !self.silent.contains(&pod.node) {
                jobs.extend(self.tend(&pod, &object));
            }
        }
        // A pod whose object is gone is ended by its kubelet, as soon as that knows.
        for life in self.lives.values_mut() {
            let orphan = !seen.contains(&life.pod.uid) && !self.silent.contains(&life.pod.node);
            if orphan && life.stage == Stage::Running {
                life.stage = Stage::Ending;
                jobs.push(Job::Stop(life.pod.clone()));
            }
        }
        jobs
    }

    fn tend(&mut self, pod: &Pod, object: &Value) -> Option<Job> {
        let deleted = object["metadata"]["deletionTimestamp"].is_string();
        let Some(life) = self.lives.get_mut(&pod.uid) else {
            let begun = if deleted {
                Stage::Ended
            } else {
                Stage::Starting
            };
            let life = Life {
                pod: pod.clone(),
                stage: begun,
                removing: false,
            };
            self.lives.insert(pod.uid.clone(), life);
            return (!deleted).then(|| Job::Start(pod.clone()));
        };
        match (life.stage, deleted) {
            (Stage::Running, true) => {
                life.stage = Stage::Ending;
                return Some(Job::Stop(pod.clone()));
            }
            (Stage::Running, false) => self.show(pod, object, true),
            (Stage::Ended, _) => {
                let job = deleted && !std::mem::replace(&mut life.removing, deleted);
                self.show(pod, object, false);
                return job.then(|| Job::Remove(pod.clone()));
            }
            (Stage::Starting | Stage::Ending, _) => {}
        }
        None
    }

    /// Writes how a pod's containers stand, where its object does not show that yet.
    fn show(&mut self, pod: &Pod, object: &Value, running: bool) {
        let first = &object["status"]["containerStatuses"][0]["state"];
        let (key, phase, ready) = if running {
            ("running", "Running", "True")
        } else {
            ("terminated", "Succeeded", "False")
        };
        if first[key].is_object() {
            return;
        }
        let state = if running {
            json!({"running": {"startedAt": stamp()}})
        } else {
            json!({"terminated": {"exitCode": 0, "reason": "Completed", "finishedAt": stamp()}})
        };
        let patch = json!({"status": {
            "phase": phase, "containerStatuses": statuses(object, &state),
            "conditions": [{"type": "Ready", "status": ready}],
        }});
        self.merge(
            "kubelet",
            ("pods/status", &pod.namespace, &pod.name),
            &patch,
        );
    }

    /// The object of a pod that ended.
    fn remove(&mut self, pod: &Pod) {
        if let Some(place) = Place::of("pods", &pod.namespace, &pod.name) {
            let options = (Some(0), Some(pod.uid.as_str()));
            drop(self.store.delete(&place, &pod.name, options, &stamp()));
        }
    }
}
