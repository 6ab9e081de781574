//! The keeper's state, published to the rest of the agent.

use super::{DatabaseState, Keeper, Postmark};
use crate::engine::chain::LogMark;
use crate::engine::format::WrittenBy;
use crate::engine::lease::Holder;
use crate::engine::situation::AgentFacts;
use crate::engine::topology::Role;
use crate::engine::units::{Epoch, MonoTime};

/// The keeper's published state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// The highest epoch it knows.
    pub epoch: Epoch,
    /// Whether it requests the write lease.
    pub asks: bool,
    /// When its lease expires, if it holds one; `Some(None)` is never.
    pub right: Option<Option<MonoTime>>,
    /// The epoch of that lease.
    pub right_in: Option<Epoch>,
    /// The end of the controller's log when it last heard of it.
    pub log: Option<LogMark>,
    /// When it asked the controller what that one answered last.
    pub answered: Option<MonoTime>,
    /// Whether the database runs as a primary.
    pub primary: bool,
    /// The report's facts. Ages in them count from `at`.
    pub facts: AgentFacts,
    /// The peer agent's newest mark, and when it came.
    pub peer_mark: Option<(Postmark, MonoTime)>,
    /// Which program the guard runs.
    pub guard: Option<WrittenBy>,
    /// When this was so.
    pub at: MonoTime,
}

impl Shown {
    /// Whether the site has the right to take writes.
    pub fn may_write(&self, now: MonoTime) -> bool {
        self.right
            .is_some_and(|until| until.is_none_or(|until| until > now))
    }

    /// Whether the right in the highest epoch that it knows has not ended since it was granted.
    pub fn holds(&self, now: MonoTime) -> bool {
        self.may_write(now) && self.right_in == Some(self.epoch)
    }
}

impl Keeper {
    pub(super) fn show(&self) {
        let now = self.clock.now();
        let recovering = self.recovery.as_ref();
        let database = match &self.down {
            None => recovering.map_or(DatabaseState::Up, |recovery| recovery.shown(now)),
            Some((since, _)) if self.waits_for_right() => DatabaseState::Waiting {
                since: now.since(*since),
            },
            Some((since, why)) => DatabaseState::Down {
                since: now.since(*since),
                why: self.why_down(why),
            },
        };
        let primary = self.look.role() == Role::Primary;
        let facts = AgentFacts {
            database,
            fenced: self
                .memory
                .fenced
                .max(self.look.fenced.as_ref().map(|(epoch, _)| *epoch)),
            severed: self.memory.severed,
            guarded: self.guarded,
            enforced_by: self.database.server.enforced_by(),
            machine: self.database.server.machine(),
            peer: self.peer_answered.map(|asked| now.since(asked)),
            peer_clock: self.peer_clock,
            synchrony: self.shown_synchrony(now),
            epoch_written: self
                .epoch_written
                .filter(|_| primary && self.look.running()),
            rehearsal: self.shown_rehearsal(now),
            slot: (!primary)
                .then(|| self.database.succession.asks_for_slot())
                .flatten(),
            vouched: Some(self.shown_vouched(now)),
            deals_with: self.memory.peer,
            foreign: self.look.foreign.clone(),
            pending: self.look.pending.clone(),
        };
        let promoting = self.promoting.is_some() || self.memory.promoting.is_some();
        let asks = promoting || (primary && self.memory.fenced.is_none());
        self.shown.send_replace(Shown {
            epoch: self.memory.epoch,
            asks,
            right: self.holder.as_ref().map(Holder::deadline),
            right_in: self.holder.as_ref().map(Holder::epoch),
            log: self.log,
            answered: self.answered,
            primary: primary && self.look.running(),
            facts,
            peer_mark: self.peer_mark,
            guard: self.look.guard.clone(),
            at: now,
        });
    }
}
