//! `failover check` on a lab: green while all is well, and naming each fault that is planted, long
//! before a failover would meet it.

use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use failover::adapters::clock::SystemClock;
use failover::adapters::postgres::Database;
use failover::adapters::rfc2136::Rfc2136;
use failover::engine::readiness::CheckState::{self, Blocks, Warns};
use failover::engine::reason::Code;
use failover::lab::layout::{SERVICE, SiteLayout, ZONE};
use failover::lab::name_server::NameServer;
use failover::lab::site_api::prepare_tables;
use failover::lab::standing::Fault;
use failover::lab::supervisor::Supervisor;
use failover::ports::Clock;
use failover::wire::Readiness;

use crate::drill::failover;
use crate::outside::{answers_at, ask_too, second, write};
use crate::pair::{LIMIT, place};
use crate::stage::{FAST, on_a_prepared_lab, until, until_status};

mod credentials;
mod owners;
mod promises;
mod standby;

/// What the command says, and how it ended.
async fn check(lab: &Supervisor) -> Option<(i32, Readiness)> {
    let done = failover(lab, "check shop --output json").await;
    let readiness = serde_json::from_slice(&done.stdout).ok()?;
    Some((done.status.code()?, readiness))
}

async fn until_green(lab: &Supervisor, after: &str) {
    let mut last = String::new();
    let green = async {
        while let Some(bad) = not_green(lab).await {
            last = bad;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), green).await;
    assert!(waited.is_ok(), "not green, {after}: {last}");
}

/// What is not well, in words; nothing where all is.
async fn not_green(lab: &Supervisor) -> Option<String> {
    let Some((code, found)) = check(lab).await else {
        return Some("no answer".to_owned());
    };
    assert_eq!(code == 0, found.ready, "{found:?}");
    let bad = found.checks.iter();
    let bad = bad.filter(|check| check.state != CheckState::Ok);
    let bad: Vec<String> = bad
        .map(|check| format!("{} {}", check.state, check.reason))
        .collect();
    (!bad.is_empty()).then(|| bad.join("; "))
}

/// Waits until a check of this code stands so, and says something.
async fn until_named(lab: &Supervisor, code: Code, state: CheckState, said: &str) {
    let what = format!("{state}: {code} with {said:?}");
    until(&what, async || {
        let Some((exit, found)) = check(lab).await else {
            return false;
        };
        let named = found.checks.iter().any(|check| {
            check.state == state
                && check.reason.code == code
                && check.page == format!("runbooks/{code}.md")
                && check.reason.to_string().contains(said)
        });
        assert_eq!(exit, i32::from(!found.ready), "{found:?}");
        named && (state != Blocks || exit == 1)
    })
    .await;
}

/// Waits until whatever the checks rest on was looked at after this was called.
async fn until_looked_at_anew(lab: &Supervisor) {
    let began = SystemClock.now();
    until_status(lab, "everything was looked at anew", |status| {
        let all = &status.situation;
        let since = SystemClock.now().since(began);
        let sites = all.sites.values().all(|site| {
            let database = site.database.as_ref().map(|seen| seen.age);
            let agent = site.agent.as_ref().map(|seen| seen.age);
            let votes = site.health.values().flat_map(|health| &health.votes);
            let votes = votes.map(|vote| Some(vote.age));
            let mut ages = votes.chain([database, agent]);
            ages.all(|age| age.is_some_and(|age| age < since))
        });
        let agent = all.sites[&all.passive].agent.as_ref();
        let rehearsed =
            agent.and_then(|agent| Some(agent.age + agent.fact.rehearsal.as_ref()?.ago));
        let tried = all.rehearsals.iter().all(|look| look.age < since);
        sites && tried && rehearsed.is_some_and(|ago| ago < since)
    })
    .await;
}

/// Changes the lab's zone as somebody else would who has the key.
fn by_hand(lab: &Supervisor, change: &str) {
    let layout = &lab.layout;
    let server = layout.name_server;
    let secret = data_encoding::BASE64.encode(&layout.tsig.secret);
    let script = format!(
        "server {} {}\nzone {ZONE}\n{change}\nsend\nquit\n",
        server.ip(),
        server.port()
    );
    let mut process = Command::new("knsupdate")
        .args(["-y", &format!("hmac-sha256:{}:{secret}", layout.tsig.name)])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = process.stdin.take().unwrap();
    input.write_all(script.as_bytes()).unwrap();
    drop(input);
    assert!(process.wait().unwrap().success());
}

/// What a helper of these tests states for itself, whatever the defaults are.
const PLAIN: &str = "-c search_path=public -c statement_timeout=0 -c lock_timeout=0 \
    -c default_transaction_read_only=off -c default_transaction_deferrable=off \
    -c default_transaction_isolation=read\\ committed";

async fn session(site: &SiteLayout, user: &str) -> Option<tokio_postgres::Client> {
    session_with(site, user, PLAIN).await
}

async fn session_with(
    site: &SiteLayout,
    user: &str,
    options: &str,
) -> Option<tokio_postgres::Client> {
    let mut to = tokio_postgres::Config::new();
    to.host_path(site.instance.socket())
        .port(site.instance.port)
        .user(user)
        .dbname("app")
        .options(options);
    let (client, connection) = to.connect(tokio_postgres::NoTls).await.ok()?;
    tokio::spawn(connection);
    Some(client)
}

/// One text that a site's database answers.
async fn ask(site: &SiteLayout, question: &str) -> String {
    let client = session(site, "postgres").await.unwrap();
    let row = client.query_one(question, &[]).await.unwrap();
    row.get::<_, Option<String>>(0).unwrap_or_default()
}

/// Sets a setting of a server, for those who ask from now on.
async fn set(site: &SiteLayout, name: &str, value: &str) {
    sql(site, &format!("ALTER SYSTEM SET {name} = '{value}'")).await;
    sql(site, "SELECT pg_reload_conf()").await;
}

pub(crate) async fn sql(site: &SiteLayout, statement: &str) {
    let client = session(site, "postgres").await.unwrap();
    client.batch_execute(statement).await.unwrap();
}

/// Records of others, an epoch of others, a name server that is dead, that answers garbage, and
/// that leads elsewhere.
async fn traffic(lab: &Supervisor, at: SocketAddr, server: NameServer, target: &Rfc2136) {
    let [aws, gcp] = &lab.layout.sites;
    by_hand(lab, &format!("add {SERVICE}. 60 A 203.0.113.9"));
    until_named(lab, Code::TrafficUnready, Blocks, "203.0.113.9").await;
    by_hand(lab, &format!("delete {SERVICE}. A 203.0.113.9"));
    until_green(lab, "the foreign record is gone").await;

    let note = format!("_failover.{SERVICE}.");
    by_hand(
        lab,
        &format!("delete {note} TXT\nadd {note} 60 TXT \"epoch=9 site=aws\""),
    );
    until_named(lab, Code::TrafficUnready, Blocks, "epoch 9").await;
    by_hand(
        lab,
        &format!("delete {note} TXT\nadd {note} 60 TXT \"epoch=1 site=aws\""),
    );
    until_green(lab, "the epoch is ours").await;

    write(target, lab, &gcp.name, 1).await;
    until_named(
        lab,
        Code::TrafficUnready,
        Blocks,
        &format!("{at} answers gcp"),
    )
    .await;
    write(target, lab, &aws.name, 1).await;
    until_green(lab, "the name servers agree").await;

    server.stop().await.unwrap();
    let garbage = answers_at(at, &[0xff; 510]).await;
    until_named(lab, Code::NameServerSilent, Warns, &at.to_string()).await;
    garbage.abort();
}

/// What the steps after the promotion need of the databases and of the service.
async fn databases(lab: &Supervisor) {
    let [aws, gcp] = &lab.layout.sites;
    let mut sessions = Vec::new();
    // Whatever a look of ours gives back is taken too: at the first refusal some are on loan to one.
    let take = async {
        loop {
            match session(gcp, "app").await {
                Some(session) => sessions.push(session),
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    tokio::select! {
        () = until_named(lab, Code::StandbyConnections, Blocks, "too many") => {}
        () = take => {}
    }
    drop(sessions);
    until_green(lab, "the standby has connections again").await;

    sql(aws, "DROP TABLE public.checks").await;
    until_named(lab, Code::FrontDoorUnready, Blocks, "write").await;
    let opened = Database::open(&aws.instance.local("app").unwrap(), LIMIT).await;
    prepare_tables(&opened.unwrap(), LIMIT).await.unwrap();
    until_green(lab, "the front door opens again").await;

    sql(gcp, "SELECT pg_wal_replay_pause()").await;
    until_named(lab, Code::ReplayStalled, Blocks, "").await;
    sql(gcp, "SELECT pg_wal_replay_resume()").await;
    until_green(lab, "the standby replays again").await;

    failover(lab, "hold shop --reason maintenance --for 1h").await;
    until_named(lab, Code::Held, Blocks, "maintenance").await;
    failover(lab, "release shop --reason done").await;
    until_green(lab, "nobody holds it").await;
}

#[test]
fn it_is_green_on_a_lab_and_names_what_is_planted_in_the_databases() {
    let test = "check::it_is_green_on_a_lab_and_names_what_is_planted_in_the_databases";
    on_a_prepared_lab(
        test,
        FAST,
        |_| (),
        async |lab| {
            until_green(lab, "nothing is planted").await;
            databases(lab).await;
        },
    );
}

#[test]
fn it_names_what_is_planted_where_the_traffic_is_led() {
    let test = "check::it_names_what_is_planted_where_the_traffic_is_led";
    let at = SocketAddr::from(place());
    on_a_prepared_lab(
        test,
        FAST,
        |layout| ask_too(layout, &[at]),
        async |lab| {
            let aws = lab.layout.sites[0].clone();
            let dir = tempfile::tempdir().unwrap();
            let (server, target) = second(lab, dir.path(), at).await;
            write(&target, lab, &aws.name, 1).await;
            until_green(lab, "nothing is planted").await;
            traffic(lab, at, server, &target).await;
        },
    );
}

#[test]
fn a_key_that_the_name_server_does_not_know_and_a_fault_of_the_standby_are_named() {
    let test =
        "check::a_key_that_the_name_server_does_not_know_and_a_fault_of_the_standby_are_named";
    on_a_prepared_lab(
        test,
        FAST,
        |_| (),
        async |lab| {
            let gcp = lab.layout.sites[1].clone();
            until_green(lab, "nothing is planted").await;
            // What is read is read by everybody; only the rehearsal of a change needs the key.
            let secret = lab.layout.dir.join("tsig.secret");
            let good = std::fs::read(&secret).unwrap();
            let wrong = data_encoding::BASE64.encode(&[9; 32]);
            lab.fault(Fault::KillController, &gcp.name).await.unwrap();
            std::fs::write(&secret, wrong).unwrap();
            lab.start_controller(None).unwrap();
            until_named(lab, Code::TrafficUnready, Blocks, "BADSIG").await;
            lab.fault(Fault::KillController, &gcp.name).await.unwrap();
            std::fs::write(&secret, good).unwrap();
            lab.start_controller(None).unwrap();
            until_green(lab, "the key is right").await;

            lab.fault(Fault::KillAgent, &gcp.name).await.unwrap();
            until_named(lab, Code::StandbyAgentSilent, Blocks, "gcp").await;
            lab.heal().await.unwrap();
            until_green(lab, "the agent is back").await;
        },
    );
}
