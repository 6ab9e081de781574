//! The sites' clusters, in a share of the seeds, reduced to what a fence by one turns on: an API server,
//! a StatefulSet of one pod (here the site's whole host), and a kubelet, which alone ends and starts it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::chance::Chance;
use super::machine::Truth;
use super::world::{Node, State, World};

mod fence;

pub use fence::{Seen, SimInfrastructure};

/// A site's cluster.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// The version of the StatefulSet: it rises with every change.
    pub version: u64,
    /// Whether its one pod is wanted.
    pub wanted: bool,
    /// The pod's uid.
    pub pod: u64,
    /// Whether the API server has an object of it.
    pub listed: bool,
    /// Whether its kubelet said that all of it has ended.
    pub ended: bool,
    /// Until when the API server answers nobody.
    pub down: Truth,
    /// Until when the kubelet does not reach the API server.
    pub cut: Truth,
    /// Since when the host has no power.
    pub unpowered: Option<Truth>,
    /// Whether the pod is to end, whatever is wanted now.
    deleted: bool,
    /// Whether its kubelet is at work.
    busy: bool,
}

/// After so long the cloud says that a machine without power is gone, and so is its Node.
const GONE_AFTER: Duration = Duration::from_secs(5);

impl Cluster {
    fn new() -> Self {
        Self {
            version: 1,
            wanted: true,
            pod: 1,
            listed: true,
            ended: false,
            down: Duration::ZERO,
            cut: Duration::ZERO,
            unpowered: None,
            deleted: false,
            busy: false,
        }
    }

    /// Whether the cloud says that the machine is gone.
    fn machine_is_gone(&self, now: Truth) -> bool {
        self.unpowered
            .is_some_and(|since| now.saturating_sub(since) >= GONE_AFTER)
    }

    /// The number of replicas is changed.
    fn scale(&mut self, wanted: bool) {
        self.version = self.version.saturating_add(1);
        self.wanted = wanted;
        self.deleted |= !wanted;
    }
}

impl State {
    /// A site's cluster, if it is one.
    pub fn cluster(&mut self, node: Node) -> Option<&mut Cluster> {
        self.clusters[usize::from(node == Node::Second)].as_mut()
    }
}

/// Whether the sites of a seed are clusters. Drawn from a chance of its own: a seed without them runs as if
/// there were none at all.
pub fn of_seed(seed: u64) -> bool {
    Chance::new(seed ^ 0x6b75_6265).percent(40)
}

/// Makes both sites clusters, in which things go wrong by themselves.
pub fn found(world: &Arc<World>) {
    world.with(|state, _| state.clusters = [Some(Cluster::new()), Some(Cluster::new())]);
    for node in Node::SITES {
        tokio::spawn(go_wrong(Arc::clone(world), node));
    }
}

/// A host loses power: what runs there ends, and nobody says so.
pub fn lose_power(state: &mut State, node: Node, now: Truth) {
    state.machine(node).lose_power(now);
    if let Some(cluster) = state.cluster(node) {
        cluster.unpowered.get_or_insert(now);
    }
}

/// Power is back: what is wanted there starts.
pub fn boot(state: &mut State, node: Node) {
    if let Some(cluster) = state.cluster(node) {
        cluster.unpowered = None;
        if cluster.deleted || !cluster.wanted {
            return;
        }
    }
    state.machine(node).boot();
}

/// What a kubelet does next.
enum Next {
    /// Everything is as it is wanted.
    Nothing,
    /// It learns of nothing, or can do nothing.
    Wait,
    End,
    Start,
    /// The object goes, some time after the last word about it.
    Vanish,
}

fn next(state: &mut State, node: Node, now: Truth) -> Next {
    let (up, frozen) = {
        let machine = state.machine(node);
        (machine.up, machine.frozen)
    };
    let Some(cluster) = state.cluster(node) else {
        return Next::Nothing;
    };
    let reaches = cluster.unpowered.is_none() && !frozen && now >= cluster.cut.max(cluster.down);
    let next = match (cluster.deleted, up) {
        (true, _) if !reaches => Next::Wait,
        (true, false) if cluster.ended => Next::Vanish,
        (true, _) => Next::End,
        (false, false) if cluster.wanted && !cluster.listed && reaches => Next::Start,
        (false, false) if cluster.wanted && !cluster.listed => Next::Wait,
        (false, _) => Next::Nothing,
    };
    cluster.busy = !matches!(next, Next::Nothing);
    next
}

/// How often a kubelet looks that can do nothing.
const LOOKS: Duration = Duration::from_millis(250);

/// A kubelet brings about what is wanted, and says so.
async fn keep(world: Arc<World>, node: Node) {
    loop {
        let (next, takes) = world.with(|state, now| {
            let next = next(state, node, now);
            let takes = match next {
                Next::Nothing | Next::Wait => LOOKS,
                Next::End => state.chance.millis(10, 900),
                Next::Start => state.chance.millis(200, 3_000),
                Next::Vanish => state.chance.millis(30, 900),
            };
            (next, takes)
        });
        if matches!(next, Next::Nothing) {
            return;
        }
        tokio::time::sleep(takes).await;
        world.with(|state, now| done(state, node, &next, now));
        world.changed();
    }
}

fn done(state: &mut State, node: Node, next: &Next, now: Truth) {
    match next {
        Next::Nothing | Next::Wait => {}
        Next::End => {
            state.machine(node).lose_power(now);
            state
                .checks
                .trace(now, format!("{node}  its pod has ended"));
            if let Some(cluster) = state.cluster(node) {
                // A kubelet that is cut off says it later.
                cluster.ended = now >= cluster.cut.max(cluster.down);
            }
        }
        Next::Vanish => {
            if let Some(cluster) = state.cluster(node) {
                cluster.listed = false;
                cluster.deleted = false;
            }
        }
        Next::Start => {
            let starts = state.cluster(node).is_some_and(|cluster| {
                let starts = cluster.wanted && cluster.unpowered.is_none();
                if starts {
                    cluster.pod = cluster.pod.saturating_add(1);
                    (cluster.listed, cluster.ended) = (true, false);
                }
                starts
            });
            if starts {
                state.machine(node).boot();
                state
                    .checks
                    .trace(now, format!("{node}  another pod starts"));
            }
        }
    }
}

/// Has the kubelet learn of a change, unless it is at work already.
fn changed(world: &Arc<World>, node: Node) {
    let idle = world.with(|state, _| {
        let cluster = state.cluster(node);
        cluster.is_some_and(|cluster| !std::mem::replace(&mut cluster.busy, true))
    });
    if idle {
        tokio::spawn(keep(Arc::clone(world), node));
    }
}

/// What goes wrong in a cluster, for ever.
async fn go_wrong(world: Arc<World>, node: Node) {
    loop {
        let (what, gap, lasts) = world.with(|state, _| {
            let what = state.chance.below(5);
            let gap = state.chance.millis(2_000, 60_000);
            (what, gap, state.chance.millis(200, 40_000))
        });
        tokio::time::sleep(gap).await;
        world.with(|state, now| {
            let Some(cluster) = state.cluster(node) else {
                return;
            };
            let until = now.saturating_add(lasts);
            let text = match what {
                0 => {
                    cluster.down = until;
                    "its API server is down"
                }
                1 => {
                    cluster.cut = until;
                    "its kubelet is cut off"
                }
                2 => {
                    // The object is gone, and the pod runs on.
                    cluster.cut = until;
                    (cluster.listed, cluster.deleted) = (false, true);
                    "its kubelet is cut off, and its pod's object is collected"
                }
                // A reconciler, or a person.
                _ => {
                    cluster.scale(true);
                    "the replicas are put back"
                }
            };
            state.checks.trace(now, format!("{node}  {text}"));
        });
        changed(&world, node);
    }
}

/// What fences each site that is a cluster.
pub fn fences(place: &super::site_ports::Place) -> BTreeMap<Node, Arc<SimInfrastructure>> {
    let there = |node: &Node| place.world.with(|state, _| state.cluster(*node).is_some());
    let nodes = Node::SITES.into_iter().filter(there);
    let each = nodes.map(|node| (node, Arc::new(SimInfrastructure::new(place.clone(), node))));
    each.collect()
}
