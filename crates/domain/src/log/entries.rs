//! The entries of a batch that was opened.

use std::{borrow::Cow, cell::RefCell};

use zstd::bulk::Decompressor;

use super::{BatchError, ENTRY_BYTES_MAX, ENTRY_HEAD_BYTES, Entry, FLAG_PARTIAL, FLAG_STDERR, Stream, batch::Head};
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
        let (mut rest, mut newest_at) = (&bytes[..], None);
        for _ in 0..head.count {
            let (flags, at, data) = take(&mut rest).ok_or(BatchError::Entries)?;
            if data.len() > ENTRY_BYTES_MAX || flags & !(FLAG_STDERR | FLAG_PARTIAL) != 0 {
                return Err(BatchError::Entries);
            }
            newest_at = newest_at.max(Some(at));
        }
        if !rest.is_empty() || newest_at != Some(head.newest_at) {
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
        let (mut rest, mut seqs) = (&self.bytes[..], self.first_seq..);
        std::iter::from_fn(move || {
            let (flags, at, data) = take(&mut rest)?;
            let stream = if flags & FLAG_STDERR == 0 { Stream::Stdout } else { Stream::Stderr };
            Some(Entry { seq: seqs.next()?, at, stream, partial: flags & FLAG_PARTIAL != 0, data })
        })
    }

    /// The same, apart from the bytes of the batch.
    pub fn into_owned(self) -> Entries<'static> {
        Entries { bytes: Cow::Owned(self.bytes.into_owned()), ..self }
    }
}

/// Flags, time and data of the entry at the start of `rest`, if it is whole.
fn take<'a>(rest: &mut &'a [u8]) -> Option<(u8, UnixMicros, &'a [u8])> {
    let (&[a, b, c, d, flags, ref at @ ..], after) = rest.split_first_chunk::<ENTRY_HEAD_BYTES>()?;
    let (data, after) = after.split_at_checked(u32::from_le_bytes([a, b, c, d]) as usize)?;
    *rest = after;
    Some((flags, UnixMicros(i64::from_le_bytes(*at)), data))
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
