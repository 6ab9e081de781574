//! Ed25519 keys and what is signed with them: orders, which the peer's agent may relay, and
//! checkpoints of the decision log.
//!
//! A signature covers the RFC 8785 canonical JSON of a body after a context, so that a signature
//! made for one purpose never counts for another. What an order means is not known here.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use data_encoding::{BASE64, HEXLOWER};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a file with a public key begins with, so that nobody takes it for the secret one.
const PUBLIC_PREFIX: &str = "failover-ed25519-public:";

/// The largest key or certificate file, in bytes: a chain of some ten certificates.
const FILE_LIMIT: u64 = 64 * 1024;

/// The largest integer that canonical JSON keeps exactly (2^53 - 1, RFC 8785 section 3.2.2.3).
const EXACT_INTEGER: u64 = (1 << 53) - 1;

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
    #[error("cannot make an Ed25519 key: the cryptographic library refused")]
    Refused,
}

/// Reads a file that only its owner may read. Fails with [`KeyError::Exposed`] where anybody else
/// may, because a secret that others can read is none.
pub fn read_secret(path: &Path) -> Result<Vec<u8>, KeyError> {
    let failed = |cause| file_error("read", path, cause);
    let file = std::fs::File::open(path).map_err(failed)?;
    // The mode of the file that was opened, not of whatever the path names a moment later.
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    read_bounded(file, path)
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

/// Why a signature was not made or does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// Another key, another context, or a changed body.
    #[error(
        "the signature does not match: the body was changed, or another key or purpose signed it"
    )]
    Mismatch,
    /// The signature is not hexadecimal text.
    #[error("the signature is not hexadecimal text: the message was damaged")]
    NotHex,
    /// The body has a number that canonical JSON does not keep exactly, so that two bodies could
    /// share a signature.
    #[error(
        "cannot sign the number {0}: canonical JSON keeps integers up to 2^53 - 1 only, write it as text"
    )]
    Inexact(String),
    /// The body is not JSON.
    #[error("cannot write the body as JSON: {0}")]
    NotJson(String),
}

/// A body with the signature over it.
///
/// The signature covers what this program understood of the body: a field that it does not know
/// makes the check fail, which is the safe side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed<T> {
    body: T,
    signature: String,
}

impl<T: Serialize + DeserializeOwned> Signed<T> {
    /// Signs a body for a purpose (`failover order v1`).
    pub fn sign(body: T, key: &SigningKey, context: &str) -> Result<Self, SignatureError> {
        let message = message(&body, context)?;
        let signature = HEXLOWER.encode(key.0.sign(&message).as_ref());
        Ok(Self { body, signature })
    }

    /// The body, if this key signed it for this purpose. There is no other way to the body.
    pub fn verify(&self, key: &VerifyingKey, context: &str) -> Result<&T, SignatureError> {
        let signature = HEXLOWER
            .decode(self.signature.as_bytes())
            .map_err(|_cause| SignatureError::NotHex)?;
        UnparsedPublicKey::new(&ED25519, key.0)
            .verify(&message(&self.body, context)?, &signature)
            .map_err(|_unspecified| SignatureError::Mismatch)?;
        Ok(&self.body)
    }

    /// The signature in hexadecimal.
    pub fn signature(&self) -> &str {
        &self.signature
    }
}

/// What is signed: the context, a zero byte, the canonical JSON of the body.
fn message<T: Serialize>(body: &T, context: &str) -> Result<Vec<u8>, SignatureError> {
    let not_json = |cause: serde_json::Error| SignatureError::NotJson(cause.to_string());
    let value = serde_json::to_value(body).map_err(not_json)?;
    check_exact(&value)?;
    let mut message = context.as_bytes().to_vec();
    message.push(0);
    message.extend(serde_json_canonicalizer::to_vec(&value).map_err(not_json)?);
    Ok(message)
}

fn check_exact(value: &Value) -> Result<(), SignatureError> {
    match value {
        Value::Null | Value::Bool(_) | Value::String(_) => Ok(()),
        Value::Number(number) => {
            let size = number
                .as_u64()
                .or_else(|| number.as_i64().map(i64::unsigned_abs));
            if size.is_some_and(|size| size <= EXACT_INTEGER) {
                Ok(())
            } else {
                Err(SignatureError::Inexact(number.to_string()))
            }
        }
        Value::Array(items) => items.iter().try_for_each(check_exact),
        Value::Object(fields) => fields.values().try_for_each(check_exact),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORDER: &str = "failover order v1";

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Body {
        group: String,
        epoch: u64,
    }

    fn body(epoch: u64) -> Body {
        Body {
            group: "shop".to_owned(),
            epoch,
        }
    }

    #[test]
    fn a_signed_body_is_had_with_the_right_key_and_context_only() {
        let key = SigningKey::generate().unwrap();
        let public = key.verifying_key();
        let signed = Signed::sign(body(7), &key, ORDER).unwrap();
        assert_eq!(signed.verify(&public, ORDER), Ok(&body(7)));
        assert_eq!(
            signed.verify(&public, "failover checkpoint v1"),
            Err(SignatureError::Mismatch)
        );
        let other = SigningKey::generate().unwrap().verifying_key();
        assert_eq!(signed.verify(&other, ORDER), Err(SignatureError::Mismatch));
    }

    #[test]
    fn every_changed_byte_of_the_wire_form_fails() {
        let key = SigningKey::generate().unwrap();
        let signed = Signed::sign(body(7), &key, ORDER).unwrap();
        let wire = serde_json::to_vec(&signed).unwrap();
        let mut parsed = 0;
        for at in 0..wire.len() {
            for bit in 0..8 {
                let mut changed = wire.clone();
                changed[at] ^= 1 << bit;
                if let Ok(changed) = serde_json::from_slice::<Signed<Body>>(&changed) {
                    parsed += 1;
                    assert!(
                        changed.verify(&key.verifying_key(), ORDER).is_err(),
                        "byte {at} bit {bit}"
                    );
                }
            }
        }
        assert!(parsed > 500, "only {parsed} changes reached the check");
    }

    #[test]
    fn order_of_fields_and_white_space_do_not_matter() {
        let key = SigningKey::generate().unwrap();
        let signature = Signed::sign(body(7), &key, ORDER).unwrap().signature;
        let text =
            format!(r#"{{ "signature": "{signature}", "body": {{"epoch": 7, "group": "shop"}} }}"#);
        let signed: Signed<Body> = serde_json::from_str(&text).unwrap();
        assert_eq!(signed.verify(&key.verifying_key(), ORDER), Ok(&body(7)));
    }

    #[test]
    fn a_number_that_canonical_json_would_round_is_refused() {
        let key = SigningKey::generate().unwrap();
        assert!(Signed::sign(body(EXACT_INTEGER), &key, ORDER).is_ok());
        let error = Signed::sign(body(EXACT_INTEGER + 1), &key, ORDER).unwrap_err();
        assert!(matches!(error, SignatureError::Inexact(_)), "{error}");
    }

    #[test]
    fn keys_round_trip_through_files() {
        let dir = tempfile::tempdir().unwrap();
        let (secret, public) = (dir.path().join("a.key"), dir.path().join("a.pub"));
        let key = SigningKey::generate().unwrap();
        key.to_file(&secret).unwrap();
        key.verifying_key().to_file(&public).unwrap();
        let signed = Signed::sign(body(1), &SigningKey::from_file(&secret).unwrap(), ORDER);
        let public = VerifyingKey::from_file(&public).unwrap();
        assert!(signed.unwrap().verify(&public, ORDER).is_ok());
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
