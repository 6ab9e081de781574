//! A site that an operator owns: its `Cluster` object promoted, demoted and fenced.

use failover::adapters::kubernetes::operator::{
    FencedInstances, Open, OperatorCluster, OperatorLook, Promotion,
};
use failover::adapters::kubernetes::{ClusterError, resources};
use failover::lab::doubles::kubernetes::faults::{Fault, Told, on};
use serde_json::{Value, json};

use super::rig::Rig;

const AT: (&str, &str, &str) = ("clusters", "shop", "db");

async fn started() -> (Rig, OperatorCluster) {
    let rig = Rig::start().await;
    let body = json!({
        "metadata": {"name": "db"},
        "spec": {
            "instances": 2,
            "replica": {"self": "gcp", "primary": "aws", "source": "aws", "promotionToken": "old"},
        },
    });
    rig.create(resources::DATABASE_CLUSTERS, body).await;
    let operator = OperatorCluster::new(rig.cluster.clone(), "shop", "db").unwrap();
    (rig, operator)
}

/// What the operator would write.
fn says(rig: &Rig, status: &Value) {
    let at = ("clusters/status", "shop", "db");
    let body = json!({"status": status});
    rig.double()
        .write_as("manager", at, (false, &body))
        .unwrap();
}

fn spec(rig: &Rig) -> Value {
    rig.double().object(AT).unwrap()["spec"]["replica"].clone()
}

#[tokio::test]
async fn a_promotion_names_itself_primary_and_takes_no_old_token() {
    let (rig, operator) = started().await;
    let look = operator
        .promote("aws", &Promotion::Unplanned)
        .await
        .unwrap();
    assert_eq!(look.primary.as_deref(), Some("gcp"));
    let expected = json!({"self": "gcp", "primary": "gcp", "source": "aws"});
    assert_eq!(spec(&rig), expected);
    let before = look.version;
    let again = operator
        .promote("aws", &Promotion::Unplanned)
        .await
        .unwrap();
    assert_eq!(again.version, before, "done already is done");
}

#[tokio::test]
async fn a_planned_promotion_needs_the_token_and_passes_it_on() {
    let (rig, operator) = started().await;
    let planned = |token: &str| Promotion::Planned {
        token: token.to_owned(),
    };
    let said = operator.promote("aws", &planned(" ")).await.unwrap_err();
    assert!(matches!(said, ClusterError::Refused(_)), "{said}");
    operator
        .promote("aws", &planned("all of it"))
        .await
        .unwrap();
    assert_eq!(spec(&rig)["promotionToken"], json!("all of it"));
}

#[tokio::test]
async fn a_cluster_that_somebody_promoted_by_hand_is_a_conflict() {
    let (rig, operator) = started().await;
    let by_hand = json!({"spec": {"replica": {"primary": "azure"}}});
    rig.double()
        .write_as("kubectl-edit", AT, (false, &by_hand))
        .unwrap();
    let promoted = operator.promote("aws", &Promotion::Unplanned).await;
    let demoted = operator.demote("aws").await;
    for done in [promoted, demoted] {
        let said = done.unwrap_err();
        assert!(
            matches!(&said, ClusterError::Conflict(said) if said.contains("`azure`")),
            "{said}"
        );
    }
    assert_eq!(spec(&rig)["primary"], json!("azure"));
}

#[tokio::test]
async fn a_demoted_site_follows_the_other_and_shows_its_token() {
    let (rig, operator) = started().await;
    operator
        .promote("aws", &Promotion::Unplanned)
        .await
        .unwrap();
    operator.demote("aws").await.unwrap();
    assert_eq!(spec(&rig)["primary"], json!("aws"));
    assert_eq!(operator.look().await.unwrap().demotion_token, None);
    says(&rig, &json!({"demotionToken": "all of it"}));
    let token = operator.look().await.unwrap().demotion_token;
    assert_eq!(token.as_deref(), Some("all of it"));
    let again: OperatorLook = operator.demote("aws").await.unwrap();
    assert_eq!(again.primary.as_deref(), Some("aws"));
}

#[tokio::test]
async fn a_fence_is_proven_by_a_status_in_which_nothing_serves() {
    let (rig, operator) = started().await;
    let up = json!({
        "instanceNames": ["db-1", "db-2"], "readyInstances": 2,
        "instancesStatus": {"healthy": ["db-1", "db-2"]},
    });
    says(&rig, &up);
    let before = operator.look().await.unwrap();
    assert_eq!(before.open(), Some(Open::NotFenced));
    let look = operator.fence().await.unwrap();
    assert!(
        matches!(look.open(), Some(Open::Serving { ready: 2, .. })),
        "{look:?}"
    );
    says(
        &rig,
        &json!({"readyInstances": 0, "instancesStatus": {"healthy": []}}),
    );
    let look = operator.look().await.unwrap();
    assert_eq!(look.open(), None);
    assert_eq!(
        look.instances.len(),
        2,
        "each still has to refuse a connection"
    );
    operator.undo(&before, "plan 7").await.unwrap();
    let look = operator.look().await.unwrap();
    assert_eq!(
        (look.fenced, look.version.uid),
        (FencedInstances::None, before.version.uid)
    );
}

#[tokio::test]
async fn an_undo_gives_back_the_instances_that_somebody_else_fenced() {
    let (rig, operator) = started().await;
    let one = json!({"metadata": {"annotations": {"cnpg.io/fencedInstances": "[\"db-2\"]"}}});
    rig.double()
        .write_as("kubectl-cnpg", AT, (false, &one))
        .unwrap();
    let before = operator.look().await.unwrap();
    operator.fence().await.unwrap();
    operator.undo(&before, "plan 7").await.unwrap();
    let back = operator.look().await.unwrap();
    assert_eq!(
        back.fenced,
        FencedInstances::Some(["db-2".to_owned()].into())
    );
}

/// Its webhook refuses the fence then, too: known beforehand, and nothing was done.
#[tokio::test]
async fn an_operator_that_is_down_refuses_every_change_and_the_rehearsal() {
    let (rig, operator) = started().await;
    operator.rehearse().await.unwrap();
    let look = operator.look().await.unwrap();
    assert_eq!(
        look.fenced,
        FencedInstances::None,
        "a rehearsal changes nothing"
    );
    rig.double().operator_down(true);
    for said in [
        operator.rehearse().await.unwrap_err(),
        operator.fence().await.unwrap_err(),
        operator
            .promote("aws", &Promotion::Unplanned)
            .await
            .unwrap_err(),
    ] {
        assert!(
            matches!(&said, ClusterError::Failed(said) if said.contains("webhook")),
            "{said}"
        );
    }
    assert_eq!(operator.look().await.unwrap(), look);
}

#[tokio::test]
async fn a_fence_that_lands_after_its_undo_does_nothing() {
    let (rig, operator) = started().await;
    let before = operator.look().await.unwrap();
    let told = Told::text(500, "etcdserver: request timed out");
    rig.double()
        .next(on("patch", "clusters"), Fault::LandsLater(Some(told)));
    let said = operator.fence().await.unwrap_err();
    assert!(matches!(said, ClusterError::Unknown(_)), "{said}");
    operator.undo(&before, "plan 7").await.unwrap();
    assert_eq!(rig.double().land(), [false]);
    assert_eq!(operator.look().await.unwrap().fenced, FencedInstances::None);
}

/// The object is read, and the operator's own definition is not there.
#[tokio::test]
async fn a_cluster_without_the_operator_or_outside_a_topology_is_refused() {
    let (rig, operator) = started().await;
    let absent = Fault::Answer(Told::text(404, "404 page not found\n"));
    rig.double().next(on("get", "clusters"), absent);
    let said = operator.look().await.unwrap_err();
    assert!(matches!(said, ClusterError::Refused(_)), "{said}");
    let alone = json!({"spec": {"replica": null}});
    rig.double()
        .write_as("kubectl-edit", AT, (false, &alone))
        .unwrap();
    let said = operator
        .promote("aws", &Promotion::Unplanned)
        .await
        .unwrap_err();
    assert!(
        matches!(&said, ClusterError::Refused(said) if said.contains("no distributed topology")),
        "{said}"
    );
}
