//! Every manifest is one that an API server knows, in every field: it is read into the types of its
//! version, written again, and nothing may be missing then.

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, PodTemplateSpec, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{all, patch};

/// What a type does not know of an object.
fn unknown<T: Serialize + DeserializeOwned>(object: &Value) -> Vec<String> {
    let typed: T = match serde_json::from_value(object.clone()) {
        Ok(typed) => typed,
        Err(cause) => return vec![cause.to_string()],
    };
    let mut lost = Vec::new();
    compare("", object, &serde_json::to_value(typed).unwrap(), &mut lost);
    lost
}

fn compare(path: &str, given: &Value, kept: &Value, lost: &mut Vec<String>) {
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => {
            for (key, value) in given {
                let path = format!("{path}.{key}");
                match kept.get(key) {
                    Some(kept) => compare(&path, value, kept, lost),
                    None => lost.push(format!("{path} is not known")),
                }
            }
        }
        (Value::Array(given), Value::Array(kept)) if given.len() == kept.len() => {
            for (index, (given, kept)) in given.iter().zip(kept).enumerate() {
                compare(&format!("{path}[{index}]"), given, kept, lost);
            }
        }
        (given, kept) if given != kept => lost.push(format!("{path} is {given}, read as {kept}")),
        _ => {}
    }
}

fn unknown_in(object: &Value) -> Vec<String> {
    match object["kind"].as_str() {
        Some("ConfigMap") => unknown::<ConfigMap>(object),
        Some("ServiceAccount") => unknown::<ServiceAccount>(object),
        Some("Service") => unknown::<Service>(object),
        Some("StatefulSet") => unknown::<StatefulSet>(object),
        Some("Deployment") => unknown::<Deployment>(object),
        Some("PodDisruptionBudget") => unknown::<PodDisruptionBudget>(object),
        Some("NetworkPolicy") => unknown::<NetworkPolicy>(object),
        Some("Role") => unknown::<Role>(object),
        Some("RoleBinding") => unknown::<RoleBinding>(object),
        Some("ClusterRole") => unknown::<ClusterRole>(object),
        Some("ClusterRoleBinding") => unknown::<ClusterRoleBinding>(object),
        kind => vec![format!("kind {kind:?} is not one that the chart makes")],
    }
}

#[test]
fn an_api_server_knows_every_field_of_every_manifest() {
    let mut wrong = Vec::new();
    for (values, manifests) in all() {
        assert!(
            manifests.len() > 3,
            "{values} makes only {}",
            manifests.len()
        );
        for manifest in manifests {
            let name = &manifest.object["metadata"]["name"];
            let found = unknown_in(&manifest.object).into_iter();
            wrong.extend(found.map(|each| format!("{values}: {} {name}: {each}", manifest.source)));
        }
    }
    // What is patched into a StatefulSet of somebody else's has no selector and no name of a service.
    let template = &patch()["spec"]["template"];
    wrong.extend(unknown::<PodTemplateSpec>(template));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_field_that_is_not_known_is_found() {
    let object = |text| serde_json::from_str::<Value>(text).unwrap();
    let found = unknown_in(&object(
        r#"{"apiVersion": "v1", "kind": "Service", "spec": {"portz": [], "ports": [{"port": 1, "targetport": 2}]}}"#,
    ));
    assert_eq!(
        found,
        [
            ".spec.ports[0].targetport is not known",
            ".spec.portz is not known"
        ]
    );
    let found = unknown_in(&object(
        r#"{"apiVersion": "v1", "kind": "Service", "spec": {"ports": 1}}"#,
    ));
    assert_eq!(found.len(), 1, "{found:?}");
}

/// No two objects are one.
#[test]
fn every_object_has_a_name_of_its_own() {
    for (values, manifests) in all() {
        let mut seen = std::collections::BTreeSet::new();
        for manifest in &manifests {
            let object = &manifest.object;
            let (kind, meta) = (&object["kind"], &object["metadata"]);
            let key = format!("{kind} {} {}", meta["namespace"], meta["name"]);
            assert!(seen.insert(key.clone()), "{values}: two of {key}");
        }
    }
}
