//! The root file system of a sandbox, from the inside of its namespaces.
//!
//! All trees of the host are cloned first, while the host's root is still there. Then one tmpfs with the size limit is
//! mounted over a folder of the (private) copy of the host's mounts, everything is put together on it, and an overlay on it
//! becomes the root; the host's root is detached. What always holds: nothing of the host is writable but
//! mounts that ask for it, and everything else that is writable lies on that one tmpfs, but for the small one that the guest
//! makes for the structured result.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use holm_domain::run::spec::{OWN_PLACES, WORK_DIR};
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
        blueprint::{Bind, Blueprint, Source},
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
    lower: OwnedFd,
    work: Option<OwnedFd>,
    binds: Vec<Placed>,
}

/// Makes the root file system of `plan` the root of the calling process.
pub fn make(plan: &Blueprint, descriptors: &mut Vec<Descriptor>) -> Result<(), Error> {
    umask(Mode::empty());
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).context(|| "making the mounts private".to_owned())?;
    let Parts { devices, lower, work, binds } = gather(plan, descriptors)?;
    let tmpfs = writable(plan.disk_bytes, u32::from(plan.mapped), plan.set_id)?;
    stage(&tmpfs)?;
    let base = Tree { root: tmpfs, owner: u32::from(plan.mapped) };
    base.guests_folder(HIDDEN)?;
    let tree = layered(&base, lower, plan)?;
    system_folders(&tree, &base, devices, plan.mapped)?;
    let own = own_places(&tree).context(|| "looking at what is Holm's own".to_owned())?;
    if let Some(work) = work {
        let layer = overlay(&base, &format!("{HIDDEN}/work"), work, false)?;
        put_lent(&tree, &own, &Placed { tree: layer, target: WORK_DIR.to_owned(), directory: true }, "--dir")?;
    }
    for bind in &binds {
        put_lent(&tree, &own, bind, &format!("--mount …:{}", bind.target))?;
    }
    enter(&tree)?;
    umask(Mode::from_raw_mode(0o022));
    Ok(())
}

fn gather(plan: &Blueprint, descriptors: &mut Vec<Descriptor>) -> Result<Parts, Error> {
    let mut devices = Vec::new();
    for name in DEVICES {
        let target = format!("/dev/{name}");
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, target.as_str(), flags).context(|| format!("cloning {target}"))?;
        devices.push(Placed { tree, target, directory: false });
    }
    let mut tree = |source: &Source, used: Use| source.clone().into_tree(descriptors, used);
    let lower = tree(&plan.lower, Use::Layer { set_id: plan.set_id })?;
    let work = plan.work.as_ref().map(|work| tree(work, Use::Layer { set_id: false })).transpose()?;
    let mut binds = Vec::new();
    for Bind { source, target, read_only, directory } in &plan.binds {
        let used = if *read_only { Use::ReadOnly } else { Use::Writable };
        let (target, directory) = (target.clone(), *directory);
        binds.push(Placed { tree: tree(source, used)?, target, directory });
    }
    Ok(Parts { devices, lower, work, binds })
}

/// Mounts the writable file system somewhere: only on what is mounted can more be mounted.
fn stage(tmpfs: &OwnedFd) -> Result<(), Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = STAGES.iter().find_map(|folder| openat(CWD, *folder, flags, Mode::empty()).ok());
    let folder = folder.ok_or_else(|| Error::Malformed(format!("none of {} is a folder", STAGES.join(", "))))?;
    attach(tmpfs.as_fd(), folder.as_fd()).context(|| "mounting the writable file system".to_owned())
}

/// The root: an overlay over the image, put over the stage, with the writable file system in its hidden folder.
fn layered(base: &Tree, lower: OwnedFd, plan: &Blueprint) -> Result<Tree, Error> {
    let root = overlay(base, &format!("{HIDDEN}/root"), lower, plan.set_id)?;
    attach(root.as_fd(), base.root.as_fd()).context(|| "mounting the overlay".to_owned())?;
    let tree = Tree { root, owner: base.owner };
    if tree.is_other_than_folder(HIDDEN).context(|| format!("looking at {HIDDEN}"))? {
        let problem = format!("the image has a {HIDDEN} that is no folder; Holm's own lies there: rename it");
        return Err(Error::Launch(problem));
    }
    let hidden = tree.guests_folder(HIDDEN)?;
    let clone = clone_of(base, HIDDEN)?;
    attach(clone.as_fd(), hidden.as_fd()).context(|| "mounting the layers".to_owned())?;
    tree.folder("/etc", 0o755)?;
    for (name, content) in host_root::machine_files(&plan.setup.hostname) {
        tree.file(&format!("/etc/{name}"), &content)?;
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
    let at = tree.mount_point(&placed.target, placed.directory);
    let at = at.context(|| format!("making the mount point {}", placed.target))?;
    attach(placed.tree.as_fd(), at.as_fd()).context(|| format!("mounting {}", placed.target))
}

/// Where the places that are Holm's own really lie: an image may have links in their way.
fn own_places(tree: &Tree) -> io::Result<Vec<PathBuf>> {
    let place = |path: &str| match tree.open(path) {
        Ok(fd) => tree.place(&fd),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(PathBuf::from(path)),
        Err(error) => Err(error),
    };
    OWN_PLACES.into_iter().map(place).collect()
}

/// Mounts what is the host's where the run asks for it, unless links lead from there to what is Holm's own, or to a folder
/// that contains it. `flag` is how the run asks for it.
fn put_lent(tree: &Tree, own: &[PathBuf], placed: &Placed, flag: &str) -> Result<(), Error> {
    let target = &placed.target;
    let refused = |problem: String| Error::Launch(format!("`{flag}`: {problem}"));
    let unmakeable = |error: io::Error| refused(format!("there can be no mount point at {target} inside: {error}"));
    let at = tree.mount_point(target, placed.directory).map_err(unmakeable)?;
    let place = tree.place(&at).map_err(unmakeable)?;
    if own.iter().any(|own| own.starts_with(&place) || place.starts_with(own)) {
        let place = place.display();
        return Err(refused(format!("{target} leads to {place} inside, and {} are Holm's own", OWN_PLACES.join(", "))));
    }
    if tree.is_link(target).map_err(unmakeable)? {
        return Err(refused(format!("{target} is a symbolic link inside: give the path that it leads to")));
    }
    attach(placed.tree.as_fd(), at.as_fd()).context(|| format!("mounting {target}"))
}

/// Makes the tree the root, and lets the host's go (the form with one folder of pivot_root(2)).
fn enter(tree: &Tree) -> Result<(), Error> {
    let context = || "changing the root".to_owned();
    fchdir(&tree.root).context(context)?;
    pivot_root(".", ".").context(context)?;
    unmount(".", UnmountFlags::DETACH).context(context)?;
    rustix::process::chdir("/").context(context)
}
