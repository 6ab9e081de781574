//! What each step does, how it is checked, and how it is undone. Every effect is safe to repeat;
//! the executor decides when and how often.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::control::{Ended, Handle, Input};
use super::executor::World;
use super::journal::Journal;
use crate::engine::chain::Body;
use crate::engine::decision::decide;
use crate::engine::fencing::{vouched_for, waited_out_at};
use crate::engine::lasting::Lasting;
use crate::engine::lease::{FenceProof, LastRight};
use crate::engine::policy::Policy;
use crate::engine::receipt::Receipt;
use crate::engine::saga::OpenSaga;
use crate::engine::step::{Fact, Step, Undo};
use crate::engine::topology::{SiteName, TargetName, Topology};
use crate::engine::units::MonoTime;
use crate::ports::{Clock, EffectError, LastError, Way};
use crate::wire::{Came, Order, OrderAnswer, What};

impl From<Ended> for EffectError {
    fn from(ended: Ended) -> Self {
        EffectError::Failed(ended.to_string())
    }
}

/// The steps of a failover, with their real effects.
#[derive(Debug)]
pub struct Steps {
    world: Arc<World>,
    control: Handle,
    journal: Journal,
    clock: Arc<dyn Clock>,
    policy: Policy,
    topology: Topology,
    /// The confirmation of the sever, as this process got it.
    severed: Option<Severed>,
    /// What the traffic targets answered to the writes of this process.
    receipts: BTreeMap<TargetName, Receipt>,
}

/// What is known about a sever, on this process's clock.
#[derive(Debug, Clone, Copy)]
struct Severed {
    /// When it was confirmed.
    at: MonoTime,
    /// The last moment at which the severed site can have vouched for the other one's lease.
    vouched: MonoTime,
}

mod infrastructure;
mod promote;
mod writable;
mod traffic;

type Outcome = Result<Fact, EffectError>;

/// How long a request to an agent may take that only reads or writes something small.
const SHORT_ORDER: Duration = Duration::from_secs(5);

impl Steps {
    /// The steps of a plan that this process begins or continues.
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

    /// Executes a step.
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

    /// Whether a step that was begun is already done: its fact, a clear "no", or an error if that
    /// is unknown.
    pub async fn check(
        &mut self,
        saga: &OpenSaga,
        step: &Step,
        deadline: MonoTime,
    ) -> Result<Option<Fact>, EffectError> {
        match step {
            Step::Promote => self.promoted(saga, deadline).await,
            // Their effect itself begins by looking, and is idempotent.
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

    /// Undoes a step.
    pub async fn undo(
        &mut self,
        saga: &OpenSaga,
        undo: Undo,
        deadline: MonoTime,
    ) -> Result<(), EffectError> {
        let route = &saga.plan.route;
        let (site, what) = match undo {
            Undo::StopWorkloads => (&route.to, What::StopWorkloads),
            Undo::Reconnect => (&route.to, What::Reconnect),
            // The right itself is its own since the plan failed.
            Undo::Unfence => {
                self.give_back(saga).await?;
                (&route.from, What::Unfence)
            }
        };
        let undone = self.simple(saga, site, what, deadline).await;
        match (undone, undo) {
            // An agent that cannot be reached hears from its next report that the right is its own
            // in the new epoch, and lifts its fence itself.
            (Err(error), Undo::Unfence) => {
                let text = format!("site `{site}` was not told that its fence is lifted: {error}");
                self.note("unfence-later", text).await
            }
            (undone, _) => undone.map(drop),
        }
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

    /// An order to one agent that expires by a mark of that agent.
    async fn order(
        &self,
        saga: &OpenSaga,
        site: &SiteName,
        what: What,
        by: Way,
        check_only: bool,
        deadline: MonoTime,
    ) -> OrderAnswer {
        // No order outlives its controller's lead.
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
            // Its next report, or the other agent's, brings one.
            let text = format!(
                "no report has arrived from the agent of site `{site}`: no order is possible"
            );
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

    /// Whether somebody is known to know more than the log, or nobody can confirm it.
    pub async fn log_is_behind(&self) -> bool {
        self.control.ask(Input::Behind).await.unwrap_or(true)
    }

    /// Decides once more, as though the plan were not open, and writes down on what.
    async fn recheck(&self, saga: &OpenSaga) -> Outcome {
        let request = saga.plan.request.clone();
        let look = |answer| Input::Look(request, answer);
        let mut situation = self.control.ask(look).await?;
        if let Some(plan) = &mut situation.plan {
            plan.rechecking = true;
        }
        let decision = decide(&situation, &self.policy);
        if decision.verdict != saga.plan.verdict() {
            let why: Vec<String> = decision.reasons.iter().map(ToString::to_string).collect();
            return Err(EffectError::Failed(why.join("; ")));
        }
        let body = Body::Decision {
            decision: Box::new(decision),
            situation: Box::new(situation),
        };
        let written = self.journal.append("controller", body).await;
        written.map_err(|error| EffectError::Failed(error.to_string()))?;
        Ok(Fact::Done)
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

    /// Proves that the old primary cannot write, by whichever proof comes first (invariants.md I2).
    async fn fence(&mut self, saga: &OpenSaga, deadline: MonoTime) -> Outcome {
        // After a restart the sever counts from when this process got its confirmation.
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
        let heard = [Mutex::default(), Mutex::default(), Mutex::default()];
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
            proof = self.by_infrastructure(saga, &last, deadline, &heard[2]) => proof,
            proof = self.wait_out(saga, severed, &last) => proof,
            proof = self.vouched_for(saga) => proof,
            () = self.clock.sleep(self.clock.now().until(deadline)) => {
                let [direct, relayed, infrastructure] = heard.each_ref().map(told_of);
                let infrastructure = if self.infrastructure_of(saga).is_some() {
                    format!("; its infrastructure: {infrastructure}")
                } else {
                    String::new()
                };
                return Err(EffectError::Refused(format!(
                    "no proof in time that the old primary cannot write; its agent, directly: {direct}; relayed: {relayed}{infrastructure}"
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
        let mut untold = Lasting::default();
        loop {
            let answer = self
                .order(saga, from, What::Fence, by, false, deadline)
                .await;
            let error = match answer {
                Ok(Came::Fenced { said }) => {
                    return FenceProof::Agent {
                        relayed: by == Way::Relayed,
                        said,
                    };
                }
                Ok(other) => unexpected(&other),
                Err(error) => error,
            };
            note(heard, &error);
            if let Some(lasting) = untold.again(error.text(), self.clock.now()) {
                let what = "no proof of the agent yet";
                tracing::warn!(%error, ?by, lasting.times, lasting.ms, "{what}");
            }
            self.clock.sleep(Duration::from_millis(200)).await;
        }
    }

    /// Waits until the old primary's lease has certainly expired and its guard has fenced
    /// (invariants.md F3). Never returns if waiting proves nothing.
    async fn wait_out(&self, saga: &OpenSaga, severed: Severed, last: &LastRight) -> FenceProof {
        let until = waited_out_at(saga, &self.policy.lease, severed.vouched, last);
        let Some(until) = until else {
            return std::future::pending().await;
        };
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
    async fn vouched_for(&self, saga: &OpenSaga) -> FenceProof {
        let Some((after, proof)) = vouched_for(saga, &self.policy.lease) else {
            return std::future::pending().await;
        };
        self.clock.sleep(after).await;
        proof
    }

    async fn freeze(&self, saga: &OpenSaga) -> Outcome {
        let Some(Fact::Severed { position, .. }) = saga.fact(&Step::Sever) else {
            return Err(EffectError::Refused(
                "the standby was not severed".to_owned(),
            ));
        };
        let position = *position;
        let asked = |answer| Input::Evidence(position, answer);
        let evidence = self.control.ask(asked).await?;
        let loss = evidence.declare();
        if let Some(over) = loss.over(saga.loss_limit(self.policy.data.max_loss)) {
            return Err(EffectError::Refused(over.to_string()));
        }
        let evidence = Some(Box::new(evidence));
        Ok(Fact::Declared { loss, evidence })
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

fn unexpected(came: &Came) -> EffectError {
    EffectError::Unknown(format!(
        "the agent answered {came:?}, which is no answer to this order"
    ))
}
