//! Lines of a log that contain a text or match a regular expression.
//!
//! A search looks at the log piece by piece and answers after a while with what it has and where it is; the client asks
//! again from there. What always holds: memory and time of one answer are bounded, whatever the log and the pattern; the
//! compiled pattern has a limit, and matching takes time proportional to what is matched (the crate `regex` does not
//! backtrack); no line is found twice or missed because answers are cut between its pieces. Of a line that is longer than
//! [`LINE_BYTES_MAX`], that much is matched at a time.

use std::time::Duration;

use holm_api::logs::{LogEntry, LogMatch, LogMatches, SearchLogs};
use holm_domain::{
    OrgId, RunId,
    error::InvalidField,
    log::{ENTRY_BYTES_MAX, Entry},
    run::Run,
};
use holm_store::Segment;
use regex::bytes::{Regex, RegexBuilder};
use tokio::time::Instant;

use super::{batches, log_head, opened, unless_deleted};
use crate::{
    app::App,
    config::{ENTRIES_PAGE_DEFAULT, ENTRIES_PAGE_MAX, LOG_PAGE_BYTES_MAX},
    http::extract::within,
    problem::Failure,
};

/// The longest text or expression, in bytes.
const PATTERN_BYTES_MAX: usize = 1_024;
/// The most memory that a compiled expression takes, in bytes, and as much again for what it learns while it matches.
const PROGRAM_BYTES_MAX: usize = 1024 * 1024;
/// The longest line that is matched as a whole, in bytes.
const LINE_BYTES_MAX: usize = ENTRY_BYTES_MAX;
/// How many bytes of batches one look reads.
const LOOK_BYTES: usize = 1024 * 1024;
/// After how long an answer goes out, with whatever was found.
const LOOKS_FOR: Duration = Duration::from_secs(2);

/// Looks for lines.
pub async fn log_search(app: &App, org: OrgId, id: RunId, query: &SearchLogs) -> Result<LogMatches, Failure> {
    let limit = within("limit", query.limit.unwrap_or(ENTRIES_PAGE_DEFAULT).into(), 1, ENTRIES_PAGE_MAX.into())?;
    let regex = compile(query)?;
    unless_deleted(app, org, id, |run| search(app, run, query, regex, limit)).await
}

async fn search(app: &App, run: Run, query: &SearchLogs, regex: Regex, limit: u64) -> Result<LogMatches, Failure> {
    let Run { org, id, .. } = run;
    let _pass = app.searches.enter(org)?;
    let last_seq = log_head(app, org, id).await?.saturating_sub(1);
    let (after, upto) = (query.after.unwrap_or(0), query.upto.unwrap_or(u64::MAX).min(last_seq));
    let ends_at = Instant::now() + LOOKS_FOR;
    let mut search =
        Search { regex, id, after, upto, limit, ends_at, open: Default::default(), found: Vec::new(), bytes: 0 };
    if after > 0 && after < upto {
        search = search.look(opening(app, org, id, after).await?).await?;
    }
    while !search.is_over() {
        let segments = app.store.log_read(org, id, search.after, LOOK_BYTES).await?;
        if segments.is_empty() {
            return Err(Failure::not_found("run", id));
        }
        search = search.look(segments).await?;
    }
    if search.is_complete() {
        search.finish();
    }
    Ok(LogMatches { complete: search.is_complete(), last_seq: search.after, matches: search.found })
}

/// What opens the lines that are open behind `after`: as much of them as is matched at a time. Nothing where that is damaged:
/// whoever searches from behind damage begins there.
async fn opening(app: &App, org: OrgId, id: RunId, after: u64) -> Result<Vec<Segment>, Failure> {
    match app.store.log_read_back(org, id, after, 2 * LINE_BYTES_MAX).await {
        Err(error) if error.is_damaged_log() => Ok(Vec::new()),
        read => Ok(read?),
    }
}

/// The one pattern that was given.
fn compile(query: &SearchLogs) -> Result<Regex, Failure> {
    let (field, given) = match (&query.text, &query.regex) {
        (Some(text), None) => ("text", text),
        (None, Some(regex)) => ("regex", regex),
        (text, _) => {
            let problem = "give either `text` or `regex`";
            return Err(InvalidField::new("text", text.clone().unwrap_or_default(), problem).into());
        }
    };
    if given.is_empty() || given.len() > PATTERN_BYTES_MAX {
        return Err(InvalidField::new(field, given, format!("give 1 to {PATTERN_BYTES_MAX} bytes")).into());
    }
    let pattern = if field == "text" { regex::escape(given) } else { given.clone() };
    let built = RegexBuilder::new(&pattern).size_limit(PROGRAM_BYTES_MAX).dfa_size_limit(PROGRAM_BYTES_MAX).build();
    built.map_err(|error| {
        let problem = match error {
            regex::Error::CompiledTooBig(_) => {
                "it is too large when compiled; repeat less, or look for `text`".to_owned()
            }
            other => format!("{other}; to look for these characters as they are, give them as `text`"),
        };
        InvalidField::new(field, given, problem).into()
    })
}

/// A line of one stream of which the end has not come.
#[derive(Debug, Default)]
struct Open {
    first_seq: u64,
    bytes: Vec<u8>,
    /// Its last piece so far, without the bytes.
    last: Option<LogEntry>,
}

/// How far a search has come.
#[derive(Debug)]
struct Search {
    regex: Regex,
    id: RunId,
    /// Up to here was looked.
    after: u64,
    upto: u64,
    limit: u64,
    ends_at: Instant,
    open: [Open; 2],
    found: Vec<LogMatch>,
    /// Of the lines that were found.
    bytes: usize,
}

impl Search {
    fn is_complete(&self) -> bool {
        self.after >= self.upto
    }

    fn is_full(&self) -> bool {
        self.found.len() as u64 >= self.limit || self.bytes >= LOG_PAGE_BYTES_MAX
    }

    fn is_over(&self) -> bool {
        self.is_complete() || self.is_full() || Instant::now() >= self.ends_at
    }

    /// Matching is work for the processor: other requests do not wait for it.
    async fn look(mut self, segments: Vec<Segment>) -> Result<Self, Failure> {
        let looked = tokio::task::spawn_blocking(move || {
            let looked = self.look_now(&segments);
            (self, looked)
        });
        let (search, looked) = looked.await.map_err(Failure::internal)?;
        looked.map(|()| search)
    }

    fn look_now(&mut self, segments: &[Segment]) -> Result<(), Failure> {
        for segment in segments {
            for batch in batches(&segment.bytes, self.id)? {
                for entry in opened(&batch, self.id)?.iter() {
                    if entry.seq > self.after && (self.is_complete() || self.is_full()) {
                        return Ok(());
                    }
                    self.take(&entry);
                }
                // What follows the last of its output are notes.
                self.after = self.after.max(batch.last_seq().min(self.upto));
                // Batches that were packed well are many: time may run out among them.
                if batch.last_seq() == self.after && self.is_over() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// An entry at or before `after` was told of before: it only opens lines.
    fn take(&mut self, entry: &Entry<'_>) {
        let is_new = entry.seq > self.after;
        let open = &mut self.open[entry.stream as usize];
        if is_new && open.bytes.is_empty() && !entry.partial {
            // Nearly every line comes in one piece.
            self.after = entry.seq;
            if self.regex.is_match(without_line_feed(entry.data)) {
                self.keep(entry.seq, LogEntry::from(entry.clone()), entry.data.len());
            }
            return;
        }
        if open.bytes.len() + entry.data.len() > LINE_BYTES_MAX {
            self.close(entry.stream as usize, is_new);
        }
        let open = &mut self.open[entry.stream as usize];
        if open.bytes.is_empty() {
            open.first_seq = entry.seq;
        }
        open.bytes.extend_from_slice(entry.data);
        open.last = Some(LogEntry::from(Entry { data: b"", ..entry.clone() }));
        if !entry.partial {
            self.close(entry.stream as usize, is_new);
        }
        self.after = self.after.max(entry.seq);
    }

    /// Matches what there is of a line, and forgets it.
    fn close(&mut self, stream: usize, is_new: bool) {
        let Open { first_seq, bytes, last } = std::mem::take(&mut self.open[stream]);
        let Some(last) = last.filter(|_| is_new && self.regex.is_match(without_line_feed(&bytes))) else { return };
        let whole = Entry { seq: last.seq, at: last.at, stream: last.stream, partial: last.partial, data: &bytes };
        self.keep(first_seq, LogEntry::from(whole), bytes.len());
    }

    fn keep(&mut self, first_seq: u64, line: LogEntry, bytes: usize) {
        self.bytes += bytes;
        self.found.push(LogMatch { first_seq, line });
    }

    /// Nothing more comes: lines whose end is missing are matched as they are.
    fn finish(&mut self) {
        (0..self.open.len()).for_each(|stream| self.close(stream, true));
        self.found.sort_by_key(|found| found.line.seq);
    }
}

fn without_line_feed(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\n").unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use holm_domain::{UnixMicros, log::Stream};
    use uuid::Uuid;

    use super::*;

    fn search(query: &SearchLogs, upto: u64, limit: u64) -> Search {
        let id = RunId::from_uuid(Uuid::from_u128(1));
        let regex = compile(query).unwrap();
        let ends_at = Instant::now() + LOOKS_FOR;
        Search { regex, id, after: 0, upto, limit, ends_at, open: Default::default(), found: Vec::new(), bytes: 0 }
    }

    fn text(text: &str) -> SearchLogs {
        SearchLogs { text: Some(text.to_owned()), ..SearchLogs::default() }
    }

    fn entry(seq: u64, data: &[u8], partial: bool) -> Entry<'_> {
        Entry { seq, at: UnixMicros(1), stream: Stream::Stdout, partial, data }
    }

    #[test]
    fn a_line_in_pieces_is_one_line() {
        let mut search = search(&text("needle"), 9, 10);
        search.take(&entry(1, b"nee", true));
        search.take(&Entry { stream: Stream::Stderr, ..entry(2, b"dle\n", false) });
        search.take(&entry(3, b"dle\n", false));
        search.take(&entry(4, b"a needle", true));
        search.finish();
        let found: Vec<_> = search.found.iter().map(|it| (it.first_seq, it.line.seq, it.line.text.clone())).collect();
        assert_eq!(found, [(1, 3, Some("needle\n".to_owned())), (4, 4, Some("a needle".to_owned()))]);
    }

    #[test]
    fn an_endless_line_is_matched_in_bounded_pieces() {
        let mut search = search(&text("needle"), 9_999, 10);
        let piece = [vec![b'x'; 40_000], b"needle".to_vec()].concat();
        for seq in 1..=20 {
            search.take(&entry(seq, &piece, true));
            assert!(search.open[0].bytes.len() <= LINE_BYTES_MAX);
        }
        assert_eq!(search.found.len(), 19);
    }

    #[test]
    fn anchors_mean_the_line_and_patterns_have_limits() {
        let regex = |regex: &str| SearchLogs { regex: Some(regex.to_owned()), ..SearchLogs::default() };
        let mut anchored = search(&regex("^a.c$"), 9, 10);
        for (seq, line) in [&b"abc\n"[..], b"abcd\n", b"xabc\n", b"a\xffc\n"].into_iter().enumerate() {
            anchored.take(&entry(seq as u64 + 1, line, false));
        }
        assert_eq!(anchored.found.len(), 1);
        for (query, field) in [
            (regex("("), "regex"),
            (regex("(?:a{1000}){1000}"), "regex"),
            (regex(""), "regex"),
            (text(&"x".repeat(1_025)), "text"),
            (SearchLogs::default(), "text"),
            (SearchLogs { text: Some("a".into()), ..regex("a") }, "text"),
        ] {
            let problem = compile(&query).unwrap_err().into_problem();
            assert_eq!(problem.field.as_deref(), Some(field), "{query:?}");
        }
        assert!(compile(&text("a.(b")).unwrap().is_match(b"xa.(bx"), "a text is no expression");
    }
}
