//! Continually rehearses on a standby what a sever and its undo will need, and the start of the
//! workloads, so that a failure is not discovered during the incident. The same operation applies the
//! settings of the agent's file.

use std::time::Duration;

use super::troubles::Trouble;
use super::{Keeper, News, SQL};
use crate::engine::situation::SeverRehearsal;
use crate::engine::topology::Role;
use crate::engine::units::MonoTime;
use crate::ports::{EffectError, Workloads};

/// How long after a rehearsal the next one begins: each rewrites a small file of PostgreSQL.
const NEXT: Duration = Duration::from_secs(20);
/// The same after one that the server did not answer.
const AGAIN: Duration = Duration::from_secs(1);
/// The same after a refused one: whoever fixes the cause wants to see the effect.
const REFUSED: Duration = Duration::from_secs(5);
/// How recent an answer of the peer agent must be to show that its site is reachable.
const PEER_ANSWERS: Duration = Duration::from_secs(5);

/// What is known of rehearsals.
#[derive(Debug, Default)]
pub(super) struct Rehearsing {
    /// The last result that the server answered, and when it began.
    last: Option<(MonoTime, SeverRehearsal)>,
    next: MonoTime,
    running: bool,
    /// Whether we have just started the standby.
    fresh: bool,
}

impl Keeper {
    /// The standby is starting: its settings are checked as soon as it answers.
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
        let (database, fresh) = (self.database.clone(), self.rehearsing.fresh);
        let workloads = self.workloads.clone();
        self.beside(async move {
            let mut rehearsed = database.succession.rehearse(fresh, peer_answers, SQL).await;
            if let (Ok(Some(came)), Some(workloads)) = (&mut rehearsed, workloads)
                && came.obstacle.is_none()
            {
                came.obstacle = obstacle_of(workloads.as_ref()).await;
            }
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
            (Some(why), false) => tracing::error!(%why, "this site could not take over"),
            (None, false) => tracing::info!("this site can take over again"),
            (_, true) => {}
        }
        self.rehearsing.last = came.map(|came| (began, came));
    }

    /// The reported result.
    pub(super) fn shown_rehearsal(&self, now: MonoTime) -> Option<SeverRehearsal> {
        let (began, came) = self.rehearsing.last.as_ref()?;
        Some(SeverRehearsal {
            ago: now.since(*began),
            ..came.clone()
        })
    }

    /// Makes sure that the slot exists that the other site's standby needs.
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
        let database = self.database.clone();
        self.beside(async move { News::SlotKept(database.succession.keep_slot(&name, SQL).await) });
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

/// Why the workloads could not be started; nothing where that cannot be found out soon: it is no
/// obstacle that their cluster does not answer at the moment.
async fn obstacle_of(workloads: &dyn Workloads) -> Option<String> {
    let looked = tokio::time::timeout(SQL, workloads.obstacle()).await;
    match looked {
        Ok(Ok(obstacle)) => obstacle.map(|why| format!("the workloads cannot be started: {why}")),
        Ok(Err(error)) => {
            tracing::warn!(%error, "the start of the workloads cannot be rehearsed");
            None
        }
        Err(_late) => None,
    }
}

/// The slot that the other site's standby needs.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// Its name, as the controller last reported.
    pub(super) name: Option<String>,
    next: MonoTime,
    running: bool,
}
