//! The agent's view of a spool: whole, checked batches in order, from any sequence on, also while they are being written.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use holm_domain::log::{BATCH_BYTES_MAX, Batch, BatchError, HEAD_BYTES};
use rustix::{
    fs::{CWD, Mode, OFlags},
    io::Errno,
};

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
    current: Option<Current>,
}

/// The file that is being read.
#[derive(Debug)]
struct Current {
    file: File,
    /// The sequence in its name.
    first_seq: u64,
    /// What lies before was read.
    offset: u64,
}

/// The sequence of the first entry that lies in the spool of the attempt whose folder is `run_dir`; nothing while no entry
/// was written, or all were acknowledged.
pub fn first_seq(run_dir: &Path) -> io::Result<Option<u64>> {
    Ok(files(&run_dir.join(SPOOL_DIR_NAME))?.first().copied())
}

/// The sequences by which the files are named, in order; none where there is no spool.
fn files(dir: &Path) -> io::Result<Vec<u64>> {
    match super::files(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed,
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
            // Before the look at the current file: once there is a later one, nothing is added to it.
            let following = self.following_file()?;
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
            match following {
                Some(first_seq) if chunk.bytes.is_empty() => self.leave_for(first_seq)?,
                _ => return Ok(chunk),
            }
        }
    }

    /// Opens the file that holds `next_seq`: the last one that begins at or before it.
    fn open_file(&mut self) -> Result<bool, Error> {
        let files = files(&self.dir)?;
        let Some(&first) = files.iter().rfind(|&&first| first <= self.next_seq) else {
            return match files.first() {
                Some(&found) => Err(Error::Gap { wanted: self.next_seq, found }),
                None => Ok(false),
            };
        };
        let path = self.dir.join(super::file_name(first));
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
            // All of it was acknowledged since, to an earlier agent perhaps: the next look sees what there is.
            Err(Errno::NOENT) => return Ok(false),
            opened => opened.map_err(io::Error::from)?,
        };
        self.current = Some(Current { file: File::from(file), first_seq: first, offset: 0 });
        Ok(true)
    }

    /// Reads whole batches from the current file; nothing at its end, or at a batch that is not whole yet. What lies before
    /// the wanted entry is passed over, piece by piece.
    fn read_batches(&mut self, limit: usize) -> Result<Option<(Vec<u8>, u64, u64)>, Error> {
        let Some(Current { file, offset, .. }) = &mut self.current else { return Ok(None) };
        let damaged = |problem| Error::Damaged { next_seq: self.next_seq, problem };
        loop {
            let left = file.metadata()?.len().saturating_sub(*offset);
            let mut bytes = vec![0; limit.min(usize::try_from(left).unwrap_or(limit))];
            let length = read_up_to(file, &mut bytes, *offset)?;
            bytes.truncate(length);
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
                // A batch that begins before the wanted entry and holds it is handed over whole: the receiver drops what
                // it has.
                if batch.first_seq() > next || (first.is_some() && batch.first_seq() != next) {
                    return Err(Error::Gap { wanted: next, found: batch.first_seq() });
                }
                first.get_or_insert(batch.first_seq());
                next = batch.last_seq() + 1;
            }
            *offset += end as u64;
            match first {
                Some(first) => {
                    bytes.truncate(end);
                    bytes.drain(..skipped);
                    return Ok(Some((bytes, first, next)));
                }
                None if end == 0 => return Ok(None),
                None => {}
            }
        }
    }

    /// The sequence in the name of the file after the current one.
    fn following_file(&self) -> Result<Option<u64>, Error> {
        let Some(current) = &self.current else { return Ok(None) };
        Ok(files(&self.dir)?.into_iter().find(|first| *first > current.first_seq))
    }

    /// Leaves the current file, which was read to its end, for the one that begins with `first_seq`.
    fn leave_for(&mut self, first_seq: u64) -> Result<(), Error> {
        let Some(Current { file, offset, .. }) = &self.current else { return Ok(()) };
        // The writer is done with it: bytes that are left in it are no batch, and never will be.
        if file.metadata()?.len() > *offset {
            return Err(Error::Damaged { next_seq: self.next_seq, problem: BatchError::Truncated });
        }
        if first_seq != self.next_seq {
            return Err(Error::Gap { wanted: self.next_seq, found: first_seq });
        }
        self.current = None;
        Ok(())
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
