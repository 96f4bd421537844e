//! Output of a run: entries with a per-run sequence, and the batches in which they are spooled, sent and stored.
//!
//! An entry is one line with its line feed, or a piece of one: bytes are never changed, so the entries of a stream put one
//! after the other are exactly what the command wrote. A batch is written once, by the shim, and travels as the same bytes
//! through spool, agent, server and store; whoever receives it checks it with [`Batch::parse`].
//!
//! Layout of a batch, numbers little-endian: magic `HLB1`, first sequence (8 bytes), number of entries (4), length of what
//! follows (4), CRC-32 of what follows (4); then for each entry: length of the data (4), flags (1), time (8), data.

use serde::{Deserialize, Serialize};

use crate::UnixMicros;

/// The longest data of one entry, in bytes: a longer line is cut into several entries.
pub const ENTRY_BYTES_MAX: usize = 64 * 1024;
/// The most that one batch holds after its head, in bytes.
pub const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// The length of the head of a batch, in bytes.
pub const HEAD_BYTES: usize = 24;
const ENTRY_HEAD_BYTES: usize = 13;
const MAGIC: [u8; 4] = *b"HLB1";
const FLAG_STDERR: u8 = 1;
const FLAG_PARTIAL: u8 = 2;

/// Where the command wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// File descriptor 1.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

/// One line, or a piece of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its number within the run, from 1.
    pub seq: u64,
    /// When the shim read it.
    pub at: UnixMicros,
    /// Where the command wrote it.
    pub stream: Stream,
    /// Whether the line goes on in a later entry of the same stream.
    pub partial: bool,
    /// The bytes.
    pub data: &'a [u8],
}

/// Why bytes are not a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The bytes end before the batch does.
    #[error("the batch is cut off")]
    Truncated,
    /// The first four bytes are not those of a batch.
    #[error("the bytes do not begin with a batch")]
    Magic,
    /// It says that it is longer than a batch may be.
    #[error("the batch is longer than {BATCH_BYTES_MAX} bytes")]
    TooLong,
    /// The bytes are not those that were written.
    #[error("the checksum of the batch is wrong")]
    Checksum,
    /// The entries do not fill the batch exactly, or one is longer than may be or has a flag that there is not, or the
    /// sequence overflows.
    #[error("the entries of the batch are malformed")]
    Entries,
}

/// A batch that was checked as a whole; reading its entries cannot fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch<'a> {
    first_seq: u64,
    count: u32,
    body: &'a [u8],
}

fn take<'a, const N: usize>(bytes: &mut &'a [u8]) -> Result<&'a [u8; N], BatchError> {
    let (head, rest) = bytes.split_first_chunk::<N>().ok_or(BatchError::Truncated)?;
    *bytes = rest;
    Ok(head)
}

impl<'a> Batch<'a> {
    /// Reads the batch at the start of `bytes`; returns it and what follows it.
    pub fn parse(bytes: &'a [u8]) -> Result<(Batch<'a>, &'a [u8]), BatchError> {
        let mut rest = bytes;
        if *take::<4>(&mut rest)? != MAGIC {
            return Err(BatchError::Magic);
        }
        let first_seq = u64::from_le_bytes(*take(&mut rest)?);
        let count = u32::from_le_bytes(*take(&mut rest)?);
        let length = u32::from_le_bytes(*take(&mut rest)?) as usize;
        let checksum = u32::from_le_bytes(*take(&mut rest)?);
        if length > BATCH_BYTES_MAX {
            return Err(BatchError::TooLong);
        }
        let (body, rest) = rest.split_at_checked(length).ok_or(BatchError::Truncated)?;
        if crc32fast::hash(body) != checksum {
            return Err(BatchError::Checksum);
        }
        let batch = Batch { first_seq, count, body };
        batch.check()?;
        Ok((batch, rest))
    }

    /// The length of the whole batch whose head is at the start of `bytes`, without checking more than the head.
    pub fn peek_len(bytes: &[u8]) -> Result<usize, BatchError> {
        let mut rest = bytes;
        if *take::<4>(&mut rest)? != MAGIC {
            return Err(BatchError::Magic);
        }
        take::<12>(&mut rest)?;
        let length = u32::from_le_bytes(*take(&mut rest)?) as usize;
        if length > BATCH_BYTES_MAX { Err(BatchError::TooLong) } else { Ok(HEAD_BYTES + length) }
    }

    fn check(&self) -> Result<(), BatchError> {
        let mut rest = self.body;
        for _ in 0..self.count {
            let length = u32::from_le_bytes(*take(&mut rest).map_err(|_| BatchError::Entries)?) as usize;
            let [flags] = *take(&mut rest).map_err(|_| BatchError::Entries)?;
            take::<8>(&mut rest).map_err(|_| BatchError::Entries)?;
            if length > ENTRY_BYTES_MAX || flags & !(FLAG_STDERR | FLAG_PARTIAL) != 0 {
                return Err(BatchError::Entries);
            }
            rest = rest.get(length..).ok_or(BatchError::Entries)?;
        }
        let fits = self.count > 0 && self.first_seq > 0 && self.first_seq.checked_add(u64::from(self.count)).is_some();
        if rest.is_empty() && fits { Ok(()) } else { Err(BatchError::Entries) }
    }

    /// The sequence of the first entry.
    pub fn first_seq(&self) -> u64 {
        self.first_seq
    }

    /// The sequence of the last entry.
    pub fn last_seq(&self) -> u64 {
        self.first_seq + u64::from(self.count) - 1
    }

    /// The entries in order.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'a>> + use<'a> {
        let mut rest = self.body;
        let mut seq = self.first_seq;
        std::iter::from_fn(move || {
            let length = u32::from_le_bytes(*take(&mut rest).ok()?) as usize;
            let [flags] = *take(&mut rest).ok()?;
            let at = UnixMicros(i64::from_le_bytes(*take(&mut rest).ok()?));
            let (data, after) = rest.split_at_checked(length)?;
            rest = after;
            let stream = if flags & FLAG_STDERR == 0 { Stream::Stdout } else { Stream::Stderr };
            let entry = Entry { seq, at, stream, partial: flags & FLAG_PARTIAL != 0, data };
            seq += 1;
            Some(entry)
        })
    }
}

/// Every batch in `bytes`, or the first error.
pub fn parse_all(mut bytes: &[u8]) -> Result<Vec<Batch<'_>>, BatchError> {
    let mut batches = Vec::new();
    while !bytes.is_empty() {
        let (batch, rest) = Batch::parse(bytes)?;
        batches.push(batch);
        bytes = rest;
    }
    Ok(batches)
}

/// Builds batches entry by entry.
#[derive(Debug)]
pub struct BatchBuilder {
    next_seq: u64,
    count: u32,
    bytes: Vec<u8>,
}

impl BatchBuilder {
    /// A builder whose first entry has the sequence `next_seq`, from 1.
    pub fn new(next_seq: u64) -> Self {
        Self { next_seq, count: 0, bytes: vec![0; HEAD_BYTES] }
    }

    /// The sequence that the next entry gets.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Whether nothing was added since the last batch.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The length of the batch as it stands, in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether an entry of `length` bytes still fits.
    pub fn has_room(&self, length: usize) -> bool {
        self.bytes.len() + ENTRY_HEAD_BYTES + length <= HEAD_BYTES + BATCH_BYTES_MAX
    }

    /// Adds an entry of at most [`ENTRY_BYTES_MAX`] bytes; returns false, and adds nothing, if it does not fit.
    pub fn push(&mut self, at: UnixMicros, stream: Stream, partial: bool, data: &[u8]) -> bool {
        if data.len() > ENTRY_BYTES_MAX || !self.has_room(data.len()) {
            return false;
        }
        let stderr = if stream == Stream::Stderr { FLAG_STDERR } else { 0 };
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.push(stderr | if partial { FLAG_PARTIAL } else { 0 });
        self.bytes.extend_from_slice(&at.0.to_le_bytes());
        self.bytes.extend_from_slice(data);
        self.count += 1;
        self.next_seq += 1;
        true
    }

    /// Hands the finished batch to `write` and begins the next; nothing happens while it is empty.
    pub fn finish<E>(&mut self, write: impl FnOnce(&[u8]) -> Result<(), E>) -> Result<(), E> {
        if self.count == 0 {
            return Ok(());
        }
        let body = &self.bytes[HEAD_BYTES..];
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let checksum = crc32fast::hash(body);
        let first = self.next_seq - u64::from(self.count);
        self.bytes[..4].copy_from_slice(&MAGIC);
        self.bytes[4..12].copy_from_slice(&first.to_le_bytes());
        self.bytes[12..16].copy_from_slice(&self.count.to_le_bytes());
        self.bytes[16..20].copy_from_slice(&length.to_le_bytes());
        self.bytes[20..24].copy_from_slice(&checksum.to_le_bytes());
        let written = write(&self.bytes);
        if written.is_ok() {
            self.bytes.truncate(HEAD_BYTES);
            self.count = 0;
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn built(first: u64, entries: &[(Vec<u8>, bool, bool)]) -> Vec<u8> {
        let mut builder = BatchBuilder::new(first);
        let mut bytes = Vec::new();
        for (index, (data, stderr, partial)) in entries.iter().enumerate() {
            let stream = if *stderr { Stream::Stderr } else { Stream::Stdout };
            assert!(builder.push(UnixMicros(index as i64), stream, *partial, data));
        }
        let written: Result<(), ()> = builder.finish(|batch| {
            bytes.extend_from_slice(batch);
            Ok(())
        });
        assert_eq!(written, Ok(()));
        bytes
    }

    proptest! {
        #[test]
        fn written_and_read(first in 1u64..u64::MAX / 2, entries in prop::collection::vec(any::<(Vec<u8>, bool, bool)>(), 1..20)) {
            let bytes = built(first, &entries);
            prop_assert_eq!(Batch::peek_len(&bytes), Ok(bytes.len()));
            let (batch, rest) = Batch::parse(&bytes).map_err(|e| TestCaseError::fail(e.to_string()))?;
            prop_assert!(rest.is_empty());
            prop_assert_eq!(batch.last_seq(), first + entries.len() as u64 - 1);
            for (index, (entry, (data, stderr, partial))) in batch.entries().zip(&entries).enumerate() {
                prop_assert_eq!(entry.seq, first + index as u64);
                prop_assert_eq!(entry.data, data.as_slice());
                prop_assert_eq!((entry.stream == Stream::Stderr, entry.partial), (*stderr, *partial));
            }
            prop_assert_eq!(batch.entries().count(), entries.len());
        }

        #[test]
        fn a_flipped_bit_is_found(entries in prop::collection::vec(any::<(Vec<u8>, bool, bool)>(), 1..5), at: prop::sample::Index, bit in 0u8..8) {
            let mut bytes = built(1, &entries);
            let index = at.index(bytes.len());
            bytes[index] ^= 1 << bit;
            // The first sequence is not covered by the checksum: the receiver compares it with what it expects.
            let in_first_seq = (4..12).contains(&index);
            prop_assert!(in_first_seq || parse_all(&bytes).is_err());
        }

        #[test]
        fn rubbish_never_panics(bytes: Vec<u8>) {
            let _ = parse_all(&bytes);
        }
    }

    #[test]
    fn lengths_are_limited() {
        let mut builder = BatchBuilder::new(1);
        assert!(!builder.push(UnixMicros(0), Stream::Stdout, false, &vec![0; ENTRY_BYTES_MAX + 1]));
        while builder.push(UnixMicros(0), Stream::Stdout, false, &vec![0; ENTRY_BYTES_MAX]) {}
        assert!(builder.len() <= HEAD_BYTES + BATCH_BYTES_MAX);
        let mut lie = built(1, &[(vec![1], false, false)]);
        lie[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Batch::parse(&lie), Err(BatchError::TooLong));
    }

    #[test]
    fn a_flag_that_there_is_not_is_refused() {
        for bit in 0..8 {
            let mut bytes = built(1, &[(vec![1], false, false)]);
            bytes[HEAD_BYTES + 4] |= 1 << bit;
            let sum = crc32fast::hash(&bytes[HEAD_BYTES..]);
            bytes[HEAD_BYTES - 4..HEAD_BYTES].copy_from_slice(&sum.to_le_bytes());
            assert_eq!(Batch::parse(&bytes).map(|_| ()), if bit < 2 { Ok(()) } else { Err(BatchError::Entries) });
        }
    }
}
