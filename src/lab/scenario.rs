//! One fault on a steady lab, watched from outside until the service goes on: the client's account
//! held against what the controller declared.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

use super::client::{self, Client, ClientConfig, Outcome, Route};
use super::layout::{SERVICE, SiteLayout};
use super::standing::Fault;
use super::supervisor::Supervisor;
use crate::adapters::clock::SystemClock;
use crate::adapters::files;
use crate::engine::chain::{Body, Entry, read_line};
use crate::engine::decision::Verdict;
use crate::engine::loss::DeclaredLoss;
use crate::engine::reason::Code;
use crate::engine::saga::Ending;
use crate::engine::step::{Event, Fact, Step};
use crate::engine::topology::SiteName;
use crate::engine::units::{Bytes, Lsn, WallTime, as_millis};
use crate::ports::Clock;
use crate::wire::LogPart;

/// How long a scenario may take from the fault to the client's first write at the new site.
const OVER_WITHIN: Duration = Duration::from_secs(50);
/// Writes acknowledged before the fault, and after the service goes on.
const WRITES_BEFORE: usize = 50;
const WRITES_AFTER: usize = 50;

/// What a scenario found. Its JSON form is the lab's report.
#[derive(Debug, Clone, Serialize)]
pub struct LabReport {
    /// The version of this form.
    pub schema_version: u32,
    /// The fault.
    pub scenario: String,
    /// Whether the failover really happened and all of it verified.
    pub passed: bool,
    /// What did not pass, for people.
    pub problems: Vec<String>,
    /// The client's account.
    pub writes: Writes,
    /// What the controller declared before the promotion.
    pub loss_declared: Option<Declared>,
    /// Seconds after the fault.
    pub timeline: Timeline,
    /// Whether the old primary became a standby of the new one, where that was asked for.
    pub rejoined: Option<bool>,
    /// The decision log.
    pub log: LogReport,
}

/// The client's account.
#[derive(Debug, Clone, Serialize)]
pub struct Writes {
    /// Acknowledged in all.
    pub acknowledged: usize,
    /// Acknowledged, and not there any more.
    pub lost: usize,
    /// Of those, acknowledged outside the declared window.
    pub lost_outside_declared_window: usize,
    /// Acknowledged by the old site although sent after the new one's first.
    pub by_old_after_new: usize,
    /// The longest time without any acknowledgement, in seconds.
    pub longest_gap: f64,
}

/// The declared window.
#[derive(Debug, Clone, Serialize)]
pub struct Declared {
    /// The standby has everything up to here.
    pub from_lsn: Lsn,
    /// How long the window is, in seconds.
    pub window_seconds: Option<f64>,
    /// An estimate of what it holds.
    pub estimate_bytes: Option<Bytes>,
    /// Certainly nothing was lost: every commit waited for the standby.
    pub nothing: bool,
}

impl From<&DeclaredLoss> for Declared {
    fn from(loss: &DeclaredLoss) -> Self {
        Self {
            from_lsn: loss.from_lsn,
            window_seconds: loss.window.map(seconds),
            estimate_bytes: loss.estimate,
            nothing: loss.nothing,
        }
    }
}

impl fmt::Display for Declared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from = self.from_lsn;
        if self.nothing {
            return write!(f, "nothing is lost, the standby has all up to {from}");
        }
        let seconds = self.window_seconds;
        let window = seconds.map_or("unknown".to_owned(), |seconds| format!("{seconds:.3} s"));
        let bytes = self.estimate_bytes;
        let bytes = bytes.map_or("unknown".to_owned(), |bytes| bytes.to_string());
        write!(f, "a window of {window} after {from}, about {bytes} of WAL")
    }
}

/// Seconds after the fault.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Timeline {
    /// The controller first said that something is wrong.
    pub suspected: Option<f64>,
    /// It decided to fail over.
    pub decided: Option<f64>,
    /// The old primary was proven fenced.
    pub fenced: Option<f64>,
    /// The standby was primary.
    pub promoted: Option<f64>,
    /// It was seen to take a write.
    pub writable: Option<f64>,
    /// The last traffic target was moved.
    pub traffic_moved: Option<f64>,
    /// A user's write was acknowledged by the new site.
    pub first_user_write: Option<f64>,
}

/// The decision log.
#[derive(Debug, Clone, Serialize)]
pub struct LogReport {
    /// Where it is kept.
    pub path: PathBuf,
    /// The digest of its last entry.
    pub head: String,
    /// Whether it verifies.
    pub verified: bool,
}

/// Something worth a line, with the time since the fault.
#[derive(Debug, Clone)]
pub enum Sight {
    /// The health of a target changed.
    Health(String),
    /// An entry was written.
    Entry(Box<Entry>),
    /// The client was served by another site than before, or by none.
    Client(String),
}

/// Starts the client that follows the service's name.
pub fn start_client(lab: &Supervisor) -> anyhow::Result<Client> {
    let layout = &lab.layout;
    let config = ClientConfig {
        name: "user".to_owned(),
        route: Route::Name {
            servers: vec![layout.name_server],
            name: SERVICE.to_owned(),
            port: layout.sites[0].api.port(),
            refresh: Some(Duration::from_millis(250)),
        },
        first_number: 1,
        per_second: 50,
        in_flight: 64,
        patience: Duration::from_secs(1),
        results: layout.dir.join("client.jsonl"),
    };
    Client::start(config, Arc::new(SystemClock))
}

/// What is watched while a scenario runs.
struct Watch<'l> {
    lab: &'l mut Supervisor,
    fault_at: WallTime,
    next_entry: u64,
    health: BTreeMap<String, String>,
    served_by: Option<SiteName>,
    timeline: Timeline,
    declared: Option<DeclaredLoss>,
    ending: Option<Ending>,
}

impl Watch<'_> {
    fn since(&self, at: WallTime) -> f64 {
        seconds(at.since(self.fault_at))
    }

    /// Takes in what the controller wrote since the last look.
    async fn entries(&mut self) -> anyhow::Result<Vec<Sight>> {
        let path = format!("/log?from={}", self.next_entry);
        let part: Result<LogPart, _> = self.lab.controller.get(&path, Duration::from_secs(2)).await;
        // A controller that is away (a fault may be that) is asked again.
        let Ok(part) = part else {
            return Ok(Vec::new());
        };
        let mut sights = Vec::new();
        for line in part.lines {
            let (_, entry) = read_line(line.as_bytes())?;
            self.next_entry = entry.seq.saturating_add(1);
            if entry.at >= self.fault_at {
                self.take(&entry);
                sights.push(Sight::Entry(Box::new(entry)));
            }
        }
        Ok(sights)
    }

    fn take(&mut self, entry: &Entry) {
        let at = Some(self.since(entry.at));
        let timeline = &mut self.timeline;
        match &entry.body {
            Body::Decision { decision, .. } => {
                let wrong = decision
                    .reasons
                    .iter()
                    .any(|reason| reason.code != Code::Healthy);
                if wrong && timeline.suspected.is_none() {
                    timeline.suspected = at;
                }
                if matches!(decision.verdict, Verdict::FailOver { .. })
                    && timeline.decided.is_none()
                {
                    timeline.decided = at;
                }
            }
            Body::Step {
                step,
                event: Event::Done { fact },
                ..
            } => match (step, fact) {
                (Step::Fence, _) => timeline.fenced = at,
                (Step::Freeze, Fact::Declared { loss, .. }) => self.declared = Some(loss.clone()),
                (Step::Promote, _) => timeline.promoted = at,
                (Step::VerifyWritable, _) => timeline.writable = at,
                (Step::MoveTraffic { .. }, _) => timeline.traffic_moved = at,
                (_, _) => {}
            },
            Body::Outcome { ending, .. } => self.ending = Some(ending.clone()),
            Body::Opened { .. }
            | Body::Command { .. }
            | Body::Plan { .. }
            | Body::Step { .. }
            | Body::Window { .. }
            | Body::Instance { .. }
            | Body::Note { .. } => {}
        }
    }

    /// What changed in the health of targets.
    async fn health(&mut self) -> Vec<Sight> {
        let Ok(status) = self.lab.status().await else {
            return Vec::new();
        };
        let mut sights = Vec::new();
        for (site, facts) in &status.situation.sites {
            for (kind, health) in &facts.health {
                let name = format!("{kind}@{site}");
                let state = health.state.to_string();
                if self
                    .health
                    .insert(name.clone(), state.clone())
                    .is_some_and(|last| last != state)
                {
                    sights.push(Sight::Health(format!("{name} {state}: {}", health.why)));
                }
            }
        }
        sights
    }

    fn client(&mut self, client: &Client) -> Option<Sight> {
        let attempts = client.attempts();
        let last = attempts
            .iter()
            .rev()
            .find_map(|attempt| match &attempt.outcome {
                Outcome::Acknowledged { site, .. } => Some((site.clone(), attempt.ended_ms)),
                Outcome::Unacknowledged(_) => None,
            });
        let (site, at) = last?;
        if self.served_by.as_ref() == Some(&site) {
            return None;
        }
        let first = self.served_by.replace(site.clone());
        let after = self.since(WallTime(at));
        first.map(|_| {
            self.timeline.first_user_write = Some(after);
            Sight::Client(format!("users write at {site} again"))
        })
    }
}

fn seconds(duration: Duration) -> f64 {
    // Milliseconds are what was measured.
    f64::from(u32::try_from(as_millis(duration)).unwrap_or(u32::MAX)) / 1000.0
}

/// Runs one fault at the active site, and reports; where `rejoin` says so, the old primary becomes
/// a standby of the new one afterwards. `show` is called with what is seen, live.
pub async fn run(
    lab: &mut Supervisor,
    fault: Fault,
    rejoin: bool,
    keep_log_in: &Path,
    mut show: impl FnMut(f64, &Sight),
) -> anyhow::Result<LabReport> {
    let clock = SystemClock;
    let [old, new] = lab.layout.sites.clone();
    let mut client = start_client(lab)?;
    let steady = client.until(|attempts| acknowledged_by(attempts, &old.name) >= WRITES_BEFORE);
    tokio::time::timeout(OVER_WITHIN, steady)
        .await
        .context("the client cannot write before the fault")??;

    let fault_at = clock.wall();
    let mut watch = Watch {
        lab,
        fault_at,
        next_entry: 1,
        health: BTreeMap::new(),
        served_by: Some(old.name.clone()),
        timeline: Timeline::default(),
        declared: None,
        ending: None,
    };
    watch.health().await;
    watch.lab.fault(fault, &old.name).await?;
    watch_it(&mut watch, &client, &new.name, &mut show).await?;
    let attempts = client.stop().await?;
    let rejoined = if rejoin && watch.ending == Some(Ending::Done) {
        Some(watch.lab.rejoin(&old, &new).await)
    } else {
        None
    };
    let mut report = report(&watch, fault, &attempts, (&old, &new), keep_log_in).await?;
    if let Some(Err(error)) = &rejoined {
        report.problems.push(error.to_string());
        report.passed = false;
    }
    report.rejoined = rejoined.map(|rejoined| rejoined.is_ok());
    Ok(report)
}

/// Watches until the plan has ended and the new site serves, or for as long as that may take.
async fn watch_it(
    watch: &mut Watch<'_>,
    client: &Client,
    new: &SiteName,
    show: &mut impl FnMut(f64, &Sight),
) -> anyhow::Result<()> {
    let clock = SystemClock;
    let deadline = clock.now().plus(OVER_WITHIN);
    let mut looked = clock.now();
    while clock.now() < deadline {
        let mut sights = watch.health().await;
        sights.extend(watch.entries().await?);
        sights.extend(watch.client(client));
        let now = clock.wall();
        let at = |sight: &Sight| match sight {
            Sight::Entry(entry) => entry.at,
            Sight::Health(_) | Sight::Client(_) => now,
        };
        sights.sort_by_key(at);
        for sight in &sights {
            show(watch.since(at(sight)), sight);
        }
        let served = acknowledged_by(&client.attempts(), new) >= WRITES_AFTER;
        if watch.ending.is_some() && served {
            break;
        }
        if clock.now().since(looked) > Duration::from_secs(1) {
            watch.lab.look()?;
            looked = clock.now();
        }
        clock.sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

fn acknowledged_by(attempts: &[client::Attempt], site: &SiteName) -> usize {
    let by = |attempt: &&client::Attempt| matches!(&attempt.outcome, Outcome::Acknowledged { site: by, .. } if by == site);
    attempts.iter().filter(by).count()
}

/// The numbers that the site has that serves.
async fn present(
    watch: &Watch<'_>,
    old: &SiteLayout,
    new: &SiteLayout,
) -> anyhow::Result<BTreeSet<i64>> {
    let present = match client::present_numbers(new.api).await {
        // Where no plan was made, the service there may never have been started.
        Err(_refused) if watch.ending.is_none() => client::present_numbers(old.api).await,
        read => read,
    };
    present.context("read what the site has that serves")
}

async fn report(
    watch: &Watch<'_>,
    fault: Fault,
    attempts: &[client::Attempt],
    (old, new): (&SiteLayout, &SiteLayout),
    keep_log_in: &Path,
) -> anyhow::Result<LabReport> {
    let present = present(watch, old, new).await?;
    let (old, new) = (&old.name, &new.name);
    let account = client::Report::new(attempts, &present);
    let declared = watch.declared.as_ref();
    let outside = match declared.map(|loss| (loss.from, loss.until)) {
        Some((Some(from), until)) => account.lost_outside(from.0, until.0).len(),
        Some((None, _)) | None => account.lost.len(),
    };
    let by_old = account.by_old_after_new(old, new).len();
    let gap = account.longest_gap().map_or(0, |gap| gap.length_ms());
    std::fs::create_dir_all(keep_log_in)?;
    let kept = keep_log_in.join("decision.log");
    std::fs::copy(watch.lab.layout.log(), &kept).context("keep the decision log")?;
    let chain = files::verify(&kept);
    let mut problems = Vec::new();
    match &watch.ending {
        Some(Ending::Done) => {}
        Some(ending) => problems.push(format!("the plan ended {ending:?}")),
        None => problems.push("no plan ended in time".to_owned()),
    }
    if watch.timeline.first_user_write.is_none() {
        problems.push("no user could write at the new site in time".to_owned());
    }
    if outside > 0 {
        problems.push(format!(
            "{outside} acknowledged writes were lost outside the declared window"
        ));
    }
    if by_old > 0 {
        problems.push(format!(
            "the old site acknowledged {by_old} writes after the new site's first"
        ));
    }
    if let Err(error) = &chain {
        problems.push(error.to_string());
    }
    Ok(LabReport {
        schema_version: 1,
        rejoined: None,
        scenario: fault.to_string(),
        passed: problems.is_empty(),
        problems,
        writes: Writes {
            acknowledged: account.acknowledged.len(),
            lost: account.lost.len(),
            lost_outside_declared_window: outside,
            by_old_after_new: by_old,
            longest_gap: seconds(Duration::from_millis(gap)),
        },
        loss_declared: declared.map(Declared::from),
        timeline: watch.timeline.clone(),
        log: LogReport {
            path: kept,
            head: chain
                .as_ref()
                .map(|chain| chain.head.to_string())
                .unwrap_or_default(),
            verified: chain.is_ok(),
        },
    })
}
