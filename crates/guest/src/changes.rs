//! What the workload changed in its work dir, as a tar archive.
//!
//! The writable layer of the overlay is walked by descriptors, never following a link, and written out piece by piece:
//! memory is bounded whatever the sizes are. It is told as it is (see `holm_wire::guest_api`): a deletion is the character
//! device 0:0 that overlayfs makes of it, which the workload cannot make, so a file may have any name. Devices, sockets,
//! named pipes and set-id bits are told too: whoever reads the archive is to refuse them, and not to hand out something
//! that no longer is what was made. Left out are sticky bits and extended attributes.
//!
//! How long the archive will be is measured before the first byte of it is sent: holes of sparse files are written out, so a
//! small layer can have a large one.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, OwnedFd},
};

use bytes::Bytes;
use holm_wire::{
    guest_api::{CHANGES_TOO_DEEP, IdRange},
    http2::{self, Outgoing},
};
use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat},
    io::Errno,
};

mod archive;

use archive::{BLOCK_BYTES, Head, Kind};

/// How deep folders may be nested; each level holds a descriptor.
const DEPTH_MAX: usize = 256;
const PIECE_BYTES: usize = 64 * 1024;
/// How much of the names of files with several names is remembered, in bytes; of what is beyond, each name is written as a
/// file.
const FIRST_NAMES_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How much of a path a message shows, in bytes.
const PATH_BYTES_SHOWN: usize = 1_024;
/// The mark of a folder that hides what lies below it. The overlay does not let the workload set it.
const OPAQUE_MARK: &str = "user.overlay.opaque";

/// Why there is no archive, or none to its end.
#[derive(Debug, thiserror::Error)]
pub enum ChangesError {
    /// The layer cannot be read.
    #[error("cannot read the changes: {0}")]
    Read(#[from] io::Error),
    /// The archive cannot be sent.
    #[error(transparent)]
    Send(#[from] http2::Error),
    /// A folder is nested too deep.
    #[error("{CHANGES_TOO_DEEP} {DEPTH_MAX}")]
    TooDeep,
    /// The archive would be too long.
    #[error("they take more than {bytes_max} bytes as an archive{largest}")]
    TooLong {
        /// What it may take.
        bytes_max: u64,
        /// What takes most of it, as far as was looked.
        largest: Largest,
    },
    /// A file was changed while it was read.
    #[error("a file was changed while it was read")]
    Changed,
}

/// The largest of some files; as text nothing where none has a byte.
#[derive(Debug, Default)]
pub struct Largest {
    size: u64,
    occupied: u64,
    path: Vec<u8>,
}

impl std::fmt::Display for Largest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { size, occupied, path } = self;
        if *size == 0 {
            return Ok(());
        }
        let shown = String::from_utf8_lossy(path.get(..PATH_BYTES_SHOWN).unwrap_or(path));
        write!(f, "; the largest file seen, `{shown}`, has {size} bytes")?;
        if occupied < size {
            write!(f, " and occupies {occupied}: it is sparse, and holes are written out")?;
        }
        Ok(())
    }
}

/// A folder that is being walked.
struct Level {
    fd: OwnedFd,
    entries: Dir,
    /// The length of the path up to and with the slash after this folder.
    path_length: usize,
}

/// A walk through a layer, parents before what is below them.
struct Walk {
    levels: Vec<Level>,
    /// The path of what was found last.
    path: Vec<u8>,
    /// The first names of files that have several, by device and number.
    first_names: HashMap<(u64, u64), Vec<u8>>,
    first_names_bytes: usize,
}

/// What a walk came to.
struct Found {
    kind: Kind,
    /// Where a link leads.
    link: Vec<u8>,
    stat: Stat,
}

impl Found {
    fn head<'a>(&'a self, path: &'a [u8], ids: IdRange) -> Head<'a> {
        Head { link: &self.link, ..head(path, self.kind, &self.stat, ids) }
    }
}

impl Walk {
    fn begin(upper: &OwnedFd) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let top = rustix::fs::openat(upper, ".", flags, Mode::empty())?;
        let levels = vec![enter(top, 0)?];
        Ok(Self { levels, path: Vec::new(), first_names: HashMap::new(), first_names_bytes: 0 })
    }

    fn next(&mut self) -> Result<Option<Found>, ChangesError> {
        loop {
            let depth = self.levels.len();
            let Some(level) = self.levels.last_mut() else { return Ok(None) };
            self.path.truncate(level.path_length);
            let Some(entry) = level.entries.next() else {
                self.levels.pop();
                continue;
            };
            let entry = entry.map_err(io::Error::from)?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = rustix::fs::statat(&level.fd, name, AtFlags::SYMLINK_NOFOLLOW).map_err(io::Error::from)?;
            self.path.extend(name.to_bytes());
            let (kind, link) = match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory if depth > DEPTH_MAX => return Err(ChangesError::TooDeep),
                FileType::Directory => {
                    let fd = open(&level.fd, name, OFlags::DIRECTORY)?;
                    self.path.push(b'/');
                    let opaque = is_opaque(&fd)?;
                    self.levels.push(enter(fd, self.path.len())?);
                    (Kind::Folder { opaque }, Vec::new())
                }
                FileType::RegularFile => self.file(&stat),
                FileType::Symlink => {
                    let link = rustix::fs::readlinkat(&level.fd, name, Vec::new()).map_err(io::Error::from)?;
                    (Kind::Symlink, link.into_bytes())
                }
                other => (special(other, &stat)?, Vec::new()),
            };
            return Ok(Some(Found { kind, link, stat }));
        }
    }

    /// A file, or another name of one that was found before.
    fn file(&mut self, stat: &Stat) -> (Kind, Vec<u8>) {
        if stat.st_nlink > 1 {
            let file = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.first_names.get(&file) {
                return (Kind::HardLink, first.clone());
            }
            if self.first_names_bytes + self.path.len() <= FIRST_NAMES_BYTES_MAX {
                self.first_names_bytes += self.path.len();
                self.first_names.insert(file, self.path.clone());
            }
        }
        (Kind::File, Vec::new())
    }

    /// Opens the file that was found last.
    fn open(&self) -> io::Result<OwnedFd> {
        let level = self.levels.last().ok_or(io::ErrorKind::NotFound)?;
        open(&level.fd, &self.path[level.path_length..], OFlags::NONBLOCK)
    }
}

/// Refuses a layer whose archive would be longer than `bytes_max`.
pub async fn measure(upper: &OwnedFd, ids: IdRange, bytes_max: u64) -> Result<(), ChangesError> {
    let mut walk = Walk::begin(upper)?;
    let (mut bytes, mut largest) = (archive::END.len() as u64, Largest::default());
    while let Some(found) = walk.next()? {
        let size = if found.kind == Kind::File { size_of(&found.stat) } else { 0 };
        bytes += archive::encode(&Head { size, ..found.head(&walk.path, ids) }).len() as u64;
        bytes = bytes.saturating_add(size.saturating_add(padding_of(size) as u64));
        if size > largest.size {
            let occupied = u64::try_from(found.stat.st_blocks).unwrap_or(0).saturating_mul(BLOCK_BYTES as u64);
            largest = Largest { size, occupied, path: walk.path.clone() };
        }
        if bytes > bytes_max {
            return Err(ChangesError::TooLong { bytes_max, largest });
        }
        // The guest has one thread; others get their turn after each entry.
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// Writes the archive of the layer in `upper` to `out`, and its end.
pub async fn send(upper: &OwnedFd, ids: IdRange, out: &mut Outgoing) -> Result<(), ChangesError> {
    let mut walk = Walk::begin(upper)?;
    while let Some(found) = walk.next()? {
        if found.kind == Kind::File {
            send_file(walk.open()?, &walk.path, ids, out).await?;
        } else {
            out.send(archive::encode(&found.head(&walk.path, ids)).into()).await?;
        }
        tokio::task::yield_now().await;
    }
    out.send(Bytes::from_static(&archive::END)).await?;
    Ok(out.finish()?)
}

async fn send_file(fd: OwnedFd, path: &[u8], ids: IdRange, out: &mut Outgoing) -> Result<(), ChangesError> {
    let stat = rustix::fs::fstat(&fd).map_err(io::Error::from)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(ChangesError::Changed);
    }
    let size = size_of(&stat);
    out.send(archive::encode(&Head { size, ..head(path, Kind::File, &stat, ids) }).into()).await?;
    let mut file = File::from(fd);
    let mut left = size;
    while left > 0 {
        let mut piece = vec![0; usize::try_from(left).unwrap_or(PIECE_BYTES).min(PIECE_BYTES)];
        let count = file.read(&mut piece)?;
        if count == 0 {
            return Err(ChangesError::Changed);
        }
        piece.truncate(count);
        left -= count as u64;
        out.send(piece.into()).await?;
    }
    out.send(vec![0; padding_of(size)].into()).await?;
    Ok(())
}

fn size_of(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

/// How many bytes follow a file up to the next block.
fn padding_of(size: u64) -> usize {
    let over = (size % BLOCK_BYTES as u64) as usize;
    (BLOCK_BYTES - over) % BLOCK_BYTES
}

fn enter(fd: OwnedFd, path_length: usize) -> io::Result<Level> {
    Ok(Level { entries: Dir::read_from(&fd)?, fd, path_length })
}

fn open(dir: impl AsFd, name: impl rustix::path::Arg, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?)
}

fn is_opaque(dir: &OwnedFd) -> io::Result<bool> {
    let mut value = [0_u8; 1];
    match rustix::fs::fgetxattr(dir, OPAQUE_MARK, &mut value[..]) {
        Ok(length) => Ok(length == 1 && value == *b"y"),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// What is neither file nor folder nor link.
fn special(kind: FileType, stat: &Stat) -> io::Result<Kind> {
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    match kind {
        FileType::CharacterDevice => Ok(Kind::CharDevice(major, minor)),
        FileType::BlockDevice => Ok(Kind::BlockDevice(major, minor)),
        FileType::Fifo => Ok(Kind::Fifo),
        FileType::Socket => Ok(Kind::Socket),
        other => Err(io::Error::new(io::ErrorKind::InvalidData, format!("a file is of an unknown kind ({other:?})"))),
    }
}

fn head<'a>(path: &'a [u8], kind: Kind, stat: &Stat, ids: IdRange) -> Head<'a> {
    // An owner that does not exist inside is none that could be given to a file outside.
    let inside = |id: u32| id.checked_sub(ids.outer_first).filter(|&id| id < ids.count).unwrap_or(0);
    Head {
        path,
        kind,
        link: b"",
        mode: stat.st_mode & 0o6777,
        uid: inside(stat.st_uid),
        gid: inside(stat.st_gid),
        size: 0,
        mtime: stat.st_mtime,
    }
}
