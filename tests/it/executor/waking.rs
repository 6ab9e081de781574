//! How often the control loop wakes up, and that it wakes up in time.

use std::time::Duration;

use super::stage::{Earth, Stage};
use super::{after_quiet, database_dies, play, seconds};

/// How often the loop went to sleep in a minute.
async fn in_a_minute(stage: &Stage) -> u64 {
    let before = stage.slept();
    stage.pass(seconds(60)).await;
    stage.slept() - before
}

#[expect(clippy::print_stdout, reason = "the figures are worth seeing")]
#[test]
fn the_loop_wakes_up_for_what_arrives_and_hardly_else() {
    play(async {
        let stage = Stage::new(Earth::well());
        let running = after_quiet(&stage, |_| ()).await;
        let fed = in_a_minute(&stage).await;
        running.nothing_comes();
        stage.pass(seconds(200)).await;
        let idle = in_a_minute(&stage).await;
        println!(
            "in a minute: {fed} wake-ups with four rounds of looks a second, {idle} with none"
        );
        // A quarter of the second that a look may take: to notice that it stood still.
        assert!((60..=5 * 60).contains(&idle), "{idle} wake-ups a minute");
        // Four rounds a second, of four inputs each.
        assert!((4 * 60..=17 * 60).contains(&fed), "{fed} wake-ups a minute");
    });
}

#[test]
fn an_entry_that_hangs_is_told_when_its_second_is_over_although_nothing_arrives() {
    play(async {
        let stage = Stage::new(Earth::well());
        let running = after_quiet(&stage, |_| ()).await;
        *stage.still.lock().unwrap() = true;
        stage.change(database_dies);
        // Until the decision about it is on its way into the log.
        stage.pass(Duration::from_millis(300)).await;
        running.nothing_comes();
        let told = || {
            let status = running.status.borrow().clone();
            Some(status?.situation.log.stopped?.lasting)
        };
        let mut first = None;
        for _ in 0..300 {
            stage.pass(Duration::from_millis(10)).await;
            first = first.or_else(told);
        }
        let first = first.expect("it is told");
        assert!(
            (seconds(1)..seconds(1) + Duration::from_millis(30)).contains(&first),
            "{first:?}"
        );
    });
}

#[test]
fn whoever_asks_what_would_block_is_told_what_was_tried_just_now() {
    play(async {
        let stage = Stage::new(Earth::well());
        let running = after_quiet(&stage, |_| ()).await;
        let rehearsing = tokio::spawn(running.rehearser.clone().run());
        stage.pass(seconds(1)).await;
        let oldest = || {
            let status = running.status.borrow().clone().unwrap();
            let ages = status.situation.rehearsals.iter().map(|look| look.age);
            ages.max().unwrap()
        };
        let mut unasked = Duration::ZERO;
        for _ in 0..12 {
            stage.pass(seconds(1)).await;
            unasked = unasked.max(oldest());
        }
        assert!(unasked >= seconds(8), "{unasked:?}");
        for _ in 0..4 {
            running.handle.rehearse();
            stage.pass(seconds(1)).await;
        }
        assert!(oldest() <= seconds(2), "{:?}", oldest());
        rehearsing.abort();
    });
}
