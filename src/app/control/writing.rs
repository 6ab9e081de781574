//! What the control loop logs while it continues: one item at a time, and nothing waits for it
//! except what must not be done before it is durable.

use std::collections::{BTreeSet, VecDeque};
use std::future;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::asked::Asker;
use super::{Asked, Control};
use crate::app::journal::{Journal, JournalError};
use crate::engine::chain::Body;
use crate::engine::decision::{Signature, decide};
use crate::engine::synchrony::RpoWindow;
use crate::engine::topology::SiteName;
use crate::engine::units::MonoTime;
use crate::ports::AppendError;
use crate::tasks::outcome;
use crate::wire::written::Written;
use crate::wire::{PlanStatus, PromoteAnswer, Report, ReportAnswer};

/// How long a report waits for what is being logged. After that it is answered from what is
/// durable.
const ANSWERED_WITHIN: Duration = Duration::from_millis(250);
/// The most reports that may wait at once: more than the agents send.
const REPORTS: usize = 16;
/// How long to wait after a failed entry before trying another one.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Entries on their way into the log, and what is done once they are durable.
#[derive(Debug)]
struct Writing {
    task: JoinHandle<Result<u64, JournalError>>,
    then: Then,
}

/// What entries would rule out that may or may not be durable: an answer must be correct with them
/// and without them.
#[derive(Debug, Default)]
struct RuledOut {
    /// A lease for these sites: another instance may count there.
    sites: BTreeSet<SiteName>,
    /// A permission to go on without the standby: the window may be closed.
    window: bool,
}

impl RuledOut {
    fn add(&mut self, body: &Body) {
        if let Body::Instance { change } = body {
            self.sites.insert(change.site.clone());
        }
        self.window |= matches!(body, Body::Window { .. });
    }
}

/// What is done once an entry is durable.
#[derive(Debug)]
pub(super) enum Then {
    /// Nothing: its consequences follow from the log.
    GoOn,
    /// Remember the decision as the last one logged.
    Logged(Signature),
    /// Execute the plan.
    Walk,
    /// Execute an operator's plan, and answer the operator.
    Promoted(PromoteAnswer, Asker<PromoteAnswer>),
    /// Try a stuck plan again.
    Retried(u64, Asker<PromoteAnswer>),
    /// Answer an operator.
    Answer(Asker<()>),
    /// Adopt the state that an operator stated, and answer the operator.
    Adopted(Asker<()>),
}

/// What is being logged, and what waits for that.
#[derive(Debug, Default)]
pub(super) struct Desk {
    writing: Option<Writing>,
    ruled_out: RuledOut,
    reports: Vec<(MonoTime, Box<Report>, oneshot::Sender<ReportAnswer>)>,
    /// Operators' requests, with their operators.
    pub(super) asked: VecDeque<(String, Asked)>,
    /// Until when nothing is tried, after a failed entry.
    pause: Option<MonoTime>,
}

impl Desk {
    /// Whether something can be logged now.
    pub(super) fn is_free(&self, now: MonoTime) -> bool {
        self.writing.is_none() && self.pause.is_none_or(|until| now >= until)
    }

    /// When something here has its time, although nothing arrives: a pause ends, or a report has
    /// waited long enough.
    pub(super) fn due(&self, now: MonoTime) -> Option<MonoTime> {
        let reports = self.reports.iter().map(|(since, ..)| since);
        let answered = reports.min().map(|since| since.plus(ANSWERED_WITHIN));
        let pause = self.pause.filter(|until| now < *until);
        [answered, pause].into_iter().flatten().min()
    }

    /// Nothing is tried for a while.
    pub(super) fn rest(&mut self, now: MonoTime) {
        self.pause = Some(now.plus(AGAIN_AFTER));
    }

    /// Waits for the next entry that is being logged to finish.
    pub(super) async fn written(&mut self) -> (Then, Result<u64, JournalError>) {
        let Some(writing) = &mut self.writing else {
            return future::pending().await;
        };
        let done = match outcome(&mut writing.task).await {
            Ok(done) => done,
            Err(cause) => {
                tracing::error!(%cause, "an entry was not written to its end");
                Err(JournalError::Closed)
            }
        };
        match self.writing.take() {
            Some(writing) => (writing.then, done),
            None => (Then::GoOn, done),
        }
    }
}

/// Writes entries one after the other; returns the number of the last one.
async fn write_all(journal: Journal, bodies: Vec<(String, Body)>) -> Result<u64, JournalError> {
    let mut last = 0;
    for (actor, body) in bodies {
        let decision = matches!(body, Body::Decision { .. });
        last = match journal.append(&actor, body).await {
            // Nothing that others say may end this process. The decision's consequences are logged
            // by themselves, or not done.
            Err(JournalError::Refused(cause)) if decision => {
                tracing::error!(%cause, "the decision cannot be logged with its evidence");
                let text = format!("a decision is not logged, with its evidence: {cause}");
                journal.note("entry-refused", text).await?
            }
            written => written?,
        };
    }
    Ok(last)
}

impl Control {
    /// Begins to log a named actor's happening. Call this only while something can be logged.
    pub(super) fn write(&mut self, bodies: Vec<(&str, Body)>, then: Then) {
        let bodies = bodies.into_iter();
        let bodies: Vec<(String, Body)> = bodies
            .map(|(actor, body)| (actor.to_owned(), body))
            .collect();
        for (_, body) in &bodies {
            self.desk.ruled_out.add(body);
        }
        let task = tokio::spawn(write_all(self.journal.clone(), bodies));
        self.desk.writing = Some(Writing { task, then });
    }

    /// Does what waited for an entry to be durable, or reports that it is not.
    pub(super) fn go_on(
        &mut self,
        then: Then,
        written: Result<u64, JournalError>,
    ) -> Result<(), JournalError> {
        // An entry that may be in the log stays possible until another one takes its place.
        if !matches!(&written, Err(JournalError::Store(AppendError::Unknown(_)))) {
            self.desk.ruled_out = RuledOut::default();
        }
        match written {
            Ok(number) => self.follow(then, number),
            Err(cause) if cause.passes() => {
                self.desk.rest(self.clock.now());
                then.refuse(&cause.to_string());
            }
            Err(cause) => return Err(cause),
        }
        Ok(())
    }

    fn follow(&mut self, then: Then, number: u64) {
        // The requester may be gone by now: an answer that nobody waits for is not an error.
        match then {
            Then::GoOn => {}
            Then::Logged(signature) => self.logged = Some(signature),
            Then::Walk => self.start_executor(),
            Then::Promoted(mut answer, asked) => {
                self.start_executor();
                answer.plan = Some(number);
                drop(asked.send(Ok(answer)));
            }
            Then::Retried(plan, asked) => drop(asked.send(Ok(self.retried(plan)))),
            Then::Answer(asked) => drop(asked.send(Ok(()))),
            Then::Adopted(asked) => {
                let group = self.group();
                self.brain.adopted(&group, self.clock.now());
                drop(asked.send(Ok(())));
            }
        }
    }

    fn retried(&mut self, plan: u64) -> PromoteAnswer {
        let situation = self.situation(None);
        let decision = decide(&situation, self.brain.policy());
        let steps = PlanStatus::of(&self.journal.state())
            .map(|plan| plan.steps)
            .unwrap_or_default();
        let steps = steps.into_iter().map(|(step, _)| step).collect();
        PromoteAnswer {
            decision,
            steps,
            plan: Some(plan),
        }
    }

    /// Answers an agent. What must be durable before is written first; where that takes longer, the
    /// agent is answered by what is durable now. So a right never waits for the log.
    pub(super) fn reported(
        &mut self,
        written: Written<Report>,
        answer: oneshot::Sender<ReportAnswer>,
    ) {
        self.tell_of_foreign(&written.message);
        let now = self.clock.now();
        let group = self.group();
        self.brain.agent_runs(&written, &group);
        let report = written.message;
        self.brain.remembers(&report, &group, now);
        let room = self.desk.reports.len() < REPORTS;
        if room && self.must_be_written(&report, now) {
            self.desk.reports.push((now, Box::new(report), answer));
        } else {
            self.answer(report, answer);
        }
    }

    fn answer(&mut self, mut report: Report, answer: oneshot::Sender<ReportAnswer>) {
        let group = self.group();
        let (now, wall) = (self.clock.now(), self.clock.wall());
        report.asks &= !self.desk.ruled_out.sites.contains(&report.site);
        let mut told = self.brain.report(report, &group, now, wall);
        if self.desk.ruled_out.window {
            told.window = told.window.map(|_permitted| RpoWindow::Closed);
        }
        drop(answer.send(told));
    }

    /// Whether something must be durable before this report is answered. It begins to be logged as
    /// soon as possible.
    fn must_be_written(&mut self, report: &Report, now: MonoTime) -> bool {
        let group = self.group();
        if let Some(change) = self.brain.instance_change(report, &group, now) {
            if self.desk.is_free(now) {
                tracing::warn!(%change, "instance");
                let body = Body::Instance { change };
                self.write(vec![("controller", body)], Then::GoOn);
            }
            return true;
        }
        let Some(change) = self.brain.window_change(report, &group, now) else {
            return false;
        };
        if !self.desk.is_free(now) {
            return true;
        }
        let may = self.may_change(&change, now);
        if may {
            tracing::warn!(%change, "durability");
            let body = Body::Window { change };
            self.write(vec![("controller", body)], Then::GoOn);
        }
        may
    }

    /// Checks the waiting items: reports after each entry and when they have waited long enough,
    /// requests when something can be logged.
    pub(super) fn look_at_desk(&mut self) {
        let now = self.clock.now();
        for (since, report, answer) in std::mem::take(&mut self.desk.reports) {
            let over = now.since(since) >= ANSWERED_WITHIN;
            if over || !self.must_be_written(&report, now) {
                self.answer(*report, answer);
            } else {
                self.desk.reports.push((since, report, answer));
            }
        }
        while self.desk.is_free(now)
            && let Some((operator, asked)) = self.desk.asked.pop_front()
        {
            self.obey(&operator, asked);
        }
    }
}

impl Then {
    /// Nothing was logged, and nothing is done.
    fn refuse(self, why: &str) {
        let why = why.to_owned();
        match self {
            Then::GoOn | Then::Logged(_) | Then::Walk => {}
            Then::Promoted(_, asked) | Then::Retried(_, asked) => drop(asked.send(Err(why))),
            Then::Answer(asked) | Then::Adopted(asked) => drop(asked.send(Err(why))),
        }
    }
}
