//! Tells the controller what the agent sees, and asks it for the right to take writes; asks the
//! other agent whether that right still stands. Both send the moment from before they asked along
//! with the answer: it is from then that a right counts.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};

use super::keeper::{News, Shown};
use crate::engine::format::PROGRAM;
use crate::engine::instance::Instance;
use crate::engine::situation::{AgentFacts, LocalDatabase};
use crate::engine::topology::{GroupName, SiteName};
use crate::engine::units::MonoTime;
use crate::ports::{AgentLinks, Clock, Credentials, LastError};
use crate::wire::unsent::Unsent;
use crate::wire::{Heard, PeerQuestion, Postmark, Report, ReportAnswer, SentObservation};

/// How often to ask before the controller ever said how often.
const EVERY_UNTIL_TOLD: Duration = Duration::from_millis(500);

/// How long one question may take at most: longer would keep the next one from being asked.
const LONGEST_QUESTION: Duration = Duration::from_secs(2);

/// What both loops work with.
#[derive(Debug)]
pub struct Reporter {
    /// The keeper's, for marks.
    pub life: u64,
    /// The group.
    pub group: GroupName,
    /// The site.
    pub site: SiteName,
    /// Which installation of the site's agent this is.
    pub instance: Instance,
    /// The ways out.
    pub links: Arc<dyn AgentLinks>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// What the keeper shows.
    pub shown: watch::Receiver<Shown>,
    /// Where answers go.
    pub news: mpsc::Sender<News>,
    /// What the controller last said about how often to look.
    pub pace: watch::Sender<Pace>,
    /// What the agent knows of its certificates and secrets.
    pub credentials: Arc<dyn Credentials>,
    /// Rung when something changed that the controller should know at once.
    pub urgent: Arc<Notify>,
}

/// How often to look, ask and report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Between two looks at one target.
    pub probe_every: Duration,
    /// How long one look may take.
    pub probe_timeout: Duration,
    /// Between two reports.
    pub renew_every: Duration,
    /// Between two questions to the other agent.
    pub peer_every: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            probe_every: EVERY_UNTIL_TOLD,
            probe_timeout: Duration::from_secs(1),
            renew_every: EVERY_UNTIL_TOLD,
            peer_every: EVERY_UNTIL_TOLD,
        }
    }
}

impl From<&ReportAnswer> for Pace {
    fn from(answer: &ReportAnswer) -> Self {
        Self {
            probe_every: answer.probe_every,
            probe_timeout: answer.probe_timeout,
            renew_every: answer.timers.renew_every,
            peer_every: answer.timers.peer_every,
        }
    }
}

impl Reporter {
    /// Reports for ever, with what the agent itself saw.
    pub async fn report(&self, mut unsent: Unsent) {
        let mut last = LastError::default();
        loop {
            let asked = self.clock.now();
            let mut report = self.make(unsent.pack(asked), asked);
            report.heard = unsent.heard(asked);
            let mut again = false;
            let every = self.pace.borrow().renew_every;
            match self
                .links
                .report(&report, every.saturating_mul(2).min(LONGEST_QUESTION))
                .await
            {
                Ok(answer) => {
                    last = LastError::default();
                    again = unsent.answered(answer.receipt, self.clock.now());
                    self.pace.send_if_modified(|pace| {
                        let told = Pace::from(&answer);
                        let changed = *pace != told;
                        *pace = told;
                        changed
                    });
                    if self
                        .news
                        .send(News::Answered(asked, Box::new(answer)))
                        .await
                        .is_err()
                    {
                        return;
                    }
                }
                Err(error) => {
                    last.note(&error, false);
                    tracing::warn!(error = last.tell(), "the controller does not answer");
                }
            }
            if again {
                continue;
            }
            let took = self.clock.now().since(asked);
            tokio::select! {
                biased;
                () = self.clock.sleep(every.saturating_sub(took)) => {}
                () = self.urgent.notified() => {}
                () = unsent.change() => {}
            }
        }
    }

    fn make(&self, observations: Vec<SentObservation>, now: MonoTime) -> Report {
        let shown = self.shown.borrow().clone();
        let age = now.since(shown.at);
        Report {
            group: self.group.clone(),
            site: self.site.clone(),
            epoch: shown.epoch,
            asks: shown.asks,
            instance: Some(self.instance),
            holds: shown.holds(now),
            log: shown.log,
            facts: aged(shown.facts, age),
            observations,
            credentials: self.credentials.facts(),
            heard: None,
            mark: self.mark(now),
            wall: self.clock.wall(),
            peer_mark: shown.peer_mark.map(|(postmark, came)| Heard {
                postmark,
                ago: now.since(came),
            }),
            guard: shown.guard,
            version: PROGRAM.to_owned(),
        }
    }

    fn mark(&self, now: MonoTime) -> Postmark {
        let (life, at) = (self.life, now.0);
        Postmark { life, at }
    }

    /// Asks the other agent for ever.
    pub async fn ask_peer(&self) {
        loop {
            let asked = self.clock.now();
            let question = PeerQuestion {
                site: self.site.clone(),
                epoch: self.shown.borrow().epoch,
                mark: self.mark(asked),
                instance: Some(self.instance),
            };
            let every = self.pace.borrow().peer_every;
            match self
                .links
                .ask_peer(&question, every.saturating_mul(2).min(LONGEST_QUESTION))
                .await
            {
                Ok(answer) => {
                    if self
                        .news
                        .send(News::PeerAnswered(asked, answer))
                        .await
                        .is_err()
                    {
                        return;
                    }
                }
                Err(error) => tracing::debug!(%error, "the other agent does not answer"),
            }
            let took = self.clock.now().since(asked);
            self.clock.sleep(every.saturating_sub(took)).await;
        }
    }
}

fn aged(mut facts: AgentFacts, age: Duration) -> AgentFacts {
    facts.peer = facts.peer.map(|peer| peer.saturating_add(age));
    if let Some(vouched) = &mut facts.vouched {
        vouched.age = vouched.age.saturating_add(age);
    }
    if let Some(synchrony) = &mut facts.synchrony {
        synchrony.stalled = synchrony.stalled.saturating_add(age);
    }
    if let Some(rehearsal) = &mut facts.rehearsal {
        rehearsal.ago = rehearsal.ago.saturating_add(age);
    }
    match &mut facts.database {
        LocalDatabase::Down { since, .. } | LocalDatabase::Waiting { since } => {
            *since = since.saturating_add(age);
        }
        LocalDatabase::Recovering { since, still } => {
            *since = since.saturating_add(age);
            *still = still.saturating_add(age);
        }
        LocalDatabase::Up => {}
    }
    facts
}
