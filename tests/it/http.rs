//! Probes against real sockets on loopback.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::routing::get;
use failover::adapters::certificates::Authority;
use failover::adapters::http::{HttpAnswer, HttpProber, ProbeError, Roots, serve_plain};
use failover::adapters::tls::install_provider;
use failover::engine::units::{MonoTime, WallTime};
use failover::ports::Clock;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;

const SOON: Duration = Duration::from_secs(5);
const CENTURY: Duration = Duration::from_hours(100 * 365 * 24);

#[derive(Debug)]
struct RealClock(tokio::time::Instant);

#[async_trait::async_trait]
impl Clock for RealClock {
    fn now(&self) -> MonoTime {
        MonoTime(self.0.elapsed())
    }
    fn wall(&self) -> WallTime {
        WallTime(0)
    }
    async fn sleep(&self, wait: Duration) {
        tokio::time::sleep(wait).await;
    }
}

/// Believes a throw-away authority only: a machine of the tests need not have roots.
struct Probes {
    dir: tempfile::TempDir,
    authority: Authority,
    prober: HttpProber,
}

impl Probes {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(dir.path(), WallTime(0), CENTURY).unwrap();
        let roots = Roots::File(dir.path().join("ca.pem"));
        let clock = Arc::new(RealClock(tokio::time::Instant::now()));
        let prober = HttpProber::new(&roots, clock).unwrap();
        Self {
            dir,
            authority,
            prober,
        }
    }

    async fn ask(&self, url: &str) -> Result<HttpAnswer, ProbeError> {
        self.prober
            .probe(&url.parse().unwrap(), SOON, &["X-Site"])
            .await
    }
}

async fn service() -> (SocketAddr, watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = watch::channel(false);
    let site = [("x-site", "aws"), ("x-other", "1")];
    let host = |headers: HeaderMap| async move {
        let text = |name: &str| headers[name].to_str().unwrap().to_owned();
        format!("{} {}", text("host"), text("connection"))
    };
    let router = Router::new()
        .route("/ok", get(move || async move { (site, "fine") }))
        .route("/host", get(host))
        .route(
            "/from",
            get(|ConnectInfo(from): ConnectInfo<SocketAddr>| async move { from.to_string() }),
        )
        .route("/huge", get(|| async { vec![b'x'; 1024 * 1024] }))
        .route("/ill", get(|| async { StatusCode::SERVICE_UNAVAILABLE }))
        .route("/never", get(std::future::pending::<()>));
    tokio::spawn(serve_plain(listener, router, stopped));
    (address, stop)
}

#[tokio::test]
async fn a_probe_keeps_the_headers_asked_for_and_a_bounded_body() {
    let (probes, (address, _stop)) = (Probes::new(), service().await);
    let answer = probes
        .ask(&format!("http://{address}/ok?x=1"))
        .await
        .unwrap();
    assert_eq!((answer.status, &answer.body[..]), (200, &b"fine"[..]));
    assert_eq!(answer.headers.len(), 1);
    assert_eq!(answer.headers["x-site"], "aws");
    assert!(answer.took > Duration::ZERO);
    let huge = probes.ask(&format!("http://{address}/huge")).await.unwrap();
    assert_eq!(huge.body.len(), 64 * 1024);
}

#[tokio::test]
async fn each_probe_makes_a_connection_of_its_own() {
    let (probes, (address, _stop)) = (Probes::new(), service().await);
    let url = format!("http://{address}/from");
    let (first, second) = (
        probes.ask(&url).await.unwrap(),
        probes.ask(&url).await.unwrap(),
    );
    assert_ne!(first.body, second.body);
}

#[tokio::test]
async fn a_pinned_probe_goes_to_the_address_with_the_name_of_the_url() {
    let (probes, (address, _stop)) = (Probes::new(), service().await);
    let url: Uri = "http://user:secret@shop.example.org/host".parse().unwrap();
    let answer = probes
        .prober
        .probe_at(&url, address, SOON, &[])
        .await
        .unwrap();
    assert_eq!(&answer.body[..], b"shop.example.org close");
}

#[tokio::test]
async fn each_failure_of_a_probe_has_its_name() {
    let (probes, (address, _stop)) = (Probes::new(), service().await);
    let ill = probes.ask(&format!("http://{address}/ill")).await;
    assert_eq!(ill, Err(ProbeError::Status(503)));

    let url: Uri = format!("http://{address}/never").parse().unwrap();
    let late = probes
        .prober
        .probe(&url, Duration::from_millis(200), &[])
        .await;
    assert_eq!(late, Err(ProbeError::Timeout));

    let unbound = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = unbound.local_addr().unwrap();
    drop(unbound);
    let refused = probes.ask(&format!("http://{closed}/")).await;
    assert_eq!(refused, Err(ProbeError::Refused));

    let plain = probes
        .ask(&format!("https://{address}/ok"))
        .await
        .unwrap_err();
    assert!(matches!(plain, ProbeError::Tls(_)), "{plain:?}");

    let odd = probes.ask("ftp://127.0.0.1/").await.unwrap_err();
    assert!(matches!(odd, ProbeError::Unreachable(_)), "{odd:?}");

    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = mute.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = mute.accept().await.unwrap();
        let _some = stream.read(&mut [0; 1024]).await;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort")
            .await
            .unwrap();
    });
    let cut = probes.ask(&format!("http://{address}/")).await.unwrap_err();
    assert!(matches!(cut, ProbeError::Protocol(_)), "{cut:?}");
}

#[tokio::test]
async fn an_https_probe_checks_the_name_and_the_authority() {
    let probes = Probes::new();
    install_provider();
    let name = "controller.failover.internal";
    let files = probes
        .authority
        .issue(&name.parse().unwrap(), WallTime(0), CENTURY)
        .unwrap();
    // A server as the public sees it: it asks nobody for a certificate.
    let chain = vec![CertificateDer::from_pem_file(&files.certificate).unwrap()];
    let key = PrivateKeyDer::from_pem_file(&files.key).unwrap();
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            if let Ok(mut stream) = acceptor.accept(stream).await {
                let _some = stream.read(&mut [0; 1024]).await;
                let answer = b"HTTP/1.1 204 No Content\r\n\r\n";
                stream.write_all(answer).await.unwrap();
            }
        }
    });
    let ask = |prober: HttpProber, name: &str| {
        let url: Uri = format!("https://{name}/").parse().unwrap();
        async move { prober.probe_at(&url, address, SOON, &[]).await }
    };
    assert_eq!(ask(probes.prober.clone(), name).await.unwrap().status, 204);
    let wrong_name = ask(probes.prober.clone(), "shop.example.org").await;
    assert!(
        matches!(wrong_name, Err(ProbeError::Tls(_))),
        "{wrong_name:?}"
    );
    let stranger = Probes::new();
    let wrong_authority = ask(stranger.prober.clone(), name).await;
    assert!(
        matches!(wrong_authority, Err(ProbeError::Tls(_))),
        "{wrong_authority:?}"
    );
    let absent = Roots::File(probes.dir.path().join("none.pem"));
    let clock = Arc::new(RealClock(tokio::time::Instant::now()));
    let error = HttpProber::new(&absent, clock).unwrap_err().to_string();
    assert!(error.contains("none.pem"), "{error}");
}

#[tokio::test]
async fn one_source_takes_its_share_of_the_connections_and_leaves_the_rest() {
    use std::net::Ipv4Addr;
    use tokio::net::{TcpSocket, TcpStream};

    async fn from(source: [u8; 4], to: SocketAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        let source = Ipv4Addr::from(source);
        socket.bind((source, 0).into()).unwrap();
        socket.connect(to).await.unwrap()
    }

    async fn served(mut stream: TcpStream) -> bool {
        let request = b"GET /ok HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap_or_default();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(SOON, stream.read_to_end(&mut answer)).await;
        read.is_ok() && answer.starts_with(b"HTTP/1.1 200")
    }

    let (address, _stop) = service().await;
    let mut greedy = Vec::new();
    for _ in 0..300 {
        greedy.push(from([127, 66, 1, 1], address).await);
    }
    for other in [[127, 66, 1, 2], [127, 0, 0, 1]] {
        assert!(served(from(other, address).await).await, "{other:?}");
    }
    assert!(
        !served(from([127, 66, 1, 1], address).await).await,
        "it has more than its share"
    );
    drop(greedy);
    let mut again = false;
    while !again {
        again = served(from([127, 66, 1, 1], address).await).await;
    }
}
