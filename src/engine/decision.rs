//! The decision: one verdict with all its reasons, from one situation and one policy.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::credential;
use super::detector::{State, Vote, VoteKind};
use super::gate::{self, Gate};
use super::loss::LossEstimate;
use super::policy::{ApiFailure, Durability, Policy};
use super::primaries;
use super::provenance;
use super::reason::{Code, Reason};
use super::rehearsed::rehearsal_warnings;
use super::situation::Situation;
use super::standby::replay_gate;
use super::text::counted;
use super::topology::{SiteName, TargetKind, Vantage};
use super::units::Bytes;
use super::vantages;

/// What the engine decides to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "do")]
pub enum Verdict {
    /// Nothing.
    Hold,
    /// Nothing yet, but the active site is failing and a failover only waits for time to pass.
    Prepare,
    /// Move to the other site, unplanned.
    FailOver {
        /// The site to make active.
        to: SiteName,
    },
    /// Move to the other site, planned, with zero loss.
    SwitchOver {
        /// The site to make active.
        to: SiteName,
    },
    /// Continue the open plan.
    Resume {
        /// The plan's number.
        plan: u64,
    },
    /// Alert an operator.
    Escalate,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Hold => f.write_str("hold"),
            Verdict::Prepare => f.write_str("prepare"),
            Verdict::FailOver { to } => write!(f, "fail over to {to}"),
            Verdict::SwitchOver { to } => write!(f, "switch over to {to}"),
            Verdict::Resume { plan } => write!(f, "resume plan {plan}"),
            Verdict::Escalate => f.write_str("escalate"),
        }
    }
}

impl Verdict {
    /// Whether something is done by it. Otherwise everything stays as it is.
    pub fn acts(&self) -> bool {
        match self {
            Verdict::FailOver { .. } | Verdict::SwitchOver { .. } | Verdict::Resume { .. } => true,
            Verdict::Hold | Verdict::Prepare | Verdict::Escalate => false,
        }
    }
}

/// The answer of the engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// What to do.
    pub verdict: Verdict,
    /// Why. The first reason is the most important.
    pub reasons: Vec<Reason>,
    /// Every gate before a failover, open or closed: the answer to "why not now".
    pub gates: Vec<Gate>,
    /// What a failover now would lose.
    pub loss: LossEstimate,
    /// Promises of the policy that are broken now. They block no failover, but the pair is not
    /// ready either.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub broken_promises: Vec<Reason>,
}

/// What of a decision must change for it to be written down again: what was measured does all the
/// time.
pub type Signature = (Verdict, Vec<(Code, Option<SiteName>)>);

impl Decision {
    /// Its verdict and the codes of its reasons.
    pub fn signature(&self) -> Signature {
        let codes = self.reasons.iter();
        let codes = codes.map(|reason| (reason.code, reason.site.clone()));
        (self.verdict.clone(), codes.collect())
    }
}

/// Decides. Pure: the same situation under the same policy always leads to the same decision.
pub fn decide(situation: &Situation, policy: &Policy) -> Decision {
    let gates = gate::failover_gates(situation, policy);
    let (verdict, mut reasons) = judge(situation, policy, &gates);
    let beside = beside(situation, policy);
    if !beside.is_empty() {
        reasons.retain(|reason| reason.code != Code::Healthy);
        reasons.extend(beside);
    }
    Decision {
        verdict,
        reasons,
        gates,
        loss: situation.loss(),
        broken_promises: window_open(situation, policy).into_iter().collect(),
    }
}

/// Reasons that an operator should see in any case, and that must hide no others.
fn beside(situation: &Situation, policy: &Policy) -> Vec<Reason> {
    let mut reasons = provenance::second_instances(situation, policy);
    let log = &situation.log;
    if log.behind.is_none() && log.unwitnessed {
        let reason = Reason::word(Code::LogUnwitnessed, "nobody", "one other witness");
        reasons.push(reason.at(&situation.active));
    }
    reasons.extend(provenance::stopped(log));
    reasons.extend(gate::replaced(situation).filter(|_| situation.plan_under_way().is_none()));
    reasons
}

fn judge(situation: &Situation, policy: &Policy, gates: &[Gate]) -> (Verdict, Vec<Reason>) {
    if let Some(behind) = &situation.log.behind {
        return (Verdict::Escalate, vec![provenance::behind_by(behind)]);
    }
    if let Some(plan) = situation.plan_under_way() {
        let word = format!("plan {} to {}", plan.id, plan.to);
        return if plan.stuck {
            (
                Verdict::Escalate,
                vec![Reason::word(Code::PlanStuck, word, "none")],
            )
        } else if plan.walking {
            (
                Verdict::Hold,
                vec![Reason::word(Code::PlanOpen, word, "none")],
            )
        } else {
            let reason = Reason::word(Code::PlanOpen, word, "none");
            (Verdict::Resume { plan: plan.id }, vec![reason])
        };
    }
    if let Some(reason) = primaries::two_primaries(situation, policy) {
        let reasons = [reason].into_iter();
        let reasons = reasons.chain(primaries::intruders(situation, policy));
        return (Verdict::Escalate, reasons.collect());
    }
    if let Some(request) = &situation.request {
        let detail = format!("{}: {}", request.operator, request.reason);
        let asked = Reason::word(Code::OperatorRequest, &request.to, &situation.passive);
        if request.to != situation.passive {
            let already = asked.because(format!("{detail}; site `{}` is active", request.to));
            return (Verdict::Hold, vec![already]);
        }
        return through_gates(situation, asked.because(detail), gates);
    }
    match trigger(situation, policy) {
        Trigger::Sustained(reason) => through_gates(situation, reason, gates),
        Trigger::Building(reason) => {
            let ready = gates
                .iter()
                .all(|gate| gate.open || gate.reason.code == Code::ReplicationAdvancing);
            let verdict = if ready {
                Verdict::Prepare
            } else {
                Verdict::Hold
            };
            (verdict, vec![reason])
        }
        Trigger::None(mut reasons) => {
            let credentials =
                credential::trouble(&situation.certificates, &situation.refused_secrets);
            if !credentials.is_empty() {
                reasons.retain(|reason| reason.code != Code::Healthy);
            }
            reasons.extend(credentials);
            (Verdict::Hold, reasons)
        }
    }
}

/// A failover if every gate is open; otherwise a hold that names the closed gates.
fn through_gates(situation: &Situation, trigger: Reason, gates: &[Gate]) -> (Verdict, Vec<Reason>) {
    let closed: Vec<Reason> = gates
        .iter()
        .filter(|gate| !gate.open)
        .map(|gate| gate.reason.clone())
        .collect();
    if closed.is_empty() {
        return (
            Verdict::FailOver {
                to: situation.passive.clone(),
            },
            vec![trigger],
        );
    }
    let mut reasons = closed;
    reasons.push(trigger);
    (Verdict::Hold, reasons)
}

/// What the state of the active site calls for.
enum Trigger {
    /// To fail over, if the gates are open.
    Sustained(Reason),
    /// To wait until a window is over.
    Building(Reason),
    /// Nothing, for these reasons.
    None(Vec<Reason>),
}

fn trigger(situation: &Situation, policy: &Policy) -> Trigger {
    let Some(site) = situation.active_site() else {
        return Trigger::None(vec![Reason::word(
            Code::EvidenceMissing,
            "nothing",
            "evidence",
        )]);
    };
    let active = &situation.active;
    if let Some(down) = gate::database_down_for(situation, policy) {
        let grace = policy.automation.local_restart_grace;
        let reason = Reason::time(Code::ActiveDatabaseDown, down, grace)
            .at(active)
            .since(down);
        return if down >= grace {
            Trigger::Sustained(reason)
        } else {
            Trigger::Building(reason)
        };
    }
    if let Some(since) = gate::database_recovers(situation, policy) {
        let grace = policy.automation.local_restart_grace;
        let reason = Reason::time(Code::ActiveDatabaseRecovering, since, grace);
        return Trigger::Building(reason.at(active).since(since));
    }
    let Some(health) = site.health.get(&TargetKind::Database) else {
        return Trigger::None(vec![Reason::word(
            Code::EvidenceMissing,
            "nothing",
            "evidence",
        )]);
    };
    let window = policy.detect.fail_after;
    let against = health
        .votes
        .iter()
        .filter(|vote| vote.kind == VoteKind::Against && vote.age <= policy.detect.stale_after);
    let against = against.count();
    match health.state {
        State::Failed => {
            let reason = Reason::time(Code::ActiveSiteFailed, health.since, window).at(active);
            Trigger::Sustained(reason.since(health.since).because(&health.why))
        }
        State::Suspect
            if against >= usize::try_from(policy.detect.quorum).unwrap_or(usize::MAX) =>
        {
            let reason = Reason::time(Code::NotSustained, health.since, window).at(active);
            Trigger::Building(reason.since(health.since).because(&health.why))
        }
        State::Suspect if against > 0 => {
            let reason = Reason::vantages(Code::QuorumMissing, against, policy.detect.quorum);
            let reason = reason.at(active).since(health.since).because(&health.why);
            Trigger::None(
                own_isolation(situation, policy)
                    .into_iter()
                    .chain([reason])
                    .chain(gate::observer_silent(situation, policy))
                    .collect(),
            )
        }
        State::Unknown => Trigger::None(match own_isolation(situation, policy) {
            Some(isolated) => vec![isolated.since(health.since).because(&health.why)],
            None => unknown_because(situation, policy, against),
        }),
        State::Suspect | State::Healthy => well(situation, policy),
    }
}

/// The active database is neither healthy nor failed.
fn unknown_because(situation: &Situation, policy: &Policy, against: usize) -> Vec<Reason> {
    let active = &situation.active;
    let Some(health) = situation
        .active_site()
        .and_then(|s| s.health.get(&TargetKind::Database))
    else {
        return vec![Reason::word(Code::EvidenceMissing, "nothing", "evidence").at(active)];
    };
    let mute = health.votes.iter().any(|vote| vote.kind == VoteKind::Mute);
    let reason = if against > 0 {
        Reason::vantages(Code::ObserverSideFault, against, policy.detect.quorum).at(active)
    } else if vantages::blocked(situation, active, policy).is_some() {
        Reason::word(Code::OwnLookBlocked, "blocked", "not blocked").at(active)
    } else if mute {
        Reason::word(Code::ProbeNotAuthorised, "not let in", "let in").at(active)
    } else {
        let limit = policy.detect.stale_after;
        Reason::time(Code::EvidenceMissing, health.since, limit).at(active)
    };
    let reason = reason.since(health.since).because(&health.why);
    let mut reasons = vec![reason];
    if let Some(trouble) = standby_trouble(situation, policy).filter(|_| against > 0) {
        // If we see the active site healthy ourselves, the fault is at the other one.
        let ours =
            |vote: &Vote| vote.vantage == Vantage::Controller && vote.kind == VoteKind::Against;
        let follows = health.votes.iter().any(ours);
        reasons.insert(usize::from(follows), trouble);
    }
    reasons
}

/// A controller that hears from no site knows nothing about either (invariants.md I6).
fn own_isolation(situation: &Situation, policy: &Policy) -> Option<Reason> {
    let limit = policy.detect.stale_after;
    let isolated = situation.sites.values().all(|site| !site.heard(limit));
    let anchors = situation.controller.anchors_reached;
    isolated.then(|| {
        let anchors = counted(u64::from(anchors), "anchor", "anchors");
        let measured = format!("0 sites, {anchors}");
        Reason::word(Code::OwnIsolation, measured, "1 site and 1 anchor")
    })
}

/// What is wrong with the standby, or with the connection to it.
fn standby_trouble(situation: &Situation, policy: &Policy) -> Option<Reason> {
    let limit = policy.detect.stale_after;
    let site = situation.passive_site()?;
    let trouble = |reason: Reason| Some(reason.at(&situation.passive));
    if let Some(mute) = gate::standby_mute(situation, policy) {
        return trouble(mute);
    }
    let Some(facts) = site.database.as_ref().and_then(|seen| seen.within(limit)) else {
        return trouble(Reason::word(
            Code::StandbyUnreachable,
            "no fresh answer",
            "a fresh answer",
        ));
    };
    if !site.reached {
        return trouble(gate::seen_by_others_only());
    }
    let streaming = facts
        .receiver
        .as_ref()
        .filter(|receiver| receiver.is_streaming());
    if streaming.is_none() {
        let status = facts
            .receiver
            .as_ref()
            .map_or("no receiver", |receiver| &receiver.status);
        return trouble(Reason::word(Code::ReplicationBroken, status, "streaming"));
    }
    // A receiver on a dead connection reports streaming for a minute: what counts is what
    // arrives (postgres.md P7).
    let replication = &situation.replication;
    let behind = replication.lag() > Some(Bytes(0));
    let quiet = replication
        .quiet()
        .filter(|quiet| behind && *quiet > limit)?;
    trouble(Reason::time(Code::ReplicationBroken, quiet, limit).since(replication.advanced?))
}

/// The standby receives but does not replay in time: shown even when all else is well.
fn replay_trouble(situation: &Situation, policy: &Policy) -> Option<Reason> {
    let gate = replay_gate(situation, policy)?;
    (!gate.open).then_some(gate.reason)
}

/// What is wrong with a standby that commits must wait for.
fn synchrony_trouble(situation: &Situation, policy: &Policy) -> Option<Reason> {
    let limit = policy.detect.stale_after;
    if policy.data.durability == Durability::Async {
        return users_wait(situation, limit);
    }
    let agent = situation.active_site()?.agent.as_ref()?.within(limit)?;
    let facts = agent.synchrony.as_ref();
    if let Some(open) = window_open(situation, policy) {
        return Some(open);
    }
    let stalled = facts?.stalled;
    let reason = Reason::time(Code::CommitsStalled, stalled, limit).since(stalled);
    let stalled = (stalled > limit).then(|| reason.at(&situation.active));
    stalled.or_else(|| users_wait(situation, limit))
}

/// Commits must wait for the standby, and do not.
fn window_open(situation: &Situation, policy: &Policy) -> Option<Reason> {
    if policy.data.durability == Durability::Async || situation.window.is_closed() {
        return None;
    }
    let agent = situation.active_site().and_then(|site| site.agent.as_ref());
    let facts = agent.and_then(|agent| agent.fact.synchrony.as_ref());
    let obstacle = facts.and_then(|facts| facts.obstacle.as_deref());
    let why = obstacle.unwrap_or("the standby is not complete yet");
    let open = Reason::word(Code::RpoWindowOpen, "open", "closed");
    Some(open.at(&situation.active).because(why))
}

/// Users' commits that wait for a standby, at any level of `synchronous_commit`: our own do not
/// wait, so they do not show it.
fn users_wait(situation: &Situation, limit: Duration) -> Option<Reason> {
    let database = situation.active_site()?.database.as_ref()?.within(limit)?;
    let waited = situation.replication.commits_wait;
    if waited <= limit {
        return None;
    }
    let reason = Reason::time(Code::CommitsStalled, waited, limit).since(waited);
    let names = format!("they wait for {}", database.synchronous_names);
    Some(reason.at(&situation.active).because(names))
}

/// The active database is healthy: perhaps something else is not.
fn well(situation: &Situation, policy: &Policy) -> Trigger {
    let active = &situation.active;
    let site = situation.active_site();
    let api = site.and_then(|site| site.health.get(&TargetKind::Api));
    if let Some(api) = api.filter(|api| api.state == State::Failed) {
        let window = policy.detect.fail_after;
        let reason = Reason::time(Code::ActiveApiFailed, api.since, window).at(active);
        let reason = reason.since(api.since).because(&api.why);
        return match policy.automation.api_failure {
            ApiFailure::Failover => Trigger::Sustained(reason),
            ApiFailure::Hold => Trigger::None(vec![reason]),
        };
    }
    let mut reasons: Vec<Reason> = standby_trouble(situation, policy).into_iter().collect();
    reasons.extend(replay_trouble(situation, policy));
    reasons.extend(synchrony_trouble(situation, policy));
    for kind in [TargetKind::Api, TargetKind::Agent] {
        let health = site.and_then(|site| site.health.get(&kind));
        if let Some(health) = health.filter(|health| health.state != State::Healthy) {
            let reason = Reason::word(Code::ActiveSiteDegraded, health.state, State::Healthy);
            let why = format!("{kind}: {}", health.why);
            reasons.push(reason.at(active).since(health.since).because(why));
        }
    }
    reasons.extend(gate::look_troubles(situation, policy));
    reasons.extend(gate::observer_silent(situation, policy));
    reasons.extend(rehearsal_warnings(situation));
    reasons.extend(gate::clock_skew(situation, policy));
    reasons.extend(primaries::intruders(situation, policy));
    reasons.extend(primaries::settings_pending(situation, policy));
    if reasons.is_empty() {
        let since = site.and_then(|site| Some(site.health.get(&TargetKind::Database)?.since));
        let reason = Reason::word(Code::Healthy, State::Healthy, State::Healthy).at(active);
        reasons.push(reason.since(since.unwrap_or_default()));
    }
    Trigger::None(reasons)
}

#[cfg(test)]
mod tests {
    use super::super::loss::RecordedLoss;
    use super::super::observation::ReplayPause;
    use super::super::policy::Policy;
    use super::super::situation::samples::{aws, gcp, healthy, seconds};
    use super::super::situation::{AutomationState, HoldFacts, LocalDatabase, OpenPlan};
    use super::super::skew::Skew;
    use super::super::synchrony::{RpoWindow, SyncFacts};
    use super::super::topology::Role;
    use super::super::units::{Epoch, Lsn, SystemId, Timeline, WallTime};
    use super::*;

    fn policy() -> Policy {
        Policy::read("standard", include_str!("../../policies/standard.toml")).unwrap()
    }

    fn fail_over() -> Verdict {
        Verdict::FailOver { to: gcp() }
    }

    fn database_dead(situation: Situation, since: Duration) -> Situation {
        situation.with_site(aws(), |site| {
            let down = LocalDatabase::Down {
                since,
                why: "killed by signal 9".into(),
            };
            site.agent.as_mut().unwrap().fact.database = down;
        })
    }

    fn recovers(situation: Situation, since: u64, still: u64) -> Situation {
        situation.with_site(aws(), |site| {
            let agent = site.agent.as_mut().unwrap();
            agent.age = seconds(0);
            agent.fact.database = LocalDatabase::Recovering {
                since: seconds(since),
                still: seconds(still),
            };
        })
    }

    /// The passive site's clock is three hours ahead.
    fn skewed(situation: Situation) -> Situation {
        situation.with_site(gcp(), |site| {
            site.clock = Some(Skew {
                ahead_ms: 10_800_000,
                within: Duration::from_millis(40),
            });
        })
    }

    fn plan(stuck: bool, walking: bool) -> OpenPlan {
        OpenPlan {
            id: 12,
            to: gcp(),
            stuck,
            walking,
            rechecking: false,
            recorded: None,
        }
    }

    /// A plan whose first step judges anew, and what it recorded as lost.
    fn rechecked(recorded: Option<RecordedLoss>) -> OpenPlan {
        OpenPlan {
            rechecking: true,
            recorded,
            ..plan(false, true)
        }
    }

    fn recorded(ago: u64) -> RecordedLoss {
        RecordedLoss {
            loss: LossEstimate {
                bytes: Some(Bytes(7000)),
                window: Some(seconds(2)),
            },
            ago: seconds(ago),
        }
    }

    #[test]
    fn the_table() {
        use Code::*;
        let lost = || healthy().active_lost();
        let unseen = || lost().change(|all| all.replication.primary = None);
        let dead = |since| database_dead(healthy(), seconds(since));
        let vote = |count: usize| {
            let from = [Vantage::Controller, Vantage::Agent(gcp())];
            let suspect = healthy().state(aws(), TargetKind::Database, State::Suspect, seconds(5));
            from.into_iter()
                .take(count)
                .fold(suspect, |all, from| all.vote(from, VoteKind::Against))
        };
        let hold_until = HoldFacts {
            operator: "alice".into(),
            reason: "maintenance".into(),
            until: WallTime(0),
            left: seconds(60),
        };
        #[rustfmt::skip]
        let table: Vec<(&str, Situation, Verdict, &[Code])> = vec![
            ("all is well", healthy(), Verdict::Hold, &[Healthy]),
            ("the site is lost", lost(), fail_over(), &[ActiveSiteFailed]),
            ("the database is dead, its agent says so", dead(21), fail_over(), &[ActiveDatabaseDown]),
            ("it may still be restarted", dead(3), Verdict::Prepare, &[ActiveDatabaseDown]),
            ("it recovers, with work to be seen", recovers(lost(), 15, 2), Verdict::Prepare, &[ActiveDatabaseRecovering]),
            ("it recovers for too long", recovers(lost(), 21, 2), fail_over(), &[ActiveSiteFailed]),
            ("it recovers, and stands still", recovers(lost(), 19, 31), fail_over(), &[ActiveSiteFailed]),
            ("it recovered, by an agent that is gone",
                recovers(lost(), 15, 2).with_site(aws(), |site| site.agent.as_mut().unwrap().age = seconds(60)), fail_over(), &[ActiveSiteFailed]),
            ("it recovers, and nobody else sees anything wrong", recovers(healthy(), 15, 2), Verdict::Prepare, &[ActiveDatabaseRecovering]),
            ("two see it fail, not for long", vote(2), Verdict::Prepare, &[NotSustained]),
            ("only one sees it fail", vote(1), Verdict::Hold, &[QuorumMissing]),
            ("the evidence is contradictory",
                healthy().state(aws(), TargetKind::Database, State::Unknown, seconds(40)).vote(Vantage::Controller, VoteKind::Against), Verdict::Hold, &[ObserverSideFault]),
            ("the evidence is contradictory, and the standby gets nothing",
                healthy().state(aws(), TargetKind::Database, State::Unknown, seconds(40)).vote(Vantage::Agent(gcp()), VoteKind::Against)
                    .change(|all| {
                        all.replication.advanced = Some(seconds(40));
                        all.replication.primary.as_mut().unwrap().fact = Lsn(2000);
                    }), Verdict::Hold, &[ReplicationBroken, ObserverSideFault]),
            ("the evidence is contradictory, and the standby is not reached",
                healthy().state(aws(), TargetKind::Database, State::Unknown, seconds(40)).vote(Vantage::Controller, VoteKind::Against)
                    .with_site(gcp(), |site| site.reached = false), Verdict::Hold, &[ObserverSideFault, StandbyUnreachable]),
            ("only the controller sees it fail, and it sees nobody",
                vote(1).unheard(aws()).unheard(gcp()), Verdict::Hold, &[OwnIsolation, QuorumMissing]),
            ("only the controller sees it fail, it reaches nobody, and reports come",
                vote(1).with_site(aws(), |site| site.reached = false).with_site(gcp(), |site| site.reached = false),
                Verdict::Hold, &[QuorumMissing]),
            ("we are not let in",
                healthy().state(aws(), TargetKind::Database, State::Unknown, seconds(40)).vote(Vantage::Controller, VoteKind::Mute),
                Verdict::Hold, &[ProbeNotAuthorised]),
            ("nothing was ever seen",
                healthy().state(aws(), TargetKind::Database, State::Unknown, seconds(0)), Verdict::Hold, &[EvidenceMissing]),
            ("the controller sees nobody",
                healthy().state(aws(), TargetKind::Database, State::Unknown, seconds(40)).unheard(aws()).unheard(gcp()),
                Verdict::Hold, &[OwnIsolation]),
            ("lost, but no anchor answers",
                lost().change(|all| all.controller.anchors_reached = 0), Verdict::Hold, &[OwnIsolation, ActiveSiteFailed]),
            ("lost, but WAL still arrives",
                lost().change(|all| all.replication.advanced = Some(seconds(1))), Verdict::Hold, &[ReplicationAdvancing, ActiveSiteFailed]),
            ("lost, the standby was not seen quiet for long, only not seen",
                lost().change(|all| {
                    all.replication.advanced = Some(seconds(33));
                    all.replication.standby.as_mut().unwrap().age = seconds(9);
                }), Verdict::Hold, &[ReplicationAdvancing, ActiveSiteFailed]),
            ("WAL still arrives, from a disk that is full by its own word",
                lost().change(|all| all.replication.advanced = Some(seconds(1)))
                    .vote(Vantage::Controller, VoteKind::Against)
                    .with_site(aws(), |site| site.health.get_mut(&TargetKind::Database).unwrap().votes[0].disk_failed = true),
                fail_over(), &[ActiveSiteFailed]),
            ("lost, just after a start",
                lost().change(|all| all.controller.in_charge = seconds(5)), Verdict::Hold, &[Starting, ActiveSiteFailed]),
            ("lost, and held by a person",
                lost().change(|all| all.automation.hold = Some(hold_until)), Verdict::Hold, &[Held, ActiveSiteFailed]),
            ("lost, disarmed",
                lost().change(|all| all.automation = AutomationState { disarmed: true, ..Default::default() }),
                Verdict::Hold, &[Disarmed, ActiveSiteFailed]),
            ("lost, soon after the last failover",
                lost().change(|all| all.automation.last_failover = Some(seconds(9))), Verdict::Hold, &[CoolingDown, ActiveSiteFailed]),
            ("lost, and the standby too",
                lost().with_site(gcp(), |site| site.database.as_mut().unwrap().age = seconds(60)),
                Verdict::Hold, &[StandbyUnreachable, ActiveSiteFailed]),
            ("lost, and the other agent silent",
                lost().with_site(gcp(), |site| site.agent.as_mut().unwrap().age = seconds(60)),
                Verdict::Hold, &[StandbyAgentSilent, ActiveSiteFailed]),
            ("lost, and the other reports but is not reached",
                lost().with_site(gcp(), |site| site.reached = false), Verdict::Hold, &[StandbyUnreachable, ActiveSiteFailed]),
            ("lost, the other is no standby",
                lost().with_database(gcp(), |facts| facts.role = Role::Primary).with_database(aws(), |facts| facts.role = Role::Standby),
                Verdict::Hold, &[StandbyNotInRecovery, ActiveSiteFailed]),
            ("lost, the standby is of another system",
                lost().with_database(gcp(), |facts| facts.system_id = SystemId(8)), Verdict::Hold, &[SystemIdentifierDiffers, ActiveSiteFailed]),
            ("lost, the standby is on another timeline",
                lost().with_database(gcp(), |facts| facts.timeline = Timeline(3)), Verdict::Hold, &[TimelineDiverged, ActiveSiteFailed]),
            ("lost, the standby's limits are too low",
                lost().with_database(gcp(), |facts| { facts.limits = [50, 8, 10, 0, 64]; facts.replay_pause = ReplayPause::Paused; }),
                Verdict::Hold, &[StandbyLimitsTooLow, ActiveSiteFailed]),
            ("lost, the standby applies late",
                lost().with_database(gcp(), |facts| facts.apply_delay = seconds(3600)), Verdict::Hold, &[StandbyApplyDelayed, ActiveSiteFailed]),
            ("lost, other major version",
                lost().with_database(gcp(), |facts| facts.version = 160_001), Verdict::Hold, &[VersionDiffers, ActiveSiteFailed]),
            ("lost, too much behind, but every commit waited",
                lost().change(|all| { all.replication.primary.as_mut().unwrap().fact = Lsn(100 << 20); all.window = RpoWindow::Closed; }),
                fail_over(), &[ActiveSiteFailed]),
            ("lost, too much behind",
                lost().change(|all| all.replication.primary.as_mut().unwrap().fact = Lsn(100 << 20)),
                Verdict::Hold, &[LossOverLimit, ActiveSiteFailed]),
            ("lost, behind for too long",
                lost().change(|all| all.replication.covered = Some(seconds(3600))), Verdict::Hold, &[LossWindowOverLimit, ActiveSiteFailed]),
            ("lost, position never seen",
                lost().change(|all| all.replication.primary = None), Verdict::Hold, &[LossUnknown, ActiveSiteFailed]),
            ("the active side never said how much the standby has",
                lost().change(|all| all.replication.covered = None), Verdict::Hold, &[LossUnknown, ActiveSiteFailed]),
            ("lost, and no proof of a fence to be had",
                lost().change(|all| all.can_wait_out = false), Verdict::Hold, &[FenceUnprovable, ActiveSiteFailed]),
            ("lost, not to be waited out, but the other agent hears the one there",
                lost().change(|all| all.can_wait_out = false)
                    .with_site(gcp(), |site| site.agent.as_mut().unwrap().fact.peer = Some(seconds(1))), fail_over(), &[ActiveSiteFailed]),
            ("lost, not to be waited out, and what the other agent heard is old",
                lost().change(|all| all.can_wait_out = false)
                    .with_site(gcp(), |site| { let agent = site.agent.as_mut().unwrap(); agent.age = seconds(6); agent.fact.peer = Some(seconds(5)); }),
                Verdict::Hold, &[FenceUnprovable, ActiveSiteFailed]),
            ("a plan is open and walked", lost().change(|all| all.plan = Some(plan(false, true))), Verdict::Hold, &[PlanOpen]),
            ("a plan is open and nobody walks it",
                healthy().change(|all| all.plan = Some(plan(false, false))), Verdict::Resume { plan: 12 }, &[PlanOpen]),
            ("its first step judges anew", lost().change(|all| all.plan = Some(rechecked(None))), fail_over(), &[ActiveSiteFailed]),
            ("its first step finds all well", healthy().change(|all| all.plan = Some(rechecked(None))), Verdict::Hold, &[Healthy]),
            ("what it recorded stands for what nobody says any more",
                unseen().change(|all| all.plan = Some(rechecked(Some(recorded(20))))), fail_over(), &[ActiveSiteFailed]),
            ("what it recorded was long ago",
                unseen().change(|all| all.plan = Some(rechecked(Some(recorded(3600))))), Verdict::Hold, &[LossWindowOverLimit, ActiveSiteFailed]),
            ("it recorded nothing, and nobody says any more",
                unseen().change(|all| all.plan = Some(rechecked(None))), Verdict::Hold, &[LossUnknown, ActiveSiteFailed]),
            ("a plan is stuck", lost().change(|all| all.plan = Some(plan(true, false))), Verdict::Escalate, &[PlanStuck]),
            ("two primaries",
                lost().with_site(aws(), |site| site.database.as_mut().unwrap().age = seconds(0))
                    .state(aws(), TargetKind::Database, State::Healthy, seconds(9))
                    .with_database(gcp(), |facts| facts.role = Role::Primary),
                Verdict::Escalate, &[TwoPrimaries]),
            ("two primaries, although one was fenced long ago",
                healthy().with_database(gcp(), |facts| facts.role = Role::Primary)
                    .with_site(aws(), |site| {
                        let facts = &mut site.agent.as_mut().unwrap().fact;
                        (facts.fenced, facts.foreign) = (Some(Epoch(2)), Some("process 7".into()));
                        facts.database = LocalDatabase::Waiting { since: seconds(300) };
                    }),
                Verdict::Escalate, &[TwoPrimaries, ForeignDatabase]),
            ("a setting waits for the next start",
                healthy().with_site(aws(), |site| site.agent.as_mut().unwrap().fact.pending = vec!["postgres.port".into()]),
                Verdict::Hold, &[SettingsPending]),
            ("a program has the place of the standby",
                healthy().with_site(gcp(), |site| site.agent.as_mut().unwrap().fact.foreign = Some("`127.0.0.1:5432`".into())),
                Verdict::Hold, &[ForeignDatabase]),
            ("the service fails beside a good database",
                healthy().state(aws(), TargetKind::Api, State::Failed, seconds(90)), Verdict::Hold, &[ActiveApiFailed]),
            ("replication is broken",
                healthy().with_database(gcp(), |facts| facts.receiver = None), Verdict::Hold, &[ReplicationBroken]),
            ("replication is quiet, although the receiver calls itself streaming",
                healthy().change(|all| {
                    all.replication.advanced = Some(seconds(40));
                    all.replication.primary.as_mut().unwrap().fact = Lsn(2000);
                }), Verdict::Hold, &[ReplicationBroken]),
            ("replication is quiet, and there is nothing to send",
                healthy().change(|all| all.replication.advanced = Some(seconds(40))), Verdict::Hold, &[Healthy]),
            ("the passive site is seen by the other agent only",
                healthy().with_site(gcp(), |site| site.reached = false), Verdict::Hold, &[StandbyUnreachable]),
            ("a clock is hours off", skewed(healthy()), Verdict::Hold, &[ClockSkew]),
            ("lost, and a clock is hours off", skewed(lost()), fail_over(), &[ActiveSiteFailed]),
            ("a person asks, and a clock is hours off", skewed(healthy().asked(gcp())), fail_over(), &[OperatorRequest]),
            ("a clock was off in a report of long ago",
                skewed(healthy()).with_site(gcp(), |site| site.agent.as_mut().unwrap().age = seconds(60)), Verdict::Hold, &[Healthy]),
            ("two agents' clocks are apart, and neither is far from the controller's",
                healthy().with_site(aws(), |site| site.agent.as_mut().unwrap().fact.peer_clock = Some(Skew { ahead_ms: -90_000, within: seconds(1) })),
                Verdict::Hold, &[ClockSkew]),
            ("the passive site is gone",
                healthy().with_site(gcp(), |site| site.database.as_mut().unwrap().age = seconds(90)), Verdict::Hold, &[StandbyUnreachable]),
            ("the active agent is silent",
                healthy().state(aws(), TargetKind::Agent, State::Unknown, seconds(90)), Verdict::Hold, &[ActiveSiteDegraded]),
            ("a person asks, all is well", healthy().asked(gcp()), fail_over(), &[OperatorRequest]),
            ("a person asks while held",
                healthy().asked(gcp()).change(|all| all.automation.disarmed = true), fail_over(), &[OperatorRequest]),
            ("a person asks for the active site", healthy().asked(aws()), Verdict::Hold, &[OperatorRequest]),
            ("a person asks, too much would be lost",
                lost().asked(gcp()).change(|all| all.replication.primary.as_mut().unwrap().fact = Lsn(100 << 20)),
                Verdict::Hold, &[LossOverLimit, OperatorRequest]),
            ("a person asks and accepts the loss",
                lost().asked(gcp()).change(|all| {
                    all.replication.primary.as_mut().unwrap().fact = Lsn(100 << 20);
                    all.request.as_mut().unwrap().accept_data_loss = Some(Bytes::mib(200));
                }), fail_over(), &[OperatorRequest]),
            ("a person asks, no proof of a fence",
                lost().asked(gcp()).change(|all| all.can_wait_out = false), Verdict::Hold, &[FenceUnprovable, OperatorRequest]),
            ("a person asks and vouches for the fence",
                lost().asked(gcp()).change(|all| {
                    all.can_wait_out = false;
                    all.request.as_mut().unwrap().override_fence = true;
                }), fail_over(), &[OperatorRequest]),
        ];
        for (name, situation, verdict, codes) in table {
            let decision = decide(&situation, &policy());
            let found: Vec<Code> = decision.reasons.iter().map(|reason| reason.code).collect();
            assert_eq!(
                (&decision.verdict, found.as_slice()),
                (&verdict, codes),
                "{name}: {decision:#?}"
            );
            let recorded = serde_json::to_string(&situation).unwrap();
            let replayed: Situation = serde_json::from_str(&recorded).unwrap();
            assert_eq!(
                decide(&replayed, &policy()),
                decision,
                "{name}: replays from its record"
            );
        }
    }

    #[test]
    fn the_table_with_an_observer() {
        use Code::*;
        /// Name, situation, quorum, whether the gate is open, verdict, codes.
        type Row<'c> = (
            &'static str,
            Situation,
            u32,
            Option<bool>,
            Verdict,
            &'c [Code],
        );
        const AGAINST: VoteKind = VoteKind::Against;
        const FOR: VoteKind = VoteKind::For;
        let observer = || Vantage::Observer("paris".parse().unwrap());
        let seen = |situation: Situation, by: &[Vantage], kind| {
            let votes = by.iter().cloned();
            votes.fold(situation, |all, from| all.vote(from, kind))
        };
        let both = [Vantage::Controller, Vantage::Agent(gcp())];
        let all = [both[0].clone(), both[1].clone(), observer()];
        let with_own = [both[0].clone(), both[1].clone(), Vantage::Agent(aws())];
        let lost = || healthy().active_lost();
        let suspect = || healthy().state(aws(), TargetKind::Database, State::Suspect, seconds(60));
        let there = |situation: Situation| situation.observed("paris", seconds(0));
        let silent = |situation: Situation| situation.observed("paris", seconds(60));
        #[rustfmt::skip]
        let table: Vec<Row<'_>> = vec![
            ("all three see it fail", seen(there(lost()), &all, AGAINST), 3, Some(true), fail_over(), &[ActiveSiteFailed]),
            ("two of three see it fail, the observer is silent",
                seen(silent(suspect()), &both, AGAINST), 3, Some(false), Verdict::Hold, &[QuorumMissing, ObserverSilent]),
            ("two of three see it fail, the observer is there",
                seen(there(suspect()), &both, AGAINST), 3, Some(false), Verdict::Hold, &[QuorumMissing]),
            ("two see it fail, which suffices, and the observer is silent",
                seen(silent(lost()), &both, AGAINST), 2, Some(true), fail_over(), &[ActiveSiteFailed]),
            ("the agent at the failing site sees it too, and the observer is silent",
                seen(silent(lost()), &with_own, AGAINST), 3, Some(true), fail_over(), &[ActiveSiteFailed]),
            ("all is well, and all are there", seen(there(healthy()), &all, FOR), 3, Some(true), Verdict::Hold, &[Healthy]),
            ("all is well, the observer is silent, two suffice",
                seen(silent(healthy()), &both, FOR), 2, Some(true), Verdict::Hold, &[ObserverSilent]),
            ("all is well, the observer is silent, and two do not suffice",
                seen(silent(healthy()), &both, FOR), 3, Some(false), Verdict::Hold, &[ObserverSilent]),
            ("the active site's own agent would be lost with it, and counts for nothing",
                seen(silent(healthy()), &with_own, FOR), 3, Some(false), Verdict::Hold, &[ObserverSilent]),
            ("the agent's word counts while a restart is tried",
                seen(silent(database_dead(healthy(), seconds(3))), &both, FOR), 3, Some(true), Verdict::Prepare, &[ActiveDatabaseDown]),
            ("the agent's word needs no observer",
                seen(silent(database_dead(healthy(), seconds(21))), &both, FOR), 3, Some(true), fail_over(), &[ActiveDatabaseDown]),
            ("nor does a person", seen(silent(healthy()).asked(gcp()), &both, FOR), 3, None, fail_over(), &[OperatorRequest]),
            ("no observer is known", healthy(), 2, None, Verdict::Hold, &[Healthy]),
        ];
        for (name, situation, quorum, ready, verdict, codes) in table {
            let mut policy = policy();
            policy.detect.quorum = quorum;
            let decision = decide(&situation, &policy);
            let found: Vec<Code> = decision.reasons.iter().map(|reason| reason.code).collect();
            assert_eq!(
                (&decision.verdict, found.as_slice()),
                (&verdict, codes),
                "{name}: {decision:#?}"
            );
            let mut gates = decision.gates.iter();
            let gate = gates.find(|gate| gate.reason.code == ObserverSilent);
            assert_eq!(gate.map(|gate| gate.open), ready, "{name}: {gate:?}");
            let recorded = serde_json::to_string(&situation).unwrap();
            let replayed: Situation = serde_json::from_str(&recorded).unwrap();
            assert_eq!(decide(&replayed, &policy), decision, "{name}");
        }
    }

    #[test]
    fn vantage_points_that_cannot_judge_are_shown_at_once() {
        use Code::*;
        const MUTE: VoteKind = VoteKind::Mute;
        let gcp_agent = || Vantage::Agent(gcp());
        let unknown = || healthy().state(aws(), TargetKind::Database, State::Unknown, seconds(1));
        let dead = database_dead(healthy(), seconds(21));
        #[rustfmt::skip]
        let table: Vec<(&str, Situation, bool, &[Code])> = vec![
            ("both can", healthy(), true, &[Healthy]),
            ("one cannot", healthy().vote(gcp_agent(), MUTE), false, &[VantagePointsMute]),
            ("one cannot, and the active site's own agent does not stand in",
                healthy().vote(gcp_agent(), MUTE).vote(Vantage::Agent(aws()), VoteKind::For), false, &[VantagePointsMute]),
            ("neither can", unknown().vote(Vantage::Controller, MUTE).vote(gcp_agent(), MUTE), false, &[ProbeNotAuthorised]),
            ("neither can, for a reason of ours",
                unknown().vote(Vantage::Controller, MUTE).vote(gcp_agent(), MUTE).blocked(aws(), "a lock"), false, &[OwnLookBlocked]),
            ("our rows are blocked, and others are served", healthy().blocked(aws(), "a lock"), true, &[OwnLookBlocked]),
            ("the same at the standby", healthy().blocked(gcp(), "a lock"), true, &[OwnLookBlocked]),
            ("an observer more cannot, which is one too many",
                healthy().vote(Vantage::Observer("paris".parse().unwrap()), MUTE), true, &[ProbeNotAuthorised]),
            ("nobody is let in by the standby", healthy().all_mute(gcp()), true, &[StandbyUnreachable, ProbeNotAuthorised]),
            ("neither can, and the agent's word needs no quorum",
                dead.vote(Vantage::Controller, MUTE).vote(gcp_agent(), MUTE), true, &[ActiveDatabaseDown]),
        ];
        for (name, situation, open, codes) in table {
            let decision = decide(&situation, &policy());
            let found: Vec<Code> = decision.reasons.iter().map(|reason| reason.code).collect();
            assert_eq!(found, codes, "{name}: {decision:#?}");
            let mut gates = decision.gates.iter();
            let gate = gates.find(|gate| gate.reason.code == VantagePointsMute);
            assert_eq!(gate.map(|gate| gate.open), Some(open), "{name}: {gate:?}");
            let recorded = serde_json::to_string(&situation).unwrap();
            let replayed: Situation = serde_json::from_str(&recorded).unwrap();
            assert_eq!(decide(&replayed, &policy()), decision, "{name}");
        }
        let mute = healthy().vote(gcp_agent(), MUTE);
        let decision = decide(&mute, &policy());
        assert!(decision.reasons[0].to_string().contains("agent:gcp"));
        let standby = decide(&healthy().all_mute(gcp()), &policy());
        let mut gates = standby.gates.iter();
        let gate = gates.find(|gate| gate.reason.code == StandbyUnreachable);
        assert!(!gate.unwrap().open, "at once, whatever was read before");
    }

    #[test]
    fn a_record_from_before_there_were_observers_still_replays() {
        let recorded = serde_json::to_value(healthy()).unwrap();
        assert!(recorded.get("observers").is_none());
        assert_eq!(
            serde_json::from_value::<Situation>(recorded).unwrap(),
            healthy()
        );
    }

    #[test]
    fn observe_decides_but_never_acts() {
        let observe = Policy::read("observe", include_str!("../../policies/observe.toml")).unwrap();
        let decision = decide(&healthy().active_lost(), &observe);
        assert_eq!(decision.verdict, Verdict::Hold);
        assert_eq!(decision.reasons.first().unwrap().code, Code::PolicyObserves);
    }

    #[test]
    fn a_failed_service_beside_a_good_database_moves_only_where_the_policy_says_so() {
        let failed = || healthy().state(aws(), TargetKind::Api, State::Failed, seconds(90));
        let standard = policy();
        assert_eq!(decide(&failed(), &standard).verdict, Verdict::Hold);
        let mut moves = policy();
        moves.automation.api_failure = ApiFailure::Failover;
        assert_eq!(
            decide(&failed(), &moves).verdict,
            fail_over(),
            "although WAL still arrives"
        );
    }

    #[test]
    fn a_database_that_went_down_since_it_was_looked_at_is_no_second_primary() {
        let promoted = || healthy().with_database(gcp(), |facts| facts.role = Role::Primary);
        assert_eq!(decide(&promoted(), &policy()).verdict, Verdict::Escalate);
        let said = |since| {
            promoted().with_site(aws(), |site| {
                let facts = &mut site.agent.as_mut().unwrap().fact;
                facts.fenced = Some(Epoch(2));
                facts.database = LocalDatabase::Waiting { since };
            })
        };
        let verdict = |since| decide(&said(since), &policy()).verdict;
        assert_ne!(verdict(seconds(0)), Verdict::Escalate);
        assert_eq!(verdict(seconds(300)), Verdict::Escalate, "it answers now");
    }

    #[test]
    fn where_commits_are_to_wait_it_says_when_they_do_not_or_wait_in_vain() {
        let mut sync = policy();
        sync.data.durability = Durability::Sync;
        let stalled = |window, stalled| {
            healthy()
                .change(|all| all.window = window)
                .with_site(aws(), |site| {
                    site.agent.as_mut().unwrap().fact.synchrony = Some(SyncFacts {
                        closed: None,
                        waiting: true,
                        confirmed: None,
                        stalled: seconds(stalled),
                        obstacle: None,
                    });
                })
        };
        let open = RpoWindow::Open { entry: 1 };
        for (situation, policy, code) in [
            (stalled(open, 0), &policy(), Code::Healthy),
            (stalled(open, 0), &sync, Code::RpoWindowOpen),
            (stalled(RpoWindow::Closed, 1), &sync, Code::Healthy),
            (stalled(RpoWindow::Closed, 11), &sync, Code::CommitsStalled),
        ] {
            let decision = decide(&situation, policy);
            assert_eq!(decision.reasons.first().unwrap().code, code);
        }
    }

    #[test]
    fn every_gate_is_shown_whatever_the_others_say() {
        let closed = healthy().active_lost().change(|all| {
            all.controller.anchors_reached = 0;
            all.automation.disarmed = true;
        });
        let open = decide(&healthy(), &policy()).gates.len();
        assert_eq!(decide(&closed, &policy()).gates.len(), open);
    }
}
