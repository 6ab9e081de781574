//! A password file that may change at any time.

use std::sync::{Mutex, PoisonError};

use super::Secret;
use crate::adapters::reread::Reread;

/// The password of a role, read again before each connection.
///
/// While a password is changed, file and server differ for a while. The last one that the server
/// took is kept for that time: whoever writes the file first and changes the role then loses no
/// look in between.
#[derive(Debug)]
pub(crate) struct PasswordFile {
    file: Reread<Secret>,
    worked: Mutex<Option<Secret>>,
}

impl PasswordFile {
    /// In front of a file.
    pub(crate) fn new(file: Reread<Secret>) -> Self {
        Self {
            file,
            worked: Mutex::new(None),
        }
    }

    /// What is to be tried: what the file holds, then what the server last took.
    pub(super) fn candidates(&self) -> (Secret, Option<Secret>) {
        let now = Secret::clone(&self.file.get());
        let worked = self.worked.lock().unwrap_or_else(PoisonError::into_inner);
        let other = worked.clone().filter(|worked| *worked != now);
        (now, other)
    }

    /// The server took this one.
    pub(super) fn worked(&self, password: Secret) {
        let mut worked = self.worked.lock().unwrap_or_else(PoisonError::into_inner);
        *worked = Some(password);
    }
}
