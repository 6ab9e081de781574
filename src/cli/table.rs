//! `failover policy table`: the partition table of a policy, as the simulator measures it.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::exit::Exit;
use super::output::{Mood, Output};
use super::policy::read;
use crate::engine::document::human;
use crate::engine::policy::{Mode, Policy};
use crate::engine::reason::Code;
use crate::engine::units::as_millis;
use crate::sim::measured::{Measured, Walk};
use crate::sim::partitions::{ROWS, Row, Span};
use crate::sim::seeds::cores;
use crate::sim::world::Node;

/// `failover policy table`.
#[derive(Debug, Args)]
pub struct TableArgs {
    /// The policy
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
    /// How many seeds for each row
    #[arg(long, default_value_t = 20, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 1, value_name = "SEED")]
    from: u64,
    /// How many runs at once; by default one per core. The output is the same
    #[arg(long, value_name = "COUNT")]
    jobs: Option<NonZeroUsize>,
}

/// Measures each row, and shows it.
pub fn run(args: &TableArgs, output: &Output) -> anyhow::Result<Exit> {
    let policy = read(&args.policy)?;
    let walk = Walk {
        policy: &policy,
        file: &args.policy,
        seeds: args.from..args.from.saturating_add(args.seeds),
        jobs: args.jobs.unwrap_or_else(cores),
    };
    let measured = ROWS.into_iter().map(|row| walk.over(row));
    let all: Vec<Measured> = measured.collect::<Result<_, _>>()?;
    let mut exit = Exit::Done;
    for broken in all.iter().flat_map(|measured| &measured.broken) {
        output.say(format!("{} {broken}", output.paint(Mood::Bad, "broken:")));
        exit = Exit::No;
    }
    let rows = ROWS.iter().zip(&all);
    if output.is_json() {
        output.json(&json!({
            "schema_version": 1,
            "seeds": args.seeds,
            "watched_ms": as_millis(Span::of(&policy).watched),
            "rows": rows.map(|(row, measured)| in_json(row, measured)).collect::<Vec<_>>(),
        }))?;
    } else {
        output.text(heading(args, &policy));
        for (row, measured) in rows {
            output.text(in_words(row, measured, output));
        }
    }
    Ok(exit)
}

fn heading(args: &TableArgs, policy: &Policy) -> String {
    let mut text = format!(
        "A is the active site, P the passive one, N the place of the controller.\nSimulated: {} seeds for each row, watched for {} after the fault.\n",
        args.seeds,
        human(Span::of(policy).watched)
    );
    if policy.mode == Mode::Observe {
        text += "The policy only observes: nothing is promoted automatically.\n";
    }
    text
}

fn in_json(row: &Row, measured: &Measured) -> Value {
    let millis = |duration: Option<Duration>| duration.map(as_millis);
    let verdicts = measured.verdicts.iter();
    let verdicts = verdicts.map(|(verdict, code)| json!({"verdict": verdict, "reason": code}));
    let (n, a, p) = (Node::Neutral, Node::First, Node::Second);
    json!({
        "what": row.name,
        "links": {"N-A": row.link(n, a), "N-P": row.link(n, p), "A-P": row.link(a, p)},
        "users_reach_active": row.users_reach_active(),
        "verdicts": verdicts.collect::<Vec<_>>(),
        "promotions": measured.writable.len(),
        "writable_median_ms": millis(measured.median()),
        "writable_worst_ms": millis(measured.worst()),
        "declared_always_known": !measured.unknown,
        "declared_window_ms": millis(measured.window),
        "declared_estimate_bytes": measured.estimate,
        "writes_lost": measured.lost,
        "fenced": measured.fenced,
        "fenced_itself_ms": millis(measured.fenced_itself),
        "violations": measured.broken.len(),
    })
}

fn in_words(row: &Row, measured: &Measured, output: &Output) -> String {
    let (n, a, p) = (Node::Neutral, Node::First, Node::Second);
    let reach = if row.users_reach_active() {
        "users reach A"
    } else {
        "users do not reach A"
    };
    let mut text = format!(
        "{}\n  links     N–A {}, N–P {}, A–P {}; {reach}\n  verdict   {}",
        output.paint(Mood::Strong, row.name),
        row.link(n, a),
        row.link(n, p),
        row.link(a, p),
        verdict(measured, |code| code.to_string()),
    );
    if let Some((median, worst)) = measured.median().zip(measured.worst()) {
        text += &format!(
            "\n  writable  after {} (median), {} (worst)\n  loss      declared {}; really lost {} writes",
            seconds(median),
            seconds(worst),
            declared(measured),
            measured.lost,
        );
    }
    text + &format!("\n  fenced    {}\n", fence(measured))
}

/// A duration in seconds, to the tenth.
pub fn seconds(duration: Duration) -> String {
    let tenths = as_millis(duration).saturating_add(50) / 100;
    format!("{}.{} s", tenths / 10, tenths % 10)
}

/// Each verdict with its leading reason, formatted by `name`.
pub fn verdict(measured: &Measured, name: impl Fn(Code) -> String) -> String {
    let shown = measured.verdicts.iter().map(|(verdict, code)| match code {
        Some(code) => format!("{verdict}: {}", name(*code)),
        None => (*verdict).to_owned(),
    });
    shown.collect::<Vec<_>>().join("; ")
}

/// The longest window that was declared, and the largest estimate.
pub fn declared(measured: &Measured) -> String {
    match (measured.window, measured.estimate) {
        _ if measured.unknown => "unknown".to_owned(),
        (Some(window), Some(estimate)) => format!("{}, {estimate}", seconds(window)),
        (_, _) => "nothing".to_owned(),
    }
}

/// Who was fenced and how, and after how long the active site had fenced itself.
pub fn fence(measured: &Measured) -> String {
    let fenced = measured.fenced.iter().copied().collect::<Vec<_>>();
    let fenced = fenced.join("; ");
    match (measured.fenced_itself, measured.writable.is_empty()) {
        (None, _) => fenced,
        (Some(after), true) => format!("{fenced} within {}", seconds(after)),
        (Some(after), false) => format!("{fenced}; had fenced itself within {}", seconds(after)),
    }
}
