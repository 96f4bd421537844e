//! Logs in SQL, with the blobs that they refer to.
//!
//! A blob is written before the row that refers to it. Its name bears the digest of its bytes, so a writer that lost leaves
//! at most an object that nobody refers to, which goes with the run, and never changes one that is referred to.

use bytes::{Bytes, BytesMut};
use holm_domain::{OrgId, RunId};
use serde::{Deserialize, Serialize};

use super::{Attempt, Chunk, LOG_INLINE_BYTES, LOG_SEGMENT_BYTES, LogAppended, Sealable, Sealed, Segment};
use crate::{
    BlobKey, Blobs, Error, Result,
    sql::{Db, Fields, Row, args, encode, queries},
};

/// The most rows that one read looks at, and that one blob is sealed from.
const ROWS_MAX: u32 = 4_096;
/// A blob is divided into parts of about this many bytes; a reader fetches whole parts.
const PART_BYTES: u64 = 64 * 1024;
/// How many blobs one call seals at most.
const SEALS_MAX: u32 = 1_024;

queries! {
    of "log segment" in "run";
    LOG_HEAD = "select fence, next_log_seq, unsealed_bytes from log_heads where org = $1 and run = $2";
    LOG_APPEND = "update log_heads set next_log_seq = $5, unsealed_bytes = unsealed_bytes + $6
        where org = $1 and run = $2 and fence = $3 and next_log_seq = $4 returning unsealed_bytes";
    LOG_APPEND_SEGMENT = "insert into log_segments (org, run, first_seq, last_seq, size, data, blob_key, parts)
        values ($1, $2, $3, $4, $5, $6, $7, $8)";
    /// Segments after `$3` whose predecessors hold fewer than `$4` bytes.
    LOG_READ = "select s.first_seq, s.last_seq, s.size, s.data, s.blob_key, s.parts
        from (select c.last_seq, sum(c.size) over (order by c.last_seq) - c.size as bytes_before
          from (select last_seq, size from log_segments where org = $1 and run = $2 and last_seq > $3
            order by last_seq limit $5) c) w
        join log_segments s on s.org = $1 and s.run = $2 and s.last_seq = w.last_seq
        where w.bytes_before < $4 order by s.last_seq";
    /// Segments in rows, the oldest first, that hold at most `$3` bytes together; at least one.
    LOG_SEAL_ROWS = "select s.first_seq, s.last_seq, s.size, s.data, s.blob_key, s.parts
        from (select c.last_seq, sum(c.size) over (order by c.last_seq) as bytes
          from (select last_seq, size from log_segments where org = $1 and run = $2 and data is not null
            order by last_seq limit $4) c) w
        join log_segments s on s.org = $1 and s.run = $2 and s.last_seq = w.last_seq
        where w.bytes <= $3 and s.data is not null order by s.last_seq";
    LOG_SEALABLE = "select org, run, seal_from from log_heads
        where unsealed_bytes >= seal_from and run > $1 order by run limit $2";
    LOG_SEAL = "update log_heads set unsealed_bytes = unsealed_bytes - $3 where org = $1 and run = $2";
    LOG_SEAL_DELETE = "delete from log_segments
        where org = $1 and run = $2 and last_seq >= $3 and last_seq <= $4 and data is not null";
}

/// Consecutive batches within a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Part {
    first_seq: u64,
    last_seq: u64,
    bytes: u64,
}

/// A row of `log_segments`.
struct Stored {
    first_seq: u64,
    last_seq: u64,
    place: Place,
}

enum Place {
    Row(Bytes),
    Blob(BlobKey, Vec<Part>),
}

fn read(row: &Row, org: OrgId, run: RunId) -> Result<Stored> {
    let row = row.under("log_segments", run);
    let (first_seq, last_seq, size) = (row.number("first_seq")?, row.number("last_seq")?, row.number("size")?);
    let place = match (row.bytes_if_any("data")?, row.text_if_any("blob_key")?) {
        (Some(data), None) => Place::Row(Bytes::from(data)),
        (None, Some(key)) => {
            let key = BlobKey::parse_log_segment(&key, org, run);
            Place::Blob(
                key.ok_or_else(|| row.corrupt("the key of the blob is not of this log"))?,
                parts(&row, first_seq, last_seq)?,
            )
        }
        _ => return Err(row.corrupt(format!("the segment up to {last_seq} is neither in the row nor in a blob"))),
    };
    let held = match &place {
        Place::Row(data) => data.len() as u64,
        Place::Blob(_, parts) => parts.iter().map(|part| part.bytes).sum(),
    };
    if held != size {
        return Err(row.corrupt(format!("the segment up to {last_seq} has {held} bytes instead of {size}")));
    }
    Ok(Stored { first_seq, last_seq, place })
}

/// How a blob is divided; the parts must cover the segment without a gap.
fn parts(row: &Fields<'_>, first_seq: u64, last_seq: u64) -> Result<Vec<Part>> {
    let parts: Vec<Part> = row.body("parts")?;
    let follows = parts.windows(2).all(|pair| pair[0].last_seq + 1 == pair[1].first_seq);
    let first = parts.first().map(|part| part.first_seq);
    let last = parts.last().map(|part| part.last_seq);
    if follows && first == Some(first_seq) && last == Some(last_seq) {
        return Ok(parts);
    }
    Err(row.corrupt(format!("the parts of the segment up to {last_seq} do not cover it")))
}

pub(crate) async fn log_head(db: &Db, org: OrgId, run: RunId) -> Result<u64> {
    let row = db.row(LOG_HEAD, args![org, run]).await?.ok_or(Error::NotFound { what: "run" })?;
    row.under("log_heads", run).number("next_log_seq")
}

/// Why the head does not take the append; nothing if it does.
async fn refused(db: &Db, org: OrgId, run: RunId, fence: u64, chunk: &Chunk) -> Result<Option<Attempt>> {
    let row = db.row(LOG_HEAD, args![org, run]).await?.ok_or(Error::NotFound { what: "run" })?;
    let head = row.under("log_heads", run);
    Ok(Attempt::refused(head.number("fence")?, head.number("next_log_seq")?, fence, chunk))
}

pub(super) async fn log_append(
    db: &Db,
    blobs: &Blobs,
    org: OrgId,
    run: RunId,
    fence: u64,
    chunk: &Chunk,
) -> Result<Attempt> {
    let key = if chunk.bytes.len() < LOG_INLINE_BYTES {
        None
    } else {
        // Nothing is written for an append that is known to be refused.
        if let Some(attempt) = refused(db, org, run, fence, chunk).await? {
            return Ok(attempt);
        }
        let key = BlobKey::log_segment(org, run, chunk.first_seq, &chunk.bytes);
        blobs.put(&key, chunk.bytes.clone()).await?;
        Some(key)
    };
    let next = chunk.last_seq + 1;
    let unsealed = if key.is_some() { 0 } else { chunk.bytes.len() };
    let mut tx = db.begin().await?;
    let Some(head) = tx.row(LOG_APPEND, args![org, run, fence, chunk.first_seq, next, unsealed]).await? else {
        drop(tx);
        return match refused(db, org, run, fence, chunk).await {
            Ok(attempt) => Ok(attempt.unwrap_or(Attempt::Moved)),
            Err(error) => Err(clean_if_gone(blobs, org, run, error).await),
        };
    };
    let unsealed_bytes = head.under("log_heads", run).number("unsealed_bytes")?;
    let size = chunk.bytes.len();
    let (data, key, parts) = match key {
        None => (Some(&chunk.bytes[..]), None, None),
        Some(key) => {
            let whole = Part { first_seq: chunk.first_seq, last_seq: chunk.last_seq, bytes: size as u64 };
            (None, Some(key.to_string()), Some(encode("the parts of a log", &vec![whole])?))
        }
    };
    tx.execute(LOG_APPEND_SEGMENT, args![org, run, chunk.first_seq, chunk.last_seq, size, data, key, parts]).await?;
    tx.commit().await?;
    Ok(Attempt::Done(LogAppended::Stored { next, unsealed_bytes }))
}

/// The run was deleted after a blob of it was written: the blob goes too.
async fn clean_if_gone(blobs: &Blobs, org: OrgId, run: RunId, error: Error) -> Error {
    if matches!(error, Error::NotFound { .. })
        && let Err(cleaning) = blobs.delete_of_run(org, run).await
    {
        tracing::warn!(%run, error = %cleaning, "objects of a deleted run could not be removed");
    }
    error
}

pub(super) async fn log_read(
    db: &Db,
    blobs: &Blobs,
    org: OrgId,
    run: RunId,
    after: u64,
    bytes_max: usize,
) -> Result<Vec<Segment>> {
    let bytes_max = bytes_max.max(1) as u64;
    let rows = db.rows(LOG_READ, args![org, run, after, bytes_max, ROWS_MAX]).await?;
    let mut segments = Vec::new();
    let mut taken = 0u64;
    let mut reached = after;
    for row in &rows {
        let stored = read(row, org, run)?;
        if stored.first_seq > reached + 1 {
            let problem = format!("the segment between {reached} and {} is missing", stored.first_seq);
            return Err(Error::corrupt("log_segments", run.to_string(), problem));
        }
        let (found, whole) = open(blobs, &stored, after, bytes_max.saturating_sub(taken)).await?;
        taken += found.iter().map(|segment| segment.bytes.len() as u64).sum::<u64>();
        segments.extend(found);
        if !whole || taken >= bytes_max {
            break;
        }
        reached = stored.last_seq;
    }
    Ok(segments)
}

/// What of a stored segment lies after `after`: about `bytes_max` bytes, and whether that is all of it.
async fn open(blobs: &Blobs, stored: &Stored, after: u64, bytes_max: u64) -> Result<(Vec<Segment>, bool)> {
    let (key, parts) = match &stored.place {
        Place::Row(bytes) => {
            let Stored { first_seq, last_seq, .. } = *stored;
            return Ok((vec![Segment { first_seq, last_seq, bytes: bytes.clone() }], true));
        }
        Place::Blob(key, parts) => (key, parts),
    };
    let (before, rest) = parts.split_at(parts.partition_point(|part| part.last_seq <= after));
    let start: u64 = before.iter().map(|part| part.bytes).sum();
    let mut length = 0;
    let wanted = rest.iter().take_while(|part| {
        let more = length < bytes_max;
        length += if more { part.bytes } else { 0 };
        more
    });
    let wanted: Vec<Part> = wanted.copied().collect();
    let mut bytes = blobs.get_range(key, start..start + length).await?;
    let whole = wanted.len() == rest.len();
    let cut = |part: Part| Segment {
        first_seq: part.first_seq,
        last_seq: part.last_seq,
        bytes: bytes.split_to(usize::try_from(part.bytes).unwrap_or(usize::MAX)),
    };
    Ok((wanted.into_iter().map(cut).collect(), whole))
}

pub(super) async fn log_sealable(db: &Db, after: Option<RunId>, limit: usize) -> Result<Vec<Sealable>> {
    let after = after.map(|run| run.to_string()).unwrap_or_default();
    let read = |row: &Row| {
        let row = row.of("log_heads", "run")?;
        let bytes_min = usize::try_from(row.number("seal_from")?).map_err(|error| row.corrupt(error))?;
        Ok(Sealable { org: row.parsed("org")?, run: row.parsed("run")?, bytes_min })
    };
    db.rows(LOG_SEALABLE, args![after, limit]).await?.iter().map(read).collect()
}

pub(super) async fn log_seal(db: &Db, blobs: &Blobs, org: OrgId, run: RunId, bytes_min: usize) -> Result<Sealed> {
    let bytes_min = bytes_min.max(1) as u64;
    let mut sealed = Sealed::default();
    for _ in 0..SEALS_MAX {
        let row = db.row(LOG_HEAD, args![org, run]).await?.ok_or(Error::NotFound { what: "run" })?;
        if row.under("log_heads", run).number("unsealed_bytes")? < bytes_min {
            break;
        }
        let bytes = match seal_once(db, blobs, org, run).await {
            Ok(bytes) => bytes,
            Err(error) => return Err(clean_if_gone(blobs, org, run, error).await),
        };
        if bytes == 0 {
            break;
        }
        sealed.blobs += 1;
        sealed.bytes += bytes;
    }
    Ok(sealed)
}

/// Moves the oldest consecutive rows into one blob; returns how many bytes, 0 if another call was faster.
async fn seal_once(db: &Db, blobs: &Blobs, org: OrgId, run: RunId) -> Result<u64> {
    let rows = db.rows(LOG_SEAL_ROWS, args![org, run, LOG_SEGMENT_BYTES, ROWS_MAX]).await?;
    let mut parts: Vec<Part> = Vec::new();
    let mut bytes = BytesMut::new();
    let mut count = 0;
    let mut first_last_seq = 0;
    for row in &rows {
        let Stored { first_seq, last_seq, place: Place::Row(data) } = read(row, org, run)? else { break };
        match parts.last_mut() {
            // A blob lies between these rows: what follows it is sealed by itself.
            Some(part) if part.last_seq + 1 != first_seq => break,
            Some(part) if part.bytes < PART_BYTES => {
                part.last_seq = last_seq;
                part.bytes += data.len() as u64;
            }
            last => {
                if last.is_none() {
                    first_last_seq = last_seq;
                }
                parts.push(Part { first_seq, last_seq, bytes: data.len() as u64 });
            }
        }
        bytes.extend_from_slice(&data);
        count += 1;
    }
    let (Some(first), Some(last)) = (parts.first(), parts.last()) else { return Ok(0) };
    let (first_seq, last_seq) = (first.first_seq, last.last_seq);
    let bytes = bytes.freeze();
    let key = BlobKey::log_segment(org, run, first_seq, &bytes);
    blobs.put(&key, bytes.clone()).await?;
    let mut tx = db.begin().await?;
    if tx.execute(LOG_SEAL, args![org, run, bytes.len()]).await? == 0 {
        return Err(Error::NotFound { what: "run" });
    }
    if tx.execute(LOG_SEAL_DELETE, args![org, run, first_last_seq, last_seq]).await? != count {
        return Ok(0);
    }
    let (data, parts) = (None::<&[u8]>, encode("the parts of a log", &parts)?);
    let values = args![org, run, first_seq, last_seq, bytes.len(), data, key.to_string(), parts];
    tx.execute(LOG_APPEND_SEGMENT, values).await?;
    tx.commit().await?;
    Ok(bytes.len() as u64)
}
