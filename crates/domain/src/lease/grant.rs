//! The server's half of the lease protocol: claim, renew, start, end of the sandbox, finish, expire.
//!
//! Each function takes the run as it is stored and returns what is to be saved in its place, by compare-and-swap on the
//! run's version. An operation that bears another fence than the newest, or comes when there is no lease, is stale.
//!
//! What always holds (SPEC L1, L2): a claim raises the fence by one; nothing is granted before expiry plus margin; no
//! operation with an old fence changes anything.

use std::time::Duration;

use crate::{
    AgentId, UnixMicros,
    lease::{Claimant, Lease},
    limits::{HOST_FAILURES_MAX, LEASE_TTL_MAX, LeaseConfig, ROOM_KEPT_FOR},
    run::{
        Decision, Ending, EventKind, LiveUsage, Measured, Outcome, PassedOver, RoomKept, Run, RunState, SandboxInfo,
        Usage, event::TEXT_BYTES_MAX,
    },
};

/// The operation bears a fence that is not that of a live lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the lease with fence {given} is no longer held; the newest fence is {newest}")]
pub struct StaleFence {
    /// The fence of the operation.
    pub given: u64,
    /// The newest fence of the run.
    pub newest: u64,
}

/// Why a finish is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FinishRefused {
    /// Another lease is newer.
    #[error(transparent)]
    Stale(#[from] StaleFence),
    /// The outcome contradicts itself.
    #[error("the outcome contradicts itself: {0:?}")]
    Inconsistent(Outcome),
}

/// Grants a queued run to `by`. Nothing if the run is not in the queue, pauses, is bound to another host, or passes this one
/// over.
pub fn claim(run: &Run, by: Claimant, now: UnixMicros, config: &LeaseConfig) -> Option<Decision> {
    let Claimant { agent, instance } = by;
    let is_elsewhere = run.affinity.is_some_and(|bound| bound != agent) || run.passes_over(agent);
    if run.state != RunState::Queued || run.retry_at.is_some() || is_elsewhere {
        return None;
    }
    let mut run = run.clone();
    run.fence += 1;
    run.attempt += 1;
    run.version += 1;
    run.state = RunState::Claimed;
    run.claimed_at = Some(now);
    run.room_kept = None;
    run.started_at = None;
    run.sandbox = None;
    run.lease = Some(Lease { agent, instance, fence: run.fence, expires_at: now.plus(config.ttl), measured: None });
    let events = vec![EventKind::Claimed { agent, fence: run.fence }];
    Some(Decision { run, events })
}

/// Has `agent` keep room for a queued run, from `now` on and for [`ROOM_KEPT_FOR`]. Nothing while another does.
pub fn keep_room(run: &Run, agent: AgentId, now: UnixMicros) -> Option<Decision> {
    let is_kept = run.room_kept.is_some_and(|kept| kept.agent != agent && now < kept.until);
    if run.state != RunState::Queued || is_kept {
        return None;
    }
    let mut run = run.clone();
    run.version += 1;
    run.room_kept = Some(RoomKept { agent, until: now.plus(ROOM_KEPT_FOR) });
    Some(Decision { run, events: Vec::new() })
}

/// Grants once more, under the same fence, a run that `by` was granted and of which it shows no sign of knowing: the
/// answer that told it was lost. Only to the very process that asked: any other may be beside one that got the answer and
/// made a sandbox. Not at once after the last time, and not for longer than the first grant would have lasted: a run that
/// its agent does not take up goes back to the queue.
pub fn claim_again(run: &Run, by: Claimant, now: UnixMicros, config: &LeaseConfig) -> Option<Decision> {
    let is_its_own = |lease: &Lease| lease.agent == by.agent && lease.instance == by.instance;
    let lease = run.lease.filter(|lease| is_its_own(lease) && run.state == RunState::Claimed)?;
    let since_grant = config.ttl.saturating_sub(lease.expires_at.since(now));
    if since_grant < config.claim_again_after() || now >= run.claimed_at?.plus(config.ttl) {
        return None;
    }
    let mut run = run.clone();
    run.version += 1;
    run.lease = Some(Lease { expires_at: lease.expires_at.max(now.plus(config.ttl)), ..lease });
    Some(Decision { run, events: Vec::new() })
}

/// The live lease of `run` if `fence` is its number and `agent` has it.
pub fn held(run: &Run, agent: AgentId, fence: u64) -> Result<Lease, StaleFence> {
    run.lease
        .filter(|lease| lease.fence == fence && lease.agent == agent)
        .ok_or(StaleFence { given: fence, newest: run.fence })
}

/// When a lease is not renewed any more: past the run's own time limit and its overhead, and once its sandbox has ended,
/// past the time in which what that left is to be stored.
fn renewals_end(run: &Run, config: &LeaseConfig) -> UnixMicros {
    match &run.ending {
        Some(ending) => ending.deadline_at,
        None => {
            let begun = run.started_at.or(run.claimed_at).unwrap_or(run.queued_at);
            begun.plus(run.spec.limits.timeout()).plus(config.overhead)
        }
    }
}

/// Extends a lease from `now`. A process that took over what its predecessor held, under the fence that it found, holds it
/// from then on; that it is the agent's newest was checked before. What the run uses now, or that it is not known, takes the
/// place of what was told before. Past the run's own time limit and its overhead a lease is not renewed any more, so that
/// no agent can hold a run for ever (SPEC L4).
pub fn renew(
    run: &Run,
    by: Claimant,
    (fence, usage): (u64, Option<LiveUsage>),
    now: UnixMicros,
    config: &LeaseConfig,
) -> Result<Decision, StaleFence> {
    let lease = held(run, by.agent, fence)?;
    if now >= renewals_end(run, config) {
        return Err(StaleFence { given: fence, newest: run.fence });
    }
    let mut run = run.clone();
    run.version += 1;
    let expires_at = lease.expires_at.max(now.plus(config.ttl));
    let measured = usage.and_then(LiveUsage::known).map(|usage| Measured { at: now, usage });
    run.lease = Some(Lease { instance: by.instance, expires_at, measured, ..lease });
    Ok(Decision { run, events: Vec::new() })
}

/// Records that the command was started. Starting twice under the same lease changes nothing.
pub fn start(
    run: &Run,
    agent: AgentId,
    fence: u64,
    sandbox: SandboxInfo,
    now: UnixMicros,
) -> Result<Option<Decision>, StaleFence> {
    held(run, agent, fence)?;
    if run.state != RunState::Claimed {
        return Ok(None);
    }
    let mut run = run.clone();
    run.version += 1;
    run.state = RunState::Running;
    run.started_at = Some(now);
    run.sandbox = Some(sandbox.clone());
    Ok(Some(Decision { run, events: vec![EventKind::Started { sandbox }] }))
}

/// Records that the sandbox of a run has ended, how the run will end, and until when what it left is to be stored. From then
/// on the run is never executed again. Saying so again changes nothing.
pub fn sandbox_ended(
    run: &Run,
    agent: AgentId,
    fence: u64,
    outcome: Outcome,
    now: UnixMicros,
    config: &LeaseConfig,
) -> Result<Option<Decision>, FinishRefused> {
    if run.state == RunState::Ended && fence == run.fence {
        return Ok(None);
    }
    let lease = held(run, agent, fence)?;
    // Where there was no sandbox, nothing is to be stored, and the finish decides.
    if run.ending.is_some() || outcome.is_of_host() && run.state == RunState::Claimed {
        return Ok(None);
    }
    if !outcome.is_consistent() {
        return Err(FinishRefused::Inconsistent(outcome));
    }
    let mut run = run.clone();
    run.version += 1;
    run.state = RunState::Finishing;
    run.lease = Some(Lease { measured: None, ..lease });
    run.ending = Some(Ending { outcome, deadline_at: now.plus(config.finishing) });
    Ok(Some(Decision { run, events: Vec::new() }))
}

/// How an agent says that a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finish {
    /// How.
    pub outcome: Outcome,
    /// What its sandbox used.
    pub usage: Option<Usage>,
    /// What its command left as its result.
    pub result: Option<serde_json::Value>,
}

impl From<Outcome> for Finish {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, usage: None, result: None }
    }
}

/// Ends a run as its agent says it ended, unless only its host failed ([`elsewhere`]). A finish that is repeated under the
/// fence that ended the run changes nothing.
pub fn finish(
    run: &Run,
    agent: AgentId,
    fence: u64,
    finish: Finish,
    now: UnixMicros,
    config: &LeaseConfig,
) -> Result<Option<Decision>, FinishRefused> {
    let Finish { outcome, usage, result } = finish;
    let stale = StaleFence { given: fence, newest: run.fence };
    if run.state == RunState::Ended && fence == run.fence && run.outcome.as_ref() == Some(&outcome) {
        return Ok(None);
    }
    if run.state == RunState::Ended {
        return Err(stale.into());
    }
    held(run, agent, fence)?;
    if !outcome.is_consistent() {
        return Err(FinishRefused::Inconsistent(outcome));
    }
    if let Some(decision) = elsewhere(run, agent, &outcome, now, config) {
        return Ok(Some(decision));
    }
    // Nobody is told that a host failed at what was not wanted any more.
    let is_unwanted = run.cancel.is_some() && run.state == RunState::Claimed && outcome.is_of_host();
    let outcome = if is_unwanted { Outcome::cancelled("cancelled before the command was started") } else { outcome };
    let mut run = run.clone();
    run.version += 1;
    run.usage = usage;
    run.result = result;
    let ended = run.end(outcome, now);
    Ok(Some(Decision { run, events: vec![ended] }))
}

/// A run whose host could not make its sandbox goes back to the queue. Any other host may take it at once; that one is passed
/// over for a while, longer each time. Nothing once the command may have been started, where somebody asked for the end, or
/// after [`HOST_FAILURES_MAX`] times.
fn elsewhere(run: &Run, agent: AgentId, outcome: &Outcome, now: UnixMicros, config: &LeaseConfig) -> Option<Decision> {
    let is_first_few = run.host_failures < HOST_FAILURES_MAX;
    let is_worth_it = run.state == RunState::Claimed && run.cancel.is_none() && is_first_few;
    if !(outcome.is_of_host() && is_worth_it) {
        return None;
    }
    let mut problem = outcome.message.clone().unwrap_or_default();
    problem.truncate(problem.floor_char_boundary(TEXT_BYTES_MAX));
    let mut run = run.clone();
    run.version += 1;
    run.lease = None;
    run.waits_again(now);
    run.host_failures += 1;
    let until = now.plus(config.retry_pause_after(run.host_failures));
    run.passed_over.retain(|host| host.agent != agent);
    run.passed_over.extend((until > now).then_some(PassedOver { agent, until }));
    run.queue_deadline_at = until.plus(run.spec.queue_timeout(config));
    let failed = EventKind::HostFailed { agent, fence: run.fence, problem };
    Some(Decision { run, events: vec![failed, EventKind::Requeued] })
}

/// Takes an expired lease away: the run returns to the queue, where it pauses, longer each time, or ends as lost once it was
/// claimed often enough, or as cancelled if somebody had asked for that. One whose sandbox has ended ends as that was told, and
/// as no success: what it left was not stored. Nothing before expiry plus margin.
pub fn expire(run: &Run, now: UnixMicros, config: &LeaseConfig) -> Option<Decision> {
    let lease = run.lease?;
    if now < lease.expires_at.plus(config.margin) {
        return None;
    }
    Some(taken_away(run, lease, now, config))
}

/// The run without its lease.
fn taken_away(run: &Run, lease: Lease, now: UnixMicros, config: &LeaseConfig) -> Decision {
    let mut run = run.clone();
    run.version += 1;
    run.lease = None;
    let expired = EventKind::LeaseExpired { agent: lease.agent, fence: lease.fence };
    let next = if let Some(ending) = run.ending.take() {
        run.end(ending.outcome.report_lost(), now)
    } else if run.cancel.is_some() {
        run.end(Outcome::cancelled("cancelled; its agent did not answer"), now)
    } else if run.attempt.saturating_sub(run.host_failures) >= config.attempts_max {
        let expired = run.attempt.saturating_sub(run.host_failures);
        run.end(Outcome::lost(format!("the lease expired {expired} times without an end")), now)
    } else {
        run.waits_again(now);
        let after = config.retry_pause_after(run.attempt.saturating_sub(run.host_failures));
        pause(&mut run, after, now, config);
        EventKind::Requeued
    };
    Decision { run, events: vec![expired, next] }
}

/// Has a queued run pause from `now` on; its time in the queue begins when the pause is over.
fn pause(run: &mut Run, pause: Duration, now: UnixMicros, config: &LeaseConfig) {
    let until = now.plus(pause);
    run.retry_at = Some(until).filter(|at| *at > now);
    run.queue_deadline_at = until.plus(run.spec.queue_timeout(config));
}

/// By how much the fence of a run is raised at least that is found in a restored copy of a database: further than it was
/// raised by claims since the copy was made, of which there are at most a hundred (`attempts_max`) and [`HOST_FAILURES_MAX`].
pub const RESTORED_FENCES: u64 = 1_000_000;

/// Takes a run as it is found in a restored copy of a database. What was granted since the copy was made is not known: from
/// now on no lease of before is the newest, and the run is granted to nobody until whatever lease somebody may hold has run
/// out, if leases last as long as they did. Its fence is no less than the time in seconds, so a copy that is restored once
/// more gives none out again. Nothing for a run that has ended.
pub fn restored(run: &Run, now: UnixMicros, config: &LeaseConfig) -> Option<Decision> {
    if run.state == RunState::Ended {
        return None;
    }
    let mut decision = match run.lease {
        Some(lease) => taken_away(run, lease, now, config),
        None => Decision { run: Run { version: run.version + 1, ..run.clone() }, events: Vec::new() },
    };
    let run = &mut decision.run;
    let seconds = u64::try_from(now.0 / 1_000_000).unwrap_or_default();
    run.fence = (run.fence + RESTORED_FENCES).max(seconds);
    if run.state == RunState::Queued {
        let longest = (config.ttl + config.margin).max(config.retry_pause_after(run.attempt));
        pause(run, longest, now, config);
    }
    Some(decision)
}

/// Brings nearer what was written by a clock that has been set back since: a lease that outlasts any that could be granted
/// now, the wait of a run that was submitted in what is the future now, and a pause that is longer than any. Nothing for any
/// other run, so a lease that somebody can hold is never shortened.
pub fn bring_nearer(run: &Run, now: UnixMicros, config: &LeaseConfig) -> Option<Decision> {
    let mut nearer = run.clone();
    let lasts_at_most = now.plus(LEASE_TTL_MAX);
    let waits_at_most = now.plus(run.spec.queue_timeout(config));
    // After a restore a run pauses for as long as a lease lasts, and after a lost lease not for that long.
    let pauses_at_most = lasts_at_most.plus(config.margin);
    nearer.retry_at = run.retry_at.map(|at| at.min(pauses_at_most));
    let kept_at_most = now.plus(ROOM_KEPT_FOR);
    nearer.room_kept.iter_mut().for_each(|kept| kept.until = kept.until.min(kept_at_most));
    nearer.passed_over.iter_mut().for_each(|host| host.until = host.until.min(pauses_at_most));
    if run.state == RunState::Queued && run.queued_at > now {
        nearer.queue_deadline_at = run.queue_deadline_at.min(waits_at_most);
    }
    if let Some(lease) = &mut nearer.lease
        && lease.expires_at > lasts_at_most.plus(config.margin)
    {
        lease.expires_at = lasts_at_most;
    }
    if nearer == *run {
        return None;
    }
    nearer.version += 1;
    Some(Decision { run: nearer, events: Vec::new() })
}
