//! Operators' requests to the control loop: promote, hold, release, adopt.

use tokio::sync::oneshot;

use super::writing::Then;
use super::{Control, logged};
use crate::engine::chain::Body;
use crate::engine::decision::decide;
use crate::engine::saga::Command;
use crate::engine::situation::Request;
use crate::wire::{AdoptAsk, AdoptInstanceAsk, HoldAsk, PromoteAnswer, PromoteAsk, ReleaseAsk};

/// How much that people ask for may wait for the log.
const WAITING: usize = 16;

/// The recipient of the answer: what was done, or why nothing was.
pub(super) type Asker<T> = oneshot::Sender<Result<T, String>>;

/// An operator's request.
#[derive(Debug)]
pub enum Asked {
    /// Make a site active.
    Promote(PromoteAsk, Asker<PromoteAnswer>),
    /// Stop automation.
    Hold(HoldAsk, Asker<()>),
    /// Resume automation.
    Release(ReleaseAsk, Asker<()>),
    /// Continue from the actual state, because the log is behind it.
    Adopt(AdoptAsk, Asker<()>),
    /// Transfer a site's lease and reports to another instance.
    AdoptInstance(AdoptInstanceAsk, Asker<()>),
}

impl Asked {
    /// Whether it only reads.
    fn only_looks(&self) -> bool {
        matches!(self, Asked::Promote(ask, _) if ask.dry_run)
    }

    fn refuse(self, why: String) {
        // The requester may be gone by now.
        match self {
            Asked::Promote(_, asker) => drop(asker.send(Err(why))),
            Asked::Hold(_, asker)
            | Asked::Release(_, asker)
            | Asked::Adopt(_, asker)
            | Asked::AdoptInstance(_, asker) => drop(asker.send(Err(why))),
        }
    }
}

impl Control {
    /// Carries out a request: now, or when the log is free.
    pub(super) fn asked(&mut self, operator: String, asked: Asked) {
        let free = self.desk.is_free(self.clock.now());
        if asked.only_looks() || (free && self.desk.asked.is_empty()) {
            self.obey(&operator, asked);
        } else if self.desk.asked.len() < WAITING {
            self.desk.asked.push_back((operator, asked));
        } else {
            asked.refuse("too many requests are already waiting for the decision log".to_owned());
        }
    }

    /// Call this only while the log is free.
    pub(super) fn obey(&mut self, operator: &str, asked: Asked) {
        match asked {
            Asked::Promote(ask, asker) => self.promote(operator, &ask, asker),
            Asked::Hold(ask, asker) => self.hold(operator, ask, asker),
            Asked::Release(ask, asker) => {
                let command = Command::Release {
                    reason: ask.reason,
                    rebuilt: ask.rebuilt,
                };
                self.command(operator, command, Then::Answer(asker));
            }
            Asked::Adopt(ask, asker) => self.adopt(operator, &ask, asker),
            Asked::AdoptInstance(ask, asker) => self.adopt_instance(operator, ask, asker),
        }
    }

    fn command(&mut self, operator: &str, command: Command, then: Then) {
        self.write(vec![(operator, Body::Command { command })], then);
    }

    fn hold(&mut self, operator: &str, ask: HoldAsk, asker: Asker<()>) {
        let command = match Command::hold(ask.reason, ask.lasting, self.clock.wall()) {
            Ok(command) => command,
            Err(why) => return drop(asker.send(Err(why))),
        };
        self.command(operator, command, Then::Answer(asker));
    }

    /// An operator states the actual state, because the log is behind it. Refused if what is seen
    /// contradicts it.
    fn adopt(&mut self, operator: &str, ask: &AdoptAsk, asker: Asker<()>) {
        let group = self.group();
        let command = match self.brain.adopt(ask, &group, self.clock.now()) {
            Ok(command) => command,
            Err(why) => return drop(asker.send(Err(why))),
        };
        let promotes = group.open.as_ref().filter(|saga| saga.pivot_under_way());
        if let (Some(_running), Some(saga)) = (&self.executor, promotes) {
            // Its order may be on its way, and nothing calls it back.
            let text = format!(
                "plan {} is making `{}` primary at this moment: look at `failover status`, and ask again once it is known what came of that",
                saga.id, saga.plan.route.to
            );
            return drop(asker.send(Err(text)));
        }
        // What a plan of an outdated log was about to do is no longer done.
        if let Some(executor) = self.executor.take() {
            executor.abort();
        }
        self.command(operator, command, Then::Adopted(asker));
    }

    /// An operator transfers a site to another instance of its agent.
    fn adopt_instance(&mut self, operator: &str, ask: AdoptInstanceAsk, asker: Asker<()>) {
        if !self.brain.is_second(&ask.site, ask.instance) {
            let text = format!(
                "no second instance {} of site `{}` has reported: `failover status` names those that do",
                ask.instance, ask.site
            );
            return drop(asker.send(Err(text)));
        }
        let command = Command::AdoptInstance {
            site: ask.site,
            instance: ask.instance,
            reason: ask.reason,
        };
        self.command(operator, command, Then::Answer(asker));
    }

    /// An operator requests a failover. The same engine decides it, and the decision is logged with
    /// its evidence.
    fn promote(&mut self, operator: &str, ask: &PromoteAsk, asker: Asker<PromoteAnswer>) {
        if !self.brain.topology().has(&ask.to) {
            let [first, second] = self.brain.topology().sites();
            let text = format!(
                "`{}` is not a site of this group: its sites are `{first}` and `{second}`",
                ask.to
            );
            return drop(asker.send(Err(text)));
        }
        let request = ask.request(operator);
        let stuck = self.journal.state().stuck_on_the_way_to(&ask.to);
        if let Some(id) = stuck.filter(|_| !ask.dry_run) {
            let command = Command::Promote { request };
            return self.command(operator, command, Then::Retried(id, asker));
        }
        self.promote_by_request(operator, ask, request, asker);
    }

    fn promote_by_request(
        &mut self,
        operator: &str,
        ask: &PromoteAsk,
        request: Request,
        asker: Asker<PromoteAnswer>,
    ) {
        let known_at = self.clock.wall();
        let situation = self.situation(Some(request.clone()));
        let decision = decide(&situation, self.brain.policy());
        let plan = self.plan(&situation, known_at);
        let answer = PromoteAnswer {
            steps: plan.steps.iter().map(ToString::to_string).collect(),
            decision,
            plan: None,
        };
        let passes = answer.decision.verdict == plan.verdict();
        if !passes || ask.dry_run {
            return drop(asker.send(Ok(answer)));
        }
        let plan = Box::new(plan);
        let bodies = vec![
            (
                operator,
                Body::Command {
                    command: Command::Promote { request },
                },
            ),
            ("controller", logged(&answer.decision, &situation)),
            ("controller", Body::Plan { plan }),
        ];
        self.write(bodies, Then::Promoted(answer, asker));
    }
}
