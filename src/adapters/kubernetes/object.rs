//! Objects as far as they are looked at: where one is, which version of it was read, who owns which
//! field.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ClusterError;

/// A kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resource {
    /// The API group; empty for the core.
    pub group: &'static str,
    /// The version of the group.
    pub version: &'static str,
    /// The plural name, as paths have it.
    pub plural: &'static str,
    /// The kind, as bodies have it.
    pub kind: &'static str,
}

/// The kinds that are looked at or changed.
pub mod resources {
    use super::Resource;

    macro_rules! resource {
        ($name:ident, $group:literal, $version:literal, $plural:literal, $kind:literal) => {
            #[doc = concat!("`", $plural, "`.")]
            pub const $name: Resource = Resource {
                group: $group,
                version: $version,
                plural: $plural,
                kind: $kind,
            };
        };
    }

    resource!(NAMESPACES, "", "v1", "namespaces", "Namespace");
    resource!(NODES, "", "v1", "nodes", "Node");
    resource!(PODS, "", "v1", "pods", "Pod");
    resource!(DEPLOYMENTS, "apps", "v1", "deployments", "Deployment");
    resource!(STATEFULSETS, "apps", "v1", "statefulsets", "StatefulSet");
    resource!(CRONJOBS, "batch", "v1", "cronjobs", "CronJob");
    resource!(
        AUTOSCALERS,
        "autoscaling",
        "v2",
        "horizontalpodautoscalers",
        "HorizontalPodAutoscaler"
    );
    resource!(LEASES, "coordination.k8s.io", "v1", "leases", "Lease");
    resource!(
        DATABASE_CLUSTERS,
        "postgresql.cnpg.io",
        "v1",
        "clusters",
        "Cluster"
    );
    resource!(
        ACCESS_REVIEWS,
        "authorization.k8s.io",
        "v1",
        "selfsubjectaccessreviews",
        "SelfSubjectAccessReview"
    );
}

impl Resource {
    /// As `apiVersion` has it.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// With its group: `statefulsets.apps`, and a subresource where there is one.
    pub fn shown(&self, subresource: &str) -> String {
        let mut shown = self.plural.to_owned();
        for (mark, part) in [(".", self.group), ("/", subresource)] {
            if !part.is_empty() {
                shown = format!("{shown}{mark}{part}");
            }
        }
        shown
    }

    /// The path of all of them.
    pub(super) fn path(&self, namespace: &str) -> String {
        let root = if self.group.is_empty() { "api" } else { "apis" };
        let version = self.api_version();
        if namespace.is_empty() {
            format!("/{root}/{version}/{}", self.plural)
        } else {
            format!("/{root}/{version}/namespaces/{namespace}/{}", self.plural)
        }
    }
}

/// One object, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its kind.
    pub resource: Resource,
    /// Its namespace; empty where its kind has none.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Place {
    /// Checks that the names are names: they become part of a path.
    pub fn new(
        resource: Resource,
        namespace: impl Into<String>,
        name: impl Into<String>,
    ) -> Result<Self, ClusterError> {
        let (namespace, name) = (namespace.into(), name.into());
        for given in [&namespace, &name] {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
            if given.len() > 253 || !given.chars().all(plain) || given.contains("..") {
                return Err(ClusterError::Refused(format!(
                    "`{given}` is no name of an object: use lower-case letters, digits, `-` and `.`"
                )));
            }
        }
        if name.is_empty() {
            return Err(ClusterError::Refused("an object has no name".to_owned()));
        }
        Ok(Self {
            resource,
            namespace,
            name,
        })
    }

    pub(super) fn path(&self) -> String {
        format!("{}/{}", self.resource.path(&self.namespace), self.name)
    }

    /// In words: `StatefulSet shop/db`.
    pub fn shown(&self) -> String {
        let kind = self.resource.kind;
        if self.namespace.is_empty() {
            format!("{kind} {}", self.name)
        } else {
            format!("{kind} {}/{}", self.namespace, self.name)
        }
    }
}

/// Which object was read, and in which state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Another object of the same name has another one.
    pub uid: String,
    /// Grows with each change of the object.
    pub resource_version: String,
    /// Grows with each change of what is wanted of it; 0 for kinds without.
    pub generation: u64,
}

impl Version {
    /// Whether this one was written after `earlier`, both of one kind of object in one store. `None`: the
    /// server's versions are no numbers, and tell nothing.
    pub fn cmp_versions(&self, earlier: &str) -> Option<Ordering> {
        compare_versions(&self.resource_version, earlier)
    }
}

/// Compares two versions as the whole numbers that they are; `None` where one is not.
pub(super) fn compare_versions(one: &str, other: &str) -> Option<Ordering> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.trim_start_matches('0').to_owned())
    };
    let (one, other) = (number(one)?, number(other)?);
    Some(one.len().cmp(&other.len()).then_with(|| one.cmp(&other)))
}

/// Who owns a field of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The manager's name: `argocd-controller`, `kube-controller-manager`, a person's `kubectl-edit`.
    pub manager: String,
    /// `Apply` or `Update`.
    pub operation: String,
    /// The subresource that it was written by; empty for the object itself.
    pub subresource: String,
}

impl Owner {
    /// Whether it is us.
    pub fn is_ours(&self) -> bool {
        self.manager == super::MANAGER
    }
}

/// An object as the server showed it.
#[derive(Debug, Clone, PartialEq)]
pub struct Object(pub(super) Value);

impl Object {
    /// All of it.
    pub fn value(&self) -> &Value {
        &self.0
    }

    pub(super) fn text(&self, pointer: &str) -> Option<&str> {
        self.0.pointer(pointer)?.as_str()
    }

    pub(super) fn number(&self, pointer: &str) -> Option<u64> {
        self.0.pointer(pointer)?.as_u64()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.text("/metadata/name").unwrap_or_default()
    }

    /// Which one, and in which state. An error where the server left out what every object has.
    pub fn version(&self) -> Result<Version, ClusterError> {
        let needed = |pointer: &str| {
            let text = self.text(pointer).filter(|text| !text.is_empty());
            text.map(ToOwned::to_owned).ok_or_else(|| {
                ClusterError::Failed(format!("the API server's answer lacks `{pointer}`"))
            })
        };
        Ok(Version {
            uid: needed("/metadata/uid")?,
            resource_version: needed("/metadata/resourceVersion")?,
            generation: self.number("/metadata/generation").unwrap_or(0),
        })
    }

    /// How many replicas are wanted: 1 where nothing is said.
    pub fn replicas(&self) -> u64 {
        self.number("/spec/replicas").unwrap_or(1)
    }

    /// Whether it is being deleted.
    pub fn is_ending(&self) -> bool {
        self.text("/metadata/deletionTimestamp").is_some()
    }

    /// An annotation's value.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.0
            .get("metadata")?
            .get("annotations")?
            .get(key)?
            .as_str()
    }

    /// Who owns the field at this path, or anything below it.
    pub fn owners(&self, path: &[&str]) -> Vec<Owner> {
        let entries = self.0.pointer("/metadata/managedFields");
        let entries = entries.and_then(Value::as_array).into_iter().flatten();
        let owns = |entry: &&Value| {
            let fields = entry.get("fieldsV1");
            let inside = |place: &'_ Value, key: &&str| place.get(format!("f:{key}")).cloned();
            let found = path
                .iter()
                .try_fold(fields.cloned()?, |place, key| inside(&place, key));
            found.map(|_there| ())
        };
        let text = |entry: &Value, key: &str| {
            let value = entry.get(key).and_then(Value::as_str);
            value.unwrap_or_default().to_owned()
        };
        entries
            .filter(|entry| owns(entry).is_some())
            .map(|entry| Owner {
                manager: text(entry, "manager"),
                operation: text(entry, "operation"),
                subresource: text(entry, "subresource"),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn versions_are_compared_as_numbers_and_otherwise_not_at_all() {
        for (one, other, order) in [
            ("9", "10", Some(Ordering::Less)),
            ("10", "9", Some(Ordering::Greater)),
            ("0010", "10", Some(Ordering::Equal)),
            (
                "18446744073709551616",
                "18446744073709551615",
                Some(Ordering::Greater),
            ),
            ("a1", "2", None),
            ("", "2", None),
        ] {
            assert_eq!(compare_versions(one, other), order, "{one} {other}");
        }
    }

    #[test]
    fn a_field_has_the_owners_whose_entries_name_it() {
        let object = Object(json!({"metadata": {"managedFields": [
            {"manager": "failover", "operation": "Apply", "subresource": "scale", "fieldsV1": {"f:spec": {"f:replicas": {}}}},
            {"manager": "kubectl", "operation": "Update", "fieldsV1": {"f:spec": {"f:template": {}}}},
        ]}}));
        let owners = object.owners(&["spec", "replicas"]);
        assert_eq!(owners.len(), 1);
        assert!(owners[0].is_ours());
        assert_eq!(owners[0].subresource, "scale");
        assert_eq!(object.owners(&["spec"]).len(), 2);
        assert_eq!(object.owners(&["status"]), []);
    }

    #[test]
    fn a_name_that_would_lead_elsewhere_in_a_path_is_none() {
        for name in ["", "a/b", "..", "A", "a?b=c", "a b"] {
            let made = Place::new(resources::PODS, "shop", name);
            assert!(matches!(made, Err(ClusterError::Refused(_))), "{name}");
        }
        let place = Place::new(resources::STATEFULSETS, "shop", "db").unwrap();
        assert_eq!(
            place.path(),
            "/apis/apps/v1/namespaces/shop/statefulsets/db"
        );
        assert_eq!(place.resource.shown("scale"), "statefulsets.apps/scale");
    }
}
