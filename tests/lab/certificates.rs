//! Certificates of a whole lab that change, and that end, while users write.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use failover::adapters::certificates::Authority;
use failover::adapters::clock::SystemClock;
use failover::adapters::tls::{Identity, Peer, PeerClient, TlsMaterial};
use failover::app::api::obstacles;
use failover::engine::chain::Body;
use failover::engine::reason::Code;
use failover::engine::saga::Ending;
use failover::engine::units::Epoch;
use failover::lab::client::{Attempt, Client, Outcome};
use failover::lab::scenario::start_client;
use failover::lab::standing::Fault;
use failover::lab::supervisor::Supervisor;
use failover::ports::Clock;
use failover::wire::Status;

use crate::drill::failover;
use crate::stage::{endings, entries, on_a_lab, until, written_at};

pub(crate) const MONTHS: Duration = Duration::from_secs(90 * 86_400);

/// A person whose own files change with those of the lab.
struct Person {
    material: TlsMaterial,
    client: PeerClient,
}

impl Person {
    fn of(lab: &Supervisor) -> Self {
        let material = TlsMaterial::load(&lab.layout.operator).unwrap();
        let peer = Peer {
            identity: Identity::Controller,
            address: lab.layout.controller.into(),
        };
        let client = PeerClient::new(&material, peer)
            .unwrap()
            .of(&lab.layout.group);
        Self { material, client }
    }

    async fn until(&self, what: &str, so: impl Fn(&Status) -> bool) {
        until(what, async || {
            self.material.look();
            let status = self.client.get("/status", Duration::from_secs(2)).await;
            status.is_ok_and(|status| so(&status))
        })
        .await;
    }
}

/// The processes of a lab, by the names of their certificates, and what they say.
fn processes(lab: &Supervisor) -> [(String, PathBuf); 3] {
    let dir = &lab.layout.dir;
    [
        ("aws.agent.shop".to_owned(), dir.join("aws/agent.log")),
        ("controller".to_owned(), dir.join("controller.log")),
        ("gcp.agent.shop".to_owned(), dir.join("gcp/agent.log")),
    ]
}

fn times_read_again(log: &Path) -> usize {
    let text = fs::read_to_string(log).unwrap();
    text.matches("certificates were reloaded").count()
}

/// Does something to files, and waits until these processes have taken it.
async fn taken_by(logs: &[&PathBuf], what: &str, change: impl FnOnce()) {
    let before: Vec<usize> = logs.iter().map(|log| times_read_again(log)).collect();
    change();
    for (log, before) in logs.iter().zip(before) {
        until(what, async || times_read_again(log) > before).await;
    }
}

/// Issues to a process, from an authority in a folder of its own, and puts the pair in place.
pub(crate) fn renew(authority: &Authority, from: &Path, to: &Path, name: &str, lasting: Duration) {
    let identity: Identity = format!("{name}.failover.internal").parse().unwrap();
    authority
        .issue(&identity, SystemClock.wall(), lasting)
        .unwrap();
    for ending in ["key", "pem"] {
        let file = format!("{name}.{ending}");
        fs::copy(from.join(&file), to.join(&file)).unwrap();
    }
}

async fn goes_on(client: &Client) {
    let before = written_at(&client.attempts(), "aws");
    until("users write", async || {
        written_at(&client.attempts(), "aws") > before + 20
    })
    .await;
}

/// The longest time in which no write was acknowledged.
fn longest_pause(attempts: &[Attempt]) -> u64 {
    let mut moments: Vec<u64> = attempts
        .iter()
        .filter(|attempt| matches!(attempt.outcome, Outcome::Acknowledged { .. }))
        .map(|attempt| attempt.ended_ms)
        .collect();
    moments.sort_unstable();
    let pauses = moments.windows(2).map(|pair| pair[1] - pair[0]);
    pauses.max().unwrap()
}

#[test]
fn authority_and_all_certificates_change_one_at_a_time_while_users_write() {
    let test =
        "certificates::authority_and_all_certificates_change_one_at_a_time_while_users_write";
    on_a_lab(test, async |lab| {
        let mut client = start_client(lab).unwrap();
        let writes = |attempts: &[Attempt]| written_at(attempts, "aws") >= 50;
        client.until(writes).await.unwrap();
        let person = Person::of(lab);
        let all = processes(lab);
        let logs: Vec<&PathBuf> = all.iter().map(|(_, log)| log).collect();
        let tls = lab.layout.dir.join("tls");
        let next = lab.layout.dir.join("next");
        fs::create_dir(&next).unwrap();
        let authority = Authority::create(&next, SystemClock.wall(), MONTHS).unwrap();
        let [old, new] = [&tls, &next].map(|dir| fs::read_to_string(dir.join("ca.pem")).unwrap());
        let ready = |status: &Status| obstacles(status).is_empty();

        taken_by(&logs, "both authorities", || {
            fs::write(tls.join("ca.pem"), format!("{old}{new}")).unwrap();
        })
        .await;
        for (name, log) in &all {
            taken_by(&[log], name, || {
                renew(&authority, &next, &tls, name, MONTHS);
            })
            .await;
            goes_on(&client).await;
            person.until(name, ready).await;
        }
        renew(&authority, &next, &tls, "lab.operator.shop", MONTHS);
        person.until("the person's own", ready).await;
        taken_by(&logs, "the new authority alone", || {
            fs::write(tls.join("ca.pem"), &new).unwrap();
        })
        .await;
        goes_on(&client).await;
        person.until("all is well", ready).await;

        let entries = entries(&lab.layout.log());
        let planned = |body: &Body| matches!(body, Body::Plan { .. });
        assert!(!entries.iter().any(|entry| planned(&entry.body)));
        let pause = longest_pause(&client.attempts());
        assert!(pause < 2000, "users waited for {pause} ms");
        // Everybody speaks with everybody: orders go through, too.
        let done = failover(lab, "promote shop --to gcp --yes --reason drill").await;
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(0), "{said}");
        assert_eq!(
            endings(&crate::stage::entries(&lab.layout.log())),
            [Ending::Done]
        );
        client.stop().await.unwrap();
    });
}

#[test]
fn certificates_that_end_stop_no_production_not_even_when_agent_and_controller_are_restarted() {
    let test = "certificates::certificates_that_end_stop_no_production_not_even_when_agent_and_controller_are_restarted";
    on_a_lab(test, async |lab| {
        lab.expects_error("a certificate expires soon");
        lab.expects_error("a certificate has expired");
        let [aws, _] = lab.layout.sites.clone();
        let mut client = start_client(lab).unwrap();
        let writes = |attempts: &[Attempt]| written_at(attempts, "aws") >= 50;
        client.until(writes).await.unwrap();
        let person = Person::of(lab);
        let all = processes(lab);
        let tls = lab.layout.dir.join("tls");
        let short = lab.layout.dir.join("short");
        fs::create_dir(&short).unwrap();
        for file in ["ca.pem", "ca.key"] {
            fs::copy(tls.join(file), short.join(file)).unwrap();
        }
        let authority = Authority::load(&short).unwrap();
        for (name, log) in &all {
            taken_by(&[log], name, || {
                renew(&authority, &short, &tls, name, Duration::from_secs(25));
            })
            .await;
        }
        let urgent = |status: &Status| {
            let says = |text: &String| text.starts_with(Code::CertificateUrgent.as_str());
            obstacles(status).iter().any(says)
        };
        person.until("it is red", urgent).await;
        let ended = |status: &Status| {
            let certificates = &status.situation.certificates;
            let over = certificates.iter().filter(|end| end.left.is_zero());
            over.count() == all.len() && urgent(status)
        };
        person.until("all have ended", ended).await;
        goes_on(&client).await;

        let agent = |status: &Status| {
            let agent = status.situation.sites[&aws.name].agent.as_ref();
            agent.is_some_and(|agent| {
                agent.age < Duration::from_secs(1) && agent.fact.fenced.is_none()
            })
        };
        lab.fault(Fault::KillAgent, &aws.name).await.unwrap();
        lab.start_missing().unwrap();
        person.until("the new agent is heard", agent).await;
        goes_on(&client).await;
        lab.fault(Fault::KillController, &aws.name).await.unwrap();
        lab.start_controller(None).unwrap();
        person.until("the new controller hears it", agent).await;
        // Longer than a right lasts: it is renewed.
        for _ in 0..10 {
            goes_on(&client).await;
        }
        person.until("it is still red", ended).await;
        let status = lab.status().await.unwrap();
        assert_eq!(
            (status.situation.active, status.situation.epoch),
            (aws.name, Epoch(1))
        );
        let pause = longest_pause(&client.attempts());
        assert!(pause < 2000, "users waited for {pause} ms");

        fs::remove_dir_all(&short).unwrap();
        fs::create_dir(&short).unwrap();
        for file in ["ca.pem", "ca.key"] {
            fs::copy(tls.join(file), short.join(file)).unwrap();
        }
        for (name, _) in &all {
            renew(&authority, &short, &tls, name, MONTHS);
        }
        person
            .until("renewed, all is well", |status| {
                obstacles(status).is_empty()
            })
            .await;
        client.stop().await.unwrap();
    });
}
