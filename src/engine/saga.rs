//! What the decision log adds up to: the state of the group, and what to do next with an open
//! plan. Folding the entries is the only way to this state, so after a restart the process knows
//! what it knew before.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

pub use super::command::Command;
pub use super::happening::{Ending, Happening, Moment, SagaError};
use super::instance::Instance;
use super::plan::{Plan, Role};
use super::step::{Event, Fact, Step, StepState, Undo};
use super::synchrony::{RpoWindow, WindowChange};
use super::topology::{SiteName, Topology};
use super::units::{Bytes, Epoch, WallTime};

/// A hold: automation is stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hold {
    /// The operator.
    pub operator: String,
    /// The operator's reason.
    pub reason: String,
    /// When it ends, by the wall clock at its start: for people.
    pub until: WallTime,
    /// When it began, by both clocks.
    pub since: Moment,
}

impl Hold {
    /// How much of it is left; `None` once it is over. It counts from its start, so that nobody
    /// ends it by setting the clock.
    pub fn left(&self, now: &Moment) -> Option<Duration> {
        let lasting = self.until.since(self.since.wall);
        let left = lasting.saturating_sub(self.since.ago(now));
        (!left.is_zero()).then_some(left)
    }
}

/// The state of the group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GroupState {
    /// The present epoch.
    pub epoch: Epoch,
    /// The site that holds the write lease, or held it last.
    pub active: SiteName,
    /// The open plan, if any.
    pub open: Option<OpenSaga>,
    /// The hold, if any.
    pub hold: Option<Hold>,
    /// Whether automation is disarmed since the last failover.
    pub disarmed: bool,
    /// When the last plan ended.
    pub last_plan: Option<Moment>,
    /// Whether the active site may acknowledge writes that its standby does not have.
    pub window: RpoWindow,
    /// The instance of each site's agent that counts; empty for a site whose agent never named one.
    pub instances: BTreeMap<SiteName, Instance>,
    /// The entry since which the active site is another installation than the one that its standby
    /// followed. The same position may then belong to two histories, until the standby is rebuilt
    /// or becomes active itself.
    pub replaced: Option<u64>,
    /// How many entries of a lost log anybody remembers, as an operator stated: those memories do
    /// not count.
    pub lost: u64,
}

/// What there was at a site before its infrastructure was told to fence it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    /// In the infrastructure's own form.
    pub before: String,
    /// What the infrastructure calls the machine that held the right.
    pub machine: String,
}

/// An open plan and the state of its steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OpenSaga {
    /// Its number: its entry's `seq`.
    pub id: u64,
    /// When it was opened.
    pub opened: Moment,
    /// The plan.
    pub plan: Plan,
    /// The state of each of its steps.
    pub states: Vec<StepState>,
    /// What there was at the old site before its infrastructure was told to fence it; `None` as long as
    /// it was told nothing.
    pub found: Option<Found>,
    /// Why it is being undone, if it is.
    pub broken: Option<String>,
    /// Whether it ended `Stuck`, so that an operator is needed.
    pub stuck: Option<String>,
}

/// What to do next with an open plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Run a step.
    Run {
        /// The step's index.
        index: usize,
        /// It was begun before: check whether it is done before doing it again.
        check_first: bool,
    },
    /// Undo a step.
    Undo {
        /// The step's index.
        index: usize,
        /// How.
        undo: Undo,
    },
    /// Record how the plan ended.
    End(Ending),
    /// Nothing: an operator is needed.
    Wait,
}

impl GroupState {
    /// The state of a group without a log.
    pub fn new(topology: &Topology) -> Self {
        Self {
            epoch: Epoch(1),
            active: topology.first.clone(),
            open: None,
            hold: None,
            disarmed: false,
            last_plan: None,
            window: RpoWindow::Open { entry: 1 },
            instances: BTreeMap::new(),
            replaced: None,
            lost: 0,
        }
    }

    /// The state after one more happening, which has this number and time in the log.
    pub fn apply(
        &mut self,
        number: u64,
        at: &Moment,
        happening: &Happening<'_>,
    ) -> Result<(), SagaError> {
        match happening {
            Happening::Commanded { operator, command } => {
                self.command(number, operator, command, at)
            }
            Happening::Planned(plan) => self.open(number, at, plan),
            Happening::Stepped { plan, index, event } => self.step(number, *plan, *index, event),
            Happening::Windowed(change) => self.windowed(number, change),
            Happening::Named(change) => {
                self.name(number, &change.site, change.instance);
                Ok(())
            }
            Happening::Ended { plan, ending } => self.end(*plan, at, ending),
        }
    }

    /// The plan that a person who asks for this site to become active wants tried again: it leads
    /// there, and is stuck.
    pub fn stuck_on_the_way_to(&self, to: &SiteName) -> Option<u64> {
        let stuck = self.open.as_ref().filter(|saga| saga.stuck.is_some());
        let there = stuck.filter(|saga| saga.plan.route.to == *to);
        there.map(|saga| saga.id)
    }

    /// From this entry on an instance of a site counts.
    fn name(&mut self, number: u64, site: &SiteName, instance: Instance) {
        let before = self.instances.insert(site.clone(), instance);
        if *site == self.active && before.is_some_and(|before| before != instance) {
            self.replaced = Some(number);
        }
    }

    fn command(
        &mut self,
        number: u64,
        operator: &str,
        command: &Command,
        at: &Moment,
    ) -> Result<(), SagaError> {
        match command {
            Command::Promote { .. } => {
                // Requesting a stuck plan again means to try it again.
                if let Some(saga) = &mut self.open {
                    saga.stuck = None;
                }
            }
            Command::Hold { reason, until } => {
                let (operator, reason) = (operator.to_owned(), reason.clone());
                self.hold = Some(Hold {
                    operator,
                    reason,
                    until: *until,
                    since: at.clone(),
                });
            }
            Command::Release { rebuilt, .. } => {
                self.hold = None;
                self.disarmed = false;
                if *rebuilt {
                    self.replaced = None;
                }
            }
            Command::Adopt { epoch, .. } if *epoch < self.epoch => {
                return Err(SagaError::EpochBack(*epoch, self.epoch));
            }
            Command::Adopt {
                epoch,
                active,
                instance,
                lost,
                ..
            } => {
                self.epoch = *epoch;
                if self.active != *active {
                    self.replaced = None;
                }
                self.active = active.clone();
                self.instances = instance
                    .map(|held| (active.clone(), held))
                    .into_iter()
                    .collect();
                self.lost = self.lost.max(*lost);
                // The outcome of a plan, and of the window, is in what was lost.
                self.open = None;
                self.disarmed = true;
                self.window = RpoWindow::Open { entry: number };
            }
            Command::AdoptInstance { site, instance, .. } => {
                self.name(number, site, *instance);
            }
        }
        Ok(())
    }

    fn open(&mut self, id: u64, opened: &Moment, plan: &Plan) -> Result<(), SagaError> {
        if let Some(open) = &self.open {
            return Err(SagaError::SecondPlan(id, open.id));
        }
        if plan.route.epoch != self.epoch.next() {
            return Err(SagaError::EpochGap(plan.route.epoch, self.epoch));
        }
        plan.check()
            .map_err(|cause| SagaError::Misshapen(id, cause))?;
        let states = plan.steps.iter().map(|_| StepState::Pending).collect();
        self.open = Some(OpenSaga {
            id,
            opened: opened.clone(),
            plan: plan.clone(),
            states,
            found: None,
            broken: None,
            stuck: None,
        });
        Ok(())
    }

    fn windowed(&mut self, number: u64, change: &WindowChange) -> Result<(), SagaError> {
        match (change, self.window, &self.open) {
            (WindowChange::Opened { .. }, _, Some(open)) => Err(SagaError::WindowInPlan(open.id)),
            (WindowChange::Opened { .. }, _, None) => {
                self.window = RpoWindow::Open { entry: number };
                Ok(())
            }
            (WindowChange::Closed { entry: closed, .. }, RpoWindow::Open { entry }, _)
                if *closed == entry =>
            {
                self.window = RpoWindow::Closed;
                Ok(())
            }
            (WindowChange::Closed { entry, .. }, _, _) => Err(SagaError::NoSuchWindow(*entry)),
        }
    }

    fn step(&mut self, number: u64, id: u64, index: usize, event: &Event) -> Result<(), SagaError> {
        let saga = self.saga(id)?;
        let state = saga
            .states
            .get_mut(index)
            .ok_or(SagaError::NoSuchStep(index))?;
        *state = state.on(event)?;
        let step = saga
            .plan
            .steps
            .get(index)
            .ok_or(SagaError::NoSuchStep(index))?;
        let (epoch, to) = (saga.plan.route.epoch, saga.plan.route.to.clone());
        let gives_up = matches!(saga.plan.role(step), Some(Role::Before(_) | Role::Pivot));
        if let (Event::Failed { why }, true) = (event, gives_up) {
            saga.broken = Some(format!("{step}: {why}"));
        }
        if let Event::Found { before, machine } = event {
            // Whoever looks a second time sees what the first change left.
            saga.found.get_or_insert_with(|| Found {
                before: before.clone(),
                machine: machine.clone(),
            });
        }
        match (step, event) {
            // From the moment it is logged, whatever happens afterwards.
            (Step::RaiseEpoch, Event::Started) => self.epoch = epoch,
            // A new primary has no standby yet.
            (Step::Promote, Event::Started) => self.window = RpoWindow::Open { entry: number },
            (Step::Promote, Event::Done { .. }) => {
                self.active = to;
                self.replaced = None;
            }
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, id: u64, at: &Moment, ending: &Ending) -> Result<(), SagaError> {
        let saga = self.saga(id)?;
        match ending {
            Ending::Stuck { why } => saga.stuck = Some(why.clone()),
            Ending::Done => {
                let disarms = saga.plan.kind.disarms();
                self.open = None;
                self.disarmed |= disarms;
                self.last_plan = Some(at.clone());
            }
            Ending::Undone { .. } => {
                self.open = None;
                self.last_plan = Some(at.clone());
            }
        }
        Ok(())
    }

    fn saga(&mut self, id: u64) -> Result<&mut OpenSaga, SagaError> {
        self.open
            .as_mut()
            .filter(|saga| saga.id == id)
            .ok_or(SagaError::NoSuchPlan(id))
    }
}

impl OpenSaga {
    fn steps(&self) -> impl DoubleEndedIterator<Item = (usize, &Step, &StepState)> {
        let both = self.plan.steps.iter().zip(&self.states);
        both.enumerate()
            .map(|(index, (step, state))| (index, step, state))
            .collect::<Vec<_>>()
            .into_iter()
    }

    /// Whether a step was begun, whatever its outcome.
    pub fn begun(&self, wanted: &Step) -> bool {
        self.steps()
            .any(|(_, step, state)| step == wanted && *state != StepState::Pending)
    }

    /// Whether the pivot was begun: then the plan only goes forward, unless the pivot certainly did
    /// not happen.
    pub fn past_pivot(&self) -> bool {
        let pivot = self.states.get(self.plan.pivot());
        matches!(
            pivot,
            Some(StepState::Started | StepState::Done { .. } | StepState::Stuck { .. })
        )
    }

    /// Whether the pivot was begun, and nobody knows yet what came of it.
    pub fn pivot_under_way(&self) -> bool {
        self.states.get(self.plan.pivot()) == Some(&StepState::Started)
    }

    /// The site that gets its lease back, if the plan can go no further and is not past its pivot:
    /// the site that had it, from the moment of the failure and before anything else is undone. So
    /// whatever is left to clean up prevents nobody from writing.
    pub fn gives_back_to(&self) -> Option<&SiteName> {
        let broken = self.broken.is_some() && !self.past_pivot();
        broken.then_some(&self.plan.route.from)
    }

    /// What to do next.
    pub fn next(&self) -> Next {
        if self.stuck.is_some() {
            return Next::Wait;
        }
        match &self.broken {
            Some(why) => self.next_back(why),
            None => self.next_forward(),
        }
    }

    fn next_back(&self, why: &str) -> Next {
        let mut left = self.steps().rev().filter(|(_, _, state)| {
            !matches!(
                state,
                StepState::Pending | StepState::Undone | StepState::Left { .. }
            )
        });
        let undo = left.find_map(|(index, step, _)| match self.plan.role(step) {
            Some(Role::Before(Some(undo))) => Some(Next::Undo { index, undo }),
            Some(Role::Before(None) | Role::Pivot | Role::After(_)) | None => None,
        });
        match undo {
            Some(undo) => undo,
            None => Next::End(Ending::Undone {
                why: why.to_owned(),
            }),
        }
    }

    fn next_forward(&self) -> Next {
        let left = self
            .steps()
            .find(|(_, _, state)| !matches!(state, StepState::Done { .. }));
        match left {
            None => Next::End(Ending::Done),
            Some((index, _, StepState::Pending)) => Next::Run {
                index,
                check_first: false,
            },
            Some((index, ..)) => Next::Run {
                index,
                check_first: true,
            },
        }
    }

    /// The fact of the step of this kind, if it is done.
    pub fn fact(&self, wanted: &Step) -> Option<&Fact> {
        self.steps().find_map(|(_, step, state)| match state {
            StepState::Done { fact } if step == wanted => Some(fact),
            StepState::Done { .. }
            | StepState::Pending
            | StepState::Started
            | StepState::Failed { .. }
            | StepState::Undoing
            | StepState::Undone
            | StepState::Left { .. }
            | StepState::Stuck { .. } => None,
        })
    }

    /// Whether it is proven that the old primary accepts no write (invariants.md I2).
    pub fn is_fenced(&self) -> bool {
        let done = |state: &StepState| matches!(state, StepState::Done { .. });
        let mut steps = self.steps();
        steps.any(|(_, step, state)| step.proves_fence() && done(state))
    }

    /// The largest loss that this plan may declare: what the person accepted, or the policy's
    /// limit.
    pub fn loss_limit(&self, policy: Bytes) -> Bytes {
        let request = self.plan.request.as_ref();
        request
            .and_then(|request| request.accept_data_loss)
            .unwrap_or(policy)
    }
}

#[cfg(test)]
mod tests {
    use super::super::instance::InstanceChange;
    use super::super::lease::LastRight;
    use super::super::plan::Misshapen;
    use super::super::situation::samples::{aws, gcp, healthy};
    use super::super::step::Reversal;
    use super::super::units::MonoTime;
    use super::*;

    fn topology() -> Topology {
        let traffic = vec!["dns".parse().unwrap()];
        Topology {
            group: "shop".parse().unwrap(),
            first: aws(),
            second: gcp(),
            traffic,
        }
    }

    fn plan() -> Plan {
        let last = LastRight {
            site: aws(),
            granted: MonoTime::default(),
            alive: Some(true),
            machine: None,
        };
        Plan::failover(&healthy(), &topology(), &last, WallTime(0))
    }

    #[test]
    fn another_installation_of_the_active_site_is_remembered_until_its_standby_is_rebuilt() {
        let instance = |id| Instance { id, place: 1 };
        let named = |site, number, before| InstanceChange {
            site,
            instance: instance(number),
            before,
        };
        let mut state = GroupState::new(&topology());
        let mut apply = |number, change: &InstanceChange| {
            state
                .apply(number, &at(0), &Happening::Named(change))
                .unwrap();
            state.replaced
        };
        assert_eq!(apply(2, &named(aws(), 1, None)), None, "the first of all");
        assert_eq!(
            apply(3, &named(gcp(), 3, Some(instance(2)))),
            None,
            "the passive site"
        );
        assert_eq!(apply(4, &named(aws(), 4, Some(instance(1)))), Some(4));
        let release = |rebuilt| Command::Release {
            reason: "done".into(),
            rebuilt,
        };
        for (rebuilt, replaced) in [(false, Some(4)), (true, None)] {
            let command = release(rebuilt);
            let operator = "alice";
            let happening = Happening::Commanded {
                operator,
                command: &command,
            };
            state.apply(5, &at(0), &happening).unwrap();
            assert_eq!(state.replaced, replaced);
        }
    }

    fn at(wall: u64) -> Moment {
        Moment {
            wall: WallTime(wall),
            mono: Duration::from_secs(5),
            boot: "b".into(),
        }
    }

    struct Log(GroupState);

    impl Log {
        fn opened() -> Self {
            let mut state = GroupState::new(&topology());
            state
                .apply(7, &at(0), &Happening::Planned(&plan()))
                .unwrap();
            Self(state)
        }

        fn event(&mut self, index: usize, event: &Event) -> &mut Self {
            let happening = Happening::Stepped {
                plan: 7,
                index,
                event,
            };
            self.0.apply(8, &at(0), &happening).unwrap();
            self
        }

        fn done(&mut self, index: usize) -> &mut Self {
            self.event(index, &Event::Started)
                .event(index, &Event::Done { fact: Fact::Done })
        }

        fn next(&self) -> Next {
            self.0.open.as_ref().unwrap().next()
        }
    }

    const FENCE: usize = 4;
    const PROMOTE: usize = 6;

    /// A step is taken back, in the way that its kind is.
    fn back(index: usize) -> Next {
        match plan().steps[index].reversal() {
            Reversal::By(undo) => Next::Undo { index, undo },
            Reversal::Needless | Reversal::Impossible => panic!("step {index} has no undo"),
        }
    }

    #[test]
    fn steps_run_in_order_to_the_end() {
        let mut log = Log::opened();
        for index in 0..plan().steps.len() {
            assert_eq!(
                log.next(),
                Next::Run {
                    index,
                    check_first: false
                }
            );
            log.done(index);
        }
        assert_eq!(log.next(), Next::End(Ending::Done));
        assert_eq!(log.0.active, gcp());
        log.0
            .apply(
                99,
                &at(5),
                &Happening::Ended {
                    plan: 7,
                    ending: &Ending::Done,
                },
            )
            .unwrap();
        assert!(log.0.disarmed && log.0.open.is_none());
    }

    #[test]
    fn a_started_step_is_checked_before_it_is_repeated() {
        let mut log = Log::opened();
        log.event(0, &Event::Started);
        assert_eq!(
            log.next(),
            Next::Run {
                index: 0,
                check_first: true
            }
        );
    }

    #[test]
    fn before_the_pivot_a_failure_takes_all_back_in_reverse() {
        let mut log = Log::opened();
        for index in 0..FENCE {
            log.done(index);
        }
        log.event(FENCE, &Event::Started)
            .event(FENCE, &Event::Failed { why: "no".into() });
        for index in [4, 3, 2] {
            assert_eq!(log.next(), back(index));
            log.event(index, &Event::UndoStarted);
            assert_eq!(log.next(), back(index), "also after a crash");
            log.event(index, &Event::Undone);
        }
        assert_eq!(
            log.next(),
            Next::End(Ending::Undone {
                why: "fence: no".into()
            })
        );
        assert_eq!(log.0.epoch, Epoch(2), "an epoch only grows");
        assert_eq!(log.0.active, aws());
    }

    #[test]
    fn the_right_is_given_back_as_soon_as_a_plan_is_broken_before_its_pivot() {
        let given_back = |log: &Log| {
            let open = log.0.open.as_ref().unwrap();
            open.gives_back_to().cloned()
        };
        let failed = Event::Failed { why: "no".into() };
        for broken in 0..=PROMOTE {
            let mut log = Log::opened();
            for index in 0..broken {
                log.done(index);
            }
            log.event(broken, &Event::Started);
            assert_eq!(given_back(&log), None, "step {broken} goes on");
            log.event(broken, &failed);
            assert_eq!(given_back(&log), Some(aws()), "step {broken} failed");
        }
        let mut log = Log::opened();
        for index in 0..=PROMOTE {
            log.done(index);
        }
        log.event(7, &Event::Started).event(7, &failed);
        assert_eq!(given_back(&log), None, "the new site is active");
    }

    #[test]
    fn what_cannot_be_tidied_up_is_left_and_ends_the_plan_all_the_same() {
        let mut log = Log::opened();
        for index in 0..FENCE {
            log.done(index);
        }
        log.event(FENCE, &Event::Started)
            .event(FENCE, &Event::Failed { why: "no".into() });
        for index in [4, 3, 2] {
            assert_eq!(log.next(), back(index));
            log.event(index, &Event::UndoStarted)
                .event(index, &Event::Left { why: "x".into() });
        }
        assert!(matches!(log.next(), Next::End(Ending::Undone { .. })));
    }

    #[test]
    fn a_hold_lasts_as_long_as_it_was_to_whatever_the_wall_clock_does() {
        let mut state = GroupState::new(&topology());
        let command = Command::Hold {
            reason: "maintenance".into(),
            until: WallTime(60_000),
        };
        let held = Happening::Commanded {
            operator: "alice",
            command: &command,
        };
        state.apply(2, &at(0), &held).unwrap();
        let hold = state.hold.unwrap();
        let now = |wall, mono, boot: &str| Moment {
            wall: WallTime(wall),
            mono: Duration::from_secs(mono),
            boot: boot.into(),
        };
        let left = |now| hold.left(&now).map(|left| left.as_secs());
        assert_eq!(left(now(1_000, 6, "b")), Some(59));
        assert_eq!(left(now(36_000_000, 6, "b")), Some(59), "hours forward");
        assert_eq!(left(now(0, 65, "b")), None, "and back");
        // On a machine that started anew the wall clock is all there is.
        assert_eq!(left(now(1_000, 2, "c")), Some(59));
        assert_eq!(left(now(60_000, 2, "c")), None);
    }

    #[test]
    fn after_the_pivot_there_is_only_forward() {
        let mut log = Log::opened();
        for index in 0..PROMOTE {
            log.done(index);
        }
        log.event(PROMOTE, &Event::Started);
        assert_eq!(
            log.next(),
            Next::Run {
                index: PROMOTE,
                check_first: true
            }
        );
        log.event(PROMOTE, &Event::Done { fact: Fact::Done });
        log.event(7, &Event::Started)
            .event(7, &Event::Failed { why: "busy".into() });
        assert_eq!(
            log.next(),
            Next::Run {
                index: 7,
                check_first: true
            }
        );
    }

    #[test]
    fn a_pivot_that_certainly_did_not_happen_is_taken_back() {
        let mut log = Log::opened();
        for index in 0..PROMOTE {
            log.done(index);
        }
        log.event(PROMOTE, &Event::Started)
            .event(PROMOTE, &Event::Failed { why: "no".into() });
        assert_eq!(log.next(), back(FENCE));
    }

    #[test]
    fn a_stuck_plan_waits_for_a_person_who_asks_again() {
        let mut log = Log::opened();
        log.event(0, &Event::Started)
            .event(0, &Event::Stuck { why: "x".into() });
        let stuck = Ending::Stuck { why: "x".into() };
        log.0
            .apply(
                9,
                &at(0),
                &Happening::Ended {
                    plan: 7,
                    ending: &stuck,
                },
            )
            .unwrap();
        assert_eq!(log.next(), Next::Wait);
        assert_eq!(log.0.stuck_on_the_way_to(&gcp()), Some(7));
        assert_eq!(log.0.stuck_on_the_way_to(&aws()), None, "another plan");
        let request = healthy().asked(gcp()).request.unwrap();
        let command = Command::Promote { request };
        let again = Happening::Commanded {
            operator: "alice",
            command: &command,
        };
        log.0.apply(10, &at(0), &again).unwrap();
        assert_eq!(log.0.stuck_on_the_way_to(&gcp()), None, "it goes on");
        assert_eq!(
            log.next(),
            Next::Run {
                index: 0,
                check_first: true
            }
        );
    }

    #[test]
    fn a_group_has_at_most_one_open_plan() {
        let mut log = Log::opened();
        let second = log.0.apply(9, &at(0), &Happening::Planned(&plan()));
        assert_eq!(second, Err(SagaError::SecondPlan(9, 7)));
    }

    #[test]
    fn a_plan_that_cannot_be_walked_is_none() {
        let mut state = GroupState::new(&topology());
        let before = state.clone();
        let mut crooked = plan();
        crooked.steps.remove(FENCE);
        let opened = state.apply(7, &at(0), &Happening::Planned(&crooked));
        assert_eq!(opened, Err(SagaError::Misshapen(7, Misshapen::Unfenced)));
        assert_eq!(state, before);
    }

    #[test]
    fn the_window_stays_as_it_is_in_a_plan_until_the_promotion_opens_it() {
        let from = crate::engine::units::Lsn(9);
        let closed = WindowChange::Closed { entry: 1, from };
        let opened = WindowChange::Opened { why: "it".into() };
        let mut state = GroupState::new(&topology());
        let say = |state: &mut GroupState, number, change| {
            state.apply(number, &at(0), &Happening::Windowed(change))
        };
        assert_eq!(say(&mut state, 2, &closed), Ok(()));
        assert_eq!(state.window, RpoWindow::Closed);
        let again = say(&mut state, 3, &closed);
        assert_eq!(again, Err(SagaError::NoSuchWindow(1)));
        assert_eq!(say(&mut state, 4, &opened), Ok(()));
        assert_eq!(state.window, RpoWindow::Open { entry: 4 });
        let old = say(&mut state, 5, &closed);
        assert_eq!(old, Err(SagaError::NoSuchWindow(1)));
        let right = WindowChange::Closed { entry: 4, from };
        say(&mut state, 6, &right).unwrap();
        state
            .apply(7, &at(0), &Happening::Planned(&plan()))
            .unwrap();
        let mut log = Log(state);
        let in_plan = say(&mut log.0, 8, &opened);
        assert_eq!(in_plan, Err(SagaError::WindowInPlan(7)));
        for index in 0..PROMOTE {
            log.done(index);
        }
        assert_eq!(log.0.window, RpoWindow::Closed);
        log.event(PROMOTE, &Event::Started);
        assert_eq!(log.0.window, RpoWindow::Open { entry: 8 });
    }

    fn adopt(epoch: u64) -> Command {
        Command::Adopt {
            epoch: Epoch(epoch),
            active: gcp(),
            instance: Some(Instance { id: 1, place: 2 }),
            lost: 90,
            reason: "the log is from yesterday".into(),
        }
    }

    #[test]
    fn what_is_adopted_ends_plan_and_window_and_an_epoch_only_grows() {
        let mut log = Log::opened();
        log.done(0).done(1);
        let say = |log: &mut Log, command: &Command| {
            let operator = "alice";
            let happening = Happening::Commanded { operator, command };
            log.0.apply(30, &at(0), &happening)
        };
        let back = say(&mut log, &adopt(1));
        assert_eq!(back, Err(SagaError::EpochBack(Epoch(1), Epoch(2))));
        assert!(log.0.open.is_some(), "nothing changes when it is refused");
        say(&mut log, &adopt(5)).unwrap();
        assert_eq!((log.0.epoch, &log.0.active), (Epoch(5), &gcp()));
        assert_eq!(log.0.open, None);
        assert!(log.0.disarmed);
        assert_eq!(log.0.window, RpoWindow::Open { entry: 30 });
        assert_eq!(log.0.lost, 90);
        let held = Instance { id: 1, place: 2 };
        assert_eq!(log.0.instances, [(gcp(), held)].into());
        let other = Instance { id: 1, place: 3 };
        let command = Command::AdoptInstance {
            site: gcp(),
            instance: other,
            reason: "it moved".into(),
        };
        say(&mut log, &command).unwrap();
        assert_eq!(log.0.instances, [(gcp(), other)].into());
    }

    #[test]
    fn the_epoch_is_raised_as_soon_as_the_step_is_written_down() {
        let mut log = Log::opened();
        assert_eq!(log.0.epoch, Epoch(1));
        log.done(0).event(1, &Event::Started);
        assert_eq!(log.0.epoch, Epoch(2));
    }
}
