//! The composition root of the agent.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc, watch};

use super::api::{self, Api};
use super::assembly::{Agent, Outlook, assemble};
use super::cluster::{ClusterSeen, watch_for_ever};
use super::config::{Config, WorkloadsKind};
use super::guard_link::GuardLink;
use super::guard_protocol::{GuardConfig, GuardEvent, StopTimes};
use super::keeper::{News, Parts};
use super::local::{GuardedDatabase, LocalProbe, OwnRole, Place};
use super::own_files;
use super::pod::Pod;
use super::standby::StandbySettings;
use super::store::FileStore;
use super::workloads::{ClusterWorkloads, CommandWorkloads, Page};
use crate::adapters::clock::SystemClock;
use crate::adapters::http::{HttpProber, serve_plain};
use crate::adapters::order_keys::ObeyedKeys;
use crate::adapters::reread::CredentialBook;
use crate::adapters::site_probe::{SiteAddress, SiteProbe};
use crate::adapters::tls::{
    Identity, Peer, PeerAddress, PeerClient, TlsListener, TlsMaterial, serve,
};
use crate::engine::topology::{Target, TargetKind, Vantage};
use crate::ports::{
    AgentLinks, Clock, ClusterHealth, EffectError, LocalDatabase, Verifier, Workloads,
};
use crate::tasks::{StopSignals, Tasks, a_life, named, until_told};
use crate::wire::{PEER_PATH, PeerAnswer, PeerQuestion, REPORT_PATH, Report, ReportAnswer};

/// The stages of a fence until the first lease, which carries the policy's.
const STOP_UNTIL_TOLD: StopTimes = StopTimes {
    fast_ms: 6000,
    immediate_ms: 3000,
    kill_ms: 2000,
};

/// The agent's connections to controller and peer.
#[derive(Debug)]
struct TlsLinks {
    controller: PeerClient,
    peer: PeerClient,
}

#[async_trait]
impl AgentLinks for TlsLinks {
    async fn report(&self, report: &Report, within: Duration) -> Result<ReportAnswer, EffectError> {
        Ok(self.controller.say(REPORT_PATH, report, within).await?)
    }

    async fn ask_peer(
        &self,
        question: &PeerQuestion,
        within: Duration,
    ) -> Result<PeerAnswer, EffectError> {
        Ok(self.peer.say(PEER_PATH, question, within).await?)
    }
}

/// Runs the agent until it is told to stop, or something that it needs ends. Its guard and database
/// outlive it: the guard enforces the deadline, and the next agent finds both. In a pod that is told to
/// end nobody finds them: there they end first.
pub async fn run(config: Config) -> anyhow::Result<()> {
    // First: a container that is told to end while the agent starts may have a database already.
    let mut signals = StopSignals::listen()?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    own_files::claim_folder(&config.state_dir).context("use `agent.state_dir`")?;
    let pod = pod_of(&config)?;
    let instance = super::installation::of(&config.state_dir, pod.as_ref())?;
    let listener = listen_at(config.listen).await?;
    let (material, book) = TlsMaterial::with_book(&config.tls)?;
    let http = HttpProber::believing(config.probe_ca.as_deref(), &clock, &book)?;

    let machine = pod.map(|pod| pod.uid);
    let (database, place) = open_database(&config, machine).await?;
    let (guard, events) = (database.guard.clone(), database.guard.events());
    let obeyed = ObeyedKeys::from_file(&config.controller_public_key, &material)?;
    let controller_key: Arc<dyn Verifier> = Arc::new(obeyed);
    let life = a_life()?;
    let service = service_of(&config, &http, (&clock, &book));
    let parts = Parts {
        life,
        controller: Arc::clone(&controller_key),
        group: config.group.clone(),
        site: config.site.clone(),
        instance,
        peer: config.peer.site.clone(),
        database: LocalDatabase::of(database),
        workloads: service.workloads,
        store: Arc::new(FileStore::new(config.state_dir.clone())),
        clock: Arc::clone(&clock),
    };
    let links = links(&config, &material)?;
    let peer = links.peer.clone();
    let outlook = Outlook {
        probe: Arc::new(make_probe(&config, http, &book, place)?),
        targets: targets(&config),
        links: Arc::new(links),
        credentials: book,
    };
    let Agent {
        news,
        shown,
        mut tasks,
    } = assemble(parts, outlook).await?;
    tasks.spawn(named("certificates", material.clone().watch()));
    tasks.spawn(named("guard events", tell_of_guard(events, news.clone())));

    let api = Api {
        group: config.group.clone(),
        site: config.site.clone(),
        peer_site: config.peer.site.clone(),
        peer,
        controller: controller_key,
        own: Arc::new(material.clone()),
        news,
        shown,
        cluster: watch_cluster(&mut tasks, service.cluster, &clock),
        clock,
    };
    let (stop, stopping) = watch::channel(false);
    serve_api(&mut tasks, api, (listener, &material, &config), stopping).await?;
    tracing::info!(site = %config.site, %instance, listen = %config.listen, "agent runs");
    let ended = until_told(&mut tasks, &mut signals).await;
    stop.send_replace(true);
    if let (Some(pod), Ok(())) = (&config.pod, &ended) {
        // Before the database: the keeper would start it again.
        tasks.shutdown().await;
        end_database(&guard, pod.stop_within).await;
    }
    ended
}

/// Serves controller and peer agent at a listener that is there already, and load balancers at one of
/// their own.
async fn serve_api(
    tasks: &mut Tasks,
    api: Api,
    (listener, material, config): (TcpListener, &TlsMaterial, &Config),
    stopping: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    if let Some(address) = config.listen_plain {
        let listener = listen_at(address).await?;
        let (router, stopping) = (api::plain_router(api.clone()), stopping.clone());
        tasks.spawn(named("plain API", serve_plain(listener, router, stopping)));
    }
    let listener = expecting_peers(listener, material, config)?;
    tasks.spawn(named("API", serve(listener, api::router(api), stopping)));
    Ok(())
}

/// Ends PostgreSQL cleanly and then its guard, before the container ends and the kernel ends both. What
/// does not end in time is left to that.
async fn end_database(guard: &GuardLink, within: Duration) {
    match guard.stop(within).await {
        Ok(status) => tracing::info!(status, "the container ends, and PostgreSQL has ended"),
        Err(error) => {
            tracing::warn!(%error, "the container ends, and PostgreSQL has not ended cleanly");
            return;
        }
    }
    if let Err(error) = guard.quit().await {
        tracing::warn!(%error, "the guard does not quit");
    }
}

/// The pod that we run in, if it is one.
fn pod_of(config: &Config) -> anyhow::Result<Option<Pod>> {
    let pod = config.pod.as_ref().map(|pod| pod.sources.read());
    pod.transpose()
}

/// The connections to the controller and to the peer agent.
fn links(config: &Config, material: &TlsMaterial) -> anyhow::Result<TlsLinks> {
    let peer = Peer {
        identity: Identity::Agent {
            group: config.group.clone(),
            site: config.peer.site.clone(),
        },
        address: config.peer.agent.clone(),
    };
    let controller = Peer {
        identity: Identity::Controller,
        address: config.controller.clone(),
    };
    Ok(TlsLinks {
        controller: PeerClient::new(material, controller)?.of(&config.group),
        peer: PeerClient::new(material, peer)?.of(&config.group),
    })
}

async fn listen_at(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    listener.with_context(|| format!("listen at {address}"))
}

/// Has the keeper look whenever the guard has news.
async fn tell_of_guard(mut events: broadcast::Receiver<GuardEvent>, keeper: mpsc::Sender<News>) {
    loop {
        match events.recv().await {
            Ok(
                GuardEvent::Exited(_)
                | GuardEvent::Fenced(_)
                | GuardEvent::Unproven { .. }
                | GuardEvent::Lost {},
            )
            | Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return,
        }
        if keeper.send(News::Look).await.is_err() {
            return;
        }
    }
}

/// The service, and the cluster that it runs in.
#[derive(Default)]
struct Service {
    workloads: Option<Arc<dyn Workloads>>,
    cluster: Option<Arc<dyn ClusterHealth>>,
}

fn service_of(
    config: &Config,
    http: &HttpProber,
    (clock, book): (&Arc<dyn Clock>, &Arc<CredentialBook>),
) -> Service {
    let Some(workloads) = &config.workloads else {
        return Service::default();
    };
    let page = Page {
        url: workloads.ready.clone(),
        http: http.clone(),
    };
    match &workloads.kind {
        WorkloadsKind::Commands { start, stop } => Service {
            workloads: Some(Arc::new(CommandWorkloads {
                start: start.clone(),
                stop: stop.clone(),
                page,
            })),
            cluster: None,
        },
        WorkloadsKind::Kubernetes(objects) => {
            let parts = (Arc::clone(clock), Arc::clone(book));
            let objects = Arc::new(ClusterWorkloads::new(objects.clone(), page, parts));
            Service {
                workloads: Some(Arc::clone(&objects) as Arc<dyn Workloads>),
                cluster: Some(objects),
            }
        }
    }
}

/// Looks at the cluster, if there is one; where what is seen is shown.
fn watch_cluster(
    tasks: &mut Tasks,
    cluster: Option<Arc<dyn ClusterHealth>>,
    clock: &Arc<dyn Clock>,
) -> watch::Receiver<Option<ClusterSeen>> {
    let (seen, shown) = watch::channel(None);
    if let Some(cluster) = cluster {
        let watching = watch_for_ever(cluster, Arc::clone(clock), seen);
        tasks.spawn(named("cluster", watching));
    }
    shown
}

fn guard_config(config: &Config) -> GuardConfig {
    let postgres = &config.postgres;
    GuardConfig {
        bin_dir: postgres.bin_dir.clone(),
        data_dir: postgres.data_dir.clone(),
        port: postgres.port,
        listen_addresses: postgres.listen_addresses.clone(),
        socket_dir: postgres.socket_dir.clone(),
        run_as: postgres.run_as.clone(),
        state_dir: config.state_dir.clone(),
        log_file: postgres.log_file.clone(),
        options: postgres.options.clone(),
        stop: STOP_UNTIL_TOLD,
    }
}

/// Finds or starts the guard. If it was started with settings other than the file's current ones,
/// the guard's apply as long as its database runs.
async fn open_database(
    config: &Config,
    machine: Option<String>,
) -> anyhow::Result<(GuardedDatabase, watch::Receiver<Place>)> {
    let wanted = guard_config(config);
    let guard = GuardLink::connect_or_spawn(wanted.clone(), std::env::current_exe()?).await?;
    let running_with = guard.status().await?.config;
    let keys = running_with.differs_in(&wanted);
    if !keys.is_empty() {
        tracing::warn!(
            ?keys,
            "the guard was started with other settings than the file has now"
        );
    }
    let role = OwnRole {
        user: config.postgres.superuser.clone(),
        database: config.postgres.database.clone(),
    };
    let (local, place) = watch::channel(role.at(&running_with)?);
    let database = GuardedDatabase {
        guard,
        wanted,
        role,
        local,
        ended: Mutex::default(),
        astray: Mutex::default(),
        site: config.site.clone(),
        machine,
        standby: StandbySettings::new(&config.postgres),
        // Both databases have the same roles, because one is a copy of the other.
        watcher: config.peer.database.role(),
    };
    Ok((database, place))
}

fn make_probe(
    config: &Config,
    http: HttpProber,
    book: &Arc<CredentialBook>,
    local: watch::Receiver<Place>,
) -> anyhow::Result<LocalProbe> {
    let mut sites = BTreeMap::new();
    let peer = &config.peer;
    let owner = format!("database@{}", peer.site);
    let address = SiteAddress {
        api: peer.api.clone(),
        database: peer.database.connect(&owner, book)?,
    };
    sites.insert(peer.site.clone(), address);
    // Without our own workloads there is no URL of our own to probe.
    let own_api = config
        .workloads
        .as_ref()
        .map_or_else(|| peer.api.clone(), |own| own.ready.clone());
    let own = SiteAddress {
        api: own_api,
        database: local.borrow().connect(),
    };
    sites.insert(config.site.clone(), own);
    let vantage = Vantage::Agent(config.site.clone());
    Ok(LocalProbe {
        sites: SiteProbe {
            vantage,
            http,
            sites,
            anchors: Vec::new(),
        },
        own: config.site.clone(),
        local,
    })
}

/// A listener that keeps room for the controller and the peer agent, whoever else connects.
fn expecting_peers(
    listener: TcpListener,
    material: &TlsMaterial,
    config: &Config,
) -> anyhow::Result<TlsListener> {
    let peers = [&config.controller, &config.peer.agent];
    let known = peers.into_iter().filter_map(PeerAddress::ip);
    Ok(TlsListener::new(listener, material, None)?.expecting(known))
}

fn targets(config: &Config) -> Vec<Target> {
    let target = |site: &crate::engine::topology::SiteName, kind| Target {
        site: site.clone(),
        kind,
    };
    let mut targets = vec![
        target(&config.peer.site, TargetKind::Api),
        target(&config.peer.site, TargetKind::Database),
        target(&config.site, TargetKind::Database),
    ];
    if config.workloads.is_some() {
        targets.push(target(&config.site, TargetKind::Api));
    }
    targets
}
