//! Makes a lab's processes go wrong.

use anyhow::Context;

use super::{SQL, Supervisor, how_many};
use crate::adapters::postgres::sever;
use crate::engine::topology::SiteName;
use crate::lab::cluster::scale_by_hand;
use crate::lab::layout::SiteLayout;
use crate::lab::processes::{Seen, Who};
use crate::lab::standing::Fault;

/// What is done to processes.
enum Harm {
    Kill(Who),
    Freeze(Who),
}

impl Supervisor {
    /// Makes something go wrong.
    pub async fn fault(&mut self, fault: Fault, site: &SiteName) -> anyhow::Result<String> {
        let layout = self
            .layout
            .site(site)
            .with_context(|| format!("the lab has no site `{site}`"))?
            .clone();
        let hit = match fault {
            Fault::StopReplication => {
                sever(&layout.instance.local("app")?, SQL).await?;
                Vec::new()
            }
            Fault::ScaleToZero => {
                has_cluster(&layout)?;
                scale_by_hand(&layout, 0).await?;
                Vec::new()
            }
            Fault::KillSite
            | Fault::FreezeSite
            | Fault::KillDatabase
            | Fault::HangDatabase
            | Fault::KillAgent
            | Fault::KillAgentAndDatabase
            | Fault::FreezeAgent
            | Fault::FreezeAgentAndDatabase
            | Fault::KillApi
            | Fault::KillController
            | Fault::FreezeController
            | Fault::KillReceiver
            | Fault::FreezeApiServer => match self.harm(fault, &layout)? {
                Some(Harm::Kill(who)) => self.processes.kill9(&who).await?,
                Some(Harm::Freeze(who)) => self.processes.freeze(&who).await?,
                None => Vec::new(),
            },
        };
        self.processes.reap();
        Ok(format!("{fault} {site}: {}", how_many(hit.len())))
    }

    /// What a fault does to which processes; `None`: to none.
    fn harm(&mut self, fault: Fault, layout: &SiteLayout) -> anyhow::Result<Option<Harm>> {
        let site = &layout.name;
        let named = |name: String| Who::Name(name);
        Ok(Some(match fault {
            Fault::KillSite => Harm::Kill(Who::Place(site.to_string())),
            Fault::FreezeSite => Harm::Freeze(Who::Place(site.to_string())),
            Fault::KillDatabase => Harm::Kill(Who::Tree(self.postmaster(site)?)),
            Fault::HangDatabase => Harm::Freeze(Who::Pid(self.postmaster(site)?)),
            Fault::KillAgent => Harm::Kill(self.agent(layout)?),
            Fault::FreezeAgent => Harm::Freeze(self.agent(layout)?),
            Fault::KillAgentAndDatabase => Harm::Kill(Who::Tree(self.container(layout)?)),
            Fault::FreezeAgentAndDatabase => Harm::Freeze(Who::Tree(self.container(layout)?)),
            Fault::KillApi if layout.cluster.is_some() => {
                let api = self.find(site, "service", |seen| says(seen, "site-api"))?;
                Harm::Kill(Who::Pid(api))
            }
            Fault::KillApi => Harm::Kill(named(format!("{site}-api"))),
            Fault::KillController => Harm::Kill(named("controller".to_owned())),
            Fault::FreezeController => Harm::Freeze(named("controller".to_owned())),
            Fault::KillReceiver => Harm::Kill(Who::Pid(self.receiver(site)?)),
            Fault::FreezeApiServer => {
                has_cluster(layout)?;
                Harm::Freeze(named(format!("{site}-cluster")))
            }
            Fault::StopReplication | Fault::ScaleToZero => return Ok(None),
        }))
    }

    /// The first that is found among a site's processes.
    fn find(
        &mut self,
        site: &SiteName,
        what: &str,
        is: impl Fn(&Seen) -> bool,
    ) -> anyhow::Result<i32> {
        let all = self.processes.look()?;
        let found = all
            .iter()
            .find(|seen| seen.place.as_deref() == Some(site.as_str()) && is(seen));
        found
            .map(|seen| seen.id.pid)
            .with_context(|| format!("no {what} runs at `{site}`"))
    }

    /// A site's agent alone: in a pod, the one below the container's first process.
    fn agent(&mut self, layout: &SiteLayout) -> anyhow::Result<Who> {
        let site = &layout.name;
        if layout.cluster.is_none() {
            return Ok(Who::Name(format!("{site}-agent")));
        }
        let agent = self.find(site, "agent", |seen| {
            seen.program == "failover" && says(seen, "--below")
        })?;
        Ok(Who::Pid(agent))
    }

    /// The process whose descendants are a site's agent, guard and database: in a pod, the container.
    fn container(&mut self, layout: &SiteLayout) -> anyhow::Result<i32> {
        let site = &layout.name;
        if layout.cluster.is_some() {
            return self.find(site, "container", |seen| seen.program == "unshare");
        }
        let agent = self.processes.pid(&format!("{site}-agent"));
        agent.with_context(|| format!("no agent runs at `{site}`"))
    }

    /// The first process of a site's PostgreSQL: the one whose parent is not PostgreSQL.
    fn postmaster(&mut self, site: &SiteName) -> anyhow::Result<i32> {
        let all = self.processes.look()?;
        let here = |seen: &&Seen| {
            seen.place.as_deref() == Some(site.as_str()) && seen.program == "postgres"
        };
        let servers: Vec<&Seen> = all.iter().filter(here).collect();
        let first = servers
            .iter()
            .find(|seen| !servers.iter().any(|other| other.id.pid == seen.parent));
        first
            .map(|seen| seen.id.pid)
            .with_context(|| format!("no PostgreSQL runs at `{site}`"))
    }

    /// The process of a site's PostgreSQL that receives WAL.
    fn receiver(&mut self, site: &SiteName) -> anyhow::Result<i32> {
        self.find(site, "WAL receiver", |seen| says(seen, ": walreceiver"))
    }
}

fn says(seen: &Seen, word: &str) -> bool {
    seen.title().is_some_and(|title| title.contains(word))
}

fn has_cluster(layout: &SiteLayout) -> anyhow::Result<()> {
    anyhow::ensure!(
        layout.cluster.is_some(),
        "`{}` is a host and no cluster\n\nhint: `failover lab up --site kubernetes`",
        layout.name
    );
    Ok(())
}
