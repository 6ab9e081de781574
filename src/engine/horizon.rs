//! When a decision can next change although nothing new is learned: a window ends, evidence goes
//! stale, a wait is over. Until then nobody needs to decide again.
//!
//! Everything in a [`Situation`] that changes by itself is an age, or the time left until a moment.
//! An age matters only when it passes a limit that the engine compares it with. So the horizon is
//! the first moment at which any of the ages passes any of the limits. That names some moments at
//! which nothing changes, and misses none; which limit belongs to which age need not be known here.

use std::time::Duration;

use super::credential::{URGENT, WARNED};
use super::policy::Policy;
use super::provenance::SECOND_SHOWN;
use super::rehearsal::Subject;
use super::rehearsed::PATIENCE;
use super::situation::{AgentFacts, LocalDatabase, SiteFacts, Situation};
use super::standby::REHEARSED_WITHIN;
use super::units::{Aged, as_millis};

/// Ages are whole milliseconds, so this is the least by which one can exceed its limit.
const LEAST: Duration = Duration::from_millis(1);

/// How long the decision on this situation stays the same if nothing new is learned, and with it the
/// health of each target and whether automation re-arms itself. `None`: until something is learned.
///
/// Ages are rounded down to whole milliseconds, so it may change up to one millisecond earlier.
pub fn horizon(situation: &Situation, policy: &Policy) -> Option<Duration> {
    let aging = earliest(&ages(situation), &limits(policy));
    aging.into_iter().chain(ends(situation, policy)).min()
}

/// How long until an age has reached a limit, and, if it has just done so, until it exceeds it.
/// `None`: it is above.
pub fn passes(age: Duration, limit: Duration) -> Option<Duration> {
    let whole = as_millis(limit);
    let reached = Duration::from_millis(whole);
    let reached = if reached < limit {
        reached.saturating_add(LEAST)
    } else {
        reached
    };
    if age < reached {
        Some(reached.saturating_sub(age))
    } else {
        (age == limit).then_some(LEAST)
    }
}

/// How long until the first of these ages passes one of these limits.
pub fn earliest(ages: &[Duration], limits: &[Duration]) -> Option<Duration> {
    let each = ages.iter();
    let each = each.flat_map(|age| limits.iter().filter_map(|limit| passes(*age, *limit)));
    each.min()
}

/// Every limit that the engine compares an age with. A grace of zero is over before it begins.
pub fn limits(policy: &Policy) -> Vec<Duration> {
    let (detect, automation) = (&policy.detect, &policy.automation);
    let grace = automation.local_restart_grace;
    let grace = (!grace.is_zero()).then_some(grace);
    let limits = [
        detect.stale_after,
        detect.fail_after,
        detect.recover_after,
        automation.startup_grace,
        automation.cooldown,
        policy.data.max_loss_window,
        PATIENCE,
        SECOND_SHOWN,
        REHEARSED_WITHIN,
    ];
    limits.into_iter().chain(grace).collect()
}

/// Every age that the engine compares with a limit.
pub fn ages(situation: &Situation) -> Vec<Duration> {
    let mut ages = vec![situation.controller.in_charge];
    ages.extend(situation.automation.last_failover);
    ages.extend(situation.loss().window);
    ages.extend(situation.observers.values().filter_map(|facts| facts.age));
    let troubles = situation.rehearsals.iter();
    let troubles = troubles.filter_map(|look| look.trouble.as_ref());
    ages.extend(troubles.map(|trouble| trouble.since));
    let fences = situation.rehearsals.iter();
    let fences = fences.filter(|look| look.subject == Subject::Infrastructure);
    ages.extend(fences.map(|look| look.age));
    for site in situation.sites.values() {
        ages.extend(ages_at(site));
    }
    ages
}

fn ages_at(site: &SiteFacts) -> Vec<Duration> {
    let votes = site.health.values().flat_map(|health| &health.votes);
    let mut ages: Vec<Duration> = votes.flat_map(|vote| [vote.since, vote.age]).collect();
    ages.extend(site.database.as_ref().map(|seen| seen.age));
    ages.extend(site.second.as_ref().map(|second| second.age));
    if let Some(Aged { age, fact }) = &site.agent {
        ages.push(*age);
        let reported = reported(fact).into_iter();
        ages.extend(reported.map(|reported| reported.saturating_add(*age)));
    }
    ages
}

/// What an agent reports as ages, which go on growing after its report.
fn reported(facts: &AgentFacts) -> Vec<Duration> {
    let mut ages: Vec<Duration> = facts.peer.into_iter().collect();
    ages.extend(facts.rehearsal.as_ref().map(|rehearsal| rehearsal.ago));
    match &facts.database {
        LocalDatabase::Up => {}
        LocalDatabase::Recovering { since, still } => ages.extend([*since, *still]),
        LocalDatabase::Waiting { since } | LocalDatabase::Down { since, .. } => ages.push(*since),
    }
    ages
}

/// How long until the moments that are not an age and its limit: a hold ends, the nearest
/// certificate is due, and the estimated loss, which grows with the age of what is known, exceeds
/// its limit.
pub fn ends(situation: &Situation, policy: &Policy) -> Vec<Duration> {
    let hold = situation.automation.hold.as_ref();
    let hold = hold.map(|hold| hold.left.max(LEAST));
    let nearest = situation.certificates.first();
    let due = nearest.into_iter().flat_map(|end| {
        let until = |limit| end.left.checked_sub(limit).filter(|left| !left.is_zero());
        [until(WARNED), until(URGENT)]
    });
    let request = situation.request.as_ref();
    let accepted = request.and_then(|request| request.accept_data_loss);
    let limit = accepted.unwrap_or(policy.data.max_loss);
    let loss = situation.replication.exceeds_in(limit);
    hold.into_iter().chain(due.flatten()).chain(loss).collect()
}

#[cfg(test)]
mod tests {
    use super::super::credential::CertificateFacts;
    use super::super::situation::HoldFacts;
    use super::super::situation::samples::{aws, gcp, healthy, seconds};
    use super::super::topology::TargetKind;
    use super::super::units::{Bytes, Lsn, WallTime};
    use super::*;

    const fn millis(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    fn policy() -> Policy {
        Policy::read("standard", include_str!("../../policies/standard.toml")).unwrap()
    }

    #[test]
    fn a_limit_is_reached_first_and_exceeded_a_millisecond_later() {
        let fine = Duration::from_micros(1500);
        for (age, limit, passed) in [
            (seconds(0), seconds(0), Some(millis(1))),
            (seconds(3), seconds(10), Some(seconds(7))),
            (seconds(10), seconds(10), Some(millis(1))),
            (millis(10_001), seconds(10), None),
            (millis(0), fine, Some(millis(2))),
            (millis(1), fine, Some(millis(1))),
            (millis(2), fine, None),
        ] {
            assert_eq!(passes(age, limit), passed, "{age:?} of {limit:?}");
        }
    }

    const LONG_AGO: Duration = seconds(864_000);

    /// A healthy pair that was seen just now, and has long been so.
    fn calm() -> Situation {
        healthy().change(|all| {
            all.controller.in_charge = LONG_AGO;
            all.replication.covered = Some(seconds(0));
            for site in all.sites.values_mut() {
                let agent = site.agent.as_mut().unwrap();
                if let Some(rehearsal) = &mut agent.fact.rehearsal {
                    rehearsal.ago = seconds(0);
                }
                let votes = site.health.values_mut().flat_map(|it| &mut it.votes);
                votes.for_each(|vote| vote.since = LONG_AGO);
            }
        })
    }

    #[test]
    fn a_healthy_pair_changes_when_the_first_evidence_goes_stale() {
        let stale_after = policy().detect.stale_after;
        assert_eq!(limits(&policy()).into_iter().min(), Some(stale_after));
        assert_eq!(horizon(&calm(), &policy()), Some(stale_after));
        let seen_a_while_ago = calm().with_site(gcp(), |site| {
            site.database.as_mut().unwrap().age = millis(700);
        });
        let left = stale_after.saturating_sub(millis(700));
        assert_eq!(horizon(&seen_a_while_ago, &policy()), Some(left));
    }

    #[test]
    fn a_grace_of_zero_wakes_nobody() {
        let fast = Policy::read("fast", include_str!("../../policies/fast.toml")).unwrap();
        assert_eq!(fast.automation.local_restart_grace, seconds(0));
        assert!(horizon(&calm(), &fast) > Some(seconds(1)));
    }

    #[test]
    fn what_is_long_over_changes_only_with_something_new() {
        let mut all = calm();
        all.replication.rate = Bytes(0);
        all.replication.covered = Some(LONG_AGO);
        for site in all.sites.values_mut() {
            site.database.as_mut().unwrap().age = LONG_AGO;
            site.agent.as_mut().unwrap().age = LONG_AGO;
            for vote in site.health.values_mut().flat_map(|it| &mut it.votes) {
                (vote.since, vote.age) = (LONG_AGO, LONG_AGO);
            }
        }
        assert_eq!(horizon(&all, &policy()), None);
    }

    #[test]
    fn a_hold_a_certificate_and_a_growing_loss_have_their_moments() {
        let held = calm().change(|all| {
            all.automation.hold = Some(HoldFacts {
                operator: "alice".into(),
                reason: "maintenance".into(),
                until: WallTime(0),
                left: millis(250),
            });
        });
        assert_eq!(horizon(&held, &policy()), Some(millis(250)));
        let due = |left| {
            calm().change(|all| {
                all.certificates = vec![CertificateFacts {
                    owner: "aws.agent.shop".into(),
                    until: WallTime(0),
                    left,
                }];
            })
        };
        for limit in [WARNED, URGENT] {
            let near = due(limit + millis(40));
            assert_eq!(horizon(&near, &policy()), Some(millis(40)));
            assert!(horizon(&due(limit), &policy()) > Some(seconds(1)));
        }
        // 15 of 16 MiB lack, and 1 MiB is written each second.
        let growing = calm().change(|all| {
            all.replication.primary.as_mut().unwrap().fact = Lsn(1000 + (15 << 20));
            all.replication.primary.as_mut().unwrap().age = seconds(0);
            all.replication.rate = Bytes::mib(1);
        });
        let limited = Policy {
            data: super::super::policy::Data {
                max_loss: Bytes::mib(16),
                ..policy().data
            },
            ..policy()
        };
        assert_eq!(horizon(&growing, &limited), Some(millis(1001)));
    }

    #[test]
    fn a_vote_of_any_target_counts() {
        let since = policy().detect.fail_after.saturating_sub(millis(30));
        let failing = calm().with_site(aws(), |site| {
            let health = site.health.get_mut(&TargetKind::Api).unwrap();
            health.votes[0].since = since;
        });
        assert_eq!(horizon(&failing, &policy()), Some(millis(30)));
    }
}
