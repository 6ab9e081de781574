//! A real pair for a test, on addresses of its own, ended with the test.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail as tests do; clippy sees only the test functions as such"
)]

use std::fs::{self, File};
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use failover::adapters::postgres::{Connect, HeartbeatWrite, Secret, probe};
use failover::engine::observation::DatabaseFacts;
use failover::engine::topology::{SiteName, Vantage};
use failover::lab::pair::{
    Instance, Passwords, PostgresTools, StopMode, create_primary, create_standby,
    start_temporarily, stop,
};
use rustix::process::{Pid, Signal, kill_process};

pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// What a helper of a test states for itself.
const PLAIN: &str = "-c role=none -c statement_timeout=0 -c lock_timeout=0 \
    -c default_transaction_read_only=off -c default_transaction_isolation=read\\ committed \
    -c search_path=public -c standard_conforming_strings=on -c datestyle=ISO \
    -c idle_session_timeout=0 -c idle_in_transaction_session_timeout=0 -c exit_on_error=off \
    -c synchronous_commit=local -c session_replication_role=replica";

/// A running server, ended with the test.
pub(crate) struct Server {
    pub(crate) tools: PostgresTools,
    pub(crate) instance: Instance,
    pub(crate) passwords: Passwords,
}

/// One primary, and its standby where a test needs it. The directory goes last.
pub(crate) struct Pair {
    standby: Option<Server>,
    pub(crate) primary: Server,
    dir: tempfile::TempDir,
}

pub(crate) fn site(name: &str) -> SiteName {
    name.parse().unwrap()
}

pub(crate) fn write() -> HeartbeatWrite {
    HeartbeatWrite {
        site: site("aws"),
        vantage: Vantage::Controller,
    }
}

/// The PostgreSQL that the tests run on: that of the folder `POSTGRES_DIR`, or the newest on this
/// machine.
pub(crate) fn tools() -> PostgresTools {
    let tools = installed();
    let template = template(&tools);
    tools.copying(template)
}

/// The same, where a database must have a system identifier of its own: copies share one.
fn installed() -> PostgresTools {
    match std::env::var_os("POSTGRES_DIR") {
        Some(folder) => PostgresTools::in_folder(folder.into()).unwrap(),
        None => PostgresTools::find().unwrap(),
    }
}

/// A data directory that all tests copy: making one takes as long as many a test. Made by the first one
/// that needs it, whichever process that is, in a folder that PostgreSQL's user gets through to. It stays
/// for the next run.
pub(crate) fn template(tools: &PostgresTools) -> PathBuf {
    let program = tools.program("initdb");
    let made = fs::metadata(&program).unwrap().modified().unwrap();
    let age = made.duration_since(std::time::UNIX_EPOCH).unwrap();
    let user = tools
        .user()
        .map_or_else(|| rustix::process::geteuid().as_raw(), |user| user.uid);
    let name: String = program.to_string_lossy().replace('/', "-");
    let folder =
        std::env::temp_dir().join(format!("failover-tests{name}-{}-{user}", age.as_nanos()));
    let lock = File::create(folder.with_extension("lock")).unwrap();
    lock.lock().unwrap();
    let data = folder.join("data");
    if !data.join("PG_VERSION").exists() {
        // What a process left that was ended in the middle.
        if folder.exists() {
            fs::remove_dir_all(&folder).unwrap();
        }
        fs::create_dir(&folder).unwrap();
        if let Some(user) = tools.user() {
            std::os::unix::fs::chown(&folder, Some(user.uid), Some(user.gid)).unwrap();
        }
        let half = folder.join("half");
        // In a thread of its own: whoever asks may run in a runtime already.
        std::thread::scope(|scope| {
            let making = scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                runtime.unwrap().block_on(tools.init(&half))
            });
            making.join().unwrap().unwrap();
        });
        fs::rename(&half, &data).unwrap();
    }
    data
}

/// An address of this process and this call, and a port that is free on it.
pub(crate) fn place() -> (IpAddr, u16) {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let last = NEXT.fetch_add(1, Ordering::Relaxed);
    let ip = Ipv4Addr::new(127, high.max(1), low, last);
    let port = TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap();
    (ip.into(), port.port())
}

impl Server {
    pub(crate) fn new(tools: &PostgresTools, dir: &Path, name: &str) -> Self {
        let (listen, port) = place();
        Self {
            tools: tools.clone(),
            instance: Instance {
                site: site(name),
                dir: dir.join(name),
                listen,
                port,
            },
            passwords: Passwords {
                replicator: Secret::new("it's a secret"),
                failover: Secret::new("watch"),
                app: Secret::new("app"),
            },
        }
    }

    pub(crate) fn monitor(&self) -> Connect {
        let password = &self.passwords.failover;
        self.instance.remote("failover", password).unwrap()
    }

    pub(crate) fn local(&self) -> Connect {
        self.instance.local("app").unwrap()
    }

    pub(crate) async fn facts(&self) -> DatabaseFacts {
        probe(&self.monitor(), None, LIMIT).await.unwrap()
    }

    pub(crate) async fn beat(&self) -> DatabaseFacts {
        probe(&self.monitor(), Some(&write()), LIMIT).await.unwrap()
    }

    /// As the superuser, by the client that everybody trusts, whatever the defaults are.
    pub(crate) fn sql(&self, statement: &str) -> String {
        let newer = if self.major() >= 17 {
            " -c transaction_timeout=0"
        } else {
            ""
        };
        let options = format!("{PLAIN}{newer}");
        let done = self.psql("postgres", &options, statement).output().unwrap();
        assert!(done.status.success(), "{statement}: {done:?}");
        String::from_utf8(done.stdout).unwrap().trim().to_owned()
    }

    /// The major version, as its files say.
    pub(crate) fn major(&self) -> u32 {
        let version = std::fs::read_to_string(self.instance.data().join("PG_VERSION")).unwrap();
        version.trim().parse().unwrap()
    }

    /// A client of the database `app` over the socket, as a role, with these startup options.
    pub(crate) fn psql(&self, role: &str, options: &str, statement: &str) -> std::process::Command {
        let mut psql = std::process::Command::new(self.tools.program("psql"));
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "app"])
            .args(["-U", role, "-c", statement, "-h"])
            .arg(self.instance.socket())
            .args(["-p", &self.instance.port.to_string()])
            .env("PGOPTIONS", options)
            .stdin(std::process::Stdio::null());
        psql
    }

    pub(crate) fn postmaster(&self) -> Option<Pid> {
        let file = self.instance.data().join("postmaster.pid");
        let text = std::fs::read_to_string(file).ok()?;
        Pid::from_raw(text.lines().next()?.parse().ok()?)
    }

    pub(crate) async fn start(&self) {
        let started = start_temporarily(&self.tools, &self.instance).await;
        let log = self.instance.dir.join("log");
        started.unwrap_or_else(|error| {
            let said = std::fs::read_to_string(log).unwrap_or_default();
            panic!("{error}: {said}")
        });
    }

    pub(crate) async fn stop(&self) {
        stop(&self.tools, &self.instance, StopMode::Fast)
            .await
            .unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(postmaster) = self.postmaster() else {
            return;
        };
        // A frozen server does not hear that it should stop.
        kill_process(postmaster, Signal::CONT).ok();
        let mut stop = std::process::Command::new(self.tools.program("pg_ctl"));
        if let Some(user) = self.tools.user() {
            stop.uid(user.uid).gid(user.gid);
        }
        stop.current_dir("/")
            .args(["stop", "-w", "-s", "-m", "immediate", "-D"])
            .arg(self.instance.data())
            .status()
            .ok();
    }
}

impl Pair {
    pub(crate) async fn primary_only() -> Self {
        Self::primary_by(&tools()).await
    }

    /// A primary whose system identifier no other database of a test has.
    pub(crate) async fn primary_of_its_own() -> Self {
        Self::primary_by(&installed()).await
    }

    async fn primary_by(tools: &PostgresTools) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let primary = Server::new(tools, dir.path(), "aws");
        create_primary(tools, &primary.instance, &primary.passwords)
            .await
            .unwrap();
        Self {
            standby: None,
            primary,
            dir,
        }
    }

    pub(crate) async fn new() -> Self {
        let mut pair = Self::primary_only().await;
        let standby = Server::new(&pair.primary.tools, pair.dir.path(), "gcp");
        create_standby(
            &standby.tools,
            &pair.primary.instance,
            &standby.instance,
            &standby.passwords,
        )
        .await
        .unwrap();
        standby.start().await;
        pair.standby = Some(standby);
        pair.caught_up().await;
        pair
    }

    pub(crate) fn standby(&self) -> &Server {
        self.standby.as_ref().unwrap()
    }

    /// Waits until the standby streams and has replayed what the primary has written.
    pub(crate) async fn caught_up(&self) {
        let goal = self.primary.beat().await.position;
        until("the standby has caught up", async || {
            let facts = self.standby().facts().await;
            let streams = facts
                .receiver
                .is_some_and(|receiver| receiver.is_streaming());
            streams && facts.replayed >= goal
        })
        .await;
    }
}

pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut look: impl FnMut() -> F) {
    let wait = async {
        while !look().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait)
        .await
        .unwrap_or_else(|_| panic!("not within 30 s: {what}"));
}
