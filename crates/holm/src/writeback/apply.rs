//! Writes what was checked. Each path is opened anew below the directory, so what was swapped since is noticed.
//!
//! Each file and link is made under a name of its own and then renamed, so nobody ever sees half of one. The whole is not
//! one step: where writing stops in the middle (a full disk), the error says at which entry, and what was written stays.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use holm_domain::limits::CHANGES_BYTES_MAX;
use holm_runtime::archive::{Entry, Reader};
use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, linkat, mkdirat, openat, renameat, statat, symlinkat, unlinkat},
    io::Errno,
};

use super::plan::{self, Change, What, open_dir, split};

/// The permission bits of something that is given `mode`: the user's umask takes bits from it, unless what was there had
/// them. Bits above, such as set-id bits, are never given.
fn granted(mode: u32, existing: u32, umask: u32) -> u32 {
    mode & 0o777 & (!umask | existing)
}

/// Deletes, makes directories, writes files and links, and sets the modes of directories, in that order: a directory that
/// is to be read-only is so only when everything is in it.
pub fn apply(archive: &File, root: &OwnedFd, changes: &[Change], umask: u32) -> anyhow::Result<()> {
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
    write_files(archive, root, changes, umask)?;
    let mut copied = 0;
    for change in changes {
        match &change.what {
            What::Symlink(target) => {
                replace(root, &change.path, |dir, name, _| Ok(symlinkat(target, dir, name)?))
                    .with_context(|| at(change))?;
            }
            What::Link(target) => {
                let (parent, source) = split(target)?;
                let from = open_dir(root, parent).with_context(|| at(change))?;
                replace(root, &change.path, |dir, name, _| link_or_copy((&from, source), (dir, name), &mut copied))
                    .with_context(|| at(change))?;
            }
            _ => {}
        }
    }
    // Deeper ones first: a directory that is closed cannot be gone through any more.
    for change in changes.iter().rev() {
        if let What::Dir(mode) = change.what {
            set_mode(root, &change.path, mode, umask).with_context(|| at(change))?;
        }
    }
    Ok(())
}

fn write_files(archive: &File, root: &OwnedFd, changes: &[Change], umask: u32) -> anyhow::Result<()> {
    let files: BTreeMap<&Path, u32> = changes
        .iter()
        .filter_map(|change| match change.what {
            What::File(mode) => Some((change.path.as_path(), mode)),
            _ => None,
        })
        .collect();
    let mut written = 0;
    let mut reader = plan::reader(archive)?;
    while let Some(entry) = reader.next_entry().context("the archive changed while it was read")? {
        let path = plan::path_of(&entry.name);
        let Some(mode) = files.get(path.as_path()) else { continue };
        write_file(root, &path, (*mode, umask), (&entry, &mut reader))
            .with_context(|| format!("stopped in the middle, at {}", path.display()))?;
        written += 1;
    }
    if written != files.len() {
        bail!("the archive changed while it was read");
    }
    Ok(())
}

fn write_file<R: io::Read>(
    root: &OwnedFd,
    path: &Path,
    (mode, umask): (u32, u32),
    (entry, reader): (&Entry, &mut Reader<R>),
) -> anyhow::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    replace(root, path, |dir, name, there| {
        let existing = there.filter(|(kind, _)| *kind == FileType::RegularFile).map_or(0, |(_, mode)| mode);
        let mut file = File::from(openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?);
        reader.copy(entry, &mut file)?;
        Ok(rustix::fs::fchmod(&file, Mode::from_raw_mode(granted(mode, existing, umask)))?)
    })
}

/// Gives a file that was written another name; where the file system has no such thing, or the name lies on another one, a
/// copy. All copies together are `copied` bytes, and at most [`CHANGES_BYTES_MAX`]: an archive has a name for next to
/// nothing.
fn link_or_copy(
    (from, source): (&OwnedFd, &OsStr),
    (dir, name): (&OwnedFd, &OsStr),
    copied: &mut u64,
) -> anyhow::Result<()> {
    match linkat(from, source, dir, name, AtFlags::empty()) {
        Err(Errno::XDEV | Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK) => {}
        linked => return Ok(linked?),
    }
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let source = File::from(openat(from, source, flags | OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?);
    let stat = rustix::fs::fstat(&source)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        bail!("the file that it is another name of was exchanged meanwhile");
    }
    let room = CHANGES_BYTES_MAX.saturating_sub(*copied);
    let length = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
    if length > room {
        bail!(
            "this file system does not give a file so many names, and copies in their place would take more than {} GiB",
            CHANGES_BYTES_MAX >> 30
        );
    }
    let flags = flags | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let mut copy = File::from(openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?);
    // What grows meanwhile is not the archive's.
    *copied += io::copy(&mut source.take(length), &mut copy)?;
    Ok(rustix::fs::fchmod(&copy, Mode::from_raw_mode(stat.st_mode & 0o777))?)
}

/// Makes something under a name of its own and moves it to its place, so that nobody sees half of it. `make` is told the
/// directory, the name, and what is at the place now.
fn replace(
    root: &OwnedFd,
    path: &Path,
    make: impl FnOnce(&OwnedFd, &OsStr, Option<(FileType, u32)>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (parent, name) = split(path)?;
    let dir = open_dir(root, parent)?;
    let there = look(&dir, name)?;
    let temporary = OsString::from(format!(".holm-{:016x}", rand::random::<u64>()));
    let made = make(&dir, &temporary, there).and_then(|()| {
        if there.is_some_and(|(kind, _)| kind == FileType::Directory) {
            remove_at(&dir, name)?;
        }
        Ok(renameat(&dir, &temporary, &dir, name)?)
    });
    if made.is_err() {
        // What is told is why it could not be made.
        let _leftover = unlinkat(&dir, &temporary, AtFlags::empty());
    }
    made
}

fn make_dir(root: &OwnedFd, path: &Path) -> anyhow::Result<()> {
    let (parent, name) = split(path)?;
    let dir = open_dir(root, parent)?;
    match look(&dir, name)? {
        Some((FileType::Directory, _)) => return Ok(()),
        Some(_) => unlinkat(&dir, name, AtFlags::empty())?,
        None => {}
    }
    Ok(mkdirat(&dir, name, Mode::RWXU)?)
}

fn set_mode(root: &OwnedFd, path: &Path, mode: u32, umask: u32) -> anyhow::Result<()> {
    let dir = open_dir(root, path)?;
    let existing = statat(&dir, "", AtFlags::EMPTY_PATH)?.st_mode & 0o7777;
    // Special bits are those that it has: the user's own, or what a directory hands on to those made in it.
    let mode = granted(mode, existing, umask) | existing & 0o7000;
    if mode == existing {
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
    match look(dir, name)? {
        None => Ok(()),
        // The standard library walks by descriptors and follows no link (CVE-2022-21658).
        Some((FileType::Directory, _)) => Ok(std::fs::remove_dir_all(proc_path(dir).join(name))?),
        Some(_) => Ok(unlinkat(dir, name, AtFlags::empty())?),
    }
}

/// The kind and the mode of what is there.
fn look(dir: &OwnedFd, name: &OsStr) -> rustix::io::Result<Option<(FileType, u32)>> {
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some((FileType::from_raw_mode(stat.st_mode), stat.st_mode & 0o7777))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn proc_path(dir: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_in_the_place_of_names_have_a_bound_together() {
        let [from, to] = [tempfile::tempdir_in("/dev/shm").unwrap(), tempfile::tempdir().unwrap()];
        std::fs::write(from.path().join("a"), "12345678").unwrap();
        let open = |dir: &tempfile::TempDir| plan::open_root(dir.path()).unwrap();
        let (from, dir) = (open(&from), open(&to));
        let devices = [&from, &dir].map(|dir| rustix::fs::fstat(dir).unwrap().st_dev);
        assert_ne!(devices[0], devices[1], "this test needs a TMPDIR on another file system than /dev/shm");
        let mut copied = CHANGES_BYTES_MAX - 12;
        let mut copy = |name: &str| link_or_copy((&from, "a".as_ref()), (&dir, name.as_ref()), &mut copied);
        copy("one").unwrap();
        let error = copy("two").unwrap_err().to_string();
        assert!(error.contains("4 GiB"), "{error}");
        let made: Vec<_> = std::fs::read_dir(to.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!((made, copied), (vec!["one".into()], CHANGES_BYTES_MAX - 4));
    }

    #[test]
    fn the_umask_takes_what_was_not_there() {
        assert_eq!(granted(0o666, 0, 0o022), 0o644);
        assert_eq!(granted(0o777, 0, 0o077), 0o700);
        assert_eq!(granted(0o664, 0o664, 0o022), 0o664, "what was there may stay");
        assert_eq!(granted(0o777, 0o644, 0o027), 0o754);
        assert_eq!(granted(0o7777, 0o7777, 0), 0o777);
    }
}
