//! Which part of a log is meant: by time, and by the number of lines from the end.
//!
//! A range is one row of sequences. It begins with the first entry that is not older than `since` and ends before the
//! first that is newer than `until`, also where the clock of the host was set back in between.

use holm_api::logs::{LogRange, LogRangeOf};
use holm_domain::{
    OrgId, RunId, UnixMicros,
    log::{Batch, Stream},
    run::{Run, RunState},
};
use holm_store::Segment;

use super::{batches, log_head, opened, unless_deleted};
use crate::{app::App, problem::Failure};

/// How many bytes of batches one look reads.
const LOOK_BYTES: usize = 1024 * 1024;

/// The part of the log of a run that is meant.
pub async fn log_range(app: &App, org: OrgId, id: RunId, of: &LogRangeOf) -> Result<LogRange, Failure> {
    unless_deleted(app, org, id, |run| range(app, run, of)).await
}

/// The range of a run that was looked at before: nothing is appended once a run has ended.
async fn range(app: &App, run: Run, of: &LogRangeOf) -> Result<LogRange, Failure> {
    let Run { org, id, state, .. } = run;
    let mut open = state != RunState::Ended;
    let mut last_seq = log_head(app, org, id).await?.saturating_sub(1);
    let mut after = 0;
    if let Some(since) = of.since {
        after = first_at(app, org, id, since).await?.map_or(last_seq, |seq| seq - 1);
    }
    if let Some(until) = of.until
        && let Some(beyond) = first_at(app, org, id, UnixMicros(until.0.saturating_add(1))).await?
    {
        open = false;
        last_seq = last_seq.min(beyond - 1);
    }
    if let Some(lines) = of.tail {
        after = after.max(before_lines(app, org, id, last_seq, lines).await?);
    }
    Ok(LogRange { after: after.min(last_seq), last_seq, open })
}

/// The first entry that is not older than `at`.
async fn first_at(app: &App, org: OrgId, id: RunId, at: UnixMicros) -> Result<Option<u64>, Failure> {
    let Some(near) = app.store.log_at(org, id, at).await? else { return Ok(None) };
    let mut after = near.saturating_sub(1);
    loop {
        let segments = app.store.log_read(org, id, after, LOOK_BYTES).await?;
        let Some(last) = segments.last() else { return Ok(None) };
        for segment in &segments {
            let is_wanted = |batch: &&Batch<'_>| batch.last_seq() > after && batch.newest_at() >= at;
            for batch in batches(&segment.bytes, id)?.iter().filter(is_wanted) {
                let entries = opened(batch, id)?;
                if let Some(entry) = entries.iter().find(|entry| entry.seq > after && entry.at >= at) {
                    return Ok(Some(entry.seq));
                }
            }
        }
        after = last.last_seq;
    }
}

/// The sequence after which the last `lines` lines up to `upto` end.
async fn before_lines(app: &App, org: OrgId, id: RunId, upto: u64, lines: u32) -> Result<u64, Failure> {
    let _pass = app.searches.enter(org)?;
    let (mut counter, mut upto) = (Backwards::new(lines), upto);
    while upto > 0 {
        let segments = app.store.log_read_back(org, id, upto, LOOK_BYTES).await?;
        let Some(first_seq) = segments.first().map(|segment| segment.first_seq) else { return Ok(0) };
        // Unpacking is work for the processor: other requests do not wait for it.
        let look = move || look_back(&segments, id, upto, counter);
        let found;
        (found, counter) = tokio::task::spawn_blocking(look).await.map_err(Failure::internal)??;
        if let Some(seq) = found {
            return Ok(seq);
        }
        upto = first_seq.saturating_sub(1);
    }
    Ok(0)
}

/// The entry up to `upto` with which the counter is full, if it is among these, and how far it has counted.
fn look_back(
    segments: &[Segment],
    id: RunId,
    upto: u64,
    mut counter: Backwards,
) -> Result<(Option<u64>, Backwards), Failure> {
    for segment in segments.iter().rev() {
        for batch in batches(&segment.bytes, id)?.iter().rev().filter(|batch| batch.first_seq() <= upto) {
            let entries = opened(batch, id)?;
            let told = entries.iter().take_while(|entry| entry.seq <= upto);
            let told: Vec<_> = told.map(|entry| (entry.seq, entry.stream, entry.partial)).collect();
            if let Some((seq, ..)) = told.iter().rev().find(|(_, stream, partial)| counter.is_full(*stream, *partial)) {
                return Ok((Some(*seq), counter));
            }
        }
    }
    Ok((None, counter))
}

/// Counts lines from the last entry to the first. A line ends with its last piece; the last of a stream may be unfinished.
#[derive(Debug)]
struct Backwards {
    left: u32,
    seen: [bool; 2],
}

impl Backwards {
    fn new(lines: u32) -> Self {
        Self { left: lines, seen: [false; 2] }
    }

    /// Whether the next entry towards the beginning is the end of a line too many.
    fn is_full(&mut self, stream: Stream, partial: bool) -> bool {
        let seen = std::mem::replace(&mut self.seen[stream as usize], true);
        if partial && seen {
            return false;
        }
        let is_full = self.left == 0;
        self.left = self.left.saturating_sub(1);
        is_full
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Entries oldest first: `o` and `e` end a line of standard output or error, `O` and `E` are pieces of one.
    fn kept(entries: &str, lines: u32) -> &str {
        let mut counter = Backwards::new(lines);
        let full = entries.bytes().rev().position(|entry| {
            let stream = if entry.eq_ignore_ascii_case(&b'o') { Stream::Stdout } else { Stream::Stderr };
            counter.is_full(stream, entry.is_ascii_uppercase())
        });
        &entries[entries.len() - full.unwrap_or(entries.len())..]
    }

    #[test]
    fn lines_are_counted_and_not_pieces() {
        assert_eq!(kept("ooeo", 2), "eo");
        assert_eq!(kept("ooeo", 0), "");
        assert_eq!(kept("ooeo", 9), "ooeo");
        assert_eq!(kept("oOOoOOo", 1), "OOo");
        assert_eq!(kept("ooOO", 1), "OO", "an unfinished line is one");
        assert_eq!(kept("ooOEe", 2), "OEe", "the unfinished line, and one of the other stream");
        assert_eq!(kept("", 3), "");
    }
}
