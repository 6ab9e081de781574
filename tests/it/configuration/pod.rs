//! The agent's file in a pod: what it may say, and what is refused.

use std::path::Path;
use std::time::Duration;

use failover::adapters::kubernetes::workloads::{Kind, Which};
use failover::agent::config::{Config, WorkloadsKind};
use failover::agent::pod::Source;
use failover::config::cluster::Credential;

use super::example;

fn read(text: &str) -> Result<Config, String> {
    let read = Config::parse("agent.toml", text, Path::new("/etc/failover"));
    read.map_err(|problems| problems.to_string())
}

#[test]
fn an_agent_in_a_pod_names_its_pod_and_its_workloads() {
    let text = example("agent.toml, in a pod");
    let config = read(text).unwrap_or_else(|said| panic!("{said}"));
    let pod = config.pod.unwrap();
    assert_eq!(pod.sources.uid, Source::Variable("POD_UID".to_owned()));
    assert_eq!(pod.stop_within, Duration::from_secs(40));
    let WorkloadsKind::Kubernetes(workloads) = config.workloads.unwrap().kind else {
        panic!("not on Kubernetes");
    };
    assert!(matches!(
        workloads.cluster.credential,
        Credential::InCluster
    ));
    let [web, jobs] = &workloads.list[..] else {
        panic!("{workloads:?}");
    };
    assert_eq!(web.workload.which, Which::Named("web".to_owned()));
    assert_eq!(web.replicas, 3);
    assert_eq!(jobs.workload.kind, Kind::CronJob);

    let file = text.replace("[pod]\n", "[pod]\nuid = \"/etc/podinfo/uid\"\n");
    let pod = read(&file).unwrap().pod.unwrap();
    assert_eq!(pod.sources.uid, Source::File("/etc/podinfo/uid".into()));
    assert_eq!(pod.sources.name, Source::Variable("POD_NAME".to_owned()));
    // What most containers have needs no table.
    let plain = text.replace("[pod]\nstop_within = \"40s\"\n", "");
    assert!(read(&plain).unwrap().pod.is_some());
    // A host is what an agent is that says nothing.
    assert!(read(example("agent.toml")).unwrap().pod.is_none());
}

#[test]
fn each_credential_has_keys_of_its_own() {
    let text = example("agent.toml, in a pod");
    let with = |keys: &str| {
        let changed = text.replace("access = \"in-cluster\"\n", keys);
        assert_ne!(changed, text);
        let WorkloadsKind::Kubernetes(workloads) = read(&changed)?.workloads.unwrap().kind else {
            return Err("not on Kubernetes".to_owned());
        };
        Ok(workloads.cluster.credential)
    };
    let eks = "access = \"eks\"\nserver = \"https://x.eks.amazonaws.com\"\nauthority = \"c.pem\"\neks_cluster = \"shop\"\nregion = \"eu-central-1\"\n";
    assert!(matches!(with(eks), Ok(Credential::Eks { region, .. }) if region == "eu-central-1"));
    let gke = "access = \"gke\"\nserver = \"https://10.1.0.2\"\nauthority = \"c.pem\"\n";
    assert!(matches!(with(gke), Ok(Credential::Gke { .. })));
    let file = "access = \"kubeconfig\"\nkubeconfig = \"k\"\ncontext = \"c\"\n";
    let Ok(Credential::Kubeconfig { path, context }) = with(file) else {
        panic!("no kubeconfig");
    };
    assert_eq!(path, Path::new("/etc/failover/k"));
    assert_eq!(context.as_deref(), Some("c"));
    for (keys, said) in [
        (
            "access = \"eks\"\n",
            "`workloads.cluster.server` is missing",
        ),
        (
            "access = \"in-cluster\"\nkubeconfig = \"k\"\n",
            "unknown key `workloads.cluster.kubeconfig`",
        ),
        (
            "access = \"aks\"\n",
            "must be one of in-cluster, kubeconfig, eks, gke",
        ),
    ] {
        let answer = with(keys).unwrap_err();
        assert!(answer.contains(said), "{keys}: {answer}");
    }
}

#[test]
fn a_broken_file_of_an_agent_in_a_pod_is_refused_in_plain_words() {
    let text = example("agent.toml, in a pod");
    for (from, to, said) in [
        (
            "kind = \"statefulset\"",
            "kind = \"cloudnativepg\"",
            "`agent.kind` is `cloudnativepg`, which is not built into this program yet",
        ),
        (
            "kind = \"statefulset\"",
            "kind = \"pod\"",
            "must be one of host, statefulset, cloudnativepg",
        ),
        ("kind = \"statefulset\"", "", "unknown key `pod`"),
        (
            "stop_within = \"40s\"",
            "uid = \"POD_UID\"",
            "write a variable of the environment like `$POD_NAME`",
        ),
        (
            "replicas = 3",
            "",
            "`workloads.objects[].replicas` is missing",
        ),
        (
            "replicas = 3",
            "replicas = 0",
            "must be between 1 and 10000",
        ),
        (
            "labels = \"app=shop\"\nreplicas = 1",
            "labels = \"app=shop\"\nreplicas = 2",
            "a CronJob is on or suspended: write `replicas = 1`",
        ),
        (
            "name = \"web\"",
            "name = \"web\"\nlabels = \"app=web\"",
            "a `name` or `labels`, and not both",
        ),
        ("name = \"web\"", "", "write one, like `name = \"web\"`"),
        (
            "kind = \"kubernetes\"",
            "kind = \"commands\"",
            "`workloads.start` is missing",
        ),
        (
            "kind = \"kubernetes\"",
            "start = [\"x\"]\nstop = [\"x\"]",
            "unknown key `workloads.namespace`",
        ),
    ] {
        assert!(text.contains(from), "{from}");
        let answer = match read(&text.replacen(from, to, 1)) {
            Ok(_) => "accepted".to_owned(),
            Err(said) => said,
        };
        assert!(answer.contains(said), "{to}: {answer}");
    }
}
