//! The shim's side of a spool: entries become batches, batches files.
//!
//! Entries are gathered here ([`Writer::push`]); a batch is due when it has grown to [`BATCH_BYTES`] or [`BATCH_ENTRIES`], or
//! [`BATCH_HELD_FOR`] after its first entry. Packing and writing it is an [`Append`], which another thread can execute while
//! the next batch grows. Time is an argument.
//!
//! What always holds: files hold whole batches only, also after a write that failed half-way; there is one append at a
//! time, in order; no sequence is told as written that is not in a file; memory is bounded by the batch that grows, the one
//! that is away and what that is packed into, and the beginning of one line of each stream. A batch for which the disk has no
//! room is the next one to be written again; any other error is final: the caller gives the run up.

use std::{io, path::Path, time::Duration};

use holm_domain::{
    BootMicros, UnixMicros,
    log::{BatchBuilder, Packer, Stream, Unpacked},
};

use super::{
    files::Files,
    lines::{Cutter, Piece},
};

/// The length from which on a batch is written, in bytes.
pub const BATCH_BYTES: usize = 256 * 1024;
/// The length from which on no more output is taken into a batch, in bytes: it grows beyond [`BATCH_BYTES`] while the one
/// before is written.
pub const BATCH_BYTES_FULL: usize = 768 * 1024;
/// How many entries a batch has from which on it is written, and no more output is taken into it.
pub const BATCH_ENTRIES: u32 = 16 * 1024;
/// How long the first entry of a batch waits for others.
pub const BATCH_HELD_FOR: Duration = Duration::from_millis(10);

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
    batch: Growing,
    written_seq: u64,
    acked_seq: u64,
    bytes_max: u64,
    /// How much the files hold, in bytes, with the append that is away as long as it can be.
    bytes: u64,
    /// Nothing while an append is away with them.
    tools: Option<Tools>,
    /// The batch for which there was no room on the disk; what follows comes after it.
    left: Option<Left>,
}

/// The batch that is being filled.
#[derive(Debug)]
struct Growing {
    builder: BatchBuilder,
    since: Option<BootMicros>,
    /// Nothing follows that it could wait for.
    is_last: bool,
}

/// What an append works with.
#[derive(Debug)]
struct Tools {
    files: Files,
    packer: Packer,
    room: Vec<u8>,
}

/// A batch that is not in a file yet.
#[derive(Debug)]
struct Left {
    batch: Unpacked,
    /// Its length at most, in bytes.
    length: u64,
    next_seq: u64,
}

/// A batch on its way into a file. Its tools are brought back with [`Writer::take_back`] once it was executed.
#[derive(Debug)]
pub struct Append {
    left: Left,
    tools: Tools,
}

/// An append that was executed.
#[derive(Debug)]
pub struct Appended {
    next_seq: u64,
    tools: Tools,
    result: Result<(), (io::Error, Left)>,
}

/// What became of an append.
#[derive(Debug)]
pub enum TakenBack {
    /// It is in a file.
    Written,
    /// The disk had no room for it, and nothing of it is in a file; [`Writer::append`] has it once more.
    NoRoom(io::Error),
}

impl Append {
    /// Whether it takes long enough to be worth another thread.
    pub fn is_long(&self) -> bool {
        self.left.batch.is_long()
    }

    /// Packs the batch and writes it.
    pub fn execute(self) -> Appended {
        let Self { mut left, mut tools } = self;
        let next_seq = left.next_seq;
        let result = match tools.files.append(left.batch.pack(&mut tools.packer), next_seq) {
            Ok(()) => {
                tools.room = left.batch.into_room();
                Ok(())
            }
            Err(error) => Err((error, left)),
        };
        Appended { next_seq, tools, result }
    }
}

impl Writer {
    /// Makes the spool in the attempt's folder. The first entry gets the sequence `first_seq`. From `bytes_max` bytes
    /// on that were not acknowledged, there is no room for output ([`Writer::has_room`]).
    pub fn create(run_dir: &Path, first_seq: u64, bytes_max: u64) -> io::Result<Self> {
        let files = Files::create(run_dir, first_seq, bytes_max)?;
        Ok(Self {
            cutter: Cutter::default(),
            batch: Growing { builder: BatchBuilder::new(first_seq), since: None, is_last: false },
            written_seq: first_seq,
            acked_seq: first_seq,
            bytes_max,
            bytes: 0,
            tools: Some(Tools { files, packer: Packer::default(), room: Vec::new() }),
            left: None,
        })
    }

    /// The sequence after the last entry that is in a file.
    pub fn next_seq(&self) -> u64 {
        self.written_seq
    }

    /// Whether output can be taken. If not, an append has to end, or files have to be acknowledged.
    pub fn has_room(&self) -> bool {
        let growing = &self.batch.builder;
        growing.len() < BATCH_BYTES_FULL
            && growing.count() < BATCH_ENTRIES
            && self.bytes + (growing.len() as u64) < self.bytes_max
    }

    /// Takes output that arrived at `now`. A single piece always fits while there is room.
    pub fn push(&mut self, stream: Stream, data: &[u8], now: Now) -> io::Result<()> {
        let Self { cutter, batch, .. } = self;
        cutter.push(stream, data, now.boot, |piece| batch.push(piece, now))
    }

    /// Takes a note; it always fits while there is room.
    pub fn note(&mut self, data: &[u8], now: Now) -> io::Result<()> {
        self.batch.note(data, now)
    }

    /// When there is something to do next: [`Writer::tick`], or an append that is due; none is while one is away.
    pub fn next_tick(&self) -> Option<BootMicros> {
        let batch = self.batch.due().filter(|_| self.tools.is_some());
        [batch, self.cutter.next_tick()].into_iter().flatten().min()
    }

    /// Gathers the beginnings of lines that were held back for long enough.
    pub fn tick(&mut self, now: Now) -> io::Result<()> {
        let Self { cutter, batch, .. } = self;
        cutter.tick(now.boot, |piece| batch.push(piece, now))
    }

    /// Gathers everything: the output has ended.
    pub fn end(&mut self, now: Now) -> io::Result<()> {
        let Self { cutter, batch, .. } = self;
        batch.is_last = true;
        cutter.finish(|piece| batch.push(piece, now))
    }

    /// The append that is due, if one is and none is away.
    pub fn append(&mut self, now: BootMicros) -> Option<Append> {
        let mut tools = self.tools.take()?;
        let left = self.left.take().or_else(|| self.take_due(now, &mut tools.room));
        let Some(left) = left else {
            self.tools = Some(tools);
            return None;
        };
        self.bytes = tools.files.bytes() + left.length;
        Some(Append { left, tools })
    }

    fn take_due(&mut self, now: BootMicros, room: &mut Vec<u8>) -> Option<Left> {
        self.batch.due().filter(|due| *due <= now)?;
        let length = self.batch.builder.len() as u64;
        let batch = self.batch.take(room)?;
        Some(Left { batch, length, next_seq: self.batch.builder.next_seq() })
    }

    /// Takes an append back that was executed; fails if it did, other than for want of room. Then nothing is written any more:
    /// what followed would leave a gap.
    pub fn take_back(&mut self, appended: Appended) -> io::Result<TakenBack> {
        let Appended { next_seq, tools, result } = appended;
        let taken = match result {
            Ok(()) => {
                self.written_seq = next_seq;
                self.bytes = tools.files.bytes();
                TakenBack::Written
            }
            Err((error, left)) if is_no_room(&error) => {
                self.left = Some(left);
                TakenBack::NoRoom(error)
            }
            Err((error, _)) => return Err(error),
        };
        self.tools = Some(tools);
        Ok(taken)
    }

    /// Notes that every entry below `next_seq` is stored.
    pub fn acked(&mut self, next_seq: u64) {
        self.acked_seq = self.acked_seq.max(next_seq);
    }

    /// Deletes the finished files of which every entry is stored, and while the disk is full others as well; nothing while an
    /// append is away.
    pub fn delete_acked(&mut self) -> io::Result<()> {
        let Some(Tools { files, .. }) = &mut self.tools else { return Ok(()) };
        let deleted = files.delete_below(self.acked_seq, self.left.is_some());
        self.bytes = files.bytes() + self.left.as_ref().map_or(0, |left| left.length);
        deleted
    }
}

/// Whether there was no room on the disk, for whatever reason.
pub fn is_no_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl Growing {
    fn push(&mut self, piece: Piece<'_>, now: Now) -> io::Result<()> {
        if !self.builder.push(now.unix, piece.stream, piece.partial, piece.data) {
            // It cannot be while output is taken only where there is room: a piece and what was held back fit then.
            return Err(io::Error::other("an entry does not fit into a batch"));
        }
        self.since.get_or_insert(now.boot);
        Ok(())
    }

    fn note(&mut self, data: &[u8], now: Now) -> io::Result<()> {
        if !self.builder.note(now.unix, data) {
            return Err(io::Error::other("a note does not fit into a batch"));
        }
        self.since.get_or_insert(now.boot);
        Ok(())
    }

    fn due(&self) -> Option<BootMicros> {
        let is_done = self.is_last || self.builder.len() >= BATCH_BYTES || self.builder.count() >= BATCH_ENTRIES;
        let held_for = if is_done { Duration::ZERO } else { BATCH_HELD_FOR };
        self.since.map(|since| since.plus(held_for))
    }

    fn take(&mut self, room: &mut Vec<u8>) -> Option<Unpacked> {
        self.since = None;
        self.builder.take(room)
    }
}
