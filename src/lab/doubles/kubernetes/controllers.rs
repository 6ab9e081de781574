//! The controllers of StatefulSets, Deployments and autoscalers. A StatefulSet starts and ends its
//! pods one at a time, in order; a Deployment does not count pods that are ending.

use serde_json::{Value, json};

use super::resources::Place;
use super::{Kept, stamp};

const MANAGER: &str = "kube-controller-manager";

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    let ready = |one: &Value| one["type"] == json!("Ready") && one["status"] == json!("True");
    conditions.is_some_and(|all| all.iter().any(ready))
}

fn is_ending(pod: &Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_string()
}

impl Kept {
    /// What the controllers do now.
    pub(super) fn control(&mut self) {
        if self.controllers_stopped {
            return;
        }
        for set in self.all("statefulsets") {
            self.control_set(&set);
        }
        for deployment in self.all("deployments") {
            self.control_deployment(&deployment);
        }
        for autoscaler in self.all("horizontalpodautoscalers") {
            self.autoscale(&autoscaler);
        }
    }

    fn pods_of(&self, owner: &Value) -> Vec<Value> {
        let uid = &owner["metadata"]["uid"];
        let mut pods = self.all("pods");
        pods.retain(|pod| pod["metadata"]["ownerReferences"][0]["uid"] == *uid);
        pods
    }

    fn control_set(&mut self, set: &Value) {
        let name = text(&set["metadata"]["name"]).to_owned();
        let wanted = set["spec"]["replicas"].as_u64().unwrap_or(1);
        let pods = self.pods_of(set);
        let ordinal = |pod: &Value| {
            let (_, end) = text(&pod["metadata"]["name"]).rsplit_once('-')?;
            end.parse::<u64>().ok()
        };
        let highest = pods.iter().max_by_key(|pod| ordinal(pod));
        let surplus = highest.filter(|pod| ordinal(pod).is_some_and(|at| at >= wanted));
        let settled = pods.iter().all(|pod| is_ready(pod) && !is_ending(pod));
        let free = (0..wanted).find(|at| !pods.iter().any(|pod| ordinal(pod) == Some(*at)));
        if let Some(pod) = surplus {
            if !is_ending(pod) {
                self.end(pod);
            }
        } else if let (Some(free), true) = (free, settled) {
            self.begin(set, "StatefulSet", &format!("{name}-{free}"));
        }
        let count = pods.len();
        self.report("statefulsets", set, (count, &pods), "currentReplicas");
    }

    fn control_deployment(&mut self, deployment: &Value) {
        let name = text(&deployment["metadata"]["name"]).to_owned();
        let wanted = deployment["spec"]["replicas"].as_u64().unwrap_or(1);
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        let mut pods = self.pods_of(deployment);
        pods.retain(|pod| !is_ending(pod));
        for pod in pods.iter().skip(wanted) {
            self.end(pod);
        }
        let version = self.store.version();
        for number in pods.len()..wanted {
            self.begin(
                deployment,
                "Deployment",
                &format!("{name}-{version}-{number}"),
            );
        }
        let count = pods.len().min(wanted);
        self.report("deployments", deployment, (count, &pods), "updatedReplicas");
    }

    /// What a controller says of the pods that it counts.
    fn report(
        &mut self,
        resource: &str,
        owner: &Value,
        (count, pods): (usize, &[Value]),
        also: &str,
    ) {
        let ready = pods.iter().filter(|pod| is_ready(pod)).count().min(count);
        let patch = json!({"status": {
            "observedGeneration": owner["metadata"]["generation"], "replicas": count,
            "readyReplicas": ready, "availableReplicas": ready, also: count,
        }});
        let (namespace, name) = (
            text(&owner["metadata"]["namespace"]),
            text(&owner["metadata"]["name"]),
        );
        self.merge(
            MANAGER,
            (&format!("{resource}/status"), namespace, name),
            &patch,
        );
    }

    /// A pod on the first node that is ready; none where no node is.
    fn begin(&mut self, owner: &Value, kind: &str, name: &str) {
        let nodes = self.all("nodes");
        let Some(node) = nodes.iter().find(|node| is_ready(node)) else {
            return;
        };
        let template = &owner["spec"]["template"];
        let mut spec = template["spec"].clone();
        spec["nodeName"] = node["metadata"]["name"].clone();
        let body = json!({
            "metadata": {
                "name": name, "labels": template["metadata"]["labels"],
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": kind, "controller": true,
                    "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"],
                }],
            },
            "spec": spec,
        });
        self.make("pods", text(&owner["metadata"]["namespace"]), &body);
    }

    fn end(&mut self, pod: &Value) {
        let name = text(&pod["metadata"]["name"]);
        let place = Place::of("pods", text(&pod["metadata"]["namespace"]), name);
        if let Some(place) = place {
            drop(self.store.delete(&place, name, (None, None), &stamp()));
        }
    }

    /// An autoscaler leaves zero alone, and lifts everything else to its minimum.
    fn autoscale(&mut self, autoscaler: &Value) {
        let target = &autoscaler["spec"]["scaleTargetRef"];
        let least = autoscaler["spec"]["minReplicas"].as_u64().unwrap_or(1);
        let resource = match text(&target["kind"]) {
            "Deployment" => "deployments",
            "StatefulSet" => "statefulsets",
            _ => return,
        };
        let namespace = text(&autoscaler["metadata"]["namespace"]);
        let name = text(&target["name"]);
        let kind = super::resources::named(resource);
        let found = kind.and_then(|kind| self.store.get(kind, namespace, name));
        let now = found.and_then(|found| found["spec"]["replicas"].as_u64());
        if now.is_some_and(|now| now > 0 && now < least) {
            let patch = json!({"spec": {"replicas": least}});
            self.merge(
                MANAGER,
                (&format!("{resource}/scale"), namespace, name),
                &patch,
            );
        }
    }
}
