//! Whether the log can be trusted to be current, and whose reports count.

use std::time::Duration;

use super::condition::{Gate, gate};
use super::instance::Instance;
use super::policy::Policy;
use super::reason::{Code, Reason};
use super::situation::{LogBehind, LogFacts, Situation};

/// No automation on a log that is behind the world, may be, or cannot be written. Empty if there is
/// nothing to report.
pub fn gates_of(situation: &Situation) -> Vec<Gate> {
    let log = &situation.log;
    let behind = log.behind.as_ref().map(behind_by);
    let unwitnessed = || {
        let reason = Reason::word(Code::LogUnwitnessed, "nobody", "one other witness");
        reason.at(&situation.active)
    };
    let reason = behind.or_else(|| log.unwitnessed.then(unwitnessed));
    let reasons = reason.into_iter().chain(stopped(log));
    reasons.map(|reason| gate(false, reason)).collect()
}

/// The log takes no entry, and since when.
pub fn stopped(log: &LogFacts) -> Option<Reason> {
    let stopped = log.stopped.as_ref()?;
    let reason = Reason::time(Code::LogUnwritable, stopped.lasting, LOG_PATIENCE);
    let why = stopped.cause.as_deref();
    Some(reason.because(why.unwrap_or("an entry is not durable yet")))
}

/// How long writing an entry may take.
pub const LOG_PATIENCE: Duration = Duration::from_secs(1);

/// Who knows more than the decision log.
pub fn behind_by(behind: &LogBehind) -> Reason {
    let reason = Reason::word(Code::LogBehind, &behind.holds, &behind.knows);
    reason.because(format!("known to {}", behind.witness))
}

/// Every second instance that reports beside the one that counts.
pub fn second_instances(situation: &Situation, policy: &Policy) -> Vec<Reason> {
    let limit = policy.detect.stale_after.max(SECOND_SHOWN);
    let seconds = situation.sites.iter().filter_map(|(name, site)| {
        let second = site.second.as_ref()?.within(limit)?;
        let word = |instance: Option<Instance>| {
            instance.map_or("without a name".to_owned(), |instance| instance.to_string())
        };
        let (found, counts) = (word(second.instance), word(second.counts));
        let reason = Reason::word(Code::SecondInstance, found, counts);
        Some(reason.at(name).because(&second.why))
    });
    seconds.collect()
}

/// How long a silent second instance is still shown: longer than a crash-looping copy is silent.
pub(super) const SECOND_SHOWN: Duration = Duration::from_secs(15);
