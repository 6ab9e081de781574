//! Wall clocks that are hours apart and step, on a whole lab; and what becomes of production where a
//! plan cannot go on.

use std::time::Duration;

use failover::engine::chain::Body;
use failover::engine::observation::ReceiverFacts;
use failover::engine::reason::Code;
use failover::engine::saga::Ending;
use failover::engine::step::{Event, Step};
use failover::engine::topology::SiteName;
use failover::engine::units::Epoch;
use failover::lab::client::{Attempt, Outcome};
use failover::lab::scenario::start_client;
use failover::lab::standing::Fault;
use failover::lab::supervisor::Supervisor;
use failover::wire::Status;

use crate::crash::crashed;
use crate::drill::failover;
use crate::stage::{endings, entries, on_a_lab, until, until_status, written_at};

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;

/// The clock of `aws` is hours ahead, that of `gcp` behind by what its certificate bears.
async fn apart(lab: &Supervisor) {
    lab.move_clock("aws", 5 * HOUR).unwrap();
    lab.move_clock("gcp", -40 * MINUTE).unwrap();
    let measured = |status: &Status, site: &SiteName, ms: i64| {
        let clock = status.situation.sites[site].clock;
        clock.is_some_and(|skew| (skew.ahead_ms - ms).abs() < MINUTE / 2)
    };
    let [aws, gcp] = lab.layout.sites.clone();
    let status = until_status(lab, "the clocks are measured", |status| {
        measured(status, &aws.name, 5 * HOUR) && measured(status, &gcp.name, -40 * MINUTE)
    })
    .await;
    let gates = &status.decision.gates;
    let gate = gates
        .iter()
        .find(|gate| gate.reason.code == Code::ClockSkew);
    let gate = gate.expect("there is a gate for clocks");
    assert!(!gate.open, "{gate:?}");
    assert_eq!(status.decision.reasons[0].code, Code::ClockSkew);
}

async fn users_write(lab: &Supervisor) -> failover::lab::client::Client {
    let client = start_client(lab).unwrap();
    until("users write", async || {
        written_at(&client.attempts(), "aws") >= 50
    })
    .await;
    client
}

#[test]
fn clocks_hours_apart_do_not_stop_a_drill() {
    let test = "skew::clocks_hours_apart_do_not_stop_a_drill";
    on_a_lab(test, async |lab| {
        let client = users_write(lab).await;
        apart(lab).await;
        let done = failover(lab, "promote shop --to gcp --yes --reason drill").await;
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(0), "{said}");
        until("users write at the new site", async || {
            written_at(&client.attempts(), "gcp") >= 50
        })
        .await;
        assert_eq!(endings(&entries(&lab.layout.log())), [Ending::Done]);
    });
}

#[test]
fn a_lost_site_is_failed_over_although_clocks_are_hours_apart() {
    let test = "skew::a_lost_site_is_failed_over_although_clocks_are_hours_apart";
    on_a_lab(test, async |lab| {
        let client = users_write(lab).await;
        apart(lab).await;
        let aws = lab.layout.sites[0].name.clone();
        lab.fault(Fault::KillSite, &aws).await.unwrap();
        until("users write at the new site", async || {
            written_at(&client.attempts(), "gcp") >= 50
        })
        .await;
        until_status(lab, "the plan is over", |status| status.plan.is_none()).await;
        assert_eq!(endings(&entries(&lab.layout.log())), [Ending::Done]);
    });
}

#[test]
fn clocks_that_step_in_the_middle_of_a_plan_change_nothing() {
    let test = "skew::clocks_that_step_in_the_middle_of_a_plan_change_nothing";
    on_a_lab(test, async |lab| {
        let client = users_write(lab).await;
        let [aws, gcp] = lab.layout.sites.clone();
        let point = "sever:after-outcome";
        lab.fault(Fault::KillController, &aws.name).await.unwrap();
        lab.start_controller(Some(point)).unwrap();
        until_status(lab, "the new controller would fail over", |status| {
            failover::app::api::obstacles(status).is_empty()
        })
        .await;
        lab.fault(Fault::KillSite, &aws.name).await.unwrap();
        crashed(lab, point).await;
        // The controller's by less than a TSIG key bears, the agent's that goes on by hours.
        lab.move_clock("neutral", -4 * MINUTE).unwrap();
        lab.move_clock(gcp.name.as_str(), 7 * HOUR).unwrap();
        lab.start_controller(None).unwrap();
        until("users write at the new site", async || {
            written_at(&client.attempts(), "gcp") >= 50
        })
        .await;
        until_status(lab, "the plan is over", |status| status.plan.is_none()).await;
        assert_eq!(endings(&entries(&lab.layout.log())), [Ending::Done]);
    });
}

/// When the first write was acknowledged after a moment, in milliseconds after it.
fn served_after(attempts: &[Attempt], moment_ms: u64) -> Option<u64> {
    let acknowledged = attempts.iter().filter(|attempt| {
        matches!(attempt.outcome, Outcome::Acknowledged { .. }) && attempt.ended_ms > moment_ms
    });
    acknowledged
        .map(|attempt| attempt.ended_ms - moment_ms)
        .min()
}

#[test]
#[expect(clippy::print_stderr, reason = "whoever asks sees what was measured")]
fn a_sever_that_fails_for_ever_gives_production_back_within_seconds() {
    let test = "skew::a_sever_that_fails_for_ever_gives_production_back_within_seconds";
    on_a_lab(test, async |lab| {
        lab.expects_error("left to be tidied up");
        let client = users_write(lab).await;
        let [aws, gcp] = lab.layout.sites.clone();
        let point = "start-workloads:after-outcome";
        lab.fault(Fault::KillController, &aws.name).await.unwrap();
        lab.start_controller(Some(point)).unwrap();
        until_status(lab, "the new controller would fail over", |status| {
            failover::app::api::obstacles(status).is_empty()
        })
        .await;
        let asked = failover(lab, "promote shop --to gcp --yes --reason drill").await;
        assert_ne!(asked.status.code(), Some(0), "its controller ends");
        crashed(lab, point).await;
        // From here on no setting of the standby can be written, by the sever or by its undo.
        let obstacle = gcp.instance.data().join("postgresql.auto.conf.tmp");
        std::fs::create_dir(&obstacle).unwrap();
        lab.start_controller(None).unwrap();
        until_status(lab, "the plan is over", |status| status.plan.is_none()).await;
        let log = entries(&lab.layout.log());
        assert!(matches!(&endings(&log)[..], [Ending::Undone { .. }]));
        let failed = log.iter().find(|entry| {
            let Body::Step { step, event, .. } = &entry.body else {
                return false;
            };
            *step == Step::Sever && matches!(event, Event::Failed { .. })
        });
        let failed = failed.expect("the sever failed").at.0;
        until("users write again", async || {
            served_after(&client.attempts(), failed).is_some()
        })
        .await;
        let served = served_after(&client.attempts(), failed).unwrap();
        eprintln!("production is back {served} ms after the sever failed");
        assert!(served < 5_000, "{served} ms");
        let left = log.iter().find_map(|entry| {
            let Body::Note { code, text } = &entry.body else {
                return None;
            };
            (code == "left-to-tidy-up").then_some(text)
        });
        let named = left.is_some_and(|text| text.contains("sever could not be undone"));
        assert!(named, "{left:?}");
        // The standby is cut off until it can be connected again; then it does so itself.
        std::fs::remove_dir(&obstacle).unwrap();
        let status = until_status(lab, "the standby follows again", |status| {
            let site = &status.situation.sites[&gcp.name];
            let severed = site.agent.as_ref().and_then(|agent| agent.fact.severed);
            let database = site.database.as_ref().map(|database| &database.fact);
            let receiver = database.and_then(|facts| facts.receiver.as_ref());
            severed.is_none() && receiver.is_some_and(ReceiverFacts::is_streaming)
        })
        .await;
        assert_eq!(status.situation.active, aws.name);
        assert_eq!(status.situation.epoch, Epoch(2), "an epoch only grows");
        assert!(written_at(&client.attempts(), "gcp") == 0);
        let quiet = Duration::from_secs(1);
        assert!(
            status.situation.sites[&aws.name]
                .agent
                .as_ref()
                .unwrap()
                .age
                < quiet * 3
        );
    });
}
