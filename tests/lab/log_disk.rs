//! A decision log whose disk stands still, or is full: production goes on, and what cannot be written
//! down is not done.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use failover::engine::chain::Body;
use failover::engine::decision::Verdict;
use failover::engine::reason::Code;
use failover::lab::client::{Attempt, Report, present_numbers};
use failover::lab::layout::Layout;
use failover::lab::scenario::start_client;
use failover::lab::standing::Fault;
use failover::lab::supervisor::Supervisor;

use crate::stage::{FAST, entries, on_a_prepared_lab, until, until_status, written_at};

/// So many writes are made in the time for which the disk stands still: 30 s.
const WRITES: usize = 1500;

/// A file system for the decision log alone.
struct Disk {
    folder: PathBuf,
}

fn run(program: &str, words: &[&str], path: &Path) {
    let mut command = Command::new(program);
    let done = command.args(words).arg(path).output().unwrap();
    assert!(done.status.success(), "{command:?}: {done:?}");
}

impl Disk {
    /// A small one, on which the log of a lab that was not started yet will lie.
    fn under_the_log_of(layout: &Layout) -> Self {
        let (image, folder) = (layout.dir.join("log.img"), layout.dir.join("log"));
        fs::create_dir(&folder).unwrap();
        fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
        run("mkfs.ext4", &["-q", "-F"], &image);
        let image = image.display().to_string();
        run("mount", &["-o", "loop", &image], &folder);
        let (log, config) = (layout.log(), layout.controller_config());
        let text = fs::read_to_string(&config).unwrap();
        let (line, moved) = ("log = \"decision.log\"", "log = \"log/decision.log\"");
        assert_eq!(text.matches(line).count(), 1, "{text}");
        fs::write(&config, text.replace(line, moved)).unwrap();
        std::os::unix::fs::symlink("log/decision.log", &log).unwrap();
        Self { folder }
    }

    fn of(lab: &Supervisor) -> Self {
        Self {
            folder: lab.layout.dir.join("log"),
        }
    }

    /// Whatever is written to it waits, and so does whoever writes.
    fn stand_still(&self) {
        run("fsfreeze", &["--freeze"], &self.folder);
    }

    fn go_on(&self) {
        run("fsfreeze", &["--unfreeze"], &self.folder);
    }

    /// Leaves no room.
    fn fill(&self) {
        let mut room = 1 << 20;
        let ballast = self.folder.join("ballast");
        let mut file = fs::File::create(ballast).unwrap();
        while room > 0 {
            let block = vec![0; room];
            if std::io::Write::write_all(&mut file, &block).is_err() {
                room /= 2;
            }
        }
    }

    fn make_room(&self) {
        fs::remove_file(self.folder.join("ballast")).unwrap();
    }
}

/// With the end of a test, however it comes, nothing is mounted and nothing stands still.
struct Unmounted(PathBuf);

impl Drop for Unmounted {
    fn drop(&mut self) {
        for (program, word) in [("fsfreeze", "--unfreeze"), ("umount", "--lazy")] {
            drop(Command::new(program).arg(word).arg(&self.0).output());
        }
    }
}

/// A lab whose log has a disk of its own.
fn on_a_lab_with_a_disk(test: &str, body: impl AsyncFnOnce(&mut Supervisor, Disk)) {
    let prepare = |layout: &Layout| drop(Disk::under_the_log_of(layout));
    on_a_prepared_lab(test, FAST, prepare, async |lab| {
        // At the end the disk goes first.
        lab.expects_error("is not this controller's any more");
        let disk = Disk::of(lab);
        let _unmounted = Unmounted(disk.folder.clone());
        body(lab, disk).await;
    });
}

/// Waits until status says that the log takes nothing.
async fn until_stopped(lab: &Supervisor) {
    until_status(lab, "a word about the log", |status| {
        let mut reasons = status.decision.reasons.iter();
        reasons.any(|reason| reason.code == Code::LogUnwritable)
    })
    .await;
}

/// Starts what was killed, and waits until nothing but the log is wrong.
async fn back_again(lab: &mut Supervisor) {
    lab.start_missing().unwrap();
    until_status(lab, "nothing else is wrong", |status| {
        let mut codes = status.decision.reasons.iter().map(|reason| reason.code);
        codes.all(|code| code == Code::LogUnwritable)
    })
    .await;
}

/// Waits until the loss of the active site is certain, and nothing is done about it for a while.
async fn until_held(lab: &Supervisor) {
    let mut decided = 0;
    let mut last = None;
    until("decisions about the lost site", async || {
        let Ok(status) = lab.status().await else {
            return false;
        };
        let lost = |code| code == Code::ActiveSiteFailed || code == Code::ActiveDatabaseDown;
        let mut codes = status.decision.reasons.iter().map(|reason| reason.code);
        if codes.any(lost) && last != Some(status.at) {
            assert_eq!(
                status.decision.verdict,
                Verdict::Hold,
                "{:?}",
                status.decision
            );
            assert!(status.plan.is_none());
            (decided, last) = (decided + 1, Some(status.at));
        }
        decided >= 100
    })
    .await;
}

/// After the disk came back: the other site takes over, and the log tells of the time without it.
async fn takes_over_and_tells(lab: &Supervisor, mut client: failover::lab::client::Client) {
    let [aws, gcp] = lab.layout.sites.clone();
    let moved = |attempts: &[Attempt]| written_at(attempts, "gcp") >= 50;
    client.until(moved).await.unwrap();
    let attempts = client.stop().await.unwrap();
    let report = Report::new(&attempts, &present_numbers(gcp.api).await.unwrap());
    assert!(report.by_old_after_new(&aws.name, &gcp.name).is_empty());
    let log = entries(&lab.layout.log());
    let note = |body: &Body| matches!(body, Body::Note { code, .. } if code == "log-delayed");
    assert!(log.iter().any(|entry| note(&entry.body)), "{log:?}");
}

#[test]
fn a_log_whose_disk_stands_still_stops_automation_and_nothing_else() {
    let test = "log_disk::a_log_whose_disk_stands_still_stops_automation_and_nothing_else";
    on_a_lab_with_a_disk(test, async |lab, disk| {
        let [aws, gcp] = lab.layout.sites.clone();
        let mut client = start_client(lab).unwrap();
        let writes = |attempts: &[Attempt]| written_at(attempts, "aws") >= 50;
        client.until(writes).await.unwrap();
        disk.stand_still();
        // Something to write down.
        lab.fault(Fault::KillSite, &gcp.name).await.unwrap();
        until_stopped(lab).await;
        let before = client.attempts();
        let enough = written_at(&before, "aws") + WRITES;
        let writes = |attempts: &[Attempt]| written_at(attempts, "aws") >= enough;
        client.until(writes).await.unwrap();
        let failed = |attempts: &[Attempt]| attempts.len() - written_at(attempts, "aws");
        let refused = failed(&client.attempts()).saturating_sub(failed(&before));
        assert!(refused <= 8, "{refused} were refused, or are on their way");
        back_again(lab).await;
        lab.fault(Fault::KillSite, &aws.name).await.unwrap();
        until_held(lab).await;
        disk.go_on();
        takes_over_and_tells(lab, client).await;
    });
}

#[test]
fn a_full_disk_under_the_log_stops_automation_and_nothing_else() {
    let test = "log_disk::a_full_disk_under_the_log_stops_automation_and_nothing_else";
    on_a_lab_with_a_disk(test, async |lab, disk| {
        let [aws, gcp] = lab.layout.sites.clone();
        let mut client = start_client(lab).unwrap();
        let writes = |attempts: &[Attempt]| written_at(attempts, "aws") >= 50;
        client.until(writes).await.unwrap();
        lab.expects_error("No space left on device");
        disk.fill();
        lab.fault(Fault::KillSite, &gcp.name).await.unwrap();
        until_stopped(lab).await;
        let enough = written_at(&client.attempts(), "aws") + 250;
        let writes = |attempts: &[Attempt]| written_at(attempts, "aws") >= enough;
        client.until(writes).await.unwrap();
        back_again(lab).await;
        lab.fault(Fault::KillSite, &aws.name).await.unwrap();
        until_held(lab).await;
        disk.make_room();
        takes_over_and_tells(lab, client).await;
    });
}
