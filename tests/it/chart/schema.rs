//! `values.schema.json`: takes the chart's own values and the examples, refuses bad ones, and holds the
//! schemas of our own files as the program has them.

use std::collections::BTreeSet;

use failover::cli::manifests::{Release, chart, render, values};
use failover::config::schema::schema;
use failover::engine::document::Key;
use failover::{agent, app, observer};
use serde_json::{Value, json};

use super::{EXAMPLES, everything, example, read, root};

const SCHEMA: &str = "deploy/helm/failover/values.schema.json";

/// A file's name, its keys, and those that the chart writes itself.
fn files() -> [(&'static str, Vec<Key>, &'static [&'static str]); 3] {
    [
        (
            "failover.toml",
            app::config::Config::keys(),
            &[
                "controller.listen",
                "controller.listen_plain",
                "controller.policy",
                "controller.log",
                "controller.allow_volatile_log",
                "tls.ca",
                "tls.certificate",
                "tls.key",
                "orders",
                "orders.key",
            ],
        ),
        (
            "agent.toml",
            agent::config::Config::keys(),
            &[
                "agent.listen",
                "agent.listen_plain",
                "tls.ca",
                "tls.certificate",
                "tls.key",
                "orders",
                "orders.controller_public_key",
            ],
        ),
        (
            "observer.toml",
            observer::config::Config::keys(),
            &["tls.ca", "tls.certificate", "tls.key"],
        ),
    ]
}

/// The schema of what is left to the user.
fn expected(title: &str, keys: Vec<Key>, own: &[&str]) -> Value {
    let names: BTreeSet<&str> = keys.iter().map(|key| key.path.as_str()).collect();
    for key in own {
        assert!(names.contains(key), "{title} has no `{key}`");
    }
    let mut left: Vec<Key> = keys
        .into_iter()
        .filter(|key| !own.contains(&key.path.as_str()))
        .collect();
    // Nothing that is left in it is required.
    let tls = left.iter_mut().find(|key| key.path == "tls");
    tls.unwrap().optional = true;
    let mut schema = schema(title, &left);
    schema.as_object_mut().unwrap().remove("$schema");
    schema
}

#[test]
fn the_schema_has_our_files_as_the_program_has_them() {
    let mut written: Value = serde_json::from_str(&read(SCHEMA)).unwrap();
    let before = written.clone();
    for (title, keys, own) in files() {
        written["definitions"][title] = expected(title, keys, own);
    }
    if std::env::var_os("UPDATE_DOCS").is_some_and(|value| value == "1") {
        let text = serde_json::to_string_pretty(&written).unwrap();
        std::fs::write(root().join(SCHEMA), format!("{text}\n")).unwrap();
        return;
    }
    assert!(before == written, "run the tests once with UPDATE_DOCS=1");
}

fn schema_of_values() -> Value {
    serde_json::from_str(chart::SCHEMA).unwrap()
}

#[test]
fn the_schema_takes_the_defaults_the_examples_and_everything() {
    let schema = schema_of_values();
    let defaults: Value = serde_saphyr::from_str(chart::VALUES).unwrap();
    assert_eq!(values::mistakes(&schema, &defaults), Vec::<String>::new());
    let texts = EXAMPLES.map(example).into_iter();
    for text in texts.chain([everything()]) {
        values::read("values.yaml", &text).unwrap_or_else(|error| panic!("{error:#}"));
    }
}

/// Every value that the schema knows has a default that says what it is for.
#[test]
fn the_schema_and_the_defaults_have_the_same_keys() {
    fn keys(path: &str, table: &Value, found: &mut BTreeSet<String>) {
        let Some(table) = table.as_object() else {
            return;
        };
        for (key, value) in table {
            let path = format!("{path}.{key}");
            keys(&path, value, found);
            found.insert(path);
        }
    }
    fn known(path: &str, schema: &Value, found: &mut BTreeSet<String>) {
        let Some(table) = schema["properties"].as_object() else {
            return;
        };
        for (key, schema) in table {
            let path = format!("{path}.{key}");
            known(&path, schema, found);
            found.insert(path);
        }
    }
    let (mut defaults, mut schema) = (BTreeSet::new(), BTreeSet::new());
    keys(
        "",
        &serde_saphyr::from_str(chart::VALUES).unwrap(),
        &mut defaults,
    );
    known("", &schema_of_values(), &mut schema);
    // Helm adds it to every chart's values.
    schema.remove(".global");
    // Their keys are the cluster's, not ours.
    let free = |path: &&String| !path.contains(".resources.");
    let defaults: BTreeSet<&String> = defaults.iter().filter(free).collect();
    assert_eq!(defaults, schema.iter().collect());
}

/// What is said about these values; each is laid over an example that is good.
fn refused(name: &str, change: impl FnOnce(&mut Value)) -> String {
    let mut values: Value = serde_saphyr::from_str(&example(name)).unwrap();
    change(&mut values);
    let release = Release {
        name: "failover",
        namespace: "shop",
    };
    // JSON is YAML.
    match render("values.yaml", &values.to_string(), release) {
        Ok(_) => panic!("taken: {values}"),
        Err(error) => format!("{error:#}"),
    }
}

#[test]
fn values_that_do_not_fit_are_refused_with_their_path() {
    type Change = fn(&mut Value);
    let table: [(&str, Change, &str); 12] = [
        (
            "neutral",
            |it| it["controler"] = json!({}),
            "controler: there is no such value",
        ),
        (
            "neutral",
            |it| it["controller"]["uid"] = json!(0),
            "controller.uid: must be at least 1",
        ),
        (
            "neutral",
            |it| it["controller"]["secrets"] = json!([]),
            "controller.secrets: must not be empty",
        ),
        (
            "neutral",
            |it| it["controller"]["policy"] = json!(""),
            "controller.policy: must not be empty",
        ),
        (
            "neutral",
            |it| it["controller"]["service"]["type"] = json!("External"),
            "controller.service.type: must be one of `ClusterIP`, `NodePort`, `LoadBalancer`",
        ),
        (
            "neutral",
            |it| it["controller"]["config"]["group"] = json!({"name": "shop"}),
            "controller.config.group.first_active: is missing",
        ),
        (
            "neutral",
            |it| it["controller"]["config"]["controller"]["listen"] = json!("0.0.0.0:1"),
            "controller.config.controller.listen: there is no such value",
        ),
        (
            "neutral",
            |it| it["controller"]["config"]["traffic"][0]["kind"] = json!("carrier-pigeon"),
            "controller.config.traffic[0].kind: must be one of `rfc2136`",
        ),
        (
            "site-aws",
            |it| it["agent"]["config"]["postgres"]["port"] = json!("5432"),
            "agent.config.postgres.port: must be a whole number",
        ),
        (
            "site-aws",
            |it| it["agent"]["podLabels"] = json!({}),
            "agent.podLabels: must not be empty",
        ),
        (
            "site-aws",
            |it| it["rbac"]["agent"]["purposes"] = json!(["fence"]),
            "rbac.agent.purposes[0]: must be one of `health`, `workloads`, `operator`",
        ),
        (
            "observer",
            |it| it["observer"]["config"]["sites"]["aws"] = json!({"api": "http://a/"}),
            "observer.config.sites.aws.database: is missing",
        ),
    ];
    for (name, change, expected) in table {
        let said = refused(name, change);
        assert!(said.contains(expected), "{expected}\n{said}");
    }
}

/// What no schema sees is found by the readers of the files.
#[test]
fn a_mistake_in_a_file_is_found_before_it_is_applied() {
    for (name, change, expected) in [
        (
            "neutral",
            (|it: &mut Value| it["controller"]["config"]["group"]["first_active"] = json!("azure"))
                as fn(&mut Value),
            "`group.first_active` is `azure`, which is not one of `[sites]`",
        ),
        (
            "neutral",
            |it| {
                let policy = it["controller"]["policy"].as_str().unwrap();
                it["controller"]["policy"] =
                    json!(policy.replace("\nquorum = 2\n", "\nquorum = 1\n"));
            },
            "policy.toml:",
        ),
        (
            "site-aws",
            |it| it["agent"]["config"]["peer"]["site"] = json!("aws"),
            "`peer.site` is `aws`, which is this site",
        ),
        (
            "observer",
            |it| it["observer"]["config"]["observer"]["name"] = json!("aws"),
            "`observer.name` is `aws`, which is a site",
        ),
        ("neutral", |it| it["image"] = json!(""), "image is empty"),
    ] {
        let said = refused(name, change);
        assert!(said.contains(expected), "{expected}\n{said}");
    }
}
