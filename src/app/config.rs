//! The controller's file, `failover.toml`: read once, checked as a whole, together with the policy
//! that it names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use axum::http::{HeaderName, Uri};

use crate::adapters::keys::SigningKey;
use crate::adapters::tls::{Identity, PeerAddress, TlsFiles};
use crate::config::cluster::ClusterAccess;
use crate::config::sites::two_sites;
use crate::config::{self, DatabaseAccess, Files, Socket, Url};
use crate::engine::document::{self, Key, Problems, Section, human};
use crate::engine::policy::Policy;
use crate::engine::topology::{GroupName, ObserverName, SiteName, Topology};

mod traffic;

pub use traffic::{
    CloudDnsConfig, GoogleAccess, GoogleBackendConfig, RecordConfig, RecordType, Rfc2136Config,
    Route53Config, Route53Record, TrafficConfig, TrafficKind, read_tsig_secret,
};

/// How many vantage points are left when a site is lost, without extra observers: the controller
/// and the other site's agent. The lost site's own agent is lost with it.
const VANTAGE_POINTS_LEFT: usize = 2;

/// The most observers: as many as the largest quorum, 8, could need.
const MOST_OBSERVERS: usize = 6;

/// The checked content of `failover.toml`.
#[derive(Debug, Clone)]
pub struct Config {
    /// The address for agents and the command line, with mutual TLS.
    pub listen: SocketAddr,
    /// The address of `/livez`, `/readyz` and `/metrics` in plain HTTP; `None`: not served.
    pub listen_plain: Option<SocketAddr>,
    /// The policy file.
    pub policy: PathBuf,
    /// The decision log.
    pub log: PathBuf,
    /// Hosts that depend on neither site. At least one.
    pub anchors: Vec<PeerAddress>,
    /// The roots that HTTPS probes trust; `None`: the operating system's.
    pub probe_ca: Option<PathBuf>,
    /// Our certificate, for [`Identity::Controller`].
    pub tls: TlsFiles,
    /// The order key.
    pub orders_key: PathBuf,
    /// The group.
    pub group: GroupName,
    /// The site that is active while the log is empty; one of `sites`.
    pub first_active: SiteName,
    /// Exactly two sites.
    pub sites: BTreeMap<SiteName, Site>,
    /// The trusted extra observers. Names are unique, and not a site's.
    pub observers: BTreeSet<ObserverName>,
    /// The front door; `None`: not verified.
    pub front: Option<Front>,
    /// The traffic targets, in the order in which they are moved. Names are unique.
    pub traffic: Vec<TrafficConfig>,
}

/// One site, as reached by the controller.
#[derive(Debug, Clone)]
pub struct Site {
    /// Its agent's address.
    pub agent: PeerAddress,
    /// The URL of its service, at the site's own address: 2xx is healthy.
    pub api: Uri,
    /// The database.
    pub database: DatabaseAccess,
    /// What can end its database without its agent (invariants.md F2); `None`: nothing.
    pub statefulset: Option<StatefulSet>,
}

/// The StatefulSet that a site's database runs in, as ended by the controller.
#[derive(Debug, Clone)]
pub struct StatefulSet {
    /// Its cluster.
    pub cluster: ClusterAccess,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// The users' entry.
#[derive(Debug, Clone)]
pub struct Front {
    /// The URL of the service, at the users' address.
    pub url: Uri,
    /// The response header that names the site, in lower case.
    pub site_header: String,
    /// Accepts a nonce by POST, and returns it on `GET ?nonce=`.
    pub write_url: Option<Uri>,
    /// The name server to ask for the address, before the name servers of the traffic targets whose
    /// zone holds it; `None`: only the operating system's resolver.
    pub name_server: Option<SocketAddr>,
}

impl Config {
    /// Reads the file and its policy, and checks every file that is named. Every mistake is
    /// reported, with its line.
    pub fn read(path: &Path) -> Result<(Config, Policy), Problems> {
        config::read(path, |root, files| {
            let (config, policy) = build(root, files)?;
            Some((config, policy?))
        })
    }

    /// Reads a text as if it were a file in `folder`; opens no other file.
    pub fn parse(file: &str, text: &str, folder: &Path) -> Result<Config, Problems> {
        document::read(file, text, |root| {
            Some(build(root, Files::unseen(folder))?.0)
        })
    }

    /// Every key of the file.
    pub fn keys() -> Vec<Key> {
        document::describe(|root| build(root, Files::unseen(Path::new(""))))
    }

    /// What the group consists of.
    pub fn topology(&self) -> Topology {
        let passive = self.sites.keys().find(|site| **site != self.first_active);
        Topology {
            group: self.group.clone(),
            first: self.first_active.clone(),
            second: passive.unwrap_or(&self.first_active).clone(),
            traffic: self.traffic.iter().map(|each| each.name.clone()).collect(),
        }
    }
}

/// The table `[controller]`.
struct Controller {
    listen: SocketAddr,
    listen_plain: Option<SocketAddr>,
    policy: PathBuf,
    /// `None` if files are not opened, or the policy is invalid.
    rules: Option<Policy>,
    log: PathBuf,
    anchors: Vec<PeerAddress>,
    probe_ca: Option<PathBuf>,
}

fn build(root: &Section<'_>, files: Files<'_>) -> Option<(Config, Option<Policy>)> {
    let controller_section = root.section("controller");
    let controller = build_controller(&controller_section, files);
    let tls = files.tls(root, Some(&Identity::Controller));
    let orders_key = build_orders(&root.section("orders"), files);
    let group_section = root.section("group");
    let group = group_section.parsed("name", "shop");
    let first_active = group_section.parsed::<SiteName>("first_active", "aws");
    let (names, sites) = two_sites(root, |at| build_site(at, files), places);
    let observers = build_observers(root, &names);
    let front = root.optional_section("front");
    let front = front.map(|at| build_front(&at));
    let traffic = traffic::build(root, files, &names);

    if let (Some(first), Some(sites)) = (&first_active, &sites)
        && !sites.contains_key(first)
    {
        let text = format!("`group.first_active` is `{first}`, which is not one of `[sites]`");
        group_section.problem("first_active", text);
    }
    let controller = controller?;
    let config = Config {
        listen: controller.listen,
        listen_plain: controller.listen_plain,
        policy: controller.policy,
        log: controller.log,
        anchors: controller.anchors,
        probe_ca: controller.probe_ca,
        tls: tls?,
        orders_key: orders_key?,
        group: group?,
        first_active: first_active?,
        sites: sites?,
        observers: observers?,
        front: front.map_or(Some(None), |front| front.map(Some))?,
        traffic: traffic?,
    };
    if let Some(policy) = &controller.rules {
        check_quorum(&controller_section, config.observers.len(), policy);
        check_against_policy(root, &config, policy);
    }
    Some((config, controller.rules))
}

fn build_controller(at: &Section<'_>, files: Files<'_>) -> Option<Controller> {
    let listen = at.parsed::<Socket>("listen", "10.0.3.10:7400");
    let listen_plain = at.optional_parsed::<Socket>("listen_plain", "127.0.0.1:7480");
    let policy = files.file(at, "policy", "standard.toml");
    let log = files.output(at, "log", "/var/lib/failover/decision.log");
    let volatile = at.flag("allow_volatile_log", false);
    if let Some(folder) = log.as_deref().and_then(Path::parent) {
        files.must_last(at, "log", folder, "controller.allow_volatile_log", volatile);
    }
    let anchors = at.filled_list("anchors", "192.0.2.1:443");
    let probe_ca = files.optional_file(at, "probe_ca", "probe-ca.pem");
    let policy = policy?;
    let rules = if files.look() {
        read_policy(at, &policy)
    } else {
        None
    };
    Some(Controller {
        listen: listen?.0,
        listen_plain: listen_plain.map(|plain| plain.0),
        policy,
        rules,
        log: log?,
        anchors: anchors?,
        probe_ca,
    })
}

fn read_policy(at: &Section<'_>, path: &Path) -> Option<Policy> {
    let name = path.display().to_string();
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(cause) => {
            at.problem("policy", format!("cannot read policy `{name}`: {cause}"));
            return None;
        }
    };
    let policy = match Policy::read(&name, &text) {
        Ok(policy) => policy,
        Err(problems) => {
            for problem in problems.list {
                at.problem(
                    "policy",
                    format!("{name}:{}: {}", problem.line, problem.text),
                );
            }
            return None;
        }
    };
    Some(policy)
}

fn build_observers(root: &Section<'_>, sites: &[String]) -> Option<BTreeSet<ObserverName>> {
    let mut observers = BTreeSet::new();
    let mut complete = true;
    for at in root.each("observers") {
        let Some(name) = at.parsed::<ObserverName>("name", "paris") else {
            complete = false;
            continue;
        };
        if sites.iter().any(|site| site == name.as_str()) {
            at.problem("name", format!(
                "`observers[].name` is `{name}`, which is a site: give the observer a name of its own"
            ));
        }
        if observers.contains(&name) {
            at.problem("name", format!("two observers are named `{name}`"));
        }
        observers.insert(name);
    }
    if observers.len() > MOST_OBSERVERS {
        root.problem("observers", format!(
            "`[[observers]]` has {}: at most {MOST_OBSERVERS} are allowed, for the largest quorum",
            observers.len()
        ));
    }
    complete.then_some(observers)
}

fn build_orders(at: &Section<'_>, files: Files<'_>) -> Option<PathBuf> {
    files.path(at, "key", at.text("key", "orders.key"), |path| {
        SigningKey::from_file(path).map(drop)
    })
}

fn build_site(at: &Section<'_>, files: Files<'_>) -> Option<Site> {
    let agent = at.parsed("agent", "10.1.0.10:7401");
    let api = at.parsed::<Url>("api", "http://10.1.0.20:8080/healthz");
    let database = files.database(at);
    let statefulset = at.optional_section("statefulset");
    let statefulset = statefulset.map(|at| {
        let namespace = at.text("namespace", "shop");
        let name = at.text("name", "db");
        let cluster = files.cluster(&at.section("cluster"));
        Some(StatefulSet {
            cluster: cluster?,
            namespace: namespace?,
            name: name?,
        })
    });
    Some(Site {
        agent: agent?,
        api: api?.0,
        database: database?,
        statefulset: statefulset.map_or(Some(None), |set| set.map(Some))?,
    })
}

fn places(site: &Site) -> Vec<(&'static str, String)> {
    vec![
        ("agent", site.agent.to_string()),
        ("api", site.api.to_string()),
        ("database", site.database.conninfo.clone()),
    ]
}

fn build_front(at: &Section<'_>) -> Option<Front> {
    let url = at.parsed::<Url>("url", "http://shop.example.com:8080/healthz");
    let header = at.parsed::<HeaderName>("site_header", "x-failover-site");
    let write_url = at.optional_parsed::<Url>("write_url", "http://shop.example.com:8080/check");
    let name_server = at.optional_parsed::<Socket>("name_server", "10.0.3.53:53");
    Some(Front {
        url: url?.0,
        site_header: header?.as_str().to_owned(),
        write_url: write_url.map(|url| url.0),
        name_server: name_server.map(|socket| socket.0),
    })
}

/// A quorum that could never be met would stop automation for good.
fn check_quorum(at: &Section<'_>, observers: usize, policy: &Policy) {
    let left = VANTAGE_POINTS_LEFT.saturating_add(observers);
    let quorum = policy.detect.quorum;
    if usize::try_from(quorum).is_ok_and(|quorum| quorum > left) {
        at.problem("policy", format!(
            "`detect.quorum` of the policy is {quorum}, but when a site is lost only {left} vantage points are left (the controller, the other site's agent and {observers} of `[[observers]]`): set it to {left} at most, or name further observers"
        ));
    }
}

fn check_against_policy(root: &Section<'_>, config: &Config, policy: &Policy) {
    let verify = policy.steps.verify;
    for target in &config.traffic {
        let ttl = target.record().map(RecordConfig::ttl);
        if let Some(ttl) = ttl.filter(|ttl| *ttl >= verify) {
            root.problem("traffic", format!(
                "`ttl` of `{}` is {}, but the policy's `steps.verify` is {}: a move could not be seen from outside in time",
                target.name, human(ttl), human(verify)
            ));
        }
    }
}

/// The names that appear more than once.
fn repeated<'n, T: Ord>(mut names: impl Iterator<Item = &'n T>) -> Option<&'n T> {
    let mut seen = BTreeSet::new();
    names.find(|name| !seen.insert(*name))
}
