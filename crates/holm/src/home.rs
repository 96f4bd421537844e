//! The layout of `HOLM_HOME`, and the lock that says who serves it.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

/// The files under `HOLM_HOME`.
#[derive(Debug, Clone)]
pub struct Home(pub PathBuf);

impl Home {
    /// The socket on which `holm up` listens.
    pub fn socket(&self) -> PathBuf {
        self.0.join("up.sock")
    }
    /// The admin token of the default org.
    pub fn token(&self) -> PathBuf {
        self.0.join("token")
    }
    /// The token of the agent that runs beside the server.
    pub fn agent_token(&self) -> PathBuf {
        self.0.join("agent-token")
    }
    /// What a server in the background says.
    pub fn log(&self) -> PathBuf {
        self.0.join("up.log")
    }
    /// The data of the server.
    pub fn server(&self) -> PathBuf {
        self.0.join("server")
    }
    /// The data of the agent.
    pub fn agent(&self) -> PathBuf {
        self.0.join("agent")
    }
    fn lock_file(&self) -> PathBuf {
        self.0.join("up.lock")
    }

    /// Makes the folder, closed to others: what is below that another user must reach opens itself.
    pub fn create(&self) -> io::Result<()> {
        create_dir(&self.0)
    }

    /// What is said when it cannot be made.
    pub fn not_made(&self) -> String {
        format!("cannot make {} (--home or HOLM_HOME give another folder)", self.0.display())
    }

    /// Takes the lock, or tells which process has it. It is free again when the process ends, however it ends.
    pub fn lock(&self) -> io::Result<Result<HomeLock, Option<u32>>> {
        let mut file = open_lock(&self.lock_file())?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(Err(holder(&mut file))),
            Err(error) => return Err(error.into()),
        }
        file.set_len(0)?;
        file.write_all(format!("{}\n", std::process::id()).as_bytes())?;
        Ok(Ok(HomeLock { _file: file }))
    }

    /// The process that serves this home now, if one does. The lock is what says so; its number is only told by it.
    pub fn served_by(&self) -> io::Result<Served> {
        let mut file = match File::open(self.lock_file()) {
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
}

/// Who serves a home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// Nobody.
    Nobody,
    /// A process; its id is not known in the moment between its taking the lock and its writing it down.
    By(Option<u32>),
}

/// The lock of a home.
#[derive(Debug)]
pub struct HomeLock {
    _file: File,
}

fn open_lock(path: &Path) -> io::Result<File> {
    fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Makes a folder and those above it, closed to others.
pub fn create_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home(dir.path().join("a/b"));
        home.create().unwrap();
        assert_eq!(home.served_by().unwrap(), Served::Nobody);
        let lock = home.lock().unwrap().unwrap();
        assert_eq!(home.lock().unwrap().unwrap_err(), Some(std::process::id()));
        assert_eq!(home.served_by().unwrap(), Served::By(Some(std::process::id())));
        drop(lock);
        assert_eq!(home.served_by().unwrap(), Served::Nobody);
        home.lock().unwrap().unwrap();
    }
}
