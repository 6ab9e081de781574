//! The parts of the lab that stand for the customer: the service of a site, the client that
//! writes through it, and the processes that all of it runs in.

mod processes;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::http::Uri;
use failover::adapters::clock::SystemClock;
use failover::adapters::http::{HttpProber, ProbeError, Roots};
use failover::adapters::postgres::{Database, promote, write_epoch};
use failover::adapters::rfc2136::{Rfc2136, TsigKey};
use failover::engine::answer::Answer;
use failover::engine::units::Epoch;
use failover::lab::client::{
    Attempt, Client, ClientConfig, Outcome, Report, Route, present_numbers, read_attempts,
};
use failover::lab::name_server::{NameServer, free_port};
use failover::lab::pair::start_temporarily;
use failover::lab::site_api::{SiteApiConfig, prepare_tables, run};
use failover::ports::Traffic;
use rustix::process::{Signal, kill_process};
use tokio::task::JoinHandle;

use crate::pair::{LIMIT, Pair, Server, place, site, until};

/// A service of a site in a task, killed with it.
struct Api {
    address: SocketAddr,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Api {
    async fn start(server: &Server, dir: &Path) -> Self {
        let (_ip, port) = place();
        Self::start_at(server, dir, port).await
    }

    /// On the address of its database.
    async fn start_at(server: &Server, dir: &Path, port: u16) -> Self {
        let instance = &server.instance;
        let password_file = dir.join("app.password");
        std::fs::write(&password_file, "app\n").unwrap();
        let address = SocketAddr::new(instance.listen, port);
        let config = SiteApiConfig {
            site: instance.site.clone(),
            listen: address,
            database: format!(
                "host={} port={} user=app dbname=app",
                instance.listen, instance.port
            ),
            password_file,
        };
        let text = serde_json::to_string(&config).unwrap();
        let task = tokio::spawn(run(serde_json::from_str(&text).unwrap()));
        let api = Self { address, task };
        until("the service answers", async || {
            !matches!(api.health().await, Err(ProbeError::Refused))
        })
        .await;
        api
    }

    /// The site, the epoch and the body of a good health page.
    async fn health(&self) -> Result<(String, Option<String>, String), ProbeError> {
        let prober = HttpProber::new(&Roots::System, Arc::new(SystemClock)).unwrap();
        let url: Uri = format!("http://{}/healthz", self.address).parse().unwrap();
        let headers = ["x-failover-site", "x-failover-epoch"];
        let answer = prober.probe(&url, Duration::from_secs(1), &headers).await?;
        let body = String::from_utf8(answer.body.to_vec()).unwrap();
        let mut headers = answer.headers;
        let site = headers.remove("x-failover-site").unwrap();
        Ok((site, headers.remove("x-failover-epoch"), body))
    }

    /// A request by the tool that everybody trusts: the status and the body.
    async fn curl(&self, arguments: &[&str], path: &str) -> (u16, String) {
        let done = tokio::process::Command::new("curl")
            .args(["-sS", "--noproxy", "*", "-m", "5", "-w", "\n%{http_code}"])
            .args(["-H", "content-type: application/json"])
            .args(arguments)
            .arg(format!("http://{}{path}", self.address))
            .output()
            .await
            .unwrap();
        let text = String::from_utf8(done.stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), body.to_owned())
    }

    async fn write(&self, number: i64) -> (u16, String) {
        let row = format!(r#"{{"number": {number}, "client": "curl"}}"#);
        self.curl(&["-d", &row], "/rows").await
    }

    async fn kill(&mut self) {
        self.task.abort();
        (&mut self.task).await.unwrap_err();
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn prepare(server: &Server) {
    let database = Database::open(&server.local(), LIMIT).await.unwrap();
    prepare_tables(&database, LIMIT).await.unwrap();
    prepare_tables(&database, LIMIT).await.unwrap();
}

async fn raise_epoch(server: &Server, epoch: u64) {
    let database = Database::open(&server.local(), LIMIT).await.unwrap();
    write_epoch(&database, Epoch(epoch), &server.instance.site, LIMIT)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_serves_what_its_database_can() {
    let dir = tempfile::tempdir().unwrap();
    let pair = Pair::new().await;
    prepare(&pair.primary).await;
    let api = Api::start(&pair.primary, dir.path()).await;

    let (name, epoch, body) = api.health().await.unwrap();
    assert_eq!((name.as_str(), epoch), ("aws", None));
    assert!(body.contains(r#""role":"primary""#), "{body}");
    assert_eq!(
        api.write(1).await,
        (200, r#"{"site":"aws","epoch":null}"#.to_owned())
    );

    raise_epoch(&pair.primary, 7).await;
    assert_eq!(api.health().await.unwrap().1.as_deref(), Some("7"));
    assert_eq!(
        api.write(2).await,
        (200, r#"{"site":"aws","epoch":7}"#.to_owned())
    );
    let (status, body) = api.write(2).await;
    assert_eq!(status, 503);
    assert!(body.contains("23505"), "{body}");
    assert_eq!(
        api.curl(&[], "/rows?from=2").await,
        (200, r#"{"numbers":[2],"next":null}"#.to_owned())
    );

    assert_eq!(api.curl(&[], "/check?nonce=n1").await.0, 404);
    assert_eq!(api.curl(&["-d", ""], "/check?nonce=n1").await.0, 200);
    assert_eq!(api.curl(&[], "/check?nonce=n1").await.0, 200);

    // The numbers come in pages.
    let many = "INSERT INTO rows SELECT n, 'sql', 'aws' FROM generate_series(3, 25000) n";
    pair.primary.sql(many);
    let present = present_numbers(api.address).await.unwrap();
    assert_eq!(present, (1..=25_000).collect::<BTreeSet<i64>>());

    // The standby reads and does not write.
    pair.caught_up().await;
    let passive = Api::start(pair.standby(), dir.path()).await;
    let (name, epoch, body) = passive.health().await.unwrap();
    assert_eq!((name.as_str(), epoch.as_deref()), ("gcp", Some("7")));
    assert!(body.contains(r#""role":"standby""#), "{body}");
    let (status, body) = passive.write(30_000).await;
    assert_eq!(status, 503);
    assert!(body.contains("25006"), "{body}");
    assert_eq!(passive.curl(&[], "/check?nonce=n1").await.0, 200);
    assert_eq!(passive.curl(&["-d", ""], "/check?nonce=n2").await.0, 503);
    assert_eq!(present_numbers(passive.address).await.unwrap(), present);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_whose_database_is_gone_says_so_at_once_and_recovers_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let pair = Pair::primary_only().await;
    prepare(&pair.primary).await;
    let api = Api::start(&pair.primary, dir.path()).await;
    assert_eq!(api.write(1).await.0, 200);
    let postmaster = pair.primary.postmaster().unwrap();

    // Frozen: every answer comes in time, and says no.
    let sessions = "SELECT pid FROM pg_stat_activity WHERE application_name = 'site-api'";
    let backends: Vec<_> = pair.primary.sql(sessions).lines().map(pid).collect();
    assert!(!backends.is_empty() && backends.len() <= 5, "{backends:?}");
    let all = || backends.iter().copied().chain([postmaster]);
    all().for_each(|process| kill_process(process, Signal::STOP).unwrap());
    assert_eq!(api.health().await, Err(ProbeError::Status(503)));
    let (status, body) = api.write(2).await;
    assert_eq!(status, 503);
    assert!(body.contains("no answer of the database"), "{body}");
    all().for_each(|process| kill_process(process, Signal::CONT).unwrap());
    until("it is healthy again", async || api.health().await.is_ok()).await;

    // Killed.
    kill_process(postmaster, Signal::KILL).unwrap();
    until("it is not healthy", async || {
        api.health().await == Err(ProbeError::Status(503))
    })
    .await;
    let (status, body) = api.write(3).await;
    assert_eq!(status, 503, "{body}");
    // Its children need a moment to see that it is dead.
    until("it starts again", async || {
        let (tools, instance) = (&pair.primary.tools, &pair.primary.instance);
        start_temporarily(tools, instance).await.is_ok()
    })
    .await;
    until("it is healthy again", async || api.health().await.is_ok()).await;
    until("it takes rows again", async || {
        let number = i64::from(fresh_number());
        api.write(number).await.0 == 200
    })
    .await;
}

/// A number that was not used before.
fn fresh_number() -> u32 {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1000);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

fn pid(line: &str) -> rustix::process::Pid {
    rustix::process::Pid::from_raw(line.parse().unwrap()).unwrap()
}

/// A name server that says where users go, and who may change it.
struct Names {
    server: NameServer,
    target: Rfc2136,
}

impl Names {
    async fn start(dir: &Path, sites: [(&str, IpAddr); 2]) -> Self {
        let (ip, _) = place();
        let key = TsigKey {
            name: "failover".into(),
            secret: [7; 32].into(),
        };
        let port = free_port(ip).unwrap();
        let server = NameServer::start(
            std::process::Command::new(failover::lab::name_server::program()),
            dir,
            ip,
            port,
            "shop.test",
            key,
        )
        .await
        .unwrap();
        let addresses = sites.map(|(name, ip)| (site(name), vec![ip]));
        let name = "users".parse().unwrap();
        let settings = server.settings(name, "app.shop.test", addresses.into());
        let target = Rfc2136::new(settings, Arc::new(SystemClock)).unwrap();
        Self { server, target }
    }

    async fn point(&self, to: &str, epoch: u64) {
        let there = self.target.read().await.unwrap();
        let weights = ["aws", "gcp"].map(|name| (site(name), if name == to { 100 } else { 0 }));
        let answer = Answer {
            weights: weights.into(),
            epoch: Some(Epoch(epoch)),
        };
        self.target
            .apply(&there, &answer, "test", &|| Ok(()))
            .await
            .unwrap();
    }

    fn route(&self, port: u16, refresh: Option<Duration>) -> Route {
        Route::Name {
            servers: vec![self.server.address()],
            name: "app.shop.test".into(),
            port,
            refresh,
        }
    }
}

fn client(dir: &Path, name: &str, first_number: i64, route: Route) -> ClientConfig {
    let config = ClientConfig {
        name: name.into(),
        route,
        first_number,
        per_second: 50,
        in_flight: 16,
        patience: Duration::from_secs(1),
        results: dir.join(format!("{name}.jsonl")),
    };
    // As a process of its own would get it.
    serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap()
}

fn acknowledged_by(name: &'static str, count: usize) -> impl Fn(&[Attempt]) -> bool {
    move |attempts| {
        let by = attempts.iter().filter(|attempt| {
            matches!(&attempt.outcome, Outcome::Acknowledged { site, .. } if site.as_str() == name)
        });
        by.count() >= count
    }
}

fn failed_after_success(attempts: &[Attempt]) -> bool {
    let failed = |attempt: &&Attempt| matches!(attempt.outcome, Outcome::Unacknowledged(_));
    acknowledged_by("aws", 1)(attempts) && attempts.iter().rev().take(10).filter(failed).count() > 5
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_counts_exactly_what_it_was_promised() {
    let dir = tempfile::tempdir().unwrap();
    let pair = Pair::primary_only().await;
    prepare(&pair.primary).await;
    raise_epoch(&pair.primary, 1).await;
    let mut api = Api::start(&pair.primary, dir.path()).await;
    let port = api.address.port();
    let ip = api.address.ip();
    let names = Names::start(dir.path(), [("aws", ip), ("gcp", place().0)]).await;
    names.point("aws", 1).await;
    let refresh = Some(Duration::from_millis(50));
    let config = client(dir.path(), "writer", 1, names.route(port, refresh));
    let mut client = Client::start(config.clone(), Arc::new(SystemClock)).unwrap();

    client.until(acknowledged_by("aws", 50)).await.unwrap();
    api.kill().await;
    client.until(failed_after_success).await.unwrap();
    let before = client.attempts().len();
    let api = Api::start_at(&pair.primary, dir.path(), port).await;
    client.until(acknowledged_by("aws", 100)).await.unwrap();
    let attempts = client.stop().await.unwrap();

    assert_eq!(read_attempts(&config.results).unwrap(), attempts);
    let numbers: BTreeSet<i64> = attempts.iter().map(|attempt| attempt.number).collect();
    let count = i64::try_from(attempts.len()).unwrap();
    assert_eq!(numbers, (1..=count).collect(), "each number once");
    let present = present_numbers(api.address).await.unwrap();
    assert!(present.is_subset(&numbers));
    let report = Report::new(&attempts, &present);
    assert_eq!(report.attempts, attempts.len());
    assert!(report.acknowledged.len() < attempts.len() && before < attempts.len());
    assert_eq!(report.lost, []);
    assert!(report.acknowledged.iter().all(|ack| ack.epoch == Some(1)));
    // Six numbers at least failed in it, one each 20 ms.
    assert!(report.longest_gap().unwrap().length_ms() >= 80);

    // A row taken away is found, by its number.
    let taken = report.acknowledged[60].number;
    pair.primary
        .sql(&format!("DELETE FROM rows WHERE number = {taken}"));
    let present = present_numbers(api.address).await.unwrap();
    let lost = Report::new(&attempts, &present).lost;
    assert_eq!(
        lost.iter().map(|ack| ack.number).collect::<Vec<_>>(),
        [taken]
    );
    names.server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn users_follow_the_name_and_the_stubborn_show_an_old_primary_that_takes_writes() {
    let dir = tempfile::tempdir().unwrap();
    let pair = Pair::new().await;
    prepare(&pair.primary).await;
    raise_epoch(&pair.primary, 1).await;
    pair.caught_up().await;
    let aws = Api::start(&pair.primary, dir.path()).await;
    let gcp = Api::start_at(pair.standby(), dir.path(), aws.address.port()).await;
    let [old, new] = [&aws, &gcp].map(|api| api.address.ip());
    let names = Names::start(dir.path(), [("aws", old), ("gcp", new)]).await;
    names.point("aws", 1).await;
    let port = aws.address.port();
    let start = |config| Client::start(config, Arc::new(SystemClock)).unwrap();
    let refresh = Some(Duration::from_millis(50));
    let mut user = start(client(dir.path(), "user", 1, names.route(port, refresh)));
    let mut deaf = start(client(
        dir.path(),
        "deaf",
        1_000_000,
        names.route(port, None),
    ));
    let inside = Route::Database {
        conninfo: format!(
            "host={old} port={} user=app dbname=app",
            pair.primary.instance.port
        ),
        password_file: dir.path().join("app.password"),
    };
    let mut inside = start(client(dir.path(), "inside", 2_000_000, inside));
    for client in [&mut user, &mut deaf, &mut inside] {
        client.until(acknowledged_by("aws", 10)).await.unwrap();
    }

    // A failover that forgets the fence.
    promote(&pair.standby().local(), LIMIT).await.unwrap();
    raise_epoch(pair.standby(), 2).await;
    names.point("gcp", 2).await;
    user.until(acknowledged_by("gcp", 10)).await.unwrap();
    let so_far = deaf.attempts().len();
    for client in [&mut deaf, &mut inside] {
        let more = |attempts: &[Attempt]| attempts.len() > so_far + 50;
        client.until(more).await.unwrap();
    }

    let mut attempts = user.stop().await.unwrap();
    for client in [deaf, inside] {
        let stubborn = client.stop().await.unwrap();
        let by_gcp = acknowledged_by("gcp", 1);
        assert!(!by_gcp(&stubborn));
        attempts.extend(stubborn);
    }
    let report = Report::new(&attempts, &present_numbers(gcp.address).await.unwrap());
    let late = report.by_old_after_new(&site("aws"), &site("gcp"));
    for stubborn in [1_000_000..2_000_000, 2_000_000..3_000_000] {
        assert!(late.iter().any(|ack| stubborn.contains(&ack.number)));
    }
    assert!(late.iter().all(|ack| report.lost.contains(ack)));
    assert!(report.by_stale_epoch().len() >= 2);
    names.server.stop().await.unwrap();
}
