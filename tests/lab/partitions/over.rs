//! The rows in which the other site must take over.

use std::time::Duration;

use failover::adapters::clock::SystemClock;
use failover::adapters::files;
use failover::engine::chain::{Body, Entry};
use failover::engine::lease::FenceProof;
use failover::engine::step::{Event, Fact, Step};
use failover::engine::units::WallTime;
use failover::lab::client::{Outcome, Report, present_numbers};
use failover::lab::network::Place::Aws;
use failover::lab::standing::Fault;
use failover::ports::Clock;

use super::lab::{Lab, OVER_WITHIN, now};
use super::log::{decisions, from_log, window};
use super::rows::{Row, Then};
use super::table::Measured;

/// How long the old site is watched after it thawed, or after the new one took over.
const AFTERWARDS: Duration = Duration::from_secs(3);
/// How long the controller is frozen: longer than any lease.
const FROZEN_FOR: Duration = Duration::from_secs(5);
/// How long a thawed site may acknowledge writes, in milliseconds: some ticks of a guard that
/// shares its machine with all the other processes that thaw.
const THAWED_WITHIN: u64 = 1000;

/// How a row went on.
struct Course {
    /// Users are served by the new site, and the plan is at its end.
    over: bool,
    thawed: Option<WallTime>,
    /// From when until when the controller was frozen.
    frozen: Option<(WallTime, WallTime)>,
}

/// What a controller did not do as it must that was frozen while it waited for the fence: nothing
/// while it was frozen, and the rest on what it measured afterwards.
fn after_the_thaw(entries: &[Entry], (from, until): (WallTime, WallTime)) -> Vec<String> {
    let mut problems = Vec::new();
    for entry in entries {
        if entry.at > from && entry.at < until {
            problems.push(format!("frozen, it wrote {:?}", entry.body));
        }
        let Body::Step {
            event: Event::Done { fact },
            step,
            ..
        } = &entry.body
        else {
            continue;
        };
        let again = match (step, fact) {
            (
                Step::Fence,
                Fact::Fenced {
                    proof: FenceProof::WaitedOut { granted_ago, .. },
                },
            ) => *granted_ago >= FROZEN_FOR,
            (Step::Fence | Step::Freeze | Step::Promote | Step::VerifyWritable, _) => true,
            _ => continue,
        };
        if entry.at < until || !again {
            problems.push(format!("`{step}` rests on what was before: {fact:?}"));
        }
    }
    problems
}

/// Whether the controller waits for the proof that the old primary cannot write.
fn waits(entries: &[Entry]) -> bool {
    entries.iter().any(|entry| {
        matches!(
            &entry.body,
            Body::Step {
                step: Step::Fence,
                event: Event::Started,
                ..
            }
        )
    })
}

fn ended(entries: &[Entry]) -> bool {
    let outcome = |entry: &Entry| matches!(&entry.body, Body::Outcome { .. });
    entries.iter().any(outcome)
}

impl Lab {
    /// The other site must take over, and keep every promise.
    pub(super) async fn fail_over(&mut self, row: &Row) -> Measured {
        let before = self.log.read().len();
        let at = self.hit(row).await;
        let course = self.until_over(row, before).await;
        self.log.read();
        let entries = &self.log.entries[before..];
        let mut measured = from_log(entries, at);
        self.account(at, &course, entries, &mut measured).await;
        measured.gap_ms = self.gap(at);
        self.judge(row, &mut measured);
        if let Some(frozen) = course.frozen {
            measured.problems.extend(after_the_thaw(entries, frozen));
        } else if row.then == Then::ControllerFrozen {
            measured.problems.push("it was never frozen".to_owned());
        }
        if !course.over {
            let said = format!("not over in time: {}", decisions(entries));
            measured.problems.push(said);
        }
        if let Err(error) = files::verify(&self.log.path) {
            measured.problems.push(error.to_string());
        }
        measured
    }

    /// Makes happen what happens later on, until the new site has served for a while.
    async fn until_over(&mut self, row: &Row, before: usize) -> Course {
        let new = self.supervisor.layout.sites[1].name.clone();
        let mut then = row.then;
        let deadline = now().plus(OVER_WITHIN);
        let mut over = None;
        let mut thawed = None;
        let mut frozen = None;
        while now() < deadline && over.is_none_or(|over| now().since(over) < AFTERWARDS) {
            let entries = &self.log.read()[before..];
            let (waits, ended) = (waits(entries), ended(entries));
            match then {
                Then::ControllerKilled if waits => {
                    self.fault(Fault::KillController, Aws).await;
                    self.supervisor.start_controller(None).unwrap();
                    then = Then::Nothing;
                }
                Then::ControllerFrozen if waits => {
                    self.fault(Fault::FreezeController, Aws).await;
                    let from = SystemClock.wall();
                    tokio::time::sleep(FROZEN_FOR).await;
                    frozen = Some((from, SystemClock.wall()));
                    self.supervisor.thaw().await.unwrap();
                    then = Then::Nothing;
                }
                Then::Nothing
                | Then::Returns
                | Then::OverAndOver
                | Then::KeptDown
                | Then::Thawed
                | Then::Supervised
                | Then::ControllerKilled
                | Then::ControllerFrozen => {}
            }
            let served = self.user.attempts().iter().rev().take(20).any(|attempt| {
                matches!(&attempt.outcome, Outcome::Acknowledged { site, .. } if *site == new)
            });
            if ended && served && over.is_none() {
                over = Some(now());
                if then == Then::Thawed {
                    thawed = Some(SystemClock.wall());
                    self.supervisor.thaw().await.unwrap();
                }
            }
            self.wait().await;
        }
        Course {
            over: over.is_some(),
            thawed,
            frozen,
        }
    }

    /// Holds what was promised against what the new site has.
    async fn account(
        &self,
        at: WallTime,
        course: &Course,
        entries: &[Entry],
        measured: &mut Measured,
    ) {
        let [old, new] = &self.supervisor.layout.sites;
        // Before the rows are read: what is acknowledged meanwhile need not be among them.
        let attempts = self.attempts();
        let present = match present_numbers(new.api).await {
            Ok(present) => present,
            Err(error) => {
                measured.problems.push(format!("{error:#}"));
                return;
            }
        };
        let report = Report::new(&attempts, &present);
        measured.acknowledged = report.acknowledged.len();
        measured.lost = report.lost.len();
        measured.lost_outside = match window(entries) {
            Some((from, until)) => report.lost_outside(from.0, until.0).len(),
            None => report.lost.len(),
        };
        measured.by_old_after_new = report.by_old_after_new(&old.name, &new.name).len();
        measured.thawed_ms = course.thawed.and_then(|thawed| {
            let last = report.acknowledged.iter().rev();
            let last = last
                .take_while(|ack| ack.received_ms >= thawed.0)
                .find(|ack| ack.site == old.name)?;
            Some(last.received_ms.saturating_sub(thawed.0))
        });
        measured.user_ms = report
            .first_by(&new.name, at.0)
            .map(|ack| ack.received_ms.saturating_sub(at.0));
    }

    /// What must not be.
    fn judge(&self, row: &Row, measured: &mut Measured) {
        let mut problems = Vec::new();
        // A thawed host goes on until its guard has looked at the clock: that is bounded by time,
        // not by their number. Where commits wait for the standby there is no such exception.
        let thawed = row.then == Then::Thawed && !self.zero_loss;
        if let Some(late) = measured.thawed_ms.filter(|late| *late > THAWED_WITHIN) {
            problems.push(format!("the thawed site took writes for {late} ms"));
        }
        let mut none = |found: usize, what: &str| {
            if found > 0 {
                problems.push(format!("{found} writes {what}"));
            }
        };
        if !thawed {
            none(measured.lost_outside, "lost outside the declared window");
            none(
                measured.by_old_after_new,
                "acknowledged by the old site after the new one's first",
            );
        }
        if self.zero_loss {
            none(measured.lost, "lost");
            let declared = measured.declared.as_ref();
            if !declared.is_some_and(|loss| loss.nothing) {
                problems.push(format!("not `nothing` was declared, but {declared:?}"));
            }
        }
        measured.problems.append(&mut problems);
    }
}
