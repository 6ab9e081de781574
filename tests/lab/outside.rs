//! The end of a failover seen from outside, where some of the places that are asked are lost,
//! silent or wrong.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};

use failover::adapters::rfc2136::{Rfc2136, TsigKey};
use failover::engine::answer::Answer;
use failover::engine::saga::Ending;
use failover::engine::step::{Fact, Step};
use failover::engine::topology::SiteName;
use failover::engine::units::Epoch;
use failover::lab::layout::{Layout, SERVICE, ZONE};
use failover::lab::name_server::{NameServer, program};
use failover::lab::standing::Fault;
use failover::lab::supervisor::{Supervisor, topology};
use failover::ports::{OutsideFault, Traffic};

use crate::clock::MachineClock;
use crate::drill::failover;
use crate::pair::place;
use crate::stage::{endings, entries, facts, on_a_prepared_lab, until, until_status};

/// Has the lab's controller ask these name servers too, as users' resolvers would.
pub(crate) fn ask_too(layout: &Layout, servers: &[SocketAddr]) {
    let own = format!("authoritative = [\"{}\"", layout.name_server);
    let more: Vec<String> = servers.iter().map(|at| format!(", \"{at}\"")).collect();
    let more = more.concat();
    let path = layout.controller_config();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(&own));
    std::fs::write(path, text.replace(&own, &format!("{own}{more}"))).unwrap();
}

/// A second real name server of the lab's zone, in a folder of its own, and the way to write
/// there.
pub(crate) async fn second(
    lab: &Supervisor,
    dir: &std::path::Path,
    at: SocketAddr,
) -> (NameServer, Rfc2136) {
    let layout = &lab.layout;
    let key = TsigKey {
        name: "second".to_owned(),
        secret: vec![7; 32],
    };
    let (ip, port) = (at.ip(), at.port());
    let knotd = std::process::Command::new(program());
    let server = NameServer::start(knotd, dir, ip, port, ZONE, key);
    let server = server.await.unwrap();
    let addresses: BTreeMap<SiteName, _> = layout
        .sites
        .iter()
        .map(|site| (site.name.clone(), vec![site.ip]))
        .collect();
    let settings = server.settings("dns".parse().unwrap(), SERVICE, addresses);
    let target = Rfc2136::new(settings, std::sync::Arc::new(MachineClock::default())).unwrap();
    (server, target)
}

pub(crate) async fn write(target: &Rfc2136, lab: &Supervisor, to: &SiteName, epoch: u64) {
    let answer = Answer::only(to, &topology(&lab.layout), Epoch(epoch));
    let from = target.read().await.unwrap();
    target.apply(&from, &answer, "", &|| Ok(())).await.unwrap();
}

async fn end_of_plan(lab: &Supervisor) -> Ending {
    let log = lab.layout.log();
    until("the end of the plan", async || {
        !endings(&entries(&log)).is_empty()
    })
    .await;
    endings(&entries(&log)).remove(0)
}

#[test]
fn name_servers_lost_with_the_site_are_told_and_keep_no_plan() {
    let test = "outside::name_servers_lost_with_the_site_are_told_and_keep_no_plan";
    let (lost, mute) = (SocketAddr::from(place()), UdpSocket::bind(place()).unwrap());
    let nowhere: SocketAddr = "[2001:db8::53]:53".parse().unwrap();
    let others = [lost, mute.local_addr().unwrap(), nowhere];
    on_a_prepared_lab(
        test,
        crate::stage::FAST,
        |layout| ask_too(layout, &others),
        async |lab| {
            let [aws, _] = lab.layout.sites.clone();
            let dir = tempfile::tempdir().unwrap();
            let (server, target) = second(lab, dir.path(), lost).await;
            write(&target, lab, &aws.name, 1).await;

            lab.fault(Fault::KillSite, &aws.name).await.unwrap();
            server.stop().await.unwrap();
            assert_eq!(end_of_plan(lab).await, Ending::Done);
            let seen = facts(&entries(&lab.layout.log()), &Step::VerifyOutside);
            let [Fact::Seen { places, unseen, .. }] = &seen[..] else {
                panic!("seen once: {seen:?}");
            };
            let shows = |at: SocketAddr| places.contains_key(&format!("dns {at}"));
            assert!(shows(lab.layout.name_server), "{places:?}");
            for server in others {
                let why = unseen.get(&format!("dns {server}"));
                assert!(why.is_some(), "{server} is told: {unseen:?}");
            }
            let log = failover(lab, "log show").await;
            let log = String::from_utf8(log.stdout).unwrap();
            assert!(log.contains("outside-unseen"), "{log}");
        },
    );
}

#[test]
fn a_name_server_that_still_leads_to_the_old_site_keeps_the_plan_until_it_does_not() {
    let test =
        "outside::a_name_server_that_still_leads_to_the_old_site_keeps_the_plan_until_it_does_not";
    let at = SocketAddr::from(place());
    let policy = crate::stage::FAST.replace("verify = \"30s\"", "verify = \"5s\"");
    on_a_prepared_lab(
        test,
        &policy,
        |layout| ask_too(layout, &[at]),
        async |lab| {
            lab.expects_error("plan stuck");
            let [aws, gcp] = lab.layout.sites.clone();
            let dir = tempfile::tempdir().unwrap();
            let (_server, target) = second(lab, dir.path(), at).await;
            write(&target, lab, &aws.name, 1).await;

            lab.fault(Fault::KillSite, &aws.name).await.unwrap();
            let Ending::Stuck { why } = end_of_plan(lab).await else {
                panic!("not stuck");
            };
            assert!(why.contains(&format!("dns {at} answers aws")), "{why}");

            write(&target, lab, &gcp.name, 2).await;
            let done = failover(lab, "promote shop --to gcp --yes").await;
            let said = String::from_utf8_lossy(&done.stderr);
            assert_eq!(done.status.code(), Some(0), "{said}");
            until_status(lab, "no plan", |status| status.plan.is_none()).await;
        },
    );
}

/// A name server that answers every question with these bytes, after the question's number.
async fn answers(bytes: &'static [u8]) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let at = SocketAddr::from(place());
    (at, answers_at(at, bytes).await)
}

/// The same at a place.
pub(crate) async fn answers_at(
    at: SocketAddr,
    bytes: &'static [u8],
) -> tokio::task::JoinHandle<()> {
    let socket = tokio::net::UdpSocket::bind(at).await.unwrap();
    tokio::spawn(async move {
        let mut question = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut question).await {
            // The header's flags and counts are replaced; the question stays as it is.
            let mut answer = question[..length].to_vec();
            let end = bytes.len().min(answer.len() - 2) + 2;
            answer[2..end].copy_from_slice(&bytes[..end - 2]);
            socket.send_to(&answer, from).await.ok();
        }
    })
}

#[tokio::test]
async fn a_place_without_an_answer_of_its_own_is_unseen_and_one_with_another_answer_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let key = TsigKey {
        name: "first".to_owned(),
        secret: vec![7; 32],
    };
    let (ip, port) = place();
    let knotd = std::process::Command::new(program());
    let server = NameServer::start(knotd, dir.path(), ip, port, "shop.test", key);
    let server = server.await.unwrap();
    let addresses = [("aws", "192.0.2.1"), ("gcp", "198.51.100.1")];
    let addresses = addresses.map(|(site, ip)| (site.parse().unwrap(), vec![ip.parse().unwrap()]));
    let mut settings = server.settings("dns".parse().unwrap(), "app.shop.test", addresses.into());
    settings.timeout = std::time::Duration::from_millis(500);

    let (failing, _one) = answers(&[0x84, 0x02]).await;
    let (lame, _two) = answers(&[0x80, 0x00]).await;
    let (refusing, _three) = answers(&[0x80, 0x05]).await;
    let (garbage, _four) = answers(&[0xff; 510]).await;
    let mute = UdpSocket::bind(place()).unwrap();
    let unseen = [
        failing,
        lame,
        refusing,
        garbage,
        mute.local_addr().unwrap(),
        SocketAddr::from(place()),
        "[2001:db8::53]:53".parse().unwrap(),
    ];
    let (without, _five) = answers(&[0x84, 0x03]).await;
    settings.authoritative.extend(unseen);
    settings.authoritative.push(without);
    let target = Rfc2136::new(settings, std::sync::Arc::new(MachineClock::default())).unwrap();
    let views = target.verify_outside().await;
    let view = |at: SocketAddr| {
        let found = views.iter().find(|view| view.place == at.to_string());
        &found.unwrap().answer
    };
    assert!(view(server.address()).is_ok(), "{views:?}");
    for at in unseen {
        let seen = view(at);
        assert!(
            matches!(seen, Err(OutsideFault::Unseen(_))),
            "{at}: {seen:?}"
        );
    }
    // A server that says with authority that there is no such name leads users nowhere.
    let none = view(without).as_ref().unwrap();
    assert_eq!(none.sites_on().count(), 0, "{none:?}");
}
