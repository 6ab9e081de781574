//! A controller whose decision log is behind the world: an empty one, an old one, another one.

use std::collections::BTreeMap;
use std::sync::Arc;

use failover::adapters::clock::SystemClock;
use failover::adapters::files;
use failover::adapters::postgres::{Database, prepare, write_epoch};
use failover::adapters::rfc2136::{Rfc2136, TsigKey};
use failover::adapters::tls::PeerClient;
use failover::engine::answer::Answer;
use failover::engine::chain::{Body, Digest, LogMark};
use failover::engine::decision::Verdict;
use failover::engine::lease::Refusal;
use failover::engine::reason::Code;
use failover::engine::topology::Topology;
use failover::engine::units::Epoch;
use failover::lab::layout::SiteLayout;
use failover::lab::name_server::{NameServer, free_port, program};
use failover::lab::scenario::start_client;
use failover::lab::standing::Fault;
use failover::ports::Traffic;
use failover::wire::{REPORT_PATH, ReportAnswer, Status};

use crate::bad_input::{CALL, House, address, agent, just, report, socket};
use crate::drill::failover;
use crate::pair::{LIMIT, Pair, site};
use crate::stage::{entries, on_a_lab, until, until_status, was_told_to_stop, written_at};

/// How often PostgreSQL was started at a site.
fn starts(site: &SiteLayout) -> usize {
    let said = std::fs::read_to_string(site.dir.join("postgres.log")).unwrap();
    said.matches("starting PostgreSQL").count()
}

fn is_behind(status: &Status) -> bool {
    let reasons = &status.decision.reasons;
    reasons.first().is_some_and(|it| it.code == Code::LogBehind)
}

/// After a failover to gcp, the controller is started on a log of which only so much is left;
/// then the old site comes back as it was before. It gets nothing, and users go on.
fn failed_over(test: &str, kept: fn(&[String]) -> usize) {
    on_a_lab(test, async |lab| {
        let [aws, gcp] = lab.layout.sites.clone();
        let mut client = start_client(lab).unwrap();
        client
            .until(|all| written_at(all, "aws") >= 50)
            .await
            .unwrap();
        lab.fault(Fault::KillSite, &aws.name).await.unwrap();
        let old = lab.layout.dir.join("aws-state");
        let copy = |from: &std::path::Path, to: &std::path::Path| {
            std::fs::remove_dir_all(to).ok();
            let copied = std::process::Command::new("cp")
                .arg("-a")
                .arg(from)
                .arg(to)
                .status();
            assert!(copied.unwrap().success());
        };
        copy(&aws.dir.join("state"), &old);
        until_status(lab, "failed over", |status| {
            status.situation.active.as_str() == "gcp" && status.plan.is_none()
        })
        .await;
        // The old site lets the right of the new one stand while the controller is away.
        lab.start_missing().unwrap();
        until_status(lab, "the old site is fenced", |status| {
            let agent = status.situation.sites[&site("aws")].agent.as_ref();
            agent.is_some_and(|it| it.fact.fenced == Some(Epoch(2)))
        })
        .await;

        lab.fault(Fault::KillController, &aws.name).await.unwrap();
        let log = lab.layout.log();
        let text = std::fs::read_to_string(&log).unwrap();
        let lines: Vec<String> = text.lines().map(|line| format!("{line}\n")).collect();
        let left = kept(&lines);
        assert!(left < lines.len());
        std::fs::write(&log, lines[..left].concat()).unwrap();
        lab.start_controller(None).unwrap();
        until_status(lab, "it knows that it does not know", is_behind).await;

        // The old site comes back as it was when it died: it asks for the right in epoch 1.
        lab.fault(Fault::KillSite, &aws.name).await.unwrap();
        copy(&old, &aws.dir.join("state"));
        let started = starts(&aws);
        std::fs::write(aws.dir.join("agent.log"), "").unwrap();
        lab.start_missing().unwrap();
        until("the old site is told why", async || {
            let said = std::fs::read_to_string(aws.dir.join("agent.log")).unwrap();
            said.contains("decision log is behind")
        })
        .await;
        let before = written_at(&client.attempts(), "gcp");
        client
            .until(|all| written_at(all, "gcp") >= before + 200)
            .await
            .unwrap();
        assert_eq!(starts(&aws), started, "nothing was started at the old site");
        let status = lab.status().await.unwrap();
        assert!(is_behind(&status), "{:?}", status.decision);
        assert_eq!(status.decision.verdict, Verdict::Escalate);
        let gate = &status.decision.gates[0];
        assert!(!gate.open && gate.reason.code == Code::LogBehind);
        let shown = failover(lab, "status").await;
        assert_eq!(shown.status.code(), Some(1));
        let said = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(
            said.contains("known to ") && said.contains("epoch 2"),
            "{said}"
        );

        for wrong in [
            "--epoch 1 --active aws",
            "--epoch 2 --active aws",
            "--epoch 3 --active gcp",
        ] {
            let words = format!("adopt shop {wrong} --reason wrong");
            let refused = failover(lab, &words).await;
            assert!(!refused.status.success(), "{wrong}");
        }
        let adopted = failover(lab, "adopt shop --epoch 2 --active gcp --reason restored").await;
        assert!(adopted.status.success(), "{adopted:?}");
        until_status(lab, "it goes on", |status| {
            let situation = &status.situation;
            let there = situation.active == gcp.name && situation.epoch == Epoch(2);
            there && situation.log.is_sound() && status.decision.verdict == Verdict::Hold
        })
        .await;
        until_status(lab, "the old site is fenced again", |status| {
            let agent = status.situation.sites[&site("aws")].agent.as_ref();
            agent.is_some_and(|it| it.fact.fenced == Some(Epoch(2)))
        })
        .await;
        let before = written_at(&client.attempts(), "gcp");
        client
            .until(|all| written_at(all, "gcp") >= before + 50)
            .await
            .unwrap();
        assert_eq!(starts(&aws), started);
        let said = std::fs::read_to_string(gcp.dir.join("postgres.log")).unwrap();
        assert!(!was_told_to_stop(&said), "{said}");
        client.stop().await.unwrap();
        files::verify(&log).unwrap();
        // With a log that is sound a start is nothing special.
        lab.fault(Fault::KillController, &aws.name).await.unwrap();
        lab.start_controller(None).unwrap();
        until_status(lab, "it goes on after a start", |status| {
            status.situation.active == gcp.name && status.situation.log.is_sound()
        })
        .await;
    });
}

#[test]
fn an_empty_log_after_a_failover_grants_nothing_until_a_person_says_how_the_world_stands() {
    failed_over(
        "log_behind::an_empty_log_after_a_failover_grants_nothing_until_a_person_says_how_the_world_stands",
        |_| 0,
    );
}

#[test]
fn a_log_from_before_the_promotion_grants_nothing_until_a_person_says_how_the_world_stands() {
    failed_over(
        "log_behind::a_log_from_before_the_promotion_grants_nothing_until_a_person_says_how_the_world_stands",
        |lines| {
            let plan = lines
                .iter()
                .position(|line| line.contains("\"entry\":\"plan\""));
            plan.unwrap()
        },
    );
}

#[test]
fn an_unbroken_right_is_renewed_by_a_controller_that_nobody_can_tell_more() {
    let test = "log_behind::an_unbroken_right_is_renewed_by_a_controller_that_nobody_can_tell_more";
    on_a_lab(test, async |lab| {
        let [aws, gcp] = lab.layout.sites.clone();
        let mut client = start_client(lab).unwrap();
        client
            .until(|all| written_at(all, "aws") >= 50)
            .await
            .unwrap();
        lab.fault(Fault::KillSite, &gcp.name).await.unwrap();
        lab.fault(Fault::KillController, &aws.name).await.unwrap();
        lab.start_controller(None).unwrap();
        let before = written_at(&client.attempts(), "aws");
        client
            .until(|all| written_at(all, "aws") >= before + 300)
            .await
            .unwrap();
        let said = std::fs::read_to_string(aws.dir.join("postgres.log")).unwrap();
        assert!(!was_told_to_stop(&said), "{said}");
        let status = lab.status().await.unwrap();
        assert!(
            status.situation.log.is_sound(),
            "{:?}",
            status.situation.log
        );
        client.stop().await.unwrap();
    });
}

/// Asks for the right for aws, in epoch 1, until the controller says that its log is behind, and
/// returns who knows more.
async fn refused_by(house: &House, aws: &PeerClient) -> String {
    let mut asks = report("aws");
    asks.holds = false;
    let mut found = None;
    until("the right is refused", async || {
        let answer: ReportAnswer = aws.post(REPORT_PATH, &asks, CALL).await.unwrap();
        asks.heard = Some(just(answer.intake));
        assert!(!matches!(answer.grant, Some(Ok(_))), "{answer:?}");
        if let Some(Err(Refusal::LogBehind { witness, .. })) = answer.grant {
            assert_eq!(answer.holder, None, "nobody is named");
            found = Some(witness);
        }
        found.is_some()
    })
    .await;
    house.until("it is shown", is_behind).await;
    found.unwrap()
}

#[tokio::test]
async fn the_epoch_row_alone_shows_that_the_log_is_behind() {
    let pair = Pair::primary_only().await;
    let database = Database::open(&pair.primary.local(), LIMIT).await.unwrap();
    prepare(&database, LIMIT).await.unwrap();
    write_epoch(&database, Epoch(2), &site("gcp"), LIMIT)
        .await
        .unwrap();
    let house = House::with([socket(), address(&pair.primary)], "watch");
    let _running = house.start().await;
    let aws = house.client(&house.issue(&agent("aws")));
    let who = refused_by(&house, &aws).await;
    assert_eq!(who, "the database of site `gcp`");
}

#[tokio::test]
async fn the_note_at_a_traffic_target_alone_shows_that_the_log_is_behind() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = socket();
    let port = free_port(nowhere.ip()).unwrap();
    let key = TsigKey {
        name: "failover".into(),
        secret: b"secret secret secret secret!".to_vec(),
    };
    let server = NameServer::start(
        std::process::Command::new(program()),
        dir.path(),
        nowhere.ip(),
        port,
        "lab.test",
        key,
    )
    .await
    .unwrap();
    let addresses: BTreeMap<_, _> = [
        (site("aws"), vec!["127.0.0.1".parse().unwrap()]),
        (site("gcp"), vec!["127.0.0.2".parse().unwrap()]),
    ]
    .into();
    let settings = server.settings("dns".parse().unwrap(), "shop.lab.test", addresses);
    let target = Rfc2136::new(settings, Arc::new(SystemClock)).unwrap();
    let topology = Topology {
        group: "shop".parse().unwrap(),
        first: site("aws"),
        second: site("gcp"),
        traffic: Vec::new(),
    };
    let found = target.read().await.unwrap();
    let moved = Answer::only(&site("gcp"), &topology, Epoch(2));
    target
        .apply(&found, &moved, "lab", &|| Ok(()))
        .await
        .unwrap();

    let house = House::new();
    let config = house.file("failover.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let traffic = text.find("[[traffic]]").unwrap();
    let mut lines: Vec<String> = text[traffic..].lines().map(str::to_owned).collect();
    for line in &mut lines {
        if line.starts_with("server = ") {
            *line = format!("server = \"{}\"", server.address());
        } else if line.starts_with("authoritative = ") {
            *line = format!("authoritative = [\"{}\"]", server.address());
        }
    }
    std::fs::write(
        &config,
        format!("{}{}\n", &text[..traffic], lines.join("\n")),
    )
    .unwrap();
    let _running = house.start().await;
    let aws = house.client(&house.issue(&agent("aws")));
    let who = refused_by(&house, &aws).await;
    assert_eq!(who, "the note at traffic target `dns`");
}

#[tokio::test]
async fn an_agent_that_saw_a_longer_log_in_the_same_epoch_is_believed() {
    let house = House::new();
    let _running = house.start().await;
    let gcp = house.client(&house.issue(&agent("gcp")));
    let mut seen = report("gcp");
    (seen.asks, seen.holds) = (false, false);
    seen.log = Some(LogMark {
        entries: 500,
        head: Digest::of(b"an entry that is lost"),
    });
    let answer: ReportAnswer = gcp.post(REPORT_PATH, &seen, CALL).await.unwrap();
    assert_eq!(answer.log, None, "it is not told to forget it");
    let aws = house.client(&house.issue(&agent("aws")));
    assert_eq!(refused_by(&house, &aws).await, "the agent of site `gcp`");
    let status = house.until("it is shown", is_behind).await;
    let reason = &status.decision.reasons[0];
    assert!(reason.to_string().contains("500 entries"), "{reason}");
    let adopted = |entries: Vec<failover::engine::chain::Entry>| {
        entries
            .iter()
            .any(|entry| matches!(entry.body, Body::Command { .. }))
    };
    assert!(!adopted(entries(&house.file("decision.log"))));

    // A person says that the log goes on; what the agent remembers of the lost one counts no more.
    let ask = failover::wire::AdoptAsk {
        epoch: Epoch(1),
        active: site("aws"),
        reason: "the disk is lost".to_owned(),
    };
    let operator = house.operator();
    operator.post::<_, ()>("/adopt", &ask, CALL).await.unwrap();
    seen.heard = Some(just(answer.intake));
    let answer: ReportAnswer = gcp.post(REPORT_PATH, &seen, CALL).await.unwrap();
    assert!(
        answer.log.is_some(),
        "the new end is what it should remember"
    );
    let answer: ReportAnswer = aws.post(REPORT_PATH, &report("aws"), CALL).await.unwrap();
    assert!(matches!(answer.grant, Some(Ok(_))), "{answer:?}");
}

#[tokio::test]
async fn a_right_that_is_to_begin_waits_for_a_witness() {
    let house = House::new();
    drop(house.start().await);
    // Started again: the log is not a new one any more, and nobody has spoken.
    let _running = house.start().await;
    let aws = house.client(&house.issue(&agent("aws")));
    let mut asks = report("aws");
    asks.holds = false;
    let answer: ReportAnswer = aws.post(REPORT_PATH, &asks, CALL).await.unwrap();
    assert_eq!(answer.grant, Some(Err(Refusal::LogUnwitnessed)));
    let status = house
        .until("it is shown", |status| {
            let reasons = &status.decision.reasons;
            reasons.iter().any(|it| it.code == Code::LogUnwitnessed)
        })
        .await;
    let mut gates = status.decision.gates.iter();
    assert!(gates.any(|gate| !gate.open && gate.reason.code == Code::LogUnwitnessed));
    let gcp = house.client(&house.issue(&agent("gcp")));
    let mut word = report("gcp");
    (word.asks, word.holds) = (false, false);
    let _: ReportAnswer = gcp.post(REPORT_PATH, &word, CALL).await.unwrap();
    let answer: ReportAnswer = aws.post(REPORT_PATH, &asks, CALL).await.unwrap();
    assert!(matches!(answer.grant, Some(Ok(_))), "{answer:?}");
}
