//! A network for one lab: a namespace for each place, joined by a router in a namespace between
//! them, where each direction of each link can be cut. Nothing in the machine's own network is
//! touched.
//!
//! What is cut is dropped without a word, as a broken line drops it: no reset, no ICMP. No
//! connection tracking is involved, so that what was open before the cut is cut as well.

use std::ffi::OsStr;
use std::fmt;
use std::io::{ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// Where `ip netns` keeps its names.
const NAMES: &str = "/run/netns";

/// One direction of one link is one element of the set.
const RULES: &str = "\
table ip lab {
  set cut { type ipv4_addr . ipv4_addr; }
  chain forward {
    type filter hook forward priority 0;
    ip saddr . ip daddr @cut drop;
  }
}
";

/// A place of a lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The site that is active at first.
    Aws,
    /// The other site.
    Gcp,
    /// Controller and name server.
    Neutral,
    /// Users, and whoever watches the lab.
    Client,
}

impl Place {
    /// All of them.
    pub const ALL: [Place; 4] = [Place::Aws, Place::Gcp, Place::Neutral, Place::Client];

    fn number(self) -> u8 {
        match self {
            Place::Aws => 1,
            Place::Gcp => 2,
            Place::Neutral => 3,
            Place::Client => 4,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Place::Aws => "aws",
            Place::Gcp => "gcp",
            Place::Neutral => "neutral",
            Place::Client => "client",
        }
    }

    /// The place of that name.
    pub fn named(name: &str) -> Option<Self> {
        Place::ALL.into_iter().find(|place| place.name() == name)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The namespaces of one lab. Owned by a [`Network`], which another process may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Namespaces {
    /// The process that owns the network.
    owner: u32,
}

impl Namespaces {
    /// Those that a process owns.
    pub fn of(owner: u32) -> Self {
        Self { owner }
    }

    fn called(self, place: &str) -> String {
        format!("fl-{}-{place}", self.owner)
    }

    /// The file that stands for a place's namespace.
    pub fn file(self, place: Place) -> PathBuf {
        Path::new(NAMES).join(self.called(place.name()))
    }

    /// The address of a place, of the range for benchmarks (RFC 2544), which nobody routes.
    pub fn address(self, place: Place) -> IpAddr {
        address(place, 2)
    }

    /// A command that runs at a place.
    pub fn command(self, place: Place, program: impl AsRef<OsStr>) -> Command {
        enter(&self.file(place), program)
    }

    /// Drops from now on whatever goes from one place to another; the way back stays.
    pub fn cut(self, from: Place, to: Place) -> anyhow::Result<()> {
        self.set("add", from, to)
    }

    /// Lets pass what was cut, which must be cut.
    pub fn mend(self, from: Place, to: Place) -> anyhow::Result<()> {
        self.set("delete", from, to)
    }

    fn set(self, verb: &str, from: Place, to: Place) -> anyhow::Result<()> {
        let (from, to) = (self.address(from), self.address(to));
        self.rules(&format!("{verb} element ip lab cut {{ {from} . {to} }}\n"))
    }

    /// Lets everything pass.
    pub fn mend_all(self) -> anyhow::Result<()> {
        self.rules("flush set ip lab cut\n")
    }

    fn router(self, program: &str) -> Command {
        enter(&Path::new(NAMES).join(self.called("net")), program)
    }

    fn rules(self, text: &str) -> anyhow::Result<()> {
        let mut nft = self.router("nft");
        nft.args(["-f", "-"]);
        run(nft, text)
    }

    fn build(self) -> anyhow::Result<()> {
        let router = self.called("net");
        ip(&format!("netns add {router}"))?;
        let mut forward = self.router("sh");
        forward.args(["-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"]);
        run(forward, "")?;
        for place in Place::ALL {
            let (own, gateway) = (address(place, 2), address(place, 1));
            let there = self.called(place.name());
            ip(&format!("netns add {there}"))?;
            ip(&format!(
                "link add name line netns {there} type veth peer name {place} netns {router}"
            ))?;
            ip(&format!("-n {router} addr add {gateway}/24 dev {place}"))?;
            ip(&format!("-n {router} link set dev {place} up"))?;
            ip(&format!("-n {there} addr add {own}/24 dev line"))?;
            ip(&format!("-n {there} link set dev lo up"))?;
            ip(&format!("-n {there} link set dev line up"))?;
            ip(&format!("-n {there} route add default via {gateway}"))?;
        }
        self.rules(RULES)
    }

    /// Removes everything, with the processes that still run in there: whoever started them did
    /// not come to end them.
    fn remove(self) -> anyhow::Result<()> {
        let mut failed = Ok(());
        let places = Place::ALL.map(Place::name);
        for place in places.into_iter().chain(["net"]) {
            let name = self.called(place);
            if Path::new(NAMES).join(&name).exists() {
                failed = failed.and(end_processes(&name));
                failed = failed.and(ip(&format!("netns del {name}")));
            }
        }
        failed
    }
}

/// The network of one lab. It goes with this value.
#[derive(Debug)]
pub struct Network {
    /// Its namespaces.
    pub namespaces: Namespaces,
}

impl Network {
    /// Makes a network, one for a process at most, and removes those of processes that are gone
    /// and did not come to remove their own.
    ///
    /// An error says what is missing: the user root, or a package.
    pub fn create() -> anyhow::Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "network namespaces need the user root: run this as root, or in a container that has one"
        );
        remove_stale()?;
        // From here on it is removed, however far it came.
        let network = Self {
            namespaces: Namespaces::of(std::process::id()),
        };
        network.namespaces.build()?;
        Ok(network)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Err(error) = self.namespaces.remove() {
            tracing::warn!(%error, "a network namespace is left behind");
        }
    }
}

fn remove_stale() -> anyhow::Result<()> {
    let names = std::fs::read_dir(NAMES).into_iter().flatten().flatten();
    for name in names {
        let name = name.file_name().to_string_lossy().into_owned();
        let owner = name
            .strip_prefix("fl-")
            .and_then(|rest| rest.split_once('-'));
        let Some(owner) = owner.and_then(|(owner, _)| owner.parse::<u32>().ok()) else {
            continue;
        };
        let lives = Path::new("/proc").join(owner.to_string()).exists();
        if !lives || owner == std::process::id() {
            Namespaces::of(owner).remove()?;
        }
    }
    Ok(())
}

/// Kills what runs in a namespace, until nothing does: one may start another before it dies.
fn end_processes(namespace: &str) -> anyhow::Result<()> {
    for _round in 0..100 {
        let seen = Command::new("ip")
            .args(["netns", "pids", namespace])
            .output()
            .context("list the processes of a namespace")?;
        let text = String::from_utf8_lossy(&seen.stdout).into_owned();
        let pids: Vec<Pid> = text
            .lines()
            .filter_map(|line| Pid::from_raw(line.trim().parse().ok()?))
            .collect();
        if pids.is_empty() {
            return Ok(());
        }
        for pid in pids {
            // One that is gone by now needs no signal.
            kill_process(pid, Signal::KILL).unwrap_or_default();
        }
        std::thread::yield_now();
    }
    Ok(())
}

fn address(place: Place, host: u8) -> IpAddr {
    Ipv4Addr::new(198, 18, place.number(), host).into()
}

/// A command in a network namespace. It is the same process from the start, so that its pid is
/// the one that was spawned.
pub fn enter(namespace: &Path, program: impl AsRef<OsStr>) -> Command {
    let mut option = std::ffi::OsString::from("--net=");
    option.push(namespace);
    let mut command = Command::new("nsenter");
    command.arg(option).arg("--").arg(program);
    command
}

fn ip(words: &str) -> anyhow::Result<()> {
    let mut command = Command::new("ip");
    command.args(words.split_whitespace());
    run(command, "")
}

fn run(mut command: Command, input: &str) -> anyhow::Result<()> {
    let shown = format!("{command:?}").replace('"', "");
    let child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.map_err(|cause| {
        let program = command.get_program().to_string_lossy().into_owned();
        let package = match program.as_str() {
            "ip" => "iproute2",
            _ => "util-linux",
        };
        let hint = if cause.kind() == ErrorKind::NotFound {
            format!("cannot find `{program}`: install the package `{package}`")
        } else {
            format!("cannot start `{program}`")
        };
        anyhow::Error::new(cause).context(hint)
    })?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ended before it read says why on the other side.
        stdin.write_all(input.as_bytes()).unwrap_or_default();
    }
    let done = child.wait_with_output().context("wait for a command")?;
    let said = String::from_utf8_lossy(&done.stderr);
    // What `nsenter` says of a program that it does not find.
    ensure!(
        !said.contains("failed to execute nft"),
        "cannot find `nft`: install the package `nftables`"
    );
    ensure!(
        done.status.success(),
        "`{shown}` failed ({}): {}",
        done.status,
        said.trim()
    );
    Ok(())
}
