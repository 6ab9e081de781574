//! The steps that lead users to the new site, and check it as users see it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Outcome, SHORT_ORDER, Steps};
use crate::app::control::Input;
use crate::engine::answer::{Answer, guard_answer};
use crate::engine::plan::{Retry, Role};
use crate::engine::receipt::Receipt;
use crate::engine::saga::OpenSaga;
use crate::engine::step::{Fact, Step};
use crate::engine::topology::{SiteName, TargetName};
use crate::engine::units::MonoTime;
use crate::ports::{Confirmation, EffectError, OutsideFault, Traffic};

/// How long to wait before a target that does not show its change yet is read again: short at first,
/// because most show it at once.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

impl Steps {
    /// Moves a target. An unreachable one, perhaps lost with the old site, does not delay the
    /// others: it comes last.
    pub(super) async fn move_traffic(
        &mut self,
        saga: &OpenSaga,
        name: &TargetName,
        deadline: MonoTime,
    ) -> Outcome {
        let step = Step::MoveTraffic {
            target: name.clone(),
        };
        let others_first = saga.plan.role(&step) == Some(Role::After(Retry::OthersFirst));
        match self.move_one(saga, name, deadline).await {
            Err(EffectError::Failed(why) | EffectError::Late(why)) if others_first => {
                self.note("traffic-later", why.clone()).await?;
                Ok(Fact::NotMoved { why })
            }
            moved => moved,
        }
    }

    async fn move_one(
        &mut self,
        saga: &OpenSaga,
        name: &TargetName,
        deadline: MonoTime,
    ) -> Outcome {
        let mut configured = self.world.traffic.iter();
        let Some(target) = configured.find(|target| target.name() == name).cloned() else {
            // Whoever took it out of the configuration has decided about it.
            let why = format!("traffic target `{name}` is not configured any more");
            self.note("traffic-left", why.clone()).await?;
            return Ok(Fact::NotMoved { why });
        };
        let route = &saga.plan.route;
        let wanted = Answer::only(&route.to, &self.topology, route.epoch);
        let found = target.read().await?;
        if let Some(higher) = found.answer.epoch.filter(|epoch| *epoch > route.epoch) {
            return Err(EffectError::Refused(format!(
                "`{name}` is in epoch {higher} already, this plan is of {}",
                route.epoch
            )));
        }
        if found.answer.is_only(&route.to) && found.answer.epoch == Some(route.epoch) {
            let receipt = self.receipts.get(name).cloned();
            return Ok(Fact::Moved {
                already: receipt.is_none(),
                receipt,
            });
        }
        let believed_until = self.not_fenced(&route.to).await?;
        // The one check just before sending, against the state at that moment.
        let still = || {
            self.world.leadership.left()?;
            if self.clock.now() >= believed_until {
                let text = format!("the last report of the agent of `{}` is too old", route.to);
                return Err(EffectError::Failed(text));
            }
            let active = self.journal.state().active;
            guard_answer(&wanted, &self.topology, &active)
                .map_err(|forbidden| EffectError::Refused(forbidden.to_string()))
        };
        let note = format!("failover plan {} epoch {}", saga.id, route.epoch);
        let receipt = target.apply(&found, &wanted, &note, &still).await?;
        self.receipts.insert(name.clone(), receipt.clone());
        self.read_back(target.as_ref(), &wanted, &receipt, deadline)
            .await?;
        Ok(Fact::Moved {
            already: false,
            receipt: Some(receipt),
        })
    }

    /// Whether users may be sent to a site, by a recent report of its agent: its lease may have
    /// expired since it was promoted. Returns until when that report counts.
    async fn not_fenced(&self, site: &SiteName) -> Result<MonoTime, EffectError> {
        let asked = self.clock.now();
        let limit = self.policy.detect.stale_after;
        let situation = self.control.ask(|answer| Input::Look(None, answer)).await?;
        let agent = situation.sites.get(site).and_then(|facts| {
            let agent = facts.agent.as_ref()?;
            Some((agent.age, agent.within(limit)?))
        });
        match agent {
            Some((age, agent)) if agent.fenced.is_none() => {
                Ok(asked.plus(limit.saturating_sub(age)))
            }
            Some(_) => Err(EffectError::Failed(format!("site `{site}` is fenced"))),
            None => Err(EffectError::Failed(format!(
                "the agent of site `{site}` has not reported lately: it may be fenced"
            ))),
        }
    }

    /// Reads until the target shows what was written: at once, where its system changes things in
    /// one go, or when a change that it does beside that is made.
    async fn read_back(
        &self,
        target: &dyn Traffic,
        wanted: &Answer,
        receipt: &Receipt,
        deadline: MonoTime,
    ) -> Result<(), EffectError> {
        let mut pause = FIRST_PAUSE;
        let mut made = false;
        loop {
            let now = target.read().await?.answer;
            if now == *wanted {
                return Ok(());
            }
            if made {
                let text = format!("written, but now it says {now:?}");
                return Err(EffectError::Conflict(text));
            }
            let said = match target.confirm(receipt).await {
                Ok(Confirmation::Made) => {
                    // It may have become so after the read.
                    made = true;
                    continue;
                }
                Ok(Confirmation::Void(why)) => return Err(EffectError::Failed(why)),
                Ok(Confirmation::Pending) => Confirmation::Pending.to_string(),
                Err(error) => error.to_string(),
            };
            let left = self.clock.now().until(deadline);
            if left.is_zero() {
                let text = format!("written, but not shown in time: {said}");
                return Err(EffectError::Late(text));
            }
            self.clock.sleep(pause.min(left)).await;
            pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
        }
    }

    /// What the system of a target says by now of what this plan wrote there; `None` where there is
    /// no receipt to ask with.
    async fn confirmed(&self, saga: &OpenSaga, target: &dyn Traffic) -> Option<String> {
        let name = target.name();
        let step = Step::MoveTraffic {
            target: name.clone(),
        };
        let logged = match saga.fact(&step) {
            Some(Fact::Moved { receipt, .. }) => receipt.as_ref(),
            Some(_) | None => None,
        };
        let receipt = self.receipts.get(name).or(logged)?;
        Some(match target.confirm(receipt).await {
            Ok(said) => said.to_string(),
            Err(error) => format!("cannot be asked: {error}"),
        })
    }

    /// Sees from outside that users get to the new site. A place that shows nothing is unknown,
    /// not wrong: it may be lost with the old site. What does show something must agree, and of
    /// each target, and of the front door, at least one place must. Meanwhile the system of each
    /// target is asked what it says of its change: that is kept beside what users get.
    pub(super) async fn verify_outside(&mut self, saga: &OpenSaga, deadline: MonoTime) -> Outcome {
        let mut seen = Views::default();
        for step in &saga.plan.steps {
            if let Step::MoveTraffic { target } = step
                && let Some(Fact::NotMoved { .. }) = saga.fact(step)
            {
                match self.move_one(saga, target, deadline).await {
                    Ok(Fact::Moved {
                        receipt: Some(receipt),
                        ..
                    }) => {
                        seen.receipts.insert(target.clone(), receipt);
                    }
                    Ok(_nothing_written) => {}
                    Err(error) => seen.wrong.push(format!("not moved: {error}")),
                }
            }
        }
        let to = &saga.plan.route.to;
        for target in &self.world.traffic {
            let (views, said) = tokio::join!(
                target.verify_outside(),
                self.confirmed(saga, target.as_ref())
            );
            let views = views.into_iter().map(|view| {
                let place = format!("{} {}", target.name(), view.place);
                let judge = |answer: Answer| {
                    let on: Vec<String> = answer.sites_on().map(ToString::to_string).collect();
                    let said = format!("answers {}", on.join(" and "));
                    answer.is_only(to).then_some(()).ok_or(said)
                };
                (place, view.answer.map(judge))
            });
            let of = format!("traffic target `{}`", target.name());
            let right = seen.take(&of, to, views);
            if let Some(said) = said {
                if !right {
                    seen.wrong.push(format!("{of}: its system says: {said}"));
                }
                seen.confirmed.insert(target.name().clone(), said);
            }
        }
        self.enter_the_front(&mut seen, to, deadline).await;
        if !seen.wrong.is_empty() {
            return Err(EffectError::Failed(seen.wrong.join("; ")));
        }
        if !seen.unseen.is_empty() {
            let unseen = seen.unseen.iter();
            let unseen: Vec<String> = unseen.map(|(p, why)| format!("{p}: {why}")).collect();
            self.note("outside-unseen", unseen.join("; ")).await?;
        }
        Ok(Fact::Seen {
            places: seen.right,
            unseen: seen.unseen,
            receipts: seen.receipts,
            confirmed: seen.confirmed,
        })
    }

    async fn enter_the_front(&self, seen: &mut Views, to: &SiteName, deadline: MonoTime) {
        let Some(front) = &self.world.front else {
            return;
        };
        let within = self.clock.now().until(deadline).min(SHORT_ORDER);
        let entered = front.enter(to, within).await.into_iter();
        let views = entered.map(|(place, entered)| {
            let judge = |site: SiteName| {
                let said = format!("leads to {site}");
                (site == *to).then_some(()).ok_or(said)
            };
            (place, entered.map(judge))
        });
        seen.take("the front door", to, views);
    }
}

/// The results from the places outside.
#[derive(Debug, Default)]
struct Views {
    right: BTreeMap<String, String>,
    unseen: BTreeMap<String, String>,
    wrong: Vec<String>,
    receipts: BTreeMap<TargetName, Receipt>,
    confirmed: BTreeMap<TargetName, String>,
}

impl Views {
    /// Adds the results of one thing's places, each correct or with what it says instead.
    fn take(
        &mut self,
        of: &str,
        to: &SiteName,
        views: impl IntoIterator<Item = (String, Result<Result<(), String>, OutsideFault>)>,
    ) -> bool {
        let before = self.wrong.len();
        let (mut right, mut missed) = (0usize, Vec::new());
        for (place, seen) in views {
            match seen {
                Ok(Ok(())) => {
                    right = right.saturating_add(1);
                    self.right.insert(place, to.to_string());
                }
                Ok(Err(said)) => self.wrong.push(format!("{place} {said}")),
                Err(OutsideFault::Wrong(why)) => self.wrong.push(format!("{place}: {why}")),
                Err(OutsideFault::Unseen(why)) => {
                    missed.push(format!("{place}: {why}"));
                    self.unseen.insert(place, why);
                }
            }
        }
        if right == 0 && !missed.is_empty() {
            let missed = missed.join("; ");
            self.wrong
                .push(format!("nothing is seen of {of} ({missed})"));
        }
        self.wrong.len() == before
    }
}
