//! Logs in SQL, with the blobs that they refer to.
//!
//! How a blob is divided and packed is in [`super::pack`]. A blob is written before the row that refers to it. Its name
//! bears the digest of its bytes, so a writer that lost leaves at most an object that nobody refers to, which goes with the
//! run, and never changes one that is referred to.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use holm_domain::{OrgId, RunId, UnixMicros};

use super::{
    Attempt, Chunk, LOG_INLINE_BYTES, LOG_SEGMENT_BYTES, LogAppended, Sealable, Sealed, Segment,
    pack::{self, Packed, Part},
};
use crate::{
    BlobKey, Blobs, Error, Result,
    sql::{Args, Db, Fields, Query, Row, args, encode, queries},
};

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
    /// The head, beside each of the segments after `$3` whose predecessors hold fewer than `$4` bytes.
    LOG_READ = "select h.next_log_seq, s.first_seq, s.last_seq, s.size, s.data, s.blob_key, s.parts from log_heads h
        left join (select c.last_seq, sum(c.size) over (order by c.last_seq) - c.size as bytes_before
          from (select last_seq, size from log_segments where org = $1 and run = $2 and last_seq > $3
            order by last_seq limit $5 + 0) c) w on w.bytes_before < $4
        left join log_segments s on s.org = $1 and s.run = $2 and s.last_seq = w.last_seq
        where h.org = $1 and h.run = $2 order by s.last_seq";
    /// Segments in rows, the oldest first, that hold at most `$3` bytes together; at least one.
    LOG_SEAL_ROWS = "select s.first_seq, s.last_seq, s.size, s.newest_at, s.data, s.blob_key, s.parts
        from (select c.last_seq, sum(c.size) over (order by c.last_seq) as bytes
          from (select last_seq, size from log_segments where org = $1 and run = $2 and data is not null
            order by last_seq limit $4 + 0) c) w
        join log_segments s on s.org = $1 and s.run = $2 and s.last_seq = w.last_seq
        where w.bytes <= $3 and s.data is not null order by s.last_seq";
    /// The head, the end of the segments, and the first that reaches a time: the newest times never fall along a log.
    LOG_AT = "select next_log_seq,
          (select max(last_seq) from log_segments where org = $1 and run = $2) as last_seq,
          (select first_seq from log_segments where org = $1 and run = $2 and newest_at >= $3
            order by newest_at, last_seq limit 1) as first_seq
        from log_heads where org = $1 and run = $2";
    /// The head, beside each of the segments up to the one that holds `$3`, the last first, whose successors hold fewer
    /// than `$4` bytes.
    LOG_READ_BACK = "select h.next_log_seq, s.first_seq, s.last_seq, s.size, s.data, s.blob_key, s.parts from log_heads h
        left join (select c.last_seq, sum(c.size) over (order by c.last_seq desc) - c.size as bytes_after
          from (select last_seq, size from log_segments where org = $1 and run = $2 and last_seq <= coalesce(
            (select min(last_seq) from log_segments where org = $1 and run = $2 and last_seq >= $3), $3)
            order by last_seq desc limit $5 + 0) c) w on w.bytes_after < $4
        left join log_segments s on s.org = $1 and s.run = $2 and s.last_seq = w.last_seq
        where h.org = $1 and h.run = $2 order by s.last_seq desc";
    /// The run, where its log is to be there: it was not deleted.
    LOG_EXPECTED = "select id from runs where org = $1 and id = $2 and (state <> 'ended' or log_kept_since is not null)";
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

/// A log whose end or whose beginning is not there is damaged, unless it was deleted, with its run or without. Rows and head
/// go in one transaction with what says so, therefore this may be asked behind the look that found them gone.
async fn deleted_or(db: &Db, org: OrgId, run: RunId, problem: String) -> Result<()> {
    match db.row(LOG_EXPECTED, args![org, run]).await? {
        Some(_) => Err(Error::corrupt("log_segments", run.to_string(), problem)),
        None => Ok(()),
    }
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

/// A log at one instant: the sequence that its next entry must have, and the rows that were asked for.
struct Found {
    next: u64,
    rows: Vec<Row>,
}

async fn find(db: &Db, query: Query, args: Args, org: OrgId, run: RunId) -> Result<Found> {
    let mut rows = db.rows(query, args).await?;
    let Some(first) = rows.first() else {
        if is_headless(db, org, run).await? {
            return Err(Error::corrupt("log_segments", run.to_string(), "the head of the log is missing"));
        }
        return Ok(Found { next: 1, rows });
    };
    let next = first.under("log_heads", run).number("next_log_seq")?;
    let is_segment = first.under("log_segments", run).number_if_any("last_seq")?.is_some();
    if !is_segment {
        rows.clear();
    }
    Ok(Found { next, rows })
}

/// Reads a row of a log whose next entry must be `next`.
fn read_before(next: u64, row: &Row, org: OrgId, run: RunId) -> Result<Stored> {
    let stored = read(row, org, run)?;
    if stored.last_seq < next {
        return Ok(stored);
    }
    let problem = format!(
        "the segment up to {} lies behind the end of the log, which is {}",
        stored.last_seq,
        next.saturating_sub(1)
    );
    Err(Error::corrupt("log_segments", run.to_string(), problem))
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
    let Found { next, rows } = find(db, LOG_READ, args![org, run, after, bytes_max, ROWS_MAX], org, run).await?;
    if rows.is_empty() && after + 1 < next {
        let problem = format!("the segments from {} to the end, {}, are missing", after + 1, next - 1);
        deleted_or(db, org, run, problem).await?;
    }
    let mut segments = Vec::new();
    let mut taken = 0u64;
    let mut reached = after;
    for row in &rows {
        let stored = read_before(next, row, org, run)?;
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

/// Segments up to the one that holds `upto`, in order: about `bytes_max` bytes, the last of all.
pub(super) async fn log_read_back(
    db: &Db,
    blobs: &Blobs,
    org: OrgId,
    run: RunId,
    upto: u64,
    bytes_max: usize,
) -> Result<Vec<Segment>> {
    let bytes_max = bytes_max.max(1) as u64;
    let Found { next, rows } = find(db, LOG_READ_BACK, args![org, run, upto, bytes_max, ROWS_MAX], org, run).await?;
    let end = upto.min(next.saturating_sub(1));
    if rows.is_empty() && end > 0 {
        deleted_or(db, org, run, format!("the segment with {end} is missing")).await?;
    }
    let mut backwards = Vec::new();
    let (mut taken, mut follows) = (0u64, None);
    for row in &rows {
        let stored = read_before(next, row, org, run)?;
        let missing = match follows {
            Some(first_seq) => (stored.last_seq + 1 != first_seq).then_some(stored.last_seq + 1),
            None => (end > 0 && !(stored.first_seq..=stored.last_seq).contains(&end)).then_some(end),
        };
        if let Some(missing) = missing {
            let problem = format!("the segment with {missing} is missing");
            return Err(Error::corrupt("log_segments", run.to_string(), problem));
        }
        follows = Some(stored.first_seq);
        let (found, whole) = open_back(blobs, &stored, upto, bytes_max.saturating_sub(taken)).await?;
        taken += found.iter().map(|segment| segment.bytes.len() as u64).sum::<u64>();
        backwards.extend(found.into_iter().rev());
        if !whole || taken >= bytes_max {
            break;
        }
    }
    backwards.reverse();
    Ok(backwards)
}

pub(super) async fn log_at(db: &Db, org: OrgId, run: RunId, at: UnixMicros) -> Result<Option<u64>> {
    let Found { next, rows } = find(db, LOG_AT, args![org, run, at], org, run).await?;
    let (end, found) = match rows.first().map(|row| row.under("log_segments", run)) {
        Some(row) => (row.number("last_seq")?, row.number_if_any("first_seq")?),
        None => (0, None),
    };
    if found.is_none() && end + 1 != next {
        let problem = format!("the segments end with {end}, and the log with {}", next.saturating_sub(1));
        deleted_or(db, org, run, problem).await?;
    }
    Ok(found)
}

/// What of a stored segment lies after `after`: about `bytes_max` bytes, and whether that is all of it.
async fn open(blobs: &Blobs, stored: &Stored, after: u64, bytes_max: u64) -> Result<(Vec<Segment>, bool)> {
    let Place::Blob(key, parts) = &stored.place else { return Ok((in_row(stored), true)) };
    let from = parts.partition_point(|part| part.last_seq <= after);
    let count = enough(parts[from..].iter(), bytes_max);
    Ok((fetch(blobs, key, parts, from..from + count).await?, from + count == parts.len()))
}

/// What of a stored segment lies up to `upto`: about `bytes_max` bytes of its end, and whether that is all of it.
async fn open_back(blobs: &Blobs, stored: &Stored, upto: u64, bytes_max: u64) -> Result<(Vec<Segment>, bool)> {
    let Place::Blob(key, parts) = &stored.place else { return Ok((in_row(stored), true)) };
    let end = parts.partition_point(|part| part.first_seq <= upto);
    let count = enough(parts[..end].iter().rev(), bytes_max);
    Ok((fetch(blobs, key, parts, end - count..end).await?, count == end))
}

fn in_row(stored: &Stored) -> Vec<Segment> {
    let Place::Row(bytes) = &stored.place else { return Vec::new() };
    vec![Segment { first_seq: stored.first_seq, last_seq: stored.last_seq, bytes: bytes.clone() }]
}

/// How many of the parts it takes until there are `bytes_max` bytes.
fn enough<'a>(parts: impl Iterator<Item = &'a Part>, bytes_max: u64) -> usize {
    let mut bytes = 0;
    let wanted = parts.take_while(|part| {
        let more = bytes < bytes_max;
        bytes += if more { part.bytes } else { 0 };
        more
    });
    wanted.count()
}

/// Fetches and unpacks some of the parts of a blob.
async fn fetch(blobs: &Blobs, key: &BlobKey, parts: &[Part], which: Range<usize>) -> Result<Vec<Segment>> {
    let start: u64 = parts[..which.start].iter().map(Part::stored).sum();
    let wanted = &parts[which];
    let length: u64 = wanted.iter().map(Part::stored).sum();
    let stored = blobs.get_range(key, start..start + length).await?;
    pack::unpack(key, wanted.to_vec(), stored).await
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
        let Stored { first_seq, last_seq, place: Place::Row(data) } = read(&row, org, run)? else { break };
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
        Error::Invalid { problem, .. } => Error::corrupt("log_segments", run.to_string(), problem),
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
