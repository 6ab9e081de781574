//! What Prometheus is shown, as it would be scraped: in form, as the page lists it, and true.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use axum::body::to_bytes;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use failover::adapters::exposition::expose;
use failover::agent::cluster::ClusterSeen;
use failover::agent::metrics as agent;
use failover::app::metrics as controller;
use failover::cli::setup::metrics_page;
use failover::engine::reason::Code;
use failover::engine::saga::GroupState;
use failover::engine::step::Event;
use failover::engine::units::{MonoTime, WallTime};
use failover::ports::{ClusterLook, NodeStanding};
use failover::wire::Status;

use crate::cli::{status_of, walking};
use crate::executor::stage::{Earth, topology};
use crate::keeper;

/// A scrape, read as a scraper reads it.
#[derive(Debug, Default)]
struct Scrape {
    /// Help, type and unit of each family.
    families: BTreeMap<String, [String; 3]>,
    /// Each series with its labels as they are written, and its value.
    series: BTreeMap<String, String>,
}

impl Scrape {
    fn read(text: &str) -> Self {
        let mut scrape = Self::default();
        let mut current = String::new();
        let lines = text.strip_suffix("# EOF\n").expect("it ends with its end");
        for line in lines.lines() {
            let Some(comment) = line.strip_prefix("# ") else {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let (name, labels) = series.split_once('{').unwrap();
                let kind = scrape.families[&current][1].clone();
                let total = if kind == "counter" { "_total" } else { "" };
                assert_eq!(name, current.clone() + total, "a family is one block");
                assert!(labels.ends_with("\"}"), "{line}");
                value.parse::<f64>().unwrap();
                let twice = scrape.series.insert(series.to_owned(), value.to_owned());
                assert_eq!(twice, None, "{line}");
                continue;
            };
            let mut words = comment.splitn(3, ' ');
            let [what, name, text] = [(); 3].map(|()| words.next().unwrap());
            let place = ["HELP", "TYPE", "UNIT"]
                .iter()
                .position(|word| *word == what)
                .unwrap();
            if place == 0 {
                assert!(!scrape.families.contains_key(name), "{name} comes twice");
                name.clone_into(&mut current);
            }
            assert_eq!(name, current, "{line}");
            let family = scrape.families.entry(current.clone()).or_default();
            text.clone_into(&mut family[place]);
        }
        scrape
    }

    fn value(&self, series: &str) -> &str {
        let found = self.series.get(&format!("failover_{series}"));
        found.unwrap_or_else(|| panic!("{series}: {:#?}", self.series.keys()))
    }

    /// The names of the series, as the page has them.
    fn names(&self) -> Vec<String> {
        let total = |kind: &str| if kind == "counter" { "_total" } else { "" };
        let names = self.families.iter();
        names
            .map(|(name, [_, kind, _])| name.clone() + total(kind))
            .collect()
    }
}

async fn text(response: Response) -> String {
    let form = response.headers()[CONTENT_TYPE]
        .to_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        form,
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    String::from_utf8(body.to_vec()).unwrap()
}

async fn of_controller(status: &Status) -> Scrape {
    let common = vec![("group", "shop".to_owned())];
    Scrape::read(&text(expose(controller::FAMILIES, common, status)).await)
}

fn nodes(ready: impl IntoIterator<Item = Option<bool>>) -> Vec<NodeStanding> {
    let node = |ready| NodeStanding {
        name: "node".to_owned(),
        ready,
        kubelet: None,
    };
    ready.into_iter().map(node).collect()
}

async fn of_agent() -> Scrape {
    let shown = keeper::shown_of_a_primary().await;
    let scraped = agent::Scraped {
        now: MonoTime(shown.at.0 + Duration::from_secs(1)),
        wall: WallTime(1_767_225_615_000),
        shown,
        cluster: Some(ClusterSeen {
            look: Ok(ClusterLook {
                version: "v1.36.2".to_owned(),
                nodes: Some(nodes([Some(true), Some(true), None])),
            }),
            credential_age: Some(Duration::from_secs(90)),
        }),
    };
    let common = vec![("group", "shop".to_owned()), ("site", "aws".to_owned())];
    Scrape::read(&text(expose(agent::FAMILIES, common, &scraped)).await)
}

fn quiet() -> GroupState {
    GroupState::new(&topology())
}

/// A status in the steady state, while the active site fails, in the middle of a plan, and of one that
/// is stuck.
fn all_states() -> [Status; 4] {
    let stuck = Event::Stuck {
        why: "throttled".to_owned(),
    };
    [
        status_of(&quiet(), |_| ()),
        status_of(&quiet(), Earth::lose_aws),
        status_of(&walking(4, &[Event::Started]), Earth::lose_aws),
        status_of(&walking(9, &[Event::Started, stuck]), Earth::lose_aws),
    ]
}

/// The families that a table of the page lists.
fn listed(table: &str) -> Vec<String> {
    let rows = table
        .lines()
        .filter_map(|line| line.strip_prefix("| `failover_"));
    let mut names: Vec<String> = rows
        .map(|row| format!("failover_{}", row.split_once('`').unwrap().0))
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn each_metric_has_help_type_and_unit_and_the_page_lists_exactly_these() {
    let page = metrics_page();
    let (of_the_controller, of_the_agent) = page.split_once("## The agent").unwrap();
    let mut scrapes = vec![(of_agent().await, listed(of_the_agent))];
    for status in all_states() {
        scrapes.push((of_controller(&status).await, listed(of_the_controller)));
    }
    for (scrape, listed) in scrapes {
        let mut names = scrape.names();
        names.sort();
        assert_eq!(names, listed);
        for (name, [help, kind, unit]) in &scrape.families {
            assert!(help.len() > 10 && help.ends_with('.'), "{name}: {help}");
            assert!(
                ["gauge", "counter"].contains(&kind.as_str()),
                "{name}: {kind}"
            );
            let base = ["seconds", "bytes"]
                .into_iter()
                .find(|base| name.ends_with(base));
            assert_eq!(unit, base.unwrap_or_default(), "{name}");
        }
    }
}

#[test]
fn the_page_is_the_one_in_the_documentation_and_what_the_program_prints() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    if std::env::var_os("UPDATE_DOCS").is_some_and(|value| value == "1") {
        std::fs::write(&path, metrics_page()).unwrap();
    }
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(
        text,
        metrics_page(),
        "run the tests once with UPDATE_DOCS=1"
    );
    let done = Command::new(env!("CARGO_BIN_EXE_failover"))
        .args(["generate", "metrics"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(done.stdout).unwrap(), text);
}

#[tokio::test]
async fn what_the_controller_shows_is_its_status() {
    let [steady, failing, moving, stuck] = all_states();
    let scrape = of_controller(&steady).await;
    for (series, value) in [
        (r#"ready{group="shop"}"#, "1"),
        (r#"epoch{group="shop"}"#, "1"),
        (r#"site_active{group="shop",site="aws"}"#, "1"),
        (r#"site_active{group="shop",site="gcp"}"#, "0"),
        (
            r#"target_state{group="shop",site="aws",target="database",state="healthy"}"#,
            "1",
        ),
        (
            r#"target_votes{group="shop",site="aws",target="database",says="for"}"#,
            "3",
        ),
        (r#"database_takes_writes{group="shop",site="aws"}"#, "1"),
        (r#"database_takes_writes{group="shop",site="gcp"}"#, "0"),
        (r#"replication_streaming{group="shop"}"#, "1"),
        (r#"loss_limit_bytes{group="shop"}"#, "16777216"),
        (r#"automation_state{group="shop",state="armed"}"#, "1"),
        (r#"automation_state{group="shop",state="held"}"#, "0"),
        (r#"hold_end_timestamp_seconds{group="shop"}"#, "0.0"),
        (r#"plan_state{group="shop",state="none"}"#, "1"),
        (r#"log_entries_total{group="shop"}"#, "42"),
        (r#"site_fenced{group="shop",site="aws"}"#, "0"),
    ] {
        assert_eq!(scrape.value(series), value, "{series}");
    }
    let scrape = of_controller(&failing).await;
    let state = |state: &str| {
        let labels = r#"group="shop",site="aws",target="database""#;
        scrape.value(&format!(r#"target_state{{{labels},state="{state}"}}"#))
    };
    assert_eq!((state("failed"), state("healthy")), ("1", "0"));
    assert_eq!(
        scrape.value(r#"database_takes_writes{group="shop",site="aws"}"#),
        "0"
    );
    let scrape = of_controller(&moving).await;
    assert_eq!(scrape.value(r#"ready{group="shop"}"#), "0");
    assert_eq!(
        scrape.value(r#"plan_state{group="shop",state="open"}"#),
        "1"
    );
    assert_eq!(scrape.value(r#"plan_step{group="shop",step="fence"}"#), "1");
    assert_eq!(scrape.value(r#"plan_step{group="shop",step="sever"}"#), "0");
    let scrape = of_controller(&stuck).await;
    assert_eq!(
        scrape.value(r#"plan_state{group="shop",state="stuck"}"#),
        "1"
    );
    let labels = r#"group="shop",code="plan-stuck",severity="block""#;
    assert_eq!(scrape.value(&format!("reason_active{{{labels}}}")), "1");
}

#[tokio::test]
async fn every_series_of_a_set_is_there_in_every_state() {
    let mut sets = Vec::new();
    for status in all_states() {
        let scrape = of_controller(&status).await;
        // Steps are those of a plan.
        let series = scrape
            .series
            .into_keys()
            .filter(|it| !it.contains("plan_step"));
        sets.push(series.collect::<Vec<_>>());
    }
    let codes = sets[0]
        .iter()
        .filter(|it| it.starts_with("failover_reason_active"))
        .count();
    assert_eq!(codes, 2 * Code::ALL.len());
    assert!(sets.iter().all(|set| *set == sets[0]), "{sets:#?}");
}

#[tokio::test]
async fn what_is_not_known_fires_an_alert_on_more_than_and_no_other() {
    let mut never = status_of(&quiet(), |_| ());
    never.situation.replication = failover::engine::replication::Replication::default();
    never.decision.loss.bytes = None;
    never.decision.loss.window = None;
    for site in never.situation.sites.values_mut() {
        (site.agent, site.clock) = (None, None);
    }
    let scrape = of_controller(&never).await;
    for series in [
        r#"standby_receive_lag_bytes{group="shop"}"#,
        r#"standby_replay_lag_seconds{group="shop"}"#,
        r#"loss_window_seconds{group="shop"}"#,
        r#"loss_estimate_bytes{group="shop"}"#,
        r#"agent_report_age_seconds{group="shop",site="aws"}"#,
    ] {
        assert_eq!(scrape.value(series), "inf", "{series}");
    }
    for series in [
        r#"clock_skew_seconds{group="shop",site="aws"}"#,
        r#"site_fenced{group="shop",site="aws"}"#,
    ] {
        assert_eq!(scrape.value(series), "NaN", "{series}");
    }
}

#[tokio::test]
async fn what_the_agent_shows_is_what_its_keeper_knows() {
    let scrape = of_agent().await;
    let labels = r#"{group="shop",site="aws"}"#;
    let value = |name: &str| scrape.value(&format!("{name}{labels}"));
    assert_eq!(value("agent_epoch"), "1");
    assert_eq!(value("agent_holds_right"), "1");
    assert_eq!(value("agent_primary"), "1");
    assert_eq!(value("agent_fenced"), "0");
    assert_eq!(value("agent_guard_up"), "1");
    assert_eq!(value("agent_cluster_up"), "1");
    assert_eq!(value("agent_cluster_credential_age_seconds"), "90.0");
    for (ready, count) in [("yes", "2"), ("no", "0"), ("unknown", "1")] {
        let labels = format!("{{group=\"shop\",site=\"aws\",ready=\"{ready}\"}}");
        let name = format!("agent_cluster_nodes{labels}");
        assert_eq!(scrape.value(&name), count);
    }
    let end: f64 = value("agent_right_end_timestamp_seconds").parse().unwrap();
    assert!((1_767_225_615.0..1_767_225_675.0).contains(&end), "{end}");
    let age = |from: &str| {
        let labels = format!(r#"{{group="shop",site="aws",from="{from}"}}"#);
        scrape.value(&format!("agent_answer_age_seconds{labels}"))
    };
    let asked: f64 = age("controller").parse().unwrap();
    assert!((1.0..30.0).contains(&asked), "{asked}");
    assert_eq!(age("peer"), "inf");
}
