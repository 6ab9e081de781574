//! Whom we believe at one moment: the authorities of `ca`, less what is revoked; and for how much
//! longer than its date a certificate of our own processes is believed: a date alone stops no
//! production (invariants.md I17).

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{CertificateError, Error, RootCertStore};

use super::Identity;
use super::revoked::Revoked;
use crate::engine::credential::GRACE;

/// How many certificates of one chain may have ended, at most.
const LONGEST_CHAIN: usize = 4;

/// How much longer than its date a chain counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overdue {
    /// Not at all: for what is to be taken into use.
    Never,
    /// For [`GRACE`], if it is of the controller or an agent: for new connections.
    Bounded,
    /// Without an end, if it is of the controller or an agent: for connections that stand, which
    /// no date of ours ends.
    Standing,
}

/// Whom we believe.
pub(super) struct Trust {
    client: Arc<dyn ClientCertVerifier>,
    server: Arc<WebPkiServerVerifier>,
    pub(super) revoked: Arc<Revoked>,
}

impl Trust {
    /// In these authorities, unless they are revoked themselves.
    pub(super) fn new(
        authorities: &[CertificateDer<'static>],
        revoked: Arc<Revoked>,
    ) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        let left = authorities.iter().filter(|each| !revoked.names(each));
        for authority in left {
            roots
                .add(authority.clone())
                .map_err(|cause| cause.to_string())?;
        }
        let roots = Arc::new(roots);
        let client = WebPkiClientVerifier::builder(Arc::clone(&roots))
            .with_crls(revoked.lists.iter().cloned())
            .allow_unknown_revocation_status()
            .build()
            .map_err(|cause| cause.to_string())?;
        let server = WebPkiServerVerifier::builder(roots)
            .with_crls(revoked.lists.iter().cloned())
            .allow_unknown_revocation_status()
            .build()
            .map_err(|cause| cause.to_string())?;
        Ok(Self {
            client,
            server,
            revoked,
        })
    }

    /// Whether a chain, its leaf first, lets its holder in.
    pub(super) fn client(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
        overdue: Overdue,
    ) -> Result<(), Error> {
        self.judge(chain, now, overdue, |leaf, rest, at| {
            self.client.verify_client_cert(leaf, rest, at).map(drop)
        })
    }

    /// Whether a chain, its leaf first, proves that a server is `name`.
    pub(super) fn server(
        &self,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        self.judge(chain, now, Overdue::Bounded, |leaf, rest, at| {
            self.server
                .verify_server_cert(leaf, rest, name, &[], at)
                .map(drop)
        })
    }

    fn judge(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
        overdue: Overdue,
        verify: impl Fn(&CertificateDer<'_>, &[CertificateDer<'_>], UnixTime) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (leaf, rest) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
        if chain.iter().any(|each| self.revoked.names(each)) {
            return Err(CertificateError::Revoked.into());
        }
        let mut at = now;
        let mut judged = verify(leaf, rest, at);
        for _ in 0..LONGEST_CHAIN {
            let Err(Error::InvalidCertificate(CertificateError::ExpiredContext {
                not_after, ..
            })) = &judged
            else {
                break;
            };
            let late = now.as_secs().saturating_sub(not_after.as_secs());
            let over = match overdue {
                Overdue::Never => true,
                Overdue::Bounded => late > GRACE.as_secs(),
                Overdue::Standing => false,
            };
            if over || !has_grace(leaf) || *not_after >= at {
                break;
            }
            // Everything else must be as good as it was on the last day.
            at = *not_after;
            judged = verify(leaf, rest, at);
        }
        judged
    }
}

/// Whether the holder is one without whom production would stop. People and observers are not.
fn has_grace(leaf: &CertificateDer<'_>) -> bool {
    matches!(
        Identity::of(leaf),
        Ok(Identity::Controller | Identity::Agent { .. })
    )
}
