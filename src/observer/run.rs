//! The composition root of the observer.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};

use super::config::Config;
use super::reporter::{Reporter, UNTIL_TOLD};
use crate::adapters::clock::SystemClock;
use crate::adapters::http::HttpProber;
use crate::adapters::reread::CredentialBook;
use crate::adapters::site_probe::{SiteAddress, SiteProbe};
use crate::adapters::tls::{Identity, Peer, PeerClient, TlsMaterial};
use crate::engine::topology::{Target, Vantage};
use crate::ports::{Clock, EffectError, ObserverLink};
use crate::prober::look_for_ever;
use crate::tasks::{Tasks, named, until_stopped};
use crate::wire::unsent::Unsent;
use crate::wire::{OBSERVED_PATH, ObserverAnswer, ObserverReport};

/// How many observations may wait to be reported.
const WAITING: usize = 256;

/// The way to the controller.
#[derive(Debug)]
struct TlsLink(PeerClient);

#[async_trait]
impl ObserverLink for TlsLink {
    async fn report(
        &self,
        report: &ObserverReport,
        within: Duration,
    ) -> Result<ObserverAnswer, EffectError> {
        Ok(self.0.say(OBSERVED_PATH, report, within).await?)
    }
}

/// Runs the observer until it is told to stop, or something it needs ends.
pub async fn run(path: &Path) -> anyhow::Result<()> {
    let config = Config::read(path)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let (material, book) = TlsMaterial::with_book(&config.tls)?;
    let peer = Peer {
        identity: Identity::Controller,
        address: config.controller.clone(),
    };
    let link = TlsLink(PeerClient::new(&material, peer)?.of(&config.group));

    let mut tasks = Tasks::new();
    tasks.spawn(named("certificates", material.clone().watch()));
    let (rhythm, told) = watch::channel(UNTIL_TOLD);
    let (seen, observations) = mpsc::channel(WAITING);
    let looking = look_for_ever(
        Arc::new(make_probe(&config, &clock, &book)?),
        config.sites.keys().flat_map(Target::looked_at).collect(),
        Vantage::Observer(config.name.clone()),
        Arc::clone(&clock),
        told,
        seen,
    );
    tasks.spawn(named("probes", looking));
    let reporter = Reporter {
        group: config.group,
        name: config.name.clone(),
        link: Arc::new(link),
        clock,
        rhythm,
    };
    tasks.spawn(named("reports", async move {
        reporter.report(Unsent::new(observations)).await;
    }));
    tracing::info!(name = %config.name, controller = %config.controller, "observer runs");
    until_stopped(&mut tasks).await
}

fn make_probe(
    config: &Config,
    clock: &Arc<dyn Clock>,
    book: &Arc<CredentialBook>,
) -> anyhow::Result<SiteProbe> {
    let mut sites = std::collections::BTreeMap::new();
    for (name, site) in &config.sites {
        let address = SiteAddress {
            api: site.api.clone(),
            database: site.database.connect(&format!("database@{name}"), book)?,
        };
        sites.insert(name.clone(), address);
    }
    Ok(SiteProbe {
        vantage: Vantage::Observer(config.name.clone()),
        http: HttpProber::believing(config.probe_ca.as_deref(), clock, book)?,
        sites,
        anchors: Vec::new(),
    })
}
