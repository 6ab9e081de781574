//! Who is let in and may not do everything: what they cause to be written down, and what they may
//! and may not.
#![expect(clippy::print_stdout, reason = "floods print what they measured")]

use std::process::{Command, Output};
use std::time::Duration;

use failover::adapters::clock::SystemClock;
use failover::adapters::files;
use failover::adapters::tls::{CallError, Identity, PeerClient};
use failover::engine::chain::{Body, Chain, Digest, canonical};
use failover::engine::lease::Refusal;
use failover::engine::observation::{Finding, ProbeFailure};
use failover::engine::saga::Command as Asked;
use failover::engine::situation::LocalDatabase;
use failover::engine::text::is_harmful;
use failover::engine::topology::{Target, TargetKind};
use failover::engine::units::WallTime;
use failover::ports::Clock;
use failover::wire::{Grant, LogPart, REPORT_PATH, Report, ReportAnswer, SentObservation, Status};
use serde_json::{Value, json};

use crate::bad_input::{CALL, House, agent, just, report};
use crate::pair::site;
use crate::stage::{entries, until};

fn entries_of(house: &House) -> usize {
    entries(&house.file("decision.log")).len()
}

/// Reports as an agent that asks for the right, until told to stop: how often it was granted, and
/// what else was answered.
async fn asks(
    client: PeerClient,
    stop: tokio::sync::oneshot::Receiver<()>,
) -> (usize, Vec<String>) {
    let (mut granted, mut other) = (0, Vec::new());
    let mut own = report("aws");
    tokio::pin!(stop);
    loop {
        match client
            .post::<_, ReportAnswer>(REPORT_PATH, &own, CALL)
            .await
        {
            Ok(answer) => {
                own.heard = Some(just(answer.intake));
                match answer.grant {
                    Some(Ok(Grant { .. })) => granted += 1,
                    refused => other.push(format!("{refused:?}")),
                }
            }
            Err(error) => other.push(error.to_string()),
        }
        let pause = tokio::time::sleep(Duration::from_millis(100));
        tokio::select! {
            _told = &mut stop => return (granted, other),
            () = pause => {}
        }
    }
}

#[tokio::test]
async fn thousands_of_reports_in_anothers_name_are_a_line_of_log_and_keep_nobody_from_the_right() {
    const LASTING: Duration = Duration::from_secs(3);
    let house = House::new();
    let running = house.start().await;
    let aws = house.client(&house.issue(&agent("aws")));
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let asking = tokio::spawn(asks(aws, stopped));
    let files = house.issue(&agent("gcp"));
    let before = entries_of(&house);
    let began = SystemClock.now();
    let floods = (0..4).map(|_| {
        // A connection each.
        let gcp = house.client(&files);
        async move {
            let foreign = report("aws");
            let mut sent = 0usize;
            while SystemClock.now().since(began) < LASTING {
                let answer = gcp
                    .post::<_, ReportAnswer>(REPORT_PATH, &foreign, CALL)
                    .await;
                answer.unwrap_err();
                sent += 1;
            }
            sent
        }
    });
    let floods: Vec<_> = floods.map(tokio::spawn).collect();
    let mut requests = 0;
    for flood in floods {
        requests += flood.await.unwrap();
    }
    let took = SystemClock.now().since(began).as_secs_f64();
    stop.send(()).unwrap();
    let (granted, other) = asking.await.unwrap();
    let written = entries_of(&house) - before;
    let notes = house.notes("agent-rejected");
    println!(
        "{requests} requests in {took:.1} s: {:.1} entries a second, {} of them about it; {granted} grants, {} refused",
        f64::from(u32::try_from(written).unwrap()) / took,
        notes.len(),
        other.len()
    );
    assert!(notes.len() == 1 || took > 55.0, "{notes:?}");
    assert!(notes[0].contains("`gcp.agent.shop.failover.internal` may not report for site `aws`"));
    assert!(granted >= 10 && other.is_empty(), "{granted}: {other:?}");
    assert!(written < 20, "{written} entries");
    drop(running);
    files::verify(&house.file("decision.log")).unwrap();
}

#[tokio::test]
async fn an_agent_that_says_something_else_each_time_does_not_fill_the_log() {
    let house = House::new();
    let running = house.start().await;
    let aws = house.client(&house.issue(&agent("aws")));
    let before = entries_of(&house);
    let mut own = report("aws");
    let began = SystemClock.now();
    for turn in 0..300 {
        own.facts.database = if turn % 2 == 0 {
            LocalDatabase::Up
        } else {
            LocalDatabase::Down {
                since: Duration::from_secs(60),
                why: "so it says".to_owned(),
            }
        };
        let answer: ReportAnswer = aws.post(REPORT_PATH, &own, CALL).await.unwrap();
        own.heard = Some(just(answer.intake));
        assert_ne!(
            answer.grant,
            Some(Err(Refusal::Superseded { epoch: own.epoch })),
            "the right stays"
        );
    }
    let written = entries_of(&house) - before;
    let took = SystemClock.now().since(began).as_secs_f64();
    println!("300 changes in {took:.1} s: {written} entries");
    assert!(written < 60, "{written} entries");
    drop(running);
    files::verify(&house.file("decision.log")).unwrap();
}

#[tokio::test]
async fn what_an_agent_says_of_what_it_does_not_look_at_is_not_taken_in() {
    let house = House::new();
    let _running = house.start().await;
    let gcp = house.client(&house.issue(&agent("gcp")));
    let bad = |name: &str, kind| SentObservation {
        target: Target {
            site: site(name),
            kind,
        },
        began: Duration::ZERO,
        ended: Duration::ZERO,
        finding: Finding::Bad(ProbeFailure::Refused),
    };
    let mut own: Report = report("gcp");
    own.observations = vec![
        bad("aws", TargetKind::Agent),
        bad("azure", TargetKind::Database),
        bad("aws", TargetKind::Api),
    ];
    for _ in 0..3 {
        let answer: ReportAnswer = gcp.post(REPORT_PATH, &own, CALL).await.unwrap();
        own.heard = Some(just(answer.intake));
    }
    let vantage = "agent:gcp".parse().unwrap();
    let aws = site("aws");
    let status = house
        .until("the rest is taken in", |status| {
            let votes = &status.situation.sites[&aws].health[&TargetKind::Api].votes;
            votes.iter().any(|vote| vote.vantage == vantage)
        })
        .await;
    let agent = &status.situation.sites[&aws].health[&TargetKind::Agent];
    assert!(agent.votes.is_empty(), "{agent:?}");
    assert!(!status.situation.sites.contains_key(&site("azure")));
    let notes = house.notes("target-rejected");
    assert_eq!(
        notes,
        ["the agent of `gcp` reports of `agent@aws`, which it does not probe"]
    );
}

/// What the controller answers to each verb: its status, and its text.
async fn verbs(client: &PeerClient) -> [(&'static str, Result<(), (u16, String)>); 5] {
    fn said<T>(answer: Result<T, CallError>) -> Result<(), (u16, String)> {
        match answer {
            Ok(_) => Ok(()),
            Err(CallError::Denied { status, text }) => Err((status, text)),
            Err(CallError::Status { code, text }) => Err((code, text)),
            Err(other) => panic!("{other}"),
        }
    }
    let promote = json!({ "to": "gcp", "reason": "x", "accept_data_loss": null, "override_fence": false, "dry_run": true });
    let hold = json!({ "reason": "x", "for_ms": 60_000 });
    let release = json!({ "reason": "x" });
    [
        ("status", said(client.get::<Status>("/status", CALL).await)),
        (
            "log",
            said(client.get::<LogPart>("/log?from=1", CALL).await),
        ),
        (
            "promote",
            said(client.post::<_, Value>("/promote", &promote, CALL).await),
        ),
        (
            "hold",
            said(client.post::<_, Value>("/hold", &hold, CALL).await),
        ),
        (
            "release",
            said(client.post::<_, Value>("/release", &release, CALL).await),
        ),
    ]
}

#[tokio::test]
async fn a_reader_looks_and_an_operator_commands_each_in_their_own_group() {
    let house = House::new();
    let _running = house.start().await;
    house.until("it has decided", |_| true).await;
    let shown = ["status", "log"];
    let changes = "can only read: ask an operator of `shop`";
    let elsewhere = "is for another group, and this is the controller of `shop`";
    let nobody = "is not an operator: use an operator's certificate";
    // Whose certificate, what it may, and what it is told otherwise.
    for (name, may_look, may_change, said) in [
        ("alice.operator.shop", true, true, ""),
        ("dora.operator", true, true, ""),
        ("bob.reader.shop", true, false, changes),
        ("carol.operator.other", false, false, elsewhere),
        ("carol.reader.other", false, false, elsewhere),
        ("bob.reader", false, false, nobody),
        ("alice.admin.shop", false, false, nobody),
        ("gcp.agent.shop", false, false, nobody),
    ] {
        let identity: Identity = format!("{name}.failover.internal").parse().unwrap();
        let client = house.client(&house.issue(&identity));
        for (verb, answer) in verbs(&client).await {
            let may = if shown.contains(&verb) {
                may_look
            } else {
                may_change
            };
            match answer {
                Ok(()) => assert!(may, "{name}: {verb}"),
                Err((status, text)) => {
                    assert!(!may, "{name}: {verb}: {text}");
                    assert_eq!(status, 403, "{name}: {verb}: {text}");
                    assert!(text.contains(said), "{name}: {verb}: {text}");
                    assert!(text.contains("runbooks/agent-rejected.md"), "{text}");
                }
            }
        }
    }
    let refused = house.notes("command-refused");
    assert_eq!(refused.len(), 1, "the rest is counted: {refused:?}");
    assert!(refused[0].starts_with("Promote of `bob.reader.shop.failover.internal`: "));
    let by = entries(&house.file("decision.log"))
        .into_iter()
        .filter_map(|entry| matches!(entry.body, Body::Command { .. }).then_some(entry.actor));
    assert_eq!(by.collect::<Vec<_>>(), ["alice", "alice", "dora", "dora"]);
}

#[tokio::test]
async fn a_script_that_commands_without_end_is_slowed_down() {
    let house = House::new();
    let _running = house.start().await;
    let operator = house.operator();
    let mut refused = 0;
    for _ in 0..100 {
        let hold = json!({ "reason": "again", "for_ms": 1000 });
        match operator.post::<_, Value>("/hold", &hold, CALL).await {
            Ok(_) => {}
            Err(CallError::Status { code: 429, text }) => {
                assert!(text.contains("too many"), "{text}");
                refused += 1;
            }
            Err(other) => panic!("{other}"),
        }
    }
    let log = entries(&house.file("decision.log"));
    let holds = log.iter().filter(|entry| {
        matches!(
            entry.body,
            Body::Command {
                command: Asked::Hold { .. }
            }
        )
    });
    let holds = holds.count();
    assert_eq!(holds + refused, 100);
    assert!(holds < 40, "{holds}");
}

/// What `failover` says, with a house's operator.
fn cli(house: &House, words: &[&str]) -> (Option<i32>, String) {
    drop(house.operator());
    let file = |name: &str| house.file(name);
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(env!("CARGO_BIN_EXE_failover"))
        .args(words)
        .env("FAILOVER_CONTROLLER", house.listen.to_string())
        .env("FAILOVER_CA", file("ca.pem"))
        .env("FAILOVER_CERTIFICATE", file("alice.operator.pem"))
        .env("FAILOVER_KEY", file("alice.operator.key"))
        .output()
        .unwrap();
    let text = [stdout, stderr].concat();
    (status.code(), String::from_utf8(text).unwrap())
}

#[tokio::test]
async fn a_reason_that_would_forge_a_line_is_refused_and_an_old_one_is_shown_harmless() {
    let house = House::new();
    let running = house.start().await;
    house.until("it has decided", |_| true).await;
    for (reason, said) in [
        (
            "a\n open forged",
            "error: the reason holds `\\n`, which is not a visible character: write one line of plain text\n",
        ),
        (
            "\u{1b}[2Jgone",
            "error: the reason holds `\\u{1b}`, which is not a visible character: write one line of plain text\n",
        ),
        (
            "abc\u{202e}def",
            "error: the reason holds `\\u{202e}`, which is not a visible character: write one line of plain text\n",
        ),
        (
            "  ",
            "error: the reason is empty: say why in a few words, such as `new disks at aws`\n",
        ),
    ] {
        for verb in [
            vec!["hold", "shop"],
            vec!["release", "shop"],
            vec!["promote", "shop", "--to", "gcp", "--yes"],
        ] {
            let words = [verb.as_slice(), &["--reason", reason]].concat();
            assert_eq!(cli(&house, &words), (Some(2), said.to_owned()), "{words:?}");
        }
        // By whoever does not use our command line, too.
        let hold = json!({ "reason": reason, "for_ms": 60_000 });
        let refused = house
            .operator()
            .post::<_, Value>("/hold", &hold, CALL)
            .await;
        let Err(CallError::Status { code: 400, text }) = refused else {
            panic!("{refused:?}");
        };
        assert!(!text.contains(is_harmful), "{text:?}");
    }
    let asked = |entry: &failover::engine::chain::Entry| matches!(entry.body, Body::Command { .. });
    let log = entries(&house.file("decision.log"));
    assert!(!log.iter().any(asked), "nothing of it is in the log");
    let (code, said) = cli(&house, &["hold", "shop", "--reason", "größer: 日本"]);
    assert_eq!(code, Some(0), "{said}");
    drop(running);

    // A log of a controller that let everything in.
    let log = house.file("decision.log");
    let chain: Chain = files::verify(&log).unwrap();
    let mut entry = entries(&log).pop().unwrap();
    entry.seq = chain.entries + 1;
    entry.previous = chain.head;
    let reason = "x)\n    9 2026-11-26T03:00:00.000Z e1 plan 9 done\u{1b}[2J\u{202e}".to_owned();
    entry.body = Body::Command {
        command: Asked::Hold {
            reason,
            until: WallTime(1_790_000_000_000),
        },
    };
    let json = canonical(&entry).unwrap();
    let mut bytes = std::fs::read(&log).unwrap();
    bytes.extend(format!("{} ", Digest::of(&json)).into_bytes());
    bytes.extend(json);
    bytes.push(b'\n');
    std::fs::write(&log, bytes).unwrap();
    let _running = house.start().await;
    let log = log.display().to_string();
    for words in [vec!["log", "show", log.as_str()], vec!["log", "show"]] {
        let (code, text) = cli(&house, &words);
        assert_eq!(code, Some(0), "{text}");
        let numbers: Vec<usize> = text
            .lines()
            .map(|line| line.split_whitespace().next().unwrap().parse().unwrap())
            .collect();
        let expected: Vec<usize> = (1..=numbers.len()).collect();
        assert_eq!(numbers, expected, "a line is forged: {text}");
        assert!(text.contains("(x)\\n    9 2026"), "{text}");
        assert!(!text.replace('\n', "").contains(is_harmful), "{text}");
    }
    // For programs the text is what it was, and no terminal is touched.
    let (_, json) = cli(&house, &["log", "show", log.as_str(), "--output", "json"]);
    assert!(!json.replace('\n', "").contains(is_harmful), "{json}");
    assert!(
        json.contains("\\u202e") && json.contains("\\u001b[2J"),
        "{json}"
    );
    until("its trace is one line for each event", async || {
        let said = std::fs::read_to_string(house.file("controller.log")).unwrap();
        !said.is_empty() && said.lines().all(|line| line.starts_with("20"))
    })
    .await;
}
