//! `holm logs`: the output of a run, as it was written, or the lines of it that contain something.
//!
//! The log is read as the batches in which it is stored and taken apart here. Who reads lines (a terminal, `--timestamps`,
//! `--search`) is shown [`LINE_SHOWN_BYTES_MAX`] of each, and told how much was left out; everybody else gets every byte.

mod lines;
mod search;

use std::io::IsTerminal as _;

use clap::Args;
use holm_api::{
    batches::LogBatch,
    client::{Client, ClientError},
    logs::{LogEntry, LogRange, LogRangeOf},
};
use holm_domain::{RunId, UnixMicros, log::Entry};

use crate::{output::RawStreams, session::Session, units};
use lines::Lines;

/// How much of a line is shown where lines are shown, in bytes.
pub const LINE_SHOWN_BYTES_MAX: usize = 16 * 1024;

/// The flags of `holm logs`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  holm logs -f --tail 20 RUN                       the last lines, and what is to come
  holm logs --since 10m RUN                        what was written in the last ten minutes
  holm logs --since 2026-11-26T14:00:00Z --until 2026-11-26T14:05:00Z RUN
  holm logs --search 'connection refused' RUN      lines that contain it, each after its number
  holm logs --search 'HTTP/1.1\" 5\\d\\d' --regex RUN

In a pipe or a file, output is exactly what the command wrote. On a terminal, with --timestamps
and with --search, a line is cut after 16 KiB, and the cut is marked.")]
pub struct LogsArgs {
    /// The run
    #[arg(value_name = "RUN")]
    pub run: RunId,
    /// Go on until the run has ended
    #[arg(short, long)]
    pub follow: bool,
    /// Put the time before each line
    #[arg(short, long)]
    pub timestamps: bool,
    /// Only what comes after this sequence
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    pub after: u64,
    /// Only the last lines: a number up to 100000, or `all`
    #[arg(short = 'n', long, value_name = "LINES", value_parser = tail)]
    pub tail: Option<Tail>,
    /// Only from this time on: RFC 3339, or a duration before now such as `10m`
    #[arg(long, value_name = "TIME", value_parser = units::time)]
    pub since: Option<UnixMicros>,
    /// Only up to this time
    #[arg(long, value_name = "TIME", value_parser = units::time)]
    pub until: Option<UnixMicros>,
    /// Only lines that contain this text, each after its sequence
    #[arg(long, value_name = "TEXT", conflicts_with = "follow")]
    pub search: Option<String>,
    /// The text of --search is a regular expression
    #[arg(long, requires = "search")]
    pub regex: bool,
}

/// How many lines from the end; nothing means all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail(Option<u32>);

fn tail(text: &str) -> Result<Tail, String> {
    if text == "all" {
        return Ok(Tail(None));
    }
    let lines = text.parse().map_err(|_| "give a number of lines, or `all`".to_owned())?;
    Ok(Tail(Some(lines)))
}

/// Writes the output of the run: its standard output to standard output, its standard error to standard error.
pub async fn execute(session: &Session, args: &LogsArgs) -> anyhow::Result<u8> {
    let client = session.client().await?;
    let range = range(&client, args).await?;
    if let Some(pattern) = &args.search {
        return search::execute(session, &client, args, range, pattern).await;
    }
    let follows = args.follow && range.open;
    let output = session.output;
    let tell = move |error: &ClientError| output.note(format!("{error}; trying again"));
    let upto = (!follows).then_some(range.last_seq);
    let mut batches = client.run_logs_batches(args.run, range.after, upto).telling(tell);
    let until = args.until.filter(|_| follows);
    let cut = args.timestamps || std::io::stdout().is_terminal();
    let lines = Lines::new(RawStreams::open()?, args.timestamps, cut.then_some(LINE_SHOWN_BYTES_MAX));
    let mut writer = Writer { session, lines };
    while let Some(batch) = batches.next().await? {
        if !writer.batch(&batch, if follows { u64::MAX } else { range.last_seq }, until)? {
            break;
        }
    }
    writer.lines.finish()?;
    Ok(0)
}

/// The part of the log that the flags mean.
async fn range(client: &Client, args: &LogsArgs) -> anyhow::Result<LogRange> {
    let tail = args.tail.and_then(|tail| tail.0);
    let of = LogRangeOf { since: args.since, until: args.until, tail };
    let range = client.run_logs_range(args.run, &of).await?;
    let after = range.after.max(args.after);
    Ok(LogRange { after, last_seq: range.last_seq.max(after), ..range })
}

struct Writer<'a> {
    session: &'a Session,
    lines: Lines,
}

impl Writer<'_> {
    /// Writes what is wanted of a batch; returns whether more is.
    fn batch(&mut self, batch: &LogBatch, upto: u64, until: Option<UnixMicros>) -> anyhow::Result<bool> {
        for entry in batch.entries() {
            if entry.seq > upto || until.is_some_and(|until| entry.at > until) {
                return Ok(false);
            }
            self.entry(&entry)?;
        }
        self.lines.flush()?;
        Ok(true)
    }

    fn entry(&mut self, entry: &Entry<'_>) -> anyhow::Result<()> {
        if self.session.output.json {
            return Ok(self.session.output.value_line(&LogEntry::from(entry.clone()))?);
        }
        Ok(self.lines.entry(entry)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_are_numbers_or_all() {
        assert_eq!(tail("0"), Ok(Tail(Some(0))));
        assert_eq!(tail("all"), Ok(Tail(None)));
        for bad in ["", "-1", "ten", "99999999999"] {
            assert!(tail(bad).is_err(), "{bad}");
        }
    }
}
