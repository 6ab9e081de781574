//! The controller killed between any two of its writes, on a real pair.

use std::os::unix::process::ExitStatusExt;

use failover::adapters::files;
use failover::adapters::postgres::probe;
use failover::app::executor::Moment;
use failover::engine::chain::Body;
use failover::engine::lease::FenceProof;
use failover::engine::plan::Plan;
use failover::engine::policy::Policy;
use failover::engine::saga::Ending;
use failover::engine::step::{Fact, Step};
use failover::engine::topology::Role;
use failover::engine::units::{Epoch, Timeline};
use failover::lab::client::{Attempt, Report, present_numbers};
use failover::lab::scenario::start_client;
use failover::lab::standing::Fault;
use failover::lab::supervisor::Supervisor;
use rustix::process::Signal;

use crate::pair::LIMIT;
use crate::stage::{
    FAST, endings, entries, facts, on_a_prepared_lab, until, until_status, was_told_to_stop,
    written_at,
};

/// The plan that the log tells of.
fn plan(lab: &Supervisor) -> Plan {
    let entries = entries(&lab.layout.log());
    let mut plans = entries.into_iter().filter_map(|entry| {
        let Body::Plan { plan } = entry.body else {
            return None;
        };
        Some(*plan)
    });
    let plan = plans.next().expect("a plan was opened");
    assert_eq!(
        plans.next(),
        None,
        "one recovery at a time (invariants.md I8)"
    );
    plan
}

/// Waits until the controller has killed itself at its crash point.
pub(crate) async fn crashed(lab: &mut Supervisor, point: &str) {
    until(point, async || match lab.controller_ended().unwrap() {
        None => false,
        Some(status) => {
            assert_eq!(status.signal(), Some(Signal::KILL.as_raw()), "{point}");
            true
        }
    })
    .await;
}

#[test]
fn a_controller_killed_at_every_moment_of_every_step_ends_its_plan_with_one_promotion() {
    let test =
        "crash::a_controller_killed_at_every_moment_of_every_step_ends_its_plan_with_one_promotion";
    // A dozen of controllers in a row may die before their first grant, on a machine at its limit.
    let patient = FAST.replace("lease_ttl = \"1s 500ms\"", "lease_ttl = \"20s\"");
    assert_ne!(patient, FAST);
    on_a_prepared_lab(
        test,
        &patient.clone(),
        |_| {},
        async |lab| {
            let [aws, gcp] = lab.layout.sites.clone();
            let mut client = start_client(lab).unwrap();
            let writes = |attempts: &[Attempt]| written_at(attempts, "aws") >= 50;
            client.until(writes).await.unwrap();

            let first = format!("{}:{}", Step::Recheck, Moment::BeforeStarted);
            lab.fault(Fault::KillController, &aws.name).await.unwrap();
            lab.start_controller(Some(&first)).unwrap();
            until_status(lab, "the new controller would fail over", |status| {
                failover::app::api::obstacles(status).is_empty()
            })
            .await;
            lab.fault(Fault::KillSite, &aws.name).await.unwrap();
            crashed(lab, &first).await;
            let plan = plan(lab);

            let points = plan.steps.iter().flat_map(|step| {
                let at = |moment| format!("{step}:{moment}");
                Moment::ALL.map(at)
            });
            let points: Vec<String> = points.collect();
            assert_eq!(points[0], first);
            assert!(points.len() >= 12 * 4, "{points:?}");
            for point in &points[1..] {
                lab.start_controller(Some(point)).unwrap();
                crashed(lab, point).await;
            }
            lab.start_controller(None).unwrap();
            until_status(lab, "the plan is over", |status| status.plan.is_none()).await;
            let writes = |attempts: &[Attempt]| written_at(attempts, "gcp") >= 50;
            until("users write at the new site", async || {
                writes(&client.attempts())
            })
            .await;
            let attempts = client.stop().await.unwrap();

            // What the log tells.
            let log = lab.layout.log();
            let chain = files::verify(&log).expect("the log verifies (invariants.md I12)");
            assert_eq!(chain.state().unwrap().active, gcp.name);
            assert_eq!(chain.state().unwrap().epoch, Epoch(2));
            let entries = entries(&log);
            assert_eq!(endings(&entries), [Ending::Done]);
            self::plan(lab);
            for step in &plan.steps {
                assert_eq!(facts(&entries, step).len(), 1, "{step} is done once");
            }
            // Waited out by the process that wrote it down, from the moment when it took over.
            let fence = facts(&entries, &Step::Fence);
            let [
                Fact::Fenced {
                    proof:
                        FenceProof::WaitedOut {
                            vouched_ago: Some(vouched_ago),
                            granted_ago,
                            ..
                        },
                },
            ] = fence[..]
            else {
                panic!("{fence:?}");
            };
            let timers = Policy::read("fast", &patient).unwrap().lease;
            let bound = timers.fence_and_margin();
            assert!(granted_ago >= timers.lease_ttl + bound, "{granted_ago:?}");
            assert!(vouched_ago >= timers.peer_ttl + bound, "{vouched_ago:?}");
            let [
                Fact::Promoted {
                    timeline, already, ..
                },
            ] = facts(&entries, &Step::Promote)[..]
            else {
                panic!("one promotion");
            };
            assert_eq!(timeline, Timeline(2));
            assert!(already, "it was found promoted after the crash");
            let told = std::fs::read_to_string(lab.layout.dir.join("controller.log")).unwrap();
            assert_eq!(told.matches("crash drill").count(), points.len());

            // What the databases tell.
            let connect = gcp.instance.local("app").unwrap();
            let seen = probe(&connect, None, LIMIT).await.unwrap();
            assert_eq!((seen.role, seen.timeline), (Role::Primary, Timeline(2)));
            let history = |site: &failover::lab::layout::SiteLayout, name: &str| {
                site.instance.data().join("pg_wal").join(name).exists()
            };
            assert!(history(&gcp, "00000002.history"));
            assert!(!history(&gcp, "00000003.history"), "promoted twice");
            assert!(
                !history(&aws, "00000002.history"),
                "promoted at the old site"
            );

            // Its right outlived every restart of the controller.
            let told = std::fs::read_to_string(gcp.dir.join("postgres.log")).unwrap();
            assert!(told.contains("ready to accept connections"), "{told}");
            assert!(!was_told_to_stop(&told), "{told}");

            // What users tell.
            let [Fact::Declared { loss, .. }] = &facts(&entries, &Step::Freeze)[..] else {
                panic!("one declaration");
            };
            let report = Report::new(&attempts, &present_numbers(gcp.api).await.unwrap());
            let from = loss.from.expect("the plan recorded what was known");
            let outside = report.lost_outside(from.0, loss.until.0);
            assert!(outside.is_empty(), "{loss:?}: {outside:?}");
            assert!(report.by_old_after_new(&aws.name, &gcp.name).is_empty());
        },
    );
}
