//! Received and replayed are two positions: a standby that has everything and replays nothing is seen, holds a
//! failover, and promotes all the same where somebody accepts that.

use std::time::Duration;

use failover::adapters::postgres::promote;
use failover::engine::observation::{DatabaseFacts, ReplayState};
use failover::engine::reason::Code;
use failover::engine::topology::Role;
use failover::lab::layout::SiteLayout;
use failover::lab::supervisor::Supervisor;
use failover::wire::Status;
use tokio_postgres::{Client, NoTls};

use crate::drill::failover;
use crate::pair::{LIMIT, Pair, Server};
use crate::rehearsal::{ask, streams};
use crate::stage::{on_a_lab, until, until_status};

/// A session of a user.
async fn session_at(socket: &std::path::Path, port: u16) -> Client {
    let socket = socket.display();
    let conninfo = format!("host={socket} port={port} user=postgres dbname=app");
    let (client, connection) = tokio_postgres::connect(&conninfo, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

pub(crate) async fn session(site: &SiteLayout) -> Client {
    session_at(&site.instance.socket(), site.instance.port).await
}

pub(crate) async fn run(site: &SiteLayout, statement: &str) {
    session(site).await.batch_execute(statement).await.unwrap();
}

/// A report that has begun on a standby, and keeps its snapshot until it ends or is ended.
async fn report(socket: &std::path::Path, port: u16) -> Client {
    let report = session_at(socket, port).await;
    let begun = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM items";
    report.batch_execute(begun).await.unwrap();
    report
}

/// The rows that the report sees are removed at the primary, so that its standby must not replay that.
const REMOVE: [&str; 2] = ["DELETE FROM items", "VACUUM items"];
const ITEMS: &str = "CREATE TABLE items AS SELECT generate_series(1, 10000) AS item";

/// A standby that waits for its queries for as long as they take.
const WAITS_FOR_QUERIES: [&str; 2] = [
    "ALTER SYSTEM SET max_standby_streaming_delay = -1",
    "SELECT pg_reload_conf()",
];

async fn pair_with_items() -> Pair {
    let pair = Pair::new().await;
    pair.primary.sql(ITEMS);
    for statement in WAITS_FOR_QUERIES {
        pair.standby().sql(statement);
    }
    pair.caught_up().await;
    pair
}

async fn until_held(standby: &Server, by: &str) -> DatabaseFacts {
    let mut seen = None;
    until("replay is held up", async || {
        let facts = standby.facts().await;
        let held = matches!(&facts.replay_state, ReplayState::Held { by: found } if found == by);
        let behind = facts.replayed < facts.position;
        seen = Some(facts);
        held && behind
    })
    .await;
    seen.unwrap()
}

#[tokio::test]
async fn a_standby_says_what_holds_its_replay_up_and_a_promotion_ends_that() {
    let pair = pair_with_items().await;
    let standby = pair.standby();
    assert_eq!(standby.facts().await.replay_state, ReplayState::AtEnd);
    let report = report(&standby.instance.socket(), standby.instance.port).await;
    for statement in REMOVE {
        pair.primary.sql(statement);
    }
    let facts = until_held(standby, "RecoveryConflictSnapshot").await;
    let received = facts.receiver.unwrap();
    assert!(received.is_streaming(), "{received:?}");

    let promoted = promote(&standby.local(), LIMIT).await.unwrap();
    assert!(!promoted.already);
    assert_eq!(standby.facts().await.role, Role::Primary);
    until("the report was ended", async || report.is_closed()).await;
}

/// A lock that the primary took, which a reader of the standby has, too.
#[tokio::test]
async fn a_lock_that_replay_waits_for_is_named_and_a_promotion_ends_that() {
    let pair = pair_with_items().await;
    let standby = pair.standby();
    let reader = report(&standby.instance.socket(), standby.instance.port).await;
    pair.primary.sql("ALTER TABLE items ADD COLUMN more text");
    until_held(standby, "Lock/relation").await;
    promote(&standby.local(), LIMIT).await.unwrap();
    until("the reader was ended", async || reader.is_closed()).await;
    standby.sql("INSERT INTO items VALUES (0, 'written')");
}

fn stalled(status: &Status) -> Option<String> {
    let gates = status.decision.gates.iter();
    let mut closed = gates.filter(|gate| !gate.open && gate.reason.code == Code::ReplayStalled);
    closed.next().map(|gate| gate.reason.to_string())
}

pub(crate) async fn ready(lab: &Supervisor) -> (u16, String) {
    let url = format!("http://{}/readyz", lab.layout.controller_plain);
    let answer = tokio::process::Command::new("curl")
        .args(["-s", "-w", "\n%{http_code}", &url])
        .output()
        .await
        .unwrap();
    let text = String::from_utf8(answer.stdout).unwrap();
    let (body, code) = text.rsplit_once('\n').unwrap();
    (code.parse().unwrap(), body.to_owned())
}

#[test]
fn a_long_report_on_the_standby_is_a_gate_and_ends_with_a_promotion_that_somebody_accepts() {
    let test = "replay::a_long_report_on_the_standby_is_a_gate_and_ends_with_a_promotion_that_somebody_accepts";
    on_a_lab(test, async |lab| {
        let [aws, gcp] = lab.layout.sites.clone();
        run(&aws, ITEMS).await;
        for statement in WAITS_FOR_QUERIES {
            run(&gcp, statement).await;
        }
        let report = async || {
            let reads = "SELECT count(*) FROM items";
            let there = async || session(&gcp).await.batch_execute(reads).await.is_ok();
            until("the table is at the standby", there).await;
            let report = report(&gcp.instance.socket(), gcp.instance.port).await;
            for statement in REMOVE {
                run(&aws, statement).await;
            }
            report
        };
        let first = report().await;
        let status = until_status(lab, "replay is seen to stand still", |status| {
            stalled(status).is_some()
        })
        .await;
        let said = stalled(&status).unwrap();
        assert!(said.contains("RecoveryConflictSnapshot"), "{said}");
        let first_reason = status.decision.reasons.first().unwrap().code;
        assert_eq!(first_reason, Code::ReplayStalled, "it is no healthy pair");
        let (code, body) = ready(lab).await;
        assert_eq!(code, 503);
        assert!(body.contains("replay-stalled"), "{body}");
        let held = failover(lab, "promote shop --to gcp --yes --reason drill").await;
        assert_eq!(held.status.code(), Some(1), "{held:?}");

        // The report ends: all is well again.
        drop(first);
        until_status(lab, "the backlog is replayed", |status| {
            status
                .decision
                .gates
                .iter()
                .all(|gate| gate.open || gate.reason.code == Code::ReplicationAdvancing)
        })
        .await;

        run(&aws, "INSERT INTO items SELECT generate_series(1, 10000)").await;
        let second = report().await;
        until_status(lab, "it stands still again", |status| {
            stalled(status).is_some()
        })
        .await;
        let accepted = "promote shop --to gcp --yes --reason drill --accept-replay";
        let done = failover(lab, accepted).await;
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        until("the report was ended", async || second.is_closed()).await;
    });
}

#[test]
fn a_pause_of_replay_holds_automation_shows_in_commits_that_wait_for_it_and_is_severed_all_the_same()
 {
    let test = "replay::a_pause_of_replay_holds_automation_shows_in_commits_that_wait_for_it_and_is_severed_all_the_same";
    on_a_lab(test, async |lab| {
        let [aws, gcp] = lab.layout.sites.clone();
        run(&aws, ITEMS).await;
        // Its agent has it begin anew soon after the start, and a paused one would not.
        until("it streams by its agent's way", async || {
            let told = std::fs::read_to_string(gcp.dir.join("agent.log")).unwrap();
            told.contains("the standby runs with") && streams(&aws).await == "gcp"
        })
        .await;
        run(&gcp, "SELECT pg_wal_replay_pause()").await;
        // A user who waits until the standby shows what he wrote, at a primary that he set up so.
        run(
            &aws,
            "ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (gcp)'",
        )
        .await;
        run(&aws, "SELECT pg_reload_conf()").await;
        let user = session(&aws).await;
        let waits = tokio::spawn(async move {
            let write = "SET synchronous_commit = remote_apply; INSERT INTO items VALUES (0)";
            // Until PostgreSQL has taken the setting over, a commit waits for nobody.
            loop {
                if let Err(error) = user.batch_execute(write).await {
                    return error;
                }
            }
        });
        let status = until_status(lab, "commits are seen to wait for replay", |status| {
            let mut codes = status.decision.reasons.iter().map(|reason| reason.code);
            codes.any(|code| code == Code::CommitsStalled) && stalled(status).is_some()
        })
        .await;
        let said = stalled(&status).unwrap();
        assert!(said.contains("RecoveryPause"), "{said}");

        let accepted = "promote shop --to gcp --yes --reason drill --accept-replay";
        let done = failover(lab, accepted).await;
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        // It was never acknowledged.
        let _ended: tokio_postgres::Error = waits.await.unwrap();
        // Its receiver ends with the old primary, which is superseded, or is ended by the agent.
        assert_eq!(ask(&gcp, "SELECT pg_is_in_recovery()::text").await, "false");
    });
}

/// What is whole is replayed: a record that arrived in part, or a primary that writes nothing, is no backlog.
#[tokio::test]
async fn a_standby_whose_primary_is_gone_has_nothing_to_replay() {
    let pair = pair_with_items().await;
    pair.primary.stop().await;
    until("it looks for WAL in vain", async || {
        let facts = pair.standby().facts().await;
        facts.receiver.is_none() && facts.replay_state == ReplayState::AtEnd
    })
    .await;
    let wait = Duration::from_millis(50);
    for _ in 0..20 {
        let facts = pair.standby().facts().await;
        assert!(
            !matches!(facts.replay_state, ReplayState::Held { .. }),
            "{facts:?}"
        );
        tokio::time::sleep(wait).await;
    }
}
