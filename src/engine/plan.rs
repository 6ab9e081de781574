//! A plan: a short sequence of typed steps with exactly one pivot. It can only be built here.

use serde::{Deserialize, Serialize};

use super::gate::LossEstimate;
use super::lease::LastRight;
use super::situation::{Request, Situation};
use super::step::{Kind, Route, Step};
use super::topology::Topology;
use super::units::WallTime;

/// The ordered steps of a failover.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// From where to where, in which epoch.
    pub route: Route,
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// What would be lost, as known when the plan was made.
    pub loss: LossEstimate,
    /// When that was known, by the controller's wall clock: not later than the evidence.
    pub known_at: WallTime,
    /// Whether the old primary's agent was alive at its last grant: otherwise waiting out its lease
    /// proves nothing, not even after a restart of the controller.
    pub can_wait_out: bool,
    /// The operator's request, if one asked for it.
    pub request: Option<Request>,
}

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
            Step::StartWorkloads,
            Step::Sever,
            Step::Fence,
            Step::Freeze,
            Step::Promote,
            Step::VerifyWritable,
            Step::AwaitWorkloads,
        ];
        let traffic = topology.traffic.iter().cloned();
        steps.extend(traffic.map(|target| Step::MoveTraffic { target }));
        steps.extend([Step::VerifyOutside, Step::Settle]);
        Plan {
            route: Route {
                from: situation.active.clone(),
                to: situation.passive.clone(),
                epoch: situation.epoch.next(),
            },
            steps,
            loss: LossEstimate::of(situation),
            known_at,
            can_wait_out: situation.can_wait_out
                && last.alive == Some(true)
                && last.site == situation.active,
            request: situation.request.clone(),
        }
    }

    /// The index of the pivot.
    pub fn pivot(&self) -> usize {
        let found = self
            .steps
            .iter()
            .position(|step| step.kind() == Kind::Pivot);
        found.unwrap_or(self.steps.len())
    }
}

#[cfg(test)]
mod tests {
    use super::super::situation::samples::{aws, gcp, healthy};
    use super::super::units::{Epoch, MonoTime};
    use super::*;

    #[test]
    fn a_plan_fences_before_it_promotes_and_has_exactly_one_pivot() {
        let traffic = vec!["dns".parse().unwrap(), "lb".parse().unwrap()];
        let topology = Topology {
            group: "shop".parse().unwrap(),
            first: aws(),
            second: gcp(),
            traffic,
        };
        let last = LastRight {
            site: aws(),
            granted: MonoTime::default(),
            alive: Some(true),
        };
        let plan = Plan::failover(&healthy().active_lost(), &topology, &last, WallTime(0));
        let names: Vec<String> = plan.steps.iter().map(ToString::to_string).collect();
        assert_eq!(
            names.join(" > "),
            "recheck > raise-epoch > start-workloads > sever > fence > freeze > promote > \
             verify-writable > await-workloads > move-traffic dns > move-traffic lb > \
             verify-outside > settle"
        );
        assert_eq!(
            plan.steps
                .iter()
                .filter(|step| step.kind() == Kind::Pivot)
                .count(),
            1
        );
        assert_eq!(plan.route.epoch, Epoch(2));
        assert!(plan.can_wait_out);
        for (index, step) in plan.steps.iter().enumerate() {
            assert_eq!(step.kind() == Kind::Forward, index > plan.pivot(), "{step}");
        }
    }
}
