//! Logs in SQL, with the blobs that they refer to.
//!
//! How they are read is in [`read`], and how a blob is divided and packed in [`super::pack`]. A blob is written before the row
//! that refers to it. Its name bears the digest of its bytes, so a writer that lost leaves at most an object that nobody
//! refers to, which goes with the run, and never changes one that is referred to.

mod read;

use bytes::{Bytes, BytesMut};
use holm_domain::{OrgId, RunId, UnixMicros};

use super::{
    Attempt, Chunk, LOG_INLINE_BYTES, LOG_SEGMENT_BYTES, LogAppended, Sealable, Sealed,
    pack::{self, Packed, Part},
};
use crate::{
    BlobKey, Blobs, Error, Result,
    sql::{Db, Fields, Row, args, encode, queries},
};
#[cfg(test)]
pub(crate) use read::QUERIES as READ_QUERIES;
pub(super) use read::{log_at, log_read, log_read_back};

/// The most rows that one read looks at, and that one blob is sealed from.
const ROWS_MAX: u32 = 4_096;
/// How many blobs one call seals at most.
const SEALS_MAX: u32 = 1_024;

queries! {
    of "log segment" in "run";
    LOG_HEAD = "select fence, next_log_seq, unsealed_bytes from log_heads where org = $1 and run = $2";
    LOG_APPEND = "update log_heads set next_log_seq = $5, unsealed_bytes = unsealed_bytes + $6,
          newest_at = case when newest_at < $7 then $7 else newest_at end
        where org = $1 and run = $2 and fence = $3 and next_log_seq = $4 returning unsealed_bytes, newest_at";
    LOG_APPEND_SEGMENT = "insert into log_segments (org, run, first_seq, last_seq, size, newest_at, data, blob_key, parts)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
    /// Segments in rows, the oldest first, that hold at most `$3` bytes together; at least one.
    LOG_SEAL_ROWS = "select s.first_seq, s.last_seq, s.size, s.newest_at, s.data, s.blob_key, s.parts
        from (select c.last_seq, sum(c.size) over (order by c.last_seq) as bytes
          from (select last_seq, size from log_segments where org = $1 and run = $2 and data is not null
            order by last_seq limit $4 + 0) c) w
        join log_segments s on s.org = $1 and s.run = $2 and s.last_seq = w.last_seq
        where w.bytes <= $3 and s.data is not null order by s.last_seq";
    LOG_HEADLESS = "select id from runs where org = $1 and id = $2
        and not exists (select 1 from log_heads where org = $1 and run = $2)";
    LOG_SEALABLE = "select org, run, seal_from from log_heads
        where unsealed_bytes >= seal_from and run > $1 order by run limit $2 + 0";
    LOG_SEAL = "update log_heads set unsealed_bytes = unsealed_bytes - $3 where org = $1 and run = $2";
    LOG_SEAL_DELETE = "delete from log_segments
        where org = $1 and run = $2 and last_seq >= $3 and last_seq <= $4 and data is not null";
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

impl Stored {
    fn of(row: &Row, org: OrgId, run: RunId) -> Result<Self> {
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
        Ok(Self { first_seq, last_seq, place })
    }
}

/// How a blob is divided; the parts must cover the segment without a gap.
fn parts(row: &Fields<'_>, first_seq: u64, last_seq: u64) -> Result<Vec<Part>> {
    let parts: Vec<Part> = row.body("parts")?;
    let follows = parts.windows(2).all(|pair| pair[0].last_seq + 1 == pair[1].first_seq);
    let first = parts.first().map(|part| part.first_seq);
    let last = parts.last().map(|part| part.last_seq);
    let bounded = parts.iter().all(Part::is_bounded);
    if follows && bounded && first == Some(first_seq) && last == Some(last_seq) {
        return Ok(parts);
    }
    Err(row.corrupt(format!("the parts of the segment up to {last_seq} do not cover it")))
}

pub(crate) async fn log_head(db: &Db, org: OrgId, run: RunId) -> Result<u64> {
    head(db, org, run).await?.under("log_heads", run).number("next_log_seq")
}

async fn head(db: &Db, org: OrgId, run: RunId) -> Result<Row> {
    match db.row(LOG_HEAD, args![org, run]).await? {
        Some(row) => Ok(row),
        None if is_headless(db, org, run).await? => {
            Err(Error::corrupt("log_heads", run.to_string(), "the row is missing"))
        }
        None => Err(Error::NotFound { what: "run" }),
    }
}

/// Whether there is a run without the row that each has.
async fn is_headless(db: &Db, org: OrgId, run: RunId) -> Result<bool> {
    Ok(db.row(LOG_HEADLESS, args![org, run]).await?.is_some())
}

fn damaged(run: RunId, problem: impl ToString) -> Error {
    Error::corrupt("log_segments", run.to_string(), problem)
}

/// Why the head does not take the append; nothing if it does.
async fn refused(db: &Db, org: OrgId, run: RunId, fence: u64, chunk: &Chunk) -> Result<Option<Attempt>> {
    let row = head(db, org, run).await?;
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
    let place = if chunk.bytes.len() < LOG_INLINE_BYTES {
        None
    } else {
        // Nothing is written for an append that is known to be refused.
        if let Some(attempt) = refused(db, org, run, fence, chunk).await? {
            return Ok(attempt);
        }
        Some(put(blobs, org, run, chunk.first_seq, chunk.bytes.clone()).await?)
    };
    let next = chunk.last_seq + 1;
    let unsealed = if place.is_some() { 0 } else { chunk.bytes.len() };
    let mut tx = db.begin().await?;
    let values = args![org, run, fence, chunk.first_seq, next, unsealed, chunk.newest_at];
    let Some(head) = tx.row(LOG_APPEND, values).await? else {
        drop(tx);
        return match refused(db, org, run, fence, chunk).await {
            Ok(attempt) => Ok(attempt.unwrap_or(Attempt::Moved)),
            Err(error) => Err(clean_if_gone(blobs, org, run, error).await),
        };
    };
    let head = head.under("log_heads", run);
    let (unsealed_bytes, newest_at) = (head.number("unsealed_bytes")?, head.at("newest_at")?);
    let (data, key, parts) = match place {
        None => (Some(&chunk.bytes[..]), None, None),
        Some((key, parts)) => (None, Some(key.to_string()), Some(encode("the parts of a log", &parts)?)),
    };
    let Chunk { first_seq, last_seq, bytes, .. } = chunk;
    let values = args![org, run, *first_seq, *last_seq, bytes.len(), newest_at, data, key, parts];
    tx.execute(LOG_APPEND_SEGMENT, values).await?;
    tx.commit().await?;
    Ok(Attempt::Done(LogAppended::Stored { next, unsealed_bytes }))
}

/// Packs whole batches into a blob.
async fn put(blobs: &Blobs, org: OrgId, run: RunId, first_seq: u64, batches: Bytes) -> Result<(BlobKey, Vec<Part>)> {
    let Packed { parts, blob } = pack::pack(batches).await?;
    let key = BlobKey::log_segment(org, run, first_seq, &blob);
    blobs.put(&key, blob).await?;
    Ok((key, parts))
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
        let row = head(db, org, run).await?;
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
    let sizes = rows.iter().map(|row| row.under("log_segments", run).number("size")).sum::<Result<u64>>()?;
    let mut bytes = BytesMut::with_capacity(usize::try_from(sizes).unwrap_or(0).min(LOG_SEGMENT_BYTES));
    let (mut count, mut sealed) = (0, None::<Sealing>);
    // Each row goes once it was copied: its bytes are not held twice.
    for row in rows {
        let Stored { first_seq, last_seq, place: Place::Row(data) } = Stored::of(&row, org, run)? else { break };
        let newest_at = row.under("log_segments", run).at("newest_at")?;
        match &mut sealed {
            // A blob lies between these rows: what follows it is sealed by itself.
            Some(sealing) if sealing.last_seq + 1 != first_seq => break,
            Some(sealing) => (sealing.last_seq, sealing.newest_at) = (last_seq, newest_at),
            none => *none = Some(Sealing { first_seq, first_row: last_seq, last_seq, newest_at }),
        }
        bytes.extend_from_slice(&data);
        count += 1;
    }
    let Some(Sealing { first_seq, first_row, last_seq, newest_at }) = sealed else { return Ok(0) };
    let size = bytes.len();
    let unreadable = |error| match error {
        Error::Invalid { problem, .. } => damaged(run, problem),
        other => other,
    };
    let (key, parts) = put(blobs, org, run, first_seq, bytes.freeze()).await.map_err(unreadable)?;
    let mut tx = db.begin().await?;
    if tx.execute(LOG_SEAL, args![org, run, size]).await? == 0 {
        return Err(Error::NotFound { what: "run" });
    }
    if tx.execute(LOG_SEAL_DELETE, args![org, run, first_row, last_seq]).await? != count {
        return Ok(0);
    }
    let (data, parts) = (None::<&[u8]>, encode("the parts of a log", &parts)?);
    let values = args![org, run, first_seq, last_seq, size, newest_at, data, key.to_string(), parts];
    tx.execute(LOG_APPEND_SEGMENT, values).await?;
    tx.commit().await?;
    Ok(size as u64)
}

/// The rows that become one blob.
struct Sealing {
    first_seq: u64,
    /// By what the first of the rows is known: its last sequence.
    first_row: u64,
    last_seq: u64,
    newest_at: UnixMicros,
}
