//! Secrets and certificates that are read again when their files change, without a restart.
//!
//! A file counts as changed when its content or its mode does, so that a link that was led
//! elsewhere, a file that was replaced and one that was written in place are all the same. New
//! content that is of no use is refused, which is logged and reported, and the old goes on; the
//! file is tried again at each look, so that one that was half written is taken when it is whole.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::clock::SystemClock;
use crate::engine::credential::{CertificateEnd, CredentialFacts, URGENT, WARNED};
use crate::engine::units::{MonoTime, WallTime};
use crate::ports::{Clock, Credentials};

/// How long new content must have been of no use before anybody is told: files that belong
/// together are rarely written in one moment.
const SETTLES: Duration = Duration::from_secs(2);

/// How long the end of a certificate that was seen is remembered after that.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// The most certificates that are remembered.
const MOST: usize = 64;

/// The largest file that is looked at, in bytes: a long list of revoked certificates.
pub(crate) const FILE_LIMIT: u64 = 1024 * 1024;

/// Content and mode of some files, to tell whether they changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Contents([u8; 32]);

impl Contents {
    /// Of the files as they are now. One that cannot be read is a content of its own.
    pub(crate) fn of(paths: &[impl AsRef<Path>]) -> Self {
        let mut digest = Sha256::new();
        for path in paths {
            match read(path.as_ref()) {
                Ok((mode, content)) => {
                    digest.update(mode.to_be_bytes());
                    digest.update(Sha256::digest(&content));
                }
                Err(error) => digest.update(error.to_string()),
            }
        }
        Self(digest.finalize().into())
    }
}

fn read(path: &Path) -> std::io::Result<(u32, Vec<u8>)> {
    let file = std::fs::File::open(path)?;
    let mode = file.metadata()?.permissions().mode();
    let mut content = Vec::new();
    file.take(FILE_LIMIT).read_to_end(&mut content)?;
    Ok((mode, content))
}

/// What a process knows of the certificates and secrets that it holds or sees, to report it.
#[derive(Debug, Default)]
pub struct CredentialBook(Mutex<Pages>);

#[derive(Debug, Default)]
struct Pages {
    ends: BTreeMap<String, Seen>,
    refused: BTreeMap<String, Refused>,
}

#[derive(Debug)]
struct Seen {
    until: WallTime,
    at: MonoTime,
    stage: Stage,
}

#[derive(Debug)]
struct Refused {
    why: String,
    since: MonoTime,
    told: bool,
}

/// How near an end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Far,
    Warned,
    Urgent,
    Over,
}

impl Stage {
    fn of(until: WallTime, now: WallTime) -> Self {
        let left = until.since(now);
        if left.is_zero() {
            Stage::Over
        } else if left <= URGENT {
            Stage::Urgent
        } else if left <= WARNED {
            Stage::Warned
        } else {
            Stage::Far
        }
    }
}

impl CredentialBook {
    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody's certificate was seen, and ends then. Logged once for each stage that it enters.
    pub(crate) fn saw(&self, owner: &str, until: WallTime) {
        let stage = Stage::of(until, SystemClock.wall());
        let at = SystemClock.now();
        let mut pages = self.pages();
        let known = pages.ends.get(owner).filter(|seen| seen.until == until);
        let entered = known.map_or(Stage::Far, |seen| seen.stage) < stage;
        if !pages.ends.contains_key(owner) && pages.ends.len() >= MOST {
            pages.ends.pop_first();
        }
        pages
            .ends
            .insert(owner.to_owned(), Seen { until, at, stage });
        drop(pages);
        match stage {
            Stage::Warned if entered => tracing::warn!(owner, %until, "a certificate expires soon"),
            Stage::Urgent if entered => {
                tracing::error!(owner, %until, "a certificate expires soon");
            }
            Stage::Over if entered => tracing::error!(owner, %until, "a certificate has expired"),
            Stage::Far | Stage::Warned | Stage::Urgent | Stage::Over => {}
        }
    }

    /// A file's new content is not used. Logged once, when that has lasted.
    pub(crate) fn refuse(&self, what: &str, why: String) {
        let now = SystemClock.now();
        let mut pages = self.pages();
        let known = pages.refused.entry(what.to_owned());
        let refused = known.or_insert_with(|| Refused {
            why: why.clone(),
            since: now,
            told: false,
        });
        let told = refused.told && refused.why == why;
        refused.told = now.since(refused.since) >= SETTLES;
        refused.why.clone_from(&why);
        let tell = refused.told && !told;
        drop(pages);
        if tell {
            tracing::error!(
                what,
                why,
                "the new content is not used, the old stays in use"
            );
        }
    }

    /// A file's content is in use.
    pub(crate) fn accept(&self, what: &str) {
        self.pages().refused.remove(what);
    }
}

impl Credentials for CredentialBook {
    fn facts(&self) -> CredentialFacts {
        let now = SystemClock.now();
        let mut pages = self.pages();
        pages
            .ends
            .retain(|_, seen| now.since(seen.at) <= REMEMBERED);
        let ends = pages.ends.iter().map(|(owner, seen)| CertificateEnd {
            owner: owner.clone(),
            until: seen.until,
        });
        let refused = pages.refused.iter().filter(|(_, refused)| refused.told);
        CredentialFacts {
            ends: ends.collect(),
            refused: refused
                .map(|(what, refused)| format!("{what}: {}", refused.why))
                .collect(),
        }
    }
}

type Parse<T> = Box<dyn Fn() -> Result<T, String> + Send + Sync>;

/// A value from files, read again when they change.
pub(crate) struct Reread<T> {
    /// What it is, for people, with its path.
    what: String,
    paths: Vec<PathBuf>,
    parse: Parse<T>,
    book: Arc<CredentialBook>,
    held: Mutex<Held<T>>,
}

struct Held<T> {
    value: Arc<T>,
    contents: Contents,
    /// What is there is not what is used.
    behind: bool,
}

impl<T> fmt::Debug for Reread<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reread({})", self.what)
    }
}

impl<T> Reread<T> {
    /// Reads for the first time; an error is one here.
    pub(crate) fn new<E: fmt::Display>(
        what: impl Into<String>,
        path: &Path,
        book: &Arc<CredentialBook>,
        parse: impl Fn(&Path) -> Result<T, E> + Send + Sync + 'static,
    ) -> Result<Self, E> {
        let path = path.to_owned();
        // Before it is read, so that a change in between is seen at the next look.
        let contents = Contents::of(&[&path]);
        let value = Arc::new(parse(&path)?);
        let from = path.clone();
        Ok(Self {
            what: format!("{} `{}`", what.into(), path.display()),
            paths: vec![path],
            parse: Box::new(move || parse(&from).map_err(|error| error.to_string())),
            book: Arc::clone(book),
            held: Mutex::new(Held {
                value,
                contents,
                behind: false,
            }),
        })
    }

    /// What the file holds now, or held when it was last of use.
    pub(crate) fn get(&self) -> Arc<T> {
        let contents = Contents::of(&self.paths);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if contents != held.contents {
            match (self.parse)() {
                Ok(value) => {
                    tracing::info!(what = self.what, "read again");
                    held.value = Arc::new(value);
                    held.contents = contents;
                }
                Err(why) => {
                    held.behind = true;
                    self.book.refuse(&self.what, why);
                    return Arc::clone(&held.value);
                }
            }
        }
        if std::mem::take(&mut held.behind) {
            self.book.accept(&self.what);
        }
        Arc::clone(&held.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(path: &Path) -> Result<u32, String> {
        let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
        text.parse()
            .map_err(|_cause| format!("`{text}` is no number"))
    }

    struct Stage {
        dir: tempfile::TempDir,
        book: Arc<CredentialBook>,
    }

    impl Stage {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("n"), "1").unwrap();
            let book = Arc::default();
            Self { dir, book }
        }

        fn path(&self) -> PathBuf {
            self.dir.path().join("n")
        }

        fn reread(&self) -> Reread<u32> {
            Reread::new("number", &self.path(), &self.book, number).unwrap()
        }

        /// As if it had lasted.
        fn settled(&self) -> Vec<String> {
            for refused in self.book.pages().refused.values_mut() {
                refused.told = true;
            }
            self.book.facts().refused
        }
    }

    #[test]
    fn a_file_written_in_place_or_replaced_is_read_again() {
        let stage = Stage::new();
        let value = stage.reread();
        assert_eq!(*value.get(), 1);
        std::fs::write(stage.path(), "2").unwrap();
        assert_eq!(*value.get(), 2, "same length, perhaps the same time");
        std::fs::write(stage.dir.path().join("new"), "3").unwrap();
        std::fs::rename(stage.dir.path().join("new"), stage.path()).unwrap();
        assert_eq!(*value.get(), 3);
    }

    #[test]
    fn a_link_that_is_led_elsewhere_is_followed() {
        let stage = Stage::new();
        let dir = stage.dir.path();
        for (folder, text) in [("..1", "10"), ("..2", "20")] {
            std::fs::create_dir(dir.join(folder)).unwrap();
            std::fs::write(dir.join(folder).join("n"), text).unwrap();
        }
        let lead = |folder: &str| {
            std::os::unix::fs::symlink(folder, dir.join("..tmp")).unwrap();
            std::fs::rename(dir.join("..tmp"), dir.join("..data")).unwrap();
        };
        lead("..1");
        std::fs::remove_file(stage.path()).unwrap();
        std::os::unix::fs::symlink("..data/n", stage.path()).unwrap();
        let value = stage.reread();
        assert_eq!(*value.get(), 10);
        lead("..2");
        assert_eq!(*value.get(), 20);
    }

    #[test]
    fn what_is_of_no_use_is_refused_until_it_is_and_the_old_goes_on() {
        let stage = Stage::new();
        let value = stage.reread();
        std::fs::write(stage.path(), "").unwrap();
        assert_eq!(*value.get(), 1);
        assert_eq!(
            stage.book.facts().refused,
            Vec::<String>::new(),
            "it may be half written"
        );
        let refused = stage.settled();
        assert!(refused[0].contains("is no number"), "{refused:?}");
        std::fs::remove_file(stage.path()).unwrap();
        assert_eq!(*value.get(), 1);
        std::fs::write(stage.path(), "1").unwrap();
        assert_eq!(*value.get(), 1);
        assert_eq!(stage.settled(), Vec::<String>::new(), "the old one is back");
    }

    #[test]
    fn an_end_is_told_once_for_each_stage() {
        let now = WallTime(1_000_000_000_000);
        let in_days = |days: u64| WallTime(now.0 + days * 86_400_000);
        for (days, stage) in [
            (31, super::Stage::Far),
            (30, super::Stage::Warned),
            (7, super::Stage::Urgent),
            (0, super::Stage::Over),
        ] {
            assert_eq!(super::Stage::of(in_days(days), now), stage, "{days} days");
        }
    }
}
