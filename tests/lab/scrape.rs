//! Controller and agents, scraped by a real Prometheus.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};

use failover::lab::name_server::free_port;
use serde_json::Value;

use crate::stage::{on_a_lab, until};

/// A Prometheus that scrapes each second, ended with the test.
struct Prometheus {
    child: std::process::Child,
    address: SocketAddr,
    client: reqwest::Client,
}

impl Prometheus {
    fn start(dir: &Path, targets: &[(&str, SocketAddr)]) -> Self {
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let address = SocketAddr::new(ip, free_port(ip).unwrap());
        let mut config = "global: {scrape_interval: 1s}\nscrape_configs:\n".to_owned();
        for (job, target) in targets {
            config +=
                &format!("- {{job_name: {job}, static_configs: [{{targets: ['{target}']}}]}}\n");
        }
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(dir.join("prometheus.yml"), config).unwrap();
        let said = std::fs::File::create(dir.join("said")).unwrap();
        let child = Command::new("prometheus")
            .arg(format!(
                "--config.file={}",
                dir.join("prometheus.yml").display()
            ))
            .arg(format!(
                "--storage.tsdb.path={}",
                dir.join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .stderr(said)
            .spawn()
            .expect("no `prometheus`: tests/install-packages installs it");
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        Self {
            child,
            address,
            client,
        }
    }

    async fn page(&self, at: SocketAddr, path: &str) -> Option<String> {
        let answer = self.client.get(format!("http://{at}{path}")).send().await;
        answer.ok()?.text().await.ok()
    }

    /// What its API answers; null while it does not.
    async fn api(&self, path: &str) -> Value {
        let text = self.page(self.address, &format!("/api/v1/{path}")).await;
        let answer: Option<Value> = text.and_then(|text| serde_json::from_str(&text).ok());
        answer.map_or(Value::Null, |answer| answer["data"].clone())
    }

    /// The value of a series; none where there is not exactly one.
    async fn value(&self, series: &str) -> Option<String> {
        let found = self.api(&format!("query?query={series}")).await;
        let found = found["result"].as_array()?.clone();
        let [only] = found.as_slice() else {
            return None;
        };
        Some(only["value"][1].as_str()?.to_owned())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.child.kill().unwrap_or_default();
        self.child.wait().map(drop).unwrap_or_default();
    }
}

/// What `promtool` finds wrong with a scrape. It reads the older format, in which the family of a counter is
/// called as its series are.
fn complaints(scraped: &str) -> String {
    let counters = scraped
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"));
    let mut text = scraped.to_owned();
    for name in counters {
        for what in ["HELP", "TYPE"] {
            let line = format!("# {what} {name} ");
            text = text.replace(&line, &format!("# {what} {name}_total "));
        }
    }
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("no `promtool`: tests/install-packages installs it");
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let done = child.wait_with_output().unwrap();
    let said = [done.stdout, done.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    assert_eq!(done.status.success(), said.is_empty(), "{said}");
    said
}

#[test]
fn prometheus_takes_what_controller_and_agents_show_and_finds_nothing_wrong() {
    let test = "scrape::prometheus_takes_what_controller_and_agents_show_and_finds_nothing_wrong";
    on_a_lab(test, async |lab| {
        let [aws, gcp] = &lab.layout.sites;
        let targets = [
            ("controller", lab.layout.controller_plain),
            ("aws", aws.agent_plain),
            ("gcp", gcp.agent_plain),
        ];
        let prometheus = Prometheus::start(&lab.layout.dir.join("prometheus"), &targets);
        until("everything is scraped", async || {
            let up = prometheus.value("sum(up)").await;
            up.as_deref() == Some("3")
        })
        .await;
        let mut families = BTreeMap::new();
        for (_, target) in targets {
            let text = prometheus.page(target, "/metrics").await.unwrap();
            assert_eq!(complaints(&text), "", "{text}");
            for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
                let (name, kind) = line.split_once(' ').unwrap();
                families.insert(name.to_owned(), kind.to_owned());
            }
        }
        assert!(families.len() > 40, "{families:?}");
        let known = prometheus.api("metadata").await;
        for (name, kind) in &families {
            let of_it = &known[name][0];
            assert_eq!(of_it["type"], kind.as_str(), "{name}: {of_it}");
            assert!(
                of_it["help"].as_str().is_some_and(|help| help.len() > 10),
                "{of_it}"
            );
            let base = ["seconds", "bytes"]
                .into_iter()
                .find(|base| name.ends_with(base));
            assert_eq!(of_it["unit"], base.unwrap_or_default(), "{name}: {of_it}");
        }
        for (series, value) in [
            ("failover_ready", "1"),
            ("failover_site_active%7Bsite=%22aws%22%7D", "1"),
            ("failover_agent_holds_right%7Bsite=%22aws%22%7D", "1"),
            ("failover_agent_holds_right%7Bsite=%22gcp%22%7D", "0"),
            ("sum(failover_build_info)", "3"),
        ] {
            let found = prometheus.value(series).await;
            assert_eq!(found.as_deref(), Some(value), "{series}");
        }
    });
}
