//! What outlives the shim: the final status and the archive of changes, each complete under its name or not there at all.

use std::{
    fs::File,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use bytes::Bytes;
use holm_runtime::crash::effect;

use crate::protocol::{CHANGES_FILE_NAME, EXIT_FILE_NAME, STARTED_FILE_NAME, Status};

/// Writes a file under another name and gives it its own when it is complete.
#[derive(Debug)]
pub struct Pending<'a> {
    dir: &'a Path,
    name: &'static str,
    file: File,
    bytes: u64,
}

impl<'a> Pending<'a> {
    /// Begins the archive of changes.
    pub fn changes(dir: &'a Path) -> io::Result<Self> {
        Self::begin(dir, CHANGES_FILE_NAME)
    }

    fn begin(dir: &'a Path, name: &'static str) -> io::Result<Self> {
        let path = dir.join(format!("{name}.part"));
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        Ok(Self { dir, name, file, bytes: 0 })
    }

    /// Adds a piece.
    pub fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        self.file.write_all(piece)?;
        self.bytes += piece.len() as u64;
        Ok(())
    }

    /// How much was added.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives the file its name; returns its length.
    pub fn finish(self) -> io::Result<u64> {
        std::fs::rename(self.dir.join(format!("{}.part", self.name)), self.dir.join(self.name))?;
        Ok(self.bytes)
    }

    /// Removes what was written so far.
    pub fn discard(self) -> io::Result<()> {
        std::fs::remove_file(self.dir.join(format!("{}.part", self.name)))
    }
}

/// Writes the final status. A second one replaces the first.
pub fn write_status(dir: &Path, status: &Status) -> io::Result<()> {
    let bytes = Bytes::from(serde_json::to_vec(status)?);
    effect("exit.write", || {
        let mut pending = Pending::begin(dir, EXIT_FILE_NAME)?;
        pending.write(&bytes)?;
        pending.finish().map(|_| ())
    })
}

/// Leaves the mark that the command may have been started, should this process die without another word.
pub fn mark_started(dir: &Path) -> io::Result<()> {
    File::options().write(true).create(true).truncate(false).mode(0o600).open(dir.join(STARTED_FILE_NAME)).map(drop)
}
