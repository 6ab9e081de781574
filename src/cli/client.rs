//! The command line's connection to the controller.

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

use super::Reach;
use crate::adapters::tls::{CallError, Identity, Peer, PeerClient, TlsFiles, TlsMaterial};
use crate::engine::text::harmless;
use crate::engine::topology::GroupName;
use crate::lab::standing;
use crate::wire::written::{Message, Written};
use crate::wire::{GROUPS_PATH, Groups, LogPart};

/// How long the controller may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// The same for a part of the log, for which the controller waits.
const LOG_ANSWER: Duration = Duration::from_secs(30);

/// A connection to the controller, with a runtime to wait in.
#[derive(Debug)]
pub struct Client {
    peer: PeerClient,
    runtime: tokio::runtime::Runtime,
    address: String,
}

impl Client {
    /// As the options say; otherwise to this user's running lab. Without a group it is for the only one
    /// that the controller has.
    pub fn new(reach: &Reach, group: Option<&GroupName>) -> anyhow::Result<Self> {
        let standing = if reach.controller.is_none() {
            standing::find()?
        } else {
            None
        };
        let (address, files) = match (standing, &reach.controller) {
            (Some(lab), _) => (lab.controller.to_string(), lab.operator),
            (None, Some(address)) => {
                let need = |file: &Option<PathBuf>, name: &str| {
                    file.clone().with_context(|| format!("`--{name}` is missing\n\nhint: create an operator's certificate with `failover certificates` (see runbooks/agent-rejected.md)"))
                };
                let files = TlsFiles {
                    ca: need(&reach.ca, "ca")?,
                    certificate: need(&reach.certificate, "certificate")?,
                    key: need(&reach.key, "key")?,
                    revoked: None,
                };
                (address.clone(), files)
            }
            (None, None) => anyhow::bail!(
                "no controller is configured and no lab is running\n\nhint: pass `--controller HOST:PORT` with `--ca`, `--certificate` and `--key` (or set FAILOVER_CONTROLLER and so on), or run `failover lab up`"
            ),
        };
        let material = TlsMaterial::load(&files)?;
        let peer = Peer {
            identity: Identity::Controller,
            address: address.parse()?,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let mut client = Self {
            peer: PeerClient::new(&material, peer)?,
            runtime,
            address,
        };
        let group = group
            .cloned()
            .map_or_else(|| client.only_group(), |it| Ok(Some(it)))?;
        if let Some(group) = group {
            client.peer = client.peer.of(&group);
        }
        Ok(client)
    }

    /// The only group of the controller; `None` from one that knows no groups yet, and has only one.
    fn only_group(&self) -> anyhow::Result<Option<GroupName>> {
        let answer = self.runtime.block_on(self.peer.get(GROUPS_PATH, ANSWER));
        let answer: Value = match answer {
            Err(CallError::Status { code: 404, .. }) => return Ok(None),
            answer => answer.map_err(|error| self.explain(error))?,
        };
        let Groups { groups } = read(answer)?;
        match groups.as_slice() {
            [only] => Ok(Some(only.clone())),
            several => {
                let names: Vec<String> = several.iter().map(ToString::to_string).collect();
                anyhow::bail!(
                    "controller `{}` has the groups {}: name one",
                    self.address,
                    names.join(", ")
                )
            }
        }
    }

    fn explain(&self, error: CallError) -> anyhow::Error {
        let hint = match &error {
            CallError::Denied { .. } | CallError::Tls(_) => "see runbooks/agent-rejected.md",
            CallError::Timeout
            | CallError::Refused
            | CallError::Unreachable(_)
            | CallError::Lost(_) => "is it running? The active site goes on without its controller",
            CallError::Status { .. } | CallError::Garbled(_) | CallError::Unsent(_) => {
                "see the controller's log"
            }
        };
        anyhow::anyhow!(
            "request to controller `{}` failed: {error}\n\nhint: {hint}",
            self.address
        )
    }

    /// Reads.
    pub fn get<R: Message>(&self, path: &str) -> anyhow::Result<R> {
        let answer: Value = self
            .runtime
            .block_on(self.peer.get(path, ANSWER))
            .map_err(|error| self.explain(error))?;
        read(answer)
    }

    /// Reads a part of the decision log, line by line as in its file.
    pub fn log(&self, path: &str) -> anyhow::Result<LogPart> {
        self.runtime
            .block_on(self.peer.get(path, LOG_ANSWER))
            .map_err(|error| self.explain(error))
    }

    /// Asks for something to be done that has no other answer than that it is done.
    pub fn order<B: Message>(&self, path: &str, body: &B) -> anyhow::Result<()> {
        self.send(path, body).map(drop)
    }

    /// Asks for something to be done, and reads what became of it.
    pub fn post<B: Message, R: Message>(&self, path: &str, body: &B) -> anyhow::Result<R> {
        read(self.send(path, body)?)
    }

    fn send<B: Message>(&self, path: &str, body: &B) -> anyhow::Result<Value> {
        self.runtime
            .block_on(self.peer.post(path, &Written::ours(body), ANSWER))
            .map_err(|error| self.explain(error))
    }
}

/// An answer, with every text in it as it may be shown.
fn read<R: Message>(mut answer: Value) -> anyhow::Result<R> {
    make_harmless(&mut answer);
    Ok(Written::read(answer.to_string().as_bytes())?.message)
}

fn make_harmless(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Cow::Owned(shown) = harmless(text) {
                *text = shown;
            }
        }
        Value::Array(all) => all.iter_mut().for_each(make_harmless),
        Value::Object(all) => all.values_mut().for_each(make_harmless),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

impl Client {
    /// Reads again and again, for as long as `shown` wants, and hands it also what went wrong: a
    /// controller that goes away may come back. Ends at once when somebody presses Ctrl-C.
    pub fn watch<R: Message>(
        &self,
        path: &str,
        every: Duration,
        mut shown: impl FnMut(anyhow::Result<R>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let watching = async {
            loop {
                let answer = self.peer.get(path, ANSWER).await;
                shown(answer.map_err(|error| self.explain(error)).and_then(read))?;
                tokio::time::sleep(every).await;
            }
        };
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                pressed = tokio::signal::ctrl_c() => {
                    pressed.context("wait for signals")?;
                    Ok(())
                }
                ended = watching => ended,
            }
        })
    }
}
