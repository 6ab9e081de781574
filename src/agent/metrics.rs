//! What the agent shows Prometheus, each read from what its keeper shows. `docs/metrics.md` is made
//! from this list.

use std::time::Duration;

use super::cluster::ClusterSeen;
use super::keeper::Shown;
use crate::adapters::exposition::{Family, Kind, UNBOUNDED, UNKNOWN, Value, alone, series};
use crate::engine::units::{MonoTime, WallTime};

/// The labels that all of them have.
pub const COMMON: &[&str] = &["group", "site"];

/// What is shown at the moment of a scrape.
#[derive(Debug)]
pub struct Scraped {
    /// The keeper's word.
    pub shown: Shown,
    /// Now.
    pub now: MonoTime,
    /// Now, for people.
    pub wall: WallTime,
    /// The cluster around it, once it was looked at.
    pub cluster: Option<ClusterSeen>,
}

/// All of them, in the order of the documentation.
pub const FAMILIES: &[Family<Scraped>] = &[
    Family {
        name: "build_info",
        kind: Kind::Gauge,
        labels: &["component", "version"],
        means: "Always 1: the program that answers.",
        from: "the program",
        read: |_| vec![series([&"agent", &env!("CARGO_PKG_VERSION")], true)],
    },
    Family {
        name: "agent_epoch",
        kind: Kind::Gauge,
        labels: &[],
        means: "The highest epoch that the agent knows.",
        from: "its memory",
        read: |scraped| alone(scraped.shown.epoch.0),
    },
    Family {
        name: "agent_holds_right",
        kind: Kind::Gauge,
        labels: &[],
        means: "Whether the site holds the right to take writes.",
        from: "the grants of the controller and the answers of the other agent",
        read: |scraped| alone(scraped.shown.may_write(scraped.now)),
    },
    Family {
        name: "agent_right_end_timestamp",
        kind: Kind::Seconds,
        labels: &[],
        means: "Until when it holds that right; 0: it holds none, +Inf: for ever.",
        from: "the same",
        read: |scraped| alone(right_end(scraped)),
    },
    Family {
        name: "agent_primary",
        kind: Kind::Gauge,
        labels: &[],
        means: "Whether the database runs as a primary.",
        from: "its guard",
        read: |scraped| alone(scraped.shown.primary),
    },
    Family {
        name: "agent_fenced",
        kind: Kind::Gauge,
        labels: &[],
        means: "Whether the site is fenced.",
        from: "its memory, and the guard's marker",
        read: |scraped| alone(scraped.shown.facts.fenced.is_some()),
    },
    Family {
        name: "agent_guard_up",
        kind: Kind::Gauge,
        labels: &[],
        means: "Whether the guard answered when it was last asked.",
        from: "its guard",
        read: |scraped| alone(scraped.shown.facts.guarded),
    },
    Family {
        name: "agent_answer_age",
        kind: Kind::Seconds,
        labels: &["from"],
        means: "How long ago the last question was asked that was answered; +Inf: none was.",
        from: "the answers",
        read: |scraped| {
            let since = |asked: MonoTime| scraped.now.since(asked);
            let waited = scraped.now.since(scraped.shown.at);
            let peer = scraped.shown.facts.peer;
            let peer = peer.map(|age| age.saturating_add(waited));
            vec![
                series([&"controller"], age(scraped.shown.answered.map(since))),
                series([&"peer"], age(peer)),
            ]
        },
    },
    Family {
        name: "agent_cluster_up",
        kind: Kind::Gauge,
        labels: &[],
        means: "Whether the API server of the site's cluster said that it is ready when it was last asked; NaN: there is none to ask, or it was not asked yet.",
        from: "the API server",
        read: |scraped| {
            let seen = scraped.cluster.as_ref();
            alone(seen.map_or(UNKNOWN, |seen| seen.look.is_ok().into()))
        },
    },
    Family {
        name: "agent_cluster_nodes",
        kind: Kind::Gauge,
        labels: &["ready"],
        means: "How many nodes of the site's cluster say that they are ready (`yes`), say that they are not (`no`), or have not said for a while (`unknown`); NaN: not known.",
        from: "the API server",
        read: |scraped| {
            let states = [("yes", Some(true)), ("no", Some(false)), ("unknown", None)];
            let series = states.map(|(name, ready)| series([&name], nodes(scraped, ready)));
            series.into()
        },
    },
    Family {
        name: "agent_cluster_credential_age",
        kind: Kind::Seconds,
        labels: &[],
        means: "How old the token is that the API server of the site's cluster is shown; NaN: the credential is none that is renewed, or was not used yet.",
        from: "the credential",
        read: |scraped| {
            let age = scraped
                .cluster
                .as_ref()
                .and_then(|seen| seen.credential_age);
            alone(age.map_or(UNKNOWN, Value::from))
        },
    },
];

/// How many nodes are in this state.
fn nodes(scraped: &Scraped, ready: Option<bool>) -> Value {
    let look = scraped
        .cluster
        .as_ref()
        .and_then(|seen| seen.look.as_ref().ok());
    let nodes = look.and_then(|look| look.nodes.as_ref());
    nodes.map_or(UNKNOWN, |nodes| {
        let count = nodes.iter().filter(|node| node.ready == ready).count();
        u64::try_from(count).unwrap_or(u64::MAX).into()
    })
}

fn age(known: Option<Duration>) -> Value {
    known.map_or(UNBOUNDED, Value::from)
}

fn right_end(scraped: &Scraped) -> Value {
    if !scraped.shown.may_write(scraped.now) {
        return WallTime(0).into();
    }
    match scraped.shown.right.flatten() {
        Some(until) => {
            let now = Duration::from_millis(scraped.wall.0);
            now.saturating_add(scraped.now.until(until)).into()
        }
        None => UNBOUNDED,
    }
}
