//! The agent's file, `agent.toml`: read once, checked as a whole.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use axum::http::Uri;

use crate::adapters::keys::VerifyingKey;
use crate::adapters::tls::{Identity, PeerAddress, TlsFiles};
use crate::config::{self, DatabaseAccess, Files, Socket, Url};
use crate::engine::document::{self, Key, Problems, Section};
use crate::engine::topology::{GroupName, SiteName};

mod pod;
mod workloads;

pub use self::pod::PodConfig;
pub use self::workloads::{Counted, KubernetesConfig, Workloads, WorkloadsKind};

/// PostgreSQL settings that the agent sets: the guard passes the first ones on the command line;
/// the others are changed while it runs, which a command-line setting would override.
const OWN_SETTINGS: [&str; 7] = [
    "port",
    "listen_addresses",
    "unix_socket_directories",
    "data_directory",
    "primary_conninfo",
    "synchronous_standby_names",
    "allow_alter_system",
];

/// What PostgreSQL is started with unless `options` sets it. After a link failure replication must
/// resume at once: TCP retransmits ever more slowly, and with PostgreSQL's own defaults a standby
/// notices after a minute and retries every 5 s.
const USUAL_OPTIONS: [(&str, &str); 3] = [
    ("wal_sender_timeout", "5s"),
    ("wal_receiver_timeout", "5s"),
    ("wal_retrieve_retry_interval", "500ms"),
];

/// The same for `primary_conninfo`: a connection attempt is given up after this time, since the
/// next one begins at once. Milliseconds for the second, seconds for the others.
const USUAL_CONNINFO: [(&str, &str); 5] = [
    ("connect_timeout", "2"),
    ("tcp_user_timeout", "5000"),
    ("keepalives_idle", "2"),
    ("keepalives_interval", "1"),
    ("keepalives_count", "3"),
];

/// The checked content of `agent.toml`.
#[derive(Debug, Clone)]
pub struct Config {
    /// The group.
    pub group: GroupName,
    /// Our site.
    pub site: SiteName,
    /// The address for the controller and the peer agent, with mutual TLS.
    pub listen: SocketAddr,
    /// The address of `/traffic-ready`, `/livez` and `/metrics` in plain HTTP; `None`: not served.
    pub listen_plain: Option<SocketAddr>,
    /// The folder for state that must survive a restart: fence marker, sever, epoch.
    pub state_dir: PathBuf,
    /// The controller's address.
    pub controller: PeerAddress,
    /// The roots that HTTPS probes trust; `None`: the operating system's.
    pub probe_ca: Option<PathBuf>,
    /// Our certificate, for [`Identity::Agent`] of this group and site.
    pub tls: TlsFiles,
    /// Verifies the controller's orders.
    pub controller_public_key: PathBuf,
    /// The other site.
    pub peer: Peer,
    /// Our PostgreSQL.
    pub postgres: Postgres,
    /// The service; `None`: something else starts and stops it.
    pub workloads: Option<Workloads>,
    /// The pod of a StatefulSet that we run in; `None`: this is a host.
    pub pod: Option<PodConfig>,
}

/// The other site, as reached from here.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its name; not ours.
    pub site: SiteName,
    /// Its agent's address.
    pub agent: PeerAddress,
    /// The URL of its service, at the site's own address.
    pub api: Uri,
    /// Its database.
    pub database: DatabaseAccess,
}

/// The PostgreSQL that the guard starts and stops. We connect to it over the local socket, as
/// `superuser`.
#[derive(Debug, Clone)]
pub struct Postgres {
    /// The folder with `postgres`.
    pub bin_dir: PathBuf,
    /// PGDATA.
    pub data_dir: PathBuf,
    /// The port, for TCP and for the socket. 1 to 65535.
    pub port: u16,
    /// Addresses of this host, `localhost`, `*`; separated by commas.
    pub listen_addresses: String,
    /// The socket's folder.
    pub socket_dir: PathBuf,
    /// The operating system user; `None`: the agent's.
    pub run_as: Option<String>,
    /// The role that the agent connects as.
    pub superuser: String,
    /// The database that the agent connects to: the one with the schema `failover`.
    pub database: String,
    /// Further settings, `name=value` each.
    pub options: Vec<String>,
    /// Receives the output of PostgreSQL and of the guard.
    pub log_file: PathBuf,
    /// How a standby here connects to the other site's primary; without a password.
    pub primary_conninfo: String,
}

impl Config {
    /// Reads the file and checks every file that it names. Every mistake is reported, with its
    /// line.
    pub fn read(path: &Path) -> Result<Config, Problems> {
        config::read(path, build)
    }

    /// Reads a text as if it were a file in `folder`; opens no other file.
    pub fn parse(file: &str, text: &str, folder: &Path) -> Result<Config, Problems> {
        document::read(file, text, |root| build(root, Files::unseen(folder)))
    }

    /// Every key of the file.
    pub fn keys() -> Vec<Key> {
        document::describe(|root| build(root, Files::unseen(Path::new(""))))
    }
}

/// The table `[agent]`.
struct Agent {
    kind: Kind,
    group: GroupName,
    site: SiteName,
    listen: SocketAddr,
    listen_plain: Option<SocketAddr>,
    state_dir: PathBuf,
    controller: PeerAddress,
    probe_ca: Option<PathBuf>,
}

/// Who owns PostgreSQL, and what it runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Host,
    StatefulSet,
    CloudNativePg,
}

const KINDS: [(&str, Kind); 3] = [
    ("host", Kind::Host),
    ("statefulset", Kind::StatefulSet),
    ("cloudnativepg", Kind::CloudNativePg),
];

fn build(root: &Section<'_>, files: Files<'_>) -> Option<Config> {
    let agent_section = root.section("agent");
    let agent = build_agent(&agent_section, files);
    let own = agent.as_ref().map(|agent| Identity::Agent {
        group: agent.group.clone(),
        site: agent.site.clone(),
    });
    let tls = files.tls(root, own.as_ref());
    let orders = root.section("orders");
    let key = orders.text("controller_public_key", "orders.pub");
    let controller_public_key = files.path(&orders, "controller_public_key", key, |path| {
        VerifyingKey::all_from_file(path).map(drop)
    });
    let peer_section = root.section("peer");
    let peer = build_peer(&peer_section, files);
    let postgres = build_postgres(&root.section("postgres"), files, agent.as_ref());
    let workloads = root.optional_section("workloads");
    let workloads = workloads.map(|at| workloads::build(&at, files));
    let in_pod = agent
        .as_ref()
        .is_some_and(|it| it.kind == Kind::StatefulSet);
    let pod = root.where_chosen(in_pod, |root| {
        let at = root.optional_section("pod");
        Some(at.map_or_else(PodConfig::default, |at| pod::build(&at)))
    });

    let (agent, peer) = (agent?, peer?);
    if let Some(postgres) = postgres.as_ref().filter(|_| in_pod) {
        let (state, data) = (&agent.state_dir, &postgres.data_dir);
        pod::must_be_one_volume(&agent_section, files, state, data);
    }
    if peer.site == agent.site {
        let text = format!(
            "`peer.site` is `{}`, which is this site: name the other",
            peer.site
        );
        peer_section.problem("site", text);
    }
    Some(Config {
        group: agent.group,
        site: agent.site,
        listen: agent.listen,
        listen_plain: agent.listen_plain,
        state_dir: agent.state_dir,
        controller: agent.controller,
        probe_ca: agent.probe_ca,
        tls: tls?,
        controller_public_key: controller_public_key?,
        peer,
        postgres: postgres?,
        workloads: workloads.map_or(Some(None), |it| it.map(Some))?,
        pod,
    })
}

fn build_agent(at: &Section<'_>, files: Files<'_>) -> Option<Agent> {
    let kind = build_kind(at);
    let group = at.parsed("group", "shop");
    let site = at.parsed("site", "aws");
    let listen = at.parsed::<Socket>("listen", "10.1.0.10:7401");
    let listen_plain = at.optional_parsed::<Socket>("listen_plain", "0.0.0.0:7481");
    let state_dir = if kind == Some(Kind::StatefulSet) {
        // A volume that is new has none yet: it is made on it.
        files.output(at, "state_dir", "/var/lib/postgresql/data/failover")
    } else {
        files.folder(at, "state_dir", "/var/lib/failover-agent")
    };
    let volatile = at.flag("allow_volatile_state", false);
    if let Some(dir) = &state_dir {
        files.must_last(at, "state_dir", dir, "agent.allow_volatile_state", volatile);
    }
    let controller = at.parsed("controller", "10.0.3.10:7400");
    let probe_ca = files.optional_file(at, "probe_ca", "probe-ca.pem");
    Some(Agent {
        kind: kind?,
        group: group?,
        site: site?,
        listen: listen?.0,
        listen_plain: listen_plain.map(|plain| plain.0),
        state_dir: state_dir?,
        controller: controller?,
        probe_ca,
    })
}

fn build_kind(at: &Section<'_>) -> Option<Kind> {
    let named = at.has("kind");
    let kind = at.where_chosen(named, |at| at.choice("kind", &KINDS));
    if kind == Some(Kind::CloudNativePg) {
        at.problem("kind", "`agent.kind` is `cloudnativepg`, which is not built into this program yet: an agent beside a plain StatefulSet has `statefulset`");
    }
    kind.or((!named).then_some(Kind::Host))
}

fn build_peer(at: &Section<'_>, files: Files<'_>) -> Option<Peer> {
    let site = at.parsed("site", "gcp");
    let agent = at.parsed("agent", "10.2.0.10:7401");
    let api = at.parsed::<Url>("api", "http://10.2.0.20:8080/healthz");
    let database = files.database(at);
    Some(Peer {
        site: site?,
        agent: agent?,
        api: api?.0,
        database: database?,
    })
}

fn build_postgres(at: &Section<'_>, files: Files<'_>, agent: Option<&Agent>) -> Option<Postgres> {
    let bin = at.text("bin_dir", "/usr/lib/postgresql/15/bin");
    let bin_dir = files.path(at, "bin_dir", bin, |dir| {
        let found = dir.join("postgres").is_file();
        let hint = || format!("there is no `postgres` in `{}`", dir.display());
        found.then_some(()).ok_or_else(hint)
    });
    let data_dir = files.folder(at, "data_dir", "/var/lib/postgresql/15/main");
    let port = at.number("port", 1..=u64::from(u16::MAX));
    let listen_addresses = at.text("listen_addresses", "10.1.0.10");
    let socket_dir = files.folder(at, "socket_dir", "/run/postgresql");
    let run_as = at.optional_text("run_as", "postgres");
    let superuser = at.text("superuser", "postgres");
    let database = at.text("database", "app");
    let options = at.list(
        "options",
        "config_file=/etc/postgresql/15/main/postgresql.conf",
    );
    let log_file = files.output(at, "log_file", "/var/log/postgresql/failover.log");
    let conninfo = at.text(
        "primary_conninfo",
        "host=10.2.0.10 port=5432 user=replicator",
    );
    let plaintext = at.flag("allow_plaintext", false);
    if files.look() && run_as.is_none() && rustix::process::geteuid().is_root() {
        at.problem("run_as", "`postgres.run_as` is missing: PostgreSQL refuses to run as root: name its user, such as `postgres`");
    }
    let listen_addresses = listen_addresses.filter(|text| are_own_addresses(at, text));
    let conninfo = conninfo?;
    check_options(at, &options);
    check_conninfo(at, &conninfo, plaintext, agent);
    let options = usual_options(&options).chain(options.clone()).collect();
    Some(Postgres {
        bin_dir: bin_dir?,
        data_dir: data_dir?,
        port: u16::try_from(port?).ok()?,
        listen_addresses: listen_addresses?,
        socket_dir: socket_dir?,
        run_as,
        superuser: superuser?,
        database: database?,
        options,
        log_file: log_file?,
        primary_conninfo: with_usual(conninfo),
    })
}

/// A setting's name as PostgreSQL reads it on its command line: case-insensitive, and with a hyphen
/// for an underscore.
fn setting(option: &str) -> String {
    let name = option.split_once('=').map_or(option, |(name, _)| name);
    name.trim().to_ascii_lowercase().replace('-', "_")
}

fn usual_options(given: &[String]) -> impl Iterator<Item = String> {
    let given: Vec<String> = given.iter().map(|option| setting(option)).collect();
    let left = USUAL_OPTIONS
        .into_iter()
        .filter(move |(name, _)| !given.iter().any(|it| it == name));
    left.map(|(name, value)| format!("{name}={value}"))
}

fn with_usual(mut conninfo: String) -> String {
    for (name, value) in USUAL_CONNINFO {
        if parameter(&conninfo, name).is_none() {
            conninfo = format!("{conninfo} {name}={value}");
        }
    }
    conninfo
}

/// A parameter of a connection string, without quoting.
fn parameter<'c>(conninfo: &'c str, name: &str) -> Option<&'c str> {
    let mut parts = conninfo.split_whitespace();
    parts.find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
}

/// The guard does not use DNS, which could make it wait while a deadline passes.
fn are_own_addresses(at: &Section<'_>, text: &str) -> bool {
    let wrong = text
        .split(',')
        .map(str::trim)
        .find(|each| !matches!(*each, "" | "*" | "localhost") && each.parse::<IpAddr>().is_err());
    if let Some(wrong) = wrong {
        at.problem("listen_addresses", format!(
            "`postgres.listen_addresses` names `{wrong}`: write addresses of this host, `localhost` or `*`"
        ));
    }
    wrong.is_none()
}

fn check_options(at: &Section<'_>, options: &[String]) {
    for option in options {
        if !option.contains('=') {
            at.problem(
                "options",
                format!("`postgres.options` holds `{option}`: write it like `max_connections=200`"),
            );
            continue;
        }
        let name = setting(option);
        if OWN_SETTINGS.contains(&name.as_str()) {
            at.problem("options", format!(
                "`postgres.options` holds `{option}`, but the agent sets `{name}` itself: remove it"
            ));
        }
    }
}

fn check_conninfo(at: &Section<'_>, conninfo: &str, plaintext: bool, agent: Option<&Agent>) {
    let has = |name: &str| parameter(conninfo, name);
    if has("password").is_some() {
        at.problem("primary_conninfo", "`postgres.primary_conninfo` holds a password: put it into a file and name that with `passfile=`");
    }
    if has("host").is_none() {
        at.problem("primary_conninfo", "`postgres.primary_conninfo` names no host: write it like `host=10.2.0.10 port=5432 user=replicator`");
    }
    let encrypted = matches!(
        has("sslmode"),
        Some("require" | "verify-ca" | "verify-full")
    );
    if !encrypted && !plaintext && !has("host").is_none_or(config::is_local) {
        at.problem("primary_conninfo", "`postgres.primary_conninfo` connects to another host and does not require TLS (`sslmode` defaults to `prefer`): write `sslmode=verify-full sslrootcert=FILE`, or set `postgres.allow_plaintext = true` if the network itself is encrypted");
    }
    // Two standbys with one name would be confused (postgres.md P33).
    if let Some(agent) = agent
        && has("application_name") != Some(agent.site.as_str())
    {
        at.problem("primary_conninfo", format!(
            "`postgres.primary_conninfo` does not hold `application_name={}`: a standby has the name of its site",
            agent.site
        ));
    }
}
