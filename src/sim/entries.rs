//! What an entry of the decision log says, for those who watch.

use crate::engine::chain::{Body, Entry};
use crate::engine::decision::Verdict;
use crate::engine::situation::Situation;
use crate::engine::step::Event;

/// The verdict in a decision's entry, whether the active site itself gives the cause.
pub fn fails_over(body: &Body) -> Option<bool> {
    match body {
        Body::Decision {
            decision,
            situation,
        } => Some(matches!(decision.verdict, Verdict::FailOver { .. }) && gives_cause(situation)),
        Body::Opened { .. }
        | Body::Command { .. }
        | Body::Plan { .. }
        | Body::Step { .. }
        | Body::Outcome { .. }
        | Body::Window { .. }
        | Body::Instance { .. }
        | Body::Note { .. } => None,
    }
}

fn gives_cause(situation: &Situation) -> bool {
    use crate::engine::detector::State;
    use crate::engine::situation::LocalDatabase;
    situation.active_site().is_some_and(|site| {
        site.health
            .values()
            .any(|health| health.state == State::Failed)
            || site
                .agent
                .as_ref()
                .is_some_and(|agent| matches!(agent.fact.database, LocalDatabase::Down { .. }))
    })
}

/// An entry in one line.
pub(super) fn shown(entry: &Entry) -> String {
    let what = match &entry.body {
        Body::Opened { .. } => "opened".to_owned(),
        Body::Command { command } => format!("command {command:?}"),
        Body::Decision { decision, .. } => {
            let codes = decision
                .reasons
                .iter()
                .map(|reason| reason.code.to_string());
            format!(
                "{} ({})",
                decision.verdict,
                codes.collect::<Vec<_>>().join(", ")
            )
        }
        Body::Plan { plan } => format!("plan to {} in epoch {}", plan.route.to, plan.route.epoch),
        Body::Step { step, event, .. } => match event {
            Event::Done { fact } => format!("{step} done {fact:?}"),
            Event::Failed { why } => format!("{step} failed: {why}"),
            Event::Left { why } => format!("{step} left: {why}"),
            Event::Stuck { why } => format!("{step} stuck: {why}"),
            Event::Found { before, machine } => {
                format!("{step} found {machine}: {before}")
            }
            Event::Started | Event::UndoStarted | Event::Undone => {
                format!("{step} {}", event.name())
            }
        },
        Body::Outcome { ending, .. } => format!("outcome {ending:?}"),
        Body::Window { change } => change.to_string(),
        Body::Instance { change } => change.to_string(),
        Body::Note { code, text } => format!("note {code}: {text}"),
    };
    format!("log {:>4} e{}  {what}", entry.seq, entry.epoch)
}
