//! Where this user's standing lab is, and what can be asked of its supervisor.

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::ValueEnum;
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::adapters::tls::TlsFiles;
use crate::engine::topology::SiteName;

/// A lab that stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Its folder.
    pub dir: PathBuf,
    /// Its supervisor's socket.
    pub socket: PathBuf,
    /// Its controller.
    pub controller: SocketAddr,
    /// What an operator of it needs.
    pub operator: TlsFiles,
}

/// What can go wrong on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// Kill everything at a site: database, agent, API
    KillSite,
    /// Kill the database, every process of it; the agent lives
    KillDatabase,
    /// Kill the agent; its guard and the database live
    KillAgent,
    /// Kill the agent with its guard and the database; the API lives
    KillAgentAndDatabase,
    /// Kill the API
    KillApi,
    /// Freeze everything at a site; `heal` thaws it
    FreezeSite,
    /// Freeze the agent alone
    FreezeAgent,
    /// Freeze the agent with its guard and the database; the API lives, `heal` thaws it
    FreezeAgentAndDatabase,
    /// Freeze PostgreSQL's first process alone: open sessions go on
    HangDatabase,
    /// Cut a standby off its primary
    StopReplication,
    /// Kill a standby's WAL receiver; PostgreSQL begins anew by itself
    KillReceiver,
    /// Kill the controller (the site does not matter)
    KillController,
    /// Freeze the controller (the site does not matter); `heal` thaws it
    FreezeController,
    /// Freeze the API server of the site's cluster; its pods go on, `heal` thaws it
    FreezeApiServer,
    /// Scale the database's StatefulSet to zero, as somebody else; `heal` scales it back
    ScaleToZero,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self
            .to_possible_value()
            .map(|value| value.get_name().to_owned());
        f.write_str(&name.unwrap_or_default())
    }
}

/// What is asked of a supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// Make something go wrong.
    Fault(Fault, SiteName),
    /// Thaw what is frozen, start what is missing, connect what was cut.
    Heal,
    /// End the lab.
    Down,
}

/// The file that points to this user's lab.
fn pointer() -> PathBuf {
    let folder = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    folder.join(format!("failover-lab-{}.json", geteuid().as_raw()))
}

/// Notes that a lab stands.
pub fn note(standing: &Standing) -> anyhow::Result<()> {
    let path = pointer();
    // The folder may be everybody's, so the name aside must be one that nobody can foresee.
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut aside = tempfile::NamedTempFile::new_in(folder).context("note the lab")?;
    aside.write_all(&serde_json::to_vec(standing)?)?;
    aside.persist(&path).context("note the lab")?;
    Ok(())
}

/// Forgets the lab in `dir`, if that is the one noted.
pub fn forget(dir: &Path) -> anyhow::Result<()> {
    if read()?.is_some_and(|standing| standing.dir == dir) {
        std::fs::remove_file(pointer()).context("forget the lab")?;
    }
    Ok(())
}

fn read() -> anyhow::Result<Option<Standing>> {
    let path = pointer();
    let Ok(metadata) = std::fs::symlink_metadata(&path) else {
        return Ok(None);
    };
    // The folder may be everybody's: what somebody else wrote there is not ours.
    anyhow::ensure!(
        metadata.uid() == geteuid().as_raw() && metadata.is_file(),
        "`{}` is not your file: remove it",
        path.display()
    );
    let bytes = std::fs::read(&path).context("read where the lab is")?;
    Ok(serde_json::from_slice(&bytes).ok())
}

/// This user's standing lab, if there is one and its supervisor answers.
pub fn find() -> anyhow::Result<Option<Standing>> {
    let standing = read()?;
    let answers =
        |standing: &Standing| std::os::unix::net::UnixStream::connect(&standing.socket).is_ok();
    Ok(standing.filter(answers))
}

/// Asks a lab's supervisor for something, and waits until it is done.
pub async fn ask(standing: &Standing, ask: &Ask) -> anyhow::Result<String> {
    let stream = UnixStream::connect(&standing.socket)
        .await
        .context("reach the lab's supervisor")?;
    let (reader, mut writer) = stream.into_split();
    writer
        .write_all(format!("{}\n", serde_json::to_string(ask)?).as_bytes())
        .await?;
    let mut line = String::new();
    BufReader::new(reader).read_line(&mut line).await?;
    let answer: Result<String, String> =
        serde_json::from_str(&line).context("the supervisor's answer")?;
    answer.map_err(anyhow::Error::msg)
}
