//! A lab in a network of its own, with its clients and its decision log, and the two things that
//! are done with it.

use std::sync::Arc;
use std::time::Duration;

use failover::adapters::clock::SystemClock;
use failover::adapters::files;
use failover::engine::chain::{Body, Entry};
use failover::engine::decision::Verdict;
use failover::engine::reason::Code;
use failover::engine::step::{Event, Step};
use failover::engine::units::{MonoTime, WallTime};
use failover::lab::client::{
    Attempt, Client, ClientConfig, Outcome, Report, Route, present_numbers,
};
use failover::lab::layout::{Layout, SERVICE};
use failover::lab::network::Namespaces;
use failover::lab::processes::Processes;
use failover::lab::standing::Fault;
use failover::lab::supervisor::Supervisor;
use failover::ports::Clock;
use tempfile::TempDir;

use super::log::{Log, decisions, from_log, milliseconds, window};
use super::table::Measured;
use super::{Row, Then};

const POLICY: &str = include_str!("../../../policies/fast.toml");
/// `fail_after` of it, five times.
const HELD_FOR: Duration = Duration::from_secs(10);
/// How long a failover may take, with everything around it.
const OVER_WITHIN: Duration = Duration::from_secs(45);
/// How long the old site is watched after it thawed, or after the new one took over.
const AFTERWARDS: Duration = Duration::from_secs(3);
/// How long the controller is frozen: longer than any lease.
const FROZEN_FOR: Duration = Duration::from_secs(5);
/// How long a thawed site may acknowledge writes, in milliseconds: some ticks of a guard that
/// shares its machine with all the other processes that thaw.
const THAWED_WITHIN: u64 = 1000;
const POLL: Duration = Duration::from_millis(10);

pub(super) struct Lab {
    supervisor: Supervisor,
    network: Namespaces,
    user: Client,
    stubborn: Client,
    log: Log,
    looked: MonoTime,
    dir: TempDir,
}

fn now() -> MonoTime {
    SystemClock.now()
}

fn client(layout: &Layout, name: &str, first_number: i64, route: Route) -> Client {
    let config = ClientConfig {
        name: name.to_owned(),
        route,
        first_number,
        per_second: 50,
        // The stubborn one's sessions share the server's 50 with everybody else.
        in_flight: if first_number == 1 { 64 } else { 8 },
        patience: Duration::from_secs(1),
        results: layout.dir.join(format!("{name}.jsonl")),
    };
    Client::start(config, Arc::new(SystemClock)).unwrap()
}

fn acknowledged(attempts: &[Attempt]) -> usize {
    let good = |attempt: &&Attempt| matches!(attempt.outcome, Outcome::Acknowledged { .. });
    attempts.iter().filter(good).count()
}

impl Lab {
    pub(super) async fn start(network: Namespaces) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("failover-partitions-")
            .tempdir()
            .unwrap();
        let program = std::path::Path::new(env!("CARGO_BIN_EXE_failover"));
        let processes = Processes::new("partitions", Arc::new(SystemClock)).unwrap();
        let layout = Layout::create(dir.path(), program, Some(network), POLICY)
            .await
            .unwrap();
        let supervisor = Supervisor::start(layout, processes).await.unwrap();
        let layout = &supervisor.layout;
        let [old, _] = &layout.sites;
        let by_name = Route::Name {
            servers: vec![layout.name_server],
            name: SERVICE.to_owned(),
            port: old.api.port(),
            refresh: Some(Duration::from_millis(250)),
        };
        let inside = Route::Database {
            conninfo: format!(
                "host={} port={} user=app dbname=app sslmode=disable",
                old.ip, old.instance.port
            ),
            password_file: layout.dir.join("app.password"),
        };
        let mut lab = Self {
            user: client(layout, "user", 1, by_name),
            stubborn: client(layout, "stubborn", 1_000_000, inside),
            log: Log {
                path: layout.log(),
                read_to: 0,
                entries: Vec::new(),
            },
            network,
            looked: now(),
            dir,
            supervisor,
        };
        for client in [&mut lab.user, &mut lab.stubborn] {
            let steady = client.until(|attempts| acknowledged(attempts) >= 50);
            tokio::time::timeout(OVER_WITHIN, steady)
                .await
                .expect("the clients write")
                .unwrap();
        }
        lab
    }

    /// Makes happen what the row says, and says when.
    async fn hit(&mut self, row: &Row) -> WallTime {
        self.log.read();
        let at = SystemClock.wall();
        for (from, to) in &row.cuts {
            self.network.cut(*from, *to).unwrap();
        }
        if let Some(fault) = row.fault {
            self.fault(fault).await;
        }
        at
    }

    async fn fault(&mut self, fault: Fault) {
        let active = self.supervisor.layout.sites[0].name.clone();
        self.supervisor.fault(fault, &active).await.unwrap();
    }

    /// A moment's wait, with the processes looked after.
    async fn wait(&mut self) {
        if now().since(self.looked) > Duration::from_millis(500) {
            self.supervisor.look().unwrap();
            self.looked = now();
        }
        tokio::time::sleep(POLL).await;
    }

    fn attempts(&self) -> Vec<Attempt> {
        [self.user.attempts(), self.stubborn.attempts()].concat()
    }

    /// Nobody may be promoted.
    pub(super) async fn hold(&mut self, row: &Row, code: Code) -> Measured {
        let before = self.log.read().len();
        // What still stands from the decision before counts as well.
        let before = before.saturating_sub(usize::from(code == Code::Healthy));
        let at = self.hit(row).await;
        let until = now().plus(HELD_FOR);
        while now() < until {
            self.log.read();
            self.wait().await;
        }
        let mut measured = Measured {
            at,
            ..Measured::default()
        };
        let entries = &self.log.read()[before..];
        let says = |entry: &&Entry| match &entry.body {
            Body::Decision { decision, .. } => {
                decision.reasons.iter().any(|reason| reason.code == code)
            }
            _ => false,
        };
        let found = entries.iter().find(says);
        measured.after_ms = found.map(|entry| milliseconds(at, entry.at));
        if found.is_none() {
            measured.problems.push(format!(
                "`{code}` is not in the log, but {}",
                decisions(entries)
            ));
        }
        let moved = entries.iter().any(|entry| {
            matches!(&entry.body, Body::Plan { .. })
                || matches!(&entry.body, Body::Decision { decision, .. } if matches!(decision.verdict, Verdict::FailOver { .. }))
        });
        if moved {
            let said = format!("a plan was opened: {}", decisions(entries));
            measured.problems.push(said);
        }
        measured.gap_ms = self.gap(at);
        measured
    }

    /// Holds what was promised since `at` against what the active site has.
    async fn account_of_held(&self, at: WallTime, measured: &mut Measured) {
        let mut attempts = self.attempts();
        attempts.retain(|attempt| attempt.ended_ms >= at.0);
        match present_numbers(self.supervisor.layout.sites[0].api).await {
            Ok(present) => {
                let report = Report::new(&attempts, &present);
                measured.acknowledged = report.acknowledged.len();
                measured.lost = report.lost.len();
            }
            Err(error) => measured.problems.push(format!("{error:#}")),
        }
        if measured.lost > 0 {
            let lost = measured.lost;
            measured
                .problems
                .push(format!("{lost} acknowledged writes are gone"));
        }
    }

    /// Mends everything after a row that was held, and waits until all is as it was before.
    pub(super) async fn mend(&mut self, measured: &mut Measured) -> anyhow::Result<()> {
        self.network.mend_all()?;
        self.supervisor.heal().await?;
        self.supervisor.until_steady().await?;
        let deadline = now().plus(OVER_WITHIN);
        loop {
            let reasons = match self.supervisor.status().await {
                Ok(status) => status.decision.reasons,
                Err(_) => Vec::new(),
            };
            if reasons.iter().any(|reason| reason.code == Code::Healthy) {
                self.account_of_held(measured.at, measured).await;
                return Ok(());
            }
            anyhow::ensure!(now() < deadline, "not healthy again: {reasons:?}");
            self.wait().await;
        }
    }

    /// After everything was mended, users must be served again, and what they were promised must
    /// be there. Which site that is depends on how long the old database needs to recover.
    pub(super) async fn returns(&mut self, measured: &mut Measured) {
        let mended = SystemClock.wall();
        self.network.mend_all().unwrap();
        let deadline = now().plus(OVER_WITHIN);
        let mut serving = None;
        while now() < deadline && serving.is_none() {
            let attempts = self.user.attempts();
            let mut last = attempts
                .iter()
                .rev()
                .take_while(|one| one.sent_ms > mended.0);
            serving = last.find_map(|attempt| match &attempt.outcome {
                Outcome::Acknowledged { site, .. } => Some(site.clone()),
                Outcome::Unacknowledged(_) => None,
            });
            self.wait().await;
        }
        let Some(site) = serving else {
            measured
                .problems
                .push("users are not served again".to_owned());
            return;
        };
        let [old, new] = self.supervisor.layout.sites.clone();
        let api = if site == old.name { old.api } else { new.api };
        let mut attempts = self.attempts();
        let report = Report::new(&attempts, &std::collections::BTreeSet::new());
        if !report.by_old_after_new(&old.name, &new.name).is_empty() {
            measured.problems.push("two sites took writes".to_owned());
        }
        attempts.retain(|attempt| attempt.ended_ms >= measured.at.0);
        let present = present_numbers(api).await.unwrap();
        let report = Report::new(&attempts, &present);
        measured.acknowledged = report.acknowledged.len();
        measured.lost = report.lost.len();
        self.log.read();
        let outside = window(&self.log.entries).map_or(report.lost.len(), |(from, until)| {
            report.lost_outside(from.0, until.0).len()
        });
        if outside > 0 {
            let problem = format!("{outside} writes lost outside the declared window");
            measured.problems.push(problem);
        }
        measured.proof = Some(format!("served by {site}"));
    }

    /// The other site must take over, and keep every promise.
    pub(super) async fn fail_over(&mut self, row: &Row) -> Measured {
        let before = self.log.read().len();
        let at = self.hit(row).await;
        let [old, new] = self.supervisor.layout.sites.clone();
        let mut then = row.then;
        let deadline = now().plus(OVER_WITHIN);
        let mut over = None;
        let mut thawed_at = None;
        while now() < deadline && over.is_none_or(|over| now().since(over) < AFTERWARDS) {
            let entries = &self.log.read()[before..];
            let waits = entries.iter().any(|entry| {
                matches!(
                    &entry.body,
                    Body::Step {
                        step: Step::Fence,
                        event: Event::Started,
                        ..
                    }
                )
            });
            let ended = entries
                .iter()
                .any(|entry| matches!(&entry.body, Body::Outcome { .. }));
            match then {
                Then::ControllerKilled if waits => {
                    self.fault(Fault::KillController).await;
                    self.supervisor.start_controller(None).unwrap();
                    then = Then::Nothing;
                }
                Then::ControllerFrozen if waits => {
                    self.fault(Fault::FreezeController).await;
                    tokio::time::sleep(FROZEN_FOR).await;
                    self.supervisor.thaw().await.unwrap();
                    then = Then::Nothing;
                }
                Then::Nothing
                | Then::Returns
                | Then::Thawed
                | Then::ControllerKilled
                | Then::ControllerFrozen => {}
            }
            let served = self.user.attempts().iter().rev().take(20).any(|attempt| {
                matches!(&attempt.outcome, Outcome::Acknowledged { site, .. } if *site == new.name)
            });
            if ended && served && over.is_none() {
                over = Some(now());
                if then == Then::Thawed {
                    thawed_at = Some(SystemClock.wall());
                    self.supervisor.thaw().await.unwrap();
                }
            }
            self.wait().await;
        }
        self.log.read();
        let entries = &self.log.entries[before..];
        let mut measured = from_log(entries, at);
        let attempts = self.attempts();
        match present_numbers(new.api).await {
            Ok(present) => {
                let report = Report::new(&attempts, &present);
                let outside = match window(entries) {
                    Some((from, until)) => report.lost_outside(from.0, until.0).len(),
                    None => report.lost.len(),
                };
                measured.acknowledged = report.acknowledged.len();
                measured.lost = report.lost.len();
                measured.lost_outside = outside;
                measured.by_old_after_new = report.by_old_after_new(&old.name, &new.name).len();
                measured.thawed_ms = thawed_at.and_then(|thawed| {
                    let last = report.acknowledged.iter().rev();
                    let last = last
                        .take_while(|ack| ack.received_ms >= thawed.0)
                        .find(|ack| ack.site == old.name)?;
                    Some(last.received_ms.saturating_sub(thawed.0))
                });
                measured.user_ms = report
                    .first_by(&new.name, at.0)
                    .map(|ack| ack.received_ms.saturating_sub(at.0));
            }
            Err(error) => measured.problems.push(format!("{error:#}")),
        }
        measured.gap_ms = self.gap(at);
        let thawed = row.then == Then::Thawed;
        if measured.thawed_ms.is_some_and(|late| late > THAWED_WITHIN) {
            let late = measured.thawed_ms.unwrap_or_default();
            let problem = format!("the thawed site took writes for {late} ms");
            measured.problems.push(problem);
        }
        for (found, what) in [
            (measured.lost_outside, "lost outside the declared window"),
            (
                measured.by_old_after_new,
                "acknowledged by the old site after the new one's first",
            ),
        ] {
            // A thawed host goes on until its guard has looked at the clock: that is bounded by
            // time, not by their number.
            if found > 0 && !thawed {
                measured.problems.push(format!("{found} writes {what}"));
            }
        }
        if over.is_none() {
            measured
                .problems
                .push(format!("not over in time: {}", decisions(entries)));
        }
        if let Err(error) = files::verify(&self.log.path) {
            measured.problems.push(error.to_string());
        }
        measured
    }

    /// The longest time since the fault without an acknowledgement.
    fn gap(&self, at: WallTime) -> u64 {
        let mut attempts = self.user.attempts();
        attempts.retain(|attempt| attempt.ended_ms >= at.0);
        let report = Report::new(&attempts, &std::collections::BTreeSet::new());
        report.longest_gap().map_or(0, |gap| gap.length_ms())
    }

    /// Ends everything; keeps its folder where something went wrong.
    pub(super) async fn end(self, keep: bool) {
        self.network.mend_all().unwrap();
        drop((self.user, self.stubborn));
        self.supervisor.end().await.unwrap();
        if keep {
            let kept = self.dir.keep();
            eprintln!("kept in {}", kept.display());
        }
    }
}
