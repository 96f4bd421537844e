//! `holm logs`: the output of a run, as it was written.

use anyhow::Context as _;
use clap::Args;
use holm_api::{client::Client, logs::LogEntry, runs::After};
use holm_domain::RunId;

use super::instant;
use crate::{output::RawStreams, session::Session};

/// How many entries are asked for at once.
const PAGE: u32 = 1_000;

/// The flags of `holm logs`.
#[derive(Debug, Clone, Args)]
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
}

/// Writes the output of the run: its standard output to standard output, its standard error to standard error.
pub async fn execute(session: &Session, args: &LogsArgs) -> anyhow::Result<u8> {
    let client = session.client().await?;
    let mut writer =
        Writer { session, streams: RawStreams::open()?, timestamps: args.timestamps, line_open: [false; 2] };
    if args.follow {
        let mut follower = client.run_logs_follow(args.run, args.after);
        while let Some(entry) = follower.next().await? {
            writer.write(&entry)?;
        }
    } else {
        pages(&client, args, &mut writer).await?;
    }
    writer.streams.finish()?;
    Ok(0)
}

async fn pages(client: &Client, args: &LogsArgs, writer: &mut Writer<'_>) -> anyhow::Result<()> {
    let mut after = args.after;
    loop {
        let page = client.run_logs(args.run, &After { after: Some(after), limit: Some(PAGE) }).await?;
        page.entries.iter().try_for_each(|entry| writer.write(entry))?;
        // What is written from now on is for `--follow`: a page that brings nothing is the end.
        if page.complete || page.entries.is_empty() || page.last_seq <= after {
            return Ok(());
        }
        after = page.last_seq;
    }
}

struct Writer<'a> {
    session: &'a Session,
    streams: RawStreams,
    timestamps: bool,
    /// Whether the line of each stream goes on in the next entry, so that its time stands before it already.
    line_open: [bool; 2],
}

impl Writer<'_> {
    fn write(&mut self, entry: &LogEntry) -> anyhow::Result<()> {
        if self.session.output.json {
            return Ok(self.session.output.value_line(entry)?);
        }
        let bytes = entry.bytes().with_context(|| format!("log entry {} bears no data that can be read", entry.seq))?;
        let line_open = &mut self.line_open[entry.stream as usize];
        if self.timestamps && !*line_open {
            self.streams.write(entry.stream, format!("{} ", instant(entry.at)).as_bytes())?;
        }
        *line_open = entry.partial;
        Ok(self.streams.write(entry.stream, &bytes)?)
    }
}
