//! The unplanned failover: the old primary is fenced, what may be lost is declared, and only then
//! the standby is promoted.

use super::super::lease::LastRight;
use super::super::situation::Situation;
use super::super::step::{Route, Step};
use super::super::topology::Topology;
use super::super::units::WallTime;
use super::{Plan, PlanKind};

impl Plan {
    /// The plan of an unplanned failover to the passive site.
    pub fn failover(
        situation: &Situation,
        topology: &Topology,
        last: &LastRight,
        known_at: WallTime,
    ) -> Plan {
        let mut steps = vec![
            Step::Recheck,
            Step::RaiseEpoch,
            // Beside the rest, so that they need not be waited for afterwards.
            Step::StartWorkloads,
            // Before the fence: waiting out a right begins with the last time it was let stand.
            Step::Sever,
            Step::Fence,
            // What may be lost is known once nothing can be added to it.
            Step::Freeze,
            Step::Promote,
            Step::VerifyWritable,
            Step::AwaitWorkloads,
        ];
        let traffic = topology.traffic.iter().cloned();
        steps.extend(traffic.map(|target| Step::MoveTraffic { target }));
        steps.extend([Step::VerifyOutside, Step::Settle]);
        Plan {
            kind: PlanKind::Failover,
            route: Route {
                from: situation.active.clone(),
                to: situation.passive.clone(),
                epoch: situation.epoch.next(),
            },
            steps,
            loss: situation.loss(),
            known_at,
            can_wait_out: situation.can_wait_out
                && last.alive == Some(true)
                && last.site == situation.active,
            request: situation.request.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::failover;

    #[test]
    fn it_fences_and_declares_before_it_promotes() {
        let plan = failover();
        let names: Vec<String> = plan.steps.iter().map(ToString::to_string).collect();
        assert_eq!(
            names.join(" > "),
            "recheck > raise-epoch > start-workloads > sever > fence > freeze > promote > \
             verify-writable > await-workloads > move-traffic dns > move-traffic lb > \
             verify-outside > settle"
        );
        assert_eq!(plan.check(), Ok(()));
        assert_eq!(plan.pivot(), 6);
        assert!(plan.can_wait_out);
    }
}
