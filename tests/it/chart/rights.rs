//! The rendered roles allow exactly what the code says that it needs: each verb, each resource, each name.

use std::collections::BTreeSet;

use failover::adapters::kubernetes::{Need, Resource};
use serde_json::Value;

use super::{Manifest, everything, example, list, of_kind, rendered, texts};
use crate::kubernetes::calls::needed;

/// One thing that a rule allows or a need asks for. Without a namespace: everywhere, or of a resource that
/// is in none. Without a name: any.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    purpose: String,
    verb: String,
    resource: String,
    namespace: String,
    name: String,
}

fn asked(purpose: &str, need: &Need) -> Right {
    Right {
        purpose: purpose.to_owned(),
        verb: need.verb.to_owned(),
        resource: need.resource.shown(need.subresource),
        namespace: need.namespace.clone(),
        name: need.name.clone(),
    }
}

/// As the program shows it: `statefulsets.apps/scale`.
fn shown(group: &str, resource: &str) -> String {
    let (plural, below) = resource.split_once('/').unwrap_or((resource, ""));
    let dot = if group.is_empty() { "" } else { "." };
    let slash = if below.is_empty() { "" } else { "/" };
    format!("{plural}{dot}{group}{slash}{below}")
}

fn allowed(manifests: &[Manifest]) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    let roles = of_kind(manifests, "Role").into_iter();
    for role in roles.chain(of_kind(manifests, "ClusterRole")) {
        let meta = &role["metadata"];
        let purpose = &meta["labels"]["app.kubernetes.io/component"];
        for rule in list(&role["rules"]) {
            let names = match rule.get("resourceNames") {
                Some(names) => texts(names),
                None => vec![""],
            };
            for group in texts(&rule["apiGroups"]) {
                for resource in texts(&rule["resources"]) {
                    for verb in texts(&rule["verbs"]) {
                        rights.extend(names.iter().map(|name| Right {
                            purpose: purpose.as_str().unwrap().to_owned(),
                            verb: verb.to_owned(),
                            resource: shown(group, resource),
                            namespace: meta["namespace"].as_str().unwrap_or_default().to_owned(),
                            name: (*name).to_owned(),
                        }));
                    }
                }
            }
        }
    }
    rights
}

#[tokio::test]
async fn the_roles_allow_exactly_what_the_code_needs() {
    let needs = needed().await;
    let needs = needs
        .iter()
        .flat_map(|(purpose, needs)| needs.iter().map(|need| asked(purpose, need)));
    let needs: BTreeSet<Right> = needs.collect();
    let allowed = allowed(&rendered(&everything()));
    let missing: Vec<&Right> = needs.difference(&allowed).collect();
    let surplus: Vec<&Right> = allowed.difference(&needs).collect();
    assert!(
        missing.is_empty() && surplus.is_empty(),
        "the chart's roles lack {missing:#?} and allow too much: {surplus:#?}"
    );
}

#[test]
fn a_resource_is_shown_as_the_program_shows_it() {
    let resource = |group, plural| Resource {
        group,
        version: "v1",
        plural,
        kind: "Any",
    };
    for (group, plural, below) in [
        ("", "pods", ""),
        ("apps", "deployments", "scale"),
        ("batch", "cronjobs", ""),
    ] {
        let in_rule = if below.is_empty() {
            plural.to_owned()
        } else {
            format!("{plural}/{below}")
        };
        assert_eq!(shown(group, &in_rule), resource(group, plural).shown(below));
    }
}

/// Whom a role is bound to, by its purpose.
fn bound(manifests: &[Manifest]) -> BTreeSet<(String, String)> {
    let mut bound = BTreeSet::new();
    for kind in ["RoleBinding", "ClusterRoleBinding"] {
        for binding in of_kind(manifests, kind) {
            let (own, role) = (&binding["metadata"], &binding["roleRef"]);
            let wanted = kind.trim_end_matches("Binding");
            assert_eq!(role["kind"], wanted);
            let roles = of_kind(manifests, wanted);
            let same = |it: &&Value| {
                it["metadata"]["name"] == role["name"]
                    && it["metadata"]["namespace"] == own["namespace"]
            };
            assert!(
                roles.iter().any(same),
                "{} is bound to nothing",
                own["name"]
            );
            let purpose = own["labels"]["app.kubernetes.io/component"]
                .as_str()
                .unwrap();
            for subject in list(&binding["subjects"]) {
                let name = subject["name"].as_str().unwrap();
                bound.insert((purpose.to_owned(), name.to_owned()));
            }
        }
    }
    bound
}

#[test]
fn each_has_the_rights_of_its_purposes_and_no_more() {
    let pairs = |pairs: &[(&str, &str)]| -> BTreeSet<(String, String)> {
        let owned = pairs
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()));
        owned.collect()
    };
    assert_eq!(
        bound(&rendered(&everything())),
        pairs(&[
            ("fence", "failover-remote"),
            ("fence", "failover@example.com"),
            ("health", "failover-agent"),
            ("health", "failover-remote"),
            ("health", "failover@example.com"),
            ("operator", "failover-agent"),
            ("operator", "failover-remote"),
            ("operator", "failover@example.com"),
            ("workloads", "failover-agent"),
        ])
    );
    let site = rendered(&example("site-aws"));
    assert_eq!(
        bound(&site),
        pairs(&[
            ("fence", "failover-remote"),
            ("health", "failover-agent"),
            ("health", "failover-remote"),
            ("workloads", "failover-agent"),
        ])
    );
    // Only what is named may be changed; what a label finds cannot be named in a rule.
    let fence = allowed(&site)
        .into_iter()
        .filter(|right| right.purpose == "fence");
    let changes: Vec<Right> = fence.filter(|right| right.verb == "patch").collect();
    assert_eq!(changes.len(), 2);
    assert!(
        changes
            .iter()
            .all(|right| right.name == "db" && right.namespace == "shop")
    );
}

#[test]
fn a_role_without_its_object_is_not_made() {
    for (values, said) in [
        ("purposes: [fence]", "rbac.fence.statefulSet is empty"),
        ("purposes: [operator]", "rbac.operator.cluster is empty"),
    ] {
        let values =
            format!("rbac: {{enabled: true, controller: {{serviceAccount: a, {values}}}}}");
        let release = super::Release {
            name: "r",
            namespace: "n",
        };
        let error = super::render("values.yaml", &values, release).unwrap_err();
        assert!(format!("{error:#}").contains(said), "{error:#}");
    }
}
