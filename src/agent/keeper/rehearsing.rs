//! Asks a standby, all the time, for what a sever and its undo will need of it, so that nobody learns in the
//! incident that it does not do it. By the same way it runs with what the agent's file says.

use std::sync::Arc;
use std::time::Duration;

use super::troubles::Trouble;
use super::{Keeper, News, SQL};
use crate::engine::situation::SeverRehearsal;
use crate::engine::topology::Role;
use crate::engine::units::MonoTime;
use crate::ports::EffectError;

/// How long after a rehearsal the next one comes: each writes a small file of PostgreSQL's anew.
const NEXT: Duration = Duration::from_secs(20);
/// The same after one that the server did not answer.
const AGAIN: Duration = Duration::from_secs(1);
/// The same after one that was refused: whoever mends it wants to see that.
const REFUSED: Duration = Duration::from_secs(5);
/// How young an answer of the other agent must be to show that its site is there.
const PEER_ANSWERS: Duration = Duration::from_secs(5);

/// What is known of rehearsals.
#[derive(Debug, Default)]
pub(super) struct Rehearsing {
    /// What came of the last one that the server answered, and when it began.
    last: Option<(MonoTime, SeverRehearsal)>,
    next: MonoTime,
    running: bool,
    /// Whether the standby was only just started, by us.
    fresh: bool,
}

impl Keeper {
    /// The standby starts anew: what it runs with is looked at as soon as it answers.
    pub(super) fn rehearse_anew(&mut self) {
        self.rehearsing.fresh = true;
        self.rehearsing.next = self.clock.now();
    }

    /// Begins a rehearsal that is due, beside the keeper.
    pub(super) fn rehearse(&mut self, now: MonoTime) {
        let standby = self.look.role() == Role::Standby && self.look.running();
        if !standby {
            self.rehearsing.last = None;
            return;
        }
        let severed = self.memory.severed.is_some();
        let promoting = self.promoting.is_some() || self.memory.promoting.is_some();
        let due = !self.rehearsing.running && now >= self.rehearsing.next;
        if severed || promoting || !due {
            return;
        }
        self.rehearsing.running = true;
        let answered = self.peer_answered.map(|asked| now.since(asked));
        let peer_answers = answered.is_some_and(|age| age <= PEER_ANSWERS);
        let (database, fresh) = (Arc::clone(&self.database), self.rehearsing.fresh);
        self.beside(async move {
            let rehearsed = database.rehearse(fresh, peer_answers, SQL).await;
            News::Rehearsed(now, rehearsed)
        });
    }

    pub(super) fn rehearsed(
        &mut self,
        began: MonoTime,
        rehearsed: Result<Option<SeverRehearsal>, EffectError>,
    ) {
        self.rehearsing.running = false;
        let now = self.clock.now();
        let came = match rehearsed {
            Ok(came) => came,
            Err(error) => {
                tracing::debug!(%error, "no rehearsal of a sever");
                self.rehearsing.next = now.plus(AGAIN);
                return;
            }
        };
        let refused = came.as_ref().is_some_and(|came| came.obstacle.is_some());
        self.rehearsing.next = now.plus(if refused { REFUSED } else { NEXT });
        self.rehearsing.fresh &= refused;
        let before = self
            .rehearsing
            .last
            .take()
            .and_then(|(_, last)| last.obstacle);
        let obstacle = came.as_ref().and_then(|came| came.obstacle.clone());
        match (&obstacle, before == obstacle) {
            (Some(why), false) => tracing::error!(%why, "this standby cannot be severed"),
            (None, false) => tracing::info!("this standby can be severed again"),
            (_, true) => {}
        }
        self.rehearsing.last = came.map(|came| (began, came));
    }

    /// What is reported of it.
    pub(super) fn shown_rehearsal(&self, now: MonoTime) -> Option<SeverRehearsal> {
        let (began, came) = self.rehearsing.last.as_ref()?;
        Some(SeverRehearsal {
            ago: now.since(*began),
            ..came.clone()
        })
    }

    /// Sees to it that the slot is there that the other site's standby asks for.
    pub(super) fn keep_slot(&mut self, now: MonoTime) {
        let primary = self.look.role() == Role::Primary && self.look.running();
        let asked = self.slot.name.clone();
        let Some(name) = asked.filter(|_| primary && self.holder.is_some()) else {
            return;
        };
        if self.slot.running || now < self.slot.next {
            return;
        }
        self.slot.running = true;
        let database = Arc::clone(&self.database);
        self.beside(async move { News::SlotKept(database.keep_slot(&name, SQL).await) });
    }

    pub(super) fn slot_kept(&mut self, kept: Result<(), EffectError>) {
        self.slot.running = false;
        self.slot.next = self.clock.now().plus(NEXT);
        match kept {
            Ok(()) => self.well(Trouble::SlotNotKept),
            Err(error) => self.trouble(Trouble::SlotNotKept, &error),
        }
    }
}

/// The slot that the other site's standby asks for.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// Its name, as the controller last said.
    pub(super) name: Option<String>,
    next: MonoTime,
    running: bool,
}
