//! The agent's end of the guard's socket. Finds or starts the guard, asks it, and receives its
//! events.
//!
//! One task owns the connection. When that is lost, every question under way fails as *unknown*,
//! [`GuardEvent::Lost`] is told, and the next question connects anew, to a new guard where the old
//! one is dead. A new guard runs nothing: the agent reads its status and decides.
//!
//! On each connection both sides first say hello. The guard may be of an earlier program than this one
//! or, where the agent was put back, of a later one: a word of it that is not understood is named and
//! ends no connection, because what it stands for shows in the next status.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::Command;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use super::guard::postmaster::user_ids;
use super::guard_protocol::{
    FenceProof, FromGuard, GuardCommand, GuardConfig, GuardEvent, GuardReply, GuardStatus,
    PROTOCOL, Request, Right, StartAs, StopTimes,
};
use super::own_files;
use crate::engine::format::{PROGRAM, WrittenBy};
use crate::engine::units::Epoch;

/// The guard answers within a tick (100 ms), or is frozen.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Added to the sum of the stop times, which the guard itself enforces.
const FENCE_SLACK: Duration = Duration::from_secs(2);
/// A new guard listens after about ten milliseconds.
const UP_WITHIN: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// The agent asks one thing at a time; a few more are its shutdown and an operator's.
const QUESTIONS: usize = 16;
/// Events come one or two per stop of PostgreSQL; a receiver that misses some reads the status.
const EVENTS: usize = 64;

/// Why the guard did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GuardLinkError {
    /// The request certainly did not arrive.
    #[error("cannot reach the guard: {0}")]
    Unreachable(String),
    /// It may have been done: read the status before anything else (invariants.md I4).
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// It was not done; the text says why and what to do next.
    #[error("{0}")]
    Refused(String),
    /// The fence's time is over without proof; the guard keeps trying.
    #[error("the fence is not proven: {0}")]
    Unproven(String),
}

/// A connection to the guard that reconnects itself. Clones share it; when the last is dropped it
/// closes, and the guard keeps only the deadline.
#[derive(Debug, Clone)]
pub struct GuardLink {
    questions: mpsc::Sender<Question>,
    events: broadcast::Sender<GuardEvent>,
    guard: watch::Receiver<WrittenBy>,
}

#[derive(Debug)]
struct Question {
    command: GuardCommand,
    answer: oneshot::Sender<Result<GuardReply, GuardLinkError>>,
}

impl GuardLink {
    /// Connects to the guard of `config.state_dir`, or starts one from the program `exe`.
    pub async fn connect_or_spawn(
        config: GuardConfig,
        exe: PathBuf,
    ) -> Result<Self, GuardLinkError> {
        let (questions, asked) = mpsc::channel(QUESTIONS);
        let (events, _) = broadcast::channel(EVENTS);
        let (says, guard) = watch::channel(WrittenBy::default());
        let told = Told {
            events: events.clone(),
            guard: says,
        };
        let connection = connect_or_spawn(&config, &exe, &told).await?;
        tokio::spawn(carry(config, exe, connection, asked, told));
        Ok(Self {
            questions,
            events,
            guard,
        })
    }

    /// Which program the guard runs, and in which format it is spoken to.
    pub fn guard(&self) -> WrittenBy {
        self.guard.borrow().clone()
    }

    /// The guard's events from now on.
    pub fn events(&self) -> broadcast::Receiver<GuardEvent> {
        self.events.subscribe()
    }

    /// Starts PostgreSQL, without waiting until it answers. Returns the postmaster's pid.
    pub async fn start(&self, r#as: StartAs) -> Result<i32, GuardLinkError> {
        let reply = self
            .ask(GuardCommand::Start { r#as }, ANSWER_WITHIN)
            .await?;
        if let GuardReply::Started { pid } = reply {
            Ok(pid)
        } else {
            Err(unfit(reply))
        }
    }

    /// Extends the deadline. Returns the lease that counts.
    pub async fn right(&self, right: Right, stop: StopTimes) -> Result<Right, GuardLinkError> {
        let Right { epoch, deadline_ns } = right;
        let command = GuardCommand::Right {
            epoch,
            deadline_ns,
            stop,
        };
        let reply = self.ask(command, ANSWER_WITHIN).await?;
        if let GuardReply::Right(right) = reply {
            Ok(right)
        } else {
            Err(unfit(reply))
        }
    }

    /// Gives the lease up: this is a standby, or stopped.
    pub async fn renounce(&self) -> Result<(), GuardLinkError> {
        self.done(GuardCommand::Renounce {}).await
    }

    /// Fences. Returns the proof, or `Unproven` after the sum of the stop times.
    pub async fn fence(&self, cause: &str, epoch: Epoch) -> Result<FenceProof, GuardLinkError> {
        let stages = self.status().await?.config.stop.total();
        let command = GuardCommand::Fence {
            cause: cause.to_owned(),
            epoch,
        };
        let within = stages.saturating_add(FENCE_SLACK);
        let reply = self.ask(command, within).await?;
        if let GuardReply::Fenced(proof) = reply {
            Ok(proof)
        } else {
            Err(unfit(reply))
        }
    }

    /// Removes the fence marker for a lease of `epoch`.
    pub async fn unfence(&self, epoch: Epoch) -> Result<(), GuardLinkError> {
        self.done(GuardCommand::Unfence { epoch }).await
    }

    /// Stops PostgreSQL cleanly, waiting at most `within` (then `Unknown`: it goes on stopping).
    /// Returns how it ended.
    pub async fn stop(&self, within: Duration) -> Result<String, GuardLinkError> {
        let reply = self.ask(GuardCommand::Stop {}, within).await?;
        if let GuardReply::Stopped { status } = reply {
            Ok(status)
        } else {
            Err(unfit(reply))
        }
    }

    /// Ends the guard, if PostgreSQL is down.
    pub async fn quit(&self) -> Result<(), GuardLinkError> {
        self.done(GuardCommand::Quit {}).await
    }

    /// The guard's status.
    pub async fn status(&self) -> Result<GuardStatus, GuardLinkError> {
        let reply = self.ask(GuardCommand::Status {}, ANSWER_WITHIN).await?;
        if let GuardReply::Status(status) = reply {
            Ok(*status)
        } else {
            Err(unfit(reply))
        }
    }

    async fn done(&self, command: GuardCommand) -> Result<(), GuardLinkError> {
        let reply = self.ask(command, ANSWER_WITHIN).await?;
        if let GuardReply::Done {} = reply {
            Ok(())
        } else {
            Err(unfit(reply))
        }
    }

    async fn ask(
        &self,
        command: GuardCommand,
        within: Duration,
    ) -> Result<GuardReply, GuardLinkError> {
        let unknown = |why: &str| GuardLinkError::Unknown(why.to_owned());
        let (answer, wait) = oneshot::channel();
        timeout(within, async {
            self.questions
                .send(Question { command, answer })
                .await
                .map_err(|_closed| GuardLinkError::Unreachable("its link has ended".to_owned()))?;
            wait.await
                .map_err(|_dropped| unknown("the guard's link has ended"))?
        })
        .await
        .map_err(|_elapsed| unknown(&format!("the guard did not answer within {within:?}")))?
    }
}

/// The error for an unexpected reply.
fn unfit(reply: GuardReply) -> GuardLinkError {
    match reply {
        GuardReply::Refused { why } => GuardLinkError::Refused(why),
        GuardReply::Unproven { alive } => GuardLinkError::Unproven(alive),
        GuardReply::Hello(_)
        | GuardReply::Done {}
        | GuardReply::Started { .. }
        | GuardReply::Right(_)
        | GuardReply::Fenced(_)
        | GuardReply::Stopped { .. }
        | GuardReply::Status(_) => {
            GuardLinkError::Unknown(format!("the guard's answer does not fit: {reply:?}"))
        }
    }
}

/// What the link tells everybody who has it.
#[derive(Debug)]
struct Told {
    events: broadcast::Sender<GuardEvent>,
    guard: watch::Sender<WrittenBy>,
}

impl Told {
    fn event(&self, event: GuardEvent) {
        // No receiver is no error: the status says the same.
        drop(self.events.send(event));
    }
}

/// One connection, with the questions under way on it.
#[derive(Debug)]
struct Connection {
    lines: Lines<BufReader<OwnedReadHalf>>,
    write: OwnedWriteHalf,
    waiting: BTreeMap<u64, oneshot::Sender<Result<GuardReply, GuardLinkError>>>,
    next: u64,
}

/// A line of the guard.
#[derive(Debug)]
enum Word {
    Known(FromGuard),
    /// What only a later program knows, with the number of the question that it answers.
    Unknown(Option<u64>),
}

impl Connection {
    async fn send(&mut self, cmd: GuardCommand) -> io::Result<()> {
        let request = Request { id: self.next, cmd };
        let mut line = serde_json::to_vec(&request)?;
        line.push(b'\n');
        self.write.write_all(&line).await
    }

    async fn ask(&mut self, question: Question) -> io::Result<()> {
        self.next += 1;
        // In line first, so that a failed write answers it like the others.
        self.waiting.retain(|_, answer| !answer.is_closed());
        self.waiting.insert(self.next, question.answer);
        self.send(question.command).await
    }

    /// Reads one line. `None`: the guard has closed.
    async fn hear(&mut self) -> io::Result<Option<Word>> {
        match self.lines.next_line().await? {
            Some(line) => Ok(Some(word(&line)?)),
            None => Ok(None),
        }
    }

    /// Says hello, and hears which program the guard runs: one that knows no hello is of before formats
    /// had numbers.
    async fn greet(&mut self, told: &Told) -> io::Result<WrittenBy> {
        let hello = GuardCommand::Hello(WrittenBy::ours(PROTOCOL));
        self.send(hello).await?;
        loop {
            match self.hear().await? {
                None => return Err(io::ErrorKind::ConnectionAborted.into()),
                Some(Word::Known(FromGuard::Event { event })) => told.event(event),
                Some(Word::Unknown(_)) => {}
                Some(Word::Known(FromGuard::Reply { reply, .. })) => {
                    let GuardReply::Hello(guard) = reply else {
                        return Ok(WrittenBy::default());
                    };
                    return Ok(guard.clipped());
                }
            }
        }
    }

    /// Takes in what the guard says; whether it has not closed.
    fn take(&mut self, word: Option<Word>, told: &Told) -> bool {
        match word {
            None => return false,
            Some(Word::Known(FromGuard::Event { event })) => told.event(event),
            Some(Word::Known(FromGuard::Reply { id, reply })) => self.answer(id, Ok(reply)),
            Some(Word::Unknown(id)) => {
                let guard = told.guard.borrow().clone();
                let why = format!(
                    "this agent, failover {PROGRAM}, does not know a word of its guard, {guard}: upgrade the agent"
                );
                tracing::warn!(why, "the guard is not understood");
                let unknown = Err(GuardLinkError::Unknown(why));
                self.answer(id.unwrap_or_default(), unknown);
            }
        }
        true
    }

    fn answer(&mut self, id: u64, answer: Result<GuardReply, GuardLinkError>) {
        if let Some(waiting) = self.waiting.remove(&id) {
            drop(waiting.send(answer));
        }
    }
}

fn word(line: &str) -> serde_json::Result<Word> {
    #[derive(Deserialize)]
    struct Numbered {
        id: Option<u64>,
    }
    match serde_json::from_str(line) {
        Ok(known) => Ok(Word::Known(known)),
        Err(_) => serde_json::from_str(line).map(|Numbered { id }| Word::Unknown(id)),
    }
}

/// Carries questions to the guard and its replies back, until the last link is dropped.
async fn carry(
    config: GuardConfig,
    exe: PathBuf,
    first: Connection,
    mut asked: mpsc::Receiver<Question>,
    told: Told,
) {
    let mut held = Some(first);
    loop {
        let Some(connection) = &mut held else {
            let Some(question) = asked.recv().await else {
                return;
            };
            match connect_or_spawn(&config, &exe, &told).await {
                Err(cause) => drop(question.answer.send(Err(cause))),
                Ok(mut fresh) => {
                    let sent = fresh.ask(question).await;
                    held = keep(fresh, sent.map(|()| true), &told);
                }
            }
            continue;
        };
        let going_on = tokio::select! {
            question = asked.recv() => match question {
                None => return,
                Some(question) => connection.ask(question).await.map(|()| true),
            },
            word = connection.hear() => word.map(|word| connection.take(word, &told)),
        };
        held = held
            .take()
            .and_then(|connection| keep(connection, going_on, &told));
    }
}

/// Keeps a connection that goes on; tells everybody who waits about one that is lost.
fn keep(connection: Connection, going_on: io::Result<bool>, told: &Told) -> Option<Connection> {
    let why = match going_on {
        Ok(true) => return Some(connection),
        Ok(false) => "the guard closed the connection".to_owned(),
        Err(cause) => format!("the connection to the guard is lost: {cause}"),
    };
    tracing::warn!(why, "guard lost");
    for answer in connection.waiting.into_values() {
        drop(answer.send(Err(GuardLinkError::Unknown(why.clone()))));
    }
    told.event(GuardEvent::Lost {});
    None
}

async fn connect(config: &GuardConfig) -> io::Result<Connection> {
    let (read, write) = UnixStream::connect(config.socket()).await?.into_split();
    Ok(Connection {
        lines: BufReader::new(read).lines(),
        write,
        waiting: BTreeMap::new(),
        next: 0,
    })
}

/// A connection on which both sides have said hello.
async fn connect_or_spawn(
    config: &GuardConfig,
    exe: &Path,
    told: &Told,
) -> Result<Connection, GuardLinkError> {
    let mut connection = match connect(config).await {
        Ok(connection) => connection,
        Err(_) => spawned(config, exe).await?,
    };
    let silent = |why: String| GuardLinkError::Unknown(format!("the guard says no hello: {why}"));
    let guard = timeout(ANSWER_WITHIN, connection.greet(told))
        .await
        .map_err(|elapsed| silent(elapsed.to_string()))?
        .map_err(|cause| silent(cause.to_string()))?;
    if !PROTOCOL.reads(guard.format) {
        let major = PROTOCOL.major;
        return Err(GuardLinkError::Refused(format!(
            "the guard is {guard}, and this agent, failover {PROGRAM}, understands guards up to format {major}.x: upgrade the agent first"
        )));
    }
    told.guard.send_replace(guard);
    Ok(connection)
}

/// A connection to a new guard.
async fn spawned(config: &GuardConfig, exe: &Path) -> Result<Connection, GuardLinkError> {
    let unreachable = |what: &str, cause: &dyn std::fmt::Display| {
        GuardLinkError::Unreachable(format!("{what}: {cause}"))
    };
    let mut child = spawn(config, exe).map_err(|cause| unreachable("cannot start one", &cause))?;
    let up = timeout(UP_WITHIN, async {
        let mut ended = None;
        loop {
            match (connect(config).await, &ended) {
                (Ok(connection), _) => return Ok(connection),
                (Err(_), Some(status)) => return Err(unreachable("it ended at once", status)),
                // It may have found another guard's lock: ask that guard once more.
                (Err(_), None) => ended = child.try_wait().ok().flatten(),
            }
            sleep(LOOK_AGAIN).await;
        }
    });
    up.await
        .map_err(|elapsed| unreachable("it does not listen", &elapsed))?
        .map_err(|cause| {
            let GuardLinkError::Unreachable(why) = cause else {
                return cause;
            };
            GuardLinkError::Unreachable(format!("{why}; see `{}`", config.log_file.display()))
        })
}

/// Starts a guard, which leaves our session by itself and outlives us.
fn spawn(config: &GuardConfig, exe: &Path) -> io::Result<tokio::process::Child> {
    own_files::claim_folder(&config.state_dir)?;
    let file = config.state_dir.join("guard.json");
    own_files::write(&file, &serde_json::to_vec_pretty(config)?)?;
    let user = config.run_as.as_deref().map(user_ids).transpose()?;
    let log = own_files::open_log(&config.log_file, user.map(|(uid, _)| uid))?;
    Command::new(exe)
        .args(["guard", "--config"])
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
}
