//! The control loop: one task that owns what the controller knows. Everything arrives in one queue.
//! It decides at every arrival, and when the engine says that the decision can change by itself;
//! decisions are logged when they change.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::brain::Brain;
use super::executor::{Executor, World};
use super::journal::{Delay, Journal, JournalError, View};
use super::rehearser::Rehearser;
use crate::engine::answer::Answer;
use crate::engine::chain::Body;
use crate::engine::credential::CredentialFacts;
use crate::engine::decision::{Decision, Signature, Verdict, decide};
use crate::engine::format::PROGRAM;
use crate::engine::lease::LastRight;
use crate::engine::loss::LossEvidence;
use crate::engine::observation::Observation;
use crate::engine::plan::Plan;
use crate::engine::rate::Budget;
use crate::engine::rearm::rearms;
use crate::engine::reason::Code;
use crate::engine::rehearsal::Found;
use crate::engine::saga::{Command, GroupState};
use crate::engine::situation::{LogBehind, LogStopped, Request, Situation};
use crate::engine::topology::{SiteName, TargetName};
use crate::engine::units::{Epoch, Lsn, MonoTime, WallTime};
use crate::ports::Clock;
use crate::wire::written::Written;
use crate::wire::{
    ObserverAnswer, ObserverReport, PlanStatus, Postmark, Report, ReportAnswer, Status,
};

mod asked;
mod handle;
mod pace;
mod waking;
mod writing;

pub use asked::Asked;
pub use handle::{Ended, Handle};
use waking::{ExecutorEnd, Woken};
use writing::{Desk, Then};

/// An input of the loop.
#[derive(Debug)]
pub enum Input {
    /// An observation of our own probes.
    Observed(Vec<Observation>),
    /// How many anchors answered, of how many; and this process's facts about its certificates.
    Anchors(u32, u32, CredentialFacts),
    /// A result of rehearsing what the steps after a promotion would need, and when that began.
    Rehearsed(MonoTime, Vec<Found>),
    /// An agent reported, and waits for the answer.
    Reported(Box<Written<Report>>, oneshot::Sender<ReportAnswer>),
    /// An extra observer reported, and waits for the answer.
    ObserverReported(
        Box<Written<ObserverReport>>,
        oneshot::Sender<Result<ObserverAnswer, String>>,
    ),
    /// A named operator's request.
    Asked(String, Asked),
    /// A traffic target's answer, read once after the start.
    TrafficSays(TargetName, Answer),
    /// From the executor: grant nothing any more, the epoch is raised.
    Raise(Epoch, oneshot::Sender<LastRight>),
    /// From the executor: is the log behind the world?
    Behind(oneshot::Sender<bool>),
    /// From the executor: let a site hold the lease. Refused while the log is behind the world.
    PassTo(SiteName, oneshot::Sender<Result<(), String>>),
    /// From the executor: the situation, under this request.
    Look(Option<Request>, oneshot::Sender<Situation>),
    /// From the executor: the mark, and the time after it, by which an order to this site must
    /// expire if it is to last that long.
    OrderUntil(
        SiteName,
        Duration,
        oneshot::Sender<Option<(Postmark, Duration)>>,
    ),
    /// The executor: what bears on the loss if the standby stands here?
    Evidence(Lsn, oneshot::Sender<LossEvidence>),
}

/// The control loop.
#[derive(Debug)]
pub struct Control {
    brain: Brain,
    journal: Journal,
    clock: Arc<dyn Clock>,
    world: Arc<World>,
    handle: Handle,
    inputs: mpsc::Receiver<Input>,
    status: watch::Sender<Option<Status>>,
    policy_name: String,
    /// Verdict and codes of the last decision that was logged.
    logged: Option<Signature>,
    /// The last decision that was not logged.
    left_out: Option<Signature>,
    /// The unused part of the rate limit on logged decisions.
    decisions: Budget,
    /// When a closing of the window was last logged.
    closed: Option<MonoTime>,
    /// When the loop last ran.
    went_round: MonoTime,
    /// When to decide again if nothing arrives.
    due: MonoTime,
    /// The state according to the log.
    view: watch::Receiver<View>,
    /// The entry that is not durable yet.
    delay: watch::Receiver<Option<Delay>>,
    desk: Desk,
    executor: Option<tokio::task::JoinHandle<Result<(), JournalError>>>,
}

impl Control {
    /// A loop that has not started.
    pub fn new(
        brain: Brain,
        journal: Journal,
        clock: Arc<dyn Clock>,
        world: Arc<World>,
        (handle, inputs): (Handle, mpsc::Receiver<Input>),
        policy_name: String,
    ) -> (Self, watch::Receiver<Option<Status>>) {
        let (status, shown) = watch::channel(None);
        let went_round = clock.now();
        let (view, delay) = (journal.view(), journal.delays());
        let control = Self {
            brain,
            journal,
            clock,
            world,
            handle,
            inputs,
            status,
            policy_name,
            logged: None,
            left_out: None,
            decisions: Budget::default(),
            closed: None,
            went_round,
            due: went_round,
            view,
            delay,
            desk: Desk::default(),
            executor: None,
        };
        (control, shown)
    }

    /// What rehearses, beside this loop, what the steps of a failover would need.
    pub fn rehearser(&self) -> Rehearser {
        Rehearser {
            world: Arc::clone(&self.world),
            journal: self.journal.clone(),
            topology: self.brain.topology().clone(),
            clock: Arc::clone(&self.clock),
            control: self.handle.clone(),
        }
    }

    /// Decides until the log is not this controller's any more.
    pub async fn run(mut self) -> Result<(), JournalError> {
        loop {
            let woken = self.woken().await?;
            self.begin_anew_after_a_standstill();
            match woken {
                Woken::Input(input) => {
                    self.take(*input)?;
                    while let Ok(input) = self.inputs.try_recv() {
                        self.take(input)?;
                    }
                }
                Woken::Executor(ended) => self.executor_ended(ended)?,
                Woken::Changed | Woken::Due => {}
                Woken::Beat => continue,
            }
            self.look_at_desk();
            self.decide()?;
        }
    }

    /// Lets a site hold the lease, unless the log is behind the world.
    fn pass_to(&mut self, site: SiteName) -> Result<(), String> {
        if let Some(LogBehind { witness, knows, .. }) = self.brain.behind(&self.journal.state()) {
            return Err(format!("{}: {witness} knows {knows}", Code::LogBehind));
        }
        self.brain.pass_to(site);
        Ok(())
    }

    fn take(&mut self, input: Input) -> Result<(), JournalError> {
        self.world.leadership.left()?;
        let now = self.clock.now();
        // The requester may be gone by now: an answer that nobody waits for is not an error.
        match input {
            Input::Observed(observations) => {
                for observation in &observations {
                    self.brain.observe(observation);
                }
            }
            Input::Anchors(reached, of, own) => self.brain.surroundings((reached, of), own),
            Input::Rehearsed(began, found) => self.brain.rehearsed(began, found),
            Input::Reported(written, answer) => self.reported(*written, answer),
            Input::ObserverReported(written, answer) => {
                let Written { by, message } = *written;
                let name = message.name.clone();
                let told = self.brain.observed(message, now);
                if told.is_ok() {
                    self.brain.observer_runs(name, by);
                }
                drop(answer.send(told));
            }
            Input::Asked(operator, asked) => self.asked(operator, asked),
            Input::TrafficSays(target, answer) => self.brain.traffic_says(target, answer),
            Input::Raise(epoch, answer) => drop(answer.send(self.brain.raise(epoch))),
            Input::Behind(answer) => {
                let behind = self.brain.behind(&self.journal.state()).is_some();
                answer.send(behind).unwrap_or_default();
            }
            Input::PassTo(site, answer) => drop(answer.send(self.pass_to(site))),
            Input::Look(request, answer) => drop(answer.send(self.situation(request))),
            Input::OrderUntil(site, within, answer) => {
                let until = self.brain.order_until(&site, within, now);
                answer.send(until).unwrap_or_default();
            }
            Input::Evidence(position, answer) => {
                let group = self.journal.state();
                let wall = self.clock.wall();
                let evidence = self.brain.loss_evidence(position, &group, now, wall);
                drop(answer.send(evidence));
            }
        }
        Ok(())
    }

    /// The state of the group; also tells the brain where the log ends.
    fn group(&mut self) -> GroupState {
        let view = self.view.borrow_and_update();
        self.brain.log_ends(view.recent.clone());
        view.state.clone()
    }

    fn situation(&mut self, request: Option<Request>) -> Situation {
        let group = self.group();
        let (now, wall) = (self.clock.now(), self.clock.wall());
        let mut situation =
            self.brain
                .situation(&group, self.executor.is_some(), request, now, wall);
        situation.log.stopped = self.journal.delay().and_then(|delay| {
            let lasting = delay.worth_a_word(now)?;
            let cause = delay.cause;
            Some(LogStopped { lasting, cause })
        });
        situation
    }

    fn decide(&mut self) -> Result<(), JournalError> {
        self.world.leadership.left()?;
        let known_at = self.clock.wall();
        let situation = self.situation(None);
        let decision = decide(&situation, self.brain.policy());
        self.decide_again(&situation);
        self.show(&situation, &decision);
        if !self.desk.is_free(self.clock.now()) || self.rearm(&situation) {
            return Ok(());
        }
        let signature = decision.signature();
        let changed = self.logged.as_ref() != Some(&signature);
        let told = changed && self.may_log(&decision, &signature);
        if told {
            // What follows is decided again once it is durable: a disk may have stood still, and a
            // plan must be based on the state at that time.
            let body = ("controller", logged(&decision, &situation));
            self.write(vec![body], Then::Logged(signature));
            return Ok(());
        }
        match decision.verdict {
            Verdict::FailOver { .. } => {
                let plan = Box::new(self.plan(&situation, known_at));
                self.write(vec![("controller", Body::Plan { plan })], Then::Walk);
            }
            Verdict::Resume { plan } => {
                tracing::info!(plan_id = plan, "plan resumed");
                self.start_executor();
            }
            // No rule decides on a planned switchover yet.
            Verdict::Hold | Verdict::Prepare | Verdict::SwitchOver { .. } | Verdict::Escalate => {}
        }
        Ok(())
    }

    /// Re-arms automation when that is due.
    fn rearm(&mut self, situation: &Situation) -> bool {
        let rearms = rearms(situation, self.brain.policy());
        if rearms {
            let reason = "reverse replication streams".to_owned();
            let command = Command::Release {
                reason,
                rebuilt: false,
            };
            let body = ("controller", Body::Command { command });
            self.write(vec![body], Then::GoOn);
        }
        rearms
    }

    /// The plan by which the passive site becomes active.
    fn plan(&self, situation: &Situation, known_at: WallTime) -> Plan {
        let last = self.brain.last_right();
        Plan::failover(situation, self.brain.topology(), &last, known_at)
    }

    fn start_executor(&mut self) {
        let executor = Executor::new(
            self.journal.clone(),
            self.handle.clone(),
            Arc::clone(&self.world),
            Arc::clone(&self.clock),
            self.brain.policy().clone(),
            self.brain.topology().clone(),
        );
        self.executor = Some(tokio::spawn(executor.run()));
    }

    fn executor_ended(&mut self, ended: ExecutorEnd) -> Result<(), JournalError> {
        match ended {
            Ok(Err(cause)) if cause.passes() => {
                // The plan stays open, and is resumed.
                self.desk.rest(self.clock.now());
                Ok(())
            }
            Ok(ended) => ended,
            Err(cause) => {
                // A panic: the plan stays open, and is resumed by checking before repeating.
                tracing::error!(%cause, "the executor broke");
                Ok(())
            }
        }
    }

    fn show(&mut self, situation: &Situation, decision: &Decision) {
        if self.status.is_closed() {
            return;
        }
        let group = self.journal.state();
        let end = self.journal.view();
        let log = {
            let view = end.borrow();
            (view.entries, view.head.to_string())
        };
        self.status.send_replace(Some(Status {
            schema_version: 1,
            at: self.clock.wall(),
            version: PROGRAM.to_owned(),
            fleet: self.brain.fleet(),
            policy: self.policy_name.clone(),
            data: Some(self.brain.policy().data.clone()),
            situation: situation.clone(),
            decision: decision.clone(),
            plan: PlanStatus::of(&group),
            log,
        }));
    }
}

/// A decision with its evidence, as it is logged.
fn logged(decision: &Decision, situation: &Situation) -> Body {
    let first = decision
        .reasons
        .first()
        .map(ToString::to_string)
        .unwrap_or_default();
    tracing::info!(verdict = %decision.verdict, reason = %first, "decided");
    Body::Decision {
        decision: Box::new(decision.clone()),
        situation: Box::new(situation.clone()),
    }
}
