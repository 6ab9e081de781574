//! A primary that was frozen with its guard, and thaws after its right is over.

use std::fs;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use failover::agent::guard::LEASE_EXPIRED;
use failover::agent::guard_protocol::{FenceMethod, boottime_ns};
use failover::engine::units::Epoch;
use rustix::process::Signal;
use tokio::task::JoinHandle;
use tokio_postgres::NoTls;

use crate::guard::{LONG, Lab, eprint_to_test, from_now, primary, proof, right, send, until};

/// How often it is frozen.
const ROUNDS: u64 = 5;
/// Clients that write as fast as they can.
const CLIENTS: usize = 8;

/// A client that notes when each of its writes was acknowledged.
fn hammer(lab: &Lab, acknowledged: Arc<Mutex<Vec<u64>>>) -> JoinHandle<()> {
    let dsn = lab.dsn();
    tokio::spawn(async move {
        let Ok((client, connection)) = tokio_postgres::connect(&dsn, NoTls).await else {
            return;
        };
        tokio::spawn(connection);
        let insert = "insert into w default values";
        while client.execute(insert, &[]).await.is_ok() {
            acknowledged.lock().unwrap().push(boottime_ns());
        }
    })
}

/// Whether a process is stopped.
fn is_stopped(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ")
        .next()
        .is_some_and(|rest| rest.starts_with('T'))
}

/// By which policy the system lets a process run.
fn scheduling(pid: i32) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit(") ").next().unwrap_or_default();
    fields.split(' ').nth(38).unwrap_or("0").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guard_that_thaws_late_kills_at_once_and_acknowledges_next_to_nothing() {
    let lab = Lab::new();
    let link = lab.primary(LONG).await;
    let client = lab.connect().await.unwrap();
    let table = "create table w (n bigserial)";
    client.batch_execute(table).await.unwrap();
    for pid in lab.processes() {
        // The guard's priority is its own: 0 is the policy of everybody.
        assert_eq!(scheduling(pid), "0", "process {pid}");
    }
    let mut counted = Vec::new();
    for round in 0..ROUNDS {
        let mut events = link.events();
        let acknowledged = Arc::new(Mutex::new(Vec::new()));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| hammer(&lab, Arc::clone(&acknowledged)))
            .collect();
        let deadline = from_now(Duration::from_millis(1500));
        let epoch = Epoch(round * 2 + 2);
        right(&link, epoch, deadline).await.unwrap();
        until("writes", async || {
            acknowledged.lock().unwrap().len() > CLIENTS * 3
        })
        .await;

        // All of the host, the guard first; and children first on the way back, the worst order.
        let guard = lab.guard_pid().unwrap();
        let mut all = lab.processes();
        all.insert(0, guard);
        for pid in &all {
            send(*pid, Signal::STOP);
        }
        until("all stand still", async || {
            all.iter().all(|pid| is_stopped(*pid))
        })
        .await;
        let late = deadline + 1_000_000_000;
        until("the right is over", async || boottime_ns() > late).await;
        let thawed = boottime_ns();
        for pid in all.iter().rev() {
            send(*pid, Signal::CONT);
        }
        // What sessions did before the guard was let go on is the order's, not the guard's.
        let guard_goes_on = boottime_ns();
        let (proof, heard) = proof(&mut events).await;
        for client in clients {
            client.await.unwrap();
        }
        assert_eq!(
            (proof.cause.as_str(), proof.method, proof.epoch),
            (LEASE_EXPIRED, FenceMethod::Kill, epoch)
        );
        let since = |moment| {
            let all = acknowledged.lock().unwrap();
            all.iter().filter(|at| **at > moment).count()
        };
        let (after, before) = (since(guard_goes_on), since(thawed) - since(guard_goes_on));
        counted.push(after);
        let took = Duration::from_nanos(heard - thawed);
        eprint_to_test(&format!(
            "frozen {round}: {after} writes after the guard went on, {before} before it did; proof after {took:?}"
        ));
        let exit = link.status().await.unwrap().last_exit.unwrap();
        assert!(exit.expected, "the fence ended it: {exit:?}");
        let next = round * 2 + 3;
        link.unfence(Epoch(next)).await.unwrap();
        until("it starts again", async || {
            link.start(primary(next, LONG)).await.is_ok()
        })
        .await;
        lab.ready().await;
    }
    // What was on its way when it froze is acknowledged, too: a client that waits for nothing but
    // its answer has it.
    counted.sort_unstable();
    assert!(counted[counted.len() / 2] <= 2, "{counted:?}");
}
