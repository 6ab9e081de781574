//! What a role must allow is written down, and is what the code says it needs.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use failover::adapters::kubernetes::fence::{FenceSettings, StatefulSetFence};
use failover::adapters::kubernetes::operator::OperatorCluster;
use failover::adapters::kubernetes::workloads::{Kind, KubernetesWorkloads, Which, Workload};
use failover::adapters::kubernetes::{Cluster, Need};

use super::rig::{Rig, clock};

/// What for, the verb, the resource.
type Row = (String, String, String);

fn rows(what: &str, needs: &[Need]) -> Vec<Row> {
    let row = |need: &Need| {
        let resource = need.resource.shown(need.subresource);
        (what.to_owned(), need.verb.to_owned(), resource)
    };
    needs.iter().map(row).collect()
}

fn written() -> BTreeSet<Row> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/kubernetes-api.md");
    let text = std::fs::read_to_string(page).unwrap();
    let cells = |line: &str| -> Option<Row> {
        let mut cells = line.strip_prefix("| ")?.split(" | ").map(ToOwned::to_owned);
        Some((cells.next()?, cells.next()?, cells.next()?))
    };
    let rows = text.lines().filter_map(cells);
    rows.filter(|(what, _, _)| what != "for" && what != "---")
        .collect()
}

/// What the code says it needs of the database `db` and of workloads of every kind, by name and by
/// label, in the namespace `shop`: by what it is for.
pub(crate) async fn needed() -> Vec<(&'static str, Vec<Need>)> {
    let rig = Rig::start().await;
    let settings = FenceSettings {
        namespace: "shop".to_owned(),
        name: "db".to_owned(),
        poll: Duration::from_millis(100),
        lease_fresh: Duration::from_secs(40),
    };
    let fence = StatefulSetFence::new(rig.cluster.clone(), settings, None, clock()).unwrap();
    let kinds = [Kind::Deployment, Kind::StatefulSet, Kind::CronJob];
    let list = kinds.into_iter().flat_map(|kind| {
        let named = Which::Named("web".to_owned());
        let labelled = Which::Labelled("tier=web".to_owned());
        [named, labelled].map(|which| Workload { kind, which })
    });
    let workloads = KubernetesWorkloads::new(rig.cluster.clone(), "shop", list.collect()).unwrap();
    let operator = OperatorCluster::new(rig.cluster.clone(), "shop", "db").unwrap();
    vec![
        ("health", Cluster::needs()),
        ("fence", fence.needs()),
        ("workloads", workloads.needs()),
        ("operator", operator.needs()),
    ]
}

#[tokio::test]
async fn the_page_lists_exactly_what_the_code_needs() {
    let needed = needed().await;
    let needed = needed.iter().flat_map(|(what, needs)| rows(what, needs));
    let needed: BTreeSet<Row> = needed.collect();
    let written = written();
    let missing: Vec<_> = needed.difference(&written).collect();
    let surplus: Vec<_> = written.difference(&needed).collect();
    assert!(
        missing.is_empty() && surplus.is_empty(),
        "docs/kubernetes-api.md lacks {missing:?} and has too much: {surplus:?}"
    );
}

/// Whoever may do what is listed lacks nothing, and whoever may not is told which.
#[tokio::test]
async fn what_is_not_allowed_is_found_before_it_is_needed() {
    use failover::lab::doubles::kubernetes::faults::on;

    let rig = Rig::start().await;
    let operator = OperatorCluster::new(rig.cluster.clone(), "shop", "db").unwrap();
    let needs = [Cluster::needs(), operator.needs()].concat();
    assert_eq!(rig.cluster.missing(&needs).await, Ok(Vec::new()));
    rig.double().permit(on("patch", "clusters"), false);
    rig.double().permit(on("list", "nodes"), false);
    let missing = rig.cluster.missing(&needs).await.unwrap();
    let told: Vec<String> = missing.iter().map(ToString::to_string).collect();
    let expected = [
        "list nodes",
        "patch clusters.postgresql.cnpg.io in namespace shop (db)",
    ];
    assert_eq!(told, expected);
}
