//! The entries of a batch that was opened.

use std::{borrow::Cow, cell::RefCell};

use zstd::bulk::Decompressor;

use super::{
    BLOCK_HEAD_BYTES, BatchError, ENTRY_BYTES_MAX, Entry, FLAG_NOTE, FLAG_PARTIAL, FLAG_STDERR, FLAG_TIME, LINE_FEED,
    Line, Note, Stream, TIME_BYTES, batch::Head,
};
use crate::UnixMicros;

/// The entries of one batch, checked: reading them cannot fail.
#[derive(Debug, Clone)]
pub struct Entries<'a> {
    first_seq: u64,
    count: u32,
    bytes: Cow<'a, [u8]>,
}

/// The same entries, in whatever blocks they lie.
impl PartialEq for Entries<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.lines().eq(other.lines())
    }
}

impl Eq for Entries<'_> {}

impl<'a> Entries<'a> {
    pub(super) fn open(head: &Head, is_packed: bool, body: &'a [u8]) -> Result<Self, BatchError> {
        let bytes = if is_packed { Cow::Owned(unpack(body, head.length as usize)?) } else { Cow::Borrowed(body) };
        let (mut walk, mut newest_at, mut entries) = (Walk::new(&bytes), None, 0);
        while !walk.rest.is_empty() {
            let block = walk.next().filter(Block::is_sound).ok_or(BatchError::Entries)?;
            newest_at = newest_at.max(Some(block.at));
            entries += count(block.data);
        }
        if entries != head.count || newest_at != Some(head.newest_at) {
            return Err(BatchError::Entries);
        }
        Ok(Self { first_seq: head.first_seq, count: head.count, bytes })
    }

    /// The sequence of the first entry.
    pub fn first_seq(&self) -> u64 {
        self.first_seq
    }

    /// The sequence of the last entry.
    pub fn last_seq(&self) -> u64 {
        self.first_seq + u64::from(self.count) - 1
    }

    /// The output, in order.
    pub fn iter(&self) -> impl Iterator<Item = Entry<'_>> {
        self.lines().filter_map(|line| if let Line::Output(entry) = line { Some(entry) } else { None })
    }

    /// What was noted beside it, in order.
    pub fn notes(&self) -> impl Iterator<Item = Note<'_>> {
        self.lines().filter_map(|line| if let Line::Note(note) = line { Some(note) } else { None })
    }

    /// Both, in order: they are numbered without a gap.
    pub fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        Lines { walk: Walk::new(&self.bytes), block: None, seq: self.first_seq }
    }

    /// The same, apart from the bytes of the batch.
    pub fn into_owned(self) -> Entries<'static> {
        Entries { bytes: Cow::Owned(self.bytes.into_owned()), ..self }
    }
}

/// How many entries there are in the data of a block: at most as many as bytes.
pub(super) fn count(data: &[u8]) -> u32 {
    let line_feeds = memchr::memchr_iter(LINE_FEED, data).count();
    line_feeds as u32 + u32::from(!data.ends_with(&[LINE_FEED]))
}

/// Divides blocks after each line feed.
struct Lines<'a> {
    walk: Walk<'a>,
    /// What is left of the block.
    block: Option<Block<'a>>,
    seq: u64,
}

impl<'a> Iterator for Lines<'a> {
    type Item = Line<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let block = self.block.take().or_else(|| self.walk.next())?;
        let end = memchr::memchr(LINE_FEED, block.data).map_or(block.data.len(), |at| at + 1);
        let (data, rest) = block.data.split_at(end);
        self.block = (!rest.is_empty()).then_some(Block { data: rest, ..block });
        let seq = self.seq;
        self.seq += 1;
        if block.is_note() {
            return Some(Line::Note(Note { seq, at: block.at, data }));
        }
        let stream = if block.flags & FLAG_STDERR == 0 { Stream::Stdout } else { Stream::Stderr };
        // No block that goes on ends with a line feed.
        let partial = block.flags & FLAG_PARTIAL != 0 && rest.is_empty();
        Some(Line::Output(Entry { seq, at: block.at, stream, partial, data }))
    }
}

#[derive(Debug, Clone, Copy)]
struct Block<'a> {
    flags: u8,
    at: UnixMicros,
    data: &'a [u8],
}

impl Block<'_> {
    fn is_note(&self) -> bool {
        self.flags & FLAG_NOTE != 0
    }

    /// Whether a builder can have made it.
    fn is_sound(&self) -> bool {
        if self.is_note() {
            let is_short = (1..=ENTRY_BYTES_MAX).contains(&self.data.len());
            return is_short
                && self.flags & !(FLAG_NOTE | FLAG_TIME) == 0
                && memchr::memchr(LINE_FEED, self.data).is_none();
        }
        let goes_on = self.flags & FLAG_PARTIAL != 0;
        (1..=ENTRY_BYTES_MAX).contains(&self.data.len())
            && self.flags & !(FLAG_STDERR | FLAG_PARTIAL | FLAG_TIME) == 0
            && !(goes_on && self.data.ends_with(&[LINE_FEED]))
    }
}

/// Goes from block to block, as far as they are whole.
struct Walk<'a> {
    rest: &'a [u8],
    last_at: Option<UnixMicros>,
}

impl<'a> Walk<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, last_at: None }
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = Block<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let (&[flags, a, b, c], mut rest) = self.rest.split_first_chunk::<BLOCK_HEAD_BYTES>()?;
        let mut at = self.last_at;
        if flags & FLAG_TIME != 0 {
            let (time, after) = rest.split_first_chunk::<TIME_BYTES>()?;
            at = Some(UnixMicros(i64::from_le_bytes(*time)));
            // A time is written where it changes.
            if at == self.last_at {
                return None;
            }
            rest = after;
        }
        let (data, rest) = rest.split_at_checked(u32::from_le_bytes([a, b, c, 0]) as usize)?;
        (self.rest, self.last_at) = (rest, at);
        Some(Block { flags, at: at?, data })
    }
}

thread_local! {
    /// Making one takes longer than unpacking a batch.
    static UNPACKER: RefCell<Decompressor<'static>> = RefCell::default();
}

/// Exactly `length` bytes, or an error.
fn unpack(packed: &[u8], length: usize) -> Result<Vec<u8>, BatchError> {
    let mut bytes = Vec::with_capacity(length);
    let unpacked = UNPACKER.with_borrow_mut(|unpacker| unpacker.decompress_to_buffer(packed, &mut bytes));
    if unpacked.is_ok() && bytes.len() == length { Ok(bytes) } else { Err(BatchError::Packing) }
}
