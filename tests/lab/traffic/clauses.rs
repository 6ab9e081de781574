//! The clauses of the contract.

use failover::engine::answer::{Answer, guard_answer};
use failover::engine::receipt::Receipt;
use failover::ports::{Confirmation, EffectError, Traffic, Versioned};

use super::{Rig, only, site, topology};
use crate::pair::until;

async fn read(target: &dyn Traffic) -> Versioned {
    target.read().await.unwrap()
}

/// Applies a change and waits until its system says that it is made.
async fn write(target: &dyn Traffic, to: &Answer) -> Receipt {
    let from = read(target).await;
    let receipt = target.apply(&from, to, "plan 7", &|| Ok(())).await.unwrap();
    until("the system says that it is made", async || {
        match target.confirm(&receipt).await.unwrap() {
            Confirmation::Made => true,
            Confirmation::Pending => false,
            Confirmation::Void(why) => panic!("void: {why}"),
        }
    })
    .await;
    receipt
}

fn is_conflict(result: &Result<Receipt, EffectError>) -> bool {
    matches!(result, Err(EffectError::Conflict(_)))
}

pub(super) async fn a_change_is_read_applied_confirmed_and_seen_from_outside(rig: &impl Rig) {
    let target = rig.target();
    for to in [only("aws", 1), only("gcp", 2)] {
        let receipt = write(target, &to).await;
        assert!(!receipt.ids.is_empty(), "{receipt:?}");
        assert!(!receipt.after.is_empty() && receipt.before != receipt.after);
        let logged = serde_json::to_string(&receipt).unwrap();
        let mut cut: Receipt = serde_json::from_str(&logged).unwrap();
        cut.clip();
        assert_eq!(cut, receipt, "it fits the log as it is");
        assert_eq!(target.confirm(&cut).await, Ok(Confirmation::Made));

        assert_eq!(read(target).await.answer, to);
        rig.publish().await;
        let on = to.sites_on().next().unwrap();
        until("users get there", async || {
            let views = target.verify_outside().await;
            let right = |answer: &Answer| answer.is_only(on);
            let mut answers = views.iter().map(|view| view.answer.as_ref());
            !views.is_empty() && answers.all(|answer| answer.is_ok_and(right))
        })
        .await;
    }
}

pub(super) async fn a_stale_token_is_a_conflict_and_changes_nothing(rig: &impl Rig) {
    let target = rig.target();
    let empty = read(target).await;
    write(target, &only("aws", 1)).await;
    let first = read(target).await;
    write(target, &only("gcp", 2)).await;
    let second = read(target).await;
    for stale in [empty, first] {
        let to = only("aws", 3);
        let result = target.apply(&stale, &to, "plan 7", &|| Ok(())).await;
        assert!(is_conflict(&result), "{result:?}");
    }
    assert_eq!(read(target).await, second);
}

pub(super) async fn a_writer_in_between_makes_a_conflict(rig: &impl Rig) {
    let target = rig.target();
    write(target, &only("aws", 1)).await;
    let before = read(target).await;
    rig.meddle().await;
    let to = only("gcp", 2);
    let result = target.apply(&before, &to, "plan 7", &|| Ok(())).await;
    assert!(is_conflict(&result), "{result:?}");
    // What was written in between is read, and then replaced.
    write(target, &to).await;
    assert_eq!(read(target).await.answer, to);
}

pub(super) async fn a_lost_answer_is_unknown_and_a_new_read_shows_the_change(rig: &impl Rig) {
    let target = rig.target();
    write(target, &only("aws", 1)).await;
    let before = read(target).await;
    let sent = rig.changes_sent();
    rig.lose_next_answer();
    let to = only("gcp", 2);
    let result = target.apply(&before, &to, "plan 7", &|| Ok(())).await;
    let unknown = matches!(result, Err(EffectError::Unknown(_) | EffectError::Late(_)));
    assert!(unknown, "{result:?}");
    assert_eq!(rig.changes_sent(), sent + 1, "sent once, never repeated");
    until("the change shows", async || read(target).await.answer == to).await;
}

pub(super) async fn a_change_that_may_not_be_made_any_more_is_not_sent(rig: &impl Rig) {
    let target = rig.target();
    write(target, &only("aws", 1)).await;
    let (before, sent) = (read(target).await, rig.changes_sent());
    let too_late = EffectError::Failed("stood still".to_owned());
    let still = || Err(too_late.clone());
    let result = target
        .apply(&before, &only("gcp", 2), "plan 7", &still)
        .await;
    assert_eq!(result, Err(too_late.clone()));
    assert_eq!(rig.changes_sent(), sent);
    assert_eq!(read(target).await, before);
}

/// As the step does it: the guard is asked last of all. What no system can mean well is refused by
/// the target itself, too.
pub(super) async fn a_forbidden_answer_never_leaves(rig: &impl Rig) {
    let target = rig.target();
    write(target, &only("aws", 1)).await;
    let (before, sent) = (read(target).await, rig.changes_sent());
    let with = |weights: &[(&str, u16)]| Answer {
        weights: weights.iter().map(|(name, on)| (site(name), *on)).collect(),
        ..only("gcp", 2)
    };
    let nobody = with(&[("aws", 0), ("gcp", 0)]);
    let nowhere = with(&[]);
    let foreign = with(&[("azure", 100), ("aws", 0), ("gcp", 0)]);
    for answer in [&nobody, &nowhere, &foreign] {
        let result = target.apply(&before, answer, "plan 7", &|| Ok(())).await;
        assert!(matches!(result, Err(EffectError::Refused(_))), "{result:?}");
    }
    let both = with(&[("aws", 100), ("gcp", 100)]);
    let fenced = with(&[("aws", 100), ("gcp", 0)]);
    for answer in [&nobody, &nowhere, &foreign, &both, &fenced] {
        let active = site("gcp");
        let still = || {
            guard_answer(answer, &topology(), &active)
                .map_err(|forbidden| EffectError::Refused(forbidden.to_string()))
        };
        let result = target.apply(&before, answer, "plan 7", &still).await;
        assert!(matches!(result, Err(EffectError::Refused(_))), "{result:?}");
    }
    assert_eq!(rig.changes_sent(), sent);
    assert_eq!(read(target).await, before);
}

pub(super) async fn a_token_of_another_target_is_refused_before_sending(rig: &impl Rig) {
    let target = rig.target();
    let foreign = Versioned {
        token: "{\"what\": \"another target read\"}".to_owned(),
        ..read(target).await
    };
    let sent = rig.changes_sent();
    let to = only("aws", 1);
    let result = target.apply(&foreign, &to, "plan 7", &|| Ok(())).await;
    assert!(matches!(result, Err(EffectError::Refused(_))), "{result:?}");
    assert_eq!(rig.changes_sent(), sent);
}

pub(super) async fn a_rehearsal_changes_nothing(rig: &impl Rig) {
    let target = rig.target();
    write(target, &only("aws", 1)).await;
    let before = read(target).await;
    assert_eq!(target.rehearse(&before).await, Ok(()));
    assert_eq!(read(target).await, before);
    rig.publish().await;
    until("users get there still", async || {
        let views = target.verify_outside().await;
        let on = |answer: &Answer| answer.is_only(&site("aws"));
        views.iter().all(|view| view.answer.as_ref().is_ok_and(on))
    })
    .await;
}
