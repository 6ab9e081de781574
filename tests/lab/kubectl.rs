//! kubectl itself, on the patch that puts an agent into a StatefulSet: it knows how each list is merged.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

/// As somebody may have it: with probes of its own, a rolling update and a second container.
fn of_a_user() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": {"name": "db", "namespace": "shop"},
        "spec": {
            "replicas": 1, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
            "template": {
                "metadata": {"labels": {"app": "db"}},
                "spec": {
                    "containers": [
                        {
                            "name": "postgres", "image": "postgres:17",
                            "env": [{"name": "PGDATA", "value": "/var/lib/postgresql/data/pgdata"}],
                            "ports": [{"name": "pg", "containerPort": 5432}],
                            "readinessProbe": {"exec": {"command": ["pg_isready"]}},
                            "livenessProbe": {"exec": {"command": ["pg_isready"]}},
                            "volumeMounts": [{"name": "data", "mountPath": "/var/lib/postgresql/data"}],
                        },
                        {"name": "exporter", "image": "exporter:1"},
                    ],
                },
            },
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}}],
        },
    })
}

fn patched(set: &Value) -> Value {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = root.join("target/venv/bin/kubectl");
    assert!(program.exists(), "kubectl is not there: run `make doubles`");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("db.json");
    std::fs::write(&file, set.to_string()).unwrap();
    let done = Command::new(program)
        .args(["patch", "--local", "--output", "json", "--filename"])
        .arg(&file)
        .arg("--patch-file")
        .arg(root.join("deploy/kubernetes/statefulset-patch.yaml"))
        .env_clear()
        .env("HOME", folder.path())
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    serde_json::from_slice(&done.stdout).unwrap()
}

/// The names of a list's elements.
fn names(list: &Value) -> Vec<&str> {
    let each = list.as_array().unwrap().iter();
    each.map(|one| one["name"].as_str().unwrap()).collect()
}

#[test]
fn the_patch_puts_the_agent_in_and_leaves_what_is_the_users() {
    let (before, after) = (of_a_user(), patched(&of_a_user()));
    assert_eq!(after["spec"]["updateStrategy"], json!({"type": "OnDelete"}));
    for kept in [
        "replicas",
        "serviceName",
        "selector",
        "volumeClaimTemplates",
    ] {
        assert_eq!(after["spec"][kept], before["spec"][kept], "{kept}");
    }
    let spec = &after["spec"]["template"]["spec"];
    let own = &before["spec"]["template"]["spec"]["containers"];
    assert_eq!(names(&spec["containers"]), ["postgres", "exporter"]);
    assert_eq!(spec["containers"][1], own[1]);
    let container = &spec["containers"][0];
    assert_eq!(container["image"], own[0]["image"]);
    assert_eq!(container["command"], json!(["/opt/failover/failover"]));
    // One probe, and it is ours.
    let probe = container["readinessProbe"].as_object().unwrap();
    assert!(
        probe.contains_key("httpGet") && !probe.contains_key("exec"),
        "{probe:?}"
    );
    assert_eq!(container.get("livenessProbe"), None);
    let mut env = names(&container["env"]);
    env.sort_unstable();
    assert_eq!(env, ["PGDATA", "POD_NAME", "POD_NAMESPACE", "POD_UID"]);
    let mut mounts = names(&container["volumeMounts"]);
    mounts.sort_unstable();
    assert_eq!(mounts, ["data", "failover", "files", "socket", "tmp"]);
    // Applied again it changes nothing.
    assert_eq!(patched(&after), after);
}
