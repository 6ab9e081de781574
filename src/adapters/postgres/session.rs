//! What each session states for itself as it begins: everything that a default of the server, of
//! the database or of our role could change about what a statement of ours means, or whether it is
//! taken.
//!
//! Startup options outrank `postgresql.conf`, the server's command line, `ALTER SYSTEM`,
//! `ALTER DATABASE` and `ALTER ROLE` (postgres.md P42), and nothing of ours runs before they are in
//! force. Names in our statements need no schema because of them: functions, operators and types are
//! found in `pg_catalog` and nowhere else, since the schema of temporary objects comes last and is
//! never searched for functions. Our own tables are always named with their schema.

use std::fmt::Write;
use std::time::Duration;

use crate::engine::units::as_millis;

/// What every session states, on each supported version and as any role.
const ALWAYS: [(&str, &str); 34] = [
    // What names mean, and who we are: a default can make another role of us.
    ("search_path", "pg_catalog, pg_temp"),
    ("role", "none"),
    // Whether a statement is taken at all. A read-only default binds nobody (postgres.md P37); it
    // travels to a standby with the database, and a serializable one refuses every statement there.
    ("default_transaction_read_only", "off"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_deferrable", "off"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    // A policy on our tables is to be an error, not rows that silently are not there.
    ("row_security", "off"),
    ("exit_on_error", "off"),
    ("commit_siblings", "1000"),
    // How values are written and read.
    ("datestyle", "ISO, MDY"),
    ("intervalstyle", "postgres"),
    ("timezone", "UTC"),
    ("extra_float_digits", "1"),
    ("bytea_output", "hex"),
    ("standard_conforming_strings", "on"),
    ("backslash_quote", "safe_encoding"),
    ("escape_string_warning", "off"),
    ("quote_all_identifiers", "off"),
    ("transform_null_equals", "off"),
    ("array_nulls", "on"),
    ("xmloption", "content"),
    ("client_min_messages", "error"),
    // Where what we make is put.
    ("default_tablespace", ""),
    ("temp_tablespaces", ""),
    ("default_table_access_method", "heap"),
    ("check_function_bodies", "off"),
    // How statements are run: small ones, in one process.
    ("work_mem", "64kB"),
    ("jit", "off"),
    ("max_parallel_workers_per_gather", "0"),
    ("plan_cache_mode", "auto"),
    ("local_preload_libraries", ""),
    ("tcp_user_timeout", "0"),
];

/// What a superuser's session states beside that. In it no trigger, rule or event trigger of
/// somebody else fires unless it was made to fire always; a trigger at login is one of them
/// (postgres.md P43).
const SUPERUSER: [(&str, &str); 2] = [
    ("session_replication_role", "replica"),
    ("temp_file_limit", "-1"),
];

/// The first version that knows `transaction_timeout` and `event_triggers`.
pub(super) const SEVENTEEN: u32 = 17;

/// The greatest `statement_timeout`.
const MAX_LIMIT_MS: u64 = 2_147_483_647;

/// What is to be stated.
#[derive(Debug, Clone, Copy)]
pub(super) struct Session {
    /// How long the client waits for a statement.
    pub(super) limit: Duration,
    /// Whether the role is a superuser.
    pub(super) superuser: bool,
    /// Whether what the defaults say of commits is left as it is, to be read.
    pub(super) default_commits: bool,
    /// The server's major version, or 0 where it is not known yet: an option that a server does
    /// not know makes it refuse the connection.
    pub(super) major: u32,
}

impl Session {
    /// Whether the same is stated to servers of two versions.
    pub(super) fn states_the_same(one: u32, other: u32) -> bool {
        (one >= SEVENTEEN) == (other >= SEVENTEEN)
    }

    /// The value of the startup parameter `options`, after what the connection string gives.
    pub(super) fn options(&self, given: &str) -> String {
        // A second more than ours, so that it is always we who say "time-out": the server's limit
        // only frees a session that nobody waits for any more.
        let whole = as_millis(self.limit.saturating_add(Duration::from_secs(1))).min(MAX_LIMIT_MS);
        let mut options = given.to_owned();
        let mut state = |name: &str, value: &str| {
            // Writing to a String cannot fail.
            write!(options, " -c {name}={}", escaped(value)).unwrap_or_default();
        };
        for (name, value) in ALWAYS {
            state(name, value);
        }
        state("statement_timeout", &whole.to_string());
        // What we write promises nobody anything: it must not wait for a standby that stalls
        // (postgres.md P31).
        if !self.default_commits {
            state("synchronous_commit", "local");
        }
        if self.major >= SEVENTEEN {
            state("transaction_timeout", "0");
        }
        if self.superuser {
            for (name, value) in SUPERUSER {
                state(name, value);
            }
            if self.major >= SEVENTEEN {
                state("event_triggers", "off");
            }
        }
        options.trim_start().to_owned()
    }
}

/// In `options` white space separates and a backslash escapes.
fn escaped(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for character in value.chars() {
        if character.is_whitespace() || character == '\\' {
            text.push('\\');
        }
        text.push(character);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(superuser: bool, major: u32) -> String {
        let limit = Duration::from_secs(2);
        let session = Session {
            limit,
            superuser,
            default_commits: false,
            major,
        };
        session.options("-c geqo=off")
    }

    #[test]
    fn what_we_state_comes_last_and_so_wins() {
        let watcher = options(false, 0);
        assert!(watcher.starts_with("-c geqo=off -c "), "{watcher}");
        for stated in [
            r"-c search_path=pg_catalog,\ pg_temp",
            r"-c default_transaction_isolation=read\ committed",
            "-c statement_timeout=3000",
            "-c lock_timeout=0",
            "-c synchronous_commit=local",
        ] {
            assert!(watcher.contains(stated), "{stated}: {watcher}");
        }
    }

    #[test]
    fn no_server_is_told_what_it_does_not_know_or_may_not_take() {
        for (superuser, major, replica, timeout, triggers) in [
            (false, 0, false, false, false),
            (false, 16, false, false, false),
            (false, 17, false, true, false),
            (true, 0, true, false, false),
            (true, 16, true, false, false),
            (true, 18, true, true, true),
        ] {
            let stated = options(superuser, major);
            let states = |name: &str| stated.contains(name);
            assert_eq!(states("session_replication_role"), replica, "{stated}");
            assert_eq!(states("transaction_timeout"), timeout, "{stated}");
            assert_eq!(states("event_triggers"), triggers, "{stated}");
        }
    }
}
