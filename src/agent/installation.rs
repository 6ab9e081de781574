//! Which installation of an agent this is: an id generated at its first start, stored in its state
//! folder, and the place of that folder, which no copy shares.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Context;

use super::pod::Pod;
use crate::engine::chain::Digest;
use crate::engine::instance::Instance;

/// The file of the id.
const FILE: &str = "instance.id";

/// What distinguishes one machine from another, best first: the firmware's id, which a cloned disk
/// does not carry along, the installed system's, and, if neither is readable, the current boot's.
const MACHINE: [&str; 3] = [
    "/sys/class/dmi/id/product_uuid",
    "/etc/machine-id",
    "/proc/sys/kernel/random/boot_id",
];

/// The same of a node, for a pod on it: the image's own id is the same on every node.
const NODE: [&str; 2] = [
    "/sys/class/dmi/id/product_uuid",
    "/proc/sys/kernel/random/boot_id",
];

/// The installation whose state is in this folder. The first start generates an id.
///
/// Restarts and reboots do not change it. On a cloned machine, another machine's restored volume or
/// a copy of the folder it is another one: the place covers machine, path and file.
///
/// A pod that is made anew on the same node is the same one. On another node it is another one, and
/// waits until the right of the first is certainly over: that node may still run it.
pub fn of(folder: &Path, pod: Option<&Pod>) -> anyhow::Result<Instance> {
    let path = folder.join(FILE);
    let id = match read(&path)? {
        Some(id) => id,
        None => draw(folder, &path).context("keep the id of this agent")?,
    };
    let machine = match pod {
        None => first_of(&MACHINE)?,
        Some(pod) => on_node(&first_of(&NODE)?, pod),
    };
    let place = place(&path, &machine)?;
    Ok(Instance { id, place })
}

fn read(path: &Path) -> anyhow::Result<Option<u128>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(cause).with_context(|| format!("read `{}`", path.display())),
    };
    let text = text.trim();
    let id = u128::from_str_radix(text, 16).ok();
    id.filter(|_| text.len() == 32).map(Some).with_context(|| {
        format!(
            "`{}` is not an id of 32 hexadecimal digits\n\nhint: with no agent running, remove it: the agent is then a new instance of its site",
            path.display()
        )
    })
}

/// Generates an id, and returns once it is durable.
fn draw(folder: &Path, path: &Path) -> anyhow::Result<u128> {
    let mut random = [0; 16];
    aws_lc_rs::rand::fill(&mut random).context("generate a random number")?;
    let id = u128::from_ne_bytes(random);
    let aside = folder.join(format!("{FILE}.new"));
    let mut file = File::create(&aside)?;
    writeln!(file, "{id:032x}")?;
    file.sync_all()?;
    std::fs::rename(&aside, path)?;
    File::open(folder)?.sync_all()?;
    Ok(id)
}

/// The pods of a name are never two on one node.
fn on_node(node: &str, pod: &Pod) -> String {
    format!("{}\n{}/{}", node.trim(), pod.namespace, pod.name)
}

fn first_of(files: &[&str]) -> anyhow::Result<String> {
    let texts = files.iter().filter_map(|path| {
        let text = std::fs::read_to_string(path).ok()?;
        (!text.trim().is_empty()).then_some(text)
    });
    texts
        .into_iter()
        .next()
        .context("nothing identifies this machine")
}

fn place(path: &Path, machine: &str) -> anyhow::Result<u64> {
    let path = std::fs::canonicalize(path).context("find the id of this agent")?;
    let inode = std::fs::metadata(&path)?.ino();
    let shown = format!("{}\n{}\n{inode}", machine.trim(), path.display());
    let digest = Digest::of(shown.as_bytes()).to_string();
    let front = digest.get(..16).unwrap_or_default();
    Ok(u64::from_str_radix(front, 16)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_is_the_same_instance_and_a_copy_another_with_the_same_id() {
        let dir = tempfile::tempdir().unwrap();
        let first = dir.path().join("first");
        std::fs::create_dir(&first).unwrap();
        let instance = of(&first, None).unwrap();
        assert_eq!(of(&first, None).unwrap(), instance);

        let copy = dir.path().join("copy");
        let mut copied = std::process::Command::new("cp");
        let copied = copied.arg("-a").arg(&first).arg(&copy);
        assert!(copied.status().unwrap().success());
        let copied = of(&copy, None).unwrap();
        assert_eq!(copied.id, instance.id);
        assert_ne!(copied.place, instance.place);

        // In place of the first one, at its very path.
        std::fs::rename(&first, dir.path().join("old")).unwrap();
        std::fs::rename(&copy, &first).unwrap();
        assert_ne!(of(&first, None).unwrap().place, instance.place);
        let elsewhere = place(&first.join(FILE), "another machine").unwrap();
        assert_ne!(elsewhere, of(&first, None).unwrap().place);

        let fresh = dir.path().join("fresh");
        std::fs::create_dir(&fresh).unwrap();
        assert_ne!(of(&fresh, None).unwrap().id, instance.id);
    }

    #[test]
    fn a_pod_made_anew_is_the_same_instance_and_another_pod_or_node_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let pod = |name: &str, uid: &str| Pod {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
        };
        let (first, anew) = (pod("db-0", "1"), pod("db-0", "2"));
        let instance = of(dir.path(), Some(&first)).unwrap();
        assert_eq!(of(dir.path(), Some(&anew)).unwrap(), instance);
        let other = of(dir.path(), Some(&pod("db-1", "1"))).unwrap();
        assert_eq!(other.id, instance.id);
        assert_ne!(other.place, instance.place);
        assert_ne!(of(dir.path(), None).unwrap().place, instance.place);
        let at = |node: &str| place(&dir.path().join(FILE), &on_node(node, &first)).unwrap();
        assert_eq!(at("a\n"), at("a"));
        assert_ne!(at("a"), at("b"));
    }

    #[test]
    fn an_id_that_was_damaged_is_refused_and_not_drawn_again() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "7\n", "not an id at all, but 32 characters"] {
            std::fs::write(dir.path().join(FILE), text).unwrap();
            let error = of(dir.path(), None).unwrap_err().to_string();
            assert!(error.contains("is not an id"), "{error}");
        }
    }
}
