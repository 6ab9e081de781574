//! An agent beside those of a lab: of a copy, say.

use std::path::Path;

use super::supervisor::Supervisor;

impl Supervisor {
    /// Starts an agent that is none of the lab's own, under a name that is also its place. It says
    /// what it does in a file beside its configuration, which ends in `.log`.
    pub fn start_agent(&mut self, name: &str, config: &Path) -> anyhow::Result<()> {
        let mut command = self.layout.command(name, &self.layout.program);
        command.args(["agent", "--config"]).arg(config);
        let log = config.with_extension("log");
        self.processes.spawn(name, name, command, &log)?;
        Ok(())
    }
}
