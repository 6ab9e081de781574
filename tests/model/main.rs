//! Every state that lease, sever, fence and promote can come to, with the engine's own functions.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::wildcard_enum_match_arm,
    reason = "a test may fail, says what it found, and hands each move to the one whom it concerns"
)]

mod state;
mod moves;

use std::time::Duration;

use failover::engine::lease::LeaseBook;
use failover::engine::policy::{FenceOn, FenceStages, LeaseTimers, OnTotalIsolation};
use stateright::{Checker, HasDiscoveries, Model, Property};

use moves::Move;
use state::{
    Active, Book, Controller, NEW, Net, OLD, Passive, Proof, Right, Site, Stage, State, TICK, ago,
};

/// What is checked.
#[derive(Debug, Clone)]
pub(crate) struct Protocol {
    timers: LeaseTimers,
    /// How many messages of one kind may be on their way at once.
    in_flight: u32,
    /// How many ticks the clocks go together between two at which one of them goes alone; `None`
    /// is for ever.
    drift_every: Option<u8>,
    /// Who may end and start again.
    restarts: &'static [Move],
    /// The one site that the active one's agent reaches, and always in time: itself stands for
    /// the controller.
    only_link: Option<Site>,
    /// Whether the active site is fenced by its infrastructure alone (F2), instead of by its agent's word
    /// and by waiting.
    infrastructure: bool,
    flaw: Option<Flaw>,
}

/// What could have been built wrongly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// Promotes as soon as the sever is confirmed.
    NotWaited,
    /// The active site counts from when the grant, or the peer's answer, came in.
    GrantCountedFromItsArrival,
    PeerCountedFromItsArrival,
    /// When the passive site last vouched does not outlive its agent, and one that started says that it
    /// never did.
    VouchForgotten,
    /// Its age is that of a word from before the order to sever.
    VouchHeldUp,
    /// The sever does not outlive the passive site's agent.
    SeverForgotten,
    /// A promoted site answers its peer as if it had never been severed, and such an answer
    /// brings back a right that was over.
    LateAnswers,
    /// A controller that takes over grants in the old epoch until it promotes.
    RaiseForgotten,
    /// Grants in the old epoch are given, and not reckoned, after the raise.
    GrantsGoOn,
    /// The wait is counted as if all clocks went alike.
    DriftIgnored,
    /// Waits out a site whose agent was not heard of.
    SilentAgentWaitedOut,
    /// A promotion that is not known to have come is taken back without the passive site's word.
    TakenBackUnasked,
    /// That word is given while the promotion may still come.
    NotDoneWhileItMayCome,
    /// The word is given, and an order that is late is obeyed.
    PromiseForgotten,
    /// A pod whose object is gone counts as ended.
    ObjectGone,
    /// A pod is ended, and nobody knows whether it held the right.
    StrangerFenced,
}

impl Protocol {
    fn new() -> Self {
        Self {
            timers: LeaseTimers {
                renew_every: TICK,
                lease_ttl: TICK * 3,
                peer_every: TICK,
                peer_ttl: TICK * 2,
                fence_within: TICK,
                fence: FenceStages {
                    fast: TICK / 4,
                    immediate: TICK / 4,
                    kill: TICK / 4,
                },
                clock_drift_ppm: 333_334,
                margin: Duration::from_millis(1),
                fence_on: FenceOn::Isolated,
                on_total_isolation: OnTotalIsolation::Fence,
            },
            in_flight: 1,
            drift_every: Some(3),
            restarts: &[
                Move::RestartAgent,
                Move::RestartSite,
                Move::RestartPassive,
                Move::RestartController,
            ],
            only_link: None,
            infrastructure: false,
            flaw: None,
        }
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Move;

    fn init_states(&self) -> Vec<State> {
        let active = Site::Active.name();
        let mut granted = LeaseBook::taken_over(OLD, active.clone(), ago(0));
        let silent = Book::of(&granted);
        granted.grant(&active, OLD, ago(0)).unwrap();
        let healthy = State {
            together: self.drift_every.unwrap_or(0),
            controller: Controller {
                stage: Stage::NoPlan,
                can_wait_out: false,
                found: false,
                book: Book::of(&granted),
                vouched: None,
            },
            active: Active {
                guarded: true,
                right: Some(Right {
                    granted: 0,
                    peer_answered: None,
                }),
                fenced: false,
                deadline: Some(3),
                writes: true,
                ended: false,
            },
            passive: Passive {
                severed: None,
                vouched: 0,
                epoch: OLD,
                ordered: false,
                begun: false,
                promoted: false,
                desisted: false,
            },
            net: Net::default(),
        };
        // A site whose agent has not been heard of since the controller came to be in charge.
        let mut unheard = healthy.clone();
        unheard.controller.book = silent;
        unheard.active.guarded = false;
        unheard.active.right = None;
        unheard.active.deadline = None;
        vec![healthy, unheard]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Move>) {
        self.moves(state, actions);
        let restarts = Protocol::new().restarts;
        actions.retain(|happens| !restarts.contains(happens) || self.restarts.contains(happens));
    }

    fn next_state(&self, last: &State, happens: Move) -> Option<State> {
        self.after(last, happens)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(ONE_WRITER, |_, state: &State| {
                !(state.active.writes && state.passive.promoted)
            }),
            Property::always("fence before promote", |_, state: &State| {
                !state.passive.promoted || state.proof().is_some()
            }),
            Property::always("an agent's word is true", |_, state: &State| {
                let word = matches!(state.proof(), Some(Proof::Agent { .. }));
                !word || (state.active.fenced && !state.active.writes)
            }),
            Property::always("the epoch never falls", |_, state: &State| {
                let raised = state.controller.book.epoch() == NEW;
                let stage = state.controller.stage;
                (raised || stage <= Stage::Raised) && (!raised || stage >= Stage::Raised)
            }),
            Property::sometimes("takes a promotion back", |_, state: &State| {
                state.controller.stage == Stage::TakenBack
            }),
            Property::sometimes(STOPPED, |_, state: &State| !state.active.writes),
        ];
        if self.infrastructure {
            properties.push(Property::sometimes(
                "promotes on the infrastructure's word",
                |_, state: &State| state.promoted_by(Proof::Infrastructure),
            ));
            properties.push(Property::sometimes(
                "promotes beside a pod that was put back",
                |_, state: &State| {
                    state.passive.promoted && state.active.guarded && !state.active.ended
                },
            ));
            return properties;
        }
        properties.extend([
            Property::sometimes("promotes on the agent's word", |_, state: &State| {
                state.promoted_by(Proof::Agent { relayed: false })
            }),
            Property::sometimes(
                "promotes on the agent's relayed word",
                |_, state: &State| state.promoted_by(Proof::Agent { relayed: true }),
            ),
            Property::sometimes(
                "promotes when the right is waited out",
                |_, state: &State| state.promoted_by(Proof::WaitedOut),
            ),
        ]);
        properties
    }
}

const ONE_WRITER: &str = "one writer";
const STOPPED: &str = "the database is stopped";

/// Walks all states, as far as there are any, and says how many there were.
fn walk(what: &str, protocol: Protocol) -> impl Checker<Protocol> {
    let checker = protocol.checker().spawn_bfs().join();
    assert!(checker.is_done(), "{what}: it was not walked to its end");
    println!(
        "{what}: {} states by {} moves, {} deep",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth()
    );
    checker
}

#[test]
fn no_two_sites_take_writes_whatever_is_lost_late_or_restarted() {
    let protocol = Protocol {
        in_flight: in_flight(),
        ..Protocol::new()
    };
    let what = format!("{} of a kind on their way", protocol.in_flight);
    walk(&what, protocol).assert_properties();
}

#[test]
fn no_two_sites_take_writes_where_the_infrastructure_fences() {
    walk("fenced by the infrastructure", infrastructure()).assert_properties();
}

fn in_flight() -> u32 {
    let set = std::env::var("FAILOVER_MODEL_IN_FLIGHT");
    set.map_or(1, |count| count.parse().unwrap())
}

#[test]
fn an_active_site_that_reaches_the_controller_is_never_fenced() {
    never_fenced("only the controller in reach", Site::Active);
}

#[test]
fn losing_the_controller_alone_never_stops_production() {
    never_fenced("only the peer in reach", Site::Passive);
}

fn never_fenced(what: &str, only_link: Site) {
    let protocol = Protocol {
        only_link: Some(only_link),
        restarts: &[Move::RestartAgent, Move::RestartPassive],
        ..Protocol::new()
    };
    let checker = walk(what, protocol);
    checker.assert_no_discovery(STOPPED);
}

/// Finds the shortest way by which a flaw leads to two writers.
fn finds(flaw: Flaw, drift_every: Option<u8>, restarts: &'static [Move]) {
    finds_in(Protocol::new(), flaw, drift_every, restarts);
}

fn finds_in(of: Protocol, flaw: Flaw, drift_every: Option<u8>, restarts: &'static [Move]) {
    let flawed = Protocol {
        flaw: Some(flaw),
        drift_every,
        restarts,
        ..of
    };
    let checker = flawed.checker();
    let wanted = HasDiscoveries::AllOf([ONE_WRITER].into());
    let checker = checker.finish_when(wanted).spawn_bfs().join();
    let path = checker.discovery(ONE_WRITER);
    let moves = path.expect("two writers must be found").into_actions();
    println!(
        "{flaw:?}: two writers after {} moves, {} states",
        moves.len(),
        checker.unique_state_count()
    );
    println!("  {moves:?}");
}

#[test]
fn two_write_if_the_right_is_not_waited_out() {
    finds(Flaw::NotWaited, None, &[]);
}

#[test]
fn two_write_if_a_grant_counts_from_its_arrival() {
    finds(Flaw::GrantCountedFromItsArrival, None, &[]);
}

#[test]
fn two_write_if_an_answer_of_the_peer_counts_from_its_arrival() {
    finds(Flaw::PeerCountedFromItsArrival, None, &[]);
}

#[test]
fn two_write_if_a_vouch_is_forgotten_with_the_agent() {
    finds(Flaw::VouchForgotten, None, &[Move::RestartPassive]);
}

#[test]
fn two_write_if_the_age_of_a_vouch_is_older_than_its_word() {
    finds(Flaw::VouchHeldUp, None, &[]);
}

#[test]
fn two_write_if_the_passive_site_forgets_the_sever() {
    finds(Flaw::SeverForgotten, None, &[Move::RestartPassive]);
}

#[test]
fn two_write_if_answers_come_from_before_and_after_the_promotion_alike() {
    finds(Flaw::LateAnswers, None, &[]);
}

#[test]
fn two_write_if_the_controller_forgets_that_it_raised_the_epoch() {
    finds(Flaw::RaiseForgotten, None, &[Move::RestartController]);
}

#[test]
fn two_write_if_grants_go_on_after_the_epoch_is_raised() {
    finds(Flaw::GrantsGoOn, None, &[]);
}

#[test]
fn two_write_if_drift_is_left_out() {
    finds(Flaw::DriftIgnored, Some(3), &[]);
}

#[test]
fn two_write_if_a_silent_agent_is_waited_out() {
    finds(Flaw::SilentAgentWaitedOut, None, &[]);
}

#[test]
fn two_write_if_a_promotion_in_doubt_is_taken_back_unasked() {
    finds(Flaw::TakenBackUnasked, None, &[]);
}

#[test]
fn two_write_if_it_is_called_not_done_while_it_may_come() {
    finds(Flaw::NotDoneWhileItMayCome, None, &[]);
}

#[test]
fn two_write_if_the_word_that_no_promotion_comes_is_forgotten() {
    finds(Flaw::PromiseForgotten, None, &[]);
}

fn infrastructure() -> Protocol {
    Protocol {
        infrastructure: true,
        ..Protocol::new()
    }
}

#[test]
fn two_write_if_a_pod_whose_object_is_gone_counts_as_ended() {
    finds_in(infrastructure(), Flaw::ObjectGone, None, &[]);
}

#[test]
fn two_write_if_a_pod_is_ended_that_may_not_have_held_the_right() {
    finds_in(infrastructure(), Flaw::StrangerFenced, None, &[]);
}
