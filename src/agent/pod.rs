//! The pod that an agent runs in: what the downward API says of it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Context;

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name: that of a StatefulSet's pod stays the same when it is made anew.
    pub name: String,
    /// Its uid, which no other pod of that name ever has.
    pub uid: String,
}

impl fmt::Display for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} (uid {})", self.namespace, self.name, self.uid)
    }
}

/// Where one field of the downward API is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// In a variable of the environment: `$POD_NAME`.
    Variable(String),
    /// In a file of a volume: `/etc/podinfo/name`.
    File(PathBuf),
}

/// Why a text names no source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write a variable of the environment like `$POD_NAME`, or the absolute path of a file")]
pub struct NoSource;

impl FromStr for Source {
    type Err = NoSource;

    fn from_str(text: &str) -> Result<Self, NoSource> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        match text.strip_prefix('$') {
            Some(name) if !name.is_empty() && name.chars().all(plain) => {
                Ok(Source::Variable(name.to_owned()))
            }
            None if text.starts_with('/') => Ok(Source::File(text.into())),
            Some(_) | None => Err(NoSource),
        }
    }
}

impl Source {
    /// The field `metadata.FIELD`.
    fn read(&self, field: &str) -> anyhow::Result<String> {
        let text = match self {
            Source::Variable(name) => std::env::var(name).with_context(|| {
                format!(
                    "read `metadata.{field}` of this pod from the variable `{name}`\n\nhint: give it to the container with `valueFrom.fieldRef.fieldPath: metadata.{field}`"
                )
            })?,
            Source::File(path) => std::fs::read_to_string(path).with_context(|| {
                format!(
                    "read `metadata.{field}` of this pod from `{}`\n\nhint: give it to the container with a `downwardAPI` volume",
                    path.display()
                )
            })?,
        };
        let text = text.trim();
        anyhow::ensure!(!text.is_empty(), "`metadata.{field}` of this pod is empty");
        Ok(text.to_owned())
    }
}

/// Where the downward API says who we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// Of `metadata.namespace`.
    pub namespace: Source,
    /// Of `metadata.name`.
    pub name: Source,
    /// Of `metadata.uid`.
    pub uid: Source,
}

impl Sources {
    /// Reads all of it.
    pub fn read(&self) -> anyhow::Result<Pod> {
        Ok(Pod {
            namespace: self.namespace.read("namespace")?,
            name: self.name.read("name")?,
            uid: self.uid.read("uid")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_in_the_environment_or_in_a_file_and_an_absent_one_says_how_it_gets_there() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("uid");
        std::fs::write(&file, "7d9e\n").unwrap();
        let source = |text: &str| text.parse::<Source>();
        let read = |text: &str| source(text).unwrap().read("uid");
        assert_eq!(read(&file.display().to_string()).unwrap(), "7d9e");
        std::fs::write(&file, " \n").unwrap();
        assert!(read(&file.display().to_string()).is_err());
        // Every test has one.
        assert!(!read("$PATH").unwrap().is_empty());
        let said = read("$NEVER_SET_BY_ANYBODY").unwrap_err().to_string();
        assert!(said.contains("fieldPath: metadata.uid"), "{said}");
        let said = read("/etc/podinfo/away").unwrap_err().to_string();
        assert!(said.contains("`downwardAPI` volume"), "{said}");
        for wrong in ["", "$", "POD_UID", "$POD-UID", "podinfo/uid"] {
            assert_eq!(source(wrong), Err(NoSource), "{wrong}");
        }
    }
}
