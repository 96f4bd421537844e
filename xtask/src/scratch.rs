//! Where tests and measurements make their files.
//!
//! Small files come and go by the thousand, on some file systems slowly: ext4 without a journal passes over every inode that
//! was freed lately, by whomever, before it gives one away. So most suites have a file system in memory, one keeps to the
//! disk, and what is measured has a file system on the disk that nobody else uses. What a SIGKILL of xtask leaves mounted is
//! `/tmp/holm-*`.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use anyhow::{Context as _, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::{exec, places, say};

/// How large a file system on the disk may become.
const DISK_BYTES: u64 = 4 << 30;

/// A folder that goes with all that is in it. Its name is short: sockets lie below it, whose paths have 107 bytes at most.
#[derive(Debug)]
pub struct Scratch {
    dir: tempfile::TempDir,
    is_mounted: bool,
}

impl Scratch {
    /// In memory, as root; who may not mount has the temporary folder.
    pub fn in_memory() -> Result<Self> {
        Self::new(|path| Ok(mount(c"tmpfs", path, c"tmpfs", MountFlags::empty(), c"size=50%")?))
    }

    /// On the disk, as root in a new file system with a journal; who may not mount has the temporary folder.
    pub fn on_disk() -> Result<Self> {
        Self::new(|path| {
            // Once it is mounted, its name may go.
            let image = tempfile::Builder::new().prefix("holm-").tempfile()?;
            image.as_file().set_len(DISK_BYTES)?;
            exec::read(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(image.path()))?;
            exec::read(Command::new("mount").args(["-o", "loop"]).arg(image.path()).arg(path)).map(drop)
        })
    }

    fn new(mount: impl FnOnce(&Path) -> Result<()>) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("holm-").tempdir()?;
        let is_mounted = places::is_root();
        if is_mounted {
            mount(dir.path()).with_context(|| format!("a file system at {}", dir.path().display()))?;
        } else {
            say::note("only root can mount a file system for this: the temporary folder has to do");
        }
        let this = Self { dir, is_mounted };
        fs::set_permissions(this.path(), fs::Permissions::from_mode(0o1777))?;
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
        for scratch in [Scratch::in_memory(), Scratch::on_disk()] {
            let scratch = scratch.expect("a folder");
            let path = scratch.path().to_path_buf();
            exec::read(scratch.give(Command::new("mktemp").arg("-d"))).expect("a folder in it");
            assert!(fs::read_dir(&path).expect("the folder").count() > 0);
            assert_eq!(rustix::fs::stat(&path).expect("the folder").st_mode & 0o7777, 0o1777);
            drop(scratch);
            assert!(!path.exists());
        }
    }
}
