//! What keeps only us from a database that serves: no look of ours speaks against it.

use std::io::Write;
use std::process::{Child, Stdio};
use std::time::Duration;

use failover::adapters::postgres::probe;
use failover::engine::observation::{Bearing, DatabaseFacts, ProbeFailure};
use failover::engine::topology::Role;
use rustix::process::{Signal, kill_process};

use crate::pair::{LIMIT, Pair, Server, until, write};

/// Long enough to find out why a statement does not come, on a busy machine.
const LOOK: Duration = Duration::from_secs(3);

/// A client that is ended with the test.
struct Client(Child);

impl Drop for Client {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A session that holds a lock, or anything else that it began, until it is dropped.
async fn holding(server: &Server, statement: &str, seen: &str) -> Client {
    let statement = format!("BEGIN; {statement}; SELECT pg_sleep(600)");
    let child = server.psql("postgres", "-c search_path=public", &statement);
    let client = Client({ child }.stdout(Stdio::null()).spawn().unwrap());
    until("the session holds what it should", async || {
        server.sql(seen) == "t"
    })
    .await;
    client
}

const LOCKED: &str = "SELECT EXISTS (SELECT FROM pg_locks
    WHERE relation = 'failover.heartbeat'::regclass AND granted AND mode LIKE '%ExclusiveLock')
    OR EXISTS (SELECT FROM pg_locks WHERE relation = 'failover.heartbeat'::regclass
               AND granted AND mode = 'ShareLock')";

/// Users at work: one that commits a row every few milliseconds.
async fn users(server: &Server) -> Client {
    server.sql("CREATE TABLE IF NOT EXISTS public.orders (number bigserial, at timestamptz)");
    server.sql("GRANT ALL ON public.orders, public.orders_number_seq TO app");
    let psql = server.psql("app", "", "");
    // Statements come line by line, as an application sends them.
    let words: Vec<_> = psql.get_args().map(ToOwned::to_owned).collect();
    let words = words
        .into_iter()
        .filter(|word| !word.is_empty() && word != "-c");
    let mut plain = std::process::Command::new(psql.get_program());
    plain
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::null());
    drop(psql);
    let mut child = plain.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::spawn(move || {
        let line = b"INSERT INTO public.orders (at) VALUES (now()); SELECT pg_sleep(0.02);\n";
        while stdin.write_all(line).is_ok() {}
    });
    let client = Client(child);
    let count = || server.sql("SELECT count(*) > 3 FROM public.orders");
    until("users are at work", async || count() == "t").await;
    client
}

async fn look(server: &Server) -> Result<DatabaseFacts, ProbeFailure> {
    probe(&server.monitor(), Some(&write()), LOOK).await
}

/// What hinders us in an open session: how it is done, and how it is taken back.
const IN_THE_SESSION: [(&str, &str, &str); 13] = [
    (
        "a revoked grant to write",
        "REVOKE INSERT, UPDATE ON failover.heartbeat FROM failover",
        "GRANT INSERT, UPDATE ON failover.heartbeat TO failover",
    ),
    (
        "a revoked grant to read",
        "REVOKE SELECT ON failover.epoch FROM failover",
        "GRANT SELECT ON failover.epoch TO failover",
    ),
    (
        "a revoked grant on the schema",
        "REVOKE USAGE ON SCHEMA failover FROM failover",
        "GRANT USAGE ON SCHEMA failover TO failover",
    ),
    (
        "a missing table",
        "ALTER TABLE failover.heartbeat RENAME TO aside",
        "ALTER TABLE failover.aside RENAME TO heartbeat",
    ),
    (
        "a missing schema",
        "ALTER SCHEMA failover RENAME TO aside",
        "ALTER SCHEMA aside RENAME TO failover",
    ),
    (
        "a missing column",
        "ALTER TABLE failover.heartbeat RENAME sequence TO aside",
        "ALTER TABLE failover.heartbeat RENAME aside TO sequence",
    ),
    (
        "a missing key",
        "ALTER TABLE failover.heartbeat DROP CONSTRAINT heartbeat_pkey",
        "ALTER TABLE failover.heartbeat ADD PRIMARY KEY (site, vantage)",
    ),
    (
        "a constraint",
        "ALTER TABLE failover.heartbeat ADD CONSTRAINT no CHECK (sequence < 0) NOT VALID",
        "ALTER TABLE failover.heartbeat DROP CONSTRAINT no",
    ),
    (
        "a trigger that raises",
        "CREATE FUNCTION public.no() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN RAISE EXCEPTION 'no'; END $$;
         CREATE TRIGGER no BEFORE INSERT OR UPDATE ON failover.heartbeat
         FOR EACH ROW EXECUTE FUNCTION public.no()",
        "DROP TRIGGER no ON failover.heartbeat; DROP FUNCTION public.no()",
    ),
    (
        "a trigger that sleeps",
        "CREATE FUNCTION public.no() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN PERFORM pg_sleep(600); RETURN NEW; END $$;
         CREATE TRIGGER no BEFORE INSERT OR UPDATE ON failover.heartbeat
         FOR EACH ROW EXECUTE FUNCTION public.no()",
        "DROP TRIGGER no ON failover.heartbeat; DROP FUNCTION public.no()",
    ),
    (
        "row security",
        "ALTER TABLE failover.heartbeat ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE failover.heartbeat DISABLE ROW LEVEL SECURITY",
    ),
    (
        "a quota on temporary files",
        "ALTER ROLE failover SET temp_file_limit = 0",
        "ALTER ROLE failover RESET temp_file_limit",
    ),
    (
        "a number that does not fit any more",
        "INSERT INTO failover.heartbeat VALUES ('aws', 'x', 9223372036854775807, now())",
        "DELETE FROM failover.heartbeat WHERE vantage = 'x'",
    ),
];

#[tokio::test]
async fn what_hinders_only_our_rows_speaks_against_nobody() {
    let pair = Pair::primary_only().await;
    for (what, hinder, free) in IN_THE_SESSION {
        pair.primary.sql(hinder);
        let failure = look(&pair.primary).await;
        let failure = failure.expect_err(what);
        assert!(
            matches!(failure, ProbeFailure::Blocked(_)),
            "{what}: {failure:?}"
        );
        assert_eq!(failure.bearing(), Bearing::Nothing, "{what}: {failure}");
        assert!(failure.came_from_database(), "{what}");
        pair.primary.sql(free);
        pair.primary.beat().await;
    }
}

#[tokio::test]
async fn users_who_are_seen_to_commit_speak_for_the_database() {
    let pair = Pair::primary_only().await;
    let _users = users(&pair.primary).await;
    for (what, hinder, free) in IN_THE_SESSION {
        pair.primary.sql(hinder);
        let facts = look(&pair.primary).await;
        let facts = facts.unwrap_or_else(|failure| panic!("{what}: {failure}"));
        assert_eq!(
            (facts.role, facts.write_took),
            (Role::Primary, None),
            "{what}"
        );
        assert!(facts.blocked.is_some(), "{what}: {facts:?}");
        pair.primary.sql(free);
        let facts = pair.primary.beat().await;
        assert!(
            facts.write_took.is_some() && facts.blocked.is_none(),
            "{what}"
        );
    }
}

#[tokio::test]
async fn a_lock_on_our_table_speaks_against_nobody_at_either_site() {
    let pair = Pair::new().await;
    for (what, lock) in [
        (
            "maintenance",
            "LOCK TABLE failover.heartbeat IN ACCESS EXCLUSIVE MODE",
        ),
        (
            "an index that is made",
            "CREATE INDEX ON failover.heartbeat (written)",
        ),
        (
            "a row that is held",
            "SELECT * FROM failover.heartbeat FOR UPDATE",
        ),
    ] {
        pair.primary.beat().await;
        let seen = if what == "a row that is held" {
            "SELECT EXISTS (SELECT FROM pg_locks WHERE mode = 'RowShareLock'
                AND relation = 'failover.heartbeat'::regclass)"
        } else {
            LOCKED
        };
        let lock = holding(&pair.primary, lock, seen).await;
        let failure = look(&pair.primary).await.expect_err(what);
        assert!(
            matches!(&failure, ProbeFailure::Blocked(text) if text.contains("Lock/")),
            "{what}: {failure:?}"
        );
        // An exclusive lock is replayed.
        let standby = probe(&pair.standby().monitor(), Some(&write()), LOOK).await;
        let standby = standby.unwrap_or_else(|failure| panic!("{what}, standby: {failure}"));
        assert_eq!(standby.role, Role::Standby, "{what}");
        let users = users(&pair.primary).await;
        let facts = look(&pair.primary).await.expect(what);
        assert!(
            facts.blocked.is_some_and(|why| why.contains("Lock/")),
            "{what}"
        );
        drop((lock, users));
        // A server notices that a client is gone when the statement ends.
        pair.primary.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE query LIKE '%pg_sleep(600)%' AND pid <> pg_backend_pid()",
        );
        until("the lock is gone", async || {
            look(&pair.primary).await.is_ok()
        })
        .await;
    }
}

#[tokio::test]
async fn an_exclusive_lock_that_is_replayed_hides_no_standby() {
    let pair = Pair::new().await;
    let lock = "LOCK TABLE failover.heartbeat IN ACCESS EXCLUSIVE MODE";
    let _lock = holding(&pair.primary, lock, LOCKED).await;
    until("the standby has the lock", async || {
        pair.standby().sql(LOCKED) == "t"
    })
    .await;
    let facts = probe(&pair.standby().monitor(), Some(&write()), LOOK).await;
    let facts = facts.unwrap();
    assert_eq!((facts.role, facts.heartbeat), (Role::Standby, None));
    assert!(
        facts
            .receiver
            .is_some_and(|receiver| receiver.is_streaming())
    );
    assert!(facts.blocked.is_some_and(|why| why.contains("Lock/")));
}

#[tokio::test]
async fn a_door_that_is_shut_for_us_alone_speaks_against_nobody() {
    let pair = Pair::primary_only().await;
    for (what, shut, open) in [
        (
            "a role that may not log in",
            "ALTER ROLE failover NOLOGIN",
            "ALTER ROLE failover LOGIN",
        ),
        (
            "a password that has ended",
            "ALTER ROLE failover VALID UNTIL '2020-01-01'",
            "ALTER ROLE failover VALID UNTIL 'infinity'",
        ),
        (
            "a password that was changed",
            "ALTER ROLE failover PASSWORD 'other'",
            "ALTER ROLE failover PASSWORD 'watch'",
        ),
        (
            "no connection for our role",
            "ALTER ROLE failover CONNECTION LIMIT 0",
            "ALTER ROLE failover CONNECTION LIMIT -1",
        ),
        (
            "no connection to the database for our role",
            "REVOKE CONNECT ON DATABASE app FROM PUBLIC",
            "GRANT CONNECT ON DATABASE app TO PUBLIC",
        ),
        (
            "a library that is not there",
            "ALTER ROLE failover SET session_preload_libraries = 'nowhere'",
            "ALTER ROLE failover RESET session_preload_libraries",
        ),
    ] {
        pair.primary.sql(shut);
        let failure = look(&pair.primary).await.expect_err(what);
        assert_ne!(failure.bearing(), Bearing::Against, "{what}: {failure:?}");
        pair.primary.sql(open);
        pair.primary.beat().await;
    }
}

#[tokio::test]
async fn a_janitor_that_ends_our_sessions_speaks_against_nobody() {
    let pair = Pair::primary_only().await;
    let end = "DO $$ BEGIN LOOP
        PERFORM pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'failover';
        PERFORM pg_sleep(0.001);
        PERFORM pg_stat_clear_snapshot(); END LOOP; END $$";
    let janitor = pair.primary.psql("postgres", "", end);
    let _janitor = Client({ janitor }.spawn().unwrap());
    let mut ended = 0;
    while ended < 3 {
        match look(&pair.primary).await {
            Ok(_) => {}
            Err(failure) => {
                assert_ne!(failure.bearing(), Bearing::Against, "{failure:?}");
                ended += 1;
            }
        }
    }
}

#[tokio::test]
async fn a_frozen_database_still_speaks_against_itself() {
    let pair = Pair::primary_only().await;
    let postmaster = pair.primary.postmaster().unwrap();
    kill_process(postmaster, Signal::STOP).unwrap();
    let limit = Duration::from_millis(500);
    let failure = probe(&pair.primary.monitor(), Some(&write()), limit).await;
    assert_eq!(failure.unwrap_err().bearing(), Bearing::Against);
    kill_process(postmaster, Signal::CONT).unwrap();
    until("it is up again", async || {
        probe(&pair.primary.monitor(), Some(&write()), LIMIT)
            .await
            .is_ok()
    })
    .await;
}
