//! `failover check`: everything that a failover would need, good or bad.

use std::fmt::Write;

use clap::Args;

use super::Reach;
use super::client::Client;
use super::exit::Exit;
use super::output::{Mood, Output};
use crate::engine::readiness::{CheckState, worst};
use crate::engine::topology::GroupName;
use crate::wire::Readiness;

/// `failover check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    #[command(flatten)]
    reach: Reach,
    /// The group; by default the controller's
    group: Option<GroupName>,
}

/// Shows every check with its value, limit and page.
pub fn run(args: &CheckArgs, output: &Output) -> anyhow::Result<Exit> {
    let client = Client::new(&args.reach, args.group.as_ref())?;
    let readiness: Readiness = client.get("/check")?;
    if let Some(group) = args
        .group
        .as_ref()
        .filter(|group| **group != readiness.group)
    {
        anyhow::bail!(
            "this controller is for group `{}`, not `{group}`",
            readiness.group
        );
    }
    if output.is_json() {
        output.json(&readiness)?;
    } else {
        output.text(shown(&readiness, output));
    }
    Ok(if readiness.ready {
        Exit::Done
    } else {
        Exit::No
    })
}

/// The whole list, for people; problems come with their page.
pub fn shown(readiness: &Readiness, output: &Output) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    write(&mut text, readiness, output).unwrap_or_default();
    text.truncate(text.trim_end().len());
    text
}

fn write(text: &mut String, readiness: &Readiness, output: &Output) -> std::fmt::Result {
    writeln!(
        text,
        "{} {}   active {}   passive {}   at {}",
        output.paint(Mood::Strong, "group"),
        readiness.group,
        readiness.active,
        readiness.passive,
        readiness.at
    )?;
    writeln!(text)?;
    let width = readiness.checks.iter().map(|check| check.page.len()).max();
    for check in &readiness.checks {
        let mood = match check.state {
            CheckState::Ok => Mood::Good,
            CheckState::Warns => Mood::Doubt,
            CheckState::Blocks => Mood::Bad,
        };
        writeln!(
            text,
            "{}  {:<width$}  {}",
            output.paint(mood, format!("{:<6}", check.state)),
            check.page,
            check.reason,
            width = width.unwrap_or_default()
        )?;
    }
    writeln!(text)?;
    let count = |state: CheckState| {
        let of = readiness.checks.iter();
        of.filter(|check| check.state == state).count()
    };
    let (blocking, warning) = (count(CheckState::Blocks), count(CheckState::Warns));
    match worst(&readiness.checks) {
        CheckState::Ok => writeln!(text, "{}", output.paint(Mood::Good, "ready")),
        CheckState::Warns => {
            let ready = output.paint(Mood::Good, "ready");
            writeln!(text, "{ready}, with {warning} to look at")
        }
        CheckState::Blocks => {
            let not = output.paint(Mood::Bad, "not ready");
            writeln!(text, "{not}: {blocking} blocking, {warning} to look at")
        }
    }
}
