//! Run tokens: handed out with leases, and what one stands for.
//!
//! What always holds: a lease that was granted or renewed is told whether or not a token for it can be signed; the agent is
//! given one with the next renewal then.

use std::{sync::Arc, time::Duration};

use holm_api::{
    agent::{ClaimedRun, RenewedLease},
    run_token::RunTokenView,
    signed_token::SignedToken,
};
use holm_domain::{
    AgentId, ErrorCode, OrgId,
    lease::grant::{self, StaleFence},
    run::RunState,
};

use super::run_of;
use crate::{
    app::App,
    auth::{
        keyring::Keys,
        run_token::{Leased, RunClaims, sign},
    },
    problem::Failure,
};

/// How long an answer about leases waits for the keys: a lease is worth more than its token.
const KEYS_WITHIN: Duration = Duration::from_secs(1);

/// The keys, unless there are none, or they cannot be read now.
async fn keys(app: &App) -> Option<Arc<Keys>> {
    if !app.keys.signs() {
        return None;
    }
    let told = |cause: String| tracing::error!(cause, "run tokens cannot be signed; renewals bring them");
    match tokio::time::timeout(KEYS_WITHIN, app.keys.keys(&app.store)).await {
        Ok(read) => read.map_err(|failure| told(failure.for_log())).ok(),
        Err(late) => {
            told(late.to_string());
            None
        }
    }
}

fn signed(app: &App, keys: &Keys, leased: Leased) -> Option<SignedToken> {
    let told =
        |failure: Failure| tracing::error!(run = %leased.run, cause = failure.for_log(), "no run token is signed");
    sign(app, keys, leased, app.now()).map_err(told).ok()
}

/// Gives each run that was granted to `agent` its token.
pub async fn to_claimed(app: &App, agent: AgentId, claimed: &mut [ClaimedRun]) {
    if claimed.is_empty() {
        return;
    }
    let Some(keys) = keys(app).await else { return };
    for run in claimed {
        run.run_token = signed(app, &keys, Leased { run: run.run, org: run.org, agent, fence: run.fence });
    }
}

/// Gives each lease that `agent` holds on a new one: the rest of the life of the last is short by the next renewal, and
/// whether the agent heard the last answer is not known.
pub async fn to_renewed(app: &App, agent: AgentId, leases: &mut [(Option<OrgId>, RenewedLease)]) {
    if leases.iter().all(|(org, _)| org.is_none()) {
        return;
    }
    let Some(keys) = keys(app).await else { return };
    for (org, lease) in leases.iter_mut() {
        let Some(org) = *org else { continue };
        lease.run_token = signed(app, &keys, Leased { run: lease.run, org, agent, fence: lease.fence });
    }
}

/// What a run token stands for, while its very lease lives.
pub async fn run_token_view(app: &App, claims: &RunClaims) -> Result<RunTokenView, Failure> {
    let RunClaims { sub: id, org, agent, fence, .. } = *claims;
    let run = run_of(app, org, id).await?;
    if run.state == RunState::Ended {
        let detail = format!("{id} has ended, and its run tokens stand for nothing any more");
        return Err(Failure::new(ErrorCode::Conflict, detail).at("run", id));
    }
    let lease = grant::held(&run, agent, fence)?;
    if lease.expires_at <= app.now() {
        return Err(StaleFence { given: fence, newest: run.fence }.into());
    }
    Ok(RunTokenView { run: id, org, project: run.project, agent, fence, expires_at: claims.expires_at() })
}
