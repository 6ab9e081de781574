//! The objects: one counter of versions for all of them, as in etcd.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::owners::{self, Owner, Writer};
use super::refusal::Refusal;
use super::resources::{self, Kind, Place};
use super::writes;

/// Group, plural name, namespace, name.
type Key = (&'static str, &'static str, String, String);

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Object {
    /// Without its managed fields.
    pub(super) value: Value,
    pub(super) owners: Vec<Owner>,
}

impl Object {
    /// As the server shows it.
    pub(super) fn shown(&self, kind: &Kind) -> Value {
        let mut value = self.value.clone();
        value["metadata"]["managedFields"] = owners::shown(&self.owners, &kind.api_version());
        value
    }
}

/// All that a server keeps.
#[derive(Debug, Clone, Default)]
pub(super) struct Store {
    objects: BTreeMap<Key, Object>,
    revision: u64,
    /// How many uids were given, and what makes this cluster's differ from others'.
    given: u64,
    pub(super) seed: u32,
}

/// Which objects of a list are wanted.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    pub(super) labels: Vec<(String, String)>,
    pub(super) name: Option<String>,
    pub(super) node: Option<String>,
}

impl Wanted {
    pub(super) fn parse(query: &BTreeMap<String, String>) -> Self {
        let pairs = |key: &str| {
            let text = query.get(key).map(String::as_str).unwrap_or_default();
            let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
            let plain = |text: &str| text.trim_start_matches('=').trim().to_owned();
            let pairs = pairs.map(|(key, value)| (plain(key), plain(value)));
            pairs.collect::<Vec<_>>()
        };
        let field = |name: &str| {
            let mut fields = pairs("fieldSelector").into_iter();
            fields.find(|(key, _)| key == name).map(|(_, value)| value)
        };
        Self {
            labels: pairs("labelSelector"),
            name: field("metadata.name"),
            node: field("spec.nodeName"),
        }
    }

    fn fits(&self, value: &Value) -> bool {
        let is = |wanted: &Option<String>, found: &Value| {
            let wanted = wanted.as_deref();
            wanted.is_none_or(|wanted| found.as_str() == Some(wanted))
        };
        let labelled = |(key, wanted): &(String, String)| {
            value["metadata"]["labels"][key].as_str() == Some(wanted)
        };
        is(&self.name, &value["metadata"]["name"])
            && is(&self.node, &value["spec"]["nodeName"])
            && self.labels.iter().all(labelled)
    }
}

fn key(kind: &Kind, namespace: &str, name: &str) -> Key {
    let namespace = if kind.namespaced { namespace } else { "" };
    (
        kind.group,
        kind.resource,
        namespace.to_owned(),
        name.to_owned(),
    )
}

impl Store {
    pub(super) fn version(&self) -> String {
        self.revision.to_string()
    }

    fn next_version(&mut self) -> String {
        self.revision = self.revision.saturating_add(1);
        self.version()
    }

    fn uid(&mut self) -> String {
        self.given = self.given.saturating_add(1);
        format!("{:08x}-0000-4000-8000-{:012x}", self.seed, self.given)
    }

    pub(super) fn object(&self, kind: &Kind, namespace: &str, name: &str) -> Option<&Object> {
        self.objects.get(&key(kind, namespace, name))
    }

    pub(super) fn get(&self, kind: &Kind, namespace: &str, name: &str) -> Option<Value> {
        let object = self.object(kind, namespace, name)?;
        Some(object.shown(kind))
    }

    /// In every namespace where none is named.
    pub(super) fn list(&self, kind: &Kind, namespace: &str, wanted: &Wanted) -> Vec<Value> {
        let objects = self.objects.iter().filter(|((group, resource, at, _), _)| {
            *group == kind.group
                && *resource == kind.resource
                && (namespace.is_empty() || at == namespace)
        });
        let fitting = objects.filter(|(_, object)| wanted.fits(&object.value));
        fitting.map(|(_, object)| object.shown(kind)).collect()
    }

    pub(super) fn create(
        &mut self,
        place: &Place,
        body: &Value,
        writer: Writer<'_>,
        (now, dry): (&str, bool),
    ) -> Result<Value, Refusal> {
        let kind = place.kind;
        let name = body["metadata"]["name"].as_str().unwrap_or_default();
        if name.is_empty() {
            return Err(Refusal::invalid(
                kind,
                name,
                "metadata.name: Required value",
            ));
        }
        let key = key(kind, &place.namespace, name);
        if self.objects.contains_key(&key) {
            return Err(Refusal::exists(kind, name));
        }
        if kind.namespaced {
            let namespaces = resources::kind("", "namespaces");
            let there = namespaces.and_then(|kind| self.object(kind, "", &place.namespace));
            if let (None, Some(kind)) = (there, namespaces) {
                return Err(Refusal::not_found(kind, &place.namespace));
            }
        }
        let before = self.clone();
        let mut value = body.clone();
        value["apiVersion"] = json!(kind.api_version());
        value["kind"] = json!(kind.name);
        let metadata = &mut value["metadata"];
        if kind.namespaced {
            metadata["namespace"] = json!(place.namespace);
        }
        metadata["uid"] = json!(self.uid());
        metadata["resourceVersion"] = json!(self.next_version());
        metadata["generation"] = json!(1);
        metadata["creationTimestamp"] = json!(now);
        let mut owners = Vec::new();
        owners::own(&mut owners, writer, &owners::fields(&value), now);
        let object = Object { value, owners };
        let shown = object.shown(kind);
        if dry {
            *self = before;
        } else {
            self.objects.insert(key, object);
        }
        Ok(shown)
    }

    /// Keeps what became of an object; one that did not change keeps its version. The answer.
    pub(super) fn commit(&mut self, place: &Place, name: &str, after: Object, dry: bool) -> Object {
        let kind = place.kind;
        let key = key(kind, &place.namespace, name);
        let Some(before) = self.objects.get(&key).filter(|before| **before != after) else {
            return after;
        };
        let mut after = after;
        let counts = |object: &Object| {
            // A Deployment counts its annotations, too.
            let annotations = (kind.resource == "deployments")
                .then(|| object.value["metadata"]["annotations"].clone());
            (object.value["spec"].clone(), annotations)
        };
        if counts(before) != counts(&after) {
            let generation = before.value["metadata"]["generation"].as_u64();
            let next = generation.unwrap_or_default().saturating_add(1);
            after.value["metadata"]["generation"] = json!(next);
        }
        if dry {
            return after;
        }
        after.value["metadata"]["resourceVersion"] = json!(self.next_version());
        let metadata = &after.value["metadata"];
        let held = metadata["finalizers"].as_array();
        let free = held.is_none_or(Vec::is_empty);
        if metadata["deletionGracePeriodSeconds"] == json!(0) && free {
            self.objects.remove(&key);
        } else {
            self.objects.insert(key, after.clone());
        }
        after
    }

    /// A pod on a node ends in its own time, everything else at once. `grace` in seconds.
    pub(super) fn delete(
        &mut self,
        place: &Place,
        name: &str,
        (grace, uid): (Option<u64>, Option<&str>),
        now: &str,
    ) -> Result<Value, Refusal> {
        let kind = place.kind;
        let found = self.object(kind, &place.namespace, name);
        let mut object = found
            .cloned()
            .ok_or_else(|| Refusal::not_found(kind, name))?;
        let own = object.value["metadata"]["uid"].as_str();
        if let (Some(uid), Some(own)) = (uid, own)
            && uid != own
        {
            return Err(Refusal::other_uid(kind, name, uid, own));
        }
        let on_node = kind.resource == "pods" && object.value["spec"]["nodeName"].is_string();
        let default = object.value["spec"]["terminationGracePeriodSeconds"]
            .as_u64()
            .unwrap_or(30);
        let grace = grace.unwrap_or(if on_node { default } else { 0 });
        let grace = if on_node { grace } else { 0 };
        let metadata = &mut object.value["metadata"];
        if !metadata["deletionTimestamp"].is_string() {
            metadata["deletionTimestamp"] = json!(now);
        }
        metadata["deletionGracePeriodSeconds"] = json!(grace);
        let gone = self.commit(place, name, object, false);
        Ok(gone.shown(kind))
    }

    /// A change by one of the cluster's own parts, merged.
    pub(super) fn merge_as(
        &mut self,
        manager: &str,
        place: &Place,
        patch: &Value,
        now: &str,
    ) -> Result<Value, Refusal> {
        let name = place.name.as_deref().unwrap_or_default();
        let write = writes::Write {
            place,
            name,
            how: writes::How::Merge,
            body: patch,
            manager,
            dry: false,
            strict: false,
            now,
        };
        self.write(&write).map(|(_, value)| value)
    }

    /// Gives up what this writer owned and does not keep: the fields that nobody owns then.
    pub(super) fn replace_fields(
        owners: &mut [Owner],
        writer: Writer<'_>,
        keep: &BTreeSet<owners::Path>,
    ) -> BTreeSet<owners::Path> {
        let mine = owners::owned_by(owners, writer);
        let dropped: BTreeSet<_> = mine.difference(keep).cloned().collect();
        for owner in owners.iter_mut() {
            let is = owner.manager == writer.manager
                && owner.operation == writer.operation
                && owner.subresource == writer.subresource;
            if is {
                owner.fields.retain(|path| !dropped.contains(path));
            }
        }
        let shared = |path: &owners::Path| owners.iter().any(|owner| owner.fields.contains(path));
        dropped.into_iter().filter(|path| !shared(path)).collect()
    }
}
