//! A fence that holds, on a real pair: whoever starts anew after it, with whomever there is to
//! ask, the database stays down until it has rejoined.

use std::net::TcpStream;
use std::time::Duration;

use failover::engine::lease::FenceProof;
use failover::engine::observation::ReceiverFacts;
use failover::engine::policy::Policy;
use failover::engine::situation::{AgentFacts, LocalDatabase};
use failover::engine::step::{Fact, Step};
use failover::engine::topology::Role;
use failover::engine::units::Epoch;
use failover::lab::layout::SiteLayout;
use failover::lab::standing::Fault;
use failover::lab::supervisor::Supervisor;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Error, NoTls};

use crate::drill::failover;
use crate::stage::{FAST, entries, facts, on_a_lab, until, until_status};

/// So many reports, or questions without an answer, are some seconds of an agent's life: twenty
/// looks at its database.
const ENOUGH: usize = 8;

fn file(site: &SiteLayout, name: &str) -> String {
    std::fs::read_to_string(site.dir.join(name)).unwrap()
}

/// How often PostgreSQL was started at a site.
fn starts(site: &SiteLayout) -> usize {
    file(site, "postgres.log")
        .matches("starting PostgreSQL")
        .count()
}

/// How often a site's agents got no answer of the controller.
fn unanswered(site: &SiteLayout) -> usize {
    let told = file(site, "agent.log");
    told.matches("the controller does not answer").count()
}

fn refuses(site: &SiteLayout) -> bool {
    let connected = TcpStream::connect((site.ip, site.instance.port));
    connected.is_err_and(|cause| cause.kind() == std::io::ErrorKind::ConnectionRefused)
}

/// The newest report of a site's agent, and its age.
async fn report(lab: &Supervisor, site: &SiteLayout) -> Option<(Duration, AgentFacts)> {
    let status = lab.status().await.ok()?;
    let agent = status.situation.sites[&site.name].agent.as_ref()?;
    Some((agent.age, agent.fact.clone().own()))
}

/// Waits for a number of new reports, each of which must say what is expected.
async fn goes_on_saying(
    lab: &Supervisor,
    site: &SiteLayout,
    expected: impl Fn(&AgentFacts) -> bool,
) {
    let mut last = Duration::ZERO;
    let mut seen = 0;
    until("reports of the new agent", async || {
        if let Some((age, facts)) = report(lab, site).await {
            if age < last {
                assert!(expected(&facts), "{facts:?}");
                seen += 1;
            }
            last = age;
        }
        seen >= ENOUGH
    })
    .await;
}

/// A session with a site's database.
async fn session(site: &SiteLayout) -> Client {
    let (socket, port) = (site.instance.socket(), site.instance.port);
    let socket = socket.display();
    let conninfo = format!("host={socket} port={port} user=postgres dbname=app");
    let (client, connection) = tokio_postgres::connect(&conninfo, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Two sessions that would not end by themselves: one in a transaction, one in a statement.
async fn stubborn_sessions(site: &SiteLayout) -> (Client, JoinHandle<Result<(), Error>>) {
    let open = session(site).await;
    let begun = "BEGIN; INSERT INTO public.checks (nonce) VALUES ('never committed')";
    open.batch_execute(begun).await.unwrap();
    let busy = session(site).await;
    let busy = tokio::spawn(async move { busy.batch_execute("SELECT pg_sleep(600)").await });
    (open, busy)
}

/// What the agent said of its fence, and how many milliseconds it took.
fn proof(lab: &Supervisor) -> (String, u128) {
    let fence = facts(&entries(&lab.layout.log()), &Step::Fence);
    let [
        Fact::Fenced {
            proof: FenceProof::Agent { said, .. },
        },
    ] = &fence[..]
    else {
        panic!("not the agent's word: {fence:?}");
    };
    let took = said
        .split(" after ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    (said.clone(), took.unwrap().parse().unwrap())
}

#[test]
fn a_fenced_database_stays_down_whoever_starts_anew_until_it_rejoins() {
    let test = "fenced::a_fenced_database_stays_down_whoever_starts_anew_until_it_rejoins";
    on_a_lab(test, async |lab| {
        let [aws, gcp] = lab.layout.sites.clone();
        let (open, busy) = stubborn_sessions(&aws).await;
        let done = failover(lab, "promote shop --to gcp --yes --reason drill").await;
        assert_eq!(done.status.code(), Some(0), "{done:?}");

        // Sessions are ended, not waited for, and the proof is a refused connection.
        let (said, took) = proof(lab);
        let timers = Policy::read("fast", FAST).unwrap().lease;
        assert!(took <= timers.fence_within.as_millis(), "{said}");
        let refused = said.split("refused at ").nth(1).unwrap();
        let address = format!("{}:{}", aws.ip, aws.instance.port);
        assert!(refused.contains(&address), "{said}");
        until("the open transaction has ended", async || open.is_closed()).await;
        assert!(busy.await.unwrap().is_err());

        let started = starts(&aws);
        let fenced = |facts: &AgentFacts| {
            facts.fenced == Some(Epoch(2)) && facts.database != LocalDatabase::Up
        };
        // The agent's supervisor restarts it; its guard lived on.
        lab.fault(Fault::KillAgent, &aws.name).await.unwrap();
        lab.start_missing().unwrap();
        goes_on_saying(lab, &aws, fenced).await;
        // The machine reboots, or the container is restarted: what is on its disk is left.
        lab.fault(Fault::KillSite, &aws.name).await.unwrap();
        lab.start_missing().unwrap();
        goes_on_saying(lab, &aws, fenced).await;
        // The same, with nobody there who could say that another site is active.
        lab.fault(Fault::FreezeController, &aws.name).await.unwrap();
        lab.fault(Fault::FreezeSite, &gcp.name).await.unwrap();
        lab.fault(Fault::KillSite, &aws.name).await.unwrap();
        let before = unanswered(&aws);
        lab.start_missing().unwrap();
        until("the new agent asked in vain", async || {
            unanswered(&aws) > before
        })
        .await;
        assert!(refuses(&aws));
        lab.thaw().await.unwrap();
        goes_on_saying(lab, &aws, fenced).await;
        assert_eq!(starts(&aws), started, "it was started");
        assert!(refuses(&aws));

        lab.rejoin(&aws, &gcp).await.unwrap();
        until_status(lab, "the old primary is the standby", |status| {
            let site = &status.situation.sites[&aws.name];
            let database = site.database.as_ref().map(|database| &database.fact);
            database.is_some_and(|facts| {
                let receiver = facts.receiver.as_ref();
                facts.role == Role::Standby && receiver.is_some_and(ReceiverFacts::is_streaming)
            })
        })
        .await;
    });
}

#[test]
fn an_agent_that_is_granted_nothing_lets_no_primary_start() {
    let test = "fenced::an_agent_that_is_granted_nothing_lets_no_primary_start";
    on_a_lab(test, async |lab| {
        let [aws, gcp] = lab.layout.sites.clone();
        // Never fenced: nothing on its disk speaks against it.
        let done = failover(lab, "hold shop --for 30m --reason maintenance").await;
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        lab.fault(Fault::FreezeController, &aws.name).await.unwrap();
        // An answer of the other agent keeps a right, and is none: it lives.
        lab.fault(Fault::KillSite, &aws.name).await.unwrap();
        let (started, before) = (starts(&aws), unanswered(&aws));
        lab.start_missing().unwrap();
        until("the new agent asked in vain", async || {
            unanswered(&aws) > before
        })
        .await;
        assert!(refuses(&aws));
        assert_eq!(starts(&aws), started, "it was started without a right");

        lab.thaw().await.unwrap();
        until("it has its right back", async || starts(&aws) > started).await;
        let status = until_status(lab, "its agent says so", |status| {
            let agent = status.situation.sites[&aws.name].agent.as_ref();
            agent.is_some_and(|agent| {
                agent.age < Duration::from_secs(1) && agent.fact.database == LocalDatabase::Up
            })
        })
        .await;
        assert_eq!(status.situation.epoch, Epoch(1));
        assert_eq!(starts(&aws), started + 1);
        assert_eq!(starts(&gcp), 1);
    });
}
