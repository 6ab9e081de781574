//! What owners and administrators of a database plant: named where it keeps us from our own rows,
//! and no obstacle where our sessions do not meet it.

use failover::adapters::postgres::Database;
use failover::engine::readiness::CheckState::{Blocks, Warns};
use failover::engine::reason::Code;
use failover::lab::layout::SiteLayout;
use failover::lab::pair::turn_hostile;
use failover::lab::site_api::prepare_tables;
use failover::lab::standing::Fault;
use failover::lab::supervisor::Supervisor;

use super::{
    ask, check, session, session_with, sql, until_green, until_looked_at_anew, until_named,
};
use crate::pair::LIMIT;
use crate::planted::{NAMES, STEAL};
use crate::stage::{FAST, on_a_prepared_lab, until};

/// A schema `failover` in the hands of the database's owner.
const HAND_OVER: &str = "
ALTER SCHEMA failover OWNER TO app;
ALTER TABLE failover.heartbeat OWNER TO app;
ALTER TABLE failover.epoch OWNER TO app;";
/// What has every write of ours to it fail.
const PLANT: &str = "
CREATE FUNCTION public.no() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'planted by the owner'; END $$;
CREATE TRIGGER no BEFORE INSERT OR UPDATE ON failover.heartbeat
FOR EACH ROW EXECUTE FUNCTION public.no();";

async fn as_owner(site: &SiteLayout, statements: &str) {
    let owner = session(site, "app").await.unwrap();
    owner.batch_execute(statements).await.unwrap();
}

/// Whether a failover would go through, whatever there is to look at.
async fn is_ready(lab: &Supervisor) -> bool {
    check(lab).await.is_some_and(|(code, _)| code == 0)
}

#[test]
fn it_names_a_schema_in_other_hands_that_keeps_us_out_until_it_is_set_aside() {
    let test =
        "check::owners::it_names_a_schema_in_other_hands_that_keeps_us_out_until_it_is_set_aside";
    on_a_prepared_lab(
        test,
        FAST,
        |_| (),
        async |lab| {
            let aws = lab.layout.sites[0].clone();
            let said = "planted by the owner";
            until_green(lab, "nothing is planted").await;
            sql(&aws, HAND_OVER).await;
            as_owner(&aws, PLANT).await;
            // The service is seen at work, which shows that the database serves.
            until_named(lab, Code::OwnLookBlocked, Warns, said).await;
            until("it is ready all the same", async || is_ready(lab).await).await;
            lab.fault(Fault::KillApi, &aws.name).await.unwrap();
            until_named(lab, Code::VantagePointsMute, Blocks, said).await;

            lab.fault(Fault::KillAgent, &aws.name).await.unwrap();
            lab.start_missing().unwrap();
            let aside = "SELECT string_agg(nspowner::regrole::text, ',') FROM pg_namespace \
                WHERE nspname LIKE 'failover\\_set\\_aside\\_%'";
            until("it is set aside", async || ask(&aws, aside).await == "app").await;
            // The service reads the epoch: what it was granted went with the old schema.
            let opened = Database::open(&aws.instance.local("app").unwrap(), LIMIT).await;
            prepare_tables(&opened.unwrap(), LIMIT).await.unwrap();
            until_green(lab, "the schema is set aside, and left there").await;
        },
    );
}

/// What the lab's own users say for themselves, as users of such a database have to.
const USERS: [&str; 5] = [
    "search_path = pg_catalog, public",
    "statement_timeout = 0",
    "default_transaction_read_only = off",
    "default_transaction_isolation = 'read committed'",
    "default_transaction_deferrable = off",
];

/// Defaults of a server that would stop or mislead whoever states nothing for himself.
const OF_THE_SERVER: [&str; 7] = [
    "default_transaction_isolation = 'serializable'",
    "default_transaction_read_only = on",
    "default_transaction_deferrable = on",
    "statement_timeout = 1",
    "lock_timeout = 1",
    "idle_in_transaction_session_timeout = 1",
    "search_path = 'nowhere'",
];

/// The defaults of roles and databases that a site has.
async fn defaults(site: &SiteLayout) -> String {
    let all = "SELECT string_agg(setrole || ' ' || setdatabase || ' ' || setconfig::text, ';' \
        ORDER BY setrole, setdatabase) FROM pg_db_role_setting";
    ask(site, all).await
}

/// Whether a session that only sees to it that it gets an answer has the defaults.
async fn meets_them(site: &SiteLayout) -> bool {
    let answered = "-c search_path=public -c statement_timeout=0 \
        -c default_transaction_isolation=read\\ committed";
    let client = session_with(site, "postgres", answered).await.unwrap();
    let row = client.query_one("SHOW default_transaction_deferrable", &[]);
    row.await.unwrap().get::<_, String>(0) == "on"
}

/// Defaults of role and database, then of both servers, against whoever looks.
async fn turn_all_hostile(lab: &mut Supervisor) {
    let [aws, gcp] = lab.layout.sites.clone();
    for said in USERS {
        sql(&aws, &format!("ALTER ROLE app IN DATABASE app SET {said}")).await;
    }
    turn_hostile(&aws.instance).await.unwrap();
    until("the standby has the defaults", async || {
        defaults(&gcp).await == defaults(&aws).await
    })
    .await;
    // A session has the defaults of its beginning: the service begins anew.
    for site in [&aws, &gcp] {
        lab.fault(Fault::KillApi, &site.name).await.unwrap();
    }
    lab.start_missing().unwrap();
    for site in [&aws, &gcp] {
        for setting in OF_THE_SERVER {
            sql(site, &format!("ALTER SYSTEM SET {setting}")).await;
        }
        sql(site, "SELECT pg_reload_conf()").await;
        until("who states nothing meets them", async || {
            meets_them(site).await
        })
        .await;
    }
}

/// Our sessions state for themselves whatever a default could change, and find names in
/// `pg_catalog` alone. A schema `failover` that somebody else owns, and that works, is set aside
/// before the first write after a promotion. So there is nothing to name.
#[test]
fn it_stays_green_over_planted_names_and_hostile_defaults() {
    let test = "check::owners::it_stays_green_over_planted_names_and_hostile_defaults";
    on_a_prepared_lab(
        test,
        FAST,
        |_| (),
        async |lab| {
            let aws = lab.layout.sites[0].clone();
            until_green(lab, "nothing is planted").await;
            turn_all_hostile(lab).await;
            sql(&aws, HAND_OVER).await;
            as_owner(
                &aws,
                &format!("SET search_path = pg_catalog; {STEAL} {NAMES}"),
            )
            .await;
            until_looked_at_anew(lab).await;
            until_green(lab, "names and defaults are planted").await;
            let superuser = "SELECT rolsuper::text FROM pg_roles WHERE rolname = 'app'";
            assert_eq!(ask(&aws, superuser).await, "false");
            let ran = "SELECT string_agg(who || ': ' || what, ', ') FROM public.ran";
            assert_eq!(ask(&aws, ran).await, "", "planted code ran in our sessions");
        },
    );
}
