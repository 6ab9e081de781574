//! The state that must survive an agent, in one file: written aside, made durable, renamed into
//! place.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;

use async_trait::async_trait;

use crate::engine::format::Format;
use crate::ports::{AgentMemory, AgentStore, StoreError};
use crate::wire::written::{Message, Unknown, Written};

/// A promise in it binds the agent after this one, which may be of an earlier program: one that is not
/// understood keeps that agent from starting.
impl Message for AgentMemory {
    const NAME: &'static str = "memory";
    const READER: &'static str = "agent";
    const UNKNOWN: Unknown = Unknown::Refused;
    const FORMAT: Format = Format::new(1, 0);
}

/// The state in `agent.json` of the state folder.
#[derive(Debug)]
pub struct FileStore {
    folder: PathBuf,
}

impl FileStore {
    /// A store in this folder.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn failed(&self, cause: &dyn std::fmt::Display) -> StoreError {
        StoreError(format!("`{}/agent.json`: {cause}", self.folder.display()))
    }
}

#[async_trait]
impl AgentStore for FileStore {
    async fn load(&self) -> Result<Option<AgentMemory>, StoreError> {
        match std::fs::read(self.folder.join("agent.json")) {
            Ok(bytes) => Written::read(&bytes)
                .map(|written| Some(written.message))
                .map_err(|refused| self.failed(&refused)),
            Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(self.failed(&cause)),
        }
    }

    async fn save(&self, memory: &AgentMemory) -> Result<(), StoreError> {
        let bytes =
            serde_json::to_vec(&Written::ours(memory)).map_err(|cause| self.failed(&cause))?;
        let write = || {
            let aside = self.folder.join("agent.json.new");
            let mut file = File::create(&aside)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            std::fs::rename(&aside, self.folder.join("agent.json"))?;
            File::open(&self.folder)?.sync_all()
        };
        write().map_err(|cause| self.failed(&cause))
    }
}
