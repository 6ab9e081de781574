//! A plan: a short line of typed steps around one pivot. Each kind of plan has its line in a file
//! below; what becomes of a step that fails follows from where it stands.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::decision::Verdict;
use super::loss::LossEstimate;
use super::situation::Request;
use super::step::{Reversal, Route, Step, Undo};
use super::units::WallTime;

mod failover;

/// Ordered work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// What it is for. The log of an earlier program, which had one kind, does not say so.
    #[serde(default)]
    pub kind: PlanKind,
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

/// What a plan is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlanKind {
    /// The passive site takes over, and what the standby lacks is lost.
    #[default]
    Failover,
}

impl PlanKind {
    /// The step after which there is only forward.
    fn pivot(self) -> Step {
        match self {
            PlanKind::Failover => Step::Promote,
        }
    }

    /// Whether automation is disarmed once such a plan is done (invariants.md I8).
    pub fn disarms(self) -> bool {
        match self {
            PlanKind::Failover => true,
        }
    }
}

impl fmt::Display for PlanKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            PlanKind::Failover => "failover",
        })
    }
}

/// What becomes of a step that fails, by where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Before the pivot: the plan is given up, and this takes the step back, where anything must.
    Before(Option<Undo>),
    /// The plan is given up only if it certainly did not happen. Otherwise a person is needed.
    Pivot,
    /// After the pivot: it is tried again.
    After(Retry),
}

/// How a step after the pivot is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Until it is done, or its time is over and a person is needed.
    UntilDone,
    /// The same, but one that is out of reach lets those of its kind that follow go first: it is
    /// tried again with the look at the result.
    OthersFirst,
}

/// Why a line of steps is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misshapen {
    /// Its pivot is the first step that cannot be taken back.
    #[error("the first step that cannot be taken back is to be {expected}, and not {found}")]
    Pivot {
        /// The pivot of plans of this kind.
        expected: Step,
        /// What stands there.
        found: String,
    },
    /// What a step brought is known by the step.
    #[error("step {0} stands in it twice")]
    Twice(Step),
    /// Nothing is taken back any more.
    #[error("step {0} stands after the pivot, and would have to be taken back")]
    TooLate(Step),
    /// A promotion rests on the proof that the old primary cannot write (invariants.md I2).
    #[error("nothing before the promotion proves that the old primary cannot write")]
    Unfenced,
}

impl Plan {
    /// The verdict that leads to such a plan.
    pub fn verdict(&self) -> Verdict {
        let to = self.route.to.clone();
        match self.kind {
            PlanKind::Failover => Verdict::FailOver { to },
        }
    }

    /// The index of the pivot, the first step that cannot be taken back; the number of steps where
    /// there is none.
    pub fn pivot(&self) -> usize {
        let mut steps = self.steps.iter();
        let found = steps.position(|step| step.reversal() == Reversal::Impossible);
        found.unwrap_or(self.steps.len())
    }

    /// What becomes of a step of it that fails; `None` for a step that it does not have.
    pub fn role(&self, step: &Step) -> Option<Role> {
        let index = self.steps.iter().position(|other| other == step)?;
        Some(match index.cmp(&self.pivot()) {
            Ordering::Less => Role::Before(match step.reversal() {
                Reversal::By(undo) => Some(undo),
                Reversal::Needless | Reversal::Impossible => None,
            }),
            Ordering::Equal => Role::Pivot,
            Ordering::Greater => Role::After(self.retry(index, step)),
        })
    }

    fn retry(&self, index: usize, step: &Step) -> Retry {
        let moves = |step: &Step| matches!(step, Step::MoveTraffic { .. });
        let mut later = self.steps.iter().skip(index.saturating_add(1));
        if moves(step) && later.any(moves) {
            Retry::OthersFirst
        } else {
            Retry::UntilDone
        }
    }

    /// Whether its line is one that can be walked. Nothing else gets into the log, or is read from
    /// it.
    pub fn check(&self) -> Result<(), Misshapen> {
        let (pivot, expected) = (self.pivot(), self.kind.pivot());
        let found = self.steps.get(pivot);
        if found != Some(&expected) {
            let found = found.map_or("nothing".to_owned(), ToString::to_string);
            return Err(Misshapen::Pivot { expected, found });
        }
        let (mut fenced, mut before) = (false, BTreeSet::new());
        for (index, step) in self.steps.iter().enumerate() {
            if !before.insert(step) {
                return Err(Misshapen::Twice(step.clone()));
            }
            if index > pivot && matches!(step.reversal(), Reversal::By(_)) {
                return Err(Misshapen::TooLate(step.clone()));
            }
            if *step == Step::Promote && !fenced {
                return Err(Misshapen::Unfenced);
            }
            fenced |= step.proves_fence();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::lease::LastRight;
    use super::super::situation::samples::{aws, gcp, healthy};
    use super::super::topology::Topology;
    use super::super::units::{Epoch, MonoTime};
    use super::*;

    /// The plan that follows from the loss of the active site.
    pub(super) fn failover() -> Plan {
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
            machine: None,
        };
        Plan::failover(&healthy().active_lost(), &topology, &last, WallTime(0))
    }

    fn moves(target: &str) -> Step {
        let target = target.parse().unwrap();
        Step::MoveTraffic { target }
    }

    #[test]
    fn what_becomes_of_a_step_follows_from_where_it_stands() {
        let plan = failover();
        let told = |step: &Step| match plan.role(step).unwrap() {
            Role::Before(None) => "nothing".to_owned(),
            Role::Before(Some(undo)) => format!("{undo:?}"),
            Role::Pivot => "PIVOT".to_owned(),
            Role::After(retry) => format!("{retry:?}"),
        };
        let table: Vec<String> = plan
            .steps
            .iter()
            .map(|step| format!("{step}: {}", told(step)))
            .collect();
        assert_eq!(
            table,
            [
                "recheck: nothing",
                "raise-epoch: nothing",
                "start-workloads: StopWorkloads",
                "sever: Reconnect",
                "fence: Unfence",
                "freeze: nothing",
                "promote: PIVOT",
                "verify-writable: UntilDone",
                "await-workloads: UntilDone",
                "move-traffic dns: OthersFirst",
                "move-traffic lb: UntilDone",
                "verify-outside: UntilDone",
                "settle: UntilDone",
            ]
        );
        assert_eq!(plan.role(&moves("cdn")), None);
        // A look that waits changes nothing: before the pivot it needs no undo.
        let mut planned = plan.clone();
        planned.steps.swap(3, 8);
        let role = planned.role(&Step::AwaitWorkloads);
        assert_eq!(role, Some(Role::Before(None)));
    }

    #[test]
    fn a_line_is_only_a_plan_around_the_pivot_of_its_kind() {
        type Bend = fn(&mut Vec<Step>);
        let crooked = |with: Bend| {
            let mut plan = failover();
            with(&mut plan.steps);
            plan.check().map_err(|error| error.to_string())
        };
        assert_eq!(crooked(|_| ()), Ok(()));
        #[rustfmt::skip]
        let table: [(Bend, &str); 6] = [
            (|steps| steps.truncate(6), "is to be promote, and not nothing"),
            (|steps| steps.insert(0, moves("cdn")), "is to be promote, and not move-traffic cdn"),
            (|steps| steps.insert(8, Step::Promote), "promote stands in it twice"),
            (|steps| steps.insert(1, Step::Recheck), "recheck stands in it twice"),
            (|steps| steps.swap(3, 8), "sever stands after the pivot"),
            (|steps| drop(steps.remove(4)), "nothing before the promotion proves"),
        ];
        for (with, why) in table {
            let error = crooked(with).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_plan_of_an_earlier_program_is_a_failover() {
        let plan = failover();
        assert_eq!(
            (plan.kind, plan.route.epoch),
            (PlanKind::Failover, Epoch(2))
        );
        let mut recorded = serde_json::to_value(&plan).unwrap();
        let kind = recorded.as_object_mut().unwrap().remove("kind");
        assert_eq!(kind, Some("failover".into()));
        let read: Plan = serde_json::from_value(recorded).unwrap();
        assert_eq!(read, plan);
    }
}
