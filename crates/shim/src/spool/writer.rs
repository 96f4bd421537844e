//! The shim's side of a spool: entries become batches, batches files.
//!
//! A batch is written when it has grown to [`BATCH_BYTES`], or [`BATCH_HELD_FOR`] after its first entry. Time is an argument.
//!
//! What always holds: files hold whole batches only, also after a write that failed half-way; no sequence is told as
//! written that is not in a file; memory is bounded by one batch and the beginning of one line of each stream. An error is
//! final: the caller gives the run up.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use holm_domain::{
    BootMicros, UnixMicros,
    log::{BatchBuilder, Stream},
};
use holm_runtime::crash::effect;

use super::lines::{Cutter, Piece};
use crate::protocol::SPOOL_DIR_NAME;

/// The length from which on a batch is written, in bytes.
pub const BATCH_BYTES: usize = 64 * 1024;
/// How long the first entry of a batch waits for others.
pub const BATCH_HELD_FOR: Duration = Duration::from_millis(10);
/// The length that a file does not exceed, in bytes, unless a single batch does.
pub const FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// One instant on both clocks: the boot clock decides, the other one is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// By the boot clock.
    pub boot: BootMicros,
    /// By the clock that people read.
    pub unix: UnixMicros,
}

/// Writes a spool.
#[derive(Debug)]
pub struct Writer {
    cutter: Cutter,
    batches: Batches,
}

impl Writer {
    /// Makes the spool in the attempt's folder. The first entry gets the sequence `first_seq`. From `bytes_max` bytes of
    /// unacknowledged files on, [`Writer::is_full`] asks for a pause.
    pub fn create(run_dir: &Path, first_seq: u64, bytes_max: u64) -> io::Result<Self> {
        let dir = run_dir.join(SPOOL_DIR_NAME);
        match std::fs::DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => {}
            // The agent made it, in a folder where the shim may not rename what is the agent's.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
            Err(error) => return Err(error),
        }
        // Files are deleted whole: with several below the limit, every deletion makes room.
        let files = Files { dir, file_bytes_max: FILE_BYTES_MAX.min(bytes_max / 4), ..Files::default() };
        let builder = BatchBuilder::new(first_seq);
        let batches = Batches { builder, since: None, written_seq: first_seq, bytes_max, files };
        Ok(Self { cutter: Cutter::default(), batches })
    }

    /// The sequence after the last entry that is in a file.
    pub fn next_seq(&self) -> u64 {
        self.batches.written_seq
    }

    /// Whether so much was not acknowledged that the reader of the output has to pause.
    pub fn is_full(&self) -> bool {
        self.batches.files.bytes >= self.batches.bytes_max
    }

    /// Takes output that arrived at `now`.
    pub fn push(&mut self, stream: Stream, data: &[u8], now: Now) -> io::Result<()> {
        let Self { cutter, batches } = self;
        cutter.push(stream, data, now.boot, |piece| batches.push(piece, now))
    }

    /// When [`Writer::tick`] is due next.
    pub fn next_tick(&self) -> Option<BootMicros> {
        let batch = self.batches.since.map(|since| since.plus(BATCH_HELD_FOR));
        [batch, self.cutter.next_tick()].into_iter().flatten().min()
    }

    /// Writes what has waited for long enough.
    pub fn tick(&mut self, now: Now) -> io::Result<()> {
        let Self { cutter, batches } = self;
        cutter.tick(now.boot, |piece| batches.push(piece, now))?;
        if batches.since.is_some_and(|since| now.boot >= since.plus(BATCH_HELD_FOR)) {
            batches.write()?;
        }
        Ok(())
    }

    /// Writes everything: the output has ended.
    pub fn finish(&mut self, now: Now) -> io::Result<()> {
        let Self { cutter, batches } = self;
        cutter.finish(|piece| batches.push(piece, now))?;
        batches.write()
    }

    /// Deletes the finished files in which every entry is below `next_seq`: those are stored.
    pub fn acked(&mut self, next_seq: u64) -> io::Result<()> {
        self.batches.files.delete_below(next_seq)
    }
}

/// The batch that is being filled, and where it goes.
#[derive(Debug)]
struct Batches {
    builder: BatchBuilder,
    since: Option<BootMicros>,
    written_seq: u64,
    bytes_max: u64,
    files: Files,
}

impl Batches {
    fn push(&mut self, piece: Piece<'_>, now: Now) -> io::Result<()> {
        if !self.builder.push(now.unix, piece.stream, piece.partial, piece.data) {
            // Neither can be: pieces and batches are cut far below what a batch holds.
            return Err(io::Error::other("an entry does not fit into a batch"));
        }
        self.since.get_or_insert(now.boot);
        if self.builder.len() >= BATCH_BYTES { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> io::Result<()> {
        let Self { builder, files, written_seq, .. } = self;
        builder.finish(|bytes| files.append(*written_seq, bytes))?;
        self.written_seq = self.builder.next_seq();
        self.since = None;
        Ok(())
    }
}

/// A file of the spool.
#[derive(Debug)]
struct Written {
    first_seq: u64,
    bytes: u64,
}

/// The files of a spool; the last of `written` is the one that is open.
#[derive(Debug, Default)]
struct Files {
    dir: PathBuf,
    file_bytes_max: u64,
    written: VecDeque<Written>,
    open: Option<File>,
    bytes: u64,
}

impl Files {
    fn append(&mut self, first_seq: u64, batch: &[u8]) -> io::Result<()> {
        let length = batch.len() as u64;
        if self.open.is_none() || self.written.back().is_none_or(|last| last.bytes + length > self.file_bytes_max) {
            let path = self.dir.join(super::file_name(first_seq));
            self.open = Some(File::options().append(true).create_new(true).mode(0o600).open(path)?);
            self.written.push_back(Written { first_seq, bytes: 0 });
        }
        let (Some(file), Some(last)) = (&mut self.open, self.written.back_mut()) else {
            return Err(io::Error::other("no spool file is open"));
        };
        if let Err(error) = effect("spool.append", || file.write_all(batch)) {
            // What a full disk took of the batch is taken back, so that readers see whole batches only.
            file.set_len(last.bytes)?;
            return Err(error);
        }
        last.bytes += length;
        self.bytes += length;
        Ok(())
    }

    fn delete_below(&mut self, next_seq: u64) -> io::Result<()> {
        while let [first, second, ..] = self.written.make_contiguous() {
            if second.first_seq > next_seq {
                break;
            }
            match std::fs::remove_file(self.dir.join(super::file_name(first.first_seq))) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            self.bytes -= first.bytes;
            self.written.pop_front();
        }
        Ok(())
    }
}
