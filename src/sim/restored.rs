//! A decision log that is restored from a backup, and the person who sets it right.

use std::time::Duration;

use super::faults::Kill;
use super::machine::Truth;
use super::world::{Node, State, World};
use crate::app::control::{Asked, Handle, Input};
use crate::engine::topology::{Role, SiteName};
use crate::engine::units::Epoch;
use crate::wire::AdoptAsk;

/// The log is what it was at some time before, or an empty one; the controllers start on it.
pub async fn log_restored(world: &World, kill: &Kill, lasts: Duration) {
    let away = lasts.min(Duration::from_secs(5));
    for controller in &kill.controllers {
        controller.send(away).unwrap_or_default();
    }
    // They end before it is replaced.
    tokio::time::sleep(Duration::from_millis(1)).await;
    let (left, all) = world.with(|state, now| {
        let all = state.log.len();
        let left = if state.chance.percent(20) {
            0
        } else {
            let back = state.chance.millis(0, 120_000);
            let taken = now.saturating_sub(back);
            state.logged.partition_point(|at| *at <= taken)
        };
        state.restore_log(now, left);
        (left, all)
    });
    world.trace(|| format!("N  log restored: {left} of {all} entries are left"));
    for _ in 0..20 {
        let pause = world.with(|state, _| state.chance.millis(500, 4_000));
        tokio::time::sleep(pause).await;
        if adopts(world).await {
            return;
        }
    }
}

/// A person who sees both sites says how the world stands; whether that is done.
async fn adopts(world: &World) -> bool {
    let Some((epoch, active)) = world.with(stands) else {
        return false;
    };
    let Some(door) = world.with(|state, _| state.a_controller()) else {
        return false;
    };
    let ask = AdoptAsk {
        epoch,
        active,
        reason: "simulated".to_owned(),
    };
    let handle: Handle = door.to.clone();
    let asked = async {
        world.alive(&door.life).await;
        let adopted = |answer| Input::Asked("ada".to_owned(), Asked::Adopt(ask, answer));
        handle.ask(adopted).await
    };
    let answer = tokio::time::timeout(Duration::from_secs(5), asked).await;
    let done = matches!(answer, Ok(Ok(Ok(()))));
    world.trace(|| format!("C  a person adopts epoch {epoch}: {answer:?}"));
    done
}

/// The epoch and the active site, where a person who looks at both hosts can tell: nothing at the
/// other one may begin to write.
fn stands(state: &mut State, now: Truth) -> Option<(Epoch, SiteName)> {
    let memories = Node::SITES.map(|node| state.memory(node).clone().unwrap_or_default());
    let note = state.traffic.0.epoch;
    let known = memories.iter().map(|memory| {
        let epochs = [Some(memory.epoch), memory.severed, memory.fenced];
        epochs.into_iter().flatten().max().unwrap_or_default()
    });
    let rows = Node::SITES.map(|node| state.machine(node).epoch_row);
    let marks = Node::SITES.map(|node| state.machine(node).marker.clone());
    let marks = marks.into_iter().flatten().map(|(epoch, _)| epoch);
    let epoch = known
        .chain(rows.into_iter().flatten())
        .chain(marks)
        .chain(note)
        .max()?;
    let mut found: Vec<(u32, Node)> = Vec::new();
    for node in Node::SITES {
        let machine = state.machine(node);
        if machine.role == Role::Primary {
            found.push((machine.timeline, node));
        }
    }
    let (timeline, node) = found.into_iter().max()?;
    // One that has gone on further lost its file: nobody who sees both gives that up.
    if state.machine(node.peer()).timeline > timeline {
        return None;
    }
    if !state.machine(node).answers() {
        return None;
    }
    let promotes = state.memory(node.peer()).as_ref();
    if promotes.is_none_or(|memory| memory.promoting.is_some()) {
        return None;
    }
    let other = state.machine(node.peer());
    let quiet = !other.could_write(now) && other.right.is_none() && !other.frozen;
    let site = state.machine(node).site.clone();
    quiet.then_some((epoch, site))
}
