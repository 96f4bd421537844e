//! The files of a spool, as its writer has them.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use holm_runtime::crash::effect;

use crate::protocol::SPOOL_DIR_NAME;

/// The length that a file does not exceed, in bytes, unless a single batch does.
pub const FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// A file of the spool.
#[derive(Debug)]
struct Written {
    first_seq: u64,
    bytes: u64,
}

/// The files of a spool; the last of `written` is the one that is open, if one is.
#[derive(Debug)]
pub(super) struct Files {
    dir: PathBuf,
    file_bytes_max: u64,
    written: VecDeque<Written>,
    open: Option<File>,
    /// Whether a part of a batch that was not written may be at the end of the open file.
    is_torn: bool,
    bytes: u64,
    /// The sequence after the last entry of all.
    next_seq: u64,
}

impl Files {
    /// Makes the folder of a spool that is to take `bytes_max`.
    pub(super) fn create(run_dir: &Path, first_seq: u64, bytes_max: u64) -> io::Result<Self> {
        let dir = run_dir.join(SPOOL_DIR_NAME);
        match std::fs::DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => {}
            // The agent made it, in a folder where the shim may not rename what is the agent's.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
            Err(error) => return Err(error),
        }
        // Files are deleted whole: with several below the limit, every deletion makes room.
        let file_bytes_max = FILE_BYTES_MAX.min(bytes_max / 4);
        Ok(Self {
            dir,
            file_bytes_max,
            written: VecDeque::new(),
            open: None,
            is_torn: false,
            bytes: 0,
            next_seq: first_seq,
        })
    }

    /// How much all of them hold, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes a batch after all others; `next_seq` is the sequence after its last entry. One that found no room can be written
    /// again.
    pub(super) fn append(&mut self, batch: &[u8], next_seq: u64) -> io::Result<()> {
        let (length, first_seq) = (batch.len() as u64, self.next_seq);
        if self.open.is_none()
            || self.written.back().is_none_or(|last| last.bytes > 0 && last.bytes + length > self.file_bytes_max)
        {
            let path = self.dir.join(super::file_name(first_seq));
            self.open = Some(File::options().append(true).create_new(true).mode(0o600).open(path)?);
            self.written.push_back(Written { first_seq, bytes: 0 });
        }
        let (Some(file), Some(last)) = (&mut self.open, self.written.back_mut()) else {
            return Err(io::Error::other("no spool file is open"));
        };
        if self.is_torn {
            file.set_len(last.bytes)?;
            self.is_torn = false;
        }
        if let Err(error) = effect("spool.append", || file.write_all(batch)) {
            // What a full disk took of the batch is taken back, so that readers see whole batches only.
            self.is_torn = file.set_len(last.bytes).is_err();
            return Err(error);
        }
        last.bytes += length;
        self.bytes += length;
        self.next_seq = next_seq;
        Ok(())
    }

    /// Deletes the files in which every entry is below `next_seq` and that take no more: each but the last, and that one when
    /// it is full, or the disk is.
    pub(super) fn delete_below(&mut self, next_seq: u64, is_disk_full: bool) -> io::Result<()> {
        while let Some(first) = self.written.front() {
            let end = self.written.get(1).map_or(self.next_seq, |second| second.first_seq);
            let has_room = !is_disk_full && first.bytes < self.file_bytes_max;
            let takes_more = self.written.len() == 1 && (has_room || first.bytes == 0);
            if end > next_seq || takes_more {
                break;
            }
            // No effect: the server has all of it, and nobody reads it again.
            match std::fs::remove_file(self.dir.join(super::file_name(first.first_seq))) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            self.bytes -= first.bytes;
            self.written.pop_front();
            if self.written.is_empty() {
                (self.open, self.is_torn) = (None, false);
            }
        }
        Ok(())
    }
}
