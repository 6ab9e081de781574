//! What the owner of a database plants never runs with our rights, and does not keep us from our
//! own writes.

use failover::adapters::postgres::{
    Database, allow_monitoring, prepare, probe, promote, sever, standing, write_epoch,
};
use failover::engine::units::Epoch;

use crate::pair::{LIMIT, Pair, Server, site, write};

/// What the attacker wants: to be a superuser. It says who ran it, which the attacker can only
/// bring about by having it run.
pub(crate) const STEAL: &str = "
CREATE TABLE public.ran (who text, what text);
CREATE OR REPLACE FUNCTION public.steal(what text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO public.ran VALUES (session_user, what);
  IF (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = session_user) THEN
    ALTER ROLE app SUPERUSER;
  END IF;
  RETURN what;
END $$;
CREATE FUNCTION public.fire() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM public.steal('trigger'); RETURN NEW; END $$;
GRANT ALL ON public.ran TO PUBLIC;
ALTER DATABASE app SET search_path = public, pg_catalog;";

/// Names that statements of ours use.
pub(crate) const NAMES: &str = "
CREATE FUNCTION public.hashtext(text) RETURNS int LANGUAGE sql AS $$SELECT length(public.steal('hashtext'))$$;
CREATE FUNCTION public.to_json(text) RETURNS json LANGUAGE sql AS $$SELECT ('\"' || public.steal('to_json') || '\"')::json$$;
CREATE FUNCTION public.format(text, text) RETURNS text LANGUAGE sql AS $$SELECT public.steal('format')$$;
CREATE FUNCTION public.format(text, text, text) RETURNS text LANGUAGE sql AS $$SELECT public.steal('format')$$;
CREATE FUNCTION public.current_setting(text) RETURNS text LANGUAGE sql AS $$SELECT public.steal('current_setting')$$;
CREATE FUNCTION public.pg_is_in_recovery() RETURNS boolean LANGUAGE sql AS $$SELECT public.steal('recovery') IS NULL$$;
CREATE FUNCTION public.pg_promote(boolean) RETURNS boolean LANGUAGE sql AS $$SELECT public.steal('promote') IS NULL$$;
CREATE FUNCTION public.pg_reload_conf() RETURNS boolean LANGUAGE sql AS $$SELECT public.steal('reload') IS NULL$$;
CREATE FUNCTION public.count(bigint) RETURNS bigint LANGUAGE sql AS $$SELECT length(public.steal('count'))::bigint$$;
CREATE FUNCTION public.equal(text, text) RETURNS boolean LANGUAGE sql AS $$SELECT public.steal('operator') IS NULL$$;
CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = text, FUNCTION = public.equal);
CREATE OPERATOR public.<> (LEFTARG = text, RIGHTARG = text, FUNCTION = public.equal);
CREATE FUNCTION public.joined(text, text) RETURNS text LANGUAGE sql AS $$SELECT public.steal('||')$$;
CREATE OPERATOR public.|| (LEFTARG = text, RIGHTARG = text, FUNCTION = public.joined);
CREATE DOMAIN public.int4 AS text;
CREATE VIEW public.pg_stat_activity AS SELECT public.steal('view') AS application_name;
CREATE VIEW public.pg_roles AS SELECT public.steal('view') AS rolname;";

/// A schema `failover` as we would make it, in the attacker's hands.
const TABLES: &str = "
CREATE SCHEMA failover;
CREATE TABLE failover.heartbeat (site text NOT NULL, vantage text NOT NULL,
  sequence bigint NOT NULL, written timestamptz NOT NULL, PRIMARY KEY (site, vantage));
CREATE TABLE failover.epoch (one boolean PRIMARY KEY DEFAULT true CHECK (one),
  epoch bigint NOT NULL, site text NOT NULL, written timestamptz NOT NULL);";

const TRIGGER: &str = "
CREATE TRIGGER fire BEFORE INSERT OR UPDATE ON failover.epoch FOR EACH ROW EXECUTE FUNCTION public.fire();
ALTER TABLE failover.epoch ENABLE ALWAYS TRIGGER fire;
CREATE TRIGGER fire BEFORE INSERT OR UPDATE ON failover.heartbeat FOR EACH ROW EXECUTE FUNCTION public.fire();
ALTER TABLE failover.heartbeat ENABLE ALWAYS TRIGGER fire;";

const RULE: &str = "
CREATE RULE fire AS ON INSERT TO failover.epoch DO ALSO SELECT public.steal('rule');
ALTER TABLE failover.epoch ENABLE ALWAYS RULE fire;";

const DEFAULT: &str = "
ALTER TABLE failover.epoch ADD COLUMN more text DEFAULT public.steal('default');";

const CHECK: &str = "
ALTER TABLE failover.epoch ADD CHECK (public.steal('check') = 'check');";

const INDEX: &str = "
CREATE FUNCTION public.constant(text) RETURNS text IMMUTABLE LANGUAGE sql AS $$SELECT public.steal('index')$$;
CREATE INDEX ON failover.epoch (public.constant(site));";

const VIEW: &str = "
DROP TABLE failover.epoch;
CREATE VIEW failover.epoch AS SELECT true AS one, 7::bigint AS epoch, public.steal('view') AS site, now() AS written;
CREATE TRIGGER fire INSTEAD OF INSERT OR UPDATE ON failover.epoch FOR EACH ROW EXECUTE FUNCTION public.fire();";

const PARTITIONED: &str = "
DROP TABLE failover.epoch;
CREATE TABLE failover.epoch (one boolean PRIMARY KEY DEFAULT true CHECK (one), epoch bigint NOT NULL,
  site text NOT NULL, written timestamptz NOT NULL) PARTITION BY LIST (one);
CREATE TABLE failover.part PARTITION OF failover.epoch DEFAULT;
CREATE TRIGGER fire BEFORE INSERT ON failover.part FOR EACH ROW EXECUTE FUNCTION public.fire();
ALTER TABLE failover.part ENABLE ALWAYS TRIGGER fire;";

fn plant(server: &Server, statements: &[&str]) {
    for statement in statements {
        let done = server
            .psql("app", "-c search_path=pg_catalog", statement)
            .output();
        let done = done.unwrap();
        assert!(done.status.success(), "{statement}: {done:?}");
    }
}

/// Everything that we do as the superuser on a primary.
async fn all_of_ours(server: &Server, epoch: u64) {
    let local = server.local();
    let database = Database::open(&local, LIMIT).await.unwrap();
    prepare(&database, LIMIT).await.unwrap();
    write_epoch(&database, Epoch(epoch), &site("aws"), LIMIT)
        .await
        .unwrap();
    allow_monitoring(&database, "failover", LIMIT)
        .await
        .unwrap();
    standing(&local, LIMIT).await.unwrap();
}

fn nothing_was_stolen(server: &Server, what: &str) {
    let superuser = server.sql("SELECT rolsuper FROM pg_roles WHERE rolname = 'app'");
    assert_eq!(superuser, "f", "{what}: the owner became a superuser");
    let ran = server.sql("SELECT string_agg(who || ': ' || what, ', ') FROM public.ran");
    assert_eq!(ran, "", "{what}: the owner's code ran in our sessions");
}

#[tokio::test]
async fn planted_functions_operators_and_a_search_path_are_not_used() {
    let pair = Pair::new().await;
    plant(&pair.primary, &[STEAL, NAMES]);
    all_of_ours(&pair.primary, 1).await;
    let seen = pair.primary.beat().await;
    assert_eq!(seen.epoch, Some(Epoch(1)));
    nothing_was_stolen(&pair.primary, "names, on a primary");

    // The standby has them too; its database is read-only until the promotion.
    pair.caught_up().await;
    let local = pair.standby().local();
    sever(&local, LIMIT).await.unwrap();
    pair.primary.stop().await;
    promote(&local, LIMIT).await.unwrap();
    all_of_ours(pair.standby(), 2).await;
    nothing_was_stolen(pair.standby(), "names, after a promotion");
}

#[tokio::test]
async fn a_schema_in_other_hands_is_set_aside_and_runs_nothing() {
    let pair = Pair::primary_only().await;
    plant(&pair.primary, &[STEAL]);
    for (what, planted) in [
        ("tables of the owner", ""),
        ("a trigger", TRIGGER),
        ("a rule", RULE),
        ("a default", DEFAULT),
        ("a check", CHECK),
        ("an index", INDEX),
        ("a view", VIEW),
        ("a partition", PARTITIONED),
    ] {
        pair.primary.sql("DROP SCHEMA failover CASCADE");
        plant(&pair.primary, &[TABLES]);
        if !planted.is_empty() {
            plant(&pair.primary, &[planted]);
        }
        // The attacker's own attempts do not count.
        pair.primary.sql("TRUNCATE public.ran");
        all_of_ours(&pair.primary, 1).await;
        nothing_was_stolen(&pair.primary, what);
        let seen = pair.primary.beat().await;
        assert_eq!(seen.epoch, Some(Epoch(1)), "{what}");
        nothing_was_stolen(&pair.primary, what);
        let aside =
            "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'failover\\_set\\_aside\\_%'";
        assert_eq!(pair.primary.sql(aside), "1", "{what}: kept");
        pair.primary.sql(
            "DO $$ BEGIN EXECUTE (SELECT format('DROP SCHEMA %I CASCADE', nspname)
             FROM pg_namespace WHERE nspname LIKE 'failover\\_set\\_aside\\_%'); END $$",
        );
    }
}

#[tokio::test]
async fn what_is_ours_is_left_as_it_is() {
    let pair = Pair::primary_only().await;
    all_of_ours(&pair.primary, 1).await;
    let first = pair.primary.beat().await.heartbeat.unwrap();
    let tables = "SELECT string_agg(oid::text, ' ' ORDER BY oid) FROM pg_class
        WHERE relnamespace = 'failover'::regnamespace";
    let before = pair.primary.sql(tables);
    all_of_ours(&pair.primary, 2).await;
    assert_eq!(pair.primary.sql(tables), before);
    let second = pair.primary.beat().await.heartbeat.unwrap();
    assert_eq!(second.sequence, first.sequence + 1);
    // What a person adds for their own purposes, and nobody has to fill, does not disturb.
    pair.primary
        .sql("ALTER TABLE failover.heartbeat ADD COLUMN remark text");
    all_of_ours(&pair.primary, 3).await;
    assert_eq!(pair.primary.sql(tables), before);
}

#[tokio::test]
async fn a_superusers_own_trigger_does_not_stop_the_epoch() {
    let pair = Pair::primary_only().await;
    pair.primary.sql(
        "CREATE FUNCTION public.no() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN RAISE EXCEPTION 'no'; END $$;
         CREATE TRIGGER no BEFORE INSERT OR UPDATE ON failover.epoch
         FOR EACH ROW EXECUTE FUNCTION public.no()",
    );
    all_of_ours(&pair.primary, 1).await;
    assert_eq!(pair.primary.beat().await.epoch, Some(Epoch(1)));
}

#[tokio::test]
async fn event_triggers_do_not_stop_what_we_make() {
    let pair = Pair::primary_only().await;
    pair.primary.sql(
        "CREATE FUNCTION public.no() RETURNS event_trigger LANGUAGE plpgsql AS
         $$ BEGIN RAISE EXCEPTION 'no changes here'; END $$;
         CREATE EVENT TRIGGER no ON ddl_command_start EXECUTE FUNCTION public.no()",
    );
    // Where all is there, nothing is changed; so not even one that always fires is met.
    pair.primary.sql("ALTER EVENT TRIGGER no ENABLE ALWAYS");
    all_of_ours(&pair.primary, 1).await;
    pair.primary.sql("ALTER EVENT TRIGGER no ENABLE");
    pair.primary.sql("DROP SCHEMA failover CASCADE");
    all_of_ours(&pair.primary, 2).await;
    assert_eq!(pair.primary.beat().await.epoch, Some(Epoch(2)));
}

#[tokio::test]
async fn the_role_that_looks_has_no_more_than_it_needs() {
    let pair = Pair::primary_only().await;
    // As an older version granted it.
    pair.primary
        .sql("GRANT INSERT, UPDATE ON failover.epoch TO failover");
    all_of_ours(&pair.primary, 1).await;
    let may = |right: &str| {
        pair.primary
            .sql(&format!("SELECT has_table_privilege('failover', {right})"))
    };
    assert_eq!(may("'failover.epoch', 'SELECT'"), "t");
    for right in ["INSERT", "UPDATE", "DELETE", "TRUNCATE", "TRIGGER"] {
        assert_eq!(may(&format!("'failover.epoch', '{right}'")), "f", "{right}");
    }
    for right in ["DELETE", "TRUNCATE", "TRIGGER", "REFERENCES"] {
        assert_eq!(
            may(&format!("'failover.heartbeat', '{right}'")),
            "f",
            "{right}"
        );
    }
    let member =
        "SELECT string_agg(roleid::regrole::text, ' ' ORDER BY roleid) FROM pg_auth_members
        WHERE member = 'failover'::regrole";
    let roles = pair.primary.sql(member);
    let only = [
        "pg_read_all_stats",
        "pg_read_all_stats pg_use_reserved_connections",
    ];
    assert!(only.contains(&roles.as_str()), "{roles}");
    probe(&pair.primary.monitor(), Some(&write()), LIMIT)
        .await
        .unwrap();
}
