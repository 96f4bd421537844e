//! What a server records of a run: its way from the submission to the end, and what the server itself does on it.
//!
//! What always holds: nothing that is decided depends on a trace; what is recorded of a run stands in its row, so any server
//! goes on with what another began; spans bear ids and codes of Holm's own, and nothing that a user wrote.
//!
//! What is told is in the time of day, as other parts tell it; a server itself counts on where that is set.
//!
//! One span, `run`, lasts from the submission to the end; the server that ends the run tells it. Within it are each wait in
//! the queue, each claim, what agents do, and the finish.

use holm_domain::{
    UnixMicros,
    run::{Decision, EventKind, Outcome, OutcomeKind, Run, RunState},
    trace::{Interval, OwnSpan, RunTrace, SpanId, TraceContext},
};
use holm_trace::{Part, Span};

use crate::app::App;

/// The trace of a run that is submitted at `now`, where it has one: the client's, or one that begins here.
pub(crate) fn begin(app: &App, client: Option<TraceContext>, now: UnixMicros) -> Option<RunTrace> {
    let own = Some(OwnSpan { parent: client.map(|client| client.span) });
    match app.config.tracer.begin(client) {
        Some(context) => Some(RunTrace { context, own, waits_since: now }),
        None => client.map(|context| RunTrace { context, own: None, waits_since: now }),
    }
}

/// The trace of a run as logs have it; nothing where it has none.
pub(crate) fn logged(run: &Run) -> Option<tracing::field::DisplayValue<holm_domain::trace::TraceId>> {
    run.trace.map(|trace| tracing::field::display(trace.context.trace))
}

/// A new run was taken in between `begun` and now.
pub(crate) fn submitted(app: &App, run: &Run, begun: UnixMicros) {
    let Some(trace) = run.trace else { return };
    let client = trace.own.map_or(Some(trace.context.span), |own| own.parent);
    // Beside the span of the run, as it begins before there is a run; within it where there is no other.
    let parent = client.unwrap_or(trace.context.span);
    tell(app, run, "run.submit", parent, Interval::new(begun, app.now()), Span::answering);
}

/// A run was claimed between `begun` and now.
pub(crate) fn claimed(app: &App, run: &Run, begun: UnixMicros) {
    let Some(trace) = run.trace else { return };
    let claimed_at = run.claimed_at.unwrap_or(begun);
    let parent = trace.context.span;
    tell(app, run, "run.queued", parent, Interval::new(trace.waits_since, claimed_at), |span| span);
    let agent = run.lease.map(|lease| lease.agent.to_string()).unwrap_or_default();
    tell(app, run, "run.claim", parent, Interval::new(begun, app.now()), |span| {
        span.answering().with("holm.agent", agent)
    });
}

/// A decision on `before` was saved, and, if it was asked for by the finish of an attempt, since when that is worked on: tells
/// what is over with it. All of that ends at one instant, so that what lies within the run does so in every span.
pub(crate) fn saved(app: &App, before: &Run, decision: &Decision, finishing: Option<UnixMicros>) {
    let Decision { run, events } = decision;
    let Some(trace) = run.trace else { return };
    let now = app.now();
    if let Some(begun) = finishing {
        tell(app, run, "run.finish", trace.context.span, Interval::new(begun, now), Span::answering);
    }
    if run.state != RunState::Ended || !events.iter().any(|event| matches!(event, EventKind::Ended { .. })) {
        return;
    }
    if before.state == RunState::Queued {
        let waited = Interval::new(trace.waits_since, now);
        tell(app, run, "run.queued", trace.context.span, waited, |span| of_outcome(span, run.outcome.as_ref()));
    }
    ended(app, run, &trace, now);
}

/// A run has ended, and all that the server did for that is over `now`.
fn ended(app: &App, run: &Run, trace: &RunTrace, now: UnixMicros) {
    let Some(own) = trace.own.filter(|_| trace.context.is_sampled) else { return };
    let during = Interval::new(run.queued_at, now).moved(app.config.clock.gap_micros());
    let span = of_run(Span::new(Part::Server, "run", trace.context, own.parent, during), run);
    app.config.tracer.tell(of_outcome(span.with("holm.attempts", run.attempt), run.outcome.as_ref()));
}

fn of_outcome(span: Span, outcome: Option<&Outcome>) -> Span {
    let kind = outcome.map_or(OutcomeKind::Lost, |outcome| outcome.kind);
    let span = span.with("holm.outcome", kind.as_str());
    if kind == OutcomeKind::Succeeded {
        return span;
    }
    span.failed(outcome.and_then(|outcome| outcome.reason).map_or(kind.as_str(), |reason| reason.as_str()))
}

/// Tells what became of a run or was done on it, by the server's clock.
fn tell(app: &App, run: &Run, name: &'static str, parent: SpanId, during: Interval, more: impl FnOnce(Span) -> Span) {
    let tracer = &app.config.tracer;
    let Some(at) = tracer.within(run.trace.map(|trace| trace.context)) else { return };
    let during = during.moved(app.config.clock.gap_micros());
    tracer.tell(more(of_run(Span::new(Part::Server, name, at, Some(parent), during), run)));
}

fn of_run(span: Span, run: &Run) -> Span {
    let span = span.with("holm.run", run.id).with("holm.org", run.org).with("holm.project", run.project);
    if run.fence == 0 { span } else { span.with("holm.fence", run.fence) }
}

#[cfg(test)]
mod tests {
    use holm_api::{agent::Polled, runs::CreateRun};
    use holm_domain::run::RunSpec;
    use http::StatusCode;

    use std::time::Duration;

    use super::*;
    use crate::{ops, tasks::reap, testing::World};

    const HOUR: i64 = 3_600_000_000;

    /// A server whose spans are left to the test.
    async fn traced_world() -> (World, tokio::sync::mpsc::Receiver<Span>) {
        let (tracer, spans) = holm_trace::Tracer::in_memory();
        (World::with_config(|config| config.tracer = tracer).await, spans)
    }

    fn all(spans: &mut tokio::sync::mpsc::Receiver<Span>) -> Vec<Span> {
        std::iter::from_fn(|| spans.try_recv().ok()).collect()
    }

    fn names(spans: &[Span]) -> Vec<&'static str> {
        spans.iter().map(|span| span.name).collect()
    }

    #[tokio::test]
    async fn spans_are_told_in_the_time_of_day_by_a_server_that_counts_on() {
        let (world, mut spans) = traced_world().await;
        let begun = world.clock.now();
        world.clock.set_by(-HOUR);
        let of_day = |span: &Span| (span.during.start().0 - begun.0 + HOUR, span.during.end().0 - begun.0 + HOUR);
        let held = world.claim_run().await;
        world.clock.advance(Duration::from_secs(1));
        world.finish(held, 1).await;
        let told = all(&mut spans);
        assert_eq!(names(&told), ["run.submit", "run.queued", "run.claim", "run.finish", "run"]);
        for span in &told[..3] {
            assert_eq!(of_day(span), (0, 0), "{span:?}");
        }
        assert_eq!(of_day(&told[3]), (1_000_000, 1_000_000));
        // Its beginning is moved as its end is, so what it lasts is what the server counted.
        let (start, end) = of_day(&told[4]);
        assert!(end == 1_000_000 && (0..=10_000).contains(&start), "{:?}", told[4]);
    }

    #[tokio::test]
    async fn a_wait_that_ends_in_the_queue_is_told() {
        let (world, mut spans) = traced_world().await;
        let (cancelled, overdue) = (world.queue_run().await, world.queue_run().await);
        world.clock.advance(Duration::from_secs(1));
        let path = format!("/v1/runs/{cancelled}/cancel");
        assert_eq!(world.member().post(&path, &serde_json::json!({})).await.status, StatusCode::OK);
        world.clock.advance(Duration::from_secs(2 * 24 * 3_600));
        assert_eq!(reap::reap(world.app()).await.unwrap(), 1);
        let told = all(&mut spans);
        assert_eq!(names(&told), ["run.submit", "run.submit", "run.queued", "run", "run.queued", "run"]);
        for (pair, run, reason) in [(2, cancelled, "cancelled"), (4, overdue, "queue_deadline")] {
            let (waited, whole) = (&told[pair], &told[pair + 1]);
            assert_eq!((waited.parent, waited.during), (Some(whole.id), whole.during));
            assert!(waited.during.start() < waited.during.end());
            for span in [waited, whole] {
                assert_eq!(span.attribute("holm.run"), Some(run.to_string().as_str()));
                assert_eq!(span.attribute("error.type"), Some(reason));
            }
        }
    }

    #[tokio::test]
    async fn a_server_that_records_nothing_passes_the_client_on() {
        let world = World::new().await;
        let client: TraceContext = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap();
        let by = world.agent_token().await;
        let body = || CreateRun { project: None, spec: RunSpec::new(["true"]) };
        let create = |client| ops::runs::run_create(world.app(), &by, body(), None, client);
        let (traced, plain) = (create(Some(client)).await.unwrap().run, create(None).await.unwrap().run);
        assert_eq!(traced.trace.map(|trace| (trace.context, trace.own)), Some((client, None)));
        assert_eq!(plain.trace, None);
        let polled: Polled = world.agent().post("/agent/v1/poll", &world.poll()).await.json(StatusCode::OK);
        let told: Vec<_> = polled.claimed.iter().map(|claimed| (claimed.run, claimed.trace)).collect();
        assert_eq!(told, [(traced.id, Some(client)), (plain.id, None)]);
    }
}
