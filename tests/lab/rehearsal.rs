//! What a step and its undo need of a standby is asked beforehand, and set by us where that is possible: the
//! standby runs with what the agent's file says, from its first start.

use std::os::unix::process::CommandExt;

use failover::adapters::postgres::{Secret, keep_slot, rehearse};
use failover::engine::chain::Body;
use failover::engine::reason::Code;
use failover::engine::saga::Command;
use failover::engine::units::Lsn;
use failover::lab::layout::{Layout, SiteLayout};
use failover::lab::standing::Fault;
use failover::lab::supervisor::Supervisor;
use failover::ports::EffectError;
use failover::wire::Status;

use crate::drill::failover;
use crate::pair::{LIMIT, Pair, Server};
use crate::replay::{ready, run, session};
use crate::stage::{FAST, entries, on_a_lab, on_a_prepared_lab, until, until_status};

/// One text that a site's database answers.
pub(crate) async fn ask(site: &SiteLayout, question: &str) -> String {
    let row = session(site).await.query_one(question, &[]).await.unwrap();
    row.get::<_, Option<String>>(0).unwrap_or_default()
}

/// Who streams from a site.
pub(crate) async fn streams(site: &SiteLayout) -> String {
    let names = "SELECT string_agg(application_name, ',') FROM pg_stat_replication WHERE state = 'streaming'";
    ask(site, names).await
}

pub(crate) fn sync_policy() -> String {
    FAST.replace("durability = \"async\"", "durability = \"sync\"")
}

/// Changes a file of a lab that has not started yet.
pub(crate) fn edit(path: &std::path::Path, change: impl FnOnce(String) -> String) {
    let text = std::fs::read_to_string(path).unwrap();
    std::fs::write(path, change(text)).unwrap();
}

/// As `pg_basebackup -R` leaves it where nobody gave the standby a name.
fn take_the_name_away(layout: &Layout) {
    let settings = layout.sites[1].instance.data().join("postgresql.auto.conf");
    edit(&settings, |text| {
        assert!(text.contains("application_name=gcp"), "{text}");
        text.replace("application_name=gcp", "application_name=walreceiver")
    });
}

fn closed(status: &Status, code: Code) -> Option<String> {
    let mut gates = status.decision.gates.iter();
    let gate = gates.find(|gate| !gate.open && gate.reason.code == code)?;
    Some(gate.reason.to_string())
}

fn plans(lab: &Supervisor) -> usize {
    let all = entries(&lab.layout.log());
    let asked = all.iter().filter(|entry| {
        matches!(
            &entry.body,
            Body::Command {
                command: Command::Promote { .. }
            }
        )
    });
    asked.count()
}

#[test]
fn a_standby_without_a_name_bears_that_of_its_site_from_its_first_start_and_the_window_closes() {
    let test = "rehearsal::a_standby_without_a_name_bears_that_of_its_site_from_its_first_start_and_the_window_closes";
    on_a_prepared_lab(test, &sync_policy(), take_the_name_away, async |lab| {
        let [aws, gcp] = lab.layout.sites.clone();
        until_status(lab, "the window closes", |status| {
            status.situation.window.is_closed() && status.decision.broken_promises.is_empty()
        })
        .await;
        assert_eq!(streams(&aws).await, "gcp");
        until("it is ready", async || ready(lab).await.0 == 200).await;

        // Somebody changes it while it runs: the same.
        let other =
            "ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port=1 user=x application_name=y'";
        run(&gcp, other).await;
        run(&gcp, "SELECT pg_reload_conf()").await;
        until("it follows again under its name", async || {
            let conninfo = ask(&gcp, "SHOW primary_conninfo").await;
            conninfo.contains("application_name=gcp") && streams(&aws).await == "gcp"
        })
        .await;
    });
}

#[test]
fn a_promise_that_is_not_kept_is_not_ready_and_no_success() {
    let test = "rehearsal::a_promise_that_is_not_kept_is_not_ready_and_no_success";
    on_a_prepared_lab(
        test,
        &sync_policy(),
        |_| {},
        async |lab| {
            let [aws, _] = lab.layout.sites.clone();
            until_status(lab, "the window closes", |status| {
                status.situation.window.is_closed()
            })
            .await;
            run(&aws, "ALTER ROLE app SET synchronous_commit = off").await;
            until("it is not ready any more", async || {
                let (code, body) = ready(lab).await;
                code == 503
                    && body.contains("rpo-window-open")
                    && body.contains("synchronous_commit")
            })
            .await;
            let status = failover(lab, "status").await;
            assert_eq!(status.status.code(), Some(1), "{status:?}");
            run(&aws, "ALTER ROLE app RESET synchronous_commit").await;
            until("it is ready again", async || ready(lab).await.0 == 200).await;
            assert_eq!(failover(lab, "status").await.status.code(), Some(0));
        },
    );
}

#[test]
fn a_standby_whose_settings_cannot_be_written_is_not_severed() {
    let test = "rehearsal::a_standby_whose_settings_cannot_be_written_is_not_severed";
    on_a_lab(test, async |lab| {
        lab.expects_error("this site could not take over");
        let [aws, gcp] = lab.layout.sites.clone();
        // `ALTER SYSTEM` writes its file beside the old one first, and cannot any more.
        let beside = gcp.instance.data().join("postgresql.auto.conf.tmp");
        std::fs::create_dir(&beside).unwrap();
        let status = until_status(lab, "the rehearsal fails", |status| {
            closed(status, Code::CannotSever).is_some()
        })
        .await;
        let said = closed(&status, Code::CannotSever).unwrap();
        assert!(said.contains("postgresql.auto.conf.tmp"), "{said}");
        let (code, body) = ready(lab).await;
        assert!(code == 503 && body.contains("cannot-sever"), "{body}");
        for words in ["--yes --reason drill", "--dry-run"] {
            let refused = failover(lab, &format!("promote shop --to gcp {words}")).await;
            assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        }
        assert_eq!(plans(lab), 0);
        assert_eq!(streams(&aws).await, "gcp");

        std::fs::remove_dir(&beside).unwrap();
        until("it is ready again", async || ready(lab).await.0 == 200).await;
    });
}

#[test]
fn a_way_to_the_primary_that_does_not_work_is_put_back_and_told() {
    let test = "rehearsal::a_way_to_the_primary_that_does_not_work_is_put_back_and_told";
    on_a_lab(test, async |lab| {
        lab.expects_error("the former one was put back");
        let [aws, gcp] = lab.layout.sites.clone();
        edit(&gcp.agent_config(), |text| {
            let (before, after) = text.split_once("passfile=").unwrap();
            let (_, rest) = after.split_once(' ').unwrap();
            format!("{before}passfile=/nonexistent {rest}")
        });
        lab.fault(Fault::KillAgent, &gcp.name).await.unwrap();
        lab.start_missing().unwrap();
        let status = until_status(lab, "it is told", |status| {
            closed(status, Code::CannotSever).is_some_and(|said| said.contains("put back"))
        })
        .await;
        assert!(closed(&status, Code::CannotSever).is_some());
        until("it follows as before", async || {
            let conninfo = ask(&gcp, "SHOW primary_conninfo").await;
            !conninfo.contains("/nonexistent") && streams(&aws).await == "gcp"
        })
        .await;
    });
}

/// Starts a server with a setting on its command line.
fn start_with(server: &Server, setting: &str) {
    let mut start = std::process::Command::new(server.tools.program("pg_ctl"));
    if let Some(user) = server.tools.user() {
        start.uid(user.uid).gid(user.gid);
    }
    let config = server.instance.dir.join("postgresql.conf");
    let done = start
        .current_dir("/")
        .args(["start", "-w", "-s", "-l"])
        .arg(server.instance.dir.join("log"))
        .arg("-D")
        .arg(server.instance.data())
        .arg("-o")
        .arg(format!(
            "-c 'config_file={}' -c '{setting}'",
            config.display()
        ))
        .status()
        .unwrap();
    assert!(done.success());
}

#[tokio::test]
async fn what_is_given_on_the_command_line_is_told_before_it_wins() {
    let pair = Pair::new().await;
    let standby = pair.standby();
    let ours = Secret::new(standby.sql("SHOW primary_conninfo"));
    let obstacle = async || {
        let came = rehearse(&standby.local(), Some(&ours), false, LIMIT).await;
        came.unwrap().unwrap().obstacle
    };
    assert_eq!(obstacle().await, None);
    standby.stop().await;
    start_with(standby, "primary_conninfo=host=127.0.0.1 port=1 user=x");
    let said = obstacle().await.unwrap();
    assert!(
        said.contains("primary_conninfo is given on the command line"),
        "{said}"
    );
    standby.stop().await;
    start_with(standby, "synchronous_standby_names=aws");
    let said = obstacle().await.unwrap();
    assert!(
        said.contains("synchronous_standby_names is given"),
        "{said}"
    );
}

#[tokio::test]
async fn a_role_that_may_not_change_settings_is_told() {
    let pair = Pair::new().await;
    let standby = pair.standby();
    // May read them all.
    let ours = Secret::new(standby.sql("SHOW primary_conninfo"));
    pair.primary.sql("GRANT pg_read_all_settings TO failover");
    pair.caught_up().await;
    let came = rehearse(&standby.monitor(), Some(&ours), false, LIMIT).await;
    let said = came.unwrap().unwrap().obstacle.unwrap();
    assert!(said.contains("permission denied"), "{said}");
    // A primary has nothing to be severed from.
    let none = rehearse(&pair.primary.local(), Some(&ours), false, LIMIT).await;
    assert_eq!(none.unwrap(), None);
}

#[tokio::test]
async fn a_wish_of_somebody_stays_and_a_fresh_start_connects() {
    let pair = Pair::new().await;
    let standby = pair.standby();
    let ours = Secret::new(standby.sql("SHOW primary_conninfo"));
    standby.sql("ALTER SYSTEM SET primary_conninfo = ''");
    standby.sql("SELECT pg_reload_conf()");
    until("it follows nobody", async || {
        standby.facts().await.receiver.is_none()
    })
    .await;
    let came = async |fresh| {
        let came = rehearse(&standby.local(), Some(&ours), fresh, LIMIT).await;
        came.unwrap().unwrap()
    };
    assert_eq!(came(false).await.replaced, None);
    assert_eq!(standby.sql("SHOW primary_conninfo"), "");
    assert_eq!(came(true).await.replaced, Some(Secret::new("")));
    pair.caught_up().await;
    assert_eq!(came(true).await.replaced, None, "done twice is done once");
}

#[test]
fn a_slot_that_the_new_primary_lacks_is_made_and_streaming_goes_on() {
    let test = "rehearsal::a_slot_that_the_new_primary_lacks_is_made_and_streaming_goes_on";
    let asks_for_a_slot = |layout: &Layout| {
        for site in &layout.sites {
            let settings = site.instance.dir.join("postgresql.conf");
            let slot = format!("primary_slot_name = 'of_{}'\n", site.name);
            edit(&settings, |text| text + &slot);
        }
    };
    on_a_prepared_lab(test, FAST, asks_for_a_slot, async |lab| {
        let [aws, gcp] = lab.layout.sites.clone();
        let slots = "SELECT string_agg(slot_name || ' ' || active, ',') FROM pg_replication_slots";
        assert_eq!(ask(&aws, slots).await, "of_gcp true");
        let done = failover(lab, "promote shop --to gcp --yes --reason drill").await;
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        lab.rejoin(&aws, &gcp).await.unwrap();
        until("the old primary streams from its slot", async || {
            streams(&gcp).await == "aws" && ask(&gcp, slots).await == "of_aws true"
        })
        .await;
    });
}

#[tokio::test]
async fn a_slot_that_was_invalidated_is_made_anew_and_one_of_use_is_left_alone() {
    let pair = Pair::primary_only().await;
    let primary = &pair.primary;
    let keep = async |name| keep_slot(&primary.local(), name, LIMIT).await;
    assert_eq!(keep("of_gcp").await.unwrap(), Some("missing, and created"));
    assert_eq!(keep("of_gcp").await.unwrap(), None);
    let began: Lsn = primary
        .sql("SELECT restart_lsn FROM pg_replication_slots")
        .parse()
        .unwrap();

    primary.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'");
    primary.sql("ALTER SYSTEM SET wal_keep_size = 0");
    primary.sql("SELECT pg_reload_conf()");
    until("the slot is lost", async || {
        primary.sql("SELECT pg_switch_wal()");
        primary.sql("CREATE TABLE IF NOT EXISTS t (a int)");
        primary.sql("INSERT INTO t VALUES (1)");
        primary.sql("CHECKPOINT");
        primary.sql("SELECT wal_status FROM pg_replication_slots") == "lost"
    })
    .await;
    let anew = keep("of_gcp").await.unwrap();
    assert_eq!(anew, Some("invalidated, and recreated"));
    let begins: Lsn = primary
        .sql("SELECT restart_lsn FROM pg_replication_slots")
        .parse()
        .unwrap();
    assert!(begins > began);
    assert_eq!(
        primary.sql("SELECT wal_status FROM pg_replication_slots"),
        "reserved"
    );
}

#[tokio::test]
async fn a_logical_slot_of_that_name_is_told_and_left_alone() {
    let pair = Pair::primary_only().await;
    let primary = &pair.primary;
    primary.sql("ALTER SYSTEM SET wal_level = logical");
    primary.stop().await;
    primary.start().await;
    primary.sql("SELECT pg_create_logical_replication_slot('of_gcp', 'test_decoding')");
    let refused = keep_slot(&primary.local(), "of_gcp", LIMIT)
        .await
        .unwrap_err();
    assert!(
        matches!(&refused, EffectError::Refused(why) if why.contains("logical")),
        "{refused}"
    );
    assert_eq!(
        primary.sql("SELECT count(*) FROM pg_replication_slots"),
        "1"
    );
}
