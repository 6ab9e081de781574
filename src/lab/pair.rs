//! A PostgreSQL primary and its standby, made from nothing.
//!
//! Only for set-up: in a running lab the guard is PostgreSQL's parent, and starts it with
//! [`Instance::server_arguments`].

use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use tokio::process::Command;

use crate::adapters::postgres::{Connect, ConnectError, Database, Secret};
use crate::adapters::postgres::{allow_monitoring, prepare};
use crate::engine::topology::SiteName;

mod copy;
mod hostile;
mod tools;

use self::copy::copy_running;
pub use self::hostile::{turn_hostile, turn_settings_hostile};
pub use self::tools::{MissingTool, OsUser, PostgresTools};

/// How long one command may take; `initdb` and `pg_basebackup` need a second or two.
const COMMAND_LIMIT: Duration = Duration::from_mins(1);
/// How long one statement of the set-up may take.
const STATEMENT_LIMIT: Duration = Duration::from_secs(20);

/// Why the lab's PostgreSQL could not be made.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A program of PostgreSQL is missing.
    #[error(transparent)]
    Missing(#[from] MissingTool),
    /// A file or a process could not be made.
    #[error("cannot {what}: {cause}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's answer.
        cause: io::Error,
    },
    /// A command said no.
    #[error("`{command}` failed ({status}): {stderr}")]
    Command {
        /// Its name.
        command: String,
        /// Its end.
        status: String,
        /// What it said.
        stderr: String,
    },
    /// A command took too long and was ended.
    #[error("`{command}` took longer than {limit:?}")]
    TooSlow {
        /// Its name.
        command: String,
        /// How long it was given.
        limit: Duration,
    },
    /// The new server said no.
    #[error("cannot set up the new server: {0}")]
    Server(String),
}

impl From<ConnectError> for LabError {
    fn from(error: ConnectError) -> Self {
        LabError::Server(error.to_string())
    }
}

/// One PostgreSQL instance: where its files are and where it listens.
///
/// Its own settings lie beside the data and not in it: `pg_rewind` copies the other side's data
/// over ours, settings included, and dies of any file there that PostgreSQL does not own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// The site it belongs to: `cluster_name`, and its name as a standby.
    pub site: SiteName,
    /// The directory that holds everything, mode 0700. Made here; at most 80 bytes long, because
    /// a socket lies in it. The directories above it must be open to the user `postgres`.
    pub dir: PathBuf,
    /// The address to listen on.
    pub listen: IpAddr,
    /// The port, of TCP and of the socket.
    pub port: u16,
}

/// The passwords of the roles that the lab makes.
#[derive(Debug, Clone)]
pub struct Passwords {
    /// Of `replicator`: may stream.
    pub replicator: Secret,
    /// Of `failover`: may watch and write heartbeats.
    pub failover: Secret,
    /// Of `app`: owns the database `app`.
    pub app: Secret,
}

/// How to stop a server. There is no "smart": it lets open sessions commit (postgres.md P35).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Ends the sessions and writes a shutdown checkpoint.
    Fast,
    /// Like a crash.
    Immediate,
}

impl Instance {
    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// The directory of the socket. Open to the operating system's user only, which is why the
    /// socket asks for no password.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("socket")
    }

    /// What `postgres` is started with.
    pub fn server_arguments(&self) -> Vec<OsString> {
        let mut arguments = vec![OsString::from("-D"), self.data().into_os_string()];
        arguments.extend(["-c".into(), self.config_argument()]);
        arguments
    }

    fn config_argument(&self) -> OsString {
        let mut argument = OsString::from("config_file=");
        argument.push(self.dir.join("postgresql.conf"));
        argument
    }

    /// As the superuser, over the local socket, to a database.
    pub fn local(&self, database: &str) -> Result<Connect, ConnectError> {
        let socket = self.socket();
        let conninfo = format!(
            "host='{}' port={} user=postgres dbname={database}",
            socket.display(),
            self.port
        );
        Ok(Connect::new(&conninfo, None, None)?.as_superuser())
    }

    /// Over TCP, to the database `app`.
    pub fn remote(&self, role: &str, password: &Secret) -> Result<Connect, ConnectError> {
        let conninfo = format!(
            "host={} port={} user={role} dbname=app sslmode=disable",
            self.listen, self.port
        );
        Connect::new(&conninfo, Some(password.clone()), None)
    }

    fn make_directories(&self, tools: &PostgresTools) -> Result<(), LabError> {
        for dir in [self.dir.clone(), self.data(), self.socket()] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)
                .map_err(|cause| io_error("create", &dir, cause))?;
            tools.give(&dir)?;
        }
        Ok(())
    }

    fn write_settings(&self, tools: &PostgresTools) -> Result<(), LabError> {
        let dir = self.dir.display();
        let settings = format!(
            "data_directory = '{dir}/data'\n\
             hba_file = '{dir}/pg_hba.conf'\n\
             unix_socket_directories = '{dir}/socket'\n\
             listen_addresses = '{listen}'\n\
             port = {port}\n\
             cluster_name = '{site}'\n\
             logging_collector = off\n\
             log_line_prefix = '%m [%p] '\n\
             # What a failover needs.\n\
             wal_level = replica\n\
             wal_log_hints = on\n\
             hot_standby = on\n\
             max_wal_senders = 10\n\
             wal_keep_size = '256MB'\n\
             # A standby whose primary is not up yet asks again soon, not after 5 s.\n\
             wal_retrieve_retry_interval = '250ms'\n\
             fsync = on\n\
             # Small, because it shares the machine.\n\
             shared_buffers = '16MB'\n\
             max_connections = 50\n",
            listen = self.listen,
            port = self.port,
            site = self.site,
        );
        // The address is what closes the door, not this list: in a lab every site has its own.
        let hosts = "local all all trust\n\
                     host all all all scram-sha-256\n\
                     host replication replicator all scram-sha-256\n";
        for (name, text) in [
            ("postgresql.conf", settings.as_str()),
            ("pg_hba.conf", hosts),
        ] {
            let path = self.dir.join(name);
            fs::write(&path, text).map_err(|cause| io_error("write", &path, cause))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
                .map_err(|cause| io_error("close", &path, cause))?;
            tools.give(&path)?;
        }
        Ok(())
    }
}

/// Makes a primary with the roles `replicator`, `failover` and `app`, the database `app` and the
/// schema `failover` in it. Leaves it running, so that a standby can be made from it.
pub async fn create_primary(
    tools: &PostgresTools,
    primary: &Instance,
    passwords: &Passwords,
) -> Result<(), LabError> {
    primary.make_directories(tools)?;
    tools.init(&primary.data()).await?;
    primary.write_settings(tools)?;
    start_temporarily(tools, primary).await?;
    create_roles(primary, passwords).await
}

async fn create_roles(primary: &Instance, passwords: &Passwords) -> Result<(), LabError> {
    let database = open(primary, "postgres").await?;
    let statements = [
        create_role("replicator", "REPLICATION", &passwords.replicator),
        create_role("failover", "", &passwords.failover),
        create_role("app", "", &passwords.app),
        "CREATE DATABASE app OWNER app".to_owned(),
    ];
    for statement in statements {
        // The statement holds a password: it must not get into the error.
        database
            .run(&statement, STATEMENT_LIMIT)
            .await
            .map_err(server)?;
    }
    let app = open(primary, "app").await?;
    prepare(&app, STATEMENT_LIMIT).await.map_err(server)?;
    allow_monitoring(&app, "failover", STATEMENT_LIMIT)
        .await
        .map_err(server)
}

fn create_role(name: &str, rights: &str, password: &Secret) -> String {
    let quoted = password.expose().replace('\'', "''");
    format!("CREATE ROLE {name} LOGIN {rights} PASSWORD '{quoted}'")
}

/// Makes a standby of a running primary. Leaves it stopped.
pub async fn create_standby(
    tools: &PostgresTools,
    primary: &Instance,
    standby: &Instance,
    passwords: &Passwords,
) -> Result<(), LabError> {
    standby.make_directories(tools)?;
    copy_standby(tools, primary, standby, passwords).await?;
    standby.write_settings(tools)
}

/// Replaces the data of an instance that does not run with a standby's copy of a running primary.
/// Its settings stay.
pub async fn recreate_standby(
    tools: &PostgresTools,
    primary: &Instance,
    standby: &Instance,
    passwords: &Passwords,
) -> Result<(), LabError> {
    let data = standby.data();
    fs::remove_dir_all(&data).map_err(|cause| io_error("remove", &data, cause))?;
    standby.make_directories(tools)?;
    copy_standby(tools, primary, standby, passwords).await
}

async fn copy_standby(
    tools: &PostgresTools,
    primary: &Instance,
    standby: &Instance,
    passwords: &Passwords,
) -> Result<(), LabError> {
    let conninfo = format!(
        "host={} port={} user=replicator password='{}' sslmode=disable application_name={}",
        primary.listen,
        primary.port,
        passwords.replicator.expose().replace('\'', "\\'"),
        standby.site
    );
    copy_running(tools, primary, &standby.data(), &conninfo).await
}

/// Starts a server that nobody guards, and returns when it takes connections. What it says goes
/// to `log` in the instance's directory.
pub async fn start_temporarily(tools: &PostgresTools, instance: &Instance) -> Result<(), LabError> {
    // `pg_ctl` hands this to a shell.
    let config = instance.config_argument();
    let options = format!("-c '{}'", config.to_string_lossy().replace('\'', "'\\''"));
    let mut start = tools.command("pg_ctl");
    start
        .args(["start", "--wait", "--timeout=50", "--silent", "--log"])
        .arg(instance.dir.join("log"))
        .arg("--pgdata")
        .arg(instance.data())
        .arg("--options")
        .arg(options);
    run(start, COMMAND_LIMIT).await
}

/// Stops a server and waits for its end.
pub async fn stop(
    tools: &PostgresTools,
    instance: &Instance,
    mode: StopMode,
) -> Result<(), LabError> {
    let mut stop = tools.command("pg_ctl");
    stop.args(["stop", "--wait", "--timeout=50", "--silent", "--mode"])
        .arg(match mode {
            StopMode::Fast => "fast",
            StopMode::Immediate => "immediate",
        })
        .arg("--pgdata")
        .arg(instance.data());
    run(stop, COMMAND_LIMIT).await
}

async fn open(instance: &Instance, database: &str) -> Result<Database, LabError> {
    Database::open(&instance.local(database)?, STATEMENT_LIMIT)
        .await
        .map_err(server)
}

async fn run(mut command: Command, limit: Duration) -> Result<(), LabError> {
    let name = Path::new(command.as_std().get_program())
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let done: Output = tokio::time::timeout(limit, command.output())
        .await
        .map_err(|_elapsed| LabError::TooSlow {
            command: name.clone(),
            limit,
        })?
        .map_err(|cause| LabError::Io {
            what: format!("run `{name}`"),
            cause,
        })?;
    if done.status.success() {
        return Ok(());
    }
    Err(LabError::Command {
        command: name,
        status: done.status.to_string(),
        stderr: String::from_utf8_lossy(&done.stderr).trim().to_owned(),
    })
}

fn server(error: impl std::fmt::Display) -> LabError {
    LabError::Server(error.to_string())
}

fn io_error(what: &str, path: &Path, cause: io::Error) -> LabError {
    LabError::Io {
        what: format!("{what} `{}`", path.display()),
        cause,
    }
}
