//! `fenced.json`: the durable record that this database is fenced.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use crate::agent::guard_protocol::FenceMarker;

/// How long the guard waits for the disk: an fsync takes a few milliseconds, on a frozen disk for
/// ever. Then a fence goes on without its marker: ending the writes matters more than recording it,
/// since a start as primary needs a lease from the controller in any case.
const PATIENCE: Duration = Duration::from_millis(250);

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("fenced.json")
}

/// Reads the marker. A damaged one is an error, not an absent one.
pub(super) fn read(state_dir: &Path) -> io::Result<Option<FenceMarker>> {
    match fs::read(path(state_dir)) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(io::Error::other),
        Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(cause),
    }
}

/// Makes the marker durable, or gives up after a quarter of a second.
pub(super) fn write(state_dir: &Path, marker: &FenceMarker) -> io::Result<()> {
    let text = serde_json::to_vec(marker)?;
    let folder = state_dir.to_owned();
    patiently(move || {
        let mut file = tempfile::NamedTempFile::new_in(&folder)?;
        file.write_all(&text)?;
        file.as_file().sync_all()?;
        file.persist(path(&folder)).map_err(|cause| cause.error)?;
        File::open(&folder)?.sync_all()
    })
}

/// Removes the marker durably, or gives up after a quarter of a second.
pub(super) fn remove(state_dir: &Path) -> io::Result<()> {
    let folder = state_dir.to_owned();
    patiently(move || match fs::remove_file(path(&folder)) {
        Err(cause) if cause.kind() != ErrorKind::NotFound => Err(cause),
        Ok(()) | Err(_) => File::open(&folder)?.sync_all(),
    })
}

/// Runs on a second thread: a hung disk cannot be interrupted.
fn patiently(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    let (done, wait) = mpsc::sync_channel(1);
    std::thread::Builder::new()
        .name("fence-marker".to_owned())
        .spawn(move || done.send(work()))?;
    wait.recv_timeout(PATIENCE).unwrap_or_else(|cause| {
        Err(io::Error::other(format!(
            "the disk does not answer: {cause}"
        )))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::units::Epoch;

    #[test]
    fn a_marker_is_read_back_replaced_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()).unwrap(), None);
        let mut marker = FenceMarker {
            epoch: Epoch(3),
            cause: "lease-expired".to_owned(),
            at_ms: 1,
            proof: None,
        };
        for epoch in [3, 4] {
            marker.epoch = Epoch(epoch);
            write(folder.path(), &marker).unwrap();
            assert_eq!(read(folder.path()).unwrap().as_ref(), Some(&marker));
        }
        remove(folder.path()).unwrap();
        remove(folder.path()).unwrap();
        assert_eq!(read(folder.path()).unwrap(), None);
    }

    #[test]
    fn a_damaged_marker_is_not_an_absent_one() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(path(folder.path()), "{").unwrap();
        assert!(read(folder.path()).is_err());
    }
}
