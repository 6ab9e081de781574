//! A real name server, Knot DNS, for one zone that takes signed dynamic updates.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use data_encoding::BASE64;
use hickory_proto::rr::RecordType;
use tokio::process::{Child, Command};

use crate::adapters::dns::{Lookup, plain_name};
use crate::adapters::rfc2136::{Settings, TsigKey};
use crate::engine::topology::{SiteName, TargetName};

/// How long the server may take to answer its first question. It takes about 0.1 s on an idle
/// machine.
const START_WITHIN: Duration = Duration::from_secs(20);
/// How long one answer of it may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// A running `knotd`. It ends with this value.
#[derive(Debug)]
pub struct NameServer {
    process: Child,
    address: SocketAddr,
    zone: String,
    key: TsigKey,
}

impl NameServer {
    /// Starts a server for `zone` on one address, with all its files in `dir`, and returns when it
    /// answers. Whoever has `key` may update and transfer the zone; anybody may ask.
    ///
    /// `knotd` starts the program, wherever it is to run.
    pub async fn start(
        knotd: std::process::Command,
        dir: &Path,
        ip: IpAddr,
        port: u16,
        zone: &str,
        key: TsigKey,
    ) -> anyhow::Result<Self> {
        let address = SocketAddr::new(ip, port);
        let config = dir.join("knot.conf");
        std::fs::write(&config, config_text(dir, address, zone, &key)).context("write config")?;
        std::fs::write(dir.join("zone"), zone_text(ip, zone)).context("write zone")?;
        let log = dir.join("knotd.log");
        let output = std::fs::File::create(&log).context("create log")?;
        let process = Command::from(knotd)
            .arg("-c")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("share log")?)
            .stderr(output)
            .kill_on_drop(true)
            .spawn()
            .map_err(|cause| {
                let hint = if cause.kind() == ErrorKind::NotFound {
                    "start `knotd`: it is not installed: install the package `knot`"
                } else {
                    "start `knotd`"
                };
                anyhow::Error::new(cause).context(hint)
            })?;
        let mut server = Self {
            process,
            address,
            zone: zone.to_owned(),
            key,
        };
        match tokio::time::timeout(START_WITHIN, server.ready()).await {
            Ok(Ok(())) => Ok(server),
            late_or_dead => {
                let log = std::fs::read_to_string(log).unwrap_or_default();
                bail!("`knotd` does not answer on {address}: {late_or_dead:?}; its log:\n{log}")
            }
        }
    }

    /// Waits until the server answers for its zone.
    async fn ready(&mut self) -> anyhow::Result<()> {
        let soa = Lookup {
            name: plain_name(&self.zone).map_err(anyhow::Error::msg)?,
            kind: RecordType::SOA,
            timeout: ANSWER_WITHIN,
        };
        let mut pause = tokio::time::interval(Duration::from_millis(20));
        loop {
            pause.tick().await;
            if let Some(status) = self.process.try_wait().context("look at `knotd`")? {
                bail!("it ended: {status}");
            }
            if soa
                .ask(self.address)
                .await
                .is_ok_and(|found| !found.is_empty())
            {
                return Ok(());
            }
        }
    }

    /// The process id; `None` once it has ended.
    pub fn pid(&self) -> Option<u32> {
        self.process.id()
    }

    /// Where it answers, over UDP and TCP.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The settings of a traffic target in this zone, with this server as the only one.
    pub fn settings(
        &self,
        name: TargetName,
        record: &str,
        addresses: BTreeMap<SiteName, Vec<IpAddr>>,
    ) -> Settings {
        Settings {
            name,
            server: self.address,
            authoritative: vec![self.address],
            zone: self.zone.clone(),
            record: record.to_owned(),
            ttl_seconds: 5,
            key: self.key.clone(),
            addresses,
            timeout: ANSWER_WITHIN,
        }
    }

    /// Ends the server now, and returns when it has ended.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.process.kill().await.context("kill `knotd`")
    }
}

/// The program. Debian puts it where the `PATH` of a plain user does not look.
pub fn program() -> &'static str {
    let packaged = "/usr/sbin/knotd";
    if Path::new(packaged).exists() {
        packaged
    } else {
        "knotd"
    }
}

/// A port that is free at this moment on this address, for UDP and for TCP.
pub fn free_port(ip: IpAddr) -> std::io::Result<u16> {
    loop {
        let tcp = TcpListener::bind((ip, 0))?;
        let port = tcp.local_addr()?.port();
        match UdpSocket::bind((ip, port)) {
            Ok(_free) => return Ok(port),
            Err(cause) if cause.kind() == ErrorKind::AddrInUse => {}
            Err(cause) => return Err(cause),
        }
    }
}

fn config_text(dir: &Path, address: SocketAddr, zone: &str, key: &TsigKey) -> String {
    let (dir, ip, port) = (dir.display(), address.ip(), address.port());
    let (name, secret) = (&key.name, BASE64.encode(&key.secret));
    format!(
        r#"server:
    rundir: "{dir}"
    pidfile: "{dir}/knot.pid"
    listen: {ip}@{port}
    udp-workers: 1
    tcp-workers: 2
    background-workers: 1
control:
    listen: "{dir}/knot.sock"
log:
  - target: stderr
    any: info
database:
    storage: "{dir}"
    journal-db-max-size: 16M
key:
  - id: {name}
    algorithm: hmac-sha256
    secret: {secret}
acl:
  - id: update
    key: {name}
    action: [update, transfer]
zone:
  - domain: {zone}
    storage: "{dir}"
    file: "{dir}/zone"
    acl: update
"#
    )
}

fn zone_text(ip: IpAddr, zone: &str) -> String {
    let kind = if ip.is_ipv4() { "A" } else { "AAAA" };
    format!(
        "$ORIGIN {zone}.\n$TTL 5\n\
         @ SOA ns hostmaster 1 3600 600 86400 5\n\
         @ NS ns\n\
         ns {kind} {ip}\n"
    )
}
