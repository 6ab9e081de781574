//! The image: no machine with a container builder was at hand, so what can be read is read.

use super::read;

fn lines(dockerfile: &str) -> Vec<(String, String)> {
    let joined = dockerfile.replace("\\\n", " ");
    let words = joined
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    let split = words.map(|line| {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        (word.to_ascii_uppercase(), rest.trim().to_owned())
    });
    split.collect()
}

fn rests<'l>(lines: &'l [(String, String)], word: &str) -> Vec<&'l str> {
    let found = lines.iter().filter(|(each, _)| each == word);
    found.map(|(_, rest)| rest.as_str()).collect()
}

#[test]
fn the_image_is_one_program_from_named_bases_and_not_root() {
    let file = read("deploy/Dockerfile");
    let lines = lines(&file);
    assert!(
        rests(&lines, "ADD").is_empty(),
        "nothing comes from the net but the bases and crates"
    );
    for base in rests(&lines, "ARG")
        .into_iter()
        .filter_map(|arg| arg.split_once("_IMAGE="))
    {
        let (_, tag) = base
            .1
            .split_once(':')
            .unwrap_or_else(|| panic!("{base:?} has no tag"));
        assert!(
            tag.starts_with(|c: char| c.is_ascii_digit()) && tag != "latest",
            "{base:?}"
        );
    }
    let stages = rests(&lines, "FROM");
    assert_eq!(stages.len(), 2, "{stages:?}");
    assert!(
        stages.iter().all(|stage| stage.starts_with("${")),
        "each base can be pinned: {stages:?}"
    );
    // The program was compiled with that version of Rust, or a newer one.
    let wanted = format!("rust:{}.", env!("CARGO_PKG_RUST_VERSION"));
    assert!(file.contains(&wanted), "{wanted}");

    let users = rests(&lines, "USER");
    assert_eq!(users.len(), 1);
    let numeric = |id: &str| id.parse::<u32>().is_ok_and(|id| id > 0);
    let (user, group) = users[0].split_once(':').unwrap();
    assert!(numeric(user) && numeric(group), "{users:?}");
    let values = read("deploy/helm/failover/values.yaml");
    assert!(
        values.contains(&format!("uid: {user}\n")),
        "the chart runs it as another user"
    );
    assert_eq!(rests(&lines, "ENTRYPOINT"), [r#"["/usr/bin/failover"]"#]);
    // Only the first stage runs anything: what is shipped is copied.
    let last = lines.iter().rposition(|(word, _)| word == "FROM").unwrap();
    assert!(rests(&lines[last..], "RUN").is_empty());
}

/// Where `make install` puts things, and where the image takes them from.
#[test]
fn the_image_takes_what_make_install_installs() {
    let makefile = read("Makefile");
    let file = read("deploy/Dockerfile");
    let lines = lines(&file);
    let built = rests(&lines, "RUN").join("\n");
    assert!(built.contains("make install DESTDIR=/out"), "{built}");
    assert!(
        makefile.contains("$(DESTDIR)$(PREFIX)/bin/failover")
            && makefile.contains("PREFIX ?= /usr\n")
    );
    assert!(makefile.contains("POLICY_DIR := /usr/share/failover/policies\n"));
    let copied: Vec<&str> = rests(&lines, "COPY")
        .into_iter()
        .filter(|it| it.starts_with("--from=build"))
        .collect();
    for from in ["/out/usr/bin/failover", "/out/usr/share/failover"] {
        assert!(
            copied
                .iter()
                .any(|copy| copy.contains(&format!(" {from} "))),
            "{copied:?}"
        );
    }
    // All that the build reads is let into its context, and what is large is not.
    let ignored = read("deploy/Dockerfile.dockerignore");
    let ignored: Vec<&str> = ignored
        .lines()
        .filter(|line| !line.starts_with('#'))
        .collect();
    for needed in [
        "src",
        "policies",
        "deploy",
        "Cargo.toml",
        "Cargo.lock",
        "Makefile",
    ] {
        assert!(!ignored.contains(&needed), "{needed}");
    }
    assert!(ignored.contains(&"target"), "{ignored:?}");
}
