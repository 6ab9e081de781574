//! An agent, assembled from its ports: the product's and the simulator's are the same but for what they
//! stand on.

use std::sync::Arc;

use tokio::sync::{Notify, mpsc, watch};

use super::keeper::{Keeper, News, Parts, Shown};
use super::reporter::{Pace, Reporter};
use crate::engine::situation::LocalDatabase;
use crate::engine::topology::{Target, Vantage};
use crate::ports::{AgentLinks, Credentials, EffectError, Probe};
use crate::prober::look_for_ever;
use crate::tasks::{Tasks, named};
use crate::wire::Rhythm;
use crate::wire::unsent::Unsent;

/// How many observations may wait to be reported.
const WAITING: usize = 256;

/// What an agent looks at and whom it talks to, beside what its keeper works with.
#[derive(Debug)]
pub struct Outlook {
    /// To look at targets.
    pub probe: Arc<dyn Probe>,
    /// Which ones.
    pub targets: Vec<Target>,
    /// The ways to the controller and to the other agent.
    pub links: Arc<dyn AgentLinks>,
    /// What it knows of its certificates and secrets.
    pub credentials: Arc<dyn Credentials>,
}

/// An agent that runs.
#[derive(Debug)]
pub struct Agent {
    /// The way to its keeper.
    pub news: mpsc::Sender<News>,
    /// What its keeper shows.
    pub shown: watch::Receiver<Shown>,
    /// What it consists of.
    pub tasks: Tasks,
}

/// Starts every task of an agent but those that listen.
pub async fn assemble(parts: Parts, outlook: Outlook) -> Result<Agent, EffectError> {
    let (life, instance) = (parts.life, parts.instance);
    let (group, site) = (parts.group.clone(), parts.site.clone());
    let clock = Arc::clone(&parts.clock);
    let (keeper, news, shown) = Keeper::begin(parts).await?;
    let mut tasks = Tasks::new();
    tasks.spawn(named("keeper", keeper.run()));
    let urgent = Arc::new(Notify::new());
    let ring = ring_on_change(shown.clone(), Arc::clone(&urgent));
    tasks.spawn(named("changes", ring));

    let (pace, paced) = watch::channel(Pace::default());
    let (seen, observations) = mpsc::channel(WAITING);
    let looking = look_for_ever(
        outlook.probe,
        outlook.targets,
        Vantage::Agent(site.clone()),
        Arc::clone(&clock),
        rhythm_of(paced, &mut tasks),
        seen,
    );
    tasks.spawn(named("probes", looking));
    let reporter = Arc::new(Reporter {
        life,
        group,
        site,
        instance,
        links: outlook.links,
        clock,
        shown: shown.clone(),
        news: news.clone(),
        pace,
        credentials: outlook.credentials,
        urgent,
    });
    let asking = Arc::clone(&reporter);
    tasks.spawn(named("reports", async move {
        reporter.report(Unsent::new(observations)).await;
    }));
    tasks.spawn(named("questions to the other agent", async move {
        asking.ask_peer().await;
    }));
    Ok(Agent { news, shown, tasks })
}

/// The probes' rhythm, which follows the pace that the controller tells.
fn rhythm_of(mut paced: watch::Receiver<Pace>, tasks: &mut Tasks) -> watch::Receiver<Rhythm> {
    let rhythm = |pace: &Pace| Rhythm {
        every: pace.probe_every,
        within: pace.probe_timeout,
    };
    let (sender, receiver) = watch::channel(rhythm(&paced.borrow()));
    tasks.spawn(named("pace", async move {
        while paced.changed().await.is_ok() {
            let now = rhythm(&paced.borrow_and_update());
            sender.send_replace(now);
        }
    }));
    receiver
}

/// Has a report sent at once when the database goes down or comes up, or a fence changes.
async fn ring_on_change(mut shown: watch::Receiver<Shown>, ring: Arc<Notify>) {
    let worth = |shown: &Shown| {
        let down = matches!(shown.facts.database, LocalDatabase::Down { .. });
        (
            down,
            shown.asks,
            shown.epoch,
            shown.facts.fenced,
            shown.facts.severed,
        )
    };
    let mut last = worth(&shown.borrow());
    while shown.changed().await.is_ok() {
        let now = worth(&shown.borrow_and_update());
        if now != last {
            last = now;
            ring.notify_one();
        }
    }
}
