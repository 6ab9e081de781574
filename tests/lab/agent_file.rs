//! What an agent's file says against what its database runs with, and a database that does not come
//! up.

use std::fs;
use std::os::unix::fs::chown;
use std::time::Duration;

use failover::engine::reason::Code;
use failover::engine::situation::{AgentFacts, LocalDatabase};
use failover::lab::error_lines::ExpectedErrors;
use failover::lab::layout::SiteLayout;
use failover::lab::standing::Fault;
use failover::wire::Status;
use tokio_postgres::NoTls;

use crate::stage::{on_a_lab, until, until_status};

/// What a site's agent reported a moment ago.
fn fresh<'s>(status: &'s Status, site: &SiteLayout) -> Option<&'s AgentFacts> {
    let agent = status.situation.sites[&site.name].agent.as_ref()?;
    agent.within(Duration::from_secs(1)).map(|agent| &**agent)
}

fn why_down(status: &Status, site: &SiteLayout) -> String {
    match fresh(status, site).map(|facts| &facts.database) {
        Some(LocalDatabase::Down { why, .. }) => why.clone(),
        Some(
            LocalDatabase::Up | LocalDatabase::Waiting { .. } | LocalDatabase::Recovering { .. },
        )
        | None => String::new(),
    }
}

#[test]
fn a_standby_that_dies_at_once_is_tried_ever_more_seldom_and_told_of_once() {
    let test = "agent_file::a_standby_that_dies_at_once_is_tried_ever_more_seldom_and_told_of_once";
    on_a_lab(test, async |lab| {
        lab.expects_error("the database ends as soon as it is started");
        let [_, gcp] = lab.layout.sites.clone();
        let file = gcp.instance.dir.join("postgresql.conf");
        let good = fs::read_to_string(&file).unwrap();
        fs::write(&file, format!("{good}nonsense = 1\n")).unwrap();
        lab.fault(Fault::KillDatabase, &gcp.name).await.unwrap();
        let status = until_status(lab, "it has died three times", |status| {
            why_down(status, &gcp).contains("ended 3 times")
        })
        .await;
        let why = why_down(&status, &gcp);
        assert!(
            why.contains("unrecognized configuration parameter \"nonsense\""),
            "{why}"
        );
        let said = fs::read_to_string(gcp.dir.join("agent.log")).unwrap();
        // The kill is another reason; the bad setting is told of once, whatever the count.
        let told =
            |line: &&str| line.contains("as soon as it is started") && line.contains("nonsense");
        assert_eq!(said.lines().filter(told).count(), 1, "{said}");
        // What must be announced is found, of real processes too.
        let found = ExpectedErrors::default().unexpected_in(&lab.layout.dir);
        let found = found.unwrap().join("\n");
        assert!(found.contains("as soon as it is started"), "{found}");
        // The first one of the lab, and the first one after the kill.
        assert!(said.matches("database started").count() <= 2, "{said}");
        fs::write(&file, good).unwrap();
        until_status(lab, "it is well again", |status| {
            fresh(status, &gcp).is_some_and(|facts| facts.database == LocalDatabase::Up)
        })
        .await;
    });
}

/// The settings that wait at a site, as the decision names them.
fn pending(status: &Status) -> String {
    let mut reasons = status.decision.reasons.iter();
    let reason = reasons.find(|reason| reason.code == Code::SettingsPending);
    reason.and_then(|it| it.detail.clone()).unwrap_or_default()
}

#[test]
fn changed_settings_are_named_and_taken_over_when_the_database_is_down_anyway() {
    let test =
        "agent_file::changed_settings_are_named_and_taken_over_when_the_database_is_down_anyway";
    on_a_lab(test, async |lab| {
        // It gives way to one with the new settings, while it is asked something.
        lab.expects_error("the guard does not answer");
        let [_, gcp] = lab.layout.sites.clone();
        let socket = gcp.instance.dir.join("elsewhere");
        fs::create_dir(&socket).unwrap();
        if let Some(user) = lab.layout.tools.user() {
            chown(&socket, Some(user.uid), Some(user.gid)).unwrap();
        }
        let text = fs::read_to_string(gcp.agent_config()).unwrap();
        let old = gcp.instance.socket().display().to_string();
        let changed = text
            .replace(
                &format!("socket_dir = \"{old}\""),
                &format!("socket_dir = \"{}\"", socket.display()),
            )
            .replace("options = [", "options = [\"work_mem=5MB\", ");
        assert_ne!(text, changed);
        fs::write(gcp.agent_config(), changed).unwrap();

        lab.fault(Fault::KillAgent, &gcp.name).await.unwrap();
        lab.start_missing().unwrap();
        let status = until_status(lab, "the settings are named", |status| {
            !pending(status).is_empty()
        })
        .await;
        assert_eq!(
            pending(&status),
            "`postgres.socket_dir`, `postgres.options`"
        );
        // It runs on where it was, and is seen there.
        until_status(lab, "all else is well", |status| {
            let only = status.decision.reasons.len() == 1 && !pending(status).is_empty();
            only && fresh(status, &gcp).is_some_and(|facts| facts.database == LocalDatabase::Up)
        })
        .await;

        lab.fault(Fault::KillDatabase, &gcp.name).await.unwrap();
        until_status(lab, "the settings are taken over", |status| {
            let up = fresh(status, &gcp).is_some_and(|facts| {
                facts.database == LocalDatabase::Up && facts.pending.is_empty()
            });
            up && status
                .decision
                .reasons
                .iter()
                .all(|reason| reason.code == Code::Healthy)
        })
        .await;
        let conninfo = format!(
            "host={} port={} user=postgres dbname=app",
            socket.display(),
            gcp.instance.port
        );
        let mut client = None;
        until("it answers at the new place", async || {
            let connected = tokio_postgres::connect(&conninfo, NoTls).await.ok();
            client = connected.map(|(client, connection)| {
                tokio::spawn(connection);
                client
            });
            client.is_some()
        })
        .await;
        let row = client
            .unwrap()
            .query_one("show work_mem", &[])
            .await
            .unwrap();
        assert_eq!(row.get::<_, String>(0), "5MB");
    });
}
