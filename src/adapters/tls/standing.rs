//! A connection that ends when whoever is at its other end would not be let in any more.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;

use super::super::http::Patient;
use super::TlsMaterial;
use super::material::Chain;

/// How often a standing connection is looked at when nothing has changed: a person's certificate
/// may have ended meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A connection that stands for as long as its other end is believed.
pub(crate) struct Standing {
    stream: TlsStream<Patient>,
    turned_away: Pin<Box<dyn Future<Output = String> + Send>>,
    why: Option<String>,
}

impl Standing {
    /// Watches a connection whose handshake has just succeeded.
    pub(super) fn new(stream: TlsStream<Patient>, material: TlsMaterial) -> Self {
        let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let chain: Chain = certificates
            .iter()
            .cloned()
            .map(CertificateDer::into_owned)
            .collect();
        if let Some(leaf) = chain.first() {
            material.shared.note_peer(leaf);
        }
        Self {
            stream,
            turned_away: Box::pin(turned_away(chain, material)),
            why: None,
        }
    }

    /// Fails from when the other end is not believed any more.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.why.is_none()
            && let Poll::Ready(why) = self.turned_away.as_mut().poll(context)
        {
            self.why = Some(why);
        }
        match &self.why {
            None => Ok(()),
            Some(why) => Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                why.clone(),
            )),
        }
    }
}

async fn turned_away(chain: Chain, material: TlsMaterial) -> String {
    let mut changes = material.changes();
    loop {
        // The sender lives as long as the material, which is here.
        drop(tokio::time::timeout(LOOK_EVERY, changes.changed()).await);
        if let Err(error) = material.still_lets_in(&chain) {
            tracing::warn!(%error, "an open connection is closed");
            return error.to_string();
        }
    }
}

impl AsyncRead for Standing {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Standing {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
