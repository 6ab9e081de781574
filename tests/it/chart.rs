//! What installs the program into Kubernetes, held against what it installs: the chart, its examples, the
//! image, the guide. Rendered as `failover generate manifests` does it; `tests/lab/helm.rs` compares that
//! with Helm.

use std::path::{Path, PathBuf};

use failover::cli::manifests::{Manifest, Release, render};
use serde_json::Value;

mod flows;
mod guide;
mod image;
mod pods;
mod rights;
mod schema;
mod typed;

/// The values that people start from.
const EXAMPLES: [&str; 3] = ["neutral", "site-aws", "observer"];

/// Values that use every key of the chart at once.
fn everything() -> String {
    read("tests/it/chart/everything.yaml")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    let file = root().join(path);
    std::fs::read_to_string(&file).unwrap_or_else(|cause| panic!("{path} is read: {cause}"))
}

fn example_path(name: &str) -> PathBuf {
    root().join(format!("deploy/kubernetes/{name}.yaml"))
}

fn example(name: &str) -> String {
    read(&format!("deploy/kubernetes/{name}.yaml"))
}

fn rendered(values: &str) -> Vec<Manifest> {
    let release = Release {
        name: "failover",
        namespace: "shop",
    };
    render("values.yaml", values, release).unwrap_or_else(|error| panic!("{error:#}"))
}

/// The manifests of every example, and those of everything.
fn all() -> Vec<(&'static str, Vec<Manifest>)> {
    let mut all: Vec<_> = EXAMPLES
        .into_iter()
        .map(|name| (name, rendered(&example(name))))
        .collect();
    all.push(("everything", rendered(&everything())));
    all
}

fn of_kind<'m>(manifests: &'m [Manifest], kind: &str) -> Vec<&'m Value> {
    let objects = manifests.iter().map(|each| &each.object);
    objects.filter(|object| object["kind"] == kind).collect()
}

/// The object of a kind with a name.
fn named<'m>(manifests: &'m [Manifest], kind: &str, name: &str) -> &'m Value {
    let mut found = of_kind(manifests, kind).into_iter();
    let found = found.find(|object| object["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} `{name}`"))
}

/// The elements of a list that is there.
fn list(value: &Value) -> &[Value] {
    value
        .as_array()
        .unwrap_or_else(|| panic!("a list: {value}"))
}

/// The texts in a list.
fn texts(value: &Value) -> Vec<&str> {
    list(value)
        .iter()
        .map(|each| each.as_str().unwrap())
        .collect()
}

/// The files below a folder of the chart, by their path in it.
fn chart_files(folder: &str) -> std::collections::BTreeSet<String> {
    let entries = std::fs::read_dir(root().join("deploy/helm/failover").join(folder)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.map(|name| format!("{folder}/{name}")).collect()
}

/// What is patched into a StatefulSet, as the result has it: without the words that are for the patch.
fn patch() -> Value {
    fn merged(value: Value) -> Value {
        match value {
            Value::Object(table) => {
                let kept = table.into_iter();
                let kept = kept.filter(|(key, value)| key != "$patch" && !value.is_null());
                Value::Object(kept.map(|(key, value)| (key, merged(value))).collect())
            }
            Value::Array(list) => list.into_iter().map(merged).collect(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value,
        }
    }
    merged(serde_saphyr::from_str(&example("statefulset-patch")).unwrap())
}

/// Every text in a file of ours, with its key.
fn texts_of(file: &toml::Table) -> Vec<(String, String)> {
    fn walk(key: &str, value: &toml::Value, found: &mut Vec<(String, String)>) {
        if let Some(text) = value.as_str() {
            found.push((key.to_owned(), text.to_owned()));
        }
        for each in value.as_array().into_iter().flatten() {
            walk(key, each, found);
        }
        for (key, each) in value.as_table().into_iter().flatten() {
            walk(key, each, found);
        }
    }
    let mut found = Vec::new();
    for (key, value) in file {
        walk(key, value, &mut found);
    }
    found
}
