//! Our sessions under defaults that would stop or mislead them: of the server, of its command line,
//! of the database, of the role, and of the role in the database.

use std::process::Command;

use failover::adapters::postgres::{
    Database, allow_monitoring, look_at_standby, prepare, probe, promote, sever, standing,
    write_epoch,
};
use failover::engine::topology::Role;
use failover::engine::units::Epoch;
use failover::lab::pair::Instance;

use crate::pair::{LIMIT, Pair, Server, site, until, write};

/// Defaults that a person may set for reasons of their own. Each changes what a statement means, or
/// whether it is taken at all.
const HOSTILE: [(&str, &str); 21] = [
    ("default_transaction_read_only", "on"),
    ("default_transaction_isolation", "serializable"),
    ("default_transaction_deferrable", "on"),
    ("statement_timeout", "1"),
    ("lock_timeout", "1"),
    ("idle_in_transaction_session_timeout", "1"),
    ("idle_session_timeout", "1"),
    ("search_path", "nowhere"),
    ("datestyle", "German"),
    ("intervalstyle", "sql_standard"),
    ("timezone", "Asia/Kathmandu"),
    ("extra_float_digits", "-15"),
    ("bytea_output", "escape"),
    ("standard_conforming_strings", "off"),
    ("client_encoding", "LATIN1"),
    ("synchronous_commit", "remote_apply"),
    ("exit_on_error", "on"),
    ("quote_all_identifiers", "on"),
    ("xmloption", "document"),
    ("array_nulls", "off"),
    ("transform_null_equals", "on"),
];

/// What only servers from 17 on know, where it is set for a database or a role: a session is let in
/// before it counts. Set for the server it counts while the session is made, so that a millisecond
/// would let nobody in, and users neither.
const SEVENTEEN: [(&str, &str); 1] = [("transaction_timeout", "1")];
const SEVENTEEN_OF_THE_SERVER: [(&str, &str); 1] = [("transaction_timeout", "200")];

type Settings = Vec<(&'static str, &'static str)>;

fn hostile(server: &Server, newer: [(&'static str, &'static str); 1]) -> Settings {
    let newer = newer.into_iter().filter(|_| server.major() >= 17);
    HOSTILE.into_iter().chain(newer).collect()
}

/// Whether a session that states nothing for itself has a hostile default.
fn meets(server: &Server, role: &str) -> bool {
    // What would end the client itself before it has asked.
    let mut options =
        "-c statement_timeout=0 -c idle_session_timeout=0 -c exit_on_error=off".to_owned();
    if server.major() >= 17 {
        options += " -c transaction_timeout=0";
    }
    let mut psql = server.psql(role, &options, "SHOW default_transaction_read_only");
    let done = psql.output().unwrap();
    String::from_utf8_lossy(&done.stdout).trim() == "on"
}

/// Everything that we say to a database that takes writes, and to its standby.
async fn all_of_ours(pair: &Pair, epoch: u64, what: &str) {
    let local = pair.primary.local();
    let database = Database::open(&local, LIMIT).await.unwrap();
    prepare(&database, LIMIT).await.unwrap();
    write_epoch(&database, Epoch(epoch), &site("aws"), LIMIT)
        .await
        .unwrap();
    allow_monitoring(&database, "failover", LIMIT)
        .await
        .unwrap();
    let seen = probe(&pair.primary.monitor(), Some(&write()), LIMIT).await;
    let seen = seen.unwrap_or_else(|failure| panic!("{what}: {failure}"));
    assert!(seen.write_took.is_some(), "{what}: {seen:?}");
    assert_eq!(seen.epoch, Some(Epoch(epoch)), "{what}");
    assert_eq!(standing(&local, LIMIT).await.unwrap().role, Role::Primary);
    let standby = probe(&pair.standby().monitor(), Some(&write()), LIMIT).await;
    let standby = standby.unwrap_or_else(|failure| panic!("{what}, standby: {failure}"));
    assert_eq!(
        (standby.role, standby.blocked),
        (Role::Standby, None),
        "{what}"
    );
    let sync = look_at_standby(&local, &site("gcp"), LIMIT).await.unwrap();
    assert!(sync.flushed.is_some(), "{what}");
}

#[tokio::test]
async fn defaults_of_database_and_role_change_nothing_for_us() {
    let pair = Pair::new().await;
    let mut epoch = 0;
    for (level, roles) in [
        ("DATABASE app", ["failover", "postgres"]),
        ("ROLE failover", ["failover", "failover"]),
        ("ROLE postgres", ["postgres", "postgres"]),
        ("ROLE failover IN DATABASE app", ["failover", "failover"]),
        ("ROLE postgres IN DATABASE app", ["postgres", "postgres"]),
        ("ROLE ALL", ["failover", "postgres"]),
    ] {
        let role = ("role", "app");
        // Whoever may set this for a superuser has what they want already.
        let role = (level == "DATABASE app").then_some(role);
        for (name, value) in hostile(&pair.primary, SEVENTEEN).into_iter().chain(role) {
            pair.primary
                .sql(&format!("ALTER {level} SET {name} = '{value}'"));
        }
        for role in roles {
            assert!(meets(&pair.primary, role), "{level} does not reach {role}");
        }
        until("the standby has the defaults", async || {
            meets(pair.standby(), roles[0])
        })
        .await;
        epoch += 1;
        all_of_ours(&pair, epoch, level).await;
        pair.primary.sql(&format!("ALTER {level} RESET ALL"));
        assert!(!meets(&pair.primary, roles[0]), "{level} is reset");
    }
}

#[tokio::test]
async fn defaults_of_the_server_change_nothing_for_us_and_a_promotion_goes_through() {
    let pair = Pair::new().await;
    for server in [&pair.primary, pair.standby()] {
        for (name, value) in hostile(server, SEVENTEEN_OF_THE_SERVER) {
            server.sql(&format!("ALTER SYSTEM SET {name} = '{value}'"));
        }
        server.sql("SELECT pg_reload_conf()");
        until("the server has the defaults", async || {
            meets(server, "failover")
        })
        .await;
    }
    all_of_ours(&pair, 1, "ALTER SYSTEM").await;

    let standby = pair.standby();
    assert!(sever(&standby.local(), LIMIT).await.unwrap().receiver_gone);
    pair.primary.stop().await;
    promote(&standby.local(), LIMIT).await.unwrap();
    let database = Database::open(&standby.local(), LIMIT).await.unwrap();
    prepare(&database, LIMIT).await.unwrap();
    write_epoch(&database, Epoch(2), &site("gcp"), LIMIT)
        .await
        .unwrap();
    let seen = probe(&standby.monitor(), Some(&write()), LIMIT).await;
    assert_eq!(seen.unwrap().epoch, Some(Epoch(2)));
}

/// Starts a server as a distribution's script may: with settings on the command line.
fn start_with(server: &Server, settings: &[(&str, &str)]) {
    let Instance { dir, .. } = &server.instance;
    let mut options = format!("-c config_file={}/postgresql.conf", dir.display());
    for (name, value) in settings {
        options.push_str(&format!(" -c {name}={}", value.replace(' ', "\\ ")));
    }
    let mut start = Command::new(server.tools.program("pg_ctl"));
    if let Some(user) = server.tools.user() {
        use std::os::unix::process::CommandExt;
        start.uid(user.uid).gid(user.gid);
    }
    start
        .current_dir("/")
        .args(["start", "-w", "-s", "-l"])
        .arg(dir.join("log"))
        .arg("-D")
        .arg(server.instance.data())
        .arg("-o")
        .arg(options);
    let status = start.status().unwrap();
    assert!(status.success(), "{start:?}");
}

#[tokio::test]
async fn settings_on_the_command_line_change_nothing_for_us() {
    let pair = Pair::new().await;
    let hostile = hostile(&pair.primary, SEVENTEEN_OF_THE_SERVER);
    for server in [&pair.primary, pair.standby()] {
        server.stop().await;
        // The client that starts it asks whether it is up, in sessions of its own.
        start_with(server, &hostile);
        assert!(meets(server, "failover"));
    }
    pair.caught_up().await;
    all_of_ours(&pair, 1, "the command line").await;
}

#[tokio::test]
async fn a_role_that_is_no_superuser_is_refused_where_one_is_needed() {
    let pair = Pair::primary_only().await;
    let refused = Database::open(&pair.primary.monitor().as_superuser(), LIMIT).await;
    let failure = refused.unwrap_err();
    assert!(
        failure.to_string().contains("permission denied"),
        "{failure}"
    );
    assert!(!failure.speaks_against_target());
}
