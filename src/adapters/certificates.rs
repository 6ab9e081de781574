//! Issues certificates to our identities, for the lab and for set-ups without an authority of
//! their own. Nothing here runs in a controller or an agent.

use std::path::{Path, PathBuf};
use std::time::Duration;

use data_encoding::HEXLOWER;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, date_time_ymd,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest, Sha256};

use super::keys::{self, KeyError};
use super::tls::{Identity, TlsFiles};
use crate::engine::units::WallTime;

/// How long before its issue a certificate is valid already: clocks of two clouds differ.
const BACKDATED: Duration = Duration::from_hours(1);

/// The last moment that a certificate can write, roughly: the year 9000.
const LAST_MOMENT: Duration = Duration::from_hours(7000 * 365 * 24);

/// Why a certificate was not issued.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read or written. None is ever replaced: move the old one away first.
    #[error(transparent)]
    File(#[from] KeyError),
    /// The folder has another authority's certificate or key.
    #[error("`{dir}` holds no authority of ours: {cause}: name the folder that `failover certificates` created", dir = dir.display())]
    NotOurs {
        /// The folder.
        dir: PathBuf,
        /// What does not fit.
        cause: String,
    },
    /// The certificate library refused.
    #[error("cannot create a certificate for `{name}`: {cause}")]
    Refused {
        /// For whom.
        name: String,
        /// What the library says.
        cause: String,
    },
}

/// A certificate authority in a folder: `ca.pem` for everybody, `ca.key` for whoever issues.
pub struct Authority {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({})", self.dir.display())
    }
}

impl Authority {
    /// Makes an authority in an existing folder, valid from an hour before `now`.
    pub fn create(dir: &Path, now: WallTime, validity: Duration) -> Result<Self, CertificateError> {
        let refused = |cause: rcgen::Error| refused("the authority", &cause);
        let key = KeyPair::generate().map_err(refused)?;
        let mut params = authority_params(&key);
        set_validity(&mut params, now, validity);
        let certificate = params.self_signed(&key).map_err(refused)?;
        keys::write_secret(&dir.join("ca.key"), key.serialize_pem().as_bytes())?;
        keys::write_public(&dir.join("ca.pem"), certificate.pem().as_bytes())?;
        Ok(Self {
            dir: dir.to_owned(),
            issuer: Issuer::new(params, key),
        })
    }

    /// Takes up the authority that [`Authority::create`] made in a folder.
    pub fn load(dir: &Path) -> Result<Self, CertificateError> {
        let not_ours = |cause: String| CertificateError::NotOurs {
            dir: dir.to_owned(),
            cause,
        };
        let pem = keys::read_secret(&dir.join("ca.key"))?;
        let key = std::str::from_utf8(&pem)
            .map_err(|cause| not_ours(cause.to_string()))
            .and_then(|pem| KeyPair::from_pem(pem).map_err(|cause| not_ours(cause.to_string())))?;
        let params = authority_params(&key);
        let found = CertificateDer::from_pem_slice(&keys::read_public(&dir.join("ca.pem"))?)
            .map_err(|cause| not_ours(cause.to_string()))?;
        let made = params
            .self_signed(&key)
            .map_err(|cause| not_ours(cause.to_string()))?;
        // What is issued names the authority and is checked with its key: both must be those of
        // the certificate that everybody believes.
        let anchor = |certificate| {
            webpki::anchor_from_trusted_cert(certificate)
                .map(|anchor| anchor.to_owned())
                .map_err(|cause| not_ours(cause.to_string()))
        };
        let (found, made) = (anchor(&found)?, anchor(made.der())?);
        if (&found.subject, &found.subject_public_key_info)
            != (&made.subject, &made.subject_public_key_info)
        {
            return Err(not_ours("`ca.pem` was not made with `ca.key`".to_owned()));
        }
        Ok(Self {
            dir: dir.to_owned(),
            issuer: Issuer::new(params, key),
        })
    }

    /// Issues a certificate, valid from an hour before `now`, into the authority's folder:
    /// `aws.agent.shop.pem` and `aws.agent.shop.key` (mode 0600).
    pub fn issue(
        &self,
        identity: &Identity,
        now: WallTime,
        validity: Duration,
    ) -> Result<TlsFiles, CertificateError> {
        let refused = |cause: rcgen::Error| refused(&identity.to_string(), &cause);
        let mut params = CertificateParams::new([identity.to_string()]).map_err(refused)?;
        set_validity(&mut params, now, validity);
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, identity.short());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match identity {
            // Nobody calls a person or an observer.
            Identity::Operator { .. } | Identity::Observer { .. } => {
                vec![ExtendedKeyUsagePurpose::ClientAuth]
            }
            Identity::Controller | Identity::Agent { .. } | Identity::Other(_) => vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
        };
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(refused)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(refused)?;
        let files = TlsFiles {
            ca: self.dir.join("ca.pem"),
            certificate: self.dir.join(format!("{}.pem", identity.short())),
            key: self.dir.join(format!("{}.key", identity.short())),
            revoked: None,
        };
        keys::write_secret(&files.key, key.serialize_pem().as_bytes())?;
        keys::write_public(&files.certificate, certificate.pem().as_bytes())?;
        Ok(files)
    }
}

/// Everything of the authority's certificate but its dates, from its key alone, so that a loaded
/// authority is the one that was created. The name tells two authorities apart.
fn authority_params(key: &KeyPair) -> CertificateParams {
    let digest = HEXLOWER.encode(&Sha256::digest(key.subject_public_key_info()));
    let short: String = digest.chars().take(16).collect();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("failover authority {short}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn set_validity(params: &mut CertificateParams, now: WallTime, validity: Duration) {
    let since_1970 = Duration::from_millis(now.0);
    let moment = |at: Duration| date_time_ymd(1970, 1, 1) + at.min(LAST_MOMENT);
    params.not_before = moment(since_1970.saturating_sub(BACKDATED));
    params.not_after = moment(since_1970.saturating_add(validity));
}

fn refused(name: &str, cause: &rcgen::Error) -> CertificateError {
    CertificateError::Refused {
        name: name.to_owned(),
        cause: cause.to_string(),
    }
}
