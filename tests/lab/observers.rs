//! Extra observers and a controller, as processes: what they may say, and what comes of it.

use std::fmt::Write as _;
use std::fs::File;
use std::net::SocketAddr;
use std::process::Command;

use failover::adapters::files;
use failover::adapters::tls::{CallError, Identity, PeerClient};
use failover::engine::detector::VoteKind;
use failover::engine::observation::{Finding, ProbeFailure};
use failover::engine::reason::Code;
use failover::engine::topology::{Target, TargetKind, Vantage};
use failover::wire::{
    OBSERVED_PATH, ObserverAnswer, ObserverReport, REPORT_PATH, ReportAnswer, SentObservation,
    Status,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::bad_input::{CALL, House, Running, address, agent, just, report, socket};
use crate::pair::{Pair, site};
use crate::stage::{FAST, until};

fn observer(name: &str) -> Identity {
    Identity::Observer {
        group: "shop".parse().unwrap(),
        name: name.parse().unwrap(),
    }
}

/// Has the controller believe `paris`, and answer probes. Where that is.
fn name_paris(house: &House) -> SocketAddr {
    let path = house.file("failover.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let plain = socket();
    let listen = format!("[controller]\nlisten_plain = \"{plain}\"");
    let text = text.replace("[controller]", &listen);
    std::fs::write(path, format!("{text}[[observers]]\nname = \"paris\"\n")).unwrap();
    plain
}

/// A page of the controller in plain HTTP, with its head.
async fn page(at: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(at).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// What `failover status` shows.
fn shown(house: &House) -> String {
    let file = |name: &str| house.file(name).display().to_string();
    let done = Command::new(env!("CARGO_BIN_EXE_failover"))
        .args(["status", "--controller", &house.listen.to_string()])
        .args([
            "--ca",
            &file("ca.pem"),
            "--key",
            &file("alice.operator.key"),
        ])
        .args(["--certificate", &file("alice.operator.pem")])
        .output()
        .unwrap();
    String::from_utf8(done.stdout).unwrap()
}

/// Starts the observer `paris`.
fn start_paris(house: &House) -> Running {
    house.issue(&observer("paris"));
    let mut text = format!(
        "[observer]\ngroup = \"shop\"\nname = \"paris\"\ncontroller = \"{}\"\n\
         [tls]\nca = \"ca.pem\"\ncertificate = \"paris.observer.shop.pem\"\n\
         key = \"paris.observer.shop.key\"\n",
        house.listen
    );
    for (name, database) in ["aws", "gcp"].iter().zip(house.databases) {
        write!(
            text,
            "[sites.{name}]\napi = \"http://{}/healthz\"\n\
             database = \"host={} port={} dbname=app user=failover sslmode=disable\"\n\
             password_file = \"password\"\n",
            socket(),
            database.ip(),
            database.port()
        )
        .unwrap();
    }
    std::fs::write(house.file("observer.toml"), text).unwrap();
    let log = File::create(house.file("observer.log")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_failover"));
    command.args(["observer", "--config"]);
    let child = command.arg(house.file("observer.toml")).stderr(log).spawn();
    Running(child.unwrap())
}

/// What the observer says of a target, if it says anything lately.
fn vote(status: &Status, name: &str, kind: TargetKind) -> Option<VoteKind> {
    let paris: Vantage = "observer:paris".parse().unwrap();
    let votes = &status.situation.sites[&site(name)].health[&kind].votes;
    let vote = votes.iter().find(|vote| vote.vantage == paris);
    vote.map(|vote| vote.kind)
}

#[tokio::test]
async fn an_observer_has_its_vote_and_one_that_falls_silent_is_missed() {
    let pair = Pair::new().await;
    let databases = [address(&pair.primary), address(pair.standby())];
    let house = House::with(databases, "watch");
    // Nobody reports for the sites here: two of three could speak, if the observer does.
    let policy = FAST.replace("quorum = 2", "quorum = 3");
    std::fs::write(house.file("policy.toml"), policy).unwrap();
    let plain = name_paris(&house);
    let _controller = house.start().await;
    let status = house.until("it has decided", |_| true).await;
    let paris = "paris".parse().unwrap();
    assert_eq!(status.situation.observers[&paris].age, None);
    assert!(shown(&house).contains("observer paris: never reported"));
    let series = "failover_observer_report_age_seconds{group=\"shop\",observer=\"paris\"} ";
    let never = format!("{series}inf\n");
    assert!(page(plain, "/metrics").await.contains(&never));

    let observing = start_paris(&house);
    let status = house
        .until("the observer's votes are there", |status| {
            let good = |name| vote(status, name, TargetKind::Database) == Some(VoteKind::For);
            let bad = |name| vote(status, name, TargetKind::Api) == Some(VoteKind::Against);
            good("aws") && good("gcp") && bad("aws") && bad("gcp")
        })
        .await;
    assert!(status.situation.observers[&paris].age.is_some());
    // Its look was a write, like the controller's.
    let writers = "SELECT vantage FROM failover.heartbeat ORDER BY vantage";
    assert_eq!(pair.primary.sql(writers), "controller\nobserver:paris");
    // It neither reaches for the controller nor speaks for an agent.
    assert!(
        status
            .situation
            .sites
            .values()
            .all(|site| site.agent.is_none())
    );

    assert!(shown(&house).contains("observer paris: last report "));
    let metrics = page(plain, "/metrics").await;
    assert!(
        metrics.contains(series) && !metrics.contains(&never),
        "{metrics}"
    );

    drop(observing);
    house
        .until("the observer is missed", |status| {
            let says = |reason: &failover::engine::reason::Reason| {
                reason.code == Code::ObserverSilent
                    && reason
                        .detail
                        .as_deref()
                        .is_some_and(|why| why.contains("`paris` silent for"))
            };
            status.decision.gates.iter().any(|gate| says(&gate.reason))
        })
        .await;
    let ready = page(plain, "/readyz").await;
    let missed = "observer-silent: 1 vantage point (limit 3 vantage points); `paris` silent for";
    assert!(ready.contains(missed), "{ready}");
}

fn looks(name: &str, site_name: &str) -> ObserverReport {
    ObserverReport {
        group: "shop".parse().unwrap(),
        name: name.parse().unwrap(),
        observations: vec![SentObservation {
            target: Target {
                site: site(site_name),
                kind: TargetKind::Database,
            },
            began: std::time::Duration::ZERO,
            ended: std::time::Duration::ZERO,
            finding: Finding::Bad(ProbeFailure::Refused),
        }],
        heard: None,
        version: "0".to_owned(),
    }
}

async fn refused(client: &PeerClient, path: &str, body: &impl serde::Serialize) -> (u16, String) {
    match client.post::<_, Value>(path, body, CALL).await {
        Err(CallError::Denied { status, text }) => (status, text),
        Err(CallError::Status { code, text }) => (code, text),
        other => panic!("{path}: {other:?}"),
    }
}

#[tokio::test]
async fn an_observer_tells_what_it_saw_and_nothing_else() {
    let house = House::new();
    name_paris(&house);
    let mut running = house.start().await;
    let paris = house.client(&house.issue(&observer("paris")));
    let rome = house.client(&house.issue(&observer("rome")));
    let gcp = house.client(&house.issue(&agent("gcp")));
    let mut sees = looks("paris", "aws");
    for known in [false, true] {
        let answer: ObserverAnswer = paris.post(OBSERVED_PATH, &sees, CALL).await.unwrap();
        assert_eq!(answer.intake.taken, known, "the first may be any age");
        sees.heard = Some(just(answer.intake));
    }

    // Who it may be.
    for (client, name, said) in [
        (
            &rome,
            "rome",
            "`rome` is none of the observers of this controller",
        ),
        (
            &rome,
            "paris",
            "`rome.observer.shop.failover.internal` may not report as observer `paris`",
        ),
        (
            &gcp,
            "paris",
            "`gcp.agent.shop.failover.internal` may not report as observer `paris`",
        ),
        (
            &house.operator(),
            "paris",
            "`alice.operator.failover.internal` may not report",
        ),
    ] {
        let (status, text) = refused(client, OBSERVED_PATH, &looks(name, "aws")).await;
        assert_eq!(status, 403, "{text}");
        assert!(text.contains(said), "{text}");
    }
    let mut elsewhere = looks("paris", "aws");
    elsewhere.group = "other".parse().unwrap();
    assert_eq!(refused(&paris, OBSERVED_PATH, &elsewhere).await.0, 403);

    // It is no agent, for no site, and no operator.
    let asks: Result<ReportAnswer, _> = paris.post(REPORT_PATH, &report("aws"), CALL).await;
    assert!(
        asks.unwrap_err()
            .to_string()
            .contains("may not report for site `aws`")
    );
    paris.get::<Status>("/status", CALL).await.unwrap_err();
    paris.get::<Value>("/log?from=1", CALL).await.unwrap_err();
    let promote = json!({ "to": "gcp", "reason": "x", "accept_data_loss": null, "override_fence": true, "dry_run": false });
    for (path, body) in [
        ("/promote", promote),
        ("/hold", json!({ "reason": "x", "for_ms": 1000 })),
        ("/release", json!({ "reason": "x" })),
    ] {
        let (status, text) = refused(&paris, path, &body).await;
        assert_eq!(status, 403, "{path}: {text}");
        assert!(text.contains("is not an operator"), "{path}: {text}");
    }

    // What it may say.
    let (status, text) = refused(&paris, OBSERVED_PATH, &looks("paris", "azure")).await;
    assert_eq!(status, 403);
    assert!(
        text.contains("`database@azure` is not an observer's to probe"),
        "{text}"
    );
    let mut agents = looks("paris", "aws");
    agents.observations[0].target.kind = TargetKind::Agent;
    assert_eq!(refused(&paris, OBSERVED_PATH, &agents).await.0, 403);
    let mut long = looks("paris", "aws");
    let text = "x".repeat(100_000);
    long.observations[0].finding = Finding::Bad(ProbeFailure::Unreachable(text));
    assert_eq!(refused(&paris, OBSERVED_PATH, &long).await.0, 413);
    for nonsense in [
        json!(null),
        json!([]),
        json!({ "group": "shop", "name": "a b" }),
    ] {
        assert_eq!(refused(&paris, OBSERVED_PATH, &nonsense).await.0, 422);
    }

    // One of all these rejections is in the log: nobody fills it by knocking.
    until("one is in the log", async || {
        !house.notes("observer-rejected").is_empty()
    })
    .await;
    let notes = house.notes("observer-rejected");
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(
        notes[0].contains("`rome` is none of the observers"),
        "{notes:?}"
    );
    let status = house
        .until("the one report counts", |status| {
            vote(status, "aws", TargetKind::Database) == Some(VoteKind::Against)
        })
        .await;
    assert_eq!(status.situation.observers.len(), 1);
    assert!(running.0.try_wait().unwrap().is_none(), "it keeps running");
    drop(running);
    files::verify(&house.file("decision.log")).unwrap();
}
