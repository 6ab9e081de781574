//! The controller's HTTP API: for agents and observers (reports) and operators (the command line),
//! over mutual TLS; and, in plain HTTP, whether it lives and is ready.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{ConnectInfo, DefaultBodyLimit, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use tokio::sync::watch;

use super::control::{Asked, Handle, Input};
use super::journal::{Journal, Noise, View};
use crate::adapters::files;
use crate::adapters::messages::{Incoming, Outgoing, Unread};
use crate::adapters::tls::{Identity, OperatorRole, PeerIdentity};
use crate::engine::detector::State as Health;
use crate::engine::rate::{Budgets, Rate};
use crate::engine::readiness::{CheckState, checks};
use crate::engine::situation::{ObserverFacts, Situation};
use crate::engine::text::{harmless, typed};
use crate::engine::topology::{GroupName, ObserverName};
use crate::engine::units::as_millis;
use crate::ports::Clock;
use crate::wire::{
    LogPart, MESSAGE_LIMIT, OBSERVED_LIMIT, OBSERVED_PATH, PromoteAsk, REPORT_LIMIT, REPORT_PATH,
    Readiness, Status,
};

mod orders;
mod reports;

/// How many entries one answer holds at most.
const LOG_PART: usize = 200;

/// How many bytes of lines one answer holds, and at most one line more: with both escaped in JSON it
/// is below the 4 MiB that the command line takes.
const LOG_PART_BYTES: usize = 1 << 20;

/// How long a question for new entries may wait for one.
const LONGEST_WAIT: Duration = Duration::from_secs(20);

/// What the handlers work with.
#[derive(Debug, Clone)]
pub struct Api {
    /// The control loop.
    pub control: Handle,
    /// The decision log.
    pub journal: Journal,
    /// What the control loop shows.
    pub status: watch::Receiver<Option<Status>>,
    /// The group.
    pub group: GroupName,
    /// The log's file.
    pub log: PathBuf,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// How often each person may command.
    pub commands: Arc<Mutex<Budgets<Identity>>>,
}

type Answer<T> = Result<Outgoing<T>, Problem>;

/// The answer to what has no other than that it is done.
type Done = Result<Json<()>, Problem>;

/// An answer that says no.
#[derive(Debug)]
struct Problem(StatusCode, String);

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let lines: Vec<_> = self.1.split('\n').map(harmless).collect();
        (self.0, lines.join("\n")).into_response()
    }
}

impl From<super::control::Ended> for Problem {
    fn from(ended: super::control::Ended) -> Self {
        Problem(StatusCode::SERVICE_UNAVAILABLE, ended.to_string())
    }
}

impl From<Unread> for Problem {
    fn from(unread: Unread) -> Self {
        Problem(unread.status(), unread.to_string())
    }
}

fn unprocessable(text: String) -> Problem {
    Problem(StatusCode::UNPROCESSABLE_ENTITY, text)
}

/// The API for agents and operators.
pub fn router(api: Api) -> Router {
    Router::new()
        .route(
            REPORT_PATH,
            post(reports::report).layer(DefaultBodyLimit::max(REPORT_LIMIT)),
        )
        .route(
            OBSERVED_PATH,
            post(reports::observed).layer(DefaultBodyLimit::max(OBSERVED_LIMIT)),
        )
        .route("/v1/status", get(status))
        .route("/v1/check", get(check))
        .route("/v1/promote", post(promote))
        .route("/v1/hold", post(orders::hold))
        .route("/v1/release", post(orders::release))
        .route("/v1/adopt", post(orders::adopt))
        .route("/v1/adopt-instance", post(orders::adopt_instance))
        .route("/v1/log", get(log))
        // What a route says itself comes first.
        .layer(DefaultBodyLimit::max(MESSAGE_LIMIT))
        .with_state(api)
}

/// The API for probes of the controller itself, and for its metrics.
pub fn plain_router(api: Api) -> Router {
    Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(api)
}

/// What a person asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    /// To look at something.
    Read,
    Promote,
    Hold,
    Release,
    /// To say how the world stands, or which instance counts.
    Adopt,
}

/// How often one person may command. A script that repeats itself must not fill the log.
const COMMANDS: Rate = Rate {
    burst: 20,
    every: Duration::from_secs(3),
};

/// How many people's commands are counted apart.
const COMMANDERS: usize = 64;

/// Budgets for the commands of people, all of them whole.
pub fn commands() -> Arc<Mutex<Budgets<Identity>>> {
    Arc::new(Mutex::new(Budgets::new(COMMANDS, COMMANDERS)))
}

/// Who may ask for what: the one place where that is decided. Returns the person's name, from the
/// certificate.
fn person(api: &Api, peer: &PeerIdentity, verb: Verb) -> Result<String, Problem> {
    let refused = |status, text: String| {
        let told = format!("{verb:?} of `{}`: {text}", peer.identity);
        api.journal
            .tell(Noise::CommandRefused, &peer.identity, &told);
        Err(Problem(status, text))
    };
    let (name, group, role) = match &peer.identity {
        Identity::Operator { name, group, role } => (name, group, role),
        other @ (Identity::Controller
        | Identity::Agent { .. }
        | Identity::Observer { .. }
        | Identity::Other(_)) => {
            let text = format!(
                "`{other}` is not an operator: use an operator's certificate (see runbooks/agent-rejected.md)"
            );
            return refused(StatusCode::FORBIDDEN, text);
        }
    };
    if group.as_ref().is_some_and(|group| *group != api.group) {
        let text = format!(
            "`{}` looks after another group, and this is the controller of `{}`: use a certificate for this group (see runbooks/agent-rejected.md)",
            peer.identity, api.group
        );
        return refused(StatusCode::FORBIDDEN, text);
    }
    match (verb, role) {
        (Verb::Read, _) => return Ok(name.clone()),
        (Verb::Promote | Verb::Hold | Verb::Release | Verb::Adopt, OperatorRole::Operator) => {}
        (Verb::Promote | Verb::Hold | Verb::Release | Verb::Adopt, OperatorRole::Reader) => {
            let text = format!(
                "`{}` may look and change nothing: ask an operator of `{}`, or for a certificate of one (see runbooks/agent-rejected.md)",
                peer.identity, api.group
            );
            return refused(StatusCode::FORBIDDEN, text);
        }
    }
    let now = api.clock.now();
    let mut budgets = api.commands.lock().unwrap_or_else(PoisonError::into_inner);
    if budgets.spend(&peer.identity, now) {
        Ok(name.clone())
    } else {
        let text = format!(
            "too many commands: at most {} at once, and one more every {} s",
            COMMANDS.burst,
            COMMANDS.every.as_secs()
        );
        refused(StatusCode::TOO_MANY_REQUESTS, text)
    }
}

/// What a person gives as the reason of a command, if it can stand in the log as it is.
fn reason(text: &str) -> Result<String, Problem> {
    typed(text).map_err(|error| Problem(StatusCode::BAD_REQUEST, error.to_string()))
}

async fn status(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<PeerIdentity>,
) -> Answer<Status> {
    person(&api, &peer, Verb::Read)?;
    let status = api.status.borrow().clone();
    status.map(Outgoing).ok_or_else(|| {
        Problem(
            StatusCode::SERVICE_UNAVAILABLE,
            "the controller has only just started".to_owned(),
        )
    })
}

/// Every check of what would stand in the way of a failover now.
async fn check(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<PeerIdentity>,
) -> Answer<Readiness> {
    person(&api, &peer, Verb::Read)?;
    let status = api.status.borrow().clone();
    status
        .map(|status| Outgoing(Readiness::of(&status)))
        .ok_or_else(|| {
            Problem(
                StatusCode::SERVICE_UNAVAILABLE,
                "the controller has only just started".to_owned(),
            )
        })
}

async fn promote(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<PeerIdentity>,
    Incoming(written): Incoming<PromoteAsk>,
) -> Answer<crate::wire::PromoteAnswer> {
    let mut ask = written.message;
    let name = person(&api, &peer, Verb::Promote)?;
    ask.reason = reason(&ask.reason)?;
    let done = api
        .control
        .ask(|answer| Input::Asked(name, Asked::Promote(ask, answer)))
        .await?;
    done.map(Outgoing)
        .map_err(|why| Problem(StatusCode::BAD_REQUEST, why))
}

#[derive(Debug, Deserialize)]
struct LogAsk {
    /// The first number wanted.
    from: u64,
    /// How long to wait for it, in milliseconds.
    #[serde(default)]
    wait_ms: u64,
}

async fn log(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<PeerIdentity>,
    Query(ask): Query<LogAsk>,
) -> Answer<LogPart> {
    person(&api, &peer, Verb::Read)?;
    let mut view = api.journal.view();
    let wait = Duration::from_millis(ask.wait_ms).min(LONGEST_WAIT);
    tokio::select! {
        // The journal's end is the controller's: what there is, is still shown.
        _ended = view.wait_for(|view: &View| view.entries >= ask.from) => {}
        () = api.clock.sleep(wait) => {}
    }
    let last = view.borrow().entries;
    let path = api.log.clone();
    let read = tokio::task::spawn_blocking(move || {
        files::read_part(&path, ask.from, LOG_PART, LOG_PART_BYTES)
    })
    .await;
    let failed = |text: String| Problem(StatusCode::INTERNAL_SERVER_ERROR, text);
    let entries = read
        .map_err(|error| failed(error.to_string()))?
        .map_err(|error| failed(error.to_string()))?;
    let lines = entries.into_iter().map(|(line, _)| line).collect();
    Ok(Outgoing(LogPart { lines, last }))
}

/// Ready to fail over: the controller judges, and knows of nothing that would stop a failover if
/// the active site died now.
async fn ready(State(api): State<Api>) -> Result<String, Problem> {
    let unready = |text: String| Problem(StatusCode::SERVICE_UNAVAILABLE, text);
    let status = api.status.borrow().clone();
    let status = status.ok_or_else(|| unready("only just started\n".to_owned()))?;
    let closed = obstacles(&status);
    if closed.is_empty() {
        Ok("ready\n".to_owned())
    } else {
        Err(unready(format!("{}\n", closed.join("\n"))))
    }
}

/// The checks that block, in words.
pub fn obstacles(status: &Status) -> Vec<String> {
    let all = checks(&status.decision);
    let blocking = all.iter().filter(|check| check.state == CheckState::Blocks);
    blocking.map(|check| check.reason.to_string()).collect()
}

/// How old each observer's report is. Left out where there was none: an alert on a missing series
/// says so.
fn observer_ages(observers: &BTreeMap<ObserverName, ObserverFacts>) -> Vec<(String, u64)> {
    let ages = observers.iter().filter_map(|(name, facts)| {
        let age = as_millis(facts.age?);
        Some((name.to_string(), age))
    });
    ages.collect()
}

type Labels = BTreeMap<&'static str, String>;

/// Which gates are open, and how many checks stand how, by code: one code may be about several
/// sites or targets.
fn of_checks(status: &Status) -> Vec<(&'static str, Labels, u64)> {
    let gates = status.decision.gates.iter().map(|gate| {
        let labels = BTreeMap::from([("code", gate.reason.code.to_string())]);
        ("gate_open", labels, u64::from(gate.open))
    });
    let mut counted: BTreeMap<Labels, u64> = BTreeMap::new();
    for check in checks(&status.decision) {
        let (code, state) = (check.reason.code.to_string(), check.state.to_string());
        let count = counted.entry(BTreeMap::from([("code", code), ("state", state)]));
        let count = count.or_default();
        *count = count.saturating_add(1);
    }
    let counted = counted.into_iter();
    let ends = status.situation.certificates.iter().map(|end| {
        // As Prometheus writes a text in a label.
        let owner = end.owner.replace('\\', "\\\\").replace('"', "\\\"");
        let seconds = end.until.0.checked_div(1000).unwrap_or_default();
        let name = "certificate_not_after_timestamp_seconds";
        (name, BTreeMap::from([("owner", owner)]), seconds)
    });
    gates
        .chain(ends)
        .chain(counted.map(|(labels, count)| ("check", labels, count)))
        .collect()
}

/// Prometheus text. Labels come from closed sets: sites, observers, kinds, states, codes.
async fn metrics(State(api): State<Api>) -> String {
    use std::fmt::Write;

    let Some(status) = api.status.borrow().clone() else {
        return String::new();
    };
    let mut text = String::new();
    let situation = &status.situation;
    let group = &situation.group;
    let mut gauge = |name: &str, labels: BTreeMap<&str, String>, value: u64| {
        let labels = labels.iter();
        let labels: Vec<String> = labels
            .map(|(name, value)| format!("{name}=\"{value}\""))
            .collect();
        // Writing to a String cannot fail.
        writeln!(
            text,
            "failover_{name}{{group=\"{group}\",{}}} {value}",
            labels.join(",")
        )
        .unwrap_or_default();
    };
    gauge("epoch", BTreeMap::new(), situation.epoch.0);
    gauge("log_entries", BTreeMap::new(), status.log.0);
    gauge(
        "ready",
        BTreeMap::new(),
        u64::from(obstacles(&status).is_empty()),
    );
    gauge(
        "plan_open",
        BTreeMap::new(),
        u64::from(status.plan.is_some()),
    );
    let plan = status.plan.as_ref();
    let stuck = plan.is_some_and(|plan| plan.stuck.is_some());
    gauge("plan_stuck", BTreeMap::new(), u64::from(stuck));
    if let Some(lag) = situation.replication.lag() {
        gauge("standby_lag_bytes", BTreeMap::new(), lag.0);
    }
    for (name, site) in &situation.sites {
        gauge(
            "site_active",
            BTreeMap::from([("site", name.to_string())]),
            u64::from(*name == situation.active),
        );
        for (kind, health) in &site.health {
            for state in [
                Health::Healthy,
                Health::Suspect,
                Health::Failed,
                Health::Unknown,
            ] {
                let labels = BTreeMap::from([
                    ("site", name.to_string()),
                    ("target", kind.to_string()),
                    ("state", state.to_string()),
                ]);
                gauge("health", labels, u64::from(health.state == state));
            }
        }
    }
    for (name, age) in observer_ages(&situation.observers) {
        let labels = BTreeMap::from([("observer", name)]);
        gauge("observer_report_age_milliseconds", labels, age);
    }
    for (name, labels, value) in of_checks(&status) {
        gauge(name, labels, value);
    }
    text + &clocks(situation)
}

/// How far each site's wall clock is ahead of ours; negative where it is behind.
fn clocks(situation: &Situation) -> String {
    let group = &situation.group;
    let each = situation.sites.iter().filter_map(|(site, facts)| {
        let ahead = facts.clock?.ahead_ms;
        let labels = format!("group=\"{group}\",site=\"{site}\"");
        Some(format!(
            "failover_clock_skew_milliseconds{{{labels}}} {ahead}\n"
        ))
    });
    each.collect()
}
