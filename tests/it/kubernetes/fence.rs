//! The fence by infrastructure: what proves that nothing runs any more, and everything that does not.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use failover::adapters::kubernetes::fence::{
    Before, Doubt, End, FenceSettings, Proof, Standing, StatefulSetFence,
};
use failover::adapters::kubernetes::{Cluster, ClusterError, Version, resources};
use failover::lab::doubles::kubernetes::faults::{Fault, Told, on};
use failover::lab::doubles::kubernetes::kubelet::{Containers, Pod};
use failover::lab::doubles::kubernetes::{KubernetesDouble, Settings};
use failover::ports::{EffectError, Machines};
use serde_json::json;
use tokio::sync::watch;

use super::rig::{Rig, clock, until, workload};

/// How long a wait lasts in which nothing may be proven.
const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(20);

/// Containers that end when they may.
#[derive(Debug)]
struct Held {
    ends: watch::Sender<bool>,
    stuck: Mutex<BTreeSet<String>>,
    began: Mutex<Vec<String>>,
}

impl Held {
    fn new(ends: bool) -> Arc<Self> {
        Arc::new(Self {
            ends: watch::Sender::new(ends),
            stuck: Mutex::default(),
            began: Mutex::default(),
        })
    }
}

#[async_trait]
impl Containers for Held {
    async fn start(&self, pod: &Pod) {
        self.began.lock().unwrap().push(pod.name.clone());
    }

    async fn stop(&self, pod: &Pod) {
        let mut ends = self.ends.subscribe();
        let is_stuck = || self.stuck.lock().unwrap().contains(&pod.name);
        while !*ends.borrow() || is_stuck() {
            if ends.changed().await.is_err() {
                return;
            }
        }
    }
}

/// A cloud with a list of machines that are gone.
#[derive(Debug, Default)]
struct Cloud(Mutex<BTreeSet<String>>);

#[async_trait]
impl Machines for Cloud {
    async fn is_gone(&self, machine: &str) -> Result<bool, EffectError> {
        Ok(self.0.lock().unwrap().contains(machine))
    }
}

/// A StatefulSet with its pods running, and a fence that was not used yet.
struct Site {
    rig: Rig,
    held: Arc<Held>,
    cloud: Arc<Cloud>,
    fence: StatefulSetFence,
}

fn fence_on(cluster: Arc<Cluster>, cloud: Option<Arc<dyn Machines>>) -> StatefulSetFence {
    let settings = FenceSettings {
        namespace: "shop".to_owned(),
        name: "db".to_owned(),
        poll: Duration::from_millis(5),
        lease_fresh: Duration::from_secs(5),
    };
    StatefulSetFence::new(cluster, settings, cloud, clock()).unwrap()
}

impl Site {
    async fn with(replicas: u64, ends: bool, settings: Settings) -> Self {
        let held = Held::new(ends);
        let rig = Rig::with(settings, held.clone()).await;
        rig.create(resources::STATEFULSETS, workload("db", replicas))
            .await;
        let site = Self {
            fence: fence_on(rig.cluster.clone(), None),
            cloud: Arc::default(),
            held,
            rig,
        };
        until("its pods run", async || {
            let now = site
                .double()
                .object(("statefulsets", "shop", "db"))
                .unwrap();
            now["status"]["availableReplicas"] == json!(replicas)
        })
        .await;
        site
    }

    /// One pod, whose containers end when they are told to.
    async fn start() -> Self {
        Self::with(1, true, Settings::default()).await
    }

    /// One pod, whose containers do not end before they may.
    async fn lasting() -> Self {
        Self::with(1, false, Settings::default()).await
    }

    fn double(&self) -> &KubernetesDouble {
        self.rig.double()
    }

    fn uid(&self, pod: &str) -> String {
        let pod = self.double().object(("pods", "shop", pod)).unwrap();
        pod["metadata"]["uid"].as_str().unwrap().to_owned()
    }

    /// Looks, as after a sever, and scales to zero.
    async fn cut(&self) -> (Before, Version) {
        let before = self.fence.look().await.unwrap();
        let cut = self.scale_down(&before).await;
        (before, cut)
    }

    async fn scale_down(&self, before: &Before) -> Version {
        loop {
            match self.fence.scale_down(before, &|| Ok(())).await {
                Ok(cut) => return cut,
                Err(ClusterError::Conflict(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    async fn wait(&self, (before, cut): &(Before, Version), within: Duration) -> Standing {
        self.fence
            .watch(before, cut, None)
            .wait(within)
            .await
            .unwrap()
    }

    async fn fenced(&self, cut: &(Before, Version)) -> Proof {
        match self.wait(cut, LONG).await {
            Standing::Fenced(proof) => proof,
            Standing::Doubted(doubts) => panic!("{doubts:?}"),
        }
    }

    async fn doubts(&self, cut: &(Before, Version)) -> Vec<Doubt> {
        match self.wait(cut, SHORT).await {
            Standing::Fenced(proof) => panic!("{proof:?}"),
            Standing::Doubted(doubts) => doubts,
        }
    }

    fn replicas(&self) -> u64 {
        let set = self
            .double()
            .object(("statefulsets", "shop", "db"))
            .unwrap();
        set["spec"]["replicas"].as_u64().unwrap()
    }

    /// Lets what runs end, or what is stuck go on.
    fn let_end(&self) {
        self.held.stuck.lock().unwrap().clear();
        self.held.ends.send_replace(true);
    }
}

#[tokio::test]
async fn the_kubelets_word_is_the_proof() {
    let site = Site::start().await;
    let holder = site.uid("db-0");
    let (before, cut) = site.cut().await;
    let mut watch = site.fence.watch(&before, &cut, Some(&holder));
    let Standing::Fenced(proof) = watch.wait(LONG).await.unwrap() else {
        panic!("not fenced");
    };
    assert_eq!(site.double().running(), Vec::<String>::new());
    assert_eq!(proof.pods.len(), 1);
    assert_eq!(proof.pods[0].uid, holder);
    let End::Kubelet {
        finished_at,
        lease_age_ms,
        ..
    } = &proof.pods[0].end
    else {
        panic!("{proof:?}");
    };
    assert!(finished_at.is_some() && *lease_age_ms < 5_000, "{proof:?}");
    let kept = serde_json::to_string(&proof).unwrap();
    assert_eq!(serde_json::from_str::<Proof>(&kept).unwrap(), proof);
    // It lasts when the object of the pod is gone.
    until("the pod is gone", async || {
        site.double().pods("shop").is_empty()
    })
    .await;
    assert_eq!(site.fence.recheck(&proof).await, Ok(Vec::new()));
}

#[tokio::test]
async fn all_pods_of_the_set_count_and_end_in_order() {
    let site = Site::with(3, true, Settings::default()).await;
    let proof = site.fenced(&site.cut().await).await;
    let names: BTreeSet<&str> = proof.pods.iter().map(|pod| pod.name.as_str()).collect();
    assert_eq!(names, ["db-0", "db-1", "db-2"].into());
}

#[tokio::test]
async fn a_stuck_pod_keeps_all_lower_ones_running() {
    let site = Site::with(3, true, Settings::default()).await;
    site.held.stuck.lock().unwrap().insert("db-2".to_owned());
    let cut = site.cut().await;
    let doubts = site.doubts(&cut).await;
    let pods: Vec<_> = doubts.iter().map(ToString::to_string).collect();
    assert_eq!(doubts.len(), 3, "{pods:?}");
    let lowest = site.double().object(("pods", "shop", "db-0")).unwrap();
    assert!(lowest["metadata"]["deletionTimestamp"].is_null());
    site.let_end();
    site.fenced(&cut).await;
}

#[tokio::test]
async fn zero_replicas_and_a_current_generation_prove_nothing() {
    let site = Site::lasting().await;
    let cut = site.cut().await;
    until("the controller has seen it", async || {
        let set = site
            .double()
            .object(("statefulsets", "shop", "db"))
            .unwrap();
        set["status"]["observedGeneration"] == set["metadata"]["generation"]
    })
    .await;
    assert_eq!(site.replicas(), 0);
    let doubts = site.doubts(&cut).await;
    let running = matches!(&doubts[..], [Doubt::Running { pod, .. }] if pod == "db-0");
    assert!(running, "{doubts:?}");
    site.let_end();
    site.fenced(&cut).await;
}

/// The planted error of the field: the object is gone, so it is fenced.
#[tokio::test]
async fn a_pod_object_that_vanished_proves_nothing() {
    let site = Site::lasting().await;
    site.double().reports("node-a", false);
    let cut = site.cut().await;
    site.double().vanish(("pods", "shop", "db-0"));
    assert_eq!(site.double().pods("shop"), Vec::<String>::new());
    assert_eq!(site.double().running(), ["db-0"], "the process runs on");
    let doubts = site.doubts(&cut).await;
    assert!(
        matches!(&doubts[..], [Doubt::Vanished { .. }]),
        "{doubts:?}"
    );
}

#[tokio::test]
async fn a_pod_that_the_collector_removed_proves_nothing() {
    let site = Site::lasting().await;
    site.double().reports("node-a", false);
    let cut = site.cut().await;
    site.double().collect("shop", "db-0");
    assert_eq!(site.double().running(), ["db-0"], "the process runs on");
    let doubts = site.doubts(&cut).await;
    assert!(
        matches!(&doubts[..], [Doubt::Vanished { .. }]),
        "{doubts:?}"
    );
}

#[tokio::test]
async fn a_node_that_is_not_ready_proves_nothing() {
    let site = Site::start().await;
    site.double().reports("node-a", false);
    let nodes = site.rig.cluster.nodes().await.unwrap();
    assert_eq!(nodes[0].ready, None, "{nodes:?}");
    let cut = site.cut().await;
    until("the pod is being deleted", async || {
        let pod = site.double().object(("pods", "shop", "db-0")).unwrap();
        pod["metadata"]["deletionTimestamp"].is_string()
    })
    .await;
    let doubts = site.doubts(&cut).await;
    assert!(matches!(&doubts[..], [Doubt::Running { .. }]), "{doubts:?}");
    assert_eq!(site.double().running(), ["db-0"]);
    // The node comes back, and its kubelet says it.
    site.double().reports("node-a", true);
    site.fenced(&cut).await;
}

#[tokio::test]
async fn a_pod_that_was_gone_before_proves_nothing() {
    let site = Site::start().await;
    let holder = "00000000-0000-4000-8000-000000000000";
    let (before, cut) = site.cut().await;
    let mut watch = site.fence.watch(&before, &cut, Some(holder));
    let Standing::Doubted(doubts) = watch.wait(LONG).await.unwrap() else {
        panic!("fenced");
    };
    assert!(
        matches!(&doubts[..], [Doubt::HolderGone { .. }]),
        "{doubts:?}"
    );

    let gone = Site::with(0, true, Settings::default()).await;
    let cut = gone.cut().await;
    assert_eq!(gone.doubts(&cut).await, [Doubt::NoPod]);
}

#[tokio::test]
async fn a_status_from_before_proves_nothing() {
    let settings = Settings {
        lingers: Duration::from_hours(1),
        ..Settings::default()
    };
    let site = Site::with(1, true, settings).await;
    // It ended for another reason, before the sever, and its object is there still.
    let name = json!({"spec": {"replicas": 0}});
    let at = ("statefulsets/scale", "shop", "db");
    site.double()
        .write_as("somebody", at, (false, &name))
        .unwrap();
    until("its kubelet says so", async || {
        let pod = site.double().object(("pods", "shop", "db-0")).unwrap();
        pod["status"]["containerStatuses"][0]["state"]["terminated"].is_object()
    })
    .await;
    let cut = site.cut().await;
    let doubts = site.doubts(&cut).await;
    assert!(
        matches!(&doubts[..], [Doubt::OldStatus { .. }]),
        "{doubts:?}"
    );
    // That the object changes for another reason is no new word.
    let mark = json!({"metadata": {"labels": {"app": "db", "seen": "yes"}}});
    let at = ("pods", "shop", "db-0");
    site.double()
        .write_as("somebody", at, (false, &mark))
        .unwrap();
    let doubts = site.doubts(&cut).await;
    assert!(
        matches!(&doubts[..], [Doubt::OldStatus { .. }]),
        "{doubts:?}"
    );
}

#[tokio::test]
async fn a_status_that_somebody_else_wrote_proves_nothing() {
    let site = Site::lasting().await;
    site.double().reports("node-a", false);
    let cut = site.cut().await;
    let ended = json!({"status": {"containerStatuses": [
        {"name": "main", "state": {"terminated": {"exitCode": 0}}},
    ]}});
    let at = ("pods/status", "shop", "db-0");
    site.double()
        .write_as("somebody", at, (false, &ended))
        .unwrap();
    let doubts = site.doubts(&cut).await;
    let Doubt::NotTheKubelet { by, .. } = &doubts[0] else {
        panic!("{doubts:?}");
    };
    assert_eq!(by, &["somebody"]);
}

#[tokio::test]
async fn a_kubelet_that_does_not_renew_its_lease_is_not_believed() {
    let settings = Settings {
        renew_every: Duration::from_hours(1),
        ..Settings::default()
    };
    let site = Site::with(1, true, settings).await;
    let cut = site.cut().await;
    let doubts = site.doubts(&cut).await;
    let Doubt::LeaseOld { node, age_ms, .. } = &doubts[0] else {
        panic!("{doubts:?}");
    };
    assert_eq!((node.as_str(), *age_ms), ("node-a", None));
}

#[tokio::test]
async fn a_word_counts_once_the_lease_is_renewed_though_the_pod_is_gone_by_then() {
    let settings = Settings {
        renew_every: Duration::from_hours(1),
        lingers: Duration::from_hours(1),
        ..Settings::default()
    };
    let site = Site::with(1, true, settings).await;
    let (before, cut) = site.cut().await;
    let mut watch = site.fence.watch(&before, &cut, None);
    until("its kubelet's word is read", async || {
        let look = watch.look().await.unwrap();
        matches!(&look, Standing::Doubted(all) if matches!(all[..], [Doubt::LeaseOld { .. }]))
    })
    .await;
    site.double().vanish(("pods", "shop", "db-0"));
    assert_eq!(site.double().pods("shop"), Vec::<String>::new());
    let renewed = json!({"spec": {"renewTime": "2026-11-27T17:00:00.000001Z"}});
    let at = ("leases", "kube-node-lease", "node-a");
    site.double()
        .write_as("kubelet", at, (false, &renewed))
        .unwrap();
    let mut another = site.fence.watch(&before, &cut, None);
    assert!(
        matches!(another.look().await, Ok(Standing::Fenced(_))),
        "begun anew"
    );
    assert!(matches!(watch.look().await, Ok(Standing::Fenced(_))));
}

#[tokio::test]
async fn a_lost_node_is_proven_only_by_its_object_and_its_machine_being_gone() {
    let site = Site::lasting().await;
    let fence = fence_on(site.rig.cluster.clone(), Some(site.cloud.clone()));
    site.double().reports("node-a", false);
    let before = fence.look().await.unwrap();
    let cut = site.scale_down(&before).await;
    let mut watch = fence.watch(&before, &cut, None);
    let is_open = |standing| matches!(standing, Ok(Standing::Doubted(_)));
    // The machine is gone, as the cloud says; its node's object is there.
    site.cloud
        .0
        .lock()
        .unwrap()
        .insert("aws:///eu-central-1a/i-0a".to_owned());
    assert!(is_open(watch.wait(SHORT).await));
    // The object is gone; the machine is not.
    site.cloud.0.lock().unwrap().clear();
    site.double().vanish(("nodes", "", "node-a"));
    assert!(is_open(watch.wait(SHORT).await));
    site.double().collect("shop", "db-0");
    assert!(is_open(watch.wait(SHORT).await));
    site.cloud
        .0
        .lock()
        .unwrap()
        .insert("aws:///eu-central-1a/i-0a".to_owned());
    let Standing::Fenced(proof) = watch.wait(LONG).await.unwrap() else {
        panic!("not fenced");
    };
    let machine = "aws:///eu-central-1a/i-0a".to_owned();
    assert_eq!(proof.pods[0].end, End::MachineGone { machine });
}

#[tokio::test]
async fn nothing_is_ever_read_from_the_cache() {
    let site = Site::start().await;
    site.double().freeze_cache(true);
    let cut = site.cut().await;
    let proof = site.fenced(&cut).await;
    site.fence.recheck(&proof).await.unwrap();
    site.fence.undo(&cut.0, "undone").await.unwrap();
    let cached = |line: &String| line.contains("resourceVersion=");
    let lines = site.double().lines();
    assert!(lines.len() > 10 && !lines.iter().any(cached), "{lines:#?}");
}

/// It would still show the pods as they were, and say that everything is allowed.
#[tokio::test]
async fn a_server_that_is_cut_off_from_its_store_proves_nothing() {
    let site = Site::start().await;
    let (before, cut) = site.cut().await;
    let proof = site.fenced(&(before.clone(), cut.clone())).await;
    site.double().cut_off(true);
    let impatient = site.rig.impatient(Duration::from_secs(2)).await;
    let fence = fence_on(impatient, None);
    let failed = |error: &ClusterError| matches!(error, ClusterError::Failed(_));
    assert!(failed(&fence.recheck(&proof).await.unwrap_err()));
    let waited = fence.watch(&before, &cut, None).wait(SHORT).await;
    assert!(failed(&waited.unwrap_err()));
    assert!(failed(&fence.rehearse().await.unwrap_err()));
}

#[tokio::test]
async fn a_fence_that_a_reconciler_undoes_is_none_and_it_is_named() {
    let site = Site::start().await;
    let cut = site.cut().await;
    let proof = site.fenced(&cut).await;
    let spec = json!({"replicas": 1});
    let applied = site.rig.reconcile(resources::STATEFULSETS, "db", &spec);
    assert_eq!(
        applied.await.err(),
        Some(409),
        "without force it meets a conflict"
    );
    let at = ("statefulsets", "shop", "db");
    let back = json!({"spec": spec});
    site.double()
        .write_as("argocd", at, (false, &back))
        .unwrap();
    for doubts in [
        site.fence.recheck(&proof).await.unwrap(),
        site.doubts(&cut).await,
    ] {
        let [Doubt::Rescaled { replicas: 1, by }] = &doubts[..] else {
            panic!("{doubts:?}");
        };
        assert_eq!(by[0].manager, "argocd");
    }
    let rivals = site.fence.rivals().await.unwrap();
    assert_eq!(rivals[0].manager, "argocd");
}

#[tokio::test]
async fn a_restored_store_ends_the_fence_and_leaves_nothing_to_undo() {
    let site = Site::start().await;
    let backup = site.double().backup();
    let cut = site.cut().await;
    let proof = site.fenced(&cut).await;
    site.double().restore(&backup);
    assert_eq!(site.replicas(), 1, "the same object, as it was");
    let doubts = site.fence.recheck(&proof).await.unwrap();
    assert!(
        matches!(&doubts[..], [Doubt::WentBack { .. }]),
        "{doubts:?}"
    );
    let doubts = site.doubts(&cut).await;
    assert!(
        matches!(&doubts[..], [Doubt::WentBack { .. }]),
        "{doubts:?}"
    );
    until("it is undone", async || {
        site.fence.undo(&cut.0, "plan 7").await.is_ok()
    })
    .await;
    assert_eq!(site.replicas(), 1);
}

/// Its version is larger again by then: what was done since does not hide it.
#[tokio::test]
async fn a_restored_store_that_has_moved_on_is_told_by_the_generation_or_the_count() {
    let site = Site::start().await;
    let backup = site.double().backup();
    let proof = site.fenced(&site.cut().await).await;
    site.double().restore(&backup);
    let kept: u64 = proof.set.resource_version.parse().unwrap();
    for count in 0.. {
        let mark = json!({"metadata": {"annotations": {"count": count.to_string()}}});
        let at = ("statefulsets", "shop", "db");
        let set = site
            .double()
            .write_as("somebody", at, (false, &mark))
            .unwrap();
        let version = set["metadata"]["resourceVersion"].as_str().unwrap();
        if version.parse::<u64>().unwrap() > kept {
            break;
        }
    }
    let doubts = site.fence.recheck(&proof).await.unwrap();
    assert!(
        matches!(&doubts[..], [Doubt::WentBack { .. }]),
        "{doubts:?}"
    );
}

#[tokio::test]
async fn another_set_of_that_name_is_another_one() {
    let site = Site::start().await;
    let (before, cut) = site.cut().await;
    let proof = site.fenced(&(before.clone(), cut)).await;
    site.double().vanish(("statefulsets", "shop", "db"));
    let doubts = site.fence.recheck(&proof).await.unwrap();
    assert_eq!(doubts, [Doubt::Replaced { found: None }]);
    site.rig
        .create(resources::STATEFULSETS, workload("db", 1))
        .await;
    let doubts = site.fence.recheck(&proof).await.unwrap();
    assert!(
        matches!(&doubts[..], [Doubt::Replaced { found: Some(_) }]),
        "{doubts:?}"
    );
    for refused in [
        site.fence.scale_down(&before, &|| Ok(())).await.err(),
        site.fence.undo(&before, "undone").await.err(),
    ] {
        assert!(
            matches!(refused, Some(ClusterError::Refused(_))),
            "{refused:?}"
        );
    }
    assert_eq!(site.replicas(), 1);
}

#[tokio::test]
async fn another_cluster_at_that_address_is_refused() {
    let site = Site::start().await;
    let (before, cut) = site.cut().await;
    let proof = site.fenced(&(before.clone(), cut.clone())).await;
    site.double().become_another_cluster();
    let other =
        |error: Option<ClusterError>| matches!(error, Some(ClusterError::OtherCluster { .. }));
    assert!(other(site.fence.look().await.err()));
    assert!(other(
        site.fence.scale_down(&before, &|| Ok(())).await.err()
    ));
    assert!(other(site.fence.recheck(&proof).await.err()));
    assert!(other(site.fence.undo(&before, "undone").await.err()));
    assert!(other(
        site.fence.watch(&before, &cut, None).wait(LONG).await.err()
    ));
}

#[tokio::test]
async fn a_lost_answer_is_unknown_and_doing_it_again_settles_it() {
    let scale = on("patch", "statefulsets/scale");
    for fault in [
        Fault::EffectThenSilence,
        Fault::EffectThenCutBody,
        Fault::EffectThenAnswer(Told::status(504, "Timeout", "request did not complete")),
        Fault::EffectThenAnswer(Told::text(500, "etcdserver: request timed out")),
        Fault::Silence,
    ] {
        let site = Site::start().await;
        let impatient = site.rig.impatient(Duration::from_secs(2)).await;
        let fence = fence_on(impatient, None);
        let before = fence.look().await.unwrap();
        let mut watch = fence.watch(&before, &before.set, None);
        site.double().next(scale.clone(), fault.clone());
        let done = watch.scale_down(&before, &|| Ok(())).await;
        assert!(
            matches!(done, Err(ClusterError::Unknown(_))),
            "{fault:?}: {done:?}"
        );
        // The pod may have ended and be gone by now: its last word was read meanwhile.
        until("it is settled", async || {
            watch.scale_down(&before, &|| Ok(())).await.is_ok()
        })
        .await;
        let standing = watch.wait(LONG).await.unwrap();
        assert!(
            matches!(standing, Standing::Fenced(_)),
            "{fault:?}: {standing:?}"
        );
    }
}

/// A write can land minutes after its error: after an undo it must do nothing.
#[tokio::test]
async fn a_fence_that_lands_after_its_undo_does_nothing() {
    let site = Site::start().await;
    let impatient = site.rig.impatient(Duration::from_secs(2)).await;
    let fence = fence_on(impatient, None);
    let before = fence.look().await.unwrap();
    for answer in [
        None,
        Some(Told::status(504, "Timeout", "request did not complete")),
    ] {
        let scale = on("patch", "statefulsets/scale");
        site.double().next(scale, Fault::LandsLater(answer));
        let done = fence.scale_down(&before, &|| Ok(())).await;
        assert!(matches!(done, Err(ClusterError::Unknown(_))), "{done:?}");
    }
    assert_eq!(site.replicas(), 1, "a read shows nothing of it");
    let version = || {
        let set = site
            .double()
            .object(("statefulsets", "shop", "db"))
            .unwrap();
        set["metadata"]["resourceVersion"].clone()
    };
    let earlier = version();
    site.fence.undo(&before, "plan 7").await.unwrap();
    assert_ne!(version(), earlier, "the undo changes something");
    assert_eq!(site.double().land(), [false, false]);
    assert_eq!(site.replicas(), 1);
}

#[tokio::test]
async fn an_undo_gives_back_the_replicas_and_the_pods_start() {
    let site = Site::with(2, true, Settings::default()).await;
    let (before, cut) = site.cut().await;
    let proof = site.fenced(&(before.clone(), cut)).await;
    until("it is undone", async || {
        site.fence.undo(&before, "plan 7").await.is_ok()
    })
    .await;
    assert_eq!(site.replicas(), 2);
    until("the pods run", async || {
        site.held.began.lock().unwrap().len() == 4
    })
    .await;
    let doubts = site.fence.recheck(&proof).await.unwrap();
    assert!(
        matches!(&doubts[..], [Doubt::Rescaled { .. }]),
        "{doubts:?}"
    );
}

#[tokio::test]
async fn a_fence_without_the_right_names_what_it_lacks() {
    let site = Site::start().await;
    let missing = |needs: Vec<_>| needs.iter().map(ToString::to_string).collect::<Vec<_>>();
    let needs = site.fence.needs();
    let found = site.rig.cluster.missing(&needs).await.unwrap();
    assert_eq!(missing(found), Vec::<String>::new());
    site.double()
        .permit(on("patch", "statefulsets/scale"), false);
    let found = site.rig.cluster.missing(&needs).await.unwrap();
    let expected = "patch statefulsets.apps/scale in namespace shop (db)";
    assert_eq!(missing(found), [expected]);
    let before = site.fence.look().await.unwrap();
    for error in [
        site.fence.rehearse().await.unwrap_err(),
        site.fence
            .scale_down(&before, &|| Ok(()))
            .await
            .unwrap_err(),
    ] {
        let ClusterError::Forbidden { verb, resource, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(
            (verb, resource.as_str()),
            ("patch", "statefulsets.apps/scale")
        );
    }
    assert_eq!(site.replicas(), 1);
}

/// What a role must allow is exactly what is called.
#[tokio::test]
async fn every_call_of_a_fence_is_one_that_it_says_it_needs() {
    let site = Site::start().await;
    let before = site.fence.look().await.unwrap();
    site.fence.rehearse().await.unwrap();
    let cut = site.scale_down(&before).await;
    let proof = site.fenced(&(before.clone(), cut)).await;
    site.fence.recheck(&proof).await.unwrap();
    until("it is undone", async || {
        site.fence.undo(&before, "plan 7").await.is_ok()
    })
    .await;
    until("it is settled", async || {
        site.fence.undo(&before, "plan 8").await.is_ok()
    })
    .await;
    let needs = site.fence.needs();
    let needed: BTreeSet<_> = needs
        .iter()
        .map(|need| (need.verb, need.resource.plural, need.subresource))
        .collect();
    // The test itself made the StatefulSet.
    let calls = site.double().calls();
    let called: BTreeSet<_> = calls
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
    assert_eq!(called, needed);
}

/// As the controller knows it: everything it keeps goes through its log as text.
#[tokio::test]
async fn the_port_fences_proves_checks_again_and_takes_it_back() {
    use failover::ports::InfrastructureFence;

    let site = Site::start().await;
    let fence: &dyn InfrastructureFence = &site.fence;
    fence.rehearse().await.unwrap();
    let before = fence.look().await.unwrap();
    let over = || Err(EffectError::Failed("stood still".to_owned()));
    let done = fence.fence(&before, None, LONG, &over).await;
    assert_eq!(done, Err(EffectError::Failed("stood still".to_owned())));
    assert_eq!(site.replicas(), 1);

    let holder = site.uid("db-0");
    let mut proof = None;
    until("it is fenced", async || {
        let done = fence.fence(&before, Some(&holder), LONG, &|| Ok(())).await;
        proof = done.ok();
        proof.is_some()
    })
    .await;
    let proof = proof.unwrap();
    assert!(
        proof
            .text
            .starts_with("the containers of pod `db-0` ended at "),
        "{proof:?}"
    );
    assert_eq!(fence.recheck(&proof).await, Ok(()));

    until("it is undone", async || {
        fence.undo(&before, "plan 7").await.is_ok()
    })
    .await;
    let said = fence.recheck(&proof).await.unwrap_err();
    assert!(
        matches!(&said, EffectError::Refused(text) if text.contains("1 replicas are wanted")),
        "{said}"
    );
    let foreign = failover::ports::FencedBefore {
        token: "{}".to_owned(),
    };
    let said = fence.undo(&foreign, "plan 7").await.unwrap_err();
    assert!(matches!(said, EffectError::Refused(_)), "{said}");
}

#[tokio::test]
async fn a_fence_that_is_not_proven_in_time_may_be_tried_again_and_one_that_cannot_be_may_not() {
    use failover::ports::InfrastructureFence;

    let site = Site::lasting().await;
    let fence: &dyn InfrastructureFence = &site.fence;
    let before = fence.look().await.unwrap();
    let again = async |holder: Option<&str>, within: Duration| loop {
        match fence.fence(&before, holder, within, &|| Ok(())).await {
            Err(EffectError::Conflict(_)) => {}
            other => return other,
        }
    };
    let said = again(None, SHORT).await.unwrap_err();
    let waits = matches!(&said, EffectError::Failed(text) if text.contains("container `main` of pod `db-0`"));
    assert!(waits, "{said}");
    let said = again(Some("00000000-0000-4000-8000-000000000000"), SHORT).await;
    assert!(matches!(said, Err(EffectError::Refused(_))), "{said:?}");
    site.let_end();
    let proof = again(None, LONG).await;
    assert!(proof.is_ok(), "{proof:?}");
}
