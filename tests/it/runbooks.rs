//! Runbooks and documentation in step with the code: nobody is sent to a page that is not there,
//! and no page is there that nobody is sent to.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use failover::engine::chain::{Body, Chain, Digest, Entry, read_line};
use failover::engine::reason::{self, Code};
use failover::engine::topology::Topology;
use failover::engine::units::{Epoch, WallTime};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|cause| panic!("{}: {cause}", path.display()))
}

/// The files under `folder` whose names end in one of `endings`, in order. A part of the house
/// that is not built yet has none.
fn files(folder: &str, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if endings.iter().any(|e| path.to_string_lossy().ends_with(e)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The Markdown that people read: at the root, and in the folders for it.
fn documents() -> Vec<PathBuf> {
    let top = std::fs::read_dir(root()).unwrap();
    let top = top.map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> = top
        .filter(|path| path.extension().is_some_and(|ending| ending == "md"))
        .collect();
    for folder in ["docs", "runbooks", "policies", "deploy", "terraform"] {
        found.extend(files(folder, &[".md"]));
    }
    found
}

/// The pages there are, by name, without the index.
fn pages() -> BTreeSet<String> {
    let stems = files("runbooks", &[".md"])
        .into_iter()
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned());
    stems.filter(|stem| stem != "README").collect()
}

/// The pages that a text names, each by its file below `runbooks/`.
fn named_in(text: &str) -> BTreeSet<String> {
    let after = text.split("runbooks/").skip(1);
    let ends = |c: char| !(c.is_ascii_alphanumeric() || c == '-');
    after
        .filter_map(|rest| {
            let (name, rest) = rest.split_at(rest.find(ends)?);
            (rest.starts_with(".md") && name != "README").then(|| name.to_owned())
        })
        .collect()
}

/// The targets of a Markdown text's links.
fn links(text: &str) -> Vec<&str> {
    let after = text.split("](").skip(1);
    after
        .filter_map(|rest| Some(rest.split_once(')')?.0))
        .collect()
}

#[test]
fn every_code_has_its_page_and_every_page_begins_with_its_name() {
    let pages = pages();
    let missing: Vec<_> = Code::ALL
        .iter()
        .filter(|code| !pages.contains(code.as_str()))
        .collect();
    assert!(missing.is_empty(), "codes without a page: {missing:?}");
    for page in pages {
        let text = text(format!("runbooks/{page}.md"));
        assert_eq!(text.lines().next(), Some(format!("# {page}").as_str()));
        let lines = text.lines().count();
        assert!(
            lines <= 60,
            "{page} has {lines} lines: nobody reads that at night"
        );
    }
}

#[test]
fn every_page_that_is_named_exists() {
    let pages = pages();
    let mut sources = files("src", &[".rs"]);
    assert!(sources.len() > 10, "the source is where it was");
    sources.extend(documents());
    sources.extend(files("policies", &[".toml"]));
    sources.extend(files("deploy", &[".yaml", ".yml", ".service", ".json"]));
    for source in sources {
        for name in named_in(&text(&source)) {
            assert!(pages.contains(&name), "{}: {name}", source.display());
        }
    }
}

#[test]
fn every_page_is_one_that_somebody_is_sent_to() {
    let index = text("runbooks/README.md");
    let mut named: BTreeSet<String> = Code::ALL.iter().map(ToString::to_string).collect();
    for source in files("src", &[".rs"]) {
        named.extend(named_in(&text(source)));
    }
    let linked = links(&index).into_iter();
    let linked: BTreeSet<String> = linked
        .filter_map(|link| link.strip_suffix(".md"))
        .map(ToOwned::to_owned)
        .collect();
    for page in pages() {
        assert!(linked.contains(&page), "the index leaves out {page}");
        named.remove(&page);
    }
    assert!(named.is_empty(), "named and not there: {named:?}");
}

#[test]
fn no_link_is_dead() {
    let mut seen = 0;
    for document in documents() {
        for link in links(&text(&document)) {
            let path = link.split('#').next().unwrap_or_default();
            if path.is_empty() || link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let target = document.parent().unwrap().join(path);
            assert!(target.exists(), "{}: {link}", document.display());
            seen += 1;
        }
    }
    assert!(seen > Code::ALL.len(), "links are found at all: {seen}");
}

#[test]
fn the_table_of_reasons_is_the_one_in_the_documentation() {
    let path = root().join("docs/reasons.md");
    if std::env::var_os("UPDATE_DOCS").is_some_and(|value| value == "1") {
        std::fs::write(&path, reason::table()).unwrap();
    }
    assert_eq!(
        text(path),
        reason::table(),
        "run the tests once with UPDATE_DOCS=1"
    );
}

/// The code blocks of a kind in a Markdown text.
fn blocks<'t>(text: &'t str, kind: &str) -> Vec<&'t str> {
    let begin = format!("```{kind}\n");
    let after = text.split(begin.as_str()).skip(1);
    after
        .filter_map(|rest| Some(rest.split_once("```")?.0))
        .collect()
}

/// A log of three entries, and the digest of the last.
fn log() -> (Vec<Vec<u8>>, String) {
    let (group, first, second) = ("shop", "aws", "gcp");
    let topology = Topology {
        group: group.parse().unwrap(),
        first: first.parse().unwrap(),
        second: second.parse().unwrap(),
        traffic: vec!["dns".parse().unwrap()],
    };
    let note = |text: &str| Body::Note {
        code: "started".to_owned(),
        text: text.to_owned(),
    };
    let bodies = [
        Body::Opened {
            topology,
            format: Some(failover::engine::chain::FORMAT),
        },
        note("not only ASCII: ü \u{2028} \"quoted\" \\ \u{7} \u{1f600}"),
        note("the last one"),
    ];
    let mut chain = Chain::default();
    let lines = bodies.map(|body| {
        let entry = Entry {
            seq: chain.entries + 1,
            at: WallTime(1_790_000_000_000),
            mono_ms: 86_400_000,
            boot: "5f3c".to_owned(),
            group: group.parse().unwrap(),
            epoch: Epoch(1),
            actor: "controller".to_owned(),
            version: "0.1.0".to_owned(),
            settings: Digest::of(b"policy and configuration"),
            body,
            previous: chain.head,
        };
        chain.append(&entry).unwrap()
    });
    (lines.into(), chain.head.to_string())
}

/// The auditor's script out of the document, on a log: what it says, and whether it is content.
fn audit(log: &[u8]) -> (bool, String) {
    let document = text("docs/decision-log.md");
    let scripts = blocks(&document, "python");
    assert_eq!(scripts.len(), 1, "one script");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    std::fs::write(&path, log).unwrap();
    let ran = Command::new("python3")
        .args(["-I", "-c", scripts[0]])
        .arg(&path)
        .output()
        .expect("python3 is needed: install the package `python3`");
    let said = [ran.stdout, ran.stderr].concat();
    (
        ran.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

#[test]
fn the_auditors_script_accepts_a_log_and_names_its_end() {
    let (lines, head) = log();
    let (content, said) = audit(&lines.concat());
    assert!(content, "{said}");
    assert_eq!(said, format!("3 entries, the last is {head}\n"));
}

#[test]
fn the_auditors_script_finds_every_kind_of_alteration() {
    let (lines, _) = log();
    let whole = lines.concat();
    let json = lines[0].len() + 65;
    let flips = [
        (3, 1),                   // the first digest
        (lines[0].len() + 64, 2), // the space of the second line
        (json, 2),                // its JSON's first byte
        (json + 100, 2),          // somewhere in its JSON
        (lines[0].len() - 1, 1),  // the line end between two lines
        (whole.len() - 1, 3),     // the last line end
        (whole.len() - 40, 3),    // the last entry
    ];
    for (at, entry) in flips {
        for bit in [1, 0x80] {
            let mut altered = whole.clone();
            altered[at] ^= bit;
            let (content, said) = audit(&altered);
            assert!(!content, "byte {at}: {said}");
            assert!(
                said.contains(&format!("entry {entry}: ")),
                "byte {at}: {said}"
            );
        }
    }
    let forged =
        String::from_utf8_lossy(&lines[1][65..lines[1].len() - 1]).replace("started", "forged!");
    let forged = format!("{} {forged}\n", Digest::of(forged.as_bytes())).into_bytes();
    for (what, altered) in [
        (
            "an entry is forged, its digest too",
            [lines[0].clone(), forged, lines[2].clone()].concat(),
        ),
        (
            "an entry is missing",
            [&lines[0], &lines[2]].map(Vec::as_slice).concat(),
        ),
        (
            "an entry is doubled",
            [&lines[0], &lines[0]].map(Vec::as_slice).concat(),
        ),
        (
            "the first is missing",
            [&lines[1], &lines[2]].map(Vec::as_slice).concat(),
        ),
        ("the last is torn", whole[..whole.len() - 9].to_vec()),
        ("there is none", Vec::new()),
    ] {
        let (content, said) = audit(&altered);
        assert!(!content, "{what}: {said}");
    }
}

#[test]
fn the_example_in_the_documentation_is_the_beginning_of_a_log() {
    let document = text("docs/decision-log.md");
    let example: String = blocks(&document, "text").concat();
    let (lines, _) = log();
    assert_eq!(
        example.as_bytes(),
        lines[0],
        "the example is the first line of the test's log"
    );
    assert!(read_line(example.trim_end().as_bytes()).is_ok());
}
