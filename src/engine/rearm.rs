//! When automation re-arms itself after a failover.

use super::observation::ReceiverFacts;
use super::policy::Policy;
use super::situation::{SiteFacts, Situation};
use super::topology::Role;

/// Whether to re-arm automation (invariants.md I8): it is disarmed but not held, no plan is open,
/// the log is known to be current, and reverse replication streams. A hold stays.
pub fn rearms(situation: &Situation, policy: &Policy) -> bool {
    let automation = &situation.automation;
    let quiet = situation.plan.is_none() && automation.hold.is_none();
    automation.disarmed && quiet && situation.log.is_sound() && follows(situation, policy)
}

/// Whether the passive site's database, freshly probed, streams from the active one.
fn follows(situation: &Situation, policy: &Policy) -> bool {
    let fresh = |site: &SiteFacts| {
        let seen = site.database.as_ref()?;
        seen.within(policy.detect.stale_after).cloned()
    };
    let active = situation.active_site().and_then(fresh);
    let passive = situation.passive_site().and_then(fresh);
    let Some((active, passive)) = active.zip(passive) else {
        return false;
    };
    let streams = passive
        .receiver
        .as_ref()
        .is_some_and(ReceiverFacts::is_streaming);
    passive.role == Role::Standby && passive.system_id == active.system_id && streams
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::situation::LogStopped;
    use super::super::situation::samples::{gcp, healthy};
    use super::super::units::SystemId;
    use super::*;

    fn policy() -> Policy {
        Policy::read("fast", include_str!("../../policies/fast.toml")).unwrap()
    }

    fn after_a_failover() -> Situation {
        healthy().change(|all| all.automation.disarmed = true)
    }

    #[test]
    fn automation_is_armed_again_once_reverse_replication_streams() {
        assert!(rearms(&after_a_failover(), &policy()));
        assert!(!rearms(&healthy(), &policy()), "it is armed");
    }

    #[test]
    fn it_stays_disarmed_by_anything_less() {
        let old = Duration::from_secs(3600);
        for (what, situation) in [
            (
                "no receiver",
                after_a_failover().with_database(gcp(), |facts| facts.receiver = None),
            ),
            (
                "another pair",
                after_a_failover().with_database(gcp(), |facts| facts.system_id = SystemId(8)),
            ),
            (
                "a primary",
                after_a_failover().with_database(gcp(), |facts| facts.role = Role::Primary),
            ),
            (
                "an old look",
                after_a_failover()
                    .with_site(gcp(), |site| site.database.as_mut().unwrap().age = old),
            ),
            (
                "a log that may be an old one",
                after_a_failover().change(|all| all.log.unwitnessed = true),
            ),
        ] {
            assert!(!rearms(&situation, &policy()), "{what}");
        }
    }

    #[test]
    fn a_log_that_takes_no_entry_is_none_that_may_not_be_gone_by() {
        let stopped = Some(LogStopped {
            lasting: Duration::from_secs(2),
            cause: None,
        });
        let situation = after_a_failover().change(|all| all.log.stopped = stopped);
        assert!(rearms(&situation, &policy()));
    }
}
