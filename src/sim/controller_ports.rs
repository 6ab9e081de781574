//! What the controller touches, simulated: the agents, the traffic target, the front door, the
//! decision log's disk, and crashes at a moment of a step.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::checks::Truths;
use super::liar;
use super::machine::Truth;
use super::network::{NoAnswer, ask};
use super::seals::SimKey;
use super::site_ports::{Place, take_order};
use super::world::{Life, Node, State, World};
use crate::app::executor::{CrashDrill, Moment};
use crate::engine::answer::Answer;
use crate::engine::receipt::Receipt;
use crate::engine::step::Step;
use crate::engine::topology::{SiteName, TargetName};
use crate::ports::{
    Agents, AppendError, Confirmation, EffectError, FrontDoor, LeaseStore, LogStore, OutsideFault,
    OutsideView, Still, StoreError, Traffic, Verifier, Versioned, Way,
};
use crate::wire::sealed::{Author, SealError, Sealed, SignedOrder, open_answer};
use crate::wire::{Order, OrderAnswer, RelayAnswer};

/// The controller's way to the agents.
#[derive(Debug)]
pub struct SimAgents {
    /// Who orders.
    pub place: Place,
    /// By which answers are believed.
    pub believed: Arc<dyn Verifier>,
}

#[async_trait]
impl Agents for SimAgents {
    async fn order(&self, order: &Order, by: Way, within: Duration) -> OrderAnswer {
        self.place.work(0, 1).await;
        let node = self.place.world.with(|state, now| {
            state.checks.ordered(now, order);
            state.node(&order.site)
        });
        let via = match by {
            Way::Direct => node,
            Way::Relayed => node.peer(),
        };
        let refused = |error: SealError| EffectError::Refused(error.to_string());
        let signed =
            SignedOrder::seal(order.clone(), &SimKey(Author::Controller)).map_err(refused)?;
        let (world, given) = (Arc::clone(&self.place.world), signed.clone());
        let text = format!("order {:?} to {node} {by:?}", order.what);
        let asked = move || {
            let (world, order) = (Arc::clone(&world), given.clone());
            async move {
                if via == node {
                    let sealed = order.sealed().clone();
                    return take_order(&world, node, sealed).await.map(Ok);
                }
                relay(&world, (via, node), order, within).await
            }
        };
        let answer = ask(&self.place.world, (Node::Neutral, via), within, asked).await;
        self.place.world.alive(&self.place.life).await;
        let answer: RelayAnswer = answer.unwrap_or_else(|error| Err(no_answer(error)));
        let answer = answer.and_then(|answer| {
            open_answer(&signed, &answer, self.believed.as_ref())
                .unwrap_or_else(|error| Err(EffectError::Unknown(error.to_string())))
        });
        self.place.world.trace(|| format!("N  {text}: {answer:?}"));
        answer
    }
}

/// Carried on by the other agent, if there is one.
async fn relay(
    world: &Arc<World>,
    (via, node): (Node, Node),
    order: SignedOrder,
    within: Duration,
) -> Option<RelayAnswer> {
    world.with(|state, _| state.agent(via).clone())?;
    if let Some(lie) = liar::about(world, via, &order) {
        return Some(lie);
    }
    let there = Arc::clone(world);
    let sealed = order.sealed().clone();
    let carried = move || {
        let (world, order) = (Arc::clone(&there), sealed.clone());
        async move { take_order(&world, node, order).await }
    };
    let answer: Result<Sealed, NoAnswer> = ask(world, (via, node), within, carried).await;
    if let Ok(answer) = &answer {
        world.with(|state, _| state.carried = Some(answer.clone()));
    }
    Some(answer.map_err(no_answer))
}

fn no_answer(error: NoAnswer) -> EffectError {
    match error {
        NoAnswer::Refused => EffectError::Failed("connection refused".to_owned()),
        NoAnswer::TimedOut => EffectError::Late("no answer in time".to_owned()),
    }
}

/// The traffic target: a zone somewhere outside.
#[derive(Debug)]
pub struct SimTraffic {
    /// Who uses it.
    pub place: Place,
    /// Its name.
    pub name: TargetName,
}

impl SimTraffic {
    async fn reach(&self) -> Result<(), EffectError> {
        self.place.work(2, 40).await;
        let cut = self
            .place
            .world
            .with(|state, _| !state.link(Node::Neutral, Node::Clients).up);
        if cut {
            tokio::time::sleep(Duration::from_secs(2)).await;
            self.place.work(0, 1).await;
            return Err(EffectError::Late("no answer in time".to_owned()));
        }
        Ok(())
    }
}

#[async_trait]
impl Traffic for SimTraffic {
    fn name(&self) -> &TargetName {
        &self.name
    }

    async fn read(&self) -> Result<Versioned, EffectError> {
        self.reach().await?;
        Ok(self.place.world.with(|state, _| Versioned {
            answer: state.traffic.0.clone(),
            token: state.traffic.1.to_string(),
        }))
    }

    async fn apply(
        &self,
        from: &Versioned,
        to: &Answer,
        _note: &str,
        still: Still<'_>,
    ) -> Result<Receipt, EffectError> {
        self.reach().await?;
        still()?;
        let (unsure, version) = self.place.world.with(|state, now| {
            if state.traffic.1.to_string() != from.token {
                return Err(EffectError::Conflict("another version".to_owned()));
            }
            let (machines, checks) = state.watched(Node::First);
            checks.answered(now, to, machines);
            state.traffic = (to.clone(), state.traffic.1.saturating_add(1));
            let on: Vec<String> = to.sites_on().map(ToString::to_string).collect();
            state
                .checks
                .trace(now, format!("N  traffic to {}", on.join(" and ")));
            let ambiguous = state.ambiguous;
            Ok((state.chance.percent(ambiguous), state.traffic.1))
        })?;
        self.reach().await?;
        if unsure {
            return Err(EffectError::Late("no answer in time".to_owned()));
        }
        Ok(Receipt::default().named("serial", version.to_string()))
    }

    async fn confirm(&self, receipt: &Receipt) -> Result<Confirmation, EffectError> {
        self.reach().await?;
        let version = self.place.world.with(|state, _| state.traffic.1);
        let written = receipt.ids.get("serial").and_then(|id| id.parse().ok());
        let made = written.is_some_and(|written: u64| written <= version);
        Ok(if made {
            Confirmation::Made
        } else {
            Confirmation::Pending
        })
    }

    async fn rehearse(&self, _from: &Versioned) -> Result<(), EffectError> {
        Ok(())
    }

    async fn verify_outside(&self) -> Vec<OutsideView> {
        let answer = match self.reach().await {
            Ok(()) => Ok(self.place.world.with(|state, _| state.traffic.0.clone())),
            Err(error) => Err(OutsideFault::Unseen(error.to_string())),
        };
        let place = "outside".to_owned();
        vec![OutsideView { place, answer }]
    }
}

/// The way users enter.
#[derive(Debug)]
pub struct SimFront(pub Place);

#[async_trait]
impl FrontDoor for SimFront {
    async fn enter(
        &self,
        _expected: &SiteName,
        within: Duration,
    ) -> Vec<(String, Result<SiteName, OutsideFault>)> {
        self.0.work(1, 30).await;
        let (link, site, serves) = self.0.world.with(|state, now| {
            let site = state.traffic.0.sites_on().next().cloned();
            let node = site.as_ref().map_or(Node::First, |site| state.node(site));
            let machine = state.machine(node);
            let serves = machine.answers() && machine.workloads.is_some_and(|at| at <= now);
            (state.link(Node::Neutral, node).up, site, serves)
        });
        if !link || !serves {
            tokio::time::sleep(within).await;
        }
        let entered = match site {
            Some(site) if link && serves => Ok(site),
            Some(_) | None => Err(OutsideFault::Unseen("no answer".to_owned())),
        };
        vec![("front".to_owned(), entered)]
    }
}

/// The store that says which controller leads, beside the log.
#[derive(Debug)]
pub struct SimLead {
    /// Who asks.
    pub place: Place,
    /// Which of the controllers that is.
    pub which: usize,
}

#[async_trait]
impl LeaseStore for SimLead {
    async fn lead(&self, lasting: Duration) -> Result<bool, StoreError> {
        self.place.work(0, 8).await;
        let leads = self.place.world.with(|state, now| {
            let other = state
                .leader
                .is_some_and(|(who, until)| who != self.which && now < until);
            if !other {
                let lasting = self.place.world.policy.lease.with_drift(lasting);
                state.leader = Some((self.which, now.saturating_add(lasting)));
            }
            !other
        });
        self.place.work(0, 8).await;
        Ok(leads)
    }
}

/// The store that holds the decision log: it takes only what follows on its end.
#[derive(Debug)]
pub struct SimLog {
    /// Who writes.
    pub place: Place,
    /// How many lines there are, as far as the writer knows.
    pub lines: u64,
}

#[async_trait]
impl LogStore for SimLog {
    async fn append(&mut self, line: &[u8]) -> Result<(), AppendError> {
        let place = &self.place;
        place.world.alive(&place.life).await;
        let took = place.world.with(|state, now| {
            let most = state.slow_disk;
            let stalled = state.disk_stalled.saturating_sub(now);
            stalled.saturating_add(state.chance.millis(0, most))
        });
        tokio::time::sleep(took).await;
        // Who is killed before this has written nothing; who is killed after, without knowing.
        place.world.alive(&place.life).await;
        let lines = self.lines;
        place.world.with(|state, now| {
            if now < state.disk_full {
                return Err(AppendError::Failed("no space left on device".to_owned()));
            }
            if u64::try_from(state.log.len()) != Ok(lines) {
                let text = "another controller has written";
                return Err(AppendError::Conflict(text.to_owned()));
            }
            log(state, now, line);
            Ok(())
        })?;
        self.lines = lines.saturating_add(1);
        self.place.work(0, 2).await;
        Ok(())
    }
}

/// A line becomes durable, and is watched.
pub fn log(state: &mut State, now: Truth, line: &[u8]) {
    state.log.push(line.to_vec());
    state.logged.push(now);
    let active = state.checks.active();
    let node = active.map_or(Node::First, |site| state.node(&site));
    let going = state.checks.going_to();
    let neutral = |other| {
        [
            state.link(Node::Neutral, other),
            state.link(other, Node::Neutral),
        ]
    };
    let ([a, b], [c, d]) = (neutral(Node::First), neutral(Node::Second));
    let between = [
        state.link(Node::First, Node::Second),
        state.link(Node::Second, Node::First),
    ];
    let direct = (!state.observed).then(|| neutral(node));
    let (calm, decided) = (state.lossy == 0, state.decided);
    let moved = going.is_some_and(|site| state.traffic.0.is_only(&site));
    let (machines, checks) = state.watched(node);
    let truth = Truths {
        machines,
        neutral: [a, b, c, d],
        direct,
        between,
        calm,
        decided,
        moved,
    };
    if let Some(decided) = checks.logged(now, line, &truth) {
        state.decided = Some(decided);
    }
}

/// Kills the controller at a moment of a step.
#[derive(Debug)]
pub struct SimCrash {
    /// The world.
    pub world: Arc<World>,
    /// Which process.
    pub life: Arc<Life>,
    /// At which of the moments that come, counted down.
    pub after: std::sync::atomic::AtomicU64,
    /// Tells whoever starts it again.
    pub killed: mpsc::UnboundedSender<()>,
}

impl CrashDrill for SimCrash {
    fn passed(&self, step: &Step, moment: Moment) {
        use std::sync::atomic::Ordering;
        if !self.life.lives() {
            return;
        }
        let left = self.after.load(Ordering::Relaxed);
        self.after.store(left.saturating_sub(1), Ordering::Relaxed);
        if left == 1 {
            self.world.trace(|| format!("N  killed {moment} of {step}"));
            self.life.end();
            self.killed.send(()).unwrap_or_default();
        }
    }
}
