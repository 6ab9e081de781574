//! Helm itself, on the chart: what it makes of the values is what `failover generate manifests` makes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use failover::cli::manifests::{Release, render};
use serde_json::Value;

/// Every file of values: the examples, and one that uses all.
const VALUES: [&str; 4] = [
    "deploy/kubernetes/neutral.yaml",
    "deploy/kubernetes/site-aws.yaml",
    "deploy/kubernetes/observer.yaml",
    "tests/it/chart/everything.yaml",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn helm(arguments: &[&str]) -> Output {
    let program: PathBuf = root().join("target/venv/bin/helm");
    assert!(program.exists(), "Helm is not there: run `make doubles`");
    let home = tempfile::tempdir().unwrap();
    Command::new(program)
        .args(arguments)
        .env("HOME", home.path())
        .current_dir(root())
        .output()
        .unwrap()
}

fn template(values: &str) -> Output {
    let chart = "deploy/helm/failover";
    helm(&[
        "template",
        "failover",
        chart,
        "--namespace",
        "shop",
        "--values",
        values,
    ])
}

/// The objects, by what they are: the order is each program's own.
fn by_name(objects: impl IntoIterator<Item = Value>) -> BTreeMap<String, Value> {
    let objects = objects.into_iter().map(|object| {
        let meta = &object["metadata"];
        (
            format!("{} {} {}", object["kind"], meta["namespace"], meta["name"]),
            object,
        )
    });
    objects.collect()
}

#[test]
fn helm_makes_the_same_manifests() {
    for file in VALUES {
        let done = template(file);
        assert!(
            done.status.success(),
            "{file}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
        let text = String::from_utf8(done.stdout).unwrap();
        let documents = text.trim_start_matches("---\n").split("\n---\n");
        let theirs = documents.map(|each| serde_saphyr::from_str::<Value>(each).unwrap());
        let theirs = by_name(theirs.filter(|object| !object.is_null()));
        let release = Release {
            name: "failover",
            namespace: "shop",
        };
        let values = std::fs::read_to_string(root().join(file)).unwrap();
        let ours = render(file, &values, release).unwrap_or_else(|error| panic!("{error:#}"));
        let ours = by_name(ours.into_iter().map(|manifest| manifest.object));
        assert_eq!(
            ours.keys().collect::<Vec<_>>(),
            theirs.keys().collect::<Vec<_>>(),
            "{file}"
        );
        for (name, object) in ours {
            assert_eq!(object, theirs[&name], "{file}: {name}");
        }
    }
}

#[test]
fn helm_finds_nothing_wrong_with_the_chart() {
    let done = helm(&["lint", "--strict", "deploy/helm/failover"]);
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stdout)
    );
}

/// Helm reads the same schema.
#[test]
fn helm_refuses_what_the_program_refuses() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("values.yaml");
    let good = std::fs::read_to_string(root().join(VALUES[0])).unwrap();
    for (from, to, path) in [
        ("    group:\n", "    grup:\n", "grup"),
        ("        ttl: 60s\n", "        ttl: 60\n", "ttl"),
        (
            "  secrets: [failover-controller]\n",
            "  secrets: []\n",
            "secrets",
        ),
        ("  enabled: true\n", "  enabled: 1\n", "enabled"),
    ] {
        assert_eq!(good.matches(from).count(), 1, "{from}");
        let bad = good.replace(from, to);
        std::fs::write(&file, &bad).unwrap();
        let done = template(file.to_str().unwrap());
        let told = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(
            !done.status.success() && told.contains(path),
            "{to}: {told}"
        );
        let release = Release {
            name: "failover",
            namespace: "shop",
        };
        let error = render("values.yaml", &bad, release).unwrap_err();
        assert!(format!("{error:#}").contains(path), "{to}: {error:#}");
    }
}
