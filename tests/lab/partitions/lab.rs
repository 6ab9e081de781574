//! A lab in a network of its own, with its clients and its decision log, and the rows in which
//! nobody may be promoted.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use failover::adapters::clock::SystemClock;
use failover::engine::chain::{Body, Entry};
use failover::engine::decision::Verdict;
use failover::engine::policy::{Durability, Policy};
use failover::engine::reason::Code;
use failover::engine::topology::SiteName;
use failover::engine::units::{MonoTime, WallTime};
use failover::lab::client::{
    Attempt, Client, ClientConfig, Outcome, Report, Route, present_numbers,
};
use failover::lab::layout::{Layout, SERVICE, Servers};
use failover::lab::network::{Namespaces, Place};
use failover::lab::processes::Processes;
use failover::lab::standing::Fault;
use failover::lab::supervisor::Supervisor;
use failover::ports::Clock;
use tempfile::TempDir;

use super::disk::{self, Disk};
use super::log::{self, Log, decisions, milliseconds, window};
use super::rows::{Full, Row, Then};
use super::table::Measured;
use crate::stage::no_other_errors;

/// `fail_after` of it, five times.
const HELD_FOR: Duration = Duration::from_secs(10);
/// How long a failover may take, with everything around it.
pub(super) const OVER_WITHIN: Duration = Duration::from_secs(45);
/// So many writes show that writing goes on: five seconds of a client that nothing holds up.
const WENT_ON: usize = 250;
/// How long after it a fault that comes again and again comes again.
const AGAIN: Duration = Duration::from_millis(500);
/// How long a line is cut that is mended.
const CUT_FOR: Duration = Duration::from_secs(45);
/// For how much of that commits wait at least, in milliseconds: until then the line is not noticed.
const STALLED_FOR: u64 = 40_000;
const POLL: Duration = Duration::from_millis(10);
/// `RestartSec=` of the unit of the agent.
const RESTARTED_AFTER: Duration = Duration::from_millis(250);

pub(super) struct Lab {
    pub(super) supervisor: Supervisor,
    network: Namespaces,
    pub(super) user: Client,
    stubborn: Client,
    pub(super) log: Log,
    /// Every commit waits for the standby.
    pub(super) zero_loss: bool,
    looked: MonoTime,
    /// Since when what has ended is started again.
    supervised: Option<MonoTime>,
    disk: Option<Disk>,
    dir: TempDir,
}

pub(super) fn now() -> MonoTime {
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
    pub(super) async fn start(network: Namespaces, policy: &str, full: Option<Full>) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("failover-partitions-")
            .tempdir()
            .unwrap();
        let disk = full.map(|_| Disk::mount(&dir.path().join("aws/pg")));
        let program = std::path::Path::new(env!("CARGO_BIN_EXE_failover"));
        let processes = Processes::new("partitions", Arc::new(SystemClock)).unwrap();
        let servers = Servers::usual().unwrap();
        let layout = Layout::create(dir.path(), program, Some(network), policy, servers)
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
            zero_loss: Policy::read("policy", policy).unwrap().data.durability == Durability::Sync,
            looked: now(),
            supervised: None,
            disk,
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
        lab.until_closed().await.unwrap();
        lab
    }

    /// In zero-loss mode: waits until every commit waits for the standby.
    async fn until_closed(&mut self) -> anyhow::Result<()> {
        let deadline = now().plus(OVER_WITHIN);
        while self.zero_loss && !log::is_closed(self.log.read()) {
            anyhow::ensure!(now() < deadline, "the RPO window does not close");
            self.wait().await;
        }
        Ok(())
    }

    /// Makes happen what the row says, and says when.
    pub(super) async fn hit(&mut self, row: &Row) -> WallTime {
        self.log.read();
        let at = SystemClock.wall();
        for (from, to) in &row.cuts {
            self.network.cut(*from, *to).unwrap();
        }
        if let Some((fault, place)) = row.fault {
            self.fault(fault, place).await;
        }
        // The rows of a section share a lab: what was lost in the last one stays lost in this one.
        self.supervised = (row.then == Then::Supervised).then(now);
        if let (Some(disk), Some(full)) = (&self.disk, row.full) {
            disk.fill();
            if full == Full::Wal {
                disk::end_of_segment(&self.supervisor.layout.sites[0].instance).await;
            }
        }
        at
    }

    pub(super) async fn fault(&mut self, fault: Fault, place: Place) {
        self.try_fault(fault, place).await.unwrap();
    }

    async fn try_fault(&mut self, fault: Fault, place: Place) -> anyhow::Result<String> {
        let site = place.name().parse().unwrap();
        self.supervisor.fault(fault, &site).await
    }

    /// A moment's wait, with the processes looked after.
    pub(super) async fn wait(&mut self) {
        if now().since(self.looked) > Duration::from_millis(500) {
            self.supervisor.look().unwrap();
            self.looked = now();
        }
        if let Some(since) = &mut self.supervised
            && now().since(*since) >= RESTARTED_AFTER
        {
            self.supervisor.start_missing().unwrap();
            *since = now();
        }
        tokio::time::sleep(POLL).await;
    }

    pub(super) fn attempts(&self) -> Vec<Attempt> {
        [self.user.attempts(), self.stubborn.attempts()].concat()
    }

    /// Nobody may be promoted.
    pub(super) async fn hold(&mut self, row: &Row, code: Code) -> Measured {
        let entries = self.log.read();
        let decided = |entry: &Entry| matches!(&entry.body, Body::Decision { .. });
        // What still stands from the decision before counts as well, whatever was noted since.
        let before = match entries.iter().rposition(decided) {
            Some(standing) if code == Code::Healthy => standing,
            Some(_) | None => entries.len(),
        };
        let at = self.hit(row).await;
        let until = now().plus(HELD_FOR);
        let mut again = 0;
        let mut last = now();
        while now() < until {
            self.log.read();
            let after = match row.then {
                Then::OverAndOver => Some(AGAIN),
                Then::KeptDown => Some(POLL),
                _ => None,
            };
            if let (Some(after), Some((fault, place))) = (after, row.fault)
                && now().since(last) >= after
            {
                // There need not be one to be killed at this moment.
                if self.try_fault(fault, place).await.is_ok() {
                    again += 1;
                }
                last = now();
            }
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
        if matches!(row.then, Then::OverAndOver | Then::KeptDown) && again < 3 {
            let problem = format!("it could be done {again} times again only");
            measured.problems.push(problem);
        }
        let moved = entries.iter().any(|entry| {
            matches!(&entry.body, Body::Plan { .. })
                || matches!(&entry.body, Body::Decision { decision, .. } if matches!(decision.verdict, Verdict::FailOver { .. }))
        });
        if moved {
            let said = format!("a plan was opened: {}", decisions(entries));
            measured.problems.push(said);
        }
        measured.opened_ms = log::opened(entries).map(|opened| milliseconds(at, opened));
        if self.zero_loss && measured.opened_ms.is_some() != row.released {
            let problem = format!(
                "the RPO window was opened after {:?} ms",
                measured.opened_ms
            );
            measured.problems.push(problem);
        }
        measured.gap_ms = self.gap(at);
        if row.released {
            self.goes_on(at, &mut measured).await;
        }
        measured
    }

    /// Writes that were permitted to go on without the standby do, to the end of the row and
    /// after it. How many come in a second is the machine's, so they are waited for.
    async fn goes_on(&mut self, at: WallTime, measured: &mut Measured) {
        let released = at.0 + measured.opened_ms.unwrap_or_default();
        let held = SystemClock.wall();
        let deadline = now().plus(OVER_WITHIN);
        loop {
            let mut attempts = self.user.attempts();
            attempts.retain(|attempt| attempt.sent_ms > released);
            let found = acknowledged(&attempts);
            attempts.retain(|attempt| attempt.sent_ms > held.0);
            if found >= WENT_ON && acknowledged(&attempts) > 0 {
                return;
            }
            if now() >= deadline {
                let after = acknowledged(&attempts);
                let problem =
                    format!("{found} writes went on, not {WENT_ON}; {after} after the row");
                measured.problems.push(problem);
                return;
            }
            self.wait().await;
        }
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
                self.until_closed().await?;
                self.account_of_held(measured.at, measured).await;
                return Ok(());
            }
            anyhow::ensure!(now() < deadline, "not healthy again: {reasons:?}");
            self.wait().await;
        }
    }

    /// Commits that waited for a standby go on soon after the line to it is mended.
    pub(super) async fn go_on(&mut self, row: &Row) -> Measured {
        let before = self.log.read().len();
        let at = self.hit(row).await;
        let mended = now().plus(CUT_FOR);
        while now() < mended {
            self.wait().await;
        }
        let mut measured = Measured {
            at,
            gap_ms: self.gap(at),
            ..Measured::default()
        };
        if measured.gap_ms < STALLED_FOR {
            let gap = measured.gap_ms;
            measured
                .problems
                .push(format!("commits waited for {gap} ms only"));
        }
        let mended = SystemClock.wall();
        self.network.mend_all().unwrap();
        let deadline = now().plus(OVER_WITHIN);
        let again = |one: &&Attempt| {
            one.ended_ms > mended.0 && matches!(one.outcome, Outcome::Acknowledged { .. })
        };
        while measured.user_ms.is_none() && now() < deadline {
            let attempts = self.user.attempts();
            let first = attempts.iter().filter(again).map(|one| one.ended_ms).min();
            measured.user_ms = first.map(|first| first.saturating_sub(mended.0));
            self.wait().await;
        }
        measured.after_ms = measured.user_ms;
        if measured.user_ms.is_none() {
            measured.problems.push("commits do not go on".to_owned());
        }
        let entries = &self.log.read()[before..];
        if entries
            .iter()
            .any(|entry| matches!(&entry.body, Body::Plan { .. }))
        {
            let said = format!("a plan was opened: {}", decisions(entries));
            measured.problems.push(said);
        }
        self.account_of_held(at, &mut measured).await;
        measured
    }

    /// Users must be served again, by whichever site, without anybody's help.
    pub(super) async fn serve_again(&mut self, row: &Row) -> Measured {
        let at = self.hit(row).await;
        let mut measured = Measured {
            at,
            ..Measured::default()
        };
        let hit = SystemClock.wall();
        self.returns(&mut measured).await;
        let attempts = self.user.attempts();
        let again = attempts.iter().filter(|one| {
            one.sent_ms > hit.0 && matches!(one.outcome, Outcome::Acknowledged { .. })
        });
        let first = again.map(|one| one.ended_ms).min();
        measured.user_ms = first.map(|first| first.saturating_sub(at.0));
        measured.after_ms = measured.user_ms;
        measured.gap_ms = self.gap(at);
        measured
    }

    /// After everything was mended, users must be served again, and what they were promised must
    /// be there. Which site that is depends on how long the old database needs to recover.
    pub(super) async fn returns(&mut self, measured: &mut Measured) {
        let mended = SystemClock.wall();
        self.network.mend_all().unwrap();
        let deadline = now().plus(OVER_WITHIN);
        let mut served = self.served_since(mended).await;
        while served.is_none() && now() < deadline {
            self.wait().await;
            served = self.served_since(mended).await;
        }
        let Some((site, mut attempts, present)) = served else {
            measured
                .problems
                .push("users are not served again".to_owned());
            return;
        };
        let [old, new] = self.supervisor.layout.sites.clone();
        let report = Report::new(&attempts, &BTreeSet::new());
        if !report.by_old_after_new(&old.name, &new.name).is_empty() {
            measured.problems.push("two sites took writes".to_owned());
        }
        attempts.retain(|attempt| attempt.ended_ms >= measured.at.0);
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

    /// Which site took the newest write that was sent since, what was attempted until now, and the
    /// numbers that are there. A site that is left just now has no numbers to show, and the next
    /// write goes to the other.
    async fn served_since(
        &self,
        mended: WallTime,
    ) -> Option<(SiteName, Vec<Attempt>, BTreeSet<i64>)> {
        let newest = self.user.attempts();
        let mut newest = newest.iter().rev().take_while(|one| one.sent_ms > mended.0);
        let site = newest.find_map(|attempt| match &attempt.outcome {
            Outcome::Acknowledged { site, .. } => Some(site.clone()),
            Outcome::Unacknowledged(_) => None,
        })?;
        let service = self.supervisor.layout.site(&site)?.api;
        let attempts = self.attempts();
        let present = present_numbers(service).await.ok()?;
        Some((site, attempts, present))
    }

    /// The longest time since the fault without an acknowledgement.
    pub(super) fn gap(&self, at: WallTime) -> u64 {
        let mut attempts = self.user.attempts();
        attempts.retain(|attempt| attempt.ended_ms >= at.0);
        let report = Report::new(&attempts, &BTreeSet::new());
        report.longest_gap().map_or(0, |gap| gap.length_ms())
    }

    /// Ends everything; keeps its folder where something went wrong.
    pub(super) async fn end(self, keep: bool) {
        self.network.mend_all().unwrap();
        drop((self.user, self.stubborn));
        let expected = self.supervisor.expected_errors.clone();
        self.supervisor.end().await.unwrap();
        if !keep {
            no_other_errors(&expected, self.dir.path());
        }
        if let Some(disk) = self.disk.filter(|_| keep) {
            disk.keep();
        }
        if keep {
            eprintln!("kept in {}", self.dir.keep().display());
        }
    }
}
