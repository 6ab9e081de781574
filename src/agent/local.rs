//! The database beside the agent: its guard, and SQL over its local socket as superuser.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;

use super::guard_link::{GuardLink, GuardLinkError};
use super::guard_protocol::{GuardStatus, Right, StartAs, StopTimes};
use super::receiver;
use super::recovery;
use super::standby::StandbySettings;
use crate::adapters::postgres::{self, Connect};
use crate::engine::observation::ProbeFailure;
use crate::engine::policy::FenceStages;
use crate::engine::situation::SeverRehearsal;
use crate::engine::synchrony::SyncLook;
use crate::engine::topology::{Role, SiteName};
use crate::engine::units::{Epoch, Lsn, MonoTime, Timeline, as_millis};
use crate::ports::{EffectError, LocalDatabase, LocalLook, LocalRight};

/// How long a restart-safe answer over the local socket may take.
const CONNECT: Duration = Duration::from_secs(5);

/// A PostgreSQL that a guard owns.
#[derive(Debug)]
pub struct GuardedDatabase {
    /// The guard.
    pub guard: GuardLink,
    /// The database over its local socket, as superuser.
    pub local: Connect,
    /// PGDATA.
    pub data_dir: PathBuf,
    /// The site.
    pub site: SiteName,
    /// The role that controller and agents look with.
    pub watcher: Option<String>,
    /// What a standby here runs with.
    pub standby: StandbySettings,
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

/// A right without an end, in the guard's form.
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
    fn set_up_as(&self) -> Role {
        if self.data_dir.join("standby.signal").exists() {
            Role::Standby
        } else {
            Role::Primary
        }
    }

    /// What a primary has done so far that is not ready yet.
    fn recovering(&self, postmaster: i32) -> Option<u64> {
        let told = std::fs::read_to_string(self.data_dir.join("postmaster.pid")).ok()?;
        let own = told.lines().next()?.trim().parse() == Ok(postmaster);
        (own && told.lines().nth(7)?.trim() == "starting").then(|| recovery::work_of(postmaster))
    }

    fn seen(&self, status: GuardStatus) -> LocalLook {
        let right = status.right.map(|right| {
            (
                right.epoch,
                MonoTime(Duration::from_nanos(right.deadline_ns)),
            )
        });
        let set_up_as = self.set_up_as();
        let primary = status.postmaster_pid.filter(|_| set_up_as == Role::Primary);
        LocalLook {
            set_up_as,
            running: status.postmaster_pid.is_some(),
            recovering: primary.and_then(|postmaster| self.recovering(postmaster)),
            right,
            fenced: status.marker.map(|marker| (marker.epoch, marker.cause)),
            ended: status.last_exit.map(|exit| exit.status),
        }
    }
}

#[async_trait]
impl LocalDatabase for GuardedDatabase {
    async fn look(&self) -> Result<LocalLook, EffectError> {
        Ok(self.seen(self.guard.status().await?))
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

    async fn sever(&self, within: Duration) -> Result<(Lsn, bool), EffectError> {
        let _alone = self.standby.severing(within).await?;
        let first = within / 4;
        let mut severed = postgres::sever(&self.local, first).await?;
        if let Some(pid) = severed.receiver {
            tracing::warn!(pid, "replay holds the WAL receiver up: it is ended");
            receiver::end(pid).map_err(|cause| {
                EffectError::Failed(format!("the WAL receiver cannot be ended: {cause}"))
            })?;
            severed = postgres::sever(&self.local, within.saturating_sub(first)).await?;
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
        self.standby.reconnect(&self.local, within).await
    }

    async fn rehearse(
        &self,
        fresh: bool,
        peer_answers: bool,
        within: Duration,
    ) -> Result<Option<SeverRehearsal>, EffectError> {
        self.standby
            .rehearse(&self.local, fresh, peer_answers, within)
            .await
    }

    fn asks_for_slot(&self) -> Option<String> {
        self.standby.slot(&self.data_dir)
    }

    async fn keep_slot(&self, name: &str, within: Duration) -> Result<(), EffectError> {
        if let Some(was) = postgres::keep_slot(&self.local, name, within).await? {
            tracing::warn!(name, "the slot that the standby asks for was {was}");
        }
        Ok(())
    }

    async fn is_primary(&self, within: Duration) -> Result<Option<(Timeline, Lsn)>, EffectError> {
        let facts = postgres::standing(&self.local, within.min(CONNECT)).await;
        let facts =
            facts.map_err(|failure: ProbeFailure| EffectError::Failed(failure.to_string()))?;
        Ok((facts.role == Role::Primary).then_some((facts.timeline, facts.position)))
    }

    async fn promote(&self, within: Duration) -> Result<(Timeline, Lsn), EffectError> {
        let promoted = postgres::promote(&self.local, within).await?;
        if let Some(names) = &promoted.synchronous_names_were {
            tracing::warn!(
                names,
                "synchronous_standby_names cleared, so that commits do not hang"
            );
        }
        Ok((promoted.timeline, promoted.position))
    }

    async fn look_at_standby(
        &self,
        standby: &SiteName,
        within: Duration,
    ) -> Result<SyncLook, EffectError> {
        postgres::look_at_standby(&self.local, standby, within).await
    }

    async fn wait_for_standby(
        &self,
        standby: &SiteName,
        within: Duration,
    ) -> Result<Lsn, EffectError> {
        postgres::wait_for_standby(&self.local, standby, within).await
    }

    async fn go_on_alone(&self, within: Duration) -> Result<(), EffectError> {
        postgres::go_on_alone(&self.local, within).await
    }

    async fn write_epoch(&self, epoch: Epoch, within: Duration) -> Result<(), EffectError> {
        let opened = postgres::Database::open(&self.local, within.min(CONNECT)).await;
        let database = opened.map_err(|failure| EffectError::Failed(failure.to_string()))?;
        postgres::prepare(&database, within).await?;
        postgres::write_epoch(&database, epoch, &self.site, within).await
    }

    async fn allow_looks(&self, within: Duration) -> Result<(), EffectError> {
        let Some(role) = &self.watcher else {
            return Ok(());
        };
        let opened = postgres::Database::open(&self.local, within.min(CONNECT)).await;
        let database = opened.map_err(|failure| EffectError::Failed(failure.to_string()))?;
        postgres::allow_monitoring(&database, role, within).await
    }
}
