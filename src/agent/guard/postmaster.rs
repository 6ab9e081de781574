//! PostgreSQL's processes: starting the postmaster so that it cannot outlive the guard, finding all
//! of them, and ending exactly those that were found.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, getppid, getpriority_process, pidfd_open, pidfd_send_signal,
    set_parent_process_death_signal, setpriority_process,
};

use crate::agent::guard_protocol::GuardConfig;
use crate::agent::own_files;

/// The first word of the command line that becomes PostgreSQL.
pub const EXEC_VERB: &str = "guard-exec";

/// The environment variables that PostgreSQL gets; the agent's secrets are excluded.
const KEPT_ENVIRONMENT: [&str; 5] = ["PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH"];

/// The file in the state folder with the postmaster that a guard started last.
const PID_FILE: &str = "postmaster.pid";

/// PostgreSQL's own file that names its postmaster (postgres.md P14).
const PID_FILE_OF_POSTGRESQL: &str = "postmaster.pid";

/// The pid in such a file. Negative: a single-user session.
fn noted_pid(path: &Path) -> Option<i32> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().next()?.trim().parse().ok()
}

/// Whether a guard of this state folder started the server that uses the data folder: PostgreSQL's
/// own pid file, which survives a crash, names the process that we recorded.
pub(super) fn was_ours(config: &GuardConfig) -> bool {
    let noted = noted_pid(&config.state_dir.join(PID_FILE));
    noted.is_some() && noted == noted_pid(&config.data_dir.join(PID_FILE_OF_POSTGRESQL))
}

/// Whether a guard of this state folder has ever started PostgreSQL in this data folder: from then
/// on any other server is an intruder, not the owner of a database that was never handed over.
pub(super) fn is_known(config: &GuardConfig) -> bool {
    let note = fs::read_to_string(config.state_dir.join(PID_FILE)).unwrap_or_default();
    note.lines().nth(1).map(Path::new) == Some(&config.data_dir)
}

/// The postmaster, a direct child of ours.
#[derive(Debug)]
pub(super) struct Postmaster {
    /// Its process.
    pub(super) pid: Pid,
    /// Readable once it has ended; signals through it never hit a reused pid.
    pub(super) fd: OwnedFd,
    /// The offset of its output in the log, in bytes.
    pub(super) log_from: u64,
    /// Whether a fence has ended it.
    pub(super) fenced: bool,
}

impl Postmaster {
    /// Starts PostgreSQL through [`exec`].
    pub(super) fn start(config: &GuardConfig) -> io::Result<Self> {
        let user = config.run_as.as_deref().map(user_ids).transpose()?;
        let log = own_files::open_log(&config.log_file, user.map(|(uid, _)| uid))?;
        let log_from = log.metadata()?.len();
        let mut command = Command::new("/proc/self/exe");
        command
            .arg(EXEC_VERB)
            .arg(getpid().as_raw_pid().to_string())
            .arg(config.bin_dir.join("postgres"))
            .arg("-D")
            .arg(&config.data_dir);
        for setting in [
            format!("port={}", config.port),
            format!("listen_addresses={}", config.listen_addresses),
            format!("unix_socket_directories={}", config.socket_dir.display()),
        ]
        .iter()
        .chain(&config.options)
        .chain(&alter_system(config))
        {
            command.arg("-c").arg(setting);
        }
        command.env_clear();
        for name in KEPT_ENVIRONMENT {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        if let Some((uid, gid)) = user {
            // As root this also clears the supplementary groups.
            command.uid(uid).gid(gid);
        }
        let mut child = command
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let pid = Pid::from_child(&child);
        let note = format!("{}\n{}\n", pid.as_raw_pid(), config.data_dir.display());
        let known = own_files::write(&config.state_dir.join(PID_FILE), note.as_bytes())
            .and_then(|()| Ok(pidfd_open(pid, PidfdFlags::empty())?));
        match known {
            Ok(fd) => Ok(Self {
                pid,
                fd,
                log_from,
                fenced: false,
            }),
            Err(cause) => {
                child.kill()?;
                Err(cause)
            }
        }
    }

    /// Sends a signal to the postmaster only. That it has already ended is not an error.
    pub(super) fn signal(&self, signal: Signal) {
        if let Err(cause) = pidfd_send_signal(&self.fd, signal) {
            tracing::debug!(%cause, ?signal, "signal not delivered");
        }
    }

    /// Kills the postmaster and its children, in the fewest steps: a full scan of `/proc` takes
    /// milliseconds, in which sessions would acknowledge. The fence finds what this misses.
    pub(super) fn kill_family(&self) {
        let parent = self.pid.as_raw_pid();
        let list = format!("/proc/{parent}/task/{parent}/children");
        let list = fs::read_to_string(list).unwrap_or_default();
        let children = list.split_whitespace().filter_map(|pid| pid.parse().ok());
        let held: Vec<OwnedFd> = children
            .filter_map(|pid: i32| {
                let handle = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
                // Its parent is checked after the handle is opened: a reused pid is spared.
                (stat(pid)?.parent == parent).then_some(handle)
            })
            .collect();
        for child in &held {
            if let Err(cause) = pidfd_send_signal(child, Signal::KILL) {
                tracing::debug!(%cause, "a session was gone already");
            }
        }
        self.signal(Signal::KILL);
    }

    /// Whether it is still running.
    pub(super) fn is_alive(&self) -> bool {
        stat(self.pid.as_raw_pid()).is_some_and(Stat::alive)
    }

    /// Whether it is stopped (SIGSTOP, a debugger): then it reacts only to SIGKILL, while its
    /// sessions go on serving.
    pub(super) fn is_stopped(&self) -> bool {
        stat(self.pid.as_raw_pid()).is_some_and(|stat| matches!(stat.state, 'T' | 't'))
    }
}

/// Sever, reconnect and making commits wait use `ALTER SYSTEM`, which an administrator may forbid
/// from version 17 on. The command line takes precedence (postgres.md P27).
fn alter_system(config: &GuardConfig) -> Option<String> {
    let version = fs::read_to_string(config.data_dir.join("PG_VERSION")).ok()?;
    let major: u32 = version.trim().parse().ok()?;
    (major >= 17).then(|| "allow_alter_system=on".to_owned())
}

/// Becomes PostgreSQL, in the child: `guard-exec GUARD_PID /…/postgres ARGUMENT…`. Returns only on
/// failure. It makes the kernel end PostgreSQL when the guard dies, however it dies.
///
/// The signal is SIGQUIT: the postmaster then ends each session at once, in the middle of its
/// statement. SIGKILL would end only the postmaster, and a busy session acknowledges its statement,
/// and whatever a pipelining client has already sent, before it notices (postgres.md P36). The
/// price: a *stopped* postmaster does not react to SIGQUIT; but that needs two faults, a stopped
/// postmaster and a dead guard, and the next guard ends what it finds.
pub fn exec(arguments: &[String]) -> io::Error {
    let [guard, program, rest @ ..] = arguments else {
        return io::Error::other("write `guard-exec GUARD_PID PROGRAM ARGUMENT…`");
    };
    if let Err(cause) = set_parent_process_death_signal(Some(Signal::QUIT)) {
        return cause.into();
    }
    // PostgreSQL must not keep the guard's priority.
    if getpriority_process(None).is_ok_and(|own| own < 0)
        && let Err(cause) = setpriority_process(None, 0)
    {
        tracing::debug!(%cause, "the guard's priority is kept");
    }
    // The guard may have died before the line above.
    if getppid().map(|pid| pid.as_raw_pid().to_string()).as_ref() != Some(guard) {
        return io::Error::other("the guard is dead, so PostgreSQL is not started");
    }
    Command::new(program).args(rest).exec()
}

/// Creates `standby.signal` in a server's working folder, which is its data folder wherever a path
/// leads, owned by the server's user, and durably. An existing one is fine.
pub(super) fn put_back_signal(first: Pid) -> io::Result<()> {
    let folder = format!("/proc/{}/cwd", first.as_raw_pid());
    let owner = fs::metadata(&folder)?;
    let folder = rustix::fs::open(
        folder,
        OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let how = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(&folder, "standby.signal", how, Mode::from_raw_mode(0o600))
    {
        Err(Errno::EXIST) => return Ok(()),
        opened => opened?,
    };
    let (uid, gid) = (Uid::from_raw(owner.uid()), Gid::from_raw(owner.gid()));
    rustix::fs::fchown(&file, Some(uid), Some(gid))?;
    rustix::fs::fsync(&file)?;
    Ok(rustix::fs::fsync(&folder)?)
}

/// Looks a user up in `/etc/passwd` (not a directory service, which could block).
pub(in crate::agent) fn user_ids(user: &str) -> io::Result<(u32, u32)> {
    fs::read_to_string("/etc/passwd")?
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find_map(|fields| match fields.as_slice() {
            [name, _, uid, gid, ..] if *name == user => {
                Some((uid.parse().ok()?, gid.parse().ok()?))
            }
            _ => None,
        })
        .ok_or_else(|| io::Error::other(format!("`{user}` is not a user in `/etc/passwd`")))
}

/// Processes by pid, each with its start time in clock ticks: the pair is never reused.
pub(super) type Processes = BTreeMap<i32, u64>;

/// What distinguishes PostgreSQL's processes from others.
#[derive(Debug)]
pub(super) struct Habitat {
    data_dir: PathBuf,
    program: PathBuf,
}

impl Habitat {
    /// Resolves links once, at the start: `/proc` shows the real paths.
    pub(super) fn new(config: &GuardConfig) -> Self {
        let real = |path: PathBuf| fs::canonicalize(&path).unwrap_or(path);
        Self {
            data_dir: real(config.data_dir.clone()),
            program: real(config.bin_dir.join("postgres")),
        }
    }

    /// All living processes that may acknowledge a write or hold the port: all our descendants (we
    /// adopt orphans, so that a child of PostgreSQL that leaves its session or loses its parent
    /// stays ours), those of `strangers`, and each PostgreSQL whose working folder is the data
    /// folder. Reads nothing that could block.
    pub(super) fn processes(&self, strangers: &Processes) -> io::Result<Processes> {
        let all = all_processes()?;
        let us = getpid().as_raw_pid();
        let roots: Vec<i32> = strangers
            .iter()
            .filter(|(pid, start)| all.get(pid).is_some_and(|stat| stat.start == **start))
            .map(|(pid, _)| *pid)
            .chain([us])
            .collect();
        let ours = |pid: i32| {
            roots.contains(&pid) && pid != us
                || roots.iter().any(|root| descends(&all, pid, *root))
                || (self.is_postgres(pid) && self.names_the_folder(pid))
        };
        Ok(all
            .iter()
            .filter(|(pid, stat)| stat.alive() && ours(**pid))
            .map(|(pid, stat)| (*pid, stat.start))
            .collect())
    }

    /// The servers in the data folder that we did not start, whatever their user, program or
    /// container; `own` is the postmaster that we started last. Single-user sessions (`postgres
    /// --single`, as `pg_rewind` runs one) serve nobody, and do not count.
    ///
    /// Reading a folder may hang with its disk: for the lookout's thread only.
    pub(super) fn strangers(&self, own: impl Fn() -> i32) -> io::Result<Processes> {
        let all = all_processes()?;
        let us = getpid().as_raw_pid();
        let noted = noted_pid(&self.data_dir.join(PID_FILE_OF_POSTGRESQL));
        let own = own();
        let strange = |pid: i32| {
            let noted = noted == Some(pid);
            if pid == own || pid == us || !(noted || self.is_postgres(pid)) || !self.works_here(pid)
            {
                return false;
            }
            // A child of our PostgreSQL may start one that outlives it.
            let descends = descends(&all, pid, us);
            (!descends || noted && !descends_from(&all, pid, own)) && !is_single_user(pid)
        };
        Ok(all
            .iter()
            .filter(|(pid, stat)| stat.alive() && strange(**pid))
            .map(|(pid, stat)| (*pid, stat.start))
            .collect())
    }

    /// Whether PostgreSQL's pid file names a living process other than `own`: then a full scan of
    /// `/proc` is due. May hang with the disk.
    pub(super) fn is_claimed_by_another(&self, own: impl Fn() -> i32) -> bool {
        let noted = noted_pid(&self.data_dir.join(PID_FILE_OF_POSTGRESQL));
        noted.is_some_and(|pid| pid > 0 && pid != own() && stat(pid).is_some_and(Stat::alive))
    }

    fn is_postgres(&self, pid: i32) -> bool {
        let exe = link(pid, "exe");
        let exe = without_deleted(&exe);
        let named = |name: &str| exe.file_name().is_some_and(|file| file == name);
        exe == self.program || PROGRAMS.iter().any(|name| named(name))
    }

    /// Whether its working folder has the name of the data folder.
    fn names_the_folder(&self, pid: i32) -> bool {
        link(pid, "cwd") == self.data_dir
    }

    /// Whether its working folder is the data folder, under any name: in another container it has
    /// another one.
    fn works_here(&self, pid: i32) -> bool {
        let identity = |path: &Path| fs::metadata(path).map(|it| (it.dev(), it.ino())).ok();
        let here = identity(Path::new(&format!("/proc/{pid}/cwd")));
        self.names_the_folder(pid) || here.is_some() && here == identity(&self.data_dir)
    }
}

/// The names of PostgreSQL's server program in common packages.
const PROGRAMS: [&str; 3] = ["postgres", "postmaster", "edb-postgres"];

fn link(pid: i32, name: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/{name}")).unwrap_or_default()
}

/// A process's program, for people.
pub(super) fn program_of(pid: i32) -> String {
    link(pid, "exe").display().to_string()
}

/// Whether a server process is a single-user session, or initialises a database.
fn is_single_user(pid: i32) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let first = line.split(|byte| *byte == 0).nth(1).unwrap_or_default();
    [&b"--single"[..], b"--boot", b"--check"].contains(&first)
}

fn descends_from(all: &BTreeMap<i32, Stat>, pid: i32, ancestor: i32) -> bool {
    ancestor > 0 && descends(all, pid, ancestor)
}

/// After a package upgrade the kernel shows the old program as `PATH (deleted)`.
fn without_deleted(exe: &Path) -> &Path {
    exe.to_str()
        .and_then(|text| text.strip_suffix(" (deleted)"))
        .map_or(exe, Path::new)
}

fn descends(all: &BTreeMap<i32, Stat>, pid: i32, ancestor: i32) -> bool {
    let mut at = pid;
    // No chain is longer than the number of processes: a torn reading cannot make this loop for
    // ever.
    for _ in 0..all.len() {
        match all.get(&at) {
            Some(stat) if stat.parent == ancestor => return true,
            Some(stat) => at = stat.parent,
            None => return false,
        }
    }
    false
}

/// Those of `found` that are still alive.
pub(super) fn still_alive(found: &Processes) -> Vec<i32> {
    found
        .iter()
        .filter(|(pid, start)| is_alive(**pid, **start))
        .map(|(pid, _)| *pid)
        .collect()
}

/// Whether exactly this process is alive.
pub(super) fn is_alive(pid: i32, start: u64) -> bool {
    stat(pid).is_some_and(|stat| stat.start == start && stat.alive())
}

/// Kills each of `found` that is still alive. The handle is opened before the start time is
/// compared, so that a pid reused in between is never hit.
pub(super) fn kill(found: &Processes) {
    for (pid, start) in found {
        let Some(raw) = Pid::from_raw(*pid) else {
            continue;
        };
        let Ok(fd) = pidfd_open(raw, PidfdFlags::empty()) else {
            continue;
        };
        if is_alive(*pid, *start)
            && let Err(cause) = pidfd_send_signal(&fd, Signal::KILL)
        {
            tracing::warn!(pid, %cause, "cannot kill");
        }
    }
}

/// The fields of `/proc/PID/stat` that we use.
#[derive(Debug, Clone, Copy)]
struct Stat {
    state: char,
    parent: i32,
    start: u64,
}

impl Stat {
    /// A zombie does nothing any more.
    fn alive(self) -> bool {
        !matches!(self.state, 'Z' | 'X')
    }
}

fn all_processes() -> io::Result<BTreeMap<i32, Stat>> {
    Ok(fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, stat(pid)?)))
        .collect())
}

fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&String::from_utf8_lossy(&text))
}

pub(super) fn parent_of(pid: i32) -> Option<i32> {
    Some(stat(pid)?.parent)
}

/// The program's name, in parentheses, may contain anything; the fields count from the last one.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, fields) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        start: fields.get(19)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_parentheses_does_not_shift_the_fields() {
        let line = "42 (a) S 1) T 7 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987 1 2";
        let stat = parse_stat(line).unwrap();
        assert_eq!((stat.state, stat.parent, stat.start), ('T', 7, 987));
    }

    #[test]
    fn a_reused_pid_is_not_the_process_that_was_found() {
        let me = getpid().as_raw_pid();
        let start = stat(me).unwrap().start;
        assert!(is_alive(me, start));
        assert!(!is_alive(me, start + 1));
        kill(&Processes::from([(me, start + 1)]));
    }

    #[test]
    fn a_program_replaced_on_disk_is_still_known() {
        assert_eq!(
            without_deleted(Path::new("/b/postgres (deleted)")),
            Path::new("/b/postgres")
        );
    }

    #[test]
    fn descent_is_found_over_generations_and_ends_on_a_circle() {
        let stat = |parent| Stat {
            state: 'S',
            parent,
            start: 1,
        };
        let all = BTreeMap::from([(5, stat(4)), (4, stat(2)), (8, stat(9)), (9, stat(8))]);
        assert!(descends(&all, 5, 2));
        assert!(!descends(&all, 8, 2));
    }
}
