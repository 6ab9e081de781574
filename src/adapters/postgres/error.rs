//! How a connection or a statement fails, and what that says about the database.

use std::io;

use super::socket;
use crate::engine::observation::ProbeFailure;
use crate::engine::sqlstate::{self, During};
use crate::ports::EffectError;

/// How one statement, or the connection for it, can fail.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SqlError {
    /// No answer within so many milliseconds.
    #[error("no answer within {0} ms")]
    Timeout(u64),
    /// There is no way to it.
    #[error("{0}")]
    NoWay(#[from] io::Error),
    /// The server or the way to it said no.
    #[error("{}", chain(.0))]
    Server(#[from] tokio_postgres::Error),
    /// The answer makes no sense to us.
    #[error("unreadable answer: {0}")]
    Answer(String),
    /// The server ended the session, and said why before anything was asked.
    #[error("{text}")]
    Ended {
        /// The SQLSTATE.
        state: String,
        /// What it said.
        text: String,
    },
    /// The answer was larger than any of ours can be; the rest of it was not taken.
    #[error("an answer larger than {} KiB", socket::MOST / 1024)]
    TooLarge,
}

impl SqlError {
    /// The five characters that PostgreSQL gives with an error.
    pub(super) fn state(&self) -> Option<&str> {
        match self {
            SqlError::Server(error) => error.code().map(tokio_postgres::error::SqlState::code),
            SqlError::Ended { state, .. } => Some(state),
            SqlError::Timeout(_)
            | SqlError::NoWay(_)
            | SqlError::Answer(_)
            | SqlError::TooLarge => None,
        }
    }

    /// Whether the time was over that we gave it ourselves.
    pub(super) fn is_late(&self) -> bool {
        matches!(self, SqlError::Timeout(_))
    }

    /// What it means of a connection that was not made.
    pub(super) fn while_connecting(self) -> ProbeFailure {
        self.sorted(During::Connecting)
    }

    fn sorted(self, during: During) -> ProbeFailure {
        let text = self.to_string();
        match (self.state(), &self) {
            (Some(state), _) => sqlstate::sort(state, during, text),
            (None, SqlError::Timeout(limit_ms)) => ProbeFailure::Timeout(*limit_ms),
            (None, SqlError::NoWay(cause)) => by_io(cause, text),
            (None, SqlError::Answer(_) | SqlError::TooLarge | SqlError::Ended { .. }) => {
                ProbeFailure::Protocol(text)
            }
            (None, SqlError::Server(cause)) if cause.is_closed() => ProbeFailure::Unreachable(text),
            (None, SqlError::Server(cause)) => by_cause(cause, text),
        }
    }
}

impl From<SqlError> for ProbeFailure {
    /// Of a statement.
    fn from(error: SqlError) -> Self {
        error.sorted(During::Statement)
    }
}

/// How a connection ended that was not cut off.
#[derive(Debug, Clone)]
pub(super) enum End {
    /// The server said so: SQLSTATE and text.
    Said(String, String),
    /// By a message that makes no sense.
    Nonsense(String),
}

impl End {
    /// Of an error that ended a connection; `None` where the way there did.
    pub(super) fn of(error: &tokio_postgres::Error) -> Option<Self> {
        let text = chain(error);
        match error.code() {
            Some(state) => Some(End::Said(state.code().to_owned(), text)),
            None if find_cause::<io::Error>(error).is_some() => None,
            None => Some(End::Nonsense(text)),
        }
    }
}

impl From<End> for SqlError {
    fn from(end: End) -> Self {
        match end {
            End::Said(state, text) => SqlError::Ended { state, text },
            End::Nonsense(text) => SqlError::Answer(text),
        }
    }
}

/// What an error below SQL means.
fn by_cause(error: &tokio_postgres::Error, text: String) -> ProbeFailure {
    match find_cause::<io::Error>(error) {
        Some(cause) => by_io(cause, text),
        None if find_cause::<rustls::Error>(error).is_some() => ProbeFailure::Unauthorized(text),
        None => ProbeFailure::Protocol(text),
    }
}

/// What an error of the operating system means. Whatever may be our own fault (no file
/// descriptors, no name server) is `Protocol`, which speaks against nobody.
fn by_io(cause: &io::Error, text: String) -> ProbeFailure {
    // rustls hides its verdict on the certificate inside an I/O error.
    let tls = cause
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        .is_some();
    let is = |kinds: &[io::ErrorKind]| kinds.contains(&cause.kind());
    if tls {
        ProbeFailure::Unauthorized(text)
    } else if is(&[io::ErrorKind::ConnectionRefused, io::ErrorKind::NotFound]) {
        // A socket that is not there is a server that does not listen.
        ProbeFailure::Refused
    } else if is(&[io::ErrorKind::PermissionDenied]) {
        ProbeFailure::Unauthorized(text)
    } else if is(&[
        io::ErrorKind::HostUnreachable,
        io::ErrorKind::NetworkUnreachable,
        io::ErrorKind::ConnectionReset,
        io::ErrorKind::ConnectionAborted,
        io::ErrorKind::BrokenPipe,
        io::ErrorKind::UnexpectedEof,
        io::ErrorKind::TimedOut,
    ]) {
        ProbeFailure::Unreachable(text)
    } else {
        ProbeFailure::Protocol(text)
    }
}

fn find_cause<'e, T: std::error::Error + 'static>(
    error: &'e (dyn std::error::Error + 'static),
) -> Option<&'e T> {
    std::iter::successors(Some(error), |error| error.source())
        .find_map(|error| error.downcast_ref::<T>())
}

impl From<SqlError> for EffectError {
    /// Of a statement that was sent. What the server answers with an error is rolled back; the
    /// end of a session is not an answer, because a commit may be underway (postgres.md P32).
    fn from(error: SqlError) -> Self {
        let text = error.to_string();
        match error.state() {
            None if error.is_late() => EffectError::Late(text),
            Some("57P01" | "57P02" | "57P03") | None => EffectError::Unknown(text),
            Some("25006" | "42501" | "28P01" | "28000" | "3D000" | "42P01") => {
                EffectError::Refused(text)
            }
            Some(_) => EffectError::Failed(text),
        }
    }
}

/// Of a connection that was not made: nothing was sent, so nothing happened.
pub(super) fn not_begun(failure: ProbeFailure) -> EffectError {
    if matches!(failure, ProbeFailure::Unauthorized(_)) {
        EffectError::Refused(failure.to_string())
    } else {
        EffectError::Failed(failure.to_string())
    }
}

/// An error with its causes on one line, and the SQLSTATE where there is one.
pub(super) fn chain(error: &tokio_postgres::Error) -> String {
    if let Some(answer) = error.as_db_error() {
        return format!("{} ({})", answer.message(), answer.code().code());
    }
    let first: &dyn std::error::Error = error;
    std::iter::successors(Some(first), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::observation::Bearing;

    #[test]
    fn what_the_system_says_is_sorted() {
        use io::ErrorKind as Kind;
        for (kind, bearing) in [
            (Kind::ConnectionRefused, Bearing::Against),
            (Kind::NotFound, Bearing::Against),
            (Kind::HostUnreachable, Bearing::Against),
            (Kind::NetworkUnreachable, Bearing::Against),
            (Kind::ConnectionReset, Bearing::Against),
            (Kind::ConnectionAborted, Bearing::Against),
            (Kind::BrokenPipe, Bearing::Against),
            (Kind::UnexpectedEof, Bearing::Against),
            (Kind::TimedOut, Bearing::Against),
            (Kind::PermissionDenied, Bearing::Nothing),
            // No name server, no descriptor, no memory, no address: ours, or nobody's.
            (Kind::Other, Bearing::Unknown),
            (Kind::OutOfMemory, Bearing::Unknown),
            (Kind::AddrNotAvailable, Bearing::Unknown),
            (Kind::InvalidInput, Bearing::Unknown),
        ] {
            let failure = by_io(&io::Error::from(kind), "sample".to_owned());
            assert_eq!(failure.bearing(), bearing, "{kind:?}");
        }
        let verdict = io::Error::other(rustls::Error::HandshakeNotComplete);
        let failure = by_io(&verdict, "sample".to_owned());
        assert_eq!(failure.bearing(), Bearing::Nothing, "a certificate");
    }
}
