//! What can happen next, and what comes of it.

use failover::engine::lease::{Holder, LeaseBook, can_wait_out, is_superseded, waited_out_at};
use failover::engine::policy::LeaseTimers;

use super::state::{Book, Controller, NEW, Net, OLD, Oldest, Proof, Site, Stage, State, ago};
use super::{Flaw, Protocol};

/// One thing that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Move {
    /// These clocks go on by a tick; the others are slow, and stay where they are.
    Tick(Clocks),
    Ask,
    Grant(u8),
    HearGrant(u8),
    HearReplaced,
    AskPeer,
    AnswerPeer(u8),
    HearPeer(u8),
    HearSuperseded,
    NoticeEndOfRight,
    StartDatabase,
    StopDatabase,
    RestartAgent,
    RestartSite,
    OpenPlan,
    WriteRaise,
    Raise,
    OrderSever,
    Sever,
    HearSevered,
    OrderFence,
    Fence {
        relayed: bool,
    },
    HearFenced {
        relayed: bool,
    },
    WaitOut,
    /// The infrastructure is told to end the pod.
    OrderScale,
    EndPod,
    HearEnded,
    /// A reconciler, or a person, wants the pod again.
    PutBack,
    Promote,
    HearPromote,
    GrantToPassive,
    BeginPromotion,
    PromotionComes,
    OrderDesist,
    Desist,
    TakeBack,
    RestartPassive,
    RestartController,
}

/// Some of the three clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Clocks {
    controller: bool,
    active: bool,
    passive: bool,
}

impl Clocks {
    const ALL: Self = Self::of(0b111);

    const fn of(bits: u8) -> Self {
        Self {
            controller: bits & 1 != 0,
            active: bits & 2 != 0,
            passive: bits & 4 != 0,
        }
    }
}

impl Protocol {
    /// Collects what can happen.
    pub(crate) fn moves(&self, now: &State, moves: &mut Vec<Move>) {
        if now.controller.stage == Stage::TakenBack {
            // The old primary takes writes. What else can happen is that the promotion comes.
            return moves_of_promotion(now, moves);
        }
        self.moves_of_clocks(now, moves);
        if now.active.guarded && !now.active.ended {
            self.moves_of_active(now, moves);
        }
        if now.net.scale.ordered && !now.active.ended {
            moves.push(Move::EndPod);
        }
        if now.active.ended {
            moves.push(Move::PutBack);
        }
        if self.only_link != Some(Site::Passive) {
            self.moves_of_controller(now, moves);
        }
        if self.only_link != Some(Site::Active) {
            self.moves_of_passive(now, moves);
        }
    }

    fn moves_of_clocks(&self, now: &State, moves: &mut Vec<Move>) {
        let active = &now.active;
        // The guard has stopped the database before its bound is over.
        let within = i8::try_from(self.timers.fence_within.as_secs()).unwrap();
        let stopped_in_time = active
            .deadline
            .is_none_or(|left| left - 1 > -within || !active.writes);
        let heard = match (self.only_link, &active.right) {
            (Some(Site::Active), Some(right)) => right.granted <= 1,
            (Some(Site::Passive), Some(right)) => right.peer_answered.is_some_and(|age| age == 0),
            (Some(_), None) => false,
            (None, _) => true,
        };
        let apart = self.drift_every.is_some_and(|every| now.together >= every);
        let some = if apart { 1..7 } else { 7..7 };
        let clocks = some.map(Clocks::of).chain([Clocks::ALL]);
        let can = |clocks: &Clocks| !clocks.active || (stopped_in_time && heard);
        moves.extend(clocks.filter(can).map(Move::Tick));
    }

    fn moves_of_active(&self, now: &State, moves: &mut Vec<Move>) {
        let (active, net) = (&now.active, &now.net);
        let left = active.right.as_ref().map(|right| right.left(&self.timers));
        if !active.fenced {
            moves.extend([Move::Ask, Move::AskPeer]);
        }
        moves.extend(net.grants.each().map(Move::HearGrant));
        moves.extend(net.answers.each().map(Move::HearPeer));
        if !active.fenced || active.writes {
            if net.replaced {
                moves.push(Move::HearReplaced);
            }
            if net.superseded {
                moves.push(Move::HearSuperseded);
            }
        }
        if left.is_some_and(|left| left <= 0) {
            moves.push(Move::NoticeEndOfRight);
        }
        if left.is_some_and(|left| left > 0) && !active.writes && !active.fenced {
            moves.push(Move::StartDatabase);
        }
        let over = active.deadline.is_some_and(|left| left <= 0);
        if active.writes && (over || active.fenced) {
            moves.push(Move::StopDatabase);
        }
        moves.push(Move::RestartAgent);
        if self.only_link.is_none() {
            moves.push(Move::RestartSite);
        }
        if net.fence.ordered && !(active.fenced && net.fence.confirmed) {
            moves.extend([false, true].map(|relayed| Move::Fence { relayed }));
        }
    }

    fn moves_of_controller(&self, now: &State, moves: &mut Vec<Move>) {
        let (controller, net) = (&now.controller, &now.net);
        moves.extend(net.requests.each().map(Move::Grant));
        if self.only_link.is_some() {
            return;
        }
        moves.push(Move::RestartController);
        let raised = controller.book.epoch() == NEW && controller.book.holder().is_none();
        match controller.stage {
            Stage::NoPlan => moves.push(Move::OpenPlan),
            Stage::Planned => moves.push(Move::WriteRaise),
            Stage::Raised if !raised => moves.push(Move::Raise),
            Stage::Raised => {
                moves.push(Move::OrderSever);
                if net.sever.confirmed.is_some() {
                    moves.push(Move::HearSevered);
                }
            }
            Stage::Severed => {
                if controller.vouched.is_none() {
                    moves.push(Move::OrderSever);
                    if net.sever.confirmed.is_some() {
                        moves.push(Move::HearSevered);
                    }
                } else if self.infrastructure {
                    let known = controller.found || controller.book.heard();
                    if known || self.flaw == Some(Flaw::StrangerFenced) {
                        moves.push(Move::OrderScale);
                    }
                    let gone = net.scale.ordered && self.flaw == Some(Flaw::ObjectGone);
                    if net.scale.confirmed || gone {
                        moves.push(Move::HearEnded);
                    }
                } else {
                    moves.extend([Move::OrderFence, Move::WaitOut]);
                    if net.fence.confirmed {
                        moves.extend([false, true].map(|relayed| Move::HearFenced { relayed }));
                    }
                }
            }
            Stage::Fenced(_) => moves.push(Move::Promote),
            Stage::TakenBack => {}
            Stage::Promoting(_) => {
                moves.extend([Move::Promote, Move::OrderDesist]);
                if net.desist.confirmed || self.flaw == Some(Flaw::TakenBackUnasked) {
                    moves.push(Move::TakeBack);
                }
                // An agent that asks in the old epoch hears who holds the right now.
                moves.extend(net.requests.each().take(1).map(Move::Grant));
            }
        }
    }

    fn moves_of_passive(&self, now: &State, moves: &mut Vec<Move>) {
        let (passive, net) = (&now.passive, &now.net);
        moves.extend(net.questions.each().map(Move::AnswerPeer));
        // An order that comes again later is one that was held up.
        if net.sever.ordered && net.sever.confirmed.is_none() && !passive.promoted {
            moves.push(Move::Sever);
        }
        let may_come =
            passive.promoted || (passive.begun && self.flaw != Some(Flaw::NotDoneWhileItMayCome));
        if net.desist.ordered && !net.desist.confirmed && !may_come {
            moves.push(Move::Desist);
        }
        moves.push(Move::RestartPassive);
        moves_of_promotion(now, moves);
    }

    /// What comes of a move; `None` where it changes nothing.
    pub(crate) fn after(&self, before: &State, happens: Move) -> Option<State> {
        let mut next = before.clone();
        match happens {
            Move::Tick(clocks) => self.tick(&mut next, clocks),
            Move::Ask
            | Move::HearGrant(_)
            | Move::HearReplaced
            | Move::AskPeer
            | Move::HearPeer(_)
            | Move::HearSuperseded
            | Move::NoticeEndOfRight
            | Move::StartDatabase
            | Move::StopDatabase
            | Move::RestartAgent
            | Move::RestartSite
            | Move::EndPod
            | Move::PutBack
            | Move::Fence { .. } => self.active(&mut next, happens)?,
            Move::Sever
            | Move::AnswerPeer(_)
            | Move::HearPromote
            | Move::BeginPromotion
            | Move::PromotionComes
            | Move::Desist
            | Move::RestartPassive => self.passive(&mut next, happens)?,
            Move::Grant(_)
            | Move::OpenPlan
            | Move::WriteRaise
            | Move::Raise
            | Move::OrderSever
            | Move::HearSevered
            | Move::OrderFence
            | Move::HearFenced { .. }
            | Move::WaitOut
            | Move::OrderScale
            | Move::HearEnded
            | Move::Promote
            | Move::GrantToPassive
            | Move::OrderDesist
            | Move::TakeBack
            | Move::RestartController => self.controller(&mut next, happens)?,
        }
        let stale_counts = matches!(
            self.flaw,
            Some(Flaw::GrantCountedFromItsArrival | Flaw::PeerCountedFromItsArrival)
        );
        next.forget(self.oldest(), stale_counts);
        if self.flaw != Some(Flaw::LateAnswers) {
            // The agent looks before it does anything else.
            let right = &mut next.active.right;
            right.take_if(|right| right.open(&self.timers).is_over(ago(0)));
        }
        (next != *before).then_some(next)
    }

    fn tick(&self, next: &mut State, clocks: Clocks) {
        let oldest = self.oldest();
        if clocks.controller {
            next.tick_controller(oldest);
        }
        if clocks.active {
            next.tick_active(oldest);
        }
        if clocks.passive {
            next.tick_passive(oldest);
        }
        next.together = if clocks == Clocks::ALL {
            (next.together + 1).min(self.drift_every.unwrap_or(0))
        } else {
            0
        };
    }

    fn active(&self, next: &mut State, happens: Move) -> Option<()> {
        let at_most = self.in_flight;
        match happens {
            Move::Ask => next.net.requests.send(0, at_most),
            Move::AskPeer => next.net.questions.send(0, at_most),
            Move::HearGrant(asked) => {
                let asked = self.counted(Flaw::GrantCountedFromItsArrival, asked);
                let renewed = match &next.active.right {
                    Some(right) => {
                        let mut holder = right.open(&self.timers);
                        holder.renewed(OLD, ago(asked), self.timers.clone());
                        (holder, right.granted.min(asked), right.peer_answered)
                    }
                    None => {
                        let holder = Holder::granted(OLD, ago(asked), self.timers.clone());
                        (holder, asked, None)
                    }
                };
                next.active.hold(renewed, &self.timers);
            }
            Move::HearPeer(asked) => {
                let asked = self.counted(Flaw::PeerCountedFromItsArrival, asked);
                let right = next.active.right.clone()?;
                let mut holder = right.open(&self.timers);
                holder.peer_answered(ago(asked));
                let newest = right.peer_answered.map_or(asked, |age| age.min(asked));
                next.active
                    .hold((holder, right.granted, Some(newest)), &self.timers);
            }
            Move::HearReplaced | Move::HearSuperseded => {
                next.active.fenced = true;
                next.active.right = None;
            }
            Move::NoticeEndOfRight => next.active.right = None,
            Move::StartDatabase => {
                let right = next.active.right.as_ref()?;
                next.active.deadline = Some(right.left(&self.timers));
                next.active.writes = true;
            }
            Move::StopDatabase => {
                next.active.writes = false;
                next.active.deadline = None;
            }
            Move::RestartAgent => {
                next.hang_up_on_active();
                next.active.adopt(&self.timers);
            }
            Move::RestartSite => {
                next.hang_up_on_active();
                next.active.right = None;
                next.active.writes = false;
                next.active.deadline = None;
            }
            Move::EndPod => {
                next.net.scale.confirmed = true;
                next.active.ended = true;
                // A holder without an agent does not run in that pod.
                if next.active.guarded {
                    next.hang_up_on_active();
                    next.active.right = None;
                    next.active.writes = false;
                    next.active.deadline = None;
                }
            }
            Move::PutBack => {
                // What was sent before was about an older version.
                next.net.scale.ordered = false;
                next.active.ended = false;
            }
            Move::Fence { .. } => {
                next.active.fenced = true;
                next.active.right = None;
                next.net.fence.confirmed = !next.active.writes;
            }
            _ => return None,
        }
        Some(())
    }

    fn passive(&self, next: &mut State, happens: Move) -> Option<()> {
        let passive = &mut next.passive;
        match happens {
            Move::AnswerPeer(asked) => {
                let known = match self.flaw {
                    Some(Flaw::LateAnswers) => OLD,
                    _ => passive.epoch,
                };
                if is_superseded(OLD, passive.severed, known) {
                    next.net.superseded = true;
                } else {
                    let word_before = self.flaw == Some(Flaw::VouchHeldUp);
                    if !(word_before && next.net.sever.ordered) {
                        passive.vouched = 0;
                    }
                    next.net.answers.send(asked, self.in_flight);
                }
            }
            Move::Sever => {
                passive.severed = passive.severed.max(Some(NEW));
                next.net.sever.confirmed = Some(passive.vouched);
            }
            Move::HearPromote => {
                passive.epoch = NEW;
                passive.ordered = true;
            }
            Move::BeginPromotion => {
                passive.ordered = false;
                passive.begun = true;
            }
            Move::PromotionComes => {
                passive.begun = false;
                passive.promoted = true;
                passive.severed = None;
            }
            Move::Desist => {
                passive.ordered = false;
                passive.desisted = self.flaw != Some(Flaw::PromiseForgotten);
                next.net.desist.confirmed = true;
            }
            Move::RestartPassive => {
                passive.ordered = false;
                passive.vouched = match self.flaw {
                    Some(Flaw::VouchForgotten) => self.oldest().at_controller,
                    _ => 0,
                };
                if self.flaw == Some(Flaw::SeverForgotten) {
                    passive.severed = None;
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn controller(&self, next: &mut State, happens: Move) -> Option<()> {
        let net = &mut next.net;
        let controller = &mut next.controller;
        let mut book = controller.book.open();
        match happens {
            Move::Grant(asked) => {
                let granted = book.grant(&Site::Active.name(), OLD, ago(0));
                let goes_on = self.flaw == Some(Flaw::GrantsGoOn) && book.holder.is_none();
                if granted.is_ok() {
                    controller.book = Book::of(&book);
                }
                if granted.is_ok() || goes_on {
                    net.grants.send(asked, self.in_flight);
                } else if book.holder == Some(Site::Passive.name()) {
                    net.replaced = true;
                }
            }
            Move::OpenPlan => {
                controller.stage = Stage::Planned;
                controller.can_wait_out = can_wait_out(&self.timers, &book.last_right())
                    || self.flaw == Some(Flaw::SilentAgentWaitedOut);
            }
            Move::WriteRaise => controller.stage = Stage::Raised,
            Move::Raise => {
                book.raise(NEW);
                controller.book = Book::of(&book);
            }
            Move::OrderSever => net.sever.ordered = true,
            Move::HearSevered => {
                controller.stage = Stage::Severed;
                controller.vouched = Some(net.sever.confirmed?);
            }
            Move::OrderFence => {
                book.raise(NEW);
                controller.book = Book::of(&book);
                net.fence.ordered = true;
            }
            Move::HearFenced { relayed } => {
                controller.stage = Stage::Fenced(Proof::Agent { relayed });
            }
            Move::WaitOut => {
                book.raise(NEW);
                controller.book = Book::of(&book);
                if controller.can_wait_out && self.waited_out(controller, &book) {
                    controller.stage = Stage::Fenced(Proof::WaitedOut);
                }
            }
            Move::OrderScale => {
                book.raise(NEW);
                controller.book = Book::of(&book);
                controller.found = true;
                net.scale.ordered = true;
            }
            Move::HearEnded => controller.stage = Stage::Fenced(Proof::Infrastructure),
            Move::Promote => {
                let (Stage::Fenced(proof) | Stage::Promoting(proof)) = controller.stage else {
                    return None;
                };
                controller.stage = Stage::Promoting(proof);
                if self.flaw == Some(Flaw::RaiseForgotten) {
                    // Or the book refuses the grant: the new epoch would be from the future.
                    book.raise(NEW);
                }
                book.pass_to(Site::Passive.name());
                controller.book = Book::of(&book);
                net.promote = true;
            }
            Move::GrantToPassive => {
                let passive = &next.passive;
                book.grant(&Site::Passive.name(), passive.epoch, ago(0))
                    .ok()?;
                net.right = true;
            }
            Move::OrderDesist => net.desist.ordered = true,
            Move::TakeBack => {
                book.pass_to(Site::Active.name());
                controller.stage = Stage::TakenBack;
                controller.book = Book::of(&book);
                next.active.writes = true;
                next.active.ended = false;
                // What the old primary hears and asks makes no difference any more.
                *net = Net {
                    promote: net.promote,
                    right: net.right,
                    ..Net::default()
                };
            }
            Move::RestartController => {
                net.sever.confirmed = None;
                net.fence.confirmed = false;
                net.desist.confirmed = false;
                controller.take_over(self.flaw);
            }
            _ => return None,
        }
        Some(())
    }

    /// F3.
    fn waited_out(&self, controller: &Controller, book: &LeaseBook) -> bool {
        let Some(vouched) = controller.vouched else {
            return false;
        };
        let timers = match self.flaw {
            Some(Flaw::NotWaited) => return true,
            Some(Flaw::DriftIgnored) => &LeaseTimers {
                clock_drift_ppm: 0,
                ..self.timers.clone()
            },
            _ => &self.timers,
        };
        ago(0) >= waited_out_at(timers, ago(vouched), book.last_right().granted)
    }

    fn counted(&self, flaw: Flaw, asked: u8) -> u8 {
        if self.flaw == Some(flaw) { 0 } else { asked }
    }

    fn oldest(&self) -> Oldest {
        let whole = |duration: std::time::Duration| u8::try_from(duration.as_secs()).unwrap();
        Oldest {
            at_controller: whole(self.timers.longest_wait_out()) + 1,
            grant: whole(self.timers.lease_ttl),
            peer: whole(self.timers.peer_ttl),
        }
    }
}

/// The order, the grant and the promotion may each be late.
fn moves_of_promotion(now: &State, moves: &mut Vec<Move>) {
    let (passive, net) = (&now.passive, &now.net);
    if passive.promoted {
        return;
    }
    if net.promote && !passive.begun && !passive.desisted {
        moves.push(Move::HearPromote);
    }
    if passive.ordered {
        moves.push(Move::GrantToPassive);
    }
    if passive.ordered && net.right {
        moves.push(Move::BeginPromotion);
    }
    if passive.begun {
        moves.push(Move::PromotionComes);
    }
}
