//! What Google's interfaces have in common: whose right is used, how long one call may take, and
//! what an error means for the change that was asked for.
//!
//! Which error has which form was tried with these libraries against doubles that answered with each
//! of them, never against Google.

mod key_file;
mod records;
pub mod cloud_dns;
mod pool;
pub mod backend;

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::{Extensions, Uri};
use google_cloud_auth::credentials::{CacheableResource, Credentials, anonymous};
use google_cloud_gax::error::Error;

use self::key_file::KeyFile;
use super::reread::CredentialBook;
use crate::engine::units::MonoTime;
use crate::ports::{Clock, EffectError};

/// The right that is asked for with the default credentials.
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";

/// The longest time that a service may ask to be left alone: after that a change is tried again.
const LONGEST_QUIET: Duration = Duration::from_mins(1);

/// Whose right is used, and where.
#[derive(Debug, Clone)]
pub struct Access {
    credentials: Credentials,
    endpoint: Option<String>,
}

impl Access {
    /// Checks that credentials can be had; asks nobody for them yet. With a key file it is its
    /// account, whatever the file holds when a call is made; without, what the machine has
    /// (`GOOGLE_APPLICATION_CREDENTIALS`, workload identity federation, the metadata service).
    /// `endpoint` replaces Google's address: nothing that Google gave is ever sent there.
    pub fn new(
        key_file: Option<&Path>,
        endpoint: Option<&Uri>,
        book: &Arc<CredentialBook>,
    ) -> Result<Self, EffectError> {
        let refused = |cause: &dyn fmt::Display| {
            EffectError::Refused(format!("no credentials for Google: {cause}"))
        };
        let credentials = if endpoint.is_some() {
            anonymous::Builder::new().build()
        } else if let Some(path) = key_file {
            Credentials::from(KeyFile::open(path, book).map_err(|cause| refused(&cause))?)
        } else {
            let ours = google_cloud_auth::credentials::Builder::default().with_scopes([SCOPE]);
            ours.build().map_err(|cause| refused(&cause))?
        };
        Ok(Self {
            credentials,
            endpoint: endpoint.map(|uri| uri.to_string().trim_end_matches('/').to_owned()),
        })
    }
}

impl Access {
    /// A token for whoever trusts Google's: what an API server of GKE takes. Asked for anew only when the
    /// last one is about to end.
    pub(crate) async fn token(&self) -> Result<String, String> {
        let headers = self.credentials.headers(Extensions::new()).await;
        let headers = match headers.map_err(|cause| cause.to_string())? {
            CacheableResource::New { data, .. } => data,
            CacheableResource::NotModified => return Err("no headers".to_owned()),
        };
        let text = headers.get("authorization").map(|value| value.to_str());
        let text = text.and_then(Result::ok);
        let token = text.and_then(|text| text.strip_prefix("Bearer "));
        token
            .map(ToOwned::to_owned)
            .ok_or_else(|| "the credentials make no token".to_owned())
    }
}

/// Reads a service account's key once, to see whether it is one.
pub fn check_key_file(path: &Path) -> Result<(), String> {
    key_file::check(path).map(drop)
}

/// Sets what every client of ours has: credentials, address, and no retries: an unknown outcome is
/// never repeated blindly.
macro_rules! client {
    ($builder:expr, $access:expr) => {{
        let builder = $builder
            .with_credentials($access.credentials.clone())
            .with_retry_policy(google_cloud_gax::retry_policy::NeverRetry);
        let builder = match &$access.endpoint {
            Some(endpoint) => builder.with_endpoint(endpoint.clone()),
            None => builder,
        };
        builder.build().await.map_err(|cause| {
            $crate::ports::EffectError::Refused(format!("no client for Google: {cause}"))
        })?
    }};
}
use client;

/// Makes calls, each within a time, and none while the service has asked to be left alone.
#[derive(Debug)]
struct Caller {
    credentials: Credentials,
    timeout: Duration,
    clock: Arc<dyn Clock>,
    quiet_until: Mutex<Option<MonoTime>>,
}

impl Caller {
    fn new(access: &Access, timeout: Duration, clock: Arc<dyn Clock>) -> Self {
        Self {
            credentials: access.credentials.clone(),
            timeout,
            clock,
            quiet_until: Mutex::new(None),
        }
    }

    /// Sees to it that the next call goes out at once: that Google may be called, and that a token
    /// is at hand, which may take as long as a call.
    async fn ready(&self) -> Result<(), EffectError> {
        self.may_call()?;
        let token = self.credentials.headers(Extensions::new());
        match tokio::time::timeout(self.timeout, token).await {
            Ok(Ok(_kept)) => Ok(()),
            Ok(Err(cause)) => Err(EffectError::Failed(format!("no token of Google: {cause}"))),
            Err(_elapsed) => Err(EffectError::Failed("no token of Google in time".to_owned())),
        }
    }

    /// Whether a call may be made; an error says for how long none may.
    fn may_call(&self) -> Result<(), EffectError> {
        let until = *self
            .quiet_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let left = until.map(|until| self.clock.now().until(until));
        match left.filter(|left| !left.is_zero()) {
            Some(left) => Err(EffectError::Failed(format!(
                "Google asked not to be called for another {} s",
                left.as_secs().saturating_add(1)
            ))),
            None => Ok(()),
        }
    }

    /// A call that may change something. Callers are [`Caller::ready`] first: here it goes out.
    async fn change<T>(
        &self,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, EffectError> {
        match tokio::time::timeout(self.timeout, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                self.heed(&error);
                Err(verdict(&error))
            }
            Err(_elapsed) => Err(EffectError::Late(format!(
                "no answer of Google within {}",
                humantime::format_duration(self.timeout)
            ))),
        }
    }

    /// A call that changes nothing, whatever became of it: it can be put again.
    async fn look<T>(
        &self,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, EffectError> {
        self.may_call()?;
        self.change(call).await.map_err(|error| match error {
            EffectError::Unknown(text) => EffectError::Failed(text),
            other @ (EffectError::Failed(_)
            | EffectError::Refused(_)
            | EffectError::Late(_)
            | EffectError::Conflict(_)) => other,
        })
    }

    /// Keeps how long the service asks to be left alone.
    fn heed(&self, error: &Error) {
        let Some(wait) = retry_after(error) else {
            return;
        };
        let until = self.clock.now().plus(wait.min(LONGEST_QUIET));
        *self
            .quiet_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(until);
    }
}

/// The header `Retry-After` of an answer, where it names seconds.
fn retry_after(error: &Error) -> Option<Duration> {
    let value = error.http_headers()?.get("retry-after")?;
    let seconds = value.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// What Google says with status 403 where not the right is missing but the rate is too high, and with
/// status 400 where another operation is under way.
const LATER: [&str; 3] = ["rate limit exceeded", "quota exceeded", "is not ready"];

/// What an error means for the change that was asked for.
fn verdict(error: &Error) -> EffectError {
    let text = match retry_after(error) {
        Some(wait) => format!("Google: {error} (asks to wait {} s)", wait.as_secs()),
        None => format!("Google: {error}"),
    };
    let Some(status) = error.http_status_code() else {
        return if error.is_connect() {
            EffectError::Failed(text)
        } else if error.is_authentication() {
            EffectError::Failed(format!("{text}: no token was to be had, nothing was sent"))
        } else if error.is_serialization() || error.is_binding() {
            EffectError::Refused(text)
        } else {
            EffectError::Unknown(text)
        };
    };
    let says = |part: &&str| text.to_ascii_lowercase().contains(*part);
    match status {
        409 | 412 => EffectError::Conflict(text),
        401 => EffectError::Failed(format!(
            "{text}: the credential is not taken: has it ended, or was it revoked?"
        )),
        429 => EffectError::Failed(text),
        400 | 403 if LATER.iter().any(says) => EffectError::Failed(text),
        // Below 300: a status that is none of an error, with an answer that cannot be read.
        ..300 | 408 | 500.. => EffectError::Unknown(text),
        _ => EffectError::Refused(text),
    }
}

/// When a rehearsal was last let through: each one stands in the project's audit log.
#[derive(Debug, Default)]
struct Rehearsed(Mutex<Option<MonoTime>>);

/// How long a rehearsal counts.
const REHEARSE_EVERY: Duration = Duration::from_mins(10);

impl Rehearsed {
    fn lately(&self, clock: &dyn Clock) -> bool {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|last| clock.now().since(last) < REHEARSE_EVERY)
    }

    fn now(&self, clock: &dyn Clock) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(clock.now());
    }
}

/// A name for a request that nobody else gives: a UUID of version 4.
fn request_id() -> Result<String, EffectError> {
    let mut bytes = [0u8; 16];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|error| EffectError::Failed(format!("no random number: {error}")))?;
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex = data_encoding::HEXLOWER.encode(&bytes);
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| hex.get(part).unwrap_or_default());
    Ok(parts.join("-"))
}
