//! `failover generate manifests`: the Helm chart of `deploy/helm/failover`, rendered without Helm. Its
//! templates, defaults and schema are part of the program, so both ways of installing have one source.
//!
//! What Helm cannot do is done here beside it: the files of controller, agent and observer that a
//! manifest carries are read as these processes read them, so a mistake is found before it is applied.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use serde_json::{Map, Value, json};

use super::exit::Exit;
use super::output::Output;
use crate::engine::document::Problems;
use crate::engine::policy::Policy;

pub mod chart;
pub mod templates;
pub mod values;

/// Where the files of a process are in its pod.
const FILES: &str = "/etc/failover";

/// The part of an object's path that a comment of Helm's names, before a file's name.
const SOURCE: &str = "# Source: failover/";

/// `failover generate manifests`.
#[derive(Debug, Args)]
pub struct ManifestsArgs {
    /// The values, as for Helm; such as `deploy/kubernetes/neutral.yaml`
    #[arg(long, value_name = "FILE")]
    values: PathBuf,
    /// The namespace that they are made for
    #[arg(long, value_name = "NAME", default_value = "failover")]
    namespace: String,
    /// The release: what all names begin with
    #[arg(long, value_name = "NAME", default_value = "failover")]
    release: String,
}

/// What a chart is rendered for.
#[derive(Debug, Clone, Copy)]
pub struct Release<'a> {
    /// What all names begin with.
    pub name: &'a str,
    /// The namespace.
    pub namespace: &'a str,
}

/// One object, and where it comes from.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// The template, such as `templates/agent.yaml`.
    pub source: &'static str,
    /// As the template wrote it.
    pub text: String,
    /// As an API server reads it.
    pub object: Value,
}

/// Prints the manifests: as YAML, or as one `List` in JSON.
pub fn generate(args: &ManifestsArgs, output: &Output) -> anyhow::Result<Exit> {
    let shown = args.values.display().to_string();
    let text = std::fs::read_to_string(&args.values).with_context(|| format!("read `{shown}`"))?;
    let release = Release {
        name: &args.release,
        namespace: &args.namespace,
    };
    let manifests = render(&shown, &text, release)?;
    anyhow::ensure!(
        !manifests.is_empty(),
        "`{shown}` enables nothing\n\nhint: set `controller.enabled`, `agent.enabled`, `observer.enabled` or `rbac.enabled`"
    );
    if output.is_json() {
        let items: Vec<&Value> = manifests.iter().map(|each| &each.object).collect();
        output.json(&json!({ "apiVersion": "v1", "kind": "List", "items": items }))?;
    } else {
        let texts = manifests.iter().map(|each| {
            let text = each.text.trim_end();
            format!("---\n{SOURCE}{}\n{text}", each.source)
        });
        output.text(texts.collect::<Vec<_>>().join("\n"));
    }
    Ok(Exit::Done)
}

/// Every manifest for these values, in the order of the templates.
pub fn render(file: &str, values: &str, release: Release<'_>) -> anyhow::Result<Vec<Manifest>> {
    let values = values::read(file, values)?;
    let data = json!({
        "Values": values,
        "Release": { "Name": release.name, "Namespace": release.namespace },
    });
    let mut manifests = Vec::new();
    for (source, template) in chart::TEMPLATES {
        let rendered = templates::render(source, template, chart::HELPERS, &data)?;
        for text in documents(&rendered) {
            let object: Value = serde_saphyr::from_str(text)
                .with_context(|| format!("read what `{source}` gives for `{file}`"))?;
            if !object.is_null() {
                let text = text.to_owned();
                manifests.push(Manifest {
                    source,
                    text,
                    object,
                });
            }
        }
    }
    let problems: Vec<String> = manifests.iter().flat_map(check_files).collect();
    anyhow::ensure!(
        problems.is_empty(),
        "`{file}` makes files that the program would refuse:\n{}\n\nhint: line numbers are those of the file in the ConfigMap; docs/configuration.md has every key",
        problems.join("\n")
    );
    Ok(manifests)
}

/// The documents of a YAML text.
fn documents(text: &str) -> impl Iterator<Item = &str> {
    let parts = text.split("\n---\n");
    parts.map(|part| part.trim_start_matches("---\n").trim_matches('\n'))
}

/// What the processes would say against the files in a ConfigMap.
fn check_files(manifest: &Manifest) -> Vec<String> {
    let empty = Map::new();
    let data = match manifest.object["kind"].as_str() {
        Some("ConfigMap") => manifest.object["data"].as_object().unwrap_or(&empty),
        _ => &empty,
    };
    let problems = data.iter().filter_map(|(name, text)| {
        let text = text.as_str().unwrap_or_default();
        read_file(name, text)
            .err()
            .map(|problems| problems.to_string())
    });
    problems.collect()
}

/// Reads a file as the process does that it is for.
fn read_file(name: &str, text: &str) -> Result<(), Problems> {
    let folder = Path::new(FILES);
    match name {
        "failover.toml" => crate::app::config::Config::parse(name, text, folder).map(drop),
        "agent.toml" => crate::agent::config::Config::parse(name, text, folder).map(drop),
        "observer.toml" => crate::observer::config::Config::parse(name, text, folder).map(drop),
        _ => Policy::read(name, text).map(drop),
    }
}
