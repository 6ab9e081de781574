//! One fresh connection, bounded in time, and what its errors mean.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::Instant;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Config, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::error::{End, SqlError, chain};
use super::password::PasswordFile;
use super::session::{SEVENTEEN, Session};
use super::socket::{Budget, Metered, reach};
use crate::engine::observation::ProbeFailure;
use crate::engine::units::as_millis;

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
    #[error("`sslmode=disable` with a certificate authority: remove one of the two")]
    TlsDisabled,
}

/// Where a PostgreSQL server is and who we are there.
#[derive(Clone)]
pub struct Connect {
    config: Config,
    tls: Option<MakeRustlsConnect>,
    password: Option<Arc<PasswordFile>>,
    superuser: bool,
    default_commits: bool,
    /// The server's major version as it was last seen, 0 before.
    major: Arc<AtomicU32>,
}

impl Connect {
    /// The role it connects as, where the connection string names one.
    pub fn user(&self) -> Option<&str> {
        self.config.get_user()
    }

    /// The host's name or address; `None` for a socket.
    pub(crate) fn host(&self) -> Option<&str> {
        match self.config.get_hosts().first()? {
            Host::Tcp(name) => Some(name),
            Host::Unix(_) => None,
        }
    }

    /// The database that it connects to, where the connection string names one.
    pub fn dbname(&self) -> Option<&str> {
        self.config.get_dbname()
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
            password: None,
            superuser: false,
            default_commits: false,
            major: Arc::default(),
        })
    }

    /// The same, with the password that a file holds when a connection is made.
    pub(crate) fn with_password_in(mut self, file: PasswordFile) -> Self {
        self.password = Some(Arc::new(file));
        self
    }

    fn with_password(&self, password: &Secret) -> Self {
        let mut connect = self.clone();
        connect.config.password(password.expose());
        connect
    }

    /// The same, where the role is a superuser: its sessions then let no trigger, rule or event
    /// trigger of somebody else run with its rights. A role that is none is refused by the server.
    #[must_use]
    pub fn as_superuser(mut self) -> Self {
        self.superuser = true;
        self
    }

    /// The same, whose sessions leave `synchronous_commit` as the defaults have it, so that it can
    /// be read.
    pub(super) fn with_default_commits(&self) -> Self {
        let mut connect = self.clone();
        connect.default_commits = true;
        connect
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
            .field("superuser", &self.superuser)
            .finish_non_exhaustive()
    }
}

/// One connection. Never kept from one probe to the next: an old connection hides a server that
/// takes no new ones (postgres.md P41). Closed when dropped.
pub struct Database {
    client: Client,
    line: Line,
    connect: Connect,
    budget: Arc<Budget>,
}

/// The connection itself, in a task of its own.
struct Line {
    task: JoinHandle<()>,
    /// What ended it, where that was not the way there.
    end: Arc<OnceLock<End>>,
}

impl Database {
    /// Opens a fresh connection, the one way to one: what it states for itself is in
    /// `session.rs`. `timeout` bounds the whole of it (name, TCP, TLS, password), and, with a
    /// second to spare, each later statement on the server's side.
    pub async fn open(connect: &Connect, timeout: Duration) -> Result<Self, ProbeFailure> {
        let opened = match tokio::time::timeout(timeout, logged_in(connect, timeout)).await {
            Ok(opened) => opened,
            Err(_elapsed) => Err(SqlError::Timeout(as_millis(timeout))),
        };
        opened.map_err(SqlError::while_connecting)
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
        let rows = self
            .within(limit, self.client.query_typed(sql, parameters))
            .await?;
        let row = rows
            .first()
            .ok_or_else(|| SqlError::Answer("no row".to_owned()))?;
        let text: &str = row.try_get(0)?;
        serde_json::from_str(text).map_err(|error| SqlError::Answer(error.to_string()))
    }

    /// Runs statements without an answer.
    pub(crate) async fn run(&self, sql: &str, limit: Duration) -> Result<(), SqlError> {
        self.within(limit, self.client.batch_execute(sql)).await
    }

    async fn within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, SqlError> {
        self.budget.renew();
        match tokio::time::timeout(limit, work).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(_closed)) if self.budget.exceeded() => Err(SqlError::TooLarge),
            Ok(Err(error)) => match self.line.end.get() {
                Some(end) if error.is_closed() => Err(end.clone().into()),
                Some(_) | None => Err(error.into()),
            },
            Err(_elapsed) => Err(SqlError::Timeout(as_millis(limit))),
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.line.task.abort();
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Database").field(&self.connect).finish()
    }
}

/// Opens a connection with what the password file holds, or with what the server last took where
/// that is another and the server refuses the first.
async fn logged_in(connect: &Connect, timeout: Duration) -> Result<Database, SqlError> {
    let Some(file) = &connect.password else {
        return opened(connect, timeout).await;
    };
    let (password, other) = file.candidates();
    let refused = match opened(&connect.with_password(&password), timeout).await {
        Err(error) if error.state() == Some("28P01") => error,
        answered => {
            if answered.is_ok() {
                file.worked(password);
            }
            return answered;
        }
    };
    let Some(other) = other else {
        return Err(refused);
    };
    let again = opened(&connect.with_password(&other), timeout).await;
    // What is told is what became of the file's own.
    again.map_err(|_error| refused)
}

/// Opens a connection with the options of the server's version. Where that was not known, or was
/// another, it connects twice.
async fn opened(connect: &Connect, timeout: Duration) -> Result<Database, SqlError> {
    let believed = connect.major.load(Ordering::Relaxed);
    let first = opened_as(connect, timeout, believed).await;
    let major = match &first {
        Ok((_, major)) => *major,
        // An option that it does not know: it is older than it was (postgres.md P42).
        Err(error) if believed > 0 && error.state() == Some("42704") => 0,
        // A default that only newer ones know ended the session before it was let in.
        Err(error) if believed == 0 && error.state() == Some("25P04") => SEVENTEEN,
        Err(_) => return first.map(|(database, _)| database),
    };
    connect.major.store(major, Ordering::Relaxed);
    if Session::states_the_same(believed, major) {
        return first.map(|(database, _)| database);
    }
    let again = opened_as(connect, timeout, major).await;
    again.map(|(database, _)| database)
}

async fn opened_as(
    connect: &Connect,
    timeout: Duration,
    major: u32,
) -> Result<(Database, u32), SqlError> {
    let mut config = connect.config.clone();
    let session = Session {
        limit: timeout,
        superuser: connect.superuser,
        default_commits: connect.default_commits,
        major,
    };
    let options = session.options(config.get_options().unwrap_or_default());
    config.options(options);
    let budget = Budget::new();
    let tls = connect.tls.clone();
    let made = off_the_runtime({
        let budget = Arc::clone(&budget);
        async move { connected(&config, tls, timeout, budget).await }
    });
    let (client, line, major) = match made.await {
        Ok(made) => made,
        Err(_closed) if budget.exceeded() => return Err(SqlError::TooLarge),
        Err(error) => return Err(error),
    };
    let database = Database {
        client,
        line,
        connect: connect.clone(),
        budget,
    };
    Ok((database, major))
}

/// Runs a handshake on a thread that may be busy: a server decides how often a password is hashed,
/// up to the hundred thousand times that the client bears, and whoever waits for a grant meanwhile
/// must not wait for that. It ends when nobody waits for it.
async fn off_the_runtime<T: Send + 'static>(
    handshake: impl Future<Output = Result<T, SqlError>> + Send + 'static,
) -> Result<T, SqlError> {
    let abandoned = || SqlError::Answer("the handshake was abandoned".to_owned());
    let (_waits, gone) = oneshot::channel::<()>();
    let runtime = Handle::current();
    let thread = spawn_blocking(move || {
        runtime.block_on(async move {
            tokio::select! {
                biased;
                _ = gone => Err(abandoned()),
                made = handshake => made,
            }
        })
    });
    thread.await.unwrap_or_else(|_ended| Err(abandoned()))
}

/// Connects, lets the connection run in a task of its own, and says which major version answers.
async fn connected(
    config: &Config,
    tls: Option<MakeRustlsConnect>,
    quiet: Duration,
    budget: Arc<Budget>,
) -> Result<(Client, Line, u32), SqlError> {
    let socket = reach(config, quiet, budget).await?;
    let Some(mut tls) = tls else {
        return handshake(config, socket, NoTls).await;
    };
    let name = match config.get_hosts().first() {
        Some(Host::Tcp(name)) => name.as_str(),
        Some(Host::Unix(_)) | None => "",
    };
    let tls = MakeTlsConnect::<Metered>::make_tls_connect(&mut tls, name)
        .map_err(|error| SqlError::Answer(error.to_string()))?;
    handshake(config, socket, tls).await
}

async fn handshake<T>(
    config: &Config,
    socket: Metered,
    tls: T,
) -> Result<(Client, Line, u32), SqlError>
where
    T: TlsConnect<Metered>,
    T::Stream: Send + Unpin + 'static,
{
    let (client, connection) = config.connect_raw(socket, tls).await?;
    let version = connection.parameter("server_version").unwrap_or_default();
    let digits = version.split(|character: char| !character.is_ascii_digit());
    let major = digits.map(str::parse).next().and_then(Result::ok);
    let end = Arc::<OnceLock<End>>::default();
    let said = Arc::clone(&end);
    // The end of a connection shows in the next statement on it, which is where it matters.
    let task = tokio::spawn(async move {
        let mut connection = connection;
        if let Err(error) = (&mut connection).await {
            tracing::debug!(error = chain(&error), "connection to PostgreSQL ended");
            if let Some(end) = End::of(&error) {
                // Before the connection is dropped, which is what the client sees.
                said.set(end).unwrap_or_default();
            }
        }
    });
    let line = Line { task, end };
    Ok((client, line, major.unwrap_or(0)))
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
}
