//! What the engine says in each partition, on real networks: a namespace for each place, each
//! direction of each link cut for itself, real PostgreSQL, agents, controller and name server.
//!
//! `PARTITION_REPEAT` is how often they are walked (default: once), `PARTITION_ROWS` parts of the names of
//! the rows to walk, with commas between them (default: three that differ; `all`: the whole table;
//! `goals`: those whose speed is watched, for `make bench`); `UPDATE_DOCS=1` writes what was measured
//! of a whole table to `docs/partitions.md`. `PARTITION_RESULTS` is a file that keeps what was
//! measured: several walks at once then make one page.

#![allow(
    clippy::wildcard_enum_match_arm,
    clippy::print_stderr,
    reason = "few kinds of entries matter here; a walk of minutes shows how far it is"
)]

mod disk;
mod lab;
mod log;
mod over;
mod rows;
mod table;
mod told;

use std::path::PathBuf;
use std::process::{Command, Stdio};

use failover::lab::network::Place::Client;
use failover::lab::network::{Namespaces, Network};

use crate::stage::one_lab;
use lab::Lab;
use rows::{Expect, Row, Section, Then};
use table::Measured;

/// Which process owns the network that this one runs in.
const OWNER: &str = "PARTITION_NETWORK";

/// The network belongs to this process, and all else runs in another one inside of it: a process
/// reaps its descendants, and is in one namespace.
#[test]
fn no_partition_breaks_a_promise() {
    in_a_network("partitions::no_partition_breaks_a_promise", walk);
}

/// Runs a test in a network of its own.
fn in_a_network(test: &str, run: impl FnOnce(Namespaces)) {
    if let Ok(owner) = std::env::var(OWNER) {
        return run(Namespaces::of(owner.parse().unwrap()));
    }
    let _one = one_lab();
    let network = Network::create().unwrap();
    let program = std::env::current_exe().unwrap();
    let mut inside: Command = network.namespaces.command(Client, "unshare");
    // What is mounted in there goes with the last process in there.
    let done = inside
        .args(["--mount", "--propagation=private"])
        .arg(program)
        .args(["--exact", test, "--nocapture"])
        .env(OWNER, std::process::id().to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap();
    let text = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{text}{}", done.status);
    assert!(text.contains("1 passed"), "the test has another name now");
}

/// Of the rows these, where nothing else is asked for: the whole table takes an hour.
const ROWS: &str = "N–A and N–P down: the controller is alone,\
    Asynchronous: the whole of A is killed,\
    Zero-loss: the whole of A is frozen";

/// The rows whose speed is watched.
const GOALS: [&str; 9] = [
    "Asynchronous: the whole of A is killed",
    "Asynchronous: N–A and A–P down, users reach A",
    "Asynchronous: the database of A is killed",
    "Asynchronous: agent, guard and database of A are killed, and the agent is started again",
    "Asynchronous: the agent of A is killed, and started again",
    "Asynchronous: the whole of A is frozen, and thaws",
    "Zero-loss: the whole of A is frozen, and thaws",
    "Zero-loss that blocks: A–P down, and mended",
    "As it ships: the whole of A is killed",
];

/// Where results are kept, so that several walks at once make one page.
fn results() -> Option<PathBuf> {
    std::env::var_os("PARTITION_RESULTS").map(PathBuf::from)
}

fn walk(network: Namespaces) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let repeat: usize = number("PARTITION_REPEAT").unwrap_or(1);
    let part = std::env::var("PARTITION_ROWS").unwrap_or_else(|_unset| ROWS.to_owned());
    let all_rows = part == "all";
    let mut sections = rows::sections();
    for section in &mut sections {
        let wanted = |row: &Row| match part.as_str() {
            "all" => true,
            "goals" => GOALS.contains(&section.called(row).as_str()),
            parts => {
                let called = section.called(row);
                parts.split(',').any(|part| called.contains(part))
            }
        };
        section.rows = section
            .rows
            .iter()
            .filter(|row| wanted(row))
            .cloned()
            .collect();
    }
    sections.retain(|section| !section.rows.is_empty());
    assert!(!sections.is_empty(), "no row is called `{part}`");
    let mut all: Vec<Vec<Vec<Measured>>> = sections
        .iter()
        .map(|section| vec![Vec::new(); section.rows.len()])
        .collect();
    for _round in 0..repeat {
        for (section, all) in sections.iter().zip(&mut all) {
            runtime.block_on(round(network, section, all));
        }
    }
    let mut problems = Vec::new();
    for (section, all) in sections.iter().zip(&all) {
        for (row, all) in section.rows.iter().zip(all) {
            eprintln!("{}: {}", section.called(row), table::summary(all));
            let found = all.iter().flat_map(|measured| &measured.problems);
            problems.extend(found.map(|problem| format!("{}: {problem}", section.called(row))));
        }
    }
    if let Some(file) = results() {
        for (section, all) in sections.iter().zip(&mut all) {
            for (row, all) in section.rows.iter().zip(all) {
                *all = table::kept(&file, &section.called(row));
            }
        }
    }
    if std::env::var("UPDATE_DOCS").is_ok() && all_rows {
        std::fs::write(table::PATH, table::text(&sections, &all)).unwrap();
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Every row once, one after the other, on one lab as long as it is whole.
async fn round(network: Namespaces, section: &Section, all: &mut [Vec<Measured>]) {
    let policy = section.policy();
    let mut standing: Option<Lab> = None;
    for (row, all) in section.rows.iter().zip(all) {
        let mut lab = match (standing.take(), row.full) {
            (Some(lab), None) => lab,
            (other, full) => {
                if let Some(other) = other {
                    other.end(false).await;
                }
                Box::pin(Lab::start(network, &policy, full)).await
            }
        };
        let mut measured = match row.expect {
            Expect::Hold(code) => lab.hold(row, code).await,
            Expect::FailOver => lab.fail_over(row).await,
            Expect::GoOn => lab.go_on(row).await,
            Expect::Serve => lab.serve_again(row).await,
        };
        if row.then == Then::Returns {
            lab.returns(&mut measured).await;
            lab.end(!measured.problems.is_empty()).await;
        } else if matches!(row.expect, Expect::Hold(_)) && measured.problems.is_empty() {
            match lab.mend(&mut measured).await {
                Ok(()) if measured.problems.is_empty() => standing = Some(lab),
                Ok(()) => lab.end(true).await,
                Err(error) => {
                    measured.problems.push(format!("after mending: {error:#}"));
                    lab.end(true).await;
                }
            }
        } else {
            lab.end(!measured.problems.is_empty()).await;
        }
        let called = section.called(row);
        eprintln!("{called}: {measured}");
        if let Some(file) = results() {
            table::keep(&file, &called, &measured);
        }
        all.push(measured);
    }
    if let Some(lab) = standing {
        lab.end(false).await;
    }
}
