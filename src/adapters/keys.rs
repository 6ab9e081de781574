//! Ed25519 keys for what is signed: orders, which the peer's agent may relay. What they mean is not
//! known here.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use data_encoding::{BASE64, HEXLOWER};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;

use crate::ports::{Signer, Verifier};
use crate::wire::sealed::{Author, SealError, Signature};

/// What a file with a public key begins with, so that nobody takes it for the secret one.
const PUBLIC_PREFIX: &str = "failover-ed25519-public:";

/// The largest key or certificate file, in bytes: a chain of some ten certificates.
const FILE_LIMIT: u64 = 64 * 1024;

/// Why a key cannot be had from or put into a file.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or written.
    #[error("cannot {verb} `{path}`: {cause}", path = path.display())]
    File {
        /// What was tried: `read` or `write`.
        verb: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// Others than its owner may read a secret.
    #[error("`{path}` is a secret and its mode is {mode:04o}: run `chmod 600 {path}`", path = path.display())]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file holds something else.
    #[error("`{path}` does not hold {what}: {hint}", path = path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// The cryptographic library refused.
    #[error("cannot create an Ed25519 key: the cryptographic library refused")]
    Refused,
}

/// Reads a file that only its owner may read, or, where root owns it, the process's group as well: so
/// Kubernetes mounts a Secret for a pod that is not root. Fails with [`KeyError::Exposed`] where anybody
/// else may, because a secret that others can read is none.
pub fn read_secret(path: &Path) -> Result<Vec<u8>, KeyError> {
    let failed = |cause| file_error("read", path, cause);
    let file = std::fs::File::open(path).map_err(failed)?;
    // The mode of the file that was opened, not of whatever the path names a moment later.
    let found = file.metadata().map_err(failed)?;
    let mode = found.permissions().mode() & 0o7777;
    let us = rustix::process::geteuid().as_raw();
    if is_exposed(mode, found.uid(), us) {
        return Err(KeyError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    read_bounded(file, path)
}

/// Whether others than the owner may use a file, except a group that root lets read. A process that is
/// root itself needs no group.
fn is_exposed(mode: u32, owner: u32, us: u32) -> bool {
    let others = if owner == 0 && us != 0 { 0o037 } else { 0o077 };
    mode & others != 0
}

/// Writes a new file that only its owner may read. Never replaces a file: a key that is lost
/// cannot be had again.
pub fn write_secret(path: &Path, content: &[u8]) -> Result<(), KeyError> {
    write_new(path, content, 0o600)
}

/// Writes a new file that everybody may read.
pub(crate) fn write_public(path: &Path, content: &[u8]) -> Result<(), KeyError> {
    write_new(path, content, 0o644)
}

/// Reads a file that everybody may read.
pub(crate) fn read_public(path: &Path) -> Result<Vec<u8>, KeyError> {
    let file = std::fs::File::open(path).map_err(|cause| file_error("read", path, cause))?;
    read_bounded(file, path)
}

fn file_error(verb: &'static str, path: &Path, cause: io::Error) -> KeyError {
    KeyError::File {
        verb,
        path: path.to_owned(),
        cause,
    }
}

fn read_bounded(file: std::fs::File, path: &Path) -> Result<Vec<u8>, KeyError> {
    let mut content = Vec::new();
    file.take(FILE_LIMIT)
        .read_to_end(&mut content)
        .map_err(|cause| file_error("read", path, cause))?;
    Ok(content)
}

fn write_new(path: &Path, content: &[u8], mode: u32) -> Result<(), KeyError> {
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(|cause| file_error("write", path, cause))
}

/// The secret half of a pair: signs.
pub struct SigningKey(Ed25519KeyPair);

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.verifying_key())
    }
}

impl SigningKey {
    /// A new key.
    pub fn generate() -> Result<Self, KeyError> {
        Ed25519KeyPair::generate()
            .map(Self)
            .map_err(|_unspecified| KeyError::Refused)
    }

    /// Reads a PKCS#8 PEM file, as [`SigningKey::to_file`] and
    /// `openssl genpkey -algorithm ed25519` write it. Refuses a file that others may read.
    pub fn from_file(path: &Path) -> Result<Self, KeyError> {
        let malformed = || KeyError::Malformed {
            path: path.to_owned(),
            what: "an Ed25519 key in PKCS#8 PEM form",
            hint: "make one with `openssl genpkey -algorithm ed25519`",
        };
        let content = read_secret(path)?;
        let der = PrivatePkcs8KeyDer::from_pem_slice(&content).map_err(|_pem| malformed())?;
        Ed25519KeyPair::from_pkcs8(der.secret_pkcs8_der())
            .map(Self)
            .map_err(|_rejected| malformed())
    }

    /// Writes the key to a new file with mode 0600, as PKCS#8 PEM.
    pub fn to_file(&self, path: &Path) -> Result<(), KeyError> {
        // Version 1, because OpenSSL before 3 does not read version 2.
        let der: Pkcs8V1Der<'_> = self.0.as_der().map_err(|_unspecified| KeyError::Refused)?;
        // 48 bytes: one line of PEM.
        let text = BASE64.encode(der.as_ref());
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n");
        write_secret(path, pem.as_bytes())
    }

    /// The half that may be shown.
    pub fn verifying_key(&self) -> VerifyingKey {
        let mut bytes = [0; 32];
        // An Ed25519 public key has 32 bytes by definition (RFC 8032 section 5.1.5).
        for (to, from) in bytes.iter_mut().zip(self.0.public_key().as_ref()) {
            *to = *from;
        }
        VerifyingKey(bytes)
    }
}

/// The public half of a pair: checks signatures. Written `failover-ed25519-public:` and base64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifyingKey([u8; 32]);

impl VerifyingKey {
    /// Reads a file with one line, the key as text.
    pub fn from_file(path: &Path) -> Result<Self, KeyError> {
        let content = read_public(path)?;
        std::str::from_utf8(&content)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .ok_or_else(|| KeyError::Malformed {
                path: path.to_owned(),
                what: "a public Ed25519 key",
                hint: "give the file whose line begins with `failover-ed25519-public:`",
            })
    }

    /// Reads a file with a key on each line; lines that begin with `#` and empty ones say nothing.
    /// At least one.
    pub fn all_from_file(path: &Path) -> Result<Vec<Self>, KeyError> {
        let content = read_public(path)?;
        let text = std::str::from_utf8(&content).unwrap_or_default();
        let lines = text.lines().map(str::trim);
        let said = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let keys: Option<Vec<Self>> = said.map(|line| line.parse().ok()).collect();
        keys.filter(|keys| !keys.is_empty())
            .ok_or_else(|| KeyError::Malformed {
                path: path.to_owned(),
                what: "public Ed25519 keys",
                hint: "give the file whose lines begin with `failover-ed25519-public:`",
            })
    }

    /// Writes the key to a new file.
    pub fn to_file(&self, path: &Path) -> Result<(), KeyError> {
        write_public(path, format!("{self}\n").as_bytes())
    }
}

impl fmt::Display for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PUBLIC_PREFIX}{}", BASE64.encode(&self.0))
    }
}

/// A text is not a public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a public key: write it like `failover-ed25519-public:` and 44 characters of base64")]
pub struct NotAPublicKey;

impl FromStr for VerifyingKey {
    type Err = NotAPublicKey;

    fn from_str(text: &str) -> Result<Self, NotAPublicKey> {
        let base64 = text.strip_prefix(PUBLIC_PREFIX).ok_or(NotAPublicKey)?;
        let bytes = BASE64
            .decode(base64.as_bytes())
            .map_err(|_cause| NotAPublicKey)?;
        bytes.try_into().map(Self).map_err(|_length| NotAPublicKey)
    }
}

impl Signer for SigningKey {
    fn sign(&self, message: &[u8]) -> Result<Signature, SealError> {
        Ok(Signature {
            value: HEXLOWER.encode(self.0.sign(message).as_ref()),
            scheme: None,
            certificates: Vec::new(),
        })
    }
}

impl Verifier for VerifyingKey {
    fn signed_by(&self, message: &[u8], signature: &Signature) -> Result<Author, SealError> {
        let value = HEXLOWER
            .decode(signature.value.as_bytes())
            .map_err(|_cause| SealError::NotHex)?;
        // What came beside it would be believed by nobody, and is not signed either.
        if signature.scheme.is_some() || !signature.certificates.is_empty() {
            return Err(SealError::Mismatch);
        }
        UnparsedPublicKey::new(&ED25519, self.0)
            .verify(message, &value)
            .map_err(|_unspecified| SealError::Mismatch)?;
        Ok(Author::Controller)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::time::Duration;

    use crate::engine::units::Epoch;
    use crate::wire::sealed::{Sealed, SignedOrder};
    use crate::wire::{Order, Postmark, What};

    fn order(epoch: u64) -> Order {
        Order {
            plan: 7,
            group: "shop".parse().unwrap(),
            site: "gcp".parse().unwrap(),
            instance: None,
            epoch: Epoch(epoch),
            mark: Postmark {
                life: 1,
                at: Duration::ZERO,
            },
            valid_for: Duration::from_secs(5),
            check_only: false,
            what: What::Promote,
        }
    }

    #[test]
    fn a_secret_is_its_owners_alone_or_roots_for_a_group_of_ours() {
        const ROOT: u32 = 0;
        const US: u32 = 65532;
        for (mode, owner, us, exposed) in [
            (0o600, US, US, false),
            (0o400, US, US, false),
            // As Kubernetes mounts a Secret with `defaultMode: 0440` and `fsGroup`.
            (0o440, ROOT, US, false),
            (0o640, ROOT, US, false),
            (0o460, ROOT, US, true),
            (0o444, ROOT, US, true),
            (0o440, US, US, true),
            (0o440, ROOT, ROOT, true),
            (0o600, ROOT, ROOT, false),
        ] {
            assert_eq!(
                is_exposed(mode, owner, us),
                exposed,
                "{mode:o} {owner} {us}"
            );
        }
    }

    #[test]
    fn an_order_is_had_with_the_right_key_only() {
        let key = SigningKey::generate().unwrap();
        let signed = SignedOrder::seal(order(7), &key).unwrap();
        let open = |key: &VerifyingKey| SignedOrder::open(signed.sealed().clone(), key);
        assert_eq!(open(&key.verifying_key()).unwrap().order(), &order(7));
        let other = SigningKey::generate().unwrap().verifying_key();
        assert_eq!(open(&other), Err(SealError::Mismatch));
    }

    #[test]
    fn every_changed_byte_of_the_wire_form_fails() {
        let key = SigningKey::generate().unwrap();
        let signed = SignedOrder::seal(order(7), &key).unwrap();
        let wire = serde_json::to_vec(signed.sealed()).unwrap();
        let mut parsed = 0;
        for at in 0..wire.len() {
            for bit in 0..8 {
                let mut changed = wire.clone();
                changed[at] ^= 1 << bit;
                let Ok(changed) = serde_json::from_slice::<Sealed>(&changed) else {
                    continue;
                };
                // The same text, written in another way, is the same text.
                if changed != *signed.sealed() {
                    parsed += 1;
                    let opened = SignedOrder::open(changed, &key.verifying_key());
                    assert!(opened.is_err(), "byte {at} bit {bit}");
                }
            }
        }
        assert!(parsed > 500, "only {parsed} changes reached the check");
    }

    #[test]
    fn what_is_signed_are_the_bytes_that_are_sent() {
        let key = SigningKey::generate().unwrap();
        let signed = SignedOrder::seal(order(7), &key).unwrap();
        let mut wire = serde_json::to_value(signed.sealed()).unwrap();
        let body = wire["body"].as_str().unwrap().to_owned();
        let digits = body.replace("\"epoch\":7", "\"epoch\":7 ");
        assert_ne!(digits, body);
        wire["body"] = digits.into();
        let sealed: Sealed = serde_json::from_value(wire).unwrap();
        let opened = SignedOrder::open(sealed, &key.verifying_key());
        assert_eq!(
            opened,
            Err(SealError::Mismatch),
            "although it says the same"
        );
    }

    #[test]
    fn keys_round_trip_through_files() {
        let dir = tempfile::tempdir().unwrap();
        let (secret, public) = (dir.path().join("a.key"), dir.path().join("a.pub"));
        let key = SigningKey::generate().unwrap();
        key.to_file(&secret).unwrap();
        key.verifying_key().to_file(&public).unwrap();
        let signed = SignedOrder::seal(order(1), &SigningKey::from_file(&secret).unwrap());
        let public = VerifyingKey::from_file(&public).unwrap();
        let sealed = signed.unwrap().sealed().clone();
        assert!(SignedOrder::open(sealed, &public).is_ok());
        assert!(matches!(
            key.to_file(&secret),
            Err(KeyError::File { verb: "write", .. })
        ));
        assert!(VerifyingKey::from_file(&secret).is_err());
    }

    #[test]
    fn a_key_file_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.key");
        SigningKey::generate().unwrap().to_file(&path).unwrap();
        assert!(SigningKey::from_file(&path).is_ok());
        for mode in [0o640, 0o604, 0o620, 0o601] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let error = SigningKey::from_file(&path).unwrap_err();
            assert!(
                matches!(error, KeyError::Exposed { .. }),
                "{mode:o}: {error}"
            );
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
    }
}
