//! The steps after the pivot, where something that they would use is lost with the old site.

use failover::engine::answer::Answer;
use failover::engine::chain::Body;
use failover::engine::receipt::Receipt;
use failover::engine::saga::Ending;
use failover::engine::step::{Fact, Step};
use failover::engine::units::Epoch;
use failover::ports::{EffectError, OutsideFault};

use super::stage::{Earth, Fault, Stage, aws, gcp, topology};
use super::{after_quiet, ending, fact, play};

fn noted(stage: &Stage, wanted: &str) -> bool {
    let entries = stage.entries();
    entries
        .iter()
        .any(|entry| matches!(&entry.body, Body::Note { code, .. } if code == wanted))
}

#[test]
fn a_place_that_shows_nothing_is_told_and_keeps_no_plan() {
    play(async {
        let stage = Stage::new(Earth::well());
        let unseen = Err(OutsideFault::Unseen("no answer within 2s".to_owned()));
        *stage.elsewhere.lock().unwrap() = vec![("lost".to_owned(), unseen)];
        let _running = after_quiet(&stage, Earth::lose_aws).await;
        stage.end_of_plan().await;
        assert_eq!(ending(&stage), Ending::Done);
        let Fact::Seen { places, unseen, .. } = fact(&stage, &Step::VerifyOutside) else {
            panic!("not seen");
        };
        let right: Vec<&str> = places.keys().map(String::as_str).collect();
        assert_eq!(right, ["192.0.2.80", "dns 192.0.2.53"]);
        let missing: Vec<&str> = unseen.keys().map(String::as_str).collect();
        assert_eq!(missing, ["dns lost", "lost"]);
        assert!(noted(&stage, "outside-unseen"));
    });
}

#[test]
fn a_place_that_leads_astray_keeps_the_plan_and_is_named() {
    for (seen, said) in [
        (Ok(aws()), "dns old answers aws"),
        (
            Err(OutsideFault::Wrong("a record of nobody".to_owned())),
            "dns old: a record of nobody",
        ),
    ] {
        play(async {
            let stage = Stage::new(Earth::well());
            *stage.elsewhere.lock().unwrap() = vec![("old".to_owned(), seen)];
            let _running = after_quiet(&stage, Earth::lose_aws).await;
            stage.end_of_plan().await;
            let Ending::Stuck { why } = ending(&stage) else {
                panic!("not stuck");
            };
            assert!(why.contains(said), "{why}");
        });
    }
}

#[test]
fn where_nothing_at_all_is_seen_of_the_front_door_nothing_is_verified() {
    play(async {
        let stage = Stage::new(Earth::well());
        // It takes writes; only users do not get in.
        stage.always("enter", EffectError::Failed("not used".to_owned()));
        let _running = after_quiet(&stage, Earth::lose_aws).await;
        stage.end_of_plan().await;
        let Ending::Stuck { why } = ending(&stage) else {
            panic!("not stuck");
        };
        let said = "nothing is seen of the front door (192.0.2.80: nobody answers)";
        assert!(why.contains(said), "{why}");
    });
}

#[test]
fn a_target_lost_with_the_site_lets_the_others_go_first_and_is_moved_when_it_is_back() {
    play(async {
        let stage = Stage::new(Earth::well());
        let answer = Answer::only(&aws(), &topology(), Epoch(1));
        *stage.edge.lock().unwrap() = Some((3, answer));
        let _running = after_quiet(&stage, Earth::lose_aws).await;
        stage.end_of_plan().await;
        assert_eq!(ending(&stage), Ending::Done);
        let effects = stage.change(|earth| earth.effects.clone());
        let moved: Vec<&str> = effects.iter().map(String::as_str).rev().take(2).collect();
        assert_eq!(moved, ["edge to gcp", "traffic to gcp"]);
        assert!(noted(&stage, "traffic-later"));
        let Fact::Seen { receipts, .. } = fact(&stage, &Step::VerifyOutside) else {
            panic!("not seen");
        };
        assert_eq!(receipts[&"edge".parse().unwrap()].ids["change"], "edge");
    });
}

/// What the log keeps of the move, and of what the target's system said at the end.
fn kept(stage: &Stage) -> (Fact, String) {
    let dns = "dns".parse().unwrap();
    let Fact::Seen { confirmed, .. } = fact(stage, &Step::VerifyOutside) else {
        panic!("not seen");
    };
    let said = confirmed[&dns].clone();
    (fact(stage, &Step::MoveTraffic { target: dns }), said)
}

fn moved(change: &str) -> Fact {
    Fact::Moved {
        already: false,
        receipt: Some(Receipt::default().named("change", change)),
    }
}

#[test]
fn a_change_that_its_system_makes_later_is_waited_for_and_its_receipt_is_kept() {
    play(async {
        let stage = Stage::new(Earth::well());
        stage.later.lock().unwrap().asked = 3;
        let _running = after_quiet(&stage, Earth::lose_aws).await;
        stage.end_of_plan().await;
        assert_eq!(ending(&stage), Ending::Done);
        let change = stage.change(|earth| earth.version).to_string();
        assert_eq!(kept(&stage), (moved(&change), "made".to_owned()));
    });
}

#[test]
fn a_change_that_comes_to_nothing_is_made_anew() {
    play(async {
        let stage = Stage::new(Earth::well());
        stage.later.lock().unwrap().asked = 1;
        let void = EffectError::Failed("condition not met".to_owned());
        stage.fault("confirm traffic", Fault::After(void));
        let _running = after_quiet(&stage, Earth::lose_aws).await;
        stage.end_of_plan().await;
        assert_eq!(ending(&stage), Ending::Done);
        let calls = stage.calls.lock().unwrap();
        let writes = calls.iter().filter(|call| *call == "move traffic");
        assert_eq!(writes.count(), 2);
    });
}

#[test]
fn a_change_that_is_never_made_keeps_the_plan_and_is_told() {
    play(async {
        let stage = Stage::new(Earth::well());
        stage.later.lock().unwrap().asked = usize::MAX;
        let _running = after_quiet(&stage, Earth::lose_aws).await;
        stage.end_of_plan().await;
        let Ending::Stuck { why } = ending(&stage) else {
            panic!("not stuck");
        };
        let said = "move-traffic dns: written, but not shown in time: not made everywhere yet";
        assert!(why.contains(said), "{why}");
        let calls = stage.calls.lock().unwrap();
        let writes = calls.iter().filter(|call| *call == "move traffic");
        assert_eq!(writes.count(), 1, "not written again while it is under way");
    });
}

#[test]
fn what_users_get_decides_and_what_the_system_says_is_kept_beside_it() {
    play(async {
        let stage = Stage::new(Earth::well());
        let down = EffectError::Failed("503".to_owned());
        stage.always("confirm traffic", down);
        let _running = after_quiet(&stage, Earth::lose_aws).await;
        stage.end_of_plan().await;
        assert_eq!(ending(&stage), Ending::Done);
        assert_eq!(kept(&stage).1, "cannot be asked: 503");
    });
}

#[test]
fn a_write_whose_answer_was_lost_is_found_by_reading_and_has_no_receipt() {
    play(async {
        let stage = Stage::new(Earth::well());
        let lost = EffectError::Unknown("connection lost".to_owned());
        stage.fault("move traffic", Fault::After(lost));
        let _running = after_quiet(&stage, Earth::lose_aws).await;
        stage.end_of_plan().await;
        assert_eq!(ending(&stage), Ending::Done);
        let step = Step::MoveTraffic {
            target: "dns".parse().unwrap(),
        };
        let already = Fact::Moved {
            already: true,
            receipt: None,
        };
        assert_eq!(fact(&stage, &step), already);
    });
}

#[test]
fn a_receipt_of_a_process_that_ended_is_asked_with_by_the_next() {
    play(async {
        let stage = Stage::new(Earth::well());
        let astray = Ok(aws());
        *stage.elsewhere.lock().unwrap() = vec![("old".to_owned(), astray)];
        let running = after_quiet(&stage, Earth::lose_aws).await;
        let verifies = "verify-outside started".to_owned();
        let begun = |stage: &Stage| stage.story().contains(&verifies);
        stage.until("the look from outside", begun).await;
        drop(running);
        stage.elsewhere.lock().unwrap().clear();
        let _next = stage.start().await;
        stage.end_of_plan().await;
        assert_eq!(ending(&stage), Ending::Done);
        assert_eq!(kept(&stage).1, "made");
    });
}

#[test]
fn a_target_that_stays_lost_keeps_the_plan_with_everything_else_done() {
    play(async {
        let stage = Stage::new(Earth::well());
        let answer = Answer::only(&aws(), &topology(), Epoch(1));
        *stage.edge.lock().unwrap() = Some((usize::MAX, answer));
        let _running = after_quiet(&stage, Earth::lose_aws).await;
        stage.end_of_plan().await;
        let Ending::Stuck { why } = ending(&stage) else {
            panic!("not stuck");
        };
        assert!(why.contains("not moved: no connection"), "{why}");
        assert!(why.contains("edge 192.0.2.99 answers aws"), "{why}");
        stage.change(|earth| assert!(earth.answer.is_only(&gcp())));
    });
}

#[test]
fn where_the_controller_itself_is_not_let_in_the_agents_look_shows_that_it_takes_writes() {
    play(async {
        let stage = Stage::new(Earth::well());
        let wrong = EffectError::Failed("password authentication failed".to_owned());
        stage.always("look", wrong);
        let _running = after_quiet(&stage, Earth::lose_aws).await;
        stage.end_of_plan().await;
        assert_eq!(ending(&stage), Ending::Done);
        assert!(noted(&stage, "writable-by-the-agents-word"));
    });
}

#[test]
fn the_agents_look_from_before_the_promotion_shows_nothing() {
    play(async {
        let stage = Stage::new(Earth::well());
        let wrong = EffectError::Failed("password authentication failed".to_owned());
        for _ in 0..3 {
            stage.fault("look", Fault::Instead(wrong.clone()));
        }
        let _running = after_quiet(&stage, Earth::lose_aws).await;
        stage.end_of_plan().await;
        assert_eq!(ending(&stage), Ending::Done);
        let tries = stage.calls.lock().unwrap();
        let looks = tries.iter().filter(|call| *call == "look").count();
        assert!(looks > 1, "tried again: {looks}");
    });
}
