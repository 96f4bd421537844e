//! The file systems that a sandbox gets for itself: one tmpfs for everything that is writable, overlays on it, proc, devpts.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{Gid, Mode, OFlags, Uid, chownat, fstat, openat},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag,
        fsconfig_set_string, fsmount, fsopen, unmount,
    },
};

use super::files::Tree;
use crate::{Context, Error, process::tree};

/// For each file that may be made, this much of the writable layer's size is reckoned.
const BYTES_PER_INODE: u64 = 2_048;
const INODES_MIN: u64 = 4_096;

/// A new file system as a detached mount.
fn make(kind: &str, options: &[(&str, &str)], flags: &[&str], attributes: MountAttrFlags) -> Result<OwnedFd, Error> {
    let make = || -> io::Result<OwnedFd> {
        let config = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
        for (key, value) in options {
            fsconfig_set_string(config.as_fd(), *key, *value)?;
        }
        for key in flags {
            fsconfig_set_flag(config.as_fd(), *key)?;
        }
        fsconfig_create(config.as_fd())?;
        Ok(fsmount(config.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
    };
    make().context(|| format!("making a file system of type {kind}"))
}

fn base_attributes(set_id: bool) -> MountAttrFlags {
    let nosuid = if set_id { MountAttrFlags::empty() } else { MountAttrFlags::MOUNT_ATTR_NOSUID };
    MountAttrFlags::MOUNT_ATTR_NODEV | nosuid
}

/// The one file system on which everything writable lies.
pub fn writable(bytes: u64, owner: u32, set_id: bool) -> Result<OwnedFd, Error> {
    let inodes = (bytes / BYTES_PER_INODE).max(INODES_MIN).to_string();
    let (size, owner) = (bytes.to_string(), owner.to_string());
    let options = [
        ("size", size.as_str()),
        ("nr_inodes", inodes.as_str()),
        ("mode", "0755"),
        ("uid", owner.as_str()),
        ("gid", owner.as_str()),
    ];
    make("tmpfs", &options, &[], base_attributes(set_id))
}

/// A proc of the calling process's pid namespace.
pub fn proc() -> Result<OwnedFd, Error> {
    make("proc", &[], &[], base_attributes(false) | MountAttrFlags::MOUNT_ATTR_NOEXEC)
}

/// A devpts of its own; `tty` is the group of terminals, where there are groups.
pub fn devpts(tty: Option<u32>) -> Result<OwnedFd, Error> {
    let tty = tty.map(|tty| tty.to_string());
    let mut options = vec![("ptmxmode", "0666"), ("mode", "0620")];
    options.extend(tty.as_deref().map(|tty| ("gid", tty)));
    // Its files are devices, so nodev is left out.
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    make("devpts", &options, &[], attributes)
}

/// `lower` below a writable layer in the folder `at` of the writable file system `base`.
///
/// The writable layer is `at/upper`; its top has the owner and the mode of the lower one's.
pub fn overlay(base: &Tree, at: &str, lower: OwnedFd, set_id: bool) -> Result<OwnedFd, Error> {
    base.guests_folder(at)?;
    let [lower_at, upper, work] = ["lower", "upper", "work"].map(|name| format!("{at}/{name}"));
    let lower_folder = base.guests_folder(&lower_at)?;
    tree::attach(lower.as_fd(), lower_folder.as_fd()).context(|| "attaching the lower layer".to_owned())?;
    // What was opened before the mount is below it.
    let lower_top = base.open(&lower_at).context(|| "opening the lower layer".to_owned())?;
    let upper_top = base.folder(&upper, 0o755)?;
    same_owner(lower_top.as_fd(), upper_top.as_fd()).context(|| "preparing the upper layer".to_owned())?;
    let work_top = base.guests_folder(&work)?;
    let path = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let [lower_dir, upper_dir, work_dir] = [&lower_top, &upper_top, &work_top].map(path);
    // With `xino` a folder says of a file the same inode as the file itself, although the layers are two file systems.
    let options = [("lowerdir", &*lower_dir), ("upperdir", &upper_dir), ("workdir", &work_dir), ("xino", "on")];
    let overlay = make("overlay", &options, &["userxattr"], base_attributes(set_id))?;
    // The overlay has a mount of its own of the lower layer.
    drop((lower, lower_folder));
    unmount(path(&lower_top).as_str(), UnmountFlags::DETACH).context(|| "detaching the lower layer".to_owned())?;
    Ok(overlay)
}

/// Gives `to` the owner and the mode of `from`. Owners that do not exist inside are left out.
fn same_owner(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let stat = fstat(from)?;
    let folder = openat(to, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    match chownat(&folder, "", Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)), EMPTY_PATH) {
        Ok(()) | Err(rustix::io::Errno::INVAL) => {}
        Err(errno) => return Err(errno.into()),
    }
    Ok(rustix::fs::fchmod(&folder, Mode::from_raw_mode(stat.st_mode & 0o7777))?)
}

const EMPTY_PATH: rustix::fs::AtFlags = rustix::fs::AtFlags::EMPTY_PATH;
