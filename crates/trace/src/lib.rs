//! What is recorded of runs, sent to a collector: spans, by OTLP over HTTP.
//!
//! A [`Tracer`] takes spans that have ended ([`Span`]) and one thread sends them, in batches. What always holds: where no
//! collector was named there is no thread, no connection and no memory for any of it; nobody ever waits for a collector, so one
//! that is down, slow or lies costs spans and nothing else; what is lost is counted; a span bears names, ids and codes, whose
//! kinds are in this crate's types, and nothing that a run or its user wrote.
//!
//! The thread is the tracer's own: reading the certificates of the system blocks it and nobody else, and what waits at the
//! end of a process can be sent when all else of it has ended.
//!
//! Deliberately left out: what spans there are (each part tells its own), metrics and logs, and every part of the process that
//! has no network: a shim tells its agent of times, and the agent tells the spans.

mod export;
mod message;
pub mod settings;
mod worker;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use holm_domain::trace::{Interval, Sampler, SpanId, TraceContext, TraceId};
use tokio::sync::{
    mpsc::{self, error::TrySendError},
    oneshot,
};
use tokio_util::sync::CancellationToken;

pub use settings::Settings;

/// How many spans may wait to be sent; what comes beyond is dropped. Each has about half a kilobyte.
pub const QUEUE_MAX: usize = 4_096;
/// The most attributes of a span.
const ATTRIBUTES_MAX: usize = 16;
/// The longest value of an attribute, in bytes.
const VALUE_BYTES_MAX: usize = 256;

/// Which part of Holm did what is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// A command.
    Cli,
    /// The control plane.
    Server,
    /// The agent of a host.
    Agent,
    /// What is beside a sandbox.
    Shim,
    /// What is in it.
    Guest,
}

impl Part {
    /// Every part.
    pub const ALL: [Self; 5] = [Self::Cli, Self::Server, Self::Agent, Self::Shim, Self::Guest];

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cli => "cli",
            Self::Server => "server",
            Self::Agent => "agent",
            Self::Shim => "shim",
            Self::Guest => "guest",
        }
    }
}

/// How a span stands to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Within one part.
    Internal,
    /// The answer to a request.
    Server,
}

/// One thing that was done, from its beginning to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Who did it.
    pub part: Part,
    /// What was done: a word of Holm's own.
    pub name: &'static str,
    /// How it stands to others.
    pub kind: Kind,
    /// The trace.
    pub trace: TraceId,
    /// Its own number.
    pub id: SpanId,
    /// The span in which it was done, if there is one.
    pub parent: Option<SpanId>,
    /// From when to when.
    pub during: Interval,
    attributes: Vec<(&'static str, String)>,
    is_failed: bool,
}

impl Span {
    /// What `part` did at `at`, within `parent`.
    pub fn new(part: Part, name: &'static str, at: TraceContext, parent: Option<SpanId>, during: Interval) -> Self {
        let TraceContext { trace, span: id, .. } = at;
        Self { part, name, kind: Kind::Internal, trace, id, parent, during, attributes: Vec::new(), is_failed: false }
    }

    /// The same as the answer to a request.
    #[must_use]
    pub fn answering(self) -> Self {
        Self { kind: Kind::Server, ..self }
    }

    /// The same with an id, a number or a word of Holm's own; a long one is cut, and beyond the 16th they are left out.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        if self.attributes.len() < ATTRIBUTES_MAX {
            let mut value = value.to_string();
            value.truncate(value.floor_char_boundary(VALUE_BYTES_MAX));
            self.attributes.push((name, value));
        }
        self
    }

    /// The same, not having done what it was for, for a reason with that code.
    #[must_use]
    pub fn failed(self, code: &'static str) -> Self {
        Self { is_failed: true, ..self.with("error.type", code) }
    }

    /// The value of an attribute.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }
}

/// Asks a collector whether it takes requests, by one without spans. An error says why not.
pub async fn reach(settings: &Settings) -> Result<(), String> {
    let exporter = export::Exporter::new(settings)?;
    exporter.send(message::request(&settings.resource, &[])).await.map(drop).map_err(|untaken| untaken.problem)
}

/// What became of spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// How many a collector has taken.
    pub sent: u64,
    /// How many were dropped, because too many waited already.
    pub dropped: u64,
    /// How many no collector took.
    pub failed: u64,
}

/// What became of spans, and how many of them are on their way.
#[derive(Debug, Default)]
struct Ledger {
    counts: Counts,
    /// Those that wait, and those of the batch that is being sent.
    waiting: u64,
    /// Whether nothing more is sent: what waited then is counted as failed already.
    is_over: bool,
    /// Whether it was logged that too many waited.
    is_full_told: bool,
    /// Whether it was logged that nothing is sent any more.
    is_broken_told: bool,
}

/// The ledger of one tracer. Nothing is waited for while it is held.
#[derive(Debug, Default)]
struct Book(Mutex<Ledger>);

impl Book {
    fn open(&self) -> MutexGuard<'_, Ledger> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of a batch of `spans` so many were not taken.
    fn settle(&self, spans: usize, refused: usize) {
        let mut ledger = self.open();
        if !ledger.is_over {
            let (spans, refused) = (spans as u64, refused as u64);
            ledger.waiting = ledger.waiting.saturating_sub(spans);
            ledger.counts.failed += refused;
            ledger.counts.sent += spans.saturating_sub(refused);
        }
    }

    /// What still waits will never be sent.
    fn close(&self) {
        let mut ledger = self.open();
        ledger.is_over = true;
        ledger.counts.failed += std::mem::take(&mut ledger.waiting);
    }
}

#[derive(Debug)]
struct Inner {
    sampler: Sampler,
    queue: mpsc::Sender<Span>,
    book: Arc<Book>,
    /// Cancelled when what waits is to be sent at once, and nothing more is taken.
    ending: CancellationToken,
    /// Cancelled when the thread is to end, whatever waits.
    given_up: CancellationToken,
    /// Cancelled when spans will come for which nobody will wait long.
    expected: CancellationToken,
    /// Told when the thread has ended.
    ended: Mutex<Option<oneshot::Receiver<()>>>,
}

impl Inner {
    /// Has a span wait, or counts it as dropped. Returns why, the first time.
    fn take(&self, span: Span) -> Option<&'static str> {
        let mut ledger = self.book.open();
        // The thread that has ended may have left the queue open.
        let taken = if ledger.is_over { Err(TrySendError::Closed(span)) } else { self.queue.try_send(span) };
        let Err(refused) = taken else {
            ledger.waiting += 1;
            return None;
        };
        ledger.counts.dropped += 1;
        let (is_told, problem) = match refused {
            TrySendError::Full(_) => (&mut ledger.is_full_told, "too many wait for the collector"),
            TrySendError::Closed(_) if self.ending.is_cancelled() => return None,
            TrySendError::Closed(_) => (&mut ledger.is_broken_told, "the thread that sends them has ended"),
        };
        (!std::mem::replace(is_told, true)).then_some(problem)
    }
}

/// Closes the book when the thread ends, in a panic as well: what waits then is not sent any more.
struct CloseOnDrop(Arc<Book>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Where spans go. Clones are the same; [`Tracer::default`] records nothing.
#[derive(Debug, Clone, Default)]
pub struct Tracer {
    inner: Option<Arc<Inner>>,
}

impl Tracer {
    /// Starts the thread that sends spans. Nothing is read or connected to before there is a span.
    pub fn start(settings: Settings) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        let (queue, spans) = mpsc::channel(QUEUE_MAX);
        let (book, ending, given_up) = (Arc::<Book>::default(), CancellationToken::new(), CancellationToken::new());
        let (tell_ended, ended) = oneshot::channel();
        let (sampler, expected) = (settings.sampler, CancellationToken::new());
        let worker = worker::Worker::new(settings, spans, Arc::clone(&book), [ending.clone(), expected.clone()]);
        let (until, closing) = (given_up.clone(), CloseOnDrop(Arc::clone(&book)));
        let work = move || {
            let _closing = closing;
            runtime.block_on(until.run_until_cancelled(worker.run()));
            // Looking up a name may block for long.
            runtime.shutdown_background();
            // Nobody may wait for it.
            let _nobody_waits = tell_ended.send(());
        };
        thread::Builder::new().name("traces".to_owned()).spawn(work).map_err(|error| error.to_string())?;
        let ended = Mutex::new(Some(ended));
        Ok(Self { inner: Some(Arc::new(Inner { sampler, queue, book, ending, given_up, expected, ended })) })
    }

    /// One that sends nothing: its spans are left to whoever has the other end. For tests of what is told.
    pub fn in_memory() -> (Self, mpsc::Receiver<Span>) {
        let (queue, spans) = mpsc::channel(QUEUE_MAX);
        let inner = Inner {
            sampler: Sampler::default(),
            queue,
            book: Arc::default(),
            ending: CancellationToken::new(),
            given_up: CancellationToken::new(),
            expected: CancellationToken::new(),
            ended: Mutex::default(),
        };
        (Self { inner: Some(Arc::new(inner)) }, spans)
    }

    /// Whether anything may be recorded here.
    pub fn is_on(&self) -> bool {
        self.inner.is_some()
    }

    /// A new span within `parent`, or the first of a new trace; nothing if nothing is recorded here. Whether it is recorded
    /// is the sampler's decision.
    pub fn begin(&self, parent: Option<TraceContext>) -> Option<TraceContext> {
        let inner = self.inner.as_ref()?;
        let trace = parent.map_or_else(|| TraceId::new(rand::random()), |parent| parent.trace);
        let is_sampled = inner.sampler.takes(trace, parent.map(|parent| parent.is_sampled));
        Some(TraceContext { trace, span: draw_span(), is_sampled })
    }

    /// A new span within one that was begun; nothing if that is not recorded, or nothing is recorded here.
    pub fn within(&self, parent: Option<TraceContext>) -> Option<TraceContext> {
        self.inner.as_ref()?;
        parent.filter(|parent| parent.is_sampled).map(|parent| parent.at(draw_span()))
    }

    /// Says that there will be a span for which nobody will wait long, so what takes long before the first is done now, by the
    /// tracer's own thread.
    pub fn prepare(&self) {
        if let Some(inner) = &self.inner {
            inner.expected.cancel();
        }
    }

    /// Has a span sent. Never waits: while a collector is away, so many are kept and no more. That some were dropped is logged
    /// once.
    pub fn tell(&self, span: Span) {
        if let Some(problem) = self.inner.as_ref().and_then(|inner| inner.take(span)) {
            tracing::warn!(problem, waiting_max = QUEUE_MAX, "spans are dropped; it is not told again");
        }
    }

    /// What became of spans so far.
    pub fn counts(&self) -> Counts {
        self.inner.as_ref().map(|inner| inner.book.open().counts).unwrap_or_default()
    }

    /// Sends what waits, for at most that long, and takes nothing more. Returns how many spans were lost since it was called.
    pub async fn end(&self, within: Duration) -> u64 {
        let Some(inner) = &self.inner else { return 0 };
        let ended = inner.ended.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(ended) = ended else { return 0 };
        let before = self.counts();
        inner.ending.cancel();
        let _in_time = tokio::time::timeout(within, ended).await;
        inner.given_up.cancel();
        inner.book.close();
        let Counts { dropped, failed, .. } = self.counts();
        (dropped - before.dropped) + (failed - before.failed)
    }
}

fn draw_span() -> SpanId {
    SpanId::new(rand::random())
}

#[cfg(test)]
mod tests;
