//! Files in the data folder of a server that runs: they count at a start, and at no other time.

use std::fs;
use std::os::unix::fs::MetadataExt;

use failover::agent::guard::{LEASE_EXPIRED, PROMOTED_WITHOUT_RIGHT};
use failover::agent::guard_link::GuardLink;
use failover::agent::guard_protocol::{GuardStatus, StartAs, boottime_ns};
use failover::engine::topology::Role;
use failover::engine::units::Epoch;
use rustix::process::Signal;
use std::time::Duration;

use crate::guard::{
    LONG, Lab, PATIENCE, Writer, from_now, primary, proof, refusal, right, send, until,
};

/// Waits until the guard has seen something.
async fn seen(link: &GuardLink, what: &str, so: impl Fn(&GuardStatus) -> bool) -> GuardStatus {
    let mut status = None;
    until(what, async || {
        status = link.status().await.ok().filter(&so);
        status.is_some()
    })
    .await;
    status.unwrap()
}

/// A standby that nobody feeds, made from a primary that was stopped in order.
async fn standby(lab: &Lab) -> GuardLink {
    let link = lab.link().await;
    fs::write(lab.standby_signal(), "").unwrap();
    link.start(StartAs::Standby).await.unwrap();
    lab.ready().await;
    link
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_signal_under_a_running_primary_disarms_nothing() {
    let lab = Lab::new();
    let link = lab.primary(LONG).await;
    let writer = Writer::start(&lab).await;
    fs::write(lab.standby_signal(), "").unwrap();
    let starts = |status: &GuardStatus| status.starts_as == Some(Role::Standby);
    let status = seen(&link, "the file is seen", starts).await;
    assert_eq!(status.runs_as, Some(Role::Primary));
    assert!(refusal(link.renounce().await).contains("a primary runs"));
    let deadline = from_now(Duration::from_millis(500));
    right(&link, Epoch(2), deadline).await.unwrap();
    // The agent is gone; nobody but the guard knows of the deadline.
    drop(link);
    until("nothing is left", async || lab.processes().is_empty()).await;
    let gone = boottime_ns();
    assert!(gone >= deadline && lab.refuses());
    writer.was_silent_since(gone).await;
    let link = lab.link().await;
    let marker = link.status().await.unwrap().marker.unwrap();
    assert_eq!(
        (marker.epoch, marker.cause.as_str()),
        (Epoch(2), LEASE_EXPIRED)
    );
    // Now it counts.
    link.unfence(Epoch(3)).await.unwrap();
    assert!(refusal(link.start(primary(3, LONG)).await).contains("would become a standby"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_lost_its_signal_file_goes_on_and_is_found_when_it_is_promoted() {
    let lab = Lab::new();
    let link = standby(&lab).await;
    let mut events = link.events();
    let had = fs::metadata(&lab.config.data_dir).unwrap();
    fs::remove_file(lab.standby_signal()).unwrap();
    let missed = |status: &GuardStatus| status.starts_as == Some(Role::Primary);
    let status = seen(&link, "the file is missed", missed).await;
    assert_eq!(
        (status.runs_as, status.fencing),
        (Some(Role::Standby), false)
    );
    // A promotion would end the server: it wants to take the file away, and does not find it.
    let back = |status: &GuardStatus| status.starts_as == Some(Role::Standby);
    let status = seen(&link, "the file is put back", back).await;
    assert_eq!((status.runs_as, status.marker), (Some(Role::Standby), None));
    let has = fs::metadata(lab.standby_signal()).unwrap();
    assert_eq!((has.uid(), has.gid()), (had.uid(), had.gid()));
    let client = lab.connect().await.unwrap();
    // The answer may be lost with the session.
    let _answer = client.query_one("select pg_promote()", &[]).await;
    let (proof, _) = proof(&mut events).await;
    assert_eq!(proof.cause, PROMOTED_WITHOUT_RIGHT);
    assert_eq!(lab.processes(), Vec::<i32>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_is_found_although_the_signal_file_is_put_back() {
    let lab = Lab::new();
    let link = standby(&lab).await;
    let mut events = link.events();
    let client = lab.connect().await.unwrap();
    let file = lab.standby_signal();
    let put_back = tokio::spawn(async move {
        loop {
            fs::write(&file, "").unwrap();
            tokio::task::yield_now().await;
        }
    });
    let _answer = client.query_one("select pg_promote()", &[]).await;
    let (proof, _) = proof(&mut events).await;
    put_back.abort();
    assert_eq!(proof.cause, PROMOTED_WITHOUT_RIGHT);
    assert!(lab.refuses());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_life_wrote_into_the_control_file_makes_no_primary() {
    let lab = Lab::new();
    let link = lab.primary(LONG).await;
    // A crash leaves "in production" behind, as a copy of a primary does.
    for pid in lab.processes() {
        send(pid, Signal::KILL);
    }
    seen(&link, "the crash is noticed", |status| {
        status.runs_as.is_none()
    })
    .await;
    fs::write(lab.standby_signal(), "").unwrap();
    until("all are gone, and it starts", async || {
        link.start(StartAs::Standby).await.is_ok()
    })
    .await;
    lab.ready().await;
    let status = link.status().await.unwrap();
    assert_eq!((status.runs_as, status.marker), (Some(Role::Standby), None));
    until("the guard sees that it recovers", async || {
        link.renounce().await.is_ok()
    })
    .await;
    assert!(lab.connect().await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_recovery_signal_nothing_is_started_and_beside_standby_signal_it_says_nothing() {
    let lab = Lab::new();
    let link = lab.link().await;
    let file = lab.config.data_dir.join("recovery.signal");
    fs::write(&file, "").unwrap();
    let status = seen(&link, "the file is seen", |status| status.unfit.is_some()).await;
    assert_eq!(status.starts_as, None);
    assert!(refusal(link.start(primary(1, LONG)).await).contains("point in time"));
    assert!(refusal(link.start(StartAs::Standby).await).contains("point in time"));
    // Nobody may read it, and it counts.
    fs::write(lab.standby_signal(), "").unwrap();
    fs::set_permissions(
        lab.standby_signal(),
        std::os::unix::fs::PermissionsExt::from_mode(0o000),
    )
    .unwrap();
    link.start(StartAs::Standby).await.unwrap();
    lab.ready().await;
    let client = lab.connect().await.unwrap();
    let row = client.query_one("select pg_is_in_recovery()", &[]).await;
    assert!(row.unwrap().get::<_, bool>(0));
    link.stop(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_lost_its_file_while_it_was_down_is_not_started_as_a_primary() {
    let lab = Lab::new();
    let link = standby(&lab).await;
    link.stop(PATIENCE).await.unwrap();
    fs::remove_file(lab.standby_signal()).unwrap();
    let status = seen(&link, "it is missed", |status| status.unfit.is_some()).await;
    assert_eq!((status.starts_as, status.runs_as), (None, None));
    // A right makes no primary of a standby: only a promotion does.
    assert!(refusal(link.start(primary(1, LONG)).await).contains("was a standby"));
    fs::write(lab.standby_signal(), "").unwrap();
    link.start(StartAs::Standby).await.unwrap();
    lab.ready().await;
}
