//! `docs/configuration.md` in step with the code that reads the files.

use std::collections::BTreeSet;
use std::path::Path;

use failover::config::schema::schema;
use failover::engine::document::{Key, Kind, human};
use failover::engine::policy::Policy;
use failover::{agent, app, observer};

mod pod;
mod refused;

const GUIDE: &str = include_str!("../../docs/configuration.md");
const STANDARD: &str = include_str!("../../policies/standard.toml");

/// Each file, the heading of its part of the guide, and the keys that its reader asks for.
fn files() -> [(&'static str, Vec<Key>); 4] {
    [
        (
            "## The controller: `failover.toml`",
            app::config::Config::keys(),
        ),
        ("## The agent: `agent.toml`", agent::config::Config::keys()),
        (
            "## The observer: `observer.toml`",
            observer::config::Config::keys(),
        ),
        ("## The policy", Policy::keys()),
    ]
}

/// The text below a heading, up to the next one of its level.
fn part(heading: &str) -> &'static str {
    let (_, below) = GUIDE
        .split_once(&format!("{heading}\n"))
        .unwrap_or_else(|| panic!("no heading {heading}"));
    below.split("\n## ").next().unwrap()
}

/// What the guide says of a key: its form, and its default.
fn row(key: &Key) -> (String, String, bool) {
    let form = match &key.kind {
        Kind::Text => "text".to_owned(),
        Kind::List => "list of texts".to_owned(),
        Kind::Flag => "`true` or `false`".to_owned(),
        Kind::Number(least, most) => format!("{least} to {most}"),
        Kind::Duration(least, most) => format!("{} to {}", human(*least), human(*most)),
        Kind::Bytes => "amount of data".to_owned(),
        Kind::Choice(words) => format!("`\"{}\"`", words.join("\"`, `\"")),
        Kind::Table => "table".to_owned(),
        Kind::Tables => "list of tables".to_owned(),
    };
    (key.path.clone(), form, !key.optional)
}

#[test]
fn the_guide_has_exactly_the_keys_of_each_file_with_form_and_range() {
    for (heading, keys) in files() {
        let expected: BTreeSet<_> = keys.iter().map(row).collect();
        let rows = part(heading).lines().filter(|line| line.starts_with("| `"));
        let documented: BTreeSet<_> = rows
            .map(|line| {
                let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
                assert_eq!(cells.len(), 4, "{line}");
                assert!(!cells[3].is_empty(), "{line}");
                let key = cells[0].trim_matches('`').to_owned();
                (key, cells[1].to_owned(), cells[2] == "required")
            })
            .collect();
        let missing: Vec<_> = expected.difference(&documented).collect();
        let invented: Vec<_> = documented.difference(&expected).collect();
        assert!(
            missing.is_empty() && invented.is_empty(),
            "{heading}\nnot in the guide: {missing:#?}\nonly in the guide: {invented:#?}"
        );
    }
}

/// The first example in the guide whose first line names this.
fn example(name: &str) -> &'static str {
    GUIDE
        .split("```toml\n")
        .skip(1)
        .filter_map(|block| block.split("```").next())
        .find(|block| block.lines().next().unwrap().contains(name))
        .unwrap_or_else(|| panic!("no example {name}"))
}

#[test]
fn the_examples_of_the_guide_can_be_read() {
    let folder = Path::new("/etc/failover");
    let controller = app::config::Config::parse("failover.toml", example("failover.toml"), folder)
        .unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(controller.topology().first.as_str(), "aws");
    assert_eq!(controller.topology().second.as_str(), "gcp");
    assert_eq!(controller.policy, folder.join("standard.toml"));
    assert_eq!(controller.traffic.len(), 1);

    let aws = agent::config::Config::parse("agent.toml", example("agent.toml"), folder)
        .unwrap_or_else(|problems| panic!("{problems}"));
    let of_controller = &controller.sites[&aws.site];
    assert_eq!(of_controller.agent.to_string(), aws.listen.to_string());
    assert_eq!(aws.controller.to_string(), controller.listen.to_string());
    assert_eq!(aws.group, controller.group);

    // Not through the controller's own network, so the addresses are others.
    let paris = observer::config::Config::parse("observer.toml", example("observer.toml"), folder)
        .unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(paris.group, controller.group);
    assert!(paris.sites.keys().eq(controller.sites.keys()));
    let (before, after) = example("failover.toml").split_once("[[traffic]]").unwrap();
    let named = format!("{before}{}[[traffic]]{after}", example("[[observers]]"));
    let named = app::config::Config::parse("failover.toml", &named, folder)
        .unwrap_or_else(|problems| panic!("{problems}"));
    assert!(named.observers.contains(&paris.name));
}

/// The guide's file with another table in place of its `[[traffic]]`.
fn with_traffic(name: &str) -> app::config::Config {
    let (before, _) = example("failover.toml").split_once("[[traffic]]").unwrap();
    let text = format!("{before}{}", example(name));
    app::config::Config::parse("failover.toml", &text, Path::new("/"))
        .unwrap_or_else(|problems| panic!("{problems}"))
}

#[test]
fn every_kind_of_traffic_can_be_read() {
    use app::config::TrafficKind;

    let config = with_traffic("Route 53");
    let TrafficKind::Route53(zone) = &config.traffic[0].kind else {
        panic!("not Route 53");
    };
    let aws = &zone.records[&config.first_active];
    assert_eq!(aws.value, "198.51.100.20");
    assert_eq!(aws.identifier.as_deref(), Some("shop-aws"));

    let config = with_traffic("Cloud DNS");
    let TrafficKind::CloudDns(zone) = &config.traffic[0].kind else {
        panic!("not Cloud DNS");
    };
    assert_eq!(zone.values[&config.first_active], "198.51.100.20");
    assert_eq!(zone.access.project, "shop-project");
    let servers = config.traffic[0].name_servers_of("shop.example.com");
    assert_eq!(servers.len(), 2);
    assert!(
        config.traffic[0]
            .name_servers_of("other.example")
            .is_empty()
    );

    let config = with_traffic("Google's load balancer");
    let TrafficKind::GoogleBackend(service) = &config.traffic[0].kind else {
        panic!("not a backend service");
    };
    assert_eq!(service.groups.values().flatten().count(), 3);
    assert!(
        config.traffic[0].record().is_none(),
        "it has no TTL and no zone"
    );
}

#[test]
fn every_key_of_a_file_is_in_its_schema() {
    for (title, keys) in files() {
        let schema = schema(title, &keys);
        for key in keys {
            let mut at = &schema;
            for step in key.path.split('.') {
                at = match (step, step.strip_suffix("[]")) {
                    ("*", _) => &at["additionalProperties"],
                    (_, Some(list)) => &at["properties"][list]["items"],
                    (name, None) => &at["properties"][name],
                };
            }
            assert!(
                at.is_object() && at.get("type").or(at.get("enum")).is_some(),
                "{}",
                key.path
            );
        }
    }
}

#[test]
fn the_guide_makes_the_tables_that_the_code_makes() {
    let plain = |text: &str| text.split_whitespace().collect::<String>();
    let code = include_str!("../../src/adapters/postgres/prepare.rs");
    let guide = plain(GUIDE);
    let mut made = 0;
    for table in code.split("CREATE TABLE").skip(1) {
        let table = plain(table.split(';').next().unwrap());
        assert!(guide.contains(&format!("CREATETABLE{table};")), "{table}");
        made += 1;
    }
    assert_eq!(made, 2);
}
