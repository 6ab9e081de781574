//! The steps that lead users to the new site, and look at it from where they are.

use std::collections::BTreeMap;

use super::{Outcome, SHORT_ORDER, Steps};
use crate::app::control::Input;
use crate::engine::answer::{Answer, guard_answer};
use crate::engine::saga::OpenSaga;
use crate::engine::step::Fact;
use crate::engine::topology::{SiteName, TargetName};
use crate::engine::units::MonoTime;
use crate::ports::{EffectError, Traffic};

impl Steps {
    pub(super) async fn move_traffic(&self, saga: &OpenSaga, name: &TargetName) -> Outcome {
        let Some(target) = self
            .world
            .traffic
            .iter()
            .find(|target| target.name() == name)
        else {
            return Err(EffectError::Refused(format!(
                "traffic target `{name}` is not configured any more"
            )));
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
            return Ok(Fact::Moved { already: true });
        }
        let believed_until = self.not_fenced(&route.to).await?;
        // The one guard, just before the wire, against what is true at that moment.
        let still = || {
            self.world.leadership.left()?;
            if self.clock.now() >= believed_until {
                let text = format!("what the agent of `{}` said is too old by now", route.to);
                return Err(EffectError::Failed(text));
            }
            let active = self.journal.state().active;
            guard_answer(&wanted, &self.topology, &active)
                .map_err(|forbidden| EffectError::Refused(forbidden.to_string()))
        };
        let note = format!("failover plan {} epoch {}", saga.id, route.epoch);
        target.apply(&found, &wanted, &note, &still).await?;
        self.read_back(target.as_ref(), &wanted).await
    }

    /// Whether users may be sent to a site, by the fresh word of its agent: its right may have run
    /// out since it was promoted. Until when that word is fresh.
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

    async fn read_back(&self, target: &dyn Traffic, wanted: &Answer) -> Outcome {
        let now = target.read().await?;
        if now.answer == *wanted {
            Ok(Fact::Moved { already: false })
        } else {
            Err(EffectError::Conflict(format!(
                "written, but now it says {:?}",
                now.answer
            )))
        }
    }

    pub(super) async fn verify_outside(&self, saga: &OpenSaga, deadline: MonoTime) -> Outcome {
        let to = &saga.plan.route.to;
        let mut places = BTreeMap::new();
        let mut wrong = Vec::new();
        for target in &self.world.traffic {
            for view in target.verify_outside().await {
                let place = format!("{} {}", target.name(), view.place);
                match view.answer {
                    Ok(answer) if answer.is_only(to) => drop(places.insert(place, to.to_string())),
                    Ok(answer) => {
                        let on: Vec<String> = answer.sites_on().map(ToString::to_string).collect();
                        wrong.push(format!("{place} answers {}", on.join(" and ")));
                    }
                    Err(why) => wrong.push(format!("{place}: {why}")),
                }
            }
        }
        if let Some(front) = &self.world.front {
            let within = self.clock.now().until(deadline).min(SHORT_ORDER);
            for (place, entered) in front.enter(to, within).await {
                match entered {
                    Ok(site) if site == *to => drop(places.insert(place, site.to_string())),
                    Ok(site) => wrong.push(format!("{place} leads to {site}")),
                    Err(why) => wrong.push(format!("{place}: {why}")),
                }
            }
        }
        if wrong.is_empty() {
            Ok(Fact::Seen { places })
        } else {
            Err(EffectError::Failed(wrong.join("; ")))
        }
    }
}
