//! Zero loss that the policy promises and the world does not keep.

use failover::engine::readiness::CheckState::{Blocks, Warns};
use failover::engine::reason::Code;
use failover::lab::standing::Fault;

use super::{ask, set, until_green, until_named};
use crate::impostor::Impostor;
use crate::rehearsal::{streams, sync_policy};
use crate::stage::{on_a_prepared_lab, until};

#[test]
fn it_names_a_second_stream_of_the_standbys_name_and_a_standby_of_another_name_or_none() {
    let test = "check::promises::it_names_a_second_stream_of_the_standbys_name_and_a_standby_of_another_name_or_none";
    on_a_prepared_lab(
        test,
        &sync_policy(),
        |_| (),
        async |lab| {
            let [aws, gcp] = lab.layout.sites.clone();
            until_green(lab, "nothing is planted").await;
            let impostor = Impostor::begin(lab, "gcp");
            let two = "2 streams have the name `gcp`";
            until_named(lab, Code::RpoWindowOpen, Blocks, two).await;
            drop(impostor);
            until_green(lab, "the second stream is gone").await;

            // Its agent would give it its name back.
            lab.fault(Fault::KillAgent, &gcp.name).await.unwrap();
            let conninfo = ask(&gcp, "SHOW primary_conninfo").await;
            let other = conninfo.replace("application_name=gcp", "application_name=elsewhere");
            assert_ne!(conninfo, other);
            lab.fault(Fault::StopReplication, &gcp.name).await.unwrap();
            let none = "nothing streams under the standby's name";
            until_named(lab, Code::RpoWindowOpen, Blocks, none).await;
            until_named(lab, Code::ReplicationBroken, Warns, "no receiver").await;
            set(&gcp, "primary_conninfo", &other.replace('\'', "''")).await;
            until("it streams under another name", async || {
                streams(&aws).await == "elsewhere"
            })
            .await;
            until_named(lab, Code::RpoWindowOpen, Blocks, none).await;

            lab.start_missing().unwrap();
            until_green(lab, "the agent is back, and the window closed").await;
        },
    );
}
