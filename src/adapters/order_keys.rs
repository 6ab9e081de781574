//! The keys of orders in files that may change at any time: the controller's secret one, and the
//! public ones that an agent obeys. For the time of a change an agent obeys two.

use std::path::Path;
use std::sync::Arc;

use super::keys::{KeyError, SigningKey, VerifyingKey};
use super::reread::{CredentialBook, Reread};
use super::tls::TlsMaterial;
use crate::ports::{Signer, Verifier};
use crate::wire::sealed::{Author, SealError, Signature};

/// What the controller signs orders with, read again when its file changes.
#[derive(Debug)]
pub struct OrdersKey(Reread<SigningKey>);

impl OrdersKey {
    /// From its file. Refusals of a new one go into `book`.
    pub fn from_file(path: &Path, book: &Arc<CredentialBook>) -> Result<Self, KeyError> {
        Reread::new("key of orders", path, book, SigningKey::from_file).map(Self)
    }
}

impl Signer for OrdersKey {
    fn sign(&self, message: &[u8]) -> Result<Signature, SealError> {
        self.0.get().sign(message)
    }
}

/// Whose orders an agent obeys: any of the keys in its file that is not revoked.
#[derive(Debug)]
pub struct ObeyedKeys {
    file: Reread<Vec<VerifyingKey>>,
    revocations: TlsMaterial,
}

impl ObeyedKeys {
    /// From a file with a key on each line, and the revocation list.
    pub fn from_file(path: &Path, revocations: &TlsMaterial) -> Result<Self, KeyError> {
        let book = revocations.book();
        let what = "public order key";
        Ok(Self {
            file: Reread::new(what, path, &book, VerifyingKey::all_from_file)?,
            revocations: revocations.clone(),
        })
    }
}

impl Verifier for ObeyedKeys {
    fn signed_by(&self, message: &[u8], signature: &Signature) -> Result<Author, SealError> {
        let keys = self.file.get();
        let believed = keys.iter().filter(|key| !self.revocations.has_revoked(key));
        let judged = believed.map(|key| key.signed_by(message, signature));
        judged
            .reduce(Result::or)
            .unwrap_or(Err(SealError::Mismatch))
    }
}
