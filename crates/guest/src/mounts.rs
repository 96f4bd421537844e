//! What the workload sees of the file system, beyond what the runtime laid out: a /proc of its own, without the files that
//! belong to the kernel and the host, read-only mounts that stay so, a folder for its structured result that is a file system
//! of its own, and no way to what is the guest's own.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use holm_wire::guest_api::{IdRange, Setup};
use rustix::{
    fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, fsconfig_create,
        fsconfig_set_string, fsmount, fsopen, move_mount,
    },
};

use crate::{
    files,
    inner::context,
    machine::{self, Machine},
    sys, trust,
};

/// Made read-only, as container engines do.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// Hidden, as container engines do; and what tells of the host's locks, disks, load and kernel.
const MASKED: [&str; 18] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/config.gz",
    "/proc/diskstats",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/latency_stats",
    "/proc/locks",
    "/proc/partitions",
    "/proc/pressure",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
/// Where programs look for the identity of this boot; it is in the kernel's memory, hence the same in every clone.
const KERNEL_BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// The folder of the structured result, beneath the workload's root.
const RESULT_DIR: [&str; 2] = ["run", "holm"];
/// The size of its file system: many times that of a result, for programs that write beside it and rename.
const RESULT_DIR_BYTES_MAX: u64 = 1024 * 1024;
/// How many files it may hold.
const RESULT_DIR_FILES_MAX: u64 = 256;

/// In a mount namespace of its own, makes the mounts as the workload is to see them.
///
/// `result` is what [`result_dir`] made.
pub fn shape(machine: Machine, setup: &Setup, result: &OwnedFd) -> io::Result<()> {
    sys::unshare(rustix::thread::UnshareFlags::NEWNS).map_err(|error| context(error, "unshare mounts"))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(|error| context(error.into(), "make mounts private"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("proc", "/proc", "proc", flags, None).map_err(|error| context(error.into(), "mount /proc"))?;
    for path in READ_ONLY.iter().filter(|path| Path::new(path).exists()) {
        let bound = rustix::mount::mount_bind(*path, *path).map_err(io::Error::from);
        bound.and_then(|()| sys::make_read_only(path)).map_err(|error| context(error, &format!("protect {path}")))?;
    }
    if machine == Machine::Virtual {
        let bound = rustix::mount::mount_bind(machine::BOOT_ID, KERNEL_BOOT_ID);
        bound.map_err(|error| context(error.into(), &format!("cover {KERNEL_BOOT_ID}")))?;
    }
    for path in MASKED {
        mask(path).map_err(|error| context(error, &format!("mask {path}")))?;
    }
    for path in &setup.read_only {
        sys::make_read_only(path).map_err(|error| context(error, &format!("make {path} read-only")))?;
    }
    place(result, &RESULT_DIR, setup.ids).map_err(|error| context(error, "mount the folder of the result"))?;
    if let Some(trusted) = &setup.trusted {
        trust::place(trusted, setup.ids).map_err(|error| context(error, "have the authority trusted"))?;
    }
    if let Some(hidden) = &setup.hidden {
        cover(Path::new(hidden)).map_err(|error| context(error, "hide what is the guest's own"))?;
    }
    Ok(())
}

/// Hides a file behind /dev/null, or a folder behind an empty one. What is not there needs no mask.
fn mask(path: &str) -> io::Result<()> {
    match rustix::fs::stat(path) {
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => cover(Path::new(path)),
        Ok(_) => Ok(rustix::mount::mount_bind("/dev/null", path)?),
    }
}

/// Mounts an empty folder over one that nobody may enter or write.
fn cover(path: &Path) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RDONLY;
    Ok(rustix::mount::mount("none", path, "tmpfs", flags, Some(c"size=0,mode=0555"))?)
}

/// A file system for the structured result, open to every user of the workload as /tmp is, not mounted yet. Held by the
/// guest, it leads to the result whatever the workload does with the folders above it.
pub fn result_dir(ids: IdRange) -> io::Result<OwnedFd> {
    let owner = ids.outer_first.to_string();
    let (size, files) = (RESULT_DIR_BYTES_MAX.to_string(), RESULT_DIR_FILES_MAX.to_string());
    in_memory(&[("size", &size), ("nr_inodes", &files), ("mode", "1777"), ("uid", &owner), ("gid", &owner)])
}

/// A file system in memory with these options (tmpfs(5)), not mounted yet.
pub fn in_memory(options: &[(&str, &str)]) -> io::Result<OwnedFd> {
    let config = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(config.as_fd(), *key, *value)?;
    }
    fsconfig_create(config.as_fd())?;
    let attributes =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(config.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// Mounts a file system at its place. Nothing that is there already is changed.
///
/// The root comes from an image that is not trusted: links in it are followed beneath it only.
pub fn place(mounted: &OwnedFd, folders: &[&str], ids: IdRange) -> io::Result<()> {
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let owner = (Some(Uid::from_raw(ids.outer_first)), Some(Gid::from_raw(ids.outer_first)));
    let mut path = String::new();
    let mut dir = root.try_clone()?;
    for name in folders {
        path.push_str(name);
        match rustix::fs::mkdirat(&dir, *name, Mode::from_raw_mode(0o755)) {
            Ok(()) => rustix::fs::chownat(&dir, *name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?,
            Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(context(error.into(), &format!("make /{path}"))),
        }
        let opened = files::open_beneath(&root, &path, OFlags::PATH | OFlags::DIRECTORY, ResolveFlags::empty());
        dir = opened.map_err(|error| context(error, &format!("open /{path}")))?;
        path.push('/');
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mounted.as_fd(), "", dir.as_fd(), "", flags)?)
}

/// Opens a folder of the guest's own, to be read through later.
pub fn open_dir(path: &str) -> io::Result<std::os::fd::OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
}
