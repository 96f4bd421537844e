//! Files of the workload's root, read from outside with limits.
//!
//! The workload owns these files and may change them at any moment: a path is resolved beneath its root by the kernel
//! (openat2), nothing but a regular file is read, and no more of it than the limit.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, OwnedFd},
};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

/// Opens `path` beneath `root`, following no link that leaves it.
pub fn open_beneath(root: impl AsFd, path: &str, flags: OFlags, resolve: ResolveFlags) -> io::Result<OwnedFd> {
    let resolve = resolve | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)?)
}

/// Reads a regular file of at most `bytes_max` bytes; nothing if there is none.
pub fn read_small(root: impl AsFd, path: &str, bytes_max: usize, resolve: ResolveFlags) -> io::Result<Option<Vec<u8>>> {
    // Not blocking: a FIFO in the file's place would otherwise hold the guest up.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = match open_beneath(root, path, flags, resolve) {
        Ok(fd) => fd,
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => return Ok(None),
        Err(error) => return Err(error),
    };
    let stat = rustix::fs::fstat(&fd)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no regular file"));
    }
    let mut content = Vec::new();
    File::from(fd).take(bytes_max as u64 + 1).read_to_end(&mut content)?;
    if content.len() > bytes_max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {bytes_max} bytes")));
    }
    Ok(Some(content))
}
