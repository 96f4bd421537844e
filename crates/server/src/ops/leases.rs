//! The server's half of the lease protocol: claim (`claim`), renew ([`renew`]), start, end of the sandbox, finish (SPEC L1,
//! L2).
//!
//! Decisions come from [`holm_domain::lease::grant`] and [`holm_domain::schedule`]; the compare-and-swap of the store makes
//! them safe with any number of servers. An operation under a fence that is not the newest changes nothing. A run that cannot
//! be read holds no other up: it is told once ([`UnreadableRuns`](crate::told::UnreadableRuns)), not claimed, and nothing is
//! said to an agent that holds it.

mod claim;
pub mod queue;
pub mod renew;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures_util::future::select_all;
use holm_api::agent::{
    Directive, DirectiveKind, FinishRun, HeldLease, LOG_GAP_FIELD, Poll, Polled, SandboxEnded, StartRun,
};
use holm_domain::{
    ErrorCode, OrgId, RunId, UnixMicros,
    error::InvalidField,
    host::Host,
    lease::{
        Claimant,
        grant::{self, Finish},
    },
    limits::RESULT_BYTES_MAX,
    org_limits::OrgLimit,
    run::{Cancel, Outcome, OutcomeKind, Reason, Run},
};
use holm_store::{LeaseRow, Leased, RENEWALS_MAX, RunRow};
use tokio::time::Instant;
use tracing::field::display;

use self::{
    claim::{Passed, Room, lease_claim, lease_claim_again},
    queue::{Desk, Heard, Offer, Queue},
};
use super::{
    hosts::{host_heard, host_heard_with_leases},
    revise_from, revise_traced,
    run_tokens::to_claimed,
};
use crate::{
    account::Account,
    app::App,
    auth::{Lasting, speaker::Speaker},
    config::{CLAIMS_MAX, LEASES_MAX, POLL_WAIT_MS_MAX, REREAD_OWN_EVERY},
    problem::Failure,
    wakers::Listener,
};

/// After how long it is looked again whether an org is still passed over: nothing is rung when that is over.
const PASSED_FOR: Duration = Duration::from_secs(1);

/// Waits until there is something for the agent: runs that it can claim, or word about runs that it holds. Answers with
/// nothing once `wait_ms` have passed, or the server or the connection is to end. What it tells of runs is counted before they are claimed.
pub async fn lease_poll(app: &App, speaker: &Speaker, poll: Poll, account: &Account) -> Result<Polled, Failure> {
    let received = Received { at: Instant::now(), time: app.now() };
    check_poll(&poll)?;
    let _pass = app.polls.enter(speaker.org)?;
    let mut ears = Ears::new(app, app.pools.expected(poll.agent, speaker.org), &poll);
    let by = Claimant { agent: poll.agent, instance: poll.instance };
    let (mut lasting, leave) = (Lasting::of(app, speaker), account.wait());
    // An agent that waits is heard of when it asks: well before it would be held for gone.
    let wait = Duration::from_millis(poll.wait_ms).min(app.config.lease.ttl * 2 / 3);
    let until = received.at + wait;
    let reread_every = if app.store.is_shared() { app.config.limits.reread_every } else { REREAD_OWN_EVERY };
    let mut offered = None;
    loop {
        let (heard, queued) = (ears.heard(), ears.queued());
        lasting.check(app).await?;
        let (host, leases) = host_heard_with_leases(app, speaker, by).await?;
        let served = app.pools.served(app, &host).await?;
        if served != ears.orgs {
            app.pools.expect(host.id, &served);
            drop((heard, queued));
            (ears, offered) = (Ears::new(app, served, &poll), None);
            continue;
        }
        let leases = legible(app, leases);
        app.pools.seen(&host, leases.known.values().map(|leased| leased.org));
        let queues = ears.queues(offered.take());
        let Looked { mut polled, passed } = look(app, (&host, &leases), &poll, (received, account), queues).await?;
        to_claimed(app, by.agent, &mut polled.claimed).await;
        let left = until.saturating_duration_since(Instant::now());
        if !polled.is_empty() || left.is_zero() || app.shutdown.is_cancelled() || leave.is_cancelled() {
            return Ok(polled);
        }
        let nap = left.min(if passed.is_none() { reread_every } else { reread_every.min(PASSED_FOR) });
        let waited = queued.into_iter().filter(|(desk, _)| !passed.is(app, &host, desk.org));
        let queued = waited.map(|(desk, heard)| desk.offered(app, heard, (&host, &poll.free)));
        tokio::select! {
            // What was heard comes before that it is over, and a simulation is told twice alike.
            biased;
            () = heard => {}
            Some(offer) = first(queued) => offered = offer,
            // Nothing was heard of: the poll that follows begins with a look.
            () = tokio::time::sleep(nap) => if nap == left { return Ok(Polled::default()) },
            () = app.shutdown.cancelled() => {}
            () = leave.cancelled() => {}
        }
    }
}

/// What a poll listens to: for each org whose runs its host executes, word about runs that it holds, and the queue.
struct Ears {
    /// The org of its host first.
    orgs: Arc<[OrgId]>,
    told: Vec<Listener>,
    /// None where it asks for no runs.
    desks: Vec<Arc<Desk>>,
}

impl Ears {
    fn new(app: &App, orgs: Arc<[OrgId]>, poll: &Poll) -> Self {
        let told = orgs.iter().map(|org| app.wakers.listen_agents(*org)).collect();
        let asking = orgs.iter().filter(|_| poll.claims_max > 0);
        let desks = asking.map(|org| app.queues.desk(&app.wakers, *org)).collect();
        Self { orgs, told, desks }
    }

    /// Completes when one of them hears word about runs, from this call on.
    fn heard(&self) -> impl Future<Output = ()> + use<'_> {
        let heard: Vec<_> = self.told.iter().map(Listener::heard).collect();
        async move { first(heard.into_iter()).await.unwrap_or_default() }
    }

    /// How much news there was at each desk, and who hears of more from this call on.
    fn queued(&self) -> Vec<(&Arc<Desk>, Heard<'_>)> {
        self.desks.iter().map(|desk| (desk, (desk.news(), desk.bell.heard()))).collect()
    }

    /// The way of the poll through each queue, which has not begun but for what was offered.
    fn queues(&self, mut offered: Option<Offer>) -> Vec<Queue> {
        let queue = |desk: &Arc<Desk>| Queue::new(Arc::clone(desk), offered.take_if(|offer| offer.run.org == desk.org));
        self.desks.iter().map(queue).collect()
    }
}

/// What the first of `waits` comes to, in their order where several are done; nothing where there are none.
async fn first<F: Future>(waits: impl Iterator<Item = F>) -> Option<F::Output> {
    let mut waits: Vec<_> = waits.map(Box::pin).collect();
    match &mut waits[..] {
        [] => None,
        [alone] => Some(alone.await),
        _ => Some(select_all(waits).await.0),
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

/// What came of a look.
struct Looked {
    polled: Polled,
    /// Which orgs are not waited for now.
    passed: Passed,
}

async fn look(
    app: &App,
    (host, leases): (&Host, &Leases),
    poll: &Poll,
    (received, account): (Received, &Account),
    queues: Vec<Queue>,
) -> Result<Looked, Failure> {
    // A server that is to end grants nothing: the answer might not arrive. Nor is the queue read for a host that takes
    // nothing new, and where nobody asks for runs, they need not be looked for.
    let grants_none = app.shutdown.is_cancelled() || host.refusal().is_some();
    let claims_max = if grants_none { 0 } else { poll.claims_max };
    let directives = directives(&poll.held, leases);
    let mut room = Room::new((app, host), poll, claims_max, received, account);
    let listed: HashSet<RunId> = poll.held.iter().map(|lease| lease.run).collect();
    let mut unlisted: Vec<RunId> = leases.known.keys().copied().filter(|run| !listed.contains(run)).collect();
    unlisted.sort_unstable();
    for part in unlisted.chunks(RENEWALS_MAX) {
        let (Some(first), Some(last)) = (part.first(), part.last()) else { break };
        if !room.is_left() {
            break;
        }
        let stored = readable(app, app.store.runs_of_agent(host.id, *first..=*last).await?);
        lease_claim_again(&mut room, &poll.held, &stored.runs).await;
    }
    let orgs = queues.len();
    let passed = lease_claim(&mut room, queues).await;
    let Room { claimed, mut refused, trouble, .. } = room;
    let polled = Polled { claimed, directives };
    let is_alone = trouble.len() == orgs;
    for (org, trouble) in trouble {
        if is_alone && refused.is_none() {
            refused = Some(trouble);
        } else {
            tell_refused(host, Some(org), &trouble);
        }
    }
    match refused {
        Some(refused) if polled.is_empty() => return Err(refused),
        Some(refused) => tell_refused(host, None, &refused),
        None => {}
    }
    Ok(Looked { polled, passed })
}

/// An org that holds what it may meets that at every poll: it is not worth a warning.
fn tell_refused(host: &Host, org: Option<OrgId>, refused: &Failure) {
    let (agent, org, cause) = (host.id, org.map(display), refused.for_log());
    let what = "not all that could be granted was";
    if refused.code() == ErrorCode::TooMany {
        tracing::debug!(%agent, org, cause, "{what}");
    } else {
        tracing::warn!(%agent, org, cause, "{what}");
    }
}

/// Runs that were found, each read by itself.
#[derive(Debug, Default)]
struct Found {
    /// Those that can be read.
    runs: Vec<Run>,
    /// The ids of the others.
    unreadable: HashSet<String>,
}

impl Found {
    fn by_id(&self) -> HashMap<RunId, &Run> {
        self.runs.iter().map(|run| (run.id, run)).collect()
    }

    fn is_unreadable(&self, run: RunId) -> bool {
        !self.unreadable.is_empty() && self.unreadable.contains(&run.to_string())
    }
}

/// Tells of those of `rows` that cannot be read.
fn readable<R: Into<RunRow>>(app: &App, rows: Vec<R>) -> Found {
    let mut found = Found { runs: Vec::with_capacity(rows.len()), ..Found::default() };
    for RunRow { id, run } in rows.into_iter().map(Into::into) {
        match run {
            Ok(run) => found.runs.push(run),
            Err(error) => {
                app.unreadable.tell(&id, &error);
                found.unreadable.insert(id);
            }
        }
    }
    found
}

/// The leases of an agent.
#[derive(Debug, Default)]
struct Leases {
    /// Those that can be read.
    known: HashMap<RunId, Leased>,
    /// The ids of the runs of the others.
    unreadable: HashSet<String>,
}

/// Tells of those of `rows` that cannot be read.
fn legible(app: &App, rows: Vec<LeaseRow>) -> Leases {
    let mut leases = Leases::default();
    for LeaseRow { id, lease } in rows {
        match lease {
            Ok(lease) => drop(leases.known.insert(lease.run, lease)),
            Err(error) => {
                app.unreadable.tell(&id, &error);
                leases.unreadable.insert(id);
            }
        }
    }
    leases
}

/// What the agent does not know yet of the runs that it says it holds.
///
/// Of a lease that cannot be read nothing is said, least of all that it is stale: the agent may hold it, and would kill what
/// it should not. It goes on with what it was told last until its lease, which nobody can renew, has run out; then the
/// deadline of its shim ends it, as if no server answered.
fn directives(held: &[HeldLease], leases: &Leases) -> Vec<Directive> {
    let directive = |lease: &HeldLease| {
        if !leases.unreadable.is_empty() && leases.unreadable.contains(&lease.run.to_string()) {
            return None;
        }
        let stored = leases.known.get(&lease.run).filter(|stored| stored.fence == lease.fence);
        let what = match stored.map(|stored| stored.cancel) {
            None => DirectiveKind::Stale,
            Some(cancel) if cancel <= lease.cancel => return None,
            Some(Some(Cancel::Kill)) => DirectiveKind::Kill,
            Some(_) => DirectiveKind::Terminate,
        };
        Some(Directive { run: lease.run, fence: lease.fence, what })
    };
    held.iter().filter_map(directive).collect()
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// The run, if the agent that `by` speaks for holds it under `fence`.
pub(crate) async fn held_run(
    app: &App,
    speaker: &Speaker,
    id: RunId,
    by: Claimant,
    fence: u64,
) -> Result<Run, Failure> {
    let host = host_heard(app, speaker, by).await?;
    let run = run_of_host(app, &host, id).await?;
    host.follows(&run)?;
    grant::held(&run, by.agent, fence)?;
    Ok(run)
}

/// The run that the agent of `host` speaks of: one of its own org, or one of another that it holds a lease of, or held.
pub(crate) async fn run_of_host(app: &App, host: &Host, id: RunId) -> Result<Run, Failure> {
    match app.store.run_get(host.org, id).await? {
        Some(run) => Ok(run),
        None => run_of_guest(app, host, id).await,
    }
}

/// The same, of another org: be its pool shared with that still or not, and also what it says again once its lease is gone.
async fn run_of_guest(app: &App, host: &Host, id: RunId) -> Result<Run, Failure> {
    let found = app.store.run_of_agent(host.id, id).await?;
    // Whether there is one is not said: it may be of an org that the host serves, or served, and have lost its lease.
    found.ok_or_else(|| Failure::new(ErrorCode::StaleFence, format!("{} holds no lease of {id}", host.id)))
}

/// The same as [`held_run`], for what takes one write of its org; a refusal takes one of the org of the host.
pub(crate) async fn written_run(
    app: &App,
    speaker: &Speaker,
    id: RunId,
    by: Claimant,
    fence: u64,
) -> Result<Run, Failure> {
    let held = held_run(app, speaker, id, by, fence).await;
    let org = held.as_ref().map_or(speaker.org, |run| run.org);
    app.limiter.spend(app, org, OrgLimit::AgentWrites, 1).await?;
    held
}

/// Records that the command of a run was started. Saying so again changes nothing.
pub async fn run_start(app: &App, speaker: &Speaker, id: RunId, body: StartRun) -> Result<(), Failure> {
    let StartRun { instance, fence, sandbox } = body;
    let texts = sandbox.unenforced.iter().chain(&sandbox.image_digest).chain(std::iter::once(&sandbox.runtime));
    if sandbox.unenforced.len() > 64 || texts.clone().any(|text| text.len() > 1_024) {
        let given = sandbox.unenforced.len();
        return Err(
            InvalidField::new("sandbox", given, "give at most 64 remarks, and texts of at most 1,024 bytes").into()
        );
    }
    let host = host_heard(app, speaker, Claimant { agent: sandbox.agent, instance }).await?;
    let start = |run: &Run, now| {
        host.follows(run)?;
        grant::start(run, sandbox.agent, fence, sandbox.clone(), now)
    };
    revise_from(app, run_of_host(app, &host, id).await?, start).await.map(drop)
}

/// Records that the sandbox of a run has ended. Saying so again changes nothing.
pub async fn run_sandbox_ended(app: &App, speaker: &Speaker, id: RunId, body: SandboxEnded) -> Result<(), Failure> {
    let SandboxEnded { agent, instance, fence, outcome } = body;
    check_outcome(&outcome)?;
    let host = host_heard(app, speaker, Claimant { agent, instance }).await?;
    let config = &app.config.lease;
    let ended = |run: &Run, now| {
        host.follows(run)?;
        grant::sandbox_ended(run, agent, fence, outcome.clone(), now, config)
    };
    revise_from(app, run_of_host(app, &host, id).await?, ended).await.map(drop)
}

/// Ends a run as its agent says it ended, once its log is complete (SPEC S1). The last act under a lease.
pub async fn run_finish(app: &App, speaker: &Speaker, id: RunId, body: FinishRun) -> Result<(), Failure> {
    let FinishRun { agent, instance, fence, outcome, usage, result, next_log_seq } = body;
    check_result(result.as_ref())?;
    check_outcome(&outcome)?;
    let begun = app.now();
    // None needs the others' answer, and all are needed but in the case of an error, and for a run of another org.
    let (heard, run, stored) = tokio::join!(
        host_heard(app, speaker, Claimant { agent, instance }),
        app.store.run_get(speaker.org, id),
        app.store.log_head(speaker.org, id)
    );
    let host = heard?;
    let (run, stored) = match run? {
        Some(run) => (run, stored?),
        None => {
            let run = run_of_guest(app, &host, id).await?;
            let stored = app.store.log_head(run.org, id).await?;
            (run, stored)
        }
    };
    if grant::held(&run, agent, fence).is_ok() && next_log_seq != stored {
        let detail = format!("the log goes on at {stored}, not at {next_log_seq}; append what is missing, then finish");
        return Err(Failure::new(ErrorCode::LogGap, detail).at(LOG_GAP_FIELD, stored));
    }
    let end = Finish { outcome, usage, result };
    let finish = |run: &Run, now| {
        host.follows(run)?;
        grant::finish(run, agent, fence, end.clone(), now, &app.config.lease)
    };
    revise_traced(app, run, Some(begun), finish).await.map(drop)
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

#[cfg(test)]
mod pooled;
#[cfg(test)]
mod tests;
