//! What the sources say of documents is so: a reference leads to an entry that is there, every entry
//! is one that something rests on, and no document is named that the repository does not hold.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The pages with numbered entries. Each entry begins with a heading of the third level, its id
/// first, and is cited by the page's file name, a blank and its id; several of one page are divided
/// by commas.
const FACTS: &str = "docs/postgres.md";
const INVARIANTS: &str = "docs/invariants.md";
const PAGES: [(&str, &[char]); 2] = [(FACTS, &['P']), (INVARIANTS, &['I', 'F'])];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file as a reference names it, and its text.
struct Source {
    path: String,
    text: String,
}

/// The file at a path, or all below it, in order.
fn sources(place: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut places: Vec<PathBuf> = vec![root().join(place)];
    while let Some(place) = places.pop() {
        if place.is_dir() {
            let inside = std::fs::read_dir(&place).unwrap();
            places.extend(inside.map(|entry| entry.unwrap().path()));
            continue;
        }
        let bytes = std::fs::read(&place)
            .unwrap_or_else(|cause| panic!("{} is read: {cause}", place.display()));
        found.push(Source {
            path: place.strip_prefix(root()).unwrap().display().to_string(),
            text: String::from_utf8_lossy(&bytes).into_owned(),
        });
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// What is code, or tests it.
fn code() -> Vec<Source> {
    let code: Vec<Source> = ["src", "tests"].into_iter().flat_map(sources).collect();
    assert!(code.len() > 100, "the sources are somewhere else");
    code
}

/// A text without line ends and the marks of comments: a reference may stand on two lines.
fn on_one_line(text: &str) -> String {
    let marks = ['/', '!', '#'];
    let lines = text.lines().map(str::trim);
    let lines = lines.map(|line| line.trim_start_matches(marks).trim());
    lines.collect::<Vec<_>>().join(" ")
}

fn is_id(word: &str, letters: &[char]) -> bool {
    let number = word.strip_prefix(letters);
    number.is_some_and(|digits| digits.parse::<u32>().is_ok())
}

/// The ids that a text cites of a page, for each time that it names it. One that names it by its
/// path means the page as a whole.
fn cited(text: &str, page: &str, letters: &[char]) -> Vec<Vec<String>> {
    let text = on_one_line(text);
    let name = page.rsplit('/').next().unwrap_or(page);
    let ids = |(at, _): (usize, &str)| {
        let rest = text[at + name.len()..].strip_prefix(' ').unwrap_or("");
        let mut ids = Vec::new();
        for word in rest.split(' ') {
            let id = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
            if !is_id(id, letters) {
                break;
            }
            ids.push(id.to_owned());
            if word.strip_prefix(id) != Some(",") {
                break;
            }
        }
        (!text[..at].ends_with('/')).then_some(ids)
    };
    text.match_indices(name).filter_map(ids).collect()
}

/// The entries of a page: the id of each, and what it says.
fn entries(text: &str, letters: &[char]) -> Vec<(String, String)> {
    let sections = text.split("\n### ").skip(1);
    let entry = |section: &str| {
        let (id, _) = section.split_once(' ')?;
        is_id(id, letters).then(|| (id.to_owned(), section.to_owned()))
    };
    sections.filter_map(entry).collect()
}

fn entries_of(page: &str, letters: &[char]) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(root().join(page)).unwrap();
    let found = entries(&text, letters);
    assert!(found.len() > 10, "{page} has {} entries", found.len());
    found
}

#[test]
fn every_reference_leads_to_an_entry_and_every_entry_has_one() {
    let code = code();
    let mut wrong = Vec::new();
    for (page, letters) in PAGES {
        let mut unused = BTreeSet::new();
        for (id, _) in entries_of(page, letters) {
            if !unused.insert(id.clone()) {
                wrong.push(format!("{page} has two entries {id}"));
            }
        }
        let known = unused.clone();
        for source in &code {
            for ids in cited(&source.text, page, letters) {
                if ids.is_empty() {
                    let path = &source.path;
                    wrong.push(format!("{path} names {page} without the id of an entry"));
                }
                for id in ids {
                    unused.remove(&id);
                    if !known.contains(&id) {
                        wrong.push(format!("{} cites {id}, which {page} has not", source.path));
                    }
                }
            }
        }
        for id in unused {
            wrong.push(format!(
                "{page} has {id}, which nothing in src or tests cites"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The files of the source that an entry names in the line that says where it is relied on.
fn relying(entry: &str) -> BTreeSet<String> {
    let line = entry.lines().find_map(|line| line.strip_prefix("- In: "));
    let spans = line.unwrap_or_default().split('`').skip(1).step_by(2);
    spans.map(ToOwned::to_owned).collect()
}

#[test]
fn each_fact_names_the_files_that_cite_it() {
    let letters = &['P'];
    let cites = |source: Source| {
        let ids = cited(&source.text, FACTS, letters).into_iter().flatten();
        let ids: BTreeSet<String> = ids.collect();
        (source.path, ids)
    };
    let files: Vec<(String, BTreeSet<String>)> = sources("src").into_iter().map(cites).collect();
    let mut wrong = Vec::new();
    for (id, entry) in entries_of(FACTS, letters) {
        let named = relying(&entry);
        let citing = files.iter().filter(|(_, ids)| ids.contains(&id));
        let citing: BTreeSet<String> = citing.map(|(path, _)| path.clone()).collect();
        for path in citing.difference(&named) {
            wrong.push(format!("{path} cites {id}: name it there"));
        }
        for path in named.difference(&citing) {
            wrong.push(format!(
                "{id} names {path}, which does not cite it: cite it there, or strike the file"
            ));
        }
    }
    assert!(wrong.is_empty(), "{FACTS}:\n{}", wrong.join("\n"));
}

#[test]
fn each_invariant_names_files_that_exist() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (id, entry) in entries_of(INVARIANTS, &['I', 'F']) {
        let spans = entry.split('`').skip(1).step_by(2);
        for path in spans.filter(|span| span.starts_with("src/")) {
            let path = path.split("::").next().unwrap_or(path);
            seen += 1;
            if !root().join(path).exists() {
                wrong.push(format!("{id} names {path}, which does not exist"));
            }
        }
    }
    assert!(seen > 40, "only {seen} files are named");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What people read, and what they write.
const READ: [&str; 12] = [
    "src",
    "tests",
    "benches",
    "docs",
    "runbooks",
    "policies",
    "deploy",
    "terraform/README.md",
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "Makefile",
];

/// Papers that the sources once cited by section or row, and that are not here. Written in two
/// halves, so that this file may be looked at, too.
const PAPERS: [&str; 7] = [
    concat!("POST", "GRES"),
    concat!("DES", "IGN"),
    concat!("PAR", "TS"),
    concat!("CLO", "UDS"),
    concat!("KUBER", "NETES"),
    concat!("OPER", "ATOR"),
    concat!("STY", "LE"),
];

/// The documents in capitals that a text names, and the papers that it cites without their ending.
fn documents(text: &str) -> Vec<String> {
    let text = on_one_line(text);
    let mut found = Vec::new();
    for (at, ending) in text.match_indices(".md") {
        let capital = |c: char| c.is_ascii_uppercase() || c == '_';
        let before = text[..at].trim_end_matches(capital);
        let name = &text[before.len()..at];
        if name.len() > 2 && !before.ends_with(char::is_alphanumeric) {
            found.push(format!("{name}{ending}"));
        }
    }
    for paper in PAPERS {
        for (at, _) in text.match_indices(paper) {
            let rest = &text[at + paper.len()..];
            let mut ways = [":", " section ", " row ", " rows "].into_iter();
            if ways.any(|way| rest.starts_with(way)) {
                found.push(paper.to_owned());
            }
        }
    }
    found
}

#[test]
fn no_document_is_named_that_is_not_there() {
    let mut wrong = Vec::new();
    for source in READ.into_iter().flat_map(sources) {
        for name in documents(&source.text) {
            if !root().join(&name).exists() {
                wrong.push(format!(
                    "{} names {name}: say the fact itself, or cite {FACTS} or {INVARIANTS}",
                    source.path
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_reference_is_told_from_other_text() {
    let name = FACTS.rsplit('/').next().unwrap();
    let text = format!("/// It lags ({name} P3, P4), and ({name}\n/// P5). See `{FACTS}`.");
    let all = cited(&text, FACTS, &['P']);
    assert_eq!(all.concat(), ["P3", "P4", "P5"]);
    assert_eq!(
        all.len(),
        2,
        "a page that is named by its path is no reference"
    );
    let old = cited(&format!("({name} row 3)"), FACTS, &['P']);
    assert_eq!(old.len(), 1);
    assert!(old[0].is_empty(), "{old:?}");

    let page = "# Page\n\n### P1 One\n\n- In: `src/a.rs`, `src/b.rs`\n\n### Two\n\n### P3 Three\n";
    let found = entries(page, &['P']);
    let ids: Vec<&str> = found.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids, ["P1", "P3"]);
    assert_eq!(relying(&found[0].1).len(), 2);

    let paper = PAPERS[2];
    let text =
        format!("README.md, docs/page.md, {paper}.md and ({paper}\n/// section 8) of {paper}");
    let named = documents(&text);
    let wanted = [
        "README.md".to_owned(),
        format!("{paper}.md"),
        paper.to_owned(),
    ];
    assert_eq!(named, wanted);
}

/// The lines of a picture that name a file and a function in it: `src/app/api.rs: report`.
fn ways(page: &str) -> Vec<(String, String)> {
    let line = |line: &str| {
        let from = line.find("src/")?;
        let (file, rest) = line.get(from..)?.split_once(".rs: ")?;
        let name = rest.split_whitespace().next()?;
        let plain = |c: char| c.is_ascii_lowercase() || c == '_';
        name.chars()
            .all(plain)
            .then(|| (format!("{file}.rs"), name.to_owned()))
    };
    page.lines().filter_map(line).collect()
}

#[test]
fn the_ways_through_the_house_are_those_of_the_code() {
    let read = |file: &str| std::fs::read_to_string(root().join(file)).unwrap();
    let page = read("ARCHITECTURE.md");
    let ways = ways(&page);
    assert!(ways.len() >= 30, "only {} steps are drawn", ways.len());
    for (file, name) in ways {
        let code = read(&file);
        assert!(
            code.contains(&format!("fn {name}(")) || code.contains(&format!("fn {name}<")),
            "ARCHITECTURE.md draws `{name}` of `{file}`, which has no such function"
        );
    }
}
