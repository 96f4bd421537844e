//! Making files, folders and mount points in a root file system that others may have filled.
//!
//! Every path is resolved within the root (RESOLVE_IN_ROOT): a symbolic link of an image cannot lead out of it.

use std::{
    ffi::OsString,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chmodat, chownat, fstat, mkdirat, openat, readlink,
        statat, symlinkat,
    },
    io::Errno,
};

use crate::{Context, Error, below::open_below};

/// A root file system in the making.
#[derive(Debug)]
pub struct Tree {
    /// Its root.
    pub root: OwnedFd,
    /// The id of the workload's root, as the guest's namespace knows it.
    pub owner: u32,
}

impl Tree {
    /// Opens what is at `path`, without rights to its content.
    pub fn open(&self, path: &str) -> io::Result<OwnedFd> {
        open_in(self.root.as_fd(), path)
    }

    /// Makes a folder that belongs to the workload's root; one that is there is left as it is.
    pub fn folder(&self, path: &str, mode: u32) -> Result<OwnedFd, Error> {
        self.make_folder(path, mode, self.owner).context(|| format!("making the folder {path}"))
    }

    /// Makes a folder that belongs to the guest, and that the workload cannot enter where it has other ids.
    pub fn guests_folder(&self, path: &str) -> Result<OwnedFd, Error> {
        self.make_folder(path, 0o700, 0).context(|| format!("making the folder {path}"))
    }

    fn make_folder(&self, path: &str, mode: u32, owner: u32) -> io::Result<OwnedFd> {
        match self.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        let (parent, name) = self.parent(path)?;
        match mkdirat(&parent, name, Mode::from_raw_mode(mode)) {
            // Opened, it leads nowhere.
            Err(Errno::EXIST) => return Err(io::Error::other("it is a symbolic link that leads nowhere")),
            other => other?,
        }
        // The mode given at creation lacks the bits of the umask and the sticky bit.
        chmodat(&parent, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
        give(parent.as_fd(), name, owner)?;
        self.open(path)
    }

    /// Makes a symbolic link that belongs to the workload's root, unless something is there.
    pub fn link(&self, path: &str, target: &str) -> Result<(), Error> {
        let make = || {
            let (parent, name) = self.parent(path)?;
            match symlinkat(target, &parent, name) {
                Err(Errno::EXIST) => Ok(()),
                Err(errno) => Err(errno.into()),
                Ok(()) => give(parent.as_fd(), name, self.owner),
            }
        };
        make().context(|| format!("making the link {path}"))
    }

    /// Writes a file that belongs to the workload's root, in place of one that is there.
    pub fn file(&self, path: &str, content: &str) -> Result<(), Error> {
        let make = || {
            let (parent, name) = self.parent(path)?;
            match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
                Err(Errno::NOENT) | Ok(()) => {}
                Err(errno) => return Err(io::Error::from(errno)),
            }
            let fd = create(parent.as_fd(), name, 0o644)?;
            let mut rest = content.as_bytes();
            while !rest.is_empty() {
                let written = rustix::io::write(&fd, rest)?;
                rest = &rest[written..];
            }
            give(parent.as_fd(), name, self.owner)
        };
        make().context(|| format!("writing the file {path}"))
    }

    /// The place for a mount: what is there if it is of the right kind, made with all folders above it if nothing is.
    pub fn mount_point(&self, path: &str, directory: bool) -> io::Result<OwnedFd> {
        self.missing_folders(path)?;
        let at = match self.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && directory => {
                self.make_folder(path, 0o755, self.owner)?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (parent, name) = self.parent(path)?;
                create(parent.as_fd(), name, 0o644)?;
                give(parent.as_fd(), name, self.owner)?;
                self.open(path)?
            }
            other => other?,
        };
        let is_folder = FileType::from_raw_mode(fstat(&at)?.st_mode).is_dir();
        match (is_folder, directory) {
            (true, false) => Err(Errno::ISDIR.into()),
            (false, true) => Err(Errno::NOTDIR.into()),
            _ => Ok(at),
        }
    }

    /// Where something that was opened in this root really lies, from the root on.
    pub fn place(&self, fd: &OwnedFd) -> io::Result<PathBuf> {
        let path = |fd: &OwnedFd| -> io::Result<PathBuf> {
            let link = readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new())?;
            Ok(PathBuf::from(OsString::from_vec(link.into_bytes())))
        };
        let (root, path) = (path(&self.root)?, path(fd)?);
        let below = path.strip_prefix(&root).map_err(|_| io::Error::other("it lies outside the root"))?;
        Ok(Path::new("/").join(below))
    }

    /// Whether a path is a symbolic link itself.
    pub fn is_link(&self, path: &str) -> io::Result<bool> {
        let (parent, name) = self.parent(path)?;
        let stat = statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(FileType::from_raw_mode(stat.st_mode).is_symlink())
    }

    /// Whether something other than a folder is at a path, such as a link to one.
    pub fn is_other_than_folder(&self, path: &str) -> io::Result<bool> {
        let (parent, name) = self.parent(path)?;
        match statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(false),
            other => Ok(!FileType::from_raw_mode(other?.st_mode).is_dir()),
        }
    }

    fn missing_folders(&self, path: &str) -> io::Result<()> {
        let parent = Path::new(path).parent().unwrap_or(Path::new("/"));
        let mut sofar = String::new();
        for part in parent.components().filter_map(|part| part.as_os_str().to_str()).filter(|part| *part != "/") {
            sofar.push('/');
            sofar.push_str(part);
            self.make_folder(&sofar, 0o755, self.owner)?;
        }
        Ok(())
    }

    fn parent<'p>(&self, path: &'p str) -> io::Result<(OwnedFd, &'p str)> {
        let (parent, name) = path.trim_end_matches('/').rsplit_once('/').unwrap_or(("", path));
        let parent = if parent.is_empty() { "/" } else { parent };
        Ok((self.open(parent)?, name))
    }
}

/// Opens a path within a root, whatever symbolic links say.
pub fn open_in(root: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    Ok(open_below(root, path, OFlags::PATH, ResolveFlags::IN_ROOT)?)
}

fn create(parent: BorrowedFd<'_>, name: &str, mode: u32) -> io::Result<OwnedFd> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(openat(parent, name, flags, Mode::from_raw_mode(mode))?)
}

fn give(parent: BorrowedFd<'_>, name: &str, owner: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(owner), Gid::from_raw(owner));
    Ok(chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
}
