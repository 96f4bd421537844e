//! The server's half of the lease protocol: claim, renew, start, finish (SPEC L1, L2).
//!
//! Decisions come from [`holm_domain::lease::grant`] and [`holm_domain::schedule`]; the compare-and-swap of the store makes
//! them safe with any number of servers. An operation under a fence that is not the newest changes nothing.

use std::collections::HashMap;

use holm_api::agent::{
    ClaimedRun, Directive, DirectiveKind, FinishRun, HeldLease, LOG_GAP_FIELD, Poll, Polled, Renew, Renewed,
    RenewedLease, StartRun,
};
use holm_domain::{
    AgentId, ErrorCode, OrgId, RunId,
    error::InvalidField,
    host::Host,
    lease::grant,
    limits::RESULT_BYTES_MAX,
    run::{Cancel, OutcomeKind, Reason, Run},
    schedule,
};
use tokio::time::Instant;

use super::{hosts::host_heard, revise, run_of, save};
use crate::{
    app::App,
    config::{CLAIMS_MAX, LEASES_MAX, POLL_WAIT_MS_MAX, QUEUE_LOOK_MAX, REREAD_EVERY},
    problem::Failure,
};

/// Waits until there is something for the agent: runs that it can claim, or word about runs that it holds. Answers with
/// nothing once `wait_ms` have passed or the server is to end.
pub async fn lease_poll(app: &App, org: OrgId, poll: Poll) -> Result<Polled, Failure> {
    check_poll(&poll)?;
    let _pass = app.polls.enter(org)?;
    let listener = app.wakers.listen_org(org);
    let until = Instant::now() + std::time::Duration::from_millis(poll.wait_ms);
    loop {
        let heard = listener.heard();
        let host = host_heard(app, org, poll.agent).await?;
        let polled = look(app, &host, &poll).await?;
        let left = until.saturating_duration_since(Instant::now());
        if !polled.is_empty() || left.is_zero() || app.shutdown.is_cancelled() {
            return Ok(polled);
        }
        tokio::select! {
            () = heard => {}
            () = tokio::time::sleep(left.min(REREAD_EVERY)) => {}
            () = app.shutdown.cancelled() => {}
        }
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

async fn look(app: &App, host: &Host, poll: &Poll) -> Result<Polled, Failure> {
    let directives = directives(app, host, &poll.held).await?;
    // A server that is to end grants nothing: the answer might not arrive.
    let claims_max = if app.shutdown.is_cancelled() { 0 } else { poll.claims_max };
    let claimed = if claims_max == 0 { Vec::new() } else { lease_claim(app, host, poll, claims_max).await? };
    Ok(Polled { claimed, directives })
}

/// What the agent does not know yet of the runs that it says it holds.
async fn directives(app: &App, host: &Host, held: &[HeldLease]) -> Result<Vec<Directive>, Failure> {
    if held.is_empty() {
        return Ok(Vec::new());
    }
    let stored = app.store.runs_of_agent(host.org, host.id).await?;
    let stored: HashMap<RunId, &Run> = stored.iter().map(|run| (run.id, run)).collect();
    let directive = |lease: &HeldLease| {
        let run = stored.get(&lease.run).filter(|run| grant::held(run, host.id, lease.fence).is_ok());
        let what = match run.map(|run| run.cancel) {
            None => DirectiveKind::Stale,
            Some(cancel) if cancel <= lease.cancel => return None,
            Some(Some(Cancel::Kill)) => DirectiveKind::Kill,
            Some(_) => DirectiveKind::Terminate,
        };
        Some(Directive { run: lease.run, fence: lease.fence, what })
    };
    Ok(held.iter().filter_map(directive).collect())
}

/// Grants up to `claims_max` queued runs to the agent of `host`, oldest first, as far as they fit into what is free there.
async fn lease_claim(app: &App, host: &Host, poll: &Poll, claims_max: u32) -> Result<Vec<ClaimedRun>, Failure> {
    let mut claimed = Vec::new();
    let mut free = poll.free;
    let mut queue = app.store.run_queue(host.org, QUEUE_LOOK_MAX).await?;
    while claimed.len() < claims_max as usize {
        let Some(index) = schedule::pick(&queue, host, &free) else { break };
        let run = queue.remove(index);
        // Whether somebody else was faster or not: this run is out of this look at the queue.
        if let Some(grant) = grant_one(app, host, &run).await? {
            free = free.less(&schedule::demand(&run.spec));
            claimed.push(grant);
        }
    }
    Ok(claimed)
}

async fn grant_one(app: &App, host: &Host, run: &Run) -> Result<Option<ClaimedRun>, Failure> {
    let Some(runtime) = schedule::runtime_for(&run.spec, host) else { return Ok(None) };
    let Some(decision) = grant::claim(run, host.id, app.now(), &app.config.lease) else { return Ok(None) };
    let Some(next_log_seq) = save(app, run.version, &decision).await? else { return Ok(None) };
    let granted = decision.run;
    tracing::info!(run = %granted.id, agent = %host.id, fence = granted.fence, "claimed");
    Ok(Some(ClaimedRun {
        run: granted.id,
        org: granted.org,
        project: granted.project,
        fence: granted.fence,
        ttl_ms: ttl_ms(app),
        runtime: runtime.to_owned(),
        spec: granted.spec,
        next_log_seq,
    }))
}

fn ttl_ms(app: &App) -> u64 {
    u64::try_from(app.config.lease.ttl.as_millis()).unwrap_or(u64::MAX)
}

/// Extends leases, each by itself: one that is refused says nothing about the others.
pub async fn lease_renew(app: &App, org: OrgId, body: Renew) -> Result<Renewed, Failure> {
    if body.leases.is_empty() || body.leases.len() > LEASES_MAX {
        let problem = format!("give 1 to {LEASES_MAX} leases");
        return Err(InvalidField::new("leases", body.leases.len(), problem).into());
    }
    host_heard(app, org, body.agent).await?;
    let mut leases = Vec::with_capacity(body.leases.len());
    for lease in body.leases {
        leases.push(renew_one(app, org, body.agent, lease).await?);
    }
    Ok(Renewed { leases })
}

async fn renew_one(app: &App, org: OrgId, agent: AgentId, lease: HeldLease) -> Result<RenewedLease, Failure> {
    let HeldLease { run, fence, .. } = lease;
    let config = &app.config.lease;
    let renewed = revise(app, org, run, |run, now| grant::renew(run, agent, fence, now, config).map(Some)).await;
    match renewed {
        Ok(renewed) => Ok(RenewedLease { run, fence, ttl_ms: Some(ttl_ms(app)), cancel: renewed.cancel }),
        Err(failure) if matches!(failure.code(), ErrorCode::StaleFence | ErrorCode::NotFound) => {
            Ok(RenewedLease { run, fence, ttl_ms: None, cancel: None })
        }
        Err(failure) => Err(failure),
    }
}

/// The run, if the agent holds it under `fence`.
pub(crate) async fn held_run(app: &App, org: OrgId, id: RunId, agent: AgentId, fence: u64) -> Result<Run, Failure> {
    let run = run_of(app, org, id).await?;
    grant::held(&run, agent, fence)?;
    Ok(run)
}

/// Records that the command of a run was started. Saying so again changes nothing.
pub async fn run_start(app: &App, org: OrgId, id: RunId, body: StartRun) -> Result<(), Failure> {
    let StartRun { fence, sandbox } = body;
    let texts = sandbox.unenforced.iter().chain(&sandbox.image_digest).chain(std::iter::once(&sandbox.runtime));
    if sandbox.unenforced.len() > 64 || texts.clone().any(|text| text.len() > 1_024) {
        let given = sandbox.unenforced.len();
        return Err(
            InvalidField::new("sandbox", given, "give at most 64 remarks, and texts of at most 1,024 bytes").into()
        );
    }
    let start = |run: &Run, now| grant::start(run, sandbox.agent, fence, sandbox.clone(), now);
    revise(app, org, id, start).await.map(drop)
}

/// Ends a run as its agent says it ended, once its log is complete (SPEC S1). The last act under a lease.
pub async fn run_finish(app: &App, org: OrgId, id: RunId, body: FinishRun) -> Result<(), Failure> {
    let FinishRun { agent, fence, outcome, result, next_log_seq } = body;
    check_result(result.as_ref())?;
    if outcome.message.as_ref().is_some_and(|message| message.len() > 4_096) {
        return Err(InvalidField::new("outcome.message", "", "give at most 4,096 bytes").into());
    }
    if outcome.kind == OutcomeKind::Lost || outcome.reason == Some(Reason::QueueDeadline) {
        let given = serde_json::to_string(&outcome).unwrap_or_default();
        return Err(InvalidField::new("outcome", given, "only the server ends a run that way").into());
    }
    let run = run_of(app, org, id).await?;
    let stored = app.store.log_head(org, id).await?;
    if grant::held(&run, agent, fence).is_ok() && next_log_seq != stored {
        let detail = format!("the log goes on at {stored}, not at {next_log_seq}; append what is missing, then finish");
        return Err(Failure::new(ErrorCode::LogGap, detail).at(LOG_GAP_FIELD, stored));
    }
    let finish = |run: &Run, now| grant::finish(run, agent, fence, outcome.clone(), result.clone(), now);
    revise(app, org, id, finish).await.map(drop)
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
