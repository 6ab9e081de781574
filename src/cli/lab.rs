//! `failover lab`: the whole product on one machine.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use tokio::signal::unix::{SignalKind, signal};

use super::daemon::runtime;
use super::exit::{Exit, Interrupted};
use super::output::{Mood, Output};
use crate::adapters::clock::SystemClock;
use crate::engine::topology::SiteName;
use crate::lab::cluster::{self, ClusterConfig, SiteKind};
use crate::lab::layout::{Layout, Servers};
use crate::lab::pair::PostgresTools;
use crate::lab::processes::Processes;
use crate::lab::scenario::{self, LabReport, Sight};
use crate::lab::site_api::{self, SiteApiConfig};
use crate::lab::standing::{Ask, Fault};
use crate::lab::supervisor::Supervisor;
use crate::ports::Clock;

mod standing_lab;

use self::standing_lab::{ask, down, supervise, up};

/// The policy of a lab by default.
const FAST: &str = include_str!("../../policies/fast.toml");

/// How long remaining processes may take to end by themselves.
const END_WITHIN: Duration = Duration::from_secs(2);

/// `failover lab`.
#[derive(Debug, Subcommand)]
pub enum LabVerb {
    /// Build a lab, make it fail over, report, and leave nothing behind
    Run(RunArgs),
    /// Build a lab and keep it running
    Up(UpArgs),
    /// Inject a fault into the running lab
    Fault {
        /// The fault
        #[arg(value_enum)]
        fault: Fault,
        /// The site
        site: SiteName,
    },
    /// Undo faults: thaw, restart and reconnect
    Heal,
    /// Stop the running lab and all its processes
    Down,
    /// Supervise a running lab (started by `up` only)
    #[command(hide = true)]
    Supervise {
        /// Its folder
        dir: PathBuf,
        /// What it consists of
        #[command(flatten)]
        servers: ServerArgs,
    },
    /// The service of a site (started by the lab only)
    #[command(hide = true, subcommand)]
    SiteApi(SiteApiVerb),
    /// The Kubernetes cluster of a site (started by the lab only)
    #[command(hide = true)]
    Cluster {
        /// Its configuration
        config: PathBuf,
    },
}

/// `failover lab run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The fault to inject at the active site
    #[arg(long, value_enum, default_value_t = Fault::KillSite)]
    fault: Fault,
    /// The policy; `policies/fast.toml` where none is named
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Where to write the report as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Make the old primary a standby of the new one afterwards
    #[arg(long)]
    rejoin: bool,
    #[command(flatten)]
    servers: ServerArgs,
}

/// What the lab consists of.
#[derive(Debug, Args)]
pub struct ServerArgs {
    /// What its sites are; Kubernetes needs the user root
    #[arg(long, value_enum, value_name = "KIND", default_value_t = SiteKind::Host)]
    site: SiteKind,
    /// The folder with `postgres`, `initdb` and `pg_ctl`; by default the newest on this machine
    #[arg(long, value_name = "DIR")]
    postgres: Option<PathBuf>,
    /// Use hostile defaults of server, database and roles
    #[arg(long)]
    hostile: bool,
}

impl ServerArgs {
    fn servers(&self) -> anyhow::Result<Servers> {
        let tools = match &self.postgres {
            Some(folder) => {
                let folder = std::path::absolute(folder)
                    .with_context(|| format!("find `{}`", folder.display()))?;
                PostgresTools::in_folder(folder)?
            }
            None => PostgresTools::find()?,
        };
        Ok(Servers {
            tools,
            hostile: self.hostile,
            kind: self.site,
        })
    }
}

/// `failover lab up`.
#[derive(Debug, Args)]
pub struct UpArgs {
    /// The policy; `policies/fast.toml` where none is named
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    #[command(flatten)]
    servers: ServerArgs,
}

/// What to do with a site's service.
#[derive(Debug, Subcommand)]
pub enum SiteApiVerb {
    /// Serve until the process ends
    Run {
        /// Its configuration
        config: PathBuf,
    },
    /// Start it in the background, as a host's supervisor would
    Start {
        /// Its configuration
        config: PathBuf,
    },
    /// Stop what `start` started
    Stop {
        /// Its configuration
        config: PathBuf,
    },
}

fn policy_text(file: Option<&PathBuf>) -> anyhow::Result<String> {
    let Some(file) = file else {
        return Ok(FAST.to_owned());
    };
    let text =
        std::fs::read_to_string(file).with_context(|| format!("read `{}`", file.display()))?;
    crate::engine::policy::Policy::read(&file.display().to_string(), &text)?;
    Ok(text)
}

/// A new folder for a lab.
fn new_folder() -> anyhow::Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix("failover-lab-")
        .tempdir()
        .context("make a folder for the lab")
}

/// Where the decision log of the last run is kept: a folder that belongs to this user alone.
fn kept_folder() -> anyhow::Result<PathBuf> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};

    let path = std::env::temp_dir().join(format!("failover-lab-{}-last", geteuid().as_raw()));
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&path)?;
    let metadata = std::fs::symlink_metadata(&path)?;
    anyhow::ensure!(
        metadata.is_dir() && metadata.uid() == geteuid().as_raw(),
        "`{}` is not your folder: remove it",
        path.display()
    );
    Ok(path)
}

/// Runs a command of the lab.
pub fn run(verb: LabVerb, output: &Output) -> anyhow::Result<Exit> {
    match verb {
        LabVerb::Run(args) => run_scenario(&args, output),
        LabVerb::Up(args) => up(&args, output),
        LabVerb::Fault { fault, site } => ask(&Ask::Fault(fault, site), output),
        LabVerb::Heal => ask(&Ask::Heal, output),
        LabVerb::Down => down(output),
        LabVerb::Supervise { dir, servers } => runtime()?
            .block_on(supervise(&dir, &servers))
            .map(|()| Exit::Done),
        LabVerb::SiteApi(verb) => site_api(&verb),
        LabVerb::Cluster { config } => {
            super::daemon::log_to_stderr(output);
            let config = ClusterConfig::read(&config)?;
            runtime()?
                .block_on(cluster::run(config))
                .map(|()| Exit::Done)
        }
    }
}

fn run_scenario(args: &RunArgs, output: &Output) -> anyhow::Result<Exit> {
    let policy = policy_text(args.policy.as_ref())?;
    let runtime = runtime()?;
    let report = runtime.block_on(async {
        let folder = new_folder()?;
        let played = interruptible(Box::pin(play(args, &policy, folder.path(), output))).await;
        end_everything().await?;
        played
    })?;
    if let Some(file) = &args.report {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(file, text + "\n").with_context(|| format!("write `{}`", file.display()))?;
    }
    if output.is_json() {
        output.json(&report)?;
    } else {
        show_report(&report, output);
    }
    Ok(if report.passed { Exit::Done } else { Exit::No })
}

/// Builds a lab and makes it fail over.
async fn play(
    args: &RunArgs,
    policy: &str,
    dir: &Path,
    output: &Output,
) -> anyhow::Result<LabReport> {
    let tell = |text: String| {
        if !output.is_json() {
            output.text(text);
        }
    };
    tell("building a lab: two sites with PostgreSQL, agents and services, a name server, a controller, a client …".to_owned());
    let processes = adopt_everything()?;
    let servers = args.servers.servers()?;
    let layout = Layout::create(dir, &std::env::current_exe()?, None, policy, servers).await?;
    let mut lab = Supervisor::start(layout, processes).await?;
    let kept = kept_folder()?;
    tell(format!("steady; now: {} aws", args.fault));
    let played = scenario::run(&mut lab, args.fault, args.rejoin, &kept, |at, sight| {
        if !output.is_json() {
            show(at, sight, output);
        }
    });
    let played = Box::pin(played).await;
    let expected = lab.expected_errors.clone();
    lab.end().await?;
    let mut report = played?;
    let unexpected = expected.unexpected_in(dir)?;
    report.passed &= unexpected.is_empty();
    let problems = unexpected.into_iter();
    report
        .problems
        .extend(problems.map(|line| format!("an error that the fault does not explain: {line}")));
    Ok(report)
}

/// Makes this process the reaper of everything that it starts.
fn adopt_everything() -> anyhow::Result<Processes> {
    Ok(Processes::new(
        &format!("lab-{}", std::process::id()),
        Arc::new(SystemClock),
    )?)
}

/// Ends whatever this process started that has not ended.
async fn end_everything() -> anyhow::Result<()> {
    Ok(adopt_everything()?.end_all(&[], END_WITHIN).await?)
}

/// Shuts down cleanly on Ctrl-C, so that no process is left.
async fn interruptible<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let mut terminate = signal(SignalKind::terminate())?;
    // The work comes last: whoever sees that it has begun may interrupt it already.
    tokio::select! {
        biased;
        _pressed = tokio::signal::ctrl_c() => Err(Interrupted.into()),
        _told = terminate.recv() => Err(Interrupted.into()),
        done = work => done,
    }
}

fn show(at: f64, sight: &Sight, output: &Output) {
    let clock = output.paint(Mood::Dim, format!("{at:>7.3} s"));
    let line = match sight {
        Sight::Health(text) => format!("seen     {text}"),
        Sight::Client(text) => output.paint(Mood::Good, format!("client   {text}")),
        Sight::Entry(entry) => {
            let line = super::log::one_line(entry);
            // The number, time and epoch are in the log; here the time since the fault counts.
            let text = line.splitn(4, ' ').nth(3).unwrap_or(&line).trim_start();
            format!(
                "log      {}",
                line.split_once(&format!(" e{} ", entry.epoch))
                    .map_or(text, |(_, rest)| rest)
            )
        }
    };
    output.text(format!("{clock}  {line}"));
}

fn show_report(report: &LabReport, output: &Output) {
    let at = |name: &str, seconds: Option<f64>| {
        let value = seconds.map_or("-".to_owned(), |seconds| format!("{seconds:>7.3} s"));
        output.text(format!("  {name:<18} {value}"));
    };
    let timeline = &report.timeline;
    output.text(format!(
        "\n{}",
        output.paint(Mood::Strong, "after the fault")
    ));
    at("suspected", timeline.suspected);
    at("decided", timeline.decided);
    at("fenced", timeline.fenced);
    at("promoted", timeline.promoted);
    at("writable", timeline.writable);
    at("traffic moved", timeline.traffic_moved);
    at("first user write", timeline.first_user_write);
    let writes = &report.writes;
    output.text(format!("\n{}", output.paint(Mood::Strong, "writes")));
    output.text(format!(
        "  {} acknowledged, {} lost, {} of them outside the declared window, {} by the old site after the new one's first",
        writes.acknowledged, writes.lost, writes.lost_outside_declared_window, writes.by_old_after_new
    ));
    if let Some(declared) = &report.loss_declared {
        output.text(format!("  declared before the promotion: {declared}"));
    }
    let log = &report.log;
    let verified = if log.verified {
        output.paint(Mood::Good, "verified")
    } else {
        output.paint(Mood::Bad, "does not verify")
    };
    output.text(format!(
        "\n{} {verified}, head {}",
        output.paint(Mood::Strong, "decision log"),
        log.head
    ));
    output.text(format!(
        "  failover log show {0}\n  failover log verify {0}",
        log.path.display()
    ));
    output.text("  failover lab up        the same lab, kept running: status, promote, lab fault, lab heal, lab down");
    if report.rejoined == Some(true) {
        output.text("\nthe old primary follows the new one, and automation is re-armed");
    }
    if report.passed {
        output.text(format!(
            "\n{}",
            output.paint(
                Mood::Good,
                "the service continued at the other site, and everything verified"
            )
        ));
    } else {
        for problem in &report.problems {
            output.text(format!(
                "\n{} {problem}",
                output.paint(Mood::Bad, "problem:")
            ));
        }
    }
}

fn read_api(config: &Path) -> anyhow::Result<SiteApiConfig> {
    let text = std::fs::read(config).with_context(|| format!("read `{}`", config.display()))?;
    serde_json::from_slice(&text).context("the service's configuration")
}

fn site_api(verb: &SiteApiVerb) -> anyhow::Result<Exit> {
    match verb {
        SiteApiVerb::Run { config } => {
            runtime()?.block_on(site_api::run(read_api(config)?))?;
        }
        SiteApiVerb::Start { config } => {
            let listen = read_api(config)?.listen;
            let mut command = std::process::Command::new(std::env::current_exe()?);
            command.args(["lab", "site-api", "run"]).arg(config);
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            std::os::unix::process::CommandExt::process_group(&mut command, 0);
            let child = command.spawn().context("start the service")?;
            std::fs::write(config.with_extension("pid"), child.id().to_string())?;
            let clock: Arc<dyn Clock> = Arc::new(SystemClock);
            let deadline = clock.now().plus(Duration::from_secs(10));
            while std::net::TcpStream::connect(listen).is_err() {
                anyhow::ensure!(clock.now() < deadline, "the service does not listen");
                runtime()?.block_on(clock.sleep(Duration::from_millis(20)));
            }
        }
        SiteApiVerb::Stop { config } => {
            let text = std::fs::read_to_string(config.with_extension("pid"))
                .context("nothing was started")?;
            let pid = text
                .trim()
                .parse()
                .ok()
                .and_then(Pid::from_raw)
                .context("the noted process")?;
            kill_process(pid, Signal::TERM)?;
            std::fs::remove_file(config.with_extension("pid"))?;
        }
    }
    Ok(Exit::Done)
}
