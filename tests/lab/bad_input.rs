//! A controller alone, given what is wrong: each time it says what, and does no harm.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Output};
use std::time::Duration;

use failover::adapters::certificates::Authority;
use failover::adapters::clock::SystemClock;
use failover::adapters::files;
use failover::adapters::keys::{SigningKey, write_secret};
use failover::adapters::tls::{Identity, Peer, PeerClient, TlsFiles, TlsMaterial};
use failover::engine::chain::Body;
use failover::engine::credential::CredentialFacts;
use failover::engine::detector::{State, VoteKind};
use failover::engine::lease::Enforcer;
use failover::engine::reason::Code;
use failover::engine::situation::{AgentFacts, LocalDatabase};
use failover::engine::topology::TargetKind;
use failover::engine::units::Epoch;
use failover::lab::error_lines::ExpectedErrors;
use failover::ports::Clock;
use failover::wire::{Heard, Intake, Postmark, REPORT_PATH, Report, ReportAnswer, Status};
use rustix::process::{Pid, Signal, kill_process};

use crate::pair::{Pair, Server, place, site};
use crate::stage::{FAST, entries, no_other_errors, until};

/// So long that nobody is told of its end.
const LASTING: Duration = Duration::from_secs(365 * 86_400);
pub(crate) const CALL: Duration = Duration::from_secs(5);

/// Everything that a controller needs, in a folder.
pub(crate) struct House {
    dir: tempfile::TempDir,
    authority: Authority,
    pub(crate) listen: SocketAddr,
    pub(crate) databases: [SocketAddr; 2],
    expected_errors: RefCell<ExpectedErrors>,
}

/// A running controller, killed with the test.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

pub(crate) fn socket() -> SocketAddr {
    place().into()
}

pub(crate) fn address(server: &Server) -> SocketAddr {
    (server.instance.listen, server.instance.port).into()
}

pub(crate) fn agent(name: &str) -> Identity {
    Identity::Agent {
        group: "shop".parse().unwrap(),
        site: site(name),
    }
}

impl Drop for House {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        no_other_errors(&self.expected_errors.borrow(), self.dir.path());
    }
}

impl House {
    /// Says that what is done here has the controller log an error with this text.
    pub(crate) fn expects_error(&self, text: &str) {
        self.expected_errors.borrow_mut().add(text);
    }

    /// With databases where nobody is.
    pub(crate) fn new() -> Self {
        Self::with([socket(), socket()], "watch")
    }

    pub(crate) fn with(databases: [SocketAddr; 2], password: &str) -> Self {
        failover::adapters::tls::install_provider();
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(dir.path(), SystemClock.wall(), LASTING).unwrap();
        let house = Self {
            dir,
            authority,
            listen: socket(),
            databases,
            expected_errors: RefCell::default(),
        };
        house.issue(&Identity::Controller);
        let file = |name| house.file(name);
        SigningKey::generate()
            .unwrap()
            .to_file(&file("orders.key"))
            .unwrap();
        write_secret(&file("password"), password.as_bytes()).unwrap();
        write_secret(&file("tsig"), b"c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IQ==").unwrap();
        std::fs::write(file("policy.toml"), FAST).unwrap();
        house.configure("failover.toml", house.listen);
        house
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn log(&self) -> PathBuf {
        self.file("decision.log")
    }

    pub(crate) fn issue(&self, identity: &Identity) -> TlsFiles {
        self.authority
            .issue(identity, SystemClock.wall(), LASTING)
            .unwrap()
    }

    fn configure(&self, name: &str, listen: SocketAddr) {
        let nobody = socket();
        let mut text = format!(
            "[controller]\nlisten = \"{listen}\"\npolicy = \"policy.toml\"\nlog = \"decision.log\"\n\
             anchors = [\"{listen}\"]\nallow_volatile_log = true\n\
             [tls]\nca = \"ca.pem\"\ncertificate = \"controller.pem\"\nkey = \"controller.key\"\n\
             [orders]\nkey = \"orders.key\"\n[group]\nname = \"shop\"\nfirst_active = \"aws\"\n"
        );
        for (name, database) in ["aws", "gcp"].iter().zip(self.databases) {
            let (ip, port) = (database.ip(), database.port());
            let (agent, api) = (socket(), socket());
            write!(
                text,
                "[sites.{name}]\nagent = \"{agent}\"\napi = \"http://{api}/healthz\"\n\
                 database = \"host={ip} port={port} dbname=app user=failover sslmode=disable\"\n\
                 password_file = \"password\"\n"
            )
            .unwrap();
        }
        write!(
            text,
            "[[traffic]]\nname = \"dns\"\nkind = \"rfc2136\"\nserver = \"{nobody}\"\n\
             authoritative = [\"{nobody}\"]\nzone = \"lab.test\"\nrecord = \"shop.lab.test\"\n\
             ttl = \"1s\"\ntsig_name = \"failover\"\ntsig_secret_file = \"tsig\"\n\
             [traffic.addresses]\naws = [\"127.0.0.1\"]\ngcp = [\"127.0.0.2\"]\n"
        )
        .unwrap();
        std::fs::write(self.file(name), text).unwrap();
    }

    fn command(&self, config: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_failover"));
        command.args(["run", "--config"]).arg(self.file(config));
        command
    }

    /// Starts the controller, and waits until it shows its status.
    pub(crate) async fn start(&self) -> Running {
        let log = self.file("controller.log");
        let log = File::options().create(true).append(true).open(log).unwrap();
        let child = self.command("failover.toml").stderr(log).spawn().unwrap();
        let mut running = Running(child);
        let operator = self.operator();
        until("the controller runs", async || {
            let said = std::fs::read_to_string(self.file("controller.log")).unwrap();
            assert!(running.0.try_wait().unwrap().is_none(), "{said}");
            operator.get::<Status>("/status", CALL).await.is_ok()
        })
        .await;
        running
    }

    /// A controller that does not come to run.
    pub(crate) fn refused(&self, config: &str, code: i32) -> String {
        let Output { status, stderr, .. } = self.command(config).output().unwrap();
        let said = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(code), "{said}");
        said
    }

    pub(crate) fn client(&self, files: &TlsFiles) -> PeerClient {
        let peer = Peer {
            identity: Identity::Controller,
            address: self.listen.into(),
        };
        let client = PeerClient::new(&TlsMaterial::load(files).unwrap(), peer).unwrap();
        client.of(&"shop".parse().unwrap())
    }

    pub(crate) fn operator(&self) -> PeerClient {
        let name = "alice.operator.failover.internal"
            .parse::<Identity>()
            .unwrap();
        let files = self.file(&format!("{}.pem", name.short()));
        let files = if files.exists() {
            TlsFiles {
                ca: self.file("ca.pem"),
                key: files.with_extension("key"),
                certificate: files,
                revoked: None,
            }
        } else {
            self.issue(&name)
        };
        self.client(&files)
    }

    pub(crate) fn notes(&self, wanted: &str) -> Vec<String> {
        let notes = entries(&self.log()).into_iter().filter_map(|entry| {
            let Body::Note { code, text } = entry.body else {
                return None;
            };
            (code == wanted).then_some(text)
        });
        notes.collect()
    }

    /// Waits until the controller shows something.
    pub(crate) async fn until(&self, what: &str, so: impl Fn(&Status) -> bool) -> Status {
        let operator = self.operator();
        let mut found = None;
        until(what, async || {
            found = operator.get::<Status>("/status", CALL).await.ok();
            found.as_ref().is_some_and(&so)
        })
        .await;
        found.unwrap()
    }
}

/// An answer that arrived just now.
pub(crate) fn just(intake: Intake) -> Heard {
    Heard {
        postmark: intake.postmark,
        ago: Duration::ZERO,
    }
}

pub(crate) fn report(name: &str) -> Report {
    Report {
        group: "shop".parse().unwrap(),
        site: site(name),
        epoch: Epoch(1),
        asks: true,
        instance: None,
        holds: true,
        log: None,
        facts: AgentFacts {
            vouched: None,
            deals_with: None,
            synchrony: None,
            epoch_written: None,
            rehearsal: None,
            slot: None,
            foreign: None,
            pending: Vec::new(),
            database: LocalDatabase::Up,
            fenced: None,
            severed: None,
            guarded: true,
            enforced_by: Enforcer::Guard,
            machine: None,
            peer: None,
            peer_clock: None,
        },
        observations: vec![],
        credentials: CredentialFacts::default(),
        heard: None,
        mark: Postmark {
            life: 1,
            at: Duration::ZERO,
        },
        wall: SystemClock.wall(),
        peer_mark: None,
        guard: None,
        version: "0".to_owned(),
    }
}

#[tokio::test]
async fn a_controller_that_is_asked_to_logs_json() {
    let house = House::new();
    let log = house.file("controller.log");
    let child = Command::new(env!("CARGO_BIN_EXE_failover"))
        .args(["--output", "json", "run", "--config"])
        .arg(house.file("failover.toml"))
        .stderr(File::create(&log).unwrap())
        .spawn();
    let _running = Running(child.unwrap());
    let lines = || {
        let text = std::fs::read_to_string(&log).unwrap();
        let (whole, _) = text.rsplit_once('\n').unwrap_or_default();
        let lines = whole
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        lines.collect::<Vec<serde_json::Value>>()
    };
    until("it says that it runs", async || {
        lines()
            .iter()
            .any(|line| line["message"] == "controller runs")
    })
    .await;
    for line in lines() {
        let known = ["timestamp", "level", "target", "message"];
        assert!(known.iter().all(|field| line[field].is_string()), "{line}");
    }
}

#[tokio::test]
async fn a_second_controller_on_one_log_is_refused_and_told_who_holds_it() {
    let house = House::new();
    let first = house.start().await;
    house.configure("second.toml", socket());
    let said = house.refused("second.toml", 4);
    let holder = format!("held by another controller: pid {} since ", first.0.id());
    assert!(said.contains(&holder), "{said}");
    drop(first);
    // The log is free with its holder, however that ended.
    house.start().await;
    files::verify(&house.log()).unwrap();
}

#[tokio::test]
async fn an_agent_speaks_for_its_own_site_only_and_a_stranger_not_at_all() {
    let house = House::new();
    let running = house.start().await;
    let gcp = house.client(&house.issue(&agent("gcp")));
    let mut own = report("gcp");
    for known in [false, true] {
        let answer: ReportAnswer = gcp.post(REPORT_PATH, &own, CALL).await.unwrap();
        assert_eq!(answer.intake.taken, known, "the first may be any age");
        own.heard = Some(just(answer.intake));
    }
    let other: Result<ReportAnswer, _> = gcp.post(REPORT_PATH, &report("aws"), CALL).await;
    let refused = other.unwrap_err().to_string();
    assert!(
        refused.contains("may not report for site `aws`"),
        "{refused}"
    );
    until("it is in the log", async || {
        !house.notes("agent-rejected").is_empty()
    })
    .await;
    let notes = house.notes("agent-rejected");
    assert!(
        notes.len() == 1 && notes[0].contains("gcp.agent.shop"),
        "{notes:?}"
    );
    // Nor is it an operator.
    gcp.get::<Status>("/status", CALL).await.unwrap_err();
    let status = house.until("it has decided", |_| true).await;
    let reported = |name| status.situation.sites[&site(name)].agent.is_some();
    assert!(reported("gcp") && !reported("aws"));

    // The same name from another authority, which believes ours.
    let elsewhere = tempfile::tempdir().unwrap();
    let stranger = Authority::create(elsewhere.path(), SystemClock.wall(), LASTING).unwrap();
    let mut files = stranger
        .issue(&agent("aws"), SystemClock.wall(), LASTING)
        .unwrap();
    files.ca = house.file("ca.pem");
    let aws = house.client(&files);
    let answer: Result<ReportAnswer, _> = aws.post(REPORT_PATH, &report("aws"), CALL).await;
    answer.unwrap_err();
    until("it is in the log", async || {
        house.notes("connection-rejected").len() == 1
    })
    .await;
    drop(running);
    files::verify(&house.log()).unwrap();
}

/// Runs a controller for a moment, so that there is a log.
async fn written(house: &House) -> Vec<u8> {
    let running = house.start().await;
    until("there are some entries", async || {
        entries(&house.log()).len() >= 3
    })
    .await;
    drop(running);
    std::fs::read(house.log()).unwrap()
}

#[tokio::test]
async fn a_torn_last_line_is_cut_with_a_note_and_kept() {
    let house = House::new();
    let whole = written(&house).await;
    let last = whole[..whole.len() - 1]
        .iter()
        .rposition(|byte| *byte == b'\n')
        .unwrap()
        + 1;
    let torn = whole.len() - (whole.len() - last) / 2;
    std::fs::write(house.log(), &whole[..torn]).unwrap();
    drop(house.start().await);
    let notes = house.notes("torn-line");
    let [note] = &notes[..] else {
        panic!("{notes:?}");
    };
    assert!(
        note.starts_with(&format!("the last line was torn: {} bytes", torn - last)),
        "{note}"
    );
    let kept = house.file(&format!("decision.log.torn-at-{last}"));
    assert_eq!(std::fs::read(kept).unwrap(), &whole[last..torn]);
    files::verify(&house.log()).unwrap();
    assert!(
        std::fs::read(house.log())
            .unwrap()
            .starts_with(&whole[..last])
    );
}

#[tokio::test]
async fn a_flipped_byte_refuses_to_start_and_names_the_entry() {
    let house = House::new();
    let mut bytes = written(&house).await;
    let second = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    bytes[second + 100] ^= 1;
    std::fs::write(house.log(), &bytes).unwrap();
    let said = house.refused("failover.toml", 1);
    assert!(said.contains("entry 2 of the decision log"), "{said}");
    assert!(said.contains("runbooks/log-broken.md"), "{said}");
    assert_eq!(
        std::fs::read(house.log()).unwrap(),
        bytes,
        "nothing was changed"
    );
}

#[tokio::test]
async fn a_wrong_password_is_no_evidence_against_a_database() {
    let pair = Pair::primary_only().await;
    let house = House::with([address(&pair.primary), socket()], "wrong");
    let mut running = house.start().await;
    // One agent at least must be heard, or the controller thinks that it is itself cut off.
    let gcp = house.client(&house.issue(&agent("gcp")));
    let reports = tokio::spawn(async move {
        let report = report("gcp");
        loop {
            let answer = gcp.post::<_, ReportAnswer>(REPORT_PATH, &report, CALL);
            answer.await.ok();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    let aws = site("aws");
    // Longer than any window of the policy.
    let status = house
        .until("it has not been let in for 3 s", |status| {
            let health = &status.situation.sites[&aws].health[&TargetKind::Database];
            assert_eq!(health.state, State::Unknown, "{health:?}");
            health.since >= Duration::from_secs(3)
        })
        .await;
    let health = &status.situation.sites[&aws].health[&TargetKind::Database];
    assert!(
        health.why.contains("password authentication failed"),
        "{health:?}"
    );
    assert!(
        health.votes.iter().all(|vote| vote.kind == VoteKind::Mute),
        "{health:?}"
    );
    let reason = &status.decision.reasons[0];
    assert_eq!(reason.code, Code::ProbeNotAuthorised, "{reason:?}");
    // It is shown that nobody could tell if the site died.
    let mut gates = status.decision.gates.iter();
    let gate = gates.find(|gate| gate.reason.code == Code::VantagePointsMute);
    let gate = gate.unwrap();
    assert!(!gate.open, "{gate:?}");
    let obstacles = failover::app::api::obstacles(&status);
    let named = |text: &String| {
        text.starts_with("vantage-points-mute@aws: 0 vantage points (limit 2")
            && text.contains("`controller`")
            && text.contains("password authentication failed")
    };
    assert!(obstacles.iter().any(named), "{obstacles:?}");
    assert!(running.0.try_wait().unwrap().is_none(), "it keeps running");
    reports.abort();
    let pid = Pid::from_child(&running.0);
    kill_process(pid, Signal::TERM).unwrap();
    assert!(running.0.wait().unwrap().success());
}

#[tokio::test]
async fn a_standby_of_another_pair_is_never_promoted() {
    let pair = Pair::new().await;
    let other = Pair::primary_of_its_own().await;
    let databases = [address(&other.primary), address(pair.standby())];
    let house = House::with(databases, "watch");
    let _running = house.start().await;
    let status = house
        .until("both databases were seen", |status| {
            let sites = status.situation.sites.values();
            sites.filter(|site| site.database.is_some()).count() == 2
        })
        .await;
    let gates = &status.decision.gates;
    let gate = gates
        .iter()
        .find(|gate| gate.reason.code == Code::SystemIdentifierDiffers);
    let gate = gate.expect("there is such a gate");
    assert!(!gate.open, "{gate:?}");
}
