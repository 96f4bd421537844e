//! Where tests make their files.
//!
//! Thousands of small files come and go, on some file systems slowly: ext4 without a journal passes over every inode that was
//! freed lately before it gives one away. So most suites have a file system in memory; one keeps to the disk.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use anyhow::{Context as _, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::{places, say};

/// A folder that goes with all that is in it.
#[derive(Debug)]
pub struct Scratch {
    dir: tempfile::TempDir,
    is_mounted: bool,
}

impl Scratch {
    /// In memory as root; who may not mount has the disk.
    pub fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("holm-test-").tempdir()?;
        let mut this = Self { dir, is_mounted: false };
        if places::is_root() {
            mount(c"tmpfs", this.path(), c"tmpfs", MountFlags::empty(), c"mode=1777")
                .context("a file system in memory")?;
            this.is_mounted = true;
        } else {
            fs::set_permissions(this.path(), fs::Permissions::from_mode(0o1777))?;
            say::note("only root can mount a file system in memory: all tests use the disk");
        }
        Ok(this)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Has a command make its temporary files here.
    pub fn give<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("TMPDIR", self.path())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.is_mounted {
            return;
        }
        // Also while a process that a test forgot is still in it.
        if let Err(error) = unmount(self.path(), UnmountFlags::DETACH) {
            say::error(&format!("cannot unmount {}: {error}", self.path().display()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_with_all_that_is_in_it() {
        let scratch = Scratch::new().expect("a folder");
        let path = scratch.path().to_path_buf();
        let mut command = Command::new("sh");
        scratch.give(command.args(["-c", "touch $(mktemp)"])).status().expect("sh starts");
        assert_eq!(fs::read_dir(&path).expect("the folder").count(), 1);
        assert_eq!(rustix::fs::stat(&path).expect("the folder").st_mode & 0o7777, 0o1777);
        drop(scratch);
        assert!(!path.exists());
    }
}
