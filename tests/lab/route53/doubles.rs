//! What stands in for Route 53: a real double, and a stub that says whatever a test wants.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_sdk_route53::Client;
use aws_sdk_route53::config::{BehaviorVersion, Credentials, Region};
use axum::http::{Method, StatusCode, Uri};
use failover::lab::name_server::free_port;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A running ministack. It ends with this value.
pub(crate) struct Ministack {
    _process: Child,
    pub(crate) address: SocketAddr,
    pub(crate) endpoint: String,
    /// For what others do in the zone.
    pub(crate) client: Client,
}

impl Ministack {
    pub(crate) async fn start() -> Self {
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
    pub(crate) async fn zone(&self, name: &str) -> String {
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

/// What the stub says, and what it was told.
#[derive(Default)]
struct Script {
    /// The record sets.
    listed: String,
    /// What to answer to the next change.
    refusal: Option<(u16, String)>,
    pending: usize,
    changes_asked: usize,
    batches: Vec<String>,
}

/// An HTTP server with just the calls that the adapter makes.
pub(crate) struct Stub {
    pub(crate) endpoint: String,
    script: Arc<Mutex<Script>>,
}

impl Stub {
    pub(crate) async fn start(listed: &str) -> Self {
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

    pub(crate) fn then_pending(&self, times: usize) {
        self.script.lock().unwrap().pending = times;
    }

    pub(crate) fn then_answer(&self, status: u16, body: &str) {
        self.script.lock().unwrap().refusal = Some((status, body.to_owned()));
    }

    pub(crate) fn changes_asked(&self) -> usize {
        self.script.lock().unwrap().changes_asked
    }

    pub(crate) fn batches(&self) -> Vec<String> {
        self.script.lock().unwrap().batches.clone()
    }
}

impl Script {
    fn answer(&mut self, method: &Method, uri: &Uri, body: String) -> (StatusCode, String) {
        let status = |code: u16| StatusCode::from_u16(code).unwrap();
        let query = uri.query().unwrap_or_default();
        if *method == Method::POST {
            self.batches.push(body);
            if let Some((code, body)) = self.refusal.take() {
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
pub(crate) fn two_sites(aws: u16, gcp: u16) -> String {
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
