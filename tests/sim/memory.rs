//! Controllers that read something else in their log than stands there, decide by something else
//! than they were given, or leave out of the log why they act.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;

use failover::engine::chain::{Body, Chain, read_line};
use failover::engine::policy::Policy;
use failover::engine::saga::GroupState;
use failover::ports::{AppendError, LogStore};
use failover::sim::invariant::Invariant;
use failover::sim::processes::Plant;
use failover::sim::run::{Course, Setup};

use super::planted::planted;
use super::{finds, minutes};

/// A controller that, started again, no longer knows something.
#[derive(Debug)]
struct Forgets(fn(&mut GroupState));

impl Plant for Forgets {
    fn remembered(&self, mut of: Chain) -> Chain {
        if let Some((_, state)) = &mut of.about {
            (self.0)(state);
        }
        of
    }
}

#[test]
fn a_second_failover_by_automation_that_forgot_to_be_disarmed_is_seen() {
    finds(Invariant::OneRecovery, "disarmed", |seed| {
        let mut setup = planted(seed, Forgets(|state| state.disarmed = false));
        setup.lasting = minutes(10);
        setup
    });
}

#[test]
fn a_plan_beside_one_that_was_forgotten_is_seen() {
    finds(Invariant::OneRecovery, "is open", |seed| {
        planted(seed, Forgets(|state| state.open = None))
    });
}

/// A controller that waits longer than its policy says.
#[derive(Debug)]
struct Patient;

impl Plant for Patient {
    fn policy(&self, mut of: Policy) -> Policy {
        of.detect.fail_after = of.detect.fail_after.saturating_mul(2);
        of
    }
}

#[test]
fn a_decision_by_another_policy_than_the_one_in_force_is_seen() {
    finds(Invariant::SameDecision, "replays to another", |seed| {
        site_lost(seed, Patient)
    });
}

/// A log whose every link holds, in which no decision stands.
#[derive(Debug, Default, Clone)]
struct Reasonless(Arc<Mutex<Chain>>);

#[derive(Debug)]
struct ReasonlessLog {
    of: Box<dyn LogStore>,
    chain: Arc<Mutex<Chain>>,
}

#[async_trait]
impl LogStore for ReasonlessLog {
    async fn append(&mut self, line: &[u8]) -> Result<(), AppendError> {
        let (_, mut entry) = read_line(line.strip_suffix(b"\n").unwrap()).unwrap();
        if let Body::Decision { decision, .. } = &entry.body {
            let (code, text) = ("decided".to_owned(), decision.verdict.to_string());
            entry.body = Body::Note { code, text };
        }
        let mut next = self.chain.lock().unwrap().clone();
        entry.previous = next.head;
        let line = next.append(&entry).unwrap();
        self.of.append(&line).await?;
        *self.chain.lock().unwrap() = next;
        Ok(())
    }
}

impl Plant for Reasonless {
    fn remembered(&self, of: Chain) -> Chain {
        self.0.lock().unwrap().clone_from(&of);
        of
    }
    fn log(&self, of: Box<dyn LogStore>) -> Box<dyn LogStore> {
        let chain = Arc::clone(&self.0);
        Box::new(ReasonlessLog { of, chain })
    }
}

#[test]
fn a_failover_of_which_the_log_does_not_say_why_is_seen() {
    finds(Invariant::NoAutomaticReturn, "no decision", |seed| {
        site_lost(seed, Reasonless::default())
    });
}

fn site_lost(seed: u64, plant: impl Plant + 'static) -> Setup {
    let mut setup = planted(seed, plant);
    setup.course = Course::SiteLost;
    setup
}
