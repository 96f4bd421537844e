//! The agent's view of a spool: whole, checked batches in order, from any sequence on, also while they are being written.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use holm_domain::log::{BATCH_BYTES_MAX, Batch, BatchError, HEAD_BYTES};
use rustix::fs::{CWD, Mode, OFlags};

use crate::protocol::SPOOL_DIR_NAME;

/// Why a spool cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read.
    #[error("reading the log spool: {0}")]
    Io(#[from] io::Error),
    /// A batch that is not the last one is not what was written.
    #[error("the log spool is damaged at sequence {next_seq}: {problem}")]
    Damaged {
        /// The sequence that was to follow.
        next_seq: u64,
        /// What is wrong.
        problem: BatchError,
    },
    /// The entries that were to follow are not there.
    #[error("the log spool goes on at sequence {found} where {wanted} was to follow")]
    Gap {
        /// The sequence that was to follow.
        wanted: u64,
        /// The one that is there.
        found: u64,
    },
}

/// Batches that follow each other, as they are to be sent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chunk {
    /// The batches; empty when there is nothing new.
    pub bytes: Vec<u8>,
    /// The sequence of the first entry in `bytes`.
    pub first_seq: u64,
    /// The sequence after the last entry in `bytes`.
    pub next_seq: u64,
}

/// Reads a spool in order.
#[derive(Debug)]
pub struct Reader {
    dir: PathBuf,
    next_seq: u64,
    current: Option<(File, u64)>,
}

/// The sequence of the first entry that lies in the spool of the attempt whose folder is `run_dir`; nothing while no entry
/// was written, or all were acknowledged.
pub fn first_seq(run_dir: &Path) -> io::Result<Option<u64>> {
    match super::files(&run_dir.join(SPOOL_DIR_NAME)) {
        Ok(files) => Ok(files.first().copied()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl Reader {
    /// A reader of the spool of the attempt whose folder is `run_dir`, from the entry `next_seq` on.
    pub fn new(run_dir: &Path, next_seq: u64) -> Self {
        Self { dir: run_dir.join(SPOOL_DIR_NAME), next_seq, current: None }
    }

    /// The sequence of the next entry that [`Reader::read`] returns.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Goes on from another sequence, back or forth.
    pub fn seek(&mut self, next_seq: u64) {
        if next_seq != self.next_seq {
            self.next_seq = next_seq;
            self.current = None;
        }
    }

    /// Reads the batches that follow, as many as fit into `bytes_max`, but at least one if one is there. Blocks on the disk.
    pub fn read(&mut self, bytes_max: usize) -> Result<Chunk, Error> {
        let mut chunk = Chunk { bytes: Vec::new(), first_seq: self.next_seq, next_seq: self.next_seq };
        let limit = bytes_max.max(HEAD_BYTES + BATCH_BYTES_MAX);
        loop {
            if self.current.is_none() && !self.open_file()? {
                return Ok(chunk);
            }
            let read = self.read_batches(limit - chunk.bytes.len())?;
            if let Some((batches, first, next)) = read {
                if chunk.bytes.is_empty() {
                    chunk.first_seq = first;
                }
                chunk.next_seq = next;
                self.next_seq = next;
                // The usual case is one piece: it is handed on without a copy.
                if chunk.bytes.is_empty() {
                    chunk.bytes = batches
                } else {
                    chunk.bytes.extend_from_slice(&batches)
                }
                if chunk.bytes.len() >= bytes_max {
                    return Ok(chunk);
                }
                continue;
            }
            if !chunk.bytes.is_empty() || !self.next_file()? {
                return Ok(chunk);
            }
        }
    }

    /// Opens the file that holds `next_seq`: the last one that begins at or before it.
    fn open_file(&mut self) -> Result<bool, Error> {
        let files = match super::files(&self.dir) {
            Ok(files) => files,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let Some(&first) = files.iter().rfind(|&&first| first <= self.next_seq) else {
            return match files.first() {
                Some(&found) => Err(Error::Gap { wanted: self.next_seq, found }),
                None => Ok(false),
            };
        };
        let path = self.dir.join(super::file_name(first));
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(io::Error::from)?;
        self.current = Some((File::from(file), 0));
        Ok(true)
    }

    /// Reads whole batches from the current file; nothing at its end, or at a batch that is not whole yet.
    fn read_batches(&mut self, limit: usize) -> Result<Option<(Vec<u8>, u64, u64)>, Error> {
        let Some((file, offset)) = &mut self.current else { return Ok(None) };
        let mut bytes =
            vec![0; limit.min(usize::try_from(file.metadata()?.len().saturating_sub(*offset)).unwrap_or(limit))];
        let length = read_up_to(file, &mut bytes, *offset)?;
        bytes.truncate(length);
        let damaged = |problem| Error::Damaged { next_seq: self.next_seq, problem };
        let (mut skipped, mut end, mut first, mut next) = (0, 0, None, self.next_seq);
        while end < bytes.len() {
            let batch = match Batch::parse(&bytes[end..]) {
                Ok((batch, _)) => batch,
                Err(BatchError::Truncated) => break,
                Err(problem) => return Err(damaged(problem)),
            };
            end += Batch::peek_len(&bytes[end..]).map_err(damaged)?;
            if first.is_none() && batch.last_seq() < next {
                skipped = end;
                continue;
            }
            // A batch that begins before the wanted entry and holds it is handed over whole: the receiver drops what it has.
            if batch.first_seq() > next || (first.is_some() && batch.first_seq() != next) {
                return Err(Error::Gap { wanted: next, found: batch.first_seq() });
            }
            first.get_or_insert(batch.first_seq());
            next = batch.last_seq() + 1;
        }
        *offset += end as u64;
        let Some(first) = first else { return if end > 0 { self.read_batches(limit) } else { Ok(None) } };
        bytes.truncate(end);
        bytes.drain(..skipped);
        Ok(Some((bytes, first, next)))
    }

    /// Goes on to the file that begins with `next_seq`, once the current one is read to its end.
    fn next_file(&mut self) -> Result<bool, Error> {
        let path = self.dir.join(super::file_name(self.next_seq));
        if self.is_at_start_of(&path)? || !path.exists() {
            return Ok(false);
        }
        // The writer is done with the current file: bytes that are left in it are no batch, and never will be.
        let Some((file, offset)) = &self.current else { return Ok(false) };
        if file.metadata()?.len() > *offset {
            return Err(Error::Damaged { next_seq: self.next_seq, problem: BatchError::Truncated });
        }
        self.current = None;
        Ok(true)
    }

    fn is_at_start_of(&self, path: &Path) -> io::Result<bool> {
        use std::os::unix::fs::MetadataExt as _;
        let (Some((file, _)), Ok(other)) = (&self.current, std::fs::symlink_metadata(path)) else { return Ok(false) };
        Ok(file.metadata()?.ino() == other.ino())
    }
}

fn read_up_to(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut length = 0;
    while length < bytes.len() {
        match file.read_at(&mut bytes[length..], offset + length as u64) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}
