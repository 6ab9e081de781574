//! Starts what a lab consists of.

use super::{Supervisor, api_answers, failover};
use crate::lab::layout::SiteLayout;

impl Supervisor {
    /// Starts whatever is not running; the names of what it started.
    pub fn start_missing(&mut self) -> anyhow::Result<Vec<String>> {
        self.processes.reap();
        let mut started = Vec::new();
        for site in self.layout.sites.clone() {
            if site.cluster.is_some() {
                // The cluster's kubelet starts what runs there.
                let (words, config) = (["lab", "cluster"], site.cluster_config());
                started.extend(self.start_at(&site, "cluster", &words, &config)?);
                continue;
            }
            let (words, config) = (["agent", "--config"], site.agent_config());
            started.extend(self.start_at(&site, "agent", &words, &config)?);
            let (words, config) = (["lab", "site-api", "run"], site.api_config());
            if !api_answers(&site) {
                started.extend(self.start_at(&site, "api", &words, &config)?);
            }
        }
        if self.processes.pid("controller").is_none() {
            self.start_controller(None)?;
            started.push("controller".to_owned());
        }
        Ok(started)
    }

    /// Starts one process of a site, if it does not run; its name, if it did not.
    fn start_at(
        &mut self,
        site: &SiteLayout,
        what: &str,
        words: &[&str],
        config: &std::path::Path,
    ) -> anyhow::Result<Option<String>> {
        let name = format!("{}-{what}", site.name);
        if self.processes.pid(&name).is_some() {
            return Ok(None);
        }
        let place = site.name.as_str();
        let command = failover(&self.layout, place, words, config);
        let log = site.dir.join(format!("{what}.log"));
        self.processes.spawn(&name, place, command, &log)?;
        Ok(Some(name))
    }
}
