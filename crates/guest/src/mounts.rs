//! What the workload sees of the file system, beyond what the runtime laid out: a /proc of its own, without the files that
//! belong to the kernel and the host, read-only mounts that stay so, and no way to the layers of the work dir.

use std::{io, path::Path};

use holm_wire::guest_api::{IdRange, Setup};
use rustix::{
    fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid},
    mount::{MountFlags, MountPropagationFlags},
};

use crate::{
    files,
    inner::context,
    machine::{self, Machine},
    sys,
};

/// Made read-only, as container engines do.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// Hidden, as container engines do.
const MASKED: [&str; 13] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/latency_stats",
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

/// In a mount namespace of its own, makes the mounts as the workload is to see them.
pub fn shape(machine: Machine, setup: &Setup) -> io::Result<()> {
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
    if let Some(layers) = &setup.work_dir {
        let parent = Path::new(&layers.upper).parent().filter(|parent| parent.parent().is_some());
        let parent = parent.ok_or_else(|| io::Error::other("the upper layer lies in the root itself"))?;
        cover(parent).map_err(|error| context(error, "hide the layers of the work dir"))?;
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

/// Makes the folder for the structured result, open to every user of the workload as /tmp is.
///
/// The root comes from an image that is not trusted: links in it are followed beneath it only.
pub fn make_result_dir(ids: IdRange) -> io::Result<()> {
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let owner = Uid::from_raw(ids.outer_first);
    let group = Gid::from_raw(ids.outer_first);
    let mut path = String::new();
    let mut dir = root.try_clone()?;
    for name in RESULT_DIR {
        path.push_str(name);
        let made = match rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => true,
            Err(rustix::io::Errno::EXIST) => false,
            Err(error) => return Err(context(error.into(), &format!("make /{path}"))),
        };
        dir = files::open_beneath(&root, &path, OFlags::RDONLY | OFlags::DIRECTORY, ResolveFlags::empty())?;
        if made {
            rustix::fs::chownat(&dir, "", Some(owner), Some(group), AtFlags::EMPTY_PATH)?;
        }
        path.push('/');
    }
    Ok(rustix::fs::fchmod(&dir, Mode::from_raw_mode(0o1777))?)
}

/// Opens a folder of the guest's own, to be read through later.
pub fn open_dir(path: &str) -> io::Result<std::os::fd::OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
}
