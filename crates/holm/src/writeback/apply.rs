//! Writes what was checked. Each path is opened anew below the directory, so what was swapped since is noticed.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, linkat, mkdirat, openat, renameat, statat, symlinkat, unlinkat},
    io::Errno,
};

use super::plan::{Change, What, open_dir, split};

/// Deletes, makes directories, writes files and links, and sets the modes of directories, in that order: a directory that
/// is to be read-only is so only when everything is in it.
pub fn apply(archive: &File, root: &OwnedFd, changes: &[Change]) -> anyhow::Result<()> {
    let at = |change: &Change| format!("stopped in the middle, at {}", change.path.display());
    for change in changes {
        match change.what {
            What::Delete => remove(root, &change.path).with_context(|| at(change))?,
            What::Empty => empty(root, &change.path).with_context(|| at(change))?,
            _ => {}
        }
    }
    for change in changes.iter().filter(|change| matches!(change.what, What::Dir(_))) {
        make_dir(root, &change.path).with_context(|| at(change))?;
    }
    write_files(archive, root, changes)?;
    for change in changes {
        match &change.what {
            What::Symlink(target) => {
                replace(root, &change.path, |dir, name| Ok(symlinkat(target, dir, name)?))
                    .with_context(|| at(change))?;
            }
            What::Link(target) => {
                let (parent, source) = split(target)?;
                let from = open_dir(root, parent).with_context(|| at(change))?;
                let link = |dir: &OwnedFd, name: &OsStr| Ok(linkat(&from, source, dir, name, AtFlags::empty())?);
                replace(root, &change.path, link).with_context(|| at(change))?;
            }
            _ => {}
        }
    }
    // Deeper ones first: a directory that is closed cannot be gone through any more.
    for change in changes.iter().rev() {
        if let What::Dir(mode) = change.what {
            set_mode(root, &change.path, mode).with_context(|| at(change))?;
        }
    }
    Ok(())
}

fn write_files(archive: &File, root: &OwnedFd, changes: &[Change]) -> anyhow::Result<()> {
    let files: BTreeMap<&Path, u32> = changes
        .iter()
        .filter_map(|change| match change.what {
            What::File(mode) => Some((change.path.as_path(), mode)),
            _ => None,
        })
        .collect();
    let mut written = 0;
    for entry in tar::Archive::new(archive).entries_with_seek()? {
        let mut entry = entry?;
        let path: PathBuf = entry.path()?.components().filter(|part| *part != std::path::Component::CurDir).collect();
        let Some(mode) = files.get(path.as_path()) else { continue };
        replace(root, &path, |dir, name| write_file(dir, name, *mode, &mut entry))
            .with_context(|| format!("stopped in the middle, at {}", path.display()))?;
        written += 1;
    }
    if written != files.len() {
        bail!("the archive changed while it was read");
    }
    Ok(())
}

fn write_file(dir: &OwnedFd, name: &OsStr, mode: u32, bytes: &mut impl io::Read) -> anyhow::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?);
    io::copy(bytes, &mut file)?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
    Ok(())
}

/// Makes something under a name of its own and moves it to its place, so that nobody sees half of it.
fn replace(
    root: &OwnedFd,
    path: &Path,
    make: impl FnOnce(&OwnedFd, &OsStr) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (parent, name) = split(path)?;
    let dir = open_dir(root, parent)?;
    if kind(&dir, name)? == Some(FileType::Directory) {
        remove_at(&dir, name)?;
    }
    let temporary = OsString::from(format!(".holm-{:016x}", rand::random::<u64>()));
    let made = make(&dir, &temporary).and_then(|()| Ok(renameat(&dir, &temporary, &dir, name)?));
    if made.is_err() {
        // What is told is why it could not be made.
        let _leftover = unlinkat(&dir, &temporary, AtFlags::empty());
    }
    made
}

fn make_dir(root: &OwnedFd, path: &Path) -> anyhow::Result<()> {
    let (parent, name) = split(path)?;
    let dir = open_dir(root, parent)?;
    match kind(&dir, name)? {
        Some(FileType::Directory) => return Ok(()),
        Some(_) => unlinkat(&dir, name, AtFlags::empty())?,
        None => {}
    }
    Ok(mkdirat(&dir, name, Mode::RWXU)?)
}

fn set_mode(root: &OwnedFd, path: &Path, mode: u32) -> anyhow::Result<()> {
    let dir = open_dir(root, path)?;
    if statat(&dir, "", AtFlags::EMPTY_PATH)?.st_mode & 0o777 == mode {
        return Ok(());
    }
    // chmod(2) takes no descriptor that was opened with O_PATH; its name under /proc leads to that very directory.
    Ok(rustix::fs::chmod(proc_path(&dir), Mode::from_raw_mode(mode))?)
}

fn empty(root: &OwnedFd, path: &Path) -> anyhow::Result<()> {
    let dir = match open_dir(root, path) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let listed = openat(&dir, ".", flags, Mode::empty())?;
    for entry in rustix::fs::Dir::read_from(&listed)? {
        let entry = entry?;
        let name: &OsStr = std::os::unix::ffi::OsStrExt::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            remove_at(&dir, name)?;
        }
    }
    Ok(())
}

fn remove(root: &OwnedFd, path: &Path) -> anyhow::Result<()> {
    let (parent, name) = split(path)?;
    match open_dir(root, parent) {
        Ok(dir) => remove_at(&dir, name),
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes a name in a directory that is held open; what a symbolic link points to is not touched.
fn remove_at(dir: &OwnedFd, name: &OsStr) -> anyhow::Result<()> {
    match kind(dir, name)? {
        None => Ok(()),
        // The standard library walks by descriptors and follows no link (CVE-2022-21658).
        Some(FileType::Directory) => Ok(std::fs::remove_dir_all(proc_path(dir).join(name))?),
        Some(_) => Ok(unlinkat(dir, name, AtFlags::empty())?),
    }
}

fn kind(dir: &OwnedFd, name: &OsStr) -> rustix::io::Result<Option<FileType>> {
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn proc_path(dir: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd()))
}
