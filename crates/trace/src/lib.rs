//! What is recorded of runs, sent to a collector: spans, by OTLP over HTTP.
//!
//! A [`Tracer`] takes spans that have ended ([`Span`]) and one task sends them, in batches. What always holds: where no
//! collector was named there is no task, no connection and no memory for any of it; nobody ever waits for a collector, so one
//! that is down, slow or lies costs spans and nothing else; what is lost is counted; a span bears names, ids and codes, whose
//! kinds are in this crate's types, and nothing that a run or its user wrote.
//!
//! Deliberately left out: what spans there are (each part tells its own), metrics and logs, and every part of the process that
//! has no network: a shim tells its agent of times, and the agent tells the spans.

mod export;
mod message;
pub mod settings;
mod worker;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use holm_domain::trace::{Interval, SpanId, TraceContext, TraceId};
use tokio::{sync::mpsc, task::JoinHandle};
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

#[derive(Debug, Default)]
struct Counters {
    sent: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
}

impl Counters {
    fn add(counter: &AtomicU64, count: usize) {
        counter.fetch_add(count as u64, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Inner {
    settings: Settings,
    queue: mpsc::Sender<Span>,
    counters: Arc<Counters>,
    ending: CancellationToken,
    worker: Mutex<Option<JoinHandle<()>>>,
}

/// Where spans go. Clones are the same; [`Tracer::default`] records nothing.
#[derive(Debug, Clone, Default)]
pub struct Tracer {
    inner: Option<Arc<Inner>>,
}

impl Tracer {
    /// Starts what sends spans, on the present runtime. Nothing is connected to before there is a span.
    pub fn start(settings: Settings) -> Result<Self, String> {
        let exporter = export::Exporter::new(&settings)?;
        let (queue, spans) = mpsc::channel(QUEUE_MAX);
        let (counters, ending) = (Arc::<Counters>::default(), CancellationToken::new());
        let worker = worker::Worker {
            exporter,
            resource: settings.resource.clone(),
            spans,
            counters: Arc::clone(&counters),
            ending: ending.clone(),
            is_failing: false,
        };
        let worker = Mutex::new(Some(tokio::spawn(worker.run())));
        Ok(Self { inner: Some(Arc::new(Inner { settings, queue, counters, ending, worker })) })
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
        let is_sampled = inner.settings.sampler.takes(trace, parent.map(|parent| parent.is_sampled));
        Some(TraceContext { trace, span: draw_span(), is_sampled })
    }

    /// A new span within one that was begun; nothing if that is not recorded, or nothing is recorded here.
    pub fn within(&self, parent: Option<TraceContext>) -> Option<TraceContext> {
        self.inner.as_ref()?;
        parent.filter(|parent| parent.is_sampled).map(|parent| parent.at(draw_span()))
    }

    /// Has a span sent. Never waits: while a collector is away, so many are kept and no more.
    pub fn tell(&self, span: Span) {
        let Some(inner) = &self.inner else { return };
        if inner.queue.try_send(span).is_err() {
            Counters::add(&inner.counters.dropped, 1);
        }
    }

    /// What became of spans so far.
    pub fn counts(&self) -> Counts {
        let Some(inner) = &self.inner else { return Counts::default() };
        let Counters { sent, dropped, failed } = &*inner.counters;
        let [sent, dropped, failed] = [sent, dropped, failed].map(|counter| counter.load(Ordering::Relaxed));
        Counts { sent, dropped, failed }
    }

    /// Sends what waits, for at most that long, and takes nothing more. Returns whether all of it was taken.
    pub async fn end(&self, within: Duration) -> bool {
        let Some(inner) = &self.inner else { return true };
        let worker = inner.worker.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut worker) = worker else { return true };
        inner.ending.cancel();
        if tokio::time::timeout(within, &mut worker).await.is_err() {
            worker.abort();
            return false;
        }
        let Counts { dropped, failed, .. } = self.counts();
        dropped + failed == 0
    }
}

fn draw_span() -> SpanId {
    SpanId::new(rand::random())
}

#[cfg(test)]
mod tests;
