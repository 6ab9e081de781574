//! The processes of the lab: who they are, to which place each belongs, and their end.
//!
//! The process that keeps this list is the lab's supervisor: it becomes the reaper of its
//! descendants, so that none of them can get away by becoming a daemon. Only descendants are ever
//! signalled, each through a handle that cannot come to mean another process.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, getpid, pidfd_open, pidfd_send_signal,
    set_child_subreaper, waitpid,
};

use crate::engine::units::MonoTime;
use crate::ports::Clock;

mod proc_files;

pub use proc_files::ProcessId;
use proc_files::{Process, State};

/// The environment variable that says where a process belongs: `PLACE:LAB`. All descendants have
/// it, unless they clear it.
pub const PLACE_VARIABLE: &str = "FAILOVER_LAB_PLACE";

/// How long a set of processes may take to stop, go on or die. A process that waits for its disk
/// hears no signal until the disk answers.
const SIGNAL_LIMIT: Duration = Duration::from_secs(10);
/// Between two looks at the processes.
const LOOK: Duration = Duration::from_millis(2);

/// Why the lab's processes are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The system said no.
    #[error("cannot {what}: {cause}")]
    Io {
        /// What was tried.
        what: String,
        /// Its answer.
        cause: io::Error,
    },
    /// There is no such running process among ours.
    #[error("no process `{0}` of the lab is running")]
    Unknown(String),
    /// There is one already.
    #[error("a process `{0}` of the lab is running already: end it first")]
    Taken(String),
    /// Some did not do as they were told.
    #[error("these processes did not {what} in time: {}", list(.left))]
    Late {
        /// What they should have done.
        what: &'static str,
        /// They.
        left: Vec<Seen>,
    },
}

/// A set of processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// All that belong to a place.
    Place(String),
    /// The one that was spawned under a name, without its descendants.
    Name(String),
    /// One descendant, without its own.
    Pid(i32),
    /// One descendant with all of its own: a PostgreSQL server by its postmaster.
    Tree(i32),
    /// Every descendant of this process.
    All,
}

/// A living descendant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Which.
    pub id: ProcessId,
    /// Its parent.
    pub parent: i32,
    /// The name of its program, at most 15 characters.
    pub program: String,
    /// The place it belongs to; `None` for what was started without one.
    pub place: Option<String>,
    /// Whether it is frozen.
    pub stopped: bool,
}

impl Seen {
    /// What it calls itself: its command line, as long as it has not written something else there,
    /// as each process of PostgreSQL does.
    pub fn title(&self) -> Option<String> {
        proc_files::title(self.id.pid)
    }
}

/// The list of the lab's processes. One in a process, because being the reaper is a property of
/// the whole process.
pub struct Processes {
    lab: String,
    clock: Arc<dyn Clock>,
    children: BTreeMap<String, Child>,
    /// What was seen of living processes, so that one whose parent dies or who changes its
    /// environment still belongs where it did.
    known: BTreeMap<ProcessId, Known>,
}

/// What is remembered of a process.
#[derive(Debug, Clone)]
struct Known {
    place: Option<String>,
    /// It was seen with another parent than us: nobody else in this process waits for its end.
    adoptable: bool,
}

impl Processes {
    /// Makes the calling process the reaper of its descendants. `lab` tells this lab's marks from
    /// those of another on the machine.
    pub fn new(lab: &str, clock: Arc<dyn Clock>) -> Result<Self, ProcessError> {
        set_child_subreaper(Some(getpid()))
            .map_err(|cause| io_error("become the reaper of descendants", cause.into()))?;
        Ok(Self {
            lab: lab.to_owned(),
            clock,
            children: BTreeMap::new(),
            known: BTreeMap::new(),
        })
    }

    /// Starts a process under a name, at a place, with its output appended to `log`. Its pid.
    pub fn spawn(
        &mut self,
        name: &str,
        place: &str,
        mut command: Command,
        log: &Path,
    ) -> Result<i32, ProcessError> {
        self.reap();
        if self.children.contains_key(name) {
            return Err(ProcessError::Taken(name.to_owned()));
        }
        let open = |cause| io_error(&format!("write `{}`", log.display()), cause);
        let output = File::options().create(true).append(true).open(log);
        let output = output.map_err(open)?;
        let child = command
            .env(PLACE_VARIABLE, format!("{place}:{}", self.lab))
            .stdin(Stdio::null())
            // Ctrl-C in the lab's terminal is for the supervisor, which ends the others in order.
            .process_group(0)
            .stdout(output.try_clone().map_err(open)?)
            .stderr(output)
            .spawn()
            .map_err(|cause| io_error(&format!("start `{name}`"), cause))?;
        let pid = child.id().cast_signed();
        self.children.insert(name.to_owned(), child);
        // From here on it is remembered, whatever it does to its environment.
        self.look()?;
        Ok(pid)
    }

    /// The pid of a running process that was spawned under a name.
    pub fn pid(&self, name: &str) -> Option<i32> {
        self.children
            .get(name)
            .map(|child| child.id().cast_signed())
    }

    /// All living descendants, parents before their children. The more often this is called, the
    /// less can be missed about who belongs where: once a second is good, because a process that
    /// clears its environment and leaves its parent between two looks has no place any more.
    pub fn look(&mut self) -> Result<Vec<Seen>, ProcessError> {
        let all = proc_files::all().map_err(|cause| io_error("read `/proc`", cause))?;
        let us = getpid().as_raw_pid();
        let mut family = Vec::new();
        let mut parents = vec![us];
        // Breadth first, so that a parent's place is known before its children need it.
        while !parents.is_empty() {
            let generation: Vec<&Process> = all
                .iter()
                .filter(|process| parents.contains(&process.parent))
                .collect();
            parents = generation.iter().map(|process| process.id.pid).collect();
            family.extend(generation);
        }
        let mut places: BTreeMap<i32, Option<String>> = BTreeMap::new();
        let mut seen = Vec::new();
        for process in family {
            if process.state == State::Dead {
                continue;
            }
            let inherited = places.get(&process.parent).cloned().flatten();
            let place = self.remember(process, inherited, us);
            places.insert(process.id.pid, place.clone());
            seen.push(Seen {
                id: process.id,
                parent: process.parent,
                program: process.program.clone(),
                place,
                stopped: process.state == State::Stopped,
            });
        }
        let there: BTreeSet<ProcessId> = all.iter().map(|process| process.id).collect();
        self.known.retain(|id, _| there.contains(id));
        Ok(seen)
    }

    /// The place of a process: where it was before, or what it is marked with, or its parent's.
    fn remember(
        &mut self,
        process: &Process,
        inherited: Option<String>,
        us: i32,
    ) -> Option<String> {
        let lab = &self.lab;
        let known = self.known.entry(process.id).or_insert_with(|| Known {
            place: None,
            adoptable: false,
        });
        known.adoptable |= process.parent != us;
        if known.place.is_none() {
            let mark = proc_files::variable(process.id.pid, PLACE_VARIABLE);
            let marked = mark.and_then(|mark| {
                let (place, of) = mark.rsplit_once(':')?;
                (of == lab).then(|| place.to_owned())
            });
            known.place = marked.or(inherited);
        }
        known.place.clone()
    }

    /// Takes the ended children off the system's list, and says which of the named ones ended.
    ///
    /// Only what was spawned here or adopted: children that other parts of this process wait for
    /// stay theirs.
    pub fn reap(&mut self) -> Vec<(String, ExitStatus)> {
        let mut ended = Vec::new();
        self.children.retain(|name, child| match child.try_wait() {
            Ok(None) => true,
            Ok(Some(status)) => {
                ended.push((name.clone(), status));
                false
            }
            Err(error) => {
                tracing::warn!(name, %error, "cannot wait for a process");
                false
            }
        });
        let named: BTreeSet<i32> = self
            .children
            .values()
            .map(|child| child.id().cast_signed())
            .collect();
        let us = getpid().as_raw_pid();
        for (id, known) in &self.known {
            let ours = known.adoptable || known.place.is_some();
            if !ours || named.contains(&id.pid) {
                continue;
            }
            let dead = proc_files::one(id.pid).is_some_and(|process| {
                process.id == *id && process.parent == us && process.state == State::Dead
            });
            if dead && let Some(pid) = Pid::from_raw(id.pid) {
                // An error says that it is gone already.
                waitpid(Some(pid), WaitOptions::NOHANG).ok();
            }
        }
        ended
    }

    /// Stops a set (SIGSTOP), and returns when every process of it has stopped.
    pub async fn freeze(&mut self, who: &Who) -> Result<Vec<Seen>, ProcessError> {
        let until = self.until(SIGNAL_LIMIT);
        let mut before = BTreeSet::new();
        loop {
            let members = self.members(who)?;
            for member in members.iter().filter(|member| !member.stopped) {
                signal(member.id, Signal::STOP)?;
            }
            // Twice the same and nothing running: a look is not one moment, and a child that is
            // born in the middle of one may be missing in it.
            let now: BTreeSet<ProcessId> = members.iter().map(|member| member.id).collect();
            if members.iter().all(|member| member.stopped) && now == before {
                return Ok(members);
            }
            before = now;
            self.wait(until, "stop", members).await?;
        }
    }

    /// Lets a frozen set go on (SIGCONT).
    pub async fn thaw(&mut self, who: &Who) -> Result<Vec<Seen>, ProcessError> {
        let until = self.until(SIGNAL_LIMIT);
        loop {
            let members = self.members(who)?;
            let (stopped, running): (Vec<_>, Vec<_>) =
                members.into_iter().partition(|member| member.stopped);
            if stopped.is_empty() {
                return Ok(running);
            }
            for member in &stopped {
                signal(member.id, Signal::CONT)?;
            }
            self.wait(until, "go on", stopped).await?;
        }
    }

    /// Kills a set at one moment: nothing of it sees another part of it dead. Returns when all of
    /// them are gone, with what they were.
    pub async fn kill9(&mut self, who: &Who) -> Result<Vec<Seen>, ProcessError> {
        let members = match self.freeze(who).await {
            // A process that waits for its disk stops and dies when the disk answers.
            Err(late @ ProcessError::Late { .. }) => {
                tracing::warn!(%late, "killed without being frozen first");
                self.members(who)?
            }
            frozen => frozen?,
        };
        self.kill(&members).await?;
        Ok(members)
    }

    /// Ends every descendant of this process: the named ones by SIGTERM, one after the other in
    /// this order, then all that is left by SIGKILL, until none is left. The whole takes `within`
    /// at most, and up to 20 s for the kills.
    pub async fn end_all(&mut self, order: &[&str], within: Duration) -> Result<(), ProcessError> {
        let until = self.until(within);
        // A frozen process does not hear that it should end.
        for frozen in self.look()?.iter().filter(|seen| seen.stopped) {
            signal(frozen.id, Signal::CONT)?;
        }
        for name in order {
            let Some(pid) = self.pid(name) else { continue };
            let member = self.look()?.into_iter().find(|seen| seen.id.pid == pid);
            let Some(member) = member else { continue };
            signal(member.id, Signal::TERM)?;
            while self.lives(member.id) && self.clock.now() < until {
                self.clock.sleep(LOOK).await;
            }
        }
        self.kill9(&Who::All).await?;
        let left = self.look()?;
        if left.is_empty() {
            return Ok(());
        }
        Err(ProcessError::Late { what: "die", left })
    }

    /// Kills what was seen, children first, and waits for the end of all of them.
    async fn kill(&mut self, seen: &[Seen]) -> Result<(), ProcessError> {
        let until = self.until(SIGNAL_LIMIT);
        // Children first: a parent's death would wake stopped children in its process group.
        for member in seen.iter().rev() {
            signal(member.id, Signal::KILL)?;
        }
        loop {
            let left: Vec<Seen> = seen
                .iter()
                .filter(|member| self.lives(member.id))
                .cloned()
                .collect();
            if left.is_empty() {
                return Ok(());
            }
            self.wait(until, "die", left).await?;
        }
    }

    fn members(&mut self, who: &Who) -> Result<Vec<Seen>, ProcessError> {
        self.reap();
        let mut all = self.look()?;
        match who {
            Who::All => {}
            Who::Place(place) => all.retain(|seen| seen.place.as_ref() == Some(place)),
            Who::Name(name) => {
                let pid = self.pid(name);
                let pid = pid.ok_or_else(|| ProcessError::Unknown(name.clone()))?;
                all.retain(|seen| seen.id.pid == pid);
            }
            Who::Pid(pid) => all.retain(|seen| seen.id.pid == *pid),
            Who::Tree(root) => {
                let mut tree = BTreeSet::from([*root]);
                // Parents come before their children.
                all.retain(|seen| {
                    seen.id.pid == *root
                        || (tree.contains(&seen.parent) && tree.insert(seen.id.pid))
                });
            }
        }
        match who {
            Who::Pid(pid) | Who::Tree(pid) if all.is_empty() => {
                Err(ProcessError::Unknown(pid.to_string()))
            }
            Who::Place(_) | Who::Name(_) | Who::Pid(_) | Who::Tree(_) | Who::All => Ok(all),
        }
    }

    /// Whether a process is there and not dead; reaps it where it is.
    fn lives(&mut self, id: ProcessId) -> bool {
        let lives = proc_files::one(id.pid)
            .is_some_and(|process| process.id == id && process.state != State::Dead);
        if !lives {
            self.reap();
        }
        // Its first thread shows as dead before the others are: only then can it be reaped.
        lives
            || self
                .children
                .values()
                .any(|child| child.id().cast_signed() == id.pid)
    }

    fn until(&self, within: Duration) -> MonoTime {
        self.clock.now().plus(within)
    }

    async fn wait(
        &self,
        until: MonoTime,
        what: &'static str,
        left: Vec<Seen>,
    ) -> Result<(), ProcessError> {
        if self.clock.now() >= until {
            return Err(ProcessError::Late { what, left });
        }
        self.clock.sleep(LOOK).await;
        Ok(())
    }
}

impl fmt::Debug for Processes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Processes")
            .field("lab", &self.lab)
            .field("children", &self.children)
            .finish_non_exhaustive()
    }
}

/// Signals this very process; one that is gone needs no signal.
fn signal(id: ProcessId, signal: Signal) -> Result<(), ProcessError> {
    let gone = |result: Result<OwnedFd, Errno>| match result {
        Ok(handle) => Ok(Some(handle)),
        Err(Errno::SRCH) => Ok(None),
        Err(cause) => Err(cause),
    };
    let sent = || {
        let Some(pid) = Pid::from_raw(id.pid) else {
            return Ok(());
        };
        let Some(handle) = gone(pidfd_open(pid, PidfdFlags::empty()))? else {
            return Ok(());
        };
        // The handle is of whoever has the number now; whether that is the one meant can be seen
        // only after it is held.
        if proc_files::one(id.pid).is_none_or(|process| process.id != id) {
            return Ok(());
        }
        match pidfd_send_signal(handle, signal) {
            Err(Errno::SRCH) | Ok(()) => Ok(()),
            Err(cause) => Err(cause),
        }
    };
    sent().map_err(|cause| io_error(&format!("signal process {}", id.pid), cause.into()))
}

fn io_error(what: &str, cause: io::Error) -> ProcessError {
    ProcessError::Io {
        what: what.to_owned(),
        cause,
    }
}

fn list(left: &[Seen]) -> String {
    let names = left
        .iter()
        .map(|seen| format!("{} (`{}`)", seen.id.pid, seen.program));
    names.collect::<Vec<_>>().join(", ")
}
