//! Which manager owns which fields of an object, as `metadata.managedFields` tells it. Lists are
//! owned whole.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

/// The way to a field.
pub(super) type Path = Vec<String>;

/// One manager's fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) manager: String,
    pub(super) operation: &'static str,
    pub(super) subresource: String,
    pub(super) time: String,
    pub(super) fields: BTreeSet<Path>,
}

/// Who writes, and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct Writer<'w> {
    pub(super) manager: &'w str,
    pub(super) operation: &'static str,
    pub(super) subresource: &'w str,
}

impl Writer<'_> {
    fn is(&self, owner: &Owner) -> bool {
        owner.manager == self.manager
            && owner.operation == self.operation
            && owner.subresource == self.subresource
    }
}

/// The parts of an object that are owned.
const OWNED: &[&[&str]] = &[
    &["spec"],
    &["status"],
    &["metadata", "annotations"],
    &["metadata", "labels"],
    &["metadata", "finalizers"],
];

/// The fields that a value sets.
pub(super) fn fields(value: &Value) -> BTreeSet<Path> {
    let mut found = BTreeSet::new();
    for part in OWNED {
        let path: Path = part.iter().map(|word| (*word).to_owned()).collect();
        if let Some(inside) = at(value, &path) {
            collect(inside, path, &mut found);
        }
    }
    found
}

fn collect(value: &Value, path: Path, found: &mut BTreeSet<Path>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, inside) in map {
                let mut path = path.clone();
                path.push(key.clone());
                collect(inside, path, found);
            }
        }
        Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Array(_)
        | Value::Object(_) => {
            found.insert(path);
        }
    }
}

pub(super) fn at<'v>(value: &'v Value, path: &[String]) -> Option<&'v Value> {
    path.iter().try_fold(value, |value, key| value.get(key))
}

/// Sets a field, or removes it.
pub(super) fn put(value: &mut Value, path: &[String], new: Option<Value>) {
    let Some((last, before)) = path.split_last() else {
        return;
    };
    let mut place = value;
    for key in before {
        if !place[key].is_object() {
            place[key] = json!({});
        }
        place = &mut place[key];
    }
    match (new, place.as_object_mut()) {
        (Some(new), Some(map)) => {
            map.insert(last.clone(), new);
        }
        (None, Some(map)) => {
            map.remove(last);
        }
        (_, None) => {}
    }
}

/// The fields in which two values differ.
pub(super) fn changed(old: &Value, new: &Value) -> BTreeSet<Path> {
    let all = fields(old).into_iter().chain(fields(new));
    all.filter(|path| at(old, path) != at(new, path)).collect()
}

/// What others own and this writer would make different: the path and the owner of each.
pub(super) fn foreign(
    owners: &[Owner],
    writer: Writer<'_>,
    wanted: &Value,
    now: &Value,
) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for path in fields(wanted) {
        if at(wanted, &path) == at(now, &path) {
            continue;
        }
        for owner in owners.iter().filter(|owner| !writer.is(owner)) {
            if owner.fields.contains(&path) {
                found.push((format!(".{}", path.join(".")), owner.manager.clone()));
            }
        }
    }
    found
}

/// These fields are the writer's now and nobody else's. `adds`: the writer comes to own them, too;
/// otherwise nobody does.
pub(super) fn take(
    owners: &mut Vec<Owner>,
    writer: Writer<'_>,
    paths: &BTreeSet<Path>,
    adds: bool,
    time: &str,
) {
    if paths.is_empty() {
        return;
    }
    for owner in owners.iter_mut() {
        owner.fields.retain(|path| !paths.contains(path));
    }
    if adds {
        own(owners, writer, paths, time);
    }
    owners.retain(|owner| !owner.fields.is_empty());
}

/// The writer owns these fields, besides whoever does already.
pub(super) fn own(owners: &mut Vec<Owner>, writer: Writer<'_>, paths: &BTreeSet<Path>, time: &str) {
    let mine = owners.iter_mut().find(|owner| writer.is(owner));
    match mine {
        Some(mine) => {
            if !paths.is_subset(&mine.fields) {
                time.clone_into(&mut mine.time);
            }
            mine.fields.extend(paths.iter().cloned());
        }
        None => owners.push(Owner {
            manager: writer.manager.to_owned(),
            operation: writer.operation,
            subresource: writer.subresource.to_owned(),
            time: time.to_owned(),
            fields: paths.clone(),
        }),
    }
}

/// What this writer owned until now.
pub(super) fn owned_by(owners: &[Owner], writer: Writer<'_>) -> BTreeSet<Path> {
    let mine = owners.iter().find(|owner| writer.is(owner));
    mine.map(|owner| owner.fields.clone()).unwrap_or_default()
}

/// As an object shows it.
pub(super) fn shown(owners: &[Owner], api_version: &str) -> Value {
    let entry = |owner: &Owner| {
        let mut fields = Value::Object(Map::new());
        for path in &owner.fields {
            let mut place = &mut fields;
            for key in path {
                place = &mut place[format!("f:{key}")];
                if place.is_null() {
                    *place = json!({});
                }
            }
        }
        let mut entry = json!({
            "manager": owner.manager, "operation": owner.operation, "apiVersion": api_version,
            "time": owner.time, "fieldsType": "FieldsV1", "fieldsV1": fields,
        });
        if !owner.subresource.is_empty() {
            entry["subresource"] = json!(owner.subresource);
        }
        entry
    };
    owners.iter().map(entry).collect()
}
