//! The runs of the database: whether it is up, since when it is down and why, and when it is
//! restarted. One that keeps dying right after its start is restarted less and less often, and
//! logged once.

use std::time::Duration;

use super::Keeper;
use crate::agent::recovery::Recovery;
use crate::engine::lease::Holder;
use crate::engine::topology::Role;
use crate::engine::units::{Epoch, MonoTime};

/// How long a database that was not failed over stays down before it is restarted, in addition to
/// the grace for a local restart.
const NOBODY_TOOK_OVER: Duration = Duration::from_secs(5);

/// The time between two starts of a database that did not die at once.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest pause. Each run that ended at once doubles it.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A database that lives this long did not die at once.
const SETTLED: Duration = Duration::from_secs(10);

/// What is known about its starts and ends.
#[derive(Debug, Default)]
pub(super) struct Lives {
    last_start: Option<MonoTime>,
    /// Since when it is on trial: it was started, and has not lived long enough.
    on_trial: Option<MonoTime>,
    /// The fence marker at that moment: a database that was fenced meanwhile did not die by itself.
    fenced_at_start: Option<(Epoch, String)>,
    /// How many runs in a row ended at once.
    short: u32,
    /// When the first of those went down.
    failing_since: Option<MonoTime>,
    /// How many starts in a row failed.
    unstarted: u32,
    /// The last message logged about it.
    told: String,
}

impl Lives {
    fn pause(&self) -> Duration {
        let doubled = 1_u32.checked_shl(self.short.min(16)).unwrap_or(u32::MAX);
        PAUSE.saturating_mul(doubled).min(LONGEST_PAUSE)
    }

    /// Whether the message is new: repetitions are not logged.
    fn is_news(&mut self, text: &str) -> bool {
        let news = self.told != text;
        text.clone_into(&mut self.told);
        news
    }
}

impl Keeper {
    /// Updates the state after a check found it up or down.
    pub(super) fn follow_its_lives(&mut self) {
        let now = self.clock.now();
        let before = self.recovery.take();
        if self.look.running() {
            // It does not serve before it has recovered: its downtime counts from the crash.
            let since = self.down.as_ref().map_or(now, |(since, _)| *since);
            let work = self.look.recovering;
            self.recovery = work.map(|work| Recovery::seen(before, since, work, now));
            self.ran_as = self.look.runs_as;
            let from = self.lives.on_trial;
            if from.is_some_and(|from| now.since(from) >= SETTLED) {
                if self.lives.short > 0 {
                    tracing::info!("the database stays up");
                }
                (self.lives.on_trial, self.lives.short) = (None, 0);
                (self.lives.failing_since, self.lives.told) = (None, String::new());
            }
            // A standby that died at once counts as down until it has proved that it lives; for a
            // primary that would be a reason to replace it.
            if self.lives.short == 0 || self.look.runs_as == Some(Role::Primary) {
                self.down = None;
            }
            return;
        }
        let ended = self.look.ended.clone();
        let why = ended.unwrap_or_else(|| "not started".to_owned());
        let died = self.lives.on_trial.take().is_some();
        let of_itself = died && self.look.fenced == self.lives.fenced_at_start;
        if of_itself {
            self.lives.short = self.lives.short.saturating_add(1);
            self.tell_of_short_life(&why);
        }
        if self.down.is_none() && !of_itself {
            self.lives.failing_since = None;
        }
        let went_down = before.map_or(now, |recovery| recovery.since);
        let since = *self.lives.failing_since.get_or_insert(went_down);
        match &mut self.down {
            Some((_, known)) if died => *known = why,
            Some(_) => {}
            None => self.down = Some((since, why)),
        }
    }

    /// Once may have been a hand: a person is needed where it happens again.
    fn tell_of_short_life(&mut self, why: &str) {
        let next_after = self.lives.pause();
        let again = self.lives.short > 1;
        if again && self.lives.is_news(why) {
            tracing::error!(
                why,
                ?next_after,
                "the database ends as soon as it is started"
            );
        } else if !again {
            tracing::warn!(
                why,
                ?next_after,
                "the database ended soon after it was started"
            );
        }
    }

    /// Whether it is down only because it had no lease.
    pub(super) fn waits_for_right(&self) -> bool {
        let marked = self.look.fenced.is_some();
        self.look.role() == Role::Primary
            && self.look.unfit.is_none()
            && self.memory.fenced.is_none()
            && (marked || self.look.ended.is_none())
    }

    /// Whether the primary that ran here last would start as a standby, although nobody took its
    /// lease: it would look healthy and serve nobody.
    fn was_made_standby_behind_us(&self) -> bool {
        self.ran_as == Some(Role::Primary)
            && self.look.starts_as == Role::Standby
            && self.look.fenced.is_none()
            && self.memory.fenced.is_none()
            && self.memory.promoting.is_none()
    }

    /// Why a database that is down cannot be started, or how it ended.
    pub(super) fn why_down(&self, ended: &str) -> String {
        if let Some(unfit) = &self.look.unfit {
            return unfit.clone();
        }
        if self.was_made_standby_behind_us() {
            return format!(
                "{ended}; `standby.signal` has appeared in the data folder of this primary: remove \
                 it, and it is started again"
            );
        }
        if self.lives.short > 1 {
            let (count, pause) = (self.lives.short, self.lives.pause());
            return format!(
                "ended {count} times as soon as it was started, next try every {pause:?}: {ended}"
            );
        }
        ended.to_owned()
    }

    /// Starts a database that is down, unless that is somebody else's decision.
    pub(super) async fn start_again(&mut self, now: MonoTime) {
        let Some((since, _)) = self.down.clone().filter(|_| !self.look.running()) else {
            return;
        };
        let waited = self.lives.last_start.map(|last| now.since(last));
        let rested = waited.is_none_or(|waited| waited >= self.lives.pause());
        if waited.is_some_and(|waited| waited < PAUSE) || self.look.unfit.is_some() {
            return;
        }
        if self.look.starts_as == Role::Standby {
            if rested && !self.was_made_standby_behind_us() {
                self.start_standby().await;
            }
            return;
        }
        let Some(holder) = self.holder.clone() else {
            return;
        };
        let down_for = now.since(since);
        let within_grace = down_for < self.restart_grace;
        let abandoned = down_for >= self.restart_grace.saturating_add(NOBODY_TOOK_OVER);
        let may = self.waits_for_right() || within_grace || (abandoned && rested);
        if self.memory.fenced.is_none() && may {
            self.start_primary(&holder, now).await;
        }
    }

    fn was_started(&mut self, as_what: Role) {
        self.lives.on_trial = self.lives.last_start;
        self.lives.fenced_at_start.clone_from(&self.look.fenced);
        self.lives.unstarted = 0;
        if self.lives.short == 0 {
            tracing::info!(role = %as_what, epoch = self.memory.epoch.0, "database started");
        }
    }

    /// Once is what a killed server causes, whose processes have not all ended yet.
    fn did_not_start(&mut self, why: &str) {
        self.lives.unstarted = self.lives.unstarted.saturating_add(1);
        if self.lives.unstarted == 1 {
            tracing::warn!(why, "the database does not start yet");
        } else if self.lives.is_news(why) {
            tracing::error!(why, "the database does not start");
        }
    }

    async fn start_standby(&mut self) {
        self.lives.last_start = Some(self.clock.now());
        match self.database.server.start_standby().await {
            Ok(()) => {
                self.was_started(Role::Standby);
                self.rehearse_anew();
                // At its end PostgreSQL forgets a requested promotion (postgres.md P17).
                self.remember_promoting(None).await;
            }
            Err(error) => self.did_not_start(&error.to_string()),
        }
    }

    async fn start_primary(&mut self, holder: &Holder, now: MonoTime) {
        self.lives.last_start = Some(now);
        let epoch = holder.epoch();
        if let Some((marked, _)) = &self.look.fenced {
            // Fenced by an expired lease, and the lease is ours again.
            if *marked > epoch {
                return;
            }
            if let Err(error) = self.database.server.unfence(epoch).await {
                self.did_not_start(&format!("the fence cannot be lifted: {error}"));
                return;
            }
            self.look.fenced = None;
        }
        match self
            .database
            .server
            .start_primary(&self.right_of(holder))
            .await
        {
            Ok(()) => self.was_started(Role::Primary),
            Err(error) => self.did_not_start(&error.to_string()),
        }
    }
}
