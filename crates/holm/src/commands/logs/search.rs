//! `holm logs --search`: lines that contain something, each after its sequence, as they are found.

use anyhow::Context as _;
use holm_api::{
    client::Client,
    logs::{LogMatch, LogRange, SearchLogs},
};
use holm_domain::log::Stream;

use super::{
    LINE_SHOWN_BYTES_MAX, LogsArgs,
    lines::{marker, whole_characters},
};
use crate::{commands::instant, output::RawStreams, session::Session};

/// The exit code where nothing was found, as grep(1) has it.
const EXIT_NOT_FOUND: u8 = 1;

/// Searches a part of a log.
pub async fn execute(
    session: &Session,
    client: &Client,
    args: &LogsArgs,
    range: LogRange,
    pattern: &str,
) -> anyhow::Result<u8> {
    let (text, regex) = if args.regex { (None, Some(pattern)) } else { (Some(pattern), None) };
    let mut query = SearchLogs {
        text: text.map(str::to_owned),
        regex: regex.map(str::to_owned),
        after: Some(range.after),
        upto: Some(range.last_seq),
        limit: None,
    };
    let (mut streams, mut found) = (RawStreams::open()?, false);
    loop {
        let page = client.run_logs_search(args.run, &query).await?;
        for line in &page.matches {
            found = true;
            if session.output.json {
                session.output.value_line(line)?;
            } else {
                streams.write(Stream::Stdout, &shown(line, args.timestamps)?)?;
            }
        }
        if page.complete {
            break;
        }
        query.after = Some(page.last_seq);
    }
    streams.finish()?;
    Ok(if found { 0 } else { EXIT_NOT_FOUND })
}

/// `SEQUENCE:LINE`, cut where the line is long.
fn shown(found: &LogMatch, timestamps: bool) -> anyhow::Result<Vec<u8>> {
    let entry = &found.line;
    let bytes = entry.bytes().with_context(|| format!("log entry {} bears no data that can be read", entry.seq))?;
    let line = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let kept = whole_characters(line, LINE_SHOWN_BYTES_MAX);
    let mut shown = format!("{}:", entry.seq).into_bytes();
    if timestamps {
        shown.extend_from_slice(format!("{} ", instant(entry.at)).as_bytes());
    }
    shown.extend_from_slice(&line[..kept]);
    if kept < line.len() {
        shown.extend_from_slice(marker((line.len() - kept) as u64).as_bytes());
    }
    shown.push(b'\n');
    Ok(shown)
}
