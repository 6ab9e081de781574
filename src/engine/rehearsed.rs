//! What follows from the rehearsals (invariants.md I16). What is lost with the active site must
//! not block its failover: silence, and an answer that leads elsewhere, count only if they lasted
//! before anything was wrong there. A clear no always counts: the step would get the same.
//!
//! All of this stops automation but no operator: a failover without its last steps is worth
//! more to an operator than none, and no data is in danger.

use std::collections::BTreeSet;
use std::time::Duration;

use super::condition::{Gate, gate};
use super::detector::State;
use super::document::human;
use super::reason::{Code, Reason};
use super::rehearsal::{Rehearsal, Subject, Trouble, TroubleKind};
use super::situation::Situation;
use super::standby::REHEARSED_WITHIN;
use super::topology::{TargetKind, TargetName};

/// How long silence or a wrong answer must last before it counts: more than two slow probes, so
/// that neither a lost packet nor a briefly outdated secondary name server does.
pub const PATIENCE: Duration = Duration::from_secs(25);

/// The gates of everything that was rehearsed.
pub(super) fn rehearsal_gates(situation: &Situation) -> Vec<Gate> {
    let mut gates: Vec<Gate> = targets(situation)
        .into_iter()
        .map(|target| target_gate(situation, target))
        .collect();
    let of = |subject: &Subject| find(situation, subject);
    if let Some(front) = of(&Subject::FrontDoor) {
        let well = &[TargetKind::Database, TargetKind::Api];
        let counts = counting(situation, front, well);
        let reason = told(Code::FrontDoorUnready, "the front door", counts.as_slice());
        gates.push(gate(counts.is_none(), reason.at(&situation.active)));
    }
    if let Some(room) = of(&Subject::Connections) {
        let no = |trouble: &&Trouble| trouble.kind == TroubleKind::Refused;
        let full = room.trouble.as_ref().filter(no);
        let reason = told(Code::StandbyConnections, "connections", full.as_slice());
        gates.push(gate(full.is_none(), reason.at(&situation.passive)));
    }
    gates
}

/// Results that block nothing but need attention.
pub(super) fn rehearsal_warnings(situation: &Situation) -> Vec<Reason> {
    let mut warnings = Vec::new();
    for target in targets(situation) {
        let silent = places(situation, target).filter_map(|(place, look)| {
            let trouble = look.trouble.as_ref()?;
            let counts = trouble.kind == TroubleKind::Silent && trouble.since >= PATIENCE;
            counts.then(|| format!("{place} for {}: {}", whole(trouble.since), trouble.why))
        });
        let silent: Vec<String> = silent.collect();
        if !silent.is_empty() {
            let measured = format!("{target}: {} silent", silent.len());
            let reason = Reason::word(Code::NameServerSilent, measured, "none");
            warnings.push(reason.because(silent.join("; ")));
        }
    }
    let room = find(situation, &Subject::Connections);
    let room = room.and_then(|room| room.trouble.as_ref());
    if let Some(scarce) = room.filter(|trouble| trouble.kind == TroubleKind::Scarce) {
        let reason = told(Code::StandbyConnections, "connections", &[scarce]);
        warnings.push(reason.at(&situation.passive));
    }
    let fence = find(situation, &Subject::Infrastructure);
    let lasts = |trouble: &&Trouble| match trouble.kind {
        TroubleKind::Refused => true,
        TroubleKind::Silent | TroubleKind::Astray | TroubleKind::Scarce => {
            trouble.since >= PATIENCE
        }
    };
    let unready = fence.and_then(|fence| fence.trouble.as_ref()).filter(lasts);
    if let Some(unready) = unready {
        let reason = told(Code::InfrastructureUnready, "the fence", &[unready]);
        warnings.push(reason.at(&situation.active));
    }
    warnings
}

/// Whether the active site's infrastructure can be told to fence it, as last rehearsed, and runs what
/// holds the right; `None` where the site has none.
pub fn infrastructure_fences(situation: &Situation) -> Option<bool> {
    let fence = find(situation, &Subject::Infrastructure)?;
    let agent = situation.active_site()?.agent.as_ref();
    let within = agent.is_some_and(|agent| agent.fact.machine.is_some());
    Some(within && fence.trouble.is_none() && fence.age <= REHEARSED_WITHIN)
}

/// One traffic target: its system must be ready, no name server may lead to the wrong site, and at
/// least one must answer.
fn target_gate(situation: &Situation, target: &TargetName) -> Gate {
    let well = &[TargetKind::Database];
    let own = Subject::Traffic {
        target: target.clone(),
    };
    let mut troubles: Vec<&Trouble> = find(situation, &own)
        .and_then(|look| counting(situation, look, well))
        .into_iter()
        .collect();
    let (mut answering, mut silent) = (0usize, Vec::new());
    for (_, look) in places(situation, target) {
        match counting(situation, look, well) {
            None => answering = answering.saturating_add(1),
            Some(trouble) if trouble.kind == TroubleKind::Silent => silent.push(trouble),
            Some(trouble) => troubles.push(trouble),
        }
    }
    if answering == 0 {
        troubles.extend(silent);
    }
    let reason = told(Code::TrafficUnready, target.as_str(), &troubles);
    gate(troubles.is_empty(), reason)
}

/// The trouble of a result, if it counts.
fn counting<'s>(
    situation: &Situation,
    look: &'s Rehearsal,
    well: &[TargetKind],
) -> Option<&'s Trouble> {
    let counts = |trouble: &&Trouble| match trouble.kind {
        TroubleKind::Refused => true,
        TroubleKind::Silent | TroubleKind::Astray => {
            trouble.since >= unwell(situation, well).saturating_add(PATIENCE)
        }
        TroubleKind::Scarce => false,
    };
    look.trouble.as_ref().filter(counts)
}

/// How long anything of the active site has been unhealthy.
fn unwell(situation: &Situation, kinds: &[TargetKind]) -> Duration {
    let site = situation.active_site();
    let health = |kind| site.and_then(|site| site.health.get(kind));
    let unwell = kinds.iter().filter_map(health);
    let unwell = unwell.filter(|health| health.state != State::Healthy);
    unwell
        .map(|health| health.since)
        .max()
        .unwrap_or(Duration::ZERO)
}

fn find<'s>(situation: &'s Situation, subject: &Subject) -> Option<&'s Rehearsal> {
    let mut all = situation.rehearsals.iter();
    all.find(|look| look.subject == *subject)
}

/// The targets that were rehearsed, each once.
fn targets(situation: &Situation) -> BTreeSet<&TargetName> {
    let named = situation.rehearsals.iter();
    let named = named.filter_map(|look| match &look.subject {
        Subject::Traffic { target } | Subject::Place { target, .. } => Some(target),
        Subject::FrontDoor | Subject::Connections | Subject::Infrastructure => None,
    });
    named.collect()
}

fn places<'s>(
    situation: &'s Situation,
    wanted: &'s TargetName,
) -> impl Iterator<Item = (&'s str, &'s Rehearsal)> {
    let all = situation.rehearsals.iter();
    all.filter_map(move |look| match &look.subject {
        Subject::Place { target, place } if target == wanted => Some((place.as_str(), look)),
        Subject::Place { .. }
        | Subject::Traffic { .. }
        | Subject::FrontDoor
        | Subject::Connections
        | Subject::Infrastructure => None,
    })
}

fn told(code: Code, of: &str, troubles: &[impl std::borrow::Borrow<Trouble>]) -> Reason {
    let Some(first) = troubles.first().map(std::borrow::Borrow::borrow) else {
        return Reason::word(code, format!("{of}: ready"), "ready");
    };
    let word = match first.kind {
        TroubleKind::Silent => "silent",
        TroubleKind::Astray => "leads elsewhere",
        TroubleKind::Refused => "refused",
        TroubleKind::Scarce => "few left",
    };
    // The same answer from several name servers is reported once.
    let whys = troubles.iter().map(|trouble| trouble.borrow().why.as_str());
    let whys: BTreeSet<&str> = whys.collect();
    let whys: Vec<&str> = whys.into_iter().collect();
    Reason::word(code, format!("{of}: {word}"), "ready")
        .since(first.since)
        .because(whys.join("; "))
}

fn whole(time: Duration) -> String {
    human(Duration::from_secs(time.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::super::decision::{Verdict, decide};
    use super::super::policy::Policy;
    use super::super::readiness::{CheckState, readiness};
    use super::super::situation::samples::{aws, gcp, healthy, seconds};
    use super::*;

    fn policy() -> Policy {
        Policy::read("standard", include_str!("../../policies/standard.toml")).unwrap()
    }

    fn dns() -> TargetName {
        "dns".parse().unwrap()
    }

    fn own() -> Subject {
        Subject::Traffic { target: dns() }
    }

    fn place(name: &str) -> Subject {
        Subject::Place {
            target: dns(),
            place: name.to_owned(),
        }
    }

    fn tried(
        situation: Situation,
        subject: Subject,
        trouble: Option<(TroubleKind, u64)>,
    ) -> Situation {
        situation.change(|all| {
            let trouble = trouble.map(|(kind, since)| Trouble {
                kind,
                why: "sample".to_owned(),
                since: seconds(since),
            });
            all.rehearsals.push(Rehearsal {
                subject,
                age: seconds(3),
                trouble,
            });
        })
    }

    #[test]
    fn the_table() {
        use TroubleKind::{Astray, Refused, Scarce, Silent};
        let well = || tried(tried(healthy(), own(), None), place("ns1"), None);
        let lost = |with: Situation| {
            let rehearsals = with.rehearsals;
            healthy()
                .active_lost()
                .change(|all| all.rehearsals = rehearsals)
        };
        let of = |subject, kind, since| tried(well(), subject, Some((kind, since)));
        let only = |subject, kind, since| tried(healthy(), subject, Some((kind, since)));
        let front = || Subject::FrontDoor;
        let room = || Subject::Connections;
        /// Name, situation, whether a machine would fail over, what blocks at rest, what warns.
        type Row = (&'static str, Situation, bool, Option<Code>, Option<Code>);
        #[rustfmt::skip]
        let table: Vec<Row> = vec![
            ("all is well", well(), true, None, None),
            ("the system says no", only(own(), Refused, 0), false, Some(Code::TrafficUnready), None),
            ("it is silent, for a moment", only(own(), Silent, 5), true, None, None),
            ("it is silent since the site is lost, and a moment", only(own(), Silent, 61), true, Some(Code::TrafficUnready), None),
            ("it was silent before", only(own(), Silent, 90), false, Some(Code::TrafficUnready), None),
            ("it leads elsewhere since the site is lost", only(own(), Astray, 60), true, Some(Code::TrafficUnready), None),
            ("it led elsewhere before", only(own(), Astray, 600), false, Some(Code::TrafficUnready), None),
            ("one name server of two is silent", of(place("ns2"), Silent, 600), true, None, Some(Code::NameServerSilent)),
            ("every name server is silent", only(place("ns2"), Silent, 600), false, Some(Code::TrafficUnready), Some(Code::NameServerSilent)),
            ("a name server leads elsewhere", of(place("ns2"), Astray, 600), false, Some(Code::TrafficUnready), None),
            ("the front door does not open", of(front(), Astray, 600), false, Some(Code::FrontDoorUnready), None),
            ("it does not since the site is lost", of(front(), Silent, 60), true, Some(Code::FrontDoorUnready), None),
            ("the standby lets nobody in any more", of(room(), Refused, 1), false, Some(Code::StandbyConnections), None),
            ("it soon will not", of(room(), Scarce, 1), true, None, Some(Code::StandbyConnections)),
        ];
        for (name, situation, moves, blocks, warns) in table {
            let at_rest = readiness(&situation, &policy());
            let named = |state: CheckState| {
                let mut of = at_rest.iter().filter(|check| check.state == state);
                of.next().map(|check| check.reason.code)
            };
            assert_eq!(named(CheckState::Blocks), blocks, "{name}: {at_rest:#?}");
            assert_eq!(named(CheckState::Warns), warns, "{name}: {at_rest:#?}");
            let lost = lost(situation);
            let decision = decide(&lost, &policy());
            let verdict = Verdict::FailOver { to: gcp() };
            assert_eq!(decision.verdict == verdict, moves, "{name}: {decision:#?}");
            let by_hand = decide(&lost.clone().asked(gcp()), &policy());
            assert_eq!(by_hand.verdict, verdict, "{name}, by hand");
            let text = serde_json::to_string(&lost).unwrap();
            let replayed: Situation = serde_json::from_str(&text).unwrap();
            assert_eq!(decide(&replayed, &policy()), decision, "{name}");
        }
    }

    #[test]
    fn a_service_that_fails_alone_does_not_shut_its_own_front_door() {
        let mut moves = policy();
        moves.automation.api_failure = super::super::policy::ApiFailure::Failover;
        let failed = healthy().state(aws(), TargetKind::Api, State::Failed, seconds(90));
        let entered = |since| {
            let trouble = Some((TroubleKind::Astray, since));
            decide(&tried(failed.clone(), Subject::FrontDoor, trouble), &moves).verdict
        };
        assert_eq!(entered(100), Verdict::FailOver { to: gcp() });
        assert_eq!(entered(200), Verdict::Hold);
    }
}
