//! The first words on the guard's socket: an agent beside guards of other programs, which are scripted
//! here by what they put on the wire.

use std::path::Path;

use failover::agent::guard_link::{GuardLink, GuardLinkError};
use failover::agent::guard_protocol::{GuardConfig, GuardEvent, PROTOCOL, StopTimes};
use failover::engine::format::{PROGRAM, WrittenBy};
use failover::engine::units::Epoch;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;

fn config(folder: &Path) -> GuardConfig {
    GuardConfig {
        bin_dir: "/nowhere".into(),
        data_dir: "/nowhere".into(),
        port: 5432,
        listen_addresses: String::new(),
        socket_dir: "/nowhere".into(),
        run_as: None,
        state_dir: folder.to_owned(),
        log_file: folder.join("log"),
        options: Vec::new(),
        stop: StopTimes {
            fast_ms: 1,
            immediate_ms: 1,
            kill_ms: 1,
        },
    }
}

/// What a guard answers to a line, line by line.
type Script = fn(&Value) -> Vec<String>;

/// A guard that says what its script says, and an agent's link to it.
async fn beside(script: Script) -> (tempfile::TempDir, Result<GuardLink, GuardLinkError>) {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let listener = UnixListener::bind(config.socket()).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (read, mut write) = stream.into_split();
            let mut lines = BufReader::new(read).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                for answer in script(&serde_json::from_str(&line).unwrap()) {
                    write
                        .write_all(format!("{answer}\n").as_bytes())
                        .await
                        .unwrap();
                }
            }
        }
    });
    let link = GuardLink::connect_or_spawn(config, "/nowhere/failover".into()).await;
    (folder, link)
}

/// Says yes to whatever it is told, as guards of every program do.
fn done(request: &Value) -> String {
    json!({"id": request["id"], "reply": {"done": {}}}).to_string()
}

fn hello(request: &Value, program: &str, format: &str) -> String {
    let written_by = json!({"program": program, "format": format, "later": true});
    json!({"id": request["id"], "reply": {"hello": written_by}}).to_string()
}

fn is_hello(request: &Value) -> bool {
    request["cmd"].get("hello").is_some()
}

#[tokio::test]
async fn a_guard_that_knows_no_hello_is_spoken_to_as_before() {
    let (_folder, link) = beside(|request| {
        if is_hello(request) {
            // To the letter what the program of commit d7787f2 answers.
            let why = "not a command: unknown variant `hello`, expected one of `start`, `right`, `renounce`, `fence`, `unfence`, `stop`, `quit`, `status` at line 1 column 22";
            return vec![json!({"id": 0, "reply": {"refused": {"why": why}}}).to_string()];
        }
        vec![done(request)]
    })
    .await;
    let link = link.unwrap();
    assert_eq!(link.guard(), WrittenBy::default());
    link.renounce().await.unwrap();
    link.unfence(Epoch(2)).await.unwrap();
}

#[tokio::test]
async fn both_say_who_they_are_before_anything_else() {
    let (_folder, link) = beside(|request| {
        let ours = serde_json::to_value(WrittenBy::ours(PROTOCOL)).unwrap();
        if is_hello(request) {
            assert_eq!(request["cmd"]["hello"], ours);
            return vec![hello(request, "0.0.9", "1.0")];
        }
        vec![done(request)]
    })
    .await;
    let link = link.unwrap();
    assert_eq!(link.guard().to_string(), "failover 0.0.9 (format 1.0)");
    link.renounce().await.unwrap();
}

#[tokio::test]
async fn what_only_a_later_guard_knows_is_named_and_ends_nothing() {
    let (_folder, link) = beside(|request| {
        if is_hello(request) {
            // News may come before the answer.
            let news = json!({"event": {"rested": {"for_ms": 7}}}).to_string();
            return vec![news, hello(request, "7.1.0", "1.9")];
        }
        if request["cmd"].get("quit").is_some() {
            let reply = json!({"postponed": {"by_ms": 5}});
            return vec![json!({"id": request["id"], "reply": reply}).to_string()];
        }
        let news = [
            json!({"event": {"rested": {"for_ms": 7}}}).to_string(),
            json!({"event": {"unproven": {"alive": "process 7", "since_ms": 5}}}).to_string(),
        ];
        [&news[..], &[done(request)]].concat()
    })
    .await;
    let link = link.unwrap();
    let mut events = link.events();
    let refused = link.quit().await.unwrap_err();
    let GuardLinkError::Unknown(why) = &refused else {
        panic!("{refused:?}");
    };
    for told in ["failover 7.1.0 (format 1.9)", PROGRAM, "upgrade the agent"] {
        assert!(why.contains(told), "{why}");
    }
    link.renounce().await.unwrap();
    let alive = "process 7".to_owned();
    assert_eq!(events.try_recv(), Ok(GuardEvent::Unproven { alive }));
    events.try_recv().unwrap_err();
}

#[tokio::test]
async fn what_a_later_guard_adds_to_its_status_is_ignored() {
    let (_folder, link) = beside(|request| {
        if is_hello(request) {
            return vec![hello(request, "7.1.0", "1.9")];
        }
        let words = include_str!("../golden/messages/guard-words.jsonl");
        let status = words.lines().find(|line| line.contains("\"status\":{"));
        let mut word: Value = serde_json::from_str(status.unwrap()).unwrap();
        word["id"] = request["id"].clone();
        let status = &mut word["reply"]["status"];
        for place in [
            "",
            "/config",
            "/right",
            "/marker",
            "/marker/proof",
            "/last_exit",
        ] {
            status.pointer_mut(place).unwrap()["later"] = 7.into();
        }
        vec![word.to_string()]
    })
    .await;
    let status = link.unwrap().status().await.unwrap();
    assert_eq!((status.guard_pid, status.config.port), (77, 5432));
}

#[tokio::test]
async fn a_guard_of_a_later_major_format_is_refused_by_name() {
    let (_folder, link) = beside(|request| vec![hello(request, "7.1.0", "2.0")]).await;
    assert_eq!(
        link.unwrap_err().to_string(),
        format!(
            "the guard is failover 7.1.0 (format 2.0), and this agent, failover {PROGRAM}, understands guards up to format 1.x: upgrade the agent first"
        )
    );
}
