//! What each step does, how it is checked, and how it is taken back. Every effect is safe to
//! repeat; when and how often is the executor's business.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::control::{Ended, Handle, Input};
use super::executor::World;
use super::journal::Journal;
use crate::engine::decision::{Verdict, decide};
use crate::engine::gate::LossEstimate;
use crate::engine::lease::{FenceProof, LastRight, waited_out_at};
use crate::engine::policy::Policy;
use crate::engine::reason::Code;
use crate::engine::receipt::Receipt;
use crate::engine::saga::OpenSaga;
use crate::engine::step::{Fact, Step};
use crate::engine::topology::{SiteName, TargetName, Topology};
use crate::engine::units::MonoTime;
use crate::ports::{Clock, EffectError, LastError, Way};
use crate::wire::{Came, Order, OrderAnswer, What};

impl From<Ended> for EffectError {
    fn from(ended: Ended) -> Self {
        EffectError::Failed(ended.to_string())
    }
}

/// The steps of a failover, on the real world.
#[derive(Debug)]
pub struct Steps {
    world: Arc<World>,
    control: Handle,
    journal: Journal,
    clock: Arc<dyn Clock>,
    policy: Policy,
    topology: Topology,
    /// What this process had confirmed of the sever.
    severed: Option<Severed>,
    /// What the traffic targets answered to the writes of this process.
    receipts: BTreeMap<TargetName, Receipt>,
}

/// What is known of a sever, on this process's clock.
#[derive(Debug, Clone, Copy)]
struct Severed {
    /// When it was confirmed.
    at: MonoTime,
    /// Until when the severed site can have let the other one's right stand.
    vouched: MonoTime,
}

mod promote;
mod writable;
mod traffic;

type Outcome = Result<Fact, EffectError>;

/// How long one request to an agent may take that only looks or writes a small thing.
const SHORT_ORDER: Duration = Duration::from_secs(5);

impl Steps {
    /// The steps of a plan that this process begins or goes on with.
    pub fn new(
        world: Arc<World>,
        control: Handle,
        journal: Journal,
        clock: Arc<dyn Clock>,
        policy: Policy,
        topology: Topology,
    ) -> Self {
        Self {
            world,
            control,
            journal,
            clock,
            policy,
            topology,
            severed: None,
            receipts: BTreeMap::new(),
        }
    }

    /// Does a step.
    pub async fn run(&mut self, saga: &OpenSaga, step: &Step, deadline: MonoTime) -> Outcome {
        let to = &saga.plan.route.to;
        match step {
            Step::Recheck => self.recheck(saga).await,
            Step::RaiseEpoch => {
                let epoch = saga.plan.route.epoch;
                self.control
                    .ask(|answer| Input::Raise(epoch, answer))
                    .await?;
                Ok(Fact::Epoch { epoch })
            }
            Step::StartWorkloads => self.simple(saga, to, What::StartWorkloads, deadline).await,
            Step::Sever => self.sever(saga, deadline).await,
            Step::Fence => self.fence(saga, deadline).await,
            Step::Freeze => self.freeze(saga).await,
            Step::Promote => self.promote(saga, deadline).await,
            Step::VerifyWritable => self.verify_writable(saga).await,
            Step::AwaitWorkloads => self.simple(saga, to, What::AwaitWorkloads, deadline).await,
            Step::MoveTraffic { target } => self.move_traffic(saga, target, deadline).await,
            Step::VerifyOutside => self.verify_outside(saga, deadline).await,
            Step::Settle => Ok(Fact::Done),
        }
    }

    /// Whether a step that was begun is done already: its fact, a clear "no", or an error where
    /// the world does not say.
    pub async fn check(
        &mut self,
        saga: &OpenSaga,
        step: &Step,
        deadline: MonoTime,
    ) -> Result<Option<Fact>, EffectError> {
        match step {
            Step::Promote => self.promoted(saga, deadline).await,
            // Their effect itself begins by looking, and is the same done twice.
            Step::Recheck
            | Step::RaiseEpoch
            | Step::StartWorkloads
            | Step::Sever
            | Step::Fence
            | Step::Freeze
            | Step::VerifyWritable
            | Step::AwaitWorkloads
            | Step::MoveTraffic { .. }
            | Step::VerifyOutside
            | Step::Settle => Ok(None),
        }
    }

    /// Takes a step back.
    pub async fn undo(
        &mut self,
        saga: &OpenSaga,
        step: &Step,
        deadline: MonoTime,
    ) -> Result<(), EffectError> {
        let route = &saga.plan.route;
        match step {
            Step::StartWorkloads => {
                self.simple(saga, &route.to, What::StopWorkloads, deadline)
                    .await?;
            }
            Step::Sever => {
                self.simple(saga, &route.to, What::Reconnect, deadline)
                    .await?;
            }
            Step::Fence => {
                // The right itself is its own since the plan failed.
                let undone = self
                    .simple(saga, &route.from, What::Unfence, deadline)
                    .await;
                // An agent that cannot be reached hears from its next report that the right is
                // its own in the new epoch, and lifts its fence itself.
                if let Err(error) = undone {
                    let text = format!(
                        "site `{}` was not told that its fence is lifted: {error}",
                        route.from
                    );
                    self.note("unfence-later", text).await?;
                }
            }
            Step::Recheck
            | Step::RaiseEpoch
            | Step::Freeze
            | Step::Promote
            | Step::VerifyWritable
            | Step::AwaitWorkloads
            | Step::MoveTraffic { .. }
            | Step::VerifyOutside
            | Step::Settle => {}
        }
        Ok(())
    }

    async fn note(&self, code: &str, text: String) -> Result<(), EffectError> {
        let written = self.journal.note(code, text).await;
        written
            .map(drop)
            .map_err(|error| EffectError::Failed(error.to_string()))
    }

    async fn pass_to(&self, site: &SiteName) -> Result<(), EffectError> {
        let site = site.clone();
        let passed = self.control.ask(|answer| Input::PassTo(site, answer));
        passed.await?.map_err(EffectError::Failed)
    }

    /// An order to one agent, void after a time by a mark of that agent.
    async fn order(
        &self,
        saga: &OpenSaga,
        site: &SiteName,
        what: What,
        by: Way,
        check_only: bool,
        deadline: MonoTime,
    ) -> OrderAnswer {
        // No order outlives the lead of who gave it.
        let lead = self.world.leadership.left()?;
        let left = self.clock.now().until(deadline).min(lead);
        let within = match what {
            What::Promote | What::Fence | What::Sever if !check_only => left,
            What::Promote
            | What::Fence
            | What::Sever
            | What::Unfence
            | What::Reconnect
            | What::Desist
            | What::StartWorkloads
            | What::StopWorkloads
            | What::AwaitWorkloads => left.min(SHORT_ORDER),
        };
        let asked = |answer| Input::OrderUntil(site.clone(), within, answer);
        let Some((mark, valid_for)) = self.control.ask(asked).await? else {
            // With its next report, or the other agent's, there is one.
            let text =
                format!("nothing was heard of the agent of site `{site}`: no order is possible");
            return Err(EffectError::Failed(text));
        };
        let order = Order {
            plan: saga.id,
            group: self.topology.group.clone(),
            site: site.clone(),
            instance: self.journal.state().instances.get(site).copied(),
            epoch: saga.plan.route.epoch,
            mark,
            valid_for,
            check_only,
            what,
        };
        self.world.agents.order(&order, by, within).await
    }

    async fn simple(
        &self,
        saga: &OpenSaga,
        site: &SiteName,
        what: What,
        deadline: MonoTime,
    ) -> Outcome {
        match self
            .order(saga, site, what, Way::Direct, false, deadline)
            .await?
        {
            Came::Done => Ok(Fact::Done),
            Came::NotDone => Err(EffectError::Failed("not yet".to_owned())),
            other @ (Came::Fenced { .. } | Came::Severed { .. } | Came::Promoted { .. }) => {
                Err(unexpected(&other))
            }
        }
    }

    /// Whether somebody is known to know more than the log, or nobody is there to say.
    pub async fn log_is_behind(&self) -> bool {
        self.control.ask(Input::Behind).await.unwrap_or(true)
    }

    /// Decides once more. A plan that is gone on with after a restart needs no more than its own
    /// record of what cannot be seen any more.
    async fn recheck(&self, saga: &OpenSaga) -> Outcome {
        let request = saga.plan.request.clone();
        let mut situation = self
            .control
            .ask(|answer| Input::Look(request, answer))
            .await?;
        situation.plan = None;
        let mut decision = decide(&situation, &self.policy);
        let known = LossEstimate::of(&situation);
        let unknown = known.bytes.is_none() || known.window.is_none();
        if unknown && saga.plan.loss.bytes.is_some() {
            decision
                .gates
                .retain(|gate| gate.reason.code != Code::LossUnknown);
            decision
                .reasons
                .retain(|reason| reason.code != Code::LossUnknown);
        }
        let closed = decision.gates.iter().find(|gate| !gate.open);
        let wanted = match (&decision.verdict, closed) {
            (Verdict::FailOver { to }, _) => *to == saga.plan.route.to,
            // All gates open but the one that was left out: the trigger stands last.
            (Verdict::Hold, None) => decision
                .reasons
                .iter()
                .any(|reason| is_trigger(reason.code)),
            (_, _) => false,
        };
        if wanted {
            Ok(Fact::Done)
        } else {
            let why: Vec<String> = decision.reasons.iter().map(ToString::to_string).collect();
            Err(EffectError::Failed(why.join("; ")))
        }
    }

    async fn sever(&mut self, saga: &OpenSaga, deadline: MonoTime) -> Outcome {
        let to = &saga.plan.route.to;
        match self
            .order(saga, to, What::Sever, Way::Direct, false, deadline)
            .await?
        {
            Came::Severed {
                position,
                replayed,
                vouched_ago,
            } => {
                let at = self.clock.now();
                let vouched = at.minus(vouched_ago.unwrap_or_default());
                self.severed = Some(Severed { at, vouched });
                Ok(Fact::Severed { position, replayed })
            }
            other @ (Came::Done | Came::NotDone | Came::Fenced { .. } | Came::Promoted { .. }) => {
                Err(unexpected(&other))
            }
        }
    }

    /// Proves that the old primary cannot write, by whichever way is first (invariants.md I2).
    async fn fence(&mut self, saga: &OpenSaga, deadline: MonoTime) -> Outcome {
        // After a restart the sever counts from when this process had it confirmed.
        if self.severed.is_none() {
            self.sever(saga, deadline).await?;
        }
        let now = self.clock.now();
        let severed = self.severed.unwrap_or(Severed {
            at: now,
            vouched: now,
        });
        let epoch = saga.plan.route.epoch;
        let last = self
            .control
            .ask(|answer| Input::Raise(epoch, answer))
            .await?;
        let heard = [Mutex::default(), Mutex::default()];
        let told = async {
            tokio::select! {
                biased;
                proof = self.tell_to_fence(saga, Way::Direct, deadline, &heard[0]) => proof,
                proof = self.tell_to_fence(saga, Way::Relayed, deadline, &heard[1]) => proof,
            }
        };
        let proof = tokio::select! {
            biased;
            proof = told => proof,
            proof = self.wait_out(saga, severed, &last) => proof,
            proof = self.override_fence(saga) => proof,
            () = self.clock.sleep(self.clock.now().until(deadline)) => {
                let [direct, relayed] = heard.each_ref().map(told_of);
                return Err(EffectError::Refused(format!(
                    "no proof in time that the old primary cannot write; its agent, directly: {direct}; relayed: {relayed}"
                )));
            }
        };
        Ok(Fact::Fenced { proof })
    }

    /// Asks the old primary's agent until it confirms (invariants.md F1).
    async fn tell_to_fence(
        &self,
        saga: &OpenSaga,
        by: Way,
        deadline: MonoTime,
        heard: &Mutex<LastError>,
    ) -> FenceProof {
        let from = &saga.plan.route.from;
        loop {
            let answer = self
                .order(saga, from, What::Fence, by, false, deadline)
                .await;
            match answer {
                Ok(Came::Fenced { said }) => {
                    return FenceProof::Agent {
                        relayed: by == Way::Relayed,
                        said,
                    };
                }
                Ok(other) => {
                    tracing::warn!(?other, "the agent did not answer with a proof");
                    note(heard, &unexpected(&other));
                }
                Err(error) => {
                    tracing::debug!(%error, ?by, "the order to fence did not come through");
                    note(heard, &error);
                }
            }
            self.clock.sleep(Duration::from_millis(200)).await;
        }
    }

    /// Waits until the old primary's right is certainly over and its guard has done its work
    /// (invariants.md F3). Never ends where waiting proves nothing.
    async fn wait_out(&self, saga: &OpenSaga, severed: Severed, last: &LastRight) -> FenceProof {
        // What the plan found may have changed until the epoch was raised.
        if !saga.plan.can_wait_out || last.alive == Some(false) {
            std::future::pending::<()>().await;
        }
        let until = waited_out_at(&self.policy.lease, severed.vouched, last.granted);
        loop {
            let now = self.clock.now();
            if now >= until {
                return FenceProof::WaitedOut {
                    severed_ago: now.since(severed.at),
                    vouched_ago: Some(now.since(severed.vouched)),
                    granted_ago: now.since(last.granted),
                };
            }
            self.clock.sleep(now.until(until)).await;
        }
    }

    /// A named person vouches, once the agent had its chance to confirm (invariants.md F4).
    async fn override_fence(&self, saga: &OpenSaga) -> FenceProof {
        let request = saga
            .plan
            .request
            .as_ref()
            .filter(|request| request.override_fence);
        let Some(request) = request else {
            return std::future::pending().await;
        };
        self.clock.sleep(self.policy.lease.fence_and_margin()).await;
        FenceProof::Override {
            operator: request.operator.clone(),
            reason: request.reason.clone(),
        }
    }

    async fn freeze(&self, saga: &OpenSaga) -> Outcome {
        let Some(Fact::Severed { position, .. }) = saga.fact(&Step::Sever) else {
            return Err(EffectError::Refused(
                "the standby was not severed".to_owned(),
            ));
        };
        let position = *position;
        let loss = self
            .control
            .ask(|answer| Input::Declare(position, answer))
            .await?;
        let limit = saga.loss_limit(self.policy.data.max_loss);
        if let Some(estimate) = loss.estimate.filter(|estimate| *estimate > limit) {
            return Err(EffectError::Refused(format!(
                "{}: {estimate} (limit {limit}) would be lost",
                Code::LossOverLimit
            )));
        }
        Ok(Fact::Declared { loss })
    }
}

fn note(heard: &Mutex<LastError>, error: &EffectError) {
    let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
    heard.note(error, false);
}

fn told_of(heard: &Mutex<LastError>) -> String {
    let heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
    heard.tell()
}

fn is_trigger(code: Code) -> bool {
    [
        Code::ActiveSiteFailed,
        Code::ActiveDatabaseDown,
        Code::ActiveApiFailed,
        Code::OperatorRequest,
    ]
    .contains(&code)
}

fn unexpected(came: &Came) -> EffectError {
    EffectError::Unknown(format!(
        "the agent answered {came:?}, which is no answer to this order"
    ))
}
