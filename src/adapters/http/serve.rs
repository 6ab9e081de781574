//! The loop that serves connections, plain or through TLS, with a limit on everything that a
//! client could hold: connections, the time for a header, the time between parts of a body.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::ConnectInfo;
use axum::http::Request;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};

use super::admission::{Admission, Room, Ticket};
use super::patient::Patient;
use crate::engine::lasting::Lasting;
use crate::engine::units::MonoTime;

/// Connections served at once: two sites, a handful of people and scrapers, times twenty; a quarter
/// of them for one source. There is no handshake.
const PLAIN_ROOM: Room = Room {
    open: 256,
    open_each: 64,
    handshakes: 0,
    handshakes_each: 0,
    handshakes_known: 0,
};

/// How long a client may take for a header, and leave a connection idle. Longer than the 5 s for
/// which our own clients keep an idle connection, so that they never write into a closing one.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client may pause within a body.
const BODY_PAUSE: Duration = Duration::from_secs(10);

/// How long a whole body may take, however steadily it drips.
const BODY_WITHIN: Duration = Duration::from_secs(30);

/// How long open requests may go on after shutdown was asked for.
const DRAIN: Duration = Duration::from_secs(5);

/// How long accepting pauses when the system has no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The longest request header, in bytes.
const HEADER_LIMIT: usize = 32 * 1024;

/// Serves plain HTTP until `shutdown` is true or its sender is gone; then open requests have 5 s.
/// Handlers have the client's address as `ConnectInfo<SocketAddr>`.
pub async fn serve_plain(listener: TcpListener, router: Router, shutdown: watch::Receiver<bool>) {
    let admission = Admission::new(PLAIN_ROOM, []);
    let began = Instant::now();
    let mut turned_away = Lasting::default();
    serve_with(
        listener,
        router,
        shutdown,
        move |stream, address| match admission.admit(address.ip()) {
            Ok(ticket) => Some(std::future::ready(Some((stream, address, ticket)))),
            Err(full) => {
                let now = MonoTime(began.elapsed());
                if let Some(lasting) = turned_away.again(&full.to_string(), now) {
                    let what = "connection closed";
                    tracing::warn!(peer_addr = %address, %full, lasting.times, lasting.ms, "{what}");
                }
                None
            }
        },
    )
    .await;
}

/// Serves every connection for which `establish` gives a stream, who is at its other end, which
/// handlers have as `ConnectInfo<Who>`, and the right to be there. `establish` is called in the
/// order of arrival, and closes a connection for which there is no room by `None`; its future is
/// awaited beside all others.
pub(crate) async fn serve_with<Establish, Established, Io, Who>(
    listener: TcpListener,
    router: Router,
    mut shutdown: watch::Receiver<bool>,
    mut establish: Establish,
) where
    Establish: FnMut(Patient, SocketAddr) -> Option<Established>,
    Established: Future<Output = Option<(Io, Who, Ticket)>> + Send + 'static,
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    Who: Clone + Send + Sync + 'static,
{
    let mut tasks = JoinSet::new();
    let began = Instant::now();
    let mut unaccepted = Lasting::default();
    loop {
        let (stream, address) = tokio::select! {
            () = asked_to_stop(&mut shutdown) => break,
            // Whoever waits in the kernel would wait behind a flood: what has no room is closed.
            accepted = listener.accept() => match accepted {
                Ok(connection) => connection,
                Err(error) => {
                    let now = MonoTime(began.elapsed());
                    if let Some(lasting) = unaccepted.again(&error.to_string(), now) {
                        let what = "cannot accept a connection";
                        tracing::warn!(%error, lasting.times, lasting.ms, "{what}");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, peer_addr = %address, "cannot set TCP_NODELAY");
        }
        let Some(established) = establish(Patient::new(stream), address) else {
            continue;
        };
        let router = router.clone();
        let shutdown = shutdown.clone();
        tasks.spawn(async move {
            if let Some((io, who, ticket)) = established.await {
                serve_connection(io, who, router, shutdown).await;
                drop(ticket);
            }
        });
        while tasks.try_join_next().is_some() {}
    }
    drop(listener);
    let drained = tokio::time::timeout(DRAIN, async { while tasks.join_next().await.is_some() {} });
    if drained.await.is_err() {
        tracing::warn!(open = tasks.len(), "requests cut off by shutdown");
    }
}

async fn asked_to_stop(shutdown: &mut watch::Receiver<bool>) {
    // A sender that is gone cannot ask any more, and nobody would ever stop us.
    drop(shutdown.wait_for(|stop| *stop).await);
}

async fn serve_connection<Io, Who>(
    io: Io,
    who: Who,
    router: Router,
    mut shutdown: watch::Receiver<bool>,
) where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    Who: Clone + Send + Sync + 'static,
{
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(|body| Body::new(Steady::new(body)));
        request.extensions_mut().insert(ConnectInfo(who.clone()));
        router.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_header_size(HEADER_LIMIT)
        .serve_connection(TokioIo::new(io), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = asked_to_stop(&mut shutdown) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended early");
    }
}

/// A body that fails when its sender pauses for longer than [`BODY_PAUSE`], or is not done within
/// [`BODY_WITHIN`].
struct Steady {
    body: Incoming,
    end: Instant,
    pause: Pin<Box<Sleep>>,
    waiting: bool,
}

impl Steady {
    fn new(body: Incoming) -> Self {
        Self {
            body,
            end: Instant::now() + BODY_WITHIN,
            pause: Box::pin(tokio::time::sleep(BODY_PAUSE)),
            waiting: false,
        }
    }
}

/// The sender of a body paused, or took, too long.
#[derive(Debug, thiserror::Error)]
#[error("the body stopped arriving for {BODY_PAUSE:?}, or took more than {BODY_WITHIN:?}")]
struct Stalled;

impl hyper::body::Body for Steady {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        if Instant::now() >= this.end {
            return Poll::Ready(Some(Err(Stalled.into())));
        }
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            this.waiting = false;
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        // Counted from when the handler began to wait, not from when it got the last part.
        if !this.waiting {
            this.waiting = true;
            let pause = Instant::now() + BODY_PAUSE;
            this.pause.as_mut().reset(pause.min(this.end));
        }
        ready!(this.pause.as_mut().poll(context));
        Poll::Ready(Some(Err(Stalled.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
