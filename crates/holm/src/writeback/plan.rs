//! Reads the archive and decides: what would change, or why all of it is refused. Writes nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::File,
    io::Seek as _,
    os::fd::{AsFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, openat2, statat},
    io::Errno,
};
use tar::EntryType;

use crate::output::escaped;

/// The most entries that are taken.
const ENTRIES_MAX: usize = 1_000_000;
/// The longest path, in bytes (PATH_MAX of Linux).
const PATH_BYTES_MAX: usize = 4_096;
/// The longest piece of an archive that describes an entry, in bytes: such pieces are kept in memory.
const DESCRIPTION_BYTES_MAX: u64 = 16 * 1024;
/// The prefix of the name of something that was deleted (OCI image layers, "Whiteouts").
const WHITEOUT: &str = ".wh.";
/// The name that says that nothing of the directory below is left.
const OPAQUE: &str = ".wh..wh..opq";

/// What is done to one path. Paths are relative and have normal components only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The path below the directory.
    pub path: PathBuf,
    /// What is done.
    pub what: What,
    /// Whether there is something at the path now.
    pub exists: bool,
}

/// What is done to a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// It is deleted, with everything below.
    Delete,
    /// Everything below is deleted, the directory stays.
    Empty,
    /// A directory with this mode.
    Dir(u32),
    /// A file with this mode; its bytes are in the archive.
    File(u32),
    /// A symbolic link.
    Symlink(PathBuf),
    /// Another name of a file of the archive.
    Link(PathBuf),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = escaped(&self.path.to_string_lossy());
        let how = if self.exists { "changed" } else { "new    " };
        match &self.what {
            What::Delete => write!(f, "deleted {path}"),
            What::Empty => write!(f, "emptied {path}/"),
            What::Dir(_) => write!(f, "{how} {path}/"),
            What::File(_) => write!(f, "{how} {path}"),
            What::Symlink(target) => write!(f, "{how} {path} -> {}", escaped(&target.to_string_lossy())),
            What::Link(target) => write!(f, "{how} {path} = {}", escaped(&target.to_string_lossy())),
        }
    }
}

/// Why an archive is not written back, by entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("refused, and nothing was written: `{path}` {problem}")]
pub struct Refusal {
    /// The entry.
    pub path: String,
    /// What is wrong with it.
    pub problem: String,
}

fn refuse(path: &Path, problem: impl Into<String>) -> Refusal {
    Refusal { path: escaped(&path.to_string_lossy()), problem: problem.into() }
}

/// Opens the directory below which everything stays.
pub fn open_root(dir: &Path) -> anyhow::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(dir, flags, Mode::empty()).with_context(|| format!("cannot open {}", dir.display()))
}

/// Opens a directory below `root`, through directories only.
pub fn open_dir(root: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    if path.as_os_str().is_empty() {
        return rustix::io::dup(root);
    }
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    // The kernel answers EAGAIN when a rename elsewhere made it uncertain that the path stays below (openat2(2)).
    for _ in 0..64 {
        match openat2(root, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), how) {
            Err(Errno::AGAIN) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

/// A path as its directory and its name.
pub fn split(path: &Path) -> anyhow::Result<(&Path, &std::ffi::OsStr)> {
    let name = path.file_name().ok_or_else(|| anyhow!("{} has no name", path.display()))?;
    Ok((path.parent().unwrap_or(Path::new("")), name))
}

/// Reads and checks the whole archive against the directory.
pub fn read(mut archive: &File, root: &OwnedFd) -> anyhow::Result<Vec<Change>> {
    check_lengths(archive)?;
    archive.rewind().context("the archive cannot be read")?;
    let mut changes: BTreeMap<PathBuf, What> = BTreeMap::new();
    // An opaque directory is in the archive as a directory too.
    let mut emptied = BTreeSet::new();
    let mut reader = tar::Archive::new(archive);
    for entry in reader.entries_with_seek().context("the archive cannot be read")? {
        let entry = entry.context("the archive cannot be read")?;
        if changes.len() + emptied.len() >= ENTRIES_MAX {
            return Err(anyhow!("the archive has more than {ENTRIES_MAX} entries; nothing was written"));
        }
        let path = entry.path().context("the archive cannot be read")?.into_owned();
        if entry.header().entry_size().ok() != Some(entry.size()) {
            return Err(refuse(&path, "has two sizes").into());
        }
        let Some((path, what)) = classify(&entry, &path)? else { continue };
        let twice = match what {
            What::Empty => !emptied.insert(path.clone()),
            what => changes.insert(path.clone(), what).is_some(),
        };
        if twice {
            return Err(refuse(&path, "is in the archive twice").into());
        }
    }
    check_parents(&changes)?;
    // Parents come before what is below them.
    let mut replaced = BTreeSet::new();
    let mut all = Vec::new();
    for (path, what) in changes {
        if path.ancestors().any(|parent| replaced.contains(parent)) {
            all.push(Change { path, what, exists: false });
            continue;
        }
        let (change, there) = against_host(root, path, what)?;
        if matches!(change.what, What::Dir(_)) && there.is_some_and(|kind| kind != FileType::Directory) {
            // A directory that hides nothing was one when the run began: somebody put something else there since.
            if !emptied.contains(&change.path) {
                return Err(refuse(&change.path, "is no directory on the host any more").into());
            }
            replaced.insert(change.path.clone());
        }
        all.push(change);
    }
    for path in emptied.into_iter().filter(|path| !path.ancestors().any(|parent| replaced.contains(parent))) {
        let (change, there) = against_host(root, path, What::Empty)?;
        if there == Some(FileType::Directory) {
            all.push(change);
        }
    }
    Ok(all)
}

/// Looks at the lengths alone, as the blocks say them: nothing may be cut off, and nothing take much memory to read.
fn check_lengths(archive: &File) -> anyhow::Result<()> {
    let length = archive.metadata().context("the archive cannot be read")?.len();
    let mut reader = tar::Archive::new(archive);
    for (number, entry) in reader.entries_with_seek().context("the archive cannot be read")?.raw(true).enumerate() {
        let entry = entry.context("the archive cannot be read")?;
        // Each entry may have two pieces that describe it.
        if number >= 3 * ENTRIES_MAX {
            return Err(anyhow!("the archive has more than {ENTRIES_MAX} entries; nothing was written"));
        }
        let path = entry.path().context("the archive cannot be read")?;
        if entry.raw_file_position().checked_add(entry.size()).is_none_or(|end| end > length) {
            return Err(refuse(&path, "is cut off").into());
        }
        let kind = entry.header().entry_type();
        let describes = kind.is_gnu_longname()
            || kind.is_gnu_longlink()
            || kind.is_pax_local_extensions()
            || kind.is_pax_global_extensions();
        if describes && entry.size() > DESCRIPTION_BYTES_MAX {
            return Err(
                refuse(&path, format!("is described by something longer than {DESCRIPTION_BYTES_MAX} bytes")).into()
            );
        }
        if kind.is_gnu_sparse() {
            return Err(refuse(&path, "is of a kind that is not taken (sparse)").into());
        }
    }
    Ok(())
}

/// What an entry stands for; nothing for the directory itself.
fn classify<R: std::io::Read>(entry: &tar::Entry<'_, R>, named: &Path) -> anyhow::Result<Option<(PathBuf, What)>> {
    let path = normal(named)?;
    let mode = entry.header().mode().map_err(|_| refuse(named, "has a mode that is no number"))?;
    let kind = entry.header().entry_type();
    if path.as_os_str().is_empty() {
        return if kind.is_dir() { Ok(None) } else { Err(refuse(named, "stands for the directory itself").into()) };
    }
    if mode & 0o6000 != 0 {
        return Err(refuse(named, format!("has set-id bits (mode {mode:o})")).into());
    }
    let target = || -> anyhow::Result<PathBuf> {
        let target = entry.link_name().context("the archive cannot be read")?;
        Ok(target.ok_or_else(|| refuse(named, "is a link to nothing"))?.into_owned())
    };
    if let Some(deleted) = whiteout(&path)? {
        return Ok(Some(deleted));
    }
    let what = match kind {
        EntryType::Regular | EntryType::Continuous => What::File(mode & 0o777),
        EntryType::Directory => What::Dir(mode & 0o777),
        EntryType::Symlink => What::Symlink(stays(&path, target()?)?),
        EntryType::Link => What::Link(normal(&target()?)?),
        EntryType::Block | EntryType::Char => return Err(refuse(named, "is a device").into()),
        EntryType::Fifo => return Err(refuse(named, "is a named pipe").into()),
        other => return Err(refuse(named, format!("is of a kind that is not taken ({other:?})")).into()),
    };
    Ok(Some((path, what)))
}

/// A relative path of normal components; what is in a `.git` is refused.
fn normal(named: &Path) -> Result<PathBuf, Refusal> {
    let mut path = PathBuf::new();
    if named.as_os_str().len() > PATH_BYTES_MAX {
        return Err(refuse(named, format!("is longer than {PATH_BYTES_MAX} bytes")));
    }
    for component in named.components() {
        match component {
            Component::CurDir => {}
            Component::Normal(name) => {
                check_git(named, name)?;
                path.push(name);
            }
            Component::ParentDir => return Err(refuse(named, "has `..` in it")),
            _ => return Err(refuse(named, "is an absolute path")),
        }
    }
    Ok(path)
}

/// Whoever writes into a `.git` decides what the next `git status` of the user executes.
fn check_git(path: &Path, name: &std::ffi::OsStr) -> Result<(), Refusal> {
    // Some file systems do not tell upper from lower case.
    if name.eq_ignore_ascii_case(".git") { Err(refuse(path, "is in a `.git`")) } else { Ok(()) }
}

fn whiteout(path: &Path) -> anyhow::Result<Option<(PathBuf, What)>> {
    let (dir, name) = split(path)?;
    if name == OPAQUE && dir.as_os_str().is_empty() {
        return Err(refuse(path, "empties the directory itself").into());
    }
    if name == OPAQUE {
        return Ok(Some((dir.to_owned(), What::Empty)));
    }
    let Some(deleted) = name.to_str().and_then(|name| name.strip_prefix(WHITEOUT)) else {
        if name.as_encoded_bytes().starts_with(WHITEOUT.as_bytes()) {
            return Err(refuse(path, "deletes a name that is not UTF-8").into());
        }
        return Ok(None);
    };
    if deleted.is_empty() || deleted == "." || deleted == ".." {
        return Err(refuse(path, "deletes nothing that can be deleted").into());
    }
    check_git(path, deleted.as_ref())?;
    Ok(Some((dir.join(deleted), What::Delete)))
}

/// Accepts the target of a symbolic link only if it cannot leave: as many leading `..` as there are directories above the
/// link, and none after a name, because that name may be a link itself.
fn stays(link: &Path, target: PathBuf) -> Result<PathBuf, Refusal> {
    let depth = link.components().count() - 1;
    let leaves = || refuse(link, format!("is a link that leaves: {}", escaped(&target.to_string_lossy())));
    let (mut up, mut down) = (0, false);
    for component in target.components() {
        match component {
            Component::ParentDir if down => return Err(leaves()),
            Component::ParentDir => up += 1,
            Component::Normal(name) => {
                check_git(link, name)?;
                down = true;
            }
            Component::CurDir => {}
            _ => return Err(leaves()),
        }
    }
    if up > depth || target.as_os_str().is_empty() { Err(leaves()) } else { Ok(target) }
}

/// Nothing may lie below something that the archive itself makes other than a directory; other names need their file.
fn check_parents(changes: &BTreeMap<PathBuf, What>) -> Result<(), Refusal> {
    for (path, what) in changes {
        for parent in path.ancestors().skip(1) {
            if changes.get(parent).is_some_and(|what| !matches!(what, What::Dir(_))) {
                return Err(refuse(path, format!("lies below `{}`, which is no directory", parent.display())));
            }
        }
        if let What::Link(target) = what
            && !matches!(changes.get(target), Some(What::File(_)))
        {
            return Err(refuse(path, "is another name of something that is no file of the archive"));
        }
    }
    Ok(())
}

/// Looks at what is there now, through directories only.
fn against_host(root: &OwnedFd, path: PathBuf, what: What) -> anyhow::Result<(Change, Option<FileType>)> {
    let (parent, name) = split(&path)?;
    let dir = match open_dir(root, parent) {
        Ok(dir) => dir,
        // The archive makes the directory; where it does not, making this entry fails by itself.
        Err(Errno::NOENT) => return Ok((Change { path, what, exists: false }, None)),
        Err(Errno::LOOP | Errno::NOTDIR | Errno::XDEV) if !matches!(what, What::Delete) => {
            return Err(refuse(&path, "lies below something that is no directory on the host").into());
        }
        Err(error) => return Err(refuse(&path, format!("cannot be reached: {error}")).into()),
    };
    let there = match statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode)),
        Err(Errno::NOENT) => None,
        Err(error) => return Err(refuse(&path, format!("cannot be looked at: {error}")).into()),
    };
    let replaced = match what {
        What::Dir(_) => false,
        _ => there == Some(FileType::Directory),
    };
    if replaced {
        no_git_below(&dir, name, &path)?;
    }
    Ok((Change { path, what, exists: there.is_some() }, there))
}

/// Refuses to delete a directory in which a repository lies.
fn no_git_below(dir: &OwnedFd, name: &std::ffi::OsStr, shown: &Path) -> anyhow::Result<()> {
    let mut waiting = vec![(rustix::io::dup(dir.as_fd())?, name.to_owned())];
    let mut seen = 0usize;
    while let Some((parent, name)) = waiting.pop() {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let opened = openat2(&parent, &name, flags, Mode::empty(), how)
            .map_err(|error| refuse(shown, format!("cannot be looked into: {error}")))?;
        for entry in rustix::fs::Dir::read_from(&opened)? {
            let entry = entry?;
            let child = std::os::unix::ffi::OsStrExt::from_bytes(entry.file_name().to_bytes());
            let child: &std::ffi::OsStr = child;
            seen += 1;
            if seen > ENTRIES_MAX {
                return Err(refuse(shown, format!("has more than {ENTRIES_MAX} entries below")).into());
            }
            if child == "." || child == ".." {
                continue;
            }
            check_git(shown, child).map_err(|_| refuse(shown, "would be deleted, and has a `.git` below"))?;
            if statat(&opened, child, AtFlags::SYMLINK_NOFOLLOW)
                .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
            {
                waiting.push((rustix::io::dup(&opened)?, child.to_owned()));
            }
        }
    }
    Ok(())
}
