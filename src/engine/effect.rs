//! What came of trying to change the world, where it did not simply happen.

use serde::{Deserialize, Serialize};

/// Why a change of the world did not happen, or may have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "text")]
pub enum EffectError {
    /// It certainly did not happen, and trying again may help.
    #[error("{0}")]
    Failed(String),
    /// It certainly did not happen, and trying again will not help.
    #[error("{0}")]
    Refused(String),
    /// It may have happened: a time-out, a lost connection. Read the world again before anything
    /// else (invariants.md I4).
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// As `Unknown`, because the time that we gave it ourselves was over: it says nothing of the
    /// cause.
    #[error("outcome unknown: {0}")]
    Late(String),
    /// Somebody else changed it since it was read.
    #[error("changed by somebody else: {0}")]
    Conflict(String),
}

impl EffectError {
    /// What is told of it.
    pub fn text(&self) -> &str {
        match self {
            EffectError::Failed(text)
            | EffectError::Refused(text)
            | EffectError::Unknown(text)
            | EffectError::Late(text)
            | EffectError::Conflict(text) => text,
        }
    }
}

/// What is told of something that is tried again and again: the last error that is not our own
/// deadline. That the time was over is known anyway, and hides why it was not used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LastError {
    cause: Option<String>,
    late: Option<String>,
}

impl LastError {
    /// Takes in what came of a try. `over`: the time for all tries was over when it ended, so that
    /// what failed may have failed for that alone.
    pub fn note(&mut self, error: &EffectError, over: bool) {
        let late = match error {
            EffectError::Late(_) => true,
            EffectError::Failed(_) | EffectError::Unknown(_) => over && self.cause.is_some(),
            EffectError::Refused(_) | EffectError::Conflict(_) => false,
        };
        self.say(error.text(), late);
    }

    /// The same of a text; `late`: it tells of our own deadline only.
    pub fn say(&mut self, text: impl Into<String>, late: bool) {
        if late {
            self.late = Some(text.into());
        } else {
            (self.cause, self.late) = (Some(text.into()), None);
        }
    }

    /// The cause, and how it ended where that was something else.
    pub fn tell(&self) -> String {
        match (&self.cause, &self.late) {
            (Some(cause), Some(late)) if cause != late => format!("{cause}; finally: {late}"),
            (Some(cause), _) => cause.clone(),
            (None, Some(late)) => late.clone(),
            (None, None) => "nothing came of it".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_of_ours_hides_no_cause() {
        use EffectError::{Conflict, Failed, Late, Refused, Unknown};
        let cause = || Failed("`ALTER SYSTEM` is not allowed".to_owned());
        let late = || Late("no answer in time".to_owned());
        /// What came of each try, whether it was the last, and what is told.
        type Row<'t> = (&'t str, Vec<EffectError>, &'t str);
        let table: Vec<Row<'_>> = vec![
            ("nothing was tried", vec![], "nothing came of it"),
            ("the first is late", vec![late()], "no answer in time"),
            (
                "eight with a cause, and a last one that is late",
                vec![cause(), cause(), late()],
                "`ALTER SYSTEM` is not allowed; finally: no answer in time",
            ),
            (
                "late ones first",
                vec![late(), late(), cause()],
                "`ALTER SYSTEM` is not allowed",
            ),
            (
                "a connection that did not come about in the last milliseconds",
                vec![cause(), Failed("no answer within 20 ms".to_owned())],
                "`ALTER SYSTEM` is not allowed; finally: no answer within 20 ms",
            ),
            (
                "a last one that nobody knows of",
                vec![cause(), Unknown("connection lost".to_owned())],
                "`ALTER SYSTEM` is not allowed; finally: connection lost",
            ),
            (
                "a clear no at the end",
                vec![cause(), Refused("epoch 7 is over".to_owned())],
                "epoch 7 is over",
            ),
            (
                "somebody else's change at the end",
                vec![cause(), Conflict("serial 8".to_owned())],
                "serial 8",
            ),
            (
                "the same to the end",
                vec![cause(), cause()],
                "`ALTER SYSTEM` is not allowed",
            ),
        ];
        for (name, tries, told) in table {
            let mut last = LastError::default();
            let count = tries.len();
            for (index, error) in tries.iter().enumerate() {
                last.note(error, index + 1 == count);
            }
            assert_eq!(last.tell(), told, "{name}");
        }
    }
}
