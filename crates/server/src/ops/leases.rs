//! The server's half of the lease protocol: claim, renew ([`renew`]), start, end of the sandbox, finish (SPEC L1, L2).
//!
//! Decisions come from [`holm_domain::lease::grant`] and [`holm_domain::schedule`]; the compare-and-swap of the store makes
//! them safe with any number of servers. An operation under a fence that is not the newest changes nothing. A run that cannot
//! be read holds no other up: it is told once ([`UnreadableRuns`](crate::told::UnreadableRuns)), not claimed, and nothing is
//! said to an agent that holds it.

pub mod renew;

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use futures_util::future::OptionFuture;
use holm_api::agent::{
    ClaimedRun, Directive, DirectiveKind, FinishRun, HeldLease, LOG_GAP_FIELD, Poll, Polled, SandboxEnded, StartRun,
};
use holm_domain::{
    ErrorCode, OrgId, RunId, UnixMicros,
    access::Token,
    error::InvalidField,
    host::{Capacity, Host},
    lease::{Claimant, grant},
    limits::RESULT_BYTES_MAX,
    run::{Cancel, Decision, Outcome, OutcomeKind, Reason, Run},
    schedule,
};
use holm_store::RunRow;
use tokio::time::Instant;

use super::{hosts::host_heard, revise, revise_from, run_of, runs::spec_bytes, try_save};
use crate::{
    account::Account,
    app::App,
    auth::Lasting,
    config::{CLAIMS_BYTES_MAX, CLAIMS_MAX, LEASES_MAX, POLL_WAIT_MS_MAX, QUEUE_LOOK_MAX, REREAD_OWN_EVERY},
    problem::Failure,
    wakers::Listener,
};

/// Waits until there is something for the agent: runs that it can claim, or word about runs that it holds. Answers with
/// nothing once `wait_ms` have passed, or the server or the connection is to end. What it tells of runs is counted before they are claimed.
pub async fn lease_poll(app: &App, token: &Token, poll: Poll, account: &Account) -> Result<Polled, Failure> {
    let received = Received { at: Instant::now(), time: app.now() };
    check_poll(&poll)?;
    let _pass = app.polls.enter(token.org)?;
    let told = app.wakers.listen_agents(token.org);
    let queue = (poll.claims_max > 0).then(|| app.wakers.listen_queue(token.org));
    let by = Claimant { agent: poll.agent, instance: poll.instance };
    let (mut lasting, leave) = (Lasting::new(app, token), account.wait());
    // An agent that waits is heard of when it asks: well before it would be held for gone.
    let wait = Duration::from_millis(poll.wait_ms).min(app.config.lease.ttl * 2 / 3);
    let until = received.at + wait;
    let reread_every = if app.store.is_shared() { app.config.limits.reread_every } else { REREAD_OWN_EVERY };
    loop {
        let heard = told.heard();
        let queued = OptionFuture::from(queue.as_ref().map(Listener::heard));
        lasting.check(app).await?;
        let host = host_heard(app, token, by).await?;
        let polled = look(app, &host, &poll, received, account).await?;
        let left = until.saturating_duration_since(Instant::now());
        if !polled.is_empty() || left.is_zero() || app.shutdown.is_cancelled() || leave.is_cancelled() {
            return Ok(polled);
        }
        let nap = left.min(reread_every);
        tokio::select! {
            () = heard => {}
            Some(()) = queued => {}
            // Nothing was heard of: the poll that follows begins with a look.
            () = tokio::time::sleep(nap) => if nap == left { return Ok(Polled::default()) },
            () = app.shutdown.cancelled() => {}
            () = leave.cancelled() => {}
        }
    }
}

/// When the whole of a poll was there, by both clocks.
#[derive(Debug, Clone, Copy)]
struct Received {
    at: Instant,
    time: UnixMicros,
}

impl Received {
    /// How long a lease that is granted from now on lasts for the agent, which counts from before it sent the poll. The
    /// poll was sent before it was received, so sent + waited + ttl is not after grant + ttl (SPEC L3). Must be called
    /// before the clock is read that gives the lease its expiry.
    fn ttl_ms(self, ttl: Duration) -> u64 {
        millis(self.at.elapsed() + ttl)
    }
}

fn check_poll(poll: &Poll) -> Result<(), InvalidField> {
    let refused = |field: &str, given: u64, max: u64| {
        if given <= max { Ok(()) } else { Err(InvalidField::new(field, given, format!("give 0 to {max}"))) }
    };
    refused("wait_ms", poll.wait_ms, POLL_WAIT_MS_MAX)?;
    refused("claims_max", poll.claims_max.into(), CLAIMS_MAX.into())?;
    refused("held", poll.held.len() as u64, LEASES_MAX as u64)
}

async fn look(app: &App, host: &Host, poll: &Poll, received: Received, account: &Account) -> Result<Polled, Failure> {
    // A server that is to end grants nothing: the answer might not arrive. Nor is the queue read for a host that takes
    // nothing new.
    let grants_none = app.shutdown.is_cancelled() || host.refusal().is_some();
    let claims_max = if grants_none { 0 } else { poll.claims_max };
    if claims_max == 0 && poll.held.is_empty() {
        return Ok(Polled::default());
    }
    let queue = async {
        // Nobody asks for runs: they need not be looked for.
        if claims_max == 0 { Ok(Vec::new()) } else { candidates(app, host.org).await }
    };
    let (stored, queue) = tokio::try_join!(app.store.runs_of_agent(host.org, host.id), queue)?;
    let (stored, unreadable) = readable(app, stored);
    let directives = directives(host, &poll.held, &stored, &unreadable);
    let mut room = Room::new(poll, claims_max, account);
    let mut claimed = lease_claim_again(app, host, poll, &stored, &mut room, received).await?;
    claimed.extend(lease_claim(app, host, queue, &mut room, received).await?);
    let polled = Polled { claimed, directives };
    match room.refused {
        Some(refused) if polled.is_empty() => Err(refused),
        Some(refused) => {
            tracing::warn!(agent = %host.id, error = %refused.into_parts().0, "not all that could be granted was");
            Ok(polled)
        }
        None => Ok(polled),
    }
}

/// The runs of `rows` that can be read, and the ids of those that cannot, of which it is told.
fn readable<R: Into<RunRow>>(app: &App, rows: Vec<R>) -> (Vec<Run>, HashSet<String>) {
    let (mut runs, mut unreadable) = (Vec::with_capacity(rows.len()), HashSet::new());
    for RunRow { id, run } in rows.into_iter().map(Into::into) {
        match run {
            Ok(run) => runs.push(run),
            Err(error) => {
                app.unreadable.tell(&id, &error);
                unreadable.insert(id);
            }
        }
    }
    (runs, unreadable)
}

/// Up to [`QUEUE_LOOK_MAX`] runs of the queue that can be read, oldest first.
///
/// One that cannot be read is passed over and not counted: nobody can decide on it, not even that it waited too long, so it
/// stands first in the queue until its row is repaired, and as many of them as one look has candidates would block it for
/// good. So the look goes on behind them; what bounds it is the queue. What others claim meanwhile hides no run from it.
async fn candidates(app: &App, org: OrgId) -> holm_store::Result<Vec<Run>> {
    let (mut candidates, mut after) = (Vec::new(), None);
    loop {
        let page = app.store.run_queue(org, after.as_ref(), QUEUE_LOOK_MAX).await?;
        let is_last = page.len() < QUEUE_LOOK_MAX as usize;
        after = page.last().map(|last| last.place.clone());
        candidates.extend(readable(app, page).0);
        if is_last || candidates.len() >= QUEUE_LOOK_MAX as usize {
            candidates.truncate(QUEUE_LOOK_MAX as usize);
            return Ok(candidates);
        }
    }
}

/// What the agent does not know yet of the runs that it says it holds.
///
/// Of a run that cannot be read nothing is said, least of all that its lease is stale: the agent may hold it, and would kill
/// what it should not. It goes on with what it was told last until its lease, which nobody can renew, has run out; then the
/// deadline of its shim ends it, as if no server answered.
fn directives(host: &Host, held: &[HeldLease], stored: &[Run], unreadable: &HashSet<String>) -> Vec<Directive> {
    let stored: HashMap<RunId, &Run> = stored.iter().map(|run| (run.id, run)).collect();
    let directive = |lease: &HeldLease| {
        if !unreadable.is_empty() && unreadable.contains(&lease.run.to_string()) {
            return None;
        }
        let run = stored.get(&lease.run).filter(|run| grant::held(run, host.id, lease.fence).is_ok());
        let what = match run.map(|run| run.cancel) {
            None => DirectiveKind::Stale,
            Some(cancel) if cancel <= lease.cancel => return None,
            Some(Some(Cancel::Kill)) => DirectiveKind::Kill,
            Some(_) => DirectiveKind::Terminate,
        };
        Some(Directive { run: lease.run, fence: lease.fence, what })
    };
    held.iter().filter_map(directive).collect()
}

/// What the answer to one poll may still grant.
#[derive(Debug)]
struct Room<'a> {
    claims: usize,
    free: Capacity,
    bytes: usize,
    account: &'a Account,
    /// Why no more can be told of.
    refused: Option<Failure>,
}

impl<'a> Room<'a> {
    fn new(poll: &Poll, claims_max: u32, account: &'a Account) -> Self {
        Self { claims: claims_max as usize, free: poll.free, bytes: CLAIMS_BYTES_MAX, account, refused: None }
    }

    fn is_left(&self) -> bool {
        self.claims > 0 && self.bytes > 0 && self.refused.is_none()
    }

    /// As [`schedule::pick`] has it: processors are shared.
    fn has(&self, demand: &Capacity) -> bool {
        self.is_left() && demand.runs <= self.free.runs && demand.memory_bytes <= self.free.memory_bytes
    }

    /// Counts what would be told of `run`, before it is granted: its bytes, unless they may not be held.
    fn hold(&mut self, app: &App, run: &Run) -> Result<Option<usize>, Failure> {
        let bytes = spec_bytes(run)?;
        self.refused = self.account.take(app, bytes).err();
        Ok(self.refused.is_none().then_some(bytes))
    }

    fn take(&mut self, demand: &Capacity, bytes: usize) {
        self.claims = self.claims.saturating_sub(1);
        self.free = self.free.less(demand);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// Grants once more, under the same fence, what was granted before this poll was there and what the agent does not list:
/// the answer that told it was lost. An agent that knows the lease after all ignores it.
async fn lease_claim_again(
    app: &App,
    host: &Host,
    poll: &Poll,
    stored: &[Run],
    room: &mut Room<'_>,
    received: Received,
) -> Result<Vec<ClaimedRun>, Failure> {
    let mut claimed = Vec::new();
    for run in stored.iter().filter(|run| run.claimed_at.is_some_and(|at| at <= received.time)) {
        let demand = schedule::demand(&run.spec);
        if !room.has(&demand) || poll.held.iter().any(|held| held.run == run.id) {
            continue;
        }
        let ttl_ms = received.ttl_ms(app.config.lease.ttl);
        let Some(decision) = grant::claim_again(run, claimant(host), app.now(), &app.config.lease) else { continue };
        let Some(runtime) = schedule::runtime_for(&run.spec, host) else { continue };
        let Some(bytes) = room.hold(app, run)? else { break };
        let next_log_seq = match grant_save(app, run, &decision).await {
            Ok(Some(next_log_seq)) => next_log_seq,
            Ok(None) => {
                room.account.spare(bytes);
                continue;
            }
            Err(failure) => {
                room.account.spare(bytes);
                room.refused = Some(failure);
                break;
            }
        };
        room.take(&demand, bytes);
        tracing::info!(run = %run.id, agent = %host.id, fence = run.fence, "claimed; told once more");
        claimed.push(told(decision.run, runtime, ttl_ms, next_log_seq));
    }
    Ok(claimed)
}

/// Grants runs of the `queue` to the agent of `host`, oldest first, as far as there is room.
async fn lease_claim(
    app: &App,
    host: &Host,
    mut queue: Vec<Run>,
    room: &mut Room<'_>,
    received: Received,
) -> Result<Vec<ClaimedRun>, Failure> {
    let mut claimed = Vec::new();
    while room.is_left() {
        let Some(index) = schedule::pick(&queue, host, &room.free) else { break };
        let run = queue.remove(index);
        let Some(bytes) = room.hold(app, &run)? else { break };
        // Whether somebody else was faster or not: this run is out of this look at the queue.
        match grant_one(app, host, &run, received).await {
            Ok(Some(grant)) => {
                room.take(&schedule::demand(&run.spec), bytes);
                claimed.push(grant);
            }
            Ok(None) => room.account.spare(bytes),
            // What was granted before is told all the same.
            Err(failure) => {
                room.account.spare(bytes);
                room.refused = Some(failure);
            }
        }
    }
    Ok(claimed)
}

async fn grant_one(app: &App, host: &Host, run: &Run, received: Received) -> Result<Option<ClaimedRun>, Failure> {
    let Some(runtime) = schedule::runtime_for(&run.spec, host) else { return Ok(None) };
    let ttl_ms = received.ttl_ms(app.config.lease.ttl);
    let Some(decision) = grant::claim(run, claimant(host), app.now(), &app.config.lease) else { return Ok(None) };
    let Some(next_log_seq) = grant_save(app, run, &decision).await? else { return Ok(None) };
    tracing::info!(run = %run.id, agent = %host.id, fence = decision.run.fence, "claimed");
    app.metrics.claimed(decision.run.claimed_at.map(|at| at.since(run.queued_at)).unwrap_or_default());
    Ok(Some(told(decision.run, runtime, ttl_ms, next_log_seq)))
}

/// Saves the decision that grants `run`. Nothing if somebody else was faster, or if what is stored beside its row cannot be
/// read: then it is told, and holds no other up.
async fn grant_save(app: &App, run: &Run, decision: &Decision) -> Result<Option<u64>, Failure> {
    match try_save(app, run.version, decision).await {
        Err(error @ (holm_store::Error::Corrupt { .. } | holm_store::Error::Damaged { .. })) => {
            app.unreadable.tell(run.id, &error);
            Ok(None)
        }
        saved => Ok(saved?),
    }
}

/// The process that was heard.
fn claimant(host: &Host) -> Claimant {
    Claimant { agent: host.id, instance: host.instance }
}

fn told(granted: Run, runtime: &str, ttl_ms: u64, next_log_seq: u64) -> ClaimedRun {
    ClaimedRun {
        run: granted.id,
        org: granted.org,
        project: granted.project,
        fence: granted.fence,
        ttl_ms,
        runtime: runtime.to_owned(),
        spec: granted.spec,
        next_log_seq,
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// The run, if the agent that `by` speaks for holds it under `fence`.
pub(crate) async fn held_run(app: &App, token: &Token, id: RunId, by: Claimant, fence: u64) -> Result<Run, Failure> {
    host_heard(app, token, by).await?;
    let run = run_of(app, token.org, id).await?;
    grant::held(&run, by.agent, fence)?;
    Ok(run)
}

/// Records that the command of a run was started. Saying so again changes nothing.
pub async fn run_start(app: &App, token: &Token, id: RunId, body: StartRun) -> Result<(), Failure> {
    let StartRun { instance, fence, sandbox } = body;
    let texts = sandbox.unenforced.iter().chain(&sandbox.image_digest).chain(std::iter::once(&sandbox.runtime));
    if sandbox.unenforced.len() > 64 || texts.clone().any(|text| text.len() > 1_024) {
        let given = sandbox.unenforced.len();
        return Err(
            InvalidField::new("sandbox", given, "give at most 64 remarks, and texts of at most 1,024 bytes").into()
        );
    }
    host_heard(app, token, Claimant { agent: sandbox.agent, instance }).await?;
    let start = |run: &Run, now| grant::start(run, sandbox.agent, fence, sandbox.clone(), now);
    revise(app, token.org, id, start).await.map(drop)
}

/// Records that the sandbox of a run has ended. Saying so again changes nothing.
pub async fn run_sandbox_ended(app: &App, token: &Token, id: RunId, body: SandboxEnded) -> Result<(), Failure> {
    let SandboxEnded { agent, instance, fence, outcome } = body;
    check_outcome(&outcome)?;
    host_heard(app, token, Claimant { agent, instance }).await?;
    let config = &app.config.lease;
    let ended = |run: &Run, now| grant::sandbox_ended(run, agent, fence, outcome.clone(), now, config);
    revise(app, token.org, id, ended).await.map(drop)
}

/// Ends a run as its agent says it ended, once its log is complete (SPEC S1). The last act under a lease.
pub async fn run_finish(app: &App, token: &Token, id: RunId, body: FinishRun) -> Result<(), Failure> {
    let FinishRun { agent, instance, fence, outcome, usage, result, next_log_seq } = body;
    check_result(result.as_ref())?;
    check_outcome(&outcome)?;
    // None needs the others' answer, and all are needed but in the case of an error.
    let (heard, run, stored) = tokio::join!(
        host_heard(app, token, Claimant { agent, instance }),
        run_of(app, token.org, id),
        app.store.log_head(token.org, id)
    );
    heard?;
    let (run, stored) = (run?, stored?);
    if grant::held(&run, agent, fence).is_ok() && next_log_seq != stored {
        let detail = format!("the log goes on at {stored}, not at {next_log_seq}; append what is missing, then finish");
        return Err(Failure::new(ErrorCode::LogGap, detail).at(LOG_GAP_FIELD, stored));
    }
    let finish = |run: &Run, now| grant::finish(run, agent, fence, outcome.clone(), usage, result.clone(), now);
    revise_from(app, run, finish).await.map(drop)
}

fn check_outcome(outcome: &Outcome) -> Result<(), InvalidField> {
    if outcome.message.as_ref().is_some_and(|message| message.len() > 4_096) {
        return Err(InvalidField::new("outcome.message", "", "give at most 4,096 bytes"));
    }
    if outcome.kind == OutcomeKind::Lost || matches!(outcome.reason, Some(Reason::QueueDeadline | Reason::ReportLost)) {
        let given = serde_json::to_string(outcome).unwrap_or_default();
        return Err(InvalidField::new("outcome", given, "only the server ends a run that way"));
    }
    Ok(())
}

fn check_result(result: Option<&serde_json::Value>) -> Result<(), Failure> {
    let Some(result) = result else { return Ok(()) };
    let length = serde_json::to_vec(result).map_err(Failure::internal)?.len();
    if length <= RESULT_BYTES_MAX {
        return Ok(());
    }
    let detail = format!("the result has {length} bytes of JSON; at most {RESULT_BYTES_MAX} are kept");
    Err(Failure::new(ErrorCode::TooLarge, detail).at("result", length))
}
