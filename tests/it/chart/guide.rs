//! What people type and copy: the guide, the examples, the patch of a StatefulSet, the command itself.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use failover::{agent, app, observer};
use serde_json::Value;

use super::{
    EXAMPLES, chart_files, everything, example, example_path, list, named, of_kind, patch, read,
    rendered, texts_of,
};

const GUIDE: &str = "docs/kubernetes.md";

#[test]
fn every_file_of_the_chart_is_in_the_program() {
    use failover::cli::manifests::chart::TEMPLATES;

    let mut embedded: BTreeSet<String> = TEMPLATES.map(|(path, _)| path.to_owned()).into();
    embedded.insert("templates/_helpers.tpl".to_owned());
    assert_eq!(chart_files("templates"), embedded);
    let version = format!("version: {}\n", env!("CARGO_PKG_VERSION"));
    let app = format!("appVersion: {}\n", env!("CARGO_PKG_VERSION"));
    let chart = read("deploy/helm/failover/Chart.yaml");
    assert!(chart.contains(&version) && chart.contains(&app), "{chart}");
}

/// A file in the ConfigMap of a component.
fn file(name: &str, component: &str, key: &str) -> String {
    let manifests = rendered(&example(name));
    let map = named(&manifests, "ConfigMap", &format!("failover-{component}"));
    map["data"][key].as_str().unwrap().to_owned()
}

fn controller() -> app::config::Config {
    let text = file("neutral", "controller", "failover.toml");
    app::config::Config::parse("failover.toml", &text, Path::new("/etc/failover")).unwrap()
}

fn agent_of_aws() -> agent::config::Config {
    let text = file("site-aws", "agent", "agent.toml");
    agent::config::Config::parse("agent.toml", &text, Path::new("/etc/failover")).unwrap()
}

#[test]
fn the_examples_are_of_one_group() {
    let (controller, aws) = (controller(), agent_of_aws());
    let text = file("observer", "observer", "observer.toml");
    let paris = observer::config::Config::parse("observer.toml", &text, Path::new("/etc/failover"))
        .unwrap();
    assert_eq!(controller.group, aws.group);
    assert_eq!(controller.group, paris.group);
    assert!(paris.sites.keys().eq(controller.sites.keys()));
    let other = &controller.sites[&aws.peer.site];
    assert_eq!(other.agent.to_string(), aws.peer.agent.to_string());
    assert_eq!(other.database.conninfo, aws.peer.database.conninfo);
    assert_eq!(controller.log, Path::new("/var/lib/failover/decision.log"));
}

/// The names of the files in `/etc/failover` that a file names, besides those of the ConfigMap.
fn secrets(file: &str) -> BTreeSet<String> {
    const FILES: [&str; 6] = [
        "ca",
        "certificate",
        "key",
        "database_ca",
        "password_file",
        "controller_public_key",
    ];
    let texts = texts_of(&file.parse().unwrap()).into_iter();
    let files = texts.filter(|(key, _)| FILES.contains(&key.as_str()) || key.ends_with("_file"));
    let names = files.map(|(_, text)| text);
    names.filter(|name| !name.starts_with('/')).collect()
}

/// The files that a command of the guide puts into a Secret.
fn created(secret: &str, namespace: &str) -> BTreeSet<String> {
    let guide = read(GUIDE).replace("\\\n", " ");
    let begin = format!("kubectl -n {namespace} create secret generic {secret} ");
    let line = guide
        .lines()
        .find(|line| line.contains(&begin))
        .unwrap_or_else(|| panic!("{begin}"));
    let files = line
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("--from-file="));
    files
        .map(|file| file.rsplit('/').next().unwrap().to_owned())
        .collect()
}

/// Whoever follows the guide has every file that the examples name, and no key where it does not belong.
#[test]
fn the_guide_makes_exactly_the_secrets_that_the_examples_need() {
    for (secret, namespace, name, component, key) in [
        (
            "failover-controller",
            "failover",
            "neutral",
            "controller",
            "failover.toml",
        ),
        (
            "failover-observer",
            "failover",
            "observer",
            "observer",
            "observer.toml",
        ),
    ] {
        assert_eq!(
            created(secret, namespace),
            secrets(&file(name, component, key)),
            "{secret}"
        );
        let values = example(name);
        assert!(values.contains(&format!("secrets: [{secret}]")), "{name}");
    }
    let mut wanted = secrets(&file("site-aws", "agent", "agent.toml"));
    // For PostgreSQL itself: its file says where the init container puts it.
    wanted.insert("replicator.pgpass".to_owned());
    assert_eq!(created("failover-agent", "shop"), wanted);
}

/// The patch is for the paths and names of the example.
#[test]
fn the_patch_fits_the_example() {
    let (patch, aws) = (patch(), agent_of_aws());
    let spec = &patch["spec"]["template"]["spec"];
    let init = &list(&spec["initContainers"])[0];
    let script = init["args"][0].as_str().unwrap();
    let state = aws.state_dir.display().to_string();
    let data = aws.postgres.data_dir.display().to_string();
    assert!(
        script.contains(&format!("install -d -m 0700 {state}\n")),
        "{script}"
    );
    assert!(script.contains(&format!("chmod 0700 {data}\n")), "{script}");
    let passfile = "/opt/failover/replicator.pgpass";
    assert!(
        script.contains(&format!(" {passfile}\n"))
            && aws.postgres.primary_conninfo.contains(passfile)
    );
    let container = &list(&spec["containers"])[0];
    let program = container["command"][0].as_str().unwrap();
    assert!(
        script.contains(&format!("/usr/bin/failover {program}\n")),
        "{script}"
    );
    assert_eq!(container["args"][2], "/etc/failover/agent.toml");
    let mounts = list(&container["volumeMounts"]).iter();
    let paths: Vec<&str> = mounts
        .map(|mount| mount["mountPath"].as_str().unwrap())
        .collect();
    let socket = aws.postgres.socket_dir.display().to_string();
    assert!(paths.contains(&socket.as_str()), "{paths:?}");
    // All that is written lies on the volume.
    for path in [&state, &data, &aws.postgres.log_file.display().to_string()] {
        assert!(path.starts_with("/var/lib/postgresql/data/"), "{path}");
    }
    let sources = list(&list(&spec["volumes"])[0]["projected"]["sources"]);
    let manifests = rendered(&example("site-aws"));
    let map = sources[0]["configMap"]["name"].as_str().unwrap();
    named(&manifests, "ConfigMap", map);
    let accounts = of_kind(&manifests, "ServiceAccount");
    assert!(
        accounts
            .iter()
            .any(|it| it["metadata"]["name"] == spec["serviceAccountName"])
    );
    let port = container["ports"][0]["containerPort"].as_u64().unwrap();
    assert_eq!(port, u64::from(aws.listen.port()));
}

fn program(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_failover"))
        .args(arguments)
        .env_clear()
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap()
}

#[test]
fn the_command_prints_what_the_chart_makes_as_yaml_or_as_one_list() {
    for name in EXAMPLES {
        let values = example_path(name);
        let arguments = [
            "generate",
            "manifests",
            "--namespace",
            "shop",
            "--values",
            values.to_str().unwrap(),
        ];
        let done = program(&arguments);
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
        let text = String::from_utf8(done.stdout).unwrap();
        let printed = text.trim_start_matches("---\n").split("\n---\n");
        let printed: Vec<Value> = printed
            .map(|each| serde_saphyr::from_str(each).unwrap())
            .collect();
        let made = rendered(&example(name)).into_iter().map(|each| each.object);
        assert_eq!(printed, made.collect::<Vec<_>>(), "{name}");
        let done = program(&[&arguments[..], &["--output", "json"]].concat());
        let whole: Value = serde_json::from_slice(&done.stdout).unwrap();
        assert_eq!(whole["kind"], "List");
        assert_eq!(list(&whole["items"]), printed, "{name}");
    }
}

#[test]
fn a_file_that_enables_nothing_or_is_no_yaml_is_said_to_be_so() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("values.yaml");
    for (text, said) in [
        ("", "enables nothing"),
        ("image: a\n", "enables nothing"),
        ("controller: [", "read `"),
        (
            "controller: {enabled: yes please}\n",
            "controller.enabled: must be true or false",
        ),
    ] {
        std::fs::write(&file, text).unwrap();
        let done = program(&["generate", "manifests", "--values", file.to_str().unwrap()]);
        assert_eq!(done.status.code(), Some(2), "{text}");
        let told = String::from_utf8(done.stderr).unwrap();
        assert!(told.contains(said), "{text}: {told}");
    }
}

/// A second release beside the first, in a namespace of its own, meets nothing of it.
#[test]
fn names_begin_with_the_release() {
    use failover::cli::manifests::{Release, render};

    let release = Release {
        name: "second",
        namespace: "elsewhere",
    };
    let manifests = render("values.yaml", &everything(), release).unwrap();
    for manifest in &manifests {
        let meta = &manifest.object["metadata"];
        let name = meta["name"].as_str().unwrap();
        let given = ["failover-remote", "failover-agent"].contains(&name);
        assert!(
            given || name.starts_with("second") || name.starts_with("elsewhere-second"),
            "{name}"
        );
        let namespace = meta["namespace"].as_str();
        let cluster = manifest.object["kind"]
            .as_str()
            .unwrap()
            .starts_with("ClusterRole");
        assert_eq!(namespace.is_none(), cluster, "{name}");
    }
}
