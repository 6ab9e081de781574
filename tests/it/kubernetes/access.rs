//! Coming in, and what a server's answers mean: each bad one is an outcome of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use failover::adapters::kubernetes::{ClusterError, Run, resources};
use failover::lab::doubles::kubernetes::faults::{Fault, Told, on};
use failover::lab::doubles::kubernetes::kubelet::Imagined;
use failover::lab::doubles::kubernetes::{KubernetesDouble, Settings};
use serde_json::json;
use tokio::net::TcpListener;

use super::rig::{Rig, SECRET, TOKEN, connect, until, workload, write_secret};

#[tokio::test]
async fn a_token_that_ends_in_the_middle_is_not_accepted_and_a_new_file_mends_it() {
    let rig = Rig::start().await;
    rig.double().take_tokens(&[TOKEN]);
    rig.cluster.identify().await.unwrap();
    rig.double().take_tokens(&["another"]);
    let said = rig.cluster.identify().await.unwrap_err();
    assert!(matches!(said, ClusterError::Unauthorized(_)), "{said}");
    let ready = rig.cluster.ready().await.unwrap_err();
    assert!(matches!(ready, ClusterError::Unauthorized(_)), "{ready}");
    write_secret(&rig.kubeconfig, &rig.double().kubeconfig("another"));
    until("the new file is in use", async || {
        rig.cluster.identify().await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_file_that_leads_elsewhere_is_refused_at_the_first_call() {
    let rig = Rig::start().await;
    rig.cluster.identify().await.unwrap();
    let other = KubernetesDouble::start(Settings::default(), std::sync::Arc::new(Imagined));
    let other = other.await.unwrap();
    write_secret(&rig.kubeconfig, &other.kubeconfig(TOKEN));
    let said = rig.cluster.identify().await.unwrap_err();
    assert!(matches!(said, ClusterError::OtherCluster { .. }), "{said}");
}

#[tokio::test]
async fn a_file_that_is_none_or_open_to_others_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    let open = || connect(path.clone(), None, Duration::from_secs(1));
    let said = open().await.err().unwrap();
    assert!(matches!(said, ClusterError::Refused(_)), "{said}");
    for text in ["", "nonsense: [", "{\"kind\": \"Config\"}"] {
        write_secret(&path, text);
        let said = open().await.err().unwrap().to_string();
        assert!(said.contains("is no kubeconfig file"), "{text}: {said}");
    }
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "{}").unwrap();
    let said = open().await.err().unwrap().to_string();
    assert!(said.contains("chmod 600"), "{said}");
}

#[tokio::test]
async fn a_missing_right_names_verb_and_resource() {
    let rig = Rig::start().await;
    rig.double().permit(on("list", "pods"), false);
    rig.double().permit(on("list", "nodes"), false);
    let said = rig.cluster.nodes().await.unwrap_err();
    let ClusterError::Forbidden {
        verb,
        resource,
        said,
    } = said
    else {
        panic!("{said}");
    };
    assert_eq!((verb, resource.as_str()), ("list", "nodes"));
    assert!(said.contains("cannot list resource \"nodes\""), "{said}");
}

/// Such a server refuses rightful users.
#[tokio::test]
async fn a_refusal_of_a_server_that_starts_is_not_final() {
    let rig = Rig::start().await;
    rig.double().permit(on("list", "nodes"), false);
    rig.double().ready(false);
    let said = rig.cluster.nodes().await.unwrap_err();
    assert!(matches!(said, ClusterError::Failed(_)), "{said}");
    assert!(
        rig.cluster
            .ready()
            .await
            .unwrap_err()
            .to_string()
            .contains("rbac/bootstrap-roles")
    );
    rig.double().permit(on("list", "nodes"), true);
    rig.double().ready(true);
    let nodes = rig.cluster.nodes().await.unwrap();
    assert_eq!(nodes.len(), 2);
    assert_eq!(nodes[0].ready, Some(true));
    assert_eq!(
        nodes[0].machine.as_deref(),
        Some("aws:///eu-central-1a/i-0a")
    );
    assert_eq!(nodes[0].kubelet.as_deref(), Some("v1.36.2"));
}

#[tokio::test]
async fn what_a_server_answers_to_a_change_is_one_outcome() {
    type Is = fn(&ClusterError) -> bool;
    let rig = Rig::start().await;
    rig.create(resources::STATEFULSETS, workload("db", 1)).await;
    let place = rig.place(resources::STATEFULSETS, "db");
    let quoting = rig.double().quoting(("statefulsets", "shop", "db"));
    let table: Vec<(Fault, Is)> = vec![
        (Fault::Answer(Told::throttled(7)), |error| {
            let after = Duration::from_secs(7);
            matches!(error, ClusterError::Throttled { after: told, .. } if *told == after)
        }),
        (Fault::Answer(Told::text(503, "<html>no</html>")), |error| {
            matches!(error, ClusterError::Unknown(_))
        }),
        (Fault::EffectThenCutBody, |error| {
            matches!(error, ClusterError::Unknown(_))
        }),
        (Fault::Answer(Told::text(200, "no JSON")), |error| {
            matches!(error, ClusterError::Unknown(_))
        }),
        (
            Fault::Answer(quoting),
            |error| matches!(error, ClusterError::Refused(said) if !said.contains(SECRET)),
        ),
        (
            Fault::Answer(Told::status(
                403,
                "Forbidden",
                "denied by policy: no Fridays",
            )),
            |error| matches!(error, ClusterError::Refused(said) if said.contains("no Fridays")),
        ),
    ];
    let mut sent = 0;
    for (fault, is) in table {
        rig.double()
            .next(on("patch", "statefulsets/scale"), fault.clone());
        let version = rig.cluster.get(&place).await.unwrap().version().unwrap();
        let done = rig.cluster.scale(&place, &version, (1, Run::Real)).await;
        assert!(is(&done.clone().unwrap_err()), "{fault:?}: {done:?}");
        let lines = rig.double().lines();
        sent += 1;
        let scales = lines.iter().filter(|line| line.contains("/scale")).count();
        assert_eq!(scales, sent, "sent once, never repeated");
    }
}

#[tokio::test]
async fn silence_is_unknown_for_a_change_and_a_failure_for_a_read() {
    let rig = Rig::start().await;
    rig.create(resources::STATEFULSETS, workload("db", 1)).await;
    let place = rig.place(resources::STATEFULSETS, "db");
    let cluster = rig.impatient(Duration::from_secs(1)).await;
    rig.double().next(on("get", "statefulsets"), Fault::Silence);
    let read = cluster.get(&place).await.unwrap_err();
    assert!(
        matches!(&read, ClusterError::Failed(said) if said.contains("within 1s")),
        "{read}"
    );
    let version = rig.cluster.get(&place).await.unwrap().version().unwrap();
    let mark = json!({"metadata": {"annotations": {"mark": "1"}}});
    for (run, unknown) in [(Run::Real, true), (Run::Dry, false)] {
        rig.double()
            .next(on("patch", "statefulsets"), Fault::Silence);
        let done = cluster.merge(&place, &version, (mark.clone(), run)).await;
        let done = done.unwrap_err();
        assert_eq!(
            matches!(done, ClusterError::Unknown(_)),
            unknown,
            "{run:?}: {done}"
        );
    }
}

#[tokio::test]
async fn a_refused_connection_is_known_to_have_changed_nothing() {
    let rig = Rig::start().await;
    rig.create(resources::STATEFULSETS, workload("db", 1)).await;
    let place = rig.place(resources::STATEFULSETS, "db");
    let version = rig.cluster.get(&place).await.unwrap().version().unwrap();
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let nobody: SocketAddr = free.local_addr().unwrap();
    drop(free);
    let text = rig.double().kubeconfig(TOKEN);
    let text = text.replace(&rig.double().address.to_string(), &nobody.to_string());
    write_secret(&rig.kubeconfig, &text);
    let done = rig.cluster.scale(&place, &version, (0, Run::Real)).await;
    let done = done.unwrap_err();
    assert!(
        matches!(&done, ClusterError::Failed(said) if said.contains("nothing was sent")),
        "{done}"
    );
}
