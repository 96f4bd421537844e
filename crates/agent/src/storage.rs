//! Whether the host has room for what runs leave: below a floor of free space no run is claimed, nor where hardly a file can
//! be made any more.
//!
//! Runs that there are go on, but an archive of changes that would go below the floor waits for room, and so does output
//! should the disk be full altogether.

use std::path::Path;

use holm_domain::limits::STORAGE_FLOOR_FILES;
use holm_runtime::room::{free_bytes, free_files};

/// The least room where nobody says, in bytes.
pub const STORAGE_FLOOR_BYTES: u64 = 256 * 1024 * 1024;

/// What is wrong, if less than `floor` bytes are free where `dir` is, or too few files can be made. A floor of 0 asks for
/// neither.
pub fn shortage(dir: &Path, floor: u64) -> Option<String> {
    let free = match free_bytes(dir) {
        Ok(free) => free,
        Err(error) => return Some(format!("full: how much is free cannot be told: {error}")),
    };
    if let Some(free) = free.filter(|free| *free < floor) {
        return Some(format!("full: {free} bytes are free, less than {floor}"));
    }
    if floor == 0 { None } else { shortage_of_files(dir) }
}

/// What is wrong, if too few files can be made where `dir` is.
pub fn shortage_of_files(dir: &Path) -> Option<String> {
    match free_files(dir) {
        Ok(free) => few(free?, STORAGE_FLOOR_FILES),
        Err(error) => Some(format!("full: how many files can be made cannot be told: {error}")),
    }
}

fn few(free: u64, floor: u64) -> Option<String> {
    (free < floor).then(|| format!("full: {free} files can be made (inodes), fewer than {floor}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn below_the_floor_is_what_is_less() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(shortage(dir.path(), 0), None);
        let why = shortage(dir.path(), u64::MAX).unwrap();
        assert!(why.contains("bytes are free"), "{why}");
        assert_eq!((few(1_024, 1_024), few(1_023, 1_024).is_some()), (None, true));
        assert!(shortage(&dir.path().join("missing"), 0).is_some(), "what cannot be told is no room");
    }
}
