//! A takeover by hand on a healthy pair, and what its log is worth.

use failover::adapters::files::{self, LogError};
use failover::engine::chain::{Body, Chain};
use failover::engine::lease::FenceProof;
use failover::engine::saga::{Command, Ending};
use failover::engine::step::{Fact, Step};
use failover::lab::client::{Attempt, Report, present_numbers};
use failover::lab::scenario::start_client;
use failover::lab::supervisor::Supervisor;

use crate::stage::{endings, entries, facts, on_a_lab, until, written_at};

/// Runs the command line against a lab, as its operator.
pub(crate) async fn failover(lab: &Supervisor, words: &str) -> std::process::Output {
    let layout = &lab.layout;
    tokio::process::Command::new(&layout.program)
        .args(words.split(' '))
        .env("FAILOVER_CONTROLLER", layout.controller.to_string())
        .env("FAILOVER_CA", &layout.operator.ca)
        .env("FAILOVER_CERTIFICATE", &layout.operator.certificate)
        .env("FAILOVER_KEY", &layout.operator.key)
        .stdin(std::process::Stdio::null())
        .output()
        .await
        .unwrap()
}

#[test]
fn a_drill_rests_on_the_agents_word_loses_nothing_undeclared_and_no_byte_of_its_log_can_change() {
    let test = "drill::a_drill_rests_on_the_agents_word_loses_nothing_undeclared_and_no_byte_of_its_log_can_change";
    on_a_lab(test, async |lab| {
        let [aws, gcp] = lab.layout.sites.clone();
        let mut client = start_client(lab).unwrap();
        let writes = |attempts: &[Attempt]| written_at(attempts, "aws") >= 50;
        client.until(writes).await.unwrap();

        let done = failover(lab, "promote shop --to gcp --yes --reason drill").await;
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(0), "{said}");
        assert!(said.contains("verify-outside"), "{said}");
        until("users write at the new site", async || {
            written_at(&client.attempts(), "gcp") >= 50
        })
        .await;
        let attempts = client.stop().await.unwrap();

        let log = lab.layout.log();
        let entries = entries(&log);
        assert_eq!(endings(&entries), [Ending::Done]);
        let asked = entries.iter().filter_map(|entry| {
            let Body::Command { command } = &entry.body else {
                return None;
            };
            let Command::Promote { request } = command else {
                return None;
            };
            Some((entry.actor.as_str(), request.reason.as_str()))
        });
        let asked: Vec<_> = asked.collect();
        assert_eq!(asked, [("lab", "drill")]);
        let fence = facts(&entries, &Step::Fence);
        // Asked directly and through the other site at once: whichever word comes first.
        assert!(
            matches!(
                &fence[..],
                [Fact::Fenced {
                    proof: FenceProof::Agent { .. }
                }]
            ),
            "{fence:?}"
        );
        let [Fact::Declared { loss, .. }] = &facts(&entries, &Step::Freeze)[..] else {
            panic!("one declaration");
        };
        let report = Report::new(&attempts, &present_numbers(gcp.api).await.unwrap());
        let outside = report.lost_outside(loss.from.unwrap().0, loss.until.0);
        assert!(outside.is_empty(), "{loss:?}: {outside:?}");
        assert!(report.by_old_after_new(&aws.name, &gcp.name).is_empty());
        assert!(report.by_stale_epoch().is_empty());

        let kept = lab.layout.dir.join("kept.log");
        std::fs::copy(&log, &kept).unwrap();
        files::verify(&kept).unwrap();
        no_byte_can_change(&kept);
    });
}

/// Flips every byte of a log, one at a time: each time the entry that it is in does not verify.
fn no_byte_can_change(log: &std::path::Path) {
    let whole = std::fs::read(log).unwrap();
    let mut chain = Chain::default();
    let mut began = 0;
    for (number, line) in whole.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let (end, text) = line.split_last().unwrap();
        assert_eq!(*end, b'\n');
        // As a reader sees it who has come this far: what stands before verifies.
        let mut flipped = text.to_vec();
        for place in 0..flipped.len() {
            // Another bit each time, so that capitals, digits and signs all get their turn.
            let bit = 1u8 << (place % 8);
            flipped[place] ^= bit;
            assert!(
                chain.clone().take(&flipped).is_err(),
                "entry {}, byte {place}",
                number + 1
            );
            flipped[place] ^= bit;
        }
        // And from the file: in the digest, in the JSON, and where one line ends.
        for place in [0, 63, 64, 65, text.len() / 2, text.len() - 1, text.len()] {
            let mut altered = whole.clone();
            altered[began + place] ^= 1;
            std::fs::write(log, &altered).unwrap();
            let Err(LogError::Broken { entry, .. }) = files::verify(log) else {
                panic!("entry {}, byte {place} of it", number + 1);
            };
            assert_eq!(
                entry,
                u64::try_from(number).unwrap() + 1,
                "byte {place} of it"
            );
        }
        chain.take(text).unwrap();
        began += line.len();
    }
    std::fs::write(log, &whole).unwrap();
    files::verify(log).unwrap();
}
