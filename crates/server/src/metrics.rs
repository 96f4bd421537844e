//! What a server counts, as Prometheus reads it: text exposition format 0.0.4, base units in the names.
//!
//! What always holds: no label has a value that users choose. Routes are templates, methods are those that routes have, all
//! else is a word of Holm's own; so however many runs, orgs, names and paths there are, the number of series is bounded.
//! What a server does is counted in its memory, from its start on. What stands in the store ([`Census`]) is read at each
//! scrape and is the same on every server.

use std::time::Duration;

use axum::extract::MatchedPath;
use holm_domain::{
    ErrorCode,
    org_limits::OrgLimit,
    run::{Outcome, OutcomeKind, RunState},
};
use holm_store::RunCensus;
use http::{Method, StatusCode};
use prometheus_client::{
    encoding::{EncodeLabelSet, prometheus_text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::Registry,
};

/// What stands before every name.
const PREFIX: &str = "holm";
/// The route of requests that no route is for.
const NO_ROUTE: &str = "none";

/// A label with a word of Holm's own.
type Word = [(&'static str, &'static str); 1];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    method: &'static str,
    route: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    method: &'static str,
    route: String,
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Round {
    task: &'static str,
    outcome: &'static str,
}

/// What became of the renewal of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenewalOutcome {
    /// The lease goes on.
    Renewed,
    /// It is not held any more.
    Refused,
    /// Its run could not be read.
    Unreadable,
}

impl RenewalOutcome {
    const ALL: [Self; 3] = [Self::Renewed, Self::Refused, Self::Unreadable];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Renewed => "renewed",
            Self::Refused => "refused",
            Self::Unreadable => "unreadable",
        }
    }
}

/// The tasks of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Ends what is overdue.
    Reap,
    /// Seals logs.
    Seal,
    /// Deletes logs that are too old.
    Expire,
    /// Removes objects of what was deleted.
    Sweep,
    /// Gives hints to other servers and hears theirs.
    Hint,
}

impl Task {
    const ALL: [Self; 5] = [Self::Reap, Self::Seal, Self::Expire, Self::Sweep, Self::Hint];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Reap => "reap",
            Self::Seal => "seal",
            Self::Expire => "expire",
            Self::Sweep => "sweep",
            Self::Hint => "hint",
        }
    }
}

/// What one server counts.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<Answered, Counter>,
    durations: Family<Route, Histogram>,
    refusals: Family<Word, Counter>,
    limited: Family<Word, Counter>,
    claims: Counter,
    queue_waits: Histogram,
    renewals: Family<Word, Counter>,
    ends: Family<Word, Counter>,
    unreadable_runs: Counter,
    log_bytes: Counter,
    rounds: Family<Round, Counter>,
    done: Family<Word, Counter>,
    troubles: Family<Word, Counter>,
}

/// Of the times until an answer begins; waiting polls last up to a minute.
fn durations() -> Histogram {
    Histogram::new([0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 30.0, 60.0])
}

/// Of the times that runs wait in the queue: up to a day.
fn waits() -> Histogram {
    Histogram::new([0.01, 0.05, 0.2, 1.0, 5.0, 30.0, 120.0, 600.0, 3_600.0, 86_400.0])
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            registry: Registry::with_prefix(PREFIX),
            requests: Family::default(),
            durations: Family::new_with_constructor(durations),
            refusals: Family::default(),
            limited: Family::default(),
            claims: Counter::default(),
            queue_waits: waits(),
            renewals: Family::default(),
            ends: Family::default(),
            unreadable_runs: Counter::default(),
            log_bytes: Counter::default(),
            rounds: Family::default(),
            done: Family::default(),
            troubles: Family::default(),
        };
        metrics.begin_at_zero();
        metrics.registered()
    }
}

impl Metrics {
    /// What may happen is there before it happens first: a rate is known from the first time on.
    fn begin_at_zero(&self) {
        let touch = |family: &Family<Word, Counter>, label, word| drop(family.get_or_create(&[(label, word)]));
        ErrorCode::ALL.iter().for_each(|code| touch(&self.refusals, "code", code.as_str()));
        OrgLimit::ALL.iter().for_each(|limit| touch(&self.limited, "limit", limit.as_str()));
        RenewalOutcome::ALL.iter().for_each(|outcome| touch(&self.renewals, "outcome", outcome.as_str()));
        OUTCOMES.iter().for_each(|kind| touch(&self.ends, "outcome", kind.as_str()));
        for task in Task::ALL.map(Task::as_str) {
            touch(&self.done, "task", task);
            touch(&self.troubles, "task", task);
            for outcome in ["done", "failed"] {
                drop(self.rounds.get_or_create(&Round { task, outcome }));
            }
        }
    }

    fn registered(mut self) -> Self {
        let to = &mut self.registry;
        to.register("build", "The version of the server", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        to.register("http_requests", "Requests that were answered, by class of status", self.requests.clone());
        let help = "Time until an answer begins; polls and streams wait by design";
        to.register("http_request_duration_seconds", help, self.durations.clone());
        to.register("refusals", "Answers that were a problem, by its code", self.refusals.clone());
        let help = "Requests that a limit of their org refused, and looks at the queue that found it";
        to.register("limited", help, self.limited.clone());
        to.register("claims", "Leases that were granted", self.claims.clone());
        let help = "Time from the queue to the claim, of each claim";
        to.register("queue_wait_seconds", help, self.queue_waits.clone());
        to.register("lease_renewals", "Renewals that were asked for, lease by lease", self.renewals.clone());
        to.register("runs_ended", "Runs that this server ended", self.ends.clone());
        let help = "Runs that could not be read when agents asked for work or told what they hold, or runs were listed, each time";
        to.register("unreadable_runs", help, self.unreadable_runs.clone());
        let help = "Bytes of log batches that were stored, as agents send them";
        to.register("log_appended_bytes", help, self.log_bytes.clone());
        to.register("task_rounds", "Rounds of the tasks of the server", self.rounds.clone());
        let help = "Runs that were overdue, logs that were sealed or expired, objects that were swept";
        to.register("task_items", help, self.done.clone());
        let help = "Runs, logs and objects with which a round could do nothing, counted at each round";
        to.register("task_item_failures", help, self.troubles.clone());
        self
    }

    /// Notes an answer. `route` is the template that the request met, if it met one.
    pub fn answered(&self, method: &Method, route: Option<&MatchedPath>, status: StatusCode, took: Duration) {
        let method = method_word(method);
        let route = route.map_or(NO_ROUTE, MatchedPath::as_str).to_owned();
        let status = status_word(status);
        self.requests.get_or_create(&Answered { method, route: route.clone(), status }).inc();
        self.durations.get_or_create(&Route { method, route }).observe(took.as_secs_f64());
    }

    /// Notes a problem.
    pub fn refused(&self, code: ErrorCode) {
        self.refusals.get_or_create(&[("code", code.as_str())]).inc();
    }

    /// Notes that a limit of an org kept something back.
    pub fn limited(&self, limit: OrgLimit) {
        self.limited.get_or_create(&[("limit", limit.as_str())]).inc();
    }

    /// Notes a claim of a run that had waited in the queue for that long.
    pub fn claimed(&self, waited: Duration) {
        self.claims.inc();
        self.queue_waits.observe(waited.as_secs_f64());
    }

    /// Notes the renewal of a lease.
    pub fn renewed(&self, outcome: RenewalOutcome) {
        self.renewals.get_or_create(&[("outcome", outcome.as_str())]).inc();
    }

    /// Notes the end of a run.
    pub fn ended(&self, outcome: &Outcome) {
        self.ends.get_or_create(&[("outcome", outcome.kind.as_str())]).inc();
    }

    /// Where runs are counted that agents hold or wait for and that cannot be read.
    pub fn unreadable_runs(&self) -> Counter {
        self.unreadable_runs.clone()
    }

    /// Notes bytes of log batches that were stored.
    pub fn appended(&self, bytes: usize) {
        self.log_bytes.inc_by(bytes as u64);
    }

    /// Notes a round of a task: how much it did, or that it failed.
    pub fn round(&self, task: Task, done: Option<u64>) {
        let outcome = if done.is_some() { "done" } else { "failed" };
        self.rounds.get_or_create(&Round { task: task.as_str(), outcome }).inc();
        self.done.get_or_create(&[("task", task.as_str())]).inc_by(done.unwrap_or(0));
    }

    /// Where a task counts what it can do nothing with.
    pub fn troubles(&self, task: Task) -> Counter {
        self.troubles.get_or_create_owned(&[("task", task.as_str())])
    }

    /// Everything as text.
    pub fn text(&self, census: &Census) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_text::encode(&mut text, &self.registry)?;
        prometheus_text::encode(&mut text, &census.registry())?;
        Ok(text)
    }
}

/// What stands in the store or is open at this moment.
#[derive(Debug, Default)]
pub struct Census {
    /// The live runs of all orgs.
    pub runs: RunCensus,
    /// How long the oldest queued run has waited.
    pub oldest_wait: Duration,
    /// How many hosts there are in each state.
    pub hosts: Vec<(&'static str, u64)>,
    /// How many of what is open at this server: streams that follow, searches, polls that wait.
    pub open: Vec<(&'static str, usize)>,
    /// What became of spans that this process recorded.
    pub spans: holm_trace::Counts,
}

impl Census {
    fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix(PREFIX);
        let runs = Family::<Word, Gauge>::default();
        // Those that have ended are as many as are kept, and nothing is to be done about them.
        for state in RunState::ALL.into_iter().filter(|state| *state != RunState::Ended) {
            runs.get_or_create(&[("state", state.as_str())]).set(gauge(self.runs_in(state)));
        }
        registry.register("runs", "Runs that have not ended, of all servers", runs);
        let oldest = Gauge::<f64, std::sync::atomic::AtomicU64>::default();
        oldest.set(self.oldest_wait.as_secs_f64());
        let help = "How long the oldest queued run has waited; 0 if there is none";
        registry.register("queue_oldest_age_seconds", help, oldest);
        let hosts = Family::<Word, Gauge>::default();
        for (state, count) in &self.hosts {
            hosts.get_or_create(&[("state", *state)]).set(gauge(*count));
        }
        registry.register("hosts", "Hosts that have registered, of all servers", hosts);
        let open = Family::<Word, Gauge>::default();
        for (what, count) in &self.open {
            open.get_or_create(&[("what", *what)]).set(gauge(*count as u64));
        }
        registry.register("open", "Streams that follow, searches, and polls that wait, at this server", open);
        let spans = Family::<Word, Counter>::default();
        let holm_trace::Counts { sent, dropped, failed } = self.spans;
        for (outcome, count) in [("sent", sent), ("dropped", dropped), ("failed", failed)] {
            spans.get_or_create(&[("outcome", outcome)]).inc_by(count);
        }
        let help =
            "Spans of this process that a collector took, that were dropped as too many waited, and that none took";
        registry.register("trace_spans", help, spans);
        registry
    }

    fn runs_in(&self, state: RunState) -> u64 {
        if state == RunState::Queued {
            return self.runs.queued;
        }
        self.runs.leased.iter().find(|(leased, _)| *leased == state).map_or(0, |(_, runs)| *runs)
    }
}

fn gauge(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

const OUTCOMES: [OutcomeKind; 5] =
    [OutcomeKind::Succeeded, OutcomeKind::Failed, OutcomeKind::Cancelled, OutcomeKind::TimedOut, OutcomeKind::Lost];

/// Clients may send any word as a method.
fn method_word(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

fn status_word(status: StatusCode) -> &'static str {
    match status.as_u16() / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    }
}
