//! A whole lab for a test: in a process of its own, one at a time, and ended with the test.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "helpers of tests fail as tests do; clippy sees only the test functions as such"
)]

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use failover::adapters::clock::SystemClock;
use failover::adapters::files;
use failover::engine::chain::{Body, Entry};
use failover::engine::saga::Ending;
use failover::engine::step::{Event, Fact, Step};
use failover::lab::client::{Attempt, Outcome};
use failover::lab::cluster::SiteKind;
use failover::lab::error_lines::ExpectedErrors;
use failover::lab::layout::{Layout, Servers};
use failover::lab::processes::Processes;
use failover::lab::supervisor::Supervisor;
use failover::wire::Status;

use crate::pair::tools;

/// The policy of these tests.
pub(crate) const FAST: &str = include_str!("../../policies/fast.toml");
/// How long a test on a lab may take.
const TEST_WITHIN: Duration = Duration::from_secs(180);
/// How long one thing that is waited for may take, on a machine that has other things to do.
const WITHIN: Duration = Duration::from_secs(60);

/// The right to have a lab: two at once would wait for each other's processors, and the lab's
/// limits are those of production.
pub(crate) fn one_lab() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a test on a steady lab. Whose descendants a lab ends is a property of a whole process, so
/// the test has one of its own: this program again, with the one test.
pub(crate) fn on_a_lab(test: &str, body: impl AsyncFnOnce(&mut Supervisor)) {
    on_a_prepared_lab(test, FAST, |_| {}, body);
}

/// The same, on a lab whose sites are Kubernetes clusters.
pub(crate) fn on_a_lab_of_clusters(test: &str, body: impl AsyncFnOnce(&mut Supervisor)) {
    on_a_lab_of_clusters_under(test, FAST, body);
}

/// The same under a policy.
pub(crate) fn on_a_lab_of_clusters_under(
    test: &str,
    policy: &str,
    body: impl AsyncFnOnce(&mut Supervisor),
) {
    let program = Path::new(env!("CARGO_BIN_EXE_failover"));
    on_a_lab_with((program, SiteKind::Kubernetes), test, policy, |_| {}, body);
}

/// The same under a policy, and with whatever else is changed in its files before anything starts.
pub(crate) fn on_a_prepared_lab(
    test: &str,
    policy: &str,
    prepare: impl FnOnce(&Layout),
    body: impl AsyncFnOnce(&mut Supervisor),
) {
    let program = Path::new(env!("CARGO_BIN_EXE_failover"));
    on_a_lab_of(program, test, policy, prepare, body);
}

/// The same, of another build of the program.
pub(crate) fn on_a_lab_of(
    program: &Path,
    test: &str,
    policy: &str,
    prepare: impl FnOnce(&Layout),
    body: impl AsyncFnOnce(&mut Supervisor),
) {
    on_a_lab_with((program, SiteKind::Host), test, policy, prepare, body);
}

fn on_a_lab_with(
    (program, kind): (&Path, SiteKind),
    test: &str,
    policy: &str,
    prepare: impl FnOnce(&Layout),
    body: impl AsyncFnOnce(&mut Supervisor),
) {
    const ALONE: &str = "FAILOVER_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let _one = one_lab();
        let done = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(ALONE, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&done.stdout);
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{text}{said}");
        assert!(text.contains("1 passed"), "no test is called `{test}`");
        // What it measured.
        println!("{text}");
        return;
    }
    failover::adapters::tls::install_provider();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut lab = runtime.block_on(async {
        let processes = Processes::new("stage", Arc::new(SystemClock)).unwrap();
        let servers = Servers {
            tools: tools(),
            hostile: false,
            kind,
        };
        let layout = Layout::create(dir.path(), program, None, policy, servers).await;
        let layout = layout.unwrap();
        prepare(&layout);
        Supervisor::start(layout, processes).await.unwrap()
    });
    let ran = catch_unwind(AssertUnwindSafe(|| {
        let within = async { tokio::time::timeout(TEST_WITHIN, body(&mut lab)).await };
        runtime.block_on(within).unwrap();
    }));
    let said = logs(dir.path());
    let expected = lab.expected_errors.clone();
    runtime.block_on(lab.end()).unwrap();
    // Whoever looks into it needs what the processes said, and the cause where a record that was
    // cut in the middle still shows it: at the end.
    if let Err(cause) = ran {
        eprintln!("{said}\n{}", cause_of(&*cause));
        resume_unwind(cause);
    }
    no_other_errors(&expected, dir.path());
}

/// That our programs logged no error in this folder but those that the test announced.
pub(crate) fn no_other_errors(expected: &ExpectedErrors, dir: &Path) {
    let found = expected.unexpected_in(dir).unwrap();
    assert!(
        found.is_empty(),
        "errors that were not announced: {found:#?}"
    );
}

/// What a panic said.
fn cause_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without a text")
}

/// The last that the processes of a lab said.
fn logs(dir: &Path) -> String {
    let mut all = String::new();
    for name in ["controller.log", "aws/agent.log", "gcp/agent.log"] {
        let text = std::fs::read_to_string(dir.join(name)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines.get(lines.len().saturating_sub(150)..).unwrap_or(&[]);
        all += &format!("--- {name}\n{}\n", last.join("\n"));
    }
    all
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(WITHIN, wait)
        .await
        .unwrap_or_else(|_late| panic!("not within {WITHIN:?}: {what}"));
}

/// The same, for a test without a runtime.
pub(crate) fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(until(what, async || so()));
}

/// Waits until the controller shows something, and returns the status that does.
pub(crate) async fn until_status(
    lab: &Supervisor,
    what: &str,
    so: impl Fn(&Status) -> bool,
) -> Status {
    let mut found = None;
    until(what, async || {
        found = lab.status().await.ok().filter(|status| so(status));
        found.is_some()
    })
    .await;
    found.unwrap()
}

/// A decision log as it stands in its file.
pub(crate) fn entries(log: &Path) -> Vec<Entry> {
    let all = files::read(log, 1, usize::MAX).unwrap();
    all.into_iter().map(|(_, entry)| entry).collect()
}

/// The endings of plans in a log.
pub(crate) fn endings(entries: &[Entry]) -> Vec<Ending> {
    let endings = entries.iter().filter_map(|entry| {
        let Body::Outcome { ending, .. } = &entry.body else {
            return None;
        };
        Some(ending.clone())
    });
    endings.collect()
}

/// What a step brought, each time that it was done.
pub(crate) fn facts(entries: &[Entry], wanted: &Step) -> Vec<Fact> {
    let facts = entries.iter().filter_map(|entry| {
        let Body::Step { step, event, .. } = &entry.body else {
            return None;
        };
        let Event::Done { fact } = event else {
            return None;
        };
        (step == wanted).then(|| fact.clone())
    });
    facts.collect()
}

/// How many writes a site has acknowledged.
pub(crate) fn written_at(attempts: &[Attempt], wanted: &str) -> usize {
    let there = attempts.iter().filter(|attempt| {
        matches!(&attempt.outcome, Outcome::Acknowledged { site, .. } if site.as_str() == wanted)
    });
    there.count()
}

/// Whether a PostgreSQL's log tells that its first process was told to stop. That a standby's
/// receiver was is another thing.
pub(crate) fn was_told_to_stop(log: &str) -> bool {
    log.lines()
        .any(|line| line.contains("received") && line.contains("shutdown request"))
}
