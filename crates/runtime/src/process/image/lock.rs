//! The lock of an image (flock(2)): it belongs to an open file, wherever that is handed on to.

use std::{
    fs::{self, File},
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use rustix::{
    fs::{FlockOperation, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, flock, futimens},
    io::Errno,
};

use super::{Watch, image};
use crate::{Context, Error, crash::effect};

/// How often a lock that another one holds is tried again.
const TRY_EVERY: Duration = Duration::from_millis(20);

/// The lock of one image.
pub struct Lock {
    file: File,
    path: PathBuf,
}

impl From<Lock> for OwnedFd {
    fn from(lock: Lock) -> Self {
        lock.file.into()
    }
}

impl Lock {
    /// The lock of the image under a digest, not taken yet.
    pub fn open(dir: &Path, digest: &str) -> Result<Self, Error> {
        let path = dir.join(format!("{digest}.lock"));
        Ok(Self { file: open(&path)?, path })
    }

    /// Takes it as one of several who use the image.
    pub fn share(&mut self, watch: &Watch<'_>) -> Result<(), Error> {
        self.wait(FlockOperation::NonBlockingLockShared, watch, || false).map(drop)
    }

    /// Takes it as the only one, which may be never while others use the image; returns whether it did, and gives up once that
    /// `is_needless`.
    pub fn own(&mut self, watch: &Watch<'_>, is_needless: impl Fn() -> bool) -> Result<bool, Error> {
        self.wait(FlockOperation::NonBlockingLockExclusive, watch, is_needless)
    }

    /// Takes it as the only one, if nobody has it.
    pub fn try_own(&mut self) -> Result<bool, Error> {
        self.take(FlockOperation::NonBlockingLockExclusive)
    }

    /// Says that the image was used just now.
    pub fn touch(&self) -> Result<(), Error> {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        futimens(&self.file, &times).context(|| format!("touching {}", self.path.display()))
    }

    /// Removes the file of a lock that is owned.
    pub fn remove(&self) -> Result<(), Error> {
        let removed = effect("image.lock.remove", || fs::remove_file(&self.path));
        removed.context(|| format!("removing {}", self.path.display()))
    }

    fn wait(
        &mut self,
        operation: FlockOperation,
        watch: &Watch<'_>,
        is_needless: impl Fn() -> bool,
    ) -> Result<bool, Error> {
        // Two who share it and both want to own it would wait for each other.
        flock(&self.file, FlockOperation::Unlock).context(|| format!("unlocking {}", self.path.display()))?;
        loop {
            watch.check().map_err(image)?;
            if self.take(operation)? {
                return Ok(true);
            }
            if is_needless() {
                return Ok(false);
            }
            thread::sleep(TRY_EVERY);
        }
    }

    /// Whether it was taken. A file that was removed meanwhile locks nothing, and is opened anew.
    fn take(&mut self, operation: FlockOperation) -> Result<bool, Error> {
        match flock(&self.file, operation) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK | Errno::INTR) => return Ok(false),
            Err(errno) => return Err(errno).context(|| format!("locking {}", self.path.display())),
        }
        let ours = self.file.metadata().context(|| format!("looking at {}", self.path.display()))?;
        match fs::symlink_metadata(&self.path) {
            Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => return Ok(true),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).context(|| format!("looking at {}", self.path.display())),
        }
        self.file = open(&self.path)?;
        Ok(false)
    }
}

/// For reading only: a shim gets it, and is not to write to what is shared.
fn open(path: &Path) -> Result<File, Error> {
    let flags = OFlags::CREATE | OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::from_raw_mode(0o644));
    file.map(File::from).context(|| format!("opening {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shim_gets_of_it_cannot_be_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let lock = Lock::open(dir.path(), "digest").unwrap();
        lock.touch().unwrap();
        let flags = rustix::fs::fcntl_getfl(OwnedFd::from(lock)).unwrap();
        assert_eq!(flags & OFlags::RWMODE, OFlags::RDONLY);
    }
}
