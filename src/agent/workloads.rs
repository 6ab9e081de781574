//! The local workloads: two commands, or objects of a cluster, and a health URL.

use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use axum::http::Uri;
use tokio::process::Command;

use crate::adapters::http::HttpProber;
use crate::ports::{EffectError, Workloads};

mod cluster;

pub use self::cluster::ClusterWorkloads;

/// How long a start or stop command may take.
const COMMAND: Duration = Duration::from_secs(30);

/// How long the URL may take to answer that the workloads are ready.
const READY: Duration = Duration::from_secs(2);

/// The page by which workloads say that they can take users.
#[derive(Debug, Clone)]
pub struct Page {
    /// URL that answers 2xx when they can.
    pub url: Uri,
    /// The HTTP client.
    pub http: HttpProber,
}

impl Page {
    async fn answers(&self) -> bool {
        self.http.probe(&self.url, READY, &[]).await.is_ok()
    }
}

/// Workloads that a supervisor on the host runs, such as systemd.
#[derive(Debug)]
pub struct CommandWorkloads {
    /// The command that starts them.
    pub start: Vec<String>,
    /// The command that stops them.
    pub stop: Vec<String>,
    /// Says when they are ready.
    pub page: Page,
}

async fn run(words: &[String]) -> Result<(), EffectError> {
    let Some((program, arguments)) = words.split_first() else {
        return Ok(());
    };
    let failed = |why: String| EffectError::Failed(format!("`{}`: {why}", words.join(" ")));
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command.kill_on_drop(true);
    let output = tokio::time::timeout(COMMAND, command.output()).await;
    let output = output
        .map_err(|_late| EffectError::Unknown(format!("`{}` did not end", words.join(" "))))?;
    let output = output.map_err(|cause| failed(cause.to_string()))?;
    if output.status.success() {
        Ok(())
    } else {
        let said = String::from_utf8_lossy(&output.stderr);
        Err(failed(format!("{}: {}", output.status, said.trim())))
    }
}

#[async_trait]
impl Workloads for CommandWorkloads {
    async fn start(&self) -> Result<(), EffectError> {
        run(&self.start).await
    }

    async fn stop(&self) -> Result<(), EffectError> {
        run(&self.stop).await
    }

    async fn ready(&self) -> Result<bool, EffectError> {
        Ok(self.page.answers().await)
    }
}
