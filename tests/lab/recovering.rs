//! An active database that recovers from a crash, told from one that is dead.

use std::path::PathBuf;
use std::time::Duration;

use failover::engine::detector::State;
use failover::engine::reason::Code;
use failover::engine::situation::LocalDatabase;
use failover::engine::topology::TargetKind;
use failover::engine::units::{Bytes, Epoch};
use failover::lab::layout::SiteLayout;
use failover::lab::standing::Fault;
use failover::lab::supervisor::Supervisor;
use failover::wire::Status;
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::check::sql;
use crate::stage::{FAST, endings, entries, on_a_prepared_lab, until_status};

/// Longer than anything here takes; `fail_after` is 2 s. What is written here at once counts as loss
/// that goes on while nobody can look.
fn patient() -> String {
    let lossy = FAST.replace("max_loss = \"16MiB\"", "max_loss = \"100GiB\"");
    lossy.replace(
        "local_restart_grace = \"0s\"",
        "local_restart_grace = \"10m\"",
    )
}

/// Fills the active database with WAL that no checkpoint has made superfluous, and waits until the
/// standby has it.
async fn much_to_replay(lab: &Supervisor, site: &SiteLayout) {
    sql(site, "ALTER SYSTEM SET max_wal_size = '8GB'").await;
    sql(site, "ALTER SYSTEM SET checkpoint_timeout = '1h'").await;
    sql(site, "SELECT pg_reload_conf()").await;
    sql(site, "CHECKPOINT").await;
    sql(
        site,
        "CREATE TABLE junk AS SELECT n, repeat(md5(n::text), 10) FROM generate_series(1, 100000) n",
    )
    .await;
    until_status(lab, "the standby has it", |status| {
        let lag = status.situation.replication.lag();
        lag.is_some_and(|lag| lag < Bytes(1 << 20))
    })
    .await;
}

/// The process that replays, as soon as there is one.
fn startup(pid_file: &PathBuf) -> Option<Pid> {
    let postmaster = std::fs::read_to_string(pid_file).ok()?;
    let postmaster = postmaster.lines().next()?;
    let children = format!("/proc/{postmaster}/task/{postmaster}/children");
    let children = std::fs::read_to_string(children).ok()?;
    let replays = |pid: &&str| {
        let title = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&title).contains("startup")
    };
    let found = children.split_whitespace().find(replays)?;
    Pid::from_raw(found.parse().ok()?)
}

/// How much processor time a process has used, in ticks of the kernel.
fn ticks(process: Pid) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero()));
    let stat = stat.unwrap_or_default();
    let (_, rest) = stat.rsplit_once(')').unwrap_or_default();
    let used = rest.split_whitespace().skip(11).take(2);
    used.filter_map(|field| field.parse::<u64>().ok()).sum()
}

/// Has the replay stand; where it is to get on at all, but for one tick of work every second. Until the
/// other end is dropped.
async fn brake(file: PathBuf, gets_on: bool, mut over: oneshot::Receiver<()>) {
    let process = loop {
        if let Some(found) = startup(&file) {
            break found;
        }
        sleep(Duration::from_millis(1)).await;
    };
    loop {
        kill_process(process, Signal::STOP).ok();
        if timeout(Duration::from_millis(900), &mut over).await.is_ok() {
            break;
        }
        if gets_on {
            let before = ticks(process);
            kill_process(process, Signal::CONT).ok();
            while ticks(process) == before && startup(&file) == Some(process) {
                sleep(Duration::from_millis(1)).await;
            }
        }
    }
    kill_process(process, Signal::CONT).ok();
}

/// Begins to brake.
fn braked(site: &SiteLayout, gets_on: bool) -> (oneshot::Sender<()>, JoinHandle<()>) {
    let file = site.instance.data().join("postmaster.pid");
    let (release, over) = oneshot::channel();
    (release, tokio::spawn(brake(file, gets_on, over)))
}

fn recovers_for(status: &Status, longer_than: Duration) -> bool {
    let site = status.situation.active_site().unwrap();
    let database = &site.agent.as_ref().unwrap().fact.database;
    let named = status.decision.reasons.iter();
    let mut named = named.filter(|reason| reason.code == Code::ActiveDatabaseRecovering);
    let long = matches!(database, LocalDatabase::Recovering { since, .. } if *since > longer_than);
    long && named.next().is_some()
}

#[test]
fn a_primary_that_recovers_within_the_grace_is_not_failed_over() {
    let test = "recovering::a_primary_that_recovers_within_the_grace_is_not_failed_over";
    on_a_prepared_lab(
        test,
        &patient(),
        |_| (),
        async |lab| {
            let aws = lab.layout.sites[0].clone();
            much_to_replay(lab, &aws).await;
            lab.fault(Fault::KillDatabase, &aws.name).await.unwrap();
            let (release, braking) = braked(&aws, true);
            let what = "all see it fail, and it recovers for three times `fail_after`";
            until_status(lab, what, |status| {
                let seen = status.situation.active_site().unwrap();
                let failed = seen.state(TargetKind::Database) == State::Failed;
                failed && recovers_for(status, Duration::from_secs(6))
            })
            .await;
            drop(release);
            braking.await.unwrap();
            until_status(lab, "it serves again", |status| {
                let site = status.situation.active_site().unwrap();
                site.state(TargetKind::Database) == State::Healthy
            })
            .await;
            assert_eq!(endings(&entries(&lab.layout.log())), []);
            let status = lab.status().await.unwrap();
            assert_eq!(
                (status.situation.epoch, status.situation.active),
                (Epoch(1), aws.name)
            );
        },
    );
}

#[test]
fn a_recovery_that_stands_still_is_failed_over() {
    let test = "recovering::a_recovery_that_stands_still_is_failed_over";
    on_a_prepared_lab(
        test,
        &patient(),
        |_| (),
        async |lab| {
            let [aws, gcp] = lab.layout.sites.clone();
            much_to_replay(lab, &aws).await;
            lab.fault(Fault::KillDatabase, &aws.name).await.unwrap();
            let (release, braking) = braked(&aws, false);
            until_status(lab, "the other site is active", |status| {
                status.situation.active == gcp.name && status.plan.is_none()
            })
            .await;
            drop(release);
            braking.await.unwrap();
        },
    );
}
