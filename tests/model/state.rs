//! What each of the three knows, and what is on its way between them.
//!
//! Every time is an age in ticks on the clock of the one who measures it, and an age that can make
//! no difference any more stays where it is: so the states are finitely many without any bound on
//! how long the protocol runs.

use std::sync::LazyLock;
use std::time::Duration;

use failover::engine::lease::{Holder, LeaseBook};
use failover::engine::policy::LeaseTimers;
use failover::engine::topology::SiteName;
use failover::engine::units::{Epoch, MonoTime};

use super::Flaw;

/// One tick of a clock.
pub(crate) const TICK: Duration = Duration::from_secs(1);
/// What any clock shows now, as ages count back from it.
const NOW: u8 = 100;
/// The epoch in which the old primary holds the right, and the plan's.
pub(crate) const OLD: Epoch = Epoch(1);
pub(crate) const NEW: Epoch = Epoch(2);

/// The moment `age` ticks ago.
pub(crate) fn ago(age: u8) -> MonoTime {
    MonoTime(TICK * u32::from(NOW.saturating_sub(age)))
}

/// How many ticks ago a moment was.
pub(crate) fn age_of(moment: MonoTime) -> u8 {
    u8::try_from(ago(0).since(moment).as_secs()).unwrap_or(NOW)
}

/// Everything at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    /// How many ticks the clocks have gone together since one of them went alone.
    pub(crate) together: u8,
    pub(crate) controller: Controller,
    pub(crate) active: Active,
    pub(crate) passive: Passive,
    pub(crate) net: Net,
}

/// The controller. What is durable survives its crash, the rest is made anew.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Controller {
    /// Durable: how far the plan is.
    pub(crate) stage: Stage,
    /// Durable: what the plan recorded of the old primary's last right.
    pub(crate) can_wait_out: bool,
    /// Durable: it is written down on which machine the right was held.
    pub(crate) found: bool,
    pub(crate) book: Book,
    /// When the passive site last let the right stand, at the latest, if this process had its sever
    /// confirmed.
    pub(crate) vouched: Option<u8>,
}

/// How far a plan is; each value is an entry of the decision log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Stage {
    NoPlan,
    Planned,
    /// The raise of the epoch is written down.
    Raised,
    Severed,
    Fenced(Proof),
    /// The promotion is written down as begun.
    Promoting(Proof),
    /// It counts as failed, and the old primary takes writes again.
    TakenBack,
}

/// What a promotion rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Proof {
    Agent { relayed: bool },
    Infrastructure,
    WaitedOut,
}

/// A [`LeaseBook`], in ages.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Book {
    epoch: Epoch,
    holder: Option<Site>,
    last_grant: u8,
    alive: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Site {
    Active,
    Passive,
}

impl Site {
    pub(crate) fn name(self) -> SiteName {
        static NAMES: LazyLock<[SiteName; 2]> =
            LazyLock::new(|| ["active", "passive"].map(|name| name.parse().unwrap()));
        NAMES[self as usize].clone()
    }
}

impl Book {
    pub(crate) fn of(book: &LeaseBook) -> Self {
        let last = book.last_right();
        let active = book.holder.as_ref() == Some(&Site::Active.name());
        let passive = book.holder.is_some().then_some(Site::Passive);
        Self {
            epoch: book.epoch,
            holder: if active { Some(Site::Active) } else { passive },
            last_grant: age_of(last.granted),
            alive: last.alive == Some(true),
        }
    }

    /// The book itself.
    pub(crate) fn open(&self) -> LeaseBook {
        let active = Site::Active.name();
        let granted = ago(self.last_grant);
        let mut book = LeaseBook::taken_over(self.epoch, active.clone(), granted);
        if self.alive {
            book.grant(&active, self.epoch, granted).unwrap();
        }
        book.raise(self.epoch);
        if let Some(site) = self.holder {
            book.pass_to(site.name());
        }
        book
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether this process heard from the holder when it granted the last right.
    pub(crate) fn heard(&self) -> bool {
        self.alive
    }

    pub(crate) fn holder(&self) -> Option<Site> {
        self.holder
    }

    fn older(&mut self, oldest: u8) {
        self.last_grant = older(self.last_grant, oldest);
    }

    /// The same without the last right.
    fn close(&mut self) {
        self.last_grant = 0;
        self.alive = false;
    }
}

/// The active site: its agent, its guard and its database.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Active {
    /// Whether there is an agent with a guard at all.
    pub(crate) guarded: bool,
    /// What the agent holds.
    pub(crate) right: Option<Right>,
    /// Durable: the agent was told that it is superseded.
    pub(crate) fenced: bool,
    /// How many ticks the guard's deadline is away; negative once it has passed.
    pub(crate) deadline: Option<i8>,
    /// Whether the database takes writes.
    pub(crate) writes: bool,
    /// Its pod has ended, and none is wanted.
    pub(crate) ended: bool,
}

/// A [`Holder`], in ages.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Right {
    pub(crate) granted: u8,
    pub(crate) peer_answered: Option<u8>,
}

impl Right {
    /// The holder itself.
    pub(crate) fn open(&self, timers: &LeaseTimers) -> Holder {
        let mut holder = Holder::granted(OLD, ago(self.granted), timers.clone());
        if let Some(asked) = self.peer_answered {
            holder.peer_answered(ago(asked));
        }
        holder
    }

    /// How many ticks it holds for.
    pub(crate) fn left(&self, timers: &LeaseTimers) -> i8 {
        left(&self.open(timers))
    }
}

/// How many ticks a holder's right holds for; negative or zero when it is over.
pub(crate) fn left(holder: &Holder) -> i8 {
    let end = holder.deadline().unwrap();
    let ticks = i64::try_from(end.0.as_secs()).unwrap() - i64::from(NOW);
    i8::try_from(ticks).unwrap()
}

/// The passive site. Everything but `ordered` and `vouched` is durable.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Passive {
    pub(crate) severed: Option<Epoch>,
    /// How long ago, on its own clock, it last let the active one's right stand; or started.
    pub(crate) vouched: u8,
    /// The highest epoch in which it was told to promote.
    pub(crate) epoch: Epoch,
    /// It was told to promote, and waits for the grant.
    pub(crate) ordered: bool,
    /// The promotion began, and comes at any time.
    pub(crate) begun: bool,
    pub(crate) promoted: bool,
    /// It promised that none comes any more.
    pub(crate) desisted: bool,
}

/// Ages of messages of one kind: bit `n` is set where one of age `n` is on its way. A message
/// stays on its way after it arrived, so it may arrive again, late and out of order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Ages(u8);

impl Ages {
    /// Adds one; of more than `at_most` the oldest is lost.
    pub(crate) fn send(&mut self, age: u8, at_most: u32) {
        self.0 |= 1 << age;
        while self.0.count_ones() > at_most {
            self.0 &= !(1 << self.0.ilog2());
        }
    }

    pub(crate) fn each(self) -> impl Iterator<Item = u8> {
        (0..8).filter(move |age| self.0 & (1 << age) != 0)
    }

    /// Leaves out those that are too old to count.
    fn forget(&mut self, oldest: u8) {
        self.0 &= (1 << oldest) - 1;
    }

    fn older(&mut self, oldest: u8) {
        let stay = self.0 & (1 << oldest);
        self.0 = (self.0 << 1 | stay) & ((2 << oldest) - 1);
    }
}

/// What is on its way.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Net {
    /// The active site's agent asks the controller for the right.
    pub(crate) requests: Ages,
    pub(crate) grants: Ages,
    /// The controller's word that the other site holds the right.
    pub(crate) replaced: bool,
    /// The active site's agent asks the passive one's.
    pub(crate) questions: Ages,
    pub(crate) answers: Ages,
    pub(crate) superseded: bool,
    pub(crate) sever: Sever,
    pub(crate) fence: Exchange,
    /// The infrastructure is told to end the active site's pod; and its kubelet said that it has.
    pub(crate) scale: Exchange,
    pub(crate) promote: bool,
    /// The passive site's right, granted.
    pub(crate) right: bool,
    pub(crate) desist: Exchange,
}

/// An order and its confirmation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Exchange {
    pub(crate) ordered: bool,
    pub(crate) confirmed: bool,
}

/// The order to sever, and its confirmation: how long before it the right was last let stand.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Sever {
    pub(crate) ordered: bool,
    pub(crate) confirmed: Option<u8>,
}

fn older(age: u8, oldest: u8) -> u8 {
    age.saturating_add(1).min(oldest)
}

/// The ages from which on nothing changes any more.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Oldest {
    pub(crate) at_controller: u8,
    pub(crate) grant: u8,
    pub(crate) peer: u8,
}

impl State {
    /// What the promotion, if one has begun, rests on.
    pub(crate) fn proof(&self) -> Option<Proof> {
        match self.controller.stage {
            Stage::Fenced(proof) | Stage::Promoting(proof) => Some(proof),
            Stage::NoPlan | Stage::Planned | Stage::Raised | Stage::Severed | Stage::TakenBack => {
                None
            }
        }
    }

    pub(crate) fn promoted_by(&self, proof: Proof) -> bool {
        self.passive.promoted && self.controller.stage == Stage::Promoting(proof)
    }

    pub(crate) fn tick_controller(&mut self, oldest: Oldest) {
        self.controller.book.older(oldest.at_controller);
        if let Some(age) = &mut self.controller.vouched {
            *age = older(*age, oldest.at_controller);
        }
    }

    pub(crate) fn tick_passive(&mut self, oldest: Oldest) {
        self.passive.vouched = older(self.passive.vouched, oldest.at_controller);
    }

    pub(crate) fn tick_active(&mut self, oldest: Oldest) {
        if let Some(right) = &mut self.active.right {
            right.granted = older(right.granted, oldest.grant);
            right.peer_answered = right.peer_answered.map(|age| older(age, oldest.peer));
        }
        if let Some(left) = &mut self.active.deadline {
            *left -= 1;
        }
        self.net.requests.older(oldest.grant);
        self.net.grants.older(oldest.grant);
        self.net.questions.older(oldest.peer);
        self.net.answers.older(oldest.peer);
    }

    /// Leaves out what can make no difference any more, so that states which differ in nothing
    /// else are one. Where `stale_counts`, an old answer does make one.
    pub(crate) fn forget(&mut self, oldest: Oldest, stale_counts: bool) {
        let controller = &mut self.controller;
        if controller.stage > Stage::Severed {
            controller.book.close();
            controller.vouched = None;
            self.passive.vouched = 0;
            self.net.sever = Sever::default();
            self.net.fence = Exchange::default();
            self.net.scale.confirmed = false;
            controller.found = false;
        }
        if !stale_counts {
            self.net.grants.forget(oldest.grant);
            self.net.questions.forget(oldest.peer);
            self.net.answers.forget(oldest.peer);
        }
        let active = &mut self.active;
        if active.fenced && !active.writes {
            // It never writes again.
            active.right = None;
            self.net.requests = Ages::default();
            self.net.grants = Ages::default();
            self.net.questions = Ages::default();
            self.net.answers = Ages::default();
            self.net.replaced = false;
            self.net.superseded = false;
        }
    }
}

impl Active {
    /// Takes what its holder says, and pushes the guard's deadline, where that is not over yet.
    pub(crate) fn hold(
        &mut self,
        (holder, granted, peer_answered): (Holder, u8, Option<u8>),
        timers: &LeaseTimers,
    ) {
        let right = Right {
            granted,
            peer_answered,
        };
        assert_eq!(
            right.open(timers),
            holder,
            "the model's ages are the holder's"
        );
        self.right = Some(right);
        if let Some(deadline) = self.deadline.filter(|left| *left > 0) {
            self.deadline = Some(deadline.max(left(&holder)));
        }
    }

    /// What an agent that starts takes over from the guard, as the keeper does.
    pub(crate) fn adopt(&mut self, timers: &LeaseTimers) {
        let left = self.deadline.filter(|left| self.writes && *left > 0);
        self.right = left.map(|left| {
            let until = ago(0).plus(TICK * u32::try_from(left).unwrap());
            let asked = until.minus(timers.lease_ttl).min(ago(0));
            Right {
                granted: age_of(asked),
                peer_answered: None,
            }
        });
    }
}

impl Controller {
    /// What a new process makes of the log.
    pub(crate) fn take_over(&mut self, flaw: Option<Flaw>) {
        let raised = self.stage >= Stage::Raised && flaw != Some(Flaw::RaiseForgotten);
        let epoch = if raised { NEW } else { OLD };
        let mut book = LeaseBook::taken_over(epoch, Site::Active.name(), ago(0));
        if matches!(self.stage, Stage::Promoting(_)) {
            book.pass_to(Site::Passive.name());
        } else if raised {
            book.raise(epoch);
        }
        self.book = Book::of(&book);
        self.vouched = None;
    }
}

impl State {
    /// Whoever waited for an answer at the active site is gone.
    pub(crate) fn hang_up_on_active(&mut self) {
        self.net.grants = Ages::default();
        self.net.answers = Ages::default();
        self.net.replaced = false;
        self.net.superseded = false;
    }
}
