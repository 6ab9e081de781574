//! The observer's file, `observer.toml`: read once, checked as a whole.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use axum::http::Uri;

use crate::adapters::tls::{Identity, PeerAddress, TlsFiles};
use crate::config::sites::two_sites;
use crate::config::{self, DatabaseAccess, Files, Url};
use crate::engine::document::{self, Key, Problems, Section};
use crate::engine::topology::{GroupName, ObserverName, SiteName};

/// All that an observer is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// The group.
    pub group: GroupName,
    /// Our name; that of no site.
    pub name: ObserverName,
    /// The controller.
    pub controller: PeerAddress,
    /// The roots that HTTPS probes believe; `None`: the operating system's.
    pub probe_ca: Option<PathBuf>,
    /// Our certificate, for [`Identity::Observer`] of this group and name.
    pub tls: TlsFiles,
    /// Exactly two.
    pub sites: BTreeMap<SiteName, Site>,
}

/// One site, as the observer reaches it.
#[derive(Debug, Clone)]
pub struct Site {
    /// The service, by the site's own address: 2xx is healthy.
    pub api: Uri,
    /// The database.
    pub database: DatabaseAccess,
}

impl Config {
    /// Reads the file and looks at every file that is named. Every mistake is reported, with its
    /// line.
    pub fn read(path: &Path) -> Result<Config, Problems> {
        config::read(path, build)
    }

    /// Reads a text alone, as if it lay in `folder`; looks at no file.
    pub fn parse(file: &str, text: &str, folder: &Path) -> Result<Config, Problems> {
        document::read(file, text, |root| build(root, Files::unseen(folder)))
    }

    /// Every key of the file.
    pub fn keys() -> Vec<Key> {
        document::describe(|root| build(root, Files::unseen(Path::new(""))))
    }
}

fn build(root: &Section<'_>, files: Files<'_>) -> Option<Config> {
    let at = root.section("observer");
    let group: Option<GroupName> = at.parsed("group", "shop");
    let name: Option<ObserverName> = at.parsed("name", "paris");
    let controller = at.parsed("controller", "198.51.100.10:7400");
    let probe_ca = files.optional_file(&at, "probe_ca", "probe-ca.pem");
    let own = group.clone().zip(name.clone());
    let own = own.map(|(group, name)| Identity::Observer { group, name });
    let tls = files.tls(root, own.as_ref());
    let (_, sites) = two_sites(root, |at| build_site(at, files), places);
    let (name, sites) = (name?, sites?);
    if sites.keys().any(|site| site.as_str() == name.as_str()) {
        let text =
            format!("`observer.name` is `{name}`, which is a site: give it a name of its own");
        at.problem("name", text);
    }
    Some(Config {
        group: group?,
        name,
        controller: controller?,
        probe_ca,
        tls: tls?,
        sites,
    })
}

fn build_site(at: &Section<'_>, files: Files<'_>) -> Option<Site> {
    let api = at.parsed::<Url>("api", "http://198.51.100.20:8080/healthz");
    let database = files.database(at);
    Some(Site {
        api: api?.0,
        database: database?,
    })
}

fn places(site: &Site) -> Vec<(&'static str, String)> {
    vec![
        ("api", site.api.to_string()),
        ("database", site.database.conninfo.clone()),
    ]
}
