//! Logs of runs: stored exactly once, read from any sequence on at a cost proportional to what is read.
//!
//! A log is a row of segments without gap from its beginning to its head; a read ends before one that is missing or damaged,
//! and one that would begin there, behind the last too, says that the log is damaged, unless it was deleted. Small appends are
//! rows of their own; large ones, and the small ones once they are many ([`Store::log_seal`]), lie in the blob store with an
//! index row. The head of a log says under which fence and with which sequence the next append is taken; an append locks and
//! moves it, so two appends never both win.

mod pack;
mod sql;

use bytes::Bytes;
use holm_domain::{
    OrgId, RunId, UnixMicros,
    log::{Batch, parse_all},
};

use crate::{
    Backend, Error, Result, Store,
    error::{NUMBER_MAX, limit, page},
};
pub(crate) use sql::log_head;
#[cfg(test)]
pub(crate) use sql::{QUERIES, READ_QUERIES};

/// The most bytes that one append may bring.
pub const LOG_APPEND_BYTES_MAX: usize = 8 * 1024 * 1024;
/// An append of fewer bytes is kept in a row, any other in a blob of its own.
pub const LOG_INLINE_BYTES: usize = 256 * 1024;
/// The most bytes that sealing puts into one blob. A caller seals when so many lie in rows, and at the end of a run.
pub const LOG_SEGMENT_BYTES: usize = 4 * 1024 * 1024;
/// The most bytes that one read may ask for.
pub const LOG_READ_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How often an append looks at the head of the log again that another append moved.
const APPEND_ATTEMPTS: u32 = 8;

/// What became of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogAppended {
    /// It is stored; what of it was stored before is not stored again.
    Stored {
        /// The sequence that the next entry must have.
        next: u64,
        /// How many bytes of this log lie in rows and may be sealed.
        unsealed_bytes: u64,
    },
    /// All of it was stored before.
    Duplicate {
        /// The sequence that the next entry must have.
        next: u64,
    },
    /// It does not follow what is stored; nothing was changed.
    Gap {
        /// The sequence that the next entry must have.
        next: u64,
    },
    /// The fence is not that of a live lease; nothing was changed.
    StaleFence,
}

/// A piece of a log: one or more whole batches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The sequence of its first entry.
    pub first_seq: u64,
    /// The sequence of its last entry.
    pub last_seq: u64,
    /// The batches, as they were appended.
    pub bytes: Bytes,
}

/// What sealing did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sealed {
    /// How many blobs were written.
    pub blobs: u32,
    /// How many bytes went from rows into them.
    pub bytes: u64,
}

/// The most logs of one page.
pub const SEALABLE_PAGE_MAX: u32 = 1_000;

/// A log of which so much lies in rows that it is worth sealing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealable {
    /// The org.
    pub org: OrgId,
    /// The run.
    pub run: RunId,
    /// From how many bytes on it is worth it.
    pub bytes_min: usize,
}

/// One attempt to append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attempt {
    Done(LogAppended),
    /// The head moved while it was looked at.
    Moved,
    /// What comes before `next` is stored already, the rest is not.
    Overlap {
        next: u64,
    },
}

/// Whole batches on their way into the store.
#[derive(Debug, Clone)]
pub(crate) struct Chunk {
    pub(crate) first_seq: u64,
    pub(crate) last_seq: u64,
    /// The newest time of its entries.
    pub(crate) newest_at: UnixMicros,
    pub(crate) bytes: Bytes,
}

impl Store {
    /// Appends whole batches, `first_seq` to `last_seq`, under a lease.
    pub async fn log_append(
        &self,
        org: OrgId,
        run: RunId,
        fence: u64,
        first_seq: u64,
        last_seq: u64,
        bytes: Bytes,
    ) -> Result<LogAppended> {
        limit("bytes of a log append", bytes.len(), LOG_APPEND_BYTES_MAX)?;
        if first_seq == 0 || last_seq < first_seq || last_seq >= NUMBER_MAX || bytes.is_empty() {
            return Err(Error::invalid("a log append", format!("{first_seq} to {last_seq}, {} bytes", bytes.len())));
        }
        // A head without a lease stands at 0: nobody may append under that.
        if fence == 0 || fence > NUMBER_MAX {
            return Ok(LogAppended::StaleFence);
        }
        let newest_at = newest_at(&bytes)?;
        let mut chunk = Chunk { first_seq, last_seq, newest_at, bytes };
        for _ in 0..APPEND_ATTEMPTS {
            let attempt = match &self.backend {
                Backend::Memory(memory) => memory.turn().await.log_append(org, run, fence, &chunk)?,
                Backend::Sql(db) => sql::log_append(db, &self.blobs, org, run, fence, &chunk).await?,
            };
            match attempt {
                Attempt::Done(appended) => return Ok(appended),
                Attempt::Overlap { next } => match chunk.cut_before(next)? {
                    Some(rest) => chunk = rest,
                    None => return Ok(LogAppended::Gap { next }),
                },
                Attempt::Moved => {}
            }
        }
        Err(Error::Conflict { what: "log head" })
    }

    /// Segments with entries after the sequence `after`, in order and without gap: about `bytes_max` bytes, and at least one
    /// segment where there is one. The first may begin with entries at or before `after`. Nothing for a run that the org
    /// does not have.
    pub async fn log_read(&self, org: OrgId, run: RunId, after: u64, bytes_max: usize) -> Result<Vec<Segment>> {
        let bytes_max = wanted(bytes_max)?;
        let after = after.min(NUMBER_MAX);
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.log_read(org, run, after, bytes_max)),
            Backend::Sql(db) => sql::log_read(db, &self.blobs, org, run, after, bytes_max).await,
        }
    }

    /// The end of a log up to the entry `upto`, in order and without gap: at most about `bytes_max` bytes, and at least one
    /// segment where there is one. The last may go on behind `upto`.
    pub async fn log_read_back(&self, org: OrgId, run: RunId, upto: u64, bytes_max: usize) -> Result<Vec<Segment>> {
        let bytes_max = wanted(bytes_max)?;
        let upto = upto.min(NUMBER_MAX);
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.log_read_back(org, run, upto, bytes_max)),
            Backend::Sql(db) => sql::log_read_back(db, &self.blobs, org, run, upto, bytes_max).await,
        }
    }

    /// Where to look for the first entry that is not older than `at`: a sequence at or before it, in the same segment.
    /// Nothing if every entry is older.
    pub async fn log_at(&self, org: OrgId, run: RunId, at: UnixMicros) -> Result<Option<u64>> {
        match &self.backend {
            Backend::Memory(memory) => memory.turn().await.log_at(org, run, at),
            Backend::Sql(db) => sql::log_at(db, org, run, at).await,
        }
    }

    /// Moves what lies in rows into blobs of at most [`LOG_SEGMENT_BYTES`], oldest first, as long as at least `bytes_min`
    /// are left. Readers and writers may go on meanwhile. In memory there is nothing to move.
    pub async fn log_seal(&self, org: OrgId, run: RunId, bytes_min: usize) -> Result<Sealed> {
        match &self.backend {
            Backend::Memory(_) => Ok(Sealed::default()),
            Backend::Sql(db) => sql::log_seal(db, &self.blobs, org, run, bytes_min).await,
        }
    }

    /// Logs of all orgs that are worth sealing, behind the one of the run `after`; for the server's own task. What is worth
    /// it stands in the store, so nothing is forgotten with a server. In memory there is nothing to move.
    pub async fn log_sealable(&self, after: Option<RunId>, limit: u32) -> Result<Vec<Sealable>> {
        let limit = page(limit, SEALABLE_PAGE_MAX)?;
        match &self.backend {
            Backend::Memory(_) => Ok(Vec::new()),
            Backend::Sql(db) => sql::log_sealable(db, after, limit).await,
        }
    }

    /// The sequence that the next new entry must have; not found for a run that the org does not have.
    pub async fn log_head(&self, org: OrgId, run: RunId) -> Result<u64> {
        match &self.backend {
            Backend::Memory(memory) => memory.turn().await.log_head(org, run),
            Backend::Sql(db) => log_head(db, org, run).await,
        }
    }
}

/// How many bytes a read wants: there is no read of nothing.
fn wanted(bytes_max: usize) -> Result<u64> {
    limit("bytes of a log read", bytes_max, LOG_READ_BYTES_MAX)?;
    Ok(bytes_max.max(1) as u64)
}

/// How many pieces of these lengths, in bytes, a read takes: until there are `bytes_max` bytes.
pub(crate) fn enough(lengths: impl Iterator<Item = u64>, bytes_max: u64) -> usize {
    let before = lengths.scan(0, |bytes, length| Some(std::mem::replace(bytes, *bytes + length)));
    before.take_while(|bytes| *bytes < bytes_max).count()
}

/// The newest time of all entries of whole batches.
pub(crate) fn newest_at(bytes: &[u8]) -> Result<UnixMicros> {
    let batches = parse_all(bytes).map_err(|error| Error::invalid("a log append", error.to_string()))?;
    Ok(batches.iter().map(Batch::newest_at).max().unwrap_or(UnixMicros(i64::MIN)))
}

impl Chunk {
    /// The batches from the sequence `next` on; nothing if no batch begins there.
    fn cut_before(&self, next: u64) -> Result<Option<Self>> {
        let mut rest: &[u8] = &self.bytes;
        while !rest.is_empty() {
            let (batch, after) = Batch::parse(rest).map_err(|e| Error::invalid("a log append", e.to_string()))?;
            if batch.first_seq() == next {
                let bytes = self.bytes.slice_ref(rest);
                return Ok(Some(Self { first_seq: next, bytes, ..self.clone() }));
            }
            rest = after;
        }
        Ok(None)
    }
}

impl Attempt {
    /// Why an append under `fence` is not taken by a head that stands at `next` under `head_fence`; nothing if it is.
    pub(crate) fn refused(head_fence: u64, next: u64, fence: u64, chunk: &Chunk) -> Option<Self> {
        if fence == 0 || head_fence != fence {
            return Some(Self::Done(LogAppended::StaleFence));
        }
        if chunk.last_seq < next {
            return Some(Self::Done(LogAppended::Duplicate { next }));
        }
        match chunk.first_seq.cmp(&next) {
            std::cmp::Ordering::Equal => None,
            std::cmp::Ordering::Less => Some(Self::Overlap { next }),
            std::cmp::Ordering::Greater => Some(Self::Done(LogAppended::Gap { next })),
        }
    }
}
