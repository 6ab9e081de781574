//! A standby that would not do in time what a failover asks of it, and a policy that cannot take
//! effect.

use failover::engine::readiness::CheckState::Blocks;
use failover::engine::reason::Code;
use failover::lab::layout::SiteLayout;
use failover::lab::standing::Fault;
use failover::lab::supervisor::Supervisor;

use super::{set, sql, until_green, until_named};
use crate::drill::failover;
use crate::stage::{FAST, on_a_prepared_lab};

/// A setting that another one is always over before: `failover policy check` says so with both
/// numbers, no controller starts with it, and without a controller nobody says "ready".
async fn a_policy_without_effect(lab: &mut Supervisor, gcp: &SiteLayout) {
    let policy = lab.layout.dir.join("policy.toml");
    let good = std::fs::read_to_string(&policy).unwrap();
    let bad = good.replace(
        "local_restart_grace = \"0s\"",
        "local_restart_grace = \"300ms\"",
    );
    assert_ne!(good, bad);
    lab.fault(Fault::KillController, &gcp.name).await.unwrap();
    std::fs::write(&policy, bad).unwrap();
    let config = lab.layout.controller_config();
    for (words, code) in [
        (format!("policy check {}", policy.display()), 1),
        (format!("run --config {}", config.display()), 2),
    ] {
        let done = failover(lab, &words).await;
        let [out, err] = [&done.stdout, &done.stderr].map(|text| String::from_utf8_lossy(text));
        let said = format!("{out}{err}");
        assert_eq!(done.status.code(), Some(code), "{words}: {said}");
        let numbers = "`automation.local_restart_grace` is 300ms, but a database is started once a second at most";
        assert!(said.contains(numbers), "{words}: {said}");
        assert!(
            said.contains("Write `0s` for none, or 1s or more"),
            "{said}"
        );
    }
    let check = failover(lab, "check shop").await;
    assert_eq!(check.status.code(), Some(2), "{check:?}");
    std::fs::write(&policy, good).unwrap();
    lab.start_controller(None).unwrap();
}

#[test]
fn it_names_a_standby_that_replays_late_or_cannot_be_severed_and_no_policy_without_effect_runs() {
    let test = "check::standby::it_names_a_standby_that_replays_late_or_cannot_be_severed_and_no_policy_without_effect_runs";
    on_a_prepared_lab(
        test,
        FAST,
        |_| (),
        async |lab| {
            lab.expects_error("this site could not take over");
            let gcp = lab.layout.sites[1].clone();
            until_green(lab, "nothing is planted").await;
            set(&gcp, "recovery_min_apply_delay", "1h").await;
            // `ALTER SYSTEM` writes its file beside the old one first, and cannot any more.
            let beside = gcp.instance.data().join("postgresql.auto.conf.tmp");
            std::fs::create_dir(&beside).unwrap();
            a_policy_without_effect(lab, &gcp).await;
            until_named(lab, Code::StandbyApplyDelayed, Blocks, "1h (limit 0s)").await;
            until_named(lab, Code::CannotSever, Blocks, "postgresql.auto.conf.tmp").await;

            std::fs::remove_dir(&beside).unwrap();
            sql(&gcp, "ALTER SYSTEM RESET recovery_min_apply_delay").await;
            sql(&gcp, "SELECT pg_reload_conf()").await;
            until_green(lab, "the standby does as it should again").await;
        },
    );
}
