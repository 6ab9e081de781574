//! The client's side: calls to one peer, known by its identity wherever it runs.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Identity, TlsError, TlsMaterial, chain_text};
use crate::engine::text::{clip_to, clipped};
use crate::engine::topology::GroupName;
use crate::engine::units::{UnitError, serde_as_text};
use crate::wire::written::{Message, Written};
use crate::wire::{ONLY_PLACE, place_of};

/// How long a connection, with its handshake, may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long an idle connection is kept. Shorter than the server's 10 s, so that no request is
/// written into a connection that the server is closing.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// The largest answer, in bytes: a page of the decision log with its evidence.
const ANSWER_LIMIT: usize = 4 * 1024 * 1024;

/// How much of an error's text is kept, in bytes.
const ERROR_TEXT_LIMIT: usize = 500;

/// Where a peer listens: `10.0.0.7:7000`, `[fd00::7]:7000` or `agent.example.org:7000`. Only a
/// way to the peer: who is there, its certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAddress {
    host: String,
    port: u16,
}

impl PeerAddress {
    /// The address itself, where it is not a name.
    pub fn ip(&self) -> Option<std::net::IpAddr> {
        self.host.parse().ok()
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for PeerAddress {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = || UnitError::new(text, "an address with a port", "10.0.0.7:7000");
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(address.into());
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if host.is_empty() || !host.bytes().all(legal) {
            return Err(wrong());
        }
        Ok(Self {
            host: host.to_owned(),
            port: port.parse().map_err(|_cause| wrong())?,
        })
    }
}

impl From<SocketAddr> for PeerAddress {
    fn from(address: SocketAddr) -> Self {
        Self {
            host: address.ip().to_string(),
            port: address.port(),
        }
    }
}

serde_as_text!(PeerAddress);

/// Whom to call and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Who must answer. Anybody else at the address is refused.
    pub identity: Identity,
    /// Where it listens.
    pub address: PeerAddress,
}

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "detail")]
pub enum CallError {
    /// No answer in time. The peer may have done what was asked.
    #[error("no answer in time")]
    Timeout,
    /// The host is there and nobody listens.
    #[error("connection refused")]
    Refused,
    /// No connection could be made.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// One side did not accept the other's certificate.
    #[error("TLS: {0}")]
    Tls(String),
    /// The connection broke after the request may have been sent. The peer may have done what
    /// was asked.
    #[error("connection lost: {0}")]
    Lost(String),
    /// The peer knows us and says that we may not (401 or 403).
    #[error("denied with status {status}: {text}")]
    Denied {
        /// 401 or 403.
        status: u16,
        /// What the peer says.
        text: String,
    },
    /// The peer answered with another status than 2xx.
    #[error("status {code}: {text}")]
    Status {
        /// The status.
        code: u16,
        /// What the peer says.
        text: String,
    },
    /// The peer answered 2xx and the answer cannot be read, or is longer than 4 MiB.
    #[error("answer cannot be read: {0}")]
    Garbled(String),
    /// The question could not be written; nothing was sent.
    #[error("cannot write the request: {0}")]
    Unsent(String),
}

impl CallError {
    /// Whether the peer itself, proven by its certificate, answered: it is alive.
    pub fn reached_peer(&self) -> bool {
        match self {
            CallError::Denied { .. } | CallError::Status { .. } | CallError::Garbled(_) => true,
            CallError::Timeout
            | CallError::Refused
            | CallError::Unreachable(_)
            | CallError::Tls(_)
            | CallError::Lost(_)
            | CallError::Unsent(_) => false,
        }
    }

    /// Whether the peer may have done what was asked, wholly or in part.
    pub fn outcome_unknown(&self) -> bool {
        match self {
            CallError::Timeout | CallError::Lost(_) | CallError::Garbled(_) => true,
            // A handler that failed may have failed half way.
            CallError::Status { code, .. } => *code >= 500,
            CallError::Refused
            | CallError::Unreachable(_)
            | CallError::Tls(_)
            | CallError::Denied { .. }
            | CallError::Unsent(_) => false,
        }
    }
}

/// Calls one peer. Keeps its connections for the next call; a clone shares them.
#[derive(Debug, Clone)]
pub struct PeerClient {
    material: TlsMaterial,
    /// With the number of changes of the material that it knows: a new one makes a new handshake.
    client: Arc<Mutex<(u64, Client)>>,
    peer: Arc<Peer>,
    group: Option<GroupName>,
}

impl PeerClient {
    /// A client for one peer. Connects at the first call.
    pub fn new(material: &TlsMaterial, peer: Peer) -> Result<Self, TlsError> {
        let known = *material.changes().borrow();
        let client = make(material, &peer)?;
        Ok(Self {
            material: material.clone(),
            client: Arc::new(Mutex::new((known, client))),
            peer: Arc::new(peer),
            group: None,
        })
    }

    /// The same connections, for the messages of a group. Without a group they are those of a
    /// process's only one.
    #[must_use]
    pub fn of(&self, group: &GroupName) -> Self {
        Self {
            group: Some(group.clone()),
            ..self.clone()
        }
    }

    /// The client for the next call. After a change of certificates it is a new one, without the
    /// connections that were made with the old ones.
    fn client(&self) -> Result<Client, CallError> {
        let now = *self.material.changes().borrow();
        let mut held = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if held.0 != now {
            let client = make(&self.material, &self.peer);
            let client = client.map_err(|error| CallError::Unsent(error.to_string()))?;
            *held = (now, client);
        }
        Ok(held.1.clone())
    }

    /// Whom this client calls.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Sends `body` as JSON to `path` of the group (`/order`) and reads the answer as JSON. `timeout`
    /// covers everything from the connection to the last byte.
    pub async fn post<B: Serialize + ?Sized, R: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
        timeout: Duration,
    ) -> Result<R, CallError> {
        let request = |client: &Client, url| client.post(url).json(body);
        read(&self.ask(path, request, timeout).await?)
    }

    /// Says a message at `path`, and reads the one that it is answered with. `timeout` as for
    /// [`PeerClient::post`].
    pub async fn say<M: Message, R: Message>(
        &self,
        path: &str,
        message: &M,
        timeout: Duration,
    ) -> Result<R, CallError> {
        let message = Written::ours(message);
        let request = |client: &Client, url| client.post(url).json(&message);
        let answer = Written::read(&self.ask(path, request, timeout).await?);
        let answer = answer.map_err(|refused| CallError::Garbled(refused.to_string()))?;
        Ok(answer.message)
    }

    /// Reads the JSON at `path` of the group. `timeout` as for [`PeerClient::post`].
    pub async fn get<R: DeserializeOwned>(
        &self,
        path: &str,
        timeout: Duration,
    ) -> Result<R, CallError> {
        read(&self.ask(path, Client::get, timeout).await?)
    }

    /// The body of the answer at `path` of the group. A process of before groups had places of their
    /// own answers 404 without a word, and is asked again where it has its only one.
    async fn ask(
        &self,
        path: &str,
        request: impl Fn(&Client, String) -> RequestBuilder,
        timeout: Duration,
    ) -> Result<Vec<u8>, CallError> {
        let client = self.client()?;
        let at = |place: &str| call(request(&client, self.url(place, path)), timeout);
        let Some(group) = &self.group else {
            return at(ONLY_PLACE).await;
        };
        let asked = async {
            match at(&place_of(group)).await {
                Err(CallError::Status { code: 404, text }) if text.is_empty() => {
                    at(ONLY_PLACE).await
                }
                answer => answer,
            }
        };
        let asked = tokio::time::timeout(timeout, asked).await;
        asked.unwrap_or(Err(CallError::Timeout))
    }

    fn url(&self, place: &str, path: &str) -> String {
        format!(
            "https://{}:{}{place}{path}",
            self.peer.identity, self.peer.address.port
        )
    }
}

fn make(material: &TlsMaterial, peer: &Peer) -> Result<Client, TlsError> {
    Client::builder()
        .tls_backend_preconfigured(material.client_config())
        .dns_resolver(ToPeer(peer.address.clone()))
        .https_only(true)
        .http1_only()
        // Neither the environment nor an answer may send us elsewhere, and only callers retry.
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .tcp_nodelay(true)
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .build()
        .map_err(|cause| TlsError::Refused(chain_text(&cause)))
}

/// Leads every name to the peer's address. A host name is looked up anew for each connection.
struct ToPeer(PeerAddress);

impl Resolve for ToPeer {
    fn resolve(&self, _identity: Name) -> Resolving {
        let PeerAddress { host, port } = self.0.clone();
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await?.collect();
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

fn read<R: DeserializeOwned>(answer: &[u8]) -> Result<R, CallError> {
    serde_json::from_slice(answer).map_err(|cause| CallError::Garbled(clipped(cause.to_string())))
}

/// The body of an answer that says yes.
async fn call(request: RequestBuilder, timeout: Duration) -> Result<Vec<u8>, CallError> {
    let response = request.timeout(timeout).send().await.map_err(call_error)?;
    let status = response.status();
    if status.is_success() {
        return bounded(response).await;
    }
    // The status is what counts; a text that cannot be read takes nothing from it.
    let body = bounded(response).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&body);
    let mut text = text.trim().to_owned();
    clip_to(&mut text, ERROR_TEXT_LIMIT);
    let code = status.as_u16();
    Err(match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            CallError::Denied { status: code, text }
        }
        _ => CallError::Status { code, text },
    })
}

async fn bounded(mut response: Response) -> Result<Vec<u8>, CallError> {
    let mut body = Vec::new();
    while let Some(part) = response.chunk().await.map_err(call_error)? {
        if body.len().saturating_add(part.len()) > ANSWER_LIMIT {
            return Err(CallError::Garbled(format!(
                "it is longer than {ANSWER_LIMIT} bytes"
            )));
        }
        body.extend_from_slice(&part);
    }
    Ok(body)
}

fn call_error(error: reqwest::Error) -> CallError {
    let text = chain_text(&error);
    let before_sending = error.is_connect();
    if error.is_builder() {
        return CallError::Unsent(text);
    }
    if let Some(tls) = in_chain::<rustls::Error>(&error) {
        // In TLS 1.3 the server's refusal of our certificate comes after the client is done with
        // the handshake, as an alert; no handler has seen the request then.
        if before_sending || matches!(tls, rustls::Error::AlertReceived(_)) {
            return CallError::Tls(tls.to_string());
        }
    }
    let refused = in_chain::<io::Error>(&error)
        .is_some_and(|cause| cause.kind() == io::ErrorKind::ConnectionRefused);
    match (before_sending, error.is_timeout()) {
        (true, _) if refused => CallError::Refused,
        (true, true) => CallError::Unreachable(format!("no connection within {CONNECT_TIMEOUT:?}")),
        (true, false) => CallError::Unreachable(text),
        (false, true) => CallError::Timeout,
        (false, false) => CallError::Lost(text),
    }
}

/// The first cause of a kind. An `io::Error` hides the error it wraps from `source`, so that one
/// is looked into by hand.
fn in_chain<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(found) = cause.downcast_ref::<E>() {
            return Some(found);
        }
        let wrapped = cause
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        next = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => cause.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip() {
        for text in [
            "10.0.0.7:7000",
            "[fd00::7]:7000",
            "agent-1.example.org:7000",
        ] {
            assert_eq!(text.parse::<PeerAddress>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "agent",
            ":7000",
            "agent:",
            "agent:70000",
            "a/b:1",
            "user@a:1",
            "fd00::7:1:",
        ] {
            assert!(text.parse::<PeerAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn only_an_answer_proves_that_the_peer_is_alive() {
        let text = String::new;
        let denied = CallError::Denied {
            status: 403,
            text: text(),
        };
        assert!(denied.reached_peer() && !denied.outcome_unknown());
        assert!(CallError::Timeout.outcome_unknown() && !CallError::Timeout.reached_peer());
        assert!(!CallError::Refused.outcome_unknown());
        let failed = CallError::Status {
            code: 500,
            text: text(),
        };
        assert!(failed.reached_peer() && failed.outcome_unknown());
    }
}
