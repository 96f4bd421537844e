//! A batch as it travels: its head is read, what follows is checked and left as it is.

use super::{BATCH_BYTES_MAX, BATCH_ENTRIES_MAX, BatchError, Entries, HEAD_BYTES, MAGIC};
use crate::UnixMicros;

/// What of a head the checksum covers.
const COVERED: std::ops::Range<usize> = MAGIC.len()..HEAD_BYTES - 4;

/// What a batch begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) first_seq: u64,
    pub(super) count: u32,
    pub(super) newest_at: UnixMicros,
    /// The length of the entries, in bytes.
    pub(super) length: u32,
    /// The length of what follows, in bytes; the same, unless they are packed.
    pub(super) stored: u32,
}

/// A batch that was checked as a whole: it is what was written, and its entries can be those that its head tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch<'a> {
    head: Head,
    body: &'a [u8],
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], BatchError> {
    let (head, rest) = bytes.split_first_chunk::<N>().ok_or(BatchError::Truncated)?;
    *bytes = rest;
    Ok(*head)
}

impl Head {
    /// Reads the head at the start of `bytes`, and the checksum in it.
    fn read(mut bytes: &[u8]) -> Result<(Self, u32), BatchError> {
        if take(&mut bytes)? != MAGIC {
            return Err(BatchError::Magic);
        }
        let first_seq = u64::from_le_bytes(take(&mut bytes)?);
        let count = u32::from_le_bytes(take(&mut bytes)?);
        let newest_at = UnixMicros(i64::from_le_bytes(take(&mut bytes)?));
        let length = u32::from_le_bytes(take(&mut bytes)?);
        let stored = u32::from_le_bytes(take(&mut bytes)?);
        let checksum = u32::from_le_bytes(take(&mut bytes)?);
        if length.max(stored) as usize > BATCH_BYTES_MAX || count > BATCH_ENTRIES_MAX {
            return Err(BatchError::TooLong);
        }
        Ok((Self { first_seq, count, newest_at, length, stored }, checksum))
    }

    /// The head of a batch of which `body` follows.
    pub(super) fn write(&self, body: &[u8]) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        let parts: [&[u8]; 6] = [
            &MAGIC,
            &self.first_seq.to_le_bytes(),
            &self.count.to_le_bytes(),
            &self.newest_at.0.to_le_bytes(),
            &self.length.to_le_bytes(),
            &self.stored.to_le_bytes(),
        ];
        let mut at = 0;
        for part in parts {
            bytes[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        let checksum = checksum(&bytes[COVERED], body);
        bytes[at..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Whether there can be such entries.
    fn is_sound(&self) -> bool {
        self.count > 0
            && self.first_seq > 0
            && self.first_seq.checked_add(u64::from(self.count)).is_some()
            && self.count <= self.length
            && self.stored <= self.length
    }
}

fn checksum(covered: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(covered);
    hasher.update(body);
    hasher.finalize()
}

impl<'a> Batch<'a> {
    /// Reads the batch at the start of `bytes`; returns it and what follows it.
    pub fn parse(bytes: &'a [u8]) -> Result<(Batch<'a>, &'a [u8]), BatchError> {
        let (head, sum) = Head::read(bytes)?;
        let (covered, rest) = (&bytes[COVERED], &bytes[HEAD_BYTES..]);
        let (body, rest) = rest.split_at_checked(head.stored as usize).ok_or(BatchError::Truncated)?;
        if checksum(covered, body) != sum {
            return Err(BatchError::Checksum);
        }
        if head.is_sound() { Ok((Batch { head, body }, rest)) } else { Err(BatchError::Entries) }
    }

    /// The length of the whole batch whose head is at the start of `bytes`, without checking more than the head.
    pub fn peek_len(bytes: &[u8]) -> Result<usize, BatchError> {
        Head::read(bytes).map(|(head, _)| HEAD_BYTES + head.stored as usize)
    }

    /// The sequence of the first entry.
    pub fn first_seq(&self) -> u64 {
        self.head.first_seq
    }

    /// The sequence of the last entry.
    pub fn last_seq(&self) -> u64 {
        self.head.first_seq + u64::from(self.head.count) - 1
    }

    /// The newest time of its entries.
    pub fn newest_at(&self) -> UnixMicros {
        self.head.newest_at
    }

    /// Whether its entries are packed: packing it again gains nothing.
    pub fn is_packed(&self) -> bool {
        self.head.stored < self.head.length
    }

    /// Opens it; takes at most [`BATCH_BYTES_MAX`] of memory, whatever the bytes are.
    pub fn read(&self) -> Result<Entries<'a>, BatchError> {
        Entries::open(&self.head, self.is_packed(), self.body)
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
