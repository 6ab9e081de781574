//! Every verb on a real terminal, as a person at a keyboard meets it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use failover::cli::exit::Exit;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::stage::{one_lab, wait_until};

/// A person at a terminal, with a lab that nobody else finds.
struct Desk {
    home: tempfile::TempDir,
}

/// A program on a terminal of its own.
struct Terminal {
    keyboard: File,
    child: Child,
    screen: Arc<Mutex<Vec<u8>>>,
    words: String,
}

impl Desk {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        std::fs::set_permissions(home.path(), mode).unwrap();
        Self { home }
    }

    fn file(&self, name: &str) -> String {
        self.home.path().join(name).display().to_string()
    }

    /// Runs the program, as the first of a session whose terminal is the one that it speaks to.
    fn run(&self, words: &str) -> Terminal {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        size(&master, 50, 160);
        let name = ptsname(&master, Vec::new()).unwrap();
        let name = Path::new(std::ffi::OsStr::from_bytes(name.as_bytes()));
        let open = || -> Stdio {
            let opened = OpenOptions::new().read(true).write(true).open(name);
            opened.unwrap().into()
        };
        let child = Command::new("setsid")
            .args(["--ctty", "--wait", env!("CARGO_BIN_EXE_failover")])
            .args(words.split(' ').filter(|word| !word.is_empty()))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("TERM", "xterm")
            .env("TMPDIR", self.home.path())
            .env("XDG_RUNTIME_DIR", self.home.path())
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdin(open())
            .stdout(open())
            .stderr(open())
            .spawn()
            .unwrap();
        let keyboard = File::from(master);
        let screen = Arc::new(Mutex::new(Vec::new()));
        let (mut glass, seen) = (keyboard.try_clone().unwrap(), Arc::clone(&screen));
        std::thread::spawn(move || {
            let mut part = [0; 4096];
            // When the last program is gone, the terminal says so by an error.
            while let Ok(length @ 1..) = glass.read(&mut part) {
                seen.lock().unwrap().extend_from_slice(&part[..length]);
            }
        });
        Terminal {
            keyboard,
            child,
            screen,
            words: words.to_owned(),
        }
    }

    /// What the program shows that ends with one of these codes.
    fn ends(&self, words: &str, codes: &[i32]) -> String {
        self.run(words).ends(codes)
    }
}

/// A test that fails leaves no lab behind.
impl Drop for Desk {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut down = self.run("lab down");
            wait_until("`lab down`", || down.child.try_wait().unwrap().is_some());
        }
    }
}

fn size(terminal: &impl std::os::fd::AsFd, rows: u16, columns: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size).unwrap();
}

impl Terminal {
    fn shows(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().unwrap()).into_owned()
    }

    /// How often the screen was cleared for the next frame.
    fn frames(&self) -> usize {
        self.shows().matches("\u{1b}[2J").count()
    }

    fn type_in(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    fn until(&self, what: &str, so: impl Fn(&Self) -> bool) {
        wait_until(&format!("`{}`: {what}", self.words), || so(self));
    }

    fn ends(mut self, codes: &[i32]) -> String {
        let mut ended = None;
        wait_until(&format!("the end of `{}`", self.words), || {
            ended = self.child.try_wait().unwrap();
            ended.is_some()
        });
        let (code, shown) = (ended.unwrap().code(), self.shows());
        let words = &self.words;
        assert!(
            code.is_some_and(|code| codes.contains(&code)),
            "`failover {words}` ends with {code:?}: {shown}"
        );
        assert_ne!(code, Some(i32::from(Exit::Broken.code())), "{words}");
        for sign in ["panicked", "a bug in failover"] {
            assert!(!shown.contains(sign), "`failover {words}`: {shown}");
        }
        shown
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The verbs that people may type, as their words.
fn verbs(command: &clap::Command, words: &str, found: &mut Vec<String>) {
    let shown = command.get_subcommands().filter(|verb| !verb.is_hide_set());
    let shown: Vec<_> = shown.filter(|verb| verb.get_name() != "help").collect();
    if shown.is_empty() {
        found.push(words.trim().to_owned());
    }
    for verb in shown {
        verbs(verb, &format!("{words} {}", verb.get_name()), found);
    }
}

/// What is typed in the lab, in order, and how it ends.
fn typed(desk: &Desk) -> Vec<(String, &'static [i32])> {
    let keys = desk.file("keys");
    let log = desk.file("kept.log");
    [
        ("run --config /nonexistent.toml", &[2][..]),
        ("agent --config /nonexistent.toml", &[2]),
        ("observer --config /nonexistent.toml", &[2]),
        ("status", &[0, 1]),
        ("check", &[0, 1]),
        ("check shop", &[0, 1]),
        ("check other", &[2]),
        ("promote shop --to gcp --dry-run", &[0, 1]),
        ("promote shop --to nowhere --dry-run", &[2]),
        ("hold shop --reason maintenance --for 1h", &[0]),
        ("release shop --reason done", &[0]),
        // Nothing is to be adopted here, and that is said.
        ("adopt shop --epoch 1 --active aws --reason none", &[2]),
        ("adopt-instance shop aws --instance 0123456789abcdef0123456789abcdef@0123456789abcdef --reason none", &[2]),
        ("log show", &[0]),
        ("log verify /nonexistent.log", &[2]),
        ("policy check policies/fast.toml", &[0]),
        ("policy timers policies/fast.toml", &[0]),
        ("policy table --policy policies/fast.toml --seeds 1", &[0]),
        ("lab fault kill-receiver gcp", &[0]),
        ("lab heal", &[0]),
        ("simulate --seeds 1", &[0]),
        ("generate completions bash", &[0]),
        ("generate man", &[0]),
        ("generate schema policy", &[0]),
        ("generate reasons", &[0]),
        ("generate metrics", &[0]),
    ]
    .into_iter()
    .map(|(words, codes)| (words.to_owned(), codes))
    .chain([
        (
            format!("certificates --group shop --operator ann --dir {keys}"),
            &[0][..],
        ),
        (format!("log show {log}"), &[2]),
        (
            "generate manifests --values deploy/kubernetes/neutral.yaml".to_owned(),
            &[0],
        ),
    ])
    .collect()
}

#[test]
fn every_verb_runs_on_a_terminal_and_watching_bears_whatever_happens() {
    let _one = one_lab();
    let desk = Desk::new();
    desk.ends("lab up", &[0]);
    let typed = typed(&desk);
    for (words, codes) in &typed {
        desk.ends(words, codes);
    }

    // Asked before anything changes; whoever types something else has changed nothing.
    let mut asked = desk.run("promote shop --to gcp");
    asked.until("the question", |it| it.shows().contains("type the name"));
    asked.type_in("aws\n");
    assert!(asked.ends(&[1]).contains("nothing was done"));

    let mut watched = desk.run("status --watch");
    watched.until("three frames", |it| it.frames() >= 3);
    size(&watched.keyboard, 10, 30);
    watched.until("two more in a small window", |it| it.frames() >= 5);
    desk.ends("lab fault kill-controller aws", &[0]);
    watched.until("word that nobody answers", |it| {
        it.shows().contains("waiting:")
    });
    let before = watched.frames();
    desk.ends("lab heal", &[0]);
    watched.until("frames again", |it| it.frames() > before);
    watched.type_in("\u{3}");
    watched.ends(&[130]);

    let mut lab = desk.run("lab run");
    lab.until("its beginning", |it| !it.shows().is_empty());
    lab.type_in("\u{3}");
    lab.ends(&[130]);
    desk.ends("lab down", &[0]);
    // Without a controller nothing is waited for.
    desk.ends("status --watch", &[2]);

    let mut wanted = Vec::new();
    verbs(&failover::cli::command(), "", &mut wanted);
    let ran = |verb: &String| {
        let apart = ["lab up", "lab run", "lab down"].contains(&verb.as_str());
        apart || typed.iter().any(|(words, _)| words.starts_with(verb))
    };
    let missing: Vec<_> = wanted.iter().filter(|verb| !ran(verb)).collect();
    assert!(missing.is_empty(), "nobody ran {missing:?} on a terminal");
}
