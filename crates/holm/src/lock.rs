//! Files that one process has for itself: a home, a database of SQLite.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, flock};

use crate::home::open_nofollow;

/// How long a server that was killed may go on having what it had by what it was just about to start.
const LET_GO_WITHIN: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A lock that this process has. It is free again when the process ends, however it ends, and what it was just about to
/// start has ended as well.
#[derive(Debug)]
pub struct Lock {
    /// Open as long as the lock is held.
    _file: File,
}

impl Lock {
    /// Takes the lock whose file is at `path`, or tells which process has it.
    pub fn take(path: &Path) -> io::Result<Result<Self, Option<u32>>> {
        let begun = Instant::now();
        loop {
            match Self::try_take(path)? {
                Err(Some(pid)) if has_ended(pid) && begun.elapsed() < LET_GO_WITHIN => thread::sleep(LOOK_EVERY),
                taken => return Ok(taken),
            }
        }
    }

    fn try_take(path: &Path) -> io::Result<Result<Self, Option<u32>>> {
        let mut options = fs::OpenOptions::new();
        let mut file = open_nofollow(options.read(true).write(true).create(true).truncate(false).mode(0o600), path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(Err(holder(&mut file))),
            Err(error) => return Err(error.into()),
        }
        file.set_len(0)?;
        file.write_all(format!("{}\n", std::process::id()).as_bytes())?;
        Ok(Ok(Self { _file: file }))
    }

    /// Keeps it until [`let_go`] or the end of the process.
    pub fn keep(self) {
        KEPT.lock().unwrap_or_else(PoisonError::into_inner).push(self);
    }
}

/// What outlives all that has to do with what it is for.
static KEPT: Mutex<Vec<Lock>> = Mutex::new(Vec::new());

/// Lets go of all locks that are kept. Nothing of this process may have to do any more with what they are for.
pub fn let_go() {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

/// Who has what a lock is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// Nobody.
    Nobody,
    /// A process; its id is not known in the moment between its taking the lock and its writing it down.
    By(Option<u32>),
}

/// Who has the lock whose file is at `path`.
pub fn served_by(path: &Path) -> io::Result<Served> {
    let mut file = match open_nofollow(fs::OpenOptions::new().read(true), path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Served::Nobody),
        Err(error) => return Err(error),
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(Served::Nobody),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(Served::By(holder(&mut file))),
        Err(error) => Err(error.into()),
    }
}

/// The process that has the lock, as its file tells.
fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn has_ended(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_had_is_free_once_what_it_started_has_let_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let lock = Lock::take(&path).unwrap().unwrap();
        let mut dead = std::process::Command::new("true").spawn().unwrap();
        std::fs::write(&path, format!("{}\n", dead.id())).unwrap();
        dead.wait().unwrap();
        let letting_go = thread::spawn(move || {
            thread::sleep(LOOK_EVERY * 5);
            drop(lock);
        });
        Lock::take(&path).unwrap().unwrap();
        letting_go.join().unwrap();
    }
}
