//! The local database: its guard, and SQL over its local socket as superuser.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use super::guard::postmaster::user_ids;
use super::guard_link::{GuardLink, GuardLinkError};
use super::guard_protocol::{
    Exit, GuardConfig, GuardStatus, Right, StartAs, StopTimes, boottime_ns,
};
use super::standby::StandbySettings;
use super::{own_files, receiver, recovery};
use crate::adapters::postgres::{self, Connect, ConnectError};
use crate::adapters::site_probe::SiteProbe;
use crate::engine::lasting::Lasting;
use crate::engine::lease::Enforcer;
use crate::engine::observation::{Finding, ProbeFailure};
use crate::engine::policy::FenceStages;
use crate::engine::situation::SeverRehearsal;
use crate::engine::synchrony::SyncLook;
use crate::engine::topology::{Role, SiteName, Target, TargetKind};
use crate::engine::units::{Epoch, Lsn, MonoTime, Timeline, as_millis};
use crate::ports::{
    EffectError, Ledger, LocalLook, LocalRight, Probe, Server, Succession, Synchronous,
};

/// How long an idempotent query over the local socket may take.
const CONNECT: Duration = Duration::from_secs(5);

/// A PostgreSQL that a guard owns.
#[derive(Debug)]
pub struct GuardedDatabase {
    /// The guard.
    pub guard: GuardLink,
    /// The settings of the agent's file: a guard that was started with others is replaced when
    /// PostgreSQL is down anyway.
    pub wanted: GuardConfig,
    /// The agent's own roles there.
    pub role: OwnRole,
    /// The database over its local socket, at its current address.
    pub local: watch::Sender<Place>,
    /// How it last ended, as text: its log is read once for that.
    pub ended: Mutex<Option<(Exit, String)>>,
    /// That there is no way to it.
    pub astray: Mutex<Lasting>,
    /// The site.
    pub site: SiteName,
    /// The uid of the pod that it runs in, if it runs in one.
    pub machine: Option<String>,
    /// The role that controller and agents probe with.
    pub watcher: Option<String>,
    /// The settings of a standby here.
    pub standby: StandbySettings,
}

/// The agent's identity in its own database.
#[derive(Debug, Clone)]
pub struct OwnRole {
    /// A superuser.
    pub user: String,
    /// The database with the schema `failover`.
    pub database: String,
}

/// The address of our database.
#[derive(Debug, Clone)]
pub struct Place {
    socket: PathBuf,
    connect: Connect,
}

impl Place {
    /// The connection parameters.
    pub fn connect(&self) -> Connect {
        self.connect.clone()
    }
}

impl OwnRole {
    /// The database address of a guard.
    pub fn at(&self, config: &GuardConfig) -> Result<Place, ConnectError> {
        let conninfo = format!(
            "host={} port={} dbname={} user={} sslmode=disable",
            config.socket_dir.display(),
            config.port,
            self.database,
            self.user
        );
        Ok(Place {
            socket: config.postgresql_socket(),
            connect: Connect::new(&conninfo, None, None)?.as_superuser(),
        })
    }
}

/// Probes as [`SiteProbe`] does, our own database at its current address.
#[derive(Debug)]
pub struct LocalProbe {
    /// The probe.
    pub sites: SiteProbe,
    /// Our site.
    pub own: SiteName,
    /// The address of our database.
    pub local: watch::Receiver<Place>,
}

#[async_trait]
impl Probe for LocalProbe {
    async fn look(&self, target: &Target, within: Duration) -> Finding {
        if target.kind == TargetKind::Database && target.site == self.own {
            let at = self.local.borrow().connect();
            return self.sites.look_at(&at, &self.own, within).await;
        }
        self.sites.look(target, within).await
    }

    async fn anchors(&self, within: Duration) -> (u32, u32) {
        self.sites.anchors(within).await
    }
}

impl From<GuardLinkError> for EffectError {
    fn from(error: GuardLinkError) -> Self {
        let text = error.to_string();
        match error {
            GuardLinkError::Unreachable(_) => EffectError::Failed(text),
            GuardLinkError::Refused(_) => EffectError::Refused(text),
            GuardLinkError::Unknown(_) | GuardLinkError::Unproven(_) => EffectError::Unknown(text),
        }
    }
}

/// A lease without an end, in the guard's form.
const FOR_EVER: u64 = u64::MAX;

fn deadline_ns(until: Option<MonoTime>) -> u64 {
    until.map_or(FOR_EVER, |until| {
        u64::try_from(until.0.as_nanos()).unwrap_or(FOR_EVER)
    })
}

impl From<FenceStages> for StopTimes {
    fn from(stages: FenceStages) -> Self {
        Self {
            fast_ms: as_millis(stages.fast),
            immediate_ms: as_millis(stages.immediate),
            kill_ms: as_millis(stages.kill),
        }
    }
}

impl GuardedDatabase {
    /// With a guard of an earlier version the agent must read the files.
    fn file_says(&self) -> Role {
        if self.wanted.data_dir.join("standby.signal").exists() {
            Role::Standby
        } else {
            Role::Primary
        }
    }

    /// The progress of a primary that is not ready yet, by its pid file (postgres.md P14).
    fn recovering(postmaster: i32, config: &GuardConfig) -> Option<u64> {
        let told = std::fs::read_to_string(config.data_dir.join("postmaster.pid")).ok()?;
        let own = told.lines().next()?.trim().parse() == Ok(postmaster);
        (own && told.lines().nth(7)?.trim() == "starting").then(|| recovery::work_of(postmaster))
    }

    fn local(&self) -> Connect {
        self.local.borrow().connect()
    }

    /// Replaces a guard that was started with other settings, if no database runs under it: a
    /// remaining lease is requested again.
    async fn take_over_settings(&self, status: GuardStatus) -> Result<GuardStatus, EffectError> {
        let differing = status.config.differs_in(&self.wanted);
        let idle = status.postmaster_pid.is_none() && !status.fencing;
        if differing.is_empty() || !idle {
            return Ok(status);
        }
        self.guard.quit().await?;
        tracing::warn!(keys = ?differing, "the database is down: a guard with the new settings takes over");
        Ok(self.guard.status().await?)
    }

    /// The connection to the database follows the guard that runs it.
    fn follow(&self, config: &GuardConfig) {
        if self.local.borrow().socket == config.postgresql_socket() {
            return;
        }
        match self.role.at(config) {
            Ok(place) => drop(self.local.send_replace(place)),
            Err(error) => {
                let now = MonoTime(Duration::from_nanos(boottime_ns()));
                let known = self.astray.lock();
                let mut known = known.unwrap_or_else(PoisonError::into_inner);
                if let Some(lasting) = known.again(&error.to_string(), now) {
                    let what = "no way to the database of the guard";
                    tracing::error!(%error, lasting.times, lasting.ms, "{what}");
                }
            }
        }
    }

    /// How PostgreSQL ended: the exit status, and its own last message.
    fn how_it_ended(&self, exit: Exit, config: &GuardConfig) -> String {
        let mut known = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, words)) = known.as_ref().filter(|(of, _)| *of == exit) {
            return words.clone();
        }
        let said = exit
            .log_from
            .and_then(|from| last_words(config, from).unwrap_or_default());
        let words = match said.filter(|_| !exit.is_clean()) {
            Some(said) => format!("{}: {said}", exit.status),
            None => exit.status.clone(),
        };
        *known = Some((exit, words.clone()));
        words
    }

    fn seen(&self, status: GuardStatus) -> LocalLook {
        let right = status.right.map(|right| {
            (
                right.epoch,
                MonoTime(Duration::from_nanos(right.deadline_ns)),
            )
        });
        let starts_as = status.starts_as.unwrap_or_else(|| self.file_says());
        let runs_as = status.runs_as.or_else(|| {
            let standby = status.started_as_standby? && starts_as == Role::Standby;
            Some(if standby {
                Role::Standby
            } else {
                Role::Primary
            })
        });
        let primary = status
            .postmaster_pid
            .filter(|_| runs_as == Some(Role::Primary));
        LocalLook {
            guard: Some(self.guard.guard()),
            recovering: primary.and_then(|pid| Self::recovering(pid, &status.config)),
            starts_as,
            unfit: status.unfit,
            runs_as,
            foreign: status.foreign,
            right,
            fenced: status.marker.map(|marker| (marker.epoch, marker.cause)),
            ended: status
                .last_exit
                .map(|exit| self.how_it_ended(exit, &status.config)),
            pending: status
                .config
                .differs_in(&self.wanted)
                .into_iter()
                .map(|key| format!("postgres.{key}"))
                .collect(),
        }
    }
}

/// How much of a log is searched for the last message, in bytes.
const SEARCHED: u64 = 16 * 1024;

/// The last message of a server in the log, whose output began at `from`: the cause of its end, if
/// stated, with the previous line.
fn last_words(config: &GuardConfig, from: u64) -> io::Result<Option<String>> {
    let user = config.run_as.as_deref().map(user_ids).transpose()?;
    let mut log = own_files::read_log(&config.log_file, user.map(|(uid, _)| uid))?;
    let length = log.metadata()?.len();
    // A log that has become shorter is another one.
    if length < from {
        return Ok(None);
    }
    log.seek(SeekFrom::Start(from.max(length.saturating_sub(SEARCHED))))?;
    let mut bytes = Vec::new();
    log.take(SEARCHED).read_to_end(&mut bytes)?;
    Ok(words_of(&String::from_utf8_lossy(&bytes)))
}

fn words_of(log: &str) -> Option<String> {
    let levels = ["FATAL:", "PANIC:", "ERROR:", "LOG:"];
    let lines: Vec<&str> = log
        .lines()
        .filter_map(|line| {
            let level = levels.iter().find_map(|level| line.find(level))?;
            line.get(level..)
        })
        .collect();
    let fatal = |line: &&str| line.starts_with("FATAL:") || line.starts_with("PANIC:");
    let last = lines.iter().rposition(fatal)?;
    let said = lines.get(last.saturating_sub(1)..=last)?;
    Some(said.join("; "))
}

#[async_trait]
impl Server for GuardedDatabase {
    fn machine(&self) -> Option<String> {
        self.machine.clone()
    }

    fn enforced_by(&self) -> Enforcer {
        Enforcer::Guard
    }

    async fn look(&self) -> Result<LocalLook, EffectError> {
        let status = self.guard.status().await?;
        let status = self.take_over_settings(status).await?;
        self.follow(&status.config);
        Ok(self.seen(status))
    }

    async fn start_standby(&self) -> Result<(), EffectError> {
        self.guard.start(StartAs::Standby).await?;
        self.standby.connected();
        Ok(())
    }

    async fn start_primary(&self, right: &LocalRight) -> Result<(), EffectError> {
        self.hold_right(right).await?;
        let (epoch, deadline_ns) = (right.epoch, deadline_ns(right.until));
        self.guard
            .start(StartAs::Primary { epoch, deadline_ns })
            .await?;
        Ok(())
    }

    async fn hold_right(&self, right: &LocalRight) -> Result<(), EffectError> {
        let armed = Right {
            epoch: right.epoch,
            deadline_ns: deadline_ns(right.until),
        };
        self.guard.right(armed, right.fence.into()).await?;
        Ok(())
    }

    async fn release_right(&self) -> Result<(), EffectError> {
        Ok(self.guard.renounce().await?)
    }

    async fn fence(&self, epoch: Epoch, cause: &str) -> Result<String, EffectError> {
        let proof = self.guard.fence(cause, epoch).await?;
        let method = serde_json::to_string(&proof.method).unwrap_or_default();
        Ok(format!(
            "down by {} after {} ms; refused at {}",
            method.trim_matches('"'),
            proof.took_ms,
            proof.refused
        ))
    }

    async fn unfence(&self, epoch: Epoch) -> Result<(), EffectError> {
        Ok(self.guard.unfence(epoch).await?)
    }
}

#[async_trait]
impl Succession for GuardedDatabase {
    async fn sever(&self, within: Duration) -> Result<(Lsn, bool), EffectError> {
        let _alone = self.standby.severing(within).await?;
        let first = within / 4;
        let mut severed = postgres::sever(&self.local(), first).await?;
        if let Some(pid) = severed.receiver {
            tracing::warn!(pid, "replay holds the WAL receiver up: it is ended");
            receiver::end(pid).map_err(|cause| {
                EffectError::Failed(format!("the WAL receiver cannot be ended: {cause}"))
            })?;
            severed = postgres::sever(&self.local(), within.saturating_sub(first)).await?;
        }
        if severed.receiver_gone {
            Ok((severed.position, severed.replayed >= severed.position))
        } else {
            Err(EffectError::Failed(
                "the WAL receiver did not end".to_owned(),
            ))
        }
    }

    async fn reconnect(&self, within: Duration) -> Result<(), EffectError> {
        self.standby.reconnect(&self.local(), within).await
    }

    async fn rehearse(
        &self,
        fresh: bool,
        peer_answers: bool,
        within: Duration,
    ) -> Result<Option<SeverRehearsal>, EffectError> {
        self.standby
            .rehearse(&self.local(), fresh, peer_answers, within)
            .await
    }

    fn asks_for_slot(&self) -> Option<String> {
        self.standby.slot(&self.wanted.data_dir)
    }

    async fn keep_slot(&self, name: &str, within: Duration) -> Result<(), EffectError> {
        if let Some(was) = postgres::keep_slot(&self.local(), name, within).await? {
            tracing::warn!(name, "the slot that the standby needs was {was}");
        }
        Ok(())
    }

    async fn promote(&self, within: Duration) -> Result<(Timeline, Lsn), EffectError> {
        let promoted = postgres::promote(&self.local(), within).await?;
        if let Some(names) = &promoted.synchronous_names_were {
            tracing::warn!(
                names,
                "synchronous_standby_names cleared, so that commits do not hang"
            );
        }
        Ok((promoted.timeline, promoted.position))
    }
}

#[async_trait]
impl Ledger for GuardedDatabase {
    async fn is_primary(&self, within: Duration) -> Result<Option<(Timeline, Lsn)>, EffectError> {
        let facts = postgres::standing(&self.local(), within.min(CONNECT)).await;
        let facts =
            facts.map_err(|failure: ProbeFailure| EffectError::Failed(failure.to_string()))?;
        Ok((facts.role == Role::Primary).then_some((facts.timeline, facts.position)))
    }

    async fn write_epoch(&self, epoch: Epoch, within: Duration) -> Result<(), EffectError> {
        let opened = postgres::Database::open(&self.local(), within.min(CONNECT)).await;
        let database = opened.map_err(|failure| EffectError::Failed(failure.to_string()))?;
        postgres::prepare(&database, within).await?;
        postgres::write_epoch(&database, epoch, &self.site, within).await
    }

    async fn allow_looks(&self, within: Duration) -> Result<(), EffectError> {
        let Some(role) = &self.watcher else {
            return Ok(());
        };
        let opened = postgres::Database::open(&self.local(), within.min(CONNECT)).await;
        let database = opened.map_err(|failure| EffectError::Failed(failure.to_string()))?;
        postgres::allow_monitoring(&database, role, within).await
    }
}

#[async_trait]
impl Synchronous for GuardedDatabase {
    async fn look_at_standby(
        &self,
        standby: &SiteName,
        within: Duration,
    ) -> Result<SyncLook, EffectError> {
        postgres::look_at_standby(&self.local(), standby, within).await
    }

    async fn wait_for_standby(
        &self,
        standby: &SiteName,
        within: Duration,
    ) -> Result<Lsn, EffectError> {
        postgres::wait_for_standby(&self.local(), standby, within).await
    }

    async fn go_on_alone(&self, within: Duration) -> Result<(), EffectError> {
        postgres::go_on_alone(&self.local(), within).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_are_why_it_ended_and_the_line_before() {
        let log = "2026-11-26 13:43:42.390 UTC [1] LOG:  unrecognized configuration parameter \"x\"\n\
                   2026-11-26 13:43:42.391 UTC [1] FATAL:  configuration file contains errors\n\
                   2026-11-26T13:43:42Z  INFO failover::agent::guard: PostgreSQL ended\n";
        assert_eq!(
            words_of(log).unwrap(),
            "LOG:  unrecognized configuration parameter \"x\"; FATAL:  configuration file contains errors"
        );
        assert_eq!(words_of("LOG:  starting\n"), None);
        assert_eq!(words_of("FATAL:  alone").unwrap(), "FATAL:  alone");
    }
}
