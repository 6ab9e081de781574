//! The guard's socket: lines of JSON to and from a few connections, none of which can block the
//! guard.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};
use serde::Deserialize;

use crate::agent::guard_protocol::{
    FromGuard, GuardCommand, GuardEvent, GuardReply, PROTOCOL, Request,
};
use crate::engine::format::WrittenBy;

/// An agent needs one, an operator's `status` another; beyond that the oldest is closed, so that a
/// new agent can always connect.
const CONNECTIONS: usize = 8;
/// The longest line is a status, about 4 KiB; a peer that sends more, or does not read, is
/// disconnected.
const LINE_BYTES: usize = 64 * 1024;

/// Identifies the connection that a reply is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket {
    connection: u64,
    id: u64,
}

/// The socket and its connections.
#[derive(Debug)]
pub(super) struct Wire {
    timer: OwnedFd,
    listener: UnixListener,
    connections: Vec<Connection>,
    next: u64,
}

#[derive(Debug)]
struct Connection {
    key: u64,
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    lost: bool,
}

impl Wire {
    /// Listens. The caller holds the lock; a socket that answers nevertheless is left alone.
    pub(super) fn listen(path: &Path) -> io::Result<Self> {
        if UnixStream::connect(path).is_ok() {
            return Err(io::Error::other("somebody answers on the guard's socket"));
        }
        match fs::remove_file(path) {
            Err(cause) if cause.kind() != ErrorKind::NotFound => return Err(cause),
            Ok(()) | Err(_) => {}
        }
        // The folder is closed to others (see `run`), so nobody connects before the next line.
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC)?;
        Ok(Self {
            timer,
            listener,
            connections: Vec::new(),
            next: 0,
        })
    }

    /// Waits until there is something to do: a line, a connection, the end of PostgreSQL, or the
    /// moment `until_ns` of [`boottime_ns`](crate::agent::guard_protocol::boottime_ns).
    ///
    /// The moment is a timer and not a timeout of the wait: an interrupted wait (a stopped process,
    /// a frozen container) is restarted with what was left of it, so the guard would sleep on after
    /// it resumes, longer than its sessions need to acknowledge.
    pub(super) fn wait(&self, postmaster: Option<&OwnedFd>, until_ns: u64) -> io::Result<()> {
        let until = Timespec::try_from(Duration::from_nanos(until_ns.max(1)));
        let once = Itimerspec {
            it_interval: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: until.map_err(io::Error::other)?,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &once)?;
        let mut fds = vec![
            PollFd::new(&self.timer, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        for connection in &self.connections {
            let flags = if connection.output.is_empty() {
                PollFlags::IN
            } else {
                PollFlags::IN | PollFlags::OUT
            };
            fds.push(PollFd::from_borrowed_fd(connection.stream.as_fd(), flags));
        }
        fds.extend(postmaster.map(|fd| PollFd::new(fd, PollFlags::IN)));
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(cause) => Err(cause.into()),
        }
    }

    /// All commands received.
    pub(super) fn commands(&mut self) -> Vec<(Ticket, GuardCommand)> {
        while let Ok((stream, _)) = self.listener.accept() {
            if stream.set_nonblocking(true).is_ok() {
                self.next = self.next.wrapping_add(1);
                if self.connections.len() >= CONNECTIONS {
                    self.connections.remove(0);
                }
                self.connections.push(Connection {
                    key: self.next,
                    stream,
                    input: Vec::new(),
                    output: Vec::new(),
                    lost: false,
                });
            }
        }
        self.connections
            .iter_mut()
            .flat_map(Connection::commands)
            .collect()
    }

    /// Queues a reply for its connection, if that still exists.
    pub(super) fn reply(&mut self, to: Ticket, reply: GuardReply) {
        if let Some(connection) = self
            .connections
            .iter_mut()
            .find(|connection| connection.key == to.connection)
        {
            connection.put(&FromGuard::Reply { id: to.id, reply });
        }
    }

    /// Queues an event for all connections.
    pub(super) fn tell_all(&mut self, event: &GuardEvent) {
        let line = FromGuard::Event {
            event: event.clone(),
        };
        for connection in &mut self.connections {
            connection.put(&line);
        }
    }

    /// Sends what the connections accept now, and forgets lost ones.
    pub(super) fn flush(&mut self) {
        for connection in &mut self.connections {
            connection.flush();
        }
        self.connections.retain(|connection| !connection.lost);
    }
}

/// What is read of a line in any case, so that whoever sent it hears that it is not understood.
#[derive(Deserialize)]
struct Numbered {
    id: u64,
}

impl Connection {
    fn commands(&mut self) -> Vec<(Ticket, GuardCommand)> {
        let mut piece = [0; 4096];
        while self.input.len() < LINE_BYTES && !self.lost {
            match self.stream.read(&mut piece) {
                Ok(0) => self.lost = true,
                Ok(count) => self.input.extend_from_slice(&piece[..count]),
                Err(cause) if cause.kind() == ErrorKind::WouldBlock => break,
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.lost = true,
            }
        }
        let mut commands = Vec::new();
        while let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            match serde_json::from_slice::<Request>(&line) {
                Ok(request) => commands.push((
                    Ticket {
                        connection: self.key,
                        id: request.id,
                    },
                    request.cmd,
                )),
                Err(cause) => {
                    let id = serde_json::from_slice(&line).map_or(0, |Numbered { id }| id);
                    let guard = WrittenBy::ours(PROTOCOL);
                    let why = format!("not a command of this guard, which is {guard}: {cause}");
                    let reply = GuardReply::Refused { why };
                    self.put(&FromGuard::Reply { id, reply });
                }
            }
        }
        self.lost |= self.input.len() >= LINE_BYTES;
        commands
    }

    fn put(&mut self, line: &FromGuard) {
        match serde_json::to_vec(line) {
            Ok(text) => {
                self.output.extend_from_slice(&text);
                self.output.push(b'\n');
            }
            Err(cause) => tracing::warn!(%cause, "cannot write a line"),
        }
        self.lost |= self.output.len() > LINE_BYTES;
    }

    fn flush(&mut self) {
        while !self.output.is_empty() && !self.lost {
            match self.stream.write(&self.output) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(cause) if cause.kind() == ErrorKind::WouldBlock => break,
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.lost = true,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;

    /// The answer to a line, where it is no command.
    fn refused(line: &str) -> serde_json::Value {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("guard.sock");
        let mut wire = Wire::listen(&path).unwrap();
        let mut agent = UnixStream::connect(&path).unwrap();
        agent.write_all(format!("{line}\n").as_bytes()).unwrap();
        assert!(wire.commands().is_empty(), "{line}");
        wire.flush();
        let mut answer = String::new();
        BufReader::new(&mut agent).read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap()
    }

    #[test]
    fn a_command_of_a_later_agent_is_refused_by_name_and_number() {
        let ours = WrittenBy::ours(PROTOCOL).to_string();
        for (line, id, why) in [
            (r#"{"id":7,"cmd":{"rest":{}}}"#, 7, "unknown variant `rest`"),
            (
                r#"{"id":8,"cmd":{"fence":{"cause":"x","epoch":2,"gently":true}}}"#,
                8,
                "unknown field `gently`",
            ),
            (
                r#"{"id":9,"cmd":{"stop":{}},"by":"noon"}"#,
                9,
                "unknown field `by`",
            ),
            ("nonsense", 0, "expected ident"),
        ] {
            let answer = refused(line);
            assert_eq!(answer["id"], id, "{answer}");
            let told = answer["reply"]["refused"]["why"].as_str().unwrap();
            assert!(told.contains(why) && told.contains(&ours), "{told}");
        }
    }
}
