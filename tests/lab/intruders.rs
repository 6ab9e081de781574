//! Servers that somebody else starts where the guard's should be.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use failover::agent::guard::FOREIGN;
use failover::agent::guard_link::GuardLink;
use failover::agent::guard_protocol::{FenceMethod, FenceProof, GuardEvent, boottime_ns};
use failover::engine::units::Epoch;
use tokio::sync::broadcast::Receiver;
use tokio::task::JoinHandle;
use tokio_postgres::NoTls;

use crate::guard::{LONG, Lab, PATIENCE, eprint_to_test, exe, primary, until, user_ids};

/// A command as the user of the lab's PostgreSQL.
fn as_postgres(lab: &Lab, program: &Path) -> Command {
    let mut command = Command::new(program);
    if let Some(user) = &lab.config.run_as {
        let (uid, gid) = user_ids(user);
        command.uid(uid).gid(gid);
    }
    command.current_dir("/");
    command
}

/// Starts PostgreSQL as an operator would, from any program, on any port.
fn start_by_hand(lab: &Lab, program: &Path, port: u16) {
    let config = &lab.config;
    let done = as_postgres(lab, &config.bin_dir.join("pg_ctl"))
        .args(["start", "--no-wait", "--silent", "-p"])
        .arg(program)
        .arg("-D")
        .arg(&config.data_dir)
        .arg("-l")
        .arg(lab.folder.path().join("by-hand.log"))
        .arg("-o")
        .arg(format!(
            "-p {port} -c listen_addresses={} -k {}",
            config.listen_addresses,
            config.socket_dir.display()
        ))
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(done.success());
}

/// What the servers that were started by hand said.
fn said_by_hand(lab: &Lab) -> String {
    fs::read_to_string(lab.folder.path().join("by-hand.log")).unwrap_or_default()
}

/// A client that has its first write ready for whoever takes it, and counts those that are taken.
struct Waiting {
    acknowledged: Arc<AtomicU64>,
    last_ns: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Waiting {
    fn on(lab: &Lab, port: u16) -> Self {
        let (acknowledged, last_ns) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (count, last) = (Arc::clone(&acknowledged), Arc::clone(&last_ns));
        let dsn = format!(
            "host={} port={port} user=postgres dbname=postgres connect_timeout=2",
            lab.config.listen_addresses
        );
        let task = tokio::spawn(async move {
            loop {
                if let Ok((client, connection)) = tokio_postgres::connect(&dsn, NoTls).await {
                    tokio::spawn(connection);
                    let insert = "insert into w default values";
                    while client.execute(insert, &[]).await.is_ok() {
                        count.fetch_add(1, Ordering::SeqCst);
                        last.store(boottime_ns(), Ordering::SeqCst);
                    }
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        Self {
            acknowledged,
            last_ns,
            task,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The proof that what somebody else started has been ended, and the moment of hearing it.
async fn ended(events: &mut Receiver<GuardEvent>) -> (FenceProof, u64) {
    loop {
        // The word of the fence before may come late.
        match events.recv().await.unwrap() {
            GuardEvent::Fenced(proof) if proof.cause == FOREIGN => return (proof, boottime_ns()),
            GuardEvent::Fenced(_)
            | GuardEvent::Exited(_)
            | GuardEvent::Unproven { .. }
            | GuardEvent::Lost {} => {}
        }
    }
}

/// A primary with a table to write into, fenced.
async fn fenced(lab: &Lab) -> GuardLink {
    let link = lab.primary(LONG).await;
    let client = lab.connect().await.unwrap();
    let table = "create table w (n bigserial)";
    client.batch_execute(table).await.unwrap();
    link.fence("told", Epoch(1)).await.unwrap();
    link
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_primary_that_somebody_starts_is_ended_from_whichever_program_and_port() {
    let lab = Lab::new();
    let link = fenced(&lab).await;
    let mut events = link.events();
    let program = lab.config.bin_dir.join("postgres");
    let copy = lab.folder.path().join("database-server");
    fs::copy(&program, &copy).unwrap();
    let (host, port) = (lab.config.listen_addresses.as_str(), lab.config.port);
    let elsewhere = TcpListener::bind((host, 0)).unwrap().local_addr().unwrap();
    for (what, program, port) in [
        ("as it was", &program, port),
        ("on another port", &program, elsewhere.port()),
        ("from a copy with another name", &copy, port),
    ] {
        let clients: Vec<Waiting> = (0..4).map(|_| Waiting::on(&lab, port)).collect();
        let began = boottime_ns();
        // A start may fail by itself; one in a folder that is claimed already does nothing.
        let mut found = None;
        for _ in 0..4 {
            start_by_hand(&lab, program, port);
            let within = tokio::time::timeout(PATIENCE / 4, ended(&mut events));
            found = within.await.ok();
            if found.is_some() {
                break;
            }
        }
        let (proof, heard) = found.unwrap_or_else(|| panic!("{what}: {}", said_by_hand(&lab)));
        let took = Duration::from_nanos(heard - began);
        assert_eq!(
            (proof.method, proof.epoch),
            (FenceMethod::Kill, Epoch(1)),
            "{what}"
        );
        assert_eq!(lab.processes(), Vec::<i32>::new(), "{what}");
        let writes: u64 = clients
            .iter()
            .map(|client| client.acknowledged.load(Ordering::SeqCst))
            .sum();
        for client in &clients {
            assert!(client.last_ns.load(Ordering::SeqCst) <= heard, "{what}");
        }
        eprint_to_test(&format!(
            "{what}: ended after {took:?}, {writes} writes taken"
        ));
        assert!(took < Duration::from_secs(10), "{what}: {took:?}");
        // It names a process that nobody has waited for yet, if that came so far as to write it.
        fs::remove_file(lab.config.data_dir.join("postmaster.pid")).ok();
    }
    until("nothing foreign is left", async || {
        link.status().await.unwrap().foreign.is_none()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_somebody_starts_is_ended_too() {
    let lab = Lab::new();
    let link = fenced(&lab).await;
    let mut events = link.events();
    fs::write(lab.standby_signal(), "").unwrap();
    start_by_hand(&lab, &lab.config.bin_dir.join("postgres"), lab.config.port);
    ended(&mut events).await;
    assert_eq!(lab.processes(), Vec::<i32>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guard_that_starts_ends_what_somebody_started_while_none_was_there() {
    let lab = Lab::new();
    let link = fenced(&lab).await;
    link.quit().await.unwrap();
    until("the guard is gone", async || lab.guard_pid().is_none()).await;
    start_by_hand(&lab, &lab.config.bin_dir.join("postgres"), lab.config.port);
    lab.ready().await;
    let link = lab.link().await;
    until("it is ended", async || {
        let status = link.status().await.unwrap();
        status
            .last_proof
            .is_some_and(|proof| proof.cause == FOREIGN)
    })
    .await;
    assert!(lab.refuses());
    assert_eq!(lab.processes(), Vec::<i32>::new());
}

/// A session of a single user, ended with the test.
struct Single(Child);

impl Drop for Single {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_a_single_user_serves_nobody_and_is_left_alone() {
    let lab = Lab::new();
    let link = fenced(&lab).await;
    let mut single = as_postgres(&lab, &lab.config.bin_dir.join("postgres"));
    single.arg("--single").arg("-D").arg(&lab.config.data_dir);
    single
        .arg("postgres")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut single = Single(single.stderr(Stdio::null()).spawn().unwrap());
    let mut stdin = single.0.stdin.take().unwrap();
    // Longer than the guard takes to look at everything.
    stdin
        .write_all(b"select pg_sleep(2.5)\nselect 'still here' as word\n")
        .unwrap();
    stdin.flush().unwrap();
    let lines = BufReader::new(single.0.stdout.take().unwrap());
    let found = tokio::task::spawn_blocking(move || {
        let mut lines = lines.lines();
        lines.any(|line| line.unwrap().contains("\"still here\""))
    });
    assert!(found.await.unwrap(), "it was ended");
    let status = link.status().await.unwrap();
    assert_eq!((status.fencing, status.foreign), (false, None));
    // It is in the way of a start all the same.
    link.unfence(Epoch(2)).await.unwrap();
    let refused = link.start(primary(2, LONG)).await.unwrap_err();
    assert!(refused.to_string().contains("still there"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_at_the_port_is_named_and_not_touched() {
    let lab = Lab::new();
    let link = fenced(&lab).await;
    let place = (lab.config.listen_addresses.as_str(), lab.config.port);
    let listener = TcpListener::bind(place).unwrap();
    until("it is named", async || {
        let foreign = link.status().await.unwrap().foreign.unwrap_or_default();
        foreign.contains(&format!("{}:{}", place.0, place.1)) && foreign.contains("cannot end")
    })
    .await;
    drop(listener);
    until("it is forgotten", async || {
        link.status().await.unwrap().foreign.is_none()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guard_writes_neither_into_a_folder_that_others_write_to_nor_through_a_planted_link() {
    let lab = Lab::new();
    let victim = lab.folder.path().join("victim");
    fs::write(&victim, "mine").unwrap();
    std::os::unix::fs::symlink(&victim, &lab.config.log_file).unwrap();
    let refused = GuardLink::connect_or_spawn(lab.config.clone(), exe()).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("is a link"), "{refused}");
    assert_eq!(fs::read_to_string(&victim).unwrap(), "mine");
    fs::remove_file(&lab.config.log_file).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(&lab.config.state_dir, open).unwrap();
    let refused = GuardLink::connect_or_spawn(lab.config.clone(), exe()).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("others may write into"), "{refused}");
    let closed = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs::set_permissions(&lab.config.state_dir, closed).unwrap();
    // A link that appears while the guard runs is not followed by the next start either.
    let link = lab.link().await;
    fs::rename(&lab.config.log_file, lab.folder.path().join("moved")).unwrap();
    std::os::unix::fs::symlink(&victim, &lab.config.log_file).unwrap();
    let refused = link.start(primary(1, LONG)).await.unwrap_err().to_string();
    assert!(refused.contains("is a link"), "{refused}");
    assert_eq!(fs::read_to_string(&victim).unwrap(), "mine");
    fs::remove_file(&lab.config.log_file).unwrap();
}
