//! Which databases take writes as seen now, what runs at a site without its guard, and where it
//! runs with settings other than its file's. What is seen now outweighs what was reported before
//! (invariants.md I15).

use std::time::Duration;

use super::detector::{State, VoteKind};
use super::document::human;
use super::policy::Policy;
use super::reason::{Code, Reason};
use super::situation::{AgentFacts, LocalDatabase, SiteFacts, Situation};
use super::topology::{Role, TargetKind};
use super::units::{Aged, Shared};

/// The reason to alert an operator: both databases take writes, and the engine must not choose.
///
/// What is seen now outweighs what was reported before: a database that answers as a primary is
/// one, even if its agent reports it fenced or down. Exceptions: a probe that began before the
/// database went down, as far as two ages can be compared; and a probe at the old site from before
/// the last plan ended. The next probe decides.
pub fn two_primaries(situation: &Situation, policy: &Policy) -> Option<Reason> {
    let all = situation.sites.iter();
    let primaries: Vec<String> = all
        .filter(|(_, site)| takes_writes(site, policy))
        .filter(|(name, site)| **name == situation.active || !seen_before_the_end(site, situation))
        .map(|(name, site)| match contradiction(site, policy) {
            Some(said) => format!("`{name}` answers as a primary, although its agent says {said}"),
            None => format!("`{name}` answers as a primary"),
        })
        .collect();
    (primaries.len() > 1).then(|| {
        let reason = Reason::word(Code::TwoPrimaries, "2 primaries", "1 primary");
        reason.because(primaries.join("; "))
    })
}

/// Whether the last probe of a site's database began before the last plan ended.
fn seen_before_the_end(site: &SiteFacts, situation: &Situation) -> bool {
    let ended = situation.automation.last_failover;
    let look = site.database.as_ref().map(|seen| seen.age);
    look.zip(ended).is_some_and(|(look, ended)| look >= ended)
}

/// Whether a fresh probe saw a primary that has not failed since. One that comes back counts as
/// healthy only after a while; whatever takes writes counts at once.
fn takes_writes(site: &SiteFacts, policy: &Policy) -> bool {
    let limit = policy.detect.stale_after;
    let shown = match site.state(TargetKind::Database) {
        State::Healthy | State::Unknown => true,
        State::Suspect | State::Failed => {
            let health = site.health.get(&TargetKind::Database);
            let mut votes = health.into_iter().flat_map(|health| &health.votes);
            votes.any(|vote| vote.kind == VoteKind::For && vote.age <= limit)
        }
    };
    let seen = site.database.as_ref().filter(|seen| seen.age <= limit);
    seen.is_some_and(|seen| {
        let primary = seen.fact.role == Role::Primary;
        primary && shown && !has_ended_since(seen.age, site, policy)
    })
}

/// Whether the agent reports that the database went down after a probe of that age began. The age
/// of a report is at most one probe timeout too large: with a smaller difference, the probe counts
/// as the older one.
fn has_ended_since(look: Duration, site: &SiteFacts, policy: &Policy) -> bool {
    let went_down = agent(site, policy).and_then(|agent| {
        let since = down_for(&agent.fact)?;
        Some(agent.age.saturating_add(since))
    });
    went_down.is_some_and(|ago| look.saturating_add(policy.detect.probe_timeout) >= ago)
}

/// The part of the agent's report that contradicts a primary, for people.
fn contradiction(site: &SiteFacts, policy: &Policy) -> Option<String> {
    let agent = agent(site, policy)?;
    let facts = &agent.fact;
    match (facts.fenced, down_for(facts)) {
        (Some(epoch), Some(since)) => Some(format!(
            "that it was fenced in epoch {epoch} and is down for {}",
            human(since)
        )),
        (None, Some(since)) => Some(format!("that it is down for {}", human(since))),
        (Some(epoch), None) => Some(format!("that it was fenced in epoch {epoch}")),
        (None, None) => None,
    }
}

fn agent<'s>(site: &'s SiteFacts, policy: &Policy) -> Option<&'s Aged<Shared<AgentFacts>>> {
    let limit = policy.detect.stale_after;
    site.agent.as_ref().filter(|agent| agent.age <= limit)
}

fn down_for(facts: &AgentFacts) -> Option<Duration> {
    match &facts.database {
        LocalDatabase::Up => None,
        LocalDatabase::Waiting { since }
        | LocalDatabase::Down { since, .. }
        | LocalDatabase::Recovering { since, .. } => Some(*since),
    }
}

/// A process in the data folder or at the port of a database that is not its guard's and was not
/// ended.
pub fn intruders(situation: &Situation, policy: &Policy) -> Vec<Reason> {
    let all = situation.sites.iter();
    all.filter_map(|(name, site)| {
        let foreign = agent(site, policy)?.fact.foreign.as_ref()?;
        let reason = Reason::word(Code::ForeignDatabase, "not the guard's", "the guard's");
        Some(reason.at(name).because(foreign))
    })
    .collect()
}

/// For each site, the settings that its database does not run with yet.
pub fn settings_pending(situation: &Situation, policy: &Policy) -> Vec<Reason> {
    let all = situation.sites.iter();
    all.filter_map(|(name, site)| {
        let pending = &agent(site, policy)?.fact.pending;
        let keys: Vec<String> = pending.iter().map(|key| format!("`{key}`")).collect();
        let reason = Reason::word(Code::SettingsPending, "changed", "taken over");
        (!keys.is_empty()).then(|| reason.at(name).because(keys.join(", ")))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::super::situation::samples::{aws, gcp, healthy, seconds};
    use super::super::topology::Vantage;
    use super::super::units::Epoch;
    use super::*;

    fn policy() -> Policy {
        Policy::read("fast", include_str!("../../policies/fast.toml")).unwrap()
    }

    /// Both were seen as primaries, the old one by a look of this age.
    fn both(look: Duration) -> Situation {
        healthy()
            .with_database(gcp(), |facts| facts.role = Role::Primary)
            .with_site(aws(), |site| site.database.as_mut().unwrap().age = look)
    }

    /// The old one's agent said so long ago that it is fenced, and down since.
    fn said(situation: Situation, age: Duration, since: Duration) -> Situation {
        situation.with_site(aws(), |site| {
            let agent = site.agent.as_mut().unwrap();
            agent.age = age;
            agent.fact.fenced = Some(Epoch(2));
            agent.fact.database = LocalDatabase::Waiting { since };
        })
    }

    #[test]
    fn a_fresh_look_outweighs_what_an_agent_said_unless_it_began_before() {
        let (policy, ms) = (policy(), Duration::from_millis);
        let (timeout, stale) = (policy.detect.probe_timeout, policy.detect.stale_after);
        #[rustfmt::skip]
        let table = [
            ("nobody says anything else", both(ms(100)), true),
            ("fenced for long, and answers now", said(both(ms(100)), ms(50), seconds(300)), true),
            ("the same by an older report", said(both(ms(100)), ms(900), seconds(300)), true),
            ("it went down after the look began", said(both(ms(900)), ms(50), ms(100)), false),
            ("it went down a little before, as far as ages tell",
                said(both(ms(100)), ms(50), timeout), false),
            ("just longer before than ages can err",
                said(both(ms(100)), ms(50), timeout + ms(51)), true),
            ("the agent is silent by now", said(both(ms(100)), stale + ms(1), ms(0)), true),
            ("the look is old", both(stale + ms(1)), false),
            ("it was seen to fail since",
                both(ms(100)).state(aws(), TargetKind::Database, State::Suspect, seconds(1)), false),
            ("it failed, and answers somebody again",
                both(ms(100)).state(aws(), TargetKind::Database, State::Failed, seconds(9))
                    .vote(Vantage::Controller, VoteKind::For), true),
            ("fenced once, promoted since, and up",
                both(ms(100)).with_site(gcp(), |site| site.agent.as_mut().unwrap().fact.fenced = Some(Epoch(1))), true),
        ];
        for (name, situation, expected) in table {
            let found = two_primaries(&situation, &policy);
            assert_eq!(found.is_some(), expected, "{name}: {found:?}");
        }
    }

    #[test]
    fn a_look_at_the_site_that_was_left_counts_only_from_after_the_plan() {
        let look = Duration::from_millis(600);
        for (ended, told) in [(None, true), (Some(500), false), (Some(700), true)] {
            // The plan led to the site that was the passive one.
            let situation = both(look).change(|all| {
                (all.active, all.passive) = (gcp(), aws());
                all.automation.last_failover = ended.map(Duration::from_millis);
            });
            let found = two_primaries(&situation, &policy());
            assert_eq!(found.is_some(), told, "{ended:?}");
        }
    }

    #[test]
    fn both_are_named_with_what_is_said_of_them() {
        let situation = said(both(seconds(0)), seconds(0), seconds(300));
        let detail = two_primaries(&situation, &policy())
            .unwrap()
            .detail
            .unwrap();
        assert_eq!(
            detail,
            "`aws` answers as a primary, although its agent says that it was fenced in epoch 2 and is \
             down for 5m; `gcp` answers as a primary"
        );
    }
}
