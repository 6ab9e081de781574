//! What is generated once: certificates and keys, completions, the man page, schemas, manifests.

use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};

use super::exit::Exit;
use super::manifests;
use super::output::Output;
use crate::adapters::certificates::Authority;
use crate::adapters::clock::SystemClock;
use crate::adapters::exposition::table;
use crate::adapters::keys::SigningKey;
use crate::adapters::tls::Identity;
use crate::agent::metrics as agent;
use crate::app::metrics as controller;
use crate::config::schema::schema;
use crate::engine::policy::Policy;
use crate::engine::topology::{GroupName, ObserverName, SiteName};
use crate::ports::Clock;

/// `failover certificates`.
#[derive(Debug, Args)]
pub struct CertificatesArgs {
    /// The output folder; an authority that is already there is reused
    #[arg(long, value_name = "FOLDER")]
    dir: PathBuf,
    /// The group
    #[arg(long)]
    group: GroupName,
    /// A site whose agent needs a certificate
    #[arg(long = "site", value_name = "SITE")]
    sites: Vec<SiteName>,
    /// An extra observer that needs a certificate
    #[arg(long = "observer", value_name = "NAME")]
    observers: Vec<ObserverName>,
    /// An operator of the group who needs a certificate
    #[arg(long = "operator", value_name = "NAME")]
    operators: Vec<String>,
    /// A read-only user of the group who needs a certificate
    #[arg(long = "reader", value_name = "NAME")]
    readers: Vec<String>,
    /// How long they are valid, such as `90days`
    #[arg(long = "for", value_name = "DURATION", default_value = "365days", value_parser = humantime::parse_duration)]
    lasting: Duration,
}

/// Creates an authority, its certificates, and the order key. Existing files are not replaced.
pub fn certificates(args: &CertificatesArgs, output: &Output) -> anyhow::Result<Exit> {
    let now = SystemClock.wall();
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&args.dir)
        .with_context(|| format!("make the folder `{}`", args.dir.display()))?;
    let authority = if args.dir.join("ca.pem").exists() {
        Authority::load(&args.dir)?
    } else {
        Authority::create(&args.dir, now, args.lasting)?
    };
    let mut identities = Vec::new();
    if !args.dir.join("controller.pem").exists() {
        identities.push(Identity::Controller);
    }
    identities.extend(args.sites.iter().map(|site| Identity::Agent {
        group: args.group.clone(),
        site: site.clone(),
    }));
    identities.extend(args.observers.iter().map(|name| Identity::Observer {
        group: args.group.clone(),
        name: name.clone(),
    }));
    identities.extend(people(args)?);
    for identity in identities {
        let files = authority.issue(&identity, now, args.lasting)?;
        output.text(format!(
            "{} {}",
            files.certificate.display(),
            files.key.display()
        ));
    }
    let orders = args.dir.join("orders.key");
    if !orders.exists() {
        let key = SigningKey::generate()?;
        key.to_file(&orders)?;
        let public = args.dir.join("orders.pub");
        key.verifying_key().to_file(&public)?;
        output.text(format!("{} {}", public.display(), orders.display()));
    }
    output.say("distribute: to each agent its own two files, `ca.pem` and `orders.pub`; to each observer its own and `ca.pem`; to the controller its own, `ca.pem` and `orders.key`; keep `ca.key` offline");
    Ok(Exit::Done)
}

/// The people who still need a certificate.
fn people(args: &CertificatesArgs) -> anyhow::Result<Vec<Identity>> {
    let operators = args.operators.iter().zip(std::iter::repeat("operator"));
    let readers = args.readers.iter().zip(std::iter::repeat("reader"));
    let named = operators.chain(readers).map(|(name, role)| {
        let identity: Identity = format!("{name}.{role}.{}.failover.internal", args.group)
            .parse()
            .with_context(|| format!("`{name}` is not a valid name"))?;
        anyhow::ensure!(
            matches!(identity, Identity::Operator { .. }),
            "`{name}` is not a valid name for a person\n\nhint: lower-case letters, digits and hyphens, such as `alice`"
        );
        Ok(identity)
    });
    named.collect()
}

/// `failover generate`.
#[derive(Debug, Subcommand)]
pub enum GenerateVerb {
    /// Completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// The man page
    Man,
    /// The JSON schema of a file
    Schema {
        /// The kind of file
        #[arg(value_enum)]
        of: SchemaOf,
    },
    /// The table of reasons, as in `docs/reasons.md`
    Reasons,
    /// The tables of metrics, as in `docs/metrics.md`
    Metrics,
    /// Kubernetes manifests from the chart's templates, without Helm
    Manifests(manifests::ManifestsArgs),
}

/// A file with a schema.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum SchemaOf {
    /// `failover.toml`
    Controller,
    /// `agent.toml`
    Agent,
    /// `observer.toml`
    Observer,
    /// A policy
    Policy,
}

/// Prints something that is generated from the program itself.
pub fn generate(verb: &GenerateVerb, output: &Output) -> anyhow::Result<Exit> {
    match verb {
        GenerateVerb::Completions { shell } => {
            let mut bytes = Vec::new();
            clap_complete::generate(*shell, &mut super::command(), "failover", &mut bytes);
            output.text(String::from_utf8(bytes)?.trim_end());
        }
        GenerateVerb::Man => {
            let mut bytes = Vec::new();
            clap_mangen::Man::new(super::command())
                .render(&mut bytes)
                .context("render the man page")?;
            output.text(String::from_utf8(bytes)?.trim_end());
        }
        GenerateVerb::Schema { of } => {
            let (title, keys) = match of {
                SchemaOf::Controller => ("failover.toml", crate::app::config::Config::keys()),
                SchemaOf::Agent => ("agent.toml", crate::agent::config::Config::keys()),
                SchemaOf::Observer => ("observer.toml", crate::observer::config::Config::keys()),
                SchemaOf::Policy => ("policy", Policy::keys()),
            };
            output.json(&schema(title, &keys))?;
        }
        GenerateVerb::Reasons => output.text(crate::engine::reason::table().trim_end()),
        GenerateVerb::Metrics => output.text(metrics_page().trim_end()),
        GenerateVerb::Manifests(args) => return manifests::generate(args, output),
    }
    Ok(Exit::Done)
}

/// `docs/metrics.md`: every metric of controller and agent.
pub fn metrics_page() -> String {
    const HEAD: &str = "# Metrics

Controller and agent each answer `/metrics` at their `listen_plain`, in the OpenMetrics text format: \
Prometheus scrapes it as it is. Times are in seconds, moments in seconds since 1970 (UTC), amounts of data in \
bytes. `+Inf` stands for \"never\" and \"not known, and perhaps any number\", so that an alert on \"more than\" \
fires; `NaN` for \"not known\" where no alert should. Yes and no are 1 and 0, and of a set of states each has \
its series. No label holds a plan's number, an address or what a person wrote. These are all of them: \
`failover generate metrics` prints this page, and a test keeps it in step with what is served.
";
    let controller = table(controller::FAMILIES, controller::COMMON);
    let agent = table(agent::FAMILIES, agent::COMMON);
    format!(
        "{HEAD}\n## The controller\n\nEach is read from the document that `failover status --output json` \
        shows; the last column says where in it.\n\n{controller}\n## The agent\n\n{agent}"
    )
}
