//! The two kinds of traffic targets that are Google's, against our doubles of its interfaces: what
//! each answer means, and what goes over the wire.

use std::fmt::Debug;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use async_trait::async_trait;
use failover::engine::receipt::Receipt;
use failover::lab::doubles::script::{Planned, Script};
use failover::lab::name_server::free_port;
use failover::ports::{Confirmation, EffectError, OutsideFault, Traffic, Versioned};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use crate::pair::until;
use crate::traffic::backend_rig::{self, BackendRig, balancer};
use crate::traffic::cloud_dns_rig::{self, AWS, CloudDnsRig, GCP, RECORD, weighted};
use crate::traffic::{Rig, only, site};

/// A kind of target that is Google's.
#[async_trait]
pub(crate) trait GoogleRig: Rig {
    fn script(&self) -> &Script;
    /// A target whose interface is at this address, with 300 ms for each call.
    async fn at(address: SocketAddr) -> Box<dyn Traffic>;
}

async fn apply(target: &dyn Traffic, from: &Versioned) -> Result<Receipt, EffectError> {
    let to = only("gcp", 2);
    target.apply(from, &to, "plan 7", &|| Ok(())).await
}

/// Leads to the first site, in epoch 1.
async fn begun(rig: &impl Rig) -> Versioned {
    let target = rig.target();
    let from = target.read().await.unwrap();
    let to = only("aws", 1);
    target.apply(&from, &to, "", &|| Ok(())).await.unwrap();
    until("the first change shows", async || {
        target.read().await.unwrap().answer == to
    })
    .await;
    target.read().await.unwrap()
}

/// What an error is, by one word.
fn kind<T: Debug>(result: &Result<T, EffectError>) -> &'static str {
    match result {
        Ok(_) => "made",
        Err(EffectError::Failed(_)) => "failed",
        Err(EffectError::Refused(_)) => "refused",
        Err(EffectError::Unknown(_)) => "unknown",
        Err(EffectError::Late(_)) => "late",
        Err(EffectError::Conflict(_)) => "conflict",
    }
}

async fn each_refusal_means_what_it_says_and_is_sent_once(rig: &impl GoogleRig) {
    let before = begun(rig).await;
    for (status, message, means) in [
        (400, "Invalid value for field", "refused"),
        (400, "The resource 'x' is not ready", "failed"),
        (
            401,
            "Request had invalid authentication credentials.",
            "failed",
        ),
        (403, "Required permission for the project", "refused"),
        (403, "Rate Limit Exceeded", "failed"),
        (403, "Quota exceeded for quota metric 'Queries'", "failed"),
        (404, "The resource was not found", "refused"),
        (408, "Request Timeout", "unknown"),
        (409, "The resource already exists", "conflict"),
        (412, "Precondition not met", "conflict"),
        (429, "Too Many Requests", "failed"),
        (500, "Internal error", "unknown"),
        (502, "Bad Gateway", "unknown"),
        (503, "Backend Error", "unknown"),
        (504, "Deadline", "unknown"),
    ] {
        let sent = rig.changes_sent();
        rig.script().plan(Planned::refusal(status, message));
        let result = apply(rig.target(), &before).await;
        assert_eq!(kind(&result), means, "{status} {message}: {result:?}");
        let said = result.unwrap_err().to_string();
        assert!(said.contains(message), "{status}: {said}");
        assert_eq!(rig.changes_sent(), sent + 1, "never repeated: {status}");
        assert_eq!(rig.target().read().await.unwrap(), before, "{status}");
    }
    let hint = rig.script();
    hint.plan(Planned::refusal(401, "expired"));
    let said = apply(rig.target(), &before).await.unwrap_err().to_string();
    assert!(said.contains("has it ended"), "{said}");
}

async fn an_answer_that_is_no_answer_is_unknown(rig: &impl GoogleRig) {
    let mut before = begun(rig).await;
    for (status, body, effective) in [
        (200, "<html>sorry</html>", true),
        (200, "{\"status\": 7}", true),
        (200, "", false),
        (200, "{}", false),
        (503, "<html>sorry</html>", true),
    ] {
        let planned = Planned {
            status,
            retry_after: None,
            body: body.to_owned(),
            effective,
        };
        rig.script().plan(planned);
        let result = apply(rig.target(), &before).await;
        assert_eq!(kind(&result), "unknown", "{status} {body}: {result:?}");
        if effective {
            until("a new read shows it", async || {
                rig.target().read().await.unwrap().answer == only("gcp", 2)
            })
            .await;
            before = begun(rig).await;
        }
    }
}

async fn a_throttle_is_heeded_for_as_long_as_it_says(rig: &impl GoogleRig) {
    let before = begun(rig).await;
    rig.script().plan(Planned::refusal(429, "slow down"));
    assert_eq!(kind(&apply(rig.target(), &before).await), "failed");
    let planned = Planned {
        retry_after: Some(2),
        ..Planned::refusal(429, "slow down")
    };
    rig.script().plan(planned);
    let result = apply(rig.target(), &before).await;
    let Err(EffectError::Failed(said)) = &result else {
        panic!("{result:?}");
    };
    assert!(said.contains("asks to wait 2 s"), "{said}");
    let (sent, read) = (rig.changes_sent(), rig.script().reads());
    let result = apply(rig.target(), &before).await;
    assert!(
        matches!(&result, Err(EffectError::Failed(why)) if why.contains("asked not to be called")),
        "{result:?}"
    );
    assert_eq!(kind(&rig.target().read().await), "failed");
    assert_eq!((rig.changes_sent(), rig.script().reads()), (sent, read));
    until("it may be called again", async || {
        apply(rig.target(), &before).await.is_ok()
    })
    .await;
}

async fn a_service_that_is_silent_or_away_is_told_apart<R: GoogleRig>(rig: &R) {
    let before = begun(rig).await;
    let mute = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let target = R::at(mute.local_addr().unwrap()).await;
    let asked = async {
        let (mut stream, _) = mute.accept().await.unwrap();
        let mut request = vec![0; 65536];
        let length = stream.read(&mut request).await.unwrap();
        // Kept open, and silent.
        let text = String::from_utf8_lossy(&request[..length]).into_owned();
        (text.to_ascii_lowercase(), stream)
    };
    let (result, (request, _open)) = tokio::join!(apply(target.as_ref(), &before), asked);
    assert_eq!(kind(&result), "late", "{result:?}");
    assert!(!request.contains("authorization"), "{request}");
    assert!(!request.contains("x-goog-user-project"), "{request}");

    let port = free_port(Ipv4Addr::LOCALHOST.into()).unwrap();
    let target = R::at((Ipv4Addr::LOCALHOST, port).into()).await;
    let result = apply(target.as_ref(), &before).await;
    assert_eq!(kind(&result), "failed", "nothing was sent: {result:?}");
    assert_eq!(kind(&target.read().await), "failed");
    let views = target.verify_outside().await;
    let unseen = matches!(views[0].answer, Err(OutsideFault::Unseen(_)));
    assert!(unseen, "{views:?}");
}

async fn a_rehearsal_is_refused_where_a_change_would_be(rig: &impl GoogleRig) {
    let before = begun(rig).await;
    let target = rig.target();
    rig.script()
        .plan(Planned::refusal(403, "Required permission"));
    assert_eq!(kind(&target.rehearse(&before).await), "refused");
    let sent = rig.changes_sent();
    for _ in 0..3 {
        assert_eq!(target.rehearse(&before).await, Ok(()));
    }
    assert_eq!(rig.changes_sent(), sent + 1, "not asked again at once");
    assert_eq!(target.read().await.unwrap(), before);
}

async fn what_cannot_be_asked_about_is_not_called_void(rig: &impl GoogleRig) {
    let target = rig.target();
    let nameless = target.confirm(&Receipt::default()).await;
    assert_eq!(kind(&nameless), "refused", "{nameless:?}");
    let gone = Receipt::default()
        .named("change", "99")
        .named("operation", "operation-99");
    let forgotten = target.confirm(&gone).await;
    assert_eq!(kind(&forgotten), "refused", "{forgotten:?}");
}

macro_rules! of_both {
    ($($name:ident)*) => {
        mod cloud_dns {
            use super::{CloudDnsRig, Rig};
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    super::$name(&CloudDnsRig::start().await).await;
                }
            )*
        }
        mod backend {
            use super::{BackendRig, Rig};
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    super::$name(&BackendRig::start().await).await;
                }
            )*
        }
    };
}

of_both!(
    each_refusal_means_what_it_says_and_is_sent_once
    an_answer_that_is_no_answer_is_unknown
    a_throttle_is_heeded_for_as_long_as_it_says
    a_service_that_is_silent_or_away_is_told_apart
    a_rehearsal_is_refused_where_a_change_would_be
    what_cannot_be_asked_about_is_not_called_void
);

fn refusal<T: Debug>(result: Result<T, EffectError>) -> String {
    match result {
        Err(EffectError::Refused(text)) => text,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn a_change_of_records_is_one_batch_that_repeats_what_was_there_with_its_zeros() {
    let rig = CloudDnsRig::start().await;
    let before = begun(&rig).await;
    let receipt = apply(rig.target(), &before).await.unwrap();
    let changes = rig.script().changes();
    assert_eq!(changes.len(), 2);
    // Not only as numbers: a zero that is left out would be another answer.
    assert_eq!(changes[1].matches("\"weight\":0.0").count(), 2);
    let body: Value = serde_json::from_str(&changes[1]).unwrap();
    let sets = |part: &str| body[part].as_array().unwrap().clone();
    let weights = |set: &Value| {
        let items = set["routingPolicy"]["wrr"]["items"].as_array().unwrap();
        items
            .iter()
            .map(|item| (item["rrdatas"][0].clone(), item["weight"].clone()))
            .collect::<Vec<_>>()
    };
    let (old, new) = (sets("deletions"), sets("additions"));
    assert_eq!((old.len(), new.len()), (2, 2), "record and note");
    let aws_gcp = |aws: f64, gcp: f64| [(json!(AWS), json!(aws)), (json!(GCP), json!(gcp))];
    assert_eq!(weights(&old[0]), aws_gcp(100.0, 0.0));
    assert_eq!(weights(&new[0]), aws_gcp(0.0, 100.0));
    assert_eq!(old[1]["rrdatas"], json!(["\"epoch=1 site=aws\""]));
    assert_eq!(new[1]["rrdatas"], json!(["\"epoch=2 site=gcp\""]));
    assert_eq!(
        receipt.before,
        [
            format!("{RECORD} A {AWS} weight 100; {GCP} weight 0"),
            format!("_failover.{RECORD} TXT \"epoch=1 site=aws\""),
        ]
    );
    for said in [Confirmation::Pending, Confirmation::Made] {
        assert_eq!(rig.target().confirm(&receipt).await, Ok(said));
    }
}

#[tokio::test]
async fn a_batch_of_which_a_part_does_not_fit_changes_nothing_and_is_never_split() {
    let rig = CloudDnsRig::start().await;
    let before = begun(&rig).await;
    // The note alone is somebody else's by now: the record still fits.
    rig.double.put(json!({
        "name": format!("_failover.{RECORD}"), "type": "TXT", "ttl": 60,
        "rrdatas": ["\"epoch=9 site=aws\""],
    }));
    let sets = rig.double.sets();
    assert_eq!(kind(&apply(rig.target(), &before).await), "conflict");
    assert_eq!(rig.double.sets(), sets);
    assert_eq!(rig.changes_sent(), 2);
}

#[tokio::test]
async fn record_sets_of_somebody_else_are_refused_by_name() {
    for (set, part) in [
        (weighted(&[("203.0.113.9", 1.0)]), "`203.0.113.9`"),
        (weighted(&[(AWS, 1.0), (AWS, 2.0)]), "twice"),
        (weighted(&[(AWS, 70_000.0)]), "70000"),
        (
            json!({"name": RECORD, "type": "A", "ttl": 60, "rrdatas": [AWS]}),
            "a plain record",
        ),
        (
            json!({"name": RECORD, "type": "A", "ttl": 60,
                "routingPolicy": {"geo": {"items": []}}}),
            "another policy",
        ),
        (
            json!({"name": RECORD, "type": "A", "ttl": 60, "routingPolicy": {"wrr": {"items": [
                {"weight": 1.0, "healthCheckedTargets": {"externalEndpoints": [AWS]}}]}}}),
            "health-checked",
        ),
        (
            json!({"name": format!("_failover.{RECORD}"), "type": "TXT", "ttl": 60,
                "rrdatas": ["\"v=spf1\""]}),
            "not a note of ours",
        ),
    ] {
        let rig = CloudDnsRig::start().await;
        rig.double.put(set);
        let text = refusal(rig.target().read().await);
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test]
async fn a_zone_that_is_not_there_or_another_one_is_refused() {
    let rig = CloudDnsRig::start().await;
    let (at, users) = (rig.double.address, rig.double.name_server());
    let mut away = cloud_dns_rig::settings(users);
    away.managed_zone = "other-zone".to_owned();
    let text = refusal(cloud_dns_rig::target(away, at).await.read().await);
    assert!(text.contains("other-zone"), "{text}");
    let mut twin = cloud_dns_rig::settings(users);
    twin.place.zone = "shop.example".to_owned();
    twin.place.record = "app.shop.example".to_owned();
    let text = refusal(cloud_dns_rig::target(twin, at).await.read().await);
    assert!(
        text.contains("is of `shop.test.`, not of `shop.example.`"),
        "{text}"
    );
}

#[tokio::test]
async fn a_patch_holds_the_fingerprint_every_backend_whole_and_its_zero() {
    let rig = BackendRig::start().await;
    let before = begun(&rig).await;
    let receipt = apply(rig.target(), &before).await.unwrap();
    let changes = rig.script().changes();
    let sent = changes.last().unwrap();
    assert_eq!(sent.matches("\"capacityScaler\":0.0").count(), 1, "{sent}");
    let body: Value = serde_json::from_str(sent).unwrap();
    let fields: Vec<&String> = body.as_object().unwrap().keys().collect();
    assert_eq!(
        fields,
        ["backends", "fingerprint"],
        "nothing else is touched"
    );
    let read: Value = serde_json::from_str(&before.token).unwrap();
    assert_eq!(body["fingerprint"], read["fingerprint"]);
    let scalers = [0.0, 1.0];
    for (index, scaler) in scalers.iter().enumerate() {
        let mut expected = read["backends"][index].clone();
        expected["capacityScaler"] = json!(scaler);
        expected["description"] = json!("[failover epoch=2 site=gcp]");
        assert_eq!(body["backends"][index], expected);
        assert_eq!(expected["maxRatePerEndpoint"], json!(100.5));
        assert_eq!(expected["preference"], json!("DEFAULT"));
    }
    assert_eq!(receipt.ids.len(), 2, "operation and request: {receipt:?}");
    assert_eq!(
        receipt.after[0],
        "shop-project/zones/europe-west3-a/networkEndpointGroups/aws capacityScaler 0 \
         [failover epoch=2 site=gcp]"
    );
}

#[tokio::test]
async fn an_operation_that_is_done_with_an_error_has_changed_nothing() {
    let rig = BackendRig::start().await;
    let before = begun(&rig).await;
    rig.double.fail_next_operation("stale");
    let receipt = apply(rig.target(), &before).await.unwrap();
    until("the operation is done", async || {
        rig.target().confirm(&receipt).await != Ok(Confirmation::Pending)
    })
    .await;
    let said = rig.target().confirm(&receipt).await.unwrap();
    let Confirmation::Void(why) = said else {
        panic!("{said:?}");
    };
    assert!(
        why.contains("CONDITION_NOT_MET") && why.contains("412"),
        "{why}"
    );
    assert_eq!(rig.target().read().await.unwrap(), before);
}

#[tokio::test]
async fn an_operation_that_is_done_is_not_yet_what_users_get() {
    let double = balancer(Duration::ZERO, Duration::from_secs(3)).await;
    let within = Duration::from_secs(2);
    let target = backend_rig::target(double.address, vec![double.edge], within).await;
    let from = target.read().await.unwrap();
    let receipt = apply(&target, &from).await.unwrap();
    until("the operation is done", async || {
        target.confirm(&receipt).await == Ok(Confirmation::Made)
    })
    .await;
    assert_eq!(target.read().await.unwrap().answer, only("gcp", 2));
    let seen = target.verify_outside().await.remove(0);
    assert!(seen.answer.unwrap().is_only(&site("aws")), "the edge lags");
    until("the edge has it", async || {
        let seen = target.verify_outside().await.remove(0);
        seen.answer.is_ok_and(|answer| answer.is_only(&site("gcp")))
    })
    .await;
}

#[tokio::test]
async fn a_second_patch_while_an_operation_is_under_way_is_tried_again() {
    let double = balancer(Duration::from_millis(500), Duration::ZERO).await;
    let within = Duration::from_secs(2);
    let target = backend_rig::target(double.address, vec![double.edge], within).await;
    let from = target.read().await.unwrap();
    apply(&target, &from).await.unwrap();
    assert_eq!(kind(&apply(&target, &from).await), "failed");
    until("by then it is another one's", async || {
        kind(&apply(&target, &from).await) == "conflict"
    })
    .await;
}

#[tokio::test]
async fn an_edge_that_turns_users_away_is_wrong_and_one_that_is_away_is_unseen() {
    let double = balancer(Duration::ZERO, Duration::ZERO).await;
    let port = free_port(Ipv4Addr::LOCALHOST.into()).unwrap();
    let edges = vec![double.edge, (Ipv4Addr::LOCALHOST, port).into()];
    let target = backend_rig::target(double.address, edges, Duration::from_secs(2)).await;
    let from = target.read().await.unwrap();
    let receipt = apply(&target, &from).await.unwrap();
    until("the operation is done", async || {
        target.confirm(&receipt).await == Ok(Confirmation::Made)
    })
    .await;
    double.meddle(|service| service["backends"][1]["group"] = json!("elsewhere"));
    let text = refusal(target.read().await);
    assert!(text.contains("`elsewhere`"), "{text}");
    let views = target.verify_outside().await;
    assert!(views[0].answer.is_ok(), "{views:?}");
    let unseen = matches!(views[1].answer, Err(OutsideFault::Unseen(_)));
    assert!(unseen, "{views:?}");
}
