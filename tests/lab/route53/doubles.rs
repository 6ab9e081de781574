//! What stands in for Route 53: a real double, a proxy that loses answers, and a stub that says
//! whatever a test wants.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_sdk_route53::Client;
use aws_sdk_route53::config::{BehaviorVersion, Credentials, Region};
use axum::http::{Method, StatusCode, Uri};
use failover::lab::name_server::free_port;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A running ministack. It ends with this value.
pub(super) struct Ministack {
    _process: Child,
    pub(super) address: SocketAddr,
    pub(super) endpoint: String,
    /// For what others do in the zone.
    pub(super) client: Client,
}

impl Ministack {
    pub(super) async fn start() -> Self {
        let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv/bin/python");
        assert!(
            python.exists(),
            "{} is missing: run `make test`",
            python.display()
        );
        let address = SocketAddr::new(LOOPBACK, free_port(LOOPBACK).unwrap());
        let process = Command::new(python)
            .args(["-m", "ministack"])
            .env("GATEWAY_PORT", address.port().to_string())
            .env("BIND_HOST", address.ip().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let answering = async {
            let mut pause = tokio::time::interval(Duration::from_millis(50));
            while TcpStream::connect(address).await.is_err() {
                pause.tick().await;
            }
        };
        let limit = Duration::from_secs(30);
        tokio::time::timeout(limit, answering)
            .await
            .expect("ministack does not start");
        let endpoint = format!("http://{address}");
        let config = aws_sdk_route53::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static("us-east-1"))
            .credentials_provider(Credentials::new("test", "test", None, None, "test"))
            .endpoint_url(&endpoint)
            .build();
        Self {
            _process: process,
            address,
            endpoint,
            client: Client::from_conf(config),
        }
    }

    /// Creates a hosted zone; its id.
    pub(super) async fn zone(&self, name: &str) -> String {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let unique = NEXT.fetch_add(1, Ordering::Relaxed).to_string();
        let request = self
            .client
            .create_hosted_zone()
            .name(name)
            .caller_reference(unique);
        let made = request.send().await.unwrap();
        let id = made.hosted_zone().unwrap().id();
        id.rsplit('/').next().unwrap().to_owned()
    }
}

/// A TCP proxy that can keep the answer to the next change to itself.
pub(super) struct Swallow {
    pub(super) endpoint: String,
    armed: Arc<AtomicBool>,
    done: Arc<AtomicBool>,
}

impl Swallow {
    pub(super) async fn start(behind: SocketAddr) -> Self {
        let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let armed = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicBool::new(false));
        let (next, kept) = (Arc::clone(&armed), Arc::clone(&done));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(behind).await.unwrap();
                tokio::spawn(pass(client, server, Arc::clone(&next), Arc::clone(&kept)));
            }
        });
        Self {
            endpoint,
            armed,
            done,
        }
    }

    pub(super) fn swallow_next_answer(&self) {
        self.armed.store(true, Ordering::SeqCst);
    }

    pub(super) fn swallowed(&self) -> bool {
        self.done.load(Ordering::SeqCst)
    }
}

async fn pass(
    mut client: TcpStream,
    mut server: TcpStream,
    armed: Arc<AtomicBool>,
    done: Arc<AtomicBool>,
) {
    let (mut from_client, mut from_server) = ([0; 16384], [0; 16384]);
    let mut swallowing = false;
    loop {
        tokio::select! {
            read = client.read(&mut from_client) => {
                let sent = &from_client[..read.unwrap_or(0)];
                if sent.starts_with(b"POST") {
                    swallowing = armed.swap(false, Ordering::SeqCst);
                }
                if sent.is_empty() || server.write_all(sent).await.is_err() {
                    return;
                }
            }
            read = server.read(&mut from_server) => {
                let answer = &from_server[..read.unwrap_or(0)];
                if swallowing && !answer.is_empty() {
                    done.store(true, Ordering::SeqCst);
                } else if answer.is_empty() || client.write_all(answer).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// What the stub says, and what it was told.
#[derive(Default)]
struct Script {
    /// The record sets; an empty list with status 503 for the text `503`.
    listed: String,
    /// What to answer to changes, and what is listed from then on.
    refusal: Option<(u16, String, Option<String>)>,
    pending: usize,
    changes_asked: usize,
    batches: Vec<String>,
}

/// An HTTP server with just the calls that the adapter makes.
pub(super) struct Stub {
    pub(super) endpoint: String,
    script: Arc<Mutex<Script>>,
}

impl Stub {
    pub(super) async fn start(listed: &str) -> Self {
        let script = Arc::new(Mutex::new(Script {
            listed: listed.into(),
            ..Script::default()
        }));
        let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::clone(&script);
        let app = axum::Router::new().fallback(move |method: Method, uri: Uri, body: String| {
            let answer = shared.lock().unwrap().answer(&method, &uri, body);
            async move { answer }
        });
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { endpoint, script }
    }

    pub(super) fn then_pending(&self, times: usize) {
        self.script.lock().unwrap().pending = times;
    }

    pub(super) fn then_answer(&self, status: u16, body: &str, listed: Option<&str>) {
        let listed = listed.map(str::to_owned);
        self.script.lock().unwrap().refusal = Some((status, body.to_owned(), listed));
    }

    pub(super) fn changes_asked(&self) -> usize {
        self.script.lock().unwrap().changes_asked
    }

    pub(super) fn batches(&self) -> Vec<String> {
        self.script.lock().unwrap().batches.clone()
    }
}

impl Script {
    fn answer(&mut self, method: &Method, uri: &Uri, body: String) -> (StatusCode, String) {
        let status = |code: u16| StatusCode::from_u16(code).unwrap();
        let query = uri.query().unwrap_or_default();
        if *method == Method::POST {
            self.batches.push(body);
            if let Some((code, body, listed)) = self.refusal.take() {
                self.listed = listed.unwrap_or(self.listed.clone());
                return (status(code), body);
            }
            return (status(200), change("ChangeResourceRecordSets", "PENDING"));
        }
        if uri.path().contains("/change/") {
            self.changes_asked += 1;
            let state = if self.changes_asked > self.pending {
                "INSYNC"
            } else {
                "PENDING"
            };
            return (status(200), change("GetChange", state));
        }
        if self.listed == "503" {
            return (status(503), String::new());
        }
        let is_note = query.contains("type=TXT");
        let sets = self.listed.split_inclusive("</ResourceRecordSet>");
        let sets: String = sets
            .filter(|set| set.contains("<Type>TXT") == is_note)
            .collect();
        let listed = format!(
            "<ListResourceRecordSetsResponse xmlns=\"https://route53.amazonaws.com/doc/2013-04-01/\">\
             <ResourceRecordSets>{sets}</ResourceRecordSets><IsTruncated>false</IsTruncated>\
             <MaxItems>100</MaxItems></ListResourceRecordSetsResponse>"
        );
        (status(200), listed)
    }
}

fn change(call: &str, state: &str) -> String {
    format!(
        "<{call}Response xmlns=\"https://route53.amazonaws.com/doc/2013-04-01/\"><ChangeInfo>\
         <Id>/change/C1</Id><Status>{state}</Status>\
         <SubmittedAt>2026-11-21T03:00:00Z</SubmittedAt></ChangeInfo></{call}Response>"
    )
}

/// The record sets of both sites, and a note of epoch 7.
pub(super) fn two_sites(aws: u16, gcp: u16) -> String {
    let set = |kind: &str, name: &str, extra: &str, value: &str| {
        format!(
            "<ResourceRecordSet><Name>{name}.</Name><Type>{kind}</Type>{extra}<TTL>60</TTL>\
             <ResourceRecords><ResourceRecord><Value>{value}</Value></ResourceRecord>\
             </ResourceRecords><HealthCheckId>check-1</HealthCheckId></ResourceRecordSet>"
        )
    };
    let weighted = |site: &str, weight: u16, value: &str| {
        let extra =
            format!("<SetIdentifier>failover-{site}</SetIdentifier><Weight>{weight}</Weight>");
        set("A", super::RECORD, &extra, value)
    };
    let note = format!("_failover.{}", super::RECORD);
    let note = set("TXT", &note, "", "\"epoch=7 site=aws\"");
    let note = note.replace("<HealthCheckId>check-1</HealthCheckId>", "");
    weighted("aws", aws, super::AWS) + &weighted("gcp", gcp, super::GCP) + &note
}
