//! Pages that say which test shows a claim name tests that exist.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The pages. Each names at least so many tests.
const PAGES: [(&str, usize); 7] = [
    ("README.md", 30),
    ("docs/zero-loss.md", 5),
    ("docs/formats.md", 15),
    ("docs/trials.md", 1),
    ("docs/threat-model.md", 40),
    ("docs/postgres.md", 50),
    ("docs/invariants.md", 80),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every function of the tests and of the sources, as `file::name` with the file's stem.
fn functions() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut folders = vec![root().join("tests"), root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                found.extend(of_file(&path));
            }
        }
    }
    found
}

fn of_file(path: &Path) -> Vec<String> {
    let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
    let text = std::fs::read_to_string(path).unwrap();
    let names = text.lines().filter_map(|line| {
        let after = line.trim_start().split_once("fn ")?.1;
        let end = after.find(['(', '<'])?;
        Some(format!("{stem}::{}", &after[..end]))
    });
    names.collect()
}

/// The tests that a page names: what stands in backticks like `lab/gates.rs::name`, with or without
/// folder and ending.
fn named(page: &str) -> Vec<String> {
    let spans = page.split('`').skip(1).step_by(2);
    let plain = |span: &str| {
        span.chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_:/.".contains(c))
    };
    let tail = |span: &str| {
        let (place, name) = span.rsplit_once("::")?;
        let file = place.rsplit(['/', ':']).next()?;
        let stem = file.strip_suffix(".rs").unwrap_or(file);
        plain(span).then(|| format!("{stem}::{name}"))
    };
    spans.filter_map(tail).collect()
}

#[test]
fn the_tests_that_pages_name_exist() {
    let functions = functions();
    let mut wrong = Vec::new();
    for (page, least) in PAGES {
        let text = std::fs::read_to_string(root().join(page)).unwrap();
        let tests = named(&text);
        if tests.len() < least {
            wrong.push(format!("{page} names {} tests", tests.len()));
        }
        for test in tests.iter().filter(|test| !functions.contains(*test)) {
            wrong.push(format!("{page} names `{test}`, which does not exist"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_named_test_is_told_from_other_code() {
    let page =
        "`lab/gates.rs::a_thing` and `std::fs`, not `failover check`, `Clock::now` or `a_word`";
    assert_eq!(named(page), ["gates::a_thing", "std::fs"]);
}
