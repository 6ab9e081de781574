//! Zero loss is claimed for a system, not for a name: somebody else who streams under the standby's name, and
//! confirms commits that only he has.

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use failover::engine::chain::Body;
use failover::engine::step::{Fact, Step};
use failover::engine::synchrony::{RpoWindow, WindowChange};
use failover::lab::standing::Fault;
use failover::lab::supervisor::Supervisor;

use crate::drill::failover;
use crate::replay::{run, session};
use crate::stage::{FAST, entries, facts, on_a_prepared_lab, until, until_status};

fn sync_policy() -> String {
    FAST.replace("durability = \"async\"", "durability = \"sync\"")
}

/// A program that receives WAL under a name, flushes each bit, and says so.
pub(crate) struct Impostor(Child);

impl Impostor {
    pub(crate) fn begin(lab: &Supervisor, name: &str) -> Self {
        let [aws, gcp] = &lab.layout.sites;
        let folder = lab.layout.dir.join("impostor");
        std::fs::create_dir_all(&folder).unwrap();
        // Its own copy of the password: libpq wants it closed to others.
        let password = folder.join("passfile");
        std::fs::copy(gcp.instance.dir.join("passfile"), &password).unwrap();
        let conninfo = format!(
            "host={} port={} user=replicator passfile={} sslmode=disable application_name={name}",
            aws.ip,
            aws.instance.port,
            password.display()
        );
        let child = Command::new(lab.layout.tools.program("pg_receivewal"))
            .args([
                "--synchronous",
                "--no-password",
                "--dbname",
                &conninfo,
                "--directory",
            ])
            .arg(&folder)
            .env_remove("PGAPPNAME")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn opened(lab: &Supervisor) -> Vec<String> {
    let all = entries(&lab.layout.log());
    let opened = all.into_iter().filter_map(|entry| {
        let Body::Window { change } = entry.body else {
            return None;
        };
        let WindowChange::Opened { why } = change else {
            return None;
        };
        Some(why)
    });
    opened.collect()
}

async fn until_closed(lab: &Supervisor) {
    until_status(lab, "the window closes", |status| {
        status.situation.window.is_closed()
    })
    .await;
}

static ROW: AtomicU64 = AtomicU64::new(0);

/// A write of a user who waits for the standby of that name.
async fn write(lab: &Supervisor) {
    let row = ROW.fetch_add(1, Ordering::SeqCst);
    run(
        &lab.layout.sites[0],
        &format!("INSERT INTO public.checks (nonce) VALUES ('{row}')"),
    )
    .await;
}

#[test]
fn a_second_stream_of_the_standbys_name_opens_the_window_and_what_it_alone_has_is_not_called_safe()
{
    let test = "impostor::a_second_stream_of_the_standbys_name_opens_the_window_and_what_it_alone_has_is_not_called_safe";
    on_a_prepared_lab(
        test,
        &sync_policy(),
        |_| {},
        async |lab| {
            let [aws, gcp] = lab.layout.sites.clone();
            until_closed(lab).await;
            let _impostor = Impostor::begin(lab, "gcp");
            until("the window opens", async || {
                opened(lab)
                    .iter()
                    .any(|why| why.contains("2 streams have the name `gcp`"))
            })
            .await;
            lab.fault(Fault::StopReplication, &gcp.name).await.unwrap();
            // Acknowledged, and only the impostor has them.
            for _ in 0..20 {
                write(lab).await;
            }
            assert!(!lab.status().await.unwrap().situation.window.is_closed());
            // An estimate rests on positions that were seen.
            until_status(lab, "the standby is seen to lack them", |status| {
                let replication = &status.situation.replication;
                let primary = replication.primary.as_ref().map(|seen| seen.fact);
                let standby = replication.standby.as_ref().map(|seen| seen.fact);
                primary > standby && standby.is_some()
            })
            .await;

            lab.fault(Fault::KillSite, &aws.name).await.unwrap();
            until("it failed over", async || {
                !facts(&entries(&lab.layout.log()), &Step::Promote).is_empty()
            })
            .await;
            let declared = facts(&entries(&lab.layout.log()), &Step::Freeze);
            let [Fact::Declared { loss, .. }] = &declared[..] else {
                panic!("{declared:?}");
            };
            assert!(!loss.nothing, "{loss:?}");
            assert!(
                loss.estimate.is_some_and(|estimate| estimate.0 > 0),
                "{loss:?}"
            );
        },
    );
}

/// The same at once: no second stream is ever seen, because the real standby is cut off before.
#[test]
fn a_stream_that_takes_the_standbys_place_contradicts_what_that_one_says() {
    let test = "impostor::a_stream_that_takes_the_standbys_place_contradicts_what_that_one_says";
    on_a_prepared_lab(
        test,
        &sync_policy(),
        |_| {},
        async |lab| {
            let [_, gcp] = lab.layout.sites.clone();
            until_closed(lab).await;
            lab.fault(Fault::StopReplication, &gcp.name).await.unwrap();
            let _impostor = Impostor::begin(lab, "gcp");
            until("the window opens", async || {
                opened(lab)
                    .iter()
                    .any(|why| why.contains("something else uses its name"))
            })
            .await;
            // The agent has seen its name confirm everything; the standby itself has not said so.
            until_status(
                lab,
                "the window stays open on the word of a name",
                |status| {
                    let agent = status.situation.active_site().unwrap().agent.as_ref();
                    let sync = agent.and_then(|agent| agent.fact.synchrony.as_ref());
                    let closed = sync.and_then(|sync| sync.closed).map(|closed| closed.entry);
                    match status.situation.window {
                        RpoWindow::Open { entry } => closed == Some(entry),
                        RpoWindow::Closed => false,
                    }
                },
            )
            .await;
            write(lab).await;
            let said = failover(lab, "promote shop --to gcp --dry-run").await;
            let text = String::from_utf8_lossy(&said.stdout);
            assert!(!text.contains("loses nothing"), "{text}");
        },
    );
}

/// A stream of another name is nobody's standby.
#[test]
fn a_stream_of_another_name_changes_nothing() {
    let test = "impostor::a_stream_of_another_name_changes_nothing";
    on_a_prepared_lab(
        test,
        &sync_policy(),
        |_| {},
        async |lab| {
            let [aws, _] = lab.layout.sites.clone();
            until_closed(lab).await;
            let before = opened(lab);
            let _archiver = Impostor::begin(lab, "archiver");
            until("it streams", async || {
                let names =
                    "SELECT string_agg(application_name, ',' ORDER BY application_name) FROM pg_stat_replication";
                let row = session(&aws).await.query_one(names, &[]).await.unwrap();
                row.get::<_, Option<String>>(0).as_deref() == Some("archiver,gcp")
            })
            .await;
            write(lab).await;
            assert_eq!(opened(lab), before);
            assert!(lab.status().await.unwrap().situation.window.is_closed());
        },
    );
}
