//! Renewing leases: those of one request are read and saved together, some at a time, so that it holds no more of them in memory
//! than that.
//!
//! What always holds: each lease is judged by itself. One that is refused, whose run was changed by somebody else at the same
//! time, or whose run cannot be read, holds no other up. How long a lease lasts counts for its agent from before the request
//! was sent, and for the server from its decision, which is later (SPEC L3).

use holm_api::agent::{Renew, RenewLease, Renewed, RenewedLease};
use holm_domain::{
    ErrorCode, OrgId, UnixMicros,
    error::InvalidField,
    host::Host,
    lease::{
        Claimant,
        grant::{self, StaleFence},
    },
    run::{Decision, Run},
};
use holm_store::{Error, RENEWALS_MAX, Renewal};

use super::{Found, host_heard, millis, readable, run_of_host};
use crate::{
    app::App,
    auth::speaker::Speaker,
    config::LEASES_MAX,
    metrics::RenewalOutcome,
    ops::{revise_from, run_tokens::to_renewed},
    problem::Failure,
};

/// Extends leases.
pub async fn lease_renew(app: &App, speaker: &Speaker, body: Renew) -> Result<Renewed, Failure> {
    if body.leases.is_empty() || body.leases.len() > LEASES_MAX {
        let problem = format!("give 1 to {LEASES_MAX} leases");
        return Err(InvalidField::new("leases", body.leases.len(), problem).into());
    }
    let by = Claimant { agent: body.agent, instance: body.instance };
    let host = host_heard(app, speaker, by).await?;
    let mut answers = vec![None; body.leases.len()];
    let mut failed = None;
    // Runs of like age are next to each other, in the store too.
    let mut order: Vec<usize> = (0..answers.len()).collect();
    order.sort_by_key(|index| body.leases[*index].run);
    for part in order.chunks(RENEWALS_MAX) {
        let leases: Vec<RenewLease> = part.iter().map(|index| body.leases[*index]).collect();
        let renewed = renew_part(app, &host, &leases, &mut failed).await;
        part.iter().zip(renewed).for_each(|(index, answer)| answers[*index] = answer);
    }
    answers.iter().for_each(|answer| app.metrics.renewed(outcome(answer.as_ref())));
    let mut leases: Vec<_> = answers.into_iter().flatten().collect();
    to_renewed(app, by.agent, &mut leases).await;
    let leases: Vec<_> = leases.into_iter().map(|(_, lease)| lease).collect();
    // What was saved is told, whatever became of the others: for those the agent asks again.
    match failed {
        Some(failure) if leases.is_empty() => Err(failure),
        _ => Ok(Renewed { leases }),
    }
}

/// What is answered of a lease, and the org of its run where it was renewed.
type Answer = (Option<OrgId>, RenewedLease);

fn outcome(answer: Option<&Answer>) -> RenewalOutcome {
    match answer.map(|(_, lease)| lease.ttl_ms) {
        Some(Some(_)) => RenewalOutcome::Renewed,
        Some(None) => RenewalOutcome::Refused,
        None => RenewalOutcome::Unreadable,
    }
}

fn renewed(app: &App, run: &Run) -> Answer {
    let (org, run, fence, cancel) = (run.org, run.id, run.fence, run.cancel);
    let ttl_ms = Some(millis(app.config.lease.ttl));
    (Some(org), RenewedLease { run, fence, ttl_ms, cancel, run_token: None })
}

fn refused(lease: &RenewLease) -> Answer {
    (None, RenewedLease { run: lease.run, fence: lease.fence, ttl_ms: None, cancel: None, run_token: None })
}

fn renewal(app: &App, host: &Host, run: &Run, lease: &RenewLease, now: UnixMicros) -> Result<Decision, StaleFence> {
    host.follows(run)?;
    let by = Claimant { agent: host.id, instance: host.instance };
    grant::renew(run, by, (lease.fence, lease.usage), now, &app.config.lease)
}

/// Renews some leases, in the order of their runs. Of those that failed, the last is told in `failed`.
async fn renew_part(
    app: &App,
    host: &Host,
    leases: &[RenewLease],
    failed: &mut Option<Failure>,
) -> Vec<Option<Answer>> {
    let together = async {
        let found = match leases {
            [first, .., last] => readable(app, app.store.runs_of_agent(host.id, first.run..=last.run).await?),
            // One that is alone is read by itself.
            _ => Found::default(),
        };
        renew_together(app, host, leases, &found).await.map(|answers| (answers, found))
    };
    let (mut answers, found) = match together.await {
        Ok(renewed) => renewed,
        Err(failure) => {
            *failed = Some(failure);
            return vec![None; leases.len()];
        }
    };
    for (lease, answer) in leases.iter().zip(&mut answers) {
        if answer.is_none() && !found.is_unreadable(lease.run) {
            match renew_alone(app, host, *lease).await {
                Ok(alone) => *answer = alone,
                Err(failure) => *failed = Some(failure),
            }
        }
    }
    answers
}

/// Decides on each of the runs that were found, and saves what was decided. Nothing for what is not among them, was changed
/// by somebody else since, or could not be saved with the others.
async fn renew_together(
    app: &App,
    host: &Host,
    leases: &[RenewLease],
    found: &Found,
) -> Result<Vec<Option<Answer>>, Failure> {
    let mut answers = vec![None; leases.len()];
    let (stored, mut decided) = (found.by_id(), Vec::new());
    for (index, lease) in leases.iter().enumerate() {
        let Some(run) = stored.get(&lease.run) else { continue };
        match renewal(app, host, run, lease, app.now()) {
            Ok(Decision { run: wanted, .. }) => {
                let deadline = wanted.deadline(&app.config.lease);
                decided.push((index, Renewal { expect_version: run.version, run: wanted, deadline }));
            }
            Err(_) => answers[index] = Some(refused(lease)),
        }
    }
    let (indexes, renewals): (Vec<usize>, Vec<Renewal>) = decided.into_iter().unzip();
    let saved = match app.store.leases_renew(&renewals).await {
        Ok(saved) => saved,
        Err(error @ Error::Unavailable { .. }) => return Err(error.into()),
        // Which of them it is shows where each is saved by itself.
        Err(_) => return Ok(answers),
    };
    for ((index, renewal), _) in indexes.into_iter().zip(&renewals).zip(saved).filter(|(_, is_saved)| *is_saved) {
        app.wakers.expect_deadline(renewal.deadline);
        answers[index] = Some(renewed(app, &renewal.run));
    }
    Ok(answers)
}

/// Nothing if the run cannot be read, or by an error of Holm's own: its lease is neither renewed nor refused.
async fn renew_alone(app: &App, host: &Host, lease: RenewLease) -> Result<Option<Answer>, Failure> {
    let run = lease.run;
    let renew = |run: &Run, now| renewal(app, host, run, &lease, now).map(Some);
    let revised = match run_of_host(app, host, run).await {
        Ok(found) => revise_from(app, found, renew).await,
        Err(failure) => Err(failure),
    };
    match revised {
        Ok(run) => Ok(Some(renewed(app, &run))),
        Err(failure) if matches!(failure.code(), ErrorCode::StaleFence | ErrorCode::NotFound) => {
            Ok(Some(refused(&lease)))
        }
        Err(failure) if failure.is_damage() => {
            app.unreadable.tell(run, &failure.for_log());
            Ok(None)
        }
        Err(failure) if failure.code() == ErrorCode::Internal => {
            tracing::error!(%run, cause = failure.for_log(), "a lease is neither renewed nor refused");
            Ok(None)
        }
        Err(failure) => Err(failure),
    }
}
