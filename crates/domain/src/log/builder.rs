//! Builds batches of lines as they come, and packs them.

use std::{fmt, io};

use zstd::{bulk::Compressor, zstd_safe::CParameter};

use super::{
    BATCH_BYTES_MAX, BATCH_ENTRIES_MAX, BLOCK_HEAD_BYTES, ENTRY_BYTES_MAX, FLAG_NOTE, FLAG_PARTIAL, FLAG_STDERR,
    FLAG_TIME, HEAD_BYTES, LINE_FEED, Stream, TIME_BYTES, batch::Head, entries::count,
};
use crate::UnixMicros;

/// The length of entries from which on packing them is tried, in bytes. A batch is short where output is slow; many of
/// those are packed together later.
pub const PACKED_BYTES_MIN: usize = 4 * 1024;
/// The fastest of the levels that are meant for use, with a table of 16 KiB instead of 64 KiB: beside whoever reads the
/// output, the larger one does not stay in the processor's first cache, which costs a third of the time and gains nothing.
const SETTINGS: [CParameter; 3] = [CParameter::CompressionLevel(1), CParameter::HashLog(12), CParameter::MinMatch(6)];

/// Builds batches of lines as they come.
#[derive(Debug)]
pub struct BatchBuilder {
    next_seq: u64,
    count: u32,
    newest_at: UnixMicros,
    last: Option<Block>,
    /// Room for the head, then the blocks.
    bytes: Vec<u8>,
}

/// The block that was added last.
#[derive(Debug, Clone, Copy)]
struct Block {
    head_at: usize,
    at: UnixMicros,
    stream: Stream,
    length: usize,
    /// Whether its last line has its line feed: others can follow.
    is_whole: bool,
}

impl Block {
    /// The length as it stands in the head: an entry's bound is far below 2^24.
    fn length_bytes(self) -> [u8; 3] {
        let [a, b, c, _] = (self.length as u32).to_le_bytes();
        [a, b, c]
    }
}

impl BatchBuilder {
    /// A builder whose first entry has the sequence `next_seq`, from 1.
    pub fn new(next_seq: u64) -> Self {
        Self { next_seq, count: 0, newest_at: UnixMicros(i64::MIN), last: None, bytes: vec![0; HEAD_BYTES] }
    }

    /// The sequence that the next entry gets.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// How many entries were added since the last batch.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Whether nothing was added since the last batch.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The length of the batch as it stands, in bytes, before it is packed.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Adds lines, each with its line feed, that came at the same time, or a piece of a line: the last may be without one,
    /// and go on later if it is `partial`. Returns false, and adds nothing, if they do not fit: there must be some, of at
    /// most [`ENTRY_BYTES_MAX`] bytes together.
    pub fn push(&mut self, at: UnixMicros, stream: Stream, partial: bool, data: &[u8]) -> bool {
        let count = count(data);
        if !self.fits(count, data) {
            return false;
        }
        let is_whole = data.ends_with(&[LINE_FEED]);
        match &mut self.last {
            Some(last) if is_whole && last.takes(at, stream, data.len()) => {
                last.length += data.len();
                self.bytes[last.head_at + 1..last.head_at + BLOCK_HEAD_BYTES].copy_from_slice(&last.length_bytes());
            }
            _ => {
                let flags = [(stream == Stream::Stderr, FLAG_STDERR), (partial && !is_whole, FLAG_PARTIAL)];
                let flags = flags.iter().filter(|(is_set, _)| *is_set).fold(0, |all, (_, flag)| all | flag);
                self.begin_block(Block { head_at: self.len(), at, stream, length: data.len(), is_whole }, flags);
            }
        }
        self.add(at, count, data);
        true
    }

    /// Adds a note. Returns false, and adds nothing, if it does not fit: it has no line feed, and 1 to [`ENTRY_BYTES_MAX`] bytes.
    pub fn note(&mut self, at: UnixMicros, data: &[u8]) -> bool {
        if !self.fits(1, data) || memchr::memchr(LINE_FEED, data).is_some() {
            return false;
        }
        // Nothing goes into its block.
        let block = Block { head_at: self.len(), at, stream: Stream::Stdout, length: data.len(), is_whole: false };
        self.begin_block(block, FLAG_NOTE);
        self.add(at, 1, data);
        true
    }

    fn fits(&self, count: u32, data: &[u8]) -> bool {
        let length = BLOCK_HEAD_BYTES + TIME_BYTES + data.len();
        (1..=ENTRY_BYTES_MAX).contains(&data.len())
            && self.count + count <= BATCH_ENTRIES_MAX
            && self.len() + length <= HEAD_BYTES + BATCH_BYTES_MAX
    }

    fn add(&mut self, at: UnixMicros, count: u32, data: &[u8]) {
        self.bytes.extend_from_slice(data);
        self.newest_at = self.newest_at.max(at);
        self.count += count;
        self.next_seq += u64::from(count);
    }

    fn begin_block(&mut self, block: Block, flags: u8) {
        let has_time = self.last.is_none_or(|last| last.at != block.at);
        let flags = if has_time { flags | FLAG_TIME } else { flags };
        self.bytes.push(flags);
        self.bytes.extend_from_slice(&block.length_bytes());
        if has_time {
            self.bytes.extend_from_slice(&block.at.0.to_le_bytes());
        }
        self.last = Some(block);
    }

    /// Takes what was added as a batch that is yet to be packed, and begins the next in `room`, whatever lies in it; nothing
    /// while it is empty.
    pub fn take(&mut self, room: &mut Vec<u8>) -> Option<Unpacked> {
        if self.count == 0 {
            return None;
        }
        room.clear();
        room.resize(HEAD_BYTES, 0);
        let bytes = std::mem::replace(&mut self.bytes, std::mem::take(room));
        let first_seq = self.next_seq - u64::from(self.count);
        let batch = Unpacked { first_seq, count: self.count, newest_at: self.newest_at, bytes };
        (self.count, self.newest_at, self.last) = (0, UnixMicros(i64::MIN), None);
        Some(batch)
    }

    /// Hands the finished batch to `write` and begins the next; nothing happens while it is empty.
    pub fn finish<E>(&mut self, write: impl FnOnce(&[u8]) -> Result<(), E>) -> Result<(), E> {
        self.take(&mut Vec::new()).map_or(Ok(()), |mut batch| write(batch.pack(&mut Packer::default())))
    }
}

/// A batch that is whole but for its head.
#[derive(Debug)]
pub struct Unpacked {
    first_seq: u64,
    count: u32,
    newest_at: UnixMicros,
    /// Room for the head, then the blocks.
    bytes: Vec<u8>,
}

impl Unpacked {
    /// Whether it is long enough that packing it is tried: that takes a while.
    pub fn is_long(&self) -> bool {
        self.bytes.len() - HEAD_BYTES >= PACKED_BYTES_MIN
    }

    /// The batch as it travels.
    pub fn pack<'a>(&'a mut self, packer: &'a mut Packer) -> &'a [u8] {
        let length = (self.bytes.len() - HEAD_BYTES) as u32;
        let batch = if self.is_long() { packer.pack(&mut self.bytes) } else { &mut self.bytes[..] };
        let stored = (batch.len() - HEAD_BYTES) as u32;
        let Self { first_seq, count, newest_at, .. } = *self;
        let (room, body) = batch.split_at_mut(HEAD_BYTES);
        room.copy_from_slice(&Head { first_seq, count, newest_at, length, stored }.write(body));
        batch
    }

    /// Its memory, for another.
    pub fn into_room(self) -> Vec<u8> {
        self.bytes
    }
}

impl Block {
    /// Whether as many bytes of lines, of that time and stream, go into it as well.
    fn takes(&self, at: UnixMicros, stream: Stream, length: usize) -> bool {
        self.is_whole && (self.at, self.stream) == (at, stream) && self.length + length <= ENTRY_BYTES_MAX
    }
}

/// Packs what follows a head; what that takes is made when there is something to pack, and kept.
#[derive(Default)]
pub struct Packer {
    compressor: Option<Compressor<'static>>,
    packed: Vec<u8>,
}

impl Packer {
    /// The batch with room for its head that is shorter: `plain`, or a packed one.
    fn pack<'a>(&'a mut self, plain: &'a mut [u8]) -> &'a mut [u8] {
        if self.compressor.is_none() {
            // Fails only for want of memory; then the batch stays as it is, which is one of the two ways to write it.
            self.compressor = compressor().ok();
        }
        let Some(compressor) = &mut self.compressor else { return plain };
        if self.packed.len() < plain.len() {
            self.packed.resize(plain.len(), 0);
        }
        // One byte less: what is not shorter does not fit, and stays as it is.
        let room = &mut self.packed[HEAD_BYTES..plain.len() - 1];
        match compressor.compress_to_buffer(&plain[HEAD_BYTES..], room) {
            Ok(stored) => &mut self.packed[..HEAD_BYTES + stored],
            Err(_) => plain,
        }
    }
}

fn compressor() -> io::Result<Compressor<'static>> {
    let mut compressor = Compressor::default();
    SETTINGS.into_iter().try_for_each(|setting| compressor.set_parameter(setting))?;
    Ok(compressor)
}

impl fmt::Debug for Packer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packer").finish_non_exhaustive()
    }
}
