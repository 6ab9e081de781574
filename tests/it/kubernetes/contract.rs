//! What we rest on in an API server, held against the double, and against a real one where there is one.

use std::time::Duration;

use failover::adapters::kubernetes::workloads::{
    Counts, Kind, KubernetesWorkloads, Name, Which, Workload,
};
use failover::adapters::kubernetes::{
    ClusterError, Need, Object, Owner, Resource, Run, Version, resources, rivals,
};
use serde_json::json;

use super::rig::{Rig, SECRET, connect, workload};

const SETS: Resource = resources::STATEFULSETS;

macro_rules! contract {
    ($($clause:ident)*) => {
        mod double {
            $(
                #[tokio::test]
                async fn $clause() {
                    let rig = super::Rig::start().await;
                    super::$clause(&rig).await;
                    rig.end().await;
                }
            )*
        }

        mod real {
            $(
                #[tokio::test]
                async fn $clause() {
                    if let Some(rig) = super::Rig::real().await {
                        super::$clause(&rig).await;
                        rig.end().await;
                    }
                }
            )*
        }
    };
}

contract!(
    a_scale_to_zero_is_ours_and_a_reconciler_meets_a_conflict
    a_merge_to_zero_is_owned_by_nobody_and_a_reconciler_undoes_it
    a_scale_of_another_version_is_a_conflict
    a_scale_of_another_object_of_that_name_is_a_conflict
    a_scale_of_nothing_is_absent
    a_scale_that_changes_nothing_keeps_the_version
    a_dry_run_changes_nothing
    an_unknown_field_is_refused_without_the_object
    once_settled_an_earlier_change_cannot_land
    a_merge_of_another_object_of_that_name_is_refused
    an_unknown_resource_is_refused
    a_cluster_is_known_by_its_uid
    a_server_says_that_it_is_ready_and_what_may_be_done
    workloads_are_started_to_what_they_were_and_stopped_to_nothing
    an_autoscaler_is_raised_and_not_fought
    a_cron_job_is_suspended_and_goes_on
);

async fn set(rig: &Rig, replicas: u64) -> Version {
    rig.create(SETS, workload("db", replicas)).await;
    // Its controller writes the status a few times: what is read must stand still.
    read(rig).await.version().unwrap()
}

async fn read(rig: &Rig) -> Object {
    rig.cluster.get(&rig.place(SETS, "db")).await.unwrap()
}

/// Scales what is there, as often as its controller comes in between.
async fn scale(rig: &Rig, replicas: u64) {
    let place = rig.place(SETS, "db");
    loop {
        let now = read(rig).await.version().unwrap();
        match rig.cluster.scale(&place, &now, (replicas, Run::Real)).await {
            Ok(scaled) => return assert_eq!(scaled.replicas, replicas),
            Err(ClusterError::Conflict(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

async fn a_scale_to_zero_is_ours_and_a_reconciler_meets_a_conflict(rig: &Rig) {
    set(rig, 3).await;
    assert_eq!(rivals(&read(rig).await).len(), 1, "whoever made it");
    scale(rig, 0).await;
    let now = read(rig).await;
    assert_eq!(now.replicas(), 0);
    let owners = now.owners(&["spec", "replicas"]);
    assert_eq!(owners.len(), 1, "{owners:?}");
    assert!(owners[0].is_ours() && owners[0].operation == "Apply");
    assert_eq!(owners[0].subresource, "scale");
    assert_eq!(rivals(&now), []);
    let back = rig.reconcile(SETS, "db", &json!({"replicas": 3})).await;
    assert_eq!(back.err(), Some(409));
    assert_eq!(read(rig).await.replicas(), 0);
}

/// Why the fence is an apply.
async fn a_merge_to_zero_is_owned_by_nobody_and_a_reconciler_undoes_it(rig: &Rig) {
    set(rig, 3).await;
    let zero = json!({"spec": {"replicas": 0}});
    rig.merge(SETS, "db/scale", &zero).await.unwrap();
    let now = read(rig).await;
    assert_eq!(now.replicas(), 0);
    assert_eq!(now.owners(&["spec", "replicas"]), []);
    let spec = json!({"replicas": 3});
    rig.reconcile(SETS, "db", &spec).await.unwrap();
    assert_eq!(read(rig).await.replicas(), 3);
}

async fn a_scale_of_another_version_is_a_conflict(rig: &Rig) {
    let old = set(rig, 3).await;
    let mark = json!({"metadata": {"annotations": {"example.org/mark": "1"}}});
    rig.merge(SETS, "db", &mark).await.unwrap();
    let place = rig.place(SETS, "db");
    let done = rig.cluster.scale(&place, &old, (0, Run::Real)).await;
    assert!(matches!(done, Err(ClusterError::Conflict(_))), "{done:?}");
    assert_eq!(read(rig).await.replicas(), 3);
}

async fn a_scale_of_another_object_of_that_name_is_a_conflict(rig: &Rig) {
    set(rig, 3).await;
    let other = Version {
        uid: "00000000-0000-4000-8000-000000000000".to_owned(),
        ..read(rig).await.version().unwrap()
    };
    let place = rig.place(SETS, "db");
    let done = rig.cluster.scale(&place, &other, (0, Run::Real)).await;
    assert!(matches!(done, Err(ClusterError::Conflict(_))), "{done:?}");
    assert_eq!(read(rig).await.replicas(), 3);
}

async fn a_scale_of_nothing_is_absent(rig: &Rig) {
    let nothing = Version {
        uid: "00000000-0000-4000-8000-000000000000".to_owned(),
        resource_version: "1".to_owned(),
        generation: 1,
    };
    let place = rig.place(SETS, "nothing");
    let done = rig.cluster.scale(&place, &nothing, (0, Run::Real)).await;
    assert!(matches!(done, Err(ClusterError::Absent(_))), "{done:?}");
    let read = rig.cluster.get(&place).await;
    assert!(matches!(read, Err(ClusterError::Absent(_))), "{read:?}");
}

async fn a_scale_that_changes_nothing_keeps_the_version(rig: &Rig) {
    set(rig, 0).await;
    scale(rig, 0).await;
    let place = rig.place(SETS, "db");
    // Until its controller has said all that it says.
    super::rig::until("twice the same version", async || {
        let first = read(rig).await.version().unwrap();
        let again = rig.cluster.scale(&place, &first, (0, Run::Real)).await;
        again.is_ok_and(|again| again.resource_version == first.resource_version)
    })
    .await;
}

async fn a_dry_run_changes_nothing(rig: &Rig) {
    set(rig, 3).await;
    let place = rig.place(SETS, "db");
    super::rig::until("a dry run passes", async || {
        let now = read(rig).await.version().unwrap();
        let dry = rig.cluster.scale(&place, &now, (0, Run::Dry)).await;
        dry.is_ok_and(|dry| dry.replicas == 0)
    })
    .await;
    let now = read(rig).await;
    assert_eq!(now.replicas(), 3);
    assert!(!now.owners(&["spec", "replicas"]).iter().any(Owner::is_ours));
}

async fn an_unknown_field_is_refused_without_the_object(rig: &Rig) {
    let now = set(rig, 0).await;
    let place = rig.place(SETS, "db");
    let misspelt = json!({"spec": {"replica": 3}});
    let done = rig.cluster.merge(&place, &now, (misspelt, Run::Real)).await;
    let Err(ClusterError::Refused(said)) = done else {
        panic!("{done:?}");
    };
    assert!(said.contains("spec.replica"), "{said}");
    assert!(!said.contains(SECRET), "{said}");
}

async fn once_settled_an_earlier_change_cannot_land(rig: &Rig) {
    let sent = set(rig, 3).await;
    let place = rig.place(SETS, "db");
    let settled = loop {
        match rig.cluster.settle(&place, "plan 7, step 3").await {
            Ok(settled) => break settled,
            Err(ClusterError::Conflict(_)) => {}
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(settled.replicas(), 3);
    let late = rig.cluster.scale(&place, &sent, (0, Run::Real)).await;
    assert!(matches!(late, Err(ClusterError::Conflict(_))), "{late:?}");
    let again = rig.cluster.settle(&place, "plan 7, step 3").await;
    assert!(matches!(again, Err(ClusterError::Refused(_))), "{again:?}");
}

async fn a_merge_of_another_object_of_that_name_is_refused(rig: &Rig) {
    set(rig, 3).await;
    let other = Version {
        uid: "00000000-0000-4000-8000-000000000000".to_owned(),
        ..read(rig).await.version().unwrap()
    };
    let patch = json!({"metadata": {"annotations": {"example.org/mark": "1"}}});
    let place = rig.place(SETS, "db");
    let done = rig.cluster.merge(&place, &other, (patch, Run::Real)).await;
    let no = matches!(
        done,
        Err(ClusterError::Refused(_) | ClusterError::Conflict(_))
    );
    assert!(no, "{done:?}");
}

async fn an_unknown_resource_is_refused(rig: &Rig) {
    const NOTHING: Resource = Resource {
        group: "nothing.example.org",
        version: "v1",
        plural: "things",
        kind: "Thing",
    };
    let read = rig.cluster.get(&rig.place(NOTHING, "one")).await;
    assert!(matches!(read, Err(ClusterError::Refused(_))), "{read:?}");
}

async fn a_cluster_is_known_by_its_uid(rig: &Rig) {
    let uid = rig.cluster.identify().await.unwrap();
    assert_eq!(rig.cluster.identify().await, Ok(uid.clone()));
    let open = |recorded: &str| {
        let recorded = Some(recorded.to_owned());
        connect(rig.kubeconfig.clone(), recorded, Duration::from_secs(10))
    };
    let same = open(&uid).await.unwrap();
    assert_eq!(same.identify().await, Ok(uid.clone()));
    let other = open("another").await.unwrap();
    let expected = ClusterError::OtherCluster {
        expected: "another".to_owned(),
        found: uid,
    };
    assert_eq!(other.identify().await, Err(expected));
}

async fn a_server_says_that_it_is_ready_and_what_may_be_done(rig: &Rig) {
    assert_eq!(rig.cluster.ready().await, Ok(()));
    let version = rig.cluster.server_version().await.unwrap();
    assert!(version.starts_with('v'), "{version}");
    rig.cluster.nodes().await.unwrap();
    let needs = [
        Need::on("patch", &rig.place(SETS, "db"), "scale"),
        Need::all("list", resources::PODS, &rig.namespace),
    ];
    assert_eq!(rig.cluster.missing(&needs).await, Ok(Vec::new()));
}

fn named(kind: Kind, name: &str) -> Workload {
    Workload {
        kind,
        which: Which::Named(name.to_owned()),
    }
}

fn counts(of: &[(Kind, &str, u64)]) -> Counts {
    let count = |(kind, name, count): &(Kind, &str, u64)| {
        let name = Name {
            kind: *kind,
            name: (*name).to_owned(),
        };
        (name, *count)
    };
    of.iter().map(count).collect()
}

fn workloads(rig: &Rig, list: Vec<Workload>) -> KubernetesWorkloads {
    KubernetesWorkloads::new(rig.cluster.clone(), &rig.namespace, list).unwrap()
}

/// Until it is done without a conflict.
async fn until_started(of: &KubernetesWorkloads, to: &Counts) {
    super::rig::until("they are started", async || {
        of.start(to, Run::Real).await.unwrap().errors.is_empty()
    })
    .await;
}

async fn workloads_are_started_to_what_they_were_and_stopped_to_nothing(rig: &Rig) {
    rig.create(resources::DEPLOYMENTS, workload("web", 2)).await;
    rig.create(resources::STATEFULSETS, workload("queue", 1))
        .await;
    let by_label = Workload {
        kind: Kind::StatefulSet,
        which: Which::Labelled("app=queue".to_owned()),
    };
    let all = workloads(rig, vec![named(Kind::Deployment, "web"), by_label]);
    let well = all.counts().await.unwrap();
    let expected = [
        (Kind::Deployment, "web", 2),
        (Kind::StatefulSet, "queue", 1),
    ];
    assert_eq!(well, counts(&expected));
    super::rig::until("they are stopped", async || {
        all.stop(Run::Real).await.unwrap().errors.is_empty()
    })
    .await;
    let none = [
        (Kind::Deployment, "web", 0),
        (Kind::StatefulSet, "queue", 0),
    ];
    assert_eq!(all.counts().await.unwrap(), counts(&none));

    let forgotten = counts(&[(Kind::Deployment, "web", 2)]);
    let outcome = all.start(&forgotten, Run::Dry).await.unwrap();
    let said = outcome.errors[0].1.to_string();
    assert!(said.contains("no count of `StatefulSet/queue`"), "{said}");
    assert_eq!(all.counts().await.unwrap(), counts(&none), "a dry run");

    until_started(&all, &well).await;
    assert_eq!(all.counts().await.unwrap(), well);
    assert_eq!(all.start(&well, Run::Real).await.unwrap().changes, []);
}

async fn an_autoscaler_is_raised_and_not_fought(rig: &Rig) {
    rig.create(resources::DEPLOYMENTS, workload("web", 0)).await;
    let autoscaler = json!({
        "metadata": {"name": "web"},
        "spec": {
            "minReplicas": 2, "maxReplicas": 5,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
        },
    });
    rig.create(resources::AUTOSCALERS, autoscaler).await;
    let all = workloads(rig, vec![named(Kind::Deployment, "web")]);
    let minimum = async || {
        let place = rig.place(resources::AUTOSCALERS, "web");
        let read = rig.cluster.get(&place).await.unwrap();
        read.value()["spec"]["minReplicas"].as_u64()
    };
    let four = counts(&[(Kind::Deployment, "web", 4)]);
    let mut changes = Vec::new();
    super::rig::until("they are started", async || {
        let outcome = all.start(&four, Run::Real).await.unwrap();
        changes.extend(outcome.changes);
        outcome.errors.is_empty()
    })
    .await;
    assert_eq!(minimum().await, Some(4));
    assert_eq!(all.counts().await.unwrap(), four);
    // More than its maximum is not asked of it.
    let nine = counts(&[(Kind::Deployment, "web", 9)]);
    until_started(&all, &nine).await;
    assert_eq!(minimum().await, Some(5));
    let raised = changes.iter().filter(|one| one.autoscaler.is_some());
    let raised: Vec<_> = raised.cloned().collect();
    assert_eq!(raised.len(), 1, "{changes:?}");
    super::rig::until("it is given back", async || {
        all.undo(&raised).await.unwrap().errors.is_empty()
    })
    .await;
    assert_eq!(minimum().await, Some(2));
}

async fn a_cron_job_is_suspended_and_goes_on(rig: &Rig) {
    let container = json!({"name": "main", "image": "registry.example/main:1"});
    let pod = json!({"restartPolicy": "Never", "containers": [container]});
    let job = json!({
        "metadata": {"name": "report"},
        "spec": {
            "schedule": "0 3 1 1 *",
            "jobTemplate": {"spec": {"template": {"spec": pod}}},
        },
    });
    rig.create(resources::CRONJOBS, job).await;
    let all = workloads(rig, vec![named(Kind::CronJob, "report")]);
    let on = counts(&[(Kind::CronJob, "report", 1)]);
    assert_eq!(all.counts().await.unwrap(), on);
    let stopped = all.stop(Run::Real).await.unwrap();
    assert_eq!(stopped.errors, []);
    let off = counts(&[(Kind::CronJob, "report", 0)]);
    assert_eq!(all.counts().await.unwrap(), off);
    assert_eq!(all.lacking(&on).await.unwrap().len(), 1);
    let started = all.start(&on, Run::Real).await.unwrap();
    assert_eq!(started.errors, []);
    assert_eq!(all.counts().await.unwrap(), on);
    assert_eq!(all.lacking(&on).await.unwrap(), []);
}
