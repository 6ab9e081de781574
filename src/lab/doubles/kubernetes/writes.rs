//! What a patch does: to an object, to its status, to its scale.

use serde_json::{Map, Value, json};

use super::owners::{self, Path, Writer};
use super::refusal::Refusal;
use super::resources::Place;
use super::store::{Object, Store};

/// The kinds of patches that are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    Merge,
    Apply { force: bool },
}

/// One patch.
#[derive(Debug)]
pub(super) struct Write<'w> {
    pub(super) place: &'w Place,
    pub(super) name: &'w str,
    pub(super) how: How,
    pub(super) body: &'w Value,
    pub(super) manager: &'w str,
    pub(super) dry: bool,
    pub(super) strict: bool,
    pub(super) now: &'w str,
}

impl Write<'_> {
    fn writer(&self) -> Writer<'_> {
        Writer {
            manager: self.manager,
            operation: match self.how {
                How::Merge => "Update",
                How::Apply { .. } => "Apply",
            },
            subresource: &self.place.subresource,
        }
    }

    fn is_scale(&self) -> bool {
        self.place.subresource == "scale"
    }

    /// Whether the object is still what the body says.
    fn check(&self, object: &Object) -> Result<(), Refusal> {
        let (kind, name) = (self.place.kind, self.name);
        let (given, own) = (&self.body["metadata"], &object.value["metadata"]);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (uid, own_uid) = (text(&given["uid"]), text(&own["uid"]));
        if !uid.is_empty() && uid != own_uid {
            let apply = matches!(self.how, How::Apply { .. });
            return Err(if apply || self.is_scale() {
                Refusal::other_uid(kind, name, &uid, &own_uid)
            } else {
                Refusal::invalid(
                    kind,
                    name,
                    "metadata.uid: Invalid value: field is immutable",
                )
            });
        }
        // An empty version, zero and null count as none.
        let version = text(&given["resourceVersion"]);
        let none = version.is_empty() || version == "0";
        if !none && version != text(&own["resourceVersion"]) {
            return Err(Refusal::stale(kind, name));
        }
        Ok(())
    }

    /// What of the body is to be kept.
    fn content(&self) -> Value {
        let mut body = self.body.clone();
        let Some(map) = body.as_object_mut() else {
            return json!({});
        };
        for told in ["apiVersion", "kind"] {
            map.remove(told);
        }
        let status = self.place.subresource == "status";
        map.retain(|key, _| (key == "status") == status);
        let metadata = body.get_mut("metadata").and_then(Value::as_object_mut);
        if let Some(metadata) = metadata {
            let ours = ["annotations", "labels", "finalizers"];
            metadata.retain(|key, _| ours.contains(&key.as_str()));
        }
        body
    }
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    for (key, value) in patch {
        if let (true, Some(map)) = (value.is_null(), target.as_object_mut()) {
            map.remove(key);
        } else {
            merge(&mut target[key], value);
        }
    }
}

impl Store {
    /// Carries a patch out: the status and the body of the answer.
    pub(super) fn write(&mut self, write: &Write<'_>) -> Result<(u16, Value), Refusal> {
        let (kind, name) = (write.place.kind, write.name);
        let unknown = kind.unknown_fields(write.body, write.is_scale());
        let found = self.object(kind, &write.place.namespace, name).cloned();
        if let (true, Some(field)) = (write.strict, unknown.first()) {
            let whole = found.map_or(Value::Null, |object| object.value);
            return Err(Refusal::unknown_field(kind, name, field, &whole));
        }
        let Some(before) = found else {
            let creates =
                matches!(write.how, How::Apply { .. }) && write.place.subresource.is_empty();
            if !creates {
                return Err(Refusal::not_found(kind, name));
            }
            if let Some(uid) = write.body["metadata"]["uid"].as_str() {
                return Err(Refusal::other_uid(kind, name, uid, ""));
            }
            let mut body = write.body.clone();
            body["metadata"]["name"] = json!(name);
            let when = (write.now, write.dry);
            let made = self.create(write.place, &body, write.writer(), when)?;
            return Ok((201, made));
        };
        write.check(&before)?;
        if write.is_scale() {
            let after = self.rescale(write, before)?;
            return Ok((200, scale(write.place, &after)?));
        }
        let after = match write.how {
            How::Merge => merged(write, before),
            How::Apply { force } => applied(write, before, force)?,
        };
        is_valid(write, &after)?;
        let after = self.commit(write.place, name, after, write.dry);
        Ok((200, after.shown(kind)))
    }

    fn rescale(&mut self, write: &Write<'_>, before: Object) -> Result<Object, Refusal> {
        let (kind, name) = (write.place.kind, write.name);
        let field = kind.scale.ok_or_else(|| Refusal::not_found(kind, name))?;
        let path: Path = vec!["spec".to_owned(), field.to_owned()];
        let mut asked = match write.how {
            How::Merge => scale(write.place, &before)?,
            How::Apply { .. } => json!({}),
        };
        merge(&mut asked, write.body);
        let replicas = &asked["spec"]["replicas"];
        let wrong = || {
            let why = format!("spec.replicas: Invalid value: {replicas}: {}", before.value);
            Refusal::invalid(kind, name, &why)
        };
        let replicas = if replicas.is_null() {
            0
        } else {
            replicas.as_u64().ok_or_else(wrong)?
        };
        let mut wanted = json!({});
        owners::put(&mut wanted, &path, Some(json!(replicas)));
        let mut after = before.clone();
        let foreign = owners::foreign(&before.owners, write.writer(), &wanted, &before.value);
        if write.how == (How::Apply { force: false }) && !foreign.is_empty() {
            return Err(Refusal::owned(&foreign));
        }
        let differs = owners::at(&before.value, &path) != Some(&json!(replicas));
        owners::put(&mut after.value, &path, Some(json!(replicas)));
        is_valid(write, &after)?;
        let paths = [path].into_iter().collect();
        let apply = matches!(write.how, How::Apply { .. });
        if differs {
            // `replicas` is left out of a Scale at zero, and what is left out is owned by nobody:
            // but an apply owns what it says.
            let owns = apply || replicas != 0;
            owners::take(&mut after.owners, write.writer(), &paths, owns, write.now);
        } else if apply {
            owners::own(&mut after.owners, write.writer(), &paths, write.now);
        }
        Ok(self.commit(write.place, name, after, write.dry))
    }
}

/// What a schema refuses.
fn is_valid(write: &Write<'_>, after: &Object) -> Result<(), Refusal> {
    let (kind, name) = (write.place.kind, write.name);
    let Some(field) = kind.scale else {
        return Ok(());
    };
    let number = &after.value["spec"][field];
    let least = u64::from(kind.resource == "clusters");
    if number.is_null() || number.as_u64().is_some_and(|number| number >= least) {
        return Ok(());
    }
    let why = format!("spec.{field}: Invalid value: {number}: {}", after.value);
    Err(Refusal::invalid(kind, name, &why))
}

fn merged(write: &Write<'_>, before: Object) -> Object {
    let mut after = before.clone();
    merge(&mut after.value, &write.content());
    let changed = owners::changed(&before.value, &after.value);
    let is_there = |path: &Path| owners::at(&after.value, path).is_some();
    let (set, removed) = changed.into_iter().partition(is_there);
    owners::take(&mut after.owners, write.writer(), &set, true, write.now);
    owners::take(
        &mut after.owners,
        write.writer(),
        &removed,
        false,
        write.now,
    );
    after
}

fn applied(write: &Write<'_>, before: Object, force: bool) -> Result<Object, Refusal> {
    let wanted = write.content();
    let writer = write.writer();
    let foreign = owners::foreign(&before.owners, writer, &wanted, &before.value);
    if !force && !foreign.is_empty() {
        return Err(Refusal::owned(&foreign));
    }
    let mut after = before.clone();
    let fields = owners::fields(&wanted);
    let differs = |path: &&Path| owners::at(&wanted, path) != owners::at(&before.value, path);
    let taken = fields.iter().filter(differs).cloned().collect();
    owners::take(&mut after.owners, writer, &taken, true, write.now);
    owners::own(&mut after.owners, writer, &fields, write.now);
    for path in &fields {
        let value = owners::at(&wanted, path).cloned();
        owners::put(&mut after.value, path, value);
    }
    for path in Store::replace_fields(&mut after.owners, writer, &fields) {
        owners::put(&mut after.value, &path, None);
    }
    after.owners.retain(|owner| !owner.fields.is_empty());
    Ok(after)
}

/// An object's scale. At zero `replicas` is left out.
pub(super) fn scale(place: &Place, object: &Object) -> Result<Value, Refusal> {
    let (kind, value) = (place.kind, &object.value);
    let metadata = &value["metadata"];
    let name = metadata["name"].as_str().unwrap_or_default();
    let field = kind.scale.ok_or_else(|| Refusal::not_found(kind, name))?;
    let mut told = Map::new();
    let own = [
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
    ];
    for key in own {
        told.insert(key.to_owned(), metadata[key].clone());
    }
    let replicas = value["spec"][field].as_u64().unwrap_or(1);
    let spec = if replicas == 0 {
        json!({})
    } else {
        json!({"replicas": replicas})
    };
    let labels = value["spec"]["selector"]["matchLabels"].as_object();
    let pairs = labels.into_iter().flatten();
    let pairs = pairs.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()));
    Ok(json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": told, "spec": spec,
        "status": {
            "replicas": value["status"]["replicas"].as_u64().unwrap_or(0),
            "selector": pairs.collect::<Vec<_>>().join(","),
        },
    }))
}
