//! What a process signs with its certificate's key, and whose signature something bears: by the same
//! authorities that its connections are believed by.

use data_encoding::{BASE64, HEXLOWER};
use rustls::SignatureScheme;
use rustls::pki_types::CertificateDer;

use super::material::unix_now;
use super::trust::Overdue;
use super::{Identity, TlsMaterial};
use crate::ports::{Signer, Verifier};
use crate::wire::sealed::{Author, SealError, Signature};

/// What we sign with, by the kind of key; the first that fits.
const SCHEMES: [SignatureScheme; 7] = [
    SignatureScheme::ED25519,
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ECDSA_NISTP521_SHA512,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
];

/// The longest chain of certificates beside a signature.
const CHAIN_LIMIT: usize = 8;

impl Signer for TlsMaterial {
    fn sign(&self, message: &[u8]) -> Result<Signature, SealError> {
        let current = self.shared.current();
        let own = &current.pair.key;
        let signer = own
            .key
            .choose_scheme(&SCHEMES)
            .ok_or_else(|| SealError::Refused("the key is of a type that cannot sign".into()))?;
        let value = signer
            .sign(message)
            .map_err(|cause| SealError::Refused(cause.to_string()))?;
        let certificates = own.cert.iter().map(|der| BASE64.encode(der));
        Ok(Signature {
            value: HEXLOWER.encode(&value),
            scheme: Some(signer.scheme().into()),
            certificates: certificates.collect(),
        })
    }
}

impl Verifier for TlsMaterial {
    fn signed_by(&self, message: &[u8], signature: &Signature) -> Result<Author, SealError> {
        let not_believed = |cause: String| SealError::Certificate(cause);
        let value = HEXLOWER
            .decode(signature.value.as_bytes())
            .map_err(|_cause| SealError::NotHex)?;
        let chain = chain_of(signature)?;
        let own = chain
            .first()
            .ok_or_else(|| not_believed("there is none".to_owned()))?;
        let trust = &self.shared.current().trust;
        trust
            .client(&chain, unix_now(), Overdue::Bounded)
            .map_err(|cause| not_believed(cause.to_string()))?;
        let scheme = signature.scheme.map(SignatureScheme::from);
        let scheme = scheme
            .filter(|scheme| SCHEMES.contains(scheme))
            .ok_or(SealError::Mismatch)?;
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let known = provider.signature_verification_algorithms.mapping;
        let algorithms = known.iter().filter(|(known, _)| *known == scheme);
        let certificate = webpki::EndEntityCert::try_from(own)
            .map_err(|cause| not_believed(cause.to_string()))?;
        let fits = algorithms
            .flat_map(|(_, algorithms)| algorithms.iter())
            .any(|algorithm| {
                certificate
                    .verify_signature(*algorithm, message, &value)
                    .is_ok()
            });
        if !fits {
            return Err(SealError::Mismatch);
        }
        match Identity::of(own) {
            Ok(Identity::Agent { group, site }) => Ok(Author::Agent { group, site }),
            Ok(
                other @ (Identity::Controller
                | Identity::Observer { .. }
                | Identity::Operator { .. }
                | Identity::Other(_)),
            ) => Err(SealError::Stranger {
                found: format!("`{other}`"),
                expected: "an agent".to_owned(),
            }),
            Err(cause) => Err(not_believed(cause.to_string())),
        }
    }
}

fn chain_of(signature: &Signature) -> Result<Vec<CertificateDer<'static>>, SealError> {
    if signature.certificates.len() > CHAIN_LIMIT {
        let text = format!("a chain of more than {CHAIN_LIMIT} certificates");
        return Err(SealError::Certificate(text));
    }
    let decoded = signature.certificates.iter().map(|text| {
        let der = BASE64.decode(text.as_bytes());
        der.map(CertificateDer::from)
            .map_err(|_cause| SealError::Certificate("it is not base64 text".to_owned()))
    });
    decoded.collect()
}
