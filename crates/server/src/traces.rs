//! What a server records of a run: its way from the submission to the end, and what the server itself does on it.
//!
//! What always holds: nothing that is decided depends on a trace; what is recorded of a run stands in its row, so any server
//! goes on with what another began; spans bear ids and codes of Holm's own, and nothing that a user wrote.
//!
//! One span, `run`, lasts from the submission to the end; the server that ends the run tells it. Within it are each wait in
//! the queue, each claim, what agents do, and the finish.

use holm_domain::{
    UnixMicros,
    run::{OutcomeKind, Run, RunState},
    trace::{Interval, OwnSpan, RunTrace, TraceContext},
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
    tell(app, run, "run.submit", parent, begun, Span::answering);
}

/// A run was claimed between `begun` and now.
pub(crate) fn claimed(app: &App, run: &Run, begun: UnixMicros) {
    let Some(trace) = run.trace else { return };
    let claimed_at = run.claimed_at.unwrap_or(begun);
    let parent = trace.context.span;
    if let Some(at) = app.config.tracer.within(Some(trace.context)) {
        let waited = Interval::new(trace.waits_since, claimed_at);
        app.config.tracer.tell(of_run(Span::new(Part::Server, "run.queued", at, Some(parent), waited), run));
    }
    let agent = run.lease.map(|lease| lease.agent.to_string()).unwrap_or_default();
    tell(app, run, "run.claim", parent, begun, |span| span.answering().with("holm.agent", agent));
}

/// The finish of a run was worked on between `begun` and now; it has ended or is in the queue again.
pub(crate) fn finished(app: &App, run: &Run, begun: UnixMicros) {
    let Some(trace) = run.trace else { return };
    tell(app, run, "run.finish", trace.context.span, begun, Span::answering);
}

/// A run has ended.
pub(crate) fn ended(app: &App, run: &Run) {
    let Some((trace, own)) = run.trace.and_then(|trace| trace.own.map(|own| (trace, own))) else { return };
    if !trace.context.is_sampled || run.state != RunState::Ended {
        return;
    }
    // Not `ended_at`: what the server did to end it lies within.
    let during = Interval::new(run.queued_at, app.now());
    let span = of_run(Span::new(Part::Server, "run", trace.context, own.parent, during), run);
    let outcome = run.outcome.as_ref();
    let kind = outcome.map_or("lost", |outcome| outcome.kind.as_str());
    let span = span.with("holm.outcome", kind).with("holm.attempts", run.attempt);
    let reason = outcome.and_then(|outcome| outcome.reason).map(|reason| reason.as_str());
    let is_well = outcome.is_some_and(|outcome| outcome.kind == OutcomeKind::Succeeded);
    app.config.tracer.tell(if is_well { span } else { span.failed(reason.unwrap_or(kind)) });
}

/// Tells what the server did on a run from `begun` until now.
fn tell(
    app: &App,
    run: &Run,
    name: &'static str,
    parent: holm_domain::trace::SpanId,
    begun: UnixMicros,
    more: impl FnOnce(Span) -> Span,
) {
    let tracer = &app.config.tracer;
    let Some(at) = tracer.within(run.trace.map(|trace| trace.context)) else { return };
    let during = Interval::new(begun, app.now());
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

    use super::*;
    use crate::{ops, testing::World};

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
