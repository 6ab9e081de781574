//! The composition root of the controller: reads the configuration, creates the adapters, wires the
//! tasks, and ends the process when one of them ends unexpectedly.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use super::api::{self, Api};
use super::assembly::{Controller, OpenedLog, Parts, assemble};
use super::config::{Config, TrafficConfig, TrafficKind, read_tsig_secret};
use super::executor::{CrashDrill, World};
use super::journal::{Journal, Noise, Stamp};
use super::leadership::Leadership;
use crate::adapters::agents::SignedOrders;
use crate::adapters::clock::SystemClock;
use crate::adapters::files::{FileLog, Torn};
use crate::adapters::front::HttpFront;
use crate::adapters::http::{HttpProber, serve_plain};
use crate::adapters::order_keys::OrdersKey;
use crate::adapters::reread::CredentialBook;
use crate::adapters::rfc2136::{self, Rfc2136, TsigKey};
use crate::adapters::route53::{self, Route53};
use crate::adapters::site_probe::{SiteAddress, SiteProbe};
use crate::adapters::tls::{
    Identity, Peer, PeerClient, RejectedPeer, TlsListener, TlsMaterial, serve,
};
use crate::engine::chain::{Chain, Digest, canonical};
use crate::engine::policy::Policy;
use crate::engine::topology::{Topology, Vantage};
use crate::ports::{Clock, Credentials, FrontDoor, Traffic};
use crate::tasks::{a_life, named, until_stopped};

mod google;
mod infrastructure;

/// How many rejected connections may wait to be told of.
const WAITING: usize = 256;

/// How long tasks may take to end cleanly before they are dropped.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// Who holds the log, for another controller that finds it locked.
fn holder(clock: &dyn Clock, path: &Path) -> String {
    let (pid, since) = (std::process::id(), clock.wall());
    format!("pid {pid} since {since}, {}", path.display())
}

/// Runs the controller until it is told to stop, or something that it needs ends.
pub async fn run(path: &Path, crash: Option<Arc<dyn CrashDrill>>) -> anyhow::Result<()> {
    let (config, policy) = Config::read(path)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let listener = TcpListener::bind(config.listen).await;
    let listener = listener.with_context(|| format!("listen at {}", config.listen))?;
    let (material, book) = TlsMaterial::with_book(&config.tls)?;
    let topology = config.topology();

    let world = make_world(&config, &clock, &material, &book, crash).await?;
    let parts = Parts {
        topology: topology.clone(),
        observers: config.observers.iter().cloned().collect(),
        life: a_life()?,
        stamp: Stamp {
            boot: boot_id()?,
            settings: settings_digest(path, &policy)?,
        },
        policy,
        policy_name: policy_name(&config),
        clock: Arc::clone(&clock),
        credentials: Arc::clone(&book) as Arc<dyn Credentials>,
        lead: None,
    };
    let open = || open_log(&config.log, &holder(clock.as_ref(), path), &topology);
    let Controller {
        handle,
        journal,
        status,
        mut tasks,
    } = assemble(parts, open, world).await?;
    tasks.spawn(named("certificates", material.clone().watch()));

    let (stop, stopping) = watch::channel(false);
    let api = Api {
        control: handle,
        journal: journal.clone(),
        status,
        group: topology.group.clone(),
        log: config.log.clone(),
        clock: Arc::clone(&clock),
        commands: api::commands(),
    };
    if let Some(address) = config.listen_plain {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("listen at {address}"))?;
        let (router, stopping) = (api::plain_router(api.clone()), stopping.clone());
        tasks.spawn(named("plain API", serve_plain(listener, router, stopping)));
    }
    let (rejected, rejections) = mpsc::channel(WAITING);
    let listener = expecting_agents(listener, &material, rejected, &config)?;
    let router = api::router(api);
    tasks.spawn(named("API", serve(listener, router, stopping)));
    let rejections = tell_rejections(rejections, journal.clone());
    tasks.spawn(named("rejections", rejections));
    tracing::info!(listen = %config.listen, group = %topology.group, "controller runs");

    let ended = until_stopped(&mut tasks).await;
    stop.send_replace(true);
    if let Ok(()) = &ended {
        let stopped =
            tokio::time::timeout(STOP_WITHIN, journal.note("stopped", "controller stopped"));
        stopped.await.context("write the last entry in time")??;
    }
    ended
}

fn policy_name(config: &Config) -> String {
    let name = config.policy.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// Opens the log, which must be about this group.
fn open_log(log: &Path, holder: &str, topology: &Topology) -> anyhow::Result<OpenedLog> {
    let opened = FileLog::open(log, holder)?;
    check_about(&opened.chain, topology, log)?;
    let torn = opened.torn.map(|Torn { bytes, kept }| {
        let kept = kept.display();
        let text = format!("the last line was torn: {bytes} bytes were cut and kept in `{kept}`");
        ("torn-line", text)
    });
    Ok(OpenedLog {
        store: Box::new(opened.store),
        chain: opened.chain,
        notes: torn.into_iter().collect(),
    })
}

/// A log of another group, or with other sites, is not this controller's.
fn check_about(chain: &Chain, topology: &Topology, log: &Path) -> anyhow::Result<()> {
    if let Some((about, _)) = &chain.about
        && (about.group != topology.group
            || about.first != topology.first
            || about.second != topology.second)
    {
        anyhow::bail!(
            "the decision log `{}` is about group `{}` with sites `{}` and `{}`, the configuration about another\n\nhint: give each group a log of its own, and keep the names and `first_active` of a group that has one",
            log.display(),
            about.group,
            about.first,
            about.second
        );
    }
    Ok(())
}

fn boot_id() -> anyhow::Result<String> {
    let text =
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read the boot id")?;
    Ok(text.trim().to_owned())
}

fn settings_digest(path: &Path, policy: &Policy) -> anyhow::Result<Digest> {
    let mut bytes = std::fs::read(path).context("read the configuration")?;
    bytes.extend(canonical(policy)?);
    Ok(Digest::of(&bytes))
}

/// Everything outside that a step touches, once it is known who leads.
async fn make_world(
    config: &Config,
    clock: &Arc<dyn Clock>,
    material: &TlsMaterial,
    book: &Arc<CredentialBook>,
    crash: Option<Arc<dyn CrashDrill>>,
) -> anyhow::Result<impl FnOnce(Leadership) -> World + use<>> {
    let agents = Arc::new(make_agents(config, material)?);
    let probe = Arc::new(make_probe(config, clock, book)?);
    let traffic = make_traffic(config, clock, book).await?;
    let front = make_front(config, clock, book)?;
    let infrastructure = infrastructure::make(config, clock, book).await?;
    Ok(|leadership| World {
        agents,
        probe,
        traffic,
        front,
        infrastructure,
        leadership,
        crash,
    })
}

fn make_probe(
    config: &Config,
    clock: &Arc<dyn Clock>,
    book: &Arc<CredentialBook>,
) -> anyhow::Result<SiteProbe> {
    let http = HttpProber::believing(config.probe_ca.as_deref(), clock, book)?;
    let mut sites = BTreeMap::new();
    for (name, site) in &config.sites {
        let address = SiteAddress {
            api: site.api.clone(),
            database: site.database.connect(&format!("database@{name}"), book)?,
        };
        sites.insert(name.clone(), address);
    }
    let anchors = config.anchors.iter().map(ToString::to_string).collect();
    Ok(SiteProbe {
        vantage: Vantage::Controller,
        http,
        sites,
        anchors,
    })
}

fn make_agents(config: &Config, material: &TlsMaterial) -> anyhow::Result<SignedOrders> {
    let mut agents = BTreeMap::new();
    for (name, site) in &config.sites {
        let identity = Identity::Agent {
            group: config.group.clone(),
            site: name.clone(),
        };
        let peer = Peer {
            identity,
            address: site.agent.clone(),
        };
        agents.insert(
            name.clone(),
            PeerClient::new(material, peer)?.of(&config.group),
        );
    }
    Ok(SignedOrders::new(
        agents,
        OrdersKey::from_file(&config.orders_key, &material.book())?,
        material.clone(),
    ))
}

fn make_front(
    config: &Config,
    clock: &Arc<dyn Clock>,
    book: &Arc<CredentialBook>,
) -> anyhow::Result<Option<Arc<dyn FrontDoor>>> {
    let Some(front) = &config.front else {
        return Ok(None);
    };
    // The configured name server may be lost with a site; the others of the zone give the same
    // answer.
    let mut name_servers: Vec<SocketAddr> = front.name_server.into_iter().collect();
    if let Some(host) = front.url.host().filter(|_| front.name_server.is_some()) {
        let others = config.traffic.iter();
        for server in others.flat_map(|target| target.name_servers_of(host)) {
            if !name_servers.contains(server) {
                name_servers.push(*server);
            }
        }
    }
    Ok(Some(Arc::new(HttpFront {
        http: HttpProber::believing(config.probe_ca.as_deref(), clock, book)?,
        url: front.url.clone(),
        site_header: front.site_header.clone(),
        write_url: front.write_url.clone(),
        name_servers,
    })))
}

async fn make_traffic(
    config: &Config,
    clock: &Arc<dyn Clock>,
    book: &Arc<CredentialBook>,
) -> anyhow::Result<Vec<Arc<dyn Traffic>>> {
    let mut targets: Vec<Arc<dyn Traffic>> = Vec::new();
    for target in &config.traffic {
        targets.push(match &target.kind {
            TrafficKind::Rfc2136(update) => Arc::new(make_rfc2136(target, update, clock, book)?),
            TrafficKind::Route53(api) => Arc::new(make_route53(target, api, clock).await?),
            TrafficKind::CloudDns(zone) => {
                Arc::new(google::make_cloud_dns(target, zone, clock, book).await?)
            }
            TrafficKind::GoogleBackend(service) => {
                let http = HttpProber::believing(config.probe_ca.as_deref(), clock, book)?;
                Arc::new(google::make_backend(target, service, http, (clock, book)).await?)
            }
        });
    }
    Ok(targets)
}

fn make_rfc2136(
    target: &TrafficConfig,
    update: &super::config::Rfc2136Config,
    clock: &Arc<dyn Clock>,
    book: &Arc<CredentialBook>,
) -> anyhow::Result<Rfc2136> {
    let path = &update.tsig_secret_file;
    let secret = read_tsig_secret(path)?;
    let settings = rfc2136::Settings {
        name: target.name.clone(),
        server: update.server,
        authoritative: update.record.name_servers.clone(),
        zone: update.record.zone.clone(),
        record: update.record.record.clone(),
        ttl_seconds: update.record.ttl_seconds,
        key: TsigKey {
            name: update.tsig_name.clone(),
            secret,
        },
        addresses: update.addresses.clone(),
        timeout: target.timeout,
    };
    let target = Rfc2136::new(settings, Arc::clone(clock))?;
    Ok(target.with_secret_file(path, book, read_tsig_secret)?)
}

async fn make_route53(
    target: &TrafficConfig,
    zone: &super::config::Route53Config,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<Route53> {
    let endpoint = zone.endpoint.as_ref().map(ToString::to_string);
    let api = route53::Api::connect(
        route53::Access::Default,
        endpoint.as_deref(),
        target.timeout,
    )
    .await;
    let site = |record: &super::config::Route53Record| route53::SiteRecord {
        value: record.value.clone(),
        set_identifier: record.identifier.clone(),
    };
    let settings = route53::Settings {
        name: target.name.clone(),
        zone_id: zone.zone_id.clone(),
        place: google::place(&zone.record, zone.record_type, target.timeout),
        sites: zone
            .records
            .iter()
            .map(|(name, each)| (name.clone(), site(each)))
            .collect(),
    };
    Ok(Route53::new(settings, api, Arc::clone(clock))?)
}

/// A listener that keeps room for the agents, whoever else knocks.
fn expecting_agents(
    listener: TcpListener,
    material: &TlsMaterial,
    rejected: mpsc::Sender<RejectedPeer>,
    config: &Config,
) -> anyhow::Result<TlsListener> {
    let agents = config.sites.values().filter_map(|site| site.agent.ip());
    Ok(TlsListener::new(listener, material, Some(rejected))?.expecting(agents))
}

/// Tells the journal of rejected connections.
async fn tell_rejections(mut rejections: mpsc::Receiver<RejectedPeer>, journal: Journal) {
    while let Some(RejectedPeer { address, error }) = rejections.recv().await {
        let text = format!("{error}, from {address}");
        journal.tell(Noise::ConnectionRejected, &address.ip(), &text);
    }
}
