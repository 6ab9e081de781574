//! What a PostgreSQL error says about the database: one table, from SQLSTATE to a [`ProbeFailure`],
//! which knows whether it counts against the target.
//!
//! A state that is not listed says nothing: it is `Protocol`.

use super::observation::ProbeFailure;

/// When the error came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum During {
    /// While the connection was made: it decides whether we are authorised.
    Connecting,
    /// In a statement on an open connection.
    Statement,
}

/// Classifies an error by its SQLSTATE.
pub fn sort(state: &str, during: During, text: String) -> ProbeFailure {
    let class = state.get(..2).unwrap_or_default();
    match (class, state) {
        // Recovering, starting or stopping for everybody; a crash ends everybody's sessions
        // (postgres.md P38).
        (_, "57P02" | "57P03") => ProbeFailure::NotAccepting(text),
        // Disk full; I/O error. The server is alive, but useless (postgres.md P40). A missing file
        // (58P01) may be a library that only our role must load.
        (_, "53100" | "58030") => ProbeFailure::DiskFailed(text),
        // A lack of memory affects everybody.
        (_, "53000" | "53200") => ProbeFailure::CannotWrite(text),
        // Every connection slot that our role may use is taken.
        (_, "53300") => ProbeFailure::Exhausted(text),
        // Password, role, its expiry, `NOLOGIN`, the database's name, `CONNECT` on it, a database
        // that accepts no connections or is gone.
        ("28" | "3D", _) | (_, "57P04") => ProbeFailure::Unauthorized(text),
        (_, "42704") if during == During::Connecting => ProbeFailure::Protocol(text),
        ("42" | "55", _) if during == During::Connecting => ProbeFailure::Unauthorized(text),
        // A statement of ours was refused: by a lock on our table, a missing or altered table, a
        // revoked grant, a constraint, a trigger, a quota, a cancellation, a timeout, a setting.
        (
            "09" | "0L" | "0P" | "20" | "21" | "22" | "23" | "24" | "25" | "27" | "2B" | "2D"
            | "2F" | "38" | "39" | "3B" | "3F" | "40" | "42" | "44" | "54" | "55" | "P0",
            _,
        )
        | (_, "53400" | "57014" | "57P05") => ProbeFailure::Blocked(text),
        // 57P01 ends a single session as well as a whole server's: the next probe shows which.
        (_, _) => ProbeFailure::Protocol(text),
    }
}

#[cfg(test)]
mod tests {
    use super::super::observation::Bearing;
    use super::*;

    #[test]
    fn every_class_of_errors_is_sorted() {
        use Bearing::{Against, Nothing, Unknown};
        use During::{Connecting, Statement};
        #[rustfmt::skip]
        let table = [
            // state, what it is, when, what it says
            ("57P03", "the database system is starting up", Connecting, Against),
            ("57P02", "crash of another server process", Statement, Against),
            ("53100", "no space left on device", Statement, Against),
            ("58030", "I/O error", Statement, Against),
            ("53200", "out of memory", Statement, Against),
            ("53000", "insufficient resources", Statement, Against),
            ("53300", "too many connections", Connecting, Nothing),
            ("53400", "temporary file size exceeds temp_file_limit", Statement, Nothing),
            ("28P01", "password authentication failed", Connecting, Nothing),
            ("28000", "role is not permitted to log in, no entry in pg_hba.conf", Connecting, Nothing),
            ("3D000", "database does not exist", Connecting, Nothing),
            ("57P04", "database was dropped", Statement, Nothing),
            ("42501", "permission denied for database", Connecting, Nothing),
            ("55000", "database is not currently accepting connections", Connecting, Nothing),
            ("42501", "permission denied for table", Statement, Nothing),
            ("42P01", "table does not exist", Statement, Nothing),
            ("42703", "column does not exist", Statement, Nothing),
            ("42P10", "no constraint for ON CONFLICT", Statement, Nothing),
            ("42883", "function does not exist", Statement, Nothing),
            ("3F000", "schema does not exist", Statement, Nothing),
            ("25006", "read-only transaction", Statement, Nothing),
            ("25P02", "transaction is aborted", Statement, Nothing),
            ("25P03", "idle-in-transaction timeout", Statement, Nothing),
            ("25P04", "transaction timeout", Statement, Nothing),
            ("55P03", "lock timeout, lock not available", Statement, Nothing),
            ("55006", "object in use", Statement, Nothing),
            ("57014", "statement timeout, cancelled by a person", Statement, Nothing),
            ("57P05", "idle session timeout", Statement, Nothing),
            ("22003", "number out of range", Statement, Nothing),
            ("23505", "duplicate key", Statement, Nothing),
            ("23514", "check violated", Statement, Nothing),
            ("27000", "triggered data change", Statement, Nothing),
            ("38000", "exception in a function", Statement, Nothing),
            ("40001", "serialization failure", Statement, Nothing),
            ("40P01", "deadlock", Statement, Nothing),
            ("54000", "program limit exceeded", Statement, Nothing),
            ("P0001", "a trigger raises", Statement, Nothing),
            ("P0001", "a trigger at login raises", Connecting, Nothing),
            ("57P01", "this session is ended", Statement, Unknown),
            ("08006", "connection failure, said by a proxy", Connecting, Unknown),
            ("08P01", "protocol violation", Connecting, Unknown),
            ("0A000", "not supported", Statement, Unknown),
            ("26000", "no such prepared statement", Statement, Unknown),
            ("42704", "an option that this version does not know", Connecting, Unknown),
            ("F0000", "error in a configuration file", Connecting, Unknown),
            ("58P01", "a library is missing", Connecting, Unknown),
            ("58000", "system error", Statement, Unknown),
            ("XX000", "internal error", Statement, Unknown),
            ("XX001", "data corrupted", Statement, Unknown),
            ("", "no state", Statement, Unknown),
            ("é", "no state", Statement, Unknown),
        ];
        for (state, what, during, bearing) in table {
            let failure = sort(state, during, what.to_owned());
            assert_eq!(failure.bearing(), bearing, "{state}: {failure:?}");
            let against = bearing == Against;
            assert_eq!(failure.speaks_against_target(), against, "{state}");
        }
    }
}
