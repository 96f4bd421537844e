//! Logs: append under a lease, read a page, follow; a range of one ([`range`]), search ([`search`]), all of it ([`stream`]).
//!
//! Whose log it is comes from the path and the lease, never from the payload (SPEC S3); the payload says only sequences,
//! times, streams and bytes. Batches are stored as they came, after a check of each.
//!
//! A log that was deleted says so, however it is read, and also where that happens while it is read: it never looks empty
//! or broken.

pub mod range;
pub mod search;
pub mod stream;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::Bytes;
use holm_api::{
    agent::{Appended, Fenced, LOG_GAP_FIELD},
    egress::{EgressPage, EgressRecord},
    logs::{LogEntry, LogPage},
};
use holm_domain::{
    ErrorCode, OrgId, RunId,
    lease::{Claimant, grant::StaleFence},
    log::{Batch, BatchError, Entries, Line, parse_all},
    org_limits::OrgLimit,
    run::{Run, RunState},
};
use holm_store::{Error, LOG_SEGMENT_BYTES, LogAppended, Segment};
use serde::Serialize;

use super::{leases::held_run, run_of};
use crate::{
    app::App,
    auth::speaker::Speaker,
    config::LOG_PAGE_BYTES_MAX,
    http::follow::{ALIVE_COMMENT, EVENT_STREAM, Source, Step, write_event},
    problem::Failure,
};

/// How many bytes of batches one look of a follower reads.
const FOLLOW_READ_BYTES: usize = 256 * 1024;

/// Stores what of `bytes` is new, if it follows what is stored.
pub async fn log_append(
    app: &App,
    speaker: &Speaker,
    id: RunId,
    by: Fenced,
    bytes: Bytes,
) -> Result<Appended, Failure> {
    let run = held_run(app, speaker, id, Claimant { agent: by.agent, instance: by.instance }, by.fence).await?;
    let org = run.org;
    let (first, last) = sequences(&bytes)?;
    app.needs_room()?;
    let size = bytes.len();
    app.limiter.spend(app, org, OrgLimit::LogBytes, size as u64).await?;
    match app.store.log_append(org, id, by.fence, first, last, bytes).await? {
        LogAppended::Stored { next, unsealed_bytes } => {
            app.metrics.appended(size);
            app.wakers.ring_run(id);
            if unsealed_bytes >= LOG_SEGMENT_BYTES as u64 {
                app.wakers.want_sealed();
            }
            Ok(Appended { next_seq: next })
        }
        LogAppended::Duplicate { next } => Ok(Appended { next_seq: next }),
        LogAppended::Gap { next } => {
            let detail = format!("the next entry must be {next}, not {first}; append what is missing first");
            Err(Failure::new(ErrorCode::LogGap, detail).at(LOG_GAP_FIELD, next))
        }
        LogAppended::StaleFence => Err(StaleFence { given: by.fence, newest: run.fence }.into()),
    }
}

/// The first and the last sequence of a body of batches that follow each other.
fn sequences(bytes: &[u8]) -> Result<(u64, u64), Failure> {
    let refused = |detail: String| Failure::new(ErrorCode::InvalidRequest, detail);
    let batches = parse_all(bytes).map_err(|error| refused(error.to_string()))?;
    let (Some(first), Some(last)) = (batches.first(), batches.last()) else {
        return Err(refused("send at least one batch".to_owned()));
    };
    for pair in batches.windows(2) {
        if pair[0].last_seq() + 1 != pair[1].first_seq() {
            let (end, begin) = (pair[0].last_seq(), pair[1].first_seq());
            return Err(refused(format!(
                "the batch that begins at {begin} does not follow the one that ends at {end}"
            )));
        }
    }
    Ok((first.first_seq(), last.last_seq()))
}

/// The run whose log is to be read; refused where that was deleted.
pub async fn readable(app: &App, org: OrgId, id: RunId) -> Result<Run, Failure> {
    let run = run_of(app, org, id).await?;
    run.logs_deleted_at.map_or(Ok(run), |at| Err(Failure::logs_deleted(id, at)))
}

/// What is read of a log, unless that was deleted, or is meanwhile.
async fn unless_deleted<T, F>(app: &App, org: OrgId, id: RunId, read: impl FnOnce(Run) -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    let read = read(readable(app, org, id).await?).await;
    readable(app, org, id).await?;
    read
}

/// What follows `after` in the log of a run that was looked at before; for those who follow it.
pub(crate) async fn read_on(app: &App, run: &Run, after: u64, bytes_max: usize) -> Result<Vec<Segment>, Failure> {
    let read = app.store.log_read(run.org, run.id, after, bytes_max).await;
    let is_suspect = match &read {
        Ok(segments) => segments.is_empty() && run.state == RunState::Ended,
        Err(error) => matches!(error, Error::Corrupt { .. }),
    };
    if is_suspect {
        readable(app, run.org, run.id).await?;
    }
    Ok(read?)
}

/// The sequence that the next entry of a log must have, for those who read it: to them its damage is that of the log.
pub async fn log_head(app: &App, org: OrgId, id: RunId) -> Result<u64, Failure> {
    app.store.log_head(org, id).await.map_err(|error| match error {
        Error::Corrupt { .. } => Failure::log_damaged(error),
        other => other.into(),
    })
}

/// Up to `limit` entries after the sequence `after`; fewer where they are large.
pub async fn log_page(app: &App, org: OrgId, id: RunId, after: u64, limit: u32) -> Result<LogPage, Failure> {
    unless_deleted(app, org, id, |run| page(app, run, after, limit)).await
}

/// The page of a run that was looked at before: nothing is appended once a run has ended, so what is read of one that has
/// is all of it.
async fn page(app: &App, run: Run, after: u64, limit: u32) -> Result<LogPage, Failure> {
    let Run { org, id, state, .. } = run;
    let segments = app.store.log_read(org, id, after, LOG_PAGE_BYTES_MAX).await?;
    let (mut entries, mut read, mut last_seq) = (Vec::new(), 0, after);
    'page: for segment in &segments {
        for batch in batches(&segment.bytes, id)?.iter().filter(|batch| batch.last_seq() > after) {
            for entry in opened(batch, id)?.iter().filter(|entry| entry.seq > after) {
                if entries.len() >= limit as usize || (read > 0 && read + entry.data.len() > LOG_PAGE_BYTES_MAX) {
                    break 'page;
                }
                (read, last_seq) = (read + entry.data.len(), entry.seq);
                entries.push(LogEntry::from(entry));
            }
            // What follows the last entry are notes.
            last_seq = batch.last_seq();
        }
    }
    let complete = state == RunState::Ended && last_seq.saturating_add(1) >= log_head(app, org, id).await?;
    Ok(LogPage { entries, last_seq, complete })
}

/// Up to `limit` records of what the run reached, and was refused, after the sequence `after`; fewer where the log is long.
pub async fn egress_page(app: &App, org: OrgId, id: RunId, after: u64, limit: u32) -> Result<EgressPage, Failure> {
    unless_deleted(app, org, id, |run| records(app, run, after, limit)).await
}

async fn records(app: &App, run: Run, after: u64, limit: u32) -> Result<EgressPage, Failure> {
    let Run { org, id, state, .. } = run;
    let segments = app.store.log_read(org, id, after, RECORDS_READ_BYTES).await?;
    // Unpacking is work for the processor: other requests do not wait for it.
    let look = move || records_of(&segments, id, after, limit as usize);
    let (records, last_seq) = tokio::task::spawn_blocking(look).await.map_err(Failure::internal)??;
    let complete = state == RunState::Ended && last_seq.saturating_add(1) >= log_head(app, org, id).await?;
    Ok(EgressPage { records, last_seq, complete })
}

/// The records after the sequence `after`, as many as are found in a while, and up to where was looked.
fn records_of(segments: &[Segment], id: RunId, after: u64, limit: usize) -> Result<(Vec<EgressRecord>, u64), Failure> {
    let (mut records, mut last_seq, mut bytes) = (Vec::new(), after, 0);
    let ends_at = Instant::now() + RECORDS_LOOK_FOR;
    for segment in segments {
        for batch in batches(&segment.bytes, id)?.iter().filter(|batch| batch.last_seq() > after) {
            for note in opened(batch, id)?.notes().filter(|note| note.seq > after) {
                if records.len() >= limit || bytes >= LOG_PAGE_BYTES_MAX {
                    return Ok((records, last_seq));
                }
                (last_seq, bytes) = (note.seq, bytes + note.data.len());
                let record = serde_json::from_slice(note.data);
                let record = record.map_err(|error| Failure::log_damaged(format!("a record of {id}: {error}")))?;
                records.push(EgressRecord { seq: note.seq, at: note.at, record });
            }
            last_seq = batch.last_seq();
            if Instant::now() >= ends_at {
                return Ok((records, last_seq));
            }
        }
    }
    Ok((records, last_seq))
}

fn batches(bytes: &[u8], run: RunId) -> Result<Vec<Batch<'_>>, Failure> {
    parse_all(bytes).map_err(|error| damaged(run, error))
}

/// The entries of a batch. One at a time bounds what a reader holds, however well they were packed.
fn opened<'a>(batch: &Batch<'a>, run: RunId) -> Result<Entries<'a>, Failure> {
    batch.read().map_err(|error| damaged(run, error))
}

fn damaged(run: RunId, error: BatchError) -> Failure {
    Failure::log_damaged(format!("a stored segment of the log of {run}: {error}"))
}

/// The data of an event in the place of what is none of the output: nothing is missing there.
#[derive(Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct LogNote {
    /// Its sequence.
    pub seq: u64,
}

/// The data of the last event of a followed log.
#[derive(Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct LogEnd {
    /// The sequence of the last entry; 0 if there was none.
    pub last_seq: u64,
}

/// How much of a log is read at once for records of egress, packed, and for how long it is looked through.
const RECORDS_READ_BYTES: usize = 1024 * 1024;
const RECORDS_LOOK_FOR: Duration = Duration::from_secs(2);
/// From how many bytes of events on no further one is added to a piece that is sent.
const FOLLOW_SENT_BYTES: usize = 256 * 1024;

/// A log that is followed from a position on.
#[derive(Debug)]
pub struct LogSource {
    org: OrgId,
    run: RunId,
    after: u64,
    /// What was read and is not yet sent.
    ahead: VecDeque<Bytes>,
}

impl LogSource {
    /// Follows the log of `run` after the sequence `after`.
    pub fn new(org: OrgId, run: RunId, after: u64) -> Self {
        Self { org, run, after, ahead: VecDeque::new() }
    }

    /// The events of the next batch that was read ahead, or of a part of it; nothing if there is none. One piece at a time
    /// bounds what a stream holds in memory beside what it read.
    fn take_batch(&mut self) -> Result<Option<Bytes>, Failure> {
        while let Some(mut bytes) = self.ahead.pop_front() {
            let (batch, rest) = Batch::parse(&bytes).map_err(|error| damaged(self.run, error))?;
            let mut out = Vec::new();
            if batch.last_seq() > self.after {
                let (entries, after) = (opened(&batch, self.run)?, self.after);
                let seq = |line: &Line<'_>| match line {
                    Line::Output(entry) => entry.seq,
                    Line::Note(note) => note.seq,
                };
                for line in entries.lines().skip_while(|line| seq(line) <= after) {
                    if out.len() >= FOLLOW_SENT_BYTES {
                        break;
                    }
                    self.after = seq(&line);
                    match line {
                        Line::Output(entry) => {
                            write_event(&mut out, "log", Some(entry.seq), &LogEntry::from(entry))?;
                        }
                        Line::Note(note) => write_event(&mut out, "note", Some(note.seq), &LogNote { seq: note.seq })?,
                    }
                }
            }
            let length = if batch.last_seq() > self.after { 0 } else { bytes.len() - rest.len() };
            let rest = bytes.split_off(length);
            if !rest.is_empty() {
                self.ahead.push_front(rest);
            }
            if !out.is_empty() {
                return Ok(Some(out.into()));
            }
        }
        Ok(None)
    }
}

impl Source for LogSource {
    const MEDIA_TYPE: &'static str = EVENT_STREAM;
    const ALIVE: &'static [u8] = ALIVE_COMMENT;

    async fn step(&mut self, app: &App) -> Result<Step, Failure> {
        if let Some(events) = self.take_batch()? {
            return Ok(Step::New(events));
        }
        // The state first: nothing is appended once a run has ended, so what is read afterwards is all of it.
        let run = readable(app, self.org, self.run).await?;
        let segments = read_on(app, &run, self.after, FOLLOW_READ_BYTES).await?;
        self.ahead.extend(segments.into_iter().map(|segment| segment.bytes));
        if let Some(events) = self.take_batch()? {
            return Ok(Step::New(events));
        }
        if run.state != RunState::Ended {
            return Ok(Step::Quiet);
        }
        let head = log_head(app, self.org, self.run).await?;
        let mut out = Vec::new();
        write_event(&mut out, "end", None, &LogEnd { last_seq: head.saturating_sub(1) })?;
        Ok(Step::End(out.into()))
    }
}

#[cfg(test)]
mod tests {
    use holm_domain::{
        UnixMicros,
        log::{BatchBuilder, Stream},
    };

    use super::*;

    fn batch(first: u64, count: u64) -> Vec<u8> {
        let mut builder = BatchBuilder::new(first);
        for seq in first..first + count {
            assert!(builder.push(UnixMicros(1), Stream::Stdout, false, format!("{seq}\n").as_bytes()));
        }
        let mut bytes = Vec::new();
        builder.finish(|made| std::io::Write::write_all(&mut bytes, made)).unwrap();
        bytes
    }

    #[test]
    fn batches_of_a_body_follow_each_other() {
        assert_eq!(sequences(&[batch(5, 2), batch(7, 1)].concat()).unwrap(), (5, 7));
        for body in
            [Vec::new(), b"HLB3".to_vec(), [batch(5, 2), batch(8, 1)].concat(), [batch(5, 2), batch(5, 2)].concat()]
        {
            assert_eq!(sequences(&body).unwrap_err().code(), ErrorCode::InvalidRequest);
        }
    }

    #[test]
    fn a_follower_sends_what_is_after_its_position_batch_by_batch() {
        let id = uuid::Uuid::from_u128(1);
        let mut source = LogSource::new(OrgId::from_uuid(id), RunId::from_uuid(id), 3);
        source.ahead.push_back([batch(1, 2), batch(3, 2), batch(5, 1)].concat().into());
        let ids = |bytes: Option<Bytes>| {
            let text = String::from_utf8(bytes.unwrap_or_default().to_vec()).unwrap();
            text.lines().filter_map(|line| line.strip_prefix("id: ")).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(ids(source.take_batch().unwrap()), ["4"]);
        assert_eq!(ids(source.take_batch().unwrap()), ["5"]);
        assert!(source.take_batch().unwrap().is_none());
        assert_eq!(source.after, 5);
    }
}
