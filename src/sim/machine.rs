//! A host with its database and the guard that owns it: a PostgreSQL reduced to what a failover
//! turns on, with asynchronous and synchronous WAL, and the guard's rules as in `agent/guard.rs`.
//!
//! Nothing here runs: each look at a host first settles what happened to it until now.

use std::time::Duration;

use crate::agent::guard::LEASE_EXPIRED;
use crate::engine::policy::{FenceStages, GUARD_TICK};
use crate::engine::topology::{Role, SiteName};
use crate::engine::units::Epoch;

mod behind;

pub use behind::{ByHand, Mistake, STRANGER_ENDS_WITHIN};

/// How many records back a row is looked for that was committed a moment ago.
const LOOK_BACK: usize = 10_000;

/// Virtual time since the world began, the same everywhere. No process under test sees it.
pub type Truth = Duration;

/// One record of WAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Where it ends.
    pub end: u64,
    /// When it was committed.
    pub at: Truth,
    /// What it holds.
    pub what: Written,
}

/// What a record holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// A client's numbered row.
    Row(u64),
    /// A heartbeat, with its number and who wrote it.
    Heartbeat(u64, SiteName),
    /// The epoch row.
    Epoch(Epoch),
    /// A promotion: from here another timeline.
    Timeline(u32),
}

/// A fence under way.
#[derive(Debug, Clone)]
pub struct Fence {
    /// When the database is down.
    pub ends: Truth,
    /// In which epoch.
    pub epoch: Epoch,
}

/// What keeps our looks from a database, and nobody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeptOut {
    /// A password, a role, its connections: they are not let in.
    Door,
    /// A lock, a grant, a setting: they do not get at their own rows.
    Rows,
}

/// How lately users must have committed to be seen at work.
const AT_WORK: Duration = Duration::from_millis(500);
/// A host.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Which site it is.
    pub site: SiteName,
    /// Whether it has power.
    pub up: bool,
    /// Whether it is frozen as a whole.
    pub frozen: bool,
    /// When it last thawed.
    pub thawed: Option<Truth>,
    /// As what it runs, or ran last.
    pub role: Role,
    /// As what its files say that it starts.
    pub files: Role,
    /// Since when they say so.
    pub files_since: Truth,
    /// What runs was started by somebody else.
    pub by_hand: Option<ByHand>,
    /// When it was promoted, in its present life.
    pub promoted: Option<Truth>,
    /// When the guard fenced it for having no right, although it had one when it was promoted.
    pub fenced_without_right: Option<Truth>,
    /// A mistake that a test plants in the guard.
    pub mistake: Option<Mistake>,
    /// Whether PostgreSQL runs.
    pub running: bool,
    /// From when it takes connections.
    pub ready: Truth,
    /// How it last ended.
    pub ended: Option<String>,
    /// Its timeline.
    pub timeline: u32,
    /// Its WAL. Rows are never taken out.
    pub wal: Vec<Record>,
    /// The newest heartbeat in it.
    pub heartbeat: Option<(u64, SiteName)>,
    /// The newest epoch row in it.
    pub epoch_row: Option<Epoch>,
    /// Whether `primary_conninfo` is set.
    pub connected: bool,
    /// When the last message of the primary arrived.
    pub heard: Option<Truth>,
    /// Whether commits wait for the standby.
    pub synchronous: bool,
    /// Rows whose commits wait, with where each ends.
    pub waiting: Vec<(u64, u64)>,
    /// How far the standby has confirmed.
    pub confirmed: u64,
    /// What the standby has confirmed and is on its way here, with when it arrives.
    pub confirming: Vec<(Truth, u64)>,
    /// The right that the guard has armed, and when it ends.
    pub right: Option<(Epoch, Option<Truth>)>,
    /// The stages of a fence.
    pub stages: FenceStages,
    /// The fence marker.
    pub marker: Option<(Epoch, String)>,
    /// Since when it is marked.
    pub marked: Truth,
    /// Every fence that began: when it ended or will, and why.
    pub fences: Vec<(Truth, String)>,
    /// Whether PostgreSQL does not start any more, whoever tries.
    pub ruined: bool,
    /// What keeps our looks out, and until when.
    pub kept_out: Option<(KeptOut, Truth)>,
    /// The highest epoch that the guard has seen.
    pub epoch: Epoch,
    /// The fence under way.
    pub fence: Option<Fence>,
    /// The guard looks at nothing before this: its host was frozen.
    pub awake: Truth,
    /// How long the next fence takes.
    pub next_fence: Duration,
    /// Whether the workloads run, and from when they answer.
    pub workloads: Option<Truth>,
}

impl Machine {
    /// A host whose database runs since ever.
    pub fn new(site: SiteName, role: Role, stages: FenceStages) -> Self {
        Self {
            site,
            up: true,
            frozen: false,
            thawed: None,
            role,
            files: role,
            files_since: Duration::ZERO,
            by_hand: None,
            promoted: None,
            fenced_without_right: None,
            mistake: None,
            running: true,
            ready: Duration::ZERO,
            ended: None,
            timeline: 1,
            wal: Vec::new(),
            heartbeat: None,
            epoch_row: None,
            connected: role == Role::Standby,
            heard: None,
            synchronous: false,
            waiting: Vec::new(),
            confirmed: 0,
            confirming: Vec::new(),
            right: None,
            stages,
            marker: None,
            marked: Duration::ZERO,
            fences: Vec::new(),
            ruined: false,
            kept_out: None,
            epoch: Epoch(0),
            fence: None,
            awake: Duration::ZERO,
            next_fence: Duration::from_millis(20),
            workloads: Some(Duration::ZERO),
        }
    }

    /// The end of its WAL.
    pub fn position(&self) -> u64 {
        self.wal.last().map_or(0x0100_0000, |record| record.end)
    }

    /// Whether a client's row is in its WAL.
    pub fn has_row(&self, number: u64) -> bool {
        let newest_first = self.wal.iter().rev();
        newest_first
            .take(LOOK_BACK)
            .any(|record| record.what == Written::Row(number))
    }

    /// What keeps our looks out at a moment.
    pub fn keeps_out(&self, now: Truth) -> Option<KeptOut> {
        let (what, until) = self.kept_out?;
        (now < until).then_some(what)
    }

    /// Whether users were lately seen to commit.
    pub fn at_work(&self, now: Truth) -> bool {
        let newest_first = self.wal.iter().rev();
        let mut lately = newest_first.take_while(|record| now.saturating_sub(record.at) <= AT_WORK);
        lately.any(|record| matches!(record.what, Written::Row(_)))
    }

    /// Whether anybody could have a write acknowledged, if not for a freeze.
    pub fn could_write(&self, now: Truth) -> bool {
        self.up && self.running && now >= self.ready && self.role == Role::Primary
    }

    /// Whether something on the host can be reached now.
    pub fn answers(&self) -> bool {
        self.up && !self.frozen
    }

    /// Commits something, if this is a primary that can.
    pub fn commit(&mut self, now: Truth, what: Written) -> Option<u64> {
        self.settle(now);
        if self.frozen || !self.could_write(now) {
            return None;
        }
        let end = self.position().saturating_add(128);
        self.write(Record { end, at: now, what });
        Some(end)
    }

    fn write(&mut self, record: Record) {
        match &record.what {
            Written::Heartbeat(sequence, site) => self.heartbeat = Some((*sequence, site.clone())),
            Written::Epoch(epoch) => self.epoch_row = Some(*epoch),
            Written::Timeline(timeline) => self.timeline = *timeline,
            Written::Row(_) => {}
        }
        self.wal.push(record);
    }

    /// Lets happen what the guard did until now.
    pub fn settle(&mut self, now: Truth) {
        if self.frozen || !self.up {
            return;
        }
        if self.fence.is_none() {
            match self.right {
                Some((epoch, Some(end))) if now >= end.max(self.awake) => {
                    self.begin_fence(end.max(self.awake), epoch, LEASE_EXPIRED);
                }
                None if self.seen_as(now) == Some(Role::Primary) && now >= self.awake => {
                    self.fenced_without_right = self.promoted.map(|_| now);
                    let epoch = self.epoch;
                    self.begin_fence(now.max(self.awake), epoch, "promoted-without-right");
                }
                Some(_) | None => {}
            }
        }
        self.end_strangers(now);
        self.put_back_signal(now);
        let over = |fence: &mut Fence| now >= fence.ends;
        let hidden = self.by_hand.is_some_and(|it| it.seen.is_none());
        if self.fence.take_if(over).is_some() && self.running && !hidden {
            self.stop("clean");
        }
    }

    /// The guard begins a fence, or goes on with the one under way; when it ends.
    pub fn begin_fence(&mut self, at: Truth, epoch: Epoch, cause: &str) -> Truth {
        self.epoch = self.epoch.max(epoch);
        self.right = None;
        if self.marker.as_ref().is_none_or(|(old, _)| *old <= epoch) {
            if self.marker.as_ref().is_none_or(|(old, _)| *old < epoch) {
                self.marked = at;
            }
            self.marker = Some((epoch, cause.to_owned()));
        }
        if let Some(fence) = &mut self.fence {
            fence.epoch = fence.epoch.max(epoch);
            return fence.ends;
        }
        let longest = self.stages.longest().saturating_sub(GUARD_TICK);
        let takes = if self.running {
            self.next_fence.min(longest)
        } else {
            Duration::from_millis(1)
        };
        let ends = at.saturating_add(takes);
        self.fences.push((ends, cause.to_owned()));
        self.fence = Some(Fence { ends, epoch });
        ends
    }

    /// The guard arms a right, or pushes it.
    pub fn arm(&mut self, now: Truth, epoch: Epoch, until: Option<Truth>) -> Result<(), String> {
        self.settle(now);
        if self.fence.is_some() {
            return Err("a fence is under way: the lease has ended".to_owned());
        }
        if epoch < self.epoch {
            return Err(format!("epoch {epoch} is over: this is {}", self.epoch));
        }
        if self.marker.as_ref().is_some_and(|(old, _)| *old >= epoch) {
            return Err("fenced: `unfence` with a newer lease first".to_owned());
        }
        if until.is_some_and(|until| until <= now) {
            return Err("the deadline has passed already".to_owned());
        }
        let held = self.right.filter(|(held, _)| *held == epoch);
        let until = match (held, until) {
            (Some((_, Some(held))), Some(until)) => Some(held.max(until)),
            (Some((_, None)), _) | (_, None) => None,
            (None, Some(until)) => Some(until),
        };
        self.epoch = epoch;
        self.right = Some((epoch, until));
        Ok(())
    }

    /// The whole host stands still.
    pub fn freeze(&mut self, now: Truth) {
        self.settle(now);
        self.frozen = true;
    }

    /// It goes on, and the guard looks around after `late`.
    pub fn thaw(&mut self, now: Truth, late: Duration) {
        self.frozen = false;
        self.thawed = Some(now);
        self.awake = now.saturating_add(late.min(GUARD_TICK));
        if let Some(fence) = &mut self.fence {
            fence.ends = fence.ends.max(self.awake);
        }
    }

    /// Power is cut: nothing but the disk stays.
    pub fn lose_power(&mut self, now: Truth) {
        self.settle(now);
        self.up = false;
        self.frozen = false;
        self.crash("lost power");
        self.right = None;
        self.fence = None;
        self.workloads = None;
    }

    /// PostgreSQL ends, not in order.
    pub fn crash(&mut self, how: &str) {
        if self.running {
            self.stop(how);
        }
    }

    /// The sessions end with it: whoever waits for a commit never hears of it.
    fn stop(&mut self, how: &str) {
        self.running = false;
        self.promoted = None;
        // The guard knows how its own server ended.
        if self.by_hand.take().is_none() {
            self.ended = Some(how.to_owned());
        }
        self.waiting.clear();
        self.confirming.clear();
        self.confirmed = 0;
    }

    /// The rows whose commits need not wait any longer.
    pub fn released(&mut self, now: Truth) -> Vec<u64> {
        if self.waiting.is_empty() || self.frozen || !self.could_write(now) {
            return Vec::new();
        }
        let (free, confirmed) = (!self.synchronous, self.confirmed);
        let over = |(end, _): &mut (u64, u64)| free || *end <= confirmed;
        self.waiting
            .extract_if(.., over)
            .map(|(_, row)| row)
            .collect()
    }

    /// Power is back: a new guard, which reads the marker.
    pub fn boot(&mut self) {
        self.up = true;
        self.ended = None;
        self.epoch = self.marker.as_ref().map_or(Epoch(0), |(epoch, _)| *epoch);
        self.workloads = Some(Duration::ZERO);
    }

    /// The database is made anew as a standby of another, by a person.
    pub fn rebuild_from(&mut self, other: &Machine, now: Truth) {
        self.wal.clone_from(&other.wal);
        self.heartbeat.clone_from(&other.heartbeat);
        self.epoch_row = other.epoch_row;
        self.timeline = other.timeline;
        (self.role, self.files) = (Role::Standby, Role::Standby);
        self.connected = true;
        self.synchronous = false;
        self.right = None;
        self.running = false;
        self.ready = now;
    }
}

/// WAL flows from a primary to its standby over a link that is up in both directions, and the
/// standby confirms what it has.
pub fn stream(
    primary: &mut Machine,
    standby: &mut Machine,
    now: Truth,
    [way, back]: [Duration; 2],
) {
    if !primary.answers() {
        return;
    }
    let here = |(at, _): &mut (Truth, u64)| *at <= now;
    for (_, end) in primary.confirming.extract_if(.., here) {
        primary.confirmed = primary.confirmed.max(end);
    }
    let flows = standby.answers()
        && primary.could_write(now)
        && standby.running
        && standby.role == Role::Standby
        && standby.connected;
    if !flows {
        return;
    }
    let have = standby.wal.len();
    let fits = match standby.wal.last() {
        None => true,
        Some(last) => have.checked_sub(1).and_then(|index| primary.wal.get(index)) == Some(last),
    };
    if !fits {
        return;
    }
    standby.heard = Some(now.saturating_sub(way));
    let arrived = primary.wal.iter().skip(have);
    let arrived: Vec<Record> = arrived
        .take_while(|record| record.at.saturating_add(way) <= now)
        .cloned()
        .collect();
    for record in arrived {
        standby.write(record);
    }
    let has = standby.position();
    let told = primary
        .confirming
        .last()
        .map_or(primary.confirmed, |(_, end)| *end);
    if has > told {
        primary.confirming.push((now.saturating_add(back), has));
    }
}
