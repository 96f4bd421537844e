//! Whether the host has room for what runs leave: below a floor of free space no run is claimed.
//!
//! Runs that there are go on, but an archive of changes that would go below the floor waits for room, and so does output
//! should the disk be full altogether.

use std::path::Path;

use holm_runtime::room::free_bytes;

/// The least room where nobody says, in bytes.
pub const STORAGE_FLOOR_BYTES: u64 = 256 * 1024 * 1024;

/// What is wrong, if less than `floor` bytes are free where `dir` is.
pub fn shortage(dir: &Path, floor: u64) -> Option<String> {
    match free_bytes(dir) {
        Ok(free) => {
            let free = free.filter(|free| *free < floor)?;
            Some(format!("full: {free} bytes are free, less than {floor}"))
        }
        Err(error) => Some(format!("full: how much is free cannot be told: {error}")),
    }
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
        assert!(shortage(&dir.path().join("missing"), 0).is_some(), "what cannot be told is no room");
    }
}
