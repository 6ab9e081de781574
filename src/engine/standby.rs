//! What a standby must satisfy so that PostgreSQL would promote it, and in time.

use std::time::Duration;

use super::condition::{Gate, at_most_a_day, gate};
use super::document::human;
use super::observation::{DatabaseFacts, ReplayPause};
use super::policy::Policy;
use super::reason::{Code, Reason};
use super::replay::Replay;
use super::situation::Situation;
use super::topology::{Role, SiteName};
use super::units::{Bytes, as_millis};

/// Whether a database is a standby of this pair that PostgreSQL would promote.
pub(super) fn promotable(
    site: &SiteName,
    standby: &DatabaseFacts,
    primary: Option<&DatabaseFacts>,
) -> Vec<Gate> {
    let mut gates = vec![gate(
        standby.role == Role::Standby,
        Reason::word(Code::StandbyNotInRecovery, standby.role, Role::Standby).at(site),
    )];
    if let Some(primary) = primary {
        gates.extend(same_pair(site, standby, primary));
    }
    // What it replays late it would also promote late (postgres.md P22).
    gates.push(gate(
        standby.apply_delay.is_zero(),
        Reason::time(
            Code::StandbyApplyDelayed,
            standby.apply_delay,
            Duration::ZERO,
        )
        .at(site),
    ));
    gates
}

fn same_pair(site: &SiteName, standby: &DatabaseFacts, primary: &DatabaseFacts) -> [Gate; 4] {
    let limits_low = standby
        .limits
        .iter()
        .zip(&primary.limits)
        .any(|(ours, theirs)| ours < theirs);
    let stopped = standby.replay_pause == ReplayPause::InsufficientLimits
        || (limits_low && standby.replay_pause == ReplayPause::Paused);
    let major = |facts: &DatabaseFacts| facts.version.checked_div(10_000).unwrap_or_default();
    [
        // Another system (postgres.md P1).
        gate(
            standby.system_id == primary.system_id,
            Reason::word(
                Code::SystemIdentifierDiffers,
                standby.system_id,
                primary.system_id,
            )
            .at(site),
        ),
        // While the active database is alive it decides the timeline (postgres.md P2, P4).
        gate(
            standby.timeline == primary.timeline,
            Reason::word(Code::TimelineDiverged, standby.timeline, primary.timeline).at(site),
        ),
        // It would refuse the promotion (postgres.md P21).
        gate(
            !stopped,
            Reason::word(Code::StandbyLimitsTooLow, standby.replay_pause, "replaying").at(site),
        ),
        // It cannot stream (postgres.md P10).
        gate(
            major(standby) == major(primary),
            Reason::word(Code::VersionDiffers, standby.version, primary.version).at(site),
        ),
    ]
}

/// Whether the standby would take writes in time: it first replays everything it has received.
/// Stalled replay closes the gate; an operator may accept it.
pub fn replay_gate(situation: &Situation, policy: &Policy) -> Option<Gate> {
    let replay = situation.replication.replay.as_ref()?;
    let limit = policy.data.max_replay_time;
    let needed = replay.still.max(replay.time().unwrap_or_default());
    let request = situation.request.as_ref();
    let accepted = request.is_some_and(|request| request.accept_replay);
    let reason = Reason::time(Code::ReplayStalled, at_most_a_day(needed), limit);
    Some(gate(
        accepted || needed <= limit,
        reason.at(&situation.passive).because(replaying(replay)),
    ))
}

/// How old a rehearsal of the sever may be: an agent makes several in that time.
pub(super) const REHEARSED_WITHIN: Duration = Duration::from_secs(120);

/// Whether the standby could be severed and reconnected: rehearsed beforehand, because a sever that
/// cannot be undone leaves no site with a lease.
pub(super) fn sever_gate(situation: &Situation) -> Gate {
    let agent = situation
        .passive_site()
        .and_then(|site| site.agent.as_ref());
    let rehearsal = agent.and_then(|agent| Some((agent.age, agent.fact.rehearsal.as_ref()?)));
    let site = &situation.passive;
    let word = |measured: &str| Reason::word(Code::CannotSever, measured, "rehearsed").at(site);
    let Some((age, rehearsal)) = rehearsal else {
        return gate(false, word("never rehearsed"));
    };
    if let Some(why) = &rehearsal.obstacle {
        return gate(false, word("refused").because(why));
    }
    let ago = rehearsal.ago.saturating_add(age);
    let reason = Reason::time(Code::CannotSever, at_most_a_day(ago), REHEARSED_WITHIN);
    gate(ago <= REHEARSED_WITHIN, reason.at(site))
}

/// The state of a standby's replay, for people.
pub fn replaying(replay: &Replay) -> String {
    let Replay {
        backlog,
        still,
        rate,
        held,
    } = replay;
    if *backlog == Bytes(0) {
        return "all is replayed".to_owned();
    }
    let rest = match replay.time() {
        Some(time) => format!("{}, at {rate} a second", whole(time)),
        None => "for an unknown time, because no replay was seen".to_owned(),
    };
    let still = if still.is_zero() {
        String::new()
    } else {
        format!(", stands still for {}", whole(*still))
    };
    let held = held.as_ref().map(|by| format!(", held up by `{by}`"));
    let held = held.unwrap_or_default();
    format!("{backlog} to replay ({rest}){still}{held}")
}

/// A duration for people, without a fraction of a millisecond.
fn whole(duration: Duration) -> String {
    human(Duration::from_millis(as_millis(duration)))
}
