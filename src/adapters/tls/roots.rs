//! Servers that are not ours (a database, the service): judged by the authorities that a file, or
//! the operating system, holds at the moment of the handshake.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

use super::{certificate_end, install_provider};
use crate::adapters::reread::{CredentialBook, Reread};

/// Whom to believe about servers that are not ours.
#[derive(Debug)]
pub(crate) enum Believed {
    /// Those of a file, read again when it changes.
    File(Reread<RootCertStore>),
    /// Those that the operating system had at the start.
    System(Arc<RootCertStore>),
}

/// For a client that believes these, verifies the server by name, and notes when its certificate
/// ends: as `owner`, or as the service at its name.
pub(crate) fn client_of(
    believed: Believed,
    owner: Option<String>,
    book: Arc<CredentialBook>,
) -> ClientConfig {
    install_provider();
    ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Noting {
            believed,
            owner,
            book,
        }))
        .with_no_client_auth()
}

/// The authorities in a PEM file; an error in words where there are none or something else.
pub(crate) fn roots_of(path: &Path) -> Result<RootCertStore, String> {
    let text = |cause: &dyn std::fmt::Display| cause.to_string();
    let mut store = RootCertStore::empty();
    let found = CertificateDer::pem_file_iter(path).map_err(|cause| text(&cause))?;
    for certificate in found {
        let certificate = certificate.map_err(|cause| text(&cause))?;
        store.add(certificate).map_err(|cause| text(&cause))?;
    }
    if store.is_empty() {
        return Err("it holds no certificate".to_owned());
    }
    Ok(store)
}

#[derive(Debug)]
struct Noting {
    believed: Believed,
    owner: Option<String>,
    book: Arc<CredentialBook>,
}

impl Noting {
    fn verifier(&self) -> Result<Arc<WebPkiServerVerifier>, Error> {
        let roots = match &self.believed {
            Believed::File(file) => file.get(),
            Believed::System(roots) => Arc::clone(roots),
        };
        let built = WebPkiServerVerifier::builder(roots).build();
        built.map_err(|cause| Error::General(cause.to_string()))
    }
}

impl ServerCertVerifier for Noting {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verifier = self.verifier()?;
        let verified =
            verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        let over = matches!(
            verified,
            Err(Error::InvalidCertificate(
                CertificateError::ExpiredContext { .. }
            ))
        );
        if let Some(end) = certificate_end(end_entity)
            && (verified.is_ok() || over)
        {
            let named = || format!("service {}", server_name.to_str());
            let owner = self.owner.clone().unwrap_or_else(named);
            self.book.saw(&owner, end);
        }
        verified
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier()?.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier()?.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
