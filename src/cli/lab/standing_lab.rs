//! The lab that stays up: how it is built and ended, and the process that supervises it.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;

use super::{
    ServerArgs, UpArgs, adopt_everything, end_everything, interruptible, new_folder, policy_text,
};
use crate::adapters::clock::SystemClock;
use crate::cli::daemon::runtime;
use crate::cli::exit::{Exit, Interrupted};
use crate::cli::output::{self, Output};
use crate::lab::layout::Layout;
use crate::lab::standing::{self, Ask, Standing};
use crate::lab::supervisor::Supervisor;
use crate::ports::Clock;

/// How long the lab may take to start, and to end.
const UP_WITHIN: Duration = Duration::from_secs(90);

pub(super) fn up(args: &UpArgs, output: &Output) -> anyhow::Result<Exit> {
    anyhow::ensure!(
        standing::find()?.is_none(),
        "a lab is already running\n\nhint: `failover lab down` ends it"
    );
    let policy = policy_text(args.policy.as_ref())?;
    let dir = new_folder()?.keep();
    std::fs::write(dir.join("wanted-policy.toml"), policy)?;
    let log = std::fs::File::create(dir.join("supervisor.log"))?;
    let mut supervisor = std::process::Command::new(std::env::current_exe()?);
    supervisor.args(["lab", "supervise"]).arg(&dir);
    if let Some(folder) = &args.servers.postgres {
        supervisor.arg("--postgres").arg(folder);
    }
    if args.servers.hostile {
        supervisor.arg("--hostile");
    }
    supervisor.args(["--site", &args.servers.site.to_string()]);
    supervisor
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    std::os::unix::process::CommandExt::process_group(&mut supervisor, 0);
    let mut child = supervisor.spawn().context("start the lab's supervisor")?;
    output.say("building a lab …");
    let deadline = SystemClock.now().plus(UP_WITHIN);
    let runtime = runtime()?;
    loop {
        if let Some(standing) = standing::find()?.filter(|standing| standing.dir == dir) {
            output.say(format!(
                "the lab is running in `{}`",
                standing.dir.display()
            ));
            output.say("  failover status --watch\n  failover lab fault kill-site aws\n  failover promote shop --to gcp --dry-run\n  failover log show\n  failover lab heal\n  failover lab down");
            return Ok(Exit::Done);
        }
        if let Some(status) = child.try_wait()? {
            let said = std::fs::read_to_string(dir.join("supervisor.log")).unwrap_or_default();
            anyhow::bail!("the lab's supervisor ended with {status}: {}", said.trim());
        }
        if SystemClock.now() > deadline {
            let pid = Pid::from_child(&child);
            kill_process(pid, Signal::TERM)?;
            child.wait()?;
            anyhow::bail!("the lab did not start in time; see `{}`", dir.display());
        }
        runtime.block_on(SystemClock.sleep(Duration::from_millis(100)));
    }
}

fn found() -> anyhow::Result<Standing> {
    standing::find()?.context("no lab is running\n\nhint: `failover lab up` builds one")
}

pub(super) fn ask(what: &Ask, output: &Output) -> anyhow::Result<Exit> {
    let lab = found()?;
    let said = runtime()?.block_on(standing::ask(&lab, what))?;
    output.say(said);
    Ok(Exit::Done)
}

pub(super) fn down(output: &Output) -> anyhow::Result<Exit> {
    let lab = found()?;
    let runtime = runtime()?;
    let said = runtime.block_on(standing::ask(&lab, &Ask::Down))?;
    output.say(said);
    let deadline = SystemClock.now().plus(UP_WITHIN);
    while standing::find()?.is_some() || lab.dir.exists() {
        anyhow::ensure!(
            SystemClock.now() < deadline,
            "the lab did not end in time; see `{}`",
            lab.dir.display()
        );
        runtime.block_on(SystemClock.sleep(Duration::from_millis(50)));
    }
    Ok(Exit::Done)
}

/// Builds a lab in `dir`, supervises it and carries out requests, until it is told to end.
pub(super) async fn supervise(dir: &Path, servers: &ServerArgs) -> anyhow::Result<()> {
    let kept = interruptible(Box::pin(keep(dir, servers))).await;
    let forgotten = standing::forget(dir);
    end_everything().await?;
    match kept {
        // What was said in its folder is the only trace of why it did not stand.
        Err(error) if error.downcast_ref::<Interrupted>().is_none() => return Err(error),
        Ok(()) | Err(_) => {}
    }
    std::fs::remove_dir_all(dir).context("remove the lab's folder")?;
    forgotten
}

async fn keep(dir: &Path, servers: &ServerArgs) -> anyhow::Result<()> {
    let policy =
        std::fs::read_to_string(dir.join("wanted-policy.toml")).context("read the policy")?;
    let processes = adopt_everything()?;
    let servers = servers.servers()?;
    let layout = Layout::create(dir, &std::env::current_exe()?, None, &policy, servers).await?;
    let mut lab = Supervisor::start(layout, processes).await?;
    let socket = dir.join("supervisor.sock");
    let listener = UnixListener::bind(&socket).context("listen for what is asked")?;
    std::fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    standing::note(&Standing {
        dir: dir.to_owned(),
        socket,
        controller: lab.layout.controller,
        operator: lab.layout.operator.clone(),
    })?;
    serve(&mut lab, &listener).await?;
    lab.end().await
}

async fn serve(lab: &mut Supervisor, listener: &UnixListener) -> anyhow::Result<()> {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = SystemClock.sleep(Duration::from_secs(1)) => {
                lab.look()?;
                continue;
            }
        };
        let (stream, _) = accepted.context("accept")?;
        let (reader, mut writer) = stream.into_split();
        let mut line = String::new();
        // A connection that only looks whether we are here says nothing.
        if BufReader::new(reader)
            .read_line(&mut line)
            .await
            .unwrap_or(0)
            == 0
        {
            continue;
        }
        let asked: Result<Ask, _> = serde_json::from_str(&line);
        let done = match &asked {
            Ok(asked) => lab.obey(asked).await.map_err(|error| output::said(&error)),
            Err(error) => Err(error.to_string()),
        };
        let answer = serde_json::to_string(&done)? + "\n";
        // Who asked may be gone; what was done is done.
        writer
            .write_all(answer.as_bytes())
            .await
            .unwrap_or_default();
        if matches!(asked, Ok(Ask::Down)) {
            return Ok(());
        }
    }
}
