//! Mutual TLS between real sockets on loopback: who gets in, who is turned away, and what each
//! failure is called.

mod changes;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, response::IntoResponse};
use failover::adapters::certificates::{Authority, CertificateError};
use failover::adapters::clock::SystemClock;
use failover::adapters::keys::{SigningKey, VerifyingKey};
use failover::adapters::places::placed;
use failover::adapters::tls::{
    CallError, Identity, Peer, PeerClient, PeerIdentity, RejectedPeer, TlsError, TlsFiles,
    TlsListener, TlsMaterial, install_provider, serve,
};
use failover::agent;
use failover::agent::keeper::{News, Shown};
use failover::engine::lease::Enforcer;
use failover::engine::situation::{AgentFacts, LocalDatabase};
use failover::engine::units::{Epoch, MonoTime, WallTime};
use failover::wire::sealed::SignedOrder;
use failover::wire::{
    ORDER_PATH, Order, PEER_PATH, PeerQuestion, Postmark, RELAY_PATH, Relayed, What,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

pub(crate) const MARK: Postmark = Postmark {
    life: 1,
    at: Duration::ZERO,
};
pub(crate) const SOON: Duration = Duration::from_secs(5);
pub(crate) const CENTURY: Duration = Duration::from_hours(100 * 365 * 24);
pub(crate) const AGENT: &str = "aws.agent.shop.failover.internal";
pub(crate) const CONTROLLER: &str = "controller.failover.internal";

/// Fixed, because the lifetime of a certificate is an argument and not read from a clock.
fn in_2020() -> WallTime {
    "2020-01-01T00:00:00.000Z".parse().unwrap()
}

pub(crate) struct House {
    pub(crate) dir: tempfile::TempDir,
    authority: Authority,
}

impl House {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(dir.path(), in_2020(), CENTURY).unwrap();
        Self { dir, authority }
    }

    pub(crate) fn issue(&self, name: &str, validity: Duration) -> TlsFiles {
        let identity: Identity = name.parse().unwrap();
        self.authority
            .issue(&identity, in_2020(), validity)
            .unwrap()
    }

    pub(crate) fn material(&self, name: &str) -> TlsMaterial {
        TlsMaterial::load(&self.issue(name, CENTURY)).unwrap()
    }
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    rejected: mpsc::Receiver<RejectedPeer>,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start(material: &TlsMaterial) -> Self {
        Self::serving(material, router()).await
    }

    pub(crate) async fn serving(material: &TlsMaterial, router: Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (report, rejected) = mpsc::channel(256);
        let (stop, stopped) = watch::channel(false);
        let listener = TlsListener::new(listener, material, Some(report)).unwrap();
        let task = tokio::spawn(serve(listener, router, stopped));
        Self {
            address,
            rejected,
            stop,
            task,
        }
    }

    pub(crate) fn client(&self, material: &TlsMaterial, identity: &str) -> PeerClient {
        let peer = Peer {
            identity: identity.parse().unwrap(),
            address: self.address.into(),
        };
        PeerClient::new(material, peer).unwrap()
    }

    async fn next_rejection(&mut self) -> String {
        tokio::time::timeout(SOON, self.rejected.recv())
            .await
            .expect("a rejection is reported")
            .unwrap()
            .error
    }
}

async fn who(ConnectInfo(peer): ConnectInfo<PeerIdentity>) -> Json<Identity> {
    Json(peer.identity)
}

async fn controller_only(ConnectInfo(peer): ConnectInfo<PeerIdentity>) -> impl IntoResponse {
    if peer.identity == Identity::Controller {
        (StatusCode::OK, "true".to_owned())
    } else {
        (
            StatusCode::FORBIDDEN,
            format!("`{}` may not", peer.identity),
        )
    }
}

fn router() -> Router {
    let routes = Router::new()
        .route("/who", get(who))
        .route(
            "/echo",
            post(|Json(value): Json<serde_json::Value>| async { Json(value) }),
        )
        .route("/order", post(controller_only))
        .route("/never", get(std::future::pending::<()>))
        .route("/huge", get(|| async { vec![b' '; 5 * 1024 * 1024] }))
        .route("/text", get(|| async { "not json" }))
        .route(
            "/away",
            get(|| async { (StatusCode::FOUND, [("location", "https://example.org/")]) }),
        )
        .route(
            "/broken",
            get(|| async { (StatusCode::INTERNAL_SERVER_ERROR, "x".repeat(10_000)) }),
        );
    placed(&"shop".parse().unwrap(), routes)
}

#[tokio::test]
async fn both_sides_know_each_other_by_name() {
    let house = House::new();
    let server = Server::start(&house.material(AGENT)).await;
    let material = house.material(CONTROLLER);
    assert_eq!(*material.identity(), Identity::Controller);
    let client = server.client(&material, AGENT);
    let who: Identity = client.get("/who", SOON).await.unwrap();
    assert_eq!(who, Identity::Controller);
    let sent = serde_json::json!({ "epoch": 7 });
    let echo: serde_json::Value = client.post("/echo", &sent, SOON).await.unwrap();
    assert_eq!(echo, sent);
    // The way to a peer may be a host name; who is there does not depend on it.
    let address = format!("localhost:{}", server.address.port());
    let peer = Peer {
        identity: AGENT.parse().unwrap(),
        address: address.parse().unwrap(),
    };
    let by_name = PeerClient::new(&material, peer).unwrap();
    assert!(by_name.get::<Identity>("/who", SOON).await.is_ok());
}

#[tokio::test]
async fn a_group_is_asked_at_its_own_place_and_an_earlier_program_at_its_only_one() {
    let house = House::new();
    let material = house.material(CONTROLLER);
    let place = || async { "\"of the group\"" };
    let only = || async { "\"the only one\"" };
    let today = Router::new()
        .route("/v1/groups/shop/where", get(place))
        .route("/v1/where", get(only));
    let agent = house.material(AGENT);
    let today = Server::serving(&agent, today).await;
    let earlier = Router::new().route("/v1/where", get(only));
    let earlier = Server::serving(&agent, earlier).await;
    let shop = "shop".parse().unwrap();
    for (server, found) in [(&today, "of the group"), (&earlier, "the only one")] {
        let client = server.client(&material, AGENT).of(&shop);
        let said: String = client.get("/where", SOON).await.unwrap();
        assert_eq!(said, found);
    }
    let nowhere = earlier.client(&material, AGENT).of(&shop);
    let error = nowhere.get::<String>("/elsewhere", SOON).await.unwrap_err();
    assert!(
        matches!(error, CallError::Status { code: 404, .. }),
        "{error}"
    );
}

#[tokio::test]
async fn another_group_is_not_taken_for_ours() {
    let house = House::new();
    let server = Server::start(&house.material(AGENT)).await;
    let material = house.material(CONTROLLER);
    let [ours, other] = ["shop", "shop-2"].map(|group| {
        let client = server.client(&material, AGENT);
        client.of(&group.parse().unwrap())
    });
    assert!(ours.get::<Identity>("/who", SOON).await.is_ok());
    let refused = CallError::Status {
        code: 404,
        text: "there is no group `shop-2` here, only `shop`".to_owned(),
    };
    assert_eq!(other.get::<Identity>("/who", SOON).await, Err(refused));
    // Who is denied is denied at each place.
    let paris = house.material("paris.observer.shop.failover.internal");
    for client in [
        server.client(&paris, AGENT),
        server.client(&paris, AGENT).of(&"shop".parse().unwrap()),
    ] {
        let denied = client
            .post::<_, bool>("/order", &7, SOON)
            .await
            .unwrap_err();
        assert!(matches!(denied, CallError::Denied { .. }), "{denied}");
    }
}

#[tokio::test]
async fn a_handler_sees_a_wrong_role_and_denies() {
    let house = House::new();
    let server = Server::start(&house.material(AGENT)).await;
    let other = house.material("gcp.agent.shop.failover.internal");
    let answer = server.client(&other, AGENT).post("/order", &(), SOON).await;
    let denied = CallError::Denied {
        status: 403,
        text: "`gcp.agent.shop.failover.internal` may not".to_owned(),
    };
    assert_eq!(answer, Err::<bool, _>(denied));
    let controller = house.material(CONTROLLER);
    let client = server.client(&controller, AGENT);
    assert_eq!(client.post("/order", &(), SOON).await, Ok(true));
}

/// The API of an agent whose peer is `peer`, and what reaches its keeper.
pub(crate) fn agent_api(
    material: &TlsMaterial,
    key: VerifyingKey,
    peer: Peer,
) -> (Router, mpsc::Receiver<News>) {
    let Identity::Agent { site, .. } = peer.identity.clone() else {
        panic!("an agent's peer is an agent");
    };
    let (news, keeper) = mpsc::channel(8);
    let facts = AgentFacts {
        database: LocalDatabase::Up,
        fenced: None,
        severed: None,
        guarded: true,
        enforced_by: Enforcer::Guard,
        machine: None,
        peer: None,
        peer_clock: None,
        synchrony: None,
        epoch_written: None,
        rehearsal: None,
        slot: None,
        vouched: None,
        deals_with: None,
        foreign: None,
        pending: Vec::new(),
    };
    let shown = Shown {
        answered: None,
        epoch: Epoch(1),
        asks: true,
        right: None,
        right_in: None,
        log: None,
        primary: true,
        facts,
        peer_mark: None,
        guard: None,
        at: MonoTime::default(),
    };
    let api = agent::api::Api {
        group: "shop".parse().unwrap(),
        site: "aws".parse().unwrap(),
        peer_site: site,
        peer: PeerClient::new(material, peer).unwrap(),
        controller: Arc::new(key),
        own: Arc::new(material.clone()),
        news,
        shown: watch::channel(shown).1,
        cluster: watch::channel(None).1,
        clock: Arc::new(SystemClock),
    };
    (agent::api::router(api), keeper)
}

#[tokio::test]
async fn an_agent_takes_nothing_from_an_observer() {
    let house = House::new();
    let material = house.material(AGENT);
    let nobody = Peer {
        identity: "gcp.agent.shop.failover.internal".parse().unwrap(),
        address: "127.0.0.1:1".parse().unwrap(),
    };
    let controller = SigningKey::generate().unwrap().verifying_key();
    let (router, mut keeper) = agent_api(&material, controller, nobody);
    let server = Server::serving(&material, router).await;
    let observer = house.material("paris.observer.shop.failover.internal");
    let client = server.client(&observer, AGENT);
    let order = Order {
        plan: 3,
        group: "shop".parse().unwrap(),
        site: "aws".parse().unwrap(),
        instance: None,
        epoch: Epoch(2),
        mark: MARK,
        valid_for: SOON,
        check_only: false,
        what: What::Fence,
    };
    // Signed by somebody, even.
    let key = SigningKey::generate().unwrap();
    let order = SignedOrder::seal(order, &key).unwrap();
    let question = PeerQuestion {
        site: "gcp".parse().unwrap(),
        epoch: Epoch(1),
        mark: MARK,
        instance: None,
    };
    let relayed = Relayed {
        order: order.sealed().clone(),
        within: SOON,
    };
    let relayed = serde_json::to_value(&relayed).unwrap();
    let order = serde_json::to_value(order.sealed()).unwrap();
    let question = serde_json::to_value(&question).unwrap();
    for (path, body, what) in [
        (ORDER_PATH, &order, "give orders"),
        (RELAY_PATH, &relayed, "have orders relayed"),
        (PEER_PATH, &question, "ask as the peer agent"),
    ] {
        let answer = client.post::<_, serde_json::Value>(path, body, SOON).await;
        let denied = CallError::Denied {
            status: 403,
            text: format!("`paris.observer.shop.failover.internal` may not {what}"),
        };
        assert_eq!(answer, Err(denied));
    }
    assert!(keeper.try_recv().is_err(), "nothing reached the keeper");
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_rejected_by_both_sides_and_reported() {
    let (house, stranger) = (House::new(), House::new());
    let mut server = Server::start(&house.material(AGENT)).await;
    let mut files = stranger.issue(CONTROLLER, CENTURY);
    let client = server.client(&TlsMaterial::load(&files).unwrap(), AGENT);
    let error = client.get::<Identity>("/who", SOON).await.unwrap_err();
    assert!(matches!(error, CallError::Tls(_)), "{error:?}");
    let seen_by_server = server.next_rejection().await;
    assert!(seen_by_server.contains("alert"), "{seen_by_server}");

    // The stranger believes our server, and our server does not believe the stranger.
    files.ca = house.dir.path().join("ca.pem");
    let client = server.client(&TlsMaterial::load(&files).unwrap(), AGENT);
    let error = client.get::<Identity>("/who", SOON).await.unwrap_err();
    assert!(matches!(error, CallError::Tls(_)), "{error:?}");
    assert!(!error.reached_peer() && !error.outcome_unknown());
    let seen_by_server = server.next_rejection().await;
    assert!(seen_by_server.contains("UnknownIssuer"), "{seen_by_server}");
}

#[tokio::test]
async fn an_expired_certificate_is_rejected_with_its_date() {
    let house = House::new();
    let mut server = Server::start(&house.material(AGENT)).await;
    let day = Duration::from_hours(24);
    let expired = TlsMaterial::load(&house.issue(CONTROLLER, day)).unwrap();
    let client = server.client(&expired, AGENT);
    let error = client.get::<Identity>("/who", SOON).await.unwrap_err();
    assert!(matches!(error, CallError::Tls(_)), "{error:?}");
    let seen_by_server = server.next_rejection().await;
    assert!(seen_by_server.contains("expired"), "{seen_by_server}");
}

#[tokio::test]
async fn a_client_without_a_certificate_is_rejected() {
    let house = House::new();
    let mut server = Server::start(&house.material(AGENT)).await;
    let mut roots = rustls::RootCertStore::empty();
    let ca = CertificateDer::from_pem_file(house.dir.path().join("ca.pem")).unwrap();
    roots.add(ca).unwrap();
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(AGENT).unwrap();
    let stream = TcpStream::connect(server.address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect(name, stream).await.unwrap();
    let _sent = stream
        .write_all(b"GET /who HTTP/1.1\r\nhost: x\r\n\r\n")
        .await;
    let mut answer = Vec::new();
    let error = stream.read_to_end(&mut answer).await.unwrap_err();
    assert!(
        answer.is_empty() && error.to_string().contains("CertificateRequired"),
        "{error}"
    );
    let seen_by_server = server.next_rejection().await;
    assert!(
        seen_by_server.contains("no certificates"),
        "{seen_by_server}"
    );
}

#[tokio::test]
async fn a_certificate_that_names_none_of_ours_is_rejected() {
    let house = House::new();
    let mut server = Server::start(&house.material(AGENT)).await;
    let files = issue_by_hand(&house, "alice.example.org");
    let error = TlsMaterial::load(&files).unwrap_err();
    assert!(matches!(error, TlsError::NoIdentity { .. }), "{error}");

    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(&files.ca).unwrap())
        .unwrap();
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_file(&files.certificate).unwrap()],
            rustls::pki_types::PrivateKeyDer::from_pem_file(&files.key).unwrap(),
        )
        .unwrap();
    let stream = TcpStream::connect(server.address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from(AGENT).unwrap();
    let mut stream = connector.connect(name, stream).await.unwrap();
    let mut answer = Vec::new();
    let _ended = stream.read_to_end(&mut answer).await;
    assert!(answer.is_empty());
    let seen_by_server = server.next_rejection().await;
    assert!(
        seen_by_server.contains("failover.internal"),
        "{seen_by_server}"
    );
}

/// The authority, taken from its files by hand.
fn hand_issuer(house: &House) -> rcgen::Issuer<'static, rcgen::KeyPair> {
    let path = |file: &str| house.dir.path().join(file);
    let pem = std::fs::read_to_string(path("ca.key")).unwrap();
    let ca_key = rcgen::KeyPair::from_pem(&pem).unwrap();
    // The issuer's name is in the authority's certificate; an issued one repeats it, so a
    // second authority of the same key and name signs as well as the first.
    let ca = CertificateDer::from_pem_file(path("ca.pem")).unwrap();
    let text = String::from_utf8_lossy(ca.as_ref()).into_owned();
    let start = text.find("failover authority ").unwrap();
    let common_name = &text[start..start + "failover authority ".len() + 16];
    let mut issuer = rcgen::CertificateParams::default();
    issuer.distinguished_name = rcgen::DistinguishedName::new();
    issuer
        .distinguished_name
        .push(rcgen::DnType::CommonName, common_name);
    rcgen::Issuer::new(issuer, ca_key)
}

/// A certificate that our authority would not issue, signed with its key all the same.
fn issue_by_hand(house: &House, name: &str) -> TlsFiles {
    let path = |file: &str| house.dir.path().join(file);
    let issuer = hand_issuer(house);
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let files = TlsFiles {
        ca: path("ca.pem"),
        certificate: path("hand.pem"),
        key: path("hand.key"),
        revoked: None,
    };
    std::fs::write(&files.certificate, certificate.pem()).unwrap();
    failover::adapters::keys::write_secret(&files.key, key.serialize_pem().as_bytes()).unwrap();
    files
}

#[tokio::test]
async fn a_server_with_another_agents_certificate_is_refused() {
    let house = House::new();
    let server = Server::start(&house.material("gcp.agent.shop.failover.internal")).await;
    let client = server.client(&house.material(CONTROLLER), AGENT);
    let error = client.get::<Identity>("/who", SOON).await.unwrap_err();
    assert!(matches!(error, CallError::Tls(_)), "{error:?}");
    assert!(!error.reached_peer());
}

#[tokio::test]
async fn a_certificate_of_an_operator_or_an_observer_does_not_make_a_server() {
    let house = House::new();
    let controller = house.material(CONTROLLER);
    for name in [
        "alice.operator.failover.internal",
        "paris.observer.shop.failover.internal",
    ] {
        let server = Server::start(&house.material(name)).await;
        let client = server.client(&controller, name);
        let error = client.get::<Identity>("/who", SOON).await.unwrap_err();
        assert!(matches!(error, CallError::Tls(_)), "{error:?}");
    }
}

#[tokio::test]
async fn mute_handshakes_hold_nobody_up() {
    let house = House::new();
    let mut server = Server::start(&house.material(AGENT)).await;
    let mut mute = Vec::new();
    // More than may be in their handshake at once: the oldest are dropped.
    for _ in 0..80 {
        mute.push(TcpStream::connect(server.address).await.unwrap());
    }
    let client = server.client(&house.material(CONTROLLER), AGENT);
    let quick = Duration::from_secs(2);
    assert!(client.get::<Identity>("/who", quick).await.is_ok());
    assert_eq!(server.next_rejection().await, "too many handshakes at once");
}

#[tokio::test]
async fn one_certificate_takes_its_share_of_the_connections_and_leaves_the_rest() {
    let house = House::new();
    let mut server = Server::start(&house.material(AGENT)).await;
    let greedy = house.material("bob.operator.shop.failover.internal");
    // A connection each, which is kept for the next call.
    let mut held = Vec::new();
    for _ in 0..32 {
        let client = server.client(&greedy, AGENT);
        client.get::<Identity>("/who", SOON).await.unwrap();
        held.push(client);
    }
    let more = server.client(&greedy, AGENT);
    more.get::<Identity>("/who", SOON).await.unwrap_err();
    assert_eq!(
        server.next_rejection().await,
        "too many connections from one source at once"
    );
    let controller = server.client(&house.material(CONTROLLER), AGENT);
    assert!(controller.get::<Identity>("/who", SOON).await.is_ok());
    assert!(held[0].get::<Identity>("/who", SOON).await.is_ok());
}

#[tokio::test]
async fn each_failure_of_a_call_has_its_name() {
    let house = House::new();
    let server = Server::start(&house.material(AGENT)).await;
    let material = house.material(CONTROLLER);
    let client = server.client(&material, AGENT);
    let get = |path: &'static str, timeout| {
        let client = client.clone();
        async move { client.get::<Identity>(path, timeout).await.unwrap_err() }
    };
    let late = get("/never", Duration::from_millis(200)).await;
    assert_eq!(late, CallError::Timeout);
    assert!(late.outcome_unknown());
    let huge = get("/huge", SOON).await;
    assert!(
        matches!(&huge, CallError::Garbled(text) if text.contains("longer")),
        "{huge:?}"
    );
    assert!(matches!(get("/text", SOON).await, CallError::Garbled(_)));
    assert!(matches!(
        get("/none", SOON).await,
        CallError::Status { code: 404, .. }
    ));
    assert!(matches!(
        get("/away", SOON).await,
        CallError::Status { code: 302, .. }
    ));
    let broken = get("/broken", SOON).await;
    let CallError::Status { code: 500, text } = &broken else {
        panic!("{broken:?}");
    };
    assert_eq!(text.len(), 500);

    server.stop.send(true).unwrap();
    tokio::time::timeout(SOON * 2, server.task)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(get("/who", SOON).await, CallError::Refused);
}

#[tokio::test]
async fn a_connection_that_breaks_after_the_request_leaves_the_outcome_unknown() {
    let house = House::new();
    let config = Arc::new(house.material(AGENT).server_config().unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = Peer {
        identity: AGENT.parse().unwrap(),
        address: listener.local_addr().unwrap().into(),
    };
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(config);
        let mut stream = acceptor.accept(stream).await.unwrap();
        let _some = stream.read(&mut [0; 16]).await;
    });
    let client = PeerClient::new(&house.material(CONTROLLER), peer).unwrap();
    let error = client.get::<Identity>("/who", SOON).await.unwrap_err();
    assert!(matches!(error, CallError::Lost(_)), "{error:?}");
    assert!(error.outcome_unknown());
}

#[test]
fn an_authority_is_taken_up_again_and_never_overwritten() {
    let house = House::new();
    let loaded = Authority::load(house.dir.path()).unwrap();
    let identity: Identity = AGENT.parse().unwrap();
    let files = loaded.issue(&identity, in_2020(), CENTURY).unwrap();
    TlsMaterial::load(&files).unwrap();
    let again = loaded.issue(&identity, in_2020(), CENTURY).unwrap_err();
    assert!(matches!(again, CertificateError::File(_)), "{again}");
    assert!(Authority::create(house.dir.path(), in_2020(), CENTURY).is_err());

    let other = House::new();
    std::fs::copy(
        other.dir.path().join("ca.pem"),
        house.dir.path().join("ca.pem"),
    )
    .unwrap();
    let error = Authority::load(house.dir.path()).unwrap_err();
    assert!(matches!(error, CertificateError::NotOurs { .. }), "{error}");
}

#[test]
fn wrong_files_are_named() {
    install_provider();
    let house = House::new();
    let good = house.issue(AGENT, CENTURY);
    let other = house.issue(CONTROLLER, CENTURY);
    let load = |change: fn(&mut TlsFiles, &TlsFiles, &Path)| {
        let mut files = good.clone();
        change(&mut files, &other, house.dir.path());
        TlsMaterial::load(&files).unwrap_err().to_string()
    };
    let missing = load(|files, _, dir| files.ca = dir.join("none.pem"));
    assert!(missing.contains("none.pem"), "{missing}");
    let swapped = load(|files, other, _| files.key.clone_from(&other.key));
    assert!(swapped.contains("does not belong to"), "{swapped}");
    let not_pem = load(|files, _, dir| {
        files.certificate = dir.join("text.pem");
        std::fs::write(&files.certificate, "text").unwrap();
    });
    assert!(not_pem.contains("there are none"), "{not_pem}");
    let exposed = load(|files, _, _| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&files.key, std::fs::Permissions::from_mode(0o644)).unwrap();
    });
    assert!(exposed.contains("chmod 600"), "{exposed}");
}
