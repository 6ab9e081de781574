//! Mutual TLS between our processes and for the people who command them: who the other side is,
//! comes from its certificate and from nothing else.
//!
//! Both ends are ours, so only TLS 1.3 is spoken, and no session is resumed: each connection
//! proves anew that its certificates are still good. What an identity may do is decided by the
//! handlers.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde::{Deserialize, Serialize};

use super::keys::{self, KeyError};

mod identity;
mod server;
mod client;

pub use client::{CallError, Peer, PeerAddress, PeerClient};
pub use identity::{Identity, IdentityError};
pub use server::{PeerIdentity, RejectedPeer, TlsListener, serve};

/// Makes aws-lc-rs the process's only cryptographic provider. Call it first in `main`; calling
/// it again does nothing.
pub fn install_provider() {
    // An error only says that a provider is installed already, and there is one in our tree.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
}

/// The files of one process: PEM, and the key readable by its owner only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The certificates of the authority that both sides believe; no other is believed.
    pub ca: PathBuf,
    /// Our certificate, followed by intermediate ones if there are any.
    pub certificate: PathBuf,
    /// Our key: PKCS#8, SEC1 or PKCS#1.
    pub key: PathBuf,
}

/// Why TLS cannot be set up. Each says which file is wrong and what to do.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or others may read the key.
    #[error(transparent)]
    File(#[from] KeyError),
    /// A file is not what it should be.
    #[error("`{path}` does not hold {what}: {cause}: make it with `failover certificates` or export it as PEM", path = path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// What the library says.
        cause: String,
    },
    /// Key and certificate are not of one pair.
    #[error("key `{key}` does not belong to certificate `{certificate}`: {cause}: give the two files that were issued together", key = key.display(), certificate = certificate.display())]
    Mismatch {
        /// The key file.
        key: PathBuf,
        /// The certificate file.
        certificate: PathBuf,
        /// What the library says.
        cause: String,
    },
    /// The certificate does not say who we are.
    #[error("certificate `{path}`: {cause}: issue one with `failover certificates`", path = path.display())]
    NoIdentity {
        /// The certificate file.
        path: PathBuf,
        /// What is wrong with its names.
        cause: IdentityError,
    },
    /// The TLS library refused the whole.
    #[error("cannot set up TLS with these certificates: {0}")]
    Refused(String),
}

/// What a process proves itself with and whom it believes. Read once, at start.
#[derive(Clone)]
pub struct TlsMaterial {
    roots: Arc<RootCertStore>,
    own: Arc<SingleCertAndKey>,
    identity: Identity,
}

impl std::fmt::Debug for TlsMaterial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TlsMaterial({})", self.identity)
    }
}

impl TlsMaterial {
    /// Reads and checks the files. An expired certificate passes here and is refused, with its
    /// date, in the handshake: a process must be able to start and say so.
    pub fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        install_provider();
        let malformed = |path: &Path, what, cause: String| TlsError::Malformed {
            path: path.to_owned(),
            what,
            cause,
        };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&files.ca)? {
            roots.add(certificate).map_err(|cause| {
                malformed(&files.ca, "a certificate authority", cause.to_string())
            })?;
        }
        let chain = certificates(&files.certificate)?;
        let identity = chain
            .first()
            .ok_or(IdentityError::NoName)
            .and_then(Identity::of)
            .map_err(|cause| TlsError::NoIdentity {
                path: files.certificate.clone(),
                cause,
            })?;
        let key = PrivateKeyDer::from_pem_slice(&keys::read_secret(&files.key)?)
            .map_err(|cause| malformed(&files.key, "a key", cause.to_string()))?;
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let own =
            CertifiedKey::from_der(chain, key, &provider).map_err(|cause| TlsError::Mismatch {
                key: files.key.clone(),
                certificate: files.certificate.clone(),
                cause: cause.to_string(),
            })?;
        Ok(Self {
            roots: Arc::new(roots),
            own: Arc::new(SingleCertAndKey::from(own)),
            identity,
        })
    }

    /// Who we are, by our own certificate.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// For a server that lets nobody in without a certificate of our authority.
    pub fn server_config(&self) -> Result<ServerConfig, TlsError> {
        let verifier = WebPkiClientVerifier::builder(Arc::clone(&self.roots))
            .build()
            .map_err(|cause| TlsError::Refused(cause.to_string()))?;
        let mut config = ServerConfig::builder_with_protocol_versions(&[&TLS13])
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::<SingleCertAndKey>::clone(&self.own));
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    /// For a client that believes our authority only and shows our certificate.
    pub fn client_config(&self) -> ClientConfig {
        let mut config = ClientConfig::builder_with_protocol_versions(&[&TLS13])
            .with_root_certificates(Arc::clone(&self.roots))
            .with_client_cert_resolver(Arc::<SingleCertAndKey>::clone(&self.own));
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let malformed = |cause: String| TlsError::Malformed {
        path: path.to_owned(),
        what: "certificates",
        cause,
    };
    let found = CertificateDer::pem_slice_iter(&keys::read_public(path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|cause| malformed(cause.to_string()))?;
    if found.is_empty() {
        return Err(malformed("there are none in it".to_owned()));
    }
    Ok(found)
}

/// An error and all its causes as one line.
pub(crate) fn chain_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // Many errors print their cause already.
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
