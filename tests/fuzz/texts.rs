//! Texts: configuration, policy, decision log, the bodies of requests, the guard's lines, units.

use std::path::Path;

use clap::FromArgMatches;
use failover::agent::guard_protocol::{FromGuard, Request};
use failover::app::brain::Brain;
use failover::engine::chain::{Body, Chain, Digest, Entry, WRITTEN_LINE, canonical, read_line};
use failover::engine::policy::Policy;
use failover::engine::saga::GroupState;
use failover::engine::situation::Situation;
use failover::engine::text::WORD_LIMIT;
use failover::engine::topology::{SiteName, Topology, Vantage};
use failover::engine::units::{Bytes, Epoch, Lsn, MonoTime, WallTime};
use failover::ports::AgentMemory;
use failover::wire::sealed::{Sealed, SignedOrder};
use failover::wire::written::{Message, Written};
use failover::wire::{
    Heard, HoldAsk, ObserverReport, Order, PeerAnswer, PeerQuestion, PromoteAsk, Relayed, Report,
    ReportAnswer, Status,
};

use super::fuzz;

const POLICY: &str = include_str!("../../policies/standard.toml");
const GUIDE: &str = include_str!("../../docs/configuration.md");

fn topology() -> Topology {
    Topology {
        group: "shop".parse().unwrap(),
        first: "aws".parse().unwrap(),
        second: "gcp".parse().unwrap(),
        traffic: vec!["dns".parse().unwrap()],
    }
}

/// The TOML blocks of the guide: whole configurations of all processes.
fn configurations() -> Vec<Vec<u8>> {
    let blocks = GUIDE.split("```toml\n").skip(1);
    let found: Vec<Vec<u8>> = blocks
        .filter_map(|rest| Some(rest.split("```").next()?.as_bytes().to_vec()))
        .collect();
    assert!(!found.is_empty(), "the guide has examples");
    found
}

fn as_text(input: &[u8]) -> String {
    String::from_utf8_lossy(input).into_owned()
}

#[test]
fn policies() {
    fuzz("policies", &[POLICY.into()], |input| {
        if let Err(problems) = Policy::read("policy.toml", &as_text(input)) {
            assert!(!problems.list.is_empty());
            assert!(problems.to_string().starts_with("policy.toml:"));
        }
    });
}

#[test]
fn configurations_of_controller_agent_and_observer() {
    let samples = configurations();
    fuzz("configurations", &samples, |input| {
        let text = as_text(input);
        let folder = Path::new("/nowhere");
        let controller = failover::app::config::Config::parse("c.toml", &text, folder);
        let agent = failover::agent::config::Config::parse("a.toml", &text, folder);
        let observer = failover::observer::config::Config::parse("o.toml", &text, folder);
        let errors = [controller.err(), agent.err(), observer.err()];
        for error in errors.into_iter().flatten() {
            assert!(error.to_string().contains(".toml:"));
        }
    });
}

fn entry(chain: &Chain, body: Body) -> Entry {
    Entry {
        seq: chain.entries + 1,
        at: WallTime(1_790_000_000_000),
        mono_ms: 5,
        boot: "b".into(),
        group: "shop".parse().unwrap(),
        epoch: Epoch(1),
        actor: "controller".into(),
        version: "0".into(),
        settings: Digest::ZERO,
        body,
        previous: chain.head,
    }
}

/// What a log of one group begins with.
fn opened() -> Chain {
    let mut chain = Chain::default();
    let first = entry(
        &chain,
        Body::Opened {
            topology: topology(),
            format: Some(failover::engine::chain::FORMAT),
        },
    );
    chain.append(&first).unwrap();
    chain
}

#[test]
fn lines_of_the_decision_log() {
    let chain = opened();
    let body = |index: usize| {
        match index {
        0 => Body::Note { code: "n".into(), text: "ü".into() },
        _ => serde_json::from_str(r#"{"entry":"step","plan":7,"index":1,"step":{"step":"sever"},"event":{"event":"started"}}"#).unwrap(),
    }
    };
    let samples: Vec<Vec<u8>> = (0..2)
        .map(|index| canonical(&entry(&chain, body(index))).unwrap())
        .collect();
    fuzz("log", &samples, |json| {
        // As it stands, and with a digest that fits, so that the JSON itself is looked at.
        assert!(read_line(json).is_err());
        let line = [format!("{} ", Digest::of(json)).as_bytes(), json].concat();
        let mut chain = chain.clone();
        let before = chain.clone();
        if chain.take(&line).is_err() {
            assert_eq!(chain, before, "what is refused changes nothing");
        }
    });
}

const REPORT: &str = r#"{"group":"shop","site":"aws","epoch":1,"asks":true,"facts":{"database":{"state":"down","since_ms":5,"why":"x"},"fenced":null,"severed":2,"guarded":true,"peer_ms":7},"observations":[{"target":{"site":"aws","kind":"database"},"began_ms":5,"ended_ms":3,"finding":{"bad":"refused"}},{"target":{"site":"gcp","kind":"database"},"began_ms":5,"ended_ms":3,"finding":{"good":{"database":{"role":"standby","system_id":"7","timeline":1,"version":150018,"position":"0/1","replayed":"0/1","receiver":{"status":"streaming","last_message_ms":1},"senders":[],"heartbeat":{"sequence":1,"site":"aws","written":"2026-11-21T03:00:00.000Z"},"epoch":1,"replay_pause":"none","apply_delay_ms":0,"synchronous_names":"","limits":[1,2,3,4,5],"write_ms":null}}}}],"heard":{"postmark":{"life":1,"at_ms":0},"ago_ms":0},"mark":{"life":2,"at_ms":5},"wall":"2026-11-21T03:00:00.000Z","holds":true,"instance":null,"log":null,"version":"0"}"#;

/// A mark of the controller's own that was left as it is counts as sent just now, so that the
/// report is taken in.
fn just_sent(heard: &mut Option<Heard>, now: MonoTime) {
    if let Some(heard) = heard
        && heard.postmark.at.is_zero()
    {
        heard.postmark.at = now.0;
    }
}

#[test]
fn reports_of_agents() {
    let policy = Policy::read("p", POLICY).unwrap();
    let group = GroupState::new(&topology());
    let mut brain = Brain::new(topology(), policy.clone(), &group, MonoTime::default(), 1);
    assert!(serde_json::from_str::<Report>(REPORT).is_ok());
    let mut now = MonoTime::default();
    let chain = opened();
    fuzz("reports", &[REPORT.into()], |input| {
        let Ok(Written { by, message }) = Written::<Report>::read(input) else {
            return;
        };
        let mut report = message;
        now = now.plus(std::time::Duration::from_millis(100));
        just_sent(&mut report.heard, now);
        // The server lets an agent speak only for a site of the group.
        if topology().has(&report.site) {
            let written = Written {
                by,
                message: report,
            };
            brain.agent_runs(&written, &group);
            brain.report(written.message, &group, now, WallTime(0));
            assert!(serde_json::to_string(&brain.fleet()).unwrap().len() < 4000);
            let situation = brain.situation(&group, false, None, now, WallTime(0));
            let decision = failover::engine::decision::decide(&situation, &policy);
            assert!(!decision.reasons.is_empty());
            let recorded = serde_json::to_vec(&situation).unwrap();
            let replayed: Situation = serde_json::from_slice(&recorded).unwrap();
            assert_eq!(
                failover::engine::decision::decide(&replayed, &policy),
                decision
            );
            is_written(&chain, decision, situation);
        }
    });
}

/// Whatever came in, what was decided on it goes into the log and reads back.
fn is_written(chain: &Chain, decision: failover::engine::decision::Decision, situation: Situation) {
    let body = Body::Decision {
        decision: Box::new(decision),
        situation: Box::new(situation),
    };
    let entry = entry(chain, body);
    let line = chain.clone().append(&entry).unwrap();
    let line = line.strip_suffix(b"\n").unwrap();
    assert!(line.len() < WRITTEN_LINE / 4, "{} bytes", line.len());
    assert_eq!(chain.clone().take(line), Ok(entry));
}

const OBSERVED: &str = r#"{"group":"shop","name":"paris","observations":[{"target":{"site":"aws","kind":"database"},"began_ms":5,"ended_ms":3,"finding":{"bad":"refused"}},{"target":{"site":"gcp","kind":"api"},"began_ms":5,"ended_ms":3,"finding":{"good":"api"}}],"heard":{"postmark":{"life":1,"at_ms":0},"ago_ms":0},"version":"0"}"#;

#[test]
fn reports_of_observers() {
    let mut policy = Policy::read("p", POLICY).unwrap();
    policy.detect.quorum = 3;
    let group = GroupState::new(&topology());
    let brain = Brain::new(topology(), policy.clone(), &group, MonoTime::default(), 1);
    let mut brain = brain.observed_by(["paris".parse().unwrap()]);
    assert!(serde_json::from_str::<ObserverReport>(OBSERVED).is_ok());
    let mut now = MonoTime::default();
    let chain = opened();
    fuzz("observed", &[OBSERVED.into()], |input| {
        let Ok(Written { message, .. }) = Written::<ObserverReport>::read(input) else {
            return;
        };
        let mut report = message;
        now = now.plus(std::time::Duration::from_millis(100));
        just_sent(&mut report.heard, now);
        drop(brain.observed(report, now));
        let situation = brain.situation(&group, false, None, now, WallTime(0));
        // One vantage point alone never moves anything, whatever it says.
        let decision = failover::engine::decision::decide(&situation, &policy);
        assert_eq!(
            decision.verdict,
            failover::engine::decision::Verdict::Hold,
            "{decision:?}"
        );
        let recorded = serde_json::to_vec(&situation).unwrap();
        let replayed: Situation = serde_json::from_slice(&recorded).unwrap();
        assert_eq!(
            failover::engine::decision::decide(&replayed, &policy),
            decision
        );
        is_written(&chain, decision, situation);
    });
}

#[test]
fn requests_answers_and_lines_of_the_guard() {
    let samples = [
        r#"{"body":"{\"plan\":3,\"group\":\"shop\",\"site\":\"aws\",\"epoch\":2,\"mark\":{\"life\":1,\"at_ms\":5},\"valid_for_ms\":5,\"check_only\":false,\"what\":\"fence\"}","signature":{"value":"00"}}"#,
        r#"{"body":"{}","signature":{"value":"00","scheme":1027,"certificates":["AAAA"]}}"#,
        r#"{"plan":3,"group":"shop","site":"aws","epoch":2,"mark":{"life":1,"at_ms":5},"valid_for_ms":5,"check_only":false,"what":"fence"}"#,
        r#"{"site":"aws","epoch":2,"mark":{"life":1,"at_ms":5}}"#,
        r#"{"superseded":true,"order":{"body":"{}","signature":{"value":"00"}},"epoch":2,"wall":"2026-11-21T03:00:00.000Z"}"#,
        r#"{"to":"gcp","reason":"x","accept_data_loss":5,"override_fence":false,"dry_run":true}"#,
        r#"{"reason":"x","for_ms":5}"#,
        r#"{"id":1,"cmd":{"right":{"epoch":3,"deadline_ns":7,"stop":{"fast_ms":1,"immediate_ms":1,"kill_ms":1}}}}"#,
        r#"{"Ok":{"came":"severed","position":"0/1","replayed":true}}"#,
        r#"{"written_by":{"program":"7.1.0","format":"1.9"},"site":"aws","epoch":2,"mark":{"life":1,"at_ms":5},"later":7}"#,
        r#"{"written_by":{"program":"7.1.0","format":"2.0"},"plan":3,"what":{"burn":[]}}"#,
        r#"{"id":1,"cmd":{"hello":{"program":"7.1.0","format":"1.9","later":true}}}"#,
        r#"{"id":1,"reply":{"hello":{"program":"7.1.0","format":"1.9"}}}"#,
        r#"{"event":{"exited":{"status":"signal 9","expected":false,"log_from":7}}}"#,
    ];
    let samples: Vec<Vec<u8>> = samples
        .iter()
        .map(|text| text.as_bytes().to_vec())
        .collect();
    let key = failover::adapters::keys::SigningKey::generate()
        .unwrap()
        .verifying_key();
    fuzz("messages", &samples, |input| {
        if let Ok(sealed) = serde_json::from_slice::<Sealed>(input) {
            assert!(SignedOrder::open(sealed, &key).is_err(), "nobody signed it");
        }
        // Any answer will do that is no crash.
        read::<PeerAnswer>(input);
        read::<Relayed>(input);
        read::<Order>(input);
        read::<PeerQuestion>(input);
        read::<PromoteAsk>(input);
        read::<HoldAsk>(input);
        read::<ReportAnswer>(input);
        read::<Status>(input);
        read::<AgentMemory>(input);
        drop(serde_json::from_slice::<Request>(input));
        drop(serde_json::from_slice::<FromGuard>(input));
        drop(serde_json::from_slice::<failover::wire::OrderAnswer>(input));
    });
}

/// Reads a message as a process reads it. What it says of its writer is bounded, whatever came; and what
/// was read of a word that must be understood whole is written again and read as the same.
fn read<T: Message + PartialEq + std::fmt::Debug>(input: &[u8]) {
    match Written::<T>::read(input) {
        Err(refused) => assert!(refused.to_string().len() < 4000, "{refused}"),
        Ok(Written { by, message }) => {
            assert!(by.program.len() <= WORD_LIMIT, "{by}");
            assert!(T::FORMAT.reads(by.format));
            let again = serde_json::to_vec(&Written::ours(&message)).unwrap();
            assert_eq!(Written::read(&again), Ok(Written::new(message)));
        }
    }
}

#[test]
fn units_and_command_lines() {
    let samples: Vec<Vec<u8>> = [
        "16/B374D848",
        "1.2 GiB",
        "2026-11-21T03:00:00.000Z",
        "agent:aws",
        "promote shop --to gcp --accept-data-loss 16MiB",
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .collect();
    fuzz("units", &samples, |input| {
        let text = as_text(input);
        if let Ok(lsn) = text.parse::<Lsn>() {
            assert_eq!(lsn.to_string().parse(), Ok(lsn));
        }
        if let Ok(bytes) = text.parse::<Bytes>() {
            assert!(!bytes.to_string().is_empty());
        }
        if let Ok(wall) = text.parse::<WallTime>() {
            assert_eq!(wall.to_string().parse(), Ok(wall));
        }
        if let Ok(vantage) = text.parse::<Vantage>() {
            assert_eq!(vantage.to_string().parse(), Ok(vantage));
        }
        if let Ok(site) = text.parse::<SiteName>() {
            assert_eq!(site.as_str(), text);
        }
        let words = std::iter::once("failover").chain(text.split(' '));
        if let Ok(matches) = failover::cli::command().try_get_matches_from(words) {
            drop(failover::cli::Cli::from_arg_matches(&matches));
        }
    });
}
