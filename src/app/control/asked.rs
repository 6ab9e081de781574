//! What people ask of the control loop: to promote, to hold, and to go on from how the world stands.

use std::time::Duration;

use super::Control;
use crate::app::journal::JournalError;
use crate::engine::chain::Body;
use crate::engine::decision::{Verdict, decide};
use crate::engine::plan::Plan;
use crate::engine::saga::Command;
use crate::engine::situation::Request;
use crate::engine::units::{WallTime, as_millis};
use crate::wire::{AdoptAsk, AdoptInstanceAsk, HoldAsk, PlanStatus, PromoteAnswer, PromoteAsk};

/// The longest that a person may stop automation for.
const LONGEST_HOLD: Duration = Duration::from_secs(7 * 86_400);

/// What a person is answered: done, or why not.
type Answered = Result<Result<(), String>, JournalError>;

impl Control {
    pub(super) async fn hold(
        &mut self,
        operator: &str,
        ask: HoldAsk,
    ) -> Result<Result<(), String>, JournalError> {
        if ask.lasting > LONGEST_HOLD {
            let text = "a hold lasts 7 days at most, so that none is forgotten".to_owned();
            return Ok(Err(text));
        }
        let until = self.clock.wall().0.saturating_add(as_millis(ask.lasting));
        let command = Command::Hold {
            reason: ask.reason,
            until: WallTime(until),
        };
        self.journal
            .append(operator, Body::Command { command })
            .await?;
        Ok(Ok(()))
    }

    /// A person says how the world stands, where the log is behind it. Refused where what is seen
    /// says otherwise.
    pub(super) async fn adopt(&mut self, operator: &str, ask: &AdoptAsk) -> Answered {
        let group = self.group();
        let command = match self.brain.adopt(ask, &group, self.clock.now()) {
            Ok(command) => command,
            Err(why) => return Ok(Err(why)),
        };
        // What a plan of a log that is behind was about to do is done no more.
        if let Some(executor) = self.executor.take() {
            executor.abort();
        }
        self.journal
            .append(operator, Body::Command { command })
            .await?;
        let group = self.group();
        self.brain.adopted(&group, self.clock.now());
        Ok(Ok(()))
    }

    /// A person lets another instance of a site's agent have its right and its word.
    pub(super) async fn adopt_instance(
        &mut self,
        operator: &str,
        ask: AdoptInstanceAsk,
    ) -> Answered {
        if !self.brain.is_second(&ask.site, ask.instance) {
            return Ok(Err(format!(
                "no second instance {} of site `{}` has reported: `failover status` names those that do",
                ask.instance, ask.site
            )));
        }
        let command = Command::AdoptInstance {
            site: ask.site,
            instance: ask.instance,
            reason: ask.reason,
        };
        self.journal
            .append(operator, Body::Command { command })
            .await?;
        Ok(Ok(()))
    }

    /// A person asks. What is decided is decided by the same engine, and logged with its evidence.
    pub(super) async fn promote(
        &mut self,
        operator: &str,
        ask: &PromoteAsk,
    ) -> Result<Result<PromoteAnswer, String>, JournalError> {
        if !self.brain.topology().has(&ask.to) {
            let [first, second] = self.brain.topology().sites();
            return Ok(Err(format!(
                "`{}` is not a site of this group: its sites are `{first}` and `{second}`",
                ask.to
            )));
        }
        let request = ask.request(operator);
        let group = self.journal.state();
        let stuck = group.open.as_ref().filter(|saga| saga.stuck.is_some());
        if let Some(stuck) = stuck.filter(|stuck| stuck.plan.route.to == ask.to && !ask.dry_run) {
            return self.retry_stuck(operator, request, stuck.id).await;
        }
        let known_at = self.clock.wall();
        let situation = self.situation(Some(request.clone()));
        let decision = decide(&situation, self.brain.policy());
        let last = self.brain.last_right();
        let plan = Plan::failover(&situation, self.brain.topology(), &last, known_at);
        let steps = plan.steps.iter().map(ToString::to_string).collect();
        let passes = matches!(decision.verdict, Verdict::FailOver { .. });
        let mut answer = PromoteAnswer {
            decision,
            steps,
            plan: None,
        };
        if passes && !ask.dry_run {
            let command = Command::Promote { request };
            self.journal
                .append(operator, Body::Command { command })
                .await?;
            self.log_decision(&answer.decision, &situation).await?;
            answer.plan = Some(self.open_plan(&situation, known_at).await?);
        }
        Ok(Ok(answer))
    }

    async fn retry_stuck(
        &mut self,
        operator: &str,
        request: Request,
        id: u64,
    ) -> Result<Result<PromoteAnswer, String>, JournalError> {
        let command = Command::Promote { request };
        self.journal
            .append(operator, Body::Command { command })
            .await?;
        let situation = self.situation(None);
        let decision = decide(&situation, self.brain.policy());
        let group = self.journal.state();
        let steps = PlanStatus::of(&group)
            .map(|plan| plan.steps)
            .unwrap_or_default();
        let steps = steps.into_iter().map(|(step, _)| step).collect();
        Ok(Ok(PromoteAnswer {
            decision,
            steps,
            plan: Some(id),
        }))
    }
}
