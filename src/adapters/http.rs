//! HTTP towards users' side: probes of the service, and a server that slow or hostile clients
//! cannot hold up. What a probe's answer means is decided elsewhere.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, Method, Request, StatusCode, Uri, header, uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::reread::{CredentialBook, Reread};
use super::tls::{Believed, client_of, roots_of};
use crate::ports::Clock;

mod admission;
mod patient;
mod serve;

pub(crate) use admission::{Admission, Room, Ticket};
pub(crate) use patient::Patient;
pub use serve::serve_plain;
pub(crate) use serve::serve_with;

/// How much of a probe's answer is kept, in bytes: a health page is shorter.
const PROBE_BODY_LIMIT: usize = 64 * 1024;

/// Whose certificates an HTTPS probe believes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// Those of the operating system, as users' programs do (`SSL_CERT_FILE` is honoured).
    System,
    /// Those in a PEM file, and no other.
    File(PathBuf),
}

/// The roots for probes cannot be had.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot use the root certificates of {place}: {cause}: name a PEM file with the root of the service's certificate"
)]
pub struct RootsError {
    place: String,
    cause: String,
}

/// What the service answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpAnswer {
    /// The status, always 2xx.
    pub status: u16,
    /// Those of the headers asked for that were there, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body, cut at 64 KiB.
    pub body: Bytes,
    /// From before the name was looked up to the end of the body.
    pub took: Duration,
}

/// Why a probe did not get a good answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "text")]
pub enum ProbeError {
    /// No answer in time: a dead host, a dropped packet or a hung service.
    #[error("no answer in time")]
    Timeout,
    /// The host is there and nobody listens.
    #[error("connection refused")]
    Refused,
    /// The name is not known or there is no way to the host.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// The certificate is not good, or the other side does not speak TLS.
    #[error("TLS: {0}")]
    Tls(String),
    /// What was answered is not HTTP, or the connection broke off.
    #[error("incomplete HTTP answer: {0}")]
    Protocol(String),
    /// The service answered with a status other than 2xx. Redirects are not followed.
    #[error("status {0}")]
    Status(u16),
}

/// Makes probes. One for the process: reading the root certificates is what costs.
#[derive(Clone)]
pub struct HttpProber {
    tls: TlsConnector,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for HttpProber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpProber").finish_non_exhaustive()
    }
}

impl HttpProber {
    /// A prober that believes `roots`.
    pub fn new(roots: &Roots, clock: Arc<dyn Clock>) -> Result<Self, RootsError> {
        Self::noting(roots, clock, &Arc::default())
    }

    /// What asks over HTTP, believing the roots of a file, or of the operating system where none is
    /// given; it writes into `book` when the certificates end that it sees.
    pub fn believing(
        roots: Option<&Path>,
        clock: &Arc<dyn Clock>,
        book: &Arc<CredentialBook>,
    ) -> Result<Self, RootsError> {
        let roots = roots.map_or(Roots::System, |path| Roots::File(path.to_owned()));
        Self::noting(&roots, Arc::clone(clock), book)
    }

    /// The same, which writes into `book` when the certificates end that it sees. A file of roots
    /// is read again when it changes.
    fn noting(
        roots: &Roots,
        clock: Arc<dyn Clock>,
        book: &Arc<CredentialBook>,
    ) -> Result<Self, RootsError> {
        let believed = match roots {
            Roots::System => Believed::System(Arc::new(system_roots()?)),
            Roots::File(path) => {
                let read = |path: &Path| {
                    roots_of(path).map_err(|cause| RootsError {
                        place: format!("`{}`", path.display()),
                        cause,
                    })
                };
                Believed::File(Reread::new("roots for probes", path, book, read)?)
            }
        };
        let mut config = client_of(believed, None, Arc::clone(book));
        // Each probe proves that the service can make a whole new connection.
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            tls: TlsConnector::from(Arc::new(config)),
            clock,
        })
    }

    /// Asks for `url` over a connection of its own, and closes it. `headers` are the names of
    /// the response headers to keep.
    pub async fn probe(
        &self,
        url: &Uri,
        timeout: Duration,
        headers: &[&str],
    ) -> Result<HttpAnswer, ProbeError> {
        self.within(timeout, (Method::GET, url), None, headers)
            .await
    }

    /// As [`HttpProber::probe`], but connects to `address` whatever the name resolves to. Host
    /// header and server name stay those of `url`.
    pub async fn probe_at(
        &self,
        url: &Uri,
        address: SocketAddr,
        timeout: Duration,
        headers: &[&str],
    ) -> Result<HttpAnswer, ProbeError> {
        self.within(timeout, (Method::GET, url), Some(address), headers)
            .await
    }

    /// Posts an empty body to `url` at `address`: for a service that takes what it is to write
    /// from the query.
    pub async fn post_at(
        &self,
        url: &Uri,
        address: SocketAddr,
        timeout: Duration,
    ) -> Result<HttpAnswer, ProbeError> {
        self.within(timeout, (Method::POST, url), Some(address), &[])
            .await
    }

    async fn within(
        &self,
        timeout: Duration,
        what: (Method, &Uri),
        address: Option<SocketAddr>,
        headers: &[&str],
    ) -> Result<HttpAnswer, ProbeError> {
        let started = self.clock.now();
        let (status, found, body) = tokio::time::timeout(timeout, self.ask(what, address))
            .await
            .map_err(|_elapsed| ProbeError::Timeout)??;
        if !status.is_success() {
            return Err(ProbeError::Status(status.as_u16()));
        }
        let kept = |name: &&str| {
            let value = found.get(*name)?.to_str().ok()?;
            Some((name.to_ascii_lowercase(), value.to_owned()))
        };
        Ok(HttpAnswer {
            status: status.as_u16(),
            headers: headers.iter().filter_map(kept).collect(),
            body,
            took: started.until(self.clock.now()),
        })
    }

    async fn ask(
        &self,
        (method, url): (Method, &Uri),
        address: Option<SocketAddr>,
    ) -> Result<(StatusCode, HeaderMap, Bytes), ProbeError> {
        let wrong = |what: &str| ProbeError::Unreachable(format!("`{url}` has no {what}"));
        let authority = url.authority().ok_or_else(|| wrong("host"))?;
        let host = authority.host().trim_matches(['[', ']']);
        let secure = match url.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            Some(_) | None => return Err(wrong("scheme `http` or `https`")),
        };
        let port = authority
            .port_u16()
            .unwrap_or(if secure { 443 } else { 80 });
        let stream = match address {
            Some(address) => TcpStream::connect(address).await,
            None => TcpStream::connect((host, port)).await,
        };
        let stream = stream.map_err(connect_error)?;
        let path = url.path_and_query().map_or("/", uri::PathAndQuery::as_str);
        let whole = authority.as_str();
        let without_credentials = whole.rsplit_once('@').map_or(whole, |(_, host)| host);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_LENGTH, 0)
            .header(header::HOST, without_credentials)
            .header(header::CONNECTION, "close")
            .header(
                header::USER_AGENT,
                concat!("failover/", env!("CARGO_PKG_VERSION")),
            )
            .body(Empty::<Bytes>::new())
            .map_err(|cause| ProbeError::Unreachable(cause.to_string()))?;
        if secure {
            let name = ServerName::try_from(host.to_owned())
                .map_err(|cause| ProbeError::Tls(cause.to_string()))?;
            let stream = self
                .tls
                .connect(name, stream)
                .await
                .map_err(|cause| ProbeError::Tls(cause.to_string()))?;
            exchange(stream, request).await
        } else {
            exchange(stream, request).await
        }
    }
}

async fn exchange<Io: AsyncRead + AsyncWrite + Unpin>(
    io: Io,
    request: Request<Empty<Bytes>>,
) -> Result<(StatusCode, HeaderMap, Bytes), ProbeError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io))
        .await
        .map_err(|cause| protocol(&cause))?;
    let exchange = async move {
        let response = sender
            .send_request(request)
            .await
            .map_err(|cause| protocol(&cause))?;
        let (head, body) = response.into_parts();
        Ok((head.status, head.headers, beginning(body).await?))
    };
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        // The connection may end before its last bytes were taken from it; what it ended with
        // comes out of the exchange.
        _ended = connection => exchange.await,
    }
}

async fn beginning(mut body: Incoming) -> Result<Bytes, ProbeError> {
    let mut kept = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|cause| protocol(&cause))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        let room = PROBE_BODY_LIMIT.saturating_sub(kept.len());
        kept.extend(data.into_iter().take(room));
        if kept.len() >= PROBE_BODY_LIMIT {
            break;
        }
    }
    Ok(kept.into())
}

fn protocol(cause: &hyper::Error) -> ProbeError {
    ProbeError::Protocol(super::tls::chain_text(cause))
}

fn connect_error(cause: io::Error) -> ProbeError {
    if cause.kind() == io::ErrorKind::ConnectionRefused {
        ProbeError::Refused
    } else if cause.kind() == io::ErrorKind::TimedOut {
        ProbeError::Timeout
    } else {
        ProbeError::Unreachable(cause.to_string())
    }
}

fn system_roots() -> Result<RootCertStore, RootsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut store = RootCertStore::empty();
    // A single root that cannot be read is the system's business; none at all is ours.
    let (_added, _ignored) = store.add_parsable_certificates(found.certs);
    if store.is_empty() {
        let cause = found.errors.first().map(ToString::to_string);
        return Err(RootsError {
            place: "the system".to_owned(),
            cause: cause.unwrap_or_else(|| "there are none".to_owned()),
        });
    }
    Ok(store)
}
