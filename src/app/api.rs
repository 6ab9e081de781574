//! The controller's HTTP API: for agents and observers (reports) and operators (the command line),
//! over mutual TLS; and, in plain HTTP, liveness, readiness and metrics.

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
use super::metrics;
use crate::adapters::exposition::expose;
use crate::adapters::files;
use crate::adapters::messages::{Incoming, Outgoing, Unread};
use crate::adapters::places::placed;
use crate::adapters::tls::{Identity, OperatorRole, PeerIdentity};
use crate::engine::rate::{Budgets, Rate};
use crate::engine::readiness;
use crate::engine::text::{harmless, typed};
use crate::engine::topology::GroupName;
use crate::ports::Clock;
use crate::wire::{
    GROUPS_PATH, Groups, LogPart, MESSAGE_LIMIT, OBSERVED_LIMIT, OBSERVED_PATH, ONLY_PLACE,
    PromoteAsk, REPORT_LIMIT, REPORT_PATH, Readiness, Status,
};

mod orders;
mod reports;

/// The most entries in one answer.
const LOG_PART: usize = 200;

/// The most bytes of lines in one answer, exceeded by at most one line: both escaped in JSON are
/// below the 4 MiB that the command line accepts.
const LOG_PART_BYTES: usize = 1 << 20;

/// How long a request for new entries may wait for one.
const LONGEST_WAIT: Duration = Duration::from_secs(20);

/// The shared state of the handlers.
#[derive(Debug, Clone)]
pub struct Api {
    /// The control loop.
    pub control: Handle,
    /// The decision log.
    pub journal: Journal,
    /// The control loop's published state.
    pub status: watch::Receiver<Option<Status>>,
    /// The group.
    pub group: GroupName,
    /// The log's file.
    pub log: PathBuf,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Limits how often each operator may send commands.
    pub commands: Arc<Mutex<Budgets<Identity>>>,
}

type Answer<T> = Result<Outgoing<T>, Problem>;

/// The answer to what has no other than that it is done.
type Done = Result<Json<()>, Problem>;

/// An error answer.
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

fn only_just_started() -> Problem {
    let text = "the controller has only just started".to_owned();
    Problem(StatusCode::SERVICE_UNAVAILABLE, text)
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
    let group = api.group.clone();
    let routes = Router::new()
        .route(
            REPORT_PATH,
            post(reports::report).layer(DefaultBodyLimit::max(REPORT_LIMIT)),
        )
        .route(
            OBSERVED_PATH,
            post(reports::observed).layer(DefaultBodyLimit::max(OBSERVED_LIMIT)),
        )
        .route("/status", get(status))
        .route("/check", get(check))
        .route("/promote", post(promote))
        .route("/hold", post(orders::hold))
        .route("/release", post(orders::release))
        .route("/adopt", post(orders::adopt))
        .route("/adopt-instance", post(orders::adopt_instance))
        .route("/log", get(log))
        // A route's own header takes precedence.
        .layer(DefaultBodyLimit::max(MESSAGE_LIMIT))
        .with_state(api.clone());
    let groups = get(groups).with_state(api);
    placed(&group, routes).route(&format!("{ONLY_PLACE}{GROUPS_PATH}"), groups)
}

/// The API for health checks and metrics.
pub fn plain_router(api: Api) -> Router {
    Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(api)
}

/// What an operator requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    /// To read something.
    Read,
    Promote,
    Hold,
    Release,
    /// To state the actual state, or which instance counts.
    Adopt,
}

/// How often one operator may send commands. A script in a loop must not fill the log.
const COMMANDS: Rate = Rate {
    burst: 20,
    every: Duration::from_secs(3),
};

/// How many operators' commands are counted separately.
const COMMANDERS: usize = 64;

/// Unused budgets for operators' commands.
pub fn commands() -> Arc<Mutex<Budgets<Identity>>> {
    Arc::new(Mutex::new(Budgets::new(COMMANDS, COMMANDERS)))
}

/// Who may request what: decided only here. Returns the operator's name, from the certificate.
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
            "`{}` is for another group, and this is the controller of `{}`: use a certificate for this group (see runbooks/agent-rejected.md)",
            peer.identity, api.group
        );
        return refused(StatusCode::FORBIDDEN, text);
    }
    match (verb, role) {
        (Verb::Read, _) => return Ok(name.clone()),
        (Verb::Promote | Verb::Hold | Verb::Release | Verb::Adopt, OperatorRole::Operator) => {}
        (Verb::Promote | Verb::Hold | Verb::Release | Verb::Adopt, OperatorRole::Reader) => {
            let text = format!(
                "`{}` can only read: ask an operator of `{}`, or get an operator's certificate (see runbooks/agent-rejected.md)",
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

/// An operator's reason for a command, if the log can hold it unchanged.
fn reason(text: &str) -> Result<String, Problem> {
    typed(text).map_err(|error| Problem(StatusCode::BAD_REQUEST, error.to_string()))
}

/// Which groups there are, for whoever was told of none.
async fn groups(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<PeerIdentity>,
) -> Answer<Groups> {
    person(&api, &peer, Verb::Read)?;
    Ok(Outgoing(Groups {
        groups: vec![api.group],
    }))
}

async fn status(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<PeerIdentity>,
) -> Answer<Status> {
    person(&api, &peer, Verb::Read)?;
    let status = api.status.borrow().clone();
    status.map(Outgoing).ok_or_else(only_just_started)
}

/// Every check of what would block a failover now. Whoever asks again a second later is told what was
/// rehearsed meanwhile.
async fn check(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<PeerIdentity>,
) -> Answer<Readiness> {
    person(&api, &peer, Verb::Read)?;
    api.control.rehearse();
    let status = api.status.borrow().clone();
    status
        .map(|status| Outgoing(Readiness::of(&status)))
        .ok_or_else(only_just_started)
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
    /// The number of the first entry wanted.
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
        // If the journal has ended, so has the controller: existing entries are still served.
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

/// Ready to fail over: the controller can judge, and nothing known would block a failover if the
/// active site died now.
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

/// What blocks, in words.
pub fn obstacles(status: &Status) -> Vec<String> {
    let blocking = readiness::obstacles(&status.decision).into_iter();
    blocking.map(|reason| reason.to_string()).collect()
}

/// For Prometheus. Before anything was decided there is nothing to tell.
async fn metrics(State(api): State<Api>) -> Result<Response, Problem> {
    let status = api.status.borrow().clone();
    let status = status.ok_or_else(only_just_started)?;
    let common = vec![("group", api.group.to_string())];
    Ok(expose(metrics::FAMILIES, common, &status))
}
