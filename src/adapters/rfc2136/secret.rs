//! The secret of a TSIG key in a file that may change at any time.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hickory_proto::rr::rdata::tsig::TsigError;

use super::super::reread::{CredentialBook, Reread};
use super::{FUDGE_SECONDS, Rfc2136, TsigKey};
use crate::ports::EffectError;

/// What a server says to a key that it does not know, and to another secret.
const BAD_KEY: &str = "BADKEY";
const BAD_SIG: &str = "BADSIG";

/// The secret that updates are signed with, read again before each.
///
/// While a secret is changed, file and server differ for a while. Where the server refuses the
/// one of the file, the next update is signed with the one that it last took.
#[derive(Debug)]
pub(super) struct SecretFile {
    file: Reread<Vec<u8>>,
    tried: Mutex<Tried>,
}

#[derive(Default)]
struct Tried {
    worked: Option<Arc<Vec<u8>>>,
    refused: Option<Arc<Vec<u8>>>,
}

impl fmt::Debug for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secrets]")
    }
}

impl SecretFile {
    /// In front of a file.
    pub(super) fn new(file: Reread<Vec<u8>>) -> Self {
        Self {
            file,
            tried: Mutex::default(),
        }
    }

    fn tried(&self) -> MutexGuard<'_, Tried> {
        self.tried.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the next update is signed with.
    pub(super) fn next(&self) -> Arc<Vec<u8>> {
        let now = self.file.get();
        let tried = self.tried();
        let refused = tried.refused.as_ref() == Some(&now);
        tried.worked.clone().filter(|_| refused).unwrap_or(now)
    }

    /// What the server said of one: whether it is its own.
    pub(super) fn judged(&self, secret: Arc<Vec<u8>>, taken: bool) {
        let mut tried = self.tried();
        if taken {
            tried.worked = Some(secret);
        } else {
            tried.refused = Some(secret);
        }
    }

    /// Whether there is another to try after a refusal.
    pub(super) fn has_other(&self, than: &[u8]) -> bool {
        *self.next() != than
    }
}

impl Rfc2136 {
    /// The same, with the secret that a file holds when an update is sent. Refusals of new ones go
    /// into `book`.
    pub fn with_secret_file<E: fmt::Display>(
        mut self,
        path: &Path,
        book: &Arc<CredentialBook>,
        parse: impl Fn(&Path) -> Result<Vec<u8>, E> + Send + Sync + 'static,
    ) -> Result<Self, E> {
        let file = Reread::new("TSIG secret", path, book, parse)?;
        self.secret = Some(SecretFile::new(file));
        Ok(self)
    }

    /// The key for the next update.
    pub(super) fn key(&self) -> TsigKey {
        let TsigKey { name, secret } = self.settings.key.clone();
        let secret = self
            .secret
            .as_ref()
            .map_or(secret, |file| file.next().to_vec());
        TsigKey { name, secret }
    }

    /// Remembers what the server said of a key's secret. A refusal of one beside which there is
    /// another is worth another try.
    pub(super) fn judged(
        &self,
        key: TsigKey,
        said: Result<(), EffectError>,
    ) -> Result<(), EffectError> {
        let Some(file) = &self.secret else {
            return said;
        };
        let secret = Arc::new(key.secret);
        match said {
            Err(EffectError::Refused(text)) if text.contains(BAD_KEY) || text.contains(BAD_SIG) => {
                file.judged(Arc::clone(&secret), false);
                if file.has_other(&secret) {
                    Err(EffectError::Failed(text))
                } else {
                    Err(EffectError::Refused(text))
                }
            }
            said => {
                if said.is_ok() {
                    file.judged(secret, true);
                }
                said
            }
        }
    }
}

/// What a server means that does not take a signature.
pub(super) fn bad_signature(error: TsigError, server: &SocketAddr, key: &TsigKey) -> String {
    let name = &key.name;
    match error {
        TsigError::BadKey => {
            format!("server {server} does not know key `{name}` ({BAD_KEY}): add it there")
        }
        TsigError::BadSig | TsigError::BadTrunc => format!(
            "server {server} has another secret for key `{name}` ({BAD_SIG}): use the same on both \
             sides"
        ),
        TsigError::BadTime => format!(
            "the clocks of this machine and of server {server} are more than {FUDGE_SECONDS} s \
             apart (BADTIME): fix NTP on both"
        ),
        TsigError::Unknown(code) => {
            format!("server {server} rejects the signature with key `{name}`: error {code}")
        }
    }
}
