//! What is recorded of one attempt: what the agent does itself, and, in the place of shim and guest, which have no network,
//! what the shim told of times.
//!
//! What always holds: nothing that the agent does depends on a trace. A shim is not believed beyond the attempt: what it
//! tells is held within the time from the claim until now, and what it tells of the guest within what it tells of itself.
//! Spans bear ids, numbers and codes of Holm's own. An agent that is restarted goes on with the same span, by a file in the
//! attempt's folder; where that cannot be read, the attempt is not recorded. The file is removed before the span is told, so
//! none is told twice.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use holm_domain::{
    BootMicros, UnixMicros,
    run::{Outcome, OutcomeKind},
    trace::{Interval, SpanId, TraceContext, TraceId},
};
use holm_runtime::{AttemptId, crash::effect};
use holm_shim::protocol::Times;
use holm_trace::{Part, Span, Tracer};
use serde::{Deserialize, Serialize};

use super::{seen::End, spawn_blocking};
use crate::{
    clock,
    folder::{FolderError, at, read_own, write_whole},
};

/// The file in the attempt's folder. It is beside the journal, not in it: an agent of an earlier version would refuse that.
const NAME: &str = "trace.json";
/// What fits into it, in bytes.
const BYTES_MAX: u64 = 4_096;

/// What outlives the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// Under what the claim is to be recorded.
    under: TraceContext,
    /// The span of the attempt, where it is recorded.
    span: Option<SpanId>,
    /// When the run was claimed.
    begun_us: BootMicros,
    /// What turns instants of the boot clock into times of day, the same for all spans: what lies within another stays so,
    /// also where the clock was set between one agent and the next.
    #[serde(default = "clock::booted_at")]
    booted_at: UnixMicros,
}

/// How an attempt ended.
#[derive(Debug)]
struct Over {
    /// When that was.
    at: BootMicros,
    /// How the sandbox ended, and when it was what, where that is known.
    sandbox: Option<(Outcome, Times)>,
    /// Why the end was not taken, if it was not.
    given_up: Option<&'static str>,
}

impl Over {
    /// Adds how the attempt ended to a span of it.
    fn add_to(&self, span: Span) -> Span {
        match self.given_up {
            Some(code) => span.failed(code),
            None => of_outcome(span, self.sandbox.as_ref().map(|(outcome, _)| outcome)),
        }
    }
}

/// Who records.
#[derive(Debug, Clone)]
pub(crate) struct Who {
    /// The agent.
    pub(crate) agent: String,
    /// The name of its host.
    pub(crate) host: String,
}

/// What is recorded of one attempt.
#[derive(Debug)]
pub(crate) struct Traced {
    tracer: Tracer,
    attempt: AttemptId,
    /// The agent and its host, for people, where anything is recorded.
    who: Option<Who>,
    kept: Option<Kept>,
    over: OnceLock<Over>,
}

impl Traced {
    /// Of an attempt that was claimed now, to be recorded under `under`.
    pub(crate) fn claimed(tracer: &Tracer, attempt: AttemptId, who: Option<Who>, under: Option<TraceContext>) -> Self {
        let kept = under.map(|under| Kept {
            under,
            // The agent's own sampler decides, which mostly does as the server did.
            span: tracer.begin(Some(under)).filter(|own| own.is_sampled).map(|own| own.span),
            begun_us: clock::boot_now(),
            booted_at: clock::booted_at(),
        });
        Self::with(tracer, attempt, who, kept)
    }

    /// Of an attempt that an earlier agent left in `dir`. Instants of another boot mean nothing, so it is not recorded then.
    pub(crate) fn found(tracer: &Tracer, attempt: AttemptId, who: Option<Who>, dir: &Path, is_this_boot: bool) -> Self {
        let kept = read(dir).unwrap_or_else(|problem| {
            tracing::warn!(run = %attempt.run, fence = attempt.fence, problem, "an attempt is not recorded any more");
            None
        });
        let span = |kept: &Kept| kept.span.filter(|_| is_this_boot);
        Self::with(tracer, attempt, who, kept.map(|kept| Kept { span: span(&kept), ..kept }))
    }

    fn with(tracer: &Tracer, attempt: AttemptId, who: Option<Who>, kept: Option<Kept>) -> Self {
        Self { tracer: tracer.clone(), attempt, who, kept, over: OnceLock::new() }
    }

    /// The trace, whether anything is recorded here or not.
    pub(crate) fn trace_id(&self) -> Option<TraceId> {
        self.kept.map(|kept| kept.under.trace)
    }

    /// Writes what an agent after this one is to know, where the attempt is recorded; where that fails, it will not.
    pub(crate) fn keep(&self, dir: &Path) {
        let Some(kept) = self.kept.as_ref().filter(|kept| kept.span.is_some() && self.tracer.is_on()) else { return };
        let encoded = at(dir, serde_json::to_vec(kept).map_err(std::io::Error::other));
        if let Err(error) = encoded.and_then(|bytes| write_whole(dir, NAME, &bytes)) {
            tracing::warn!(%error, "the trace of an attempt cannot be kept");
        }
    }

    /// Where this agent claimed the run itself: the sandbox was prepared from the claim until now, or could not be.
    pub(crate) fn prepared(&self, failed: Option<&Outcome>) {
        let Some((own, _, begun)) = self.recorded() else { return };
        let during = self.interval(begun, clock::boot_now());
        self.tell(Part::Agent, "attempt.prepare", own, during, |span| of_outcome(span, failed));
    }

    /// The sandbox has ended, all that it left was stored until `stored`, and the end was told and taken as it is in `end`. So
    /// the attempt lies within the run; what followed is the server's to record.
    pub(crate) fn ended(&self, end: &End, stored: BootMicros) {
        self.is_over(Over { at: stored, sandbox: Some((end.outcome.clone(), end.times)), given_up: None });
    }

    /// Nothing more can or may be told of the attempt, for a reason with that code. Its sandbox may have ended before.
    pub(crate) fn given_up(&self, code: &'static str, end: Option<&End>) {
        let sandbox = end.map(|end| (end.outcome.clone(), end.times));
        self.is_over(Over { at: clock::boot_now(), sandbox, given_up: Some(code) });
    }

    fn is_over(&self, over: Over) {
        if let Err(again) = self.over.set(over) {
            tracing::error!(?again, "an attempt has ended twice; the first time is recorded");
        }
    }

    /// Tells how the attempt ended, once it has, and has no agent after this one do it again.
    pub(crate) async fn conclude(&self, dir: PathBuf) {
        let (Some((own, under, begun)), Some(over)) = (self.recorded(), self.over.get()) else { return };
        // Removed by a thread that may wait for a disk.
        match spawn_blocking(move || forget(&dir)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the trace of an attempt cannot be removed"),
            Err(error) => tracing::error!(%error, "removing the trace of an attempt"),
        }
        let all = self.interval(begun, over.at);
        if let Some((outcome, times)) = &over.sandbox {
            self.sandbox(own, all, times, outcome);
            if let Some(ended) = times.ended_us {
                let flush = self.interval(ended, over.at).within(all);
                let failed = |span: Span| over.given_up.iter().fold(span, |span, code| span.failed(code));
                self.tell(Part::Agent, "attempt.flush", own, flush, failed);
            }
        }
        let span = Span::new(Part::Agent, "attempt", own, Some(under), all);
        self.tracer.tell(over.add_to(self.labelled(span)));
    }

    /// What the shim did, and the guest, by the times that the shim told.
    fn sandbox(&self, own: TraceContext, all: Interval, times: &Times, outcome: &Outcome) {
        let Some(told) = SandboxTimes::of(times, all, |from, to| self.interval(from, to)) else { return };
        let failed = |span| of_outcome(span, Some(outcome));
        let Some(at) = self.tell(Part::Shim, "sandbox", own, told.whole, failed) else { return };
        let is_made = times.ready_us.is_some();
        self.tell(Part::Shim, "sandbox.make", at, told.made, |span| if is_made { span } else { failed(span) });
        if let Some(ran) = told.ran {
            self.tell(Part::Guest, "command", at, ran, failed);
        }
        if let Some(end) = told.end {
            self.tell(Part::Shim, "sandbox.end", at, end, |span| span);
        }
    }

    /// The span of the attempt, that above it, and since when; nothing where it is not recorded.
    fn recorded(&self) -> Option<(TraceContext, SpanId, BootMicros)> {
        let Kept { under, span, begun_us, .. } = self.kept.filter(|_| self.tracer.is_on())?;
        span.map(|span| (TraceContext { span, is_sampled: true, ..under }, under.span, begun_us))
    }

    fn interval(&self, from: BootMicros, to: BootMicros) -> Interval {
        let booted_at = self.kept.map_or_else(clock::booted_at, |kept| kept.booted_at);
        let at = |instant: BootMicros| booted_at.plus(instant.since(BootMicros(0)));
        Interval::new(at(from), at(to))
    }

    /// Tells a span within `parent`; returns where it is.
    fn tell(
        &self,
        part: Part,
        name: &'static str,
        parent: TraceContext,
        during: Interval,
        more: impl FnOnce(Span) -> Span,
    ) -> Option<TraceContext> {
        let at = self.tracer.within(Some(parent))?;
        self.tracer.tell(more(self.labelled(Span::new(part, name, at, Some(parent.span), during))));
        Some(at)
    }

    fn labelled(&self, span: Span) -> Span {
        let AttemptId { run, fence } = self.attempt;
        let span = span.with("holm.run", run).with("holm.fence", fence);
        let Some(Who { agent, host }) = &self.who else { return span };
        span.with("holm.agent", agent).with("holm.host", host)
    }
}

/// When a sandbox was what, as far as a shim is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct SandboxTimes {
    whole: Interval,
    made: Interval,
    ran: Option<Interval>,
    end: Option<Interval>,
}

impl SandboxTimes {
    /// What `times` has, each within what it is a part of, and all of it within `all`. Nothing if there was no sandbox.
    fn of(times: &Times, all: Interval, interval: impl Fn(BootMicros, BootMicros) -> Interval) -> Option<Self> {
        let (begun, ended) = (times.begun_us?, times.ended_us?);
        let whole = interval(begun, ended).within(all);
        let part = |from: BootMicros, to: BootMicros| interval(from, to).within(whole);
        Some(Self {
            whole,
            made: part(begun, times.ready_us.unwrap_or(ended)),
            ran: times.started_us.map(|started| part(started, times.exited_us.unwrap_or(ended))),
            end: times.exited_us.map(|exited| part(exited, ended)),
        })
    }
}

fn of_outcome(span: Span, outcome: Option<&Outcome>) -> Span {
    let Some(outcome) = outcome else { return span };
    let span = span.with("holm.outcome", outcome.kind.as_str());
    if outcome.kind == OutcomeKind::Succeeded {
        return span;
    }
    span.failed(outcome.reason.map_or(outcome.kind.as_str(), |reason| reason.as_str()))
}

fn forget(dir: &Path) -> Result<(), FolderError> {
    let path = dir.join(NAME);
    match effect("trace.forget", || std::fs::remove_file(&path)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => at(&path, Err(error)),
        _ => Ok(()),
    }
}

fn read(dir: &Path) -> Result<Option<Kept>, String> {
    let bytes = read_own(&dir.join(NAME), BYTES_MAX).map_err(|error| format!("{NAME}: {error}"))?;
    bytes.map(|bytes| serde_json::from_slice(&bytes).map_err(|error| format!("{NAME}: {error}"))).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "run_00000000000000000000000001";

    fn attempt() -> AttemptId {
        AttemptId { run: RUN.parse().unwrap(), fence: 3 }
    }

    fn within(inner: Interval, outer: Interval) -> bool {
        outer.start() <= inner.start() && inner.end() <= outer.end()
    }

    /// As if the machine had been started at the beginning of 1970.
    fn by_boot(from: BootMicros, to: BootMicros) -> Interval {
        let at = |instant: BootMicros| UnixMicros(0).plus(instant.since(BootMicros(0)));
        Interval::new(at(from), at(to))
    }

    #[test]
    fn a_shim_is_believed_within_its_attempt_and_no_further() {
        let all = by_boot(BootMicros(100), BootMicros(200));
        let instants = [None, Some(0), Some(100), Some(150), Some(199), Some(u64::MAX)].map(|at| at.map(BootMicros));
        let mut seen = 0;
        for (n, begun_us) in (0..6_usize.pow(5)).map(|n| (n, instants[n % 6])) {
            let [ready_us, started_us, exited_us, ended_us] = [6, 36, 216, 1_296].map(|by| instants[n / by % 6]);
            let times = Times { begun_us, ready_us, started_us, exited_us, ended_us };
            let Some(told) = SandboxTimes::of(&times, all, by_boot) else { continue };
            assert!(within(told.whole, all), "{times:?}: {told:?}");
            for part in [Some(told.made), told.ran, told.end].into_iter().flatten() {
                assert!(within(part, told.whole) && part.start() <= part.end(), "{times:?}: {told:?}");
            }
            seen += 1;
        }
        assert_eq!(seen, 25 * 216);
        let [begun_us, ready_us, started_us, exited_us, ended_us] =
            [110, 120, 130, 140, 150].map(|at| Some(BootMicros(at)));
        let told =
            SandboxTimes::of(&Times { begun_us, ready_us, started_us, exited_us, ended_us }, all, by_boot).unwrap();
        let of = |from, to| by_boot(BootMicros(from), BootMicros(to));
        let honest =
            SandboxTimes { whole: of(110, 150), made: of(110, 120), ran: Some(of(130, 140)), end: Some(of(140, 150)) };
        assert_eq!(told, honest);
    }

    #[tokio::test]
    async fn an_attempt_that_was_told_is_not_told_by_the_next_agent() {
        let temp = tempfile::tempdir().unwrap();
        let (tracer, mut spans) = Tracer::in_memory();
        let under = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap();
        let end = End::without_traces(Outcome::exited(holm_domain::run::ExitStatus::Code(0)));
        let first = Traced::claimed(&tracer, attempt(), None, Some(under));
        first.keep(temp.path());
        // It dies when its end was taken and before it has told that: the next one does.
        first.ended(&end, clock::boot_now());
        for told in [1, 0] {
            let next = Traced::found(&tracer, attempt(), None, temp.path(), true);
            next.ended(&end, clock::boot_now());
            next.conclude(temp.path().to_owned()).await;
            let names: Vec<_> = std::iter::from_fn(|| spans.try_recv().ok()).map(|span| span.name).collect();
            assert_eq!(names, ["attempt"][..told]);
            assert!(!temp.path().join(NAME).exists());
        }
    }

    #[tokio::test]
    async fn an_attempt_that_is_given_up_is_told_with_what_is_known_of_its_sandbox() {
        let temp = tempfile::tempdir().unwrap();
        let (tracer, mut spans) = Tracer::in_memory();
        let under = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap();
        let times = Times { begun_us: Some(BootMicros(1)), ended_us: Some(BootMicros(2)), ..Times::default() };
        let end = End { times, ..End::without_traces(Outcome::exited(holm_domain::run::ExitStatus::Code(0))) };
        for (end, told) in [(None, 1), (Some(&end), 4)] {
            let given_up = Traced::claimed(&tracer, attempt(), None, Some(under));
            given_up.given_up("control_unavailable", end);
            given_up.conclude(temp.path().to_owned()).await;
            let found: Vec<_> = std::iter::from_fn(|| spans.try_recv().ok()).collect();
            assert_eq!(found.len(), told, "{found:?}");
            for span in found {
                let code = ["attempt", "attempt.flush"].contains(&span.name).then_some("control_unavailable");
                assert_eq!(span.attribute("error.type"), code, "{span:?}");
            }
        }
    }

    #[test]
    fn what_outlives_an_agent_is_read_again_and_damage_costs_the_span_only() {
        let temp = tempfile::tempdir().unwrap();
        let (tracer, _spans) = Tracer::in_memory();
        let found = |is_this_boot| Traced::found(&tracer, attempt(), None, temp.path(), is_this_boot);
        assert_eq!(found(true).kept, None);
        let under = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap();
        Traced::claimed(&Tracer::default(), attempt(), None, Some(under)).keep(temp.path());
        assert!(!temp.path().join(NAME).exists(), "where nothing is recorded, nothing is written");
        let claimed = Traced::claimed(&tracer, attempt(), None, Some(under));
        assert!(claimed.kept.unwrap().span.is_some());
        claimed.keep(temp.path());
        assert_eq!(found(true).kept, claimed.kept, "with the time at which the machine was started");
        let unrecorded = TraceContext { is_sampled: false, ..under };
        let other = tempfile::tempdir().unwrap();
        Traced::claimed(&tracer, attempt(), None, Some(unrecorded)).keep(other.path());
        assert!(!other.path().join(NAME).exists(), "it is not recorded");
        let mut older = serde_json::to_value(claimed.kept).unwrap();
        assert!(older.as_object_mut().unwrap().remove("booted_at").is_some());
        std::fs::write(temp.path().join(NAME), older.to_string()).unwrap();
        assert_eq!(found(true).kept.unwrap().span, claimed.kept.unwrap().span, "an earlier version wrote less");
        claimed.keep(temp.path());
        let elsewhere = found(false);
        assert_eq!((elsewhere.trace_id(), elsewhere.kept.unwrap().span), (Some(under.trace), None));
        for damage in ["", "{}", "{\"under\": \"00\"}", &"x".repeat(5_000)] {
            std::fs::write(temp.path().join(NAME), damage).unwrap();
            assert_eq!(found(true).kept, None, "{damage}");
        }
    }
}
