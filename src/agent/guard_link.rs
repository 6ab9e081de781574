//! The agent's end of the guard's socket. Finds or starts the guard, asks it, and receives its
//! events.
//!
//! One task owns the connection. When that is lost, every pending question fails as *unknown*,
//! [`GuardEvent::Lost`] is sent, and the next question reconnects, to a new guard if the old one is
//! dead. A new guard runs nothing: the agent reads its status and decides.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::Command;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::guard::postmaster::user_ids;
use super::guard_protocol::{
    FenceProof, FromGuard, GuardCommand, GuardConfig, GuardEvent, GuardReply, GuardStatus, Request,
    Right, StartAs, StopTimes,
};
use super::own_files;
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
        let connection = connect_or_spawn(&config, &exe).await?;
        let (questions, asked) = mpsc::channel(QUESTIONS);
        let (events, _) = broadcast::channel(EVENTS);
        tokio::spawn(carry(config, exe, connection, asked, events.clone()));
        Ok(Self { questions, events })
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
        GuardReply::Done {}
        | GuardReply::Started { .. }
        | GuardReply::Right(_)
        | GuardReply::Fenced(_)
        | GuardReply::Stopped { .. }
        | GuardReply::Status(_) => {
            GuardLinkError::Unknown(format!("the guard's answer does not fit: {reply:?}"))
        }
    }
}

/// One connection, with its pending questions.
#[derive(Debug)]
struct Connection {
    lines: Lines<BufReader<OwnedReadHalf>>,
    write: OwnedWriteHalf,
    waiting: BTreeMap<u64, oneshot::Sender<Result<GuardReply, GuardLinkError>>>,
    next: u64,
}

impl Connection {
    async fn ask(&mut self, question: Question) -> io::Result<()> {
        self.next += 1;
        let request = Request {
            id: self.next,
            cmd: question.command,
        };
        let mut line = serde_json::to_vec(&request)?;
        line.push(b'\n');
        // Queued first, so that a failed write answers it like the others.
        self.waiting.retain(|_, answer| !answer.is_closed());
        self.waiting.insert(self.next, question.answer);
        self.write.write_all(&line).await
    }

    /// Reads one line. `None`: the guard has closed.
    async fn hear(&mut self) -> io::Result<Option<FromGuard>> {
        match self.lines.next_line().await? {
            Some(line) => Ok(Some(serde_json::from_str(&line)?)),
            None => Ok(None),
        }
    }
}

/// Carries questions to the guard and its replies back, until the last link is dropped.
async fn carry(
    config: GuardConfig,
    exe: PathBuf,
    first: Connection,
    mut asked: mpsc::Receiver<Question>,
    events: broadcast::Sender<GuardEvent>,
) {
    let mut held = Some(first);
    loop {
        let Some(connection) = &mut held else {
            let Some(question) = asked.recv().await else {
                return;
            };
            match connect_or_spawn(&config, &exe).await {
                Err(cause) => drop(question.answer.send(Err(cause))),
                Ok(mut fresh) => {
                    let sent = fresh.ask(question).await;
                    held = keep(fresh, sent.map(|()| true), &events);
                }
            }
            continue;
        };
        let going_on = tokio::select! {
            question = asked.recv() => match question {
                None => return,
                Some(question) => connection.ask(question).await.map(|()| true),
            },
            word = connection.hear() => word.map(|word| match word {
                None => false,
                Some(FromGuard::Event { event }) => {
                    // Having no receiver is not an error: the status says the same.
                    drop(events.send(event));
                    true
                }
                Some(FromGuard::Reply { id, reply }) => {
                    if let Some(answer) = connection.waiting.remove(&id) {
                        drop(answer.send(Ok(reply)));
                    }
                    true
                }
            }),
        };
        held = held
            .take()
            .and_then(|connection| keep(connection, going_on, &events));
    }
}

/// Keeps a working connection; tells everybody who waits about a lost one.
fn keep(
    connection: Connection,
    going_on: io::Result<bool>,
    events: &broadcast::Sender<GuardEvent>,
) -> Option<Connection> {
    let why = match going_on {
        Ok(true) => return Some(connection),
        Ok(false) => "the guard closed the connection".to_owned(),
        Err(cause) => format!("the connection to the guard is lost: {cause}"),
    };
    tracing::warn!(why, "guard lost");
    for answer in connection.waiting.into_values() {
        drop(answer.send(Err(GuardLinkError::Unknown(why.clone()))));
    }
    drop(events.send(GuardEvent::Lost {}));
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

async fn connect_or_spawn(config: &GuardConfig, exe: &Path) -> Result<Connection, GuardLinkError> {
    if let Ok(connection) = connect(config).await {
        return Ok(connection);
    }
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
