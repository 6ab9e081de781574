//! What runs: not as root, on a read-only root, with probes that the program answers, found by its Services.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Manifest, all, example, list, of_kind, patch, read};

/// The templates of all pods, with what they are.
fn pods() -> Vec<(String, Value)> {
    let mut pods = Vec::new();
    for (values, manifests) in all() {
        for kind in ["StatefulSet", "Deployment"] {
            for object in of_kind(&manifests, kind) {
                let name = object["metadata"]["name"].as_str().unwrap();
                pods.push((
                    format!("{values}: {name}"),
                    object["spec"]["template"].clone(),
                ));
            }
        }
    }
    assert_eq!(pods.len(), 4, "controller and observer, twice each");
    pods.push(("the patch".to_owned(), patch()["spec"]["template"].clone()));
    pods
}

fn containers(pod: &Value) -> Vec<&Value> {
    let spec = &pod["spec"];
    let init = spec["initContainers"].as_array().into_iter().flatten();
    init.chain(list(&spec["containers"])).collect()
}

#[test]
fn no_container_is_root_or_writes_where_it_need_not() {
    for (what, pod) in pods() {
        let security = &pod["spec"]["securityContext"];
        assert_eq!(security["runAsNonRoot"], true, "{what}");
        assert!(security["runAsUser"].as_u64().unwrap() > 0, "{what}");
        assert!(security["runAsGroup"].as_u64().unwrap() > 0, "{what}");
        // Secrets are readable for this group, and for nobody else.
        assert_eq!(security["fsGroup"], security["runAsGroup"], "{what}");
        assert_eq!(
            security["seccompProfile"],
            json!({"type": "RuntimeDefault"}),
            "{what}"
        );
        for container in containers(&pod) {
            let name = &container["name"];
            let security = &container["securityContext"];
            assert_eq!(security["runAsNonRoot"], true, "{what}: {name}");
            assert_eq!(security["readOnlyRootFilesystem"], true, "{what}: {name}");
            assert_eq!(
                security["allowPrivilegeEscalation"], false,
                "{what}: {name}"
            );
            assert_eq!(
                security["capabilities"],
                json!({"drop": ["ALL"]}),
                "{what}: {name}"
            );
            assert!(
                security["runAsUser"].is_null(),
                "{what}: {name}: the pod says it"
            );
        }
    }
}

/// A mounted Secret that the program takes: `adapters/keys.rs` says which modes.
#[test]
fn secrets_are_mounted_for_the_group_alone() {
    for (what, pod) in pods() {
        let volumes = list(&pod["spec"]["volumes"]).iter();
        let projected: Vec<&Value> = volumes
            .map(|volume| &volume["projected"])
            .filter(|projected| projected.is_object())
            .collect();
        assert_eq!(projected.len(), 1, "{what}");
        // YAML's 0440.
        assert_eq!(projected[0]["defaultMode"], 0o440, "{what}");
        let mounts = containers(&pod).into_iter();
        let mounts = mounts
            .filter_map(|each| each["volumeMounts"].as_array())
            .flatten();
        let files: Vec<&Value> = mounts.filter(|mount| mount["name"] == "files").collect();
        assert!(!files.is_empty(), "{what}");
        for mount in files {
            assert_eq!(mount["readOnly"], true, "{what}");
            assert_eq!(mount["mountPath"], "/etc/failover", "{what}");
        }
    }
}

#[test]
fn every_mount_has_its_volume_and_every_volume_is_mounted() {
    for (what, pod) in pods() {
        let names = |values: Vec<&Value>| -> BTreeSet<String> {
            let names = values
                .into_iter()
                .map(|each| each["name"].as_str().unwrap());
            names.map(ToOwned::to_owned).collect()
        };
        let mounts = containers(&pod).into_iter();
        let mounted = names(
            mounts
                .flat_map(|each| list(&each["volumeMounts"]))
                .collect(),
        );
        let mut volumes = names(list(&pod["spec"]["volumes"]).iter().collect());
        // From `volumeClaimTemplates`: the controller's log; and the data of the user's own StatefulSet.
        for claimed in ["log", "data"] {
            if mounted.contains(claimed) {
                volumes.insert(claimed.to_owned());
            }
        }
        assert_eq!(mounted, volumes, "{what}");
    }
}

/// The paths that a file of the program serves without TLS.
fn served(file: &str) -> Vec<String> {
    let code = read(file);
    let (_, router) = code.split_once("pub fn plain_router").unwrap();
    let (router, _) = router.split_once("\n}").unwrap();
    let paths = router.split(".route(\"").skip(1);
    paths
        .map(|rest| rest.split('"').next().unwrap().to_owned())
        .collect()
}

fn probes(container: &Value) -> Vec<(&'static str, &Value)> {
    ["startupProbe", "livenessProbe", "readinessProbe"]
        .into_iter()
        .filter_map(|kind| Some((kind, container.get(kind)?)))
        .collect()
}

/// A port of a container, by its name.
fn port(container: &Value, name: &Value) -> u64 {
    let mut ports = list(&container["ports"]).iter();
    let found = ports.find(|port| port["name"] == *name);
    found.unwrap_or_else(|| panic!("a port {name}"))["containerPort"]
        .as_u64()
        .unwrap()
}

#[test]
fn every_probe_asks_for_a_page_that_is_served() {
    let mut kinds = Vec::new();
    for (what, pod) in pods() {
        for container in containers(&pod) {
            let agent = container["args"].to_string().contains("\"agent\"")
                || container["command"].to_string().contains("\"agent\"");
            let (file, plain) = if agent {
                ("src/agent/api.rs", 7481)
            } else {
                ("src/app/api.rs", 7480)
            };
            for (kind, probe) in probes(container) {
                let get = &probe["httpGet"];
                let path = get["path"].as_str().unwrap();
                assert!(
                    served(file).iter().any(|each| each == path),
                    "{what}: {file} has no {path}"
                );
                assert_eq!(port(container, &get["port"]), plain, "{what}");
                kinds.push((kind, path.to_owned()));
            }
        }
    }
    let has = |kind: &str, path: &str| kinds.iter().any(|(k, p)| *k == kind && p == path);
    assert!(has("startupProbe", "/livez") && has("livenessProbe", "/livez"));
    // The Service of a site that may not write has no endpoint.
    assert!(has("readinessProbe", "/traffic-ready"), "{kinds:?}");
    // Whether the group could fail over is nothing that takes the controller away from its agents.
    assert!(!has("readinessProbe", "/readyz"), "{kinds:?}");
}

/// Nothing ends a database because a probe failed: its guard does, when the write lease is over.
#[test]
fn no_probe_ends_the_database() {
    let merged = patch();
    for container in containers(&merged["spec"]["template"]) {
        for kind in ["livenessProbe", "startupProbe"] {
            assert!(container.get(kind).is_none(), "{}", container["name"]);
        }
    }
    // Those that the user has are taken away.
    let patch: Value = serde_saphyr::from_str(&example("statefulset-patch")).unwrap();
    let container = &list(&patch["spec"]["template"]["spec"]["containers"])[0];
    for kind in ["livenessProbe", "startupProbe"] {
        assert_eq!(container.get(kind), Some(&Value::Null), "{kind}");
    }
    assert_eq!(
        merged["spec"]["updateStrategy"],
        json!({"type": "OnDelete"})
    );
}

fn selects(selector: &Value, labels: &Value) -> bool {
    let wanted = selector.as_object().unwrap();
    !wanted.is_empty()
        && wanted
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
}

fn selector(object: &Value) -> &Value {
    let spec = &object["spec"];
    match object["kind"].as_str() {
        Some("Service") => &spec["selector"],
        Some("NetworkPolicy") => &spec["podSelector"]["matchLabels"],
        _ => &spec["selector"]["matchLabels"],
    }
}

fn of_a_component<'m>(manifests: &'m [Manifest], labels: &Value) -> Vec<&'m Value> {
    ["Service", "PodDisruptionBudget", "NetworkPolicy"]
        .into_iter()
        .flat_map(|kind| of_kind(manifests, kind))
        .filter(|object| selects(selector(object), labels))
        .collect()
}

#[test]
fn each_pod_has_a_budget_and_is_closed_to_all_that_is_not_named() {
    for (values, manifests) in all() {
        let mut selected = 0;
        for kind in ["StatefulSet", "Deployment"] {
            for object in of_kind(&manifests, kind) {
                let labels = &object["spec"]["template"]["metadata"]["labels"];
                assert!(selects(selector(object), labels), "{values}");
                selected += of_a_component(&manifests, labels).len();
                let found = |kind: &str| {
                    let found = of_a_component(&manifests, labels).into_iter();
                    found.filter(|each| each["kind"] == kind).count()
                };
                assert_eq!(found("PodDisruptionBudget"), 1, "{values}");
                assert_eq!(found("NetworkPolicy"), 1, "{values}");
            }
        }
        let agents = json!({"app": "db", "tier": "data", "other": "yes"});
        selected += of_a_component(&manifests, &agents).len();
        let made = ["Service", "PodDisruptionBudget", "NetworkPolicy"];
        let made: usize = made
            .iter()
            .map(|kind| of_kind(&manifests, kind).len())
            .sum();
        assert_eq!(
            selected, made,
            "{values}: each selects the pods of one component"
        );
        for policy in of_kind(&manifests, "NetworkPolicy") {
            assert_eq!(
                policy["spec"]["policyTypes"],
                json!(["Ingress", "Egress"]),
                "{values}"
            );
        }
    }
}

/// The agents are reached whether or not they are ready, and writers only where they may write.
#[test]
fn a_service_leads_to_the_ports_that_pods_have() {
    for (values, manifests) in all() {
        for set in of_kind(&manifests, "StatefulSet") {
            let labels = &set["spec"]["template"]["metadata"]["labels"];
            let container = &list(&set["spec"]["template"]["spec"]["containers"])[0];
            let services = of_kind(&manifests, "Service").into_iter();
            let services = services.filter(|it| selects(&it["spec"]["selector"], labels));
            let services: Vec<&Value> = services.collect();
            for service in &services {
                for each in list(&service["spec"]["ports"]) {
                    assert_eq!(
                        port(container, &each["targetPort"]),
                        each["port"].as_u64().unwrap()
                    );
                }
            }
            let wanted = &set["spec"]["serviceName"];
            let governing = services.iter().find(|it| it["metadata"]["name"] == *wanted);
            let governing = governing.unwrap_or_else(|| panic!("{values}: no {wanted}"));
            assert_eq!(governing["spec"]["clusterIP"], "None", "{values}");
        }
        for service in of_kind(&manifests, "Service") {
            let name = service["metadata"]["name"].as_str().unwrap();
            let always = service["spec"]["publishNotReadyAddresses"] == true;
            let agents = service["metadata"]["labels"]["app.kubernetes.io/component"] == "agent";
            assert_eq!(always, agents && !name.ends_with("-rw"), "{values}: {name}");
        }
    }
}
