//! What outlives the shim: the final status and the archive of changes, each complete under its name or not there at all.
//! What did not become complete takes no room: it is removed as soon as nobody writes it any more.

use std::{
    fs::File,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use holm_runtime::crash::effect;

use crate::protocol::{CHANGES_FILE_NAME, EXIT_FILE_NAME, STARTED_FILE_NAME, Status};

/// Writes a file under another name and gives it its own when it is complete. Dropped before, it removes what was written.
#[derive(Debug)]
pub struct Pending<'a> {
    dir: &'a Path,
    name: &'static str,
    file: File,
    bytes: u64,
    is_complete: bool,
}

impl<'a> Pending<'a> {
    /// Begins the archive of changes.
    pub fn changes(dir: &'a Path) -> io::Result<Self> {
        Self::begin(dir, CHANGES_FILE_NAME)
    }

    fn begin(dir: &'a Path, name: &'static str) -> io::Result<Self> {
        let path = part(dir, name);
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        Ok(Self { dir, name, file, bytes: 0, is_complete: false })
    }

    /// Adds what there is room for of a piece, and takes it off.
    pub fn write(&mut self, piece: &mut &[u8]) -> io::Result<()> {
        while !piece.is_empty() {
            match self.file.write(piece) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.bytes += count as u64;
                    *piece = &piece[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// How much was added.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives the file its name; returns its length.
    pub fn finish(mut self) -> io::Result<u64> {
        // Effect: that of whoever has the file written.
        std::fs::rename(part(self.dir, self.name), self.dir.join(self.name))?;
        self.is_complete = true;
        Ok(self.bytes)
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if !self.is_complete
            // No effect: nobody reads what is not complete.
            && let Err(error) = std::fs::remove_file(part(self.dir, self.name))
        {
            // It is in the way until the attempt's folder goes.
            tracing::warn!(%error, name = self.name, "what was written of a file cannot be removed");
        }
    }
}

fn part(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.part"))
}

/// Removes the archive of changes of a run that did not succeed after all.
pub fn discard_changes(dir: &Path) -> io::Result<()> {
    // No effect: a run without the final status, which is written afterwards, has failed and keeps none.
    std::fs::remove_file(dir.join(CHANGES_FILE_NAME))
}

/// Writes the final status. A second one replaces the first.
pub fn write_status(dir: &Path, status: &Status) -> io::Result<()> {
    let bytes = Bytes::from(serde_json::to_vec(status)?);
    effect("exit.write", || {
        let mut pending = Pending::begin(dir, EXIT_FILE_NAME)?;
        pending.write(&mut &bytes[..])?;
        pending.finish().map(|_| ())
    })
}

/// Leaves the mark that the command may have been started, should this process die without another word.
pub fn mark_started(dir: &Path) -> io::Result<()> {
    File::options().write(true).create(true).truncate(false).mode(0o600).open(dir.join(STARTED_FILE_NAME)).map(drop)
}
