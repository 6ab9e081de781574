//! What `/proc` says of processes.

use std::fs;
use std::io;

/// A process, told from any later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessId {
    /// Its number.
    pub pid: i32,
    /// When it began, in clock ticks since the machine did.
    pub began: u64,
}

/// One process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) id: ProcessId,
    pub(super) parent: i32,
    pub(super) program: String,
    pub(super) state: State,
}

/// What it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// It runs or waits for something.
    Alive,
    /// It was stopped by a signal.
    Stopped,
    /// It has ended, and its parent has not asked for its end yet.
    Dead,
}

/// All processes of the machine.
pub(super) fn all() -> io::Result<Vec<Process>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let pid = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        all.extend(pid.and_then(one));
    }
    Ok(all)
}

/// One process; `None` when there is none with this number.
pub(super) fn one(pid: i32) -> Option<Process> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    parse(pid, &String::from_utf8_lossy(&stat))
}

/// What a process calls itself.
pub(super) fn title(pid: i32) -> Option<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    Some(String::from_utf8_lossy(&line).into_owned())
}

/// The value of an environment variable that a process was started with, as long as the process
/// has not overwritten it (PostgreSQL's backends have).
pub(super) fn variable(pid: i32, name: &str) -> Option<String> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let mut variables = environment.split(|byte| *byte == 0);
    variables.find_map(|variable| {
        let (key, value) = std::str::from_utf8(variable).ok()?.split_once('=')?;
        (key == name).then(|| value.to_owned())
    })
}

/// The program's name stands in parentheses and may hold anything, parentheses included.
fn parse(pid: i32, stat: &str) -> Option<Process> {
    let (before, after) = stat.rsplit_once(')')?;
    let (_pid, program) = before.split_once('(')?;
    let fields: Vec<&str> = after.split_ascii_whitespace().collect();
    // proc(5) counts from 1, with the state as the third.
    let field = |number: usize| fields.get(number - 3).copied();
    Some(Process {
        id: ProcessId {
            pid,
            began: field(22)?.parse().ok()?,
        },
        parent: field(4)?.parse().ok()?,
        program: program.to_owned(),
        state: match (field(3)?, field(20)?) {
            ("T" | "t", _) => State::Stopped,
            // Its first thread is a zombie as soon as that one has ended; while others end, files
            // and locks are still held and nobody can wait for it.
            ("Z", "0" | "1") | ("X", _) => State::Dead,
            (_, _) => State::Alive,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_may_have_any_name() {
        let stat = "77 (a) T (b) Z 5 77 77 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        let process = parse(77, stat).unwrap();
        assert_eq!((process.parent, process.state), (5, State::Dead));
        assert_eq!(process.program, "a) T (b");
        assert_eq!(process.id.began, 4711);
    }

    #[test]
    fn a_process_is_dead_when_its_last_thread_is() {
        let state = |threads: u32| {
            let stat = format!("77 (a) Z 5 77 77 0 -1 4 0 0 0 0 0 0 0 0 20 0 {threads} 0 4711 0 0");
            parse(77, &stat).unwrap().state
        };
        assert_eq!((state(2), state(1)), (State::Alive, State::Dead));
    }

    #[test]
    fn a_number_that_nobody_has_is_no_process() {
        assert_eq!(one(i32::MAX), None);
        assert!(parse(1, "1 (short) S 0").is_none());
    }
}
