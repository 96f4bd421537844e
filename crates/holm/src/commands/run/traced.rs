//! The span of `holm run`: of the trace that its caller names, or the first of one that begins here.

use std::time::Duration;

use holm_api::runs::RunView;
use holm_domain::{
    UnixMicros,
    run::OutcomeKind,
    trace::{Interval, TraceContext},
};
use holm_trace::{Part, Span, Tracer};

use super::signals::Interrupts;
use crate::{output::Output, session::Session};

/// How long a collector is waited for at the end of the command. Only one that hangs is waited for.
const SPANS_WITHIN: Duration = Duration::from_millis(500);

/// What is recorded of one `holm run`.
pub struct Traced {
    tracer: Tracer,
    caller: Option<TraceContext>,
    own: Option<TraceContext>,
    begun: UnixMicros,
    output: Output,
    run: Option<RunView>,
}

fn now() -> UnixMicros {
    UnixMicros(jiff::Timestamp::now().as_microsecond())
}

/// Waits for Ctrl-C and its like: whoever asks after the end of the run wants to leave. For ever, if they cannot be heard.
async fn interrupted() {
    match Interrupts::listen() {
        Ok(mut interrupts) => drop(interrupts.next().await),
        Err(_) => std::future::pending().await,
    }
}

impl Traced {
    /// Begins the span, where a collector is named.
    pub fn begin(session: &Session) -> anyhow::Result<Self> {
        let (output, caller) = (session.output, session.config.caller);
        let tracer = session.config.tracer(|problem| output.note(problem))?;
        let own = tracer.begin(caller);
        if own.is_some_and(|own| own.is_sampled) {
            tracer.prepare();
        }
        Ok(Self { tracer, caller, own, begun: now(), output, run: None })
    }

    /// Under what the server is to record: the span of the command, or, where that is not recorded, that of its caller.
    pub fn context(&self) -> Option<TraceContext> {
        self.own.or(self.caller)
    }

    /// The run as it is known now.
    pub fn saw(&mut self, run: &RunView) {
        self.run = Some(run.clone());
    }

    /// Ends the span and sends it.
    pub async fn end(self, done: &anyhow::Result<u8>) {
        if let Some(own) = self.own.filter(|own| own.is_sampled) {
            let parent = self.caller.map(|caller| caller.span);
            let span = Span::new(Part::Cli, "holm run", own, parent, Interval::new(self.begun, now()));
            self.tracer.tell(self.outcome(span, done));
        }
        if !self.tracer.is_on() {
            return;
        }
        let lost = tokio::select! {
            lost = self.tracer.end(SPANS_WITHIN) => lost,
            () = interrupted() => return,
        };
        if lost > 0 {
            self.output.note("the collector of traces did not take the span of this command; the run is not concerned");
        }
    }

    fn outcome(&self, mut span: Span, done: &anyhow::Result<u8>) -> Span {
        if let Some(run) = &self.run {
            span = span.with("holm.run", run.id).with("holm.org", run.org).with("holm.project", run.project);
        }
        let outcome = self.run.as_ref().and_then(|run| run.outcome.as_ref());
        if let Some(outcome) = outcome {
            span = span.with("holm.outcome", outcome.kind.as_str());
        }
        match (done, outcome.filter(|outcome| outcome.kind != OutcomeKind::Succeeded)) {
            (Ok(code), None) => span.with("process.exit.code", code),
            (Ok(code), Some(outcome)) => {
                let reason = outcome.reason.map_or(outcome.kind.as_str(), |reason| reason.as_str());
                span.with("process.exit.code", code).failed(reason)
            }
            (Err(_), _) => span.failed("error"),
        }
    }
}
