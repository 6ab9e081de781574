//! Dynamic updates against a real name server.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use failover::adapters::rfc2136::{Rfc2136, Settings, TsigKey};
use failover::engine::answer::Answer;
use failover::engine::receipt::Receipt;
use failover::engine::topology::SiteName;
use failover::engine::units::Epoch;
use failover::lab::name_server::{NameServer, free_port};
use failover::ports::{Confirmation, EffectError, OutsideFault, Traffic, Versioned};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::clock::MachineClock;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const RECORD: &str = "app.shop.test";
const ADDRESSES: [(&str, &[&str]); 2] = [
    ("aws", &["192.0.2.1", "192.0.2.2", "2001:db8::1"]),
    ("gcp", &["198.51.100.1", "2001:db8:1::1"]),
];

struct Lab {
    server: NameServer,
    settings: Settings,
    /// The server's files.
    _dir: TempDir,
}

fn key(name: &str, secret: &[u8]) -> TsigKey {
    TsigKey {
        name: name.into(),
        secret: secret.into(),
    }
}

fn good_key() -> TsigKey {
    key("failover", &[7; 32])
}

fn site(name: &str) -> SiteName {
    name.parse().unwrap()
}

async fn lab() -> Lab {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port(LOOPBACK).unwrap();
    let server = NameServer::start(
        std::process::Command::new(failover::lab::name_server::program()),
        dir.path(),
        LOOPBACK,
        port,
        "shop.test",
        good_key(),
    )
    .await
    .unwrap();
    let addresses = ADDRESSES.map(|(name, list)| {
        (
            site(name),
            list.iter().map(|ip| ip.parse().unwrap()).collect(),
        )
    });
    let settings = server.settings("dns".parse().unwrap(), RECORD, addresses.into());
    Lab {
        server,
        settings,
        _dir: dir,
    }
}

impl Lab {
    fn target(&self) -> Rfc2136 {
        target(self.settings.clone())
    }

    /// Changes the zone as somebody else would; `signed` or not.
    fn by_hand(&self, change: &str, signed: bool) -> String {
        let address = self.server.address();
        let script = format!(
            "server {} {}\nzone shop.test\n{change}\nsend\nquit\n",
            address.ip(),
            address.port()
        );
        let mut command = Command::new("knsupdate");
        if signed {
            let secret = data_encoding::BASE64.encode(&self.settings.key.secret);
            command
                .arg("-y")
                .arg(format!("hmac-sha256:failover:{secret}"));
        }
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        process
            .stdin
            .take()
            .unwrap()
            .write_all(script.as_bytes())
            .unwrap();
        let output = process.wait_with_output().unwrap();
        format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    }
}

fn target(settings: Settings) -> Rfc2136 {
    Rfc2136::new(settings, Arc::new(MachineClock::default())).unwrap()
}

fn weights(aws: u16, gcp: u16) -> BTreeMap<SiteName, u16> {
    [(site("aws"), aws), (site("gcp"), gcp)].into()
}

fn answer(aws: u16, gcp: u16, epoch: u64) -> Answer {
    Answer {
        weights: weights(aws, gcp),
        epoch: Some(Epoch(epoch)),
    }
}

async fn write(target: &Rfc2136, to: &Answer) -> Versioned {
    let from = target.read().await.unwrap();
    target.apply(&from, to, "plan-1", &|| Ok(())).await.unwrap();
    target.read().await.unwrap()
}

fn refusal(result: Result<impl std::fmt::Debug, EffectError>) -> String {
    match result {
        Err(EffectError::Refused(text)) => text,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn the_first_write_needs_no_record_and_is_read_back_with_its_epoch() {
    let lab = lab().await;
    let target = lab.target();
    let empty = target.read().await.unwrap();
    assert_eq!(
        empty.answer,
        Answer {
            weights: weights(0, 0),
            epoch: None
        }
    );
    assert_eq!(
        write(&target, &answer(100, 0, 1)).await.answer,
        answer(100, 0, 1)
    );
}

#[tokio::test]
async fn a_flip_moves_both_kinds_of_address_and_every_name_server_shows_it() {
    let lab = lab().await;
    let target = lab.target();
    write(&target, &answer(100, 0, 1)).await;
    let after = write(&target, &answer(0, 100, 2)).await;
    assert_eq!(after.answer, answer(0, 100, 2));
    assert!(after.token.contains("2001:db8:1::1") && !after.token.contains("192.0.2.1"));

    let views = target.verify_outside().await;
    assert_eq!(views.len(), 1);
    assert_eq!(views[0].place, lab.server.address().to_string());
    assert_eq!(views[0].answer, Ok(answer(0, 100, 2)));
}

#[tokio::test]
async fn a_change_is_made_when_every_name_server_has_the_serial_of_its_receipt() {
    let mut lab = lab().await;
    let target = lab.target();
    let from = target.read().await.unwrap();
    let to = answer(100, 0, 1);
    let receipt = target.apply(&from, &to, "", &|| Ok(())).await.unwrap();
    assert_eq!(receipt.ids["serial"], serial(&lab).await.to_string());
    assert_eq!(receipt.before, [""; 0]);
    assert_eq!(
        receipt.after,
        [
            "app.shop.test. A 192.0.2.1, 192.0.2.2",
            "app.shop.test. AAAA 2001:db8::1",
            "_failover.app.shop.test. TXT epoch=1 site=aws",
        ]
    );
    assert_eq!(target.confirm(&receipt).await, Ok(Confirmation::Made));
    // What comes later has it, too.
    write(&target, &answer(0, 100, 2)).await;
    assert_eq!(target.confirm(&receipt).await, Ok(Confirmation::Made));
    let ahead = Receipt::default().named("serial", (serial(&lab).await + 1).to_string());
    assert_eq!(target.confirm(&ahead).await, Ok(Confirmation::Pending));

    let lost = (LOOPBACK, free_port(LOOPBACK).unwrap()).into();
    lab.settings.authoritative.push(lost);
    lab.settings.timeout = Duration::from_millis(500);
    let said = lab.target().confirm(&receipt).await;
    assert_eq!(said, Ok(Confirmation::Pending), "nobody knows of that one");
    let nameless = target.confirm(&Receipt::default()).await;
    assert!(
        matches!(nameless, Err(EffectError::Refused(_))),
        "{nameless:?}"
    );
}

#[tokio::test]
async fn an_answer_too_long_for_udp_is_asked_for_again_over_tcp() {
    let mut lab = lab().await;
    let many = (1..=60).map(|last| Ipv4Addr::new(192, 0, 2, last).into());
    lab.settings.addresses.insert(site("aws"), many.collect());
    let target = lab.target();
    let after = write(&target, &answer(100, 0, 1)).await;
    assert!(after.token.contains("192.0.2.60"));
    let view = target.verify_outside().await.remove(0);
    assert_eq!(view.answer, Ok(answer(100, 0, 1)));
}

#[tokio::test]
async fn a_changed_epoch_alone_makes_a_flip_stale() {
    let lab = lab().await;
    let target = lab.target();
    let before = write(&target, &answer(100, 0, 1)).await;
    write(&target, &answer(100, 0, 2)).await;
    let result = target
        .apply(&before, &answer(0, 100, 2), "", &|| Ok(()))
        .await;
    assert!(
        matches!(result, Err(EffectError::Conflict(_))),
        "{result:?}"
    );
}

#[tokio::test]
async fn a_wrong_key_is_refused_with_its_cause_and_changes_nothing() {
    let lab = lab().await;
    let good = lab.target();
    let before = write(&good, &answer(100, 0, 1)).await;
    for (wrong, cause) in [
        (key("failover", b"another secret"), "BADSIG"),
        (key("stranger", &[7; 32]), "BADKEY"),
    ] {
        let bad = target(Settings {
            key: wrong,
            ..lab.settings.clone()
        });
        let text = refusal(bad.apply(&before, &answer(0, 100, 2), "", &|| Ok(())).await);
        assert!(text.contains(cause), "{text}");
    }
    assert_eq!(good.read().await.unwrap(), before);
}

#[tokio::test]
async fn a_clock_that_is_wrong_is_named_as_the_cause() {
    let lab = lab().await;
    let clock = MachineClock {
        ahead: Duration::from_hours(1),
    };
    let target = Rfc2136::new(lab.settings.clone(), Arc::new(clock)).unwrap();
    let empty = target.read().await.unwrap();
    let text = refusal(
        target
            .apply(&empty, &answer(100, 0, 1), "", &|| Ok(()))
            .await,
    );
    assert!(text.contains("BADTIME") && text.contains("NTP"), "{text}");
}

#[tokio::test]
async fn an_unsigned_update_is_refused() {
    let lab = lab().await;
    let change = format!("add {RECORD}. 60 A 203.0.113.9");
    let said = lab.by_hand(&change, false);
    assert!(
        said.contains("REFUSED") || said.contains("NOTAUTH"),
        "{said}"
    );
    assert_eq!(
        lab.target().read().await.unwrap().answer.sites_on().count(),
        0
    );
}

/// The zone's number, which grows with each change.
async fn serial(lab: &Lab) -> u32 {
    let soa = failover::adapters::dns::Lookup {
        name: "shop.test.".parse().unwrap(),
        kind: hickory_proto::rr::RecordType::SOA,
        timeout: Duration::from_secs(2),
    };
    let found = soa.ask(lab.server.address()).await.unwrap();
    let hickory_proto::rr::RData::SOA(soa) = &found[0] else {
        panic!("{found:?}");
    };
    soa.serial
}

#[tokio::test]
async fn a_rehearsal_shows_key_and_right_and_changes_nothing() {
    let mut lab = lab().await;
    let target = lab.target();
    // In an empty zone as in one that holds something.
    let empty = target.read().await.unwrap();
    assert_eq!(target.rehearse(&empty).await, Ok(()));
    let held = write(&target, &answer(100, 0, 1)).await;
    let before = serial(&lab).await;
    assert_eq!(target.rehearse(&held).await, Ok(()));
    assert_eq!(serial(&lab).await, before);
    assert_eq!(target.read().await.unwrap(), held);

    let old = target.rehearse(&empty).await;
    assert!(matches!(old, Err(EffectError::Conflict(_))), "{old:?}");
    lab.settings.key = key("failover", &[8; 32]);
    let said = refusal(lab.target().rehearse(&held).await);
    assert!(said.contains("BADSIG"), "{said}");
    lab.settings.key = key("nobody", &[7; 32]);
    let said = refusal(lab.target().rehearse(&held).await);
    assert!(said.contains("BADKEY"), "{said}");
}

#[tokio::test]
async fn an_address_of_nobody_is_refused_by_name() {
    let lab = lab().await;
    let target = lab.target();
    write(&target, &answer(100, 0, 1)).await;
    let said = lab.by_hand(&format!("add {RECORD}. 60 A 203.0.113.9"), true);
    let text = refusal(target.read().await);
    assert!(text.contains("`203.0.113.9`"), "{text} {said}");
    let view = target.verify_outside().await.remove(0);
    let OutsideFault::Wrong(why) = view.answer.unwrap_err() else {
        panic!("not called wrong");
    };
    assert!(why.contains("`203.0.113.9`"), "{why}");
}

#[tokio::test]
async fn a_note_or_alias_of_somebody_else_is_refused() {
    for (change, shown) in [
        (
            format!("add _failover.{RECORD}. 60 TXT \"hello\""),
            "`hello`",
        ),
        (
            format!("add {RECORD}. 60 CNAME elsewhere.test."),
            "elsewhere.test",
        ),
    ] {
        let lab = lab().await;
        let said = lab.by_hand(&change, true);
        let text = refusal(lab.target().read().await);
        assert!(text.contains(shown), "{text} {said}");
    }
}

#[tokio::test]
async fn a_zone_of_another_server_is_refused() {
    let lab = lab().await;
    let elsewhere = Settings {
        zone: "other.test".into(),
        record: "app.other.test".into(),
        ..lab.settings.clone()
    };
    let elsewhere = target(elsewhere);
    refusal(elsewhere.read().await);
    let empty = lab.target().read().await.unwrap();
    refusal(
        elsewhere
            .apply(&empty, &answer(100, 0, 1), "", &|| Ok(()))
            .await,
    );
}

#[tokio::test]
async fn a_server_that_is_down_certainly_changed_nothing() {
    let Lab {
        server,
        settings,
        _dir,
    } = lab().await;
    let target = target(settings);
    let empty = target.read().await.unwrap();
    server.stop().await.unwrap();
    let result = target
        .apply(&empty, &answer(100, 0, 1), "", &|| Ok(()))
        .await;
    assert!(matches!(result, Err(EffectError::Failed(_))), "{result:?}");
    let result = target.read().await;
    assert!(matches!(result, Err(EffectError::Failed(_))), "{result:?}");
    assert!(target.verify_outside().await.remove(0).answer.is_err());
}

#[tokio::test]
async fn a_server_that_takes_the_update_and_falls_silent_leaves_the_outcome_unknown() {
    let lab = lab().await;
    let empty = lab.target().read().await.unwrap();
    let mute = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let mute_target = target(Settings {
        server: mute.local_addr().unwrap(),
        timeout: Duration::from_millis(200),
        ..lab.settings.clone()
    });
    let result = mute_target
        .apply(&empty, &answer(100, 0, 1), "", &|| Ok(()))
        .await;
    assert!(matches!(result, Err(EffectError::Unknown(_))), "{result:?}");

    let rude = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let rude_target = target(Settings {
        server: rude.local_addr().unwrap(),
        ..lab.settings.clone()
    });
    let to = answer(100, 0, 1);
    let (result, ()) = tokio::join!(rude_target.apply(&empty, &to, "", &|| Ok(())), async {
        let (mut stream, _) = rude.accept().await.unwrap();
        stream.read_u16().await.unwrap();
    });
    assert!(matches!(result, Err(EffectError::Unknown(_))), "{result:?}");
}

#[tokio::test]
async fn a_yes_without_signature_and_a_failing_server_leave_the_outcome_unknown() {
    let lab = lab().await;
    let empty = lab.target().read().await.unwrap();
    let fake = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let fake_target = target(Settings {
        server: fake.local_addr().unwrap(),
        ..lab.settings.clone()
    });
    let to = answer(100, 0, 1);
    for (code, part) in [(0, "not authenticated"), (2, "Server Failure")] {
        let (result, ()) = tokio::join!(fake_target.apply(&empty, &to, "", &|| Ok(())), async {
            let (mut stream, _) = fake.accept().await.unwrap();
            let length = stream.read_u16().await.unwrap();
            let mut request = vec![0; usize::from(length)];
            stream.read_exact(&mut request).await.unwrap();
            let update_reply = 0b1010_1000;
            let header = [
                request[0],
                request[1],
                update_reply,
                code,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
            ];
            stream.write_u16(12).await.unwrap();
            stream.write_all(&header).await.unwrap();
        });
        assert!(
            matches!(&result, Err(EffectError::Unknown(text)) if text.contains(part)),
            "{result:?}"
        );
    }
}

#[tokio::test]
async fn what_a_plain_record_cannot_say_is_refused_before_sending() {
    let lab = lab().await;
    let target = lab.target();
    let empty = target.read().await.unwrap();
    for (to, part) in [
        (answer(70, 30, 1), "weight 70"),
        (answer(0, 0, 1), "no site"),
    ] {
        let text = refusal(target.apply(&empty, &to, "", &|| Ok(())).await);
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(target.read().await.unwrap(), empty);
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused_and_show_no_secret() {
    let lab = lab().await;
    let check = |change: fn(&mut Settings), part: &str| {
        let mut settings = lab.settings.clone();
        change(&mut settings);
        let text = refusal(Rfc2136::new(settings, Arc::new(MachineClock::default())));
        assert!(text.contains(part), "{text}");
    };
    check(|s| s.record = "app.other.test".into(), "not in zone");
    check(|s| s.record = "*.shop.test".into(), "is not a record name");
    check(
        |s| s.addresses.values_mut().for_each(Vec::clear),
        "has no address",
    );
    check(
        |s| {
            for list in s.addresses.values_mut() {
                list.push(LOOPBACK);
            }
        },
        "belongs to both",
    );
    let shown = format!("{:?}", lab.target());
    assert!(
        !shown.contains("[7, 7") && shown.contains("failover"),
        "{shown}"
    );
}
