//! Starts a lab's processes, makes them go wrong, mends them, and ends all of them.

use std::collections::BTreeMap;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use super::error_lines::ExpectedErrors;
use super::layout::{Layout, SERVICE, SiteLayout, ZONE};
use super::name_server::NameServer;
use super::processes::{Processes, Who};
use super::standing::Ask;
use crate::adapters::clock::{LAB_CLOCK, SystemClock};
use crate::adapters::postgres::{HeartbeatWrite, probe};
use crate::adapters::rfc2136::Rfc2136;
use crate::adapters::tls::{Identity, Peer, PeerClient, TlsMaterial};
use crate::engine::answer::Answer;
use crate::engine::detector::State;
use crate::engine::reason::Code;
use crate::engine::text::counted;
use crate::engine::topology::{Role, TargetKind, Topology, Vantage};
use crate::engine::units::{Epoch, Lsn};
use crate::ports::{Clock, Traffic};
use crate::wire::Status;

mod faults;
mod mending;
mod starting;

/// How long the lab may take until everything is healthy. It takes about 5 s on an idle machine.
const STEADY_WITHIN: Duration = Duration::from_secs(45);
/// How long the processes may take to end by themselves before they are killed.
const END_WITHIN: Duration = Duration::from_secs(10);
/// How long one piece of SQL of a fault may take.
const SQL: Duration = Duration::from_secs(5);

/// How long a standby may take to answer, to be connected and to catch up before it is said not to
/// follow.
const FOLLOWS_WITHIN: Duration = Duration::from_secs(15);

/// A lab whose processes run.
#[derive(Debug)]
pub struct Supervisor {
    /// What it consists of.
    pub layout: Layout,
    pub(super) processes: Processes,
    _name_server: NameServer,
    /// The way to the controller, as an operator.
    pub controller: PeerClient,
    /// What is done to it is known to have our programs log these.
    pub expected_errors: ExpectedErrors,
    clock: Arc<dyn Clock>,
}

impl Supervisor {
    /// Starts everything, and returns when all is steady. `processes` is made before anything is
    /// started, so that whatever happens everything can be ended.
    pub async fn start(layout: Layout, processes: Processes) -> anyhow::Result<Self> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let address = layout.name_server;
        let folder = layout.dir.join("dns");
        std::fs::create_dir_all(&folder)?;
        let name_server = NameServer::start(
            layout.command("neutral", super::name_server::program()),
            &folder,
            address.ip(),
            address.port(),
            ZONE,
            layout.tsig.clone(),
        )
        .await?;
        first_answer(&layout, &name_server, &clock).await?;
        let material = TlsMaterial::load(&layout.operator)?;
        let peer = Peer {
            identity: Identity::Controller,
            address: layout.controller.into(),
        };
        let controller = PeerClient::new(&material, peer)?.of(&layout.group);
        let mut lab = Self {
            layout,
            processes,
            _name_server: name_server,
            controller,
            expected_errors: ExpectedErrors::default(),
            clock,
        };
        lab.start_missing()?;
        lab.until_steady().await?;
        Ok(lab)
    }

    /// What the controller shows.
    pub async fn status(&self) -> anyhow::Result<Status> {
        Ok(self
            .controller
            .get("/status", Duration::from_secs(2))
            .await?)
    }

    /// Waits until the active site serves, the standby follows, and a failover would be possible.
    pub async fn until_steady(&mut self) -> anyhow::Result<()> {
        let deadline = self.clock.now().plus(STEADY_WITHIN);
        let mut last = String::from("the controller does not answer");
        while self.clock.now() < deadline {
            self.processes.look()?;
            if let Some((name, status)) = self.processes.reap().first() {
                anyhow::bail!(
                    "`{name}` ended with {status}: see `{}`",
                    self.layout.dir.display()
                );
            }
            match self.status().await {
                Ok(status) => match unsteady(&self.layout, &status) {
                    None => return Ok(()),
                    Some(why) => last = why,
                },
                Err(error) => last = error.to_string(),
            }
            self.clock.sleep(Duration::from_millis(50)).await;
        }
        anyhow::bail!(
            "the lab does not become steady: {last}; its logs are in `{}`",
            self.layout.dir.display()
        )
    }

    /// Does what is asked; says what was done.
    pub async fn obey(&mut self, ask: &Ask) -> anyhow::Result<String> {
        match ask {
            Ask::Fault(fault, site) => self.fault(*fault, site).await,
            Ask::Heal => self.heal().await,
            Ask::Down => Ok("the lab ends".to_owned()),
        }
    }

    /// Thaws what is frozen, and nothing else.
    pub async fn thaw(&mut self) -> anyhow::Result<()> {
        self.processes.thaw(&Who::All).await?;
        Ok(())
    }

    /// Looks around, so that no process is missed. To be called about once a second.
    pub fn look(&mut self) -> anyhow::Result<()> {
        self.processes.look()?;
        self.processes.reap();
        Ok(())
    }

    /// Moves the wall clock of a place (`neutral`, or a site) from now on.
    pub fn move_clock(&self, place: &str, ahead_ms: i64) -> anyhow::Result<()> {
        let file = clock(&self.layout, place);
        // In one piece, because it is read all the time.
        let aside = file.with_extension("new");
        std::fs::write(&aside, ahead_ms.to_string()).context("write a lab's clock")?;
        std::fs::rename(&aside, &file).context("put a lab's clock in place")
    }

    /// Starts the controller again, which must not be running, to be killed at a moment of a step.
    pub fn start_controller(&mut self, crash_at: Option<&str>) -> anyhow::Result<()> {
        self.processes.reap();
        let mut command = failover(
            &self.layout,
            "neutral",
            &["run", "--config"],
            &self.layout.controller_config(),
        );
        if let Some(moment) = crash_at {
            command.args(["--crash-at", moment]);
        }
        let log = self.layout.dir.join("controller.log");
        self.processes
            .spawn("controller", "neutral", command, &log)?;
        Ok(())
    }

    /// Whether the controller runs.
    pub fn controller_runs(&mut self) -> bool {
        self.processes.reap();
        self.processes.pid("controller").is_some()
    }

    /// How the controller ended, if it did since somebody last looked after the processes.
    pub fn controller_ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.processes.look()?;
        let ended = self.processes.reap().into_iter();
        let mut controllers = ended.filter(|(name, _)| name == "controller");
        Ok(controllers.next().map(|(_, status)| status))
    }

    /// Says that what is done to the lab has our programs log an error with this text.
    pub fn expects_error(&mut self, text: impl Into<String>) {
        self.expected_errors.add(text);
    }

    /// Ends every process, in order where they let us, and leaves none behind.
    pub async fn end(mut self) -> anyhow::Result<()> {
        self.processes.thaw(&Who::All).await?;
        let order = [
            "controller",
            "aws-api",
            "gcp-api",
            "aws-agent",
            "gcp-agent",
            "aws-cluster",
            "gcp-cluster",
        ];
        self.processes.end_all(&order, END_WITHIN).await?;
        Ok(())
    }
}

/// The file that moves the wall clock of a place.
fn clock(layout: &Layout, place: &str) -> std::path::PathBuf {
    layout.dir.join(format!("clock-{place}"))
}

/// This program at a place.
fn failover(layout: &Layout, place: &str, words: &[&str], file: &std::path::Path) -> Command {
    let mut command = layout.command(place, &layout.program);
    command.args(words).arg(file);
    command.env(LAB_CLOCK, clock(layout, place));
    command
}

/// Whether a standby streams and has replayed up to `marker`, which is made at the primary where
/// there is none yet.
async fn caught_up(
    standby: &SiteLayout,
    primary: &SiteLayout,
    marker: &mut Option<Lsn>,
) -> anyhow::Result<()> {
    let goal = match *marker {
        Some(goal) => goal,
        None => {
            let local = primary.instance.local("app")?;
            let write = HeartbeatWrite {
                site: primary.name.clone(),
                vantage: Vantage::Agent(primary.name.clone()),
            };
            probe(&local, Some(&write), SQL).await?;
            let written = probe(&local, None, SQL).await?;
            anyhow::ensure!(
                written.role == Role::Primary,
                "`{}` is no primary",
                primary.name
            );
            *marker.insert(written.position)
        }
    };
    let seen = probe(&standby.instance.local("app")?, None, SQL).await?;
    let streams = seen
        .receiver
        .is_some_and(|receiver| receiver.is_streaming());
    anyhow::ensure!(streams, "no WAL streams to it");
    anyhow::ensure!(
        seen.replayed >= goal,
        "it has replayed up to {} and not yet up to {goal}",
        seen.replayed
    );
    Ok(())
}

/// A number of processes, for people.
fn how_many(processes: usize) -> String {
    let number = u64::try_from(processes).unwrap_or(u64::MAX);
    counted(number, "process", "processes")
}

fn api_answers(site: &SiteLayout) -> bool {
    std::net::TcpStream::connect_timeout(&site.api, Duration::from_millis(200)).is_ok()
}

/// The topology of a lab.
pub fn topology(layout: &Layout) -> Topology {
    let [first, second] = &layout.sites;
    Topology {
        group: layout.group.clone(),
        first: first.name.clone(),
        second: second.name.clone(),
        traffic: Vec::new(),
    }
}

/// Points the service's name to the first site.
async fn first_answer(
    layout: &Layout,
    server: &NameServer,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<()> {
    let addresses = layout
        .sites
        .iter()
        .map(|site| (site.name.clone(), vec![site.ip]));
    let addresses: BTreeMap<_, _> = addresses.collect();
    let mut settings = server.settings("dns".parse()?, SERVICE, addresses);
    settings.ttl_seconds = 1;
    let target = Rfc2136::new(settings, Arc::clone(clock))?;
    let found = target.read().await?;
    let wanted = Answer::only(&layout.sites[0].name, &topology(layout), Epoch(1));
    target.apply(&found, &wanted, "lab", &|| Ok(())).await?;
    Ok(())
}

/// Why a lab is not steady yet.
fn unsteady(layout: &Layout, status: &Status) -> Option<String> {
    for (site, facts) in &status.situation.sites {
        for kind in TargetKind::ALL {
            let state = facts.state(kind);
            // A cluster's service is started by the failover.
            let idle = kind == TargetKind::Api
                && *site == status.situation.passive
                && layout.site(site).is_some_and(|it| it.cluster.is_some());
            if state != State::Healthy && !idle {
                return Some(format!("{kind}@{site} is {state}"));
            }
        }
    }
    let reasons = &status.decision.reasons;
    if let Some(open) = reasons
        .iter()
        .find(|reason| reason.code == Code::RpoWindowOpen)
    {
        return Some(open.to_string());
    }
    let closed = status
        .decision
        .gates
        .iter()
        .find(|gate| !gate.open && gate.reason.code != Code::ReplicationAdvancing);
    closed.map(|gate| gate.reason.to_string())
}
