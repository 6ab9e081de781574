//! A double of Google's global external application load balancer with one backend service: its API
//! keeps fingerprints and operations, and its edge leads connections to the sites by what was
//! written, some time after that.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use data_encoding::BASE64;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::script::{Refusal, Script, refuse};

/// The project and the backend service of the double.
pub const PROJECT: &str = "shop-project";
/// See [`PROJECT`].
pub const SERVICE: &str = "shop-backends";

/// What the double is made of.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where its API answers.
    pub api: SocketAddr,
    /// Where users enter.
    pub edge: SocketAddr,
    /// Each site's group, by the end of its URL, and where its service answers.
    pub groups: Vec<(String, SocketAddr)>,
    /// How long an operation takes until it is done.
    pub takes: Duration,
    /// How long after that the edge still leads the old way.
    pub lag: Duration,
}

/// A running double. It ends with this value.
#[derive(Debug)]
pub struct LoadBalancer {
    /// Where its API answers.
    pub address: SocketAddr,
    /// Where users enter.
    pub edge: SocketAddr,
    /// What its API answers and was asked.
    pub script: Arc<Script>,
    inside: Arc<Inside>,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Inside {
    settings: Settings,
    script: Arc<Script>,
    kept: Mutex<Kept>,
    /// What the edge goes by: each group's share, in hundredths.
    shares: watch::Sender<Vec<u32>>,
}

#[derive(Debug, Default)]
struct Kept {
    service: Value,
    version: u64,
    operations: Vec<Doing>,
    /// An operation is under way: Google takes no other one meanwhile.
    busy: bool,
    /// The operation of each request that was seen.
    requests: HashMap<String, usize>,
    /// Why the next operation fails when it is done.
    fails: Option<String>,
}

/// What became of an operation so far.
#[derive(Debug, Clone)]
enum Doing {
    Running,
    Done,
    Failed(String),
}

impl LoadBalancer {
    /// Starts with the first group on, and the others drained.
    pub async fn start(settings: Settings) -> io::Result<Self> {
        let script = Arc::<Script>::default();
        let api = TcpListener::bind(settings.api).await?;
        let edge = TcpListener::bind(settings.edge).await?;
        let (address, edge_address) = (api.local_addr()?, edge.local_addr()?);
        let scaler = |index: usize| if index == 0 { 1.0 } else { 0.0 };
        let groups = settings.groups.iter().enumerate();
        let backends: Vec<Value> = groups
            .map(|(index, (end, _))| {
                json!({
                    "group": format!("https://www.googleapis.com/compute/v1/projects/{PROJECT}/{end}"),
                    "balancingMode": "RATE", "maxRatePerEndpoint": 100.5,
                    "capacityScaler": scaler(index), "preference": "DEFAULT",
                })
            })
            .collect();
        let (shares, _) = watch::channel(shares_of(&backends));
        let service = json!({
            "kind": "compute#backendService", "name": SERVICE, "backends": backends,
            "loadBalancingScheme": "EXTERNAL_MANAGED",
        });
        let kept = Kept {
            service,
            version: 1,
            ..Kept::default()
        };
        let inside = Arc::new(Inside {
            settings,
            script: Arc::clone(&script),
            kept: Mutex::new(kept),
            shares,
        });
        let tasks = vec![
            tokio::spawn(serve(api, Arc::clone(&inside))),
            tokio::spawn(lead(edge, Arc::clone(&inside))),
        ];
        Ok(Self {
            address,
            edge: edge_address,
            script,
            inside,
            tasks,
        })
    }

    /// Changes the backend service as somebody else would.
    pub fn meddle(&self, change: impl FnOnce(&mut Value)) {
        let mut kept = self.inside.kept();
        change(&mut kept.service);
        kept.version = kept.version.saturating_add(1);
    }

    /// The backend service as it is stored.
    pub fn service(&self) -> Value {
        self.inside.kept().service.clone()
    }

    /// The next operation is done with this error.
    pub fn fail_next_operation(&self, why: &str) {
        self.inside.kept().fails = Some(why.to_owned());
    }
}

impl Drop for LoadBalancer {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Kept {
    fn fingerprint(&self) -> String {
        BASE64.encode(&self.version.to_be_bytes())
    }

    /// Takes a patch: what is to be stored, or `None` where the request was seen before and is
    /// ignored; and the number of its operation.
    fn patch(
        &mut self,
        request: Option<&String>,
        body: &Value,
    ) -> Result<(usize, Option<Value>), Refusal> {
        if let Some(number) = request.and_then(|request| self.requests.get(request)) {
            return Ok((*number, None));
        }
        if self.busy {
            let said = "The resource is not ready: another operation is under way";
            return Err(refuse(StatusCode::BAD_REQUEST, said));
        }
        if body["fingerprint"] != json!(self.fingerprint()) {
            let said = "Invalid fingerprint.";
            return Err(refuse(StatusCode::PRECONDITION_FAILED, said));
        }
        let mut service = self.service.clone();
        if let Some(backends) = body.get("backends") {
            check(backends).map_err(|why| refuse(StatusCode::BAD_REQUEST, why))?;
            // An array is replaced whole.
            service["backends"] = backends.clone();
        }
        self.busy = true;
        self.operations.push(Doing::Running);
        let number = self.operations.len();
        if let Some(request) = request {
            self.requests.insert(request.clone(), number);
        }
        Ok((number, Some(service)))
    }

    /// The operation is done, or has failed; what is stored from now on.
    fn finish(&mut self, number: usize, service: Value) -> Option<Value> {
        self.busy = false;
        let doing = self.operations.get_mut(number.checked_sub(1)?)?;
        if let Some(why) = self.fails.take() {
            *doing = Doing::Failed(why);
            return None;
        }
        *doing = Doing::Done;
        self.version = self.version.saturating_add(1);
        self.service = service.clone();
        Some(service)
    }

    fn operation(&self, number: usize) -> Option<Value> {
        let doing = self.operations.get(number.checked_sub(1)?)?;
        Some(match doing {
            Doing::Running => told(number, "RUNNING"),
            Doing::Done => told(number, "DONE"),
            Doing::Failed(why) => {
                let mut operation = told(number, "DONE");
                operation["httpErrorStatusCode"] = json!(412);
                let error = json!({"code": "CONDITION_NOT_MET", "message": why});
                operation["error"] = json!({"errors": [error]});
                operation
            }
        })
    }
}

fn told(number: usize, status: &str) -> Value {
    let name = format!("operation-{number}");
    json!({"kind": "compute#operation", "name": name, "status": status, "operationType": "patch"})
}

/// What Google takes of backends.
fn check(backends: &Value) -> Result<(), String> {
    let backends = backends.as_array().map_or(&[][..], Vec::as_slice);
    for backend in backends {
        let scaler = backend["capacityScaler"].as_f64().unwrap_or(1.0);
        if scaler != 0.0 && !(0.1..=1.0).contains(&scaler) {
            return Err(format!(
                "Invalid value for field 'capacityScaler': '{scaler}'"
            ));
        }
        if scaler == 0.0 && backends.len() == 1 {
            return Err("capacityScaler of the only backend cannot be 0".to_owned());
        }
    }
    Ok(())
}

/// The shares that backends have, in hundredths. A scaler that was not sent is 1.
fn shares_of(backends: &[Value]) -> Vec<u32> {
    let share = |backend: &Value| {
        let scaler = backend["capacityScaler"].as_f64().unwrap_or(1.0) * 100.0;
        format!("{scaler:.0}").parse().unwrap_or_default()
    };
    backends.iter().map(share).collect()
}

impl Inside {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn knows(project: &str, service: &str) -> Result<(), Refusal> {
        if project == PROJECT && service == SERVICE {
            return Ok(());
        }
        let text = format!(
            "The resource 'projects/{project}/global/backendServices/{service}' was not found"
        );
        Err(refuse(StatusCode::NOT_FOUND, text))
    }

    /// Does an operation, and lets the edge have it.
    async fn finish(&self, number: usize, service: Value) {
        tokio::time::sleep(self.settings.takes).await;
        let Some(service) = self.kept().finish(number, service) else {
            return;
        };
        tokio::time::sleep(self.settings.lag).await;
        let backends = service["backends"].as_array();
        self.shares
            .send_replace(shares_of(backends.map_or(&[], Vec::as_slice)));
    }
}

async fn serve(listener: TcpListener, inside: Arc<Inside>) {
    let global = "/compute/v1/projects/{project}/global";
    let app = Router::new()
        .route(
            &format!("{global}/backendServices/{{service}}"),
            get(backend_service).patch(patch),
        )
        .route(
            &format!("{global}/operations/{{operation}}"),
            get(operation),
        )
        .with_state(inside);
    if let Err(error) = axum::serve(listener, app).await {
        tracing::error!(%error, "the double of the load balancer ended");
    }
}

async fn backend_service(
    State(inside): State<Arc<Inside>>,
    Path((project, service)): Path<(String, String)>,
) -> Result<Json<Value>, Refusal> {
    inside.script.read();
    Inside::knows(&project, &service)?;
    let kept = inside.kept();
    let mut service = kept.service.clone();
    service["fingerprint"] = json!(kept.fingerprint());
    Ok(Json(service))
}

async fn patch(
    State(inside): State<Arc<Inside>>,
    Path((project, service)): Path<(String, String)>,
    Query(query): Query<BTreeMap<String, String>>,
    body: String,
) -> Result<Response, Refusal> {
    let planned = inside.script.change(&body);
    if let Some(planned) = &planned
        && !planned.effective
    {
        return Ok(planned.clone().into_response());
    }
    Inside::knows(&project, &service)?;
    let body: Value = serde_json::from_str(&body)
        .map_err(|error| refuse(StatusCode::BAD_REQUEST, error.to_string()))?;
    let (number, service) = inside.kept().patch(query.get("requestId"), &body)?;
    if let Some(service) = service {
        let later = Arc::clone(&inside);
        tokio::spawn(async move { later.finish(number, service).await });
    }
    Ok(match planned {
        Some(planned) => planned.into_response(),
        None => Json(told(number, "RUNNING")).into_response(),
    })
}

async fn operation(
    State(inside): State<Arc<Inside>>,
    Path((_project, name)): Path<(String, String)>,
) -> Result<Json<Value>, Refusal> {
    inside.script.read();
    let number = name.strip_prefix("operation-").and_then(|n| n.parse().ok());
    let operation = number.and_then(|number| inside.kept().operation(number));
    let gone = || refuse(StatusCode::NOT_FOUND, format!("no operation '{name}'"));
    operation.map(Json).ok_or_else(gone)
}

/// Leads each connection to the site whose turn it is, and ends those that lead elsewhere when the
/// shares change.
async fn lead(listener: TcpListener, inside: Arc<Inside>) {
    let mut turn = 0u32;
    while let Ok((client, _)) = listener.accept().await {
        let mut shares = inside.shares.subscribe();
        let chosen = chosen(&shares.borrow_and_update(), turn);
        turn = turn.wrapping_add(1);
        let groups = &inside.settings.groups;
        let site = chosen
            .and_then(|index| groups.get(index))
            .map(|(_, at)| *at);
        tokio::spawn(async move {
            tokio::select! {
                passed = pass(client, site) => {
                    if let Err(error) = passed {
                        tracing::debug!(%error, "a connection through the edge ended");
                    }
                }
                _ = shares.changed() => {}
            }
        });
    }
}

fn chosen(shares: &[u32], turn: u32) -> Option<usize> {
    let total: u32 = shares.iter().sum();
    let mut turn = turn.checked_rem(total)?;
    shares
        .iter()
        .position(|share| match turn.checked_sub(*share) {
            Some(left) => {
                turn = left;
                false
            }
            None => true,
        })
}

const NO_BACKEND: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// The longest head of a request that the edge reads before it turns a user away, in bytes.
const HEAD_LIMIT: usize = 16 << 10;

async fn pass(mut client: TcpStream, site: Option<SocketAddr>) -> io::Result<()> {
    let server = match site {
        Some(site) => TcpStream::connect(site).await.ok(),
        None => None,
    };
    match server {
        Some(mut server) => copy_bidirectional(&mut client, &mut server).await.map(drop),
        None => turn_away(&mut client).await,
    }
}

/// The request is read first: a connection that is closed while something unread lies in it is reset,
/// and the client may lose the answer.
async fn turn_away(client: &mut TcpStream) -> io::Result<()> {
    let mut head = Vec::new();
    while head.len() < HEAD_LIMIT && !head.ends_with(b"\r\n\r\n") {
        if client.read_buf(&mut head).await? == 0 {
            break;
        }
    }
    client.write_all(NO_BACKEND).await
}

#[cfg(test)]
mod tests {
    use super::chosen;

    #[test]
    fn the_edge_leads_by_shares_and_nowhere_without_any() {
        let count = |shares: &[u32]| {
            (0..100)
                .filter(|turn| chosen(shares, *turn) == Some(1))
                .count()
        };
        assert_eq!(count(&[0, 100]), 100);
        assert_eq!(count(&[100, 0]), 0);
        assert_eq!(count(&[50, 50]), 50);
        assert_eq!(chosen(&[0, 0], 7), None);
    }
}
