//! `failover status`: the current state, and why it is not failing over.

use std::fmt::Write;
use std::time::Duration;

use clap::Args;

use super::Reach;
use super::client::Client;
use super::exit::Exit;
use super::output::{Mood, Output, said};
use crate::engine::credential::{URGENT, WARNED};
use crate::engine::detector::State;
use crate::engine::document::human;
use crate::engine::standby::replaying;
use crate::engine::topology::TargetKind;
use crate::engine::units::{Bytes, as_millis};
use crate::wire::Status;

/// `failover status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    reach: Reach,
    /// Refresh every second until interrupted
    #[arg(long)]
    watch: bool,
}

/// Shows the controller's status.
pub fn run(args: &StatusArgs, output: &Output) -> anyhow::Result<Exit> {
    let client = Client::new(&args.reach, None)?;
    if !args.watch {
        let status: Status = client.get("/status")?;
        show(&status, output)?;
        return Ok(exit_of(&status));
    }
    let mut seen = false;
    client.watch("/status", EVERY, |read: anyhow::Result<Status>| {
        match read {
            Ok(status) => {
                seen = true;
                output.clear();
                show(&status, output)?;
            }
            // What never answered is named wrongly; what did may come back.
            Err(error) if seen => output.say(format!(
                "{} {}",
                output.paint(Mood::Doubt, "waiting:"),
                said(&error)
            )),
            Err(error) => return Err(error),
        }
        Ok(())
    })?;
    Ok(Exit::Interrupted)
}

/// How often `--watch` refreshes.
const EVERY: Duration = Duration::from_secs(1);

fn show(status: &Status, output: &Output) -> anyhow::Result<()> {
    if output.is_json() {
        return output.json(status);
    }
    output.text(shown(status, output));
    Ok(())
}

/// A stuck plan has its own exit code; an unhealthy active site, and a broken promise of the
/// policy, is a "no".
fn exit_of(status: &Status) -> Exit {
    let situation = &status.situation;
    if status
        .plan
        .as_ref()
        .is_some_and(|plan| plan.stuck.is_some())
    {
        return Exit::Stuck;
    }
    if situation.log.behind.is_some() {
        return Exit::No;
    }
    let healthy = situation
        .active_site()
        .is_some_and(|site| site.state(TargetKind::Database) == State::Healthy);
    let kept = status.decision.broken_promises.is_empty();
    if healthy && kept {
        Exit::Done
    } else {
        Exit::No
    }
}

fn mood(state: State) -> Mood {
    match state {
        State::Healthy => Mood::Good,
        State::Suspect | State::Unknown => Mood::Doubt,
        State::Failed => Mood::Bad,
    }
}

/// A duration for people: no finer than necessary.
pub fn rough(duration: Duration) -> String {
    let ms = as_millis(duration);
    human(Duration::from_millis(if ms < 10_000 {
        ms
    } else {
        ms.saturating_sub(ms % 1000)
    }))
}

/// The whole status, for people.
pub fn shown(status: &Status, output: &Output) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    write(&mut text, status, output).unwrap_or_default();
    text.truncate(text.trim_end().len());
    text
}

fn write(text: &mut String, status: &Status, output: &Output) -> std::fmt::Result {
    let situation = &status.situation;
    let strong = |word: &str| output.paint(Mood::Strong, word);
    writeln!(
        text,
        "{} {}   epoch {}   active {}   policy {}   at {}",
        strong("group"),
        situation.group,
        situation.epoch,
        situation.active,
        status.policy,
        status.at
    )?;
    writeln!(text)?;
    write_sites(text, status, output)?;
    write_observers(text, status, output)?;
    write_programs(text, status, output)?;
    write_replication(text, status, output)?;
    write_certificates(text, status, output)?;
    if let Some(plan) = &status.plan {
        writeln!(text)?;
        let stuck = plan
            .stuck
            .as_ref()
            .map(|why| format!("   {}", output.paint(Mood::Bad, format!("stuck: {why}"))));
        writeln!(
            text,
            "{} {} to {}{}",
            strong("plan"),
            plan.id,
            plan.to,
            stuck.unwrap_or_default()
        )?;
        for (step, state) in &plan.steps {
            writeln!(text, "  {state:<10} {step}")?;
        }
    }
    writeln!(text)?;
    writeln!(text, "{} {}", strong("verdict"), status.decision.verdict)?;
    for reason in &status.decision.reasons {
        writeln!(text, "  {reason}")?;
    }
    writeln!(text)?;
    writeln!(text, "{}", strong("gates before a failover"))?;
    for gate in &status.decision.gates {
        let word = if gate.open {
            output.paint(Mood::Good, "open  ")
        } else {
            output.paint(Mood::Bad, "closed")
        };
        writeln!(text, "  {word} {}", gate.reason)?;
    }
    writeln!(text)?;
    let (entries, head) = &status.log;
    writeln!(
        text,
        "{} {entries} entries, head {}",
        strong("log"),
        head.get(..16).unwrap_or(head)
    )
}

fn write_sites(text: &mut String, status: &Status, output: &Output) -> std::fmt::Result {
    let situation = &status.situation;
    for (name, site) in &situation.sites {
        let part = if *name == situation.active {
            "active"
        } else {
            "passive"
        };
        let role = site
            .database
            .as_ref()
            .map_or("role unknown".to_owned(), |database| {
                format!(
                    "{} on timeline {}",
                    database.fact.role, database.fact.timeline
                )
            });
        writeln!(
            text,
            "{} {part}, {role}",
            output.paint(Mood::Strong, format!("site {name}:"))
        )?;
        for (kind, health) in &site.health {
            let state = output.paint(mood(health.state), format!("{:<8}", health.state));
            writeln!(
                text,
                "  {kind:<9} {state} for {:<10} {}",
                rough(health.since),
                health.why
            )?;
        }
        if let Some(agent) = &site.agent {
            let fact = &agent.fact;
            let fenced = fact
                .fenced
                .map(|epoch| format!(", fenced in epoch {epoch}"))
                .unwrap_or_default();
            let severed = fact
                .severed
                .map(|epoch| format!(", severed for epoch {epoch}"))
                .unwrap_or_default();
            let peer = fact
                .peer
                // It was this old when it was reported.
                .map(|age| rough(age.saturating_add(agent.age)))
                .map_or("never".to_owned(), |age| format!("{age} ago"));
            // What may be the way of a message alone is not told.
            let clock = site
                .clock
                .filter(|skew| skew.at_least() >= Duration::from_secs(1))
                .map(|skew| format!(", its clock is {skew}"))
                .unwrap_or_default();
            writeln!(
                text,
                "  lease     last report {} ago, peer answered {peer}{fenced}{severed}{clock}",
                rough(agent.age)
            )?;
        }
    }
    Ok(())
}

fn write_observers(text: &mut String, status: &Status, output: &Output) -> std::fmt::Result {
    for (name, facts) in &status.situation.observers {
        let title = output.paint(Mood::Strong, format!("observer {name}:"));
        match facts.age {
            Some(age) => writeln!(text, "{title} last report {} ago", rough(age))?,
            None => writeln!(text, "{title} never reported")?,
        }
    }
    Ok(())
}

/// Which program each process runs, where that is not one and the same.
fn write_programs(text: &mut String, status: &Status, output: &Output) -> std::fmt::Result {
    if !status.fleet.mixed {
        return Ok(());
    }
    let members = status.fleet.members();
    let each: Vec<String> = members
        .map(|(name, by)| format!("{name} is {by}"))
        .collect();
    let title = output.paint(Mood::Strong, "programs are mixed:");
    writeln!(text, "{title} {}", each.join(", "))
}

/// The certificates that end first.
fn write_certificates(text: &mut String, status: &Status, output: &Output) -> std::fmt::Result {
    let nearest = status.situation.certificates.iter().take(3);
    let shown: Vec<String> = nearest
        .map(|end| {
            let days = end.left.as_secs().checked_div(86_400).unwrap_or_default();
            let word = format!("{} in {days} days", end.owner);
            if end.left.is_zero() {
                output.paint(Mood::Bad, format!("{} expired at {}", end.owner, end.until))
            } else if end.left <= URGENT {
                output.paint(Mood::Bad, word)
            } else if end.left <= WARNED {
                output.paint(Mood::Doubt, word)
            } else {
                word
            }
        })
        .collect();
    if shown.is_empty() {
        return Ok(());
    }
    let title = output.paint(Mood::Strong, "certificates expire:");
    writeln!(text, "{title} {}", shown.join(", "))
}

fn write_replication(text: &mut String, status: &Status, output: &Output) -> std::fmt::Result {
    let replication = &status.situation.replication;
    let title = output.paint(Mood::Strong, "replication:");
    let (Some(lag), Some(covered), Some(loss)) = (
        replication.lag(),
        replication.covered,
        status.decision.loss.bytes,
    ) else {
        return writeln!(
            text,
            "{title} the standby was never seen beside the active database"
        );
    };
    writeln!(
        text,
        "{title} {lag} behind, standby has everything up to {} ago; a failover now would lose about {loss}",
        rough(covered)
    )?;
    match &replication.replay {
        Some(replay) if replay.backlog > Bytes(0) => {
            writeln!(text, "{title} {}", replaying(replay))
        }
        Some(_) | None => Ok(()),
    }
}
