//! The table `[pod]`.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use crate::agent::pod::{Source, Sources};
use crate::config::Files;
use crate::engine::document::Section;

/// How long PostgreSQL may take to end by default: less than the 30 s that a container is given by
/// default.
const STOP: Duration = Duration::from_secs(20);

/// What is particular about an agent in a pod.
#[derive(Debug, Clone)]
pub struct PodConfig {
    /// Where the downward API says who we are.
    pub sources: Sources,
    /// How long PostgreSQL may take to end cleanly when the container is told to: 1 s to 1 h.
    pub stop_within: Duration,
}

impl Default for PodConfig {
    /// What a container has that is given the usual variables and the usual time.
    fn default() -> Self {
        let variable = |name: &str| Source::Variable(name.to_owned());
        Self {
            sources: Sources {
                namespace: variable("POD_NAMESPACE"),
                name: variable("POD_NAME"),
                uid: variable("POD_UID"),
            },
            stop_within: STOP,
        }
    }
}

pub(super) fn build(at: &Section<'_>) -> PodConfig {
    let usual = PodConfig::default();
    let source = |key: &str, example: &str, otherwise: Source| {
        at.optional_parsed(key, example).unwrap_or(otherwise)
    };
    let Sources {
        namespace,
        name,
        uid,
    } = usual.sources;
    let sources = Sources {
        namespace: source("namespace", "$POD_NAMESPACE", namespace),
        name: source("name", "$POD_NAME", name),
        uid: source("uid", "$POD_UID", uid),
    };
    let bounds = Duration::from_secs(1)..=Duration::from_secs(3600);
    PodConfig {
        sources,
        stop_within: at.duration_or("stop_within", bounds, usual.stop_within),
    }
}

/// A fence must go wherever the data goes: the marker lies on the volume that the data is on.
pub(super) fn must_be_one_volume(
    at: &Section<'_>,
    files: Files<'_>,
    state_dir: &Path,
    data_dir: &Path,
) {
    let device = |path: &Path| {
        let there = path.ancestors().find(|it| it.exists())?;
        std::fs::metadata(there).map(|found| found.dev()).ok()
    };
    if files.look() && device(state_dir) != device(data_dir) {
        at.problem("state_dir", format!(
            "`agent.state_dir` (`{}`) and `postgres.data_dir` (`{}`) are on different volumes: put both on the PersistentVolume, so that a fence goes wherever the data goes",
            state_dir.display(), data_dir.display()
        ));
    }
}
