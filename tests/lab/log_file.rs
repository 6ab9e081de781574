//! The decision log's file while a controller runs: nobody opens it a second time, by whatever name,
//! and what somebody else does to it is noticed before anything more is written.

use std::os::unix::fs::MetadataExt;
use std::process::{Command, Output};

use failover::adapters::files;

use crate::bad_input::{House, socket};
use crate::stage::until;

/// A configuration of another controller of the same house, with the log at another path.
fn second(house: &House, log: &str) -> &'static str {
    let text = std::fs::read_to_string(house.file("failover.toml")).unwrap();
    let text = text
        .replace("\"decision.log\"", &format!("\"{log}\""))
        .replace(&house.listen.to_string(), &socket().to_string());
    std::fs::write(house.file("second.toml"), text).unwrap();
    "second.toml"
}

#[tokio::test]
async fn a_log_that_is_held_is_held_by_each_of_its_names() {
    let house = House::new();
    let first = house.start().await;
    let pid = format!("held by another controller: pid {}", first.0.id());
    let log = house.file("decision.log");
    let inside = std::fs::read(&log).unwrap();

    std::fs::create_dir(house.file("elsewhere")).unwrap();
    std::fs::hard_link(&log, house.file("elsewhere/linked.log")).unwrap();
    std::os::unix::fs::symlink(&log, house.file("soft.log")).unwrap();
    for name in ["elsewhere/linked.log", "soft.log"] {
        let said = house.refused(second(&house, name), 4);
        assert!(said.contains(&pid), "{name}: {said}");
    }

    std::fs::write(house.file("elsewhere/mounted.log"), "").unwrap();
    let config = second(&house, "elsewhere/mounted.log");
    let Output { status, stderr, .. } = Command::new("unshare")
        .args([
            "--mount",
            "sh",
            "-c",
            "mount --bind \"$1\" \"$2\" && exec \"$3\" run --config \"$4\"",
            "sh",
        ])
        .args([&log, &house.file("elsewhere/mounted.log")])
        .arg(env!("CARGO_BIN_EXE_failover"))
        .arg(house.file(config))
        .output()
        .unwrap();
    let said = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(4), "{said}");
    assert!(said.contains(&pid), "mounted: {said}");

    // What says who holds it is not what holds it.
    std::fs::remove_file(house.file("decision.log.lock")).unwrap();
    let said = house.refused(second(&house, "decision.log"), 4);
    assert!(said.contains(&pid), "without its lock file: {said}");

    assert!(std::fs::read(&log).unwrap().starts_with(&inside));
    drop(first);
    files::verify(&log).unwrap();
    house.start().await;
}

#[tokio::test]
async fn a_log_that_was_moved_cut_replaced_or_written_by_others_is_not_written_any_more() {
    for (done, said) in [
        (
            "moved",
            "it was moved or deleted while the controller was running",
        ),
        (
            "deleted",
            "it was moved or deleted while the controller was running",
        ),
        ("replaced", "another file is in its place"),
        ("cut", "somebody cut it"),
        ("emptied", "somebody cut it"),
        ("continued", "somebody else wrote into it"),
    ] {
        let house = House::new();
        house.expects_error("is not this controller's any more");
        let mut running = house.start().await;
        let log = house.file("decision.log");
        let before = std::fs::read(&log).unwrap();
        let inode = std::fs::metadata(&log).unwrap().ino();
        let open = || std::fs::OpenOptions::new().append(true).open(&log).unwrap();
        match done {
            "moved" => std::fs::rename(&log, house.file("moved.log")).unwrap(),
            "deleted" => std::fs::remove_file(&log).unwrap(),
            "replaced" => {
                std::fs::write(house.file("copy.log"), &before).unwrap();
                std::fs::rename(house.file("copy.log"), &log).unwrap();
            }
            "cut" => {
                // As much as a careless hand takes: the last line.
                let all = std::fs::read(&log).unwrap();
                let end = all[..all.len() - 1].iter().rposition(|byte| *byte == b'\n');
                open()
                    .set_len(u64::try_from(end.unwrap() + 1).unwrap())
                    .unwrap();
            }
            "emptied" => open().set_len(0).unwrap(),
            "continued" => std::io::Write::write_all(&mut open(), b"noted by hand\n").unwrap(),
            other => panic!("{other}"),
        }
        let mut ended = None;
        until("the controller ends", async || {
            ended = running.0.try_wait().unwrap();
            ended.is_some()
        })
        .await;
        let told = std::fs::read_to_string(house.file("controller.log")).unwrap();
        assert!(!ended.unwrap().success(), "{done}: {told}");
        assert!(told.contains(said), "{done}: {told}");
        assert!(told.contains("runbooks/log-changed.md"), "{done}: {told}");

        let left = std::fs::read(&log).unwrap_or_default();
        match done {
            "moved" => {
                let moved = house.file("moved.log");
                assert_eq!(std::fs::metadata(&moved).unwrap().ino(), inode);
                assert!(std::fs::read(&moved).unwrap().starts_with(&before));
                files::verify(&moved).unwrap();
                assert!(!log.exists(), "no new log is begun");
            }
            "deleted" => assert!(!log.exists(), "no new log is begun"),
            "replaced" => assert_eq!(left, before),
            "emptied" => assert_eq!(left, b""),
            "cut" => drop(files::verify(&log).unwrap()),
            "continued" => assert!(left.ends_with(b"noted by hand\n"), "{done}"),
            other => panic!("{other}"),
        }
    }
}
