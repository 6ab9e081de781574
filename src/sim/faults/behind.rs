//! What somebody does at a host behind the backs of agent and guard.

use std::time::Duration;

use crate::engine::topology::Role;
use crate::sim::machine::Truth;
use crate::sim::world::{Node, State, World};

/// The file is there where it was not, or gone where it was, and the other way round after a while.
pub(super) async fn standby_file(world: &World, node: Node, lasts: Duration) {
    let turn = |state: &mut State, now| {
        let machine = state.machine(node);
        let other = match machine.files {
            Role::Primary => Role::Standby,
            Role::Standby => Role::Primary,
        };
        machine.put_files(other, now);
        (machine.role, other)
    };
    let (role, files) = world.with(turn);
    world.trace(|| format!("{node}  a {role} with the files of a {files}"));
    tokio::time::sleep(lasts).await;
    world.with(|state, now| {
        let machine = state.machine(node);
        let (role, files) = (machine.role, machine.files);
        if files != role {
            machine.put_files(role, now);
        }
    });
}

/// Somebody starts what is there, if nothing runs; whether they did.
pub fn start_by_hand(
    state: &mut State,
    now: Truth,
    node: Node,
    ready: Truth,
    seen: Option<Truth>,
) -> bool {
    let machine = state.machine(node);
    let free = machine.up && !machine.frozen && !machine.running && machine.fence.is_none();
    // A standby without its file would go on as a primary on the other's timeline: that is no fault
    // that anybody mends but the one who did both.
    if !free || machine.ruined || machine.unfit().is_some() {
        return false;
    }
    machine.start_by_hand(now, ready, seen);
    let role = machine.role;
    state
        .checks
        .trace(now, format!("{node}  a {role} is started by hand"));
    true
}

/// The same as a fault: the guard sees it after a moment.
pub(super) fn started_by_hand(world: &World, node: Node) {
    world.with(|state, now| {
        let ready = now.saturating_add(state.chance.millis(50, 400));
        let seen = now.saturating_add(state.chance.millis(10, 200));
        start_by_hand(state, now, node, ready, Some(seen));
    });
}

/// Somebody sets a clock, or it was wrong and is mended.
pub(super) fn clock_steps(world: &World) {
    world.with(|state, now| {
        let places = [Node::Neutral, Node::First, Node::Second];
        let node = state.chance.pick(&places).unwrap_or(Node::First);
        let hours = i64::try_from(state.chance.below(6 * 3_600_000)).unwrap_or(0);
        let by = state.chance.pick(&[-hours, hours]).unwrap_or(0);
        state.step_clock(node, by);
        state
            .checks
            .trace(now, format!("{node}  clock steps by {by} ms"));
    });
}

/// The old primary is made anew from the new one, as a runbook would have it.
pub(super) fn rebuild(world: &World, node: Node) {
    world.with(|state, now| {
        let site = state.machine(node.peer()).site.clone();
        let leads = state.checks.active() == Some(site) && state.checks.going_to().is_none();
        let source = state.machine(node.peer());
        let source = source.answers() && source.could_write(now);
        let machine = state.machine(node);
        let behind = machine.up && !machine.frozen && machine.fence.is_none();
        let stale = behind && !machine.running && machine.role == Role::Primary;
        if leads && source && stale {
            state.rebuild(node, now);
            state
                .checks
                .trace(now, format!("{node}  rebuilt as a standby"));
        }
    });
}
