//! The loop that serves connections, plain or through TLS, with a limit on everything that a
//! client could hold: connections, the time for a header, the time between parts of a body.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
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
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};

/// Connections served at once: two sites, a handful of people and scrapers, times twenty.
pub(crate) const MAX_CONNECTIONS: usize = 256;

/// How long a client may take for a header, and leave a connection idle. Longer than the 5 s for
/// which our own clients keep an idle connection, so that they never write into a closing one.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client may pause within a body.
const BODY_PAUSE: Duration = Duration::from_secs(10);

/// How long open requests may go on after shutdown was asked for.
const DRAIN: Duration = Duration::from_secs(5);

/// How long accepting pauses when the system has no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The longest request header, in bytes.
const HEADER_LIMIT: usize = 32 * 1024;

/// Serves plain HTTP until `shutdown` is true or its sender is gone; then open requests have 5 s.
/// Handlers have the client's address as `ConnectInfo<SocketAddr>`.
pub async fn serve_plain(listener: TcpListener, router: Router, shutdown: watch::Receiver<bool>) {
    serve_with(listener, router, shutdown, |stream, address| {
        std::future::ready(Some((stream, address)))
    })
    .await;
}

/// Serves every connection for which `establish` gives a stream and who is at its other end,
/// which handlers have as `ConnectInfo<Who>`. `establish` is called in the order of arrival and
/// its future is awaited beside all others.
pub(crate) async fn serve_with<Establish, Established, Io, Who>(
    listener: TcpListener,
    router: Router,
    mut shutdown: watch::Receiver<bool>,
    mut establish: Establish,
) where
    Establish: FnMut(TcpStream, SocketAddr) -> Established,
    Established: Future<Output = Option<(Io, Who)>> + Send + 'static,
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    Who: Clone + Send + Sync + 'static,
{
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut tasks = JoinSet::new();
    loop {
        let accepted = async {
            // A slot first: what is not accepted waits in the kernel, at no cost to us.
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, listener.accept().await)
        };
        let (slot, (stream, address)) = tokio::select! {
            () = asked_to_stop(&mut shutdown) => break,
            accepted = accepted => match accepted {
                (Ok(slot), Ok(connection)) => (slot, connection),
                (_, Err(error)) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
                (Err(_closed), _) => break,
            },
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, peer_addr = %address, "cannot set TCP_NODELAY");
        }
        let established = establish(stream, address);
        let router = router.clone();
        let shutdown = shutdown.clone();
        tasks.spawn(async move {
            if let Some((io, who)) = established.await {
                serve_connection(io, who, router, shutdown).await;
            }
            drop(slot);
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

/// A body that fails when its sender pauses for longer than [`BODY_PAUSE`].
struct Steady {
    body: Incoming,
    pause: Pin<Box<Sleep>>,
    waiting: bool,
}

impl Steady {
    fn new(body: Incoming) -> Self {
        Self {
            body,
            pause: Box::pin(tokio::time::sleep(BODY_PAUSE)),
            waiting: false,
        }
    }
}

/// The sender of a body paused for too long.
#[derive(Debug, thiserror::Error)]
#[error("the body stopped arriving for {BODY_PAUSE:?}")]
struct Stalled;

impl hyper::body::Body for Steady {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            this.waiting = false;
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        // Counted from when the handler began to wait, not from when it got the last part.
        if !this.waiting {
            this.waiting = true;
            this.pause.as_mut().reset(Instant::now() + BODY_PAUSE);
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
