//! Digests of archives, remembered by what changes whenever a file does, so that a known one is not read again.
//!
//! A file's times say that it changed only if a change after the look gets another time. They are relied on where that is
//! so: on file systems of this host that set the time of a change at every write, mapped memory included; when nothing of
//! the file waits to be written; and when the last change is longer ago than any clock of a file system ticks.

use std::{
    fs::{self, File, Metadata},
    io::{self, Read, Seek},
    os::unix::fs::MetadataExt,
    path::Path,
};

use rustix::{
    fs::fstatfs,
    time::{ClockId, clock_gettime},
};
use sha2::{Digest, Sha256};

use super::{Watch, shelf::is_digest};

/// The longest that two changes of a file may have the same time, in seconds: FAT has the coarsest clock.
const TICK_SECONDS: i64 = 2;
const COPY_BYTES: usize = 256 * 1024;
/// ext2 to ext4, XFS, Btrfs, F2FS, bcachefs (statfs(2)).
const RELIABLE: &[i64] = &[0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0xca45_1a4e];

/// The digest of an archive in hexadecimal. The file is rewound.
pub fn digest(known: &Path, file: &mut File, watch: &Watch<'_>) -> io::Result<String> {
    let key = key(file)?;
    if let Some(digest) = key.as_ref().and_then(|key| remembered(&known.join(key))) {
        return Ok(digest);
    }
    file.rewind()?;
    let digest = hash(file, watch)?;
    file.rewind()?;
    if let Some(before) = key
        && self::key(file)?.as_ref() == Some(&before)
    {
        // No effect: a part of it is no digest, and read as none.
        fs::write(known.join(before), &digest)?;
    }
    Ok(digest)
}

fn remembered(path: &Path) -> Option<String> {
    // A text that a crash left incomplete is none.
    fs::read_to_string(path).ok().filter(|text| is_digest(text))
}

/// What changes whenever the file does; nothing where that cannot be relied on.
fn key(file: &File) -> io::Result<Option<String>> {
    // Afterwards, a write to mapped memory gets a new time as well.
    if !RELIABLE.contains(&(fstatfs(file)?.f_type as i64)) || file.sync_all().is_err() {
        return Ok(None);
    }
    let now = clock_gettime(ClockId::Realtime).tv_sec;
    let meta = file.metadata()?;
    Ok(is_settled(meta.ctime(), now).then(|| name(&meta)))
}

fn name(meta: &Metadata) -> String {
    let times = [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()].map(|time| time.to_string());
    format!("{}-{}-{}-{}", meta.dev(), meta.ino(), meta.size(), times.join("-"))
}

/// Whether a change from now on gets another time than the last one.
fn is_settled(changed_seconds: i64, now_seconds: i64) -> bool {
    now_seconds.saturating_sub(changed_seconds) > TICK_SECONDS
}

fn hash(file: &mut File, watch: &Watch<'_>) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        watch.check()?;
        match file.read(&mut buffer)? {
            0 => return Ok(hexadecimal(hash)),
            read => hash.update(&buffer[..read]),
        }
    }
}

/// A digest as it is written.
pub fn hexadecimal(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_within_a_tick_could_go_unseen() {
        assert!(!is_settled(100, 100) && !is_settled(100, 102));
        assert!(is_settled(100, 103));
        assert!(!is_settled(100, 50), "the clock went back");
        assert!(!is_settled(i64::MAX, i64::MIN));
    }
}
