//! The one append path of the decision log: stamps entries, keeps the chain, and tells everybody
//! the state of the group that follows.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use self::noise::{Told, Unsaid};
use super::leadership::NotLeading;
use crate::engine::chain::{Body, Broken, Chain, Digest, Entry, Recent};
use crate::engine::saga::GroupState;
use crate::engine::topology::Topology;
use crate::engine::units::{MonoTime, as_millis};
use crate::ports::{Clock, LogStore, StoreError};

mod noise;

pub use noise::{NOTE_EVERY, Noise};

/// What every entry of one process has in common.
#[derive(Debug, Clone)]
pub struct Stamp {
    /// Which boot of which machine.
    pub boot: String,
    /// The digest of policy and configuration.
    pub settings: Digest,
}

/// Why an entry was not written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JournalError {
    /// It would make the log tell something impossible, or would not read back as it is: nothing
    /// was written, and nothing happened.
    #[error("refused by the decision log: {0}")]
    Refused(#[from] Broken),
    /// It could not be made durable. Nothing may be done any more: the process ends.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another controller may act by now.
    #[error(transparent)]
    NotLeading(#[from] NotLeading),
    /// The journal ended.
    #[error("the decision log is closed")]
    Closed,
}

/// The state of the group, and the end of the log it follows from.
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

/// A way to the journal; as many as are needed.
#[derive(Debug, Clone)]
pub struct Journal {
    queue: mpsc::Sender<Append>,
    noise: mpsc::Sender<Told>,
    view: watch::Receiver<View>,
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
}

/// How many entries may wait: the control loop and one executor write one at a time each.
const WAITING: usize = 16;

/// How much that others cause may wait to be counted. What finds it full is not counted.
const NOISE_WAITING: usize = 256;

impl Journal {
    /// Goes on with a log. One that is empty gets its first entry.
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
        };
        if writer.chain.entries == 0 {
            let topology = writer.topology.clone();
            writer
                .write("controller".to_owned(), Body::Opened { topology })
                .await?;
        }
        writer.publish();
        Ok((
            Journal {
                queue: sender,
                noise: noise_sender,
                view,
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

    /// The only way into the log for what somebody outside can cause as often as they like: some of
    /// it is written down, all of it is counted. Waits for nothing.
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

    /// The same, and where the log ends; to be waited on.
    pub fn view(&self) -> watch::Receiver<View> {
        self.view.clone()
    }
}

impl Writer {
    /// Writes until every way to the journal is gone, or the log cannot be written any more.
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
            let notes = self.unsaid.flush(now);
            self.notes(notes).await?;
            let every = self.store.look_every();
            if every.is_some_and(|every| now.since(looked) >= every) {
                self.store.look().await?;
                looked = now;
            }
        }
    }

    /// How long there is nothing to do unless something is told.
    fn pause(&self, looked: MonoTime, now: MonoTime) -> Option<Duration> {
        let look = self.store.look_every().map(|every| looked.plus(every));
        let due = [look, self.unsaid.due()].into_iter().flatten().min();
        due.map(|due| now.until(due))
    }

    async fn append(&mut self, append: Append) -> Result<(), JournalError> {
        let Append { actor, body, done } = append;
        let written = self.write(actor, body).await;
        let fatal = match &written {
            Err(JournalError::Store(cause)) => Some(cause.clone()),
            Ok(_)
            | Err(JournalError::Refused(_) | JournalError::NotLeading(_) | JournalError::Closed) => {
                None
            }
        };
        self.publish();
        // Whoever asked may be gone; the entry stands all the same.
        drop(done.send(written));
        fatal.map_or(Ok(()), |cause| Err(cause.into()))
    }

    async fn notes(&mut self, notes: impl IntoIterator<Item = Body>) -> Result<(), JournalError> {
        for note in notes {
            self.write("controller".to_owned(), note).await?;
            self.publish();
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
            version: env!("CARGO_PKG_VERSION").to_owned(),
            settings: self.stamp.settings,
            body,
            previous: self.chain.head,
        };
        let before = self.chain.clone();
        let line = self.chain.append(&entry)?;
        if let Err(cause) = self.store.append(&line).await {
            self.chain = before;
            return Err(cause.into());
        }
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
