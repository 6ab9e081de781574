//! The exit codes, in one place: help, man page, README and tests read this list.

use std::process::ExitCode;

use crate::adapters::files::LogError;

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done, or healthy.
    Done,
    /// A clear "no".
    No,
    /// Wrong usage, or an unexpected error.
    Wrong,
    /// A plan is stuck and needs an operator.
    Stuck,
    /// Another controller holds the log.
    Held,
    /// A bug in the program.
    Broken,
    /// Interrupted.
    Interrupted,
}

impl Exit {
    /// Every exit, in the order of the codes.
    pub const ALL: [Exit; 7] = [
        Exit::Done,
        Exit::No,
        Exit::Wrong,
        Exit::Stuck,
        Exit::Held,
        Exit::Broken,
        Exit::Interrupted,
    ];

    /// The number.
    pub fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::No => 1,
            Exit::Wrong => 2,
            Exit::Stuck => 3,
            Exit::Held => 4,
            Exit::Broken => 70,
            Exit::Interrupted => 130,
        }
    }

    /// What it means.
    pub fn meaning(self) -> &'static str {
        match self {
            Exit::Done => "done, or healthy",
            Exit::No => "a clear no: a check failed, a log does not verify, a policy is refused",
            Exit::Wrong => "wrong usage, or an unexpected error",
            Exit::Stuck => "a plan is stuck and needs an operator",
            Exit::Held => "another controller holds the decision log",
            Exit::Broken => "a bug in the program: please report it",
            Exit::Interrupted => "interrupted",
        }
    }

    /// The exit for an error.
    pub fn of(error: &anyhow::Error) -> Self {
        if error.downcast_ref::<Interrupted>().is_some() {
            return Exit::Interrupted;
        }
        match error.downcast_ref::<LogError>() {
            Some(LogError::Held { .. }) => Exit::Held,
            Some(LogError::Broken { .. }) => Exit::No,
            Some(LogError::Io { .. }) | None => Exit::Wrong,
        }
    }
}

/// Ctrl-C or a signal ended the command; everything it had started was cleaned up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted; everything was cleaned up")]
pub struct Interrupted;

/// The list, as `--help` shows it. A test compares it with the enum.
pub const HELP: &str = "Exit status:
    0  done, or healthy
    1  a clear no: a check failed, a log does not verify, a policy is refused
    2  wrong usage, or an unexpected error
    3  a plan is stuck and needs an operator
    4  another controller holds the decision log
   70  a bug in the program: please report it
  130  interrupted";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_lists_every_exit_code() {
        let listed: Vec<String> = Exit::ALL
            .iter()
            .map(|exit| format!("{:5}  {}", exit.code(), exit.meaning()))
            .collect();
        assert_eq!(HELP, format!("Exit status:\n{}", listed.join("\n")));
    }
}
