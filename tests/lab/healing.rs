//! What `failover lab heal` says: what it mended, and that a standby follows only where it does.

use failover::lab::layout::SiteLayout;
use failover::lab::standing::{Ask, Fault};
use failover::lab::supervisor::Supervisor;

use crate::check::sql;
use crate::rehearsal::{ask, edit, streams};
use crate::stage::{on_a_lab, until};

/// What `failover lab heal` prints, and who streams. One that is said to follow does, or does so again
/// soon: its agent may just have it begin anew.
async fn healed(lab: &mut Supervisor, primary: &SiteLayout) -> (String, String) {
    let said = lab.obey(&Ask::Heal).await.unwrap();
    if said.contains("gcp follows") {
        // A sender to a standby that was killed is shown for a moment, and is none.
        let standby = lab.layout.sites[1].clone();
        let receives = "SELECT coalesce(max(status), '') FROM pg_stat_wal_receiver";
        until("what follows streams", async || {
            ask(&standby, receives).await == "streaming" && streams(primary).await == "gcp"
        })
        .await;
        return (said, "gcp".to_owned());
    }
    (said, streams(primary).await)
}

#[test]
fn it_says_what_it_mended_after_each_fault_and_the_standby_then_streams() {
    let test = "healing::it_says_what_it_mended_after_each_fault_and_the_standby_then_streams";
    on_a_lab(test, async |lab| {
        let [aws, gcp] = lab.layout.sites.clone();
        let nothing = "nothing was frozen or missing, gcp follows aws";
        let (said, _) = healed(lab, &aws).await;
        assert_eq!(said, nothing);
        for (fault, site, wanted) in [
            (Fault::StopReplication, &gcp, nothing),
            (Fault::KillReceiver, &gcp, nothing),
            (Fault::KillDatabase, &gcp, nothing),
            (Fault::KillAgent, &aws, "started aws-agent, gcp follows aws"),
            (Fault::KillApi, &gcp, "started gcp-api, gcp follows aws"),
            (
                Fault::FreezeAgent,
                &gcp,
                "thawed 1 process, gcp follows aws",
            ),
            (
                Fault::KillController,
                &aws,
                "started controller, gcp follows aws",
            ),
            (
                Fault::KillSite,
                &gcp,
                "started gcp-agent and gcp-api, gcp follows aws",
            ),
        ] {
            lab.fault(fault, &site.name).await.unwrap();
            let (said, streams) = healed(lab, &aws).await;
            assert_eq!(
                (said.as_str(), streams.as_str()),
                (wanted, "gcp"),
                "{fault}"
            );
        }
        lab.fault(Fault::FreezeSite, &gcp.name).await.unwrap();
        let (said, streams) = healed(lab, &aws).await;
        assert!(said.starts_with("thawed "), "{said}");
        assert!(said.ends_with(" processes, gcp follows aws"), "{said}");
        assert_eq!(streams, "gcp");
    });
}

/// Changes who may stream from a primary.
async fn let_in(primary: &SiteLayout, change: impl FnOnce(String) -> String) {
    edit(&primary.instance.dir.join("pg_hba.conf"), change);
    sql(primary, "SELECT pg_reload_conf()").await;
}

#[test]
fn it_does_not_say_that_a_standby_follows_that_its_primary_turns_away() {
    let test = "healing::it_does_not_say_that_a_standby_follows_that_its_primary_turns_away";
    on_a_lab(test, async |lab| {
        let [aws, gcp] = lab.layout.sites.clone();
        let allowed = "host replication replicator all scram-sha-256";
        let refused = "host replication replicator all reject";
        let_in(&aws, |text| {
            assert!(text.contains(allowed), "{text}");
            text.replace(allowed, refused)
        })
        .await;
        lab.fault(Fault::KillSite, &gcp.name).await.unwrap();
        let (said, streams) = healed(lab, &aws).await;
        assert_eq!(
            said,
            "started gcp-agent and gcp-api, gcp does not follow aws: no WAL streams to it"
        );
        assert_eq!(streams, "");
        let_in(&aws, |text| text.replace(refused, allowed)).await;
        let (said, streams) = healed(lab, &aws).await;
        assert_eq!(said, "nothing was frozen or missing, gcp follows aws");
        assert_eq!(streams, "gcp");
    });
}
