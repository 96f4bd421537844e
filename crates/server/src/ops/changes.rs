//! The archive of changes that a run leaves: streamed from the agent to a blob and from the blob to whoever asks.
//!
//! The key bears the fence, so what an agent uploads under an old lease is never what is shown: shown is the archive of the
//! lease under which the run ended.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use holm_api::agent::Fenced;
use holm_domain::{ErrorCode, OrgId, RunId, access::Token, lease::Claimant, run::RunState};
use holm_store::{BlobKey, BlobStream, Error, PutStreamError};

use super::{
    leases::{held_run, written_run},
    run_of,
};
use crate::{
    app::App,
    auth::{Lasting, speaker::Speaker},
    problem::Failure,
};

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub enum BodyBroke {
    /// The connection failed.
    #[error("{0}")]
    Connection(String),
    /// Nothing came for too long.
    #[error("nothing came for {} seconds", .0.as_secs())]
    Idle(Duration),
    /// Its token does not work any more.
    #[error("{0}")]
    Refused(Failure),
}

/// Stores the archive of a run that the agent holds; the whole of it or nothing.
pub async fn changes_put<E: std::fmt::Display + Send>(
    app: &App,
    speaker: &Speaker,
    id: RunId,
    by: Fenced,
    body: impl Stream<Item = Result<Bytes, E>> + Send,
) -> Result<(), Failure> {
    let claimant = Claimant { agent: by.agent, instance: by.instance };
    let run = written_run(app, speaker, id, claimant, by.fence).await?;
    if !run.spec.work_dir.as_ref().is_some_and(|dir| dir.keep_changes) {
        let detail = "the run does not keep the changes of a work dir, so there is nothing to upload";
        return Err(Failure::new(ErrorCode::Conflict, detail).at("spec.work_dir.keep_changes", false));
    }
    app.needs_room()?;
    let limits = &app.config.limits;
    let key = BlobKey::run_changes(run.org, id, by.fence);
    let body = while_it_may(app, Lasting::of(app, speaker), body, limits.upload_idle_timeout);
    let stored = app.store.blobs().put_stream(&key, body, limits.changes_bytes_max).await;
    stored.map_err(|error| match error {
        PutStreamError::Store(Error::Limit { max, .. }) => {
            Failure::new(ErrorCode::TooLarge, format!("an archive of changes may have at most {max} bytes"))
        }
        PutStreamError::Store(error) => error.into(),
        PutStreamError::Source(cause) => match cause.downcast_ref() {
            Some(BodyBroke::Refused(failure)) => failure.clone(),
            Some(BodyBroke::Idle(_)) => Failure::new(ErrorCode::DeadlineExceeded, cause.to_string()),
            _ => Failure::new(ErrorCode::InvalidRequest, format!("the body broke off: {cause}")),
        },
    })?;
    // The lease may have been lost during a long upload.
    if let Err(failure) = held_run(app, speaker, id, claimant, by.fence).await {
        if is_of_no_use(app, run.org, id, by.fence).await {
            app.store.blobs().delete(&key).await?;
        }
        return Err(failure);
    }
    Ok(())
}

/// Whether nobody will ever ask for what was uploaded under `fence`. While that is the newest, another process of the same agent
/// may have uploaded it too, and ended the run with it; what is left of one that did not goes with the run.
async fn is_of_no_use(app: &App, org: OrgId, id: RunId, fence: u64) -> bool {
    match app.store.run_get(org, id).await {
        Ok(run) => run.is_none_or(|run| run.fence != fence),
        Err(_) => false,
    }
}

/// The body for as long as its token works and something comes.
fn while_it_may<E: std::fmt::Display + Send>(
    app: &App,
    token: Lasting,
    body: impl Stream<Item = Result<Bytes, E>> + Send,
    limit: Duration,
) -> impl Stream<Item = Result<Bytes, BodyBroke>> + Send {
    futures_util::stream::unfold(Some((token, Box::pin(body))), move |going_on| async move {
        let (mut token, mut body) = going_on?;
        match token.guard(app, tokio::time::timeout(limit, body.next())).await {
            Ok(Ok(None)) => None,
            Ok(Ok(Some(Ok(piece)))) => Some((Ok(piece), Some((token, body)))),
            Ok(Ok(Some(Err(error)))) => Some((Err(BodyBroke::Connection(error.to_string())), None)),
            Ok(Err(_)) => Some((Err(BodyBroke::Idle(limit)), None)),
            Err(failure) => Some((Err(BodyBroke::Refused(failure)), None)),
        }
    })
}

/// The archive that the run left under its last lease, for as long as `token` works.
pub async fn changes_get(app: &Arc<App>, token: &Token, id: RunId) -> Result<BlobStream, Failure> {
    let org = token.org;
    let run = run_of(app, org, id).await?;
    if run.state != RunState::Ended {
        let detail = "the changes are there once the run has ended";
        return Err(Failure::new(ErrorCode::Conflict, detail).at("state", run.state.as_str()));
    }
    let found = app.store.blobs().get_stream(&BlobKey::run_changes(org, id, run.fence)).await?;
    let found = found.ok_or_else(|| Failure::new(ErrorCode::NotFound, format!("{id} left no changes")))?;
    let (app, token, pieces) = (Arc::clone(app), Lasting::new(app, token), found.pieces);
    let guarded = futures_util::stream::unfold(Some((token, pieces)), move |going_on| {
        let app = Arc::clone(&app);
        async move {
            let (mut token, mut pieces) = going_on?;
            match token.check(&app).await {
                Ok(()) => pieces.next().await.map(|piece| (piece, Some((token, pieces)))),
                Err(failure) => {
                    Some((Err(Error::Unavailable { doing: "go on with a download", source: failure.into() }), None))
                }
            }
        }
    });
    Ok(BlobStream { size: found.size, pieces: guarded.boxed() })
}
