//! `failover log`: reading and verifying the decision log.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::Reach;
use super::client::Client;
use super::exit::Exit;
use super::output::{Mood, Output, said};
use crate::adapters::files;
use crate::engine::chain::{Body, Digest, Entry, read_line};
use crate::engine::lease::FenceProof;
use crate::engine::loss::DeclaredLoss;
use crate::engine::receipt::Receipt;
use crate::engine::saga::{Command, Ending};
use crate::engine::step::{Event, Fact};
use crate::engine::text::harmless;
use crate::wire::LogPart;

/// `failover log`.
#[derive(Debug, Subcommand)]
pub enum LogVerb {
    /// Show entries, one line each, or in full as JSON
    Show(ShowArgs),
    /// Verify that a log was not altered: offline, from the file alone
    Verify(VerifyArgs),
}

/// `failover log show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    #[command(flatten)]
    reach: Reach,
    /// The log's file; by default the controller is asked
    file: Option<PathBuf>,
    /// The number of the first entry
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// The maximum number of entries
    #[arg(long, default_value_t = 1000)]
    limit: usize,
    /// Keep showing new entries until interrupted
    #[arg(long, conflicts_with = "file")]
    follow: bool,
}

/// `failover log verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The log's file
    file: PathBuf,
    /// The digest that its last entry must have, kept elsewhere: proves that nothing was cut
    /// off the end
    #[arg(long, value_name = "DIGEST")]
    head: Option<Digest>,
}

/// Shows or verifies.
pub fn run(verb: &LogVerb, output: &Output) -> anyhow::Result<Exit> {
    match verb {
        LogVerb::Show(args) => show(args, output),
        LogVerb::Verify(args) => verify(args, output),
    }
}

fn print(entry: &Entry, output: &Output) -> anyhow::Result<()> {
    if output.is_json() {
        output.json_line(entry)?;
    } else {
        output.text(one_line(entry));
    }
    Ok(())
}

fn show(args: &ShowArgs, output: &Output) -> anyhow::Result<Exit> {
    if let Some(file) = &args.file {
        for (_, entry) in files::read(file, args.from, args.limit)? {
            print(&entry, output)?;
        }
        return Ok(Exit::Done);
    }
    let client = Client::new(&args.reach, None)?;
    let mut from = args.from;
    let mut left = args.limit;
    loop {
        let wait = if args.follow { 10_000 } else { 0 };
        let path = format!("/log?from={from}&wait_ms={wait}");
        let part: LogPart = client.log(&path)?;
        for line in part.lines.iter().take(left) {
            let (_, entry) = read_line(line.as_bytes())?;
            from = entry.seq.saturating_add(1);
            print(&entry, output)?;
        }
        if !args.follow {
            left = left.saturating_sub(part.lines.len());
            if part.lines.is_empty() || left == 0 {
                return Ok(Exit::Done);
            }
        }
    }
}

fn verify(args: &VerifyArgs, output: &Output) -> anyhow::Result<Exit> {
    let verified = files::verify(&args.file).map_err(anyhow::Error::new);
    let chain = match verified {
        Ok(chain) => chain,
        Err(error) => {
            if output.is_json() {
                output
                    .json(&json!({"schema_version": 1, "verified": false, "why": said(&error)}))?;
            }
            return Err(error);
        }
    };
    let cut = args.head.filter(|head| *head != chain.head);
    if output.is_json() {
        output.json(&json!({
            "schema_version": 1,
            "verified": cut.is_none(),
            "entries": chain.entries,
            "head": chain.head,
        }))?;
    } else if let Some(expected) = cut {
        output.text(format!("{} the chain is intact, but its head is {} and not {expected}: entries are missing at its end, or it is a different log", output.paint(Mood::Bad, "no:"), chain.head));
    } else {
        output.text(format!(
            "{} {} entries, head {}",
            output.paint(Mood::Good, "verified:"),
            chain.entries,
            chain.head
        ));
    }
    Ok(if cut.is_some() { Exit::No } else { Exit::Done })
}

/// One entry on one line, for people; no text in it can break the line.
pub fn one_line(entry: &Entry) -> String {
    let what = match &entry.body {
        Body::Opened { topology, .. } => format!(
            "log of group {} with sites {} and {}",
            topology.group, topology.first, topology.second
        ),
        Body::Command { command } => format!("{} asks: {}", entry.actor, command_line(command)),
        Body::Decision { decision, .. } => {
            let reasons: Vec<String> = decision.reasons.iter().map(ToString::to_string).collect();
            format!("decided to {}: {}", decision.verdict, reasons.join("; "))
        }
        Body::Plan { plan } => {
            let steps: Vec<String> = plan.steps.iter().map(ToString::to_string).collect();
            format!(
                "plan {}, a {} from {} to {}, epoch {}: {}",
                entry.seq,
                plan.kind,
                plan.route.from,
                plan.route.to,
                plan.route.epoch,
                steps.join(" > ")
            )
        }
        Body::Step {
            plan, step, event, ..
        } => format!("plan {plan}: {step} {}", event_line(event)),
        Body::Outcome { plan, ending } => match ending {
            Ending::Done => format!("plan {plan} done"),
            Ending::Undone { why } => format!("plan {plan} undone: {why}"),
            Ending::Stuck { why } => {
                format!("plan {plan} stuck: {why} (see runbooks/plan-stuck.md)")
            }
        },
        Body::Window { change } => change.to_string(),
        Body::Instance { change } => change.to_string(),
        Body::Note { code, text } => format!("note {code}: {text}"),
    };
    let line = format!("{:>5} {} e{} {what}", entry.seq, entry.at, entry.epoch);
    harmless(&line).into_owned()
}

fn command_line(command: &Command) -> String {
    match command {
        Command::Promote { request } => format!("promote {} ({})", request.to, request.reason),
        Command::Hold { reason, until } => format!("hold until {until} ({reason})"),
        Command::Release { reason, rebuilt } if *rebuilt => {
            format!("release, the standby is rebuilt ({reason})")
        }
        Command::Release { reason, .. } => format!("release ({reason})"),
        Command::Adopt {
            epoch,
            active,
            reason,
            ..
        } => format!("adopt epoch {epoch} with {active} active ({reason})"),
        Command::AdoptInstance {
            site,
            instance,
            reason,
        } => format!("adopt instance {instance} of {site} ({reason})"),
    }
}

fn event_line(event: &Event) -> String {
    match event {
        Event::Started => "started".to_owned(),
        Event::Found { machine, .. } => format!(
            "the right was held on {machine}; what its infrastructure is told to change is kept"
        ),
        Event::Done { fact } => format!("done{}", fact_line(fact)),
        Event::Failed { why } => format!("failed: {why}"),
        Event::UndoStarted => "being undone".to_owned(),
        Event::Undone => "undone".to_owned(),
        Event::Left { why } => format!("not undone, left to clean up: {why}"),
        Event::Stuck { why } => format!("stuck: {why}"),
    }
}

/// What may be lost, after a colon.
fn loss_line(loss: &DeclaredLoss) -> String {
    if loss.nothing {
        return format!(
            ": loses nothing that was acknowledged: every commit waited for the standby, which has everything up to {}",
            loss.from_lsn
        );
    }
    let bytes = loss
        .estimate
        .map_or("unknown".to_owned(), |bytes| format!("about {bytes}"));
    let from = loss
        .from
        .map_or("unknown".to_owned(), |from| from.to_string());
    format!(
        ": may lose {bytes} of WAL after {}, acknowledged between {from} and {}",
        loss.from_lsn, loss.until
    )
}

/// By which names the other side knows the change, with a colon before them.
fn ids_line(receipt: &Receipt) -> String {
    let ids: Vec<String> = receipt
        .ids
        .iter()
        .map(|(of, id)| format!("{of} {id}"))
        .collect();
    if ids.is_empty() {
        String::new()
    } else {
        format!(": {}", ids.join(", "))
    }
}

/// Why the old primary cannot write, after a colon.
fn proof_line(proof: &FenceProof) -> String {
    match proof {
        FenceProof::Agent { relayed, said } => {
            let way = if *relayed {
                "through the peer agent"
            } else {
                "directly"
            };
            format!(": the agent confirms {way}: {said} (F1)")
        }
        FenceProof::Infrastructure { said, token: _ } => {
            format!(": the infrastructure confirms: {said} (F2)")
        }
        FenceProof::WaitedOut {
            severed_ago,
            vouched_ago,
            granted_ago,
        } => format!(
            ": waited out; severed {} ago, last vouched for {} ago, last granted {} ago (F3)",
            super::status::rough(*severed_ago),
            super::status::rough(vouched_ago.unwrap_or(*severed_ago)),
            super::status::rough(*granted_ago)
        ),
        FenceProof::Override { operator, reason } => {
            format!(": asserted by {operator}: {reason} (F4)")
        }
    }
}

/// What a step brought, with a colon before it; empty where that says nothing more.
pub fn fact_line(fact: &Fact) -> String {
    match fact {
        Fact::Done => String::new(),
        Fact::Epoch { epoch } => format!(": epoch {epoch}"),
        Fact::Severed { position, replayed } => {
            let rest = if *replayed {
                ""
            } else {
                ", not all of it replayed yet"
            };
            format!(": the standby is at {position}{rest}")
        }
        Fact::Fenced { proof } => proof_line(proof),
        Fact::Declared { loss, .. } => loss_line(loss),
        Fact::Promoted {
            timeline,
            position,
            already,
        } => {
            let already = if *already { ", as it already was" } else { "" };
            format!(": timeline {timeline} from {position}{already}")
        }
        Fact::Moved { already, receipt } => {
            let already = if *already { ": it already was" } else { "" };
            format!(
                "{already}{}",
                receipt.as_ref().map_or_else(String::new, ids_line)
            )
        }
        Fact::NotMoved { why } => format!(": not yet, the others go first: {why}"),
        Fact::Seen {
            places,
            unseen,
            receipts,
            confirmed,
        } => {
            let seen = places
                .iter()
                .map(|(place, site)| format!("{place} leads to {site}"));
            let unseen = unseen
                .iter()
                .map(|(place, why)| format!("{place} shows nothing ({why})"));
            let moved = receipts
                .iter()
                .map(|(target, receipt)| format!("{target} moved{}", ids_line(receipt)));
            let confirmed = confirmed
                .iter()
                .map(|(target, said)| format!("the system of {target} says: {said}"));
            let all: Vec<String> = seen.chain(unseen).chain(moved).chain(confirmed).collect();
            format!(": {}", all.join("; "))
        }
    }
}
