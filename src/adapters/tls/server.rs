//! The server's side: handshakes that cannot hold each other up, and a record of who was
//! turned away.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::super::http::{Admission, Patient, Room, Ticket, serve_with};
use super::standing::Standing;
use super::{Identity, TlsError, TlsMaterial};
use crate::engine::lasting::Lasting;
use crate::engine::units::MonoTime;

/// Connections at once: two sites, a handful of people and observers, times twenty. A handshake
/// takes some round trips, so that the oldest of many of one source is one that does not mean to
/// end: it is dropped.
const ROOM: Room = Room {
    open: 256,
    open_each: 32,
    handshakes: 192,
    handshakes_each: 64,
    handshakes_known: 64,
};

/// How long a handshake may take: some round trips around the world.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a rejected client is listened to, so that it can read why it was rejected.
const LINGER: Duration = Duration::from_millis(500);

/// Who is at the other end of a connection; handlers have it as `ConnectInfo<PeerIdentity>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// From its certificate, which our authority issued and which is valid now.
    pub identity: Identity,
    /// Where it connects from. For logs: an address proves nothing.
    pub address: SocketAddr,
}

/// A connection that was turned away before any request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RejectedPeer {
    /// Where it came from.
    pub address: SocketAddr,
    /// Why.
    pub error: String,
}

/// A listening socket with what is needed to know who connects.
pub struct TlsListener {
    listener: TcpListener,
    config: Arc<ServerConfig>,
    material: TlsMaterial,
    rejected: Option<mpsc::Sender<RejectedPeer>>,
    expected: Vec<IpAddr>,
}

impl std::fmt::Debug for TlsListener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TlsListener({:?})", self.listener)
    }
}

impl TlsListener {
    /// Makes a socket ours. Each rejected connection is logged and offered to `rejected`, which
    /// misses some while it is full.
    pub fn new(
        listener: TcpListener,
        material: &TlsMaterial,
        rejected: Option<mpsc::Sender<RejectedPeer>>,
    ) -> Result<Self, TlsError> {
        Ok(Self {
            listener,
            config: Arc::new(material.server_config()?),
            material: material.clone(),
            rejected,
            expected: Vec::new(),
        })
    }

    /// Keeps room for those who connect from these addresses, whatever others do. For everybody
    /// who has shown a good certificate it is kept from then on.
    #[must_use]
    pub fn expecting(mut self, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        self.expected.extend(addresses);
        self
    }
}

/// Serves those whose certificate says who they are, for as long as it is believed, until `shutdown` is true or its sender is
/// gone; then open requests have 5 s.
pub async fn serve(listener: TlsListener, router: Router, shutdown: watch::Receiver<bool>) {
    let TlsListener {
        listener,
        config,
        material,
        rejected,
        expected,
    } = listener;
    let admission = Admission::new(ROOM, expected);
    let began = Instant::now();
    let turned_away = Arc::new(Mutex::new(Lasting::default()));
    serve_with(listener, router, shutdown, move |stream, address| {
        let (ticket, mut crowded_out) = admission.greet(address.ip());
        let turned_away = Arc::clone(&turned_away);
        let config = Arc::clone(&config);
        let material = material.clone();
        let rejected = rejected.clone();
        Some(async move {
            let established = establish(stream, config, &ticket, &mut crowded_out).await;
            let (error, stream) = match established {
                Ok((stream, identity)) => {
                    let stream = Standing::new(stream, material);
                    return Some((stream, PeerIdentity { identity, address }, ticket));
                }
                Err(rejection) => rejection,
            };
            let now = MonoTime(began.elapsed());
            let again = |mut known: MutexGuard<'_, Lasting>| known.again(&error, now);
            let known = turned_away.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(lasting) = again(known) {
                let what = "connection rejected";
                tracing::warn!(peer_addr = %address, error, lasting.times, lasting.ms, "{what}");
            }
            if let Some(rejected) = rejected {
                // A full channel already holds more rejections than anybody reads.
                drop(rejected.try_send(RejectedPeer { address, error }));
            }
            // It still has its ticket, so that the limits cover it.
            if let Some(stream) = stream {
                linger(stream, crowded_out).await;
            }
            None
        })
    })
    .await;
}

/// Why a connection is turned away, and the stream on which an alert says so.
type Rejection = (String, Option<Patient>);

async fn establish(
    stream: Patient,
    config: Arc<ServerConfig>,
    ticket: &Ticket,
    crowded_out: &mut oneshot::Receiver<()>,
) -> Result<(TlsStream<Patient>, Identity), Rejection> {
    let handshake = TlsAcceptor::from(config).accept(stream).into_fallible();
    let ended = tokio::select! {
        ended = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake) => ended,
        _dropped = crowded_out => return Err(("too many handshakes at once".to_owned(), None)),
    };
    let mut stream = match ended {
        Ok(Ok(stream)) => stream,
        Ok(Err((error, stream))) => return Err((super::chain_text(&error), Some(stream))),
        Err(_elapsed) => return Err((format!("no handshake within {HANDSHAKE_TIMEOUT:?}"), None)),
    };
    let certificates = stream.get_ref().1.peer_certificates();
    let identity = certificates
        .and_then(<[_]>::first)
        .ok_or_else(|| "no certificate".to_owned())
        .and_then(|certificate| Identity::of(certificate).map_err(|cause| cause.to_string()))
        .and_then(|identity| {
            let greeted = ticket.greeted(&identity.to_string());
            greeted.map(|()| identity).map_err(|full| full.to_string())
        });
    match identity {
        Ok(identity) => Ok((stream, identity)),
        Err(error) => {
            // The rejection stands whether or not the client hears it, and however slowly it
            // reads: what is written here fits the socket's buffer.
            drop(stream.shutdown().await);
            Err((error, None))
        }
    }
}

/// Reads on until the client has closed: bytes left unread would make the kernel reset the
/// connection, and the client would lose the alert that tells it why.
async fn linger(mut stream: Patient, crowded_out: oneshot::Receiver<()>) {
    let rest = async {
        stream.shutdown().await?;
        let mut buffer = [0; 1024];
        while stream.read(&mut buffer).await? > 0 {}
        Ok::<(), std::io::Error>(())
    };
    tokio::select! {
        _ended = tokio::time::timeout(LINGER, rest) => {}
        _dropped = crowded_out => {}
    }
}
