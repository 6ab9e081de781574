//! What the configuration files of controller, agent and observer have in common: paths that begin at the
//! file's folder, files and secrets that must be there, TLS, ways to a database.
//!
//! Reading looks at every file that is named, so that a process that starts has all it needs; a
//! missing or exposed secret is reported like any other mistake, with key and line.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use axum::http::Uri;
use rustls::{ClientConfig, RootCertStore};
use serde::Serialize;

use crate::adapters::keys::{self, KeyError};
use crate::adapters::postgres::{Connect, ConnectError, PasswordFile, Secret};
use crate::adapters::reread::{CredentialBook, Reread};
use crate::adapters::tls::{
    Believed, Identity, Revoked, TlsFiles, TlsMaterial, client_of, install_provider, roots_of,
};
use crate::engine::document::{self, Problem, Problems, Section};
use crate::engine::units::UnitError;

pub mod cluster;
pub mod schema;
pub(crate) mod sites;

/// How to reach a database as a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DatabaseAccess {
    /// `host=… port=… dbname=… user=…`, without a password.
    pub conninfo: String,
    /// Holds the password, readable by its owner only.
    pub password_file: Option<PathBuf>,
    /// The authority of the server's certificate. Given: TLS, and the server is verified by name.
    /// Not given: plain text, which leads to this host or was allowed.
    pub ca: Option<PathBuf>,
}

/// Why what a configuration names is of no use.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// A file cannot be read, or others may read a secret.
    #[error(transparent)]
    File(#[from] KeyError),
    /// The connection string.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A file holds something else.
    #[error("`{path}` does not hold {what}", path = path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
}

impl DatabaseAccess {
    /// Reads the files, and makes what connections are opened with. Connects to nothing. Password
    /// and authority are read again when their files change; refusals, and when the certificate of
    /// `owner` (`database@gcp`) ends, go into `book`.
    pub fn connect(&self, owner: &str, book: &Arc<CredentialBook>) -> Result<Connect, AccessError> {
        let tls = self.ca.as_deref().map(|path| {
            let file = Reread::new("authority of a database", path, book, roots)?;
            let owner = Some(owner.to_owned());
            let config = client_of(Believed::File(file), owner, Arc::clone(book));
            Ok::<_, AccessError>(config)
        });
        let connect = Connect::new(&self.conninfo, None, tls.transpose()?)?;
        let Some(path) = &self.password_file else {
            return Ok(connect);
        };
        let file = Reread::new("password file", path, book, read_text_secret)?;
        Ok(connect.with_password_in(PasswordFile::new(file)))
    }

    /// The role of the connection string, where it names one.
    pub(crate) fn role(&self) -> Option<String> {
        self.unread().ok()?.user().map(str::to_owned)
    }

    /// What can be said without looking at a file.
    fn unread(&self) -> Result<Connect, ConnectError> {
        let tls = self.ca.as_ref().map(|_| believing(RootCertStore::empty()));
        Connect::new(&self.conninfo, None, tls)
    }
}

fn believing(roots: RootCertStore) -> ClientConfig {
    install_provider();
    ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

fn roots(path: &Path) -> Result<RootCertStore, AccessError> {
    roots_of(path).map_err(|_cause| AccessError::Malformed {
        path: path.to_owned(),
        what: "the certificate of an authority in PEM form",
    })
}

/// Reads a secret of one line from a file that only its owner may read.
pub fn read_text_secret(path: &Path) -> Result<Secret, AccessError> {
    let content = keys::read_secret(path)?;
    let text = std::str::from_utf8(&content).ok();
    text.map(|text| text.trim_end_matches(['\r', '\n']))
        .filter(|text| !text.is_empty())
        .map(Secret::new)
        .ok_or_else(|| AccessError::Malformed {
            path: path.to_owned(),
            what: "a secret: write it as one line",
        })
}

/// The files that a configuration names.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Files<'a> {
    /// Where relative paths begin.
    folder: &'a Path,
    /// Whether the files are looked at.
    look: bool,
}

/// Reads a configuration file and looks at all it names.
pub(crate) fn read<T>(
    path: &Path,
    build: impl FnOnce(&Section<'_>, Files<'_>) -> Option<T>,
) -> Result<T, Problems> {
    let file = path.display().to_string();
    let text = fs::read_to_string(path).map_err(|cause| Problems {
        file: file.clone(),
        list: vec![Problem {
            line: 1,
            text: format!("cannot be read: {cause}"),
        }],
    })?;
    let folder = folder_of(path);
    document::read(&file, &text, |root| {
        let files = Files {
            folder: &folder,
            look: true,
        };
        build(root, files)
    })
}

/// Where the relative paths of a file begin. Absolute, because they must hold wherever a child
/// process runs, and of a file that is named by its name alone, too.
fn folder_of(file: &Path) -> PathBuf {
    let whole = std::path::absolute(file).unwrap_or_else(|_cause| file.to_owned());
    whole.parent().unwrap_or(&whole).to_owned()
}

impl<'a> Files<'a> {
    /// For reading a text alone, as if it lay in `folder`.
    pub(crate) fn unseen(folder: &'a Path) -> Self {
        Self {
            folder,
            look: false,
        }
    }

    /// Whether files are looked at.
    pub(crate) fn look(self) -> bool {
        self.look
    }

    /// A path that `check` says nothing against.
    pub(crate) fn path<E: std::fmt::Display>(
        self,
        at: &Section<'_>,
        key: &str,
        text: Option<String>,
        check: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Option<PathBuf> {
        let path = self.folder.join(text?);
        if self.look
            && let Err(why) = check(&path)
        {
            at.problem(key, format!("`{}`: {why}", at.path_of(key)));
            return None;
        }
        Some(path)
    }

    /// A file that must be there.
    pub(crate) fn file(self, at: &Section<'_>, key: &str, example: &str) -> Option<PathBuf> {
        self.path(at, key, at.text(key, example), is_file)
    }

    /// A file that must be there when it is named.
    pub(crate) fn optional_file(
        self,
        at: &Section<'_>,
        key: &str,
        example: &str,
    ) -> Option<PathBuf> {
        self.path(at, key, at.optional_text(key, example), is_file)
    }

    /// A file that only its owner may read.
    pub(crate) fn secret(self, at: &Section<'_>, key: &str, example: &str) -> Option<PathBuf> {
        self.path(at, key, at.text(key, example), |path| {
            keys::read_secret(path).map(drop)
        })
    }

    /// A folder that must be there.
    pub(crate) fn folder(self, at: &Section<'_>, key: &str, example: &str) -> Option<PathBuf> {
        self.path(at, key, at.text(key, example), is_folder)
    }

    /// A file that we write: its folder must be there.
    pub(crate) fn output(self, at: &Section<'_>, key: &str, example: &str) -> Option<PathBuf> {
        self.path(at, key, at.text(key, example), |path| {
            is_folder(path.parent().unwrap_or(path))
        })
    }

    /// The table `[tls]`, whose certificate must be for `own`.
    pub(crate) fn tls(self, root: &Section<'_>, own: Option<&Identity>) -> Option<TlsFiles> {
        let at = root.section("tls");
        let ca = self.file(&at, "ca", "ca.pem");
        let certificate = self.file(&at, "certificate", "controller.pem");
        let key = self.secret(&at, "key", "controller.key");
        let revoked = at.optional_text("revoked", "revoked.txt");
        let revoked = self.path(&at, "revoked", revoked, |path| {
            Revoked::from_file(path).map(drop)
        });
        let files = TlsFiles {
            ca: ca?,
            certificate: certificate?,
            key: key?,
            revoked,
        };
        if self.look {
            match (TlsMaterial::load(&files), own) {
                (Err(why), _) => at.mistake(format!("`[tls]`: {why}")),
                (Ok(material), Some(own)) if material.identity() != own => at.problem(
                    "certificate",
                    format!(
                        "`tls.certificate` is for `{}`, but this process is `{own}`: issue the right one with `failover certificates`",
                        material.identity()
                    ),
                ),
                (Ok(_), _) => {}
            }
        }
        Some(files)
    }

    /// The keys `database`, `password_file`, `database_ca` and `allow_plaintext` of a table.
    pub(crate) fn database(self, at: &Section<'_>) -> Option<DatabaseAccess> {
        let conninfo = at.text(
            "database",
            "host=10.1.0.10 port=5432 dbname=app user=failover",
        );
        let password = at.optional_text("password_file", "db.password");
        let password_file = self.path(at, "password_file", password, |path| {
            read_text_secret(path).map(drop)
        });
        let ca = at.optional_text("database_ca", "database-ca.pem");
        let plaintext = at.flag("allow_plaintext", false) || ca.is_some();
        let ca = self.path(at, "database_ca", ca, |path| roots(path).map(drop));
        let access = DatabaseAccess {
            conninfo: conninfo?,
            password_file,
            ca,
        };
        if access.conninfo.contains("sslmode=verify") {
            at.problem("database", format!(
                "`{}`: remove `sslmode`: `database_ca` turns TLS on, and then the server is always verified by name",
                at.path_of("database")
            ));
        } else {
            match access.unread() {
                Err(why) => at.problem("database", format!("`{}`: {why}", at.path_of("database"))),
                Ok(connect) if !plaintext && !connect.host().is_none_or(is_local) => at.problem("database", format!(
                    "`{}` connects to another host in plain text: set `{}`, which turns TLS on, or `{} = true` if the network itself is encrypted",
                    at.path_of("database"), at.path_of("database_ca"), at.path_of("allow_plaintext")
                )),
                Ok(_) => {}
            }
        }
        Some(access)
    }

    /// Reports a folder that a restart of the machine empties.
    pub(crate) fn must_last(
        self,
        at: &Section<'_>,
        key: &str,
        path: &Path,
        allowed_by: &str,
        allowed: bool,
    ) {
        if self.look && !allowed && is_volatile(path) {
            at.problem(key, format!(
                "`{}` is in memory (tmpfs): its contents do not survive a reboot: choose a folder on a disk, or set `{allowed_by} = true` for a trial",
                at.path_of(key)
            ));
        }
    }
}

fn is_file(path: &Path) -> Result<(), String> {
    match fs::metadata(path) {
        Ok(found) if found.is_file() => Ok(()),
        Ok(_) => Err(format!("`{}` is not a file", path.display())),
        Err(cause) => Err(format!("cannot find `{}`: {cause}", path.display())),
    }
}

fn is_folder(path: &Path) -> Result<(), String> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(format!("`{}` is not a folder", path.display())),
        Err(cause) => Err(format!("cannot find folder `{}`: {cause}", path.display())),
    }
}

/// Whether a folder lies on tmpfs or ramfs (`linux/magic.h`). What cannot be asked is reported by
/// whoever uses it.
fn is_volatile(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|found| matches!(found.f_type, 0x0102_1994 | 0x8584_58f6))
}

/// Whether a host of a connection string is this one: nothing in between can listen.
pub(crate) fn is_local(host: &str) -> bool {
    let address = host.parse::<IpAddr>();
    host == "localhost" || host.starts_with('/') || address.is_ok_and(|ip| ip.is_loopback())
}

/// An address and port of our own or of a name server: no name that must be looked up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Socket(pub(crate) SocketAddr);

impl FromStr for Socket {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        text.parse()
            .map(Socket)
            .map_err(|_cause| UnitError::new(text, "an IP address with a port", "10.0.3.10:7400"))
    }
}

/// An address that stands in a record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ip(pub(crate) IpAddr);

impl FromStr for Ip {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        text.parse()
            .map(Ip)
            .map_err(|_cause| UnitError::new(text, "an IP address", "10.1.0.20"))
    }
}

/// The address of something that answers over HTTP.
#[derive(Debug, Clone)]
pub(crate) struct Url(pub(crate) Uri);

impl FromStr for Url {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = || {
            UnitError::new(
                text,
                "an HTTP address",
                "http://shop.example.com:8080/healthz",
            )
        };
        let uri: Uri = text.parse().map_err(|_cause| wrong())?;
        let web = matches!(uri.scheme_str(), Some("http" | "https"));
        if web && uri.host().is_some_and(|host| !host.is_empty()) {
            Ok(Url(uri))
        } else {
            Err(wrong())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_no_place_that_lasts() {
        let listed = fs::read_to_string("/proc/mounts").unwrap();
        let tmpfs = listed.lines().find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let place = fields.next()?;
            (fields.next() == Some("tmpfs") && Path::new(place).is_dir()).then_some(place)
        });
        assert!(is_volatile(Path::new(tmpfs.expect("a tmpfs"))));
        assert!(!is_volatile(Path::new("/proc")));
    }

    #[test]
    fn relative_paths_begin_at_the_folder_of_the_file_however_it_is_named() {
        let here = std::env::current_dir().unwrap();
        for (file, folder) in [
            (
                "/etc/failover/failover.toml",
                Path::new("/etc/failover").to_owned(),
            ),
            ("keys/failover.toml", here.join("keys")),
            ("./failover.toml", here.clone()),
            ("failover.toml", here),
        ] {
            assert_eq!(folder_of(Path::new(file)), folder, "{file}");
        }
    }

    #[test]
    fn a_file_that_we_write_may_be_named_by_its_name_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("failover.toml");
        let written = |text: &str| {
            fs::write(&file, text).unwrap();
            read(&file, |root, files| {
                files.output(root, "log", "decision.log")
            })
        };
        let log = written("log = \"decision.log\"\n").unwrap();
        assert_eq!(log, folder.path().join("decision.log"));
        let said = written("log = \"away/decision.log\"\n")
            .unwrap_err()
            .to_string();
        assert!(said.contains("cannot find folder"), "{said}");
    }

    #[test]
    fn web_addresses_have_a_scheme_and_a_host() {
        for good in ["http://10.1.0.20:8080/healthz", "https://shop.example.com"] {
            assert!(good.parse::<Url>().is_ok(), "{good}");
        }
        for bad in ["", "/healthz", "shop.example.com", "ftp://shop/", "http://"] {
            assert!(bad.parse::<Url>().is_err(), "{bad}");
        }
    }
}
