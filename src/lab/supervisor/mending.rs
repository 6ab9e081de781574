//! Mends a lab: what is frozen, missing or cut off, and an old primary.

use std::time::Duration;

use super::{CATCH_UP_WITHIN, SQL, STEADY_WITHIN, Supervisor, api_answers, caught_up};
use crate::adapters::clock::SystemClock;
use crate::adapters::postgres::{Secret, reconnect};
use crate::lab::layout::SiteLayout;
use crate::lab::processes::Who;
use crate::lab::standing::Fault;
use crate::ports::Clock;

impl Supervisor {
    /// Thaws what is frozen, starts what is missing, connects a standby that was cut off.
    pub async fn heal(&mut self) -> anyhow::Result<String> {
        let frozen = self
            .processes
            .look()?
            .iter()
            .filter(|seen| seen.stopped)
            .count();
        self.processes.thaw(&Who::All).await?;
        let mut healed = format!("{frozen} processes thawed");
        self.start_missing()?;
        let sites = self.layout.sites.clone();
        for (own, other) in [(&sites[0], &sites[1]), (&sites[1], &sites[0])] {
            if own.instance.data().join("standby.signal").exists() && api_answers(own) {
                let conninfo = format!(
                    "host={} port={} user=replicator passfile={} sslmode=disable application_name={}",
                    other.ip,
                    other.instance.port,
                    own.instance.dir.join("passfile").display(),
                    own.name
                );
                let local = own.instance.local("app")?;
                let followed = match reconnect(&local, &Secret::new(conninfo), SQL).await {
                    Ok(()) => self.until_caught_up(own, other).await?,
                    Err(error) => Err(error.to_string()),
                };
                healed += &match followed {
                    Ok(()) => format!(", {} follows {}", own.name, other.name),
                    Err(why) => format!(", {} does not follow: {why}", own.name),
                };
            }
        }
        Ok(healed)
    }

    /// Waits until a standby streams and has replayed what its primary wrote after it was connected;
    /// or why that did not come.
    async fn until_caught_up(
        &mut self,
        standby: &SiteLayout,
        primary: &SiteLayout,
    ) -> anyhow::Result<Result<(), String>> {
        let deadline = SystemClock.now().plus(CATCH_UP_WITHIN);
        let mut marker = None;
        loop {
            let why = match caught_up(standby, primary, &mut marker).await {
                Ok(()) => return Ok(Ok(())),
                Err(why) => why.to_string(),
            };
            if SystemClock.now() >= deadline {
                return Ok(Err(why));
            }
            self.look()?;
            SystemClock.sleep(Duration::from_millis(50)).await;
        }
    }

    /// Ends whatever is left of the old primary's site, makes its database a standby of the new
    /// one, and returns when automation has armed itself again.
    pub async fn rejoin(&mut self, old: &SiteLayout, new: &SiteLayout) -> anyhow::Result<()> {
        self.processes.thaw(&Who::All).await?;
        self.fault(Fault::KillSite, &old.name).await?;
        self.layout.rejoin(old, new).await?;
        self.start_missing()?;
        let deadline = self.clock.now().plus(STEADY_WITHIN);
        while self.clock.now() < deadline {
            self.look()?;
            if let Ok(status) = self.status().await
                && !status.situation.automation.disarmed
            {
                return Ok(());
            }
            self.clock.sleep(Duration::from_millis(50)).await;
        }
        anyhow::bail!(
            "`{}` does not follow `{}`: automation stays disarmed",
            old.name,
            new.name
        )
    }
}
