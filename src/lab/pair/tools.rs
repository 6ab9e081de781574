//! The programs of PostgreSQL, and the user that runs them.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use super::{COMMAND_LIMIT, LabError, io_error, run};

/// PostgreSQL is not on this machine, or the user it needs is not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot find {what}: install the package `postgresql` (version 14 or later)")]
pub struct MissingTool {
    what: String,
}

/// The programs of the newest PostgreSQL on this machine, and the user to run them as.
#[derive(Debug, Clone)]
pub struct PostgresTools {
    bin: PathBuf,
    user: Option<OsUser>,
    /// The network namespace that everything runs in; our own where none is named.
    namespace: Option<PathBuf>,
    /// What `initdb` made once, to be copied instead of made again.
    template: Option<PathBuf>,
}

/// A user of the operating system. PostgreSQL refuses to run as root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OsUser {
    /// The user's number.
    pub uid: u32,
    /// The number of its group.
    pub gid: u32,
}

fn missing(what: &str) -> MissingTool {
    MissingTool {
        what: what.to_owned(),
    }
}

impl PostgresTools {
    /// Looks in `/usr/lib/postgresql/*/bin`, newest first, then in `PATH`. As root, everything
    /// runs as the user `postgres`; else as ourselves.
    pub fn find() -> Result<Self, MissingTool> {
        let mut packaged: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten()
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let major = entry.file_name().to_str()?.parse().ok()?;
                Some((major, entry.path().join("bin")))
            })
            .filter(|(major, bin)| *major >= 14 && bin.join("initdb").exists())
            .collect();
        packaged.sort();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let in_path = || std::env::split_paths(&path).find(|bin| bin.join("initdb").exists());
        let bin = packaged
            .pop()
            .map(|(_, bin)| bin)
            .or_else(in_path)
            .ok_or_else(|| missing("the program `initdb`"))?;
        Self::in_folder(bin)
    }

    /// The programs in one folder: `initdb`, `postgres` and `pg_ctl` must be there. Which user runs
    /// them is as in [`PostgresTools::find`].
    pub fn in_folder(bin: PathBuf) -> Result<Self, MissingTool> {
        for tool in ["initdb", "postgres", "pg_ctl"] {
            if !bin.join(tool).exists() {
                return Err(missing(&format!(
                    "the program `{tool}` in `{}`",
                    bin.display()
                )));
            }
        }
        let user = if rustix::process::geteuid().is_root() {
            Some(OsUser::named("postgres").ok_or_else(|| missing("the user `postgres`"))?)
        } else {
            None
        };
        Ok(Self {
            bin,
            user,
            namespace: None,
            template: None,
        })
    }

    /// The path of one program; the bare name, for the search path, where it is not with the
    /// others: clients like `psql` fit servers of other versions.
    pub fn program(&self, name: &str) -> PathBuf {
        let beside = self.bin.join(name);
        if beside.exists() {
            beside
        } else {
            PathBuf::from(name)
        }
    }

    /// The major version, from `postgres --version`.
    pub async fn major(&self) -> Result<u32, LabError> {
        let mut command = self.command("postgres");
        command.arg("--version");
        let said = command.output().await;
        let said = said.map_err(|cause| io_error("run", &self.program("postgres"), cause))?;
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        let version = text.split_whitespace().nth(2).unwrap_or_default();
        let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
        digits
            .parse()
            .map_err(|_cause| LabError::Server(format!("`{}` is no version", text.trim())))
    }

    /// The user that PostgreSQL runs as, where it is not us.
    pub fn user(&self) -> Option<OsUser> {
        self.user
    }

    /// The same, run in a network namespace.
    pub fn inside(&self, namespace: PathBuf) -> Self {
        Self {
            namespace: Some(namespace),
            ..self.clone()
        }
    }

    /// The same, with data directories that are copies of `template`, which [`PostgresTools::init`] made
    /// for these very programs.
    pub fn copying(&self, template: PathBuf) -> Self {
        Self {
            template: Some(template),
            ..self.clone()
        }
    }

    /// Makes a data directory with nothing in it but the superuser `postgres`, whom nobody lets in yet.
    pub async fn init(&self, data: &Path) -> Result<(), LabError> {
        let mut make;
        if let Some(template) = &self.template {
            make = self.plain_command(Path::new("cp"));
            make.args(["--archive", "--no-target-directory"])
                .arg(template)
                .arg(data);
        } else {
            // No sync: whoever pulls the plug now makes the lab anew.
            make = self.command("initdb");
            make.args(["--no-sync", "--data-checksums", "--username=postgres"])
                .args(["--encoding=UTF8", "--auth=reject", "--pgdata"])
                .arg(data);
        }
        run(make, COMMAND_LIMIT).await
    }

    pub(super) fn command(&self, name: &str) -> Command {
        let mut command = self.plain_command(&self.program(name));
        // Our own directory may be closed to the other user; our locale may not exist for it.
        command
            .current_dir("/")
            .env_clear()
            .env("PATH", format!("{}:/usr/bin:/bin", self.bin.display()))
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// A command as the other user. Only root may enter a namespace: whoever enters one changes
    /// the user afterwards.
    fn plain_command(&self, program: &Path) -> Command {
        let Some(namespace) = &self.namespace else {
            let mut command = Command::new(program);
            if let Some(user) = self.user {
                command.uid(user.uid).gid(user.gid);
            }
            return command;
        };
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", namespace.display()));
        if let Some(user) = self.user {
            command.arg(format!("--setuid={}", user.uid));
            command.arg(format!("--setgid={}", user.gid));
        }
        command.arg("--").arg(program);
        command
    }

    pub(super) fn give(&self, path: &Path) -> Result<(), LabError> {
        match self.user {
            Some(user) => chown(path, Some(user.uid), Some(user.gid))
                .map_err(|cause| io_error("change the owner of", path, cause)),
            None => Ok(()),
        }
    }
}

impl OsUser {
    fn named(name: &str) -> Option<Self> {
        let users = fs::read_to_string("/etc/passwd").ok()?;
        users.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next()? == name).then_some(())?;
            Some(OsUser {
                uid: fields.nth(1)?.parse().ok()?,
                gid: fields.next()?.parse().ok()?,
            })
        })
    }
}
