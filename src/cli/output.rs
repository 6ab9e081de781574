//! The only place that prints.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is where the program speaks"
)]

use std::fmt;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use serde::Serialize;

use super::exit::Exit;
use super::{Colour, Form};

/// How to print.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    form: Form,
    colour: bool,
}

/// What a word means to its reader; colour only repeats what the word says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// As it should be.
    Good,
    /// To be looked at.
    Doubt,
    /// Not as it should be.
    Bad,
    /// Beside the point.
    Dim,
    /// A heading.
    Strong,
}

impl Output {
    /// As the options and the environment say.
    pub fn new(form: Form, colour: Colour) -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let colour = match colour {
            Colour::Always => true,
            Colour::Never => false,
            Colour::Auto => !unwanted && std::io::stdout().is_terminal(),
        };
        Self { form, colour }
    }

    /// Whether for programs.
    pub fn is_json(&self) -> bool {
        self.form == Form::Json
    }

    /// Prints data as text. A closed pipe ends quietly.
    pub fn text(&self, text: impl fmt::Display) {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{text}")
            .and_then(|()| out.flush())
            .unwrap_or_default();
    }

    /// Prints data as JSON.
    pub fn json(&self, value: &impl Serialize) -> anyhow::Result<()> {
        self.text(serde_json::to_string_pretty(value)?);
        Ok(())
    }

    /// Says something that is not data.
    pub fn say(&self, text: impl fmt::Display) {
        let mut err = std::io::stderr().lock();
        writeln!(err, "{text}").unwrap_or_default();
    }

    /// Asks, and reads one line.
    pub fn ask(&self, question: &str) -> anyhow::Result<String> {
        eprint!("{question}");
        std::io::stderr().flush()?;
        let mut line = String::new();
        std::io::stdin().read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    /// Whether there is somebody to ask.
    pub fn can_ask(&self) -> bool {
        std::io::stdin().is_terminal()
    }

    /// A word in its colour.
    pub fn paint(&self, mood: Mood, word: impl fmt::Display) -> String {
        let code = match mood {
            Mood::Good => "32",
            Mood::Doubt => "33",
            Mood::Bad => "31",
            Mood::Dim => "2",
            Mood::Strong => "1",
        };
        if self.colour {
            format!("\u{1b}[{code}m{word}\u{1b}[0m")
        } else {
            word.to_string()
        }
    }

    /// Clears a terminal for the next frame of something that goes on.
    pub fn clear(&self) {
        if self.colour {
            print!("\u{1b}[2J\u{1b}[H");
        }
    }

    /// Prints an error with its causes, and says how to end.
    pub fn fail(&self, error: &anyhow::Error) -> ExitCode {
        self.say(format!(
            "{} {}",
            self.paint(Mood::Bad, "error:"),
            said(error)
        ));
        Exit::of(error).into()
    }
}

/// Has every panic say one line that can be reported; with where it came from only for whoever
/// asks (`RUST_BACKTRACE`).
pub fn tell_panics() {
    let whole = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
            whole(panic);
        }
        let text = panic.payload_as_str();
        let place = panic.location();
        let place = place.map_or(String::new(), |at| {
            format!(" at {}:{}", at.file(), at.line())
        });
        let line = format!(
            "error: a mistake in failover {}{place}: {}; please report this line",
            env!("CARGO_PKG_VERSION"),
            text.unwrap_or("no text").replace(['\n', '\r'], " ")
        );
        writeln!(std::io::stderr().lock(), "{line}").unwrap_or_default();
    }));
}

/// An error and its causes in one line, then its hint if it has one.
pub fn said(error: &anyhow::Error) -> String {
    let chain: Vec<String> = error.chain().map(ToString::to_string).collect();
    let whole = chain.join(": ");
    // What stands after an empty line is the hint; it comes last, whatever was wrapped around.
    match whole.split_once("\n\n") {
        Some((said, hint)) => format!("{said}\n\n{hint}"),
        None => whole,
    }
}
