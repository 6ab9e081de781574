//! What is logged of a plan: each line says of which group, plan, step and epoch it is, whoever logs it.

use failover::engine::saga::Ending;
use failover::ports::EffectError;
use serde_json::{Map, Value};

use super::stage::{Earth, Fault, Stage};
use super::{after_quiet, database_dies, ending, play};
use crate::logged;

/// A failover in which some steps are tried twice.
fn failover() {
    play(async {
        let stage = Stage::new(Earth::well());
        for call in ["sever", "promote", "move traffic"] {
            let error = EffectError::Failed(format!("{call}: not now"));
            stage.fault(call, Fault::Instead(error));
        }
        let _running = after_quiet(&stage, database_dies).await;
        stage.end_of_plan().await;
        assert_eq!(ending(&stage), Ending::Done);
    });
}

/// Of which step something that the scripted world is asked is.
const ASKED: [(&str, &str); 6] = [
    ("start-workloads", "start-workloads"),
    ("sever", "sever"),
    ("fence", "fence"),
    ("promote", "promote"),
    ("move traffic", "move-traffic dns"),
    ("enter", "verify-outside"),
];

/// The lines of the executor, of its steps, and of the world that they change.
fn of_the_plan(line: &Map<String, Value>) -> bool {
    let target = line["target"].as_str().unwrap();
    let theirs = [
        "failover::app::executor",
        "failover::app::steps",
        "it::executor::stage",
    ];
    theirs.iter().any(|module| target.starts_with(module))
}

#[test]
fn every_line_of_a_failover_says_of_which_group_plan_step_and_epoch_it_is() {
    let lines = logged::json(failover);
    let of_it: Vec<_> = lines.iter().filter(|line| of_the_plan(line)).collect();
    assert!(of_it.len() > 30, "{of_it:?}");
    let plans: Vec<&Value> = of_it.iter().map(|line| &line["plan_id"]).collect();
    assert!(plans[0].as_u64().is_some_and(|id| id > 0), "{plans:?}");
    for line in &of_it {
        assert_eq!(
            (&line["group"], &line["plan_id"]),
            (&"shop".into(), plans[0]),
            "{line:?}"
        );
        assert_eq!(line["epoch"], 2, "{line:?}");
        let ends = line["message"] == "plan done";
        assert_eq!(line.contains_key("step"), !ends, "{line:?}");
    }
    for (call, step) in ASKED {
        let asked: Vec<_> = of_it
            .iter()
            .filter(|line| line.get("call") == Some(&call.into()))
            .collect();
        assert!(!asked.is_empty(), "nobody asked to {call}");
        assert!(asked.iter().all(|line| line["step"] == step), "{asked:?}");
    }
    let tried = |line: &&&Map<String, Value>| line["message"] == "step not done yet";
    assert_eq!(of_it.iter().filter(tried).count(), 3);
}

#[test]
fn the_same_stands_in_a_line_of_text() {
    let lines = logged::text(failover);
    let id = lines.iter().find_map(|line| {
        let (_, rest) = line.split_once("plan{group=shop plan_id=")?;
        Some(rest.split_once(' ')?.0.to_owned())
    });
    let id = id.expect("a plan is told of");
    for (call, step) in ASKED {
        let span = format!("plan{{group=shop plan_id={id} epoch=2 step={step}}}: ");
        let of_it = |line: &&String| line.contains(&format!("call=\"{call}\""));
        let asked: Vec<_> = lines.iter().filter(of_it).collect();
        assert!(!asked.is_empty(), "nobody asked to {call}");
        assert!(
            asked.iter().all(|line| line.contains(&span)),
            "{span}: {asked:?}"
        );
    }
    let done = format!("plan{{group=shop plan_id={id} epoch=2}}: ");
    assert!(
        lines
            .iter()
            .any(|line| line.contains(&done) && line.ends_with("plan done"))
    );
}
