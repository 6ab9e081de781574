//! What an earlier program wrote is read for good: a decision log with a whole failover, and what an
//! agent and a guard keep on their disks. The files are as that program wrote them, and stay as they are.

use std::path::{Path, PathBuf};

use failover::adapters::files;
use failover::agent::guard_protocol::GuardConfig;
use failover::engine::chain::Body;
use failover::engine::decision::decide;
use failover::engine::policy::Policy;
use failover::engine::saga::Ending;
use failover::ports::AgentMemory;
use failover::wire::written::Written;

mod messages;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(golden(name)).unwrap()
}

#[test]
fn a_log_of_an_earlier_program_verifies_and_tells_the_same() {
    let chain = files::verify(&golden("decision.log")).unwrap();
    let state = chain.state().unwrap();
    assert_eq!((state.epoch.0, state.active.as_str()), (2, "gcp"));
    assert!(state.open.is_none() && state.disarmed);
    let entries = files::read(&golden("decision.log"), 1, usize::MAX).unwrap();
    assert_eq!(entries.len() as u64, chain.entries);
    let done =
        |body: &Body| matches!(body, Body::Outcome { ending, .. } if *ending == Ending::Done);
    assert!(entries.iter().any(|(_, entry)| done(&entry.body)));
}

#[test]
fn what_an_earlier_program_decided_follows_from_its_evidence_today() {
    let policy = Policy::read("policy.toml", &text("policy.toml")).unwrap();
    let entries = files::read(&golden("decision.log"), 1, usize::MAX).unwrap();
    let mut replayed = 0;
    for (_, entry) in &entries {
        if let Body::Decision {
            decision,
            situation,
        } = &entry.body
        {
            let today = decide(situation, &policy);
            assert_eq!(today.verdict, decision.verdict, "entry {}", entry.seq);
            assert_eq!(today.reasons, decision.reasons, "entry {}", entry.seq);
            replayed += 1;
        }
    }
    assert!(replayed >= 5, "only {replayed} decisions");
}

#[test]
fn what_an_earlier_agent_and_its_guard_kept_is_read() {
    let memory = Written::<AgentMemory>::read(text("agent.json").as_bytes()).unwrap();
    let memory = memory.message;
    assert_eq!(memory.epoch.0, 2);
    let order = memory
        .obeyed
        .expect("the order to promote, as it was signed");
    assert!(serde_json::to_string(&order).unwrap().contains("signature"));
    let guard = Written::<GuardConfig>::read(text("guard.json").as_bytes()).unwrap();
    assert_eq!(guard.message.stop.fast_ms, 6000);
}
