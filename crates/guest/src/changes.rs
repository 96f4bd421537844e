//! What the workload changed in its work dir, as a tar archive.
//!
//! The writable layer of the overlay is walked by descriptors, never following a link, and written out piece by piece:
//! memory is bounded whatever the sizes are. It is told as it is (see `holm_wire::guest_api`): a deletion is the character
//! device 0:0 that overlayfs makes of it, which the workload cannot make, so a file may have any name. Devices, sockets,
//! named pipes and set-id bits are told too: whoever reads the archive is to refuse them, and not to hand out something
//! that no longer is what was made. Left out are sticky bits and extended attributes. Files with several names are written
//! once for each.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, OwnedFd},
};

use bytes::Bytes;
use holm_wire::{
    guest_api::IdRange,
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
/// The mark of a folder that hides what lies below it. The overlay does not let the workload set it.
const OPAQUE_MARK: &str = "user.overlay.opaque";

/// Why an archive could not be written to its end.
#[derive(Debug, thiserror::Error)]
pub enum ChangesError {
    /// The layer cannot be read.
    #[error("cannot read the changes: {0}")]
    Read(#[from] io::Error),
    /// The archive cannot be sent.
    #[error(transparent)]
    Send(#[from] http2::Error),
    /// A folder is nested too deep.
    #[error("folders are nested deeper than {DEPTH_MAX}")]
    TooDeep,
    /// A file was changed while it was read.
    #[error("a file was changed while it was read")]
    Changed,
}

/// A folder that is being walked.
struct Level {
    fd: OwnedFd,
    entries: Dir,
    /// The length of the path up to and with the slash after this folder.
    path_length: usize,
}

/// Writes the archive of the layer in `upper` to `out`, and its end.
pub async fn send(upper: &OwnedFd, ids: IdRange, out: &mut Outgoing) -> Result<(), ChangesError> {
    let mut path = Vec::new();
    let top = rustix::fs::openat(upper, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let mut levels = vec![enter(top.map_err(io::Error::from)?, 0)?];
    loop {
        let depth = levels.len();
        let Some(level) = levels.last_mut() else { break };
        path.truncate(level.path_length);
        let Some(entry) = level.entries.next() else {
            levels.pop();
            continue;
        };
        let entry = entry.map_err(io::Error::from)?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = rustix::fs::statat(&level.fd, name, AtFlags::SYMLINK_NOFOLLOW).map_err(io::Error::from)?;
        path.extend(name.to_bytes());
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                if depth > DEPTH_MAX {
                    return Err(ChangesError::TooDeep);
                }
                let fd = open(&level.fd, name, OFlags::DIRECTORY)?;
                path.push(b'/');
                let kind = Kind::Folder { opaque: is_opaque(&fd)? };
                out.send(archive::encode(&head(&path, kind, &stat, ids)).into()).await?;
                levels.push(enter(fd, path.len())?);
            }
            FileType::RegularFile => {
                let fd = open(&level.fd, name, OFlags::NONBLOCK)?;
                send_file(fd, &path, ids, out).await?;
            }
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(&level.fd, name, Vec::new()).map_err(io::Error::from)?;
                let head = Head { link: link.to_bytes(), ..head(&path, Kind::Symlink, &stat, ids) };
                out.send(archive::encode(&head).into()).await?;
            }
            other => {
                let kind = special(other, &stat)?;
                out.send(archive::encode(&head(&path, kind, &stat, ids)).into()).await?;
            }
        }
        // The guest has one thread; others get their turn after each entry.
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
    let size = u64::try_from(stat.st_size).unwrap_or(0);
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
    let padding = size.next_multiple_of(BLOCK_BYTES as u64) - size;
    out.send(vec![0; padding as usize].into()).await?;
    Ok(())
}

fn enter(fd: OwnedFd, path_length: usize) -> io::Result<Level> {
    Ok(Level { entries: Dir::read_from(&fd)?, fd, path_length })
}

fn open(dir: impl AsFd, name: &std::ffi::CStr, flags: OFlags) -> io::Result<OwnedFd> {
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
