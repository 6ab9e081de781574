//! Reports to the controller what the agent sees, and requests the write lease; asks the peer agent
//! to vouch for it. Each answer is passed on with a moment before its request: from then on it
//! counts.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};

use super::keeper::{News, Shown};
use crate::engine::format::PROGRAM;
use crate::engine::instance::Instance;
use crate::engine::lasting::Lasting;
use crate::engine::situation::{AgentFacts, LocalDatabase};
use crate::engine::topology::{GroupName, SiteName};
use crate::engine::units::MonoTime;
use crate::ports::{AgentLinks, Clock, Credentials, LastError};
use crate::wire::unsent::Unsent;
use crate::wire::{Heard, PeerQuestion, Postmark, Report, ReportAnswer, SentObservation};

/// How often to ask before the controller has set a pace.
const EVERY_UNTIL_TOLD: Duration = Duration::from_millis(500);

/// How long one question may take: longer would delay the next one.
const LONGEST_QUESTION: Duration = Duration::from_secs(2);

/// The shared state of both loops.
#[derive(Debug)]
pub struct Reporter {
    /// This run's number, for marks.
    pub life: u64,
    /// The group.
    pub group: GroupName,
    /// The site.
    pub site: SiteName,
    /// The instance of the site's agent.
    pub instance: Instance,
    /// The connections to controller and peer.
    pub links: Arc<dyn AgentLinks>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The keeper's published state.
    pub shown: watch::Receiver<Shown>,
    /// Where answers go.
    pub news: mpsc::Sender<News>,
    /// The pace that the controller last set.
    pub pace: watch::Sender<Pace>,
    /// The facts about certificates and secrets.
    pub credentials: Arc<dyn Credentials>,
    /// Signalled when something changed that the controller should know at once.
    pub urgent: Arc<Notify>,
}

/// How often to probe, ask and report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Between two probes of one target.
    pub probe_every: Duration,
    /// How long one probe may take.
    pub probe_timeout: Duration,
    /// Between two reports.
    pub renew_every: Duration,
    /// Between two questions to the peer agent.
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
        let mut silent = Lasting::default();
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
                    if let Some(lasting) = silent.well(self.clock.now()) {
                        tracing::info!(lasting.times, lasting.ms, "the controller answers again");
                    }
                    again = unsent.answered(answer.intake, self.clock.now());
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
                    let error = last.tell();
                    if let Some(lasting) = silent.again(&error, self.clock.now()) {
                        tracing::warn!(
                            error,
                            lasting.times,
                            lasting.ms,
                            "the controller does not answer"
                        );
                    }
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

    /// Asks the peer agent for ever.
    pub async fn ask_peer(&self) {
        let mut silent = Lasting::default();
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
                    if let Some(lasting) = silent.well(self.clock.now()) {
                        tracing::info!(lasting.times, lasting.ms, "the other agent answers again");
                    }
                    if self
                        .news
                        .send(News::PeerAnswered(asked, answer))
                        .await
                        .is_err()
                    {
                        return;
                    }
                }
                Err(error) => {
                    if let Some(lasting) = silent.again(error.text(), self.clock.now()) {
                        tracing::warn!(%error, lasting.times, lasting.ms, "the other agent does not answer");
                    }
                }
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
