//! The tables `[[traffic]]`. Plain values; the adapters check what only they can know.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::{HeaderName, Uri};
use data_encoding::BASE64;

use super::repeated;
use crate::adapters::gcp::check_key_file;
use crate::config::{AccessError, Files, Ip, Socket, Url, read_text_secret};
use crate::engine::document::Section;
use crate::engine::topology::{SiteName, TargetName};

/// How long one answer of a name server or of a cloud's API may take by default.
const TIMEOUT: Duration = Duration::from_secs(2);
const DAY: Duration = Duration::from_secs(86_400);

/// One `[[traffic]]` table.
#[derive(Debug, Clone)]
pub struct TrafficConfig {
    /// Its name, unique.
    pub name: TargetName,
    /// How long one answer may take: 100 ms to 30 s.
    pub timeout: Duration,
    /// What it is, and what belongs to that.
    pub kind: TrafficKind,
}

/// What decides where users go.
#[derive(Debug, Clone)]
pub enum TrafficKind {
    /// A zone on a name server that takes dynamic updates.
    Rfc2136(Rfc2136Config),
    /// A zone in Amazon Route 53. Credentials come from the standard AWS environment.
    Route53(Route53Config),
    /// A zone in Google Cloud DNS.
    CloudDns(CloudDnsConfig),
    /// A backend service behind a Google global external application load balancer.
    GoogleBackend(GoogleBackendConfig),
}

/// The record of a target that is a DNS zone.
#[derive(Debug, Clone)]
pub struct RecordConfig {
    /// The DNS zone.
    pub zone: String,
    /// The record in it.
    pub record: String,
    /// How long resolvers may cache an answer, in seconds: 1 s to 1 day.
    pub ttl_seconds: u32,
    /// Every name server that users' resolvers ask. At least one.
    pub name_servers: Vec<SocketAddr>,
}

/// A zone on a name server that takes dynamic updates, signed with HMAC-SHA256.
#[derive(Debug, Clone)]
pub struct Rfc2136Config {
    /// The record.
    pub record: RecordConfig,
    /// The zone's primary.
    pub server: SocketAddr,
    /// The name of the key, as the server knows it.
    pub tsig_name: String,
    /// Its secret: see [`read_tsig_secret`].
    pub tsig_secret_file: PathBuf,
    /// The addresses of each site; at least one each, none twice.
    pub addresses: BTreeMap<SiteName, Vec<IpAddr>>,
}

/// A hosted zone with one weighted record for each site.
#[derive(Debug, Clone)]
pub struct Route53Config {
    /// The record.
    pub record: RecordConfig,
    /// The id of the hosted zone.
    pub zone_id: String,
    /// The type of the weighted records.
    pub record_type: RecordType,
    /// The API's address, if not Amazon's.
    pub endpoint: Option<Uri>,
    /// The record of each site.
    pub records: BTreeMap<SiteName, Route53Record>,
}

/// The weighted record of one site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route53Record {
    /// Its address or name.
    pub value: String,
    /// Its set identifier; `None`: made from the site's name.
    pub identifier: Option<String>,
}

/// A managed zone with one weighted record set, of which each item leads to one site.
#[derive(Debug, Clone)]
pub struct CloudDnsConfig {
    /// The record.
    pub record: RecordConfig,
    /// Whose right is used, and where.
    pub access: GoogleAccess,
    /// The zone's name in the project.
    pub managed_zone: String,
    /// The type of the record set.
    pub record_type: RecordType,
    /// The address or name of each site.
    pub values: BTreeMap<SiteName, String>,
}

/// A backend service whose backends are the sites'.
#[derive(Debug, Clone)]
pub struct GoogleBackendConfig {
    /// Whose right is used, and where.
    pub access: GoogleAccess,
    /// Its name in the project.
    pub backend_service: String,
    /// The groups of each site, by the ends of their URLs; at least one each.
    pub groups: BTreeMap<SiteName, Vec<String>>,
    /// A page of the service that names the site which answers.
    pub url: Uri,
    /// The response header that does so, in lower case.
    pub site_header: String,
    /// Where the load balancer takes requests. At least one.
    pub edges: Vec<SocketAddr>,
}

/// The way to Google.
#[derive(Debug, Clone)]
pub struct GoogleAccess {
    /// The project.
    pub project: String,
    /// A service account's key; `None`: what the machine has.
    pub key_file: Option<PathBuf>,
    /// Replaces Google's address, without any credentials: for a double.
    pub endpoint: Option<Uri>,
}

/// The type of a weighted record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordType {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Names.
    Cname,
}

impl TrafficConfig {
    /// The record, where it is one.
    pub fn record(&self) -> Option<&RecordConfig> {
        match &self.kind {
            TrafficKind::Rfc2136(update) => Some(&update.record),
            TrafficKind::Route53(zone) => Some(&zone.record),
            TrafficKind::CloudDns(zone) => Some(&zone.record),
            TrafficKind::GoogleBackend(_) => None,
        }
    }

    /// The name servers that users' resolvers ask for this name; none where it is not in the zone.
    pub fn name_servers_of(&self, host: &str) -> &[SocketAddr] {
        let record = self.record();
        let serves = record.filter(|record| is_below(host, &record.zone));
        serves.map_or(&[], |record| &record.name_servers)
    }
}

impl RecordConfig {
    /// How long resolvers may keep an answer.
    pub fn ttl(&self) -> Duration {
        Duration::from_secs(self.ttl_seconds.into())
    }
}

/// Reads a TSIG secret: one line of base64 in a file that only its owner may read.
pub fn read_tsig_secret(path: &Path) -> Result<Vec<u8>, AccessError> {
    let text = read_text_secret(path)?;
    BASE64
        .decode(text.expose().as_bytes())
        .map_err(|_cause| AccessError::Malformed {
            path: path.to_owned(),
            what: "a TSIG secret: write it as one line of base64",
        })
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Rfc2136,
    Route53,
    CloudDns,
    GoogleBackend,
}

const KINDS: [(&str, Kind); 4] = [
    ("rfc2136", Kind::Rfc2136),
    ("route53", Kind::Route53),
    ("cloud-dns", Kind::CloudDns),
    ("google-backend", Kind::GoogleBackend),
];

/// All targets. `sites` are the names that a table for each site uses.
pub(super) fn build(
    root: &Section<'_>,
    files: Files<'_>,
    sites: &[String],
) -> Option<Vec<TrafficConfig>> {
    let built: Vec<_> = root
        .each("traffic")
        .iter()
        .map(|at| build_target(at, files, sites))
        .collect();
    let targets: Vec<TrafficConfig> = built.into_iter().collect::<Option<_>>()?;
    if let Some(name) = repeated(targets.iter().map(|target| &target.name)) {
        root.problem(
            "traffic",
            format!("two traffic targets are named `{name}`: give each a name of its own"),
        );
    }
    Some(targets)
}

fn build_target(at: &Section<'_>, files: Files<'_>, sites: &[String]) -> Option<TrafficConfig> {
    let name = at.parsed("name", "dns");
    let kind = at.choice("kind", &KINDS);
    let limits = Duration::from_millis(100)..=Duration::from_secs(30);
    let timeout = at.duration_or("timeout", limits, TIMEOUT);
    let rfc2136 = at.where_chosen(kind == Some(Kind::Rfc2136), |at| {
        build_rfc2136(at, files, sites).map(TrafficKind::Rfc2136)
    });
    let route53 = at.where_chosen(kind == Some(Kind::Route53), |at| {
        build_route53(at, sites).map(TrafficKind::Route53)
    });
    let cloud_dns = at.where_chosen(kind == Some(Kind::CloudDns), |at| {
        build_cloud_dns(at, files, sites).map(TrafficKind::CloudDns)
    });
    let backend = at.where_chosen(kind == Some(Kind::GoogleBackend), |at| {
        build_google_backend(at, files, sites).map(TrafficKind::GoogleBackend)
    });
    Some(TrafficConfig {
        name: name?,
        timeout,
        kind: rfc2136.or(route53).or(cloud_dns).or(backend)?,
    })
}

/// The keys of a target that is a DNS zone. `name_servers` is the key that lists those.
fn build_record(at: &Section<'_>, name_servers: &str) -> Option<RecordConfig> {
    let zone = at.text("zone", "example.com.");
    let record = at.text("record", "shop.example.com.");
    let ttl = at.duration("ttl", Duration::from_secs(1)..=DAY);
    let name_servers = at.filled_list::<Socket>(name_servers, "192.0.2.53:53");
    if let (Some(record), Some(zone)) = (&record, &zone)
        && !is_below(record, zone)
    {
        let key = at.path_of("record");
        let text = format!("`{key}` is \"{record}\", which is not in zone \"{zone}\"");
        at.problem("record", text);
    }
    if ttl.is_some_and(|ttl| ttl.subsec_nanos() != 0) {
        let key = at.path_of("ttl");
        at.problem("ttl", format!("`{key}` is not in whole seconds"));
    }
    Some(RecordConfig {
        zone: zone?,
        record: record?,
        ttl_seconds: u32::try_from(ttl?.as_secs()).ok()?,
        name_servers: sockets(name_servers?),
    })
}

/// Whether a name lies at or below a zone; a dot at the end means nothing here.
fn is_below(record: &str, zone: &str) -> bool {
    let plain = |name: &str| name.trim_end_matches('.').to_ascii_lowercase();
    let (record, zone) = (plain(record), plain(zone));
    record == zone || record.ends_with(&format!(".{zone}"))
}

fn build_rfc2136(at: &Section<'_>, files: Files<'_>, sites: &[String]) -> Option<Rfc2136Config> {
    let record = build_record(at, "authoritative");
    let server = at.parsed::<Socket>("server", "10.0.3.53:53");
    let tsig_name = at.text("tsig_name", "failover.example.com.");
    let secret = at.text("tsig_secret_file", "tsig.secret");
    let tsig_secret_file = files.path(at, "tsig_secret_file", secret, |path| {
        read_tsig_secret(path).map(drop)
    });
    let table = at.section("addresses");
    let addresses = of_each(sites, |site| {
        let addresses = table.filled_list::<Ip>(site, "10.1.0.20")?;
        Some(addresses.into_iter().map(|ip| ip.0).collect::<Vec<_>>())
    });
    let addresses = addresses?;
    if let Some(twice) = repeated(addresses.values().flatten()) {
        table.mistake(format!(
            "`{}` names {twice} twice: an address tells which site it belongs to",
            at.path_of("addresses")
        ));
    }
    Some(Rfc2136Config {
        record: record?,
        server: server?.0,
        tsig_name: tsig_name?,
        tsig_secret_file: tsig_secret_file?,
        addresses,
    })
}

fn build_record_type(at: &Section<'_>) -> Option<RecordType> {
    let types = [
        ("A", RecordType::A),
        ("AAAA", RecordType::Aaaa),
        ("CNAME", RecordType::Cname),
    ];
    at.choice("record_type", &types)
}

fn build_route53(at: &Section<'_>, sites: &[String]) -> Option<Route53Config> {
    let record = build_record(at, "name_servers");
    let zone_id = at.text("zone_id", "Z0123456789ABCDEFGHIJ");
    let record_type = build_record_type(at);
    let endpoint = at.optional_parsed::<Url>("endpoint", "http://127.0.0.1:4566");
    let values = at.section("values");
    let identifiers = at.optional_section("identifiers");
    let records = of_each(sites, |site| {
        let identifier = identifiers
            .as_ref()
            .and_then(|table| table.optional_text(site, "shop-aws"));
        Some(Route53Record {
            value: values.text(site, "192.0.2.20")?,
            identifier,
        })
    });
    Some(Route53Config {
        record: record?,
        zone_id: zone_id?,
        record_type: record_type?,
        endpoint: endpoint.map(|url| url.0),
        records: records?,
    })
}

fn build_google_access(at: &Section<'_>, files: Files<'_>) -> Option<GoogleAccess> {
    let project = at.text("project", "shop-project");
    let key = at.optional_text("key_file", "google-key.json");
    let key_file = files.path(at, "key_file", key, check_key_file);
    let endpoint = at.optional_parsed::<Url>("endpoint", "http://127.0.0.1:4566");
    Some(GoogleAccess {
        project: project?,
        key_file,
        endpoint: endpoint.map(|url| url.0),
    })
}

fn build_cloud_dns(at: &Section<'_>, files: Files<'_>, sites: &[String]) -> Option<CloudDnsConfig> {
    let record = build_record(at, "name_servers");
    let access = build_google_access(at, files);
    let managed_zone = at.text("managed_zone", "shop-zone");
    let record_type = build_record_type(at);
    let table = at.section("values");
    let values = of_each(sites, |site| table.text(site, "192.0.2.20"));
    Some(CloudDnsConfig {
        record: record?,
        access: access?,
        managed_zone: managed_zone?,
        record_type: record_type?,
        values: values?,
    })
}

fn build_google_backend(
    at: &Section<'_>,
    files: Files<'_>,
    sites: &[String],
) -> Option<GoogleBackendConfig> {
    let access = build_google_access(at, files);
    let backend_service = at.text("backend_service", "shop-backends");
    let table = at.section("groups");
    let groups = of_each(sites, |site| {
        table.filled_list::<String>(site, "zones/europe-west3-a/networkEndpointGroups/shop")
    });
    let url = at.parsed::<Url>("url", "https://shop.example.com/healthz");
    let header = at.parsed::<HeaderName>("site_header", "x-failover-site");
    let edges = at.filled_list::<Socket>("edges", "198.51.100.80:443");
    Some(GoogleBackendConfig {
        access: access?,
        backend_service: backend_service?,
        groups: groups?,
        url: url?.0,
        site_header: header?.as_str().to_owned(),
        edges: sockets(edges?),
    })
}

/// One value for each site; all are built, so that all mistakes are found.
fn of_each<T>(
    sites: &[String],
    mut build: impl FnMut(&str) -> Option<T>,
) -> Option<BTreeMap<SiteName, T>> {
    let built: Vec<_> = sites
        .iter()
        .map(|site| {
            let value = build(site);
            site.parse().ok().zip(value)
        })
        .collect();
    built.into_iter().collect()
}

fn sockets(found: Vec<Socket>) -> Vec<SocketAddr> {
    found.into_iter().map(|socket| socket.0).collect()
}
