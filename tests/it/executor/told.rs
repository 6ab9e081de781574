//! What is told of a step that was tried again and again, and what is accepted for a look that is
//! kept out.

use failover::engine::chain::Body;
use failover::engine::observation::ProbeFailure;
use failover::engine::saga::Ending;
use failover::engine::step::{Event, Step};
use failover::ports::EffectError;

use super::stage::{Earth, Fault, Stage};
use super::{after_quiet, database_dies, ending, play};

fn cause() -> EffectError {
    EffectError::Failed("`ALTER SYSTEM` is not allowed".to_owned())
}

fn late() -> EffectError {
    EffectError::Late("no answer in time".to_owned())
}

/// Why a step failed or its plan is stuck, as the log has it.
fn why(stage: &Stage, wanted: &Step) -> String {
    let entries = stage.entries();
    let why = entries.iter().find_map(|entry| {
        let Body::Step { step, event, .. } = &entry.body else {
            return None;
        };
        match event {
            Event::Failed { why } | Event::Stuck { why } | Event::Left { why }
                if step == wanted =>
            {
                Some(why.clone())
            }
            Event::Failed { .. }
            | Event::Stuck { .. }
            | Event::Left { .. }
            | Event::Started
            | Event::Found { .. }
            | Event::Done { .. }
            | Event::UndoStarted
            | Event::Undone => None,
        }
    });
    why.expect("it did not succeed")
}

#[test]
fn the_last_error_that_is_not_our_own_deadline_is_told() {
    for (call, step) in [
        ("sever", Step::Sever),
        ("promote", Step::Promote),
        ("start-workloads", Step::StartWorkloads),
    ] {
        play(async {
            let stage = Stage::new(Earth::well());
            for _try in 0..8 {
                stage.fault(call, Fault::Instead(cause()));
            }
            // From then on nothing is left but our own time.
            stage.then_always(call, late());
            let _running = after_quiet(&stage, database_dies).await;
            stage.end_of_plan().await;
            let why = why(&stage, &step);
            let told = "`ALTER SYSTEM` is not allowed; finally: no answer in time";
            assert!(why.contains(told), "{call}: {why}");
        });
    }
}

#[test]
fn an_undo_tells_its_cause_and_not_that_its_time_is_over() {
    play(async {
        let stage = Stage::new(Earth::well());
        stage.always("promote", EffectError::Refused("no".to_owned()));
        stage.fault("reconnect", Fault::Instead(cause()));
        stage.then_always("reconnect", late());
        let _running = after_quiet(&stage, database_dies).await;
        stage.end_of_plan().await;
        let why = why(&stage, &Step::Sever);
        let told = "`ALTER SYSTEM` is not allowed; finally: no answer in time";
        assert!(why.contains(told), "{why}");
    });
}

#[test]
fn a_fence_that_nobody_proves_says_what_was_answered() {
    play(async {
        let mut earth = Earth::well();
        earth.aws.asks = false;
        let stage = Stage::new(earth);
        stage.fault("fence", Fault::Instead(cause()));
        stage.fault("fence", Fault::Instead(cause()));
        stage.then_always("fence", late());
        let _running = after_quiet(&stage, database_dies).await;
        stage.end_of_plan().await;
        let Ending::Undone { why } = ending(&stage) else {
            panic!("not undone");
        };
        assert!(why.contains("no proof in time"), "{why}");
        assert!(why.contains("`ALTER SYSTEM` is not allowed"), "{why}");
    });
}

#[test]
fn a_look_that_is_kept_out_does_not_stop_a_plan_behind_the_pivot() {
    for failure in [
        ProbeFailure::Blocked("a lock".to_owned()),
        ProbeFailure::Unauthorized("password authentication failed".to_owned()),
        ProbeFailure::Exhausted("too many connections".to_owned()),
    ] {
        play(async {
            let stage = Stage::new(Earth::well());
            let _running = after_quiet(&stage, |earth| {
                earth.aws.running = false;
                // Seen only once it is the primary.
                earth.gcp.kept_out = Some(failure.clone());
            })
            .await;
            stage.end_of_plan().await;
            assert_eq!(ending(&stage), Ending::Done, "{failure}");
            let entries = stage.entries();
            let noted = |body: &Body| matches!(body, Body::Note { code, .. } if code == "writable-by-the-agents-word");
            assert!(entries.iter().any(|entry| noted(&entry.body)), "{failure}");
        });
    }
}
