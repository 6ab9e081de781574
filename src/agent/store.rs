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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::units::Epoch;

    #[tokio::test]
    async fn a_promise_of_a_later_agent_keeps_an_earlier_one_from_starting() {
        let folder = tempfile::tempdir().unwrap();
        let store = FileStore::new(folder.path().to_owned());
        assert_eq!(store.load().await.unwrap(), None);
        let memory = AgentMemory {
            epoch: Epoch(2),
            desisted: Some(14),
            ..AgentMemory::default()
        };
        store.save(&memory).await.unwrap();
        assert_eq!(store.load().await.unwrap(), Some(memory.clone()));

        let file = folder.path().join("agent.json");
        let kept: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let kept_with = |name: &str, value: serde_json::Value| {
            let mut later = kept.clone();
            later["written_by"] = serde_json::json!({"program": "7.1.0", "format": "1.9"});
            later[name] = value;
            std::fs::write(&file, later.to_string()).unwrap();
        };
        kept_with("promised", serde_json::json!({"until": 7}));
        let refused = store.load().await.unwrap_err().to_string();
        for told in [
            "agent.json`: the memory is of failover 7.1.0 (format 1.9)",
            "unknown field `promised`",
            "upgrade the agent first",
        ] {
            assert!(refused.contains(told), "{refused}");
        }
        // A promise that it never gave binds nobody.
        kept_with("promised", serde_json::Value::Null);
        assert_eq!(store.load().await.unwrap(), Some(memory));
    }
}
