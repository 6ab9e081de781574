//! The composition root of the controller: reads the configuration, makes the adapters, wires the
//! tasks, and ends the process when one of them ends unasked.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::api::{self, Api};
use super::brain::Brain;
use super::config::{Config, TrafficConfig, TrafficKind, read_tsig_secret};
use super::control::{Control, Handle, Input};
use super::executor::{CrashDrill, World};
use super::journal::{Journal, Noise, Stamp};
use super::leadership::Leadership;
use super::notes::read_notes;
use super::prober::look_for_ever;
use crate::adapters::agents::SignedOrders;
use crate::adapters::clock::SystemClock;
use crate::adapters::files::{FileLog, Torn};
use crate::adapters::front::HttpFront;
use crate::adapters::http::{HttpProber, Roots, RootsError, serve_plain};
use crate::adapters::order_keys::OrdersKey;
use crate::adapters::reread::CredentialBook;
use crate::adapters::rfc2136::{self, Rfc2136, TsigKey};
use crate::adapters::route53::{self, Route53};
use crate::adapters::site_probe::{SiteAddress, SiteProbe};
use crate::adapters::tls::{
    Identity, Peer, PeerClient, RejectedPeer, TlsListener, TlsMaterial, serve,
};
use crate::engine::chain::{Chain, Digest, canonical};
use crate::engine::format::PROGRAM;
use crate::engine::policy::Policy;
use crate::engine::topology::{Target, Topology, Vantage};
use crate::engine::units::MonoTime;
use crate::ports::{Clock, Credentials, FrontDoor, Probe, Traffic};
use crate::wire::Rhythm;

/// How many observations and rejected connections may wait to be taken in.
const WAITING: usize = 256;

/// How long to wait for tasks to end in order before they are dropped.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// Who holds the log, for whoever finds it held.
fn holder(clock: &dyn Clock, path: &Path) -> String {
    let (pid, since) = (std::process::id(), clock.wall());
    format!("pid {pid} since {since}, {}", path.display())
}

/// Runs the controller until it is told to stop, or something it needs ends.
pub async fn run(path: &Path, crash: Option<Arc<dyn CrashDrill>>) -> anyhow::Result<()> {
    let (config, policy) = Config::read(path)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let listener = TcpListener::bind(config.listen).await;
    let listener = listener.with_context(|| format!("listen at {}", config.listen))?;
    let (material, book) = TlsMaterial::with_book(&config.tls)?;
    let topology = config.topology();

    let opened = FileLog::open(&config.log, &holder(clock.as_ref(), path))?;
    check_about(&opened.chain, &topology, &config.log)?;
    let began_empty = opened.chain.entries == 0;
    let stamp = Stamp {
        boot: boot_id()?,
        settings: settings_digest(path, &policy)?,
    };
    let boot = stamp.boot.clone();
    let (journal, writer) = Journal::open(
        Box::new(opened.store),
        opened.chain,
        topology.clone(),
        Arc::clone(&clock),
        stamp,
    )
    .await?;

    let probe: Arc<dyn Probe> = Arc::new(make_probe(&config, &clock, &book)?);
    let world = World {
        agents: Arc::new(make_agents(&config, &material)?),
        probe: Arc::clone(&probe),
        traffic: make_traffic(&config, &clock, &book).await?,
        front: make_front(&config, &clock, &book)?,
        leadership: Leadership::alone(Arc::clone(&clock)),
        crash,
    };
    let brain = make_brain(&config, &policy, &journal, clock.now())?
        .booted(boot)
        .holding_against(began_empty, topology.traffic.iter().cloned());
    let world = Arc::new(world);
    let (handle, inputs) = Handle::new();
    let (control, status) = Control::new(
        brain,
        journal.clone(),
        Arc::clone(&clock),
        Arc::clone(&world),
        (handle.clone(), inputs),
        policy_name(&config),
    );

    let mut tasks = first_tasks(&material);
    tasks.spawn(async { ("decision log", writer.run().await.map_err(Into::into)) });
    if let Some(Torn { bytes, kept }) = opened.torn {
        let kept = kept.display();
        let text = format!("the last line was torn: {bytes} bytes were cut and kept in `{kept}`");
        journal.note("torn-line", text).await?;
    }
    let started = format!("controller started: {PROGRAM}");
    journal.note("started", started).await?;
    tasks.spawn(control.rehearser().run());
    tasks.spawn(async { ("control loop", control.run().await.map_err(Into::into)) });

    tokio::spawn(read_notes(world, Arc::clone(&clock), handle.clone()));
    let targets = topology.sites().into_iter().flat_map(Target::looked_at);
    let (seen, observations) = mpsc::channel(WAITING);
    let rhythm = Rhythm {
        every: policy.detect.probe_every,
        within: policy.detect.probe_timeout,
    };
    let (_keep_rhythm, rhythm_told) = watch::channel(rhythm);
    let looking = look_for_ever(
        Arc::clone(&probe),
        targets.collect(),
        Vantage::Controller,
        Arc::clone(&clock),
        rhythm_told,
        seen,
    );
    tasks.spawn(async {
        looking.await;
        ("probes", Ok(()))
    });
    tasks.spawn(forward(observations, handle.clone()));
    tasks.spawn(watch_anchors(
        probe,
        Arc::clone(&clock),
        rhythm,
        (handle.clone(), book),
    ));

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
        tasks.spawn(async {
            serve_plain(listener, router, stopping).await;
            ("plain API", Ok(()))
        });
    }
    let (rejected, rejections) = mpsc::channel(WAITING);
    let listener = expecting_agents(listener, &material, rejected, &config)?;
    let router = api::router(api);
    tasks.spawn(async {
        serve(listener, router, stopping).await;
        ("API", Ok(()))
    });
    tasks.spawn(tell_rejections(rejections, journal.clone()));
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

/// Waits for a signal to stop, or for the end of a task, which nobody asked for.
pub(crate) async fn until_stopped(
    tasks: &mut JoinSet<(&'static str, anyhow::Result<()>)>,
) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};

    let mut terminate = signal(SignalKind::terminate()).context("wait for signals")?;
    tokio::select! {
        ended = tasks.join_next() => match ended {
            Some(Ok((name, Ok(())))) => anyhow::bail!("the task `{name}` ended unasked"),
            Some(Ok((name, Err(cause)))) => Err(cause.context(format!("the task `{name}` failed"))),
            Some(Err(cause)) => Err(cause).context("a task broke"),
            None => anyhow::bail!("there is no task"),
        },
        _ = terminate.recv() => Ok(()),
        pressed = tokio::signal::ctrl_c() => pressed.context("wait for signals"),
    }
}

/// The tasks of a process, of which the first has certificates, authorities and revocations read
/// again whenever their files change.
pub(crate) fn first_tasks(material: &TlsMaterial) -> JoinSet<(&'static str, anyhow::Result<()>)> {
    let mut tasks = JoinSet::new();
    let watching = material.clone().watch();
    tasks.spawn(async {
        watching.await;
        ("certificates", Ok(()))
    });
    tasks
}

fn policy_name(config: &Config) -> String {
    let name = config.policy.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
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

/// A number that no other process of ours has, and none had before this one: below 2^53, which every
/// reader of JSON keeps exactly.
pub(crate) fn a_life() -> anyhow::Result<u64> {
    let mut random = [0; 8];
    aws_lc_rs::rand::fill(&mut random).context("draw a random number")?;
    Ok(u64::from_ne_bytes(random) >> 11)
}

fn settings_digest(path: &Path, policy: &Policy) -> anyhow::Result<Digest> {
    let mut bytes = std::fs::read(path).context("read the configuration")?;
    bytes.extend(canonical(policy)?);
    Ok(Digest::of(&bytes))
}

/// What asks over HTTP, believing the roots of a file or of the operating system.
pub(crate) fn prober(
    probe_ca: Option<&Path>,
    clock: &Arc<dyn Clock>,
    book: &Arc<CredentialBook>,
) -> Result<HttpProber, RootsError> {
    let roots = probe_ca.map_or(Roots::System, |path| Roots::File(path.to_owned()));
    HttpProber::noting(&roots, Arc::clone(clock), book)
}

fn make_probe(
    config: &Config,
    clock: &Arc<dyn Clock>,
    book: &Arc<CredentialBook>,
) -> anyhow::Result<SiteProbe> {
    let http = prober(config.probe_ca.as_deref(), clock, book)?;
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
        agents.insert(name.clone(), PeerClient::new(material, peer)?);
    }
    Ok(SignedOrders::new(
        agents,
        OrdersKey::from_file(&config.orders_key, &material.book())?,
        material.clone(),
    ))
}

fn make_brain(
    config: &Config,
    policy: &Policy,
    journal: &Journal,
    now: MonoTime,
) -> anyhow::Result<Brain> {
    let (topology, policy) = (config.topology(), policy.clone());
    let brain = Brain::new(topology, policy, &journal.state(), now, a_life()?);
    Ok(brain.observed_by(config.observers.iter().cloned()))
}

fn make_front(
    config: &Config,
    clock: &Arc<dyn Clock>,
    book: &Arc<CredentialBook>,
) -> anyhow::Result<Option<Arc<dyn FrontDoor>>> {
    let Some(front) = &config.front else {
        return Ok(None);
    };
    // The one that is named for it may be lost with a site; the others of the zone say the same.
    let mut name_servers: Vec<SocketAddr> = front.name_server.into_iter().collect();
    if let Some(host) = front.url.host().filter(|_| front.name_server.is_some()) {
        let others = config.traffic.iter().filter(|target| target.serves(host));
        for server in others.flat_map(TrafficConfig::name_servers) {
            if !name_servers.contains(server) {
                name_servers.push(*server);
            }
        }
    }
    Ok(Some(Arc::new(HttpFront {
        http: prober(config.probe_ca.as_deref(), clock, book)?,
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
        authoritative: update.authoritative.clone(),
        zone: target.zone.clone(),
        record: target.record.clone(),
        ttl_seconds: target.ttl_seconds,
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
    record: &super::config::Route53Config,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<Route53> {
    let endpoint = record.endpoint.as_ref().map(ToString::to_string);
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
        zone_id: record.zone_id.clone(),
        zone: target.zone.clone(),
        record: target.record.clone(),
        kind: match record.record_type {
            super::config::RecordType::A => route53::Kind::A,
            super::config::RecordType::Aaaa => route53::Kind::Aaaa,
            super::config::RecordType::Cname => route53::Kind::Cname,
        },
        ttl_seconds: target.ttl_seconds,
        sites: record
            .records
            .iter()
            .map(|(name, each)| (name.clone(), site(each)))
            .collect(),
        name_servers: record.name_servers.clone(),
        dns_timeout: target.timeout,
        in_sync_within: route53::IN_SYNC_WITHIN,
        poll_every: route53::POLL_EVERY,
    };
    Ok(Route53::new(settings, api, Arc::clone(clock))?)
}

pub(crate) async fn forward(
    mut observations: mpsc::Receiver<crate::engine::observation::Observation>,
    control: Handle,
) -> (&'static str, anyhow::Result<()>) {
    while let Some(observation) = observations.recv().await {
        if control
            .tell(Input::Observed(vec![observation]))
            .await
            .is_err()
        {
            break;
        }
    }
    ("observations", Ok(()))
}

/// Looks at the anchors for ever, and tells them together with what this process knows of its
/// certificates and secrets.
pub(crate) async fn watch_anchors(
    probe: Arc<dyn Probe>,
    clock: Arc<dyn Clock>,
    rhythm: Rhythm,
    (control, credentials): (Handle, Arc<impl Credentials + 'static>),
) -> (&'static str, anyhow::Result<()>) {
    loop {
        let (reached, of) = probe.anchors(rhythm.within).await;
        let seen = Input::Anchors(reached, of, credentials.facts());
        if control.tell(seen).await.is_err() {
            return ("anchors", Ok(()));
        }
        clock.sleep(rhythm.every).await;
    }
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
async fn tell_rejections(
    mut rejections: mpsc::Receiver<RejectedPeer>,
    journal: Journal,
) -> (&'static str, anyhow::Result<()>) {
    while let Some(RejectedPeer { address, error }) = rejections.recv().await {
        let text = format!("{error}, from {address}");
        journal.tell(Noise::ConnectionRejected, &address.ip(), &text);
    }
    ("rejections", Ok(()))
}
