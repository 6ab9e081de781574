//! The agents' marks, by which orders to them expire: each on the agent's own clock, so that no two
//! wall clocks need to agree.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Brain;
use crate::engine::topology::SiteName;
use crate::engine::units::MonoTime;
use crate::wire::{Heard, Postmark};

/// The newest mark of each agent.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// From the agent itself, and when it arrived here.
    own: BTreeMap<SiteName, (Postmark, MonoTime)>,
    /// From its peer, which it asks.
    passed_on: BTreeMap<SiteName, (Postmark, MonoTime)>,
}

impl Brain {
    /// Receives the marks in a report that arrives at `now`.
    pub(super) fn marked(
        &mut self,
        site: &SiteName,
        own: Postmark,
        peer: Option<Heard>,
        now: MonoTime,
    ) {
        self.marks.own.insert(site.clone(), (own, now));
        // The peer could use this to prolong an order, so it must not make a mark older than
        // evidence may be.
        let peer = peer.filter(|heard| heard.ago <= self.policy.detect.stale_after);
        if let Some(heard) = peer {
            let other = self.topology.peer(site).clone();
            let came = now.minus(heard.ago);
            self.marks.passed_on.insert(other, (heard.postmark, came));
        }
    }

    /// The basis of an order to an agent that must expire `within` from now: the agent's mark, and
    /// how long after it the order is valid on the agent's own clock. `None`: no mark is known, and
    /// no order can be given.
    ///
    /// The mark was made before it arrived here, and the agent's clock may be as slow as the policy
    /// allows: on true time the order expires no later than stated, so it does not outlive its
    /// controller's lead.
    pub fn order_until(
        &self,
        site: &SiteName,
        within: Duration,
        now: MonoTime,
    ) -> Option<(Postmark, Duration)> {
        let own = self.marks.own.get(site);
        let passed_on = self.marks.passed_on.get(site);
        let limit = self.policy.detect.stale_after;
        // The agent's own mark first: its peer's may be wrong.
        let fresh = |mark: &&(Postmark, MonoTime)| now.since(mark.1) <= limit;
        let (mark, came) = own.filter(fresh).or(passed_on.filter(fresh)).or(own)?;
        let whole = now.since(*came).saturating_add(within);
        let drift = self.policy.lease.with_drift(whole).saturating_sub(whole);
        Some((*mark, whole.saturating_sub(drift)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::policy::Policy;
    use crate::engine::saga::GroupState;
    use crate::engine::topology::Topology;

    fn brain() -> Brain {
        let topology = Topology {
            group: "shop".parse().unwrap(),
            first: "aws".parse().unwrap(),
            second: "gcp".parse().unwrap(),
            traffic: Vec::new(),
        };
        let text = include_str!("../../../policies/fast.toml");
        let policy = Policy::read("fast", text).unwrap();
        let group = GroupState::new(&topology);
        Brain::new(topology, policy, &group, at(10_000), 7)
    }

    fn at(millis: u64) -> MonoTime {
        MonoTime(Duration::from_millis(millis))
    }

    fn mark(life: u64) -> Postmark {
        let at = Duration::from_secs(500);
        Postmark { life, at }
    }

    fn heard(life: u64, ago: u64) -> Heard {
        Heard {
            postmark: mark(life),
            ago: Duration::from_secs(ago),
        }
    }

    #[test]
    fn an_order_rests_on_the_agents_own_mark_or_on_the_one_that_the_other_has() {
        let (aws, gcp) = ("aws".parse().unwrap(), "gcp".parse().unwrap());
        let mut brain = brain();
        let within = Duration::from_secs(2);
        assert_eq!(brain.order_until(&aws, within, at(10_000)), None);
        brain.marked(&gcp, mark(2), Some(heard(1, 1)), at(20_000));
        // fast.toml: clock_drift_ppm 500, so that 3 s are 1.5 ms less.
        let passed_on = brain.order_until(&aws, within, at(20_000));
        assert_eq!(passed_on, Some((mark(1), Duration::from_micros(2_998_500))));
        // What the agent itself said lately counts first.
        brain.marked(&aws, mark(11), None, at(20_000));
        let own = brain.order_until(&aws, within, at(22_000)).unwrap();
        assert_eq!(own, (mark(11), Duration::from_micros(3_998_000)));
        brain.marked(&gcp, mark(2), Some(heard(1, 0)), at(24_000));
        assert_eq!(
            brain.order_until(&aws, within, at(24_000)).unwrap().0,
            mark(1)
        );
        // One that would make an order last for long is left out.
        brain.marked(&gcp, mark(2), Some(heard(3, 3600)), at(30_000));
        assert_eq!(
            brain.order_until(&aws, within, at(30_000)).unwrap().0,
            mark(11)
        );
    }
}
