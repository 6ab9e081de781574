//! Pods as containers have them: each with a PID namespace of its own, and all on one volume.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use failover::lab::cluster::SiteKind;
use failover::lab::layout::{Layout, Servers, SiteLayout};
use rustix::process::{Pid, Signal, kill_process};

use crate::pair::tools;
use crate::stage::{FAST, until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_failover");

/// The files of a lab in which nothing runs.
async fn layout(dir: &Path) -> Layout {
    failover::adapters::tls::install_provider();
    let servers = Servers {
        tools: tools(),
        hostile: false,
        kind: SiteKind::Kubernetes,
    };
    let made = Layout::create(dir, Path::new(PROGRAM), None, FAST, servers);
    made.await.unwrap()
}

/// A container with the agent of a site. It ends with this value.
pub(crate) struct Container {
    child: Child,
    log: PathBuf,
}

impl Container {
    /// `node` is run before the agent, in the container's mount and UTS namespaces.
    pub(crate) fn start(config: &Path, uid: &str, node: &str, log: PathBuf) -> Self {
        let output = File::options().create(true).append(true).open(&log);
        let output = output.unwrap();
        let child = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "--mount-proc", "--uts"])
            .args(["--", "sh", "-ec"])
            .arg(format!("{node}exec \"$0\" \"$@\""))
            .args([PROGRAM, "agent", "--config"])
            .arg(config)
            .env("POD_NAMESPACE", "shop")
            .env("POD_NAME", "db-0")
            .env("POD_UID", uid)
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        Self { child, log }
    }

    fn of(site: &SiteLayout, uid: &str) -> Self {
        let log = site.dir.join(format!("{uid}.log"));
        Self::start(&site.agent_config(), uid, "", log)
    }

    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// The first process in there, as it is seen from here.
    fn first(&self) -> i32 {
        *children(self.child.id().cast_signed()).first().unwrap()
    }

    /// Tells it to end, as a kubelet does; how it ended.
    async fn end(&mut self) -> ExitStatus {
        kill_process(Pid::from_raw(self.first()).unwrap(), Signal::TERM).unwrap();
        let mut ended = None;
        until("the container ends", async || {
            ended = self.child.try_wait().unwrap();
            ended.is_some()
        })
        .await;
        ended.unwrap()
    }

    /// Its end without a warning.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // What has ended already needs neither.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn children(pid: i32) -> Vec<i32> {
    let list = format!("/proc/{pid}/task/{pid}/children");
    let list = std::fs::read_to_string(list).unwrap_or_default();
    list.split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

/// The state of a process, as `ps` shows it.
fn state(pid: i32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// How often PostgreSQL was started on a site's volume.
fn starts(site: &SiteLayout) -> usize {
    let log = std::fs::read_to_string(site.dir.join("postgres.log"));
    log.unwrap_or_default()
        .matches("starting PostgreSQL")
        .count()
}

/// The first processes of PostgreSQL that work in a site's data folder, in whichever container.
fn servers(site: &SiteLayout) -> Vec<i32> {
    let data = site.instance.data();
    let works_here = |pid: i32| {
        std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|folder| folder == data)
    };
    let parent = |pid: i32| -> i32 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
        let parent = fields.split(' ').nth(1).and_then(|pid| pid.parse().ok());
        parent.unwrap_or_default()
    };
    let all = std::fs::read_dir("/proc").unwrap();
    let all = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let here: Vec<i32> = all.filter(|pid| works_here(*pid)).collect();
    let first = |pid: &&i32| !here.contains(&parent(**pid));
    here.iter().filter(first).copied().collect()
}

/// Whether a process has the volume's lock open.
fn has_lock(pid: i32) -> bool {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let open = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    let mut names = open.filter_map(|path| path.file_name().map(ToOwned::to_owned));
    names.any(|name| name == "volume.lock")
}

#[tokio::test]
async fn two_pods_on_one_volume_run_one_database_and_the_second_follows_the_first_one_killed() {
    let dir = tempfile::tempdir().unwrap();
    let layout = layout(dir.path()).await;
    // A standby needs no grant: nothing but the volume stands between the two.
    let site = &layout.sites[1];
    let mut first = Container::of(site, "one");
    until("the first runs PostgreSQL", async || {
        starts(site) == 1 && servers(site).len() == 1
    })
    .await;
    let server = servers(site);
    // A container's first process lets go of its files before the kernel ends the others.
    assert!(has_lock(server[0]), "PostgreSQL itself holds the lock");
    let mut second = Container::of(site, "two");
    until("the second waits, and says for whom", async || {
        let said = second.said();
        said.contains("another pod uses this volume") && said.contains("shop/db-0 (uid one)")
    })
    .await;
    assert_eq!(servers(site), server);
    assert_eq!(starts(site), 1);

    // Its node is cut off and comes back, or somebody forces it out: no orderly end. The pid files
    // stay, with a number that means another process in the next container, or none.
    first.kill();
    assert!(site.instance.data().join("postmaster.pid").exists());
    until("the second runs PostgreSQL", async || {
        starts(site) == 2 && servers(site).len() == 1
    })
    .await;
    assert!(second.said().contains("this container has the volume"));

    let status = second.end().await;
    assert!(status.success(), "{status}: {}", second.said());
    assert!(servers(site).is_empty());
    let log = std::fs::read_to_string(site.dir.join("postgres.log")).unwrap();
    let (_, last) = log.rsplit_once("starting PostgreSQL").unwrap();
    assert!(last.contains("received fast shutdown request"), "{last}");
    assert!(last.contains("database system is shut down"), "{last}");
    assert!(!site.instance.data().join("postmaster.pid").exists());
}

#[tokio::test]
async fn an_agent_that_dies_in_its_container_is_started_again_beside_the_same_database() {
    let dir = tempfile::tempdir().unwrap();
    let layout = layout(dir.path()).await;
    let site = &layout.sites[1];
    let mut container = Container::of(site, "one");
    until("PostgreSQL runs", async || servers(site).len() == 1).await;
    let server = servers(site);
    let first = container.first();
    let agent = children(first);
    assert_eq!(agent.len(), 1, "the guard is the agent's");
    kill_process(Pid::from_raw(agent[0]).unwrap(), Signal::KILL).unwrap();
    until("the next agent runs", async || {
        container.said().matches("agent runs").count() == 2
    })
    .await;
    assert_eq!(servers(site), server);
    assert_eq!(starts(site), 1);

    // Whoever loses its parent comes to the first process, which takes in its end.
    let mut stray = Command::new("nsenter");
    stray.args(["--target", &first.to_string(), "--pid", "--"]);
    stray.args(["sh", "-c", "sleep 1 >/dev/null 2>&1 &"]);
    let before = children(first);
    assert!(stray.status().unwrap().success());
    let after = children(first);
    let mut orphans = after.iter().filter(|pid| !before.contains(pid));
    let orphan = *orphans
        .next_back()
        .expect("the orphan is a child of the first");
    until("the orphan is taken in", async || state(orphan).is_none()).await;
    let dead = children(first)
        .into_iter()
        .filter(|pid| state(*pid) == Some('Z'));
    assert_eq!(dead.count(), 0);

    assert!(container.end().await.success(), "{}", container.said());
    assert!(servers(site).is_empty());
}
