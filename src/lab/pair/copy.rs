//! Makes a standby's data directory from a running primary's, with PostgreSQL's backup functions
//! and a copy of the files: `pg_basebackup` is not part of every package of PostgreSQL.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use super::{Instance, LabError, PostgresTools, io_error, open, server};

/// How long one statement may take; the first one waits for a checkpoint.
const STATEMENT: Duration = Duration::from_secs(20);

/// What a running server alone may have.
const LEFT_OUT: [&str; 2] = ["postmaster.pid", "postmaster.opts"];
/// Folders of which a copy needs the empty folder. WAL comes by streaming.
const EMPTIED: [&str; 8] = [
    "pg_wal",
    "pg_replslot",
    "pg_dynshmem",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_stat_tmp",
    "pg_subtrans",
];

/// What PostgreSQL wants to lie in the copy.
#[derive(Deserialize)]
struct Label {
    label: String,
}

/// Copies the data of a running primary to `to`, an empty folder. The copy starts as a standby
/// that connects with `conninfo`.
pub(super) async fn copy_running(
    tools: &PostgresTools,
    primary: &Instance,
    to: &Path,
    conninfo: &str,
) -> Result<(), LabError> {
    let session = open(primary, "postgres").await?;
    let version: u32 = session
        .read(
            "SELECT pg_catalog.current_setting('server_version_num')",
            &[],
            STATEMENT,
        )
        .await
        .map_err(server)?;
    // Renamed in version 15. The session must last until the end of the backup.
    let (begin, end) = if version >= 150_000 {
        (
            "SELECT pg_catalog.pg_backup_start('standby', true)",
            "SELECT pg_catalog.json_build_object('label', labelfile)::text FROM pg_catalog.pg_backup_stop(false)",
        )
    } else {
        (
            "SELECT pg_catalog.pg_start_backup('standby', true, false)",
            "SELECT pg_catalog.json_build_object('label', labelfile)::text FROM pg_catalog.pg_stop_backup(false, false)",
        )
    };
    session.run(begin, STATEMENT).await.map_err(server)?;
    copy_folder(tools, &primary.data(), to)?;
    let Label { label } = session.read(end, &[], STATEMENT).await.map_err(server)?;
    // In this file a backslash escapes, too.
    let conninfo = conninfo.replace('\\', r"\\").replace('\'', "''");
    let files = [
        ("backup_label", label),
        ("standby.signal", String::new()),
        (
            "postgresql.auto.conf",
            format!("primary_conninfo = '{conninfo}'\n"),
        ),
    ];
    for (name, text) in files {
        let path = to.join(name);
        fs::write(&path, text).map_err(|cause| io_error("write", &path, cause))?;
        tools.give(&path)?;
    }
    Ok(())
}

/// Copies a folder whose files may change, grow and vanish meanwhile: replay puts that right.
fn copy_folder(tools: &PostgresTools, from: &Path, to: &Path) -> Result<(), LabError> {
    let entries = fs::read_dir(from).map_err(|cause| io_error("read", from, cause))?;
    for entry in entries {
        let entry = entry.map_err(|cause| io_error("read", from, cause))?;
        let (source, name) = (entry.path(), entry.file_name());
        let target = to.join(&name);
        let is = |names: &[&str]| names.iter().any(|each| name == *each);
        if is(&LEFT_OUT) {
            continue;
        }
        if source.is_dir() {
            if !target.exists() {
                make_folder(tools, &target)?;
            }
            if name == "pg_wal" {
                make_folder(tools, &target.join("archive_status"))?;
            } else if !is(&EMPTIED) {
                copy_folder(tools, &source, &target)?;
            }
            continue;
        }
        match fs::copy(&source, &target) {
            Ok(_bytes) => tools.give(&target)?,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
            Err(cause) => return Err(io_error("copy", &source, cause)),
        }
    }
    Ok(())
}

fn make_folder(tools: &PostgresTools, path: &Path) -> Result<(), LabError> {
    use std::os::unix::fs::DirBuilderExt;

    fs::DirBuilder::new()
        .mode(0o700)
        .create(path)
        .map_err(|cause| io_error("create", path, cause))?;
    tools.give(path)
}
