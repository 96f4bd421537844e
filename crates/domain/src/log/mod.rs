//! Output of a run, and notes on it: entries with a per-run sequence, and the batches in which they are spooled, sent and stored.
//!
//! An entry is one line with its line feed, or a piece of one: bytes are never changed, so the entries of a stream put one
//! after the other are exactly what the command wrote. A batch is written once, by the shim, and travels as the same bytes
//! through spool, agent, server and store to whoever reads the log: on the way it is checked with [`Batch::parse`], and
//! only its reader opens it with [`Batch::read`].
//!
//! Layout of a batch, numbers little-endian: magic `HLB3`, first sequence (8 bytes), number of entries (4), newest time of
//! an entry (8), length of the entries (4), length of what follows the head (4), CRC-32 of everything but the magic and
//! itself (4). What follows is the entries or, where that is shorter, a frame of Zstandard (RFC 8878) with them. Entries lie
//! in blocks: flags (1), the length of the data (3), the time (8) unless it is that of the block before, and the data. Each
//! line feed in the data ends an entry, and so does its end: a block is one entry, or many that came at the same time. A note
//! is an entry in a block of its own, without a line feed: it is none of the output, and whoever reads that is not given it.

mod batch;
mod builder;
mod entries;

pub use batch::{Batch, parse_all};
pub use builder::{BatchBuilder, PACKED_BYTES_MIN, Packer, Unpacked};
pub use entries::Entries;

use serde::{Deserialize, Serialize};

use crate::UnixMicros;

/// The longest data of one block, and so of one entry, in bytes: a longer line is cut into several entries.
pub const ENTRY_BYTES_MAX: usize = 64 * 1024;
/// The most that the entries of one batch take, in bytes; what follows its head is never longer.
pub const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// The most entries of one batch: who looks for one looks at those before it.
pub const BATCH_ENTRIES_MAX: u32 = 128 * 1024;
/// The length of the head of a batch, in bytes.
pub const HEAD_BYTES: usize = 36;
const MAGIC: [u8; 4] = *b"HLB3";
/// What a batch holds of each block beside its time and its data, in bytes.
const BLOCK_HEAD_BYTES: usize = 4;
const TIME_BYTES: usize = 8;
const FLAG_STDERR: u8 = 1;
/// The last line goes on in a later block of the same stream.
const FLAG_PARTIAL: u8 = 2;
/// The block has a time of its own, other than that of the one before.
const FLAG_TIME: u8 = 4;
/// It is a note.
const FLAG_NOTE: u8 = 8;
const LINE_FEED: u8 = b'\n';

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

/// What the shim notes on a run beside its output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Note<'a> {
    /// Its number within the run, from 1, among those of all entries.
    pub seq: u64,
    /// When the shim wrote it.
    pub at: UnixMicros,
    /// What it says.
    pub data: &'a [u8],
}

/// What stands in a log: of the output, or a note.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line<'a> {
    /// A line of the output, or a piece of one.
    Output(Entry<'a>),
    /// A note.
    Note(Note<'a>),
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
    /// It says that it is longer, or has more entries, than a batch may.
    #[error("the batch has more than {BATCH_BYTES_MAX} bytes or {BATCH_ENTRIES_MAX} entries")]
    TooLong,
    /// The bytes are not those that were written.
    #[error("the checksum of the batch is wrong")]
    Checksum,
    /// The entries cannot be unpacked, or not to as many bytes as the head says.
    #[error("the entries of the batch cannot be unpacked")]
    Packing,
    /// There is none, or the sequence overflows, or they are not as long, as many or as new as the head says, or a block is
    /// empty, is longer than may be, or has a flag that there is not or that its data denies.
    #[error("the entries of the batch are malformed")]
    Entries,
}

#[cfg(test)]
mod tests;
