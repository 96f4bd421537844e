//! Builds batches entry by entry.

use std::fmt;

use zstd::bulk::Compressor;

use super::{
    BATCH_BYTES_MAX, BLOCK_HEAD_BYTES, ENTRY_BYTES_MAX, FLAG_PARTIAL, FLAG_STDERR, FLAG_TIME, HEAD_BYTES, LINE_FEED,
    Stream, TIME_BYTES, batch::Head, entries::count,
};
use crate::UnixMicros;

/// The length of entries from which on packing them is tried, in bytes. A batch is short where output is slow; many of
/// those are packed together later.
pub const PACKED_BYTES_MIN: usize = 4 * 1024;
/// The fastest of the levels that are meant for use: the faster ones below 0 save little time and cost half of what is
/// gained.
const LEVEL: i32 = 1;

/// Builds batches entry by entry.
#[derive(Debug)]
pub struct BatchBuilder {
    next_seq: u64,
    count: u32,
    newest_at: UnixMicros,
    last: Option<Block>,
    /// Room for the head, then the blocks.
    bytes: Vec<u8>,
    packer: Packer,
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

impl BatchBuilder {
    /// A builder whose first entry has the sequence `next_seq`, from 1.
    pub fn new(next_seq: u64) -> Self {
        let bytes = vec![0; HEAD_BYTES];
        Self { next_seq, count: 0, newest_at: UnixMicros(i64::MIN), last: None, bytes, packer: Packer::default() }
    }

    /// The sequence that the next entry gets.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
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
        let head = BLOCK_HEAD_BYTES + TIME_BYTES;
        let fits = (1..=ENTRY_BYTES_MAX).contains(&data.len());
        if !fits || self.len() + head + data.len() > HEAD_BYTES + BATCH_BYTES_MAX {
            return false;
        }
        let is_whole = data.ends_with(&[LINE_FEED]);
        match &mut self.last {
            Some(last) if is_whole && last.takes(at, stream, data.len()) => {
                last.length += data.len();
                let [a, b, c, _] = (last.length as u32).to_le_bytes();
                self.bytes[last.head_at + 1..last.head_at + BLOCK_HEAD_BYTES].copy_from_slice(&[a, b, c]);
            }
            _ => self.begin_block(Block { head_at: self.len(), at, stream, length: data.len(), is_whole }, partial),
        }
        self.bytes.extend_from_slice(data);
        self.newest_at = self.newest_at.max(at);
        let count = count(data);
        self.count += count;
        self.next_seq += u64::from(count);
        true
    }

    fn begin_block(&mut self, block: Block, partial: bool) {
        let has_time = self.last.is_none_or(|last| last.at != block.at);
        let is_partial = partial && !block.is_whole;
        let flags = [(block.stream == Stream::Stderr, FLAG_STDERR), (is_partial, FLAG_PARTIAL), (has_time, FLAG_TIME)];
        let flags = flags.iter().filter(|(is_set, _)| *is_set).fold(0, |all, (_, flag)| all | flag);
        let [a, b, c, _] = (block.length as u32).to_le_bytes();
        self.bytes.extend_from_slice(&[flags, a, b, c]);
        if has_time {
            self.bytes.extend_from_slice(&block.at.0.to_le_bytes());
        }
        self.last = Some(block);
    }

    /// Hands the finished batch to `write` and begins the next, if that succeeded; nothing happens while it is empty.
    pub fn finish<E>(&mut self, write: impl FnOnce(&[u8]) -> Result<(), E>) -> Result<(), E> {
        if self.count == 0 {
            return Ok(());
        }
        let length = (self.bytes.len() - HEAD_BYTES) as u32;
        let first_seq = self.next_seq - u64::from(self.count);
        let batch = self.packer.pack(&mut self.bytes);
        let stored = (batch.len() - HEAD_BYTES) as u32;
        let head = Head { first_seq, count: self.count, newest_at: self.newest_at, length, stored };
        let (room, body) = batch.split_at_mut(HEAD_BYTES);
        room.copy_from_slice(&head.write(body));
        let written = write(batch);
        if written.is_ok() {
            self.bytes.truncate(HEAD_BYTES);
            (self.count, self.newest_at, self.last) = (0, UnixMicros(i64::MIN), None);
        }
        written
    }
}

impl Block {
    /// Whether as many bytes of lines, of that time and stream, go into it as well.
    fn takes(&self, at: UnixMicros, stream: Stream, length: usize) -> bool {
        self.is_whole && (self.at, self.stream) == (at, stream) && self.length + length <= ENTRY_BYTES_MAX
    }
}

/// Packs what follows a head; made when there is something to pack.
#[derive(Default)]
struct Packer {
    compressor: Option<Compressor<'static>>,
    packed: Vec<u8>,
}

impl Packer {
    /// The batch with room for its head that is shorter: `plain`, or a packed one.
    fn pack<'a>(&'a mut self, plain: &'a mut [u8]) -> &'a mut [u8] {
        let length = plain.len() - HEAD_BYTES;
        if length < PACKED_BYTES_MIN {
            return plain;
        }
        if self.compressor.is_none() {
            // Fails only for want of memory; then the batch stays as it is, which is one of the two ways to write it.
            self.compressor = Compressor::new(LEVEL).ok();
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

impl fmt::Debug for Packer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packer").finish_non_exhaustive()
    }
}
