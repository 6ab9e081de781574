//! The controller as its pod runs it: from the files that the chart mounts, as the user that it names, on a
//! root that it cannot write to. What the kubelet does with volumes is done here by hand: root owns them,
//! the pod's group has them, and links lead to the version that is current.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use failover::cli::manifests::{Manifest, Release, render};
use serde_json::{Value, json};

use crate::stage::wait_until;

const PROGRAM: &str = env!("CARGO_BIN_EXE_failover");

/// Enters the pod's folders and gives everything away before the program starts.
const SCRIPT: &str = r#"
ip link set lo up
mount --make-rprivate /
mount --bind "$1/etc" /etc
mount --bind "$1/lib" /var/lib
mount -o bind,remount,ro /
user=$2
shift 2
exec setpriv --reuid="$user" --regid="$user" --clear-groups --no-new-privs \
    --bounding-set=-all --inh-caps=-all -- "$@"
"#;

struct Pod {
    dir: tempfile::TempDir,
    user: u32,
    arguments: Vec<String>,
}

fn manifests() -> Vec<Manifest> {
    let text = include_str!("../../deploy/kubernetes/neutral.yaml");
    let mut values: Value = serde_saphyr::from_str(text).unwrap();
    // The image has the roots that browsers trust; this machine need not.
    values["controller"]["config"]["controller"]["probe_ca"] = json!("ca.pem");
    let release = Release {
        name: "failover",
        namespace: "failover",
    };
    render("neutral.yaml", &values.to_string(), release).unwrap()
}

fn object(manifests: &[Manifest], kind: &str) -> Value {
    let mut objects = manifests.iter().map(|each| &each.object);
    objects
        .find(|object| object["kind"] == kind)
        .unwrap()
        .clone()
}

fn number(value: &Value) -> u32 {
    u32::try_from(value.as_u64().unwrap()).unwrap()
}

/// What somebody puts into the Secret of the example.
fn secrets(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let keys = folder.join("keys");
    let made = Command::new(PROGRAM)
        .args(["certificates", "--group", "shop", "--site", "aws", "--dir"])
        .arg(&keys)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let file = |name: &str| fs::read(keys.join(name)).unwrap();
    let own = ["ca.pem", "controller.pem", "controller.key", "orders.key"];
    let mut all: Vec<_> = own.map(|name| (name.to_owned(), file(name))).into();
    all.push(("database-ca.pem".to_owned(), file("ca.pem")));
    all.push(("db.password".to_owned(), b"correct horse\n".to_vec()));
    all.push((
        "tsig.secret".to_owned(),
        b"MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI=\n".to_vec(),
    ));
    let authority = data_encoding::BASE64.encode(&file("ca.pem"));
    for (site, server) in [("aws", "https://10.1.0.1"), ("gcp", "https://10.2.0.1")] {
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": site,
            "clusters": [{"name": site, "cluster": {
                "server": server, "certificate-authority-data": authority,
            }}],
            "users": [{"name": "failover-remote", "user": {"token": "secret"}}],
            "contexts": [{"name": site, "context": {"cluster": site, "user": "failover-remote"}}],
        });
        all.push((
            format!("{site}.kubeconfig"),
            kubeconfig.to_string().into_bytes(),
        ));
    }
    all
}

impl Pod {
    fn new() -> Self {
        let manifests = manifests();
        let pod = object(&manifests, "StatefulSet")["spec"]["template"]["spec"].clone();
        let user = number(&pod["securityContext"]["runAsUser"]);
        let group = number(&pod["securityContext"]["fsGroup"]);
        let mode = number(&pod["volumes"][0]["projected"]["defaultMode"]);
        // Not in memory: the log refuses that.
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let files = dir.path().join("etc/failover");
        let version = files.join("..2026_11_27");
        fs::create_dir_all(&version).unwrap();
        symlink("..2026_11_27", files.join("..data")).unwrap();
        let data = object(&manifests, "ConfigMap")["data"].clone();
        let texts = data.as_object().unwrap().iter();
        let texts = texts.map(|(name, text)| (name.clone(), text.as_str().unwrap().into()));
        for (name, content) in texts.chain(secrets(dir.path())) {
            let file = version.join(&name);
            fs::write(&file, content).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            chown(&file, Some(0), Some(group)).unwrap();
            symlink(format!("..data/{name}"), files.join(&name)).unwrap();
        }
        let volume = dir.path().join("lib/failover");
        fs::create_dir_all(&volume).unwrap();
        chown(&volume, Some(0), Some(group)).unwrap();
        fs::set_permissions(&volume, fs::Permissions::from_mode(0o2775)).unwrap();
        let arguments = pod["containers"][0]["args"].as_array().unwrap().iter();
        Self {
            dir,
            user,
            arguments: arguments
                .map(|each| each.as_str().unwrap().to_owned())
                .collect(),
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--net", "--pid", "--fork", "--kill-child"])
            .args(["sh", "-euc", SCRIPT, "sh"])
            .arg(self.dir.path())
            .arg(self.user.to_string())
            .arg(PROGRAM)
            .args(&self.arguments)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("lib/failover/decision.log")
    }
}

/// Ends what runs in the pod.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// What the pod answers at a page of its plain port; nothing while it does not.
fn answer(running: &Running, page: &str) -> String {
    let ask = format!(
        "exec 3<>/dev/tcp/127.0.0.1/7480 && printf 'GET {page} HTTP/1.0\\r\\nhost: pod\\r\\n\\r\\n' >&3 && cat <&3"
    );
    let pid = running.0.id().to_string();
    let Output { stdout, .. } = Command::new("nsenter")
        .args(["--target", &pid, "--net", "bash", "-c", &ask])
        .output()
        .unwrap();
    String::from_utf8_lossy(&stdout).into_owned()
}

#[test]
fn the_controller_runs_from_what_its_pod_mounts() {
    let pod = Pod::new();
    let said = pod.dir.path().join("said");
    let into = || {
        fs::File::options()
            .append(true)
            .create(true)
            .open(&said)
            .unwrap()
    };
    let child = pod
        .command()
        .stdin(Stdio::null())
        .stdout(into())
        .stderr(into())
        .spawn();
    let mut running = Running(child.unwrap());
    wait_until("the probes of its pod are answered", || {
        let ended = running.0.try_wait().unwrap();
        assert!(ended.is_none(), "{}", fs::read_to_string(&said).unwrap());
        answer(&running, "/livez").contains("200 OK")
    });
    // It reaches nobody in there: alive, and not ready for a failover.
    assert!(answer(&running, "/readyz").contains("own-isolation"));
    let log = fs::metadata(pod.log()).unwrap();
    assert_eq!((log.uid(), log.gid()), (pod.user, pod.user));
}

#[test]
fn a_secret_that_is_mounted_for_all_is_refused() {
    let pod = Pod::new();
    let key = pod.dir.path().join("etc/failover/controller.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o444)).unwrap();
    let done = pod.command().output().unwrap();
    assert_eq!(done.status.code(), Some(2));
    let said = String::from_utf8(done.stderr).unwrap();
    assert!(said.contains("is a secret and its mode is 0444"), "{said}");
    assert!(!pod.log().exists());
}
