//! A controller alone, told too much: by its database, by an agent, by an observer. Whatever comes
//! in, its log can be read again, and it starts from it.

use std::sync::Arc;
use std::time::Duration;

use failover::adapters::files;
use failover::adapters::tls::TlsMaterial;
use failover::engine::chain::{Body, READ_LINE, WRITTEN_LINE};
use failover::engine::situation::LocalDatabase;
use failover::engine::text::{TEXT_LIMIT, is_harmful};
use failover::engine::topology::TargetKind;
use failover::wire::{OBSERVED_PATH, REPORT_PATH, Report, ReportAnswer};
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::bad_input::{CALL, House, address, agent, just, report, socket};
use crate::pair::{Pair, site};
use crate::stage::{entries, until};

/// The longest line of a house's log, which verifies.
fn longest_line(house: &House) -> usize {
    let log = house.file("decision.log");
    files::verify(&log).unwrap();
    let bytes = std::fs::read(log).unwrap();
    bytes
        .split(|byte| *byte == b'\n')
        .map(<[u8]>::len)
        .max()
        .unwrap()
}

/// Every text in the log that has this in it.
fn texts_with(house: &House, part: &str) -> Vec<String> {
    fn walk(value: &Value, part: &str, found: &mut Vec<String>) {
        match value {
            Value::String(text) if text.contains(part) => found.push(text.clone()),
            Value::Array(all) => all.iter().for_each(|each| walk(each, part, found)),
            Value::Object(all) => all.values().for_each(|each| walk(each, part, found)),
            Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
    let mut found = Vec::new();
    for entry in entries(&house.file("decision.log")) {
        walk(&serde_json::to_value(entry).unwrap(), part, &mut found);
    }
    found
}

#[tokio::test]
async fn a_database_that_answers_with_a_megabyte_of_error_leaves_a_log_that_can_be_read() {
    let pair = Pair::primary_only().await;
    pair.primary.beat().await;
    pair.primary.sql(
        "CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS
           $$BEGIN RAISE EXCEPTION 'loud %', repeat(E'\\u001b\\n\"', 300000); END$$;
         CREATE TRIGGER shout BEFORE INSERT OR UPDATE ON failover.heartbeat
           EXECUTE FUNCTION shout();",
    );
    let house = House::with([address(&pair.primary), socket()], "watch");
    let running = house.start().await;
    until("its words are in the log", async || {
        !texts_with(&house, "loud ").is_empty()
    })
    .await;
    let told = texts_with(&house, "loud ");
    assert!(
        told.iter().any(|text| text.ends_with(" bytes)")),
        "{told:?}"
    );
    assert!(
        told.iter().all(|text| !text.contains(is_harmful)),
        "{told:?}"
    );
    drop(running);
    assert!(longest_line(&house) < WRITTEN_LINE / 4);
    house.start().await;
}

#[tokio::test]
async fn a_database_whose_rows_and_settings_are_enormous_is_seen_and_recorded() {
    let pair = Pair::primary_only().await;
    pair.primary.beat().await;
    let names = vec!["some_standby_of_a_very_long_name"; 3000].join(",");
    pair.primary.sql(&format!(
        "ALTER SYSTEM SET synchronous_standby_names = '{names}'"
    ));
    pair.primary.sql(
        "INSERT INTO failover.epoch VALUES (true, 9223372036854775807, 'aws', '9999-12-31');
         INSERT INTO failover.heartbeat VALUES ('aws', 'observer:rome', 9223372036854775800, '290000-01-01');
         SELECT pg_reload_conf();",
    );
    let house = House::with([address(&pair.primary), socket()], "watch");
    let running = house.start().await;
    let aws = site("aws");
    let status = house
        .until("the names are seen", |status| {
            let database = status.situation.sites[&aws].database.as_ref();
            database.is_some_and(|database| !database.fact.synchronous_names.is_empty())
        })
        .await;
    let database = &status.situation.sites[&aws].database.as_ref().unwrap().fact;
    assert!(database.synchronous_names.len() <= TEXT_LIMIT);
    assert!(database.epoch.unwrap().0 < 1 << 53, "{database:?}");
    assert!(
        status.situation.sites[&aws].health[&TargetKind::Database]
            .votes
            .len()
            == 1
    );
    until("a decision on it is in the log", async || {
        !texts_with(&house, "some_standby_of").is_empty()
    })
    .await;
    drop(running);
    assert!(longest_line(&house) < WRITTEN_LINE / 4);
    house.start().await;
}

#[tokio::test]
async fn an_agent_that_says_too_much_is_cut_short_or_refused_and_does_no_harm() {
    let house = House::new();
    let running = house.start().await;
    let gcp = house.client(&house.issue(&agent("gcp")));
    let mut loud = report("gcp");
    loud.version = "v".repeat(50_000);
    loud.facts.database = LocalDatabase::Down {
        since: Duration::from_secs(1),
        why: "broken\u{1b}[2J\n".repeat(5_000),
    };
    for known in [false, true] {
        let answer: ReportAnswer = gcp.post(REPORT_PATH, &loud, CALL).await.unwrap();
        assert_eq!(answer.intake.taken, known, "the first may be any age");
        loud.heard = Some(just(answer.intake));
    }
    let gcp_site = site("gcp");
    let status = house
        .until("it was heard", |status| {
            status.situation.sites[&gcp_site].agent.is_some()
        })
        .await;
    let heard = &status.situation.sites[&gcp_site]
        .agent
        .as_ref()
        .unwrap()
        .fact;
    let LocalDatabase::Down { why, .. } = &heard.database else {
        panic!("{heard:?}");
    };
    assert!(
        why.len() <= TEXT_LIMIT && !why.contains(is_harmful),
        "{why}"
    );

    let mut huge = report("gcp");
    huge.version = "v".repeat(1_500_000);
    let refused = gcp.post::<_, ReportAnswer>(REPORT_PATH, &huge, CALL).await;
    // It may hear why, or find the connection closed while it still writes.
    refused.unwrap_err();
    drop(running);
    assert!(longest_line(&house) < WRITTEN_LINE / 4);
    house.start().await;
}

/// What the controller answers to any bytes as a body.
async fn raw(
    house: &House,
    files: &failover::adapters::tls::TlsFiles,
    path: &str,
    body: &[u8],
) -> String {
    let material = TlsMaterial::load(files).unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(material.client_config()));
    let name = ServerName::try_from("controller.failover.internal").unwrap();
    let stream = TcpStream::connect(house.listen).await.unwrap();
    let mut stream = connector.connect(name, stream).await.unwrap();
    let head = format!(
        "POST /v1/groups/shop{path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // A server that has read enough may close before the rest is written.
    stream.write_all(body).await.unwrap_or_default();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap_or_default();
    String::from_utf8_lossy(&answer).into_owned()
}

/// A report in JSON, changed.
fn changed(report: &Report, path: &str, value: &str) -> Vec<u8> {
    let mut json = serde_json::to_value(report).unwrap();
    *json.pointer_mut(path).unwrap() = json!("HERE");
    json.to_string().replace("\"HERE\"", value).into_bytes()
}

#[tokio::test]
async fn numbers_and_texts_that_json_cannot_carry_are_refused_where_they_come_in() {
    let house = House::new();
    let mut running = house.start().await;
    let files = house.issue(&agent("gcp"));
    let mut good = report("gcp");
    good.facts.fenced = Some(failover::engine::units::Epoch(1));
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    let many = format!(
        "[{}]",
        vec![
            r#"{"target":{"site":"aws","kind":"api"},"began_ms":0,"ended_ms":0,"finding":{"bad":"refused"}}"#;
            1000
        ]
        .join(",")
    );
    for (path, value, said) in [
        ("/epoch", "18446744073709551615", "larger than 2^53 - 1"),
        ("/epoch", "9007199254740992", "larger than 2^53 - 1"),
        ("/epoch", "1e400", "number out of range"),
        ("/epoch", "-0", "invalid type"),
        ("/epoch", "1.0", "invalid type"),
        ("/epoch", "NaN", "expected value"),
        (
            "/facts/fenced",
            "18446744073709551615",
            "larger than 2^53 - 1",
        ),
        ("/version", "\"\\ud800\"", "hex escape"),
        ("/version", "\"a\nb\"", "control character"),
        ("/version", &deep, "invalid type"),
        ("/facts", &deep, "invalid type"),
        (
            "/site",
            &format!("\"{}\"", "x".repeat(5000)),
            "(5000 bytes)",
        ),
        ("/observations", &many, "1000 observations, the limit is 16"),
    ] {
        let answer = raw(&house, &files, REPORT_PATH, &changed(&good, path, value)).await;
        let shown: String = value.chars().take(40).collect();
        assert!(answer.starts_with("HTTP/1.1 4"), "{path} {shown}: {answer}");
        assert!(answer.contains(said), "{path} {shown}: {answer}");
        assert!(
            answer.len() < 2000,
            "{path} {shown}: {} bytes",
            answer.len()
        );
    }
    let mut bad = serde_json::to_vec(&good).unwrap();
    let at = bad.len() - 3;
    bad[at] = 0xff;
    let answer = raw(&house, &files, REPORT_PATH, &bad).await;
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    // A hundred thousand are not even read.
    let flood = vec![b' '; 10 << 20];
    for path in [REPORT_PATH, OBSERVED_PATH, "/hold", "/promote"] {
        let answer = raw(&house, &files, path, &flood).await;
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{path}: {answer}"
        );
    }
    assert!(running.0.try_wait().unwrap().is_none(), "it keeps running");
    let answer: ReportAnswer = house
        .client(&files)
        .post(REPORT_PATH, &good, CALL)
        .await
        .unwrap();
    assert!(!answer.intake.taken, "the first may be any age");
    drop(running);
    assert!(longest_line(&house) < WRITTEN_LINE / 4);
}

#[tokio::test]
async fn a_log_with_a_line_that_only_an_older_controller_would_write_is_read() {
    use failover::engine::chain::{Chain, Digest, canonical};

    let house = House::new();
    drop(house.start().await);
    let log = house.file("decision.log");
    let mut bytes = std::fs::read(&log).unwrap();
    let chain: Chain = files::verify(&log).unwrap();
    // Longer than 4 MiB, which once was the most that was read and not the most that was written.
    let mut entry = entries(&log).pop().unwrap();
    entry.seq += 1;
    entry.previous = chain.head;
    entry.body = Body::Note {
        code: "old".to_owned(),
        text: "\u{1}x".repeat(900_000),
    };
    let json = canonical(&entry).unwrap();
    assert!(json.len() > 4 << 20 && json.len() < READ_LINE);
    assert!(
        chain.clone().append(&entry).is_err(),
        "it is not written any more"
    );
    bytes.extend(format!("{} ", Digest::of(&json)).into_bytes());
    bytes.extend(json);
    bytes.push(b'\n');
    std::fs::write(&log, bytes).unwrap();
    let running = house.start().await;
    until("it goes on behind it", async || {
        house.notes("started").len() == 2
    })
    .await;
    drop(running);
    files::verify(&log).unwrap();
}
