//! What our programs log as an error in a lab: a person must act on it, so each is one that was
//! expected, or something is wrong with what logs it.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Errors that what is done to a lab is known to cause, each by a part of its line.
#[derive(Debug, Clone, Default)]
pub struct ExpectedErrors(Vec<String>);

impl ExpectedErrors {
    /// One more. It need not come: whether it does can depend on what happens first.
    pub fn add(&mut self, text: impl Into<String>) {
        self.0.push(text.into());
    }

    /// The errors in all logs below a folder that nobody expected: file and line.
    pub fn unexpected_in(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut found = Vec::new();
        for log in logs(dir)? {
            let text = std::fs::read(&log)?;
            let text = String::from_utf8_lossy(&text);
            let name = log.strip_prefix(dir).unwrap_or(&log).display().to_string();
            let lines = text.lines().filter(|line| is_error(line));
            let lines = lines.filter(|line| !self.0.iter().any(|text| line.contains(text)));
            found.extend(lines.map(|line| format!("{name}: {line}")));
        }
        Ok(found)
    }
}

/// The files below a folder that end in `.log`, in order. A server comes and goes meanwhile: what is gone
/// is no log.
fn logs(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)?.flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_file() => {
                    let path = entry.path();
                    found.extend(
                        path.extension()
                            .is_some_and(|it| it == "log")
                            .then_some(path),
                    );
                }
                Ok(_) | Err(_) => {}
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Whether a line is one of our programs', of the level `ERROR`. PostgreSQL, which writes into the same
/// file as its guard, has other forms.
fn is_error(line: &str) -> bool {
    if let Ok(event) = serde_json::from_str::<Value>(line) {
        return event["level"] == "ERROR";
    }
    let mut words = line.split_whitespace();
    let at = words.next().map(humantime::parse_rfc3339);
    matches!(at, Some(Ok(_))) && words.next() == Some("ERROR")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_nobody_expected_is_found_with_its_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("aws/data")).unwrap();
        let at = "2026-11-26T13:43:42.391226Z";
        let agent = format!(
            "{at}  INFO failover: well\n{at} ERROR order{{step=\"fence\"}}: failover: bad luck\n"
        );
        let postgres = format!(
            "2026-11-26 13:43:42.391 UTC [1] ERROR:  relation\nDETAIL:  ERROR\n{at} ERROR failover: worse\n"
        );
        std::fs::write(dir.path().join("aws/agent.log"), agent).unwrap();
        std::fs::write(dir.path().join("aws/data/postgres.log"), postgres).unwrap();
        let json = r#"{"level":"WARN","message":"ERROR"}
{"level":"ERROR","message":"worst"}
"#;
        std::fs::write(dir.path().join("controller.log"), json).unwrap();
        std::fs::write(dir.path().join("aws/notes"), format!("{at} ERROR x\n")).unwrap();
        let mut expected = ExpectedErrors::default();
        let bad_luck =
            format!("aws/agent.log: {at} ERROR order{{step=\"fence\"}}: failover: bad luck");
        let worse = format!("aws/data/postgres.log: {at} ERROR failover: worse");
        let worst = r#"controller.log: {"level":"ERROR","message":"worst"}"#.to_owned();
        let found = expected.unexpected_in(dir.path()).unwrap();
        assert_eq!(found, [bad_luck, worse.clone(), worst.clone()]);
        expected.add("bad luck");
        expected.add("never seen");
        let found = expected.unexpected_in(dir.path()).unwrap();
        assert_eq!(found, [worse, worst]);
    }
}
