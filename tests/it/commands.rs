//! Every command that the documentation names parses: no page sends its reader to a verb or a
//! flag that does not exist.
//!
//! Looked at are code between backticks that begins with `failover `, and the lines of code blocks
//! that do, or that start the program from a unit (`ExecStart=`). A word in capitals is a
//! placeholder and stands for an example of its kind ([`example`]); `…` as a word stands for
//! arguments that are left out. Between backticks a verb may stand without its arguments; in a code
//! block nothing may be missing.

use std::path::{Path, PathBuf};

use clap::error::ErrorKind;

/// A command as it is written somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Written {
    place: String,
    text: String,
    in_block: bool,
}

fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() && folder == root {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                let read = ["docs", "runbooks", "policies", "deploy", "terraform"];
                folders.extend(read.contains(&name.as_str()).then_some(path));
            } else if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "md") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// What a line of a code block runs of ours, without what the shell does with it.
fn of_block(line: &str) -> Option<&str> {
    let line = line.trim();
    let line = line.strip_prefix("$ ").unwrap_or(line);
    let line = line.strip_prefix("sudo ").unwrap_or(line);
    let line = match line.strip_prefix("ExecStart=/usr/bin/") {
        Some(started) => started,
        None => line.strip_prefix("./target/debug/").unwrap_or(line),
    };
    let ends = [" | ", "  #", " # ", " && ", " > ", " 2> ", "; "];
    let end = ends.iter().filter_map(|end| line.find(end)).min();
    let line = &line[..end.unwrap_or(line.len())];
    // A table may have the name in its first column.
    let ours = line.starts_with("failover ") && !line.starts_with("failover  ");
    ours.then_some(line)
}

fn commands(place: &str, text: &str) -> Vec<Written> {
    let mut found = Vec::new();
    let mut fenced = false;
    let joined = text.replace("\\\n", " ");
    let mut prose = String::new();
    for line in joined.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if fenced || line.starts_with("    ") {
            found.extend(of_block(line).map(|text| (text.to_owned(), true)));
        } else {
            prose.push_str(line);
            prose.push('\n');
        }
    }
    let spans = prose.split('`').skip(1).step_by(2);
    let spans = spans.filter(|span| span.starts_with("failover ") && !span.contains("\n\n"));
    found.extend(spans.map(|span| (span.replace('\n', " "), false)));
    let written = |(text, in_block)| Written {
        place: place.to_owned(),
        text,
        in_block,
    };
    found.into_iter().map(written).collect()
}

/// Words as a shell would make them, without variables. An ellipsis in quotes is a word of its
/// own, which leaves nothing out.
fn words(text: &str) -> Vec<String> {
    let mut words = vec![];
    let mut word = None::<String>;
    let mut quote = None;
    for c in text.chars() {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) if c == '…' => word.get_or_insert_default().push_str("why"),
            None if c == '"' || c == '\'' => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            None if c.is_whitespace() => words.extend(word.take()),
            Some(_) | None => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// What a placeholder stands for.
fn example(word: &str) -> Option<&'static str> {
    Some(match word {
        "GROUP" => "shop",
        "SITE" | "ACTIVE" | "PASSIVE" | "OLD" | "NEW" => "gcp",
        "FILE" | "LOG" | "FOLDER" | "POLICY" | "DIR" => "some/file",
        "NAME" => "alice",
        "NUMBER" | "N" => "7",
        "INSTANCE" => "0123456789abcdef0123456789abcdef@0123456789abcdef",
        "DIGEST" => "0000000000000000000000000000000000000000000000000000000000000000",
        "DURATION" => "30m",
        "SIZE" => "64MiB",
        "HOST:PORT" => "127.0.0.1:7400",
        _ => return None,
    })
}

fn is_placeholder(word: &str) -> bool {
    let capital = |c: char| c.is_ascii_uppercase() || c == ':' || c == '_';
    word.starts_with(|c: char| c.is_ascii_uppercase()) && word.chars().all(capital)
}

/// Why a written command is none.
fn wrong(written: &Written) -> Option<String> {
    let mut open = !written.in_block;
    let mut arguments = Vec::new();
    for word in words(&written.text) {
        if word == "…" || word == "..." {
            open = true;
        } else if is_placeholder(&word) {
            let Some(example) = example(&word) else {
                return Some(format!(
                    "nobody says what the placeholder {word} stands for"
                ));
            };
            arguments.push(example.to_owned());
        } else {
            arguments.push(word);
        }
    }
    let error = failover::cli::command()
        .try_get_matches_from(arguments)
        .err()?;
    let missing = [
        ErrorKind::MissingRequiredArgument,
        ErrorKind::MissingSubcommand,
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
    ];
    let shown = [ErrorKind::DisplayHelp, ErrorKind::DisplayVersion];
    let fine = shown.contains(&error.kind()) || (open && missing.contains(&error.kind()));
    let said = error.to_string();
    // A flag whose value is left out.
    let fine = fine || (open && said.contains("a value is required for"));
    (!fine).then(|| said.lines().next().unwrap_or_default().to_owned())
}

#[test]
fn every_command_in_the_documentation_is_one_of_ours() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut count = 0;
    let mut mistakes = Vec::new();
    for path in documents() {
        let place = path.strip_prefix(root).unwrap().display().to_string();
        for written in commands(&place, &std::fs::read_to_string(&path).unwrap()) {
            count += 1;
            if let Some(why) = wrong(&written) {
                mistakes.push(format!("{place}: `{}`: {why}", written.text));
            }
        }
    }
    assert!(
        count > 50,
        "only {count} commands were found: are they still read?"
    );
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
}

#[test]
fn a_verb_or_flag_that_does_not_exist_is_found_in_prose_and_in_blocks() {
    let text = "Run `failover controller`, then `failover log`:\n\n```sh\nfailover promote gcp --dry-run\nfailover log show FILE | head\nExecStart=/usr/bin/failover run --conf x\n```\n\n    failover status --all\n    failover policy check   # needs a file\n";
    let found = commands("page", text);
    let verdicts: Vec<(&str, bool)> = found
        .iter()
        .map(|written| (written.text.as_str(), wrong(written).is_none()))
        .collect();
    assert_eq!(
        verdicts,
        [
            ("failover promote gcp --dry-run", false),
            ("failover log show FILE", true),
            ("failover run --conf x", false),
            ("failover status --all", false),
            ("failover policy check ", false),
            ("failover controller", false),
            ("failover log", true),
        ]
    );
}
