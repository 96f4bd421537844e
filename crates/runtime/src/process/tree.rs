//! Trees of mounts as descriptors: cloned, with attributes set, not yet seen anywhere.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, OFlags, ResolveFlags, Stat, fstat},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
        fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
    },
};

use super::sys::{MountAttributes, mount_setattr};
use crate::{Context, Error, below::open_below};

/// How a tree of the host may be used inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Read-only. Devices and set-user-id bits have no effect.
    ReadOnly,
    /// Writable. Devices and set-user-id bits have no effect.
    Writable,
    /// Read-only below a writable layer; set-user-id bits have an effect where `set_id`.
    Layer {
        /// Whether the image's own set-user-id programs may work inside.
        set_id: bool,
    },
}

impl Use {
    fn attributes(self) -> MountAttributes {
        let (read_only, set_id) = match self {
            Self::ReadOnly => (true, false),
            Self::Writable => (false, false),
            Self::Layer { set_id } => (true, set_id),
        };
        let flag = |wanted: bool, flag: u64| if wanted { flag } else { 0 };
        MountAttributes {
            set: libc::MOUNT_ATTR_NODEV
                | flag(read_only, libc::MOUNT_ATTR_RDONLY)
                | flag(!set_id, libc::MOUNT_ATTR_NOSUID),
            propagation: libc::MS_PRIVATE,
            ..MountAttributes::default()
        }
    }
}

/// Whether the owners on the disk are those that the workload sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    /// They are: id 0 on the disk is the workload's root.
    Mapped,
    /// They are not, for the file system knows no idmapped mounts: owners without an id inside are seen as nobody.
    Unmapped,
}

/// Clones the tree that `at` opens, with all that is mounted below it, for use inside; `ids` maps owners where that works.
pub fn detach(at: BorrowedFd<'_>, used: Use, ids: Option<BorrowedFd<'_>>) -> io::Result<(OwnedFd, Owners)> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(at, "", flags)?;
    let Some(ids) = ids else {
        mount_setattr(tree.as_fd(), true, used.attributes(), None)?;
        return Ok((tree, Owners::Unmapped));
    };
    match mount_setattr(tree.as_fd(), true, used.attributes(), Some(ids)) {
        Ok(()) => Ok((tree, Owners::Mapped)),
        // EINVAL: some file system in the tree knows no idmapped mounts. Nothing was changed (mount_setattr(2)).
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            mount_setattr(tree.as_fd(), true, used.attributes(), None)?;
            Ok((tree, Owners::Unmapped))
        }
        Err(error) => Err(error),
    }
}

/// Mounts an empty folder that nobody may write over each of `masks`, paths in a detached tree.
///
/// Kernels before 6.15 mount nothing on what is mounted nowhere; there, what would have to be masked is not lent.
pub fn mask(tree: BorrowedFd<'_>, masks: &[PathBuf]) -> Result<(), Error> {
    for path in masks {
        let cover = || -> io::Result<()> {
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            let at = open_below(tree, path, OFlags::PATH | OFlags::DIRECTORY, resolve)?;
            attach(empty()?.as_fd(), at.as_fd())
        };
        cover().context(|| format!("masking {}, which is never lent, in a folder that is", path.display()))?;
    }
    Ok(())
}

/// An empty folder as a file system of its own.
fn empty() -> io::Result<OwnedFd> {
    let config = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [("size", "4096"), ("nr_inodes", "1"), ("mode", "0555")] {
        fsconfig_set_string(config.as_fd(), key, value)?;
    }
    fsconfig_set_flag(config.as_fd(), "ro")?;
    fsconfig_create(config.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(config.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// Puts a detached tree at the place that `at` opens.
pub fn attach(tree: BorrowedFd<'_>, at: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(tree, "", at, "", flags)?)
}

/// Opens a path whose components must not be symbolic links, without any right to its content.
pub fn open_exact(path: &Path) -> io::Result<OwnedFd> {
    Ok(open_below(CWD, path, OFlags::PATH, ResolveFlags::NO_SYMLINKS)?)
}

/// What a descriptor stands for, as far as it says whether two are the same file.
pub fn identity(fd: impl AsFd) -> io::Result<(u64, u64)> {
    let Stat { st_dev, st_ino, .. } = fstat(fd)?;
    Ok((st_dev, st_ino))
}
