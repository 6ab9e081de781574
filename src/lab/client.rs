//! The client that writes numbered rows all the time, and the account of what it was promised.
//!
//! A number is sent once and never again: what is acknowledged and later missing is lost, and
//! what is not acknowledged may be there or not.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::engine::topology::SiteName;
use crate::engine::units::millis;
use crate::ports::Clock;

mod report;
mod session;

pub use report::{Acknowledgement, Gap, Report};
pub use session::present_numbers;

use session::{Resolver, Session};

/// What the client is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    /// Its name, which goes into each row.
    pub name: String,
    /// How it gets to the database.
    pub route: Route,
    /// Its first number. Several clients of one database need ranges of their own.
    pub first_number: i64,
    /// Rows a second, 1 to 1000; the usual client writes 50.
    pub per_second: u32,
    /// Rows on their way at once, 1 to 256. While all of them wait, no further number is used.
    pub in_flight: usize,
    /// How long a row waits for its acknowledgement, connecting included; usually 1 s.
    #[serde(rename = "patience_ms", with = "millis")]
    pub patience: Duration,
    /// The file for the attempts, one JSON object a line; replaced where it exists.
    pub results: PathBuf,
}

/// How a client gets to the database.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Route {
    /// By the service's name, as users do.
    Name {
        /// The authoritative name servers; the first that answers counts.
        servers: Vec<SocketAddr>,
        /// The service's name, with A records.
        name: String,
        /// The service's port.
        port: u16,
        /// How often it asks again. `None` is the stubborn client: it asks once, and keeps its
        /// address, and its connections as long as they last.
        #[serde(rename = "refresh_ms", with = "millis::option")]
        refresh: Option<Duration>,
    },
    /// By sessions with one PostgreSQL server, whatever the name says: a stubborn client inside.
    Database {
        /// Connection string without a password.
        conninfo: String,
        /// The file with the password.
        password_file: PathBuf,
    },
}

/// One number, sent once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// The number.
    pub number: i64,
    /// When it was sent, on the wall clock, in milliseconds since 1970.
    pub sent_ms: u64,
    /// When the answer was there or the patience at its end.
    pub ended_ms: u64,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The client was told that it is written.
    Acknowledged {
        /// The site that said so.
        site: SiteName,
        /// The epoch that its database had; `None` before the first.
        epoch: Option<i64>,
    },
    /// It was not told so; the row may be there all the same. Why, for people.
    Unacknowledged(String),
}

/// A running client. It stops with this value.
#[derive(Debug)]
pub struct Client {
    attempts: watch::Receiver<Vec<Attempt>>,
    stop: watch::Sender<bool>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Client {
    /// Starts to write, as a task.
    pub fn start(config: ClientConfig, clock: Arc<dyn Clock>) -> anyhow::Result<Self> {
        ensure!(
            (1..=1000).contains(&config.per_second) && (1..=256).contains(&config.in_flight),
            "`per_second` must be 1 to 1000 and `in_flight` 1 to 256"
        );
        let results = File::create(&config.results)
            .with_context(|| format!("create `{}`", config.results.display()))?;
        let resolver = Resolver::new(&config.route)?;
        let (found, addresses) = watch::channel(Vec::new());
        let sessions: anyhow::Result<VecDeque<_>> = (0..config.in_flight)
            .map(|place| Session::new(&config, place, addresses.clone()))
            .collect();
        let (attempts, seen) = watch::channel(Vec::new());
        let (stop, stopped) = watch::channel(false);
        let run = Run {
            idle: sessions?,
            running: JoinSet::new(),
            results,
            attempts,
            clock,
        };
        let task = tokio::spawn(async move {
            tokio::select! {
                done = run.write(&config, stopped) => done,
                never = resolver.run(found) => match never {},
            }
        });
        Ok(Self {
            attempts: seen,
            stop,
            task,
        })
    }

    /// What it has done so far, in the order in which attempts ended.
    pub fn attempts(&self) -> Vec<Attempt> {
        self.attempts.borrow().clone()
    }

    /// Waits until what it has done fulfils a condition. An error when the client has ended.
    pub async fn until(&mut self, condition: impl Fn(&[Attempt]) -> bool) -> anyhow::Result<()> {
        let seen = self.attempts.wait_for(|attempts| condition(attempts)).await;
        seen.context("the client has ended").map(drop)
    }

    /// Sends nothing more, waits for what is on its way, and gives all it has done.
    pub async fn stop(mut self) -> anyhow::Result<Vec<Attempt>> {
        self.stop.send_replace(true);
        (&mut self.task).await.context("join the client")??;
        Ok(self.attempts())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Runs a client until `shutdown` is true or its sender is gone: the whole of a process.
pub async fn run(
    config: ClientConfig,
    clock: Arc<dyn Clock>,
    mut shutdown: watch::Receiver<bool>,
) -> anyhow::Result<Vec<Attempt>> {
    let mut client = Client::start(config, clock)?;
    tokio::select! {
        _asked = shutdown.wait_for(|stop| *stop) => client.stop().await,
        ended = &mut client.task => {
            ended.context("join the client")??;
            bail!("the client ended by itself")
        }
    }
}

/// The attempts in a results file. A last line without its end is what a killed client was
/// writing, and does not count.
pub fn read_attempts(results: &Path) -> anyhow::Result<Vec<Attempt>> {
    let text = std::fs::read_to_string(results)
        .with_context(|| format!("read `{}`", results.display()))?;
    text.split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .map(|line| serde_json::from_str(line).with_context(|| format!("read attempt `{line}`")))
        .collect()
}

struct Run {
    /// The session that has rested longest is next.
    idle: VecDeque<Session>,
    running: JoinSet<(Session, Attempt)>,
    results: File,
    attempts: watch::Sender<Vec<Attempt>>,
    clock: Arc<dyn Clock>,
}

impl Run {
    async fn write(
        mut self,
        config: &ClientConfig,
        mut stopped: watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        let mut tick = interval(Duration::from_secs(1) / config.per_second);
        // After a pause of the machine the rate goes on, without a burst.
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut number = config.first_number;
        loop {
            tokio::select! {
                _asked = stopped.wait_for(|stop| *stop) => break,
                Some(done) = self.running.join_next() => self.keep(done?)?,
                _now = tick.tick() => {
                    if let Some(session) = self.idle.pop_front() {
                        let clock = Arc::clone(&self.clock);
                        let patience = config.patience;
                        self.running.spawn(attempt(session, number, patience, clock));
                        number += 1;
                    }
                }
            }
        }
        while let Some(done) = self.running.join_next().await {
            self.keep(done?)?;
        }
        Ok(())
    }

    /// The line is in the kernel's hands before anybody can act on the attempt: a killed client
    /// forgets nothing.
    fn keep(&mut self, (session, attempt): (Session, Attempt)) -> anyhow::Result<()> {
        self.idle.push_back(session);
        let mut line = serde_json::to_vec(&attempt)?;
        line.push(b'\n');
        self.results.write_all(&line).context("write results")?;
        self.attempts.send_modify(|attempts| attempts.push(attempt));
        Ok(())
    }
}

async fn attempt(
    mut session: Session,
    number: i64,
    patience: Duration,
    clock: Arc<dyn Clock>,
) -> (Session, Attempt) {
    let sent_ms = clock.wall().0;
    let outcome = match timeout(patience, session.put(number)).await {
        Ok(Ok((site, epoch))) => Outcome::Acknowledged { site, epoch },
        Ok(Err(error)) => Outcome::Unacknowledged(format!("{error:#}")),
        Err(_elapsed) => {
            // Its answer may still come, and must not be taken for that of another number.
            session.hang_up();
            Outcome::Unacknowledged(format!("no answer within {patience:?}"))
        }
    };
    let ended_ms = clock.wall().0;
    let attempt = Attempt {
        number,
        sent_ms,
        ended_ms,
        outcome,
    };
    (session, attempt)
}
