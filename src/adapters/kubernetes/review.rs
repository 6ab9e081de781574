//! What our role must allow, as a cluster is asked for it.

use std::fmt;

use serde_json::{Value, json};

use super::{Place, Resource, resources};

/// One thing that we will have to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// The verb: `get`, `list`, `patch`, `create`.
    pub verb: &'static str,
    /// On what.
    pub resource: Resource,
    /// On which subresource; empty for the object itself.
    pub subresource: &'static str,
    /// Where; empty: everywhere.
    pub namespace: String,
    /// On which one; empty: any. A role that names objects allows nothing without the name.
    pub name: String,
}

impl Need {
    /// What it takes to know which cluster answers.
    pub fn identity() -> Self {
        Self {
            name: "kube-system".to_owned(),
            ..Self::all("get", resources::NAMESPACES, "")
        }
    }

    /// On one object.
    pub fn on(verb: &'static str, place: &Place, subresource: &'static str) -> Self {
        Self {
            verb,
            resource: place.resource,
            subresource,
            namespace: place.namespace.clone(),
            name: place.name.clone(),
        }
    }

    /// On all objects of a kind in a namespace.
    pub fn all(verb: &'static str, resource: Resource, namespace: &str) -> Self {
        Self {
            verb,
            resource,
            subresource: "",
            namespace: namespace.to_owned(),
            name: String::new(),
        }
    }

    pub(super) fn body(&self) -> Value {
        let mut attributes = json!({
            "verb": self.verb, "group": self.resource.group, "resource": self.resource.plural,
        });
        let more = [
            ("subresource", self.subresource),
            ("namespace", &self.namespace),
            ("name", &self.name),
        ];
        for (key, value) in more {
            if !value.is_empty() {
                attributes[key] = json!(value);
            }
        }
        json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        })
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let resource = self.resource.shown(self.subresource);
        write!(f, "{} {resource}", self.verb)?;
        if !self.namespace.is_empty() {
            write!(f, " in namespace {}", self.namespace)?;
        }
        if !self.name.is_empty() {
            write!(f, " ({})", self.name)?;
        }
        Ok(())
    }
}
