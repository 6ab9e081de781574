//! The real control loop and executor on scripted ports: what is written when, what is done, and
//! where a new process goes on.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use failover::app::control::{Asked, Input};
use failover::engine::chain::Body;
use failover::engine::lease::FenceProof;
use failover::engine::saga::Ending;
use failover::engine::step::{Event, Fact, Step};
use failover::engine::units::Epoch;
use failover::ports::EffectError;
use failover::wire::{AdoptAsk, PromoteAsk};

use self::stage::{Earth, Fault, Stage, aws, gcp};

mod forward;
mod infrastructure;
mod lines;
mod told;
mod waking;
pub(crate) mod stage;

fn play<T>(scene: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(scene)
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Ten quiet seconds, in which the primary is seen; then something goes wrong.
async fn after_quiet(stage: &Arc<Stage>, wrong: impl FnOnce(&mut Earth)) -> stage::Running {
    let running = stage.start().await;
    stage.pass(seconds(10)).await;
    assert_eq!(stage.story(), [""; 0], "nothing is done while all is well");
    stage.change(wrong);
    running
}

fn database_dies(earth: &mut Earth) {
    earth.aws.running = false;
}

fn ending(stage: &Stage) -> Ending {
    let entries = stage.entries();
    let ends = entries.iter().rev().find_map(|entry| {
        if let Body::Outcome { ending, .. } = &entry.body {
            return Some(ending.clone());
        }
        None
    });
    ends.expect("the plan ended")
}

fn fact(stage: &Stage, wanted: &Step) -> Fact {
    let entries = stage.entries();
    let found = entries.iter().find_map(|entry| {
        if let Body::Step {
            step,
            event: Event::Done { fact },
            ..
        } = &entry.body
            && step == wanted
        {
            return Some(fact.clone());
        }
        None
    });
    found.unwrap_or_else(|| panic!("{wanted} is not done"))
}

const HAPPY: [&str; 5] = [
    "start-workloads gcp",
    "sever gcp",
    "fence aws",
    "promote gcp",
    "traffic to gcp",
];

#[test]
fn a_dead_database_leads_to_a_failover_in_order_and_fenced_by_the_agents_word() {
    play(async {
        let stage = Stage::new(Earth::well());
        let _running = after_quiet(&stage, database_dies).await;
        stage.end_of_plan().await;
        assert_eq!(ending(&stage), Ending::Done);
        let effects = stage.change(|earth| earth.effects.clone());
        assert_eq!(effects, HAPPY);
        let steps = [
            "recheck",
            "raise-epoch",
            "start-workloads",
            "sever",
            "fence",
            "freeze",
            "promote",
            "verify-writable",
            "await-workloads",
            "move-traffic dns",
            "verify-outside",
            "settle",
        ];
        let mut told: Vec<String> = steps
            .iter()
            .flat_map(|step| [format!("{step} started"), format!("{step} done")])
            .collect();
        told.push("done".to_owned());
        assert_eq!(stage.story(), told);
        let proof = fact(&stage, &Step::Fence);
        let agent = matches!(
            proof,
            Fact::Fenced {
                proof: FenceProof::Agent { relayed: false, .. }
            }
        );
        assert!(agent, "{proof:?}");
        let state = stage.state();
        assert_eq!((state.epoch, state.active), (Epoch(2), gcp()));
        assert!(state.disarmed, "one recovery at a time (invariants.md I8)");
    });
}

#[test]
fn a_lost_site_is_waited_out_before_the_promotion() {
    play(async {
        let stage = Stage::new(Earth::well());
        let _running = after_quiet(&stage, Earth::lose_aws).await;
        stage.end_of_plan().await;
        assert_eq!(ending(&stage), Ending::Done);
        let Fact::Fenced {
            proof:
                FenceProof::WaitedOut {
                    severed_ago,
                    vouched_ago,
                    granted_ago,
                },
        } = fact(&stage, &Step::Fence)
        else {
            panic!("not waited out");
        };
        // fast.toml: lease_ttl 1.5 s, peer_ttl 1.2 s, fence_within 650 ms, margin 200 ms.
        let vouched_ago = vouched_ago.unwrap();
        assert!(
            vouched_ago >= Duration::from_millis(2050),
            "{vouched_ago:?}"
        );
        // The one site let the other's right stand for the last time some seconds before its sever.
        let before = vouched_ago.saturating_sub(severed_ago);
        assert!(before >= Duration::from_millis(900), "{before:?}");
        assert!(
            granted_ago >= Duration::from_millis(2350),
            "{granted_ago:?}"
        );
        assert_eq!(stage.change(|earth| earth.promotions()), 1);
    });
}

#[test]
fn a_sever_that_fails_is_taken_back_in_reverse_order_with_entries() {
    play(async {
        let stage = Stage::new(Earth::well());
        stage.always("sever", EffectError::Refused("replay is paused".to_owned()));
        let _running = after_quiet(&stage, database_dies).await;
        stage.end_of_plan().await;
        let story = stage.story();
        let end: Vec<&str> = story.iter().map(String::as_str).skip(6).collect();
        assert_eq!(
            end,
            [
                "sever started",
                "sever failed",
                "sever undo-started",
                "sever undone",
                "start-workloads undo-started",
                "start-workloads undone",
                "undone"
            ]
        );
        stage.change(|earth| {
            assert_eq!(earth.effects, ["start-workloads gcp", "stop-workloads gcp"]);
            assert!(!earth.gcp.severed && !earth.gcp.primary && !earth.gcp.workloads);
        });
    });
}

/// Whether the controller lets the site that was active hold the right.
fn given_back(stage: &Stage) -> bool {
    stage.change(|earth| earth.aws.granted == Some(Epoch(2)))
}

#[test]
fn a_plan_that_fails_before_its_pivot_gives_the_right_back_at_once_and_never_sticks() {
    let hangs = || EffectError::Unknown("no answer in time".to_owned());
    // What fails for ever, and what of its undo does, too.
    for (fails, tidies_not) in [
        ("sever", "reconnect"),
        ("sever", "stop-workloads"),
        ("start-workloads", "stop-workloads"),
    ] {
        play(async {
            let stage = Stage::new(Earth::well());
            stage.always(fails, hangs());
            stage.always(tidies_not, hangs());
            let running = after_quiet(&stage, |_| ()).await;
            let ask = PromoteAsk {
                to: gcp(),
                reason: "drill".to_owned(),
                accept_data_loss: None,
                accept_replay: false,
                override_fence: false,
                dry_run: false,
            };
            let asked = |answer| Input::Asked("alice".to_owned(), Asked::Promote(ask, answer));
            let handle = running.handle.clone();
            let asking = tokio::spawn(async move { handle.ask(asked).await });
            let failed = format!("{fails} failed");
            stage
                .until("the step fails", |stage| stage.story().contains(&failed))
                .await;
            // Before anything is taken back: with the next report.
            stage.pass(Duration::from_millis(600)).await;
            assert!(given_back(&stage), "{fails}, {tidies_not}");
            let left = format!("{tidies_not} could not");
            assert!(!stage.story().contains(&"undone".to_owned()), "{left}");
            stage.end_of_plan().await;
            assert!(matches!(ending(&stage), Ending::Undone { .. }));
            let notes = stage.entries().into_iter().filter_map(|entry| {
                let Body::Note { code, text } = entry.body else {
                    return None;
                };
                (code == "left-to-tidy-up").then_some(text)
            });
            let notes: Vec<String> = notes.collect();
            assert_eq!(notes.len(), 1, "{notes:?}");
            let state = stage.state();
            assert_eq!((state.epoch, state.active), (Epoch(2), aws()));
            asking.await.unwrap().unwrap().unwrap();
        });
    }
}

#[test]
fn an_order_waits_for_a_mark_of_its_agent_and_goes_by_the_one_that_the_other_passes_on() {
    play(async {
        let stage = Stage::new(Earth::well());
        // Its own reports do not arrive any more; the other agent hears it.
        let _running = after_quiet(&stage, |earth| earth.aws.mute = true).await;
        stage.pass(seconds(5)).await;
        stage.change(database_dies);
        stage.end_of_plan().await;
        assert_eq!(ending(&stage), Ending::Done);
        let life = stage.change(|earth| earth.fenced_by.unwrap());
        assert_eq!(life, stage::PASSED_ON);
    });
}

#[test]
fn a_fence_that_nobody_proves_is_no_fence_and_everything_is_taken_back() {
    play(async {
        let mut earth = Earth::well();
        // Never granted by this controller: waiting proves nothing.
        earth.aws.asks = false;
        let stage = Stage::new(earth);
        stage.always("fence", EffectError::Unknown("no answer".to_owned()));
        let _running = after_quiet(&stage, database_dies).await;
        stage.end_of_plan().await;
        let Ending::Undone { why } = ending(&stage) else {
            panic!("{:?}", ending(&stage));
        };
        assert!(why.contains("no proof in time"), "{why}");
        stage.change(|earth| {
            assert_eq!(
                earth.effects,
                [
                    "start-workloads gcp",
                    "sever gcp",
                    "reconnect gcp",
                    "stop-workloads gcp"
                ]
            );
        });
        let state = stage.state();
        assert_eq!(
            (state.epoch, state.active),
            (Epoch(2), aws()),
            "an epoch only grows"
        );
    });
}

#[test]
fn after_a_standstill_nothing_is_decided_on_what_was_seen_before() {
    play(async {
        let stage = Stage::new(Earth::well());
        let _running = after_quiet(&stage, Earth::lose_aws).await;
        // Between two looks, so that it is the controller that first goes on.
        stage.pass(Duration::from_millis(1_110)).await;
        stage.clock.stand_still(seconds(2));
        stage.change(|earth| *earth = Earth::well());
        stage.pass(seconds(10)).await;
        assert_eq!(stage.story(), [""; 0], "it was well again");
    });
}

#[test]
fn a_promotion_whose_answer_is_lost_is_looked_for_and_not_repeated() {
    play(async {
        let stage = Stage::new(Earth::well());
        let lost = EffectError::Unknown("connection lost".to_owned());
        stage.fault("promote", Fault::After(lost));
        let _running = after_quiet(&stage, database_dies).await;
        stage.end_of_plan().await;
        assert_eq!(ending(&stage), Ending::Done);
        let promoted = fact(&stage, &Step::Promote);
        assert!(
            matches!(promoted, Fact::Promoted { already: true, .. }),
            "{promoted:?}"
        );
        let calls = stage.calls.lock().unwrap().clone();
        let asked: Vec<&String> = calls.iter().filter(|c| c.ends_with("promote")).collect();
        assert_eq!(asked, ["promote", "check promote"]);
    });
}

#[test]
fn a_promotion_in_doubt_is_taken_back_only_with_the_sites_word_that_none_comes() {
    play(async {
        let stage = Stage::new(Earth::well());
        let lost = EffectError::Unknown("connection lost".to_owned());
        stage.fault("promote", Fault::Instead(lost));
        let refused = EffectError::Refused("the order expired".to_owned());
        stage.fault("promote", Fault::Instead(refused));
        let unclear = EffectError::Unknown("no answer in time".to_owned());
        stage.fault("desist", Fault::Instead(unclear));
        let _running = after_quiet(&stage, database_dies).await;
        stage.end_of_plan().await;
        assert!(matches!(ending(&stage), Ending::Undone { .. }));
        let calls = stage.calls.lock().unwrap().clone();
        let at = |name: &str| calls.iter().rposition(|call| call == name).unwrap();
        let desists = calls.iter().filter(|call| *call == "desist").count();
        assert_eq!(desists, 2, "{calls:?}");
        assert!(at("desist") < at("unfence"), "{calls:?}");
    });
}

#[test]
fn a_promotion_in_doubt_that_came_after_all_goes_on() {
    play(async {
        let stage = Stage::new(Earth::well());
        let lost = EffectError::Unknown("connection lost".to_owned());
        stage.fault("promote", Fault::Instead(lost));
        let refused = EffectError::Refused("the order expired".to_owned());
        stage.fault("promote", Fault::After(refused));
        let _running = after_quiet(&stage, database_dies).await;
        stage.end_of_plan().await;
        assert_eq!(ending(&stage), Ending::Done);
        assert_eq!(stage.change(|earth| earth.promotions()), 1);
    });
}

#[test]
fn a_promotion_in_doubt_of_which_nobody_speaks_waits_for_a_person() {
    play(async {
        let stage = Stage::new(Earth::well());
        let lost = EffectError::Unknown("connection lost".to_owned());
        stage.fault("promote", Fault::Instead(lost));
        let refused = EffectError::Refused("the order expired".to_owned());
        stage.fault("promote", Fault::Instead(refused));
        stage.always(
            "desist",
            EffectError::Failed("connection refused".to_owned()),
        );
        let _running = after_quiet(&stage, database_dies).await;
        stage.end_of_plan().await;
        let end = ending(&stage);
        assert!(matches!(&end, Ending::Stuck { why } if why.contains("it may still come")));
        let calls = stage.calls.lock().unwrap().clone();
        assert!(!calls.contains(&"unfence".to_owned()), "{calls:?}");
    });
}

#[test]
fn a_promotion_that_is_certainly_refused_is_taken_back() {
    play(async {
        let stage = Stage::new(Earth::well());
        stage.always(
            "promote",
            EffectError::Refused("this site is fenced".to_owned()),
        );
        let _running = after_quiet(&stage, database_dies).await;
        stage.end_of_plan().await;
        let end = ending(&stage);
        assert!(matches!(&end, Ending::Undone { why } if why.contains("this site is fenced")));
        stage.change(|earth| {
            assert_eq!(earth.promotions(), 0);
            let back = ["unfence aws", "reconnect gcp", "stop-workloads gcp"];
            assert_eq!(earth.effects[3..], back);
        });
    });
}

#[test]
fn traffic_that_somebody_else_changed_is_read_again_and_moved() {
    play(async {
        let stage = Stage::new(Earth::well());
        stage.fault(
            "move traffic",
            Fault::Instead(EffectError::Conflict("changed".to_owned())),
        );
        let _running = after_quiet(&stage, database_dies).await;
        stage.end_of_plan().await;
        assert_eq!(ending(&stage), Ending::Done);
        let calls = stage.calls.lock().unwrap().clone();
        let traffic: Vec<&String> = calls.iter().filter(|c| c.ends_with("traffic")).collect();
        let again = [
            "read traffic",
            "move traffic",
            "read traffic",
            "move traffic",
            "read traffic",
            "confirm traffic",
        ];
        assert_eq!(traffic, again);
    });
}

#[test]
fn an_answer_of_a_later_epoch_is_never_overwritten() {
    play(async {
        let stage = Stage::new(Earth::well());
        let _running = after_quiet(&stage, |earth| {
            database_dies(earth);
            earth.answer.epoch = Some(Epoch(9));
        })
        .await;
        stage.end_of_plan().await;
        let end = ending(&stage);
        assert!(
            matches!(&end, Ending::Stuck { why } if why.contains("epoch 9")),
            "{end:?}"
        );
        stage.change(|earth| assert!(earth.answer.is_only(&aws()), "{:?}", earth.answer));
        assert!(
            !stage
                .calls
                .lock()
                .unwrap()
                .iter()
                .any(|call| call == "move traffic")
        );
    });
}

#[test]
fn a_stuck_plan_goes_on_when_a_person_asks_again() {
    play(async {
        let stage = Stage::new(Earth::well());
        stage.always("move traffic", EffectError::Failed("throttled".to_owned()));
        let running = after_quiet(&stage, database_dies).await;
        stage.end_of_plan().await;
        assert!(
            matches!(ending(&stage), Ending::Stuck { .. }),
            "{:?}",
            ending(&stage)
        );
        let stuck = stage.story();
        stage.heal();
        stage.pass(seconds(60)).await;
        assert_eq!(stage.story(), stuck, "it waits for a person");
        let ask = PromoteAsk {
            to: gcp(),
            reason: "cause mended".to_owned(),
            accept_data_loss: None,
            override_fence: false,
            accept_replay: false,
            dry_run: false,
        };
        let handle = running.handle.clone();
        let asking = tokio::spawn(async move {
            let asked =
                handle.ask(|answer| Input::Asked("alice".to_owned(), Asked::Promote(ask, answer)));
            asked.await
        });
        stage
            .until("the end", |stage| stage.story().last().unwrap() == "done")
            .await;
        asking.await.unwrap().unwrap().unwrap();
        stage.change(|earth| {
            assert_eq!(earth.promotions(), 1);
            assert!(earth.answer.is_only(&gcp()));
        });
    });
}

/// A whole failover of a lost site, for the lines of its log.
fn whole() -> Arc<Stage> {
    play(async {
        let stage = Stage::new(Earth::well());
        let _running = after_quiet(&stage, Earth::lose_aws).await;
        stage.end_of_plan().await;
        assert_eq!(ending(&stage), Ending::Done);
        stage
    })
}

fn plan_line(stage: &Stage) -> usize {
    let entries = stage.entries();
    let plan = entries
        .iter()
        .position(|entry| matches!(entry.body, Body::Plan { .. }));
    plan.expect("a plan was opened")
}

#[test]
fn nothing_is_done_that_the_log_could_not_take_first_and_all_once_it_can() {
    let whole = whole();
    let lines = whole.log.lock().unwrap().len();
    for full_after in plan_line(&whole)..lines {
        play(async {
            let stage = Stage::new(Earth::well());
            let running = after_quiet(&stage, Earth::lose_aws).await;
            *stage.full_after.lock().unwrap() = Some(full_after);
            let full = |stage: &Stage| stage.log.lock().unwrap().len() == full_after;
            stage.until("a full disk", full).await;
            stage.pass(seconds(5)).await;
            // Everything that happened had begun durably.
            let story = stage.story();
            for effect in stage.change(|earth| earth.effects.clone()) {
                let step = match effect.split_once(' ').unwrap() {
                    ("traffic", _) => "move-traffic dns",
                    (step, _) => step,
                };
                let begun = format!("{step} started");
                assert!(
                    story.contains(&begun),
                    "line {full_after}: {effect} without `{begun}`"
                );
            }
            let before = stage.change(|earth| earth.effects.clone());
            stage.pass(seconds(30)).await;
            let after = stage.change(|earth| earth.effects.clone());
            assert_eq!(before, after, "line {full_after}");
            let sees = |answer| Input::Look(None, answer);
            let situation = running.handle.ask(sees).await.unwrap();
            let stopped = situation.log.stopped.unwrap();
            assert_eq!(
                stopped.cause.as_deref(),
                Some("the decision log cannot be written: no space left on device")
            );
            *stage.full_after.lock().unwrap() = None;
            stage.end_of_plan().await;
            assert_eq!(
                stage.change(|earth| earth.promotions()),
                1,
                "line {full_after}"
            );
            assert_eq!(stage.state().active, gcp());
        });
    }
}

#[test]
fn a_right_does_not_wait_for_a_log_that_stands_still() {
    play(async {
        let stage = Stage::new(Earth::well());
        let running = after_quiet(&stage, |earth| earth.gcp.reachable = false).await;
        *stage.still.lock().unwrap() = true;
        // Whatever is to be written from here on never is.
        let granted = stage.change(|earth| earth.aws.grants);
        stage.pass(seconds(30)).await;
        let more = stage.change(|earth| earth.aws.grants) - granted;
        assert!(more >= 30, "{more} grants in 30 s");
        let situation = running.handle.ask(|answer| Input::Look(None, answer)).await;
        let stopped = situation.unwrap().log.stopped.unwrap();
        assert!(
            stopped.lasting >= seconds(20) && stopped.cause.is_none(),
            "{stopped:?}"
        );
    });
}

#[test]
fn a_plan_that_was_not_looked_at_again_before_too_much_could_be_lost_is_taken_back() {
    let whole = whole();
    let log = whole.log.lock().unwrap().clone();
    let plan = plan_line(&whole);
    play(async {
        let stage = Stage::new(log[plan].1.clone());
        *stage.log.lock().unwrap() = log[..=plan].to_vec();
        // Longer than the window that may be lost: for all that anybody knows, the old primary went on.
        stage.pass(seconds(100)).await;
        let _running = stage.start().await;
        stage.pass(seconds(120)).await;
        assert!(matches!(ending(&stage), Ending::Undone { .. }));
        stage.change(|earth| assert_eq!(earth.promotions(), 0));
    });
}

#[test]
fn a_new_process_ends_the_plan_from_every_entry_with_one_promotion() {
    let whole = whole();
    let log = whole.log.lock().unwrap().clone();
    let last = whole.change(|earth| earth.clone());
    let first = plan_line(&whole) + 1;
    for kept in first..log.len() {
        // Killed as soon as the entry was durable, and just before the next one was.
        let earliest = log[kept - 1].1.clone();
        let latest = log.get(kept).map_or(&last, |(_, earth)| earth).clone();
        for earth in [earliest, latest] {
            play(async {
                let stage = Stage::new(earth);
                *stage.log.lock().unwrap() = log[..kept].to_vec();
                // The clock of the log goes on, within the window that may be lost: nobody says any
                // more for how long the old primary went on.
                stage.pass(seconds(20)).await;
                let _running = stage.start().await;
                stage.end_of_plan().await;
                assert_eq!(ending(&stage), Ending::Done, "cut after entry {kept}");
                stage.change(|earth| {
                    assert_eq!(earth.promotions(), 1, "cut after entry {kept}");
                    assert!(earth.answer.is_only(&gcp()), "cut after entry {kept}");
                    assert!(earth.gcp.workloads && earth.gcp.primary);
                });
                let moved = stage.change(|earth| {
                    earth
                        .effects
                        .iter()
                        .filter(|e| *e == "traffic to gcp")
                        .count()
                });
                assert_eq!(moved, 1, "cut after entry {kept}");
            });
        }
    }
}

#[test]
fn nobody_adopts_another_state_while_a_promotion_is_on_its_way() {
    play(async {
        let stage = Stage::new(Earth::well());
        stage.always("promote", EffectError::Unknown("no answer".to_owned()));
        stage.always(
            "check promote",
            EffectError::Unknown("no answer".to_owned()),
        );
        stage.always("desist", EffectError::Unknown("no answer".to_owned()));
        let running = after_quiet(&stage, database_dies).await;
        let begun = |stage: &Stage| stage.story().contains(&"promote started".to_owned());
        stage.until("the promotion begins", begun).await;
        let adopt = async |stage: &Stage| {
            let ask = AdoptAsk {
                epoch: Epoch(2),
                active: aws(),
                reason: "it looks alive".to_owned(),
            };
            let handle = running.handle.clone();
            let asked = |answer| Input::Asked("ada".to_owned(), Asked::Adopt(ask, answer));
            let asking = tokio::spawn(async move { handle.ask(asked).await });
            stage.pass(seconds(1)).await;
            asking.await.unwrap().unwrap()
        };
        let refused = adopt(&stage).await.unwrap_err();
        assert!(refused.contains("is making `gcp` primary"), "{refused}");
        stage.end_of_plan().await;
        assert!(matches!(ending(&stage), Ending::Stuck { .. }));
        // From then on the order is over, and only what is seen speaks against it.
        adopt(&stage).await.unwrap();
    });
}
