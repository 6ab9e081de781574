//! `make upgrade FROM=COMMIT`: a lab that runs as the program was, every part of which is replaced by
//! the program as it is, one after the other, while users write. `FAILOVER_OLD` is the old program.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test: what cannot be done fails it, and what it measured is for people"
)]

#[allow(
    dead_code,
    reason = "shared with the tests of the lab, which use all of it"
)]
#[path = "../lab/pair.rs"]
mod pair;
#[allow(
    dead_code,
    reason = "shared with the tests of the lab, which use all of it"
)]
#[path = "../lab/stage.rs"]
mod stage;

use std::path::{Path, PathBuf};
use std::time::Duration;

use failover::lab::client::{Attempt, Client, Outcome, Report, present_numbers};
use failover::lab::scenario::start_client;
use failover::lab::standing::Fault;
use failover::lab::supervisor::Supervisor;

use stage::{FAST, on_a_lab_of, until, until_status, written_at};

/// A part of the lab that is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Controller,
    /// The agent of the site with this index. Its guard and its database go on.
    Agent(usize),
}

use Part::{Agent, Controller};

/// So many writes are made in the first half minute.
const SETTLED: usize = 1500;

fn old() -> PathBuf {
    let old = std::env::var_os("FAILOVER_OLD");
    PathBuf::from(
        old.expect("FAILOVER_OLD names no program: run this by `make upgrade FROM=COMMIT`"),
    )
}

fn new() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_failover"))
}

/// The longest time without an acknowledged write, in milliseconds.
fn longest_gap(attempts: &[Attempt]) -> u64 {
    let good = |attempt: &&Attempt| matches!(attempt.outcome, Outcome::Acknowledged { .. });
    let mut ends: Vec<u64> = attempts.iter().filter(good).map(|it| it.ended_ms).collect();
    ends.sort_unstable();
    ends.windows(2)
        .map(|two| two[1] - two[0])
        .max()
        .unwrap_or(0)
}

/// Kills a part, as a service manager that restarts it would, and starts it as `program`.
async fn replace(lab: &mut Supervisor, part: Part, program: &Path) {
    let sites = lab.layout.sites.clone();
    let (fault, site) = match part {
        Controller => (Fault::KillController, &sites[0].name),
        Agent(index) => (Fault::KillAgent, &sites[index].name),
    };
    lab.fault(fault, site).await.unwrap();
    program.clone_into(&mut lab.layout.program);
    if part == Controller {
        lab.start_controller(None).unwrap();
    } else {
        lab.start_missing().unwrap();
    }
    lab.until_steady().await.unwrap();
}

/// Waits until users have written for some seconds more at the first site.
async fn goes_on(client: &mut Client) {
    let enough = written_at(&client.attempts(), "aws") + 250;
    let more = |attempts: &[Attempt]| written_at(attempts, "aws") >= enough;
    client.until(more).await.unwrap();
}

/// Replaces the parts in an order. After `then_lost` of them the first site is lost, and the other
/// takes over with old and new side by side.
fn upgraded(test: &str, order: &[Part], then_lost: usize) {
    on_a_lab_of(
        &old(),
        test,
        FAST,
        |_| {},
        async |lab| {
            // An earlier agent takes for a lie what it is told before it knows any epoch.
            lab.expects_error("is not believed");
            let [aws, gcp] = lab.layout.sites.clone();
            let mut client = start_client(lab).unwrap();
            goes_on(&mut client).await;
            // What a restart of an agent costs without any upgrade.
            replace(lab, Agent(0), &old()).await;
            goes_on(&mut client).await;
            let usual = longest_gap(&client.attempts());
            for part in &order[..then_lost] {
                replace(lab, *part, new()).await;
                goes_on(&mut client).await;
            }
            let attempts = client.attempts();
            let gap = longest_gap(&attempts);
            println!("{order:?}: {gap} ms without a write, {usual} ms in a restart of today");
            let failed = attempts.len() - written_at(&attempts, "aws");
            assert!(failed <= 8, "{failed} writes failed, or are on their way");
            // An agent's restart ends no session; what differs is how busy the machine was.
            assert!(gap <= usual.max(100) * 3, "{gap} ms, {usual} ms");
            until_status(lab, "standing and ready", |status| {
                status.situation.sites.values().all(|site| {
                    let agent = site.agent.as_ref();
                    agent.is_some_and(|agent| agent.age < Duration::from_secs(1))
                }) && !status.situation.automation.disarmed
            })
            .await;
            // For 20 s after its start an agent judges whether its way to the primary works; an earlier one
            // took a primary that died just then for a way that does not.
            let settled = |attempts: &[Attempt]| written_at(attempts, "aws") >= SETTLED;
            client.until(settled).await.unwrap();
            lab.fault(Fault::KillSite, &aws.name).await.unwrap();
            let moved = |attempts: &[Attempt]| written_at(attempts, "gcp") >= 50;
            client.until(moved).await.unwrap();
            let attempts = client.stop().await.unwrap();
            let report = Report::new(&attempts, &present_numbers(gcp.api).await.unwrap());
            assert!(report.by_old_after_new(&aws.name, &gcp.name).is_empty());
            until("the log is whole", async || {
                failover::adapters::files::verify(&lab.layout.log()).is_ok()
            })
            .await;
        },
    );
}

#[test]
fn agents_first() {
    upgraded("agents_first", &[Agent(1), Agent(0), Controller], 3);
}

#[test]
fn the_controller_first() {
    upgraded("the_controller_first", &[Controller, Agent(1), Agent(0)], 3);
}

#[test]
fn a_failover_between_a_new_controller_and_old_agents() {
    let test = "a_failover_between_a_new_controller_and_old_agents";
    upgraded(test, &[Controller], 1);
}

#[test]
fn a_failover_between_an_old_controller_and_new_agents() {
    let test = "a_failover_between_an_old_controller_and_new_agents";
    upgraded(test, &[Agent(1), Agent(0)], 2);
}
