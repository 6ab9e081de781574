//! Operators' commands: promote, hold, release, adopt.

use std::time::Duration;

use clap::Args;

use super::Reach;
use super::client::Client;
use super::exit::Exit;
use super::output::{Mood, Output};
use super::status::rough;
use crate::engine::chain::{Body, Entry, read_line};
use crate::engine::decision::Verdict;
use crate::engine::instance::Instance;
use crate::engine::saga::Ending;
use crate::engine::text::typed;
use crate::engine::topology::{GroupName, SiteName};
use crate::engine::units::{Bytes, Epoch};
use crate::wire::{
    AdoptAsk, AdoptInstanceAsk, HoldAsk, LogPart, PromoteAnswer, PromoteAsk, ReleaseAsk, Status,
};

/// `failover promote`.
#[derive(Debug, Args)]
pub struct PromoteArgs {
    #[command(flatten)]
    reach: Reach,
    /// The group
    group: GroupName,
    /// The site to make active
    #[arg(long, value_name = "SITE")]
    to: SiteName,
    /// Why, for the decision log
    #[arg(long, default_value = "by hand", value_name = "TEXT")]
    reason: String,
    /// Accept a loss of up to this much WAL instead of the policy's limit, such as `64MiB`
    #[arg(long, value_name = "SIZE")]
    accept_data_loss: Option<Bytes>,
    /// Assert that the old primary cannot write, if nothing else can prove it
    #[arg(long)]
    override_fence: bool,
    /// Accept that the standby first replays for longer than the policy allows, or for an
    /// unknown time
    #[arg(long)]
    accept_replay: bool,
    /// Only show what would be done and lost
    #[arg(long)]
    dry_run: bool,
    /// Do not ask to type the site's name
    #[arg(long)]
    yes: bool,
}

/// `failover hold`.
#[derive(Debug, Args)]
pub struct HoldArgs {
    #[command(flatten)]
    reach: Reach,
    /// The group
    group: GroupName,
    /// Why, for the decision log and for everybody else
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// How long, such as `30m`; at most 7 days, so that no hold is forgotten
    #[arg(long = "for", value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
    lasting: Duration,
}

/// `failover release`.
#[derive(Debug, Args)]
pub struct ReleaseArgs {
    #[command(flatten)]
    reach: Reach,
    /// The group
    group: GroupName,
    /// Why, for the decision log
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// The standby was rebuilt from the active site as it is now, after another installation of
    /// that site took over: its position counts again
    #[arg(long)]
    standby_rebuilt: bool,
}

/// `failover adopt`.
#[derive(Debug, Args)]
pub struct AdoptArgs {
    #[command(flatten)]
    reach: Reach,
    /// The group
    group: GroupName,
    /// The actual epoch
    #[arg(long)]
    epoch: Epoch,
    /// The site that is actually active
    #[arg(long, value_name = "SITE")]
    active: SiteName,
    /// Why, for the decision log
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

/// `failover adopt-instance`.
#[derive(Debug, Args)]
pub struct AdoptInstanceArgs {
    #[command(flatten)]
    reach: Reach,
    /// The group
    group: GroupName,
    /// The site
    site: SiteName,
    /// The new instance, as `failover status` names it: you assert that the previous one cannot
    /// write
    #[arg(long, value_name = "ID@PLACE")]
    instance: Instance,
    /// Why, for the decision log
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

fn check_group(client: &Client, group: &GroupName) -> anyhow::Result<Status> {
    let status: Status = client.get("/status")?;
    let known = &status.situation.group;
    anyhow::ensure!(
        known == group,
        "this controller is for group `{known}`, not `{group}`"
    );
    Ok(status)
}

/// Stops automation.
pub fn hold(args: &HoldArgs, output: &Output) -> anyhow::Result<Exit> {
    anyhow::ensure!(!args.lasting.is_zero(), "`--for` must be longer than zero");
    let reason = typed(&args.reason)?;
    let client = Client::new(&args.reach, Some(&args.group))?;
    check_group(&client, &args.group)?;
    let ask = HoldAsk {
        reason,
        lasting: args.lasting,
    };
    client.order("/hold", &ask)?;
    output.say(format!(
        "automation of `{}` is held for {}",
        args.group,
        rough(args.lasting)
    ));
    Ok(Exit::Done)
}

/// Resumes automation.
pub fn release(args: &ReleaseArgs, output: &Output) -> anyhow::Result<Exit> {
    let reason = typed(&args.reason)?;
    let client = Client::new(&args.reach, Some(&args.group))?;
    check_group(&client, &args.group)?;
    client.order(
        "/release",
        &ReleaseAsk {
            reason,
            rebuilt: args.standby_rebuilt,
        },
    )?;
    output.say(format!(
        "automation of `{}` is released and armed",
        args.group
    ));
    Ok(Exit::Done)
}

/// Makes the log continue from the actual state.
pub fn adopt(args: &AdoptArgs, output: &Output) -> anyhow::Result<Exit> {
    let reason = typed(&args.reason)?;
    let client = Client::new(&args.reach, Some(&args.group))?;
    check_group(&client, &args.group)?;
    let ask = AdoptAsk {
        epoch: args.epoch,
        active: args.active.clone(),
        reason,
    };
    client.order("/adopt", &ask)?;
    output.say(format!(
        "`{}` goes on in epoch {} with `{}` active; automation is disarmed until reverse replication streams, or `failover release`",
        args.group, args.epoch, args.active
    ));
    Ok(Exit::Done)
}

/// Transfers a site to another instance.
pub fn adopt_instance(args: &AdoptInstanceArgs, output: &Output) -> anyhow::Result<Exit> {
    let reason = typed(&args.reason)?;
    let client = Client::new(&args.reach, Some(&args.group))?;
    check_group(&client, &args.group)?;
    let ask = AdoptInstanceAsk {
        site: args.site.clone(),
        instance: args.instance,
        reason,
    };
    client.order("/adopt-instance", &ask)?;
    output.say(format!(
        "site `{}` of `{}` is instance {}",
        args.site, args.group, args.instance
    ));
    Ok(Exit::Done)
}

/// Makes a site active.
pub fn promote(args: &PromoteArgs, output: &Output) -> anyhow::Result<Exit> {
    let reason = typed(&args.reason)?;
    let client = Client::new(&args.reach, Some(&args.group))?;
    let before = check_group(&client, &args.group)?;
    let mut ask = PromoteAsk {
        to: args.to.clone(),
        reason,
        accept_data_loss: args.accept_data_loss,
        override_fence: args.override_fence,
        accept_replay: args.accept_replay,
        dry_run: true,
    };
    let seen: PromoteAnswer = client.post("/promote", &ask)?;
    if args.dry_run && output.is_json() {
        output.json(&seen)?;
    } else {
        show_plan(args, &seen, output);
    }
    if !matches!(seen.decision.verdict, Verdict::FailOver { .. }) && before.plan.is_none() {
        return Ok(Exit::No);
    }
    if args.dry_run {
        return Ok(Exit::Done);
    }
    if !args.yes && !confirmed(args, output)? {
        output.say("nothing was done");
        return Ok(Exit::No);
    }
    ask.dry_run = false;
    let opened: PromoteAnswer = client.post("/promote", &ask)?;
    let Some(plan) = opened.plan else {
        output.say(format!(
            "{} the situation changed meanwhile; nothing was done",
            output.paint(Mood::Bad, "no:")
        ));
        show_plan(args, &opened, output);
        return Ok(Exit::No);
    };
    // A plan that was stuck and is tried again has an end in the log already.
    let tried = before.plan.map(|_| before.log.0.saturating_add(1));
    follow(&client, plan, tried.unwrap_or(plan), output)
}

fn confirmed(args: &PromoteArgs, output: &Output) -> anyhow::Result<bool> {
    anyhow::ensure!(
        output.can_ask(),
        "this changes which site is active, and there is no terminal to confirm it\n\nhint: `--yes` does it without asking, `--dry-run` only shows it"
    );
    let typed = output.ask(&format!(
        "type the name of the site to make active ({}): ",
        args.to
    ))?;
    Ok(typed == args.to.as_str())
}

fn show_plan(args: &PromoteArgs, answer: &PromoteAnswer, output: &Output) {
    let decision = &answer.decision;
    output.say(format!(
        "promote {} of group {}: {}",
        args.to, args.group, decision.verdict
    ));
    for reason in &decision.reasons {
        output.say(format!("  {reason}"));
    }
    for gate in decision.gates.iter().filter(|gate| !gate.open) {
        output.say(format!(
            "  {} {} (see runbooks/{}.md)",
            output.paint(Mood::Bad, "closed"),
            gate.reason,
            gate.reason.code
        ));
    }
    output.say(format!("plan: {}", answer.steps.join(" > ")));
    let bytes = decision
        .loss
        .bytes
        .map_or("an unknown amount of".to_owned(), |bytes| {
            format!("about {bytes} of")
        });
    let window = decision
        .loss
        .window
        .map_or("an unknown time".to_owned(), |age| {
            format!("{} before now", rough(age))
        });
    output.say(format!(
        "may lose: {bytes} WAL, nothing acknowledged before {window}"
    ));
}

/// Shows a plan's steps as they are logged, from an entry on, until the plan ends.
fn follow(client: &Client, plan: u64, mut from: u64, output: &Output) -> anyhow::Result<Exit> {
    loop {
        let part: LogPart = client.log(&format!("/log?from={from}&wait_ms=5000"))?;
        for line in &part.lines {
            let (_, entry) = read_line(line.as_bytes())?;
            from = entry.seq.saturating_add(1);
            output.say(super::log::one_line(&entry));
            if let Some(exit) = ended(&entry, plan) {
                return Ok(exit);
            }
        }
    }
}

fn ended(entry: &Entry, plan: u64) -> Option<Exit> {
    match &entry.body {
        Body::Outcome {
            plan: ended,
            ending,
        } if *ended == plan => Some(match ending {
            Ending::Done => Exit::Done,
            Ending::Undone { .. } => Exit::No,
            Ending::Stuck { .. } => Exit::Stuck,
        }),
        Body::Outcome { .. }
        | Body::Opened { .. }
        | Body::Command { .. }
        | Body::Decision { .. }
        | Body::Plan { .. }
        | Body::Step { .. }
        | Body::Window { .. }
        | Body::Instance { .. }
        | Body::Note { .. } => None,
    }
}
