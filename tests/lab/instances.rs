//! A site's folders copied on one machine, certificate and all: who may write then.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use failover::adapters::clock::SystemClock;
use failover::adapters::postgres::{Connect, probe};
use failover::engine::chain::Body;
use failover::engine::instance::{Instance, InstanceChange};
use failover::engine::policy::Policy;
use failover::engine::reason::Code;
use failover::engine::topology::Role;
use failover::lab::layout::SiteLayout;
use failover::lab::scenario::start_client;
use failover::lab::standing::Fault;
use failover::lab::supervisor::Supervisor;
use failover::ports::Clock;
use failover::wire::{HoldAsk, Status};

use crate::drill::failover;
use crate::pair::LIMIT;
use crate::stage::{FAST, entries, on_a_lab, until, until_status, was_told_to_stop, written_at};

/// A site's folders once more, with ports of their own.
struct Copy {
    dir: PathBuf,
    port: u16,
}

/// A port that is free at a site's address.
fn free(site: &SiteLayout) -> u16 {
    let listener = std::net::TcpListener::bind((site.ip, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// Replaces a text that must be there.
fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "no `{from}` in {text}");
    text.replace(from, to)
}

impl Copy {
    /// Copies state and data of a site, whatever runs there.
    fn of(lab: &Supervisor, site: &SiteLayout) -> Self {
        let dir = lab.layout.dir.join(format!("{}-copy", site.name));
        let mut copy = Command::new("cp");
        // What a running server removes meanwhile is missing in the copy.
        copy.arg("-a").arg(&site.dir).arg(&dir).output().unwrap();
        let port = free(site);
        let copy = Self { dir, port };
        std::fs::remove_file(copy.dir.join("pg/data/postmaster.pid")).ok();
        let (from, to) = (
            site.dir.display().to_string(),
            copy.dir.display().to_string(),
        );
        let moved = |file: &Path| {
            let text = std::fs::read_to_string(file).unwrap();
            replaced(&text, &format!("{from}/"), &format!("{to}/"))
        };
        let config = copy.dir.join("agent.toml");
        let mut text = moved(&config);
        for address in [site.agent, site.agent_plain] {
            let other = SocketAddr::new(site.ip, free(site));
            text = replaced(&text, &address.to_string(), &other.to_string());
        }
        let ports = |port: u16| format!("\nport = {port}\n");
        text = replaced(&text, &ports(site.instance.port), &ports(port));
        std::fs::write(&config, text).unwrap();
        let settings = copy.dir.join("pg/postgresql.conf");
        let text = replaced(&moved(&settings), &ports(site.instance.port), &ports(port));
        std::fs::write(&settings, text).unwrap();
        for log in ["agent.log", "postgres.log"] {
            std::fs::write(copy.dir.join(log), "").unwrap();
        }
        if let Some(user) = lab.layout.tools.user() {
            let log = copy.dir.join("postgres.log");
            std::os::unix::fs::chown(log, Some(user.uid), Some(user.gid)).unwrap();
        }
        copy
    }

    fn start(&self, lab: &mut Supervisor) {
        lab.start_agent("copy", &self.dir.join("agent.toml"))
            .unwrap();
    }

    fn said(&self, log: &str) -> String {
        std::fs::read_to_string(self.dir.join(log)).unwrap()
    }

    /// Nothing was started there.
    fn never_ran(&self) {
        let said = self.said("postgres.log");
        assert!(!said.contains("starting PostgreSQL"), "{said}");
    }

    fn connect(&self) -> Connect {
        let socket = self.dir.join("pg/socket");
        let port = self.port;
        let text = format!(
            "host='{}' port={port} user=postgres dbname=app",
            socket.display()
        );
        Connect::new(&text, None, None).unwrap()
    }

    /// Whether it takes writes.
    async fn is_primary(&self) -> bool {
        let seen = probe(&self.connect(), None, LIMIT).await;
        seen.is_ok_and(|facts| facts.role == Role::Primary)
    }
}

/// Which instance counts at a site, each time that it changed.
fn named(lab: &Supervisor, site: &SiteLayout) -> Vec<InstanceChange> {
    let changes = entries(&lab.layout.log()).into_iter().filter_map(|entry| {
        let Body::Instance { change } = entry.body else {
            return None;
        };
        (change.site == site.name).then_some(change)
    });
    changes.collect()
}

/// Waits until the controller names a second instance of a site, beside whatever else there is.
async fn named_second(lab: &Supervisor, site: &SiteLayout) -> Instance {
    let name = site.name.clone();
    let status = until_status(lab, "the copy is named", move |status| {
        let mut reasons = status.decision.reasons.iter();
        let there = status.situation.sites[&name].second.is_some();
        there && reasons.any(|it| it.code == Code::SecondInstance)
    })
    .await;
    let second = status.situation.sites[&site.name].second.clone().unwrap();
    assert_eq!(second.fact.counts, Some(named(lab, site)[0].instance));
    second.fact.instance.unwrap()
}

async fn hold(lab: &Supervisor) {
    let ask = HoldAsk {
        reason: "a copy is looked at".to_owned(),
        lasting: Duration::from_secs(600),
    };
    let held = lab.controller.post::<_, ()>("/hold", &ask, LIMIT);
    held.await.unwrap();
}

/// Waits until the site itself has the right and writes, with nothing beside it.
async fn writes_alone(lab: &Supervisor, site: &SiteLayout) {
    let api = site.api;
    until("the site serves", async || {
        let wrote = failover::lab::client::present_numbers(api).await;
        let primary = site.instance.local("app").unwrap();
        let seen = probe(&primary, None, LIMIT).await;
        wrote.is_ok() && seen.is_ok_and(|facts| facts.role == Role::Primary)
    })
    .await;
    let name = site.name.clone();
    until_status(lab, "its agent reports", move |status: &Status| {
        let agent = status.situation.sites[&name].agent.as_ref();
        agent.is_some_and(|agent| agent.age < Duration::from_secs(1))
    })
    .await;
}

#[test]
fn a_copy_of_the_active_site_gets_no_right_and_the_first_one_writes_on() {
    let test = "instances::a_copy_of_the_active_site_gets_no_right_and_the_first_one_writes_on";
    on_a_lab(test, async |lab| {
        lab.expects_error("this is a second instance of the site");
        let [aws, _] = lab.layout.sites.clone();
        let mut client = start_client(lab).unwrap();
        client
            .until(|all| written_at(all, "aws") >= 50)
            .await
            .unwrap();
        let copy = Copy::of(lab, &aws);
        copy.start(lab);
        let second = named_second(lab, &aws).await;
        let first = named(lab, &aws)[0].instance;
        assert_eq!(second.id, first.id, "a copy has the id");
        assert_ne!(second.place, first.place, "and another place");
        until("the copy says it itself", async || {
            copy.said("agent.log")
                .contains("second instance of the site")
        })
        .await;

        // The controller in between: it knows which one counts from its log.
        lab.fault(Fault::KillController, &aws.name).await.unwrap();
        lab.start_controller(None).unwrap();
        assert_eq!(named_second(lab, &aws).await, second);
        let before = written_at(&client.attempts(), "aws");
        client
            .until(|all| written_at(all, "aws") >= before + 300)
            .await
            .unwrap();
        copy.never_ran();
        assert_eq!(named(lab, &aws).len(), 1);
        let said = std::fs::read_to_string(aws.dir.join("postgres.log")).unwrap();
        assert!(!was_told_to_stop(&said), "{said}");
        client.stop().await.unwrap();
    });
}

#[test]
fn agent_and_machine_started_again_are_the_same_instance() {
    let test = "instances::agent_and_machine_started_again_are_the_same_instance";
    on_a_lab(test, async |lab| {
        let [aws, gcp] = lab.layout.sites.clone();
        hold(lab).await;
        for fault in [Fault::KillAgent, Fault::KillSite] {
            for site in [&aws, &gcp] {
                lab.fault(fault, &site.name).await.unwrap();
                lab.start_missing().unwrap();
            }
            writes_alone(lab, &aws).await;
        }
        for site in [&aws, &gcp] {
            let changes = named(lab, site);
            assert_eq!(changes.len(), 1, "{changes:?}");
            assert_eq!(changes[0].before, None);
        }
        let status = lab.status().await.unwrap();
        let seconds = status.situation.sites.values();
        assert!(seconds.into_iter().all(|site| site.second.is_none()));
    });
}

/// The first one is gone, and its copy is started. `before`: what happens before that. Returns how long after the end of the first one the copy's turn was written down.
async fn copy_takes_over(
    lab: &mut Supervisor,
    before: impl AsyncFnOnce(&mut Supervisor),
) -> Duration {
    lab.expects_error("this is a second instance of the site");
    let [aws, _] = lab.layout.sites.clone();
    hold(lab).await;
    lab.fault(Fault::KillSite, &aws.name).await.unwrap();
    let ended = SystemClock.wall();
    let copy = Copy::of(lab, &aws);
    before(lab).await;
    copy.start(lab);
    until("the copy takes writes", async || copy.is_primary().await).await;
    let changes = named(lab, &aws);
    assert_eq!(changes.len(), 2, "{changes:?}");
    assert_eq!(changes[1].before, Some(changes[0].instance));
    let all = entries(&lab.layout.log());
    let turn = all
        .iter()
        .rfind(|entry| matches!(&entry.body, Body::Instance { change } if *change == changes[1]));
    turn.unwrap().at.since(ended)
}

/// What certainly ends the first one's right: its last grant was at most one renewal before.
fn shortest() -> Duration {
    let lease = Policy::read("fast", FAST).unwrap().lease;
    let bound = lease.lease_ttl + lease.fence_and_margin();
    bound.saturating_sub(lease.renew_every * 2)
}

#[test]
fn a_copy_takes_over_once_the_right_of_the_first_one_is_certainly_over() {
    let test = "instances::a_copy_takes_over_once_the_right_of_the_first_one_is_certainly_over";
    on_a_lab(test, async |lab| {
        let took = copy_takes_over(lab, async |_| {}).await;
        assert!(took >= shortest(), "{took:?}");
    });
}

#[test]
fn a_controller_started_again_lets_a_copy_wait_from_its_own_start() {
    let test = "instances::a_controller_started_again_lets_a_copy_wait_from_its_own_start";
    on_a_lab(test, async |lab| {
        let mut again = SystemClock.wall();
        let took = copy_takes_over(lab, async |lab| {
            let [aws, _] = lab.layout.sites.clone();
            lab.fault(Fault::KillController, &aws.name).await.unwrap();
            again = SystemClock.wall();
            lab.start_controller(None).unwrap();
        })
        .await;
        assert!(took >= shortest(), "{took:?}");
        let [aws, _] = lab.layout.sites.clone();
        let all = entries(&lab.layout.log());
        let turn = all.iter().rfind(
            |entry| matches!(&entry.body, Body::Instance { change } if change.site == aws.name),
        );
        let lease = Policy::read("fast", FAST).unwrap().lease;
        let bound = lease.lease_ttl + lease.fence_and_margin();
        assert!(turn.unwrap().at.since(again) >= bound);
    });
}

#[test]
fn a_copy_of_the_standby_has_no_word_and_the_first_one_is_promoted() {
    let test = "instances::a_copy_of_the_standby_has_no_word_and_the_first_one_is_promoted";
    on_a_lab(test, async |lab| {
        lab.expects_error("this is a second instance of the site");
        let [aws, gcp] = lab.layout.sites.clone();
        let copy = Copy::of(lab, &gcp);
        copy.start(lab);
        named_second(lab, &gcp).await;
        // A standby needs no right to run; what it says is not taken for the first one's word.
        let mut client = start_client(lab).unwrap();
        client
            .until(|all| written_at(all, "aws") >= 50)
            .await
            .unwrap();
        lab.fault(Fault::KillSite, &aws.name).await.unwrap();
        until("users write at the first one", async || {
            written_at(&client.attempts(), "gcp") >= 50
        })
        .await;
        assert!(!copy.is_primary().await);
        assert_eq!(named(lab, &gcp).len(), 1);
        client.stop().await.unwrap();
    });
}

#[test]
fn where_nobody_can_say_that_the_first_right_is_over_a_person_can() {
    let test = "instances::where_nobody_can_say_that_the_first_right_is_over_a_person_can";
    on_a_lab(test, async |lab| {
        lab.expects_error("this is a second instance of the site");
        let [aws, gcp] = lab.layout.sites.clone();
        hold(lab).await;
        lab.fault(Fault::KillSite, &gcp.name).await.unwrap();
        lab.fault(Fault::KillSite, &aws.name).await.unwrap();
        let copy = Copy::of(lab, &aws);
        copy.start(lab);
        let second = named_second(lab, &aws).await;
        let name = aws.name.clone();
        until_status(
            lab,
            "only the other agent's word is missing",
            move |status| {
                let second = status.situation.sites[&name].second.as_ref();
                second.is_some_and(|it| it.fact.why.contains("the other site's agent may still"))
            },
        )
        .await;
        copy.never_ran();
        let stranger = Instance { id: 1, place: 1 };
        let verb = |instance: Instance| {
            format!("adopt-instance shop aws --instance {instance} --reason replaced")
        };
        let refused = failover(lab, &verb(stranger)).await;
        assert!(!refused.status.success(), "{refused:?}");
        let adopted = failover(lab, &verb(second)).await;
        assert!(adopted.status.success(), "{adopted:?}");
        until("the copy takes writes", async || copy.is_primary().await).await;
    });
}
