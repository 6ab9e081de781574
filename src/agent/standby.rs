//! The settings of a standby here, which sever, reconnect and rehearsal change. One at a time, so
//! that no rehearsal reconnects what is being severed.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};

use super::config::Postgres;
use crate::adapters::postgres::{self, Connect, Rehearsed, Secret};
use crate::engine::situation::SeverRehearsal;
use crate::ports::EffectError;

/// The settings of a standby that are ours.
#[derive(Debug)]
pub struct StandbySettings {
    /// How this site's standby connects to the other site's primary.
    ours: Secret,
    /// What PostgreSQL gets on its command line, `name=value` each.
    options: Vec<String>,
    /// Whether this process severed it: then no rehearsal begins any more.
    severed: AtomicBool,
    held: Mutex<Trial>,
}

/// A `primary_conninfo` of ours that replaced one that streamed.
#[derive(Debug, Default)]
struct Trial {
    /// The previous one, until ours is seen to stream too.
    replaced: Option<Secret>,
    /// The previous one was restored, and is checked this many more times.
    put_back: Option<u32>,
    /// Ours did not stream, and the previous one did right after.
    refused: Option<String>,
}

/// How often, a second apart, the restored one is checked before the primary is taken to be down: a
/// receiver may restart only after 5 s.
const LOOKS: u32 = 7;

/// The agent's message about a `primary_conninfo` of ours that is worse than the previous one.
const WORSE: &str =
    "with the agent's `primary_conninfo` the standby did not stream: the former one was put back";

impl StandbySettings {
    /// The settings of the agent's file.
    pub fn new(postgres: &Postgres) -> Self {
        Self {
            ours: Secret::new(postgres.primary_conninfo.clone()),
            options: postgres.options.clone(),
            severed: AtomicBool::new(false),
            held: Mutex::default(),
        }
    }

    /// The slot that a standby here uses, from its files.
    pub(super) fn slot(&self, data_dir: &Path) -> Option<String> {
        slot_in_files(data_dir, &self.options)
    }

    /// The undo of a sever.
    pub(super) async fn reconnect(
        &self,
        local: &Connect,
        within: Duration,
    ) -> Result<(), EffectError> {
        let _alone = self.alone(within).await?;
        postgres::reconnect(local, &self.ours, within).await?;
        self.connected();
        Ok(())
    }

    /// From here on only a sever may change the settings, until [`connected`](Self::connected).
    pub(super) async fn severing(&self, within: Duration) -> Result<impl Drop + '_, EffectError> {
        self.severed.store(true, Ordering::SeqCst);
        self.alone(within).await
    }

    /// The standby may connect again.
    pub(super) fn connected(&self) {
        self.severed.store(false, Ordering::SeqCst);
    }

    async fn alone(&self, within: Duration) -> Result<MutexGuard<'_, Trial>, EffectError> {
        let held = tokio::time::timeout(within, self.held.lock()).await;
        held.map_err(|_elapsed| {
            EffectError::Failed("the settings of the standby are being changed".to_owned())
        })
    }

    /// Rehearses, and makes the standby use our settings. If ours replaces a `primary_conninfo`
    /// that streamed, and does not stream although the other site answers, the previous one is
    /// restored: otherwise an undo of a sever would not work, and the standby would be worse off.
    /// If the previous one does not stream either, the primary is down and ours is not to blame: it
    /// must not delay a failover.
    pub(super) async fn rehearse(
        &self,
        local: &Connect,
        fresh: bool,
        peer_answers: bool,
        within: Duration,
    ) -> Result<Option<SeverRehearsal>, EffectError> {
        let mut trial = self.alone(within).await?;
        if self.severed.load(Ordering::SeqCst) {
            return Err(EffectError::Failed("it was severed".to_owned()));
        }
        let ours = trial.refused.is_none() && trial.put_back.is_none();
        let wanted = ours.then_some(&self.ours);
        let Some(rehearsed) = postgres::rehearse(local, wanted, fresh, within).await? else {
            return Ok(None);
        };
        trial
            .follow(local, &rehearsed, peer_answers, within)
            .await?;
        Ok(Some(SeverRehearsal {
            ago: Duration::ZERO,
            obstacle: rehearsed.obstacle.or_else(|| trial.refused.clone()),
        }))
    }
}

/// `primary_slot_name` as PostgreSQL would read it at a start: from the command line, else from the
/// file that `ALTER SYSTEM` writes, else from the main file. Files included by those are not read.
fn slot_in_files(data_dir: &Path, options: &[String]) -> Option<String> {
    let option = |name: &str| {
        let mut all = options.iter().rev().filter_map(|each| each.split_once('='));
        all.find(|(key, _)| key.trim() == name)
            .map(|(_, value)| value.trim())
    };
    let main =
        option("config_file").map_or_else(|| data_dir.join("postgresql.conf"), PathBuf::from);
    let in_file = |path: &Path| {
        let text = std::fs::read_to_string(path).ok()?;
        text.lines().rev().find_map(setting_of_slot)
    };
    option("primary_slot_name")
        .map(str::to_owned)
        .or_else(|| in_file(&data_dir.join("postgresql.auto.conf")))
        .or_else(|| in_file(&main))
        .filter(|slot| !slot.is_empty())
}

/// The value of `primary_slot_name` in a line of a settings file.
fn setting_of_slot(line: &str) -> Option<String> {
    let (name, rest) = line
        .trim_start()
        .split_at_checked("primary_slot_name".len())?;
    if !name.eq_ignore_ascii_case("primary_slot_name") {
        return None;
    }
    let value = rest.trim_start_matches([' ', '\t', '=']);
    let value = match value.strip_prefix('\'') {
        Some(quoted) => quoted.split('\'').next(),
        None => value.split([' ', '\t', '#']).next(),
    };
    value.map(str::to_owned)
}

impl Trial {
    async fn follow(
        &mut self,
        local: &Connect,
        rehearsed: &Rehearsed,
        peer_answers: bool,
        within: Duration,
    ) -> Result<(), EffectError> {
        if let Some(was) = &rehearsed.replaced {
            tracing::info!("the standby runs with the `primary_conninfo` of the agent's file now");
            let streamed = rehearsed.streamed && !was.expose().is_empty();
            self.replaced = streamed.then(|| was.clone());
            return Ok(());
        }
        if let Some(left) = self.put_back {
            return self.looked(left, rehearsed.streamed);
        }
        if rehearsed.streamed {
            self.replaced = None;
        }
        let Some(was) = self.replaced.take_if(|_| peer_answers) else {
            return Ok(());
        };
        postgres::reconnect(local, &was, within).await?;
        self.put_back = Some(LOOKS);
        Err(EffectError::Failed(WORSE.to_owned()))
    }

    /// The restored one was checked, and may be checked this many more times. After an error it is
    /// checked again soon.
    fn looked(&mut self, left: u32, streams: bool) -> Result<(), EffectError> {
        if streams {
            tracing::error!("{WORSE}");
            (self.put_back, self.refused) = (None, Some(WORSE.to_owned()));
            return Ok(());
        }
        self.put_back = left.checked_sub(1);
        match self.put_back {
            Some(_) => Err(EffectError::Failed(WORSE.to_owned())),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_is_worse_than_another_only_if_that_one_streams() {
        let mut trial = Trial {
            put_back: Some(LOOKS),
            ..Trial::default()
        };
        for left in (1..=LOOKS).rev() {
            assert!(trial.looked(left, false).is_err(), "it is looked at again");
        }
        assert!(trial.looked(0, false).is_ok(), "neither streams");
        assert!(trial.put_back.is_none() && trial.refused.is_none());
        trial.put_back = Some(LOOKS);
        assert!(trial.looked(LOOKS, true).is_ok());
        assert!(trial.put_back.is_none());
        assert_eq!(trial.refused.as_deref(), Some(WORSE));
    }

    #[test]
    fn the_slot_is_read_as_postgresql_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let slot = |options: &[&str]| {
            let options: Vec<String> = options.iter().map(|each| (*each).to_owned()).collect();
            slot_in_files(dir.path(), &options)
        };
        assert_eq!(slot(&[]), None);
        at(
            "postgresql.conf",
            "# primary_slot_name = 'no'\nprimary_slot_name=main # ours\n",
        );
        assert_eq!(slot(&[]).as_deref(), Some("main"));
        at("other.conf", "Primary_Slot_Name = 'other'\n");
        let other = format!("config_file={}", dir.path().join("other.conf").display());
        assert_eq!(slot(&[&other]).as_deref(), Some("other"));
        let auto = "primary_slot_name = 'first'\nprimary_slot_name = 'auto'\n";
        at("postgresql.auto.conf", auto);
        assert_eq!(slot(&[&other]).as_deref(), Some("auto"));
        assert_eq!(slot(&["primary_slot_name=line"]).as_deref(), Some("line"));
        at("postgresql.auto.conf", "primary_slot_name = ''\n");
        assert_eq!(slot(&[]), None, "taken away by `ALTER SYSTEM`");
    }
}
