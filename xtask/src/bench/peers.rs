//! Other ways to run `true` in a place of its own, made ready so that only the run itself is measured.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Resource;
use serde_json::Value;

use crate::{exec, places, say};

/// A temporary folder in which others may leave mounts; they are taken off before it is removed.
pub struct Workplace(tempfile::TempDir);

impl Workplace {
    /// Makes it in `dir`.
    pub fn new(dir: &Path) -> Result<Self> {
        Ok(Self(tempfile::Builder::new().prefix("holm-bench-").tempdir_in(dir)?))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        // podman keeps its storage folder mounted on itself after its last container has ended.
        for mount in mounts_below(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default(), self.path()) {
            if let Err(error) = exec::read(Command::new("umount").arg(&mount)) {
                say::error(&format!("{error:#}"));
            }
        }
    }
}

/// The mount points below a folder, the newest first (proc(5), mountinfo: the fifth field).
fn mounts_below(mountinfo: &str, dir: &Path) -> Vec<PathBuf> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut below: Vec<PathBuf> = points.filter(|point| point.starts_with(dir)).collect();
    below.reverse();
    below
}

/// One way: a name and the command to measure.
pub struct Peer {
    /// As it stands in the table.
    pub name: &'static str,
    /// Makes the command of one run; some need a new name for each.
    pub command: Box<dyn Fn(usize) -> Command>,
}

/// A peer that could not be made ready, and why.
pub struct Absent {
    /// As it would stand in the table.
    pub name: &'static str,
    /// Why.
    pub reason: String,
}

type Way = (&'static str, fn(&Path) -> Result<Peer>);

/// Makes every peer ready that is installed.
pub fn prepare(dir: &Path) -> (Vec<Peer>, Vec<Absent>) {
    let ways: [Way; 4] = [("bwrap", bwrap), ("unshare", unshare), ("runc", runc), ("podman", podman)];
    let (mut peers, mut absent) = (Vec::new(), Vec::new());
    for (name, make) in ways {
        match make(dir).and_then(|peer| tried(&peer).map(|()| peer)) {
            Ok(peer) => peers.push(peer),
            Err(error) => absent.push(Absent { name, reason: format!("{error:#}") }),
        }
    }
    (peers, absent)
}

/// Runs it once before anything is measured: what does not work must not look fast.
fn tried(peer: &Peer) -> Result<()> {
    exec::read(&mut (peer.command)(usize::MAX)).map(drop)
}

fn installed(name: &str) -> Result<PathBuf> {
    places::program(name).with_context(|| format!("{name} is not installed: `cargo xtask setup --all` does it"))
}

fn bwrap(_: &Path) -> Result<Peer> {
    let program = installed("bwrap")?;
    let command = move |_| {
        let mut command = Command::new(&program);
        command.args(["--unshare-all", "--ro-bind", "/", "/", "true"]);
        command
    };
    Ok(Peer { name: "bwrap", command: Box::new(command) })
}

fn unshare(_: &Path) -> Result<Peer> {
    let program = installed("unshare")?;
    let command = move |_| {
        let mut command = Command::new(&program);
        command.args(["-Urmpfn", "true"]);
        command
    };
    Ok(Peer { name: "unshare", command: Box::new(command) })
}

/// A root file system of a static busybox.
fn rootfs(dir: &Path) -> Result<PathBuf> {
    let root = dir.join("rootfs");
    if !root.exists() {
        let busybox = installed("busybox")?;
        for folder in ["bin", "proc", "sys", "dev", "tmp", "etc"] {
            fs::create_dir_all(root.join(folder))?;
        }
        fs::copy(&busybox, root.join("bin/busybox"))?;
        for name in ["sh", "true"] {
            symlink("busybox", root.join("bin").join(name))?;
        }
    }
    Ok(root)
}

fn runc(dir: &Path) -> Result<Peer> {
    let program = installed("runc")?;
    ensure!(places::is_root(), "it needs root here");
    let bundle = dir.join("bundle");
    fs::create_dir_all(&bundle)?;
    let root = rootfs(dir)?;
    exec::read(Command::new(&program).arg("spec").current_dir(&bundle))?;
    let path = bundle.join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
    config["process"]["args"] = serde_json::json!(["/bin/true"]);
    config["process"]["terminal"] = serde_json::json!(false);
    config["root"]["path"] = serde_json::json!(root);
    fs::write(&path, config.to_string())?;
    let state = dir.join("runc-state");
    let command = move |number: usize| {
        let mut command = Command::new(&program);
        command.arg("--root").arg(&state).arg("run").arg("--bundle").arg(&bundle);
        command.arg(format!("holm-bench-{}-{number}", std::process::id()));
        command
    };
    Ok(Peer { name: "runc", command: Box::new(command) })
}

/// Settings with which podman works where neither systemd nor a container engine is set up: it asks for more than this
/// process may give on unless it is told less.
fn containers_conf() -> String {
    let at_most = |most, resource| rustix::process::getrlimit(resource).maximum.unwrap_or(most).min(most);
    let (files, processes) = (at_most(1_024, Resource::Nofile), at_most(32_768, Resource::Nproc));
    format!(
        "[containers]\ndefault_ulimits = [\"nofile={files}:{files}\", \"nproc={processes}:{processes}\"]\n\
         [engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n"
    )
}

fn podman(dir: &Path) -> Result<Peer> {
    let program = installed("podman")?;
    ensure!(places::is_root(), "it is compared as root only");
    let config = dir.join("containers.conf");
    fs::write(&config, containers_conf())?;
    let (storage, state) = (dir.join("podman-storage"), dir.join("podman-state"));
    let base = move || {
        let mut command = Command::new(&program);
        command.env("CONTAINERS_CONF", &config).arg("--root").arg(&storage).arg("--runroot").arg(&state);
        command
    };
    let archive = dir.join("rootfs.tar");
    exec::read(Command::new("tar").arg("-C").arg(rootfs(dir)?).arg("-cf").arg(&archive).arg("."))?;
    let imported = exec::output(base().arg("import").arg(&archive).arg("holm-bench:latest"))?;
    if !imported.status.success() {
        bail!("import failed: {}", String::from_utf8_lossy(&imported.stderr).trim());
    }
    let command = move |_| {
        let mut command = base();
        command.args(["run", "--rm", "--network", "none", "holm-bench:latest", "/bin/true"]);
        command
    };
    Ok(Peer { name: "podman", command: Box::new(command) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_below_a_folder_are_found_newest_first() {
        let mountinfo =
            "36 35 98:0 / /a rw - ext4 x rw\n37 36 0:1 / /a/b rw - tmpfs t rw\n38 36 0:2 / /ab rw - tmpfs t rw\n";
        assert_eq!(mounts_below(mountinfo, Path::new("/a")), [PathBuf::from("/a/b"), PathBuf::from("/a")]);
    }
}
