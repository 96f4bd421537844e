//! Reads the archive and decides: what would change, or why all of it is refused. Writes nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fmt,
    fs::File,
    io::{BufReader, Seek as _},
    os::{
        fd::OwnedFd,
        unix::ffi::{OsStrExt as _, OsStringExt as _},
    },
    path::{Component, Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use holm_domain::limits::CHANGES_BYTES_MAX;
use holm_runtime::{
    archive::{Entry, Kind, Limits, Name, Reader, shown},
    below::open_below,
};
use holm_wire::guest_api::{CHANGES_OPAQUE, CHANGES_SOCKET};
use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, statat},
    io::Errno,
};

use super::git;

/// How much of an archive is taken.
const LIMITS: Limits = Limits {
    entries: 1_000_000,
    bytes: CHANGES_BYTES_MAX,
    path_bytes: 4_096,
    depth: 512,
    description_bytes: 16 * 1024,
};
/// The most bytes of all paths together: they are kept in memory.
const PATHS_BYTES_MAX: usize = 256 * 1024 * 1024;
/// How many refusals are told; of the others, their number.
const REFUSALS_TOLD_MAX: usize = 20;

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
        let path = show(&self.path);
        let how = if self.exists { "changed" } else { "new    " };
        match &self.what {
            What::Delete => write!(f, "deleted {path}"),
            What::Empty => write!(f, "emptied {path}/"),
            What::Dir(_) => write!(f, "{how} {path}/"),
            What::File(_) => write!(f, "{how} {path}"),
            What::Symlink(target) => write!(f, "{how} {path} -> {}", show(target)),
            What::Link(target) => write!(f, "{how} {path} = {}", show(target)),
        }
    }
}

fn show(path: &Path) -> String {
    shown(path.as_os_str().as_bytes())
}

/// Why one entry is not written back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The entry.
    path: PathBuf,
    /// What is wrong with it.
    problem: String,
}

pub fn refuse(path: &Path, problem: impl Into<String>) -> Refusal {
    Refusal { path: path.to_owned(), problem: problem.into() }
}

/// Everything that is wrong with an archive.
#[derive(Debug, Default, thiserror::Error)]
pub struct Refused {
    told: Vec<Refusal>,
    more: usize,
}

impl Refused {
    fn add(&mut self, refusal: Refusal) {
        if self.told.len() < REFUSALS_TOLD_MAX { self.told.push(refusal) } else { self.more += 1 }
    }

    /// The value, if there is one.
    fn take<T>(&mut self, result: Result<T, Refusal>) -> Option<T> {
        result.map_err(|refusal| self.add(refusal)).ok()
    }

    fn none(self) -> Result<(), Self> {
        if self.told.is_empty() { Ok(()) } else { Err(self) }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "refused, and nothing was written:")?;
        for (n, Refusal { path, problem }) in self.told.iter().enumerate() {
            let separator = if n == 0 { "" } else { ";" };
            write!(f, "{separator} `{}` {problem}", show(path))?;
        }
        if self.more > 0 { write!(f, "; and {} more", self.more) } else { Ok(()) }
    }
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
    open_below(root, path, OFlags::PATH | OFlags::DIRECTORY, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
}

/// A path as its directory and its name.
pub fn split(path: &Path) -> anyhow::Result<(&Path, &std::ffi::OsStr)> {
    let name = path.file_name().ok_or_else(|| anyhow!("{} has no name", path.display()))?;
    Ok((path.parent().unwrap_or(Path::new("")), name))
}

/// A reader at the beginning of the archive.
pub fn reader(mut archive: &File) -> anyhow::Result<Reader<BufReader<&File>>> {
    archive.rewind().context("the archive cannot be read")?;
    Ok(Reader::new(BufReader::with_capacity(64 * 1024, archive), LIMITS))
}

/// The path of an entry; of none that leaves.
pub fn path_of(name: &Name) -> PathBuf {
    name.names.iter().map(|name| OsString::from_vec(name.clone())).collect()
}

/// What the archive says, before anybody looks at the directory.
#[derive(Default)]
struct Wanted {
    changes: BTreeMap<PathBuf, What>,
    /// Directories that hide what was in them; they are among the changes as directories too.
    emptied: BTreeSet<PathBuf>,
    paths_bytes: usize,
}

/// Reads and checks the whole archive against the directory.
pub fn read(archive: &File, root: &OwnedFd) -> anyhow::Result<Vec<Change>> {
    let mut refused = Refused::default();
    let wanted = wanted(archive, &mut refused)?;
    check_parents(&wanted.changes, &mut refused);
    git::check_repositories(root, &wanted.changes, LIMITS.entries as usize, |refusal| refused.add(refusal))?;
    let changes = against(root, wanted, &mut refused);
    refused.none()?;
    Ok(changes)
}

fn wanted(archive: &File, refused: &mut Refused) -> anyhow::Result<Wanted> {
    let mut wanted = Wanted::default();
    let mut reader = reader(archive)?;
    while let Some(entry) = reader.next_entry().context("the archive is refused, and nothing was written")? {
        wanted.paths_bytes += entry.name.path().len();
        anyhow::ensure!(
            wanted.paths_bytes <= PATHS_BYTES_MAX,
            "the archive is refused, and nothing was written: its paths have more than {PATHS_BYTES_MAX} bytes"
        );
        if let Err(refusal) = wanted.take(&entry) {
            refused.add(refusal);
        }
    }
    Ok(wanted)
}

impl Wanted {
    fn take(&mut self, entry: &Entry) -> Result<(), Refusal> {
        let named = path_of(&entry.name);
        let path = normal(&entry.name)?;
        let empties = empties(entry, &named)?;
        if path.as_os_str().is_empty() {
            return match entry.kind {
                Kind::Folder if !empties => Ok(()),
                Kind::Folder => Err(refuse(Path::new("."), "empties the directory itself")),
                _ => Err(refuse(Path::new("."), "stands for the directory itself")),
            };
        }
        let what = classify(entry, &path)?;
        if empties {
            self.emptied.insert(path.clone());
        }
        match self.changes.insert(path, what) {
            None => Ok(()),
            Some(_) => Err(refuse(&named, "is in the archive twice")),
        }
    }
}

/// Whether the entry is a directory that hides what was in it. Other attributes have no place in an archive of changes.
fn empties(entry: &Entry, named: &Path) -> Result<bool, Refusal> {
    let is_mark = |(key, value): &(Vec<u8>, Vec<u8>)| key == CHANGES_OPAQUE.as_bytes() && value == b"y";
    match entry.attributes.as_slice() {
        [] => Ok(false),
        [mark] if is_mark(mark) && entry.kind == Kind::Folder => Ok(true),
        _ => Err(refuse(named, "has extended attributes")),
    }
}

/// What an entry stands for.
fn classify(entry: &Entry, path: &Path) -> Result<What, Refusal> {
    let mode = entry.mode;
    if mode & 0o6000 != 0 && entry.kind != Kind::Folder {
        return Err(refuse(path, format!("has set-id bits (mode {mode:o})")));
    }
    match &entry.kind {
        Kind::File if entry.is_sparse() => Err(refuse(path, "is of a kind that is not taken (sparse)")),
        Kind::File => Ok(What::File(mode & 0o777)),
        // Whether set-id bits are refused depends on what is there.
        Kind::Folder => Ok(What::Dir(mode & 0o6777)),
        Kind::Symlink(target) => stays(path, PathBuf::from(OsString::from_vec(target.clone()))).map(What::Symlink),
        Kind::HardLink(target) => normal(target).map(What::Link),
        Kind::CharDevice(0, 0) => Ok(What::Delete),
        Kind::CharDevice(..) | Kind::BlockDevice => Err(refuse(path, "is a device")),
        Kind::Fifo => Err(refuse(path, "is a named pipe")),
        Kind::Other(CHANGES_SOCKET) => Err(refuse(path, "is a socket")),
        Kind::Remark => Err(refuse(path, "is of a kind that is not taken (a remark)")),
        Kind::Other(flag) => Err(refuse(path, format!("is of a kind that is not taken (`{}`)", flag.escape_ascii()))),
    }
}

/// A relative path; what is in a `.git` is refused.
fn normal(name: &Name) -> Result<PathBuf, Refusal> {
    let path = path_of(name);
    if name.is_absolute {
        return Err(refuse(&Path::new("/").join(path), "is an absolute path"));
    }
    match name.names.iter().any(|name| git::is_dot_git(name)) {
        true => Err(refuse(&path, "is in a `.git`")),
        false => Ok(path),
    }
}

/// Accepts the target of a symbolic link only if it cannot leave: as many leading `..` as there are directories above the
/// link, and none after a name, because that name may be a link itself.
fn stays(link: &Path, target: PathBuf) -> Result<PathBuf, Refusal> {
    let depth = link.components().count() - 1;
    let leaves = || refuse(link, format!("is a link that leaves: {}", show(&target)));
    let (mut up, mut down) = (0, false);
    for component in target.components() {
        match component {
            Component::ParentDir if down => return Err(leaves()),
            Component::ParentDir => up += 1,
            Component::Normal(name) if git::is_dot_git(name.as_bytes()) => {
                return Err(refuse(link, "is a link into a `.git`"));
            }
            Component::Normal(_) => down = true,
            Component::CurDir => {}
            _ => return Err(leaves()),
        }
    }
    if up > depth { Err(leaves()) } else { Ok(target) }
}

/// Nothing may lie below something that the archive itself makes other than a directory; other names need their file.
fn check_parents(changes: &BTreeMap<PathBuf, What>, refused: &mut Refused) {
    for (path, what) in changes {
        let no_dir = |parent: &&Path| changes.get(*parent).is_some_and(|what| !matches!(what, What::Dir(_)));
        if let Some(parent) = path.ancestors().skip(1).find(no_dir) {
            refused.add(refuse(path, format!("lies below `{}`, which is no directory", show(parent))));
        }
        if let What::Link(target) = what
            && !matches!(changes.get(target), Some(What::File(_)))
        {
            refused.add(refuse(path, "is another name of something that is no file of the archive"));
        }
    }
}

/// The changes in order, parents before what is below them.
fn against(root: &OwnedFd, wanted: Wanted, refused: &mut Refused) -> Vec<Change> {
    let Wanted { changes, emptied, .. } = wanted;
    let mut replaced = BTreeSet::new();
    let mut all = Vec::new();
    for (path, what) in changes {
        if path.ancestors().any(|parent| replaced.contains(parent)) {
            all.push(Change { path, what, exists: false });
            continue;
        }
        let Some((change, there)) = refused.take(against_host(root, path, what)) else { continue };
        if matches!(change.what, What::Dir(_)) && there.is_some_and(|kind| kind != FileType::Directory) {
            // A directory that hides nothing was one when the run began: somebody put something else there since.
            if !emptied.contains(&change.path) {
                refused.add(refuse(&change.path, "is no directory on the host any more"));
                continue;
            }
            replaced.insert(change.path.clone());
        }
        all.push(change);
    }
    for path in emptied.into_iter().filter(|path| !path.ancestors().any(|parent| replaced.contains(parent))) {
        let found = refused.take(against_host(root, path, What::Empty));
        all.extend(found.filter(|(_, there)| *there == Some(FileType::Directory)).map(|(change, _)| change));
    }
    all
}

/// The set-group-id bit that directories hand on to those that are made in them (inode(7)): that of the nearest one above.
fn inherited(root: &OwnedFd, parent: &Path) -> u32 {
    let nearest = parent.ancestors().find_map(|above| open_dir(root, above).ok());
    let stat = nearest.and_then(|dir| statat(&dir, "", AtFlags::EMPTY_PATH).ok());
    stat.map_or(0, |stat| stat.st_mode & 0o2000)
}

/// Looks at what is there now, through directories only.
fn against_host(root: &OwnedFd, path: PathBuf, what: What) -> Result<(Change, Option<FileType>), Refusal> {
    let (parent, name) = split(&path).map_err(|error| refuse(&path, error.to_string()))?;
    let dir = match open_dir(root, parent) {
        Ok(dir) => Some(dir),
        // The archive makes the directory; where it does not, making this entry fails by itself.
        Err(Errno::NOENT) => None,
        Err(Errno::LOOP | Errno::NOTDIR | Errno::XDEV) if !matches!(what, What::Delete) => {
            return Err(refuse(&path, "lies below something that is no directory on the host"));
        }
        Err(error) => return Err(refuse(&path, format!("cannot be reached: {error}"))),
    };
    let there = match dir.as_ref().map(|dir| statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)) {
        Some(Ok(stat)) => Some((FileType::from_raw_mode(stat.st_mode), stat.st_mode)),
        None | Some(Err(Errno::NOENT)) => None,
        Some(Err(error)) => return Err(refuse(&path, format!("cannot be looked at: {error}"))),
    };
    let kind = there.map(|(kind, _)| kind);
    let what = match what {
        // A directory of the user's keeps its bits; none gets any but from the user's own directories above.
        What::Dir(mode) => {
            let own = there.filter(|(kind, _)| *kind == FileType::Directory).map_or(0, |(_, mode)| mode);
            if mode & 0o6000 & !own != 0 && mode & 0o6000 & !(own | inherited(root, parent)) != 0 {
                return Err(refuse(&path, format!("has set-id bits (mode {mode:o})")));
            }
            What::Dir(mode & 0o777)
        }
        other => other,
    };
    if let Some(dir) = dir
        && !matches!(what, What::Dir(_))
        && kind == Some(FileType::Directory)
    {
        git::check_none_below(&dir, name, &path, LIMITS.entries as usize)?;
    }
    Ok((Change { path, what, exists: there.is_some() }, kind))
}
