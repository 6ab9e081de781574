//! Words that move a right are signed by who says them: orders and answers between real processes'
//! TLS, with a relay that lies.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use axum::routing::post;
use axum::{Json, Router};
use failover::adapters::agents::SignedOrders;
use failover::adapters::keys::SigningKey;
use failover::adapters::tls::{CallError, Peer, PeerClient, TlsMaterial};
use failover::agent::keeper::News;
use failover::engine::units::{Epoch, Lsn};
use failover::ports::{Agents, EffectError, Signer, Way};
use failover::wire::sealed::{SealError, Sealed, SignedOrder, open_answer, seal_answer};
use failover::wire::{Came, ONLY_PLACE, ORDER_PATH, Order, RELAY_PATH, RelayAnswer, What};
use tokio::sync::mpsc;

use crate::tls::{AGENT, CONTROLLER, House, MARK, SOON, Server, agent_api};

const OTHER: &str = "gcp.agent.shop.failover.internal";

fn order(what: What, plan: u64) -> Order {
    Order {
        plan,
        group: "shop".parse().unwrap(),
        site: "aws".parse().unwrap(),
        instance: None,
        epoch: Epoch(2),
        mark: MARK,
        valid_for: SOON,
        check_only: false,
        what,
    }
}

fn fenced() -> Came {
    Came::Fenced {
        said: "down; refused".to_owned(),
    }
}

#[test]
fn an_answer_counts_from_the_agent_that_was_asked_and_to_that_order_only() {
    let house = House::new();
    let key = SigningKey::generate().unwrap();
    let [aws, gcp, controller] = [AGENT, OTHER, CONTROLLER].map(|name| house.material(name));
    let other_group = house.material("aws.agent.bank.failover.internal");
    let signed = SignedOrder::seal(order(What::Fence, 3), &key).unwrap();
    let open = |answer: &Sealed| open_answer(&signed, answer, &controller);
    let by = |who: &TlsMaterial| seal_answer(&signed, Ok(fenced()), who).unwrap();
    assert_eq!(open(&by(&aws)), Ok(Ok(fenced())));
    // Another agent's word, in the name of this one.
    for stranger in [&gcp, &other_group, &controller] {
        let error = open(&by(stranger)).unwrap_err();
        assert!(matches!(error, SealError::Stranger { .. }), "{error}");
    }
    // A true word of this agent, about another plan, or another order of this one.
    let mut later = order(What::Fence, 3);
    later.valid_for = SOON * 2;
    for earlier in [order(What::Fence, 2), order(What::Desist, 3), later] {
        let earlier = SignedOrder::seal(earlier, &key).unwrap();
        let replayed = seal_answer(&earlier, Ok(fenced()), &aws).unwrap();
        assert_eq!(open(&replayed), Err(SealError::OtherOrder));
    }
    // A certificate of the same name by an authority that nobody believes, and one that has ended.
    let elsewhere = House::new().material(AGENT);
    let ended = house.issue("old.agent.shop.failover.internal", SOON);
    let ended = TlsMaterial::load(&ended).unwrap();
    for not_believed in [elsewhere, ended] {
        let error = open(&by(&not_believed)).unwrap_err();
        assert!(matches!(error, SealError::Certificate(_)), "{error}");
    }
    // The controller's key for orders is no agent's.
    let error = open(&seal_answer(&signed, Ok(fenced()), &key).unwrap()).unwrap_err();
    assert!(matches!(error, SealError::Certificate(_)), "{error}");
}

#[test]
fn an_answer_whose_words_were_changed_is_nobodys() {
    let house = House::new();
    let key = SigningKey::generate().unwrap();
    let (aws, controller) = (house.material(AGENT), house.material(CONTROLLER));
    let signed = SignedOrder::seal(order(What::Sever, 3), &key).unwrap();
    let severed = Ok(Came::Severed {
        position: Lsn(0x300_0000),
        replayed: true,
        vouched_ago: Some(Duration::ZERO),
    });
    let answer = seal_answer(&signed, severed, &aws).unwrap();
    let mut wire = serde_json::to_value(&answer).unwrap();
    let body = wire["body"]
        .as_str()
        .unwrap()
        .replace("0/3000000", "0/4000000");
    wire["body"] = body.into();
    let changed: Sealed = serde_json::from_value(wire).unwrap();
    let opened = open_answer(&signed, &changed, &controller);
    assert_eq!(opened, Err(SealError::Mismatch));
}

/// The controller, with an agent at each site.
fn controller(
    material: &TlsMaterial,
    key: SigningKey,
    servers: [(&str, &Server); 2],
) -> SignedOrders {
    let client = |(site, server): (&str, &Server)| {
        let identity = format!("{site}.agent.shop.failover.internal");
        (site.parse().unwrap(), server.client(material, &identity))
    };
    let clients: BTreeMap<_, PeerClient> = servers.map(client).into();
    SignedOrders::new(clients, key, material.clone())
}

/// Answers every order as an honest keeper that fences would.
async fn keep(mut news: mpsc::Receiver<News>) {
    while let Some(told) = news.recv().await {
        if let News::Ordered(_, answer) = told {
            drop(answer.send(Ok(fenced())));
        }
    }
}

#[tokio::test]
async fn a_relay_can_neither_invent_a_fence_nor_show_an_old_one() {
    let house = House::new();
    let key = SigningKey::generate().unwrap();
    let [aws, gcp, own] = [AGENT, OTHER, CONTROLLER].map(|name| house.material(name));
    let peer = |server: &Server, name: &str| Peer {
        identity: name.parse().unwrap(),
        address: server.address.into(),
    };
    // The agent at `aws` is honest, and so is at first the one at `gcp`.
    let unheard = Peer {
        identity: OTHER.parse().unwrap(),
        address: "127.0.0.1:1".parse().unwrap(),
    };
    let (router, news) = agent_api(&aws, key.verifying_key(), unheard);
    tokio::spawn(keep(news));
    let aws_server = Server::serving(&aws, router).await;
    let (router, _none) = agent_api(&gcp, key.verifying_key(), peer(&aws_server, AGENT));
    let honest = Server::serving(&gcp, router).await;
    // It keeps a true answer, and shows it again where it should carry an order.
    let old = SignedOrder::seal(order(What::Fence, 2), &key).unwrap();
    let way = aws_server.client(&gcp, AGENT);
    let kept: Sealed = way.post(ORDER_PATH, old.sealed(), SOON).await.unwrap();
    let lies: Vec<RelayAnswer> = vec![
        Ok(kept),
        Ok(seal_answer(&old, Ok(fenced()), &gcp).unwrap()),
        Err(EffectError::Refused("fenced, believe me".to_owned())),
    ];
    let lies: &'static Mutex<Vec<RelayAnswer>> = Box::leak(Box::new(Mutex::new(lies)));
    let lie = || async { Json(lies.lock().unwrap().pop().unwrap()) };
    let liar = Server::serving(
        &gcp,
        Router::new().nest(ONLY_PLACE, Router::new().route(RELAY_PATH, post(lie))),
    )
    .await;

    let order = order(What::Fence, 3);
    let path = house.dir.path().join("orders.key");
    key.to_file(&path).unwrap();
    let key = || SigningKey::from_file(&path).unwrap();
    let well = controller(&own, key(), [("aws", &aws_server), ("gcp", &honest)]);
    for by in [Way::Direct, Way::Relayed] {
        assert_eq!(well.order(&order, by, SOON).await, Ok(fenced()), "{by:?}");
    }
    let lied_to = controller(&own, key(), [("aws", &aws_server), ("gcp", &liar)]);
    let refused = lied_to.order(&order, Way::Relayed, SOON).await;
    assert!(matches!(refused, Err(EffectError::Refused(_))), "no fence");
    for _lie in 0..2 {
        let answer = lied_to.order(&order, Way::Relayed, SOON).await;
        let Err(EffectError::Unknown(why)) = answer else {
            panic!("{answer:?}");
        };
        assert!(why.contains("not signed by the agent at `aws`"), "{why}");
    }
    assert!(lies.lock().unwrap().is_empty(), "each lie was told");
}

#[tokio::test]
async fn an_order_that_the_controller_did_not_sign_reaches_no_keeper_by_any_way() {
    let house = House::new();
    let key = SigningKey::generate().unwrap();
    let [aws, gcp] = [AGENT, OTHER].map(|name| house.material(name));
    let nobody = Peer {
        identity: OTHER.parse().unwrap(),
        address: "127.0.0.1:1".parse().unwrap(),
    };
    let (router, mut news) = agent_api(&aws, key.verifying_key(), nobody);
    let server = Server::serving(&aws, router).await;
    let stranger = SigningKey::generate().unwrap();
    let forged = SignedOrder::seal(order(What::Fence, 3), &stranger);
    // An agent's certificate signs no orders either, nor does the controller's own.
    let own = house.material(CONTROLLER);
    let [by_agent, by_controller] =
        [&gcp, &own].map(|who| SignedOrder::seal(order(What::Fence, 3), who));
    for order in [forged, by_agent, by_controller] {
        let order = order.unwrap();
        for carrier in [&gcp, &own] {
            let way = server.client(carrier, AGENT);
            let answer = way
                .post::<_, Sealed>(ORDER_PATH, order.sealed(), SOON)
                .await;
            let text = answer.unwrap_err().to_string();
            assert!(text.contains("not the controller's"), "{text}");
        }
    }
    assert!(news.try_recv().is_err(), "nothing reached the keeper");
}

/// An order of a later controller: signed over bytes that no program of today would write.
fn of_a_later_controller(key: &SigningKey, what: &str) -> serde_json::Value {
    let body = format!(
        r#"{{ "what": "{what}", "written_by": {{"program": "7.1.0", "format": "1.9"}}, "plan": 3,
        "group": "shop", "site": "aws", "epoch": 2, "mark": {{"life": 1, "at_ms": 0}},
        "valid_for_ms": 5000, "check_only": false, "only_if": {{"asked": true}} }}"#
    );
    let signed = [b"failover order v2\0", body.as_bytes()].concat();
    let signature = key.sign(&signed).unwrap();
    serde_json::json!({ "body": body, "signature": signature })
}

#[tokio::test]
async fn an_order_of_a_later_controller_is_refused_by_name_and_carried_as_it_is() {
    let house = House::new();
    let key = SigningKey::generate().unwrap();
    let [aws, gcp, own] = [AGENT, OTHER, CONTROLLER].map(|name| house.material(name));
    let peer = |identity: &str, address| Peer {
        identity: identity.parse().unwrap(),
        address,
    };
    let nobody = peer(OTHER, "127.0.0.1:1".parse().unwrap());
    let (router, mut news) = agent_api(&aws, key.verifying_key(), nobody);
    let todays = Server::serving(&aws, router).await;
    for (what, why) in [
        ("fence", "unknown field `only_if`"),
        ("burn", "unknown variant `burn`"),
    ] {
        let order = of_a_later_controller(&key, what);
        let way = todays.client(&own, AGENT);
        let answer = way.post::<_, Sealed>(ORDER_PATH, &order, SOON).await;
        let CallError::Status { code: 422, text } = answer.unwrap_err() else {
            panic!("{what} is not refused by name");
        };
        for told in [
            why,
            "failover 7.1.0 (format 1.9)",
            "upgrade the agent first",
        ] {
            assert!(text.contains(told), "{text}");
        }
    }
    assert!(news.try_recv().is_err(), "nothing reached the keeper");

    // Another one understands it, to which today's agent of the other site carries it.
    let (came, mut orders) = mpsc::channel(1);
    let take = move |Json(order): Json<serde_json::Value>| async move {
        came.send(order.clone()).await.unwrap();
        Json(order)
    };
    let later = Server::serving(
        &aws,
        Router::new().nest(ONLY_PLACE, Router::new().route(ORDER_PATH, post(take))),
    )
    .await;
    let (router, _none) = agent_api(&gcp, key.verifying_key(), peer(AGENT, later.address.into()));
    let relay = Server::serving(&gcp, router).await;
    let way = relay.client(&own, OTHER);
    let order = of_a_later_controller(&key, "burn");
    let relayed = serde_json::json!({ "order": order, "within_ms": 5000 });
    let answer: RelayAnswer = way.post(RELAY_PATH, &relayed, SOON).await.unwrap();
    assert_eq!(orders.recv().await.unwrap(), order);
    assert_eq!(serde_json::to_value(answer.unwrap()).unwrap(), order);
    // Nobody else's is carried, however little it is understood.
    let stranger = SigningKey::generate().unwrap();
    let order = of_a_later_controller(&stranger, "burn");
    let relayed = serde_json::json!({ "order": order, "within_ms": 5000 });
    let refused = way.post::<_, RelayAnswer>(RELAY_PATH, &relayed, SOON).await;
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("not the controller's"), "{text}");
    assert!(orders.try_recv().is_err(), "nothing was carried");
}

#[test]
fn what_an_agent_of_a_later_program_adds_to_its_answer_is_refused_by_name() {
    let house = House::new();
    let key = SigningKey::generate().unwrap();
    let (aws, controller) = (house.material(AGENT), house.material(CONTROLLER));
    let signed = SignedOrder::seal(order(What::Fence, 3), &key).unwrap();
    let answer = seal_answer(&signed, Ok(fenced()), &aws).unwrap();
    let body: serde_json::Value = {
        let wire = serde_json::to_value(&answer).unwrap();
        serde_json::from_str(wire["body"].as_str().unwrap()).unwrap()
    };
    let opened = |body: &serde_json::Value| {
        let body = body.to_string();
        let signed_for = [b"failover answer v1\0", body.as_bytes()].concat();
        let signature = aws.sign(&signed_for).unwrap();
        let wire = serde_json::json!({ "body": body, "signature": signature });
        open_answer(&signed, &serde_json::from_value(wire).unwrap(), &controller)
    };
    assert_eq!(opened(&body), Ok(Ok(fenced())));
    for place in ["", "/answer/Ok"] {
        let mut later = body.clone();
        later["written_by"] = serde_json::json!({"program": "7.1.0", "format": "1.9"});
        later.pointer_mut(place).unwrap()["but"] = "for one session".into();
        let text = opened(&later).unwrap_err().to_string();
        for told in [
            ".but`",
            "failover 7.1.0 (format 1.9)",
            "upgrade the controller first",
        ] {
            let told = told.trim_start_matches(if place.is_empty() { "." } else { "" });
            assert!(text.contains(told), "{text}");
        }
    }
}
