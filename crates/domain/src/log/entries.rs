//! The entries of a batch that was opened.

use std::{borrow::Cow, cell::RefCell};

use zstd::bulk::Decompressor;

use super::{
    BatchError, ENTRY_BYTES_MAX, ENTRY_HEAD_BYTES, Entry, FLAG_PARTIAL, FLAG_STDERR, FLAG_TIME, Stream, TIME_BYTES,
    batch::Head,
};
use crate::UnixMicros;

/// The entries of one batch, checked: reading them cannot fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entries<'a> {
    first_seq: u64,
    count: u32,
    bytes: Cow<'a, [u8]>,
}

impl<'a> Entries<'a> {
    pub(super) fn open(head: &Head, is_packed: bool, body: &'a [u8]) -> Result<Self, BatchError> {
        let bytes = if is_packed { Cow::Owned(unpack(body, head.length as usize)?) } else { Cow::Borrowed(body) };
        let mut walk = Walk::new(&bytes);
        let mut newest_at = None;
        for _ in 0..head.count {
            let (flags, at, data) = walk.next().ok_or(BatchError::Entries)?;
            if data.len() > ENTRY_BYTES_MAX || flags & !(FLAG_STDERR | FLAG_PARTIAL | FLAG_TIME) != 0 {
                return Err(BatchError::Entries);
            }
            newest_at = newest_at.max(Some(at));
        }
        if !walk.rest.is_empty() || newest_at != Some(head.newest_at) {
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

    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = Entry<'_>> {
        Walk::new(&self.bytes).zip(self.first_seq..).map(|((flags, at, data), seq)| {
            let stream = if flags & FLAG_STDERR == 0 { Stream::Stdout } else { Stream::Stderr };
            Entry { seq, at, stream, partial: flags & FLAG_PARTIAL != 0, data }
        })
    }

    /// The same, apart from the bytes of the batch.
    pub fn into_owned(self) -> Entries<'static> {
        Entries { bytes: Cow::Owned(self.bytes.into_owned()), ..self }
    }
}

/// Goes from entry to entry, as far as they are whole: flags, time and data of each.
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
    type Item = (u8, UnixMicros, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (&[flags, a, b, c], mut rest) = self.rest.split_first_chunk::<ENTRY_HEAD_BYTES>()?;
        let mut at = self.last_at;
        if flags & FLAG_TIME != 0 {
            let (time, after) = rest.split_first_chunk::<TIME_BYTES>()?;
            at = Some(UnixMicros(i64::from_le_bytes(*time)));
            // There is one way to write a batch.
            if at == self.last_at {
                return None;
            }
            rest = after;
        }
        let (data, rest) = rest.split_at_checked(u32::from_le_bytes([a, b, c, 0]) as usize)?;
        (self.rest, self.last_at) = (rest, at);
        Some((flags, at?, data))
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
