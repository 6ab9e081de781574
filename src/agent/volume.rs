//! The volume with a pod's state and data: one container at a time may use it.
//!
//! PostgreSQL's own protection ends at the container: its pid file names a process of another PID
//! namespace, and its shared memory is not seen from there (postgres.md P14). A lock of the file
//! system does not end there, and where the file system has locks for several nodes, not at the node
//! (docs/kubernetes-api.md). The first process of a container takes it, and everything that it starts
//! inherits it, down to PostgreSQL's processes: it is free once the last of them has ended. The first
//! process alone would let go of it a moment too early: when that ends, the kernel closes its files
//! before it ends the others.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};
use rustix::io::{FdFlags, fcntl_setfd};

use super::config::Postgres;
use super::pod::Pod;
use crate::engine::text::clipped;
use crate::ports::Clock;

/// The lock, in the state folder.
const FILE: &str = "volume.lock";

/// How long another pod is waited for: a container that was told to end has usually done so. After
/// that this container ends, and Kubernetes starts it again, ever more seldom.
const WAIT: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The lock, as long as this is there, or a process lives that was started with it.
#[derive(Debug)]
pub struct VolumeLock(File);

impl VolumeLock {
    /// From now on whatever this process starts holds the lock, too, and hands it on.
    pub fn hand_on(&self) -> anyhow::Result<()> {
        fcntl_setfd(&self.0, FdFlags::empty()).context("hand the volume's lock on")
    }
}

/// Waits for the lock and takes it. An error names the pod that has it.
pub async fn lock(state_dir: &Path, pod: &Pod, clock: &dyn Clock) -> anyhow::Result<VolumeLock> {
    let path = state_dir.join(FILE);
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        // Over NFS an exclusive lock needs a file that is open for writing.
        .write(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("open `{}`", path.display()))?;
    let until = clock.now().plus(WAIT);
    let mut told = false;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(cause) => return Err(cause).with_context(|| no_locks(&path)),
        }
        let holder = holder(&mut file);
        anyhow::ensure!(
            clock.now() < until,
            "the pod {holder} uses this volume: `{}` is locked\n\nhint: two pods on one volume would be two databases in one folder: this one starts when the other has ended",
            path.display()
        );
        if !told {
            tracing::warn!(%holder, "another pod uses this volume: waiting for its end");
            told = true;
        }
        clock.sleep(LOOK_AGAIN).await;
    }
    let noted = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(&file, "{pod}"))
        .and_then(|()| file.sync_all());
    noted.with_context(|| format!("write `{}`", path.display()))?;
    Ok(VolumeLock(file))
}

fn no_locks(path: &Path) -> String {
    format!(
        "lock `{}`\n\nhint: the volume's file system must have locks (`flock`): a block device has, NFS has unless it is mounted with `nolock`",
        path.display()
    )
}

/// Who has written that it has the lock.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file
        .rewind()
        .and_then(|()| file.take(512).read_to_string(&mut text));
    let text = text.trim();
    match read {
        Ok(_) if !text.is_empty() => clipped(text),
        Ok(_) | Err(_) => "that has not written its name".to_owned(),
    }
}

/// Removes the pid files that a PostgreSQL left behind whose container has ended without it: they
/// name a process that may be another one here, and PostgreSQL would not start beside that
/// (postgres.md P14). To be called with the lock, before anything is started.
pub fn forget_earlier_server(postgres: &Postgres) -> anyhow::Result<()> {
    let port = postgres.port;
    let files = [
        postgres.data_dir.join("postmaster.pid"),
        postgres.socket_dir.join(format!(".s.PGSQL.{port}.lock")),
    ];
    for file in files {
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(cause) if cause.kind() == ErrorKind::NotFound => continue,
            Err(cause) => return Err(cause).with_context(|| format!("read `{}`", file.display())),
        };
        let pid = text.lines().next().and_then(|pid| pid.trim().parse().ok());
        if pid.is_some_and(|pid: i32| works_in(pid.unsigned_abs(), &postgres.data_dir)) {
            continue;
        }
        std::fs::remove_file(&file).with_context(|| format!("remove `{}`", file.display()))?;
        tracing::info!(file = %file.display(), "left by a container that has ended, and removed");
    }
    Ok(())
}

/// Whether a process of this container may be a server in the data folder: one whose folder cannot
/// be seen may.
fn works_in(pid: u32, data_dir: &Path) -> bool {
    let process = PathBuf::from(format!("/proc/{pid}"));
    if !process.exists() {
        return false;
    }
    let identity = |path: &Path| std::fs::metadata(path).map(|it| (it.dev(), it.ino()));
    match (identity(&process.join("cwd")), identity(data_dir)) {
        (Ok(there), Ok(here)) => there == here,
        // It has ended meanwhile.
        (Err(cause), _) if cause.kind() == ErrorKind::NotFound => false,
        (Err(_), _) | (_, Err(_)) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::clock::SystemClock;
    use crate::engine::units::{MonoTime, WallTime};

    fn pod(uid: &str) -> Pod {
        Pod {
            namespace: "shop".to_owned(),
            name: "db-0".to_owned(),
            uid: uid.to_owned(),
        }
    }

    /// Every wait is over at once; with the first one, what is held is let go.
    #[derive(Debug, Default)]
    struct Impatient(
        std::sync::Mutex<Duration>,
        std::sync::Mutex<Option<VolumeLock>>,
    );

    #[async_trait::async_trait]
    impl Clock for Impatient {
        fn now(&self) -> MonoTime {
            MonoTime(*self.0.lock().unwrap())
        }

        fn wall(&self) -> WallTime {
            WallTime(0)
        }

        async fn sleep(&self, wait: Duration) {
            *self.0.lock().unwrap() += wait;
            drop(self.1.lock().unwrap().take());
        }
    }

    #[tokio::test]
    async fn one_pod_at_a_time_has_the_volume_and_the_other_is_told_which() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock(dir.path(), &pod("one"), &SystemClock).await.unwrap();
        let clock = Impatient::default();
        let refused = lock(dir.path(), &pod("two"), &clock).await.unwrap_err();
        let said = refused.to_string();
        assert!(said.contains("the pod shop/db-0 (uid one) uses"), "{said}");
        assert!(clock.now() >= MonoTime(WAIT), "it was waited for");
        // The other one ends meanwhile.
        *clock.1.lock().unwrap() = Some(first);
        let second = lock(dir.path(), &pod("two"), &clock).await.unwrap();
        let said = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert_eq!(said, "shop/db-0 (uid two)\n");
        drop(second);
    }

    fn postgres(dir: &Path) -> Postgres {
        Postgres {
            bin_dir: dir.to_owned(),
            data_dir: dir.to_owned(),
            port: 5432,
            listen_addresses: "*".to_owned(),
            socket_dir: dir.to_owned(),
            run_as: None,
            superuser: "postgres".to_owned(),
            database: "app".to_owned(),
            options: Vec::new(),
            log_file: dir.join("log"),
            primary_conninfo: String::new(),
        }
    }

    #[test]
    fn a_pid_file_of_a_container_that_has_ended_goes_and_that_of_a_server_stays() {
        let dir = tempfile::tempdir().unwrap();
        let noted = |pid: u32| {
            for name in ["postmaster.pid", ".s.PGSQL.5432.lock"] {
                std::fs::write(dir.path().join(name), format!("{pid}\n/data\n")).unwrap();
            }
            forget_earlier_server(&postgres(dir.path())).unwrap();
            dir.path().join("postmaster.pid").exists()
        };
        assert!(!noted(std::process::id()), "another program has its number");
        assert!(!noted(u32::MAX / 2), "nobody has");
        let mut server = std::process::Command::new("sleep");
        let mut server = server.arg("60").current_dir(dir.path()).spawn().unwrap();
        assert!(noted(server.id()));
        server.kill().unwrap();
        server.wait().unwrap();
        assert!(!noted(server.id()));
        assert!(!dir.path().join(".s.PGSQL.5432.lock").exists());
        forget_earlier_server(&postgres(dir.path())).unwrap();
    }
}
