//! A host that is copied with everything on it, certificate and all, so that two agents and two
//! databases call themselves one site. Their storage is one: what one of them wrote, the other
//! finds when it starts.

use std::sync::Arc;
use std::time::Duration;

use super::machine::{Machine, Truth};
use super::processes::{Plant, Seat, start_agent};
use super::world::{Copied, Node, State, World};

impl State {
    /// Copies a host, if the one before is gone; whether it did.
    fn copy(&mut self, node: Node, now: Truth) -> bool {
        let taken = self.copy.as_ref().is_some_and(|copied| copied.machine.up);
        let fit = self.machine(node).answers() && self.memory(node).is_some();
        if taken || !fit {
            return false;
        }
        let memory = self.memory(node).clone();
        let mut machine = self.machine(node).clone();
        machine.arrive(now);
        self.copies = self.copies.saturating_add(1);
        self.copy = Some(Copied {
            of: node,
            machine,
            memory,
        });
        true
    }

    /// A host that starts as a primary finds what its copy has written, and the other way round.
    pub fn share_storage(&mut self, now: Truth, node: Node, copy: bool) {
        let Some(mut copied) = self.copy.take_if(|copied| copied.of == node) else {
            return;
        };
        let first = self.machine(node);
        if copy {
            copied.machine.find_written(first, now);
        } else {
            first.find_written(&copied.machine, now);
        }
        self.copy = Some(copied);
    }
}

impl Machine {
    /// A copy that was just switched on: nothing runs on it.
    fn arrive(&mut self, now: Truth) {
        self.lose_power(now);
        self.boot();
        self.thawed = None;
    }

    fn find_written(&mut self, other: &Machine, now: Truth) {
        let mine = self.wal.len();
        let more = other.wal.len() > mine && self.timeline == other.timeline;
        let last = mine.checked_sub(1);
        let follows = last.is_none_or(|last| self.wal.get(last) == other.wal.get(last));
        if more && follows && !self.running && !other.could_write(now) {
            self.wal.clone_from(&other.wal);
            self.heartbeat.clone_from(&other.heartbeat);
            self.epoch_row = other.epoch_row;
        }
    }
}

/// Copies a host, has both run for a while, and switches the copy off.
pub async fn copied(world: &Arc<World>, plant: &Arc<dyn Plant>, node: Node, lasts: Duration) {
    let number = world.with(|state, now| state.copy(node, now).then_some(state.copies));
    let Some(number) = number else { return };
    world.trace(|| format!("{node}  copy {number} is switched on"));
    let seat = Seat {
        node,
        copy: Some(number),
    };
    let started = start_agent(world, seat, plant).await;
    tokio::time::sleep(lasts).await;
    if let Ok(mut process) = started {
        process.kill(world);
    }
    world.with(|state, now| {
        if let Some(copied) = &mut state.copy {
            copied.machine.lose_power(now);
        }
    });
    world.trace(|| format!("{node}  copy {number} is switched off"));
}
