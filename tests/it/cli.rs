//! The command line as people and scripts meet it. The snapshots lie beside; after a change that is
//! meant, `INSTA_UPDATE=always cargo test --test it cli` writes them anew.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use failover::adapters::tls::{TlsFiles, TlsMaterial};
use failover::app::brain::Brain;
use failover::cli::exit::Exit;
use failover::cli::output::Output as Printer;
use failover::cli::{Colour, Form};
use failover::engine::chain::{Body, Chain, Digest, Entry};
use failover::engine::credential::CredentialFacts;
use failover::engine::decision::decide;
use failover::engine::format::WrittenBy;
use failover::engine::plan::Plan;
use failover::engine::saga::{Command as Asked, Ending, GroupState, Happening, Moment};
use failover::engine::situation::Situation;
use failover::engine::step::{Event, Fact};
use failover::engine::units::{Epoch, Lsn, MonoTime, WallTime};
use failover::wire::{Fleet, PlanStatus, Status};

use crate::executor::stage::{Earth, LIFE, gcp, policy, topology};

/// Runs the program away from every setting and lab of this machine.
fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_failover"));
    command
        .args(arguments)
        .env_clear()
        .env("XDG_RUNTIME_DIR", "/nonexistent")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null());
    command
}

fn ran(arguments: &[&str]) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = program(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap_or(-1), text(stdout), text(stderr))
}

/// What the program did, in one text.
fn shown(arguments: &[&str]) -> String {
    let (code, out, err) = ran(arguments);
    let mut text = format!("$ failover {}\n{out}", arguments.join(" "));
    if !err.is_empty() {
        text.push_str(&format!("--- standard error\n{err}"));
    }
    format!("{text}--- exit {code}\n")
}

/// Every verb that people may type, as its words.
fn verbs(command: &clap::Command, words: &[String], found: &mut Vec<Vec<String>>) {
    found.push(words.to_vec());
    let shown = command.get_subcommands().filter(|verb| !verb.is_hide_set());
    for verb in shown.filter(|verb| verb.get_name() != "help") {
        let words = [words, &[verb.get_name().to_owned()]].concat();
        verbs(verb, &words, found);
    }
}

#[test]
fn an_observer_gets_a_certificate_and_no_key_for_orders_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    let issue = |who: &[&str]| {
        let place = ["certificates", "--group", "shop", "--dir"];
        let arguments = [&place[..], &[keys.to_str().unwrap()], who].concat();
        let (code, out, err) = ran(&arguments);
        assert_eq!(code, 0, "{err}");
        out
    };
    issue(&["--site", "aws"]);
    // Added later, by the same authority.
    let out = issue(&["--observer", "paris"]);
    assert_eq!(out.lines().count(), 1, "{out}");
    let files = TlsFiles {
        ca: keys.join("ca.pem"),
        certificate: keys.join("paris.observer.shop.pem"),
        key: keys.join("paris.observer.shop.key"),
        revoked: None,
    };
    let identity = TlsMaterial::load(&files).unwrap().identity().to_string();
    assert_eq!(identity, "paris.observer.shop.failover.internal");
}

#[test]
fn a_mistake_in_the_program_is_one_line_to_report_and_a_code_of_its_own() {
    const ALONE: &str = "FAILOVER_TEST_BROKEN";
    if std::env::var_os(ALONE).is_some() {
        let code = failover::cli::guarded(|| panic!("in two\nlines"));
        let broken = std::process::ExitCode::from(70);
        assert_eq!(format!("{code:?}"), format!("{broken:?}"));
        return;
    }
    let test = "cli::a_mistake_in_the_program_is_one_line_to_report_and_a_code_of_its_own";
    let done = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(ALONE, "1")
        .env("RUST_BACKTRACE", "0")
        .output()
        .unwrap();
    let said = String::from_utf8(done.stderr).unwrap();
    assert!(done.status.success(), "{said}");
    assert!(said.starts_with("error: a bug in failover "), "{said}");
    assert!(
        said.ends_with(": in two lines; please report this line\n"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn every_verb_explains_itself() {
    let mut found = Vec::new();
    verbs(&failover::cli::command(), &[], &mut found);
    assert!(found.len() > 20, "{found:?}");
    let mut all = String::new();
    for words in found {
        let mut arguments: Vec<&str> = words.iter().map(String::as_str).collect();
        arguments.push("--help");
        all.push_str(&shown(&arguments));
        all.push('\n');
    }
    insta::assert_snapshot!("help", all);
}

#[test]
fn the_man_page_and_the_completions_know_every_verb() {
    let (code, man, _) = ran(&["generate", "man"]);
    assert_eq!(code, 0);
    assert!(man.contains(".TH"), "{man}");
    for exit in Exit::ALL {
        assert!(
            man.contains(exit.meaning()),
            "{} is not in the man page",
            exit.meaning()
        );
    }
    for shell in ["bash", "zsh", "fish"] {
        let (code, script, _) = ran(&["generate", "completions", shell]);
        assert_eq!(code, 0, "{shell}");
        for verb in failover::cli::command().get_subcommands() {
            let known = verb.is_hide_set() || script.contains(verb.get_name());
            assert!(known, "{} is not in {shell}", verb.get_name());
        }
    }
}

#[test]
fn each_file_has_a_schema_that_is_json() {
    for file in ["controller", "agent", "policy"] {
        let (code, text, err) = ran(&["generate", "schema", file]);
        assert_eq!(code, 0, "{file}: {err}");
        let schema: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(schema["type"], "object", "{file}");
    }
}

#[test]
fn a_good_policy_ends_with_0_and_a_bad_one_with_1_and_its_line() {
    let good = shown(&["policy", "check", "policies/standard.toml"]);
    insta::assert_snapshot!("policy_good", good);
    let dir = tempfile::tempdir().unwrap();
    let text = include_str!("../../policies/fast.toml").replace("quorum = 2", "quorum = 1");
    let bad = dir.path().join("bad.toml");
    std::fs::write(&bad, text).unwrap();
    let bad = shown(&["policy", "check", bad.to_str().unwrap()]);
    assert!(bad.ends_with("--- exit 1\n"), "{bad}");
    insta::assert_snapshot!(
        "policy_bad",
        bad.replace(dir.path().to_str().unwrap(), "DIR")
    );
}

#[test]
fn the_timers_of_each_policy_are_told_in_words_and_in_json() {
    for name in ["standard", "fast", "observe"] {
        let file = format!("policies/{name}.toml");
        insta::assert_snapshot!(
            format!("timers_{name}"),
            shown(&["policy", "timers", &file])
        );
        let json = shown(&["--output", "json", "policy", "timers", &file]);
        insta::assert_snapshot!(format!("timers_{name}_json"), json);
    }
}

/// A log of a person's commands and a failover that was taken back.
fn log(path: &Path) {
    let mut chain = Chain::default();
    let mut text = Vec::new();
    let plan = Plan::failover(&well().0, &topology(), &well().1, WallTime(0));
    let step = |index: usize, event| Body::Step {
        plan: 5,
        index,
        step: plan.steps[index].clone(),
        event,
    };
    let failed = Event::Failed {
        why: "loss-over-limit".to_owned(),
    };
    let bodies = [
        Body::Opened {
            topology: topology(),
            format: None,
        },
        Body::Note {
            code: "started".to_owned(),
            text: "controller started".to_owned(),
        },
        Body::Command {
            command: Asked::Hold {
                reason: "upgrade".to_owned(),
                until: WallTime(1_767_229_200_000),
            },
        },
        Body::Command {
            command: Asked::Release {
                rebuilt: false,
                reason: "upgrade is done".to_owned(),
            },
        },
        Body::Plan {
            plan: Box::new(plan.clone()),
        },
        step(0, Event::Started),
        step(0, Event::Done { fact: Fact::Done }),
        step(1, Event::Started),
        step(1, failed),
        Body::Outcome {
            plan: 5,
            ending: Ending::Undone {
                why: "raise-epoch: loss-over-limit".to_owned(),
            },
        },
    ];
    for (index, body) in bodies.into_iter().enumerate() {
        let seq = u64::try_from(index).unwrap() + 1;
        let entry = Entry {
            seq,
            at: WallTime(1_767_225_600_000 + seq * 1000),
            mono_ms: seq * 1000,
            boot: "boot".to_owned(),
            group: topology().group,
            epoch: Epoch(1),
            actor: if matches!(body, Body::Command { .. }) {
                "alice"
            } else {
                "controller"
            }
            .to_owned(),
            version: "0.1.0".to_owned(),
            settings: Digest::ZERO,
            body,
            previous: chain.head,
        };
        text.extend(chain.append(&entry).unwrap());
    }
    std::fs::write(path, text).unwrap();
}

#[test]
fn a_log_is_shown_and_verified_in_words_and_in_json() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("decision.log");
    log(&path);
    let file = path.to_str().unwrap();
    let told = |arguments: &[&str]| shown(arguments).replace(dir.path().to_str().unwrap(), "DIR");
    insta::assert_snapshot!("log_show", told(&["log", "show", file]));
    let json = told(&["--output", "json", "log", "show", file, "--limit", "2"]);
    insta::assert_snapshot!("log_show_json", json);
    insta::assert_snapshot!("log_verify", told(&["log", "verify", file]));
    let json = told(&["--output", "json", "log", "verify", file]);
    insta::assert_snapshot!("log_verify_json", json);
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("upgrade is done", "upgrade is gone")).unwrap();
    let broken = told(&["log", "verify", file]);
    assert!(broken.ends_with("--- exit 1\n"), "{broken}");
    insta::assert_snapshot!("log_broken", broken);
}

#[test]
fn wrong_use_ends_with_2_and_a_hint() {
    let nobody = shown(&["status"]);
    insta::assert_snapshot!("no_controller", nobody);
    let unknown = shown(&["status", "--watc"]);
    assert!(
        unknown.contains("--watch"),
        "a flag is suggested: {unknown}"
    );
    insta::assert_snapshot!("unknown_flag", unknown);
    for arguments in [
        &["status"][..],
        &["status", "--watc"],
        &["policy", "timers", "none.toml"],
    ] {
        assert_eq!(ran(arguments).0, 2, "{arguments:?}");
    }
}

#[test]
fn a_controller_that_is_not_there_is_named_with_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().to_str().unwrap();
    let made = ran(&[
        "certificates",
        "--dir",
        place,
        "--group",
        "shop",
        "--operator",
        "alice",
    ]);
    assert_eq!(made.0, 0, "{}", made.2);
    // A port that was free a moment ago, on an address of nobody else's.
    let free = std::net::TcpListener::bind(("127.77.7.7", 0)).unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let files: Vec<&str> = made
        .1
        .lines()
        .filter(|line| line.contains("alice"))
        .collect();
    let (certificate, key) = files[0].split_once(' ').unwrap();
    let ca = format!("{place}/ca.pem");
    let (code, _, err) = ran(&[
        "status",
        "--controller",
        &address,
        "--ca",
        &ca,
        "--certificate",
        certificate,
        "--key",
        key,
    ]);
    assert_eq!(code, 2, "{err}");
    assert!(
        err.contains(&address) && err.contains("hint: is it running?"),
        "{err}"
    );
}

#[test]
fn colour_is_for_terminals_and_never_where_it_is_unwanted() {
    let good = ["policy", "check", "policies/standard.toml"];
    assert!(!ran(&good).1.contains('\u{1b}'), "a pipe is no terminal");
    let always = ran(&[&["--color", "always"], &good[..]].concat());
    assert!(always.1.contains("\u{1b}[32m"), "{}", always.1);
    let unwanted = program(&good).env("NO_COLOR", "1").output().unwrap();
    assert!(!unwanted.stdout.contains(&0x1b));
}

#[test]
fn a_closed_pipe_ends_quietly_with_0() {
    use std::io::{BufRead, BufReader};

    for arguments in [&["generate", "man"][..], &["--help"]] {
        let mut command = program(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        let mut out = BufReader::with_capacity(16, child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        drop(out);
        let ended = child.wait_with_output().unwrap();
        assert_eq!(ended.status.code(), Some(0), "{arguments:?}");
        assert!(
            ended.stderr.is_empty(),
            "{}",
            String::from_utf8_lossy(&ended.stderr)
        );
    }
}

/// What a controller knows after fifteen seconds, of which the last five may be bad.
fn brain(wrong: impl FnOnce(&mut Earth)) -> (Brain, MonoTime) {
    let group = GroupState::new(&topology());
    let mut earth = Earth::well();
    let mut wrong = Some(wrong);
    let mut now = MonoTime(Duration::from_secs(1000));
    let mut brain = Brain::new(topology(), policy(), &group, now, LIFE);
    for round in 0..60 {
        if let Some(wrong) = wrong.take_if(|_| round == 40) {
            wrong(&mut earth);
        }
        now = now.plus(Duration::from_millis(250));
        earth.write();
        brain.surroundings((3, 3), CredentialFacts::default());
        for seen in earth.seen(now) {
            brain.observe(&seen);
        }
        for report in earth.reports(now) {
            let wall = report.wall;
            brain.report(report, &group, now, wall);
        }
    }
    (brain, now)
}

const AT: WallTime = WallTime(1_767_225_615_000);

fn well() -> (Situation, failover::engine::lease::LastRight) {
    let (mut brain, now) = brain(|_| ());
    let group = GroupState::new(&topology());
    let situation = brain.situation(&group, false, None, now, AT);
    (situation, brain.last_right())
}

fn status(group: &GroupState, wrong: impl FnOnce(&mut Earth)) -> String {
    let printer = Printer::new(Form::Human, Colour::Never);
    failover::cli::status::shown(&status_of(group, wrong), &printer)
}

pub(crate) fn status_of(group: &GroupState, wrong: impl FnOnce(&mut Earth)) -> Status {
    let (mut brain, now) = brain(wrong);
    let walking = group.open.is_some();
    let situation = brain.situation(group, walking, None, now, AT);
    let decision = decide(&situation, &policy());
    let status = Status {
        schema_version: 1,
        at: AT,
        version: "0.1.0".to_owned(),
        fleet: Fleet::default(),
        policy: "fast.toml".to_owned(),
        data: Some(policy().data),
        situation,
        decision,
        plan: PlanStatus::of(group),
        log: (42, Digest::ZERO.to_string()),
    };
    let read: Status = serde_json::from_str(&serde_json::to_string(&status).unwrap()).unwrap();
    assert_eq!(read, status, "what is sent is what is read");
    status
}

#[test]
fn the_checks_before_a_failover() {
    let printer = Printer::new(Form::Human, Colour::Never);
    let mut all = String::new();
    for wrong in [
        |_: &mut Earth| (),
        |earth: &mut Earth| earth.gcp.reachable = false,
    ] {
        let status = status_of(&GroupState::new(&topology()), wrong);
        let readiness = failover::wire::Readiness::of(&status);
        let text = serde_json::to_string(&readiness).unwrap();
        let read: failover::wire::Readiness = serde_json::from_str(&text).unwrap();
        assert_eq!(read, readiness, "what is sent is what is read");
        all += &failover::cli::check::shown(&readiness, &printer);
        all += "\n\n";
    }
    insta::assert_snapshot!("checks", all);
}

/// A group whose plan has done its first steps, and of whose next step this is told.
pub(crate) fn walking(done: usize, events: &[Event]) -> GroupState {
    let (situation, last) = well();
    let plan = Plan::failover(&situation, &topology(), &last, WallTime(0));
    let mut group = GroupState::new(&topology());
    let at = Moment {
        wall: AT,
        mono: Duration::ZERO,
        boot: "boot".to_owned(),
    };
    let mut happens = |happening: Happening<'_>| group.apply(7, &at, &happening).unwrap();
    happens(Happening::Planned(&plan));
    let all = (0..done).flat_map(|index| {
        [Event::Started, Event::Done { fact: Fact::Done }].map(|event| (index, event))
    });
    let next = events.iter().map(|event| (done, event.clone()));
    for (index, event) in all.chain(next) {
        happens(Happening::Stepped {
            plan: 7,
            index,
            event: &event,
        });
        if let Event::Stuck { why } = event {
            let ending = &Ending::Stuck { why };
            happens(Happening::Ended { plan: 7, ending });
        }
    }
    group
}

#[test]
fn the_status_of_a_healthy_pair() {
    insta::assert_snapshot!(
        "status_healthy",
        status(&GroupState::new(&topology()), |_| ())
    );
}

#[test]
fn the_status_names_a_mixed_fleet_and_what_each_process_runs() {
    let mut status = status_of(&GroupState::new(&topology()), |_| ());
    let by = |program: &str, format: &str| WrittenBy {
        program: program.to_owned(),
        format: format.parse().unwrap(),
    };
    let agents = |gcp| [("aws", by("0.2.0", "1.1")), ("gcp", gcp)];
    let named = |all: [(&str, WrittenBy); 2]| all.map(|(site, by)| (site.parse().unwrap(), by));
    let guards = [("aws".parse().unwrap(), WrittenBy::default())];
    let observers = [("paris".parse().unwrap(), by("0.2.0", "1.1"))];
    let fleet = |gcp, guards| {
        let agents = named(agents(gcp)).into();
        Fleet::new(by("0.2.0", "1.1"), agents, guards, observers.clone().into())
    };
    let printer = Printer::new(Form::Human, Colour::Never);
    status.fleet = fleet(by("0.1.0", "1.0"), guards.into());
    let text = failover::cli::status::shown(&status, &printer);
    let line = text
        .lines()
        .find(|line| line.starts_with("programs are mixed: "));
    assert_eq!(
        line.unwrap(),
        "programs are mixed: controller is failover 0.2.0 (format 1.1), agent aws is failover 0.2.0 (format 1.1), agent gcp is failover 0.1.0 (format 1.0), guard aws is an earlier failover (before formats had numbers), observer paris is failover 0.2.0 (format 1.1)"
    );
    let json = serde_json::to_value(&status).unwrap();
    assert_eq!(json["fleet"]["mixed"], true);
    assert_eq!(json["fleet"]["agents"]["gcp"]["program"], "0.1.0");
    assert_eq!(json["fleet"]["observers"]["paris"]["format"], "1.1");
    // It is a fact, and no alarm.
    status.fleet = fleet(by("0.2.0", "1.1"), [].into());
    let quiet = failover::cli::status::shown(&status, &printer);
    assert_eq!(text.replace(&format!("{}\n", line.unwrap()), ""), quiet);
}

#[test]
fn the_status_while_failing_over() {
    let lost = status(&walking(4, &[Event::Started]), Earth::lose_aws);
    insta::assert_snapshot!("status_failing_over", lost);
}

#[test]
fn the_status_of_a_stuck_plan_names_the_step_and_why() {
    let stuck = Event::Stuck {
        why: "move-traffic dns: throttled".to_owned(),
    };
    let group = walking(9, &[Event::Started, stuck]);
    let text = status(&group, |earth| {
        earth.lose_aws();
        earth.gcp.primary = true;
        earth.gcp.timeline = 2;
        earth.gcp.epoch = Epoch(2);
        earth.received = Lsn(0x302_0000).0;
    });
    assert!(
        text.contains("stuck: move-traffic dns: throttled"),
        "{text}"
    );
    assert_eq!(group.active, gcp());
    insta::assert_snapshot!("status_stuck", text);
}

#[test]
fn a_simulation_ends_with_one_object_and_says_how_to_run_again_what_broke() {
    let json = ["--output", "json", "simulate", "--minutes", "2"];
    let (code, out, err) = ran(&[&json[..], &["--seeds", "2"]].concat());
    let shown: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(shown["seeds"], 2);
    assert_eq!(shown["violations"], serde_json::json!([]));
    assert!(shown["times_real_time"].as_u64().unwrap() > 0, "{out}");
    // A policy that only observes never replaces a site that is lost.
    let lost = ["--course", "site-lost", "--policy", "policies/observe.toml"];
    let (code, out, err) = ran(&[&json[..], &lost, &["--from", "3", "--seeds", "2"]].concat());
    let shown: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, 1, "{out}{err}");
    let broken: Vec<(u64, &str)> = shown["violations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| {
            (
                it["seed"].as_u64().unwrap(),
                it["invariant"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(broken, [(3, "liveness"), (4, "liveness")]);
    for seed in [3, 4] {
        let again = format!(
            "failover simulate --from {seed} --seeds 1 --minutes 2 --course site-lost \
             --policy 'policies/observe.toml' --trace"
        );
        assert!(err.contains(&again), "{err}");
    }
}
