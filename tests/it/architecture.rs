//! What may know what, read from the imports; and how long files and functions may be.

use std::collections::BTreeMap;
use std::path::Path;

/// One file of `src/`, by its path below it, without its tests.
struct Source {
    path: String,
    lines: Vec<String>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The code of a file: what stands before its tests, without comments and without the insides of
/// texts.
fn code(text: &str) -> Vec<String> {
    let text = text.split("\n#[cfg(test)]").next().unwrap_or_default();
    text.lines().map(ToOwned::to_owned).collect()
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

fn sources() -> Vec<Source> {
    let src = root().join("src");
    let mut found = Vec::new();
    let mut folders = vec![src.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let below = path.strip_prefix(&src).unwrap();
                found.push(Source {
                    path: below.display().to_string(),
                    lines: code(&std::fs::read_to_string(&path).unwrap()),
                });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(found.len() > 50, "the sources are somewhere else");
    found
}

/// The part of the house a file belongs to: `engine`, `app`, … or itself for a file alone.
fn part(path: &str) -> &str {
    path.split(['/', '.']).next().unwrap_or(path)
}

/// What a part of the house is for: where code belongs that knows what it may not know here.
fn belongs(part: &str) -> &'static str {
    match part {
        "engine" => {
            "a decision belongs to `engine/`, which is pure: pass what it needs as an argument"
        }
        "adapters" => {
            "what touches an outside system belongs to one file of `adapters/`, behind a port of `ports.rs`; a composition root (`app/run.rs`, `agent/run.rs`) hands it in"
        }
        "app" => "what only the controller does belongs to `app/`",
        "agent" => "what only the process at a site does belongs to `agent/`",
        "observer" => "what only an extra observer does belongs to `observer/`",
        "config" => {
            "what reads files of settings belongs to `config.rs` and the `config.rs` of each process"
        }
        "lab" => {
            "what only the lab needs stays in `lab/`: nothing below may know that there is one"
        }
        "cli" => {
            "what people type and read belongs to `cli/`, which sits on top: nothing may know it"
        }
        _ => {
            "what two parts of the house share as data belongs to `wire.rs`, as a need to `ports.rs`"
        }
    }
}

/// The names that follow `crate::` or `super::` and the like at their first place, with the line.
fn named_after<'s>(source: &'s Source, prefix: &str) -> Vec<(usize, &'s str)> {
    let mut found = Vec::new();
    for (number, line) in source.lines.iter().enumerate() {
        if is_comment(line) {
            continue;
        }
        for (at, _) in line.match_indices(prefix) {
            let alone =
                !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
            let rest = &line[at + prefix.len()..];
            let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_'));
            let name = &rest[..end.unwrap_or(rest.len())];
            if alone && !name.is_empty() {
                found.push((number + 1, name));
            }
        }
    }
    found
}

/// What each part may know besides itself.
fn may_know(part: &str) -> &'static [&'static str] {
    match part {
        "wire" => &["engine"],
        "ports" => &["engine", "wire"],
        "adapters" | "prober" => &["engine", "ports", "wire"],
        "config" => &["engine", "ports", "wire", "adapters"],
        "app" | "agent" | "observer" => &[
            "engine", "ports", "wire", "tasks", "prober", "config", "adapters",
        ],
        "sim" => &[
            "engine", "ports", "wire", "tasks", "prober", "app", "agent", "observer",
        ],
        "lab" => &[
            "engine", "ports", "wire", "config", "adapters", "app", "agent",
        ],
        "cli" | "main" | "lib" => &[
            "engine", "ports", "wire", "config", "adapters", "app", "agent", "observer", "lab",
            "sim", "cli",
        ],
        // The engine, and whatever is new.
        _ => &[],
    }
}

/// The files of `app`, `agent` and `observer` that may name adapters: the composition roots, and what stands at
/// the border of the process. Everything else gets ports.
const ROOTS: [(&str, &str); 19] = [
    ("app/run.rs", "makes the adapters and hands them in"),
    (
        "app/run/infrastructure.rs",
        "a part of that which grows with each kind of site",
    ),
    (
        "app/run/google.rs",
        "the same, for Google's traffic targets",
    ),
    (
        "app/config.rs",
        "reads keys and certificates while it checks the file",
    ),
    ("app/config/traffic.rs", "the same, for traffic targets"),
    (
        "app/api.rs",
        "takes the peer's identity from its certificate, and reads the log's file",
    ),
    (
        "app/metrics.rs",
        "lists what is shown to Prometheus, in the form of the adapter",
    ),
    ("agent/metrics.rs", "the same, of the agent"),
    ("agent/run.rs", "makes the adapters and hands them in"),
    (
        "agent/config.rs",
        "reads keys and certificates while it checks the file",
    ),
    (
        "agent/api.rs",
        "takes the peer's identity from its certificate, and checks signatures",
    ),
    (
        "agent/local.rs",
        "the ports of `LocalDatabase` over guard and SQL",
    ),
    (
        "agent/standby.rs",
        "what a standby runs with, changed over SQL, for `agent/local.rs`",
    ),
    (
        "agent/workloads.rs",
        "the port `Workloads` over commands and a page",
    ),
    (
        "agent/workloads/cluster.rs",
        "the same, over the API server of a cluster",
    ),
    (
        "agent/config/workloads.rs",
        "names the kinds of objects as the adapter knows them",
    ),
    ("agent/store.rs", "the port `AgentStore` over a file"),
    ("observer/run.rs", "makes the adapters and hands them in"),
    (
        "observer/config.rs",
        "reads keys and certificates while it checks the file",
    ),
];

#[test]
fn a_part_of_the_house_knows_only_what_lies_below_it() {
    let mut wrong = Vec::new();
    for source in sources() {
        let own = part(&source.path);
        for (line, named) in named_after(&source, "crate::") {
            // Macros of the crate are named at its root.
            let macros = source.lines[line - 1].contains(&format!("{named}!"));
            if named == own || macros || may_know(own).contains(&named) {
                continue;
            }
            wrong.push(format!(
                "src/{}:{line} names `crate::{named}`, which `{own}` may not know: {}",
                source.path,
                belongs(named)
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_composition_roots_name_adapters() {
    let mut wrong = Vec::new();
    for source in sources() {
        let free = ["adapters", "config", "lab", "cli"].contains(&part(&source.path));
        if free || ROOTS.iter().any(|(file, _)| *file == source.path) {
            continue;
        }
        for (line, _) in named_after(&source, "crate::")
            .into_iter()
            .filter(|(_, name)| *name == "adapters")
        {
            wrong.push(format!(
                "src/{}:{line} names an adapter: {}",
                source.path,
                belongs("adapters")
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The modules of a parent file, in the order of its declarations.
fn declared(parent: &str) -> Vec<String> {
    let text = std::fs::read_to_string(root().join("src").join(parent)).unwrap();
    let names = text
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod "));
    names
        .map(|name| name.trim_end_matches(';').to_owned())
        .collect()
}

#[test]
fn a_file_of_the_engine_uses_only_files_declared_before_it() {
    let order = declared("engine.rs");
    let mut wrong = Vec::new();
    for source in sources() {
        let Some(name) = source.path.strip_prefix("engine/") else {
            continue;
        };
        // A file of a folder stands with the file that the folder belongs to.
        let (name, above) = match name.trim_end_matches(".rs").split_once('/') {
            Some((folder, _)) => (folder, "super::super::"),
            None => (name.trim_end_matches(".rs"), "super::"),
        };
        let own = order.iter().position(|module| module == name);
        let own = own.unwrap_or_else(|| panic!("src/engine.rs declares no `{name}`"));
        for (line, used) in named_after(&source, above) {
            let Some(place) = order.iter().position(|module| module == used) else {
                continue;
            };
            if place >= own {
                wrong.push(format!(
                    "src/{}:{line} uses `{used}`, which is read after it: what both need belongs to a file declared before `{name}` in src/engine.rs, or `{name}` further down",
                    source.path
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_engine_is_pure() {
    const MAY_USE: [&str; 11] = [
        "super",
        "crate",
        "self",
        "serde",
        "serde_json",
        "serde_json_canonicalizer",
        "sha2",
        "toml",
        "humantime",
        "thiserror",
        "data_encoding",
    ];
    const NEVER: [(&str, &str); 10] = [
        (
            "std::time::Instant",
            "time comes in as an argument (`MonoTime`)",
        ),
        ("SystemTime", "time comes in as an argument (`WallTime`)"),
        ("std::env", "settings come in as a `Policy`"),
        ("std::fs", "files are read by `config.rs` or an adapter"),
        ("std::net", "the network is an adapter's"),
        ("std::thread", "nothing waits here"),
        ("std::process", "processes are an adapter's"),
        ("HashMap", "`BTreeMap`: its order is the same each time"),
        ("tokio", "nothing waits here"),
        ("async ", "nothing waits here"),
    ];
    let mut wrong = Vec::new();
    let engine = sources().into_iter();
    for source in engine.filter(|source| source.path.starts_with("engine/")) {
        for (number, line) in source.lines.iter().enumerate() {
            if is_comment(line) {
                continue;
            }
            let place = format!("src/{}:{}", source.path, number + 1);
            let used = line.trim_start().strip_prefix("use ");
            let krate = used.and_then(|used| used.split([':', ';', ' ']).next());
            let foreign = krate.filter(|krate| *krate != "std" && !MAY_USE.contains(krate));
            if let Some(krate) = foreign {
                wrong.push(format!("{place} uses `{krate}`: {}", belongs("engine")));
            }
            for (word, instead) in NEVER.iter().filter(|(word, _)| line.contains(word)) {
                wrong.push(format!("{place} has `{word}`: {instead}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

const FILE_LIMIT: usize = 500;
const FUNCTION_LIMIT: usize = 70;

/// Files over the limit. A number may only fall; a file that is short enough leaves the list.
const LONG_FILES: &[(&str, usize)] = &[("engine/document.rs", 629)];

/// Functions over the limit. A number may only fall; a function that is short enough leaves the
/// list.
const LONG_FUNCTIONS: &[(&str, usize)] = &[];

/// The functions of a file and how many lines each has, signature and braces included. rustfmt
/// puts a function's end below its beginning.
fn functions(source: &Source) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    for (start, line) in source.lines.iter().enumerate() {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        let mut words = text.split([' ', '(', '<']);
        let before = [
            "pub",
            "pub(crate)",
            "pub(super)",
            "async",
            "const",
            "crate)",
        ];
        let Some("fn") = words.find(|word| !before.contains(word)) else {
            continue;
        };
        let name = words.next().unwrap_or_default().to_owned();
        let end = format!("{}}}", " ".repeat(indent));
        let one_line = text.ends_with('}') || text.ends_with(';');
        let ends = source.lines.iter().skip(start + 1);
        let length = ends.take_while(|line| **line != end).count();
        let declared = source.lines[start..]
            .iter()
            .take_while(|line| !line.ends_with('{'))
            .any(|line| line.ends_with(';'));
        if !one_line && !declared {
            found.push((name, length + 2));
        }
    }
    found
}

/// Compares what is over a limit with what is known to be.
fn ratchet(limit: usize, found: &BTreeMap<String, usize>, known: &[(&str, usize)]) {
    let known: BTreeMap<&str, usize> = known.iter().copied().collect();
    let mut wrong = Vec::new();
    for (name, length) in found.iter().filter(|(_, length)| **length > limit) {
        match known.get(name.as_str()) {
            None => wrong.push(format!(
                "{name} has {length} lines (limit {limit}): divide it"
            )),
            Some(recorded) if length > recorded => {
                wrong.push(format!(
                    "{name} grew from {recorded} to {length} lines: divide it"
                ));
            }
            Some(recorded) if length < recorded => {
                wrong.push(format!(
                    "{name} shrank to {length} lines: write that down here"
                ));
            }
            Some(_) => {}
        }
    }
    for name in known.keys() {
        let length = found.get(*name).copied().unwrap_or_default();
        if length <= limit {
            wrong.push(format!("{name} is short enough: strike it here"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_stay_short() {
    let lengths = sources()
        .into_iter()
        .map(|source| (source.path, source.lines.len()));
    ratchet(FILE_LIMIT, &lengths.collect(), LONG_FILES);
}

#[test]
fn functions_fit_a_screen() {
    let mut lengths = BTreeMap::new();
    for source in sources() {
        for (name, length) in functions(&source) {
            let longest = lengths
                .entry(format!("{} {name}", source.path))
                .or_default();
            *longest = length.max(*longest);
        }
    }
    assert!(
        lengths.len() > 500,
        "only {} functions were found",
        lengths.len()
    );
    ratchet(FUNCTION_LIMIT, &lengths, LONG_FUNCTIONS);
}

#[test]
fn names_say_what_is_inside_and_nothing_is_put_off() {
    const EMPTY_NAMES: [&str; 6] = ["utils", "util", "common", "helpers", "manager", "types"];
    // Written in two halves, so that this file may be looked at, too.
    let never = [
        (
            concat!("TO", "DO"),
            "do it, or say in the docs that it is not done",
        ),
        (concat!("FIX", "ME"), "mend it"),
        (
            concat!("#[ig", "nore"),
            "a test that does not run shows nothing",
        ),
        (
            concat!("process::", "exit("),
            "`main` returns an `ExitCode`",
        ),
    ];
    let mut wrong = Vec::new();
    let mut folders = vec![root().join("src"), root().join("tests")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
            let place = path.strip_prefix(root()).unwrap().display().to_string();
            if EMPTY_NAMES.contains(&stem.as_str()) || place.ends_with("mod.rs") {
                wrong.push(format!("{place}: name it after what is inside"));
            }
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            if path.extension().is_none_or(|ending| ending != "rs") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            for (number, line) in text.lines().enumerate() {
                for (word, instead) in never.iter().filter(|(word, _)| line.contains(word)) {
                    wrong.push(format!("{place}:{}: `{word}`: {instead}", number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The files and folders that a text names between backticks.
fn places(text: &str) -> Vec<&str> {
    let endings = [".rs", ".md", ".toml", ".sh", ".json", ".tf", ".yml"];
    let spans = text.split('`').skip(1).step_by(2);
    let plain = |span: &&str| {
        let chars = |c: char| c.is_alphanumeric() || "/._-".contains(c);
        span.chars().all(chars) && !span.starts_with(['/', '.']) && !span.contains("..")
    };
    let place = |span: &&str| span.ends_with('/') || endings.iter().any(|e| span.ends_with(e));
    // A name without a folder may be that of a file of a user's, except where it can only be ours.
    let always = [".rs", ".md"];
    let ours = |span: &&str| span.contains('/') || always.iter().any(|e| span.ends_with(e));
    spans.filter(plain).filter(place).filter(ours).collect()
}

#[test]
fn every_place_that_the_architecture_names_exists() {
    let file = root().join("ARCHITECTURE.md");
    let text = std::fs::read_to_string(&file)
        .unwrap_or_else(|cause| panic!("ARCHITECTURE.md tells a newcomer the way: {cause}"));
    let named = places(&text);
    assert!(named.len() > 10, "it names only {named:?}");
    let missing: Vec<&str> = named
        .into_iter()
        // Below `src/`, as the rest of the page speaks of it, or below the root.
        .filter(|place| {
            ["", "src"]
                .iter()
                .all(|base| !root().join(base).join(place).exists())
        })
        .collect();
    assert!(
        missing.is_empty(),
        "ARCHITECTURE.md names what is not there: {missing:?}"
    );
}

#[test]
fn a_place_is_told_from_other_code() {
    let text = "`engine/gate.rs` and `tests/lab/` but not `Clock`, `failover.toml = 1`, `/etc/x.toml` or `a::b`";
    assert_eq!(places(text), ["engine/gate.rs", "tests/lab/"]);
}
