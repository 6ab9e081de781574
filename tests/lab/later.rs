//! A controller beside programs of other versions: what they add is ignored where it is a fact, and refused
//! by name where it is an order or an entry of the log.

use failover::adapters::files;
use failover::adapters::tls::CallError;
use failover::engine::chain::{Digest, FORMAT as LOG, canonical};
use failover::engine::format::{Format, PROGRAM, WrittenBy};
use failover::wire::written::FORMAT;
use failover::wire::{REPORT_PATH, ReportAnswer, Status};
use serde_json::{Value, json};

use crate::bad_input::{CALL, House, agent, just, report};
use crate::pair::site;
use crate::stage::until;

/// The report of an agent of another program, whose last answer was `heard`.
fn report_by(program: &str, format: &str, heard: Option<&ReportAnswer>) -> Value {
    let mut own = report("gcp");
    own.heard = heard.map(|answer| just(answer.intake));
    let mut report = serde_json::to_value(own).unwrap();
    report["written_by"] = json!({"program": program, "format": format});
    report["mood"] = json!({"is": "good"});
    report["facts"]["mood"] = json!("good");
    report
}

#[tokio::test]
async fn a_report_of_a_later_program_counts_as_far_as_it_is_known() {
    let house = House::new();
    let _running = house.start().await;
    let gcp = house.client(&house.issue(&agent("gcp")));
    let mut heard: Option<ReportAnswer> = None;
    for known in [false, true] {
        let report = report_by("7.1.0", "1.9", heard.as_ref());
        let answer: ReportAnswer = gcp.post(REPORT_PATH, &report, CALL).await.unwrap();
        assert_eq!(answer.intake.taken, known, "the first may be any age");
        heard = Some(answer);
    }
    let is = |status: &Status, by: &WrittenBy| status.fleet.agents.get(&site("gcp")) == Some(by);
    let later = WrittenBy {
        program: "7.1.0".to_owned(),
        format: Format::new(1, 9),
    };
    let status = house
        .until("it is named", |status| is(status, &later))
        .await;
    assert!(status.fleet.mixed);
    assert_eq!(status.fleet.controller, WrittenBy::ours(FORMAT));
    assert!(status.situation.sites[&site("gcp")].agent.is_some());

    // One of before formats had numbers says of itself what it always said.
    let mut own = report("gcp");
    own.heard = heard.as_ref().map(|answer| just(answer.intake));
    own.version = PROGRAM.to_owned();
    let _: ReportAnswer = gcp.post(REPORT_PATH, &own, CALL).await.unwrap();
    let earlier = WrittenBy {
        program: PROGRAM.to_owned(),
        format: Format::UNNUMBERED,
    };
    let status = house
        .until("it is named", |status| is(status, &earlier))
        .await;
    assert!(status.fleet.mixed);
    let answer: ReportAnswer = gcp.say(REPORT_PATH, &own, CALL).await.unwrap();
    assert_eq!(answer.epoch, own.epoch);
    let ours = WrittenBy::ours(FORMAT);
    let status = house.until("it is named", |status| is(status, &ours)).await;
    assert!(!status.fleet.mixed);
}

#[tokio::test]
async fn what_cannot_be_understood_is_refused_by_name_and_noted() {
    let house = House::new();
    let _running = house.start().await;
    let gcp = house.client(&house.issue(&agent("gcp")));
    let refused = gcp
        .post::<_, ReportAnswer>(REPORT_PATH, &report_by("7.1.0", "2.0", None), CALL)
        .await;
    let CallError::Status { code: 422, text } = refused.unwrap_err() else {
        panic!("it is not refused by name");
    };
    let told = format!(
        "the report is of failover 7.1.0 (format 2.0), and this controller, failover {PROGRAM}, does not understand it: formats are read up to 1.x: upgrade the controller first"
    );
    assert_eq!(text, told);
    until("it is noted", async || {
        let notes = house.notes("report-not-understood");
        let whole = notes.iter().all(|note| note.contains(&told));
        assert!(whole, "{notes:?}");
        notes.len() == 1 && notes[0].contains("gcp.agent.shop")
    })
    .await;
    let status = house.until("it has decided", |_| true).await;
    assert!(status.fleet.agents.is_empty() && !status.fleet.mixed);

    // A command that says more than this controller knows is not obeyed at all.
    let operator = house.operator();
    let hold = json!({"reason": "x", "for_ms": 60_000, "except_for": ["gcp"]});
    let refused = operator.post::<_, ()>("/hold", &hold, CALL).await;
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("unknown field `except_for`"), "{text}");
    let status = house.until("it has decided", |_| true).await;
    assert_eq!(status.situation.automation.hold, None);
}

/// Puts an entry of a later controller at the end of a log.
fn continue_as(log: &std::path::Path, version: &str, body: Value) {
    let (line, last) = files::read(log, 1, usize::MAX).unwrap().pop().unwrap();
    let mut entry = serde_json::to_value(&last).unwrap();
    entry["seq"] = (last.seq + 1).into();
    entry["version"] = version.into();
    entry["body"] = body;
    entry["previous"] = line[..64].into();
    let json = canonical(&entry).unwrap();
    let mut text = std::fs::read(log).unwrap();
    text.extend(format!("{} ", Digest::of(&json)).into_bytes());
    text.extend([&json[..], b"\n"].concat());
    std::fs::write(log, text).unwrap();
}

#[tokio::test]
async fn a_log_that_a_later_controller_went_on_with_is_left_to_that_one() {
    let house = House::new();
    drop(house.start().await);
    let log = house.file("decision.log");
    let begun = files::read(&log, 1, 1).unwrap();
    let (line, _) = &begun[0];
    assert!(line.contains(&format!("\"format\":\"{LOG}\"")), "{line}");
    let good = std::fs::read(&log).unwrap();
    let bodies = [
        (
            json!({"entry": "mirror", "to": "s3"}),
            "unknown variant `mirror`",
        ),
        (
            json!({"entry": "note", "code": "x", "text": "x", "binds": true}),
            "unknown field `body.binds`",
        ),
    ];
    for (body, why) in bodies {
        std::fs::write(&log, &good).unwrap();
        continue_as(&log, "7.1.0", body);
        let written = std::fs::read(&log).unwrap();
        let said = house.refused("failover.toml", 1);
        let whose = format!("failover 7.1.0 wrote it, and this one, failover {PROGRAM}");
        let hint = "hint: start failover 7.1.0 or a later one on it";
        for told in [
            why,
            &whose,
            hint,
            "is not understood",
            "runbooks/log-broken.md",
        ] {
            assert!(said.contains(told), "{said}");
        }
        assert_eq!(std::fs::read(&log).unwrap(), written, "nothing was changed");
    }
    std::fs::write(&log, &good).unwrap();
    house.start().await;
}
