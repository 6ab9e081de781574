//! A lab that stands, used through the command line as a person would.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use failover::adapters::files;
use failover::engine::chain::{Body, Entry};
use failover::engine::decision::Verdict;
use failover::engine::detector::State;
use failover::engine::reason::Code;
use failover::engine::saga::Ending;
use failover::engine::situation::{AgentFacts, LocalDatabase};
use failover::engine::topology::TargetKind;
use failover::engine::units::Epoch;
use failover::lab::error_lines::ExpectedErrors;
use failover::lab::standing::Standing;
use failover::wire::Status;
use rustix::process::{Pid, Signal, geteuid, kill_process};

use crate::pair::site;
use crate::stage::{endings, entries, no_other_errors, one_lab, wait_until};

/// A person with a lab that nobody else finds.
struct Person {
    home: tempfile::TempDir,
}

impl Person {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        // PostgreSQL's user must get through to its own folder.
        std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        Self { home }
    }

    fn failover(&self, words: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_failover"))
            .args(words.split(' '))
            .env("TMPDIR", self.home.path())
            .env("XDG_RUNTIME_DIR", self.home.path())
            .env_remove("FAILOVER_CONTROLLER")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// What it prints for people and programs together, if it ends with this code.
    fn ends(&self, words: &str, code: i32) -> String {
        let done = self.failover(words);
        let [out, err] = [&done.stdout, &done.stderr].map(|text| String::from_utf8_lossy(text));
        let text = format!("{out}{err}");
        assert_eq!(done.status.code(), Some(code), "failover {words}: {text}");
        text
    }

    fn status(&self) -> Status {
        let done = self.failover("status --output json");
        serde_json::from_slice(&done.stdout).unwrap_or_else(|error| panic!("{error}: {done:?}"))
    }

    /// Waits until the status shows something.
    fn until(&self, what: &str, so: impl Fn(&Status) -> bool) -> Status {
        let mut last = None;
        wait_until(what, || {
            let status = self.status();
            let found = so(&status);
            last = Some(status);
            found
        });
        last.unwrap()
    }

    fn lab(&self) -> PathBuf {
        let name = format!("failover-lab-{}.json", geteuid().as_raw());
        let text = std::fs::read(self.home.path().join(name)).unwrap();
        serde_json::from_slice::<Standing>(&text).unwrap().dir
    }

    fn log(&self) -> Vec<Entry> {
        entries(&self.lab().join("decision.log"))
    }

    /// The processes that were told of a file in our folder: all of a lab were.
    fn processes(&self) -> Vec<(i32, String)> {
        let home = self.home.path().to_str().unwrap();
        let all = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let line = std::fs::read(Path::new("/proc").join(format!("{pid}/cmdline"))).ok()?;
            Some((pid, String::from_utf8_lossy(&line).replace('\0', " ")))
        });
        all.filter(|(_, line)| line.contains(home)).collect()
    }
}

impl Drop for Person {
    fn drop(&mut self) {
        // After a failure: nothing may stay behind.
        if !self.processes().is_empty() {
            self.failover("lab down");
        }
        for (pid, _) in self.processes() {
            Pid::from_raw(pid).map(|pid| kill_process(pid, Signal::KILL));
        }
    }
}

fn plans(log: &[Entry]) -> usize {
    let plans = log
        .iter()
        .filter(|entry| matches!(entry.body, Body::Plan { .. }));
    plans.count()
}

fn agent(status: &Status, name: &str) -> Option<AgentFacts> {
    let agent = status.situation.sites[&site(name)].agent.as_ref()?;
    let fresh = agent.age < Duration::from_secs(2);
    fresh.then(|| agent.fact.clone().own())
}

/// Whether a failover is held although the active site has failed.
fn held(entry: &Entry) -> bool {
    let Body::Decision { decision, .. } = &entry.body else {
        return false;
    };
    let says = |code| decision.reasons.iter().any(|reason| reason.code == code);
    decision.verdict == Verdict::Hold && says(Code::Held) && says(Code::ActiveSiteFailed)
}

#[test]
fn a_person_looks_at_a_lab_holds_it_breaks_it_releases_it_heals_it_and_takes_it_down() {
    let _one = one_lab();
    let person = Person::new();
    person.ends("status", 2);
    person.ends("lab up", 0);
    assert!(
        person
            .ends("lab up", 2)
            .contains("a lab is already running")
    );

    // What is.
    let shown = person.ends("status", 0);
    assert!(shown.contains("epoch 1   active aws"), "{shown}");
    assert!(shown.contains("gates before a failover"), "{shown}");
    let status = person.status();
    assert_eq!(
        (status.situation.active.as_str(), status.situation.epoch),
        ("aws", Epoch(1))
    );

    // What would be, which changes nothing.
    let shown = person.ends("promote shop --to gcp --dry-run", 0);
    assert!(shown.contains("plan: recheck > raise-epoch > "), "{shown}");
    assert!(shown.contains("may lose: about "), "{shown}");
    let shown = person.ends("promote shop --to gcp", 2);
    assert!(shown.contains("no terminal to confirm"), "{shown}");
    person.ends("promote shop --to aws --dry-run", 1);
    person.ends("promote other --to gcp --yes", 2);
    let log = person.log();
    let quiet = |entry: &Entry| !matches!(entry.body, Body::Command { .. } | Body::Plan { .. });
    assert!(log.iter().all(quiet), "{log:#?}");

    // Held, it does not fail over.
    person.ends("hold shop --for 30m --reason maintenance", 0);
    person.ends("lab fault kill-site aws", 0);
    person.until("the hold is why", |_| person.log().iter().any(held));
    person.ends("status", 1);
    assert_eq!(plans(&person.log()), 0);
    person.ends("release shop --reason done", 0);
    let over = |status: &Status| status.situation.active == site("gcp") && status.plan.is_none();
    let status = person.until("it failed over", over);
    assert_eq!(status.situation.epoch, Epoch(2));
    person.until("the new site is well", |status| {
        status.situation.sites[&site("gcp")].state(TargetKind::Database) == State::Healthy
    });
    assert!(person.ends("status", 0).contains("epoch 2   active gcp"));
    assert_eq!(endings(&person.log()), [Ending::Done]);

    // A site that comes back is superseded, and stays so.
    let healed = person.ends("lab heal", 0);
    assert!(
        !healed.contains("follows"),
        "nothing was said to stream: {healed}"
    );
    let status = person.until("the old site is fenced", |status| {
        agent(status, "aws").is_some_and(|agent| agent.fenced == Some(Epoch(2)))
    });
    let back = agent(&status, "aws").unwrap();
    assert!(!matches!(back.database, LocalDatabase::Up), "{back:?}");
    assert!(person.ends("status", 0).contains("fenced in epoch 2"));
    // Long enough for a return, were there one: the window of recovery is 5 s.
    let status = person.until("the old agent is well again", |status| {
        status.situation.sites[&site("aws")].state(TargetKind::Agent) == State::Healthy
    });
    assert_eq!(status.situation.active, site("gcp"));
    assert_ne!(
        status.situation.sites[&site("aws")].state(TargetKind::Database),
        State::Healthy
    );
    assert!(!matches!(
        agent(&status, "aws").unwrap().database,
        LocalDatabase::Up
    ));
    assert!(status.situation.automation.disarmed);
    assert_eq!(
        plans(&person.log()),
        1,
        "no automatic return (invariants.md I7)"
    );

    // The log, offline.
    let lab = person.lab();
    let kept = person.home.path().join("kept.log");
    std::fs::copy(lab.join("decision.log"), &kept).unwrap();
    let head = files::verify(&kept).unwrap().head;
    let kept = kept.display();
    person.ends(&format!("log verify {kept} --head {head}"), 0);
    person.ends(&format!("log verify {kept} --head {}", "0".repeat(64)), 1);
    assert!(person.ends("log show", 0).contains("promote"));

    no_other_errors(&ExpectedErrors::default(), &lab);

    // Gone.
    assert!(person.processes().len() > 5, "{:?}", person.processes());
    person.ends("lab down", 0);
    let left = |names: &[&str]| {
        person
            .processes()
            .into_iter()
            .filter(|(_, line)| names.iter().all(|name| line.contains(name)))
            .collect::<Vec<_>>()
    };
    // The supervisor itself ends just after its folder is gone.
    wait_until("the supervisor is gone", || {
        left(&["lab supervise"]).is_empty()
    });
    assert_eq!(left(&[]), []);
    assert!(!lab.exists());
    person.ends("lab down", 2);
}
