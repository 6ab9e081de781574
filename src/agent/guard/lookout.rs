//! The guard's lookout: a thread that does the checks that may block (a hanging disk, a long
//! `/proc`, a port), so that the guard, which must keep time, never waits for them.

use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;
use std::{io, thread};

use rustix::process::Pid;

use super::control_file::ControlFile;
use super::fence::CONNECT_PATIENCE;
use super::postmaster::{self, Habitat, Processes};
use super::standing::files_say;
use super::{GuardConfig, IDLE_TICK, TICK};
use crate::agent::guard_protocol::boottime_ns;
use crate::engine::lasting::Lasting;
use crate::engine::topology::Role;
use crate::engine::units::MonoTime;

/// The time between two checks of all processes and of the port. A server started by hand writes
/// its pid file before it accepts connections, and that file is read at each tick.
const WHOLE_LOOK: Duration = Duration::from_secs(1);
/// After this a sighting no longer counts: the lookout waits for a disk.
pub(super) const STALE: Duration = Duration::from_secs(1);

/// What was seen at one moment.
#[derive(Debug)]
pub(super) struct Sighting {
    /// When the check began.
    at_ns: u64,
    /// The control file; `None` if it cannot be read.
    pub(super) control: Option<ControlFile>,
    /// The role in which the files would start PostgreSQL.
    pub(super) files_say: Result<Role, String>,
    /// How long the files have been those of a primary.
    pub(super) without_signal_for: Duration,
    /// Servers in the data folder that we did not start.
    pub(super) strangers: Processes,
    /// What accepts connections at our address while we run no server, described for people.
    pub(super) listener: Option<String>,
}

impl Sighting {
    /// Whether the check began after `moment`.
    pub(super) fn is_after(&self, moment_ns: u64) -> bool {
        self.at_ns >= moment_ns
    }
}

/// The guard's handle on the lookout.
#[derive(Debug)]
pub(super) struct Lookout {
    sightings: Receiver<Sighting>,
    /// The standbys, by postmaster, whose file must be restored. The thread ends when this is
    /// dropped.
    signals: Sender<Pid>,
    last: Option<Sighting>,
    own: Arc<AtomicI32>,
}

impl Lookout {
    /// Starts the thread.
    pub(super) fn begin(config: &GuardConfig) -> io::Result<Self> {
        let (sender, sightings) = sync_channel(1);
        let (signals, wanted) = channel();
        let own = Arc::new(AtomicI32::new(0));
        let mut watch = Watch {
            habitat: Habitat::new(config),
            data_dir: config.data_dir.clone(),
            config: config.clone(),
            own: Arc::clone(&own),
            strangers: Processes::new(),
            listener: None,
            whole_at_ns: None,
            without_signal_from_ns: None,
            unread: Lasting::default(),
            not_put_back: Lasting::default(),
        };
        thread::Builder::new()
            .name("lookout".to_owned())
            .spawn(move || watch.keep(&sender, &wanted))?;
        Ok(Self {
            sightings,
            signals,
            last: None,
            own,
        })
    }

    /// Tells it which server is ours from now on.
    pub(super) fn ours_is(&self, first: Option<Pid>) {
        let pid = first.map_or(0, Pid::as_raw_pid);
        self.own.store(pid, Ordering::SeqCst);
    }

    /// Makes it restore the file of a running standby.
    pub(super) fn put_back_signal_of(&self, first: Option<Pid>) {
        if let Some(first) = first
            && self.signals.send(first).is_err()
        {
            tracing::error!("the lookout has ended");
        }
    }

    /// Receives what was seen since the last call.
    pub(super) fn take_in(&mut self) {
        self.last = self.sightings.try_iter().last().or(self.last.take());
    }

    /// The last sighting, unless it is too old.
    pub(super) fn now(&self) -> Option<&Sighting> {
        let age = |sighting: &Sighting| boottime_ns().saturating_sub(sighting.at_ns);
        let fresh = |sighting: &&Sighting| Duration::from_nanos(age(sighting)) <= STALE;
        self.last.as_ref().filter(fresh)
    }
}

/// The thread's side.
struct Watch {
    habitat: Habitat,
    data_dir: PathBuf,
    config: GuardConfig,
    own: Arc<AtomicI32>,
    strangers: Processes,
    listener: Option<String>,
    whole_at_ns: Option<u64>,
    without_signal_from_ns: Option<u64>,
    unread: Lasting,
    not_put_back: Lasting,
}

impl Watch {
    /// Checks until the guard is gone.
    fn keep(&mut self, to: &SyncSender<Sighting>, wanted: &Receiver<Pid>) {
        loop {
            // A guard that has not received the last sighting gets the next.
            drop(to.try_send(self.look()));
            let tick = if self.own() == 0 { IDLE_TICK } else { TICK };
            match wanted.recv_timeout(tick) {
                Ok(first) if self.without_signal_from_ns.take().is_some() => {
                    match postmaster::put_back_signal(first) {
                        Ok(()) => tracing::warn!("`standby.signal` was gone, and is put back"),
                        Err(cause) => self.tell_not_put_back(&cause),
                    }
                }
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn tell_not_put_back(&mut self, cause: &io::Error) {
        let now = MonoTime(Duration::from_nanos(boottime_ns()));
        if let Some(lasting) = self.not_put_back.again(&cause.to_string(), now) {
            let what = "cannot put `standby.signal` back";
            tracing::error!(%cause, lasting.times, lasting.ms, "{what}");
        }
    }

    fn own(&self) -> i32 {
        self.own.load(Ordering::SeqCst)
    }

    fn look(&mut self) -> Sighting {
        let at_ns = boottime_ns();
        let control = ControlFile::read(&self.data_dir).ok();
        let since = |last: u64| Duration::from_nanos(at_ns.saturating_sub(last));
        let due = self.whole_at_ns.is_none_or(|at| since(at) >= WHOLE_LOOK);
        if due || self.habitat.is_claimed_by_another(|| self.own()) {
            self.whole_at_ns = Some(at_ns);
            match self.habitat.strangers(|| self.own()) {
                Ok(strangers) => self.strangers = strangers,
                Err(cause) => {
                    let now = MonoTime(Duration::from_nanos(at_ns));
                    if let Some(lasting) = self.unread.again(&cause.to_string(), now) {
                        tracing::warn!(%cause, lasting.times, lasting.ms, "`/proc` cannot be read");
                    }
                }
            }
            // What is found in the data folder explains what listens.
            let explained = !self.strangers.is_empty();
            self.listener = if explained { None } else { self.listener() };
        }
        self.strangers
            .retain(|pid, start| postmaster::is_alive(*pid, *start));
        let files_say = files_say(&self.data_dir);
        self.without_signal_from_ns =
            (files_say == Ok(Role::Primary)).then(|| self.without_signal_from_ns.unwrap_or(at_ns));
        let without_signal_for = self.without_signal_from_ns.map(since).unwrap_or_default();
        Sighting {
            at_ns,
            control,
            files_say,
            without_signal_for,
            strangers: self.strangers.clone(),
            listener: self.listener.clone(),
        }
    }

    /// Anything that accepts connections at our server's address while our server is down.
    fn listener(&self) -> Option<String> {
        if self.own() != 0 {
            return None;
        }
        let addresses = self.config.addresses().unwrap_or_default().into_iter();
        let mut taken = addresses
            .filter(|at| TcpStream::connect_timeout(at, CONNECT_PATIENCE).is_ok())
            .map(|at| at.to_string());
        let socket = self.config.postgresql_socket();
        let place = taken.next().or_else(|| {
            let answers = UnixStream::connect(&socket).is_ok();
            answers.then(|| socket.display().to_string())
        });
        // It may have been ours that answered, started a moment ago.
        place.filter(|_| self.own() == 0)
    }
}
