//! The partition table: each way in which the links between the three places can be down, and what
//! else can be wrong, as data; and how a row happens in a run.

use std::sync::Arc;
use std::time::Duration;

use super::invariant::Invariant;
use super::world::{Node, World};
use crate::engine::policy::{Durability, Policy};
use crate::engine::timers::timers;

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// What is wrong, in words.
    pub name: &'static str,
    /// The directions of links in which nothing passes.
    pub cut: Cut,
    /// What else is wrong.
    pub harm: Harm,
}

/// Directions of links, each from a place to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    ways: &'static [(Node, Node)],
    /// One of them in which all passes again.
    pub mended: Option<(Node, Node)>,
}

/// What else is wrong with the active site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// Nothing.
    None,
    /// All of it lost power, for good.
    Site,
    /// Its PostgreSQL ended and does not start again; its agent lives.
    Database,
    /// Its service ended; its database is well.
    Service,
}

const N: Node = Node::Neutral;
const A: Node = Node::First;
const P: Node = Node::Second;
const C: Node = Node::Clients;

/// Every row. A is the active site, P the passive one, N the place of the controller.
pub const ROWS: [Row; 14] = [
    row("all is well", &[], Harm::None),
    row("users do not reach A", &[(C, A), (A, C)], Harm::None),
    row("the controller lost A", &[(N, A), (A, N)], Harm::None),
    row(
        "the controller lost A, whose database is down",
        &[(N, A), (A, N)],
        Harm::Database,
    ),
    row(
        "A is cut off, and users reach it",
        &[(N, A), (A, N), (A, P), (P, A)],
        Harm::None,
    ),
    row(
        "A is cut off from everybody",
        &[(N, A), (A, N), (A, P), (P, A), (C, A), (A, C)],
        Harm::None,
    ),
    row("the whole of A is lost", &[], Harm::Site),
    row("the sites lost each other", &[(A, P), (P, A)], Harm::None),
    row("the controller lost P", &[(N, P), (P, N)], Harm::None),
    row(
        "P is cut off",
        &[(N, P), (P, N), (A, P), (P, A)],
        Harm::None,
    ),
    row(
        "the controller is cut off",
        &[(N, A), (A, N), (N, P), (P, N)],
        Harm::None,
    ),
    row(
        "everybody is cut off",
        &[(N, A), (A, N), (N, P), (P, N), (A, P), (P, A)],
        Harm::None,
    ),
    row("the service of A is down", &[], Harm::Service),
    row("the database of A is down", &[], Harm::Database),
];

const fn row(name: &'static str, cut: &'static [(Node, Node)], harm: Harm) -> Row {
    let cut = Cut::of(cut);
    Row { name, cut, harm }
}

impl Row {
    /// The same with one of its links down in one direction only: each link, each direction.
    pub fn one_way(self) -> Vec<Row> {
        let each = self.cut.ways.iter().map(|way| Cut {
            mended: Some(*way),
            ..self.cut
        });
        each.map(|cut| Row { cut, ..self }).collect()
    }

    /// A link as the table shows it. Where a site is lost nothing passes to it or from it.
    pub fn link(&self, one: Node, other: Node) -> String {
        let lost = self.harm == Harm::Site && [one, other].contains(&A);
        let down = |from, to| lost || self.cut.has(from, to);
        match (down(one, other), down(other, one)) {
            (false, false) => "up".to_owned(),
            (true, true) => "down".to_owned(),
            (true, false) => format!("{one}→{other} down"),
            (false, true) => format!("{other}→{one} down"),
        }
    }

    /// Whether a user's write could be acknowledged by the active site when the row begins.
    pub fn users_reach_active(&self) -> bool {
        let cut = |from, to| self.cut.has(from, to);
        self.harm == Harm::None && !cut(C, A) && !cut(A, C)
    }
}

impl Cut {
    /// Nothing passes in these directions.
    pub const fn of(ways: &'static [(Node, Node)]) -> Cut {
        let mended = None;
        Cut { ways, mended }
    }

    /// Every direction in which nothing passes.
    pub fn ways(self) -> impl Iterator<Item = (Node, Node)> {
        let ways = self.ways.iter().copied();
        ways.filter(move |way| Some(*way) != self.mended)
    }

    fn has(self, from: Node, to: Node) -> bool {
        self.ways().any(|way| way == (from, to))
    }
}

/// How long it takes at most until commits wait for the standby.
const COMMITS_WAIT: Duration = Duration::from_secs(15);

/// When a row happens, and how long it is watched.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// The pair is steady: the controller is past its grace, with evidence from everywhere.
    steady: Duration,
    /// The row happens at any moment of so long after that, so that it meets every phase of probes
    /// and renewals.
    any: Duration,
    /// Five times `fail_after`, and no less than the worst case of a failover takes.
    pub watched: Duration,
}

impl Span {
    /// What follows from a policy.
    pub fn of(policy: &Policy) -> Span {
        let detect = &policy.detect;
        let worst = timers(policy).into_iter().filter_map(|timer| timer.worst);
        let worst = worst.max().unwrap_or_default();
        let held = detect.fail_after.saturating_mul(5);
        Span {
            steady: policy
                .automation
                .startup_grace
                .saturating_add(detect.stale_after.saturating_mul(2))
                .saturating_add(match policy.data.durability {
                    Durability::Async => Duration::ZERO,
                    Durability::Sync => COMMITS_WAIT,
                }),
            any: detect.probe_every.saturating_mul(2),
            watched: held.max(worst.saturating_add(detect.stale_after)),
        }
    }

    /// How long a run lasts.
    pub fn lasting(&self) -> Duration {
        self.steady
            .saturating_add(self.any)
            .saturating_add(self.watched)
    }
}

/// A row happens, and nothing of it is mended.
pub async fn happen(world: Arc<World>, row: Row) {
    let span = Span::of(&world.policy);
    let any = u64::try_from(span.any.as_millis()).unwrap_or(u64::MAX);
    let late = world.with(|state, _| state.chance.millis(0, any));
    tokio::time::sleep(span.steady.saturating_add(late)).await;
    world.with(|state, now| {
        let log = state.checks.chain();
        let waits = log.state().is_some_and(|group| group.window.is_closed());
        if world.policy.data.durability == Durability::Sync && !waits {
            let what = "commits do not wait for the standby of a pair that is well".to_owned();
            state.checks.violated(Invariant::Liveness, now, what);
        }
        for (from, to) in row.cut.ways() {
            state.set_link(now, from, to, false);
        }
        let active = state.machine(A);
        match row.harm {
            Harm::None => {}
            Harm::Site => active.lose_power(now),
            Harm::Database => {
                active.crash("signal 11");
                active.ruined = true;
            }
            Harm::Service => active.workloads = None,
        }
        state.fault = Some(now);
        state.checks.trace(now, format!("now {}", row.name));
    });
    world.changed();
}
