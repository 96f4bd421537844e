//! Whether the host has room for what runs leave: below a floor of free space no run is claimed.
//!
//! What always holds: it is looked at anew each time, so an agent takes runs again by itself once there is room. Runs that
//! it has go on; should the disk be full altogether, their shims end them.

use std::{path::Path, sync::Arc, time::Duration};

use crate::{
    control::ControlPlane,
    registration,
    station::{Config, Shared},
};

/// The least room where nobody says, in bytes.
pub const STORAGE_FLOOR_BYTES: u64 = 256 * 1024 * 1024;
/// The label by which a host says that it takes no runs for want of room.
pub const STORAGE_LABEL: &str = "holm.storage";
/// How often it is looked.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What is wrong, if less than `floor` bytes are free where `dir` is.
pub fn shortage(dir: &Path, floor: u64) -> Option<String> {
    let stat = match rustix::fs::statvfs(dir) {
        Ok(stat) => stat,
        Err(error) => return Some(format!("full: how much is free cannot be told: {error}")),
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    // A file system of no blocks at all does not say how much it has.
    (stat.f_blocks > 0 && free < floor)
        .then(|| format!("full: {free} bytes are free, less than {floor}; no runs are taken"))
}

pub(crate) fn shortage_of(config: &Config) -> Option<String> {
    shortage(&config.dir, config.storage_floor_bytes)
}

/// Tells the control plane, for ever, when room runs out and when there is some again.
pub(crate) async fn tell<C: ControlPlane>(shared: Arc<Shared<C>>) {
    let mut told = false;
    loop {
        let shortage = shortage_of(&shared.config);
        if shortage.is_some() != told {
            match &shortage {
                Some(why) => tracing::error!(dir = %shared.config.dir.display(), why, "no runs are taken"),
                None => tracing::info!("there is room again; runs are taken"),
            }
            // What cannot be told now is told at the next look.
            if registration::again(&shared).await {
                told = shortage.is_some();
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
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
