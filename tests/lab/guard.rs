//! The guard against a real PostgreSQL: whatever happens to the agent, to the guard or to
//! PostgreSQL's first process, no write is acknowledged after the proof.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use failover::agent::guard::{LEASE_EXPIRED, ORPHANED, PROMOTED_WITHOUT_RIGHT};
use failover::agent::guard_link::{GuardLink, GuardLinkError};
use failover::agent::guard_protocol::PROTOCOL;
use failover::agent::guard_protocol::{
    FenceMethod, FenceProof, GuardConfig, GuardEvent, Right, StartAs, StopTimes, boottime_ns,
};
use failover::engine::format::WrittenBy;
use failover::engine::units::Epoch;
use failover::lab::pair::PostgresTools;
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::broadcast::Receiver;
use tokio::task::JoinHandle;
use tokio_postgres::NoTls;

use crate::pair::template;

/// Longest wait for anything that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const STOP: StopTimes = StopTimes {
    fast_ms: 1500,
    immediate_ms: 500,
    kill_ms: 1000,
};
/// Rights that do not run out during a test.
pub(crate) const LONG: Duration = Duration::from_mins(10);

/// Gives each lab its own address, so that tests beside each other never share a port.
pub(crate) static COUNT: AtomicU64 = AtomicU64::new(0);

pub(crate) async fn right(
    link: &GuardLink,
    epoch: Epoch,
    deadline_ns: u64,
) -> Result<Right, GuardLinkError> {
    link.right(Right { epoch, deadline_ns }, STOP).await
}

/// A PostgreSQL of its own: folder, address, port; ended when the test is.
pub(crate) struct Lab {
    pub(crate) folder: tempfile::TempDir,
    /// The guard's, where nobody but us writes.
    state: tempfile::TempDir,
    pub(crate) config: GuardConfig,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let bin_dir = bin_dir();
        let folder = tempfile::tempdir().unwrap();
        let user = rustix::process::geteuid().is_root().then_some("postgres");
        let ids = user.map(user_ids);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let host = format!(
            "127.{}.{}.1",
            100 + std::process::id() % 100,
            1 + count % 250
        );
        let port = TcpListener::bind((host.as_str(), 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let data_dir = folder.path().join("data");
        if let Some((uid, gid)) = ids {
            rustix::fs::chown(
                folder.path(),
                Some(rustix::fs::Uid::from_raw(uid)),
                Some(rustix::fs::Gid::from_raw(gid)),
            )
            .unwrap();
        }
        let tools = PostgresTools::in_folder(bin_dir.clone()).unwrap();
        let copied = Command::new("cp")
            .arg("--archive")
            .args([&template(&tools), &data_dir])
            .status();
        assert!(copied.unwrap().success());
        let hosts = "local all all trust\nhost all all all trust\nhost replication all all trust\n";
        fs::write(data_dir.join("pg_hba.conf"), hosts).unwrap();
        let state = tempfile::tempdir().unwrap();
        let state_dir = state.path().join("state");
        let config = GuardConfig {
            bin_dir,
            data_dir,
            port,
            listen_addresses: host,
            socket_dir: folder.path().to_owned(),
            run_as: user.map(str::to_owned),
            log_file: folder.path().join("log"),
            state_dir,
            options: vec!["shared_buffers=16MB".into()],
            stop: STOP,
        };
        Self {
            folder,
            state,
            config,
        }
    }

    pub(crate) async fn link(&self) -> GuardLink {
        GuardLink::connect_or_spawn(self.config.clone(), exe())
            .await
            .unwrap()
    }

    /// A guard with a running primary of epoch 1.
    pub(crate) async fn primary(&self, right_for: Duration) -> GuardLink {
        let link = self.link().await;
        link.start(primary(1, right_for)).await.unwrap();
        self.ready().await;
        link
    }

    pub(crate) async fn connect(&self) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::connect(&self.dsn(), NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    pub(crate) fn dsn(&self) -> String {
        format!(
            "host={} port={} user=postgres dbname=postgres connect_timeout=2",
            self.config.listen_addresses, self.config.port
        )
    }

    pub(crate) async fn ready(&self) {
        until("PostgreSQL answers", async || self.connect().await.is_ok()).await;
    }

    pub(crate) fn refuses(&self) -> bool {
        std::net::TcpStream::connect((self.config.listen_addresses.as_str(), self.config.port))
            .is_err_and(|cause| cause.kind() == std::io::ErrorKind::ConnectionRefused)
    }

    /// Every process whose working folder is the data folder: found without the guard's help.
    pub(crate) fn processes(&self) -> Vec<i32> {
        fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|pid: &i32| {
                fs::read_link(format!("/proc/{pid}/cwd"))
                    .is_ok_and(|cwd| cwd == self.config.data_dir)
            })
            .collect()
    }

    pub(crate) fn standby_signal(&self) -> PathBuf {
        self.config.data_dir.join("standby.signal")
    }

    pub(crate) fn guard_pid(&self) -> Option<i32> {
        let text = fs::read_to_string(self.config.state_dir.join("guard.lock")).ok()?;
        let pid = text.trim().parse().ok()?;
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        // Ours only when it names our folder: the pid may be another's by now.
        line.contains(self.state.path().to_str()?).then_some(pid)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(&self.config.log_file).unwrap_or_default();
            eprint_to_test(&log);
        }
        if let Some(pid) = self.guard_pid() {
            send(pid, Signal::KILL);
        }
        for pid in self.processes() {
            send(pid, Signal::KILL);
        }
    }
}

/// Shows PostgreSQL's and the guard's log of a failed test.
#[expect(
    clippy::print_stderr,
    reason = "a test's own output, shown when it fails"
)]
pub(crate) fn eprint_to_test(text: &str) {
    eprintln!("{text}");
}

/// A client that inserts as fast as it can, connects anew when it is thrown out, and notes when
/// each insert was acknowledged.
pub(crate) struct Writer {
    last_ack_ns: Arc<AtomicU64>,
    refusals: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Writer {
    pub(crate) async fn start(lab: &Lab) -> Self {
        let client = lab.connect().await.unwrap();
        client
            .batch_execute("create table if not exists w (n bigserial)")
            .await
            .unwrap();
        let last_ack_ns = Arc::new(AtomicU64::new(0));
        let refusals = Arc::new(AtomicU64::new(0));
        let (acks, refused, dsn) = (last_ack_ns.clone(), refusals.clone(), lab.dsn());
        let task = tokio::spawn(async move {
            let mut client = client;
            loop {
                while client
                    .execute("insert into w default values", &[])
                    .await
                    .is_ok()
                {
                    acks.store(boottime_ns(), Ordering::SeqCst);
                }
                loop {
                    if let Ok((fresh, connection)) = tokio_postgres::connect(&dsn, NoTls).await {
                        tokio::spawn(connection);
                        client = fresh;
                        break;
                    }
                    refused.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
        });
        let writer = Self {
            last_ack_ns,
            refusals,
            task,
        };
        until("the first insert", async || writer.acked() > 0).await;
        writer
    }

    pub(crate) fn acked(&self) -> u64 {
        self.last_ack_ns.load(Ordering::SeqCst)
    }

    /// No insert was acknowledged after `moment`, though the client went on trying.
    pub(crate) async fn was_silent_since(&self, moment: u64) {
        let before = self.refusals.load(Ordering::SeqCst);
        until("twenty more attempts", async || {
            self.refusals.load(Ordering::SeqCst) >= before + 20
        })
        .await;
        assert!(self.acked() <= moment, "acknowledged after the proof");
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn bin_dir() -> PathBuf {
    let packaged = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")));
    let path = std::env::var_os("PATH").unwrap_or_default();
    packaged
        .chain(std::env::split_paths(&path))
        .find(|folder| folder.join("postgres").exists() && folder.join("initdb").exists())
        .expect("no PostgreSQL server: install the package `postgresql`")
}

pub(crate) fn user_ids(name: &str) -> (u32, u32) {
    let id = |flag: &str| {
        let found = Command::new("id").args([flag, name]).output().unwrap();
        let text = String::from_utf8(found.stdout).unwrap();
        text.trim()
            .parse()
            .expect("no user `postgres`: install the package `postgresql`")
    };
    (id("-u"), id("-g"))
}

pub(crate) fn exe() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_failover")).to_owned()
}

pub(crate) fn primary(epoch: u64, right_for: Duration) -> StartAs {
    StartAs::Primary {
        epoch: Epoch(epoch),
        deadline_ns: from_now(right_for),
    }
}

pub(crate) fn from_now(wait: Duration) -> u64 {
    boottime_ns() + u64::try_from(wait.as_nanos()).unwrap()
}

pub(crate) fn send(pid: i32, signal: Signal) {
    // Gone already is as good.
    let _gone = kill_process(Pid::from_raw(pid).unwrap(), signal);
}

pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .unwrap_or_else(|_elapsed| panic!("waited in vain: {what}"));
}

/// The proof that is pushed next, and the moment of hearing it.
pub(crate) async fn proof(events: &mut Receiver<GuardEvent>) -> (FenceProof, u64) {
    let wait = async {
        loop {
            if let GuardEvent::Fenced(proof) = events.recv().await.unwrap() {
                return (proof, boottime_ns());
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .expect("no proof of a fence")
}

pub(crate) fn refusal<T: std::fmt::Debug>(result: Result<T, GuardLinkError>) -> String {
    match result {
        Err(GuardLinkError::Refused(why)) => why,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_deadline_passes_no_write_is_acknowledged_any_more() {
    let lab = Lab::new();
    let link = lab.primary(LONG).await;
    let writer = Writer::start(&lab).await;
    let mut events = link.events();
    // A new epoch may end earlier than the old one; within an epoch the deadline only grows.
    let deadline = from_now(Duration::from_millis(500));
    right(&link, Epoch(2), deadline).await.unwrap();
    let (proof, heard) = proof(&mut events).await;
    assert_eq!(
        (proof.cause.as_str(), proof.epoch),
        (LEASE_EXPIRED, Epoch(2))
    );
    assert!(heard >= deadline);
    assert!(
        u128::from(proof.took_ms) <= STOP.total().as_millis(),
        "{proof:?}"
    );
    assert_eq!(proof.method, FenceMethod::Fast);
    assert!(lab.refuses());
    assert_eq!(lab.processes(), Vec::<i32>::new());
    writer.was_silent_since(heard).await;
    let status = link.status().await.unwrap();
    assert_eq!((status.right, status.postmaster_pid), (None, None));
    assert_eq!(status.marker.unwrap().proof, Some(proof));
    assert!(status.last_exit.unwrap().expected, "the fence ended it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_keeps_it_running_and_a_deadline_never_moves_back() {
    let lab = Lab::new();
    let link = lab.primary(LONG).await;
    assert_eq!(link.guard(), WrittenBy::ours(PROTOCOL));
    let far = from_now(LONG * 2);
    assert_eq!(right(&link, Epoch(1), far).await.unwrap().deadline_ns, far);
    let near = from_now(Duration::from_secs(1));
    assert_eq!(right(&link, Epoch(1), near).await.unwrap().deadline_ns, far);
    assert!(refusal(right(&link, Epoch(0), far).await).contains("epoch 0 is over"));
    assert!(refusal(right(&link, Epoch(1), 1).await).contains("passed already"));
    assert!(refusal(link.fence("old order", Epoch(0)).await).contains("is old"));
    assert!(refusal(link.renounce().await).contains("a primary runs"));
    assert!(refusal(link.quit().await).contains("stop it first"));
    assert!(lab.connect().await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_guard_is_killed_postgresql_ends_with_it() {
    let lab = Lab::new();
    let link = lab.primary(LONG).await;
    let writer = Writer::start(&lab).await;
    let mut events = link.events();
    send(link.status().await.unwrap().guard_pid, Signal::KILL);
    until("all processes are gone", async || {
        lab.processes().is_empty()
    })
    .await;
    let gone = boottime_ns();
    assert!(lab.refuses());
    writer.was_silent_since(gone).await;
    while events.recv().await.unwrap() != (GuardEvent::Lost {}) {}
    // The same link finds a new guard, which runs nothing by itself.
    assert_eq!(link.status().await.unwrap().postmaster_pid, None);
    link.start(primary(1, LONG)).await.unwrap();
    lab.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_guard_left_behind_is_fenced_by_the_next() {
    let lab = Lab::new();
    let link = lab.primary(LONG).await;
    let writer = Writer::start(&lab).await;
    let status = link.status().await.unwrap();
    // Two faults: a stopped first process does not hear the kernel's SIGQUIT.
    send(status.postmaster_pid.unwrap(), Signal::STOP);
    send(status.guard_pid, Signal::KILL);
    until("the guard is gone", async || lab.guard_pid().is_none()).await;
    assert!(!lab.processes().is_empty());
    until("a proof", async || {
        link.status()
            .await
            .is_ok_and(|status| status.last_proof.is_some())
    })
    .await;
    let heard = boottime_ns();
    let proof = link.status().await.unwrap().last_proof.unwrap();
    assert_eq!(
        (proof.cause.as_str(), proof.method),
        (ORPHANED, FenceMethod::Kill)
    );
    assert_eq!(lab.processes(), Vec::<i32>::new());
    writer.was_silent_since(heard).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_agent_it_fences_at_the_deadline_and_a_new_agent_carries_on() {
    let lab = Lab::new();
    let link = lab.primary(LONG).await;
    let writer = Writer::start(&lab).await;
    let deadline = from_now(Duration::from_millis(700));
    right(&link, Epoch(2), deadline).await.unwrap();
    let guard = link.status().await.unwrap().guard_pid;
    drop(link);
    until("nothing is left", async || lab.processes().is_empty()).await;
    let gone = boottime_ns();
    assert!(gone >= deadline && writer.acked() > 0);
    assert!(Duration::from_nanos(gone - deadline) <= STOP.total());
    writer.was_silent_since(gone).await;
    let link = lab.link().await;
    let status = link.status().await.unwrap();
    assert_eq!(status.guard_pid, guard);
    assert_eq!(status.marker.unwrap().cause, LEASE_EXPIRED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_first_process_does_not_keep_its_sessions_alive() {
    let lab = Lab::new();
    let link = lab.primary(LONG).await;
    let writer = Writer::start(&lab).await;
    send(
        link.status().await.unwrap().postmaster_pid.unwrap(),
        Signal::STOP,
    );
    let seen = writer.acked();
    until("its session goes on writing", async || {
        writer.acked() > seen
    })
    .await;
    let proof = link.fence("told", Epoch(1)).await.unwrap();
    let heard = boottime_ns();
    assert_eq!(proof.method, FenceMethod::Kill);
    assert!(u128::from(proof.took_ms) < STOP.total().as_millis());
    assert_eq!(lab.processes(), Vec::<i32>::new());
    let exit = link.status().await.unwrap().last_exit.unwrap();
    assert!(exit.expected, "the fence ended it: {exit:?}");
    writer.was_silent_since(heard).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_does_not_end_is_ended_and_status_is_answered_meanwhile() {
    let lab = Lab::new();
    let link = lab.primary(LONG).await;
    let client = lab.connect().await.unwrap();
    let row = client
        .query_one("select pg_backend_pid()", &[])
        .await
        .unwrap();
    // A stopped session hears neither the fast nor the immediate shutdown.
    send(row.get(0), Signal::STOP);
    let fence = tokio::spawn({
        let link = link.clone();
        async move { link.fence("told", Epoch(1)).await }
    });
    until("the fence is under way", async || {
        link.status().await.unwrap().fencing
    })
    .await;
    assert!(refusal(right(&link, Epoch(1), from_now(LONG)).await).contains("under way"));
    let proof = fence.await.unwrap().unwrap();
    assert_eq!(proof.method, FenceMethod::Kill);
    assert!(u128::from(proof.took_ms) >= u128::from(STOP.fast_ms + STOP.immediate_ms));
    assert_eq!(lab.processes(), Vec::<i32>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_outlive_their_first_process_are_fenced_at_the_deadline() {
    let lab = Lab::new();
    let link = lab.primary(LONG).await;
    let mut events = link.events();
    let client = lab.connect().await.unwrap();
    let row = client
        .query_one("select pg_backend_pid()", &[])
        .await
        .unwrap();
    let session: i32 = row.get(0);
    // Stopped, so that it certainly does not notice.
    send(session, Signal::STOP);
    send(
        link.status().await.unwrap().postmaster_pid.unwrap(),
        Signal::KILL,
    );
    let GuardEvent::Exited(exit) = events.recv().await.unwrap() else {
        panic!("no word of the end");
    };
    assert_eq!((exit.status.as_str(), exit.expected), ("signal 9", false));
    assert!(lab.processes().contains(&session));
    assert!(refusal(link.start(primary(1, LONG)).await).contains("fence first"));
    // The crash did not take the right away, so the deadline still counts.
    assert!(link.status().await.unwrap().right.is_some());
    right(&link, Epoch(2), from_now(Duration::from_millis(200)))
        .await
        .unwrap();
    let (proof, _) = proof(&mut events).await;
    assert_eq!(
        (proof.cause.as_str(), proof.method),
        (LEASE_EXPIRED, FenceMethod::Kill)
    );
    assert_eq!(lab.processes(), Vec::<i32>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fence_outlives_the_guard_until_a_newer_right_lifts_it() {
    let lab = Lab::new();
    let link = lab.primary(LONG).await;
    link.fence("told", Epoch(3)).await.unwrap();
    link.quit().await.unwrap();
    until("the guard is gone", async || lab.guard_pid().is_none()).await;

    let link = lab.link().await;
    let marker = link.status().await.unwrap().marker.unwrap();
    assert_eq!((marker.epoch, marker.cause.as_str()), (Epoch(3), "told"));
    assert!(marker.proof.is_some());
    assert!(refusal(link.start(primary(3, LONG)).await).contains("fenced at epoch 3 (told)"));
    assert!(refusal(link.unfence(Epoch(2)).await).contains("cannot lift"));
    link.unfence(Epoch(4)).await.unwrap();
    link.start(primary(4, LONG)).await.unwrap();
    lab.ready().await;
    // Fencing what is down is a proof, too.
    assert_eq!(link.stop(PATIENCE).await.unwrap(), "exit status 0");
    let proof = link.fence("again", Epoch(4)).await.unwrap();
    assert_eq!(proof.method, FenceMethod::AlreadyDown);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_guard_is_refused() {
    let lab = Lab::new();
    let link = lab.link().await;
    let second = Command::new(exe())
        .args(["guard", "--config"])
        .arg(lab.config.state_dir.join("guard.json"))
        .output()
        .unwrap();
    assert!(!second.status.success());
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(text.contains("another guard holds"), "{text}");
    assert!(link.status().await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_would_come_up_wrong_is_not_started() {
    let lab = Lab::new();
    let link = lab.link().await;
    assert!(refusal(link.start(StartAs::Standby).await).contains("would become a primary"));
    let passed = StartAs::Primary {
        epoch: Epoch(1),
        deadline_ns: boottime_ns(),
    };
    assert!(refusal(link.start(passed).await).contains("passed already"));
    fs::write(lab.standby_signal(), "").unwrap();
    assert!(refusal(link.start(primary(1, LONG)).await).contains("would become a standby"));
    assert_eq!(lab.processes(), Vec::<i32>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_needs_no_right_and_a_promoted_one_does() {
    let lab = Lab::new();
    let link = lab.link().await;
    let mut events = link.events();
    fs::write(lab.standby_signal(), "").unwrap();
    link.start(StartAs::Standby).await.unwrap();
    lab.ready().await;
    // Armed just before the promotion, given up again, armed.
    right(&link, Epoch(5), from_now(LONG)).await.unwrap();
    link.renounce().await.unwrap();
    right(&link, Epoch(6), from_now(LONG)).await.unwrap();
    let client = lab.connect().await.unwrap();
    assert!(
        client
            .query_one("select pg_promote()", &[])
            .await
            .unwrap()
            .get::<_, bool>(0)
    );
    client.batch_execute("create table t ()").await.unwrap();
    link.stop(PATIENCE).await.unwrap();
    assert_eq!(link.status().await.unwrap().right, None);

    // Behind the agent's back: no right, so it is fenced.
    fs::write(lab.standby_signal(), "").unwrap();
    link.start(StartAs::Standby).await.unwrap();
    lab.ready().await;
    let client = lab.connect().await.unwrap();
    // The answer may be lost with the session.
    let _answer = client.query_one("select pg_promote()", &[]).await;
    let (proof, _) = proof(&mut events).await;
    assert_eq!(
        (proof.cause.as_str(), proof.epoch),
        (PROMOTED_WITHOUT_RIGHT, Epoch(6))
    );
    assert_eq!(lab.processes(), Vec::<i32>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_is_not_given_up_on_what_was_seen_before_a_promotion() {
    let lab = Lab::new();
    let link = lab.link().await;
    fs::write(lab.standby_signal(), "").unwrap();
    link.start(StartAs::Standby).await.unwrap();
    lab.ready().await;
    right(&link, Epoch(2), from_now(LONG)).await.unwrap();
    let client = lab.connect().await.unwrap();
    client.query_one("select pg_promote()", &[]).await.unwrap();
    // Nobody has looked at its control file since.
    let refused = link.renounce().await.unwrap_err().to_string();
    assert!(refused.contains("a primary runs"), "{refused}");
    let status = link.status().await.unwrap();
    assert_eq!(status.right.map(|right| right.epoch), Some(Epoch(2)));
    client.batch_execute("create table t ()").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgresql_that_no_guard_started_is_left_alone() {
    let lab = Lab::new();
    let link = lab.primary(LONG).await;
    // As if it had been started by hand: no note of ours names it.
    fs::remove_file(lab.config.state_dir.join("postmaster.pid")).unwrap();
    let other = GuardConfig {
        state_dir: lab.state.path().join("other"),
        log_file: lab.folder.path().join("other-log"),
        ..lab.config.clone()
    };
    let refused = GuardLink::connect_or_spawn(other.clone(), exe())
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("it ended at once"),
        "{refused}"
    );
    let log = fs::read_to_string(other.log_file).unwrap();
    assert!(log.contains("that no guard started"), "{log}");
    assert!(lab.connect().await.is_ok());
    drop(link);
}
