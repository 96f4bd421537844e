//! The root file system of a sandbox, from the inside of its namespaces.
//!
//! All trees of the host are cloned first, while the host's root is still there. Then one tmpfs with the size limit is
//! mounted over a folder of the (private) copy of the host's mounts, everything is put together on it, and it, or an
//! overlay on it, becomes the root; the host's root is detached. What always holds: nothing of the host is writable but
//! mounts that ask for it, and everything else that is writable lies on that one tmpfs.

use std::os::fd::{AsFd, OwnedFd};

use holm_domain::run::spec::WORK_DIR;
use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    mount::{MountPropagationFlags, OpenTreeFlags, UnmountFlags, mount_change, open_tree, unmount},
    process::{fchdir, pivot_root, umask},
};

use super::{
    files::Tree,
    layers::{devpts, overlay, proc, writable},
};
use crate::{
    Context, Descriptor, Error,
    process::{
        HIDDEN,
        blueprint::{Bind, Blueprint, Entry, Root, Source},
        host_root,
        tree::{Use, attach},
    },
};

/// Devices that are shown. They are the host's, since none can be made in a user namespace.
const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty"];
/// Folders of which one certainly exists and can hide the sandbox's tmpfs until it becomes the root.
const STAGES: &[&str] = &["/tmp", "/mnt", "/usr"];
const LINKS: &[(&str, &str)] = &[
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

/// A tree and the place at which it is mounted.
struct Placed {
    tree: OwnedFd,
    target: String,
    directory: bool,
}

/// Everything of the host that is needed, cloned before the host's root goes away.
struct Parts {
    devices: Vec<Placed>,
    top: Vec<(Entry, Option<OwnedFd>)>,
    etc: Option<OwnedFd>,
    lower: Option<OwnedFd>,
    work: Option<OwnedFd>,
    binds: Vec<Placed>,
}

/// Makes the root file system of `plan` the root of the calling process.
pub fn make(plan: &Blueprint, descriptors: &mut Vec<Descriptor>) -> Result<(), Error> {
    umask(Mode::empty());
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).context(|| "making the mounts private".to_owned())?;
    let parts = gather(plan, descriptors)?;
    let owner = u32::from(plan.mapped);
    let tmpfs = writable(plan.disk_bytes, owner, plan.set_id)?;
    stage(&tmpfs)?;
    let base = Tree { root: tmpfs, owner };
    base.guests_folder(HIDDEN)?;
    let tree = match &plan.root {
        Root::Host { etc_entries, .. } => {
            fill_host(&base, parts.top, parts.etc, etc_entries, plan)?;
            Tree { root: base.root.try_clone().context(|| "duplicating the root".to_owned())?, owner }
        }
        Root::Layer { .. } => layered(&base, parts.lower, plan)?,
    };
    system_folders(&tree, &base, parts.devices, plan.mapped)?;
    if let Some(work) = parts.work {
        let layer = overlay(&base, &format!("{HIDDEN}/work"), work, false)?;
        put(&tree, &Placed { tree: layer, target: WORK_DIR.to_owned(), directory: true })?;
    }
    for bind in &parts.binds {
        put(&tree, bind)?;
    }
    enter(&tree)?;
    umask(Mode::from_raw_mode(0o022));
    Ok(())
}

fn gather(plan: &Blueprint, descriptors: &mut Vec<Descriptor>) -> Result<Parts, Error> {
    let mut parts =
        Parts { devices: Vec::new(), top: Vec::new(), etc: None, lower: None, work: None, binds: Vec::new() };
    for name in DEVICES {
        let target = format!("/dev/{name}");
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, target.as_str(), flags).context(|| format!("cloning {target}"))?;
        parts.devices.push(Placed { tree, target, directory: false });
    }
    let mut tree = |source: &Source, used: Use| source.clone().into_tree(descriptors, used);
    match &plan.root {
        Root::Host { top, etc, .. } => {
            for entry in top {
                let source = match entry {
                    Entry::Dir { source: Some(source), .. } => Some(tree(source, Use::ReadOnly)?),
                    _ => None,
                };
                parts.top.push((entry.clone(), source));
            }
            parts.etc = Some(tree(etc, Use::ReadOnly)?);
        }
        Root::Layer { lower } => parts.lower = Some(tree(lower, Use::Layer { set_id: plan.set_id })?),
    }
    parts.work = plan.work.as_ref().map(|work| tree(work, Use::Layer { set_id: false })).transpose()?;
    for Bind { source, target, read_only, directory } in &plan.binds {
        let used = if *read_only { Use::ReadOnly } else { Use::Writable };
        let (target, directory) = (target.clone(), *directory);
        parts.binds.push(Placed { tree: tree(source, used)?, target, directory });
    }
    Ok(parts)
}

/// Mounts the writable file system somewhere: only on what is mounted can more be mounted.
fn stage(tmpfs: &OwnedFd) -> Result<(), Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = STAGES.iter().find_map(|folder| openat(CWD, *folder, flags, Mode::empty()).ok());
    let folder = folder.ok_or_else(|| Error::Malformed(format!("none of {} is a folder", STAGES.join(", "))))?;
    attach(tmpfs.as_fd(), folder.as_fd()).context(|| "mounting the writable file system".to_owned())
}

/// The root `host`: its folders on the writable file system.
fn fill_host(
    tree: &Tree,
    top: Vec<(Entry, Option<OwnedFd>)>,
    etc: Option<OwnedFd>,
    etc_entries: &[Entry],
    plan: &Blueprint,
) -> Result<(), Error> {
    for (entry, source) in top {
        match (entry, source) {
            (Entry::Dir { path, .. }, Some(source)) => {
                put(tree, &Placed { tree: source, target: format!("/{path}"), directory: true })?;
            }
            (Entry::Link { path, target }, _) => tree.link(&format!("/{path}"), &target)?,
            (entry, _) => return Err(Error::Malformed(format!("{entry:?} in the first level"))),
        }
    }
    tree.folder("/etc", 0o755)?;
    if let Some(etc) = etc {
        fill_etc(tree, etc, etc_entries)?;
    }
    for (name, content) in host_root::generated(&plan.setup.hostname, plan.mapped) {
        tree.file(&format!("/etc/{name}"), &content)?;
    }
    tree.link("/etc/mtab", "/proc/self/mounts")?;
    for (folder, mode) in [("/root", 0o700), ("/home", 0o755), ("/var", 0o755), ("/run", 0o755), ("/sys", 0o555)] {
        tree.folder(folder, mode)?;
    }
    for folder in ["/var/tmp", "/run/lock"] {
        tree.folder(folder, 0o1777)?;
    }
    for folder in ["/var/lib", "/var/cache", "/var/log", "/opt", "/srv", "/mnt"] {
        tree.folder(folder, 0o755)?;
    }
    tree.link("/var/run", "/run")?;
    if plan.mapped {
        let home = tree.folder("/home/holm", 0o700)?;
        let (uid, gid) = (rustix::fs::Uid::from_raw(tree.owner + 1_000), rustix::fs::Gid::from_raw(tree.owner + 1_000));
        rustix::fs::chownat(&home, "", Some(uid), Some(gid), rustix::fs::AtFlags::EMPTY_PATH)
            .context(|| "making /home/holm".to_owned())?;
    }
    Ok(())
}

/// Shows parts of the host's /etc: it is mounted out of sight, and what may be seen is cloned from there.
fn fill_etc(tree: &Tree, etc: OwnedFd, entries: &[Entry]) -> Result<(), Error> {
    let hidden = tree.guests_folder(&format!("{HIDDEN}/etc"))?;
    attach(etc.as_fd(), hidden.as_fd()).context(|| "mounting the host's /etc".to_owned())?;
    for entry in entries {
        let (path, directory) = match entry {
            Entry::Link { path, target } => {
                tree.folders_above(&format!("/etc/{path}"))?;
                tree.link(&format!("/etc/{path}"), target)?;
                continue;
            }
            Entry::Dir { path, .. } => (path, true),
            Entry::File { path } => (path, false),
        };
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_SYMLINK_NOFOLLOW
            | OpenTreeFlags::AT_RECURSIVE;
        let clone = open_tree(&etc, path.as_str(), flags).context(|| format!("cloning /etc/{path}"))?;
        put(tree, &Placed { tree: clone, target: format!("/etc/{path}"), directory })?;
    }
    let at = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&etc));
    unmount(at.as_str(), UnmountFlags::DETACH).context(|| "detaching the host's /etc".to_owned())
}

/// The root of an image: an overlay over it, put over the stage, with the writable file system in its hidden folder.
fn layered(base: &Tree, lower: Option<OwnedFd>, plan: &Blueprint) -> Result<Tree, Error> {
    let lower = lower.ok_or_else(|| Error::Malformed("no lower layer".to_owned()))?;
    let root = overlay(base, &format!("{HIDDEN}/root"), lower, plan.set_id)?;
    attach(root.as_fd(), base.root.as_fd()).context(|| "mounting the overlay".to_owned())?;
    let tree = Tree { root, owner: base.owner };
    let hidden = tree.guests_folder(HIDDEN)?;
    let clone = clone_of(base, HIDDEN)?;
    attach(clone.as_fd(), hidden.as_fd()).context(|| "mounting the layers".to_owned())?;
    for (name, content) in host_root::generated(&plan.setup.hostname, plan.mapped) {
        // An image knows its own users.
        if !["passwd", "group"].contains(&name) {
            tree.folders_above(&format!("/etc/{name}"))?;
            tree.file(&format!("/etc/{name}"), &content)?;
        }
    }
    Ok(tree)
}

/// A folder of the writable file system as a mount of its own.
fn clone_of(base: &Tree, path: &str) -> Result<OwnedFd, Error> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let clone = || -> std::io::Result<OwnedFd> { Ok(open_tree(base.open(path)?, "", flags)?) };
    clone().context(|| format!("cloning {path}"))
}

/// /proc, /dev, /tmp and what every root has.
fn system_folders(tree: &Tree, base: &Tree, devices: Vec<Placed>, mapped: bool) -> Result<(), Error> {
    put(tree, &Placed { tree: proc()?, target: "/proc".to_owned(), directory: true })?;
    let dev = format!("{HIDDEN}/dev");
    base.folder(&dev, 0o755)?;
    put(tree, &Placed { tree: clone_of(base, &dev)?, target: "/dev".to_owned(), directory: true })?;
    tree.folder("/dev/shm", 0o1777)?;
    for device in &devices {
        put(tree, device)?;
    }
    // The group tty is 5 inside.
    let tty = mapped.then_some(tree.owner + 5);
    put(tree, &Placed { tree: devpts(tty)?, target: "/dev/pts".to_owned(), directory: true })?;
    for (path, target) in LINKS {
        tree.link(path, target)?;
    }
    tree.folder("/tmp", 0o1777)?;
    tree.folder("/run", 0o755)?;
    tree.folder("/run/holm", 0o755)?;
    Ok(())
}

fn put(tree: &Tree, placed: &Placed) -> Result<(), Error> {
    let at = tree.mount_point(&placed.target, placed.directory)?;
    attach(placed.tree.as_fd(), at.as_fd()).context(|| format!("mounting {}", placed.target))
}

/// Makes the tree the root, and lets the host's go (the form with one folder of pivot_root(2)).
fn enter(tree: &Tree) -> Result<(), Error> {
    let context = || "changing the root".to_owned();
    fchdir(&tree.root).context(context)?;
    pivot_root(".", ".").context(context)?;
    unmount(".", UnmountFlags::DETACH).context(context)?;
    rustix::process::chdir("/").context(context)
}
