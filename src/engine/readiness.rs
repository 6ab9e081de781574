//! What would block a failover if the active site died now: one list, used by `failover check`,
//! `/readyz` and the metrics. It has no conditions of its own: it contains every gate, and every
//! reason of the current decision.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::decision::{Decision, Verdict, decide};
use super::policy::Policy;
use super::reason::{Code, Reason};
use super::situation::Situation;

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// The result.
    pub state: CheckState,
    /// The page about it.
    pub page: String,
    /// The measured value and its limit.
    #[serde(flatten)]
    pub reason: Reason,
}

/// The result of a check, from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckState {
    /// Good.
    Ok,
    /// Not good, but a failover would succeed.
    Warns,
    /// The controller would not fail over, or not as the policy promises.
    Blocks,
}

impl fmt::Display for CheckState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            CheckState::Ok => "ok",
            CheckState::Warns => "warns",
            CheckState::Blocks => "blocks",
        })
    }
}

impl Check {
    fn new(state: CheckState, reason: Reason) -> Self {
        Self {
            state,
            page: format!("runbooks/{}.md", reason.code),
            reason,
        }
    }
}

/// Every check before a failover by the controller itself.
pub fn readiness(situation: &Situation, policy: &Policy) -> Vec<Check> {
    let at_rest = Situation {
        request: None,
        ..situation.clone()
    };
    checks(&decide(&at_rest, policy))
}

/// The same for an unrequested decision: its gates in order, then its other reasons.
pub fn checks(decision: &Decision) -> Vec<Check> {
    let gates = decision.gates.iter().filter_map(|gate| {
        // That the active database still writes is no obstacle: it would have stopped.
        let beside_the_point = gate.reason.code == Code::ReplicationAdvancing;
        let state = if gate.open {
            CheckState::Ok
        } else {
            CheckState::Blocks
        };
        (!beside_the_point).then(|| Check::new(state, gate.reason.clone()))
    });
    let mut all: Vec<Check> = gates.collect();
    for reason in decision.reasons.iter().chain(&decision.broken_promises) {
        let closed = |check: &Check| {
            let (said, code) = (&check.reason, reason.code);
            check.state != CheckState::Ok && said.code == code && said.site == reason.site
        };
        if all.iter().any(closed) {
            continue;
        }
        let state = match (reason.code, &decision.verdict) {
            (Code::Healthy, _) => CheckState::Ok,
            // A promise of the policy is broken, or an operator is needed first.
            (Code::RpoWindowOpen | Code::CertificateUrgent, _) | (_, Verdict::Escalate) => {
                CheckState::Blocks
            }
            (_, _) => CheckState::Warns,
        };
        all.push(Check::new(state, reason.clone()));
    }
    all
}

/// What blocks, of a decision that nobody asked for: nothing where a failover would go through, and
/// as the policy promises.
pub fn obstacles(decision: &Decision) -> Vec<Reason> {
    let blocking = checks(decision).into_iter();
    let blocking = blocking.filter(|check| check.state == CheckState::Blocks);
    blocking.map(|check| check.reason).collect()
}

/// The worst that any check says.
pub fn worst(checks: &[Check]) -> CheckState {
    let states = checks.iter().map(|check| check.state);
    states.max().unwrap_or(CheckState::Ok)
}

#[cfg(test)]
mod tests {
    use super::super::detector::State;
    use super::super::situation::AutomationState;
    use super::super::situation::samples::{aws, gcp, healthy, seconds};
    use super::super::synchrony::RpoWindow;
    use super::super::topology::{Role, TargetKind};
    use super::*;

    fn policy(name: &str) -> Policy {
        let text = match name {
            "sync" => include_str!("../../policies/standard.toml")
                .replace("durability = \"async\"", "durability = \"sync\""),
            _ => include_str!("../../policies/standard.toml").to_owned(),
        };
        Policy::read(name, &text).unwrap()
    }

    fn named(checks: &[Check], state: CheckState) -> Vec<Code> {
        let of = checks.iter().filter(|check| check.state == state);
        of.map(|check| check.reason.code).collect()
    }

    #[test]
    fn the_healthy_pair_is_ready_and_every_gate_is_shown() {
        let checks = readiness(&healthy(), &policy("standard"));
        assert_eq!(worst(&checks), CheckState::Ok, "{checks:#?}");
        let gates = decide(&healthy(), &policy("standard")).gates;
        for gate in gates {
            let code = gate.reason.code;
            let shown = checks.iter().any(|check| check.reason.code == code);
            assert!(shown || code == Code::ReplicationAdvancing, "{code}");
        }
    }

    #[test]
    fn the_table() {
        use CheckState::{Blocks, Warns};
        let open = RpoWindow::Open { entry: 1 };
        #[rustfmt::skip]
        let table: Vec<(&str, Situation, &str, CheckState, &[Code])> = vec![
            ("the standby is away", healthy().with_site(gcp(), |site| site.database.as_mut().unwrap().age = seconds(90)),
                "standard", Blocks, &[Code::StandbyUnreachable]),
            ("it is no standby", healthy().with_database(gcp(), |facts| facts.role = Role::Primary),
                "standard", Blocks, &[Code::StandbyNotInRecovery, Code::TwoPrimaries]),
            ("automation is disarmed", healthy().change(|all| all.automation = AutomationState { disarmed: true, ..Default::default() }),
                "standard", Blocks, &[Code::Disarmed]),
            ("the service is not well", healthy().state(aws(), TargetKind::Api, State::Suspect, seconds(9)),
                "standard", Warns, &[Code::ActiveSiteDegraded]),
            ("replication is broken", healthy().with_database(gcp(), |facts| facts.receiver = None),
                "standard", Warns, &[Code::ReplicationBroken]),
            ("commits do not wait, and need not", healthy().change(|all| all.window = open), "standard", Blocks, &[]),
            ("commits are to wait, and do not", healthy().change(|all| all.window = open), "sync", Blocks, &[Code::RpoWindowOpen]),
            ("a person asks while it is disarmed",
                healthy().asked(gcp()).change(|all| all.automation.disarmed = true), "standard", Blocks, &[Code::Disarmed]),
        ];
        for (name, mut situation, named_policy, state, codes) in table {
            if named_policy == "sync" {
                let agent = &mut situation.sites.get_mut(&aws()).unwrap().agent;
                agent.as_mut().unwrap().fact.synchrony = None;
            }
            let checks = readiness(&situation, &policy(named_policy));
            assert_eq!(named(&checks, state), codes, "{name}: {checks:#?}");
        }
    }

    #[test]
    fn a_check_is_written_flat_and_reads_back() {
        let checks = readiness(&healthy(), &policy("standard"));
        let text = serde_json::to_value(&checks).unwrap();
        assert_eq!(text[0]["state"], "ok");
        assert!(text[0]["code"].is_string() && text[0]["page"].is_string());
        assert_eq!(serde_json::from_value::<Vec<Check>>(text).unwrap(), checks);
    }
}
