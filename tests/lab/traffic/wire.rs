//! A TCP proxy in front of a system: it counts changes, and keeps the answer to one to itself.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Whether what a client sends begins a change.
pub(crate) type IsChange = fn(&[u8]) -> bool;

#[derive(Default)]
struct Seen {
    armed: AtomicBool,
    changes: AtomicUsize,
}

pub(crate) struct Wire {
    pub(crate) address: SocketAddr,
    seen: Arc<Seen>,
}

impl Wire {
    pub(crate) async fn to(behind: SocketAddr, is_change: IsChange) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let shared = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(behind).await.unwrap();
                tokio::spawn(pass(client, server, is_change, Arc::clone(&shared)));
            }
        });
        Self { address, seen }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn lose_next_answer(&self) {
        self.seen.armed.store(true, Ordering::SeqCst);
    }

    pub(crate) fn changes(&self) -> usize {
        self.seen.changes.load(Ordering::SeqCst)
    }
}

async fn pass(mut client: TcpStream, mut server: TcpStream, is_change: IsChange, seen: Arc<Seen>) {
    let (mut from_client, mut from_server) = (vec![0; 65536], vec![0; 65536]);
    let mut swallowing = false;
    loop {
        tokio::select! {
            read = client.read(&mut from_client) => {
                let sent = &from_client[..read.unwrap_or(0)];
                if is_change(sent) {
                    seen.changes.fetch_add(1, Ordering::SeqCst);
                    swallowing = seen.armed.swap(false, Ordering::SeqCst);
                }
                if sent.is_empty() || server.write_all(sent).await.is_err() {
                    return;
                }
            }
            read = server.read(&mut from_server) => {
                let answer = &from_server[..read.unwrap_or(0)];
                let closed = answer.is_empty();
                if closed || (!swallowing && client.write_all(answer).await.is_err()) {
                    return;
                }
            }
        }
    }
}
