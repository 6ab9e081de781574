//! An old word against what is seen now: files and servers behind the back of agent and guard, in
//! a whole lab.

use std::fs;
use std::time::Duration;

use failover::engine::decision::Verdict;
use failover::engine::lease::FenceProof;
use failover::engine::reason::Code;
use failover::engine::step::{Fact, Step};
use failover::lab::client::{Attempt, Outcome, Report, present_numbers};
use failover::lab::pair::{Instance, PostgresTools, StopMode, start_temporarily, stop};
use failover::lab::scenario::start_client;
use failover::lab::standing::Fault;
use failover::lab::supervisor::Supervisor;
use failover::wire::Status;
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, waitpid};

use crate::drill::failover;
use crate::stage::{entries, facts, on_a_lab, until, until_status, written_at};

#[test]
fn a_standby_signal_planted_beside_a_frozen_agent_disarms_no_guard() {
    let test = "old_word::a_standby_signal_planted_beside_a_frozen_agent_disarms_no_guard";
    on_a_lab(test, async |lab| {
        let [aws, gcp] = lab.layout.sites.clone();
        let mut client = start_client(lab).unwrap();
        let writes = |attempts: &[Attempt]| written_at(attempts, "aws") >= 50;
        client.until(writes).await.unwrap();
        fs::write(aws.instance.data().join("standby.signal"), "").unwrap();
        // The agent looks again and again, and must not give its right up.
        let more = |attempts: &[Attempt]| written_at(attempts, "aws") >= 300;
        client.until(more).await.unwrap();
        lab.fault(Fault::FreezeAgent, &aws.name).await.unwrap();
        until("users write at the other site", async || {
            written_at(&client.attempts(), "gcp") >= 50
        })
        .await;
        let attempts = client.stop().await.unwrap();
        let log = entries(&lab.layout.log());
        let fence = facts(&log, &Step::Fence);
        assert!(
            matches!(
                fence[..],
                [Fact::Fenced {
                    proof: FenceProof::WaitedOut { .. }
                }]
            ),
            "{fence:?}"
        );
        let [Fact::Declared { loss, .. }] = &facts(&log, &Step::Freeze)[..] else {
            panic!("one declaration");
        };
        let report = Report::new(&attempts, &present_numbers(gcp.api).await.unwrap());
        assert!(report.by_old_after_new(&aws.name, &gcp.name).is_empty());
        let from = loss.from.expect("the plan recorded what was known");
        assert!(report.lost_outside(from.0, loss.until.0).is_empty());
    });
}

fn verdict_of_two(status: &Status) -> Option<String> {
    let decision = &status.decision;
    let first = decision.reasons.first()?;
    let two = decision.verdict == Verdict::Escalate && first.code == Code::TwoPrimaries;
    two.then(|| first.detail.clone().unwrap_or_default())
}

/// A copy of a site's whole instance, at the same address.
fn copy(of: &Instance, tools: &PostgresTools) -> Instance {
    let copy = Instance {
        dir: of.dir.with_extension("copy"),
        ..of.clone()
    };
    let mut command = std::process::Command::new("cp");
    command.arg("-a").arg(&of.dir).arg(&copy.dir);
    assert!(command.status().unwrap().success());
    let (from, to) = (of.dir.display().to_string(), copy.dir.display().to_string());
    let file = copy.dir.join("postgresql.conf");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace(&from, &to)).unwrap();
    fs::remove_file(copy.data().join("postmaster.pid")).ok();
    assert!(tools.program("postgres").exists());
    copy
}

/// Takes a server that was killed off the system's list: for as long as its number is on it, no
/// other server starts beside the files that it left. It is ours, because `pg_ctl` has ended.
fn reap(killed: &Instance) {
    let file = fs::read_to_string(killed.data().join("postmaster.pid")).unwrap();
    let number: i32 = file.lines().next().unwrap().parse().unwrap();
    let pid = Pid::from_raw(number).unwrap();
    // The lab reaps too: then it is off the list already.
    let reaped = waitpid(Some(pid), WaitOptions::empty());
    assert!(matches!(reaped, Ok(_) | Err(Errno::CHILD)), "{reaped:?}");
}

/// Waits until the new side has gone on writing for a while, with a verdict that is none of two.
async fn stays_quiet(lab: &Supervisor) {
    let mut seen = 0;
    let mut last = None;
    until("some decisions", async || {
        if let Ok(status) = lab.status().await {
            assert_eq!(verdict_of_two(&status), None);
            if last != Some(status.at) {
                (seen, last) = (seen + 1, Some(status.at));
            }
        }
        seen >= 20
    })
    .await;
}

#[test]
fn whoever_starts_a_fenced_primary_is_stopped_or_named_whatever_was_said_before() {
    let test =
        "old_word::whoever_starts_a_fenced_primary_is_stopped_or_named_whatever_was_said_before";
    on_a_lab(test, async |lab| {
        lab.expects_error("PostgreSQL was started by somebody else");
        let [aws, gcp] = lab.layout.sites.clone();
        let tools = lab.layout.tools.clone();
        let done = failover(lab, "promote shop --to gcp --yes --reason drill").await;
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        stays_quiet(lab).await;

        // Agent and guard are there: it is ended, and nobody is called.
        let client = start_client(lab).unwrap();
        let started = start_temporarily(&tools, &aws.instance).await;
        until("the server is gone", async || {
            std::net::TcpStream::connect((aws.ip, aws.instance.port)).is_err()
        })
        .await;
        let said = fs::read_to_string(aws.dir.join("postgres.log")).unwrap();
        assert!(
            said.contains("started by somebody else"),
            "{started:?}: {said}"
        );
        reap(&aws.instance);
        stays_quiet(lab).await;
        let attempts = client.stop().await.unwrap();
        let at_old = attempts.iter().filter(|attempt| {
            matches!(&attempt.outcome, Outcome::Acknowledged { site, .. } if *site == aws.name)
        });
        assert_eq!(at_old.count(), 0);

        // A copy of it at the same place: the guard names it, and the controller calls a person.
        let copy = copy(&aws.instance, &tools);
        let started = start_temporarily(&tools, &copy).await;
        let log = fs::read_to_string(copy.dir.join("log")).unwrap_or_default();
        assert!(started.is_ok(), "{started:?}: {log}");
        let status = until_status(
            lab,
            "two primaries, one of them not the guard's",
            |status| {
                let codes = status.decision.reasons.iter().map(|reason| reason.code);
                verdict_of_two(status).is_some()
                    && codes.into_iter().any(|it| it == Code::ForeignDatabase)
            },
        )
        .await;
        let detail = verdict_of_two(&status).unwrap();
        assert!(detail.contains("`gcp` answers as a primary"), "{detail}");
        assert!(
            detail
                .contains("`aws` answers as a primary, although its agent says that it was fenced"),
            "{detail}"
        );
        stop(&tools, &copy, StopMode::Immediate).await.unwrap();
        until_status(lab, "one primary again", |status| {
            verdict_of_two(status).is_none()
        })
        .await;

        // Neither agent nor guard is left: only the controller can see it.
        lab.fault(Fault::KillSite, &aws.name).await.unwrap();
        start_temporarily(&tools, &aws.instance).await.unwrap();
        let status = until_status(lab, "two primaries", |status| {
            verdict_of_two(status).is_some()
        });
        let detail = verdict_of_two(&status.await).unwrap();
        assert!(
            detail.contains("`aws`") && detail.contains("`gcp`"),
            "{detail}"
        );
        // The next agent's guard knows the folder: what runs there is not its own.
        lab.start_missing().unwrap();
        let status = until_status(lab, "it is ended", |status| {
            let agent = status.situation.sites[&aws.name].agent.as_ref();
            agent.is_some_and(|agent| agent.age < Duration::from_secs(1))
                && verdict_of_two(status).is_none()
        })
        .await;
        assert_eq!(status.situation.active, gcp.name);
    });
}
