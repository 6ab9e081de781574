//! The lab on two Kubernetes clusters: doubles of API servers, whose kubelets start real processes.

use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use failover::engine::chain::{Body, Entry};
use failover::engine::lease::FenceProof;
use failover::engine::saga::Ending;
use failover::engine::situation::LocalDatabase;
use failover::engine::step::{Fact, Step};
use failover::engine::units::Epoch;
use failover::lab::client::{Attempt, Client, Report, present_numbers};
use failover::lab::cluster::{delete_by_hand, scale_by_hand};
use failover::lab::layout::SiteLayout;
use failover::lab::scenario::start_client;
use failover::lab::standing::Fault;
use failover::lab::supervisor::Supervisor;
use serde_json::Value;

use crate::drill::failover;
use crate::stage::{
    FAST, endings, entries, facts, on_a_lab_of_clusters, on_a_lab_of_clusters_under, one_lab,
    until, until_status, written_at,
};
use crate::volume::Container;

/// So many writes take some seconds more than a failure is noticed in.
const LONG: usize = 300;

fn file(site: &SiteLayout, name: &str) -> String {
    std::fs::read_to_string(site.dir.join(name)).unwrap_or_default()
}

/// How often PostgreSQL was started at a site.
fn starts(site: &SiteLayout) -> usize {
    file(site, "postgres.log")
        .matches("starting PostgreSQL")
        .count()
}

fn refuses(site: &SiteLayout) -> bool {
    let connected = TcpStream::connect((site.ip, site.instance.port));
    connected.is_err_and(|cause| cause.kind() == std::io::ErrorKind::ConnectionRefused)
}

fn plans(log: &[Entry]) -> usize {
    let plans = log
        .iter()
        .filter(|entry| matches!(entry.body, Body::Plan { .. }));
    plans.count()
}

/// A client that follows the traffic, once it has written at aws for a while.
async fn users_at_aws(lab: &Supervisor) -> Client {
    let mut client = start_client(lab).unwrap();
    let writes = |attempts: &[Attempt]| written_at(attempts, "aws") >= 50;
    client.until(writes).await.unwrap();
    client
}

/// Waits until users write at gcp and the plan is done; what they tried.
async fn moved_to_gcp(lab: &Supervisor, client: Client) -> Vec<Attempt> {
    until("users write at the other site", async || {
        written_at(&client.attempts(), "gcp") >= 50
    })
    .await;
    let log = lab.layout.log();
    until("the end of the plan", async || {
        !endings(&entries(&log)).is_empty()
    })
    .await;
    assert_eq!(endings(&entries(&log)), [Ending::Done]);
    client.stop().await.unwrap()
}

#[test]
fn the_lab_fails_over_between_two_clusters_and_loses_nothing_outside_the_window() {
    let _one = one_lab();
    let home = tempfile::tempdir().unwrap();
    let done = Command::new(env!("CARGO_BIN_EXE_failover"))
        .args(["--output", "json", "lab", "run", "--site", "kubernetes"])
        .env("TMPDIR", home.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let report: Value = serde_json::from_slice(&done.stdout).expect(&said);
    assert_eq!(report["passed"], true, "{report}");
    assert_eq!(report["writes"]["lost_outside_declared_window"], 0);
    assert_eq!(report["writes"]["by_old_after_new"], 0);
    assert_eq!(report["log"]["verified"], true);
    // The service was not there before: its first pod was started by the plan.
    let log = report["log"]["path"].as_str().unwrap();
    let started = facts(&entries(log.as_ref()), &Step::StartWorkloads);
    assert_eq!(started.len(), 1, "{started:?}");
}

#[test]
fn an_api_server_that_falls_silent_beside_a_good_service_moves_nothing() {
    let test = "kubernetes::an_api_server_that_falls_silent_beside_a_good_service_moves_nothing";
    on_a_lab_of_clusters(test, async |lab| {
        let [aws, gcp] = lab.layout.sites.clone();
        let client = users_at_aws(lab).await;
        lab.fault(Fault::FreezeApiServer, &aws.name).await.unwrap();
        lab.fault(Fault::FreezeApiServer, &gcp.name).await.unwrap();
        let from = client.attempts().len();
        until("users go on writing for a while", async || {
            written_at(&client.attempts()[from..], "aws") >= LONG
        })
        .await;
        let attempts = client.stop().await.unwrap();
        assert_eq!(written_at(&attempts, "gcp"), 0);
        let log = entries(&lab.layout.log());
        assert_eq!(plans(&log), 0, "{log:?}");
        lab.thaw().await.unwrap();
    });
}

#[test]
fn a_database_that_somebody_scales_to_zero_ends_cleanly_and_the_other_site_takes_over() {
    let test = "kubernetes::a_database_that_somebody_scales_to_zero_ends_cleanly_and_the_other_site_takes_over";
    on_a_lab_of_clusters(test, async |lab| {
        let [aws, gcp] = lab.layout.sites.clone();
        let client = users_at_aws(lab).await;
        lab.fault(Fault::ScaleToZero, &aws.name).await.unwrap();
        let attempts = moved_to_gcp(lab, client).await;
        let log = lab.layout.log();

        // The agent said good-bye to nobody, and the wait proves what the pod's end did.
        let fence = facts(&entries(&log), &Step::Fence);
        let waited = matches!(
            &fence[..],
            [Fact::Fenced {
                proof: FenceProof::WaitedOut { .. }
            }]
        );
        assert!(waited, "{fence:?}");
        // A standby has all of a primary that ended cleanly.
        let ended = file(&aws, "postgres.log");
        assert!(ended.contains("received fast shutdown request"), "{ended}");
        assert!(ended.contains("database system is shut down"), "{ended}");
        let report = Report::new(&attempts, &present_numbers(gcp.api).await.unwrap());
        assert_eq!(report.lost, []);
        assert!(report.by_old_after_new(&aws.name, &gcp.name).is_empty());

        // Scaled up again it is a pod on the same volume, and no primary any more.
        let started = starts(&aws);
        scale_by_hand(&aws, 1).await.unwrap();
        until_status(lab, "its agent is back, and fenced", |status| {
            let agent = status.situation.sites[&aws.name].agent.as_ref();
            agent.is_some_and(|agent| {
                agent.age < Duration::from_secs(1)
                    && agent.fact.fenced.is_some()
                    && agent.fact.database != LocalDatabase::Up
            })
        })
        .await;
        assert_eq!(starts(&aws), started, "it was started");
        assert!(refuses(&aws));
    });
}

#[test]
fn a_pod_that_does_not_answer_is_ended_by_its_kubelet_long_before_its_lease_is_over() {
    let test = "kubernetes::a_pod_that_does_not_answer_is_ended_by_its_kubelet_long_before_its_lease_is_over";
    let long = FAST.replace("lease_ttl = \"1s 500ms\"", "lease_ttl = \"20s\"");
    assert_ne!(long, FAST);
    on_a_lab_of_clusters_under(test, &long, async |lab| {
        let [aws, gcp] = lab.layout.sites.clone();
        let client = users_at_aws(lab).await;
        until("the fence is rehearsed", async || {
            let done = failover(lab, "check shop").await;
            let said = String::from_utf8(done.stdout).unwrap();
            said.contains("the infrastructure's confirmation (F2)")
        })
        .await;
        // As on a machine that stands still, beside an API server and a kubelet that do not.
        lab.fault(Fault::FreezeAgentAndDatabase, &aws.name)
            .await
            .unwrap();
        let attempts = moved_to_gcp(lab, client).await;
        let log = lab.layout.log();
        let fence = facts(&entries(&log), &Step::Fence);
        let [
            Fact::Fenced {
                proof: FenceProof::Infrastructure { said, .. },
            },
        ] = &fence[..]
        else {
            panic!("{fence:?}");
        };
        assert!(
            said.contains("the containers of pod `db-0` ended"),
            "{said}"
        );
        assert!(refuses(&aws));
        let [Fact::Declared { loss, .. }] = &facts(&entries(&log), &Step::Freeze)[..] else {
            panic!("one declaration");
        };
        let report = Report::new(&attempts, &present_numbers(gcp.api).await.unwrap());
        let from = loss.from.expect("the plan recorded what was known");
        let outside = report.lost_outside(from.0, loss.until.0);
        assert!(outside.is_empty(), "{loss:?}: {outside:?}");
        assert!(report.by_old_after_new(&aws.name, &gcp.name).is_empty());
    });
}

#[test]
fn a_credential_that_the_cluster_does_not_take_is_told_before_the_incident() {
    let test =
        "kubernetes::a_credential_that_the_cluster_does_not_take_is_told_before_the_incident";
    on_a_lab_of_clusters(test, async |lab| {
        let [_aws, gcp] = lab.layout.sites.clone();
        let said = async |lab: &Supervisor| {
            let done = failover(lab, "check shop").await;
            (done.status.code(), String::from_utf8(done.stdout).unwrap())
        };
        let kubeconfig = file(&gcp, "kubeconfig");
        let mut wrong: Value = serde_json::from_str(&kubeconfig).unwrap();
        wrong["users"][0]["user"]["token"] = "of another cluster".into();
        lab.expects_error("this site could not take over");
        std::fs::write(gcp.kubeconfig(), wrong.to_string()).unwrap();
        let why = "the workloads cannot be started: the credential is not accepted";
        until("the check names it", async || {
            let (code, said) = said(lab).await;
            let named = said.lines().any(|line| {
                line.contains("cannot-sever.md") && line.contains("blocks") && line.contains(why)
            });
            named && code == Some(1)
        })
        .await;
        std::fs::write(gcp.kubeconfig(), &kubeconfig).unwrap();
        until("the check is green again", async || {
            said(lab).await.0 == Some(0)
        })
        .await;
    });
}

#[test]
fn a_container_that_dies_has_its_right_back_in_the_same_epoch() {
    let test = "kubernetes::a_container_that_dies_has_its_right_back_in_the_same_epoch";
    on_a_lab_of_clusters(test, async |lab| {
        let [aws, gcp] = lab.layout.sites.clone();
        // A race of the kubelet against the failover is not what is looked at.
        let done = failover(lab, "hold shop --for 30m --reason maintenance").await;
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        let started = starts(&aws);
        lab.fault(Fault::KillAgentAndDatabase, &aws.name)
            .await
            .unwrap();
        until_status(lab, "the next container serves", |status| {
            let agent = status.situation.sites[&aws.name].agent.as_ref();
            agent.is_some_and(|agent| {
                agent.age < Duration::from_secs(1) && agent.fact.database == LocalDatabase::Up
            }) && starts(&aws) == started + 1
        })
        .await;
        let status = lab.status().await.unwrap();
        assert_eq!(status.situation.epoch, Epoch(1));
        assert_eq!(starts(&gcp), 1);
        let mut client = start_client(lab).unwrap();
        let writes = |attempts: &[Attempt]| written_at(attempts, "aws") >= 20;
        client.until(writes).await.unwrap();
        client.stop().await.unwrap();
    });
}

/// An agent is upgraded by a new pod: nothing moves, and users wait for no more than a restart.
#[test]
fn a_pod_that_is_replaced_in_order_has_its_right_back_and_loses_nothing() {
    let test = "kubernetes::a_pod_that_is_replaced_in_order_has_its_right_back_and_loses_nothing";
    // A restart must be shorter than what is taken for a failure.
    let patient = FAST.replace("fail_after = \"2s\"", "fail_after = \"20s\"");
    let patient = patient.replace("recover_after = \"5s\"", "recover_after = \"20s\"");
    assert_ne!(patient, FAST);
    on_a_lab_of_clusters_under(test, &patient, async |lab| {
        let [aws, gcp] = lab.layout.sites.clone();
        let client = users_at_aws(lab).await;
        let started = starts(&aws);
        delete_by_hand(&aws).await.unwrap();
        until("the new pod serves", async || starts(&aws) == started + 1).await;
        let before = written_at(&client.attempts(), "aws");
        until("users write again", async || {
            written_at(&client.attempts(), "aws") >= before + 50
        })
        .await;
        let attempts = client.stop().await.unwrap();
        let status = lab.status().await.unwrap();
        assert_eq!(status.situation.epoch, Epoch(1));
        assert_eq!(plans(&entries(&lab.layout.log())), 0);
        assert_eq!(starts(&gcp), 1);
        assert!(file(&aws, "postgres.log").contains("database system is shut down"));
        let report = Report::new(&attempts, &present_numbers(aws.api).await.unwrap());
        assert_eq!(report.lost, []);
    });
}

#[test]
fn a_fence_outlives_pod_node_and_address() {
    let test = "kubernetes::a_fence_outlives_pod_node_and_address";
    on_a_lab_of_clusters(test, async |lab| {
        let [aws, _gcp] = lab.layout.sites.clone();
        let done = failover(lab, "promote shop --to gcp --yes --reason drill").await;
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        let started = starts(&aws);
        lab.fault(Fault::ScaleToZero, &aws.name).await.unwrap();
        until("the pod is gone", async || {
            let lock = aws.dir.join("state/volume.lock");
            let lock = std::fs::File::open(lock).unwrap();
            lock.try_lock_shared().is_ok()
        })
        .await;

        // The volume at another node: another boot, name and address, and another pod.
        let elsewhere = "127.0.0.77";
        let text = file(&aws, "agent.toml");
        let here = format!("listen = \"{}\"", aws.agent);
        assert!(text.contains(&here));
        let there = format!("listen = \"{elsewhere}:{}\"", aws.agent.port());
        let config = aws.dir.join("elsewhere.toml");
        std::fs::write(&config, text.replace(&here, &there)).unwrap();
        let boot = aws.dir.join("boot_id");
        std::fs::write(&boot, "00000000-0000-4000-8000-000000000077\n").unwrap();
        let node = format!(
            "echo elsewhere >/proc/sys/kernel/hostname; mount --bind {} /proc/sys/kernel/random/boot_id; ",
            boot.display()
        );
        let log = aws.dir.join("elsewhere.log");
        lab.expects_error("this is a second instance of the site");
        let pod = Container::start(&config, "another", &node, log);
        until("its agent runs", async || pod.said().contains("agent runs")).await;
        // Nobody else at this site reports any more.
        until_status(lab, "its agent says that it is fenced", |status| {
            let agent = status.situation.sites[&aws.name].agent.as_ref();
            agent.is_some_and(|agent| {
                agent.age < Duration::from_secs(1)
                    && agent.fact.fenced == Some(Epoch(2))
                    && agent.fact.database != LocalDatabase::Up
            })
        })
        .await;
        assert_eq!(starts(&aws), started, "it was started");
        assert!(refuses(&aws));
        drop(pod);
    });
}
