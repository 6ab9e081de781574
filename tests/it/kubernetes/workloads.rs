//! Workloads on a cluster that starts them, and others that write the same numbers.

use failover::adapters::kubernetes::workloads::{
    Counts, Kind, KubernetesWorkloads, Name, Which, Workload,
};
use failover::adapters::kubernetes::{ClusterError, Run, resources};
use failover::lab::doubles::kubernetes::faults::{Fault, Told, on};
use serde_json::json;

use super::rig::{Rig, until, workload};

fn web(count: u64) -> Counts {
    let name = Name {
        kind: Kind::Deployment,
        name: "web".to_owned(),
    };
    [(name, count)].into()
}

async fn started(replicas: u64) -> (Rig, KubernetesWorkloads) {
    let rig = Rig::start().await;
    rig.create(resources::DEPLOYMENTS, workload("web", replicas))
        .await;
    let list = vec![Workload {
        kind: Kind::Deployment,
        which: Which::Named("web".to_owned()),
    }];
    let all = KubernetesWorkloads::new(rig.cluster.clone(), "shop", list).unwrap();
    (rig, all)
}

#[tokio::test]
async fn ready_is_what_the_controller_says_of_the_present_wish() {
    let (rig, all) = started(0).await;
    until("the controller has seen it", async || {
        all.lacking(&web(0)).await.unwrap().is_empty()
            && rig.double().object(("deployments", "shop", "web")).unwrap()["status"].is_object()
    })
    .await;
    rig.double().stop_controllers(true);
    until("it is started", async || {
        all.start(&web(2), Run::Real)
            .await
            .unwrap()
            .errors
            .is_empty()
    })
    .await;
    let lacking = all.lacking(&web(2)).await.unwrap();
    assert!(
        lacking[0].to_string().contains("has not seen the change"),
        "{}",
        lacking[0]
    );
    rig.double().stop_controllers(false);
    until("it is ready", async || {
        all.lacking(&web(2)).await.unwrap().is_empty()
    })
    .await;
}

#[tokio::test]
async fn whoever_writes_the_same_number_is_named() {
    let (rig, all) = started(2).await;
    let autoscaler = json!({
        "metadata": {"name": "web"},
        "spec": {
            "minReplicas": 1, "maxReplicas": 5,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
        },
    });
    rig.create(resources::AUTOSCALERS, autoscaler).await;
    let keda = json!({"spec": {"minReplicas": 2}});
    let at = ("horizontalpodautoscalers", "shop", "web");
    rig.double()
        .write_as("keda-operator", at, (false, &keda))
        .unwrap();
    let rivals = all.rivals().await.unwrap();
    let names: Vec<_> = rivals
        .iter()
        .map(|(_, owner)| owner.manager.as_str())
        .collect();
    assert_eq!(names, ["installer", "keda-operator"]);
}

#[tokio::test]
async fn one_that_cannot_be_started_keeps_no_other_from_it() {
    let (rig, _) = started(0).await;
    rig.create(resources::STATEFULSETS, workload("queue", 0))
        .await;
    let named = |kind, name: &str| Workload {
        kind,
        which: Which::Named(name.to_owned()),
    };
    let list = vec![
        named(Kind::Deployment, "web"),
        named(Kind::StatefulSet, "queue"),
    ];
    let all = KubernetesWorkloads::new(rig.cluster.clone(), "shop", list).unwrap();
    let mut counts = web(2);
    let queue: Name = "StatefulSet/queue".to_owned().try_into().unwrap();
    counts.insert(queue.clone(), 1);
    let refusal = Told::status(403, "Forbidden", "denied by policy: no Fridays");
    rig.double().stop_controllers(true);
    rig.double()
        .next(on("patch", "deployments/scale"), Fault::Answer(refusal));
    let outcome = all.start(&counts, Run::Real).await.unwrap();
    assert_eq!(outcome.errors.len(), 1, "{outcome:?}");
    let (name, error) = &outcome.errors[0];
    assert_eq!(name.to_string(), "Deployment/web");
    assert!(
        matches!(error, ClusterError::Refused(said) if said.contains("no Fridays")),
        "{error}"
    );
    assert_eq!(outcome.changes.len(), 1);
    assert_eq!(outcome.changes[0].workload, queue);
    // Again, only what is missing is changed.
    let outcome = all.start(&counts, Run::Real).await.unwrap();
    assert_eq!(outcome.errors, []);
    assert_eq!(outcome.changes.len(), 1, "{outcome:?}");
    let back = all.undo(&outcome.changes).await.unwrap();
    assert_eq!(back.errors, []);
    assert_eq!(all.counts().await.unwrap().get(&queue), Some(&1));
    assert_eq!(all.counts().await.unwrap().values().sum::<u64>(), 1);
}

#[tokio::test]
async fn a_count_that_changed_since_it_was_read_is_a_conflict() {
    let (rig, all) = started(0).await;
    rig.double().stop_controllers(true);
    let late = Fault::LandsLater(Some(Told::status(504, "Timeout", "did not complete")));
    rig.double().next(on("patch", "deployments/scale"), late);
    let outcome = all.start(&web(2), Run::Real).await.unwrap();
    assert!(
        matches!(outcome.errors[0].1, ClusterError::Unknown(_)),
        "{outcome:?}"
    );
    // Stopped in between: it must not come to life afterwards.
    let place = rig.place(resources::DEPLOYMENTS, "web");
    rig.cluster.settle(&place, "plan 7").await.unwrap();
    assert_eq!(rig.double().land(), [false]);
    assert_eq!(all.counts().await.unwrap(), web(0));
}

#[tokio::test]
async fn counts_are_kept_by_names_that_people_read() {
    let kept = serde_json::to_string(&web(3)).unwrap();
    assert_eq!(kept, r#"{"Deployment/web":3}"#);
    assert_eq!(serde_json::from_str::<Counts>(&kept).unwrap(), web(3));
    for text in ["web", "Pod/web", ""] {
        assert!(Name::try_from(text.to_owned()).is_err(), "{text}");
    }
}

/// What a role must allow is exactly what is called.
#[tokio::test]
async fn every_call_is_one_that_is_said_to_be_needed() {
    let (rig, all) = started(0).await;
    rig.double().stop_controllers(true);
    let autoscaler = json!({
        "metadata": {"name": "web"},
        "spec": {
            "minReplicas": 1, "maxReplicas": 5,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
        },
    });
    rig.create(resources::AUTOSCALERS, autoscaler).await;
    let outcome = all.start(&web(2), Run::Real).await.unwrap();
    assert_eq!(outcome.changes.len(), 2, "{outcome:?}");
    all.rivals().await.unwrap();
    all.lacking(&web(2)).await.unwrap();
    all.undo(&outcome.changes).await.unwrap();
    let calls = rig.double().calls();
    let called: std::collections::BTreeSet<_> = calls
        .iter()
        .filter(|call| call.verb != "create")
        .map(|call| {
            (
                call.verb.as_str(),
                call.resource.as_str(),
                call.subresource.as_str(),
            )
        })
        .collect();
    let needs = all.needs();
    let needed: std::collections::BTreeSet<_> = needs
        .iter()
        .map(|need| (need.verb, need.resource.plural, need.subresource))
        .collect();
    assert_eq!(called, needed);
}
