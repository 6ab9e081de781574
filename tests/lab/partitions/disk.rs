//! A small file system for one database, which can be filled.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use failover::lab::pair::Instance;
use tokio_postgres::NoTls;

/// Room for a new database, its backup's WAL and some segments more.
const SIZE: &str = "size=192m,mode=0700";
const SQL: Duration = Duration::from_secs(2);
/// How many segments of WAL may be there already.
const SEGMENTS: usize = 20;

/// A mounted file system. It belongs to the namespace of this process, and goes with it at the
/// latest.
pub(super) struct Disk {
    path: PathBuf,
}

fn run(program: &str, words: &[&str], path: &Path) {
    let mut command = Command::new(program);
    let status = command.args(words).arg(path).status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}

impl Disk {
    /// Mounts an empty one.
    pub(super) fn mount(path: &Path) -> Self {
        std::fs::create_dir_all(path).unwrap();
        run("mount", &["-t", "tmpfs", "-o", SIZE, "lab"], path);
        Self {
            path: path.to_owned(),
        }
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }

    /// Leaves no room.
    pub(super) fn fill(&self) {
        let mut file = std::fs::File::create(self.ballast()).unwrap();
        let block = [0; 4096];
        while file.write_all(&block).is_ok() {}
    }

    /// Copies what is on it beside it, before it is unmounted.
    pub(super) fn keep(&self) {
        std::fs::remove_file(self.ballast()).unwrap_or_default();
        let beside = self.path.with_extension("kept");
        run("cp", &["-a", &self.path.display().to_string()], &beside);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Whoever panics has not ended the database yet: it keeps what it has open.
        let mut command = Command::new("umount");
        let status = command.arg("--lazy").arg(&self.path).status();
        if !status.is_ok_and(|status| status.success()) {
            eprintln!("`{}` is still mounted", self.path.display());
        }
    }
}

/// Brings a database's WAL to the end of the last segment that there is room for.
pub(super) async fn end_of_segment(instance: &Instance) {
    let (socket, port) = (instance.socket(), instance.port);
    let socket = socket.display();
    let conninfo = format!("host={socket} port={port} user=postgres dbname=app");
    for _segment in 0..SEGMENTS {
        let switched = tokio::time::timeout(SQL, switch(&conninfo)).await;
        if !matches!(switched, Ok(Ok(()))) {
            return;
        }
    }
}

/// Goes to the next segment, and writes something there.
async fn switch(conninfo: &str) -> Result<(), tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(conninfo, NoTls).await?;
    let written = client
        .batch_execute("SELECT pg_switch_wal(), pg_logical_emit_message(false, 'lab', 'next')");
    tokio::select! {
        written = written => written,
        ended = connection => ended,
    }
}
