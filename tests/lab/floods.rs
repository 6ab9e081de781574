//! Databases that answer without an end, or have us compute without an end.
#![expect(clippy::print_stdout, reason = "what was measured is printed")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use failover::adapters::postgres::{Connect, Secret, probe};
use failover::engine::observation::{Bearing, ProbeFailure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::pair::{LIMIT, Pair, write};

/// A database that is none: it lets everybody in, or asks for a password, and then sends for ever.
struct Flood {
    connect: Connect,
    sent: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One message of the protocol.
fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[tag][..], &length.to_be_bytes(), body].concat()
}

/// Everything up to `ReadyForQuery`.
fn welcome() -> Vec<u8> {
    let version = message(b'S', b"server_version\x0015.0\0");
    let ok = message(b'R', &[0, 0, 0, 0]);
    [ok, version, message(b'Z', b"I")].concat()
}

async fn startup(stream: &mut TcpStream) {
    let length = stream.read_u32().await.unwrap();
    let mut rest = vec![0; usize::try_from(length).unwrap() - 4];
    stream.read_exact(&mut rest).await.unwrap();
}

impl Flood {
    /// Sends `first` after the startup message, and `again` for ever, or until the other side is
    /// gone.
    async fn of(first: Vec<u8>, again: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let sent = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&sent);
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                startup(&mut stream).await;
                let mut part = &first;
                while stream.write_all(part).await.is_ok() {
                    counted.fetch_add(u64::try_from(part.len()).unwrap(), Ordering::Relaxed);
                    part = &again;
                    if again.is_empty() {
                        break;
                    }
                }
                // It stays, and says no more.
                let mut rest = Vec::new();
                stream.read_to_end(&mut rest).await.ok();
            }
        });
        let conninfo = format!("host=127.0.0.1 port={port} user=failover dbname=app");
        let connect = Connect::new(&conninfo, Some(Secret::new("watch")), None).unwrap();
        Self {
            connect,
            sent,
            task,
        }
    }

    async fn look(&self, limit: Duration) -> ProbeFailure {
        probe(&self.connect, Some(&write()), limit)
            .await
            .unwrap_err()
    }
}

/// What the process took of memory at most so far, in MiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() / 1024
}

/// What one answer may cost, with what lies in the sockets' buffers on both sides.
const MOST_SENT: u64 = 16 * 1024 * 1024;

#[tokio::test]
async fn an_answer_without_an_end_is_not_kept() {
    let block = vec![b'x'; 64 * 1024];
    // One row that is announced as a gigabyte; rows for ever; errors, notices and settings for ever.
    let gigabyte = [&b"D"[..], &1_000_000_000_u32.to_be_bytes(), &[0, 1]].concat();
    let field = |tag: u8| [&[tag][..], &block, b"\0"].concat();
    let error = [&b"SERROR\0VERROR\0CXX000\0"[..], &field(b'M'), b"\0"].concat();
    let row = [
        &[0, 1][..],
        &u32::try_from(block.len()).unwrap().to_be_bytes(),
        &block,
    ]
    .concat();
    let setting = [&b"x\0"[..], &block, b"\0"].concat();
    for (what, first, again) in [
        (
            "a row of a gigabyte",
            [welcome(), gigabyte].concat(),
            block.clone(),
        ),
        ("rows for ever", welcome(), message(b'D', &row)),
        ("errors for ever", welcome(), message(b'E', &error)),
        ("notices for ever", welcome(), message(b'N', &error)),
        ("settings for ever", welcome(), message(b'S', &setting)),
        ("a welcome for ever", Vec::new(), message(b'S', &setting)),
    ] {
        let before = peak();
        let flood = Flood::of(first, again).await;
        let began = Instant::now();
        let failure = flood.look(LIMIT).await;
        let took = began.elapsed();
        let sent = flood.sent.load(Ordering::Relaxed);
        let failure_text = failure.to_string();
        println!(
            "{what}: {failure_text:.80}; {} KiB sent in {} ms; peak memory of the process {before} MiB before, {} MiB after",
            sent / 1024,
            took.as_millis(),
            peak()
        );
        assert_eq!(failure.bearing(), Bearing::Unknown, "{what}: {failure:?}");
        // What nobody asked for ends the connection even before that.
        let told = ["larger than", "unexpected message", "xxxx"];
        let said = failure.to_string();
        assert!(
            told.iter().any(|told| said.contains(told)),
            "{what}: {said}"
        );
        assert!(sent < MOST_SENT, "{what}: {sent} bytes");
    }
}

#[tokio::test]
async fn a_giant_row_in_a_real_database_is_not_kept() {
    let pair = Pair::primary_only().await;
    pair.primary.beat().await;
    pair.primary.sql(
        "ALTER TABLE failover.heartbeat DROP CONSTRAINT heartbeat_pkey;
         UPDATE failover.heartbeat SET site = repeat('x', 64 * 1024 * 1024)",
    );
    let before = peak();
    let failure = probe(&pair.primary.monitor(), Some(&write()), LIMIT).await;
    let failure = failure.unwrap_err();
    println!(
        "{failure}; peak memory {before} MiB before, {} MiB after",
        peak()
    );
    assert!(failure.to_string().contains("larger than"), "{failure}");
    assert_eq!(failure.bearing(), Bearing::Unknown);
}

/// Speaks the first half of the password exchange, with a nonce that continues the client's.
async fn demanding(iterations: u64) -> (Connect, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            startup(&mut stream).await;
            let mechanisms = message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0");
            stream.write_all(&mechanisms).await.unwrap();
            assert_eq!(stream.read_u8().await.unwrap(), b'p');
            let length = stream.read_u32().await.unwrap();
            let mut body = vec![0; usize::try_from(length).unwrap() - 4];
            stream.read_exact(&mut body).await.unwrap();
            let text = String::from_utf8_lossy(&body).into_owned();
            let nonce = text.rsplit("r=").next().unwrap();
            let demand = format!("r={nonce}more,s=c2FsdHNhbHQ=,i={iterations}");
            let body = [&[0, 0, 0, 11][..], demand.as_bytes()].concat();
            stream.write_all(&message(b'R', &body)).await.unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.ok();
        }
    });
    let conninfo = format!("host=127.0.0.1 port={port} user=failover dbname=app");
    let connect = Connect::new(&conninfo, Some(Secret::new("watch")), None).unwrap();
    (connect, task)
}

#[tokio::test]
async fn a_password_that_is_hashed_without_an_end_stalls_nothing() {
    for (iterations, refused) in [(100_000, false), (100_001, true), (2_147_483_648, true)] {
        let (connect, server) = demanding(iterations).await;
        let limit = Duration::from_secs(2);
        // One thread runs all of this test: were the hashing done on it, nothing would tick.
        let mut longest = Duration::ZERO;
        let look = probe(&connect, None, limit);
        tokio::pin!(look);
        let mut last = Instant::now();
        let mut tick = tokio::time::interval(Duration::from_millis(1));
        let failure = loop {
            tokio::select! {
                looked = &mut look => break looked.unwrap_err(),
                _ = tick.tick() => {
                    longest = longest.max(last.elapsed());
                    last = Instant::now();
                }
            }
        };
        println!(
            "{iterations} iterations: {failure}; the runtime stood still for {} ms at most",
            longest.as_millis()
        );
        let says = failure.to_string().contains("iteration count exceeds");
        assert_eq!(says, refused, "{failure}");
        if refused {
            assert_ne!(failure.bearing(), Bearing::Against, "{failure:?}");
        }
        server.abort();
    }
}
