//! Mends a lab: what is frozen, missing or cut off, and an old primary.

use std::time::Duration;

use super::{FOLLOWS_WITHIN, SQL, STEADY_WITHIN, Supervisor, caught_up, how_many};
use crate::adapters::clock::SystemClock;
use crate::adapters::postgres::{Secret, reconnect};
use crate::lab::cluster::scale_by_hand;
use crate::lab::layout::SiteLayout;
use crate::lab::processes::Who;
use crate::lab::standing::Fault;
use crate::ports::Clock;

impl Supervisor {
    /// Thaws what is frozen, starts what is missing, connects a standby that was cut off. Says what
    /// it did, and of each standby whether it follows; that is waited for.
    pub async fn heal(&mut self) -> anyhow::Result<String> {
        let all = self.processes.look()?;
        let frozen = all.iter().filter(|seen| seen.stopped).count();
        self.processes.thaw(&Who::All).await?;
        let started = self.start_missing()?;
        let mut mended = Vec::new();
        for site in &self.layout.sites {
            if site.cluster.is_some() && until_scaled(site).await? {
                mended.push(format!("scaled the database at {} to 1", site.name));
            }
        }
        if frozen > 0 {
            mended.push(format!("thawed {}", how_many(frozen)));
        }
        if !started.is_empty() {
            mended.push(format!("started {}", started.join(" and ")));
        }
        if mended.is_empty() {
            mended.push("nothing was frozen or missing".to_owned());
        }
        let sites = self.layout.sites.clone();
        for (own, other) in [(&sites[0], &sites[1]), (&sites[1], &sites[0])] {
            if own.instance.data().join("standby.signal").exists() {
                mended.push(match self.until_follows(own, other).await? {
                    Ok(()) => format!("{} follows {}", own.name, other.name),
                    Err(why) => format!("{} does not follow {}: {why}", own.name, other.name),
                });
            }
        }
        Ok(mended.join(", "))
    }

    /// Connects a standby, as soon as it answers, and waits until it streams and has replayed what
    /// its primary wrote after that; or why that did not come.
    async fn until_follows(
        &mut self,
        standby: &SiteLayout,
        primary: &SiteLayout,
    ) -> anyhow::Result<Result<(), String>> {
        let deadline = SystemClock.now().plus(FOLLOWS_WITHIN);
        let (mut connected, mut marker) = (false, None);
        loop {
            let follows = async {
                if !connected {
                    connect(standby, primary).await?;
                    connected = true;
                }
                caught_up(standby, primary, &mut marker).await
            };
            let why = match follows.await {
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

/// Sees to it that a site's database has its pod, as soon as the API server answers; whether it had been
/// scaled to something else.
async fn until_scaled(site: &SiteLayout) -> anyhow::Result<bool> {
    let deadline = SystemClock.now().plus(FOLLOWS_WITHIN);
    loop {
        match scale_by_hand(site, 1).await {
            Ok(before) => return Ok(before != 1),
            Err(error) if SystemClock.now() >= deadline => return Err(error),
            Err(_not_yet) => SystemClock.sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Has a standby connect to its primary, as the lab made it.
async fn connect(standby: &SiteLayout, primary: &SiteLayout) -> anyhow::Result<()> {
    let conninfo = format!(
        "host={} port={} user=replicator passfile={} sslmode=disable application_name={}",
        primary.ip,
        primary.instance.port,
        standby.instance.dir.join("passfile").display(),
        standby.name
    );
    let local = standby.instance.local("app")?;
    Ok(reconnect(&local, &Secret::new(conninfo), SQL).await?)
}
