//! The only way to append to the decision log: stamps entries, maintains the chain, and publishes
//! the resulting state of the group.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use self::noise::{Told, Unsaid};
use super::leadership::NotLeading;
use crate::engine::chain::{Body, Broken, Chain, Digest, Entry, FORMAT, Recent};
use crate::engine::format::PROGRAM;
use crate::engine::lasting::Lasting;
use crate::engine::provenance::LOG_PATIENCE;
use crate::engine::saga::GroupState;
use crate::engine::topology::Topology;
use crate::engine::units::{MonoTime, as_millis};
use crate::ports::{AppendError, Clock, LogStore};

mod noise;

pub use noise::{NOTE_EVERY, Noise};

/// The fields that all entries of one process share.
#[derive(Debug, Clone)]
pub struct Stamp {
    /// Identifies one boot of one machine.
    pub boot: String,
    /// The digest of policy and configuration.
    pub settings: Digest,
}

/// Why an entry was not written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JournalError {
    /// It would record something impossible, or would not read back unchanged: nothing was written,
    /// and nothing happened.
    #[error("refused by the decision log: {0}")]
    Refused(#[from] Broken),
    /// It could not be made durable, so what it records must not be done.
    #[error(transparent)]
    Store(#[from] AppendError),
    /// Another controller may be acting by now.
    #[error(transparent)]
    NotLeading(#[from] NotLeading),
    /// The journal ended.
    #[error("the decision log is closed")]
    Closed,
}

impl JournalError {
    /// Whether another entry may be tried later. After any other error the process ends.
    pub fn passes(&self) -> bool {
        matches!(
            self,
            Self::Store(AppendError::Failed(_) | AppendError::Unknown(_))
        )
    }
}

/// An entry that is not durable yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delay {
    /// Since when the log takes no entry.
    pub since: MonoTime,
    /// The error of the last attempt; `None` during the first.
    pub cause: Option<String>,
}

impl Delay {
    /// How long it has lasted, once that is worth reporting: a disk takes some milliseconds.
    pub fn worth_a_word(&self, now: MonoTime) -> Option<Duration> {
        let lasting = now.since(self.since);
        (self.cause.is_some() || lasting >= LOG_PATIENCE).then_some(lasting)
    }

    /// The note about it, once it is over.
    fn told(&self, now: MonoTime) -> Option<Body> {
        let lasting = as_millis(self.worth_a_word(now)?);
        let why = self.cause.as_deref();
        let why = why.unwrap_or("the first entry of that time was written in the end");
        Some(Body::Note {
            code: "log-delayed".to_owned(),
            text: format!("for {lasting} ms the log took no entry: {why}"),
        })
    }
}

/// The state of the group, and the end of the log that it follows from.
#[derive(Debug, Clone)]
pub struct View {
    /// The state of the group.
    pub state: GroupState,
    /// The number of the last entry.
    pub entries: u64,
    /// Its digest.
    pub head: Digest,
    /// The digests of the last entries.
    pub recent: Recent,
}

/// A handle to the journal; it can be cloned.
#[derive(Debug, Clone)]
pub struct Journal {
    queue: mpsc::Sender<Append>,
    noise: mpsc::Sender<Told>,
    view: watch::Receiver<View>,
    delay: watch::Receiver<Option<Delay>>,
}

#[derive(Debug)]
struct Append {
    actor: String,
    body: Body,
    done: oneshot::Sender<Result<u64, JournalError>>,
}

/// The task that writes.
#[derive(Debug)]
pub struct Writer {
    store: Box<dyn LogStore>,
    chain: Chain,
    topology: Topology,
    clock: Arc<dyn Clock>,
    stamp: Stamp,
    queue: mpsc::Receiver<Append>,
    noise: mpsc::Receiver<Told>,
    unsaid: Unsaid,
    view: watch::Sender<View>,
    delay: watch::Sender<Option<Delay>>,
    /// The delay that the last entry ended.
    delayed: Option<Delay>,
    unwritten: Lasting,
}

/// The queue's capacity: the control loop and one executor write one entry at a time each.
const WAITING: usize = 16;

/// How many outside events may wait to be counted. Beyond that they are not counted.
const NOISE_WAITING: usize = 256;

impl Journal {
    /// Continues a log. An empty one gets its first entry.
    pub async fn open(
        store: Box<dyn LogStore>,
        chain: Chain,
        topology: Topology,
        clock: Arc<dyn Clock>,
        stamp: Stamp,
    ) -> Result<(Journal, Writer), JournalError> {
        let state = GroupState::new(&topology);
        let (view_sender, view) = watch::channel(View {
            state,
            entries: 0,
            head: Digest::ZERO,
            recent: Recent::default(),
        });
        let (delay_sender, delay) = watch::channel(None);
        let (sender, queue) = mpsc::channel(WAITING);
        let (noise_sender, noise) = mpsc::channel(NOISE_WAITING);
        let mut writer = Writer {
            store,
            chain,
            topology,
            clock,
            stamp,
            queue,
            noise,
            unsaid: Unsaid::default(),
            view: view_sender,
            delay: delay_sender,
            delayed: None,
            unwritten: Lasting::default(),
        };
        if writer.chain.entries == 0 {
            let opened = Body::Opened {
                topology: writer.topology.clone(),
                format: Some(FORMAT),
            };
            writer.write("controller".to_owned(), opened).await?;
        }
        writer.publish();
        Ok((
            Journal {
                queue: sender,
                noise: noise_sender,
                view,
                delay,
            },
            writer,
        ))
    }

    /// Writes an entry, and returns its number once it is durable.
    pub async fn append(&self, actor: &str, body: Body) -> Result<u64, JournalError> {
        let (done, answer) = oneshot::channel();
        let append = Append {
            actor: actor.to_owned(),
            body: body.clipped(),
            done,
        };
        self.queue
            .send(append)
            .await
            .map_err(|_closed| JournalError::Closed)?;
        answer.await.map_err(|_closed| JournalError::Closed)?
    }

    /// Writes a note of the controller's.
    pub async fn note(&self, code: &str, text: impl Into<String>) -> Result<u64, JournalError> {
        let body = Body::Note {
            code: code.to_owned(),
            text: text.into(),
        };
        self.append("controller", body).await
    }

    /// The only way into the log for what outsiders can cause as often as they like: some of it is
    /// logged, all of it is counted. Never blocks.
    pub fn tell(&self, noise: Noise, who: &impl std::fmt::Display, text: &str) {
        // A full queue holds more than anybody reads.
        drop(
            self.noise
                .try_send(Told::new(noise, &who.to_string(), text)),
        );
    }

    /// The state of the group now.
    pub fn state(&self) -> GroupState {
        self.view.borrow().state.clone()
    }

    /// The same, and where the log ends; can be awaited.
    pub fn view(&self) -> watch::Receiver<View> {
        self.view.clone()
    }

    /// The entry that is not durable yet; can be awaited.
    pub fn delays(&self) -> watch::Receiver<Option<Delay>> {
        self.delay.clone()
    }

    /// The entry that is not durable yet, if there is one.
    pub fn delay(&self) -> Option<Delay> {
        self.delay.borrow().clone()
    }
}

/// Whether the log is still this controller's.
fn ours(done: Result<(), AppendError>) -> Result<(), JournalError> {
    match done {
        Err(cause @ AppendError::Conflict(_)) => Err(cause.into()),
        Err(AppendError::Failed(_) | AppendError::Unknown(_)) | Ok(()) => Ok(()),
    }
}

impl Writer {
    /// Writes until every handle to the journal is gone, or the log is not ours any more. An entry
    /// that cannot be made durable is refused, and the next one is tried all the same.
    pub async fn run(mut self) -> Result<(), JournalError> {
        let mut looked = self.clock.now();
        loop {
            let now = self.clock.now();
            let wait = self.pause(looked, now);
            let pause = async {
                match wait {
                    Some(wait) => self.clock.sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                append = self.queue.recv() => {
                    let Some(append) = append else {
                        return Ok(());
                    };
                    self.append(append).await?;
                }
                Some(told) = self.noise.recv() => {
                    let note = self.unsaid.take(told, now);
                    self.notes(note).await?;
                }
                () = pause => {}
            }
            let now = self.clock.now();
            let delayed = self.delayed.take().and_then(|delay| delay.told(now));
            self.notes(delayed).await?;
            let notes = self.unsaid.flush(now);
            self.notes(notes).await?;
            let every = self.store.look_every();
            if every.is_some_and(|every| now.since(looked) >= every) {
                ours(self.store.look().await)?;
                looked = now;
            }
        }
    }

    /// How long there is nothing to do without a message.
    fn pause(&self, looked: MonoTime, now: MonoTime) -> Option<Duration> {
        let look = self.store.look_every().map(|every| looked.plus(every));
        let due = [look, self.unsaid.due()].into_iter().flatten().min();
        due.map(|due| now.until(due))
    }

    async fn append(&mut self, append: Append) -> Result<(), JournalError> {
        let Append { actor, body, done } = append;
        let written = self.write(actor, body).await;
        let fatal = match &written {
            Err(JournalError::Store(cause)) => ours(Err(cause.clone())),
            Ok(_)
            | Err(JournalError::Refused(_) | JournalError::NotLeading(_) | JournalError::Closed) => {
                Ok(())
            }
        };
        self.publish();
        // The requester may be gone; the entry is logged all the same.
        drop(done.send(written));
        fatal
    }

    async fn notes(&mut self, notes: impl IntoIterator<Item = Body>) -> Result<(), JournalError> {
        for note in notes {
            match self.write("controller".to_owned(), note).await {
                Ok(_) => self.publish(),
                Err(cause) if cause.passes() => {}
                Err(cause) => return Err(cause),
            }
        }
        Ok(())
    }

    async fn write(&mut self, actor: String, body: Body) -> Result<u64, JournalError> {
        let epoch = self
            .chain
            .state()
            .map_or(GroupState::new(&self.topology).epoch, |s| s.epoch);
        let entry = Entry {
            seq: self.chain.entries.saturating_add(1),
            at: self.clock.wall(),
            mono_ms: as_millis(self.clock.now().0),
            boot: self.stamp.boot.clone(),
            group: self.topology.group.clone(),
            epoch,
            actor,
            version: PROGRAM.to_owned(),
            settings: self.stamp.settings,
            body,
            previous: self.chain.head,
        };
        let before = self.chain.clone();
        let line = self.chain.append(&entry)?;
        let since = self.clock.now();
        self.delay.send_if_modified(|delay| {
            let first = delay.is_none();
            delay.get_or_insert(Delay { since, cause: None });
            first
        });
        if let Err(cause) = self.store.append(&line).await {
            self.chain = before;
            let text = cause.to_string();
            if let Some(lasting) = self.unwritten.again(&text, self.clock.now()) {
                tracing::error!(%cause, lasting.times, lasting.ms, "an entry is not written");
            }
            self.delay.send_modify(|delay| {
                if let Some(delay) = delay {
                    delay.cause = Some(cause.to_string());
                }
            });
            return Err(cause.into());
        }
        if let Some(lasting) = self.unwritten.over(self.clock.now()) {
            tracing::info!(lasting.times, lasting.ms, "entries are written again");
        }
        self.delayed = self.delay.send_replace(None);
        Ok(entry.seq)
    }

    fn publish(&self) {
        if let Some(state) = self.chain.state() {
            let state = state.clone();
            self.view.send_replace(View {
                state,
                entries: self.chain.entries,
                head: self.chain.head,
                recent: self.chain.recent.clone(),
            });
        }
    }
}
