//! The controller's file, `failover.toml`: read once, checked as a whole, together with the policy
//! that it names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::{HeaderName, Uri};

use crate::adapters::keys::SigningKey;
use crate::adapters::tls::{Identity, PeerAddress, TlsFiles};
use crate::config::{self, DatabaseAccess, Files, Socket, Url};
use crate::engine::document::{self, Key, Problems, Section, human};
use crate::engine::policy::Policy;
use crate::engine::topology::{GroupName, SiteName, Topology};

mod traffic;

pub use traffic::{
    RecordType, Rfc2136Config, Route53Config, Route53Record, TrafficConfig, TrafficKind,
    read_tsig_secret,
};

/// How many vantage points are left when a site is lost: the controller and the other site's
/// agent. A larger quorum could never be met.
const VANTAGE_POINTS_LEFT: u32 = 2;

/// All that the controller is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where agents and the command line call, with mutual TLS.
    pub listen: SocketAddr,
    /// Where `/livez`, `/readyz` and `/metrics` answer in plain HTTP; `None`: nowhere.
    pub listen_plain: Option<SocketAddr>,
    /// The policy file.
    pub policy: PathBuf,
    /// The decision log.
    pub log: PathBuf,
    /// Places that have nothing to do with the sites. At least one.
    pub anchors: Vec<PeerAddress>,
    /// The roots that HTTPS probes believe; `None`: the operating system's.
    pub probe_ca: Option<PathBuf>,
    /// Our certificate, for [`Identity::Controller`].
    pub tls: TlsFiles,
    /// The key that signs orders.
    pub orders_key: PathBuf,
    /// The group.
    pub group: GroupName,
    /// The site that is active while the log is empty; one of `sites`.
    pub first_active: SiteName,
    /// Exactly two.
    pub sites: BTreeMap<SiteName, Site>,
    /// How users enter; `None`: not verified.
    pub front: Option<Front>,
    /// What decides where users go, in the order in which it is moved. Names are unique.
    pub traffic: Vec<TrafficConfig>,
}

/// One site, as the controller reaches it.
#[derive(Debug, Clone)]
pub struct Site {
    /// Its agent.
    pub agent: PeerAddress,
    /// The service, by the site's own address: 2xx is healthy.
    pub api: Uri,
    /// The database.
    pub database: DatabaseAccess,
}

/// How users enter.
#[derive(Debug, Clone)]
pub struct Front {
    /// The service, by the address that users use.
    pub url: Uri,
    /// The response header that names the site, in lower case.
    pub site_header: String,
    /// Takes a nonce by POST, and gives it back on `GET ?nonce=`.
    pub write_url: Option<Uri>,
    /// Whom to ask for the address; `None`: the operating system's resolver.
    pub name_server: Option<SocketAddr>,
}

impl Config {
    /// Reads the file and its policy, and looks at every file that is named. Every mistake is
    /// reported, with its line.
    pub fn read(path: &Path) -> Result<(Config, Policy), Problems> {
        config::read(path, |root, files| {
            let (config, policy) = build(root, files)?;
            Some((config, policy?))
        })
    }

    /// Reads a text alone, as if it lay in `folder`; looks at no file.
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
    /// `None` where files are not looked at, or where the policy is wrong.
    rules: Option<Policy>,
    log: PathBuf,
    anchors: Vec<PeerAddress>,
    probe_ca: Option<PathBuf>,
}

fn build(root: &Section<'_>, files: Files<'_>) -> Option<(Config, Option<Policy>)> {
    let controller = build_controller(&root.section("controller"), files);
    let tls = files.tls(root, Some(&Identity::Controller));
    let orders_key = build_orders(&root.section("orders"), files);
    let group_section = root.section("group");
    let group = group_section.parsed("name", "shop");
    let first_active = group_section.parsed::<SiteName>("first_active", "aws");
    let (names, sites) = build_sites(root, files);
    let front = root.optional_section("front");
    let front = front.map(|at| build_front(&at));
    let traffic = traffic::build(root, files, &names);

    if let (Some(first), Some(sites)) = (&first_active, &sites)
        && !sites.contains_key(first)
    {
        let text = format!("`group.first_active` is `{first}`, which is none of `[sites]`");
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
        front: front.map_or(Some(None), |front| front.map(Some))?,
        traffic: traffic?,
    };
    if let Some(policy) = &controller.rules {
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
    let quorum = policy.detect.quorum;
    if quorum > VANTAGE_POINTS_LEFT {
        at.problem("policy", format!(
            "`detect.quorum` of the policy is {quorum}, but when a site is lost only {VANTAGE_POINTS_LEFT} vantage points are left (the controller and the other site's agent): set it to {VANTAGE_POINTS_LEFT}"
        ));
    }
    Some(policy)
}

fn build_orders(at: &Section<'_>, files: Files<'_>) -> Option<PathBuf> {
    files.path(at, "key", at.text("key", "orders.key"), |path| {
        SigningKey::from_file(path).map(drop)
    })
}

/// The sites, and the names that tables about them must use.
fn build_sites(
    root: &Section<'_>,
    files: Files<'_>,
) -> (Vec<String>, Option<BTreeMap<SiteName, Site>>) {
    let tables = root.named("sites");
    let names: Vec<String> = tables.iter().map(|(name, _)| name.clone()).collect();
    if root.has("sites") && tables.len() != 2 {
        root.problem("sites", format!(
            "`[sites]` has {}: a group has exactly two, `[sites.aws]` and `[sites.gcp]`, say; further sites belong to a group of their own",
            tables.len()
        ));
    }
    let built: Vec<_> = tables
        .iter()
        .map(|(name, at)| site_name(name, at).zip(build_site(at, files)))
        .collect();
    // All are built before the first missing one ends this, so that all mistakes are found.
    let sites: Option<BTreeMap<_, _>> = built.into_iter().collect();
    if let Some(sites) = &sites {
        for (name, at) in &tables {
            check_is_apart(name, at, sites);
        }
    }
    (names, sites)
}

fn site_name(name: &str, at: &Section<'_>) -> Option<SiteName> {
    let parsed = name.parse::<SiteName>();
    parsed.map_err(|why| at.mistake(why.to_string())).ok()
}

fn build_site(at: &Section<'_>, files: Files<'_>) -> Option<Site> {
    let agent = at.parsed("agent", "10.1.0.10:7401");
    let api = at.parsed::<Url>("api", "http://10.1.0.20:8080/healthz");
    let database = files.database(at);
    Some(Site {
        agent: agent?,
        api: api?.0,
        database: database?,
    })
}

/// One thing taken for two would make one failure look like two, or one health like two.
fn check_is_apart(name: &str, at: &Section<'_>, sites: &BTreeMap<SiteName, Site>) {
    let Some(own) = sites.iter().find(|(site, _)| site.as_str() == name) else {
        return;
    };
    for (other, site) in sites.iter().filter(|(site, _)| *site > own.0) {
        for (key, same) in [
            ("agent", site.agent == own.1.agent),
            ("api", site.api == own.1.api),
            (
                "database",
                site.database.conninfo == own.1.database.conninfo,
            ),
        ] {
            if same {
                at.problem(
                    key,
                    format!(
                        "`{}` is the same as that of `{other}`: each site has its own",
                        at.path_of(key)
                    ),
                );
            }
        }
    }
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

fn check_against_policy(root: &Section<'_>, config: &Config, policy: &Policy) {
    let verify = policy.steps.verify;
    for target in &config.traffic {
        let ttl = Duration::from_secs(target.ttl_seconds.into());
        if ttl >= verify {
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
