//! Which vantage points probe, which of them can judge, and what prevents the others.

use std::collections::BTreeSet;

use super::detector::{Vote, VoteKind};
use super::document::human;
use super::policy::Policy;
use super::situation::{SiteFacts, Situation};
use super::topology::{SiteName, TargetKind, Vantage};

/// The recent votes on a site's database.
fn fresh<'s>(facts: Option<&'s SiteFacts>, policy: &Policy) -> Vec<&'s Vote> {
    let health = facts.and_then(|facts| facts.health.get(&TargetKind::Database));
    let votes = health.into_iter().flat_map(|health| &health.votes);
    votes
        .filter(|vote| vote.age <= policy.detect.stale_after)
        .collect()
}

/// How many vantage points count against the active site, or could. Its own agent could not,
/// because it is lost with the site; it only counts while it does report a failure there.
pub fn reporting(situation: &Situation, policy: &Policy) -> usize {
    let own = Vantage::Agent(situation.active.clone());
    let health = situation
        .active_site()
        .into_iter()
        .flat_map(|site| site.health.values());
    let fresh = health
        .flat_map(|health| &health.votes)
        .filter(|vote| vote.age <= policy.detect.stale_after)
        .filter(|vote| vote.vantage != own || vote.kind == VoteKind::Against);
    let from: BTreeSet<&Vantage> = fresh.map(|vote| &vote.vantage).collect();
    from.len()
}

/// How many of them can judge the active database now: they see it healthy or see it fail. One that
/// is not authorised, or does not understand the answer, could not tell whether it works.
pub fn judging(situation: &Situation, policy: &Policy) -> usize {
    let own = Vantage::Agent(situation.active.clone());
    let able = fresh(situation.active_site(), policy)
        .into_iter()
        .filter(|vote| vote.kind != VoteKind::Mute)
        .filter(|vote| vote.vantage != own || vote.kind == VoteKind::Against);
    let from: BTreeSet<&Vantage> = able.map(|vote| &vote.vantage).collect();
    from.len()
}

/// Which vantage points cannot judge a site's database, and why, for people.
pub fn mute(situation: &Situation, site: &SiteName, policy: &Policy) -> Option<String> {
    named(situation, site, policy, |vote| {
        (vote.kind == VoteKind::Mute).then_some(&*vote.says)
    })
}

/// Which vantage points are kept from our own rows in a site's database, and by what, for people.
pub fn blocked(situation: &Situation, site: &SiteName, policy: &Policy) -> Option<String> {
    named(situation, site, policy, |vote| vote.blocked.as_deref())
}

fn named(
    situation: &Situation,
    site: &SiteName,
    policy: &Policy,
    says: impl Fn(&Vote) -> Option<&str>,
) -> Option<String> {
    let votes = fresh(situation.sites.get(site), policy);
    let named: Vec<String> = votes
        .into_iter()
        .filter_map(|vote| {
            let says = says(vote)?;
            Some(format!(
                "`{}` for {}: {says}",
                vote.vantage,
                human(vote.since)
            ))
        })
        .collect();
    (!named.is_empty()).then(|| named.join("; "))
}

/// Whether a site's database is probed, but no vantage point can judge it.
pub fn all_mute(situation: &Situation, site: &SiteName, policy: &Policy) -> bool {
    let votes = fresh(situation.sites.get(site), policy);
    !votes.is_empty() && votes.iter().all(|vote| vote.kind == VoteKind::Mute)
}

/// The observers without a fresh report, for people.
pub fn silent_observers(situation: &Situation, policy: &Policy) -> Option<String> {
    let limit = policy.detect.stale_after;
    let silent = situation
        .observers
        .iter()
        .filter(|(_, facts)| facts.is_silent(limit));
    let named: Vec<String> = silent
        .map(|(name, facts)| match facts.age {
            Some(age) => format!("`{name}` silent for {}", human(age)),
            None => format!("`{name}` never reported"),
        })
        .collect();
    (!named.is_empty()).then(|| named.join(", "))
}
