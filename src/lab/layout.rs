//! What a lab consists of: folders, addresses, certificates, a PostgreSQL pair, configurations.
//! Everything is made from nothing; nothing of the machine is touched.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use data_encoding::BASE64;

use super::cluster::{self, NAMESPACE, STATEFULSET, SiteKind};
use super::name_server::free_port;
use super::network::{Namespaces, Place, enter};
use super::pair::{
    Instance, Passwords, PostgresTools, StopMode, create_primary, create_standby, recreate_standby,
    stop, turn_hostile, turn_settings_hostile,
};
use super::site_api::{SiteApiConfig, prepare_tables};
use crate::adapters::certificates::Authority;
use crate::adapters::clock::SystemClock;
use crate::adapters::keys::{SigningKey, write_secret};
use crate::adapters::postgres::{Database, Secret, write_epoch};
use crate::adapters::rfc2136::TsigKey;
use crate::adapters::tls::{Identity, TlsFiles};
use crate::engine::topology::{GroupName, SiteName};
use crate::engine::units::Epoch;
use crate::ports::Clock;

mod agent_file;

/// How long the lab's certificates hold: longer than any that somebody is to be warned of.
const CERTIFICATES: Duration = Duration::from_secs(90 * 86_400);
/// How long one statement of the set-up may take.
const STATEMENT: Duration = Duration::from_secs(20);
/// The zone of the lab's name server, and the service in it.
pub const ZONE: &str = "lab.test";
/// The service's name.
pub const SERVICE: &str = "shop.lab.test";

/// Which PostgreSQL a lab runs, and on what.
#[derive(Debug, Clone)]
pub struct Servers {
    /// Its programs.
    pub tools: PostgresTools,
    /// Whether its defaults are turned against us: see [`turn_hostile`].
    pub hostile: bool,
    /// What its sites are.
    pub kind: SiteKind,
}

impl Servers {
    /// The newest on this machine, with the usual defaults.
    pub fn usual() -> anyhow::Result<Self> {
        Ok(Self {
            tools: PostgresTools::find()?,
            hostile: false,
            kind: SiteKind::Host,
        })
    }
}

/// One site.
#[derive(Debug, Clone)]
pub struct SiteLayout {
    /// Its name.
    pub name: SiteName,
    /// Its address.
    pub ip: IpAddr,
    /// Its PostgreSQL.
    pub instance: Instance,
    /// Where its agent listens.
    pub agent: SocketAddr,
    /// Where its agent answers load balancers.
    pub agent_plain: SocketAddr,
    /// Where its API listens.
    pub api: SocketAddr,
    /// Where the API server of its cluster listens, if it has one.
    pub cluster: Option<SocketAddr>,
    /// Its folder.
    pub dir: PathBuf,
}

/// A lab.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Its folder.
    pub dir: PathBuf,
    /// The group.
    pub group: GroupName,
    /// The first is active at the start.
    pub sites: [SiteLayout; 2],
    /// Where the controller listens.
    pub controller: SocketAddr,
    /// Where the controller answers probes.
    pub controller_plain: SocketAddr,
    /// Where the name server answers.
    pub name_server: SocketAddr,
    /// The key for updates of the zone.
    pub tsig: TsigKey,
    /// What an operator needs.
    pub operator: TlsFiles,
    /// The programs of PostgreSQL.
    pub tools: PostgresTools,
    /// This program, which the lab runs many times.
    pub program: PathBuf,
    /// The network it stands in; the loopback network where there is none.
    pub namespaces: Option<Namespaces>,
    passwords: Passwords,
}

fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0u8; N];
    aws_lc_rs::rand::fill(&mut bytes).context("random numbers")?;
    Ok(bytes)
}

fn password() -> anyhow::Result<Secret> {
    Ok(Secret::new(
        data_encoding::HEXLOWER.encode(&random::<16>()?),
    ))
}

/// Chooses ports. In a network of its own nothing else listens, and they are counted.
struct Ports {
    counted: Option<u16>,
}

impl Ports {
    fn at(&mut self, ip: IpAddr) -> anyhow::Result<u16> {
        let Some(last) = &mut self.counted else {
            return Ok(free_port(ip)?);
        };
        *last = last.saturating_add(1);
        Ok(*last)
    }

    fn socket(&mut self, ip: IpAddr) -> anyhow::Result<SocketAddr> {
        Ok(SocketAddr::new(ip, self.at(ip)?))
    }

    /// A port that is free at two addresses: the service has the same one at both sites, because
    /// a name leads to an address and not to a port.
    fn shared(&mut self, first: IpAddr, second: IpAddr) -> anyhow::Result<u16> {
        for _ in 0..100 {
            let port = self.at(first)?;
            if self.counted.is_some() || std::net::TcpListener::bind((second, port)).is_ok() {
                return Ok(port);
            }
        }
        anyhow::bail!("no port is free at both `{first}` and `{second}`")
    }
}

impl Layout {
    /// Chooses addresses and passwords, and makes everything in `dir`, which must be empty.
    /// `program` is this program. Without namespaces the two sites and the neutral place have
    /// addresses of the loopback network.
    pub async fn create(
        dir: &Path,
        program: &Path,
        namespaces: Option<Namespaces>,
        policy: &str,
        servers: Servers,
    ) -> anyhow::Result<Self> {
        let Servers {
            tools,
            hostile,
            kind,
        } = servers;
        let [a, b] = random::<2>()?;
        let loopback = |last| IpAddr::V4(Ipv4Addr::new(127, 1 + a % 254, b, last));
        let [first, second, neutral] = match namespaces {
            None => [1, 2, 3].map(loopback),
            Some(network) => {
                [Place::Aws, Place::Gcp, Place::Neutral].map(|place| network.address(place))
            }
        };
        let mut ports = Ports {
            counted: namespaces.map(|_| 5000),
        };
        // The user that PostgreSQL runs as must get through to its own folder.
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o711))?;
        let api = ports.shared(first, second)?;
        let passwords = Passwords {
            replicator: password()?,
            failover: password()?,
            app: password()?,
        };
        let tsig = TsigKey {
            name: "failover-lab".to_owned(),
            secret: random::<32>()?.to_vec(),
        };
        let group: GroupName = "shop".parse()?;
        let sites = [
            site(dir, "aws", (first, kind), api, &mut ports)?,
            site(dir, "gcp", (second, kind), api, &mut ports)?,
        ];
        let operator = keys(dir, &group, &sites)?;
        let layout = Self {
            dir: dir.to_owned(),
            group,
            controller: ports.socket(neutral)?,
            controller_plain: ports.socket(neutral)?,
            name_server: ports.socket(neutral)?,
            sites,
            tsig,
            operator,
            tools,
            program: program.to_owned(),
            namespaces,
            passwords,
        };
        layout.secrets()?;
        layout.databases(hostile).await?;
        layout.configurations(policy)?;
        Ok(layout)
    }

    fn configurations(&self, policy: &str) -> anyhow::Result<()> {
        std::fs::write(self.policy(), policy)?;
        std::fs::write(self.controller_config(), self.controller_text())?;
        for (own, other) in [(0, 1), (1, 0)] {
            let (Some(own), Some(other)) = (self.sites.get(own), self.sites.get(other)) else {
                continue;
            };
            std::fs::write(own.agent_config(), self.agent_text(own, other))?;
            let api = SiteApiConfig {
                site: own.name.clone(),
                listen: own.api,
                database: format!(
                    "host={} port={} user=app dbname=app sslmode=disable",
                    own.ip, own.instance.port
                ),
                password_file: self.dir.join("app.password"),
            };
            std::fs::write(own.api_config(), serde_json::to_vec(&api)?)?;
            if let Some(listen) = own.cluster {
                // The passive site's service is started by the failover.
                let web = u64::from(own.name == self.sites[0].name);
                cluster::prepare(own, (listen, web), &self.program)?;
            }
        }
        Ok(())
    }

    /// The decision log.
    pub fn log(&self) -> PathBuf {
        self.dir.join("decision.log")
    }

    /// The controller's configuration.
    pub fn controller_config(&self) -> PathBuf {
        self.dir.join("failover.toml")
    }

    fn policy(&self) -> PathBuf {
        self.dir.join("policy.toml")
    }

    /// A site by its name.
    pub fn site(&self, name: &SiteName) -> Option<&SiteLayout> {
        self.sites.iter().find(|site| site.name == *name)
    }

    /// A command that runs at a place.
    pub fn command(&self, place: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
        match self.namespace(place) {
            Some(namespace) => enter(&namespace, program),
            None => Command::new(program),
        }
    }

    fn namespace(&self, place: &str) -> Option<PathBuf> {
        Some(self.namespaces?.file(Place::named(place)?))
    }

    /// PostgreSQL's programs, run at a site.
    fn tools_at(&self, site: &SiteLayout) -> PostgresTools {
        match self.namespace(site.name.as_str()) {
            Some(namespace) => self.tools.inside(namespace),
            None => self.tools.clone(),
        }
    }

    fn secrets(&self) -> anyhow::Result<()> {
        let write = |name: &str, text: &str| write_secret(&self.dir.join(name), text.as_bytes());
        write("failover.password", self.passwords.failover.expose())?;
        write("app.password", self.passwords.app.expose())?;
        write("tsig.secret", &BASE64.encode(&self.tsig.secret))?;
        Ok(())
    }

    async fn databases(&self, hostile: bool) -> anyhow::Result<()> {
        let [primary, standby] = &self.sites;
        let tools = self.tools_at(primary);
        create_primary(&tools, &primary.instance, &self.passwords).await?;
        let opened = Database::open(&primary.instance.local("app")?, STATEMENT).await?;
        prepare_tables(&opened, STATEMENT).await?;
        write_epoch(&opened, Epoch(1), &primary.name, STATEMENT).await?;
        drop(opened);
        if hostile {
            turn_hostile(&primary.instance).await?;
        }
        create_standby(
            &self.tools_at(standby),
            &primary.instance,
            &standby.instance,
            &self.passwords,
        )
        .await?;
        stop(&tools, &primary.instance, StopMode::Fast).await?;
        for site in &self.sites {
            self.write_passfile(site)?;
            if hostile {
                turn_settings_hostile(&site.instance, tools.major().await?)?;
            }
        }
        Ok(())
    }

    /// Makes the old primary, which does not run, a standby of the new one: the new copy of way B
    /// in the runbook.
    pub async fn rejoin(&self, old: &SiteLayout, new: &SiteLayout) -> anyhow::Result<()> {
        let tools = self.tools_at(old);
        recreate_standby(&tools, &new.instance, &old.instance, &self.passwords).await?;
        Ok(())
    }

    /// The password with which a site's standby connects, where PostgreSQL's user can read it.
    fn write_passfile(&self, site: &SiteLayout) -> anyhow::Result<()> {
        let path = site.passfile();
        let password = self.passwords.replicator.expose();
        std::fs::write(&path, format!("*:*:*:replicator:{password}\n"))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        if let Some(user) = self.tools.user() {
            std::os::unix::fs::chown(&path, Some(user.uid), Some(user.gid))?;
        }
        Ok(())
    }

    fn database_lines(&self, site: &SiteLayout) -> String {
        format!(
            "api = \"http://{}/healthz\"\ndatabase = \"host={} port={} dbname=app user=failover sslmode=disable\"\npassword_file = \"{}\"\nallow_plaintext = true\n",
            site.api,
            site.ip,
            site.instance.port,
            self.dir.join("failover.password").display()
        )
    }

    fn tls_lines(&self, name: &str) -> String {
        let dir = self.dir.join("tls");
        let dir = dir.display();
        format!(
            "[tls]\nca = \"{dir}/ca.pem\"\ncertificate = \"{dir}/{name}.pem\"\nkey = \"{dir}/{name}.key\"\n"
        )
    }

    fn controller_text(&self) -> String {
        let [first, second] = &self.sites;
        let dir = self.dir.display();
        let mut text = format!(
            "[controller]\nlisten = \"{}\"\nlisten_plain = \"{}\"\npolicy = \"policy.toml\"\nlog = \"decision.log\"\nanchors = [\"{}\"]\nallow_volatile_log = true\n\n",
            self.controller, self.controller_plain, self.name_server
        );
        text += &self.tls_lines("controller");
        text += &format!(
            "\n[orders]\nkey = \"{dir}/tls/orders.key\"\n\n[group]\nname = \"{}\"\nfirst_active = \"{}\"\n",
            self.group, first.name
        );
        for site in &self.sites {
            text += &format!(
                "\n[sites.{}]\nagent = \"{}\"\n{}",
                site.name,
                site.agent,
                self.database_lines(site)
            );
            text += &cluster_lines(site);
        }
        let host = SERVICE;
        let port = first.api.port();
        // Writing to a String cannot fail.
        write!(text, "\n[front]\nurl = \"http://{host}:{port}/healthz\"\nsite_header = \"x-failover-site\"\nwrite_url = \"http://{host}:{port}/check\"\nname_server = \"{}\"\n", self.name_server).unwrap_or_default();
        write!(
            text,
            "\n[[traffic]]\nname = \"dns\"\nkind = \"rfc2136\"\nserver = \"{ns}\"\nauthoritative = [\"{ns}\"]\nzone = \"{ZONE}\"\nrecord = \"{SERVICE}\"\nttl = \"1s\"\ntsig_name = \"{}\"\ntsig_secret_file = \"{dir}/tsig.secret\"\n[traffic.addresses]\n{} = [\"{}\"]\n{} = [\"{}\"]\n",
            self.tsig.name, first.name, first.ip, second.name, second.ip, ns = self.name_server
        ).unwrap_or_default();
        text
    }
}

/// By which the controller ends the pod of a site's database.
fn cluster_lines(site: &SiteLayout) -> String {
    if site.cluster.is_none() {
        return String::new();
    }
    format!(
        "\n[sites.{0}.statefulset]\nnamespace = \"{NAMESPACE}\"\nname = \"{STATEFULSET}\"\n[sites.{0}.statefulset.cluster]\naccess = \"kubeconfig\"\nkubeconfig = \"{1}\"\ntimeout = \"2s\"\n",
        site.name,
        site.kubeconfig().display()
    )
}

impl SiteLayout {
    /// The agent's configuration.
    pub fn agent_config(&self) -> PathBuf {
        self.dir.join("agent.toml")
    }

    /// The API's configuration.
    pub fn api_config(&self) -> PathBuf {
        self.dir.join("api.json")
    }

    /// The configuration of its cluster.
    pub fn cluster_config(&self) -> PathBuf {
        self.dir.join("cluster.json")
    }

    /// A kubeconfig file that leads to its cluster.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    fn passfile(&self) -> PathBuf {
        self.instance.dir.join("passfile")
    }
}

fn site(
    dir: &Path,
    name: &str,
    (ip, kind): (IpAddr, SiteKind),
    api: u16,
    ports: &mut Ports,
) -> anyhow::Result<SiteLayout> {
    let name: SiteName = name.parse()?;
    let folder = dir.join(name.as_str());
    std::fs::create_dir_all(folder.join("state"))?;
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o711))?;
    Ok(SiteLayout {
        instance: Instance {
            site: name.clone(),
            dir: folder.join("pg"),
            listen: ip,
            port: ports.at(ip)?,
        },
        agent: ports.socket(ip)?,
        agent_plain: ports.socket(ip)?,
        api: SocketAddr::new(ip, api),
        cluster: match kind {
            SiteKind::Host => None,
            SiteKind::Kubernetes => Some(ports.socket(ip)?),
        },
        dir: folder,
        name,
        ip,
    })
}

/// Certificates for everybody, and the key that signs orders.
fn keys(dir: &Path, group: &GroupName, sites: &[SiteLayout; 2]) -> anyhow::Result<TlsFiles> {
    let now = SystemClock.wall();
    let folder = dir.join("tls");
    std::fs::create_dir_all(&folder)?;
    let authority = Authority::create(&folder, now, CERTIFICATES)?;
    authority.issue(&Identity::Controller, now, CERTIFICATES)?;
    for site in sites {
        let identity = Identity::Agent {
            group: group.clone(),
            site: site.name.clone(),
        };
        authority.issue(&identity, now, CERTIFICATES)?;
    }
    let key = SigningKey::generate()?;
    key.to_file(&folder.join("orders.key"))?;
    key.verifying_key().to_file(&folder.join("orders.pub"))?;
    let operator = format!("lab.operator.{group}.failover.internal").parse()?;
    Ok(authority.issue(&operator, now, CERTIFICATES)?)
}
