//! `make bench`: what is measured, in one run on one machine, as medians and ratios.
//!
//! - a failover in the lab with `policies/fast.toml`, after the database was killed and after the
//!   whole site was, beside the bare promotion of the same PostgreSQL;
//! - decisions a second on one core, and the speed of verifying a log.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a measurement that cannot be made must fail, and its table is what it is for"
)]

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::Duration;

use failover::adapters::clock::SystemClock;
use failover::adapters::files;
use failover::adapters::postgres::{Secret, promote};
use failover::engine::chain::{Body, read_line};
use failover::engine::decision::decide;
use failover::engine::policy::Policy;
use failover::engine::situation::Situation;
use failover::lab::name_server::free_port;
use failover::lab::pair::{
    Instance, Passwords, PostgresTools, StopMode, create_primary, create_standby,
    start_temporarily, stop,
};
use failover::ports::Clock;

const RUNS: usize = 5;
const POLICY: &str = include_str!("../policies/fast.toml");

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Runs the lab once; its report.
fn lab(fault: &str) -> serde_json::Value {
    let output = Command::new(env!("CARGO_BIN_EXE_failover"))
        .args(["--output", "json", "lab", "run", "--fault", fault])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "lab run --fault {fault}: {}: {said}",
        output.status
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Seconds from the order to promote until the standby is primary: PostgreSQL's own part.
async fn bare_promotions() -> Vec<f64> {
    let tools = PostgresTools::find().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o711);
    std::fs::set_permissions(folder.path(), open).unwrap();
    let secret = || Secret::new("bench");
    let passwords = Passwords {
        replicator: secret(),
        failover: secret(),
        app: secret(),
    };
    let listen = IpAddr::V4(Ipv4Addr::new(127, 77, 7, 1));
    let instance = |name: &str| Instance {
        site: name.parse().unwrap(),
        dir: folder.path().join(name),
        listen,
        port: free_port(listen).unwrap(),
    };
    let primary = instance("primary");
    create_primary(&tools, &primary, &passwords).await.unwrap();
    let mut took = Vec::new();
    for run in 0..RUNS {
        let standby = instance(&format!("standby-{run}"));
        create_standby(&tools, &primary, &standby, &passwords)
            .await
            .unwrap();
        start_temporarily(&tools, &standby).await.unwrap();
        let local = standby.local("app").unwrap();
        let promoted = promote(&local, Duration::from_secs(20)).await.unwrap();
        took.push(promoted.took.as_secs_f64());
        stop(&tools, &standby, StopMode::Immediate).await.unwrap();
    }
    stop(&tools, &primary, StopMode::Immediate).await.unwrap();
    took
}

fn seconds(report: &serde_json::Value, key: &str) -> f64 {
    report["timeline"][key]
        .as_f64()
        .unwrap_or_else(|| panic!("no `{key}` in {report}"))
}

fn main() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let bare = median(runtime.block_on(bare_promotions()));
    println!("failover in the lab, policies/fast.toml, median of {RUNS}; seconds after the fault");
    println!(
        "{:<16} {:>9} {:>9} {:>9} {:>9} {:>9} {:>12} {:>16}",
        "fault",
        "decided",
        "fenced",
        "promoted",
        "writable",
        "first user",
        "writes lost",
        "x bare promotion"
    );
    let mut log = None;
    for fault in ["kill-database", "kill-site"] {
        let reports: Vec<_> = (0..RUNS).map(|_| lab(fault)).collect();
        let at = |key: &str| median(reports.iter().map(|report| seconds(report, key)).collect());
        let lost: u64 = reports
            .iter()
            .map(|report| {
                report["writes"]["lost_outside_declared_window"]
                    .as_u64()
                    .unwrap()
            })
            .sum();
        println!(
            "{fault:<16} {:>9.3} {:>9.3} {:>9.3} {:>9.3} {:>9.3}  {lost:>12} {:>16.1}",
            at("decided"),
            at("fenced"),
            at("promoted"),
            at("writable"),
            at("first_user_write"),
            at("writable") / bare
        );
        log = reports
            .last()
            .and_then(|report| Some(report["log"]["path"].as_str()?.to_owned()));
    }
    println!("{:<16} {:>29} {bare:>9.3}", "bare pg_promote", "");
    println!("(writes lost: acknowledged, lost outside the declared window, over all runs)\n");
    engine(&log.unwrap());
}

/// The engine and the log, on what the last lab recorded.
fn engine(log: &str) {
    let policy = Policy::read("fast.toml", POLICY).unwrap();
    let entries = files::read(log.as_ref(), 1, 10_000).unwrap();
    let situations: Vec<Situation> = entries
        .iter()
        .filter_map(|(_, entry)| {
            let Body::Decision { situation, .. } = &entry.body else {
                return None;
            };
            Some((**situation).clone())
        })
        .collect();
    let clock = SystemClock;
    let began = clock.now();
    let rounds = 200_000 / situations.len();
    let mut reasons = 0;
    for _ in 0..rounds {
        for situation in &situations {
            reasons += decide(situation, &policy).reasons.len();
        }
    }
    assert!(reasons > 0);
    let took = clock.now().since(began).as_secs_f64();
    let decided = f64::from(u32::try_from(rounds * situations.len()).unwrap());
    println!(
        "decisions           {:>12.0} a second on one core ({} recorded situations)",
        decided / took,
        situations.len()
    );

    let lines: Vec<&[u8]> = entries.iter().map(|(line, _)| line.as_bytes()).collect();
    let began = clock.now();
    let mut bytes = 0usize;
    while bytes < 64 << 20 {
        for line in &lines {
            read_line(line).unwrap();
            bytes += line.len();
        }
    }
    let took = clock.now().since(began).as_secs_f64();
    let mebibytes = f64::from(u32::try_from(bytes >> 20).unwrap());
    println!(
        "log lines verified  {:>12.0} MiB a second on one core",
        mebibytes / took
    );
}
