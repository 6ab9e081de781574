//! What is refused, and how it is said: the guide's examples with one thing changed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use failover::adapters::certificates::Authority;
use failover::adapters::files::FileLog;
use failover::adapters::keys::SigningKey;
use failover::adapters::tls::Identity;
use failover::engine::policy::Policy;
use failover::engine::units::WallTime;
use failover::{agent, app, observer};

use super::{STANDARD, example};

fn controller_says(from: &str, to: &str) -> String {
    let text = example("failover.toml");
    assert!(text.contains(from), "{from}");
    let text = text.replacen(from, to, 1);
    match app::config::Config::parse("failover.toml", &text, Path::new("/")) {
        Ok(_) => "accepted".to_owned(),
        Err(problems) => problems.to_string(),
    }
}

#[test]
fn a_broken_controller_file_is_refused_in_plain_words() {
    let third = "[sites.azure]\nagent = \"10.3.0.10:7401\"\napi = \"http://10.3.0.20/\"\ndatabase = \"host=10.3.0.10 user=failover\"\n\n[front]";
    for (from, to, said) in [
        (
            "listen = ",
            "# listen = ",
            "`controller.listen` is missing: write it like",
        ),
        (
            "10.0.3.10:7400",
            "controller:7400",
            "`controller:7400` is not an IP address with a port",
        ),
        (
            "anchors = [",
            "anchors = [] # [",
            "`controller.anchors` is empty",
        ),
        ("[front]", third, "`[sites]` has 3: a group has exactly two"),
        (
            "[sites.gcp]",
            "[sites.aws-2]",
            "`traffic[].addresses.aws-2` is missing",
        ),
        (
            "[sites.gcp]",
            "[sites.GCP]",
            "`GCP` is not the name of a site",
        ),
        (
            "first_active = \"aws\"",
            "first_active = \"azure\"",
            "`azure`, which is not one of `[sites]`",
        ),
        (
            "10.2.0.10:7401",
            "10.1.0.10:7401",
            "`sites.aws.agent` is the same as that of `gcp`",
        ),
        (
            "user=failover",
            "user=failover password=hunter2",
            "`sites.aws.database`: the connection string holds a password",
        ),
        (
            "user=failover",
            "user=failover sslmode=verify-full",
            "`database_ca` turns TLS on",
        ),
        (
            "database_ca = ",
            "# database_ca = ",
            "`sites.aws.database` connects to another host in plain text: set `sites.aws.database_ca`",
        ),
        (
            "host=10.1.0.10 port=5432 dbname=app user=failover\"\npassword_file = \"db.password\"\ndatabase_ca = ",
            "host=db.example.com user=failover\"\nallow_plaintext = false\n# ",
            "or `sites.aws.allow_plaintext = true` if the network itself",
        ),
        (
            "database_ca = \"database-ca.pem\"",
            "allow_plaintext = true",
            "accepted",
        ),
        (
            "host=10.1.0.10 port=5432 dbname=app user=failover\"\npassword_file = \"db.password\"\ndatabase_ca = ",
            "host=127.0.0.1 user=failover\"\n# ",
            "accepted",
        ),
        (
            "[[traffic]]",
            "[[observers]]\nname = \"gcp\"\n\n[[traffic]]",
            "`observers[].name` is `gcp`, which is a site",
        ),
        (
            "[[traffic]]",
            "[[observers]]\nname = \"paris\"\n[[observers]]\nname = \"paris\"\n\n[[traffic]]",
            "two observers are named `paris`",
        ),
        (
            "[[traffic]]",
            "[[observers]]\nname = \"Paris\"\n\n[[traffic]]",
            "`Paris` is not the name of an observer",
        ),
        (
            "[[traffic]]",
            "[[observers]]\nsite = \"paris\"\n\n[[traffic]]",
            "`observers[].name` is missing",
        ),
        (
            "[[traffic]]",
            "[[observers]]\nname = \"a\"\n[[observers]]\nname = \"b\"\n[[observers]]\nname = \"c\"\n[[observers]]\nname = \"d\"\n[[observers]]\nname = \"e\"\n[[observers]]\nname = \"f\"\n[[observers]]\nname = \"g\"\n\n[[traffic]]",
            "`[[observers]]` has 7: at most 6 are allowed",
        ),
        (
            "kind = \"rfc2136\"",
            "kind = \"bind\"",
            "must be one of rfc2136, route53, cloud-dns, google-backend",
        ),
        (
            "kind = \"rfc2136\"",
            "kind = \"rfc2136\"\nzone_id = \"Z0\"",
            "unknown key `traffic[].zone_id`",
        ),
        (
            "zone = \"example.com.\"",
            "zone = \"example.org.\"",
            "which is not in zone \"example.org.\"",
        ),
        ("ttl = \"60s\"", "# ttl", "`traffic[].ttl` is missing"),
        (
            "ttl = \"60s\"",
            "ttl = \"1500ms\"",
            "`traffic[].ttl` is not in whole seconds",
        ),
        (
            "gcp = [\"10.2.0.20\"]",
            "gcp = [\"10.1.0.20\"]",
            "names 10.1.0.20 twice",
        ),
        (
            "gcp = [\"10.2.0.20\"]",
            "gcp = [\"shop\"]",
            "`shop` is not an IP address",
        ),
        (
            "http://shop.example.com:8080/healthz",
            "shop.example.com",
            "is not an HTTP address",
        ),
        (
            "anchors",
            "anchor",
            "unknown key `controller.anchor`, did you mean `anchors`?",
        ),
    ] {
        let answer = controller_says(from, to);
        assert!(answer.contains(said), "{to}: {answer}");
        assert!(!answer.contains("hunter2"), "{answer}");
    }
    let twice = example("failover.toml")
        .split_once("[[traffic]]")
        .unwrap()
        .1;
    let answer = controller_says("[[traffic]]", &format!("[[traffic]]{twice}\n[[traffic]]"));
    assert!(
        answer.contains("two traffic targets are named `dns`"),
        "{answer}"
    );
}

#[test]
fn each_kind_of_traffic_has_keys_of_its_own() {
    let (before, _) = example("failover.toml").split_once("[[traffic]]").unwrap();
    for (name, from, to, said) in [
        (
            "Cloud DNS",
            "project = ",
            "zone_id = \"Z0\"\nproject = ",
            "unknown key `traffic[].zone_id`",
        ),
        (
            "Cloud DNS",
            "managed_zone = ",
            "# managed_zone = ",
            "`traffic[].managed_zone` is missing",
        ),
        (
            "Cloud DNS",
            "gcp = \"203.0.113.20\"",
            "azure = \"203.0.113.20\"",
            "`traffic[].values.gcp` is missing",
        ),
        (
            "Cloud DNS",
            "zone = \"example.com\"",
            "zone = \"example.org\"",
            "which is not in zone \"example.org\"",
        ),
        (
            "Google's load balancer",
            "project = ",
            "ttl = \"60s\"\nproject = ",
            "unknown key `traffic[].ttl`",
        ),
        (
            "Google's load balancer",
            "edges = [\"198.51.100.80:443\"]",
            "edges = []",
            "`traffic[].edges` is empty",
        ),
        (
            "Google's load balancer",
            "aws = [\"zones",
            "aws = [] # [\"zones",
            "`traffic[].groups.aws` is empty",
        ),
        (
            "Google's load balancer",
            "x-failover-site",
            "x failover site",
            "`traffic[].site_header`",
        ),
    ] {
        let table = example(name);
        assert!(table.contains(from), "{from}");
        let text = format!("{before}{}", table.replacen(from, to, 1));
        let read = app::config::Config::parse("failover.toml", &text, Path::new("/"));
        let answer = read.unwrap_err().to_string();
        assert!(answer.contains(said), "{to}: {answer}");
    }
}

#[test]
fn a_broken_agent_file_is_refused_in_plain_words() {
    let text = example("agent.toml");
    for (from, to, said) in [
        (
            "site = \"gcp\"",
            "site = \"aws\"",
            "`peer.site` is `aws`, which is this site",
        ),
        ("port = 5432", "port = 0", "must be between 1 and 65535"),
        (
            "listen_addresses = \"10.1.0.10\"",
            "listen_addresses = \"db1\"",
            "`postgres.listen_addresses` names `db1`",
        ),
        (
            "options = [",
            "options = [\"port=5433\", ",
            "the agent sets `port` itself",
        ),
        (
            "options = [",
            "options = [\"Primary-Conninfo=host=x\", ",
            "the agent sets `primary_conninfo` itself",
        ),
        (
            "options = [",
            "options = [\"fsync\", ",
            "write it like `max_connections=200`",
        ),
        (
            "application_name=aws",
            "application_name=gcp",
            "does not hold `application_name=aws`",
        ),
        (
            "passfile=",
            "password=hunter2 passfile=",
            "`postgres.primary_conninfo` holds a password",
        ),
        (
            "primary_conninfo = \"host=10.2.0.10 ",
            "primary_conninfo = \"",
            "names no host",
        ),
        (
            "sslmode=verify-full ",
            "sslmode=prefer ",
            "does not require TLS",
        ),
        ("sslmode=verify-full ", "", "does not require TLS"),
        (
            "database_ca = ",
            "# database_ca = ",
            "`peer.database` connects to another host in plain text",
        ),
        (
            "primary_conninfo = \"host=10.2.0.10 port=5432 user=replicator passfile=/var/lib/postgresql/replicator.pgpass sslmode=verify-full",
            "allow_plaintext = true\nprimary_conninfo = \"host=10.2.0.10",
            "accepted",
        ),
        ("start = [", "start = [] # [", "`workloads.start` is empty"),
        (
            "state_dir = ",
            "# state_dir = ",
            "`agent.state_dir` is missing",
        ),
    ] {
        assert!(text.contains(from), "{from}");
        let changed = text.replacen(from, to, 1);
        let answer = match agent::config::Config::parse("agent.toml", &changed, Path::new("/")) {
            Ok(_) => "accepted".to_owned(),
            Err(problems) => problems.to_string(),
        };
        assert!(answer.contains(said), "{to}: {answer}");
        assert!(!answer.contains("hunter2"), "{answer}");
    }
}

#[test]
fn a_broken_observer_file_is_refused_in_plain_words() {
    let text = example("observer.toml");
    for (from, to, said) in [
        (
            "name = \"paris\"",
            "name = \"aws\"",
            "`observer.name` is `aws`, which is a site",
        ),
        (
            "name = \"paris\"",
            "site = \"paris\"",
            "`observer.name` is missing",
        ),
        (
            "[sites.gcp]",
            "[sites.GCP]",
            "`GCP` is not the name of a site",
        ),
        (
            "203.0.113.20:8080",
            "198.51.100.20:8080",
            "`sites.aws.api` is the same as that of `gcp`",
        ),
        (
            "[sites.gcp]",
            "[places.gcp]",
            "`[sites]` has 1: a group has exactly two",
        ),
        (
            "user=failover",
            "user=failover password=hunter2",
            "`sites.aws.database`: the connection string holds a password",
        ),
        (
            "[observer]",
            "[orders]\nkey = \"orders.key\"\n[observer]",
            "unknown key `orders`",
        ),
    ] {
        assert!(text.contains(from), "{from}");
        let changed = text.replacen(from, to, 1);
        let read = observer::config::Config::parse("observer.toml", &changed, Path::new("/"));
        let answer = match read {
            Ok(_) => "accepted".to_owned(),
            Err(problems) => problems.to_string(),
        };
        assert!(answer.contains(said), "{to}: {answer}");
        assert!(!answer.contains("hunter2"), "{answer}");
    }
}

/// A folder with all that the examples name, and the examples changed so that they name it.
struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let year = Duration::from_secs(365 * 86_400);
        let now = WallTime(1_767_225_600_000);
        let authority = Authority::create(dir.path(), now, year).unwrap();
        let aws = "aws.agent.shop.failover.internal".parse().unwrap();
        let paris = "paris.observer.shop.failover.internal".parse().unwrap();
        for identity in [Identity::Controller, aws, paris] {
            authority.issue(&identity, now, year).unwrap();
        }
        let key = SigningKey::generate().unwrap();
        key.to_file(&at("orders.key")).unwrap();
        key.verifying_key().to_file(&at("orders.pub")).unwrap();
        fs::copy(at("ca.pem"), at("database-ca.pem")).unwrap();
        fs::write(at("standard.toml"), STANDARD).unwrap();
        for (name, text) in [("db.password", "hunter2\n"), ("tsig.secret", "c2VjcmV0\n")] {
            fs::write(at(name), text).unwrap();
            fs::set_permissions(at(name), fs::Permissions::from_mode(0o600)).unwrap();
        }
        fs::create_dir(at("bin")).unwrap();
        fs::write(at("bin/postgres"), "").unwrap();
        Self { dir }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, changes: &[(&str, &str)]) -> PathBuf {
        let here = self.dir.path().display().to_string();
        let mut text = example(name)
            .replace("/usr/lib/postgresql/15/bin", "bin")
            .replace("/var/lib/postgresql/15/main", &here)
            .replace("/var/lib/failover-agent", &here)
            .replace("/var/lib/failover", &here)
            .replace("/var/log/postgresql", &here)
            .replace("/run/postgresql", &here);
        // The system's folder for temporary files may be in memory; that has a test of its own.
        text = text
            .replace("[agent]", "[agent]\nallow_volatile_state = true")
            .replace("[controller]", "[controller]\nallow_volatile_log = true");
        for (from, to) in changes {
            assert!(text.contains(from), "{from}");
            text = text.replacen(from, to, 1);
        }
        fs::write(self.at(name), text).unwrap();
        self.at(name)
    }

    fn controller(&self, changes: &[(&str, &str)]) -> String {
        match app::config::Config::read(&self.write("failover.toml", changes)) {
            Ok(_) => "accepted".to_owned(),
            Err(problems) => problems.to_string(),
        }
    }

    fn observer(&self, changes: &[(&str, &str)]) -> String {
        match observer::config::Config::read(&self.write("observer.toml", changes)) {
            Ok(_) => "accepted".to_owned(),
            Err(problems) => problems.to_string(),
        }
    }

    fn agent(&self, changes: &[(&str, &str)]) -> String {
        match agent::config::Config::read(&self.write("agent.toml", changes)) {
            Ok(_) => "accepted".to_owned(),
            Err(problems) => problems.to_string(),
        }
    }
}

#[test]
fn a_machine_that_has_all_files_starts() {
    let machine = Machine::new();
    let path = machine.write("failover.toml", &[]);
    let (config, policy) =
        app::config::Config::read(&path).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(policy, Policy::read("standard", STANDARD).unwrap());
    for site in config.sites.values() {
        site.database.connect("database", &Arc::default()).unwrap();
    }
    let path = machine.write("agent.toml", &[]);
    let config = agent::config::Config::read(&path).unwrap_or_else(|problems| panic!("{problems}"));
    config
        .peer
        .database
        .connect("database", &Arc::default())
        .unwrap();
    assert!(config.tls.key.is_absolute());
    assert_eq!(machine.observer(&[]), "accepted");
}

#[test]
fn an_observer_with_the_certificate_of_an_agent_does_not_start() {
    let machine = Machine::new();
    let agents = [
        ("paris.observer.shop.pem", "aws.agent.shop.pem"),
        ("paris.observer.shop.key", "aws.agent.shop.key"),
    ];
    let answer = machine.observer(&agents);
    assert!(
        answer.contains("`tls.certificate` is for `aws.agent.shop.failover.internal`, but this process is `paris.observer.shop.failover.internal`"),
        "{answer}"
    );
}

#[test]
fn a_quorum_is_met_by_controller_other_agent_and_observers_or_refused_with_the_numbers() {
    let machine = Machine::new();
    let one = "[[observers]]\nname = \"paris\"\n[[traffic]]";
    let two = "[[observers]]\nname = \"paris\"\n[[observers]]\nname = \"rome\"\n[[traffic]]";
    for (quorum, observers, said) in [
        ("2", "[[traffic]]", "accepted"),
        ("3", one, "accepted"),
        ("4", two, "accepted"),
        (
            "4",
            one,
            "`detect.quorum` of the policy is 4, but when a site is lost only 3 vantage points are left (the controller, the other site's agent and 1 of `[[observers]]`): set it to 3 at most, or name further observers",
        ),
    ] {
        let policy = STANDARD.replace("quorum = 2", &format!("quorum = {quorum}"));
        fs::write(machine.at("standard.toml"), policy).unwrap();
        let answer = machine.controller(&[("[[traffic]]", observers)]);
        assert!(answer.contains(said), "{quorum}: {answer}");
    }
}

#[test]
fn a_missing_file_is_reported_with_its_key_and_line() {
    let machine = Machine::new();
    for (changes, said) in [
        (("\"ca.pem\"", "\"other.pem\""), "`tls.ca`: cannot find `"),
        (
            ("\"controller.key\"", "\"no.key\""),
            "`tls.key`: cannot read `",
        ),
        (
            ("\"controller.pem\"", "\"aws.agent.shop.pem\""),
            "does not belong to certificate",
        ),
        (("\"orders.key\"", "\"ca.key\""), "`orders.key`: `"),
        (
            ("\"standard.toml\"", "\"slow.toml\""),
            "`controller.policy`: cannot find `",
        ),
        (
            ("decision.log", "none/decision.log"),
            "`controller.log`: cannot find folder `",
        ),
        (
            ("\"db.password\"", "\"none\""),
            "`sites.aws.password_file`: cannot read `",
        ),
        (
            ("\"database-ca.pem\"", "\"orders.pub\""),
            "`sites.aws.database_ca`: `",
        ),
        (
            ("\"tsig.secret\"", "\"aws.agent.shop.key\""),
            "`traffic[].tsig_secret_file`: `",
        ),
    ] {
        let answer = machine.controller(&[changes]);
        let text = fs::read_to_string(machine.at("failover.toml")).unwrap();
        let line = 1 + text
            .lines()
            .position(|line| line.contains(changes.1))
            .unwrap();
        assert!(answer.contains(said), "{changes:?}: {answer}");
        if !said.starts_with("does not") {
            assert!(
                answer.contains(&format!("failover.toml:{line}: {said}")),
                "{answer}"
            );
        }
    }
    for (changes, said) in [
        (
            ("\"bin\"", "\".\""),
            "`postgres.bin_dir`: there is no `postgres` in `",
        ),
        (
            ("\"orders.pub\"", "\"ca.pem\""),
            "`orders.controller_public_key`: `",
        ),
        (
            ("site = \"aws\"", "site = \"azure\""),
            "`tls.certificate` is for `aws.agent.shop.failover.internal`, but this process is `azure.agent.shop.failover.internal`",
        ),
    ] {
        let answer = machine.agent(&[changes]);
        assert!(answer.contains(said), "{changes:?}: {answer}");
    }
}

#[test]
fn a_secret_that_others_can_read_refuses_to_start() {
    let machine = Machine::new();
    fs::set_permissions(machine.at("db.password"), fs::Permissions::from_mode(0o644)).unwrap();
    let answer = machine.controller(&[]);
    assert!(
        answer.contains("is a secret and its mode is 0644: run `chmod 600"),
        "{answer}"
    );
    fs::set_permissions(machine.at("db.password"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(machine.at("db.password"), "\n").unwrap();
    assert!(machine.controller(&[]).contains("does not hold a secret"));
    fs::write(machine.at("db.password"), "hunter2").unwrap();
    assert_eq!(machine.controller(&[]), "accepted");
}

#[test]
fn a_policy_that_does_not_fit_refuses_to_start() {
    let machine = Machine::new();
    for (from, to, said) in [
        ("quorum = 2", "quorum = 3", "only 2 vantage points are left"),
        (
            "quorum = 2",
            "quorum = 1",
            "`detect.quorum` is the number 1: must be between 2 and 8",
        ),
        (
            "verify = \"5m\"",
            "verify = \"1m\"",
            "`ttl` of `dns` is 1m, but the policy's `steps.verify` is 1m",
        ),
    ] {
        fs::write(machine.at("standard.toml"), STANDARD.replace(from, to)).unwrap();
        let answer = machine.controller(&[]);
        assert!(answer.contains(said), "{to}: {answer}");
    }
}

#[test]
fn a_log_in_memory_refuses_to_start_unless_it_is_allowed() {
    let listed = fs::read_to_string("/proc/mounts").unwrap();
    let mut mounts = listed
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    let tmpfs = mounts.find(|mount| mount[2] == "tmpfs" && Path::new(mount[1]).is_dir());
    let tmpfs = tmpfs.expect("a tmpfs in `/proc/mounts`")[1].to_owned();
    let machine = Machine::new();
    let here = machine.dir.path().display().to_string();
    let log = (format!("log = \"{here}"), format!("log = \"{tmpfs}"));
    let log = (log.0.as_str(), log.1.as_str());
    assert_eq!(machine.controller(&[log]), "accepted");
    let strict = ("allow_volatile_log = true", "");
    let answer = machine.controller(&[log, strict]);
    assert!(
        answer.contains("`controller.log` is in memory (tmpfs)"),
        "{answer}"
    );
    assert!(
        answer.contains("`controller.allow_volatile_log = true`"),
        "{answer}"
    );

    let state = (
        format!("state_dir = \"{here}"),
        format!("state_dir = \"{tmpfs}"),
    );
    let state = (state.0.as_str(), state.1.as_str());
    assert_eq!(machine.agent(&[state]), "accepted");
    let answer = machine.agent(&[state, ("allow_volatile_state = true", "")]);
    assert!(
        answer.contains("`agent.state_dir` is in memory"),
        "{answer}"
    );
}

#[test]
fn a_controller_whose_log_another_one_holds_ends_with_4_and_names_it() {
    let machine = Machine::new();
    let path = machine.write(
        "failover.toml",
        &[("\"10.0.3.10:7400\"", "\"127.0.0.1:0\"")],
    );
    let config = app::config::Config::read(&path);
    let (config, _) = config.unwrap_or_else(|problems| panic!("{problems}"));
    let _held = FileLog::open(&config.log, "pid 7 since noon").unwrap();
    let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_failover"));
    let program = program.args(["run", "--config", path.to_str().unwrap()]);
    let ended = program.env_clear().output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(4), "{said}");
    assert!(said.contains("pid 7 since noon"), "{said}");
}
