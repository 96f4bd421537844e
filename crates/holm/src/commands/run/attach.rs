//! Follows a run to its end: bytes to the standard streams, signals to the run.
//!
//! What always holds: the bytes of each stream are exactly those of the command; a slow reader of the output holds neither
//! signals nor cancellation up, and costs a bounded amount of memory; when output cannot be written any more the run is
//! asked to end, as a command in a pipeline would be by SIGPIPE.

use std::{collections::VecDeque, future::pending, io, time::Duration};

use anyhow::Context as _;
use holm_api::{
    batches::LogBatch,
    client::{Client, ClientError},
    logs::LogEntry,
    runs::{CancelRun, RunView},
};
use holm_domain::{
    RunId,
    log::Stream,
    run::{Cancel, OutcomeKind},
};
use serde::Serialize;
use tokio::{
    sync::mpsc::{self, Permit, error::SendError},
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{super::advice, progress::Progress, signals::Interrupts};
use crate::{
    output::{EXIT_PIPE, RawStreams},
    session::Session,
};

/// How many pieces of output wait for a slow reader; each is of one batch, and has at most 1 MiB.
const PIECES_MAX: usize = 8;
/// How many pieces are put together before they are written.
const JOIN_BYTES_MAX: usize = 64 * 1024;

/// How following ended.
pub enum End {
    /// The run ended.
    Run(Box<RunView>),
    /// This process is to end with this code, whatever becomes of the run.
    Code(u8),
}

/// A line of `--json`.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Told<'a> {
    Created(&'a RunView),
    Log(&'a LogEntry),
    Ended(&'a RunView),
}

type Piece = (Stream, Vec<u8>);

/// Follows `run` until it has ended.
pub async fn follow(
    session: &Session,
    client: &Client,
    run: RunView,
    signals: &mut Interrupts,
    mut progress: Progress,
) -> anyhow::Result<End> {
    let id = run.id;
    let json = session.output.json;
    if json && let Some(end) = closed_pipe(session.output.value_line(&Told::Created(&run)), client, id).await? {
        return Ok(end);
    }
    let mut writer = Writer::default();
    let mut canceller = Canceller::default();
    canceller.ask(session, client, id, signals.count());
    let mut batches = client.run_logs_batches(id, 0, None);
    let mut pieces: VecDeque<Piece> = VecDeque::new();
    loop {
        if !pieces.is_empty() {
            writer.start()?;
        }
        tokio::select! {
            biased;
            count = signals.next() => {
                progress.end();
                if count >= 3 {
                    session.output.error(format!("left run {id}, which may go on; `holm show {id}` tells"));
                    return Ok(End::Code(130));
                }
                canceller.ask(session, client, id, count);
            }
            // The writer ends before its sender is dropped only because it cannot write.
            written = ended(&mut writer.thread) => return gone(written?, client, id).await,
            permit = room(&writer.sender), if !pieces.is_empty() => {
                // Without a permit the writer has ended, which the branch above tells.
                if let (Ok(permit), Some(piece)) = (permit, pieces.pop_front()) {
                    permit.send(piece);
                }
            }
            batch = batches.next(), if pieces.is_empty() => match batch? {
                Some(batch) => {
                    progress.end();
                    pieces = pieces_of(&batch, json)?;
                }
                None => break,
            },
            () = progress.step(client, id) => {}
        }
    }
    progress.end();
    drop(writer.sender);
    if writer.thread.is_some() {
        tokio::select! {
            written = ended(&mut writer.thread) => {
                if let Err(error) = written? {
                    return gone(Err(error), client, id).await;
                }
            }
            () = signals.third() => return Ok(End::Code(130)),
        }
    }
    let run = match batches.into_last().flatten() {
        Some(run) => *run,
        // A server of an earlier version is to be asked.
        None => client.run_get(id).await?,
    };
    report(session, &run);
    if json && let Some(end) = closed_pipe(session.output.value_line(&Told::Ended(&run)), client, id).await? {
        return Ok(end);
    }
    Ok(End::Run(Box::new(run)))
}

/// The bytes of a batch, those of one stream that follow one another together.
fn pieces_of(batch: &LogBatch, json: bool) -> anyhow::Result<VecDeque<Piece>> {
    let mut pieces: VecDeque<Piece> = VecDeque::new();
    for entry in batch.entries() {
        let stream = if json { Stream::Stdout } else { entry.stream };
        if pieces.back().is_none_or(|(last, _)| *last != stream) {
            pieces.push_back((stream, Vec::new()));
        }
        let Some((_, bytes)) = pieces.back_mut() else { continue };
        if json {
            serde_json::to_writer(&mut *bytes, &Told::Log(&LogEntry::from(entry)))?;
            bytes.push(b'\n');
        } else {
            bytes.extend_from_slice(entry.data);
        }
    }
    Ok(pieces)
}

/// A thread that writes, because writing to a pipe may take as long as its reader wants. It starts with the first output:
/// many a command has none.
#[derive(Default)]
struct Writer {
    sender: Option<mpsc::Sender<Piece>>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Writer {
    /// Starts it, unless it was.
    fn start(&mut self) -> io::Result<()> {
        if self.thread.is_some() {
            return Ok(());
        }
        let mut streams = RawStreams::open()?;
        let (sender, receiver) = mpsc::channel(PIECES_MAX);
        self.thread = Some(tokio::task::spawn_blocking(move || write_all(receiver, &mut streams)));
        self.sender = Some(sender);
        Ok(())
    }
}

/// Writes all that comes, small pieces of one stream together.
fn write_all(mut receiver: mpsc::Receiver<Piece>, streams: &mut RawStreams) -> io::Result<()> {
    while let Some((mut stream, mut bytes)) = receiver.blocking_recv() {
        while bytes.len() < JOIN_BYTES_MAX {
            let Ok((next, more)) = receiver.try_recv() else { break };
            if next != stream {
                streams.write(stream, &bytes)?;
                (stream, bytes) = (next, more);
            } else {
                bytes.extend_from_slice(&more);
            }
        }
        streams.write(stream, &bytes)?;
    }
    streams.finish()
}

/// Waits until a writer has ended, without end while there is none.
async fn ended(thread: &mut Option<JoinHandle<io::Result<()>>>) -> anyhow::Result<io::Result<()>> {
    match thread {
        Some(thread) => thread.await.context("the writer of the output"),
        None => pending().await,
    }
}

/// Waits for room for one more piece, without end while there is no writer.
async fn room(sender: &Option<mpsc::Sender<Piece>>) -> Result<Permit<'_, Piece>, SendError<()>> {
    match sender {
        Some(sender) => sender.reserve().await,
        None => pending().await,
    }
}

/// Asks for the end of the run in the background, once for each degree of urgency.
#[derive(Default)]
struct Canceller {
    asked: u32,
}

impl Canceller {
    fn ask(&mut self, session: &Session, client: &Client, id: RunId, count: u32) {
        if count <= self.asked {
            return;
        }
        self.asked = count;
        let kill = count >= 2;
        let doing = if kill { "killing" } else { "cancelling" };
        let more = if kill { "once more leaves it" } else { "Ctrl-C again kills it" };
        session.output.note(format!("{doing} run {id}; {more}"));
        let (client, output) = (client.clone(), session.output);
        tokio::spawn(async move {
            if let Err(error) = cancel(&client, id, kill).await {
                output.error(format!("cannot cancel run {id}: {error}"));
            }
        });
    }
}

/// Cancelling twice is the same as once, so it is tried again while the server cannot be reached.
async fn cancel(client: &Client, id: RunId, kill: bool) -> Result<(), ClientError> {
    let mut wait = Duration::from_millis(100);
    for _ in 0..5 {
        match client.run_cancel(id, &CancelRun { kill }).await {
            Err(error) if error.is_transient() => sleep(wait).await,
            other => return other.map(drop),
        }
        wait *= 2;
    }
    client.run_cancel(id, &CancelRun { kill }).await.map(drop)
}

/// Nobody reads the output any more: the run has no purpose left.
async fn gone(written: io::Result<()>, client: &Client, id: RunId) -> anyhow::Result<End> {
    let Err(error) = written else { anyhow::bail!("the writer of the output ended too early") };
    let _best_effort = timeout(Duration::from_secs(10), cancel(client, id, false)).await;
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Ok(End::Code(EXIT_PIPE));
    }
    Err(error).context(format!("cannot write the output; run {id} was cancelled"))
}

async fn closed_pipe(written: io::Result<()>, client: &Client, id: RunId) -> anyhow::Result<Option<End>> {
    match written {
        Ok(()) => Ok(None),
        failed => gone(failed, client, id).await.map(Some),
    }
}

/// Says what the exit code alone does not: that Holm, and not the command, made the end.
fn report(session: &Session, run: &RunView) {
    let output = session.output;
    let Some(outcome) = &run.outcome else { return };
    for reason in run.sandbox.iter().flat_map(|sandbox| &sandbox.unenforced) {
        output.note(format!("not enforced on this host: {}", crate::output::escaped(reason)));
    }
    let by_command = outcome.reason == Some(holm_domain::run::Reason::CommandFailed);
    let cancelled = outcome.kind == OutcomeKind::Cancelled;
    if outcome.kind == OutcomeKind::Succeeded || by_command {
        return;
    }
    let message = outcome.message.as_deref().unwrap_or("the run failed, and nobody said why");
    let mut text = crate::output::escaped(message);
    if let Some(advice) = advice::of(run) {
        text = format!("{text}: {advice}");
    }
    match run.cancel {
        Some(Cancel::Kill) if cancelled => output.error(format!("killed: {text}")),
        _ if cancelled => output.error(format!("cancelled: {text}")),
        _ => output.error(text),
    }
}
