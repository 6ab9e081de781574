//! What happens behind the guard's back: files that appear and vanish, servers that somebody else
//! starts; and what the guard does about it.

use std::time::Duration;

use super::{Machine, Truth};
use crate::agent::guard::FOREIGN;
use crate::engine::topology::Role;

/// A server that somebody else started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByHand {
    /// When.
    pub since: Truth,
    /// When the guard sees it; `None`: it runs where no guard looks.
    pub seen: Option<Truth>,
}

/// A mistake in a guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mistake {
    /// What runs is what the files say.
    BelievesFiles,
    /// What others started is none of its business.
    LeavesStrangers,
    /// A right is given up on what was seen last.
    GoesByTheLastLook,
}

/// A promotion shows in the control file, which is looked at so seldom.
const LOOKS_EVERY: Duration = Duration::from_millis(100);

/// How long a server of somebody else's may run before the guard has ended it: two ticks, and the
/// signals.
pub const STRANGER_ENDS_WITHIN: Duration = Duration::from_millis(500);

/// For how long a guard misses the file of a standby before it puts it back.
const SIGNAL_MISSED: Duration = Duration::from_secs(1);

impl Machine {
    /// Why its files let it be started in no role: a standby without its file is no primary.
    pub fn unfit(&self) -> Option<String> {
        let lost = self.role == Role::Standby && self.files == Role::Primary;
        (lost && !self.running).then(|| "`standby.signal` is gone".to_owned())
    }

    /// As what the guard's own server runs, if one does, as the guard sees it.
    pub fn runs_as(&self) -> Option<Role> {
        let own = self.running && self.by_hand.is_none();
        let believed = self.mistake == Some(Mistake::BelievesFiles);
        own.then_some(if believed { self.files } else { self.role })
    }

    /// The same, as far as the guard has looked.
    pub fn seen_as(&self, now: Truth) -> Option<Role> {
        let just = |at: Truth| now.saturating_sub(at) < LOOKS_EVERY;
        let unseen =
            self.promoted.is_some_and(just) && self.mistake != Some(Mistake::BelievesFiles);
        self.runs_as()
            .map(|role| if unseen { Role::Standby } else { role })
    }

    /// The guard gives the right up, if it sees that a standby runs, or nothing.
    pub fn give_up_right(&mut self, now: Truth) -> Result<(), String> {
        let hasty = self.mistake == Some(Mistake::GoesByTheLastLook);
        let seen = if hasty {
            self.seen_as(now)
        } else {
            self.runs_as()
        };
        if seen == Some(Role::Primary) {
            return Err("a primary runs".to_owned());
        }
        self.right = None;
        Ok(())
    }

    /// The guard ends what somebody else started, once it has seen it.
    pub(super) fn end_strangers(&mut self, now: Truth) {
        let seen = self.by_hand.and_then(|it| it.seen);
        let left_alone = self.mistake == Some(Mistake::LeavesStrangers);
        let due = seen.is_some_and(|seen| now >= seen.max(self.awake));
        if due && !left_alone && self.fence.is_none() {
            let at = seen.unwrap_or(now).max(self.awake);
            let (epoch, slow) = (self.epoch, self.next_fence);
            // It is killed, which takes no time of its own.
            self.next_fence = Duration::from_millis(10);
            self.begin_fence(at, epoch, FOREIGN);
            self.next_fence = slow;
        }
    }

    /// The guard gives a standby its file back; with a right armed, a promotion may be taking it.
    pub(super) fn put_back_signal(&mut self, now: Truth) {
        let missed = self.runs_as() == Some(Role::Standby)
            && self.files == Role::Primary
            && self.right.is_none();
        if missed && now.saturating_sub(self.files_since) >= SIGNAL_MISSED {
            self.put_files(Role::Standby, now);
        }
    }

    /// Its files say something else from now on.
    pub fn put_files(&mut self, role: Role, now: Truth) {
        (self.files, self.files_since) = (role, now);
    }

    /// Somebody starts PostgreSQL, and the guard sees it at that moment, if ever.
    pub fn start_by_hand(&mut self, now: Truth, ready: Truth, seen: Option<Truth>) {
        self.comes_up();
        (self.running, self.ready) = (true, ready);
        self.by_hand = Some(ByHand { since: now, seen });
    }

    /// PostgreSQL is started: now its files count.
    pub fn comes_up(&mut self) {
        if self.role != self.files {
            self.role = self.files;
            self.connected = self.role == Role::Standby;
        }
    }
}
