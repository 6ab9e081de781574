//! Commits that wait for the standby, on a real pair.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use failover::adapters::postgres::{
    go_on_alone, look_at_standby, promote, reconnect, sever, wait_for_standby,
};
use failover::engine::units::Lsn;
use tokio_postgres::NoTls;

use crate::pair::{LIMIT, Pair, Server, site, until};

/// A session that inserts one number after the other, and counts what was acknowledged.
async fn writer(server: &Server, acknowledged: Arc<AtomicI64>) -> tokio::task::JoinHandle<()> {
    server.sql("CREATE TABLE IF NOT EXISTS written (number bigint PRIMARY KEY)");
    let socket = server.instance.socket().display().to_string();
    let port = server.instance.port;
    let conninfo = format!("host={socket} port={port} user=postgres dbname=app");
    let (client, connection) = tokio_postgres::connect(&conninfo, NoTls).await.unwrap();
    tokio::spawn(async move {
        let write = async {
            loop {
                let number = acknowledged.load(Ordering::SeqCst) + 1;
                let row = "INSERT INTO written VALUES ($1)";
                if client.execute(row, &[&number]).await.is_err() {
                    return;
                }
                acknowledged.store(number, Ordering::SeqCst);
            }
        };
        tokio::select! {
            () = write => {}
            ended = connection => drop(ended),
        }
    })
}

fn waiting(server: &Server) -> String {
    server.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_once_commits_wait_is_at_the_standby() {
    let pair = Pair::new().await;
    let acknowledged = Arc::new(AtomicI64::new(0));
    let seen = || acknowledged.load(Ordering::SeqCst);
    let writes = writer(&pair.primary, Arc::clone(&acknowledged)).await;
    until("rows are written", async || seen() > 200).await;

    let (local, gcp) = (pair.primary.local(), site("gcp"));
    let look = look_at_standby(&local, &gcp, LIMIT).await.unwrap();
    assert!(!look.named && look.obstacle.is_none(), "{look:?}");
    let from = wait_for_standby(&local, &gcp, LIMIT).await.unwrap();
    assert!(from > look.position);
    until("the standby is complete", async || {
        let look = look_at_standby(&local, &gcp, LIMIT).await.unwrap();
        look.named && look.flushed >= Some(from)
    })
    .await;
    // Nobody of ours waits on, and nobody waits for nobody.
    let before = seen();
    until("rows are written again", async || seen() > before + 200).await;

    sever(&pair.standby().local(), LIMIT).await.unwrap();
    until("a commit waits", async || waiting(&pair.primary) == "1").await;
    // A heartbeat does not, and says that the database is well.
    pair.primary.beat().await;
    promote(&pair.standby().local(), LIMIT).await.unwrap();
    let there: i64 = pair
        .standby()
        .sql("SELECT max(number) FROM written")
        .parse()
        .unwrap();
    assert!(there >= seen(), "{there} are there of {}", seen());

    // Ended, the commit is not acknowledged.
    let last = seen();
    pair.primary.stop().await;
    writes.await.unwrap();
    assert_eq!(seen(), last);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_that_wait_in_vain_go_on_when_they_may() {
    let pair = Pair::new().await;
    let (local, gcp) = (pair.primary.local(), site("gcp"));
    wait_for_standby(&local, &gcp, LIMIT).await.unwrap();
    let severed = sever(&pair.standby().local(), LIMIT).await.unwrap();
    let acknowledged = Arc::new(AtomicI64::new(0));
    let seen = || acknowledged.load(Ordering::SeqCst);
    let _writes = writer_of_a_table_that_is_there(&pair, &acknowledged).await;
    until("a commit waits", async || waiting(&pair.primary) == "1").await;
    assert_eq!(seen(), 0);
    let look = look_at_standby(&local, &gcp, LIMIT).await.unwrap();
    assert!(look.named && look.flushed.is_none(), "{look:?}");

    go_on_alone(&local, LIMIT).await.unwrap();
    until("rows are written", async || seen() > 50).await;
    let look = look_at_standby(&local, &gcp, LIMIT).await.unwrap();
    assert!(!look.named, "{look:?}");

    // Again: a restart of the primary does not make it forget.
    let conninfo = severed.conninfo_was;
    reconnect(&pair.standby().local(), &conninfo, LIMIT)
        .await
        .unwrap();
    pair.caught_up().await;
    wait_for_standby(&local, &gcp, LIMIT).await.unwrap();
    pair.primary.stop().await;
    pair.primary.start().await;
    let look = look_at_standby(&local, &gcp, LIMIT).await.unwrap();
    assert!(look.named, "{look:?}");
}

/// The table is made before commits wait, or that commit would.
async fn writer_of_a_table_that_is_there(
    pair: &Pair,
    acknowledged: &Arc<AtomicI64>,
) -> tokio::task::JoinHandle<()> {
    pair.primary
        .sql("SET synchronous_commit = local; CREATE TABLE written (number bigint PRIMARY KEY)");
    writer(&pair.primary, Arc::clone(acknowledged)).await
}

#[tokio::test]
async fn a_look_says_what_lets_commits_go_on_all_the_same() {
    let pair = Pair::new().await;
    let (local, gcp) = (pair.primary.local(), site("gcp"));
    let look = async || look_at_standby(&local, &gcp, LIMIT).await.unwrap();
    assert!(look().await.flushed > Some(Lsn(0)));
    let elsewhere = look_at_standby(&local, &site("paris"), LIMIT).await;
    assert_eq!(
        elsewhere.unwrap().flushed,
        None,
        "another standby does not count"
    );
    pair.primary
        .sql("ALTER ROLE app SET synchronous_commit = off");
    let obstacle = look().await.obstacle.unwrap();
    assert_eq!(
        obstacle,
        "a role or database has `synchronous_commit = off`"
    );
    pair.primary
        .sql("ALTER ROLE app SET synchronous_commit = on");
    pair.primary
        .sql("ALTER SYSTEM SET synchronous_commit = remote_write");
    pair.primary.sql("SELECT pg_reload_conf()");
    until("the server's default shows", async || {
        look().await.obstacle.as_deref()
            == Some("the server has `synchronous_commit = remote_write`")
    })
    .await;
}

/// A standby that does not confirm keeps nobody waiting for longer than the attempt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_fails_lets_commits_go_on() {
    let pair = Pair::primary_only().await;
    let local = pair.primary.local();
    // Too short to see anything through.
    let short = Duration::from_millis(1);
    assert!(wait_for_standby(&local, &site("gcp"), short).await.is_err());
    pair.primary.sql("CREATE TABLE goes_on ()");
}
