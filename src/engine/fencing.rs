//! By which proofs an open plan may count the old primary as fenced where its own agent does not
//! say so: a right that was waited out (invariants.md F3), and a person's word (F4).

use std::time::Duration;

use super::lease::{self, FenceProof, LastRight};
use super::policy::LeaseTimers;
use super::saga::OpenSaga;
use super::units::MonoTime;

/// From when the old primary's right is certainly over and its guard has done its work. `vouched`:
/// when the severed site last let that right stand. `None` where waiting proves nothing: the plan
/// found that when it was made, or it has changed until the epoch was raised.
pub fn waited_out_at(
    saga: &OpenSaga,
    timers: &LeaseTimers,
    vouched: MonoTime,
    last: &LastRight,
) -> Option<MonoTime> {
    let proves = saga.plan.can_wait_out && last.alive != Some(false);
    proves.then(|| lease::waited_out_at(timers, vouched, last.granted))
}

/// Which machine must be seen to have ended where the old site's infrastructure is to prove the fence
/// (invariants.md F2), as the infrastructure calls it. `None` where the infrastructure proves nothing: the
/// holder of the right runs outside of it, or this process has not heard from it.
pub fn machine_to_end<'s>(saga: &'s OpenSaga, last: &'s LastRight) -> Option<&'s str> {
    let found = saga.found.as_ref().map(|found| found.machine.as_str());
    let heard = (last.site == saga.plan.route.from).then_some(last.machine.as_deref());
    found.or(heard.flatten())
}

/// What a named person vouches for, and how long the agent has its chance to confirm before that
/// counts.
pub fn vouched_for(saga: &OpenSaga, timers: &LeaseTimers) -> Option<(Duration, FenceProof)> {
    let request = saga.plan.request.as_ref();
    let request = request.filter(|request| request.override_fence)?;
    let proof = FenceProof::Override {
        operator: request.operator.clone(),
        reason: request.reason.clone(),
    };
    Some((timers.fence_and_margin(), proof))
}

#[cfg(test)]
mod tests {
    use super::super::plan::Plan;
    use super::super::policy::Policy;
    use super::super::saga::{GroupState, Happening, Moment};
    use super::super::situation::Situation;
    use super::super::situation::samples::{aws, gcp, healthy};
    use super::super::topology::Topology;
    use super::super::units::WallTime;
    use super::*;

    fn timers() -> LeaseTimers {
        let text = include_str!("../../policies/fast.toml");
        Policy::read("fast", text).unwrap().lease
    }

    fn at(seconds: u64) -> MonoTime {
        MonoTime(Duration::from_secs(seconds))
    }

    fn right(alive: Option<bool>) -> LastRight {
        LastRight {
            site: aws(),
            granted: at(20),
            alive,
            machine: None,
        }
    }

    fn open(situation: &Situation, planned: Option<bool>) -> OpenSaga {
        let topology = Topology {
            group: "shop".parse().unwrap(),
            first: aws(),
            second: gcp(),
            traffic: Vec::new(),
        };
        let mut group = GroupState::new(&topology);
        let plan = Plan::failover(situation, &topology, &right(planned), WallTime(0));
        let opened = Moment {
            wall: WallTime(0),
            mono: Duration::ZERO,
            boot: "b".into(),
        };
        group.apply(7, &opened, &Happening::Planned(&plan)).unwrap();
        group.open.unwrap()
    }

    #[test]
    fn a_right_is_waited_out_only_where_its_holder_was_seen_alive_and_not_the_opposite_since() {
        #[rustfmt::skip]
        let table = [
            ("alive then, and now", Some(true), Some(true), true),
            ("alive then; this process began since", Some(true), None, true),
            ("alive then; it deals with another instance since", Some(true), Some(false), false),
            ("nobody knew when the plan was made", None, Some(true), false),
        ];
        for (name, planned, now, proves) in table {
            let saga = open(&healthy().active_lost(), planned);
            let until = waited_out_at(&saga, &timers(), at(22), &right(now));
            let expected = lease::waited_out_at(&timers(), at(22), at(20));
            assert_eq!(until, proves.then_some(expected), "{name}");
        }
    }

    #[test]
    fn a_person_vouches_by_name_and_only_where_they_said_so() {
        let vouches = |override_fence| {
            let asked = healthy().active_lost().asked(gcp());
            let asked = asked.change(|all| {
                all.request.as_mut().unwrap().override_fence = override_fence;
            });
            vouched_for(&open(&asked, None), &timers())
        };
        assert_eq!(vouches(false), None);
        assert_eq!(vouched_for(&open(&healthy(), None), &timers()), None);
        let proof = FenceProof::Override {
            operator: "alice".into(),
            reason: "drill".into(),
        };
        let wait = timers().fence_and_margin();
        assert_eq!(vouches(true), Some((wait, proof)));
    }
}
