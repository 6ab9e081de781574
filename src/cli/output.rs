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
use crate::engine::text::{harmless, harmless_json, is_harmful};

/// How to print.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    form: Form,
    colour: bool,
}

/// How a word is coloured; colour only repeats what the word says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// Good.
    Good,
    /// Needs attention.
    Doubt,
    /// Bad.
    Bad,
    /// Secondary.
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

    /// Whether the output is JSON.
    pub fn is_json(&self) -> bool {
        self.form == Form::Json
    }

    /// Prints data as text. A closed pipe ends quietly.
    pub fn text(&self, text: impl fmt::Display) {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", self.seen(&text.to_string()))
            .and_then(|()| out.flush())
            .unwrap_or_default();
    }

    /// Prints data as JSON.
    pub fn json(&self, value: &impl Serialize) -> anyhow::Result<()> {
        self.text(harmless_json(&serde_json::to_string_pretty(value)?));
        Ok(())
    }

    /// Prints data as JSON, on one line.
    pub fn json_line(&self, value: &impl Serialize) -> anyhow::Result<()> {
        self.text(harmless_json(&serde_json::to_string(value)?));
        Ok(())
    }

    /// A text made safe for a terminal: only line breaks, tabs and our own colours are kept.
    fn seen(&self, text: &str) -> String {
        let mut seen = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, from)) = rest.find(is_harmful).map(|at| rest.split_at(at)) {
            let own = if self.colour { colour(from) } else { 0 };
            let first = from.chars().next().map_or(0, char::len_utf8);
            let (harmful, after) = from.split_at(own.max(first));
            seen += before;
            if own > 0 || ["\n", "\t"].contains(&harmful) {
                seen += harmful;
            } else {
                seen += &harmless(harmful);
            }
            rest = after;
        }
        seen + rest
    }

    /// Says something that is not data.
    pub fn say(&self, text: impl fmt::Display) {
        let mut err = std::io::stderr().lock();
        writeln!(err, "{}", self.seen(&text.to_string())).unwrap_or_default();
    }

    /// Asks, and reads one line.
    pub fn ask(&self, question: &str) -> anyhow::Result<String> {
        eprint!("{question}");
        std::io::stderr().flush()?;
        let mut line = String::new();
        std::io::stdin().read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    /// Whether input is a terminal.
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

    /// Clears a terminal for the next frame.
    pub fn clear(&self) {
        if self.colour {
            print!("\u{1b}[2J\u{1b}[H");
        }
    }

    /// Prints an error with its causes, and returns the exit.
    pub fn fail(&self, error: &anyhow::Error) -> ExitCode {
        self.say(format!(
            "{} {}",
            self.paint(Mood::Bad, "error:"),
            said(error)
        ));
        Exit::of(error).into()
    }
}

/// Makes every panic print one line that can be reported, with its source location only if
/// `RUST_BACKTRACE` asks for it.
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
            "error: a bug in failover {}{place}: {}; please report this line",
            env!("CARGO_PKG_VERSION"),
            harmless(&text.unwrap_or("no text").replace(['\n', '\r'], " "))
        );
        writeln!(std::io::stderr().lock(), "{line}").unwrap_or_default();
    }));
}

/// The length in bytes of the colour code at the start of a text; zero without one.
fn colour(text: &str) -> usize {
    let Some(code) = text.strip_prefix("\u{1b}[") else {
        return 0;
    };
    let digits = code.bytes().take_while(u8::is_ascii_digit).count();
    if digits <= 2 && code.as_bytes().get(digits) == Some(&b'm') {
        digits.saturating_add("\u{1b}[m".len())
    } else {
        0
    }
}

/// An error and its causes on one line, then its hint if it has one.
pub fn said(error: &anyhow::Error) -> String {
    let chain: Vec<String> = error.chain().map(ToString::to_string).collect();
    let whole = chain.join(": ");
    // What stands after an empty line is the hint; it comes last, whatever was wrapped around.
    match whole.split_once("\n\n") {
        Some((said, hint)) => format!("{said}\n\n{hint}"),
        None => whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_lines_and_our_colours_and_nothing_else() {
        let output = |colour| Output {
            form: Form::Human,
            colour,
        };
        let hostile = "\u{1b}[31mred\u{1b}[0m\n\u{1b}[2Jgone\u{1b}]0;title\u{7} a\u{202e}b\r\u{1b}";
        assert_eq!(
            output(true).seen(hostile),
            "\u{1b}[31mred\u{1b}[0m\n\\u{1b}[2Jgone\\u{1b}]0;title\\u{7} a\\u{202e}b\\r\\u{1b}"
        );
        assert_eq!(
            output(false).seen("a\tb\n\u{1b}[31mred"),
            "a\tb\n\\u{1b}[31mred"
        );
        assert_eq!(output(true).seen("größer 💥"), "größer 💥");
    }
}
