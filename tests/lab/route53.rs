//! Route 53: against ministack, which keeps the rules of change batches, and against a stub of
//! ours for what only a failing service says.

pub(crate) mod doubles;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_route53::Client;
use aws_sdk_route53::types::{
    Change, ChangeAction, ChangeBatch, ResourceRecord, ResourceRecordSet, RrType,
};
use failover::adapters::rfc2136::{Rfc2136, TsigKey};
use failover::adapters::route53::{Access, Api, Route53, Settings, SiteRecord};
use failover::adapters::weighted::{Kind, Place};
use failover::engine::answer::Answer;
use failover::engine::receipt::Receipt;
use failover::engine::topology::SiteName;
use failover::engine::units::Epoch;
use failover::lab::name_server::{NameServer, free_port};
use failover::ports::{Confirmation, EffectError, Traffic, Versioned};

use self::doubles::{Ministack, Stub};
use crate::clock::MachineClock;

const AWS: &str = "192.0.2.1";
pub(crate) const GCP: &str = "198.51.100.1";
const RECORD: &str = "app.shop.test";

fn site(name: &str) -> SiteName {
    name.parse().unwrap()
}

pub(crate) fn settings(zone_id: &str) -> Settings {
    let record = |value: &str| SiteRecord {
        value: value.into(),
        set_identifier: None,
    };
    Settings {
        name: "dns".parse().unwrap(),
        zone_id: zone_id.into(),
        place: Place {
            zone: "shop.test".into(),
            record: RECORD.into(),
            kind: Kind::A,
            ttl_seconds: 60,
            name_servers: Vec::new(),
            timeout: Duration::from_secs(2),
        },
        sites: [(site("aws"), record(AWS)), (site("gcp"), record(GCP))].into(),
    }
}

async fn api(endpoint: &str) -> Api {
    let access = Access::Key {
        id: "test".into(),
        secret: "test".into(),
    };
    Api::connect(access, Some(endpoint), Duration::from_secs(2)).await
}

async fn target(endpoint: &str, settings: Settings) -> Route53 {
    Route53::new(
        settings,
        api(endpoint).await,
        Arc::new(MachineClock::default()),
    )
    .unwrap()
}

fn answer(aws: u16, gcp: u16, epoch: u64) -> Answer {
    let weights: BTreeMap<_, _> = [(site("aws"), aws), (site("gcp"), gcp)].into();
    Answer {
        weights,
        epoch: Some(Epoch(epoch)),
    }
}

async fn write(target: &Route53, to: &Answer) -> Versioned {
    let from = target.read().await.unwrap();
    target.apply(&from, to, "plan-1", &|| Ok(())).await.unwrap();
    target.read().await.unwrap()
}

pub(crate) fn weighted(value: &str, identifier: &str, weight: i64) -> ResourceRecordSet {
    simple(RECORD, value, identifier, Some(weight))
}

fn simple(name: &str, value: &str, identifier: &str, weight: Option<i64>) -> ResourceRecordSet {
    ResourceRecordSet::builder()
        .name(name)
        .r#type(RrType::A)
        .set_set_identifier(weight.map(|_| identifier.to_owned()))
        .set_weight(weight)
        .ttl(60)
        .resource_records(ResourceRecord::builder().value(value).build().unwrap())
        .build()
        .unwrap()
}

/// Writes a record as somebody else would.
pub(crate) async fn by_hand(client: &Client, zone_id: &str, record: ResourceRecordSet) {
    let change = Change::builder()
        .action(ChangeAction::Upsert)
        .resource_record_set(record);
    let batch = ChangeBatch::builder()
        .changes(change.build().unwrap())
        .build()
        .unwrap();
    let request = client.change_resource_record_sets().hosted_zone_id(zone_id);
    request.change_batch(batch).send().await.unwrap();
}

fn refusal(result: Result<impl std::fmt::Debug, EffectError>) -> String {
    match result {
        Err(EffectError::Refused(text)) => text,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn the_first_write_needs_no_records_and_a_flip_is_read_back_with_its_epoch() {
    let service = Ministack::start().await;
    let zone = service.zone("shop.test").await;
    let target = target(&service.endpoint, settings(&zone)).await;
    let empty = target.read().await.unwrap();
    assert_eq!(
        empty.answer,
        Answer {
            epoch: None,
            ..answer(0, 0, 0)
        }
    );
    assert_eq!(
        write(&target, &answer(100, 0, 1)).await.answer,
        answer(100, 0, 1)
    );
    assert_eq!(
        write(&target, &answer(0, 100, 2)).await.answer,
        answer(0, 100, 2)
    );
    assert_eq!(
        write(&target, &answer(0, 255, 3)).await.answer,
        answer(0, 255, 3)
    );
}

#[tokio::test]
async fn records_that_were_there_keep_their_identifiers() {
    let service = Ministack::start().await;
    let zone = service.zone("shop.test").await;
    by_hand(&service.client, &zone, weighted(AWS, "Frankfurt", 200)).await;
    by_hand(
        &service.client,
        &zone,
        simple("other.shop.test", "203.0.113.9", "", None),
    )
    .await;
    let target = target(&service.endpoint, settings(&zone)).await;
    let after = write(&target, &answer(0, 100, 1)).await;
    assert_eq!(after.answer, answer(0, 100, 1));
    assert!(after.token.contains("Frankfurt") && after.token.contains("failover-gcp"));
}

#[tokio::test]
async fn records_of_somebody_else_are_refused_by_name() {
    let service = Ministack::start().await;
    for (record, part) in [
        (weighted("203.0.113.9", "failover-aws", 1), "`203.0.113.9`"),
        (weighted(AWS, "second", 1), "both"),
        (simple(RECORD, AWS, "", None), "a simple record"),
    ] {
        let zone = service.zone("shop.test").await;
        if part == "both" {
            by_hand(&service.client, &zone, weighted(AWS, "first", 1)).await;
        }
        by_hand(&service.client, &zone, record).await;
        let target = target(&service.endpoint, settings(&zone)).await;
        let text = refusal(target.read().await);
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test]
async fn what_route_53_refuses_is_refused_before_sending() {
    let stub = Stub::start("").await;
    let target = target(&stub.endpoint, settings("Z1")).await;
    let empty = target.read().await.unwrap();
    let mut stranger = answer(100, 0, 1);
    stranger.weights.insert(site("azure"), 0);
    for (to, part) in [
        (answer(256, 0, 1), "weight 256"),
        (answer(0, 0, 1), "all weights"),
        (stranger, "`azure`"),
    ] {
        let text = refusal(target.apply(&empty, &to, "", &|| Ok(())).await);
        assert!(text.contains(part), "{text}");
    }
    assert!(stub.batches().is_empty());
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused() {
    let api_of = || api("http://127.0.0.1:9");
    for (change, part) in [
        (
            (|s: &mut Settings| s.place.record = "app.other.test".into()) as fn(&mut Settings),
            "not in zone",
        ),
        (|s| s.place.kind = Kind::Aaaa, "not one value"),
        (
            |s| s.sites.values_mut().for_each(|r| r.value = AWS.into()),
            "two sites",
        ),
        (
            |s| {
                for record in s.sites.values_mut() {
                    record.set_identifier = Some("x".into());
                }
            },
            "used twice",
        ),
        (
            |s| {
                for record in s.sites.values_mut() {
                    record.set_identifier = Some(String::new());
                }
            },
            "1 to 128",
        ),
    ] {
        let mut wrong = settings("Z1");
        change(&mut wrong);
        let made = Route53::new(wrong, api_of().await, Arc::new(MachineClock::default()));
        let text = refusal(made);
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test]
async fn one_batch_deletes_and_creates_and_is_confirmed_when_it_is_in_sync() {
    let stub = Stub::start(&doubles::two_sites(100, 0)).await;
    stub.then_pending(1);
    let target = target(&stub.endpoint, settings("Z1")).await;
    let from = target.read().await.unwrap();
    let receipt = target
        .apply(&from, &answer(0, 100, 8), &"n".repeat(300), &|| Ok(()))
        .await
        .unwrap();
    assert_eq!(receipt.ids["change"], "/change/C1");
    assert_eq!(
        receipt.before,
        [
            "app.shop.test. A failover-aws weight 100 192.0.2.1",
            "app.shop.test. A failover-gcp weight 0 198.51.100.1",
            "_failover.app.shop.test. TXT \"epoch=7 site=aws\"",
        ]
    );
    assert_eq!(receipt.after.len(), 3);
    assert_eq!(stub.changes_asked(), 0, "nobody waits here");
    for said in [Confirmation::Pending, Confirmation::Made] {
        assert_eq!(target.confirm(&receipt).await, Ok(said));
    }

    let batches = stub.batches();
    assert_eq!(batches.len(), 1);
    let parts: Vec<_> = batches[0].split("<Change>").skip(1).collect();
    let shown = |part: &&str| part.contains("<Action>DELETE</Action>");
    assert_eq!(
        parts.iter().map(shown).collect::<Vec<_>>(),
        [true, true, true, false, false, false]
    );
    assert!(
        parts[0].contains("<Weight>100</Weight>") && parts[0].contains(AWS),
        "{}",
        parts[0]
    );
    assert!(
        parts[3].contains("<Weight>0</Weight>") && parts[3].contains(AWS),
        "{}",
        parts[3]
    );
    assert!(
        parts[0].contains("check-1") && parts[3].contains("check-1"),
        "the health check stays"
    );
    assert!(parts[5].contains("epoch=8 site=gcp"), "{}", parts[5]);
    let comment = batches[0]
        .split("<Comment>")
        .nth(1)
        .unwrap()
        .split('<')
        .next()
        .unwrap();
    assert_eq!(comment.len(), 256);
}

/// What one error of the change call means.
async fn verdict(status: u16, body: &str) -> EffectError {
    let stub = Stub::start(&doubles::two_sites(100, 0)).await;
    let target = target(&stub.endpoint, settings("Z1")).await;
    let from = target.read().await.unwrap();
    stub.then_answer(status, body);
    let error = target
        .apply(&from, &answer(0, 100, 8), "", &|| Ok(()))
        .await
        .unwrap_err();
    assert_eq!(
        stub.batches().len(),
        1,
        "sent once, never repeated: {error}"
    );
    error
}

fn error_body(code: &str) -> String {
    format!(
        "<ErrorResponse xmlns=\"https://route53.amazonaws.com/doc/2013-04-01/\"><Error>\
         <Type>Sender</Type><Code>{code}</Code><Message>told so</Message></Error>\
         <RequestId>1</RequestId></ErrorResponse>"
    )
}

#[tokio::test]
async fn throttling_and_a_change_in_flight_certainly_did_not_happen_and_may_be_tried_again() {
    for code in [
        "Throttling",
        "PriorRequestNotComplete",
        "ThrottlingException",
    ] {
        let error = verdict(400, &error_body(code)).await;
        assert!(matches!(error, EffectError::Failed(_)), "{code}: {error:?}");
    }
}

#[tokio::test]
async fn a_batch_that_does_not_match_is_a_conflict_in_both_wire_forms() {
    let old = "<InvalidChangeBatch xmlns=\"https://route53.amazonaws.com/doc/2013-04-01/\">\
               <Messages><Message>not found</Message></Messages></InvalidChangeBatch>";
    for body in [error_body("InvalidChangeBatch"), old.to_owned()] {
        let error = verdict(400, &body).await;
        assert!(matches!(error, EffectError::Conflict(_)), "{error:?}");
    }
}

#[tokio::test]
async fn missing_rights_and_a_wrong_clock_are_refused_with_what_to_do() {
    for (status, code, part) in [
        (403, "AccessDenied", "route53:ChangeResourceRecordSets"),
        (403, "SignatureDoesNotMatch", "NTP"),
        (404, "NoSuchHostedZone", "NoSuchHostedZone"),
    ] {
        let text = refusal(Err::<(), _>(verdict(status, &error_body(code)).await));
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test]
async fn a_failing_service_may_have_made_the_change() {
    for (status, body) in [(503, "<html>sorry</html>"), (500, "")] {
        let error = verdict(status, body).await;
        assert!(matches!(error, EffectError::Unknown(_)), "{error:?}");
    }
}

#[tokio::test]
async fn a_change_that_cannot_be_asked_about_is_not_called_void() {
    let stub = Stub::start(&doubles::two_sites(100, 0)).await;
    let live = target(&stub.endpoint, settings("Z1")).await;
    let nameless = live.confirm(&Receipt::default()).await;
    assert!(
        matches!(nameless, Err(EffectError::Refused(_))),
        "{nameless:?}"
    );
    let port = free_port(Ipv4Addr::LOCALHOST.into()).unwrap();
    let gone = target(&format!("http://127.0.0.1:{port}"), settings("Z1")).await;
    let receipt = Receipt::default().named("change", "/change/C1");
    let unasked = gone.confirm(&receipt).await;
    assert!(
        matches!(unasked, Err(EffectError::Unknown(_))),
        "{unasked:?}"
    );
}

#[tokio::test]
async fn a_service_out_of_reach_leaves_a_change_unknown_and_a_read_failed() {
    let stub = Stub::start(&doubles::two_sites(100, 0)).await;
    let from = target(&stub.endpoint, settings("Z1"))
        .await
        .read()
        .await
        .unwrap();
    let port = free_port(Ipv4Addr::LOCALHOST.into()).unwrap();
    let gone = target(&format!("http://127.0.0.1:{port}"), settings("Z1")).await;
    let result = gone.read().await;
    assert!(matches!(result, Err(EffectError::Failed(_))), "{result:?}");
    let result = gone.apply(&from, &answer(0, 100, 8), "", &|| Ok(())).await;
    assert!(matches!(result, Err(EffectError::Unknown(_))), "{result:?}");
}

#[tokio::test]
async fn an_alias_among_the_records_is_refused() {
    let alias = doubles::two_sites(100, 0).replace(
        "<TTL>60</TTL>",
        "<AliasTarget><HostedZoneId>Z2</HostedZoneId><DNSName>lb.test.</DNSName>\
         <EvaluateTargetHealth>true</EvaluateTargetHealth></AliasTarget>",
    );
    let stub = Stub::start(&alias).await;
    let text = refusal(target(&stub.endpoint, settings("Z1")).await.read().await);
    assert!(text.contains("an alias"), "{text}");
}

#[tokio::test]
async fn each_name_server_is_asked_and_every_site_that_it_answers_is_on() {
    let ip: IpAddr = Ipv4Addr::LOCALHOST.into();
    let dir = tempfile::tempdir().unwrap();
    let key = TsigKey {
        name: "failover".into(),
        secret: vec![7; 32],
    };
    let port = free_port(ip).unwrap();
    let server = NameServer::start(
        std::process::Command::new(failover::lab::name_server::program()),
        dir.path(),
        ip,
        port,
        "shop.test",
        key,
    )
    .await
    .unwrap();
    let addresses =
        [("aws", AWS), ("gcp", GCP)].map(|(name, ip)| (site(name), vec![ip.parse().unwrap()]));
    let zone = server.settings("zone".parse().unwrap(), RECORD, addresses.into());
    let zone = Rfc2136::new(zone, Arc::new(MachineClock::default())).unwrap();
    let dead: SocketAddr = (ip, free_port(ip).unwrap()).into();
    let mut with_servers = settings("Z1");
    with_servers.place.name_servers = vec![server.address(), dead];
    with_servers.place.timeout = Duration::from_millis(500);
    let target = target("http://127.0.0.1:9", with_servers).await;
    for to in [answer(0, 100, 1), answer(100, 100, 2)] {
        let from = zone.read().await.unwrap();
        zone.apply(&from, &to, "", &|| Ok(())).await.unwrap();
        let views = target.verify_outside().await;
        assert_eq!(views[0].answer, Ok(to));
        assert_eq!(views[1].place, dead.to_string());
        assert!(views[1].answer.is_err());
    }
}

#[tokio::test]
async fn a_rehearsal_changes_nothing_and_is_refused_where_a_change_would_be() {
    let service = Ministack::start().await;
    let zone = service.zone("shop.test").await;
    let live = target(&service.endpoint, settings(&zone)).await;
    let held = write(&live, &answer(100, 0, 1)).await;
    assert_eq!(live.rehearse(&held).await, Ok(()));
    assert_eq!(live.read().await.unwrap(), held);

    let stub = Stub::start(&doubles::two_sites(100, 0)).await;
    let denied = target(&stub.endpoint, settings("Z1")).await;
    let held = denied.read().await.unwrap();
    stub.then_answer(403, &error_body("AccessDenied"));
    let said = refusal(denied.rehearse(&held).await);
    assert!(said.contains("AccessDenied"), "{said}");
    // What was let through is not asked again at once.
    stub.then_answer(400, &error_body("InvalidChangeBatch"));
    assert_eq!(denied.rehearse(&held).await, Ok(()));
    assert_eq!(denied.rehearse(&held).await, Ok(()));
    assert_eq!(stub.batches().len(), 2);
}
