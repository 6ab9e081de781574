//! The invariants, watched from outside: from what clients were acknowledged,
//! what the hosts really did, what went over the wire and what stands in the log.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::entries;
use super::excuses::is_excused;
use super::invariant::{Invariant, Violation};
use super::machine::{Machine, Truth};
use super::world::{Link, Skew};
use crate::engine::answer::Answer;
use crate::engine::chain::{Body, Chain, Digest};
use crate::engine::decision::decide;
use crate::engine::lease::FenceProof;
use crate::engine::loss::DeclaredLoss;
use crate::engine::policy::Policy;
use crate::engine::reason::Code;
use crate::engine::saga::Ending;
use crate::engine::step::{Event, Fact, Step};
use crate::engine::topology::{Role, SiteName};
use crate::engine::units::Epoch;
use crate::wire::{Order, What};

mod opening;
mod restored;
mod shown;
mod words;

/// A write that a client was told is safe.
#[derive(Debug, Clone)]
struct Acknowledged {
    at: Truth,
    site: SiteName,
    timeline: u32,
    number: u64,
    /// By a host that had just thawed.
    excused: bool,
}

/// What is really so when an entry is written.
#[derive(Debug)]
pub struct Truths<'w> {
    /// The active host and the passive one, as the log has them.
    pub machines: [&'w Machine; 2],
    /// The controller's links to and from the sites.
    pub neutral: [Link; 4],
    /// Those of them with the active site, where no observer has a say of its own.
    pub direct: Option<[Link; 2]>,
    /// The links between the sites.
    pub between: [Link; 2],
    /// Whether no messages are lost at random.
    pub calm: bool,
    /// Whether the last decision was to fail over.
    pub decided: Option<bool>,
    /// Whether traffic leads where the open plan wants it.
    pub moved: bool,
}

/// How many events are kept for whoever looks for a cause.
const EVENTS_KEPT: usize = 4000;

/// What watches.
#[derive(Debug)]
pub struct Checks {
    policy: Policy,
    /// What did not hold.
    pub violations: Vec<Violation>,
    /// The last events.
    pub events: VecDeque<(Truth, String)>,
    /// A digest of every event, to compare two runs.
    pub fingerprint: u64,
    acknowledged: Vec<Acknowledged>,
    lost: BTreeSet<u64>,
    newest: Option<(u32, SiteName)>,
    /// Writes that a host acknowledged after it was frozen as a whole and thawed.
    pub after_thaw: u64,
    /// When each site became primary, with its timeline.
    pub promoted: Vec<(Truth, SiteName, u32)>,
    chain: Chain,
    steps: BTreeMap<(u64, usize), (Step, &'static str)>,
    open: Option<u64>,
    /// Whether the open plan rests on a person's word that the old side is fenced.
    vouched: bool,
    declared: Option<DeclaredLoss>,
    /// When the controller said that both sites take writes.
    pub two_primaries: Vec<Truth>,
    fenced: bool,
    disarmed: bool,
    /// Plans opened, and how those that ended did.
    pub plans: BTreeMap<&'static str, u64>,
    epoch: Epoch,
    /// The highest that the log ever had: one that was restored has forgotten it, and nobody else.
    raised: Epoch,
    epochs: BTreeMap<SiteName, Epoch>,
    /// Whether the controller's wall clock was ever set.
    pub stepped: bool,
    /// When the open plan declared its loss.
    declared_at: Truth,
    /// When that began: a slow disk may write long after it.
    declaring_at: Truth,
    /// The last plan for which it was written down what its fence by infrastructure finds.
    found: Option<u64>,
}

impl Checks {
    /// Watches from the beginning.
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            violations: Vec::new(),
            events: VecDeque::new(),
            fingerprint: 0xcbf2_9ce4_8422_2325,
            acknowledged: Vec::new(),
            lost: BTreeSet::new(),
            newest: None,
            after_thaw: 0,
            promoted: Vec::new(),
            chain: Chain::default(),
            steps: BTreeMap::new(),
            open: None,
            vouched: false,
            declared: None,
            two_primaries: Vec::new(),
            fenced: false,
            disarmed: false,
            plans: BTreeMap::new(),
            epoch: Epoch(0),
            raised: Epoch(0),
            epochs: BTreeMap::new(),
            stepped: false,
            declared_at: Duration::ZERO,
            declaring_at: Duration::ZERO,
            found: None,
        }
    }

    /// Remembers an event.
    pub fn trace(&mut self, at: Truth, text: String) {
        for byte in at.as_nanos().to_le_bytes().iter().chain(text.as_bytes()) {
            self.fingerprint = (self.fingerprint ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
        if self.events.len() >= EVENTS_KEPT {
            self.events.pop_front();
        }
        self.events.push_back((at, text));
    }

    /// Something did not hold.
    pub fn violated(&mut self, invariant: Invariant, at: Truth, what: String) {
        self.trace(at, format!("VIOLATION {invariant}: {what}"));
        self.violations.push(Violation {
            invariant,
            at,
            what,
        });
    }

    /// How many writes were acknowledged, and how many of them are lost.
    pub fn writes(&self) -> (usize, usize) {
        (self.acknowledged.len(), self.lost.len())
    }

    /// A client's write was acknowledged. `other` is the other host.
    pub fn acknowledged(&mut self, at: Truth, machine: &Machine, other: &Machine, number: u64) {
        let (site, timeline) = (machine.site.clone(), machine.timeline);
        let newest = self.newest.clone();
        let second = newest
            .is_some_and(|(top, holder)| timeline < top || (timeline == top && holder != site));
        // What waited for the standby is there: hearing of it late takes nothing from anybody.
        let second = second && !(machine.synchronous && other.has_row(number));
        if second {
            if self.excused(at, machine) && !self.loses_nothing() {
                self.after_thaw += 1;
            } else {
                let what = format!(
                    "{site} acknowledges row {number} on timeline {timeline} beside {:?}",
                    self.newest
                );
                self.violated(Invariant::OneWriter, at, what);
            }
            self.lost.insert(number);
        } else if self.newest.as_ref().is_none_or(|(top, _)| *top <= timeline) {
            self.newest = Some((timeline, site.clone()));
        }
        self.acknowledged.push(Acknowledged {
            at,
            site,
            timeline,
            number,
            excused: self.excused(at, machine),
        });
    }

    /// A standby became a primary. `old` is the other host.
    pub fn promoted(&mut self, at: Truth, new: &Machine, old: &Machine, neutral: Skew) {
        self.trace(
            at,
            format!("{} is primary on timeline {}", new.site, new.timeline),
        );
        self.promoted.push((at, new.site.clone(), new.timeline));
        // A standby that never saw the last promotion, made primary by somebody who accepts what is
        // lost: its timeline has the number of that one, or a lower.
        let behind = |(top, holder): &(u32, SiteName)| new.timeline <= *top && *holder != new.site;
        if self.newest.as_ref().is_some_and(behind) {
            self.newest = Some((new.timeline, new.site.clone()));
        }
        if old.could_write(at) && !self.excused(at, old) && !self.vouched {
            let what = format!("{} is promoted while {} can write", new.site, old.site);
            self.violated(Invariant::FenceBeforePromote, at, what);
        }
        if !self.fenced {
            let what = format!("{} is promoted without a logged proof of a fence", new.site);
            self.violated(Invariant::FenceBeforePromote, at, what);
        }
        self.check_loss(at, new, neutral);
    }

    fn excused(&self, at: Truth, machine: &Machine) -> bool {
        is_excused(at, machine, &self.policy)
    }

    /// The controller gives an order: it must have written that first.
    pub fn ordered(&mut self, at: Truth, order: &Order) {
        if order.check_only {
            return;
        }
        let fits = |step: &Step, event: &str| match (order.what, step) {
            (What::Fence, Step::Fence)
            | (What::Sever, Step::Sever | Step::Fence)
            | (What::Promote | What::Desist, Step::Promote)
            | (What::StartWorkloads, Step::StartWorkloads)
            | (What::AwaitWorkloads, Step::AwaitWorkloads) => event == "started",
            (What::Unfence, Step::Fence)
            | (What::Reconnect, Step::Sever)
            | (What::StopWorkloads, Step::StartWorkloads) => event == "undo-started",
            (_, _) => false,
        };
        self.must_be_started(at, order.plan, &format!("{:?}", order.what), fits);
    }

    fn must_be_started(
        &mut self,
        at: Truth,
        plan: u64,
        word: &str,
        fits: impl Fn(&Step, &str) -> bool,
    ) {
        let begun = self
            .steps
            .range((plan, 0)..=(plan, usize::MAX))
            .any(|(_, (step, event))| fits(step, event));
        if !begun {
            let what = format!("plan {plan} does {word} without a durable `Started`");
            self.violated(Invariant::WriteAhead, at, what);
        }
    }

    /// The controller has pods ended: what was there must be written down, in a fence that is under way.
    pub fn ends_pods(&mut self, at: Truth) {
        let plan = self.found.unwrap_or(0);
        let fits = |step: &Step, event: &str| *step == Step::Fence && event == "started";
        self.must_be_started(at, plan, "an end of pods", fits);
    }

    /// A traffic answer goes over the wire.
    pub fn answered(&mut self, at: Truth, answer: &Answer, machines: [&Machine; 2]) {
        let on: Vec<&SiteName> = answer.sites_on().collect();
        let forbidden = match on.as_slice() {
            [] => Some("nobody".to_owned()),
            [site] => {
                let machine = machines.into_iter().find(|machine| machine.site == **site);
                let fenced = machine.is_none_or(|machine| {
                    let marked = machine.marker.as_ref().map(|(epoch, _)| *epoch);
                    // What an agent said may be as old as the policy lets evidence be.
                    let known = at.saturating_sub(machine.marked) > self.policy.detect.stale_after;
                    known && marked.is_some() && marked >= answer.epoch
                });
                fenced.then(|| format!("{site}, which is fenced"))
            }
            [..] => Some("both sites".to_owned()),
        };
        if let Some(whom) = forbidden {
            let what = format!("traffic is sent to {whom}");
            self.violated(Invariant::ForbiddenAnswer, at, what);
        }
        if let Some(plan) = self.open {
            let fits = |step: &Step, event: &str| {
                matches!(step, Step::MoveTraffic { .. }) && event == "started"
            };
            self.must_be_started(at, plan, "MoveTraffic", fits);
        }
    }

    /// An agent keeps an epoch.
    pub fn agent_epoch(&mut self, at: Truth, site: &SiteName, epoch: Epoch) {
        let known = self.epochs.entry(site.clone()).or_default();
        if epoch < *known {
            let what = format!("the agent of {site} falls from epoch {known} to {epoch}");
            self.violated(Invariant::EpochMonotone, at, what);
            return;
        }
        *known = epoch;
    }

    /// A line became durable. Of a decision: whether it is to fail over, for cause.
    pub fn logged(&mut self, at: Truth, line: &[u8], truth: &Truths<'_>) -> Option<bool> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let entry = match self.chain.take(line) {
            Ok(entry) => entry,
            Err(broken) => {
                let invariant = Invariant::broken_by(&broken);
                self.violated(invariant, at, broken.to_string());
                return None;
            }
        };
        if entry.epoch < self.epoch {
            let what = format!("entry {} goes back to epoch {}", entry.seq, entry.epoch);
            self.violated(Invariant::EpochMonotone, at, what);
        }
        self.epoch = entry.epoch;
        self.raised = self.raised.max(entry.epoch);
        self.trace(at, entries::shown(&entry));
        match &entry.body {
            Body::Decision {
                decision,
                situation,
            } => {
                let mut reasons = decision.reasons.iter();
                if reasons.any(|reason| reason.code == Code::TwoPrimaries) {
                    self.two_primaries.push(at);
                }
                if decide(situation, &self.policy) != **decision {
                    let what = format!("entry {} replays to another decision", entry.seq);
                    self.violated(Invariant::SameDecision, at, what);
                }
            }
            Body::Plan { plan } => {
                self.plan_opened(at, &entry, plan.request.is_some(), truth);
                self.vouched = plan.request.as_ref().is_some_and(|ask| ask.override_fence);
            }
            Body::Step {
                plan,
                index,
                step,
                event,
            } => self.stepped(at, (*plan, *index), (step, event), truth),
            Body::Outcome { ending, .. } => {
                let (word, closed) = match ending {
                    Ending::Done => ("done", true),
                    Ending::Undone { .. } => ("undone", true),
                    Ending::Stuck { .. } => ("stuck", false),
                };
                *self.plans.entry(word).or_default() += 1;
                self.disarmed |= *ending == Ending::Done;
                if closed {
                    self.open = None;
                }
            }
            Body::Command { command } => self.commanded(command),
            Body::Opened { .. }
            | Body::Window { .. }
            | Body::Instance { .. }
            | Body::Note { .. } => {}
        }
        entries::fails_over(&entry.body)
    }

    fn stepped(
        &mut self,
        at: Truth,
        (plan, index): (u64, usize),
        (step, event): (&Step, &Event),
        truth: &Truths<'_>,
    ) {
        if let Event::Found { .. } = event {
            self.found = Some(plan);
            return;
        }
        self.steps
            .insert((plan, index), (step.clone(), event.name()));
        if let Event::Done { fact } = event {
            self.step_done(at, step, fact, truth);
        } else if (step, event) == (&Step::Freeze, &Event::Started) {
            self.declaring_at = at;
        }
    }

    fn step_done(&mut self, at: Truth, step: &Step, fact: &Fact, truth: &Truths<'_>) {
        let [active, passive] = truth.machines;
        match (step, fact) {
            (Step::Freeze, Fact::Declared { loss, evidence }) => {
                let follows = evidence.as_ref().map(|evidence| evidence.declare());
                if follows.as_ref() != Some(loss) {
                    let what = "a loss is declared that does not follow from its evidence";
                    self.violated(Invariant::SameDecision, at, what.to_owned());
                }
                self.declared = Some(loss.clone());
                self.declared_at = at;
            }
            (Step::Fence, Fact::Fenced { proof }) => {
                self.fenced = true;
                let vouched = matches!(proof, FenceProof::Override { .. });
                // What a frozen or foreign server does is held against no guard, and against a kubelet.
                let ended = matches!(proof, FenceProof::Infrastructure { .. });
                let excused = vouched || (!ended && self.excused(at, active));
                if active.could_write(at) && !excused {
                    let what = format!(
                        "{} counts as fenced by {proof:?}, and can write",
                        active.site
                    );
                    self.violated(Invariant::FenceBeforePromote, at, what);
                }
            }
            (Step::Promote, Fact::Promoted { .. }) if passive.role != Role::Primary => {
                let what = "a promotion is recorded that did not happen".to_owned();
                self.violated(Invariant::WriteAhead, at, what);
            }
            (Step::MoveTraffic { .. }, Fact::Moved { .. }) if !truth.moved => {
                let what = "traffic is recorded as moved, and is not".to_owned();
                self.violated(Invariant::WriteAhead, at, what);
            }
            (_, _) => {}
        }
    }

    /// The whole log, as an auditor would read it.
    pub fn audit(&mut self, at: Truth, log: &[Vec<u8>]) {
        let mut chain = Chain::default();
        for line in log {
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            if let Err(broken) = chain.take(line) {
                return self.violated(Invariant::LogVerifies, at, broken.to_string());
            }
        }
        if chain.head != self.chain.head || (log.is_empty() && self.chain.head != Digest::ZERO) {
            let what = "an entry that was durable is gone".to_owned();
            self.violated(Invariant::LogVerifies, at, what);
        }
    }
}
