//! What we say to PostgreSQL, said to real servers.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use failover::adapters::postgres::{
    Connect, Database, HeartbeatWrite, Secret, checkpoint, facts, prepare, probe, promote,
    read_history, reconnect, sever, write_epoch,
};
use failover::engine::observation::{ProbeFailure, ReplayPause};
use failover::engine::topology::Role;
use failover::engine::units::{Epoch, Lsn, Timeline};
use failover::ports::EffectError;
use rustix::process::{Signal, kill_process};

use crate::pair::{LIMIT, Pair, site, until, write};

#[tokio::test]
async fn both_sides_say_what_they_are() {
    let pair = Pair::new().await;
    let primary = pair.primary.beat().await;
    assert_eq!(primary.role, Role::Primary);
    assert_eq!(primary.timeline, Timeline(1));
    assert_eq!(primary.replayed, primary.position);
    assert!(primary.write_took.is_some_and(|took| took < LIMIT));
    assert!(primary.version >= 140_000, "{}", primary.version);
    assert_eq!(primary.limits[0], 50);
    assert_eq!(primary.receiver, None);
    assert_eq!(primary.senders.len(), 1);
    assert_eq!(primary.senders[0].name, "gcp");
    assert_eq!(primary.senders[0].state, "streaming");
    assert_eq!(primary.senders[0].sync_state, "async");
    assert!(primary.senders[0].flushed.is_some());
    assert_eq!(primary.epoch, None);
    let id = pair
        .primary
        .sql("SELECT system_identifier FROM pg_control_system()");
    assert_eq!(primary.system_id.to_string(), id);

    // Asked to write, a standby does not try.
    let standby = probe(&pair.standby().monitor(), Some(&write()), LIMIT)
        .await
        .unwrap();
    assert_eq!(standby.role, Role::Standby);
    assert_eq!(standby.system_id, primary.system_id);
    assert_eq!(standby.timeline, Timeline(1));
    assert_eq!(standby.limits, primary.limits);
    assert_eq!(standby.replay_pause, ReplayPause::None);
    assert_eq!(standby.write_took, None);
    assert!(standby.receiver.unwrap().last_message.is_some());

    pair.standby()
        .sql("ALTER SYSTEM SET recovery_min_apply_delay = '90s'");
    pair.standby().sql("SELECT pg_reload_conf()");
    pair.standby().sql("SELECT pg_wal_replay_pause()");
    until("the settings show", async || {
        let facts = pair.standby().facts().await;
        facts.apply_delay == Duration::from_secs(90) && facts.replay_pause == ReplayPause::Paused
    })
    .await;
}

#[tokio::test]
async fn a_heartbeat_grows_and_reaches_the_standby() {
    let pair = Pair::new().await;
    let first = pair.primary.beat().await.heartbeat.unwrap();
    let other = HeartbeatWrite {
        site: site("aws"),
        vantage: "agent:aws".parse().unwrap(),
    };
    let second = probe(&pair.primary.monitor(), Some(&other), LIMIT)
        .await
        .unwrap();
    let second = second.heartbeat.unwrap();
    assert_eq!(second.sequence, first.sequence + 1);
    assert!(second.written >= first.written);
    assert_eq!(
        pair.primary.sql("SELECT count(*) FROM failover.heartbeat"),
        "2"
    );
    until("the standby shows the newest row", async || {
        pair.standby().facts().await.heartbeat.as_ref() == Some(&second)
    })
    .await;
}

#[tokio::test]
async fn a_severed_standby_stands_still_while_the_primary_writes_on() {
    let pair = Pair::new().await;
    let local = pair.standby().local();
    let severed = sever(&local, LIMIT).await.unwrap();
    assert!(severed.receiver_gone);
    assert_eq!(severed.position, severed.replayed);
    let was = severed.conninfo_was.expose();
    assert!(was.contains("application_name=gcp"), "not what `-R` wrote");
    assert!(!format!("{severed:?}").contains("secret'"), "{severed:?}");

    pair.primary
        .sql("CREATE TABLE t AS SELECT generate_series(1, 10000)");
    let written = pair.primary.beat().await.position;
    assert!(written > severed.position);

    // A restart does not connect again, and a second sever changes nothing.
    pair.standby().stop().await;
    pair.standby().start().await;
    let again = sever(&local, LIMIT).await.unwrap();
    assert_eq!(again.position, severed.position);
    assert_eq!(again.conninfo_was.expose(), "");
    let facts = pair.standby().facts().await;
    assert_eq!((facts.position, facts.receiver), (severed.position, None));

    assert!(matches!(
        reconnect(&local, &again.conninfo_was, LIMIT).await,
        Err(EffectError::Refused(_))
    ));
    reconnect(&local, &severed.conninfo_was, LIMIT)
        .await
        .unwrap();
    pair.caught_up().await;
}

#[tokio::test]
async fn a_primary_has_nothing_to_be_severed_from() {
    let pair = Pair::primary_only().await;
    let refused = sever(&pair.primary.local(), LIMIT).await.unwrap_err();
    assert!(matches!(refused, EffectError::Refused(_)), "{refused}");
}

#[tokio::test]
async fn a_paused_replay_does_not_pass_for_a_severed_standby() {
    let pair = Pair::new().await;
    pair.standby().sql("SELECT pg_wal_replay_pause()");
    until("replay is paused", async || {
        pair.standby().sql("SELECT pg_get_wal_replay_pause_state()") == "paused"
    })
    .await;
    let local = pair.standby().local();
    let severed = sever(&local, Duration::from_millis(500)).await.unwrap();
    assert!(!severed.receiver_gone);
    assert!(pair.standby().facts().await.receiver.is_some());
    pair.standby().sql("SELECT pg_wal_replay_resume()");
    assert!(sever(&local, LIMIT).await.unwrap().receiver_gone);
}

#[tokio::test]
async fn a_promotion_starts_a_timeline_and_the_second_says_already() {
    let pair = Pair::new().await;
    let local = pair.standby().local();
    pair.primary.stop().await;
    let promoted = promote(&local, LIMIT).await.unwrap();
    assert_eq!(promoted.timeline, Timeline(2));
    assert!(!promoted.already && promoted.took < LIMIT);
    assert_eq!(promoted.synchronous_names_were, None);

    let again = promote(&local, LIMIT).await.unwrap();
    assert!(again.already);
    assert_eq!(again.timeline, Timeline(2));
    assert!(again.position >= promoted.position);
    checkpoint(&local, LIMIT).await.unwrap();

    let facts = pair.standby().beat().await;
    assert_eq!((facts.role, facts.timeline), (Role::Primary, Timeline(2)));
    let database = Database::open(&local, LIMIT).await.unwrap();
    let history = read_history(&database, Timeline(2), LIMIT).await.unwrap();
    let fork = history.switches()[0];
    assert_eq!(fork.timeline, Timeline(1));
    assert!(fork.at <= promoted.position);
    assert!(history.holds(Timeline(1), fork.at));
    assert!(!history.holds(Timeline(1), Lsn(fork.at.0 + 1)));
}

#[tokio::test]
async fn a_new_primary_does_not_wait_for_the_old_ones_standby() {
    let pair = Pair::new().await;
    let standby = pair.standby();
    standby.sql("ALTER SYSTEM SET synchronous_standby_names = 'aws'");
    standby.sql("SELECT pg_reload_conf()");
    until("the name is set", async || {
        standby.facts().await.synchronous_names == "aws"
    })
    .await;
    pair.primary.stop().await;
    let promoted = promote(&standby.local(), LIMIT).await.unwrap();
    assert_eq!(promoted.synchronous_names_were.as_deref(), Some("aws"));
    let facts = standby.beat().await;
    assert_eq!(facts.synchronous_names, "");
    let database = Database::open(&standby.local(), LIMIT).await.unwrap();
    write_epoch(&database, Epoch(2), &site("gcp"), LIMIT)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_promotion_that_is_not_allowed_is_refused() {
    let pair = Pair::new().await;
    let refused = promote(&pair.standby().monitor(), LIMIT).await.unwrap_err();
    assert!(
        matches!(&refused, EffectError::Refused(text) if text.contains("GRANT EXECUTE")),
        "{refused}"
    );
    assert_eq!(pair.standby().facts().await.role, Role::Standby);
}

#[tokio::test]
async fn a_promotion_that_does_not_come_is_unknown_and_never_no() {
    let pair = Pair::new().await;
    let standby = pair.standby();
    // The standby pauses when it meets limits above its own, and then refuses to be promoted.
    pair.primary.sql("ALTER SYSTEM SET max_connections = 60");
    pair.primary.stop().await;
    pair.primary.start().await;
    until("the standby pauses", async || {
        standby.facts().await.replay_pause == ReplayPause::Paused
    })
    .await;
    assert!(standby.facts().await.limits[0] < pair.primary.facts().await.limits[0]);
    let limit = Duration::from_millis(500);
    let unknown = promote(&standby.local(), limit).await.unwrap_err();
    assert!(
        matches!(&unknown, EffectError::Unknown(text) if text.contains("limits")),
        "{unknown}"
    );
    assert_eq!(standby.facts().await.role, Role::Standby);
}

#[tokio::test]
async fn a_restarted_standby_still_says_how_much_it_has() {
    let pair = Pair::new().await;
    let standby = pair.standby();
    pair.primary.stop().await;
    until("the receiver is gone", async || {
        standby.facts().await.receiver.is_none()
    })
    .await;
    let had = standby.facts().await.position;
    standby.stop().await;
    standby.start().await;
    until("the standby has replayed what it has", async || {
        standby.facts().await.replayed >= had
    })
    .await;
    // The trap is set: received alone lies lower (or is nothing), at a segment's start.
    until("received has fallen back", async || {
        standby.sql(&format!(
            "SELECT COALESCE(pg_last_wal_receive_lsn(), '0/0') < '{had}'"
        )) == "t"
    })
    .await;
    assert_eq!(standby.facts().await.position, had);
}

#[tokio::test]
async fn the_epoch_is_never_lowered() {
    let pair = Pair::primary_only().await;
    let database = Database::open(&pair.primary.local(), LIMIT).await.unwrap();
    let put =
        async |epoch, name: &str| write_epoch(&database, Epoch(epoch), &site(name), LIMIT).await;
    put(3, "aws").await.unwrap();
    put(3, "aws").await.unwrap();
    for (epoch, name) in [(2, "aws"), (2, "gcp"), (3, "gcp")] {
        let error = put(epoch, name).await.unwrap_err();
        assert!(matches!(&error, EffectError::Conflict(_)), "{error}");
        assert_eq!(pair.primary.facts().await.epoch, Some(Epoch(3)));
    }
    put(4, "gcp").await.unwrap();
    assert_eq!(pair.primary.facts().await.epoch, Some(Epoch(4)));
}

#[tokio::test]
async fn a_missing_schema_hides_no_facts_and_names_its_cure() {
    let pair = Pair::primary_only().await;
    pair.primary.sql("DROP SCHEMA failover CASCADE");
    let facts = pair.primary.facts().await;
    assert_eq!((facts.heartbeat, facts.epoch), (None, None));
    let error = probe(&pair.primary.monitor(), Some(&write()), LIMIT)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, ProbeFailure::Blocked(text) if text.contains("the schema `failover`")),
        "{error}"
    );
    let database = Database::open(&pair.primary.local(), LIMIT).await.unwrap();
    for _twice in 0..2 {
        prepare(&database, LIMIT).await.unwrap();
    }
    let local = probe(&pair.primary.local(), Some(&write()), LIMIT).await;
    assert_eq!(local.unwrap().heartbeat.unwrap().sequence, 1);
}

#[tokio::test]
async fn a_door_that_stays_shut_says_why() {
    let pair = Pair::primary_only().await;
    let wrong = pair
        .primary
        .instance
        .remote("failover", &Secret::new("wrong"));
    let error = Database::open(&wrong.unwrap(), LIMIT).await.unwrap_err();
    assert!(matches!(error, ProbeFailure::Unauthorized(_)), "{error}");

    // An unprivileged role sees facts only in part, and is told so.
    let app = &pair.primary.passwords.app;
    let app = pair.primary.instance.remote("app", app).unwrap();
    let facts = probe(&app, None, LIMIT).await.unwrap();
    let blocked = facts.blocked.unwrap();
    assert!(blocked.contains("permission denied"), "{blocked}");

    pair.primary.stop().await;
    for connect in [pair.primary.monitor(), pair.primary.local()] {
        let error = Database::open(&connect, LIMIT).await.unwrap_err();
        assert_eq!(error, ProbeFailure::Refused);
    }
}

#[tokio::test]
async fn an_old_connection_does_not_hide_a_frozen_server() {
    let pair = Pair::primary_only().await;
    let old = Database::open(&pair.primary.monitor(), LIMIT)
        .await
        .unwrap();
    let postmaster = pair.primary.postmaster().unwrap();
    kill_process(postmaster, Signal::STOP).unwrap();
    facts(&old, None, LIMIT).await.unwrap();
    let limit = Duration::from_millis(300);
    for connect in [pair.primary.monitor(), pair.primary.local()] {
        let error = probe(&connect, None, limit).await.unwrap_err();
        assert_eq!(error, ProbeFailure::Timeout(300));
    }
    kill_process(postmaster, Signal::CONT).unwrap();
    pair.primary.beat().await;
}

#[tokio::test]
async fn a_full_house_is_told_from_a_dead_one() {
    let pair = Pair::primary_only().await;
    let mut guests = Vec::new();
    let full = loop {
        match Database::open(&pair.primary.monitor(), LIMIT).await {
            Ok(guest) => guests.push(guest),
            Err(failure) => break failure,
        }
        assert!(guests.len() <= 50, "there is no end of connections");
    };
    assert!(matches!(full, ProbeFailure::Exhausted(_)), "{full}");
    drop(guests);
    until("the guests have left", async || {
        Database::open(&pair.primary.monitor(), LIMIT).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn what_we_write_does_not_wait_for_a_standby() {
    let pair = Pair::primary_only().await;
    pair.primary
        .sql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
    pair.primary.sql("SELECT pg_reload_conf()");
    until("the name is set", async || {
        pair.primary.facts().await.synchronous_names == "nobody"
    })
    .await;
    pair.primary.beat().await;
    let database = Database::open(&pair.primary.local(), LIMIT).await.unwrap();
    prepare(&database, LIMIT).await.unwrap();
    write_epoch(&database, Epoch(1), &site("aws"), LIMIT)
        .await
        .unwrap();
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    assert_eq!(pair.primary.sql(waiting), "0");
}

#[tokio::test]
async fn an_encrypted_connection_trusts_one_authority_only() {
    let pair = Pair::primary_only().await;
    let address = pair.primary.instance.listen.to_string();
    let ours = rcgen::generate_simple_self_signed([address.clone()]).unwrap();
    let strange = rcgen::generate_simple_self_signed([address.clone()]).unwrap();
    let data = pair.primary.instance.data();
    let owner = std::fs::metadata(&data).unwrap();
    for (name, text) in [
        ("server.crt", ours.cert.pem()),
        ("server.key", ours.signing_key.serialize_pem()),
    ] {
        let file = data.join(name);
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::chown(&file, Some(owner.uid()), Some(owner.gid())).unwrap();
    }
    let conninfo = format!(
        "host={address} port={} user=failover dbname=app sslmode=require",
        pair.primary.instance.port
    );
    let with = |root: &rcgen::Certificate| {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(root.der().clone()).unwrap();
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let tls = rustls::ClientConfig::builder_with_provider(provider.into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let password = pair.primary.passwords.failover.clone();
        Connect::new(&conninfo, Some(password), Some(tls)).unwrap()
    };
    // A server that does not encrypt is not talked to in plain text.
    let error = probe(&with(&ours.cert), None, LIMIT).await.unwrap_err();
    assert!(!error.speaks_against_target(), "{error}");

    pair.primary.sql("ALTER SYSTEM SET ssl = on");
    pair.primary.sql("SELECT pg_reload_conf()");
    until("the server encrypts", async || {
        probe(&with(&ours.cert), None, LIMIT).await.is_ok()
    })
    .await;
    let error = probe(&with(&strange.cert), None, LIMIT).await.unwrap_err();
    assert!(matches!(error, ProbeFailure::Unauthorized(_)), "{error}");
}
