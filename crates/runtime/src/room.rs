//! How much room a file system has.

use std::{io, path::Path};

/// How many bytes are free where `dir` is; nothing where the file system does not say.
pub fn free_bytes(dir: &Path) -> io::Result<Option<u64>> {
    let stat = rustix::fs::statvfs(dir)?;
    // A file system of no blocks at all does not say how much it has.
    Ok((stat.f_blocks > 0).then(|| stat.f_bavail.saturating_mul(stat.f_frsize)))
}

/// How many files can still be made where `dir` is; nothing where the file system has no such limit, or does not say.
pub fn free_files(dir: &Path) -> io::Result<Option<u64>> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok((stat.f_files > 0).then_some(stat.f_favail))
}
