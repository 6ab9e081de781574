//! What the controller shows Prometheus, each read from the status that `failover status` shows:
//! nothing is measured or judged here. `docs/metrics.md` is made from this list.

use std::time::Duration;

use crate::adapters::exposition::{Family, Kind, Series, UNBOUNDED, UNKNOWN, Value, alone, series};
use crate::engine::detector::{State, VoteKind};
use crate::engine::observation::ReceiverFacts;
use crate::engine::readiness::{CheckState, checks, worst};
use crate::engine::reason::Code;
use crate::engine::rehearsal::{Rehearsal, Subject};
use crate::engine::replay::Replay;
use crate::engine::replication::Replication;
use crate::engine::situation::SiteFacts;
use crate::engine::topology::{Role, SiteName, TargetKind};
use crate::engine::units::WallTime;
use crate::wire::{PlanStatus, Status};

/// The labels that all of them have.
pub const COMMON: &[&str] = &["group"];

/// All of them, in the order of the documentation.
pub const FAMILIES: &[Family<Status>] = &[
    Family {
        name: "build_info",
        kind: Kind::Gauge,
        labels: &["component", "version"],
        means: "Always 1: the program that answers.",
        from: "`version`",
        read: |status| vec![series([&"controller", &status.version], true)],
    },
    Family {
        name: "policy_info",
        kind: Kind::Gauge,
        labels: &["policy"],
        means: "Always 1: the file of the policy in force.",
        from: "`policy`",
        read: |status| vec![series([&status.policy], true)],
    },
    Family {
        name: "ready",
        kind: Kind::Gauge,
        labels: &[],
        means: "Whether nothing would stop a failover if the active site died now.",
        from: "the checks, as in `failover check` and `/readyz`",
        read: |status| alone(worst(&checks(&status.decision)) != CheckState::Blocks),
    },
    Family {
        name: "reason_active",
        kind: Kind::Gauge,
        labels: &["code", "severity"],
        means: "Whether a check does not pass with this code: `block`, so that no failover would come, or `warn`.",
        from: "the checks, as in `failover check`",
        read: reasons,
    },
    Family {
        name: "automation_state",
        kind: Kind::Gauge,
        labels: &["state"],
        means: "What keeps automation from acting; `armed` where nothing does.",
        from: "`decision.gates`",
        read: automation,
    },
    Family {
        name: "hold_end_timestamp",
        kind: Kind::Seconds,
        labels: &[],
        means: "When the hold of a person ends; 0: there is none.",
        from: "`situation.automation.hold`",
        read: |status| {
            let hold = status.situation.automation.hold.as_ref();
            alone(hold.map_or(WallTime(0), |hold| hold.until))
        },
    },
    Family {
        name: "site_active",
        kind: Kind::Gauge,
        labels: &["site"],
        means: "Whether the site has, or had last, the right to take writes.",
        from: "`situation.active`",
        read: |status| sites(status, |site, _| (*site == status.situation.active).into()),
    },
    Family {
        name: "site_fenced",
        kind: Kind::Gauge,
        labels: &["site"],
        means: "Whether the agent of the site says that it is fenced; NaN before its first report.",
        from: "`situation.sites.*.agent`",
        read: |status| {
            sites(status, |_, facts| {
                let agent = facts.agent.as_ref();
                agent.map_or(UNKNOWN, |agent| agent.fact.fenced.is_some().into())
            })
        },
    },
    Family {
        name: "target_state",
        kind: Kind::Gauge,
        labels: &["site", "target", "state"],
        means: "Whether the target is in this state, as judged from all vantage points.",
        from: "`situation.sites.*.health`",
        read: target_states,
    },
    Family {
        name: "target_changed_timestamp",
        kind: Kind::Seconds,
        labels: &["site", "target"],
        means: "Since when what is said of the target is so.",
        from: "`situation.sites.*.health`",
        read: |status| {
            let all = targets(status);
            let each = all.map(|(site, kind, facts)| {
                let since = facts.health.get(&kind).map(|health| health.since);
                let at = since.map_or(UNKNOWN, |since| status.at.minus(since).into());
                series([site, &kind], at)
            });
            each.collect()
        },
    },
    Family {
        name: "target_votes",
        kind: Kind::Gauge,
        labels: &["site", "target", "says"],
        means: "How many vantage points speak for the target, against it, or cannot judge it.",
        from: "`situation.sites.*.health`",
        read: votes,
    },
    Family {
        name: "database_takes_writes",
        kind: Kind::Gauge,
        labels: &["site"],
        means: "Whether the database is healthy, and the newest look saw a primary: as seen, not by right.",
        from: "`situation.sites.*.database`",
        read: |status| {
            sites(status, |_, facts| {
                let seen = facts.database.as_ref();
                let primary = seen.is_some_and(|seen| seen.fact.role == Role::Primary);
                (primary && well(facts)).into()
            })
        },
    },
    Family {
        name: "front_probe_success",
        kind: Kind::Gauge,
        labels: &[],
        means: "Whether the last look at the front door led to the active site; no series without `[front]`.",
        from: "`situation.rehearsals`",
        read: |status| front(status, |look| look.trouble.is_none().into()),
    },
    Family {
        name: "front_probe_timestamp",
        kind: Kind::Seconds,
        labels: &[],
        means: "When that look was.",
        from: "`situation.rehearsals`",
        read: |status| front(status, |look| status.at.minus(look.age).into()),
    },
    Family {
        name: "traffic_rehearsal_success",
        kind: Kind::Gauge,
        labels: &["target"],
        means: "Whether the traffic target could last be read and changed by us, as a rehearsal shows it.",
        from: "`situation.rehearsals`",
        read: |status| traffic(status, |look| look.trouble.is_none().into()),
    },
    Family {
        name: "traffic_rehearsal_timestamp",
        kind: Kind::Seconds,
        labels: &["target"],
        means: "When that rehearsal was.",
        from: "`situation.rehearsals`",
        read: |status| traffic(status, |look| status.at.minus(look.age).into()),
    },
    Family {
        name: "replication_streaming",
        kind: Kind::Gauge,
        labels: &[],
        means: "Whether the standby is healthy and said at the newest look that WAL streams to it.",
        from: "`situation.sites.*.database`",
        read: |status| {
            let standby = status.situation.passive_site().filter(|site| well(site));
            let database = standby.and_then(|site| site.database.as_ref());
            let receiver = database.and_then(|seen| seen.fact.receiver.as_ref());
            alone(receiver.is_some_and(ReceiverFacts::is_streaming))
        },
    },
    Family {
        name: "standby_receive_lag",
        kind: Kind::Bytes,
        labels: &[],
        means: "WAL of the active database that the standby has not received; +Inf: not known.",
        from: "`situation.replication`",
        read: |status| alone(known(Replication::lag(&status.situation.replication))),
    },
    Family {
        name: "standby_replay_lag",
        kind: Kind::Bytes,
        labels: &[],
        means: "WAL that the standby has received and not replayed; +Inf: not known.",
        from: "`situation.replication.replay`",
        read: |status| {
            let replay = status.situation.replication.replay.as_ref();
            alone(known(replay.map(|replay| replay.backlog)))
        },
    },
    Family {
        name: "standby_replay_lag",
        kind: Kind::Seconds,
        labels: &[],
        means: "How long the standby needs to replay that, at the pace that was seen; +Inf: not known.",
        from: "`situation.replication.replay`",
        read: |status| {
            let replay = status.situation.replication.replay.as_ref();
            alone(known(replay.and_then(Replay::time)))
        },
    },
    Family {
        name: "loss_window",
        kind: Kind::Seconds,
        labels: &[],
        means: "A failover now would lose writes of so long, by what is known; +Inf: not known.",
        from: "`decision.loss`",
        read: |status| alone(known(status.decision.loss.window)),
    },
    Family {
        name: "loss_estimate",
        kind: Kind::Bytes,
        labels: &[],
        means: "WAL that a failover now would lose, estimated; +Inf: not known.",
        from: "`decision.loss`",
        read: |status| alone(known(status.decision.loss.bytes)),
    },
    Family {
        name: "loss_window_limit",
        kind: Kind::Seconds,
        labels: &[],
        means: "The longest window that the policy lets a failover lose.",
        from: "`data.max_loss_window`",
        read: |status| limit(status.data.as_ref().map(|data| data.max_loss_window)),
    },
    Family {
        name: "loss_limit",
        kind: Kind::Bytes,
        labels: &[],
        means: "The most WAL that the policy lets a failover lose.",
        from: "`data.max_loss`",
        read: |status| limit(status.data.as_ref().map(|data| data.max_loss)),
    },
    Family {
        name: "rpo_window_open",
        kind: Kind::Gauge,
        labels: &[],
        means: "Whether the active site may acknowledge what its standby does not have; always 1 without zero-loss mode.",
        from: "`situation.window`",
        read: |status| alone(!status.situation.window.is_closed()),
    },
    Family {
        name: "commits_stalled",
        kind: Kind::Seconds,
        labels: &[],
        means: "For how long a commit of a user was seen to wait for a standby; 0: none waits.",
        from: "`situation.replication.commits_wait`",
        read: |status| alone(status.situation.replication.commits_wait),
    },
    Family {
        name: "epoch",
        kind: Kind::Gauge,
        labels: &[],
        means: "The number that grows with each change of the active site.",
        from: "`situation.epoch`",
        read: |status| alone(status.situation.epoch.0),
    },
    Family {
        name: "agent_report_age",
        kind: Kind::Seconds,
        labels: &["site"],
        means: "How old the newest report of the agent is; +Inf: there was none since the controller started.",
        from: "`situation.sites.*.agent`",
        read: |status| {
            sites(status, |_, facts| {
                known(facts.agent.as_ref().map(|agent| agent.age))
            })
        },
    },
    Family {
        name: "observer_report_age",
        kind: Kind::Seconds,
        labels: &["observer"],
        means: "The same of an extra observer.",
        from: "`situation.observers`",
        read: |status| {
            let all = status.situation.observers.iter();
            let each = all.map(|(name, facts)| series([name], known(facts.age)));
            each.collect()
        },
    },
    Family {
        name: "clock_skew",
        kind: Kind::Seconds,
        labels: &["site"],
        means: "How far the wall clock of the site is ahead of the controller's, negative where it is behind; NaN: not measured.",
        from: "`situation.sites.*.clock`",
        read: |status| sites(status, |_, facts| skew(facts)),
    },
    Family {
        name: "certificate_not_after_timestamp",
        kind: Kind::Seconds,
        labels: &["owner"],
        means: "When the certificate ends, of each that a process of ours holds or sees.",
        from: "`situation.certificates`",
        read: |status| {
            let all = status.situation.certificates.iter();
            all.map(|end| series([&end.owner], end.until)).collect()
        },
    },
    Family {
        name: "plan_state",
        kind: Kind::Gauge,
        labels: &["state"],
        means: "Whether there is a plan, and whether it is being taken back or needs a person.",
        from: "`plan`",
        read: |status| {
            let state = plan_state(status.plan.as_ref());
            one_of(&["none", "open", "undoing", "stuck"], state)
        },
    },
    Family {
        name: "plan_step",
        kind: Kind::Gauge,
        labels: &["step"],
        means: "Whether the step is being done or taken back; no series while no plan is open.",
        from: "`plan.steps`",
        read: |status| {
            let steps = status.plan.iter().flat_map(|plan| &plan.steps);
            let runs = |state: &str| ["started", "undoing"].contains(&state);
            steps
                .map(|(step, state)| series([step], runs(state)))
                .collect()
        },
    },
    Family {
        name: "last_move_timestamp",
        kind: Kind::Seconds,
        labels: &[],
        means: "When the last plan ended; 0: there never was one.",
        from: "`situation.automation.last_failover`",
        read: |status| {
            let ago = status.situation.automation.last_failover;
            alone(ago.map_or(WallTime(0), |ago| status.at.minus(ago)))
        },
    },
    Family {
        name: "log_entries",
        kind: Kind::Counter,
        labels: &[],
        means: "The entries of the decision log.",
        from: "`log`",
        read: |status| alone(status.log.0),
    },
];

/// What is known; what is not may be anything.
fn known<T: Into<Value>>(value: Option<T>) -> Value {
    value.map_or(UNBOUNDED, Into::into)
}

fn limit<T: Into<Value>>(of: Option<T>) -> Vec<Series> {
    of.into_iter().flat_map(alone).collect()
}

fn sites(status: &Status, value: impl Fn(&SiteName, &SiteFacts) -> Value) -> Vec<Series> {
    let all = status.situation.sites.iter();
    let each = all.map(|(site, facts)| series([site], value(site, facts)));
    each.collect()
}

fn targets(status: &Status) -> impl Iterator<Item = (&SiteName, TargetKind, &SiteFacts)> {
    let all = status.situation.sites.iter();
    all.flat_map(|(site, facts)| TargetKind::ALL.map(|kind| (site, kind, facts)))
}

/// One series for each word of a closed set, 1 for the one that holds.
fn one_of(words: &[&str], holds: &str) -> Vec<Series> {
    let each = words.iter().map(|word| series([word], *word == holds));
    each.collect()
}

fn well(site: &SiteFacts) -> bool {
    site.state(TargetKind::Database) == State::Healthy
}

fn reasons(status: &Status) -> Vec<Series> {
    let checks = checks(&status.decision);
    let each = Code::ALL.iter().flat_map(|code| {
        let stands = |state| {
            let mut of_it = checks.iter().filter(|check| check.reason.code == *code);
            of_it.any(|check| check.state == state)
        };
        [
            series([code, &"block"], stands(CheckState::Blocks)),
            series([code, &"warn"], stands(CheckState::Warns)),
        ]
    });
    each.collect()
}

fn automation(status: &Status) -> Vec<Series> {
    let states = [
        ("held", Code::Held),
        ("observing", Code::PolicyObserves),
        ("disarmed", Code::Disarmed),
        ("cooling-down", Code::CoolingDown),
        ("starting", Code::Starting),
    ];
    let closed = |code| {
        let mut gates = status.decision.gates.iter();
        gates.any(|gate| gate.reason.code == code && !gate.open)
    };
    let armed = !states.iter().any(|(_, code)| closed(*code));
    let each = states
        .iter()
        .map(|(state, code)| series([state], closed(*code)));
    each.chain([series([&"armed"], armed)]).collect()
}

fn target_states(status: &Status) -> Vec<Series> {
    let each = targets(status).flat_map(|(site, kind, facts)| {
        let states = [
            State::Healthy,
            State::Suspect,
            State::Failed,
            State::Unknown,
        ];
        states.map(|state| series([site, &kind, &state], facts.state(kind) == state))
    });
    each.collect()
}

fn votes(status: &Status) -> Vec<Series> {
    let each = targets(status).flat_map(|(site, kind, facts)| {
        let says = [
            ("for", VoteKind::For),
            ("against", VoteKind::Against),
            ("mute", VoteKind::Mute),
        ];
        says.map(|(word, wanted)| {
            let votes = facts.health.get(&kind).into_iter();
            let votes = votes.flat_map(|health| &health.votes);
            let count = votes.filter(|vote| vote.kind == wanted).map(|_| 1u64);
            series([site, &kind, &word], count.sum::<u64>())
        })
    });
    each.collect()
}

fn front(status: &Status, value: impl Fn(&Rehearsal) -> Value) -> Vec<Series> {
    let all = status.situation.rehearsals.iter();
    let of_it = all.filter(|look| look.subject == Subject::FrontDoor);
    of_it.flat_map(|look| alone(value(look))).collect()
}

fn traffic(status: &Status, value: impl Fn(&Rehearsal) -> Value) -> Vec<Series> {
    let all = status.situation.rehearsals.iter();
    let each = all.filter_map(|look| match &look.subject {
        Subject::Traffic { target } => Some(series([target], value(look))),
        Subject::Place { .. }
        | Subject::FrontDoor
        | Subject::Connections
        | Subject::Infrastructure => None,
    });
    each.collect()
}

fn skew(facts: &SiteFacts) -> Value {
    let Some(skew) = facts.clock else {
        return UNKNOWN;
    };
    let apart = Duration::from_millis(skew.ahead_ms.unsigned_abs()).as_secs_f64();
    Value::Real(if skew.ahead_ms < 0 { -apart } else { apart })
}

fn plan_state(plan: Option<&PlanStatus>) -> &'static str {
    let Some(plan) = plan else { return "none" };
    let back = ["failed", "undoing", "undone", "left"];
    if plan.stuck.is_some() {
        "stuck"
    } else if plan
        .steps
        .iter()
        .any(|(_, state)| back.contains(&state.as_str()))
    {
        "undoing"
    } else {
        "open"
    }
}
