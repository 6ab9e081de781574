//! The decision log on a local file: one writer, every entry durable before the call returns, a
//! torn last line put aside, anything else that is wrong a refusal to start.
//!
//! The writer holds a lock on the file itself, whatever path led to it, and before each entry sees
//! that the path still leads there and that the file ends where it left it. Otherwise nothing more
//! is written: somebody moved, cut or continued the log.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;

use crate::engine::chain::{Broken, Chain, Entry, READ_LINE};
use crate::ports::{AppendError, LogStore};

mod locking;

use self::locking::{lock_itself, take_lock};

/// Why a log cannot be opened or does not verify.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Another controller has it.
    #[error(
        "the decision log `{path}` is held by another controller: {holder}\n\nhint: one controller leads at a time; stop that one first (see runbooks/log-held.md)"
    )]
    Held {
        /// The log.
        path: PathBuf,
        /// What the holder wrote about itself.
        holder: String,
    },
    /// It does not verify.
    #[error(
        "entry {entry} of the decision log `{path}` {}", broken(.why)
    )]
    Broken {
        /// The log.
        path: PathBuf,
        /// The number of the entry that does not fit.
        entry: u64,
        /// Why.
        why: Broken,
    },
    /// The file system says no.
    #[error(
        "cannot {what} `{path}`: {cause}\n\nhint: check the path, its owner and the space left (see runbooks/log-unwritable.md)"
    )]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What came of it.
        cause: std::io::Error,
    },
}

/// An open log: what it amounts to, and what is needed to go on writing.
#[derive(Debug)]
pub struct Opened {
    /// To write with.
    pub store: FileLog,
    /// What it amounts to.
    pub chain: Chain,
    /// What was cut off its end, if its last line was torn.
    pub torn: Option<Torn>,
}

/// The torn last line of a log: a crash in the middle of a write leaves one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Torn {
    /// How long it was.
    pub bytes: u64,
    /// Where it was put: nothing is thrown away.
    pub kept: PathBuf,
}

/// The log's file, open for appending and locked, which makes this process its only writer.
#[derive(Debug)]
pub struct FileLog {
    path: PathBuf,
    /// `None` once the file may not be what we left.
    file: Option<Held>,
    /// Beside the log, for people: says who holds it.
    _lock: File,
}

/// The locked file, and where it ends.
#[derive(Debug)]
struct Held {
    file: File,
    length: u64,
    /// A line that could not be made durable: some of it may lie behind the end.
    failed: Option<Vec<u8>>,
}

/// How often it is seen that the log still is where it was.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Why nothing may be appended any more.
#[derive(Debug, thiserror::Error)]
enum Changed {
    #[error("it was moved or deleted while the controller was running")]
    Gone,
    #[error("another file is in its place")]
    Replaced,
    #[error("it has {found} bytes, expected {left}: {}", if found < left { "somebody cut it" } else { "somebody else wrote into it" })]
    Length { found: u64, left: u64 },
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl Held {
    /// Whether the path still leads to this file, and the file ends where we left it.
    fn unchanged(&self, path: &Path) -> Result<(), Changed> {
        let own = self.file.metadata()?;
        match std::fs::metadata(path) {
            Ok(there) if (there.dev(), there.ino()) == (own.dev(), own.ino()) => {}
            Ok(_) => return Err(Changed::Replaced),
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => {
                return Err(Changed::Gone);
            }
            Err(cause) => return Err(cause.into()),
        }
        let (found, left) = (own.len(), self.length);
        if found == left {
            Ok(())
        } else {
            Err(Changed::Length { found, left })
        }
    }

    /// Takes away what is left of a line that could not be made durable, so that the file ends where
    /// it did before.
    fn settle(&mut self, path: &Path) -> Result<(), Changed> {
        let Some(line) = &self.failed else {
            return self.unchanged(path);
        };
        let found = self.file.metadata()?.len();
        let beyond = usize::try_from(found.saturating_sub(self.length)).unwrap_or(usize::MAX);
        let mut left = vec![0; beyond.min(line.len())];
        self.file.read_exact_at(&mut left, self.length)?;
        let ours = found >= self.length && beyond <= line.len() && line.starts_with(&left);
        if ours {
            self.file.set_len(self.length)?;
            self.file.sync_data()?;
        }
        self.unchanged(path)?;
        self.failed = None;
        Ok(())
    }

    fn append(&mut self, path: &Path, line: &[u8]) -> Result<(), Changed> {
        self.settle(path)?;
        let written = self.file.write_all(line);
        if let Err(cause) = written.and_then(|()| self.file.sync_data()) {
            self.failed = Some(line.to_owned());
            return Err(cause.into());
        }
        let written = u64::try_from(line.len()).unwrap_or(u64::MAX);
        self.length = self.length.saturating_add(written);
        // Somebody may have written between the first look and our line.
        self.unchanged(path)
    }
}

impl FileLog {
    /// Opens a log for writing; makes it if there is none. `holder` is what another controller
    /// that tries the same gets to read.
    pub fn open(path: &Path, holder: &str) -> Result<Opened, LogError> {
        let mut file = open_file(path)?;
        lock_itself(path, &file)?;
        let lock = take_lock(path, holder)?;
        let (chain, whole) = verify_lines(path, BufReader::new(&file))?;
        let torn = cut_torn_line(path, &mut file, whole)?;
        sync_folder(path)?;
        let metadata = file.metadata().map_err(|cause| io("read", path, cause))?;
        let held = Held {
            length: metadata.len(),
            file,
            failed: None,
        };
        // It may have been moved before it was locked.
        let unchanged = held.unchanged(path);
        unchanged.map_err(|cause| io("hold", path, std::io::Error::other(cause)))?;
        let store = FileLog {
            path: path.to_owned(),
            file: Some(held),
            _lock: lock,
        };
        Ok(Opened { store, chain, torn })
    }
}

/// Verifies a log without writing or locking. A torn last line is an error here: for somebody who
/// looks at a log that nobody writes, it is not whole.
pub fn verify(path: &Path) -> Result<Chain, LogError> {
    let file = File::open(path).map_err(|cause| io("open", path, cause))?;
    let length = file
        .metadata()
        .map_err(|cause| io("read", path, cause))?
        .len();
    let (chain, whole) = verify_lines(path, BufReader::new(&file))?;
    if whole < length {
        let entry = chain.entries.saturating_add(1);
        return Err(LogError::Broken {
            path: path.to_owned(),
            entry,
            why: Broken::Form,
        });
    }
    Ok(chain)
}

/// The entries of a log, from number `from` on, at most `limit` of them, with their lines. Does
/// not verify the chain; each line is as it stands in the file.
pub fn read(path: &Path, from: u64, limit: usize) -> Result<Vec<(String, Entry)>, LogError> {
    read_part(path, from, limit, usize::MAX)
}

/// The same, and no more once their lines have `bytes` together: at least one all the same.
pub fn read_part(
    path: &Path,
    from: u64,
    limit: usize,
    bytes: usize,
) -> Result<Vec<(String, Entry)>, LogError> {
    let file = File::open(path).map_err(|cause| io("open", path, cause))?;
    let mut found = Vec::new();
    let mut number = 0u64;
    let mut length = 0usize;
    for_each_line(path, BufReader::new(file), |line| {
        number = number.saturating_add(1);
        if number >= from && found.len() < limit && length < bytes {
            length = length.saturating_add(line.len());
            let (_, entry) =
                crate::engine::chain::read_line(line).map_err(|why| LogError::Broken {
                    path: path.to_owned(),
                    entry: number,
                    why,
                })?;
            found.push((String::from_utf8_lossy(line).into_owned(), entry));
        }
        Ok(())
    })?;
    Ok(found)
}

/// What is wrong with an entry, and what to do.
fn broken(why: &Broken) -> String {
    let (is, hint) = if let Broken::NotUnderstood { version, .. } = why {
        let hint = format!("start failover {version} or a later one on it; ");
        ("is not understood", hint)
    } else {
        ("does not verify", String::new())
    };
    format!(
        "{is}: {why}\n\nhint: {hint}nothing was started and nothing was changed; see runbooks/log-broken.md"
    )
}

fn io(what: &'static str, path: &Path, cause: std::io::Error) -> LogError {
    LogError::Io {
        what,
        path: path.to_owned(),
        cause,
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn open_file(path: &Path) -> Result<File, LogError> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|cause| io("make the folder of", path, cause))?;
    }
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o640);
    options.open(path).map_err(|cause| io("open", path, cause))
}

fn sync_folder(path: &Path) -> Result<(), LogError> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let opened = File::open(folder).and_then(|folder| folder.sync_all());
    opened.map_err(|cause| io("make durable the folder of", path, cause))
}

/// Calls `each` for every whole line; returns how many bytes those are.
fn for_each_line(
    path: &Path,
    mut reader: impl BufRead,
    mut each: impl FnMut(&[u8]) -> Result<(), LogError>,
) -> Result<u64, LogError> {
    let mut line = Vec::new();
    let mut whole = 0u64;
    loop {
        line.clear();
        let limit = u64::try_from(READ_LINE).unwrap_or(u64::MAX);
        let read = reader.by_ref().take(limit).read_until(b'\n', &mut line);
        let read = read.map_err(|cause| io("read", path, cause))?;
        let Some(text) = line.strip_suffix(b"\n") else {
            // The end of the file, or a line that is torn or much too long.
            if read == READ_LINE {
                each(&line)?;
            }
            return Ok(whole);
        };
        each(text)?;
        whole = whole.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
    }
}

fn verify_lines(path: &Path, reader: impl BufRead) -> Result<(Chain, u64), LogError> {
    let mut chain = Chain::default();
    let whole = for_each_line(path, reader, |line| match chain.take(line) {
        Ok(_) => Ok(()),
        Err(why) => {
            let entry = chain.entries.saturating_add(1);
            Err(LogError::Broken {
                path: path.to_owned(),
                entry,
                why,
            })
        }
    })?;
    Ok((chain, whole))
}

/// Cuts what stands after the last whole line, and keeps it in a file of its own.
fn cut_torn_line(path: &Path, file: &mut File, whole: u64) -> Result<Option<Torn>, LogError> {
    let length = file
        .metadata()
        .map_err(|cause| io("read", path, cause))?
        .len();
    if length <= whole {
        return Ok(None);
    }
    let mut rest = Vec::new();
    file.seek(SeekFrom::Start(whole))
        .map_err(|cause| io("read", path, cause))?;
    file.read_to_end(&mut rest)
        .map_err(|cause| io("read", path, cause))?;
    let kept = beside(path, &format!(".torn-at-{whole}"));
    let write = || {
        let mut aside = File::create(&kept)?;
        aside.write_all(&rest)?;
        aside.sync_all()
    };
    write().map_err(|cause| io("write", &kept, cause))?;
    file.set_len(whole)
        .map_err(|cause| io("cut", path, cause))?;
    file.sync_all()
        .map_err(|cause| io("make durable", path, cause))?;
    Ok(Some(Torn {
        bytes: length.saturating_sub(whole),
        kept,
    }))
}

impl FileLog {
    /// Does something with the locked file. Once it is not as it was left, nothing is done with it
    /// again.
    async fn with(
        &mut self,
        work: impl FnOnce(&mut Held, &Path) -> Result<(), Changed> + Send + 'static,
    ) -> Result<(), AppendError> {
        let name = self.path.display().to_string();
        let told = |cause: &dyn std::fmt::Display| format!("`{name}`: {cause}");
        let Some(mut held) = self.file.take() else {
            let text = "it changed under this controller, which must start anew";
            return Err(AppendError::Conflict(told(&text)));
        };
        let path = self.path.clone();
        let done = tokio::task::spawn_blocking(move || {
            let done = work(&mut held, &path);
            let settled = done.is_ok() || held.settle(&path).is_ok();
            (held, done, settled)
        });
        let (held, done, settled) = match done.await {
            Ok(done) => done,
            // The process ends, and with it whoever waits here.
            Err(cause) if cause.is_cancelled() => return std::future::pending().await,
            Err(cause) => return Err(AppendError::Conflict(told(&cause))),
        };
        match done {
            Ok(()) => {
                self.file = Some(held);
                Ok(())
            }
            Err(Changed::Io(cause)) => {
                self.file = Some(held);
                let text = told(&cause);
                Err(if settled {
                    AppendError::Failed(text)
                } else {
                    AppendError::Unknown(text)
                })
            }
            Err(changed @ (Changed::Gone | Changed::Replaced | Changed::Length { .. })) => {
                Err(AppendError::Conflict(told(&format_args!(
                    "{changed}; nothing more is decided (see runbooks/log-changed.md)"
                ))))
            }
        }
    }
}

#[async_trait]
impl LogStore for FileLog {
    async fn append(&mut self, line: &[u8]) -> Result<(), AppendError> {
        let line = line.to_owned();
        self.with(move |held, path| held.append(path, &line)).await
    }

    fn look_every(&self) -> Option<Duration> {
        Some(LOOK_EVERY)
    }

    async fn look(&mut self) -> Result<(), AppendError> {
        self.with(Held::settle).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::chain::{Body, Digest};
    use crate::engine::topology::Topology;
    use crate::engine::units::{Epoch, WallTime};

    fn entry(chain: &Chain, body: Body) -> Entry {
        Entry {
            seq: chain.entries + 1,
            at: WallTime(0),
            mono_ms: 0,
            boot: "b".into(),
            group: "shop".parse().unwrap(),
            epoch: Epoch(1),
            actor: "controller".into(),
            version: "0".into(),
            settings: Digest::ZERO,
            body,
            previous: chain.head,
        }
    }

    async fn write(path: &Path, notes: usize) {
        let Opened {
            mut store,
            mut chain,
            ..
        } = FileLog::open(path, "test").unwrap();
        if chain.entries == 0 {
            let group = "shop".parse().unwrap();
            let (first, second) = ("aws".parse().unwrap(), "gcp".parse().unwrap());
            let topology = Topology {
                group,
                first,
                second,
                traffic: vec![],
            };
            let opened = entry(
                &chain,
                Body::Opened {
                    topology,
                    format: None,
                },
            );
            store.append(&chain.append(&opened).unwrap()).await.unwrap();
        }
        for index in 0..notes {
            let note = Body::Note {
                code: "n".into(),
                text: index.to_string(),
            };
            let line = chain.append(&entry(&chain.clone(), note)).unwrap();
            store.append(&line).await.unwrap();
        }
    }

    #[tokio::test]
    async fn what_was_appended_is_there_after_opening_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sub/log");
        write(&path, 2).await;
        write(&path, 3).await;
        assert_eq!(verify(&path).unwrap().entries, 6);
        assert_eq!(read(&path, 5, 10).unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_second_controller_is_refused_and_told_who_holds_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let first = FileLog::open(&path, "pid 4711 since noon").unwrap();
        let second = FileLog::open(&path, "other").unwrap_err().to_string();
        assert!(second.contains("pid 4711 since noon"), "{second}");
        drop(first);
        assert!(FileLog::open(&path, "other").is_ok());
    }

    #[tokio::test]
    async fn a_torn_last_line_is_cut_wherever_it_was_torn_and_kept_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        write(&path, 2).await;
        let whole = std::fs::read(&path).unwrap();
        let last = whole[..whole.len() - 1]
            .iter()
            .rposition(|byte| *byte == b'\n')
            .unwrap()
            + 1;
        for cut in last + 1..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(verify(&path).is_err(), "a reader is told");
            let opened = FileLog::open(&path, "test").unwrap();
            assert_eq!(opened.chain.entries, 2);
            let torn = opened.torn.unwrap();
            assert_eq!(std::fs::read(&torn.kept).unwrap(), &whole[last..cut]);
            assert_eq!(std::fs::read(&path).unwrap(), &whole[..last]);
        }
    }

    #[tokio::test]
    async fn a_flipped_byte_before_the_last_line_refuses_to_open_and_names_the_entry() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        write(&path, 2).await;
        let mut bytes = std::fs::read(&path).unwrap();
        let second = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 100;
        bytes[second] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let said = FileLog::open(&path, "test").unwrap_err().to_string();
        assert!(said.contains("entry 2 "), "{said}");
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "nothing was changed");
    }
}
