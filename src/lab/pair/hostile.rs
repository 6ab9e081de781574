//! Defaults of server, database and roles that are against us.

use std::fs;
use std::io;

use super::{Instance, LabError, STATEMENT_LIMIT, io_error, open, server};

/// Turns defaults of a running primary against us, as administrators do for reasons of their own: a
/// database that is read-only unless a session says otherwise, strict isolation, limits on our
/// role. The users of the lab say for themselves what they need.
pub async fn turn_hostile(primary: &Instance) -> Result<(), LabError> {
    const DEFAULTS: [&str; 9] = [
        "ALTER DATABASE app SET default_transaction_read_only = on",
        "ALTER DATABASE app SET search_path = public, pg_catalog",
        "ALTER DATABASE app SET datestyle = 'German'",
        "ALTER ROLE failover SET statement_timeout = '1ms'",
        "ALTER ROLE failover SET lock_timeout = '1ms'",
        "ALTER ROLE failover SET extra_float_digits = -15",
        "ALTER ROLE postgres SET default_transaction_deferrable = on",
        "ALTER ROLE app IN DATABASE app SET default_transaction_read_only = off",
        "ALTER ROLE app IN DATABASE app SET default_transaction_isolation = 'read committed'",
    ];
    let database = open(primary, "postgres").await?;
    for statement in DEFAULTS {
        database
            .run(statement, STATEMENT_LIMIT)
            .await
            .map_err(server)?;
    }
    Ok(())
}

/// The same for what stands in the file of settings of a server of this major version.
pub fn turn_settings_hostile(instance: &Instance, major: u32) -> Result<(), LabError> {
    let mut settings = "default_transaction_isolation = 'serializable'\n".to_owned();
    if major >= 17 {
        settings += "allow_alter_system = off\n";
    }
    let path = instance.dir.join("postgresql.conf");
    fs::OpenOptions::new()
        .append(true)
        .open(&path)
        .and_then(|mut file| io::Write::write_all(&mut file, settings.as_bytes()))
        .map_err(|cause| io_error("write", &path, cause))
}
