//! Processes of a place, frozen and ended together.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use failover::adapters::clock::SystemClock;
use failover::adapters::postgres::Database;
use failover::lab::processes::{Processes, Seen, Who};

use crate::pair::{LIMIT, Pair, until};

/// Being the reaper of descendants is a property of a whole process, so each of these tests has
/// one of its own: this program again, with the one test.
fn in_a_process_of_its_own(test: &str, body: impl AsyncFnOnce(Processes)) {
    const ALONE: &str = "FAILOVER_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let done = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(ALONE, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success(), "{text}{done:?}");
        assert!(text.contains("1 passed"), "no test is called `{test}`");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let processes = Processes::new("lab-7", Arc::new(SystemClock)).unwrap();
    runtime.block_on(body(processes));
}

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

/// A tree: a shell, its child, a daemon in a session of its own that has left its parent, and
/// another that has cleared its environment first.
const TREE: &str = "
    sleep 1001 &
    setsid sh -c 'sleep 1002 & exec sleep 1003' &
    sh -c 'setsid sleep 1004 & :'
    env -i PATH=\"$PATH\" sh -c 'sleep 1005; :' &
    wait";

fn programs(seen: &[Seen]) -> usize {
    let sleeps = seen.iter().filter(|seen| seen.program == "sleep");
    sleeps.count()
}

async fn whole(processes: &mut Processes, place: &str) {
    for _look in 0..3000 {
        let seen = processes.look().unwrap();
        let here = seen
            .iter()
            .filter(|seen| seen.place.as_deref() == Some(place));
        if here.filter(|seen| seen.program == "sleep").count() == 5 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the tree is not whole: {:?}", processes.look());
}

#[test]
fn a_place_freezes_and_dies_as_a_whole_and_no_other_with_it() {
    let test = "parts::processes::a_place_freezes_and_dies_as_a_whole_and_no_other_with_it";
    in_a_process_of_its_own(test, async |mut processes| {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        for (name, place) in [("api-aws", "aws"), ("api-gcp", "gcp")] {
            let pid = processes.spawn(name, place, shell(TREE), &log).unwrap();
            assert_eq!(processes.pid(name), Some(pid));
            whole(&mut processes, place).await;
        }
        processes
            .spawn("api-aws", "aws", shell(""), &log)
            .unwrap_err();
        let aws = Who::Place("aws".into());

        let frozen = processes.freeze(&aws).await.unwrap();
        assert_eq!(programs(&frozen), 5);
        for seen in processes.look().unwrap() {
            let at_aws = seen.place.as_deref() == Some("aws");
            assert_eq!(seen.stopped, at_aws, "{seen:?}");
        }
        assert_eq!(processes.thaw(&aws).await.unwrap().len(), frozen.len());
        assert!(processes.look().unwrap().iter().all(|seen| !seen.stopped));

        // The head alone: its children live on, are ours now, and still belong to the place.
        let head = processes.kill9(&Who::Name("api-aws".into())).await.unwrap();
        assert_eq!((head.len(), processes.pid("api-aws")), (1, None));
        whole(&mut processes, "aws").await;

        let killed = processes.kill9(&aws).await.unwrap();
        assert_eq!(programs(&killed), 5);
        let left = processes.look().unwrap();
        assert!(left.iter().all(|seen| seen.place.as_deref() == Some("gcp")));
        assert_eq!(programs(&left), 5);
        for dead in head.iter().chain(&killed) {
            let stat = Path::new("/proc").join(dead.id.pid.to_string());
            assert!(!stat.exists(), "{dead:?} is not reaped");
        }
        processes.end_all(&[], LIMIT).await.unwrap();
    });
}

#[test]
fn the_end_is_in_order_and_leaves_nobody() {
    let test = "parts::processes::the_end_is_in_order_and_leaves_nobody";
    in_a_process_of_its_own(test, async |mut processes| {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let polite = "trap 'echo first; exit' TERM; echo up; while :; do sleep 0.01; done";
        let second = polite.replace("first", "second");
        let deaf = "trap '' TERM; echo up; while :; do sleep 0.01; done";
        for (name, script) in [("b", second.as_str()), ("a", polite), ("deaf", deaf)] {
            processes.spawn(name, "aws", shell(script), &log).unwrap();
        }
        // Nobody's: neither a name nor a place.
        let mut stranger = Command::new("sleep").arg("1006").spawn().unwrap();
        let text = || std::fs::read_to_string(&log).unwrap();
        until("all are up", async || text().matches("up").count() == 3).await;
        processes.freeze(&Who::Place("aws".into())).await.unwrap();

        let order = ["a", "b", "gone", "deaf"];
        processes
            .end_all(&order, Duration::from_millis(1500))
            .await
            .unwrap();
        assert!(processes.look().unwrap().is_empty());
        let text = text();
        let said: Vec<_> = text.lines().filter(|line| *line != "up").collect();
        assert_eq!(said, ["first", "second"]);
        // Whoever started the stranger still gets to know its end.
        assert!(!stranger.wait().unwrap().success());
    });
}

#[test]
fn a_real_server_belongs_to_its_place_with_all_its_sessions() {
    let test = "parts::processes::a_real_server_belongs_to_its_place_with_all_its_sessions";
    in_a_process_of_its_own(test, async |mut processes| {
        let pair = Pair::primary_only().await;
        let primary = &pair.primary;
        primary.stop().await;
        let server = || {
            let mut command = Command::new(primary.tools.program("postgres"));
            command.args(primary.instance.server_arguments());
            if let Some(user) = primary.tools.user() {
                command.uid(user.uid).gid(user.gid);
            }
            command.current_dir("/").env_clear();
            command
        };
        let log = pair.primary.instance.dir.join("log");
        let aws = Who::Place("aws".into());
        // Twice: a server that was killed at one moment leaves nothing that hinders the next.
        for _round in 0..2 {
            let pid = processes.spawn("db-aws", "aws", server(), &log).unwrap();
            let local = primary.local();
            until("it takes connections", async || {
                Database::open(&local, LIMIT).await.is_ok()
            })
            .await;
            let _session = Database::open(&local, LIMIT).await.unwrap();
            let tree = processes.freeze(&Who::Tree(pid)).await.unwrap();
            let place = processes.freeze(&aws).await.unwrap();
            assert_eq!(tree, place);
            // The postmaster, its five helpers at least, and the session.
            assert!(place.len() >= 7, "{place:?}");
            let short = Duration::from_millis(100);
            assert!(Database::open(&local, short).await.is_err());
            processes.thaw(&aws).await.unwrap();
            drop(Database::open(&local, LIMIT).await.unwrap());
            assert!(processes.kill9(&aws).await.unwrap().len() >= 7);
            assert!(processes.freeze(&aws).await.unwrap().is_empty());
        }
        processes.end_all(&[], LIMIT).await.unwrap();
    });
}
