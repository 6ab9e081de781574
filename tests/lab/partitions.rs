//! What the engine says in each partition, on real networks: a namespace for each place, each
//! direction of each link cut for itself, real PostgreSQL, agents, controller and name server.
//!
//! `PARTITION_REPEAT` is how often the whole table is walked (default: once), `PARTITION_ROWS`
//! parts of the names of the rows to walk, with commas between them; `UPDATE_DOCS=1` writes what was measured to
//! `docs/partitions.md`.

#![allow(
    clippy::wildcard_enum_match_arm,
    clippy::print_stderr,
    reason = "few kinds of entries matter here; a walk of minutes shows how far it is"
)]

mod lab;
mod log;
mod table;

use std::process::{Command, Stdio};

use failover::engine::reason::Code;
use failover::lab::network::Place::{self, Aws, Client, Gcp, Neutral};
use failover::lab::network::{Namespaces, Network};
use failover::lab::standing::Fault;

use lab::Lab;
use table::Measured;

/// What is expected of the controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    /// No promotion, and this reason in the decision log.
    Hold(Code),
    /// The other site takes over.
    FailOver,
}

/// What happens later on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Nothing,
    /// The controller is killed while it waits for the fence, and started again.
    ControllerKilled,
    /// The controller is frozen while it waits for the fence, for longer than any lease, and
    /// thawed.
    ControllerFrozen,
    /// All is mended, and the service comes back by itself, at whichever site.
    Returns,
    /// What was frozen is thawed when the new site takes writes.
    Thawed,
}

/// One row of the table.
#[derive(Debug, Clone)]
struct Row {
    name: &'static str,
    cuts: Vec<(Place, Place)>,
    fault: Option<Fault>,
    then: Then,
    expect: Expect,
}

fn both(a: Place, b: Place) -> [(Place, Place); 2] {
    [(a, b), (b, a)]
}

fn row(name: &'static str, cuts: &[(Place, Place)], fault: Option<Fault>, expect: Expect) -> Row {
    Row {
        name,
        cuts: cuts.to_vec(),
        fault,
        then: Then::Nothing,
        expect,
    }
}

/// The rows after which the lab is as it was before, when all is mended.
fn held() -> Vec<Row> {
    let hold = |name, cuts: &[_], code| row(name, cuts, None, Expect::Hold(code));
    let fault = |name, fault, code| row(name, &[], Some(fault), Expect::Hold(code));
    let two = |links: [[(Place, Place); 2]; 2]| links.concat();
    let three = |links: [[(Place, Place); 2]; 3]| links.concat();
    vec![
        hold("N–A down", &both(Neutral, Aws), Code::ObserverSideFault),
        hold("N→A down", &[(Neutral, Aws)], Code::ObserverSideFault),
        hold("A→N down", &[(Aws, Neutral)], Code::ObserverSideFault),
        hold("A–P down", &both(Aws, Gcp), Code::ReplicationBroken),
        hold("A→P down", &[(Aws, Gcp)], Code::ReplicationBroken),
        hold("P→A down", &[(Gcp, Aws)], Code::ReplicationBroken),
        hold("N–P down", &both(Neutral, Gcp), Code::StandbyUnreachable),
        hold("N→P down", &[(Neutral, Gcp)], Code::StandbyUnreachable),
        hold("P→N down", &[(Gcp, Neutral)], Code::StandbyUnreachable),
        hold(
            "N–P and A–P down: the passive site is alone",
            &two([both(Neutral, Gcp), both(Aws, Gcp)]),
            Code::StandbyUnreachable,
        ),
        hold(
            "N–A and N–P down: the controller is alone",
            &two([both(Neutral, Aws), both(Neutral, Gcp)]),
            Code::OwnIsolation,
        ),
        hold(
            "N→A and N→P down",
            &[(Neutral, Aws), (Neutral, Gcp)],
            Code::OwnIsolation,
        ),
        hold(
            "users do not reach A, all else is up",
            &both(Client, Aws),
            Code::Healthy,
        ),
        fault(
            "the service of A is killed",
            Fault::KillApi,
            Code::ActiveApiFailed,
        ),
        fault(
            "the postmaster of A hangs, its sessions go on",
            Fault::HangDatabase,
            Code::ReplicationAdvancing,
        ),
        Row {
            then: Then::Returns,
            ..hold(
                "N–A, N–P and A–P down: everybody is alone, A fences itself",
                &three([both(Neutral, Aws), both(Neutral, Gcp), both(Aws, Gcp)]),
                Code::OwnIsolation,
            )
        },
    ]
}

/// The rows that end with the other site active.
fn failed_over() -> Vec<Row> {
    let cut = |name, cuts: &[_]| row(name, cuts, None, Expect::FailOver);
    let fault = |name, fault| row(name, &[], Some(fault), Expect::FailOver);
    let then = |row: Row, then| Row { then, ..row };
    let isolated = [both(Neutral, Aws), both(Gcp, Aws)].concat();
    vec![
        fault("the whole of A is killed", Fault::KillSite),
        cut("N–A and A–P down, users reach A", &isolated),
        cut(
            "A→N and A→P down, users reach A",
            &[(Aws, Neutral), (Aws, Gcp)],
        ),
        cut(
            "N→A and P→A down, users reach A",
            &[(Neutral, Aws), (Gcp, Aws)],
        ),
        cut(
            "N–A, A–P and users–A down",
            &[isolated.clone(), both(Client, Aws).to_vec()].concat(),
        ),
        fault("the database of A is killed", Fault::KillDatabase),
        row(
            "N–A down, and the database of A is killed",
            &both(Neutral, Aws),
            Some(Fault::KillDatabase),
            Expect::FailOver,
        ),
        fault("the agent of A is killed", Fault::KillAgent),
        fault("the agent of A is frozen", Fault::FreezeAgent),
        then(
            fault("the whole of A is frozen, and thaws", Fault::FreezeSite),
            Then::Thawed,
        ),
        then(
            cut(
                "N–A and A–P down, and the controller is killed in the plan",
                &isolated,
            ),
            Then::ControllerKilled,
        ),
        then(
            cut(
                "N–A and A–P down, and the controller is frozen in the plan",
                &isolated,
            ),
            Then::ControllerFrozen,
        ),
    ]
}

/// Which process owns the network that this one runs in.
const OWNER: &str = "PARTITION_NETWORK";

/// The network belongs to this process, and all else runs in another one inside of it: a process
/// reaps its descendants, and is in one namespace.
#[test]
fn no_partition_breaks_a_promise() {
    if let Ok(owner) = std::env::var(OWNER) {
        return walk(Namespaces::of(owner.parse().unwrap()));
    }
    let network = Network::create().unwrap();
    let program = std::env::current_exe().unwrap();
    let mut inside: Command = network.namespaces.command(Client, program);
    let done = inside
        .args(["--exact", "partitions::no_partition_breaks_a_promise"])
        .args(["--nocapture"])
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

fn walk(network: Namespaces) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let repeat: usize = number("PARTITION_REPEAT").unwrap_or(1);
    let part = std::env::var("PARTITION_ROWS").unwrap_or_default();
    let rows: Vec<Row> = [held(), failed_over()].concat();
    let rows: Vec<Row> = rows
        .into_iter()
        .filter(|row| part.split(',').any(|part| row.name.contains(part)))
        .collect();
    assert!(!rows.is_empty(), "no row is called `{part}`");
    let mut all: Vec<Vec<Measured>> = vec![Vec::new(); rows.len()];
    for _round in 0..repeat {
        runtime.block_on(round(network, &rows, &mut all));
    }
    let problems: Vec<String> = rows
        .iter()
        .zip(&all)
        .flat_map(|(row, all)| {
            let problems = all.iter().flat_map(|measured| &measured.problems);
            problems.map(move |problem| format!("{}: {problem}", row.name))
        })
        .collect();
    if std::env::var("UPDATE_DOCS").is_ok() && part.is_empty() {
        std::fs::write(table::PATH, table::text(&rows, &all)).unwrap();
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Every row once, one after the other, on one lab as long as it is whole.
async fn round(network: Namespaces, rows: &[Row], all: &mut [Vec<Measured>]) {
    let mut standing: Option<Lab> = None;
    for (row, all) in rows.iter().zip(all) {
        let mut lab = match standing.take() {
            Some(lab) => lab,
            None => Lab::start(network).await,
        };
        let mut measured = match row.expect {
            Expect::Hold(code) => lab.hold(row, code).await,
            Expect::FailOver => lab.fail_over(row).await,
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
        eprintln!("{}: {measured}", row.name);
        all.push(measured);
    }
    if let Some(lab) = standing {
        lab.end(false).await;
    }
}
