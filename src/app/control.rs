//! The control loop: one task that owns what the controller knows. Everything comes in by one
//! queue; decisions are made at every tick and at every arrival, and logged when they change.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::brain::Brain;
use super::executor::{Executor, World};
use super::journal::{Journal, JournalError};
use super::rehearser::Rehearser;
use crate::engine::answer::Answer;
use crate::engine::chain::Body;
use crate::engine::credential::CredentialFacts;
use crate::engine::decision::{Decision, Verdict, decide};
use crate::engine::lease::LastRight;
use crate::engine::observation::Observation;
use crate::engine::plan::Plan;
use crate::engine::rate::Budget;
use crate::engine::reason::Code;
use crate::engine::rehearsal::Found;
use crate::engine::saga::{Command, GroupState};
use crate::engine::situation::{LogBehind, Request, Situation};
use crate::engine::step::DeclaredLoss;
use crate::engine::topology::{Role, SiteName, TargetName};
use crate::engine::units::{Epoch, Lsn, MonoTime, WallTime};
use crate::ports::Clock;
use crate::wire::{
    AdoptAsk, AdoptInstanceAsk, HoldAsk, ObserverAnswer, ObserverReport, PlanStatus, Postmark,
    PromoteAnswer, PromoteAsk, ReleaseAsk, Report, ReportAnswer, Status,
};

mod handle;
mod pace;

pub use handle::{Ended, Handle};

/// How often it decides when nothing arrives. Bounds the reaction to the end of a window.
pub const TICK: Duration = Duration::from_millis(25);

mod asked;

/// What comes in.
#[derive(Debug)]
pub enum Input {
    /// What our own probes saw.
    Observed(Vec<Observation>),
    /// How many anchors answered, of how many; and what this process says of its certificates.
    Anchors(u32, u32, CredentialFacts),
    /// A slow look at what the steps after a promotion would need, and when it began.
    Rehearsed(MonoTime, Vec<Found>),
    /// An agent reported, and waits for the answer.
    Reported(Box<Report>, oneshot::Sender<ReportAnswer>),
    /// An extra observer reported, and waits for the answer.
    ObserverReported(
        Box<ObserverReport>,
        oneshot::Sender<Result<ObserverAnswer, String>>,
    ),
    /// A person asks for a site to become active.
    Promote(
        String,
        PromoteAsk,
        oneshot::Sender<Result<PromoteAnswer, String>>,
    ),
    /// A person stops automation.
    Hold(String, HoldAsk, oneshot::Sender<Result<(), String>>),
    /// A person lets automation act again.
    Release(String, ReleaseAsk, oneshot::Sender<Result<(), String>>),
    /// A person says how the world stands, where the log is behind it.
    Adopt(String, AdoptAsk, oneshot::Sender<Result<(), String>>),
    /// A person lets another instance of a site's agent have its right and its word.
    AdoptInstance(
        String,
        AdoptInstanceAsk,
        oneshot::Sender<Result<(), String>>,
    ),
    /// What a traffic target answers, read once after the start.
    TrafficSays(TargetName, Answer),
    /// The executor: grant nobody anything any more, the epoch is raised.
    Raise(Epoch, oneshot::Sender<LastRight>),
    /// The executor: whether the log is behind the world.
    Behind(oneshot::Sender<bool>),
    /// The executor: let a site hold the right. Refused while the log is behind the world.
    PassTo(SiteName, oneshot::Sender<Result<(), String>>),
    /// The executor: what is the situation, under this request?
    Look(Option<Request>, oneshot::Sender<Situation>),
    /// The executor: by which mark, and how long after it, is an order to this site void that is to last
    /// so long?
    OrderUntil(
        SiteName,
        Duration,
        oneshot::Sender<Option<(Postmark, Duration)>>,
    ),
    /// The executor: what may be lost if the standby stands here?
    Declare(Lsn, oneshot::Sender<DeclaredLoss>),
}

/// Verdict and codes of a decision: what must change for it to be logged.
type Signature = (Verdict, Vec<(Code, Option<SiteName>)>);

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
    /// The last that was left out of the log.
    left_out: Option<Signature>,
    /// What is left of how often decisions are logged.
    decisions: Budget,
    /// When the window last was written to be closed.
    closed: Option<MonoTime>,
    /// When it last went round.
    went_round: MonoTime,
    executor: Option<tokio::task::JoinHandle<Result<(), JournalError>>>,
}

impl Control {
    /// A loop that has not begun.
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
            executor: None,
        };
        (control, shown)
    }

    /// What tries beforehand, beside this loop, what the steps of a failover would need.
    pub fn rehearser(&self) -> Rehearser {
        Rehearser {
            world: Arc::clone(&self.world),
            journal: self.journal.clone(),
            topology: self.brain.topology().clone(),
            clock: Arc::clone(&self.clock),
            control: self.handle.clone(),
        }
    }

    /// Decides until the log cannot be written any more.
    pub async fn run(mut self) -> Result<(), JournalError> {
        loop {
            let input = tokio::select! {
                biased;
                input = self.inputs.recv() => input,
                () = self.clock.sleep(TICK) => None,
            };
            self.begin_anew_after_a_standstill();
            if let Some(input) = input {
                self.take(input).await?;
                while let Ok(input) = self.inputs.try_recv() {
                    self.take(input).await?;
                }
            }
            self.look_after_executor().await?;
            self.decide().await?;
        }
    }

    /// A process that stood still for longer than a look may take knows only what was: it begins
    /// anew, as after a restart. A site that was failing then may be well by now.
    fn begin_anew_after_a_standstill(&mut self) {
        let now = self.clock.now();
        let stood_still = now.since(std::mem::replace(&mut self.went_round, now));
        if stood_still
            > self
                .brain
                .policy()
                .detect
                .probe_timeout
                .saturating_add(TICK)
        {
            tracing::warn!(?stood_still, "stood still: every window begins anew");
            self.brain.begin_anew(now);
        }
    }

    /// Lets a site hold the right, unless the log is behind the world.
    fn pass_to(&mut self, site: SiteName) -> Result<(), String> {
        if let Some(LogBehind { witness, knows, .. }) = self.brain.behind(&self.journal.state()) {
            return Err(format!("{}: {witness} knows {knows}", Code::LogBehind));
        }
        self.brain.pass_to(site);
        Ok(())
    }

    async fn take(&mut self, input: Input) -> Result<(), JournalError> {
        self.world.leadership.left()?;
        let now = self.clock.now();
        // Whoever asked may be gone by now: an answer that nobody waits for is no mistake.
        match input {
            Input::Observed(observations) => {
                for observation in &observations {
                    self.brain.observe(observation);
                }
            }
            Input::Anchors(reached, of, own) => self.brain.surroundings((reached, of), own),
            Input::Rehearsed(began, found) => self.brain.rehearsed(began, found),
            Input::Reported(report, answer) => {
                let told = self.reported(*report, now).await?;
                drop(answer.send(told));
            }
            Input::ObserverReported(report, answer) => {
                drop(answer.send(self.brain.observed(*report, now)));
            }
            Input::Promote(operator, ask, answer) => {
                let done = self.promote(&operator, &ask).await?;
                drop(answer.send(done));
            }
            Input::Hold(operator, ask, answer) => {
                let done = self.hold(&operator, ask).await?;
                drop(answer.send(done));
            }
            Input::Release(operator, ask, answer) => {
                let command = Command::Release { reason: ask.reason };
                self.journal
                    .append(&operator, Body::Command { command })
                    .await?;
                drop(answer.send(Ok(())));
            }
            Input::Adopt(operator, ask, answer) => {
                let done = self.adopt(&operator, &ask).await?;
                drop(answer.send(done));
            }
            Input::AdoptInstance(operator, ask, answer) => {
                let done = self.adopt_instance(&operator, ask).await?;
                drop(answer.send(done));
            }
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
            Input::Declare(position, answer) => {
                let group = self.journal.state();
                let wall = self.clock.wall();
                drop(answer.send(self.brain.declare(position, &group, now, wall)));
            }
        }
        Ok(())
    }

    /// The state of the group; the brain is told where the log ends.
    fn group(&mut self) -> GroupState {
        let view = self.journal.view();
        let view = view.borrow();
        self.brain.log_ends(view.recent.clone());
        view.state.clone()
    }

    /// Answers an agent. What must be durable before is written first.
    async fn reported(
        &mut self,
        report: Report,
        now: MonoTime,
    ) -> Result<ReportAnswer, JournalError> {
        self.tell_of_foreign(&report);
        let group = self.group();
        self.brain.remembers(&report, &group, now);
        if let Some(change) = self.brain.instance_change(&report, &group, now) {
            tracing::warn!(%change, "instance");
            self.journal
                .append("controller", Body::Instance { change })
                .await?;
        }
        let group = self.group();
        let change = self.brain.window_change(&report, &group, now);
        if let Some(change) = change.filter(|change| self.may_change(change, now)) {
            tracing::warn!(%change, "durability");
            self.journal
                .append("controller", Body::Window { change })
                .await?;
        }
        let group = self.group();
        Ok(self.brain.report(report, &group, now, self.clock.wall()))
    }

    fn situation(&mut self, request: Option<Request>) -> Situation {
        let group = self.group();
        let (now, wall) = (self.clock.now(), self.clock.wall());
        self.brain
            .situation(&group, self.executor.is_some(), request, now, wall)
    }

    async fn decide(&mut self) -> Result<(), JournalError> {
        self.world.leadership.left()?;
        let known_at = self.clock.wall();
        let situation = self.situation(None);
        self.rearm(&situation).await?;
        let decision = decide(&situation, self.brain.policy());
        self.show(&situation, &decision);
        let codes = decision
            .reasons
            .iter()
            .map(|reason| (reason.code, reason.site.clone()));
        let signature = (decision.verdict.clone(), codes.collect());
        let changed = self.logged.as_ref() != Some(&signature);
        if changed && self.may_log(&decision, &signature) {
            self.log_decision(&decision, &situation).await?;
            self.logged = Some(signature);
        }
        match decision.verdict {
            Verdict::FailOver { .. } => {
                self.open_plan(&situation, known_at).await?;
            }
            Verdict::Resume { plan } => {
                tracing::info!(plan_id = plan, "plan resumed");
                self.start_executor();
            }
            // Nothing decides on a planned switchover yet.
            Verdict::Hold | Verdict::Prepare | Verdict::SwitchOver { .. } | Verdict::Escalate => {}
        }
        Ok(())
    }

    /// Arms automation again once reverse replication streams (invariants.md I8). A hold stays.
    async fn rearm(&mut self, situation: &Situation) -> Result<(), JournalError> {
        let automation = &situation.automation;
        let quiet = situation.plan.is_none() && automation.hold.is_none();
        let quiet = quiet && situation.log.is_sound();
        if automation.disarmed && quiet && follows(situation, self.brain.policy()) {
            let reason = "reverse replication streams".to_owned();
            let command = Command::Release { reason };
            self.journal
                .append("controller", Body::Command { command })
                .await?;
        }
        Ok(())
    }

    async fn log_decision(
        &mut self,
        decision: &Decision,
        situation: &Situation,
    ) -> Result<(), JournalError> {
        let first = decision
            .reasons
            .first()
            .map(ToString::to_string)
            .unwrap_or_default();
        tracing::info!(verdict = %decision.verdict, reason = %first, "decided");
        let (decision, situation) = (Box::new(decision.clone()), Box::new(situation.clone()));
        let body = Body::Decision {
            decision,
            situation,
        };
        match self.journal.append("controller", body).await {
            // Nothing that others say may end this process. What the decision leads to is written
            // down by itself, or is not done.
            Err(JournalError::Refused(cause)) => {
                tracing::error!(%cause, "the decision cannot be written down with its evidence");
                let text = format!("a decision is left out, with its evidence: {cause}");
                self.journal.note("entry-refused", text).await.map(drop)
            }
            written => written.map(drop),
        }
    }

    async fn open_plan(
        &mut self,
        situation: &Situation,
        known_at: WallTime,
    ) -> Result<u64, JournalError> {
        let last = self.brain.last_right();
        let plan = Box::new(Plan::failover(
            situation,
            self.brain.topology(),
            &last,
            known_at,
        ));
        tracing::info!(to = %plan.route.to, epoch = plan.route.epoch.0, "plan opened");
        let id = self
            .journal
            .append("controller", Body::Plan { plan })
            .await?;
        self.start_executor();
        Ok(id)
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

    async fn look_after_executor(&mut self) -> Result<(), JournalError> {
        let Some(executor) = self.executor.take_if(|executor| executor.is_finished()) else {
            return Ok(());
        };
        match executor.await {
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
            version: env!("CARGO_PKG_VERSION").to_owned(),
            policy: self.policy_name.clone(),
            situation: situation.clone(),
            decision: decision.clone(),
            plan: PlanStatus::of(&group),
            log,
        }));
    }
}

/// Whether the passive site's database, freshly seen, streams from the active one.
fn follows(situation: &Situation, policy: &crate::engine::policy::Policy) -> bool {
    let fresh = |site: &crate::engine::situation::SiteFacts| {
        site.database
            .as_ref()?
            .within(policy.detect.stale_after)
            .cloned()
    };
    let active = situation.active_site().and_then(fresh);
    let passive = situation.passive_site().and_then(fresh);
    match (active, passive) {
        (Some(active), Some(passive)) => {
            passive.role == Role::Standby
                && passive.system_id == active.system_id
                && passive
                    .receiver
                    .is_some_and(|receiver| receiver.is_streaming())
        }
        (_, _) => false,
    }
}
