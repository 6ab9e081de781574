//! Zero-loss mode (`durability = "sync"`): whether the active site may acknowledge writes that its
//! standby does not have, in the log, as the controller decides it, and as the agent enforces it.
//!
//! The RPO window is open from the first entry of a log, and at each promotion, because nothing is
//! known about a standby then. The agent closes it by making every commit wait for the standby and
//! checking that the standby has everything committed before. Only the controller opens it again,
//! in the log first; so an open window is always known, and everything acknowledged while it is
//! closed is at the standby.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::claims::Contradiction;
use super::observation::{DatabaseFacts, ReceiverFacts};
use super::policy::{Data, Durability, OnStall};
use super::position::{PositionHistory, PositionSample};
use super::topology::Role;
use super::units::{Lsn, MonoTime, exact, millis};
use super::waits::Waits;

/// Whether the active site may acknowledge writes that its standby does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "window")]
pub enum RpoWindow {
    /// It may: a failover could lose some of them.
    Open {
        /// The log entry that opened it, which distinguishes its permission from earlier ones.
        #[serde(with = "exact")]
        entry: u64,
    },
    /// It may not: a failover loses no acknowledged write.
    Closed,
}

impl RpoWindow {
    /// Whether a failover certainly loses nothing.
    pub fn is_closed(self) -> bool {
        self == RpoWindow::Closed
    }
}

/// How the window changed. The decision log carries these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "change")]
pub enum WindowChange {
    /// Opened: durable before the agent may go on without the standby.
    #[serde(rename = "rpo-window-opened")]
    Opened {
        /// Why it was opened.
        why: String,
    },
    /// Closed: the agent reported that the standby is complete and commits wait for it.
    #[serde(rename = "rpo-window-closed")]
    Closed {
        /// The entry that had opened it.
        entry: u64,
        /// The position from which commits wait.
        from: Lsn,
    },
}

impl fmt::Display for WindowChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WindowChange::Opened { why } => write!(f, "rpo-window-opened: {why}"),
            WindowChange::Closed { entry, from } => write!(
                f,
                "rpo-window-closed: that of entry {entry}, commits wait from {from} on"
            ),
        }
    }
}

/// The active site's agent's report about waiting commits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncFacts {
    /// The window that it closed last: it never uses that window's permission again.
    pub closed: Option<ClosedWindow>,
    /// Whether commits wait for the standby, according to the settings.
    pub waiting: bool,
    /// The position that a stream with the standby's name had confirmed at the last probe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed: Option<Lsn>,
    /// How long the standby has been missing earlier writes, while the database runs.
    #[serde(rename = "stalled_ms", with = "millis")]
    pub stalled: Duration,
    /// What prevents commits from waiting.
    pub obstacle: Option<String>,
}

/// A window that an agent closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClosedWindow {
    /// The log's entry that had opened it.
    #[serde(with = "exact")]
    pub entry: u64,
    /// The position from which commits wait.
    pub from: Lsn,
}

/// The standby's own report, beside what its primary says about a stream with its name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StandbyWord {
    /// The position that it has written, if it recently reported streaming from this primary.
    pub position: Option<Lsn>,
    /// The contradiction between its report and the stream's.
    pub contradiction: Option<Contradiction>,
}

impl StandbyWord {
    /// What follows from the last looks at both databases, each `None` where it is too old: the
    /// standby says so only where it streams from a primary of the same system and timeline.
    pub fn of(
        standby: Option<&DatabaseFacts>,
        primary: Option<&DatabaseFacts>,
        contradiction: Option<Contradiction>,
    ) -> Self {
        let follows = standby.filter(|standby| {
            let receiver = standby.receiver.as_ref();
            let streams = receiver.is_some_and(ReceiverFacts::is_streaming);
            let same = primary.is_none_or(|primary| {
                (primary.system_id, primary.timeline) == (standby.system_id, standby.timeline)
            });
            streams && same && standby.role == Role::Standby
        });
        Self {
            position: follows.map(|standby| standby.position),
            contradiction,
        }
    }
}

/// What the controller is to write about the window when the active site's agent has reported and
/// no plan is open; `None` where nothing changes.
///
/// A plan keeps the window as it is until its promotion opens it: what was declared must stay true.
pub fn window_change(
    window: RpoWindow,
    facts: Option<&SyncFacts>,
    standby: StandbyWord,
    data: &Data,
) -> Option<WindowChange> {
    let opened = |why: String| Some(WindowChange::Opened { why });
    match (data.durability, window) {
        (Durability::Async, RpoWindow::Open { .. }) => None,
        (Durability::Async, RpoWindow::Closed) => {
            opened("the policy says `durability = \"async\"`".to_owned())
        }
        (Durability::Sync, RpoWindow::Open { entry }) => {
            let facts = facts?;
            let closed = facts.closed.filter(|closed| closed.entry == entry)?;
            // Zero loss is claimed for a system, not for a name.
            let has_it = standby.position >= Some(closed.from) && standby.contradiction.is_none();
            if facts.waiting && has_it {
                return Some(WindowChange::Closed {
                    entry,
                    from: closed.from,
                });
            }
            // By closing, the agent has made its permission void: users would wait for ever.
            let why = "commits wait, but the standby itself has not confirmed what they wait for";
            stalls(facts, data).then(|| WindowChange::Opened {
                why: why.to_owned(),
            })
        }
        (Durability::Sync, RpoWindow::Closed) => {
            let facts = facts?;
            if !facts.waiting {
                let why = facts.obstacle.clone();
                return opened(why.unwrap_or_else(|| "commits do not wait any more".to_owned()));
            }
            if let Some(Contradiction { claimed, had }) = standby.contradiction {
                return opened(format!(
                    "a stream with the standby's name confirmed {claimed}, but the standby itself had only {had} later: something else uses its name"
                ));
            }
            if stalls(facts, data) {
                return opened(format!(
                    "the standby has stalled for {} ms",
                    super::units::as_millis(facts.stalled)
                ));
            }
            None
        }
    }
}

/// Whether commits may go on without a standby that has stalled for `stalled`.
fn stalls(facts: &SyncFacts, data: &Data) -> bool {
    match data.on_stall {
        OnStall::ReleaseAfter { after } => facts.stalled >= after,
        OnStall::Block => false,
    }
}

/// What an agent saw of its primary, and of the standby that streams from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncLook {
    /// Whether `synchronous_standby_names` names the standby and nothing else.
    pub named: bool,
    /// The primary's position, read before the standby's.
    pub position: Lsn,
    /// How far the standby has flushed, if exactly one stream has its name.
    pub flushed: Option<Lsn>,
    /// The statements whose commits wait for confirmation, each under a unique name. Under
    /// `synchronous_commit = remote_apply` they wait for replay (postgres.md P34).
    pub waiting: Vec<String>,
    /// What makes commits not wait despite the names.
    pub obstacle: Option<String>,
}

/// What the agent must do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncMove {
    /// Nothing.
    Nothing,
    /// Make every commit wait for the standby from here on.
    Wait,
    /// Let commits go on without it.
    GoOn,
    /// Store that the window is closed, and report it.
    Close(ClosedWindow),
}

/// How long a standby that commits wait for may lag before the agent uses a permission to go on
/// without it: several probes, so that no single slow one counts.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long after releasing commits the next attempt waits. Longer than that statement may take in
/// the server, so that it cannot take effect after the attempt; and each attempt delays the commits
/// of its time by up to [`PATIENCE`].
const NEXT_ATTEMPT: Duration = Duration::from_secs(10);

/// How much the standby may lack for an attempt to begin, in bytes of WAL: what a link between two
/// clouds carries within [`PATIENCE`].
const NEARLY: u64 = 1 << 20;

/// How an active site's agent keeps its standby synchronous.
#[derive(Debug, Clone, Default)]
pub struct Synchrony {
    history: PositionHistory,
    /// The latest moment as of which the standby is known to have everything.
    caught_up: Option<MonoTime>,
    /// The position from which commits wait, if this process made them wait.
    from: Option<Lsn>,
    last: Option<SyncLook>,
    /// Why the last attempt to make commits wait failed.
    refused: Option<String>,
    waits: Waits,
    next_attempt: MonoTime,
}

impl Synchrony {
    /// Adds a probe that began at `began`, and returns what to do.
    ///
    /// `told` is the window that the controller last reported; `None` if it requires nothing.
    /// `closed` is the window that was closed last: a permission that is not newer is void, however
    /// late it arrives.
    pub fn seen(
        &mut self,
        began: MonoTime,
        look: SyncLook,
        told: Option<RpoWindow>,
        closed: Option<ClosedWindow>,
    ) -> SyncMove {
        self.history.add(PositionSample {
            began,
            position: look.position,
        });
        let covered = look
            .flushed
            .and_then(|flushed| self.history.covered_by(flushed));
        self.caught_up = self
            .caught_up
            .max(covered.map(|sample| sample.began))
            .or(Some(began));
        self.waits.seen(began, &look.waiting);
        if !look.named {
            self.from = None;
        }
        let next = self.next(began, &look, told, closed);
        if next == SyncMove::GoOn {
            self.from = None;
            self.next_attempt = began.plus(NEXT_ATTEMPT);
        }
        self.last = Some(look);
        next
    }

    fn next(
        &self,
        now: MonoTime,
        look: &SyncLook,
        told: Option<RpoWindow>,
        closed: Option<ClosedWindow>,
    ) -> SyncMove {
        let permitted = match told {
            None if look.named && closed.is_some() => return SyncMove::GoOn,
            // Foreign names are not ours to remove.
            None | Some(RpoWindow::Closed) => return SyncMove::Nothing,
            Some(RpoWindow::Open { entry }) => entry,
        };
        if closed.is_some_and(|closed| permitted <= closed.entry) {
            return SyncMove::Nothing;
        }
        let stalled = self.stalled(now) >= PATIENCE;
        match (look.named, self.from) {
            (true, _) if stalled => SyncMove::GoOn,
            (true, Some(from)) if look.flushed >= Some(from) && look.obstacle.is_none() => {
                SyncMove::Close(ClosedWindow {
                    entry: permitted,
                    from,
                })
            }
            (_, None) => {
                let behind = look
                    .flushed
                    .map(|flushed| look.position.bytes_since(flushed));
                let near = behind.is_some_and(|behind| behind.0 <= NEARLY);
                if near && look.obstacle.is_none() && now >= self.next_attempt {
                    SyncMove::Wait
                } else {
                    SyncMove::Nothing
                }
            }
            (_, Some(_)) => SyncMove::Nothing,
        }
    }

    /// The database does not run: nothing is written that the standby could lack, so its lag counts
    /// from the first probe after that.
    pub fn down(&mut self) {
        self.history = PositionHistory::default();
        self.caught_up = None;
        self.waits = Waits::default();
    }

    /// Commits have been waiting since this position at the latest.
    pub fn waits_from(&mut self, from: Lsn) {
        self.from = Some(from);
        self.refused = None;
    }

    /// Commits could not be made to wait.
    pub fn refused(&mut self, why: String) {
        self.refused = Some(why);
    }

    /// How long the standby has been missing earlier writes, or users have waited for it, as of the
    /// last probe.
    fn stalled(&self, now: MonoTime) -> Duration {
        let lacks = self.caught_up.map(|caught| now.since(caught));
        lacks.unwrap_or_default().max(self.waits.longest())
    }

    /// The report; `None` before the first probe.
    pub fn facts(&self, now: MonoTime, closed: Option<ClosedWindow>) -> Option<SyncFacts> {
        let last = self.last.as_ref()?;
        Some(SyncFacts {
            closed,
            waiting: last.named && last.obstacle.is_none(),
            confirmed: last.flushed,
            stalled: self.stalled(now),
            obstacle: last.obstacle.clone().or_else(|| {
                let unnamed = || {
                    let why = match last.flushed {
                        Some(_) => "`synchronous_standby_names` does not name the standby",
                        None => {
                            "nothing streams under the standby's name, so no commit can wait for it"
                        }
                    };
                    why.to_owned()
                };
                (!last.named).then(|| self.refused.clone().unwrap_or_else(unnamed))
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::policy::Policy;
    use super::super::situation::samples::{aws, gcp, healthy};
    use super::super::topology::SiteName;
    use super::super::units::{SystemId, Timeline};
    use super::*;

    const OPEN: RpoWindow = RpoWindow::Open { entry: 7 };

    fn data(durability: Durability, on_stall: OnStall) -> Data {
        let fast = Policy::read("fast", include_str!("../../policies/fast.toml")).unwrap();
        Data {
            durability,
            on_stall,
            ..fast.data
        }
    }

    fn facts(closed: Option<u64>, stalled: u64) -> SyncFacts {
        SyncFacts {
            closed: closed.map(|entry| ClosedWindow {
                entry,
                from: Lsn(100),
            }),
            waiting: true,
            confirmed: None,
            stalled: Duration::from_millis(stalled),
            obstacle: None,
        }
    }

    #[test]
    fn a_standby_speaks_only_for_the_system_that_it_streams_from() {
        let of = |site: &SiteName, change: fn(&mut DatabaseFacts)| {
            let changed = healthy().with_database(site.clone(), change);
            changed.sites[site].database.clone().unwrap().fact.own()
        };
        let primary = of(&aws(), |_| ());
        let standby = of(&gcp(), |_| ());
        let word = |standby: Option<&DatabaseFacts>, primary: Option<&DatabaseFacts>| {
            StandbyWord::of(standby, primary, None).position
        };
        assert_eq!(word(Some(&standby), Some(&primary)), Some(Lsn(1000)));
        assert_eq!(word(Some(&standby), None), Some(Lsn(1000)));
        assert_eq!(word(None, Some(&primary)), None, "not seen lately");
        let other: [fn(&mut DatabaseFacts); 4] = [
            |facts| facts.receiver = None,
            |facts| facts.system_id = SystemId(8),
            |facts| facts.timeline = Timeline(2),
            |facts| facts.role = Role::Primary,
        ];
        for change in other {
            let other = of(&gcp(), change);
            assert_eq!(word(Some(&other), Some(&primary)), None, "{other:?}");
        }
    }

    #[test]
    fn names_that_are_missing_are_told_from_a_standby_that_does_not_stream() {
        for (flushed, said) in [
            (Some(Lsn(100)), "`synchronous_standby_names` does not name"),
            (None, "nothing streams under the standby's name"),
        ] {
            let mut synchrony = Synchrony::default();
            let look = SyncLook {
                named: false,
                position: Lsn(100),
                flushed,
                waiting: Vec::new(),
                obstacle: None,
            };
            let now = MonoTime::default();
            synchrony.seen(now, look, Some(OPEN), None);
            let facts = synchrony.facts(now, None).unwrap();
            let obstacle = facts.obstacle.unwrap();
            assert!(obstacle.contains(said), "{obstacle}");
        }
    }

    #[test]
    fn the_controller_opens_and_closes_by_the_agents_facts() {
        let after = Duration::from_secs(5);
        let release = data(Durability::Sync, OnStall::ReleaseAfter { after });
        let block = data(Durability::Sync, OnStall::Block);
        let none = data(Durability::Async, OnStall::Block);
        let undone = SyncFacts {
            waiting: false,
            ..facts(Some(7), 0)
        };
        let closed = RpoWindow::Closed;
        #[rustfmt::skip]
        let table: Vec<(&str, RpoWindow, Option<SyncFacts>, &Data, &str)> = vec![
            ("nothing is known", OPEN, None, &release, ""),
            ("the agent closed it", OPEN, Some(facts(Some(7), 0)), &release, "rpo-window-closed"),
            ("it closed the one before", OPEN, Some(facts(Some(6), 0)), &release, ""),
            ("it closed it, and somebody undid that", OPEN, Some(undone.clone()), &release, ""),
            ("all is well", closed, Some(facts(Some(7), 0)), &release, ""),
            ("closed, and the agent is silent", closed, None, &release, ""),
            ("a stumble", closed, Some(facts(Some(7), 4999)), &release, ""),
            ("a stall", closed, Some(facts(Some(7), 5000)), &release, "rpo-window-opened: the standby has stalled for 5000 ms"),
            ("a stall, and the policy blocks", closed, Some(facts(Some(7), 60_000)), &block, ""),
            ("somebody undid it", closed, Some(undone), &block, "rpo-window-opened: commits do not wait any more"),
            ("the policy changed", closed, None, &none, "rpo-window-opened: the policy says"),
            ("asynchronous from the start", OPEN, None, &none, ""),
        ];
        for (name, window, facts, data, said) in table {
            let word = StandbyWord {
                position: Some(Lsn(100)),
                contradiction: None,
            };
            let change = window_change(window, facts.as_ref(), word, data);
            let found = change.map(|change| change.to_string()).unwrap_or_default();
            assert!(found.starts_with(said), "{name}: {found}");
            assert_eq!(found.is_empty(), said.is_empty(), "{name}: {found}");
        }
    }

    #[test]
    fn a_window_closes_on_the_standbys_own_word_and_opens_on_a_contradiction() {
        let after = Duration::from_secs(5);
        let release = data(Durability::Sync, OnStall::ReleaseAfter { after });
        let block = data(Durability::Sync, OnStall::Block);
        let said = |window, stalled, position: Option<u64>, claimed: Option<u64>, data: &Data| {
            let had = Lsn(position.unwrap_or_default());
            let word = StandbyWord {
                position: position.map(Lsn),
                contradiction: claimed.map(|claimed| Contradiction {
                    claimed: Lsn(claimed),
                    had,
                }),
            };
            let change = window_change(window, Some(&facts(Some(7), stalled)), word, data);
            change.map(|change| change.to_string()).unwrap_or_default()
        };
        assert!(said(OPEN, 0, Some(100), None, &release).starts_with("rpo-window-closed"));
        assert_eq!(said(OPEN, 0, Some(99), None, &release), "", "it lacks some");
        assert_eq!(said(OPEN, 0, None, None, &release), "", "it says nothing");
        assert_eq!(said(OPEN, 0, Some(100), Some(200), &release), "");
        let anew = said(OPEN, 5000, Some(99), None, &release);
        assert!(
            anew.starts_with("rpo-window-opened: commits wait"),
            "{anew}"
        );
        assert_eq!(said(OPEN, 5000, Some(99), None, &block), "");
        let opened = said(RpoWindow::Closed, 0, Some(100), Some(200), &block);
        assert!(opened.contains("something else uses its name"), "{opened}");
    }

    fn at(ms: u64) -> MonoTime {
        MonoTime(Duration::from_millis(ms))
    }

    fn look(named: bool, position: u64, flushed: Option<u64>) -> SyncLook {
        SyncLook {
            named,
            position: Lsn(position),
            flushed: flushed.map(Lsn),
            waiting: Vec::new(),
            obstacle: None,
        }
    }

    #[test]
    fn an_agent_makes_commits_wait_and_closes_the_window_once_the_standby_is_complete() {
        let mut synchrony = Synchrony::default();
        let told = Some(OPEN);
        let next = synchrony.seen(at(0), look(false, 5 << 20, Some(0)), told, None);
        assert_eq!(next, SyncMove::Nothing, "the standby is far behind");
        let next = synchrony.seen(at(200), look(false, 5 << 20, Some(5 << 20)), told, None);
        assert_eq!(next, SyncMove::Wait);
        synchrony.waits_from(Lsn(6 << 20));
        let next = synchrony.seen(at(400), look(true, 6 << 20, Some(5 << 20)), told, None);
        assert_eq!(next, SyncMove::Nothing, "it lacks what went before");
        let next = synchrony.seen(at(600), look(true, 6 << 20, Some(6 << 20)), told, None);
        let closed = ClosedWindow {
            entry: 7,
            from: Lsn(6 << 20),
        };
        assert_eq!(next, SyncMove::Close(closed));
        for told in [Some(OPEN), Some(RpoWindow::Closed)] {
            let next = synchrony.seen(at(9000), look(true, 7 << 20, None), told, Some(closed));
            assert_eq!(
                next,
                SyncMove::Nothing,
                "a permission that was closed is void"
            );
        }
        let facts = synchrony.facts(at(9000), Some(closed)).unwrap();
        assert_eq!(facts.stalled, Duration::from_millis(8400));
        let anew = Some(RpoWindow::Open { entry: 9 });
        let next = synchrony.seen(at(9200), look(true, 7 << 20, None), anew, Some(closed));
        assert_eq!(next, SyncMove::GoOn);
        let back = look(false, 7 << 20, Some(7 << 20));
        let next = synchrony.seen(at(9400), back.clone(), anew, Some(closed));
        assert_eq!(next, SyncMove::Nothing, "not again at once");
        let next = synchrony.seen(at(19_200), back, anew, Some(closed));
        assert_eq!(next, SyncMove::Wait);
    }

    #[test]
    fn an_agent_that_is_started_anew_sees_to_it_again_that_commits_wait() {
        let mut synchrony = Synchrony::default();
        let next = synchrony.seen(at(0), look(true, 100, Some(100)), Some(OPEN), None);
        assert_eq!(
            next,
            SyncMove::Wait,
            "that the names are set is no proof that commits wait"
        );
    }

    #[test]
    fn a_standby_stalls_only_while_its_primary_runs() {
        let mut synchrony = Synchrony::default();
        let behind = || look(true, 200, Some(100));
        synchrony.seen(at(0), look(true, 100, Some(100)), Some(OPEN), None);
        synchrony.seen(at(400), behind(), Some(OPEN), None);
        let stalled = |synchrony: &Synchrony, now| synchrony.facts(at(now), None).unwrap().stalled;
        assert_eq!(stalled(&synchrony, 900), Duration::from_millis(900));
        synchrony.down();
        assert_eq!(stalled(&synchrony, 5_000), Duration::ZERO);
        synchrony.seen(at(6_000), behind(), Some(OPEN), None);
        assert_eq!(stalled(&synchrony, 6_300), Duration::from_millis(300));
    }

    #[test]
    fn commits_that_wait_for_replay_are_a_stall_although_the_standby_has_everything() {
        let mut synchrony = Synchrony::default();
        let closed = ClosedWindow {
            entry: 6,
            from: Lsn(100),
        };
        let waits = SyncLook {
            waiting: vec!["one".to_owned()],
            ..look(true, 100, Some(100))
        };
        let next = synchrony.seen(at(0), waits.clone(), Some(RpoWindow::Closed), Some(closed));
        assert_eq!(next, SyncMove::Nothing);
        let next = synchrony.seen(at(5000), waits, Some(OPEN), Some(closed));
        assert_eq!(next, SyncMove::GoOn);
        let facts = synchrony.facts(at(5000), None).unwrap();
        assert_eq!(facts.stalled, Duration::from_secs(5));
    }

    #[test]
    fn names_are_taken_away_only_where_they_were_ours() {
        let mut synchrony = Synchrony::default();
        let named = look(true, 100, Some(100));
        let closed = ClosedWindow {
            entry: 7,
            from: Lsn(1),
        };
        let next = synchrony.seen(at(0), named.clone(), None, None);
        assert_eq!(next, SyncMove::Nothing);
        let next = synchrony.seen(at(200), named, None, Some(closed));
        assert_eq!(next, SyncMove::GoOn);
    }

    #[test]
    fn what_makes_commits_not_wait_keeps_the_window_open() {
        let mut synchrony = Synchrony::default();
        let mut below = look(false, 100, Some(100));
        below.obstacle = Some("a role has `synchronous_commit = off`".to_owned());
        let next = synchrony.seen(at(0), below, Some(OPEN), None);
        assert_eq!(next, SyncMove::Nothing);
        assert!(!synchrony.facts(at(0), None).unwrap().waiting);
    }
}
