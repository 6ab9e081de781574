//! The way to a server, a TCP connection or a socket file, with a limit on what an answer may hold:
//! the client below keeps an answer in memory until it is whole, and a server may send for ever.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::Config;
use tokio_postgres::config::Host;

/// The most that one answer may hold, all that comes with it included. The largest of ours is a
/// few kilobytes: a row for each standby that streams, or the history of a timeline.
pub(super) const MOST: u64 = 1024 * 1024;

const PORT: u16 = 5432;

/// How many bytes the present answer may still hold.
#[derive(Debug)]
pub(super) struct Budget {
    left: AtomicU64,
    exceeded: AtomicBool,
}

impl Budget {
    /// For the first answer.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            left: AtomicU64::new(MOST),
            exceeded: AtomicBool::new(false),
        })
    }

    /// For the next answer.
    pub(super) fn renew(&self) {
        self.left.store(MOST, Ordering::Relaxed);
    }

    /// Whether an answer was larger: the connection has ended because of it.
    pub(super) fn exceeded(&self) -> bool {
        self.exceeded.load(Ordering::Relaxed)
    }

    fn spend(&self, bytes: usize) -> io::Result<()> {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let left = self.left.load(Ordering::Relaxed).checked_sub(bytes);
        match left {
            Some(left) => {
                self.left.store(left, Ordering::Relaxed);
                Ok(())
            }
            None => {
                self.exceeded.store(true, Ordering::Relaxed);
                Err(io::Error::other("the answer is too large"))
            }
        }
    }
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    File(UnixStream),
}

/// A connection that counts what comes.
#[derive(Debug)]
pub(super) struct Metered {
    socket: Socket,
    budget: Arc<Budget>,
}

/// Connects to the one server of a configuration; `quiet` bounds how long the other side may leave
/// sent bytes unconfirmed.
pub(super) async fn reach(
    config: &Config,
    quiet: Duration,
    budget: Arc<Budget>,
) -> io::Result<Metered> {
    let port = config.get_ports().first().copied().unwrap_or(PORT);
    let address = config.get_hostaddrs().first();
    let socket = match (config.get_hosts().first(), address) {
        (_, Some(address)) => tcp(TcpStream::connect((*address, port)).await?, quiet)?,
        (Some(Host::Tcp(name)), None) => {
            tcp(TcpStream::connect((name.as_str(), port)).await?, quiet)?
        }
        (Some(Host::Unix(dir)), None) => Socket::File(file(dir, port).await?),
        (None, None) => return Err(io::Error::other("no host is named")),
    };
    Ok(Metered { socket, budget })
}

async fn file(dir: &Path, port: u16) -> io::Result<UnixStream> {
    UnixStream::connect(dir.join(format!(".s.PGSQL.{port}"))).await
}

/// Both are needed: keepalives alone let a statement sent into a dead path hang for minutes, the
/// user time-out alone lets a waiting one hang for ever.
fn tcp(stream: TcpStream, quiet: Duration) -> io::Result<Socket> {
    let quiet = u32::try_from(quiet.as_millis()).unwrap_or(u32::MAX);
    stream.set_nodelay(true)?;
    sockopt::set_tcp_user_timeout(&stream, quiet)?;
    sockopt::set_socket_keepalive(&stream, true)?;
    sockopt::set_tcp_keepidle(&stream, Duration::from_secs(2))?;
    sockopt::set_tcp_keepintvl(&stream, Duration::from_secs(1))?;
    sockopt::set_tcp_keepcnt(&stream, 2)?;
    Ok(Socket::Tcp(stream))
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(match &mut self.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::File(stream) => Pin::new(stream).poll_read(cx, buf),
        })?;
        let came = buf.filled().len().saturating_sub(before);
        Poll::Ready(self.budget.spend(came))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Socket::File(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Socket::File(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::File(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
