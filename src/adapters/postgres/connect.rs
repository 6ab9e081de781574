//! One fresh connection, bounded in time, and what its errors mean.

use std::fmt;
use std::future::Future;
use std::io;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_postgres::config::SslMode;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Config, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::engine::observation::ProbeFailure;
use crate::engine::units::as_millis;
use crate::ports::EffectError;

/// A text that must not be shown: `Debug` hides it and there is no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// Why a connection string is of no use. Never repeats the string: it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// It does not parse.
    #[error(
        "cannot read the connection string: {0}: write it like \
         `host=10.0.0.5 port=5432 user=failover dbname=app`"
    )]
    Malformed(String),
    /// It holds a password.
    #[error("the connection string holds a password: put it into a file of its own")]
    PasswordInside,
    /// It names no host, or several: an answer must belong to one known server.
    #[error("the connection string names {0} hosts: name exactly one")]
    Hosts(usize),
    /// TLS is asked for, but there is no authority to verify the server with.
    #[error("`sslmode=require` without a certificate authority: name the file of the authority")]
    NoAuthority,
    /// An authority is given, but TLS is switched off.
    #[error("`sslmode=disable` beside a certificate authority: remove one of the two")]
    TlsDisabled,
}

/// Where a PostgreSQL server is and who we are there.
#[derive(Clone)]
pub struct Connect {
    config: Config,
    tls: Option<MakeRustlsConnect>,
}

impl Connect {
    /// The role it connects as, where the connection string names one.
    pub fn user(&self) -> Option<&str> {
        self.config.get_user()
    }

    /// From a connection string (`host`, `port`, `user`, `dbname`, `sslmode`; a host that starts
    /// with `/` is a socket directory). With `tls` the connection is encrypted and the server
    /// verified as `tls` says, else it is in plain text: there is no "encrypted if possible",
    /// which whoever sits in between would switch off.
    pub fn new(
        conninfo: &str,
        password: Option<Secret>,
        tls: Option<rustls::ClientConfig>,
    ) -> Result<Self, ConnectError> {
        let mut config: Config = conninfo
            .parse()
            .map_err(|error| ConnectError::Malformed(chain(&error)))?;
        if config.get_password().is_some() {
            return Err(ConnectError::PasswordInside);
        }
        if config.get_hosts().len() != 1 {
            return Err(ConnectError::Hosts(config.get_hosts().len()));
        }
        let ssl_mode = match (config.get_ssl_mode(), &tls) {
            (SslMode::Disable, Some(_)) => return Err(ConnectError::TlsDisabled),
            (SslMode::Require, None) => return Err(ConnectError::NoAuthority),
            (_, Some(_)) => SslMode::Require,
            (_, None) => SslMode::Disable,
        };
        config.ssl_mode(ssl_mode).application_name("failover");
        if let Some(password) = password {
            config.password(password.expose());
        }
        Ok(Self {
            config,
            tls: tls.map(MakeRustlsConnect::new),
        })
    }
}

impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect")
            .field("host", &self.config.get_hosts())
            .field("port", &self.config.get_ports())
            .field("user", &self.config.get_user())
            .field("dbname", &self.config.get_dbname())
            .field("tls", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

/// One connection. Never kept from one probe to the next: an old connection hides a server that
/// takes no new ones (POSTGRES.md row 37). Closed when dropped.
pub struct Database {
    client: Client,
    task: JoinHandle<()>,
    connect: Connect,
}

/// The greatest `statement_timeout`.
const MAX_LIMIT_MS: u64 = 2_147_483_647;

impl Database {
    /// Opens a fresh connection. `timeout` bounds the whole of it (name, TCP, TLS, password), and,
    /// with a second to spare, each later statement on the server's side.
    pub async fn open(connect: &Connect, timeout: Duration) -> Result<Self, ProbeFailure> {
        let mut config = connect.config.clone();
        // A second more than ours, so that it is always we who say "time-out": the server's limit
        // only frees a session that nobody waits for any more.
        let limit_ms = as_millis(timeout.saturating_add(Duration::from_secs(1))).min(MAX_LIMIT_MS);
        let given = config.get_options().unwrap_or_default();
        // The least there is: a sort of a few kilobytes more goes to the disk, which heartbeats use.
        let options = format!("{given} -c statement_timeout={limit_ms} -c work_mem=64kB");
        // Both are needed: keepalives alone let a statement sent into a dead path hang for
        // minutes, the user time-out alone lets a waiting one hang for ever.
        config
            .options(options.trim_start())
            .tcp_user_timeout(timeout)
            .keepalives(true)
            .keepalives_idle(Duration::from_secs(2))
            .keepalives_interval(Duration::from_secs(1))
            .keepalives_retries(2);
        let (client, task) = within(timeout, spawn(&config, connect.tls.clone())).await?;
        Ok(Self {
            client,
            task,
            connect: connect.clone(),
        })
    }

    /// A second, fresh connection to the same server.
    pub(super) async fn beside(&self, timeout: Duration) -> Result<Self, ProbeFailure> {
        Self::open(&self.connect, timeout).await
    }

    /// Runs a statement whose answer is one row with one JSON text, in one round trip.
    pub(crate) async fn read<T: DeserializeOwned>(
        &self,
        sql: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
        limit: Duration,
    ) -> Result<T, SqlError> {
        let rows = within(limit, self.client.query_typed(sql, parameters)).await?;
        let row = rows
            .first()
            .ok_or_else(|| SqlError::Answer("no row".to_owned()))?;
        let text: &str = row.try_get(0)?;
        serde_json::from_str(text).map_err(|error| SqlError::Answer(error.to_string()))
    }

    /// Runs statements without an answer.
    pub(crate) async fn run(&self, sql: &str, limit: Duration) -> Result<(), SqlError> {
        within(limit, self.client.batch_execute(sql)).await
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Database").field(&self.connect).finish()
    }
}

/// Connects, and lets the connection run in a task of its own.
async fn spawn(
    config: &Config,
    tls: Option<MakeRustlsConnect>,
) -> Result<(Client, JoinHandle<()>), tokio_postgres::Error> {
    /// The end of a connection shows in the next statement on it, which is where it matters.
    async fn drive(connection: impl Future<Output = Result<(), tokio_postgres::Error>>) {
        if let Err(error) = connection.await {
            tracing::debug!(error = chain(&error), "connection to PostgreSQL ended");
        }
    }
    Ok(if let Some(tls) = tls {
        let (client, connection) = config.connect(tls).await?;
        (client, tokio::spawn(drive(connection)))
    } else {
        let (client, connection) = config.connect(NoTls).await?;
        (client, tokio::spawn(drive(connection)))
    })
}

async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, SqlError> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => Ok(done?),
        Err(_elapsed) => Err(SqlError::Timeout(as_millis(limit))),
    }
}

/// A moment until which something with several statements may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    began: Instant,
    whole: Duration,
}

impl Deadline {
    /// From now on.
    pub(super) fn after(whole: Duration) -> Self {
        Self {
            began: Instant::now(),
            whole,
        }
    }

    /// How long it has taken so far.
    pub(super) fn took(self) -> Duration {
        self.began.elapsed()
    }

    /// What is left; zero when it is over.
    pub(super) fn left(self) -> Duration {
        self.whole.saturating_sub(self.took())
    }

    /// Waits a little before the next look; `false` when the time is over.
    pub(super) async fn pause(self, wait: Duration) -> bool {
        if self.left().is_zero() {
            return false;
        }
        tokio::time::sleep(wait.min(self.left())).await;
        true
    }
}

/// How one statement, or the connection for it, can fail.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SqlError {
    /// No answer within so many milliseconds.
    #[error("no answer within {0} ms")]
    Timeout(u64),
    /// The server or the way to it said no.
    #[error("{}", chain(.0))]
    Server(#[from] tokio_postgres::Error),
    /// The answer makes no sense to us.
    #[error("unreadable answer: {0}")]
    Answer(String),
}

impl SqlError {
    /// The five characters that PostgreSQL gives with an error.
    pub(super) fn state(&self) -> Option<&str> {
        match self {
            SqlError::Server(error) => error.code().map(tokio_postgres::error::SqlState::code),
            SqlError::Timeout(_) | SqlError::Answer(_) => None,
        }
    }
}

impl From<SqlError> for ProbeFailure {
    fn from(error: SqlError) -> Self {
        let text = error.to_string();
        match (error.state(), &error) {
            (Some(state), _) => by_state(state, text),
            (None, SqlError::Timeout(limit_ms)) => ProbeFailure::Timeout(*limit_ms),
            (None, SqlError::Answer(_)) => ProbeFailure::Protocol(text),
            (None, SqlError::Server(cause)) if cause.is_closed() => ProbeFailure::Unreachable(text),
            (None, SqlError::Server(cause)) => by_cause(cause, text),
        }
    }
}

fn by_state(state: &str, text: String) -> ProbeFailure {
    match state {
        // Starting, stopping (57P01, 57P02 end a running session) or recovering.
        "57P01" | "57P02" | "57P03" => ProbeFailure::NotAccepting(text),
        "53300" => ProbeFailure::Exhausted(text),
        "28P01" | "28000" | "3D000" | "42501" => ProbeFailure::Unauthorized(text),
        "25006" => ProbeFailure::CannotWrite(text),
        "53100" | "58030" => ProbeFailure::DiskFailed(text),
        _ => ProbeFailure::Protocol(text),
    }
}

/// What an error below SQL means. Whatever may be our own fault (no file descriptors, no name
/// server) is `Protocol`, which speaks against nobody.
fn by_cause(error: &tokio_postgres::Error, text: String) -> ProbeFailure {
    let Some(cause) = find_cause::<io::Error>(error) else {
        return if find_cause::<rustls::Error>(error).is_some() {
            ProbeFailure::Unauthorized(text)
        } else {
            ProbeFailure::Protocol(text)
        };
    };
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
    /// end of a session is not an answer, because a commit may be underway (POSTGRES.md row 22).
    fn from(error: SqlError) -> Self {
        let text = error.to_string();
        match error.state() {
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
fn chain(error: &tokio_postgres::Error) -> String {
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

    const GOOD: &str = "host=127.0.0.1 port=5432 user=failover dbname=app";

    #[test]
    fn a_password_shows_in_no_debug_output() {
        let connect = Connect::new(GOOD, Some(Secret::new("hunter2")), None).unwrap();
        assert!(!format!("{connect:?}").contains("hunter2"));
        assert!(!format!("{:?}", Secret::new("hunter2")).contains("hunter2"));
    }

    #[test]
    fn a_connection_string_names_one_server_and_no_secret() {
        let refused = |text: &str| Connect::new(text, None, None).unwrap_err();
        assert_eq!(refused("user=x"), ConnectError::Hosts(0));
        assert_eq!(refused("host=a,b user=x"), ConnectError::Hosts(2));
        assert_eq!(
            refused("host=a password=hunter2"),
            ConnectError::PasswordInside
        );
        assert_eq!(refused("host=a sslmode=require"), ConnectError::NoAuthority);
        let text = refused("host=a nonsense=hunter2").to_string();
        assert!(
            text.contains("host=10.0.0.5") && !text.contains("hunter2"),
            "{text}"
        );
    }

    #[test]
    fn states_tell_a_locked_door_from_a_dead_house() {
        for (state, against) in [
            ("57P03", true),
            ("25006", true),
            ("53100", true),
            ("53300", false),
            ("28P01", false),
            ("XX000", false),
        ] {
            let failure = by_state(state, String::new());
            assert_eq!(failure.speaks_against_target(), against, "{state}");
        }
    }
}
