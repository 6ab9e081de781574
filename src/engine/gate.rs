//! Conditions checked before acting. A gate is open, or closed with its reason; all are
//! evaluated, so that `status` shows them all.

use std::time::Duration;

pub use super::clocks::clock_skew;
pub use super::condition::Gate;
use super::condition::{at_most_a_day, gate};
use super::detector::{State, Vote};
use super::policy::{ApiFailure, Mode, OnTotalIsolation, Policy};
use super::provenance;
use super::reason::{Code, Reason};
use super::rehearsed::{infrastructure_fences, rehearsal_gates};
use super::situation::{AgentFacts, LocalDatabase, Situation};
use super::skew::LIMIT;
use super::standby::{promotable, replay_gate, sever_gate};
use super::topology::TargetKind;
use super::vantages;

/// Every gate between the current situation and a failover to the passive site.
///
/// An operator's request passes the gates that guard against acting too soon. It does not pass
/// those that guard the data, unless the request says so itself.
pub fn failover_gates(situation: &Situation, policy: &Policy) -> Vec<Gate> {
    let mut gates = Vec::new();
    gates.extend(provenance::gates_of(situation));
    if situation.request.is_none() {
        gates.extend(automation_gates(situation, policy));
    }
    gates.push(no_open_plan(situation));
    gates.extend(standby_gates(situation, policy));
    if situation.request.is_none() {
        gates.push(replication_veto(situation, policy));
        gates.extend(witness_gate(situation, policy));
        gates.push(mute_gate(situation, policy));
        gates.extend(rehearsal_gates(situation));
        gates.push(clock_gate(situation, policy));
    }
    gates.extend(loss_gates(situation, policy));
    gates.push(fence_gate(situation, policy));
    gates
}

/// The gates that stop automation but not an operator.
fn automation_gates(situation: &Situation, policy: &Policy) -> Vec<Gate> {
    let controller = &situation.controller;
    let automation = &situation.automation;
    let hold = match &automation.hold {
        None => gate(true, Reason::word(Code::Held, "no", "no")),
        Some(hold) => {
            let why = format!(
                "by {}: {}; until {}",
                hold.operator, hold.reason, hold.until
            );
            gate(false, Reason::word(Code::Held, "yes", "no").because(why))
        }
    };
    let grace = policy.automation.startup_grace;
    let cooldown = policy.automation.cooldown;
    let since_last = automation.last_failover.unwrap_or(Duration::MAX);
    let observes = policy.mode == Mode::Observe;
    let mode = if observes { "observe" } else { "automatic" };
    let armed = if automation.disarmed {
        "disarmed"
    } else {
        "armed"
    };
    vec![
        isolation_gate(situation, policy),
        gate(
            controller.in_charge >= grace,
            Reason::time(Code::Starting, controller.in_charge, grace),
        ),
        gate(
            !observes,
            Reason::word(Code::PolicyObserves, mode, "automatic"),
        ),
        hold,
        gate(
            !automation.disarmed,
            Reason::word(Code::Disarmed, armed, "armed"),
        ),
        gate(
            since_last >= cooldown,
            Reason::time(Code::CoolingDown, since_last.min(cooldown), cooldown),
        ),
    ]
}

/// A controller that reaches too little judges nobody (invariants.md I6).
fn isolation_gate(situation: &Situation, policy: &Policy) -> Gate {
    let controller = &situation.controller;
    let limit = policy.detect.stale_after;
    let heard = situation.sites.values().filter(|site| site.heard(limit));
    let heard = heard.count();
    let anchors = controller.anchors == 0 || controller.anchors_reached > 0;
    let measured = format!(
        "{heard} of {} sites, {} of {} anchors",
        situation.sites.len(),
        controller.anchors_reached,
        controller.anchors
    );
    let limit = "1 site and 1 anchor";
    gate(
        heard > 0 && anchors,
        Reason::word(Code::OwnIsolation, measured, limit),
    )
}

/// While the standby still receives from the active database, that database is alive. Only observed
/// inactivity opens the gate: a standby that cannot be seen may be receiving.
fn replication_veto(situation: &Situation, policy: &Policy) -> Gate {
    let quiet = situation.replication.quiet().unwrap_or(Duration::MAX);
    let wanted = policy.detect.fail_after;
    let reason = Reason::time(Code::ReplicationAdvancing, quiet.min(wanted), wanted);
    // A database known to be down, or healthy beside a failed service, is judged by other
    // evidence than silence.
    let beside_the_point = active_database_is_down(situation, policy)
        || active_disk_failed(situation, policy)
        || (policy.automation.api_failure == ApiFailure::Failover && api_alone_failed(situation));
    gate(
        beside_the_point || quiet >= wanted,
        reason.at(&situation.passive),
    )
}

/// Whether enough vantage points report to reach a quorum if the active site died now. Only with
/// extra observers: without them the passive site's agent is the only one that can be missing, and
/// it has its own gate.
fn witness_gate(situation: &Situation, policy: &Policy) -> Option<Gate> {
    if situation.observers.is_empty() {
        return None;
    }
    // The agent's report needs no quorum.
    let beside_the_point = database_down_for(situation, policy).is_some();
    let witnesses = vantages::reporting(situation, policy);
    let quorum = usize::try_from(policy.detect.quorum).unwrap_or(usize::MAX);
    let reason = Reason::vantages(Code::ObserverSilent, witnesses, policy.detect.quorum);
    let reason = match vantages::silent_observers(situation, policy) {
        Some(silent) => reason.because(silent),
        None => reason,
    };
    Some(gate(beside_the_point || witnesses >= quorum, reason))
}

/// Whether there would be a quorum if the active site died now. Closes at once when too few can
/// judge: otherwise a rejected password would be discovered during the incident.
fn mute_gate(situation: &Situation, policy: &Policy) -> Gate {
    // The agent's report needs no quorum, and a failed service is judged by other probes.
    let beside_the_point = database_down_for(situation, policy).is_some()
        || (policy.automation.api_failure == ApiFailure::Failover && api_alone_failed(situation));
    let able = vantages::judging(situation, policy);
    let quorum = usize::try_from(policy.detect.quorum).unwrap_or(usize::MAX);
    let reason = Reason::vantages(Code::VantagePointsMute, able, policy.detect.quorum);
    let reason = match vantages::mute(situation, &situation.active, policy) {
        Some(mute) => reason.because(mute),
        None => reason,
    };
    gate(
        beside_the_point || able >= quorum,
        reason.at(&situation.active),
    )
}

/// What prevents complete probes of a site's database, shown even when all else is well: otherwise
/// it would be discovered during the incident.
pub fn look_troubles(situation: &Situation, policy: &Policy) -> Vec<Reason> {
    let mute = mute_gate(situation, policy);
    let mut reasons = Vec::new();
    let [active, passive] = [&situation.active, &situation.passive];
    // Silent vantage points have a reason of their own.
    if !mute.open && vantages::mute(situation, active, policy).is_some() {
        reasons.push(mute.reason);
    }
    for site in [active, passive] {
        if let Some(blocked) = vantages::blocked(situation, site, policy) {
            let reason = Reason::word(Code::OwnLookBlocked, "blocked", "not blocked");
            reasons.push(reason.at(site).because(blocked));
        } else if let Some(mute) = vantages::mute(situation, site, policy)
            && reasons.is_empty()
        {
            let reason = Reason::word(Code::ProbeNotAuthorised, "not let in", "let in");
            reasons.push(reason.at(site).because(mute));
        }
    }
    reasons
}

/// Whether clocks agree well enough for external systems. Only a warning: losing a site is worse
/// than a wrong clock, and nothing of ours depends on clocks.
fn clock_gate(situation: &Situation, policy: &Policy) -> Gate {
    let well = situation.active_site().is_some_and(|site| {
        site.state(TargetKind::Database) == State::Healthy
            && database_down_for(situation, policy).is_none()
    });
    match clock_skew(situation, policy) {
        Some(reason) => gate(!well, reason),
        None => gate(true, Reason::time(Code::ClockSkew, Duration::ZERO, LIMIT)),
    }
}

/// An observer that does not report, as a reason why a quorum is missing or beside an otherwise
/// good state.
pub fn observer_silent(situation: &Situation, policy: &Policy) -> Option<Reason> {
    let silent = vantages::silent_observers(situation, policy)?;
    let witnesses = vantages::reporting(situation, policy);
    let reason = Reason::vantages(Code::ObserverSilent, witnesses, policy.detect.quorum);
    Some(reason.because(silent))
}

/// Whether the active database counts as failed and itself says that its disk is full or failing:
/// being alive is then no reason to stay.
fn active_disk_failed(situation: &Situation, policy: &Policy) -> bool {
    let site = situation.active_site();
    let health = site.and_then(|site| site.health.get(&TargetKind::Database));
    health.is_some_and(|health| {
        let fresh = |vote: &Vote| vote.age <= policy.detect.stale_after;
        let says = |vote: &Vote| vote.disk_failed && fresh(vote);
        health.state == State::Failed && health.votes.iter().any(says)
    })
}

/// Whether the active site's service failed while its database is healthy.
fn api_alone_failed(situation: &Situation) -> bool {
    situation.active_site().is_some_and(|site| {
        site.state(TargetKind::Api) == State::Failed
            && site.state(TargetKind::Database) == State::Healthy
    })
}

fn no_open_plan(situation: &Situation) -> Gate {
    match situation.plan_under_way() {
        None => gate(true, Reason::word(Code::PlanOpen, "none", "none")),
        Some(plan) => {
            let code = if plan.stuck {
                Code::PlanStuck
            } else {
                Code::PlanOpen
            };
            gate(
                false,
                Reason::word(code, format!("plan {} to {}", plan.id, plan.to), "none"),
            )
        }
    }
}

/// Whether the standby may be promoted.
fn standby_gates(situation: &Situation, policy: &Policy) -> Vec<Gate> {
    let site = &situation.passive;
    let limit = policy.detect.stale_after;
    let facts = situation.passive_site();
    let agent = facts.and_then(|facts| facts.agent.as_ref());
    let agent_age = agent.map_or(Duration::MAX, |agent| agent.age);
    let database = facts.and_then(|facts| facts.database.as_ref());
    let mut gates = vec![
        gate(
            agent_age <= limit,
            Reason::time(Code::StandbyAgentSilent, at_most_a_day(agent_age), limit).at(site),
        ),
        reachable_gate(situation, policy),
    ];
    if let Some(database) = database {
        let primary = situation
            .active_site()
            .and_then(|facts| facts.database.as_ref());
        let primary = primary.map(|primary| &*primary.fact);
        gates.extend(promotable(site, &database.fact, primary));
    }
    gates.extend(replay_gate(situation, policy));
    gates.push(sever_gate(situation));
    gates
}

/// Whether the standby answers, and answers the controller: its agent's report alone does not show
/// that an order would arrive there.
fn reachable_gate(situation: &Situation, policy: &Policy) -> Gate {
    if let Some(mute) = standby_mute(situation, policy) {
        return gate(false, mute.at(&situation.passive));
    }
    let limit = policy.detect.stale_after;
    let facts = situation.passive_site();
    let database = facts.and_then(|facts| facts.database.as_ref());
    let age = database.map_or(Duration::MAX, |database| database.age);
    let fresh = age <= limit;
    let reached = facts.is_some_and(|facts| facts.reached);
    let reason = if fresh && !reached {
        seen_by_others_only()
    } else {
        Reason::time(Code::StandbyUnreachable, at_most_a_day(age), limit)
    };
    gate(fresh && reached, reason.at(&situation.passive))
}

/// The standby's database answers, but no vantage point can judge it.
pub fn standby_mute(situation: &Situation, policy: &Policy) -> Option<Reason> {
    let site = &situation.passive;
    if !vantages::all_mute(situation, site, policy) {
        return None;
    }
    let reason = Reason::word(Code::StandbyUnreachable, "not let in", "a fresh answer");
    Some(match vantages::mute(situation, site, policy) {
        Some(mute) => reason.because(mute),
        None => reason,
    })
}

/// The standby answers others, but no order of ours would arrive there.
pub fn seen_by_others_only() -> Reason {
    Reason::word(
        Code::StandbyUnreachable,
        "seen by others only",
        "a fresh answer",
    )
}

/// Whether the loss that would be declared is known and small enough (invariants.md I5).
fn loss_gates(situation: &Situation, policy: &Policy) -> Vec<Gate> {
    let accepted = situation
        .request
        .as_ref()
        .and_then(|request| request.accept_data_loss);
    let limit = accepted.unwrap_or(policy.data.max_loss);
    let loss = situation.loss();
    let (Some(estimate), Some(covered)) = (loss.bytes, loss.window) else {
        // An operator who names an amount accepts that nothing better is known.
        let reason = Reason::word(Code::LossUnknown, "unknown", "known").at(&situation.passive);
        let reason = replaced(situation).unwrap_or(reason);
        return vec![gate(accepted.is_some(), reason)];
    };
    let window = policy.data.max_loss_window;
    vec![
        gate(
            estimate <= limit,
            Reason::bytes(Code::LossOverLimit, estimate, limit).at(&situation.passive),
        ),
        gate(
            accepted.is_some() || covered <= window,
            Reason::time(Code::LossWindowOverLimit, covered, window).at(&situation.passive),
        ),
    ]
}

/// Another installation of the active site took over from the one that the standby followed.
pub fn replaced(situation: &Situation) -> Option<Reason> {
    let why = format!(
        "another installation of `{}` took over, and the standby has not been rebuilt since",
        situation.active
    );
    let reason = Reason::word(Code::LossUnknown, "unknown", "known").at(&situation.passive);
    situation.replication.replaced.then(|| reason.because(why))
}

/// Whether any proof that the old primary cannot write is available (invariants.md I2). Where the site
/// has an infrastructure that fences, all that are available are named: they are tried side by side.
fn fence_gate(situation: &Situation, policy: &Policy) -> Gate {
    let guarded = fresh_agent(situation, policy).is_some_and(|agent| agent.guarded);
    let relayed = !guarded && other_agent_hears_it(situation, policy);
    let infrastructure = infrastructure_fences(situation);
    let request = situation.request.as_ref();
    let ways = [
        (guarded, "the agent's confirmation (F1)"),
        (relayed, "the agent's confirmation, relayed (F1)"),
        (
            infrastructure == Some(true),
            "the infrastructure's confirmation (F2)",
        ),
        (situation.can_wait_out, "waiting out the lease (F3)"),
        (
            request.is_some_and(|request| request.override_fence),
            "an operator's override (F4)",
        ),
    ];
    let mut ways = ways
        .into_iter()
        .filter_map(|(open, way)| open.then_some(way));
    let first = ways.next();
    let open = first.is_some();
    let named = match (first, infrastructure) {
        (None, _) => "none".to_owned(),
        (Some(first), None) => first.to_owned(),
        (Some(first), Some(_)) => ways.fold(first.to_owned(), |all, way| format!("{all}, {way}")),
    };
    let limit = match (policy.lease.on_total_isolation, infrastructure) {
        (OnTotalIsolation::Fence, None) => "F1, F3 or F4",
        (OnTotalIsolation::Keep, None) => "F1 or F4",
        (OnTotalIsolation::Fence, Some(_)) => "F1, F2, F3 or F4",
        (OnTotalIsolation::Keep, Some(_)) => "F1, F2 or F4",
    };
    gate(
        open,
        Reason::word(Code::FenceUnprovable, named, limit).at(&situation.active),
    )
}

/// Whether the passive site's agent reported recently and recently had an answer from the active
/// one: then it can relay the order to fence and the confirmation.
fn other_agent_hears_it(situation: &Situation, policy: &Policy) -> bool {
    let limit = policy.detect.stale_after;
    let agent = situation
        .passive_site()
        .and_then(|site| site.agent.as_ref());
    agent.is_some_and(|agent| {
        let heard = agent.fact.peer;
        heard.is_some_and(|heard| heard.saturating_add(agent.age) <= limit)
    })
}

/// The active site's agent, if it reported recently.
fn fresh_agent<'s>(situation: &'s Situation, policy: &Policy) -> Option<&'s AgentFacts> {
    situation
        .active_site()?
        .agent
        .as_ref()?
        .within(policy.detect.stale_after)
        .map(|agent| &**agent)
}

/// Whether the agent beside the active database reports it down for good: that is proof (F1),
/// without quorum or window.
pub fn active_database_is_down(situation: &Situation, policy: &Policy) -> bool {
    database_down_for(situation, policy)
        .is_some_and(|since| since >= policy.automation.local_restart_grace)
}

/// How long the active site's agent has reported its database down.
pub fn database_down_for(situation: &Situation, policy: &Policy) -> Option<Duration> {
    match &fresh_agent(situation, policy)?.database {
        LocalDatabase::Up | LocalDatabase::Waiting { .. } | LocalDatabase::Recovering { .. } => {
            None
        }
        LocalDatabase::Down { since, .. } => Some(*since),
    }
}

/// How long the active database has been recovering from a crash, by its agent's report, as long as
/// the time for that is not over and the recovery makes progress.
pub(super) fn database_recovers(situation: &Situation, policy: &Policy) -> Option<Duration> {
    let age = situation.active_site()?.agent.as_ref()?.age;
    match &fresh_agent(situation, policy)?.database {
        LocalDatabase::Recovering { since, still } => {
            let within = since.saturating_add(age) < policy.automation.local_restart_grace;
            let works = still.saturating_add(age) < policy.detect.fail_after;
            (within && works).then_some(*since)
        }
        LocalDatabase::Up | LocalDatabase::Waiting { .. } | LocalDatabase::Down { .. } => None,
    }
}
