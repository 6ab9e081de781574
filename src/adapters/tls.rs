//! Mutual TLS between our processes and for the people who command them: who the other side is,
//! comes from its certificate and from nothing else.
//!
//! Both ends are ours, so only TLS 1.3 is spoken, and no session is resumed: each connection
//! proves anew that its certificates are still good. What an identity may do is decided by the
//! handlers.

use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use x509_cert::der::Decode as _;

use super::keys::{self, KeyError};
use crate::engine::units::{WallTime, as_millis};

mod identity;
mod revoked;
mod trust;
mod material;
mod verifier;
mod standing;
mod signature;
mod roots;
mod server;
mod client;

pub use client::{CallError, Peer, PeerAddress, PeerClient};
pub use identity::{Identity, IdentityError, OperatorRole};
pub use material::TlsMaterial;
pub(crate) use revoked::Revoked;
pub(crate) use roots::{Believed, client_of, roots_of};
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
    /// What is not believed any more, if there is such a list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<PathBuf>,
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
    /// A new certificate is for somebody else.
    #[error("certificate `{path}` is for `{found}`, but this process is `{own}`: issue the right one with `failover certificates`", path = path.display())]
    SomebodyElses {
        /// The certificate file.
        path: PathBuf,
        /// For whom it is.
        found: String,
        /// Who we are.
        own: String,
    },
    /// A new certificate is not good now, or not by these authorities.
    #[error("certificate `{certificate}` is not trusted by the authorities of `{ca}`: {cause}: see runbooks/certificates.md for the order of a change", certificate = certificate.display(), ca = ca.display())]
    Unfit {
        /// The certificate file.
        certificate: PathBuf,
        /// The file of authorities.
        ca: PathBuf,
        /// What the library says.
        cause: String,
    },
    /// Authorities under which somebody whom we need would be turned away.
    #[error("without the authority that is missing in `{ca}`, `{identity}` would be turned away: give that one its new certificate first, or revoke its old one", ca = ca.display())]
    LeavesOut {
        /// The file of authorities.
        ca: PathBuf,
        /// Who.
        identity: Identity,
    },
    /// The TLS library refused the whole.
    #[error("cannot set up TLS with these certificates: {0}")]
    Refused(String),
}

/// When a certificate ends; `None` where it cannot be read that far.
pub(crate) fn certificate_end(certificate: &CertificateDer<'_>) -> Option<WallTime> {
    let parsed = x509_cert::Certificate::from_der(certificate).ok()?;
    let end = parsed.tbs_certificate.validity.not_after;
    Some(WallTime(as_millis(end.to_unix_duration())))
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
