//! How logs are read, forwards, backwards and from a time on.
//!
//! What always holds: a segment that is missing or damaged is told, wherever in a log it lay, unless the log was deleted, and
//! what lies before it and behind it can be read; nothing of a blob is fetched but the parts that are asked for.

use std::ops::Range;

use holm_domain::{OrgId, RunId, UnixMicros};

use super::{Place, ROWS_MAX, Stored, damaged, is_headless};
use crate::{
    BlobKey, Blobs, Result, Segment,
    logs::{
        enough,
        pack::{self, Part},
    },
    sql::{Args, Db, Query, Row, args, queries},
};

queries! {
    of "log segment" in "run";
    /// The head, beside each of the segments after `$3` whose predecessors hold fewer than `$4` bytes.
    LOG_READ = "select h.next_log_seq, s.first_seq, s.last_seq, s.size, s.data, s.blob_key, s.parts from log_heads h
        left join (select c.last_seq, sum(c.size) over (order by c.last_seq) - c.size as bytes_before
          from (select last_seq, size from log_segments where org = $1 and run = $2 and last_seq > $3
            order by last_seq limit $5 + 0) c) w on w.bytes_before < $4
        left join log_segments s on s.org = $1 and s.run = $2 and s.last_seq = w.last_seq
        where h.org = $1 and h.run = $2 order by s.last_seq";
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
            return Err(damaged(run, "the head of the log is missing"));
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

impl Found {
    /// Refuses a log that goes on behind its end: whoever has read all up to there would be told that this is all.
    fn within_end(self, run: RunId) -> Result<Self> {
        for row in &self.rows {
            let last_seq = row.under("log_segments", run).number("last_seq")?;
            if last_seq >= self.next {
                let end = self.next.saturating_sub(1);
                let problem = format!("the segment up to {last_seq} lies behind the end of the log, which is {end}");
                return Err(damaged(run, problem));
            }
        }
        Ok(self)
    }
}

/// What a read has taken so far.
struct Taken {
    segments: Vec<Segment>,
    bytes: u64,
    bytes_max: u64,
}

impl Taken {
    fn of(bytes_max: u64) -> Self {
        Self { segments: Vec::new(), bytes: 0, bytes_max }
    }

    /// How many bytes more are wanted.
    fn rest(&self) -> u64 {
        self.bytes_max.saturating_sub(self.bytes)
    }

    /// Takes what was opened next, in the direction of the read, and returns whether the read goes on. It ends before what is
    /// damaged: that is told to whoever reads on from there.
    fn goes_on(&mut self, opened: Result<(Vec<Segment>, bool)>) -> Result<bool> {
        let (segments, whole) = match opened {
            Err(error) if !self.segments.is_empty() && error.is_damaged_log() => return Ok(false),
            opened => opened?,
        };
        self.bytes += segments.iter().map(|segment| segment.bytes.len() as u64).sum::<u64>();
        self.segments.extend(segments);
        Ok(whole && self.rest() > 0)
    }
}

/// A log whose end or whose beginning is not there is damaged, unless it was deleted, with its run or without. Rows and head
/// go in one transaction with what says so, therefore this may be asked behind the look that found them gone.
async fn deleted_or(db: &Db, org: OrgId, run: RunId, problem: String) -> Result<()> {
    match db.row(LOG_EXPECTED, args![org, run]).await? {
        Some(_) => Err(damaged(run, problem)),
        None => Ok(()),
    }
}

pub(in crate::logs) async fn log_read(
    db: &Db,
    blobs: &Blobs,
    org: OrgId,
    run: RunId,
    after: u64,
    bytes_max: u64,
) -> Result<Vec<Segment>> {
    let Found { next, rows } =
        find(db, LOG_READ, args![org, run, after, bytes_max, ROWS_MAX], org, run).await?.within_end(run)?;
    if rows.is_empty() && after + 1 < next {
        let problem = format!("the segments from {} to the end, {}, are missing", after + 1, next - 1);
        deleted_or(db, org, run, problem).await?;
    }
    let mut taken = Taken::of(bytes_max);
    for row in &rows {
        let reached = taken.segments.last().map_or(after, |segment| segment.last_seq);
        let follows = |stored: Stored| {
            if stored.first_seq <= reached + 1 {
                return Ok(stored);
            }
            Err(damaged(run, format!("the entries {} to {} are missing", reached + 1, stored.first_seq - 1)))
        };
        let opened = match Stored::of(row, org, run).and_then(follows) {
            Ok(stored) => open(blobs, &stored, after, taken.rest()).await,
            Err(error) => Err(error),
        };
        if !taken.goes_on(opened)? {
            break;
        }
    }
    Ok(taken.segments)
}

/// Segments up to the one that holds `upto`, in order: about `bytes_max` bytes, the last of all.
pub(in crate::logs) async fn log_read_back(
    db: &Db,
    blobs: &Blobs,
    org: OrgId,
    run: RunId,
    upto: u64,
    bytes_max: u64,
) -> Result<Vec<Segment>> {
    let Found { next, rows } =
        find(db, LOG_READ_BACK, args![org, run, upto, bytes_max, ROWS_MAX], org, run).await?.within_end(run)?;
    let end = upto.min(next.saturating_sub(1));
    if rows.is_empty() && end > 0 {
        deleted_or(db, org, run, format!("the segment with {end} is missing")).await?;
    }
    let mut taken = Taken::of(bytes_max);
    for row in &rows {
        let before = taken.segments.last().map(|segment| segment.first_seq);
        let follows = |stored: Stored| {
            let missing = match before {
                Some(before) => (stored.last_seq + 1 != before).then_some(stored.last_seq + 1),
                None => (end > 0 && !(stored.first_seq..=stored.last_seq).contains(&end)).then_some(end),
            };
            missing.map_or(Ok(stored), |seq| Err(damaged(run, format!("the segment with {seq} is missing"))))
        };
        let opened = match Stored::of(row, org, run).and_then(follows) {
            Ok(stored) => open_back(blobs, &stored, upto, taken.rest()).await,
            Err(error) => Err(error),
        };
        if !taken.goes_on(opened)? {
            break;
        }
    }
    taken.segments.reverse();
    Ok(taken.segments)
}

pub(in crate::logs) async fn log_at(db: &Db, org: OrgId, run: RunId, at: UnixMicros) -> Result<Option<u64>> {
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
    let count = enough(parts[from..].iter().map(|part| part.bytes), bytes_max);
    Ok((fetch(blobs, key, parts, from..from + count).await?, from + count == parts.len()))
}

/// What of a stored segment lies up to `upto`, the last first: about `bytes_max` bytes of its end, and whether that is all of
/// it.
async fn open_back(blobs: &Blobs, stored: &Stored, upto: u64, bytes_max: u64) -> Result<(Vec<Segment>, bool)> {
    let Place::Blob(key, parts) = &stored.place else { return Ok((in_row(stored), true)) };
    let end = parts.partition_point(|part| part.first_seq <= upto);
    let count = enough(parts[..end].iter().rev().map(|part| part.bytes), bytes_max);
    let mut segments = fetch(blobs, key, parts, end - count..end).await?;
    segments.reverse();
    Ok((segments, count == end))
}

fn in_row(stored: &Stored) -> Vec<Segment> {
    let Place::Row(bytes) = &stored.place else { return Vec::new() };
    vec![Segment { first_seq: stored.first_seq, last_seq: stored.last_seq, bytes: bytes.clone() }]
}

/// Fetches and unpacks some of the parts of a blob.
async fn fetch(blobs: &Blobs, key: &BlobKey, parts: &[Part], which: Range<usize>) -> Result<Vec<Segment>> {
    let start: u64 = parts[..which.start].iter().map(Part::stored).sum();
    let wanted = &parts[which];
    let length: u64 = wanted.iter().map(Part::stored).sum();
    let stored = blobs.get_range(key, start..start + length).await?;
    pack::unpack(key, wanted.to_vec(), stored).await
}
