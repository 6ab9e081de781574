//! The partition table: each row, and each of its links in one direction alone, leads to the
//! verdict that the design asks for; and the page that shows what the shipped policies do.

use std::fmt::Write;
use std::ops::Range;
use std::path::Path;

use failover::cli::table::{declared, fence, seconds, verdict};
use failover::engine::policy::{Mode, Policy};
use failover::engine::reason::Code;
use failover::sim::measured::{Measured, Walk};
use failover::sim::partitions::{ROWS, Row, Span};
use failover::sim::seeds::cores;
use failover::sim::world::Node;

/// Measures rows under a shipped policy; no invariant is broken.
fn measured(name: &str, seeds: Range<u64>, rows: &[Row]) -> (Policy, Vec<Measured>) {
    let file = format!("policies/{name}.toml");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(&file);
    let policy = Policy::read(&file, &std::fs::read_to_string(path).unwrap()).unwrap();
    measured_under(policy, &file, seeds, rows)
}

fn measured_under(
    policy: Policy,
    file: &str,
    seeds: Range<u64>,
    rows: &[Row],
) -> (Policy, Vec<Measured>) {
    let walk = Walk {
        policy: &policy,
        file: Path::new(file),
        seeds,
        jobs: cores(),
    };
    let all: Vec<Measured> = rows.iter().map(|row| walk.over(*row).unwrap()).collect();
    for measured in &all {
        assert!(measured.broken.is_empty(), "{}", measured.broken.join("\n"));
    }
    (policy, all)
}

const N: Node = Node::Neutral;
const A: Node = Node::First;
const P: Node = Node::Second;

/// Verdict and leading reason, and the directions in which all passes again that change them.
type Wanted<'w> = (&'static str, Code, &'w [((Node, Node), &'static str, Code)]);

/// What the design asks of each row. A message that arrives in one direction alone is told, and has
/// no answer: over TCP none arrives at all.
fn wanted(row: &Row) -> Wanted<'static> {
    const HOLD: &str = "hold";
    const MOVE: &str = "fail over";
    match row.name {
        "all is well" | "users do not reach A" => (HOLD, Code::Healthy, &[]),
        "the controller lost A" => (HOLD, Code::ObserverSideFault, &[]),
        "the controller lost A, whose database is down"
        | "A is cut off, and users reach it"
        | "A is cut off from everybody"
        | "the whole of A is lost" => (MOVE, Code::ActiveSiteFailed, &[]),
        "the sites lost each other" => (HOLD, Code::ReplicationBroken, &[]),
        // Also where P's agent still reports: no order would get there.
        "the controller lost P" | "P is cut off" => (HOLD, Code::StandbyUnreachable, &[]),
        "the controller is cut off" => (
            HOLD,
            Code::OwnIsolation,
            &[
                ((A, N), HOLD, Code::ObserverSideFault),
                ((P, N), HOLD, Code::ObserverSideFault),
            ],
        ),
        // With P's word A counts as failed; but no order would get to P.
        "everybody is cut off" => (
            HOLD,
            Code::OwnIsolation,
            &[
                ((A, N), HOLD, Code::StandbyAgentSilent),
                ((P, N), HOLD, Code::StandbyUnreachable),
            ],
        ),
        "the service of A is down" => (HOLD, Code::ActiveApiFailed, &[]),
        "the database of A is down" => (MOVE, Code::ActiveDatabaseDown, &[]),
        other => panic!("what is wanted of `{other}`?"),
    }
}

/// The verdicts that a row may have. The word of A's agent that its database is down comes before
/// the window is full where it gets through in time.
fn allowed(row: &Row, verdict: &'static str, code: Code) -> Vec<(&'static str, Option<Code>)> {
    let told = row.name == "the controller lost A, whose database is down"
        && row.cut.mended == Some((A, N));
    let word = told.then_some((verdict, Some(Code::ActiveDatabaseDown)));
    [(verdict, Some(code))].into_iter().chain(word).collect()
}

#[test]
fn each_row_and_each_of_its_links_in_one_direction_leads_to_its_verdict() {
    for row in ROWS {
        let (verdict, code, changed) = wanted(&row);
        let rows = [vec![row], row.one_way()].concat();
        let (_, all) = measured("fast", 1..3, &rows);
        for (row, measured) in rows.iter().zip(&all) {
            let mended = changed
                .iter()
                .find(|(way, ..)| Some(*way) == row.cut.mended);
            let (verdict, code) =
                mended.map_or((verdict, code), |(_, verdict, code)| (*verdict, *code));
            let what = format!("{} {:?}: {measured:#?}", row.name, row.cut);
            let allowed = allowed(row, verdict, code);
            let as_wanted = measured.verdicts.iter().all(|it| allowed.contains(it));
            assert!(as_wanted, "wanted {allowed:?}, {what}");
            let moves = verdict == "fail over";
            assert_eq!(measured.writable.len(), if moves { 2 } else { 0 }, "{what}");
        }
    }
}

#[test]
fn a_row_that_holds_loses_nothing_and_only_a_site_that_sees_nobody_fences_itself() {
    let held = ROWS.into_iter().filter(|row| wanted(row).0 == "hold");
    let held: Vec<Row> = held.collect();
    let (policy, all) = measured("fast", 3..5, &held);
    for (row, measured) in held.iter().zip(&all) {
        assert_eq!(measured.lost, 0, "{}", row.name);
        let alone = row.name == "everybody is cut off";
        assert_eq!(measured.fenced_itself.is_some(), alone, "{}", row.name);
        let bound = policy.lease.lease_ttl + policy.lease.fence_within;
        assert!(measured.fenced_itself <= Some(bound), "{}", row.name);
    }
}

#[test]
fn where_commits_wait_nothing_is_declared_and_nothing_lost() {
    let moved = ROWS.into_iter().filter(|row| wanted(row).0 == "fail over");
    let moved: Vec<Row> = moved.collect();
    let policy = super::zero_loss::policy("release-after 5s");
    let (_, all) = measured_under(policy, "sync.toml", 1..3, &moved);
    for (row, measured) in moved.iter().zip(&all) {
        assert_eq!(measured.writable.len(), 2, "{}", row.name);
        assert_eq!(declared(measured), "nothing", "{}", row.name);
        assert_eq!(measured.lost, 0, "{}", row.name);
    }
}

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/partition-table.md");

/// The shipped policies with how many seeds each, few enough for every run of the tests.
const SHOWN: [(&str, u64); 3] = [("fast", 3), ("standard", 2), ("observe", 1)];

fn page() -> String {
    let mut text = "# What each policy does in each partition\n\n\
        Measured in the simulator, which runs the shipped controller and agents on a virtual clock, \
        by the test that compares this page with its results: \
        `UPDATE_DOCS=1 cargo test --test sim table` regenerates it. The same for a policy of your \
        own, with more seeds: `failover policy table --policy FILE`. What real networks and real \
        PostgreSQL do is in [the partitions](partitions.md).\n\n\
        A is the active site, P the passive one, N the place of the controller. Each row happens \
        to a healthy pair, nothing else goes wrong, and nothing is healed. *Writable* is the time \
        from the fault until the other site takes writes, *declared* the longest window and the \
        largest estimate that a plan stated before its promotion, *lost* the most acknowledged \
        writes that were really lost in one run, with clients that write wherever they can.\n"
        .to_owned();
    for (name, seeds) in SHOWN {
        let (policy, all) = measured(name, 1..seeds + 1, &ROWS);
        section(&mut text, name, seeds, &policy, &all);
    }
    text
}

fn section(text: &mut String, name: &str, seeds: u64, policy: &Policy, all: &[Measured]) {
    let watched = Span::of(policy).watched.as_secs();
    let times = if seeds == 1 { "one seed" } else { "seeds" };
    let count = if seeds == 1 {
        String::new()
    } else {
        format!("{seeds} ")
    };
    write!(
        text,
        "\n## `policies/{name}.toml`\n\nFrom {count}{times}, watched for {watched} s after the fault.{}\n\n\
         | what is wrong | N–A | N–P | A–P | users reach A | verdict | writable, median and worst | declared | lost | fenced |\n\
         | --- | --- | --- | --- | --- | --- | ---: | ---: | ---: | --- |\n",
        if policy.mode == Mode::Observe {
            " Nothing is promoted automatically. Leases are enforced all the same: an active site \
             that is cut off fences itself under this policy too."
        } else {
            ""
        }
    )
    .unwrap();
    for (row, measured) in ROWS.iter().zip(all) {
        let (writable, declared) = match measured.median().zip(measured.worst()) {
            Some((median, worst)) => (
                format!("{}, {}", seconds(median), seconds(worst)),
                declared(measured),
            ),
            None => ("–".to_owned(), "–".to_owned()),
        };
        writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {writable} | {declared} | {} | {} |",
            row.name,
            row.link(N, A),
            row.link(N, P),
            row.link(A, P),
            if row.users_reach_active() {
                "yes"
            } else {
                "no"
            },
            verdict(measured, |code| format!(
                "[`{code}`](../runbooks/{code}.md)"
            )),
            measured.lost,
            fence(measured),
        )
        .unwrap();
    }
}

#[test]
fn the_page_shows_what_the_shipped_policies_do() {
    let page = page();
    if std::env::var_os("UPDATE_DOCS").is_some_and(|value| value == "1") {
        std::fs::write(PAGE, &page).unwrap();
    }
    assert_eq!(
        std::fs::read_to_string(PAGE).unwrap_or_default(),
        page,
        "if that is meant: UPDATE_DOCS=1 cargo test --test sim table"
    );
}
