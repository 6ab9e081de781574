//! Folders and files that an agent writes, often as root: never through a link or into a folder
//! that somebody else could use to redirect it.
//!
//! A path is walked folder by folder, each held open while the next is opened, so that nobody can
//! replace one meanwhile. A link is followed only if it is ours or root's and is in a folder that
//! nobody else can write to.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat};
use rustix::io::Errno;
use rustix::process::geteuid;

/// As many links as the kernel follows in one path.
const LINKS: usize = 40;

/// Makes sure that a folder is ours alone: creates it if missing, and closes it to other readers.
/// Fails, with what to do, if somebody else could write there or replace it.
pub fn claim_folder(path: &Path) -> io::Result<()> {
    if let Some(missing) = path.ancestors().find(|it| it.exists())
        && missing != path
    {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    }
    let walk = Walk::to(path)?;
    let us = geteuid().as_raw();
    let shown = path.display();
    if let Some(folder) = walk.untrusted.filter(|_| geteuid().is_root()) {
        let folder = folder.display();
        return Err(io::Error::other(format!(
            "`{shown}` lies below `{folder}`, where somebody else may write, who could put another \
             folder in its place: choose one below folders that only root writes to"
        )));
    }
    let stat = fstat(&walk.folder)?;
    if stat.st_uid != us {
        return Err(io::Error::other(format!(
            "`{shown}` belongs to user {}, and we are user {us}: give it to us (`chown {us} {shown}`) \
             after checking its contents, or name another folder",
            stat.st_uid
        )));
    }
    if stat.st_mode & 0o022 != 0 {
        return Err(io::Error::other(format!(
            "others may write into `{shown}` (mode {:o}): check its contents, then `chmod 0700 \
             {shown}`",
            stat.st_mode & 0o7777
        )));
    }
    if stat.st_mode & 0o077 != 0 {
        tracing::info!(folder = %shown, "closed to others");
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Opens a log for appending, or creates it. It may be in a folder of `writer`, the operating
/// system user that the log is about, and belong to that user or to us.
pub fn open_log(path: &Path, writer: Option<u32>) -> io::Result<File> {
    let how = OFlags::APPEND | OFlags::CREATE | OFlags::WRONLY;
    open_in_its_folder(path, how, writer)
}

/// Opens a log for reading.
pub fn read_log(path: &Path, writer: Option<u32>) -> io::Result<File> {
    open_in_its_folder(path, OFlags::RDONLY, writer)
}

/// Writes a small file into a folder of ours.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let how = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY;
    open_in_its_folder(path, how, None)?.write_all(bytes)
}

fn open_in_its_folder(path: &Path, how: OFlags, writer: Option<u32>) -> io::Result<File> {
    // A bare name has a folder too.
    let path = &std::path::absolute(path)?;
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::other(format!(
            "`{}` names no file",
            path.display()
        )));
    };
    let folder = Walk::to(folder)?.folder;
    // A pipe or a device would block.
    let how = how | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = openat(&folder, name, how, Mode::from_raw_mode(0o600));
    let file = opened.map_err(|cause| match cause {
        Errno::LOOP => astray(path, "is a link"),
        cause => cause.into(),
    })?;
    let stat = fstat(&file)?;
    let owners = [Some(geteuid().as_raw()), Some(0), writer];
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        Err(astray(path, "is no plain file"))
    } else if stat.st_nlink != 1 {
        Err(astray(path, "has another name elsewhere"))
    } else if !owners.contains(&Some(stat.st_uid)) {
        Err(astray(path, &format!("belongs to user {}", stat.st_uid)))
    } else {
        Ok(File::from(file))
    }
}

fn astray(path: &Path, what: &str) -> io::Error {
    let shown = path.display();
    io::Error::other(format!(
        "`{shown}` {what}: it is not opened, since what we write could end up in another file; move \
         it away"
    ))
}

/// The walk to a folder.
struct Walk {
    folder: OwnedFd,
    /// The first folder on the way whose owner, or everybody, could replace what is below it.
    untrusted: Option<PathBuf>,
}

impl Walk {
    fn to(path: &Path) -> io::Result<Self> {
        let absolute = std::path::absolute(path)?;
        let mut rest: VecDeque<OsString> = names(&absolute);
        let mut at = PathBuf::from("/");
        let mut folder = open_folder(CWD, Path::new("/"))?;
        let (mut untrusted, mut links) = (None, 0_usize);
        while let Some(name) = rest.pop_front() {
            let holder = fstat(&folder)?;
            if !is_trusted(&holder) {
                untrusted.get_or_insert_with(|| at.clone());
            }
            let how = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let next = openat(&folder, name.as_os_str(), how, Mode::empty())?;
            let stat = fstat(&next)?;
            at.push(&name);
            if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
                folder = open_folder(&next, Path::new("."))?;
                continue;
            }
            links = links.saturating_add(1);
            let ours = stat.st_uid == 0 || stat.st_uid == geteuid().as_raw();
            if links > LINKS || (geteuid().is_root() && !(ours && is_trusted(&holder))) {
                return Err(astray(&at, "is somebody else's link"));
            }
            let target = readlinkat(&next, "", Vec::new())?.into_bytes();
            let target = PathBuf::from(OsString::from_vec(target));
            at.pop();
            if target.is_absolute() {
                at = PathBuf::from("/");
                folder = open_folder(CWD, Path::new("/"))?;
            }
            let mut through = names(&target);
            through.append(&mut rest);
            rest = through;
        }
        Ok(Self { folder, untrusted })
    }
}

fn open_folder(at: impl AsFd, name: &Path) -> io::Result<OwnedFd> {
    let how = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(at, name, how, Mode::empty())?)
}

fn names(path: &Path) -> VecDeque<OsString> {
    let named = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    named.collect()
}

/// Whether only root and we can replace what is in a folder; in a shared one like `/tmp`, each
/// entry is its owner's.
fn is_trusted(folder: &Stat) -> bool {
    let ours = folder.st_uid == 0 || folder.st_uid == geteuid().as_raw();
    let closed = folder.st_mode & 0o022 == 0;
    let sticky = folder.st_mode & 0o1000 != 0;
    ours && (closed || sticky)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, chown, symlink};

    use super::*;

    /// A user of nobody's.
    const STRANGER: u32 = 54_321;

    fn refused<T>(result: io::Result<T>) -> String {
        match result {
            Err(cause) => cause.to_string(),
            Ok(_) => panic!("not refused"),
        }
    }

    #[test]
    fn a_folder_is_made_closed_and_refused_where_others_write() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("made/here");
        claim_folder(&own).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(&own), 0o700);
        fs::set_permissions(&own, fs::Permissions::from_mode(0o755)).unwrap();
        claim_folder(&own).unwrap();
        assert_eq!(mode(&own), 0o700);
        for open in [0o770, 0o777, 0o1777] {
            fs::set_permissions(&own, fs::Permissions::from_mode(open)).unwrap();
            let why = refused(claim_folder(&own));
            assert!(why.contains("chmod 0700"), "{why}");
        }
    }

    #[test]
    fn root_trusts_no_folder_and_no_link_of_somebody_else() {
        let dir = tempfile::tempdir().unwrap();
        let theirs = dir.path().join("theirs");
        fs::create_dir(&theirs).unwrap();
        fs::create_dir(theirs.join("state")).unwrap();
        // Only root can give a folder away, and only root is led astray by one.
        let root = geteuid().is_root();
        if root {
            chown(&theirs, Some(STRANGER), None).unwrap();
            let why = refused(claim_folder(&theirs));
            assert!(
                why.contains(&format!("belongs to user {STRANGER}")),
                "{why}"
            );
            let why = refused(claim_folder(&theirs.join("state")));
            assert!(why.contains("lies below"), "{why}");
        }

        // A log may lie in the folder of who writes it; a planted link may not lead it away.
        let log = theirs.join("log");
        open_log(&log, Some(STRANGER))
            .unwrap()
            .write_all(b"1")
            .unwrap();
        let victim = dir.path().join("victim");
        fs::write(&victim, "mine").unwrap();
        fs::remove_file(&log).unwrap();
        symlink(&victim, &log).unwrap();
        assert!(refused(open_log(&log, Some(STRANGER))).contains("is a link"));
        fs::remove_file(&log).unwrap();
        fs::hard_link(&victim, &log).unwrap();
        assert!(refused(open_log(&log, Some(STRANGER))).contains("another name"));
        fs::remove_file(&log).unwrap();
        rustix::fs::mknodat(CWD, &log, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let why = refused(open_log(&log, Some(STRANGER)));
        assert!(
            why.contains("no plain file") || why.contains("No such device"),
            "{why}"
        );
        // The same one folder further up.
        let away = theirs.join("away");
        symlink(dir.path(), &away).unwrap();
        if root {
            let why = refused(open_log(&away.join("new"), Some(STRANGER)));
            assert!(why.contains("somebody else's link"), "{why}");
            assert!(!dir.path().join("new").exists());
        }
        assert_eq!(fs::read_to_string(&victim).unwrap(), "mine");
        // A name alone is one in the folder that we work in.
        let here = tempfile::NamedTempFile::new_in(".").unwrap();
        let name = here.path().file_name().unwrap();
        read_log(Path::new(name), None).unwrap();
        // One of ours, where only we write, is as good as the folder.
        symlink(&theirs, dir.path().join("ours")).unwrap();
        open_log(&dir.path().join("ours/log2"), Some(STRANGER)).unwrap();
    }
}
