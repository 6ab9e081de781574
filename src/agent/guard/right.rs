//! The write lease as the guard holds it: armed, given up, and lifted from a fence.

use super::lookout::STALE;
use super::{Guard, as_nanos, marker};
use crate::agent::guard_protocol::{GuardReply, Right, boottime_ns};
use crate::engine::topology::Role;
use crate::engine::units::Epoch;

impl Guard {
    /// The only place where a lease is armed or extended.
    pub(super) fn arm(&mut self, asked: Right) -> Result<Right, String> {
        if self.fence.is_some() {
            return Err("a fence is under way: the lease has ended".to_owned());
        }
        if asked.epoch < self.epoch {
            return Err(format!(
                "epoch {} is over: this is epoch {}",
                asked.epoch, self.epoch
            ));
        }
        if let Some(marker) = self.marker.as_ref().filter(|it| it.epoch >= asked.epoch) {
            return Err(format!(
                "fenced at epoch {} ({}): `unfence` with a newer lease first",
                marker.epoch, marker.cause
            ));
        }
        if asked.deadline_ns <= boottime_ns() {
            return Err("the deadline has passed already: get a new lease first".to_owned());
        }
        let held = self.right.filter(|held| held.epoch == asked.epoch);
        let right = Right {
            epoch: asked.epoch,
            deadline_ns: held
                .map_or(0, |held| held.deadline_ns)
                .max(asked.deadline_ns),
        };
        self.epoch = asked.epoch;
        self.right = Some(right);
        Ok(right)
    }

    /// Gives the lease up for those who asked before the last sighting, or says why not. If a
    /// hanging disk prevents sightings, the requester is told so.
    pub(super) fn renounce_as_seen(&mut self) {
        let blind = boottime_ns().saturating_sub(as_nanos(STALE));
        let seen = |guard: &Self, asked_ns| {
            let sighting = guard.lookout.now();
            asked_ns <= blind || sighting.is_some_and(|it| it.is_after(asked_ns))
        };
        for (ticket, asked_ns) in std::mem::take(&mut self.renouncing) {
            if seen(self, asked_ns) {
                let answer = self.renounce();
                let answer = answer.unwrap_or_else(|why| GuardReply::Refused { why });
                self.wire.reply(ticket, answer);
            } else {
                self.renouncing.push((ticket, asked_ns));
            }
        }
    }

    pub(super) fn renounce(&mut self) -> Result<GuardReply, String> {
        if self.fence.is_some() {
            return Err("a fence is under way: wait for its end".to_owned());
        }
        match self.runs_as() {
            Some(Role::Primary) => {
                return Err("a primary runs: stop or fence it first".to_owned());
            }
            Some(Role::Standby) if !self.is_seen_in_recovery() => {
                return Err(
                    "the control file does not show yet that this is a standby: ask again"
                        .to_owned(),
                );
            }
            Some(Role::Standby) | None => {}
        }
        self.right = None;
        Ok(GuardReply::Done {})
    }

    pub(super) fn unfence(&mut self, epoch: Epoch) -> Result<GuardReply, String> {
        if self.fence.is_some() {
            return Err("a fence is under way: wait for its end".to_owned());
        }
        if let Some(marker) = self.marker.as_ref().filter(|it| it.epoch > epoch) {
            return Err(format!(
                "fenced at epoch {}: epoch {epoch} cannot lift that",
                marker.epoch
            ));
        }
        marker::remove(&self.config.state_dir)
            .map_err(|cause| format!("cannot remove `fenced.json`: {cause}"))?;
        self.marker = None;
        Ok(GuardReply::Done {})
    }
}
