//! One cluster: which it is, how it stands, and what is in it.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::http::StatusCode;
use serde_json::Value;

use super::access::{Access, Door};
use super::object::{Object, resources};
use super::{ClusterError, Need, Place, Resource};
use crate::adapters::reread::CredentialBook;
use crate::engine::text::{TEXT_LIMIT, clip_to};
use crate::ports::Clock;

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How to come in.
    pub access: Access,
    /// The uid of its namespace `kube-system`, by which it is known again. `None`: the first that is
    /// seen counts from then on.
    pub uid: Option<String>,
    /// How long one call may take.
    pub timeout: Duration,
}

/// A connection to a cluster's API server.
#[derive(Debug)]
pub struct Cluster {
    pub(super) door: Door,
    pub(super) timeout: Duration,
    uid: OnceLock<String>,
}

/// How a node stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeLook {
    /// Its name.
    pub name: String,
    /// What its condition `Ready` says: nothing, where nobody says anything.
    pub ready: Option<bool>,
    /// Its machine, as the cloud names it.
    pub machine: Option<String>,
    /// The version of its kubelet.
    pub kubelet: Option<String>,
}

/// Several objects, read at one moment.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Listed {
    pub(super) items: Vec<Object>,
    /// The version of that moment.
    pub(super) version: String,
}

impl Cluster {
    /// Reads the credentials; the server is called with the first use. No call is ever repeated.
    pub async fn connect(
        settings: Settings,
        clock: &Arc<dyn Clock>,
        book: &Arc<CredentialBook>,
    ) -> Result<Self, ClusterError> {
        let door = Door::open(settings.access, settings.timeout, clock, book).await?;
        let uid = OnceLock::new();
        if let Some(known) = settings.uid {
            uid.get_or_init(|| known);
        }
        Ok(Self {
            door,
            timeout: settings.timeout,
            uid,
        })
    }

    /// What our role must allow so that we see how the cluster stands.
    pub fn needs() -> Vec<Need> {
        vec![
            Need::identity(),
            Need::all("list", resources::NODES, ""),
            Need::all("create", resources::ACCESS_REVIEWS, ""),
        ]
    }

    /// Which cluster answers: its uid. [`ClusterError::OtherCluster`] where it is not the recorded one, or
    /// not the one that answered before.
    pub async fn identify(&self) -> Result<String, ClusterError> {
        let place = Place::new(resources::NAMESPACES, "", "kube-system")?;
        let found = Object(self.read(&place, "").await?).version()?.uid;
        let expected = self.uid.get_or_init(|| found.clone());
        if *expected == found {
            return Ok(found);
        }
        Err(ClusterError::OtherCluster {
            expected: expected.clone(),
            found,
        })
    }

    /// Whether the server says that it is ready; what it says otherwise is in the error.
    pub async fn ready(&self) -> Result<(), ClusterError> {
        let (status, body) = self.fetch("/readyz").await?;
        if status.is_success() {
            return Ok(());
        }
        let mut text = String::from_utf8_lossy(&body).trim().to_owned();
        clip_to(&mut text, TEXT_LIMIT);
        Err(if status == StatusCode::UNAUTHORIZED {
            ClusterError::Unauthorized(format!("`/readyz`: {text}"))
        } else {
            ClusterError::Failed(format!("the API server is not ready: {status}: {text}"))
        })
    }

    /// The server's version, as it writes it: `v1.36.2`.
    pub async fn server_version(&self) -> Result<String, ClusterError> {
        let (status, body) = self.fetch("/version").await?;
        let value: Value = serde_json::from_slice(&body).unwrap_or_default();
        let version = value["gitVersion"].as_str().map(ToOwned::to_owned);
        version.ok_or_else(|| ClusterError::Failed(format!("`/version` answers {status}")))
    }

    /// All nodes.
    pub async fn nodes(&self) -> Result<Vec<NodeLook>, ClusterError> {
        let listed = self.list(resources::NODES, "", "").await?;
        Ok(listed.items.iter().map(node_look).collect())
    }

    /// How old the token in use is; `None` where the credential is no token of ours.
    pub fn credential_age(&self) -> Option<Duration> {
        self.door.age()
    }

    /// Reads one object from the store.
    pub async fn get(&self, place: &Place) -> Result<Object, ClusterError> {
        self.read(place, "").await.map(Object)
    }

    /// Reads all objects of a kind that bear these labels (`app=db,tier=low`; empty: all).
    pub(super) async fn list(
        &self,
        resource: Resource,
        namespace: &str,
        labels: &str,
    ) -> Result<Listed, ClusterError> {
        let query = if labels.is_empty() {
            String::new()
        } else {
            format!("labelSelector={}", in_query(labels))
        };
        let answer = self.read_all(resource, namespace, &query).await?;
        let version = answer["metadata"]["resourceVersion"].as_str();
        let items = answer["items"].as_array();
        let (Some(version), Some(items)) = (version, items) else {
            return Err(ClusterError::Failed(format!(
                "the list of `{}` is none",
                resource.plural
            )));
        };
        Ok(Listed {
            items: items.iter().cloned().map(Object).collect(),
            version: version.to_owned(),
        })
    }

    /// A refusal is final only if the server is up: one that starts refuses rightful users, too.
    pub(super) async fn doubted(&self, error: ClusterError) -> ClusterError {
        let ClusterError::Forbidden { .. } = &error else {
            return error;
        };
        let starts = |why: &dyn std::fmt::Display| {
            ClusterError::Failed(format!("{error} (but perhaps it only starts: {why})"))
        };
        match self.ready().await {
            Ok(()) => error,
            Err(why) => starts(&why),
        }
    }

    /// Which of these are not allowed. Asks for each; changes nothing.
    pub async fn missing(&self, needs: &[Need]) -> Result<Vec<Need>, ClusterError> {
        let mut missing = Vec::new();
        for need in needs {
            let answer = self.ask(resources::ACCESS_REVIEWS, need.body()).await?;
            match answer["status"]["allowed"].as_bool() {
                Some(true) => {}
                Some(false) => missing.push(need.clone()),
                None => {
                    let said = "the answer to an access review says neither yes nor no";
                    return Err(ClusterError::Failed(said.to_owned()));
                }
            }
        }
        Ok(missing)
    }
}

fn node_look(node: &Object) -> NodeLook {
    let conditions = node.0["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    let ready = conditions.find(|one| one["type"].as_str() == Some("Ready"));
    let text = |pointer: &str| node.text(pointer).map(ToOwned::to_owned);
    NodeLook {
        name: node.name().to_owned(),
        ready: match ready.and_then(|ready| ready["status"].as_str()) {
            Some("True") => Some(true),
            Some("False") => Some(false),
            Some(_) | None => None,
        },
        machine: text("/spec/providerID"),
        kubelet: text("/status/nodeInfo/kubeletVersion"),
    }
}

/// A text as part of a query.
fn in_query(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        let plain = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        if plain {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
