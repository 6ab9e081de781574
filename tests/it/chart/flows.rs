//! The network policies open exactly the ports that the rendered files listen on and connect to.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Manifest, all, list, named, of_kind, texts_of};

type Ports = BTreeSet<u64>;

const DNS: u64 = 53;

/// The file of a component, as TOML.
fn file(manifests: &[Manifest], component: &str) -> Option<toml::Table> {
    let maps = of_kind(manifests, "ConfigMap").into_iter();
    let mut found = maps.filter(|map| map["metadata"]["name"] == format!("failover-{component}"));
    let data = found.next()?["data"].as_object().unwrap().clone();
    let mut files = data.iter().filter(|(name, _)| *name != "policy.toml");
    let (_, text) = files.next().unwrap();
    Some(text.as_str().unwrap().parse().unwrap())
}

/// The port that a text leads to: a URL, a connection string, or `host:port`.
fn port_of(text: &str) -> Option<u64> {
    if let Some((scheme, rest)) = text.split_once("://") {
        let place = rest.split('/').next()?;
        let port = place
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse().ok());
        return port.or(Some(if scheme == "https" { 443 } else { 80 }));
    }
    if let Some(port) = text
        .split_whitespace()
        .find_map(|part| part.strip_prefix("port="))
    {
        return port.parse().ok();
    }
    let (host, port) = text.rsplit_once(':')?;
    if host.is_empty() || host.contains(' ') {
        None
    } else {
        port.parse().ok()
    }
}

/// Every port that the texts of a file lead to, apart from those of our own listeners.
fn connects_to(file: &toml::Table) -> Ports {
    let texts = texts_of(file).into_iter();
    let outward = texts.filter(|(key, _)| !key.starts_with("listen"));
    let ports = outward.filter_map(|(key, text)| match key.as_str() {
        // The address of an API server may be in another file, or in the pod's environment.
        "access" => Some(443),
        _ => port_of(&text),
    });
    ports.collect()
}

/// The ports that a process listens on, and PostgreSQL with it.
fn listens_on(table: &toml::Table) -> Ports {
    let mut found = Ports::new();
    for part in table.values().filter_map(toml::Value::as_table) {
        let listeners = part
            .iter()
            .filter(|(key, _)| matches!(key.as_str(), "listen" | "listen_plain"));
        found.extend(listeners.filter_map(|(_, text)| port_of(text.as_str()?)));
    }
    let postgres = table.get("postgres").and_then(|it| it.get("port"));
    let port = postgres.and_then(toml::Value::as_integer);
    found.extend(port.and_then(|port| u64::try_from(port).ok()));
    found
}

fn opened(rules: &Value) -> Ports {
    let rules = list(rules).iter().flat_map(|rule| {
        let ports = list(&rule["ports"]);
        assert!(!ports.is_empty(), "a rule without ports opens all: {rule}");
        ports
    });
    rules.map(|port| port["port"].as_u64().unwrap()).collect()
}

#[test]
fn each_policy_opens_what_the_file_listens_on_and_connects_to() {
    let mut seen = 0;
    for (values, manifests) in all() {
        for component in ["controller", "agent", "observer"] {
            let Some(file) = file(&manifests, component) else {
                continue;
            };
            seen += 1;
            let policy = named(
                &manifests,
                "NetworkPolicy",
                &format!("failover-{component}"),
            );
            let (spec, what) = (&policy["spec"], format!("{values}: {component}"));
            assert_eq!(
                opened(&spec["ingress"]),
                listens_on(&file),
                "{what} is reached at"
            );
            let wanted = connects_to(&file);
            let mut opened = opened(&spec["egress"]);
            // Open for names, which a file need not hold.
            if !wanted.contains(&DNS) {
                opened.remove(&DNS);
            }
            assert_eq!(opened, wanted, "{what} connects to");
        }
    }
    assert_eq!(seen, 6, "three examples, and three of everything");
}

/// Whatever listens in a pod is a port of it.
#[test]
fn a_container_names_the_ports_that_it_listens_on() {
    for (values, manifests) in all() {
        let Some(file) = file(&manifests, "controller") else {
            continue;
        };
        let set = named(&manifests, "StatefulSet", "failover-controller");
        let container = &list(&set["spec"]["template"]["spec"]["containers"])[0];
        let ports = list(&container["ports"]).iter();
        let ports: Ports = ports
            .map(|port| port["containerPort"].as_u64().unwrap())
            .collect();
        assert_eq!(ports, listens_on(&file), "{values}");
    }
}

#[test]
fn the_port_of_a_text_is_found() {
    for (text, port) in [
        ("10.1.0.10:7401", Some(7401)),
        ("[::]:7400", Some(7400)),
        ("host=10.1.0.10 port=5433 dbname=app", Some(5433)),
        ("http://10.1.0.20:8080/healthz", Some(8080)),
        ("http://10.1.0.20/a:1", Some(80)),
        ("https://shop.example.com/healthz", Some(443)),
        ("60s", None),
        ("log_line_prefix=%m [%p] ", None),
        ("shop.example.com.", None),
    ] {
        assert_eq!(port_of(text), port, "{text}");
    }
}
