//! `POST /v1/runs/{id}/cancel`: ask that a run end.

use std::sync::Arc;

use axum::extract::{Extension, State};
use holm_api::runs::{CancelRun, RunView};
use holm_domain::run::Cancel;

use crate::{
    account::Account,
    app::App,
    auth::{May, Run},
    http::extract::{Json, RunPath},
    ops,
    problem::Failure,
};

/// Cancel a run
///
/// A queued run ends at once; one that executes is ended by its agent. Asking again changes nothing, unless it is more
/// urgent; a run that has ended stays as it is.
#[utoipa::path(
    post, path = "/v1/runs/{id}/cancel", tag = "runs", operation_id = "run_cancel",
    params(("id" = String, Path, description = "The run, as `run_…`.")),
    request_body = CancelRun,
    responses((status = 200, description = "The run as it is now.", body = RunView))
)]
pub async fn cancel(
    State(app): State<Arc<App>>,
    caller: May<Run>,
    Extension(account): Extension<Arc<Account>>,
    RunPath(id): RunPath,
    Json(body): Json<CancelRun>,
) -> Result<axum::Json<RunView>, Failure> {
    let how = if body.kill { Cancel::Kill } else { Cancel::Terminate };
    Ok(axum::Json(ops::runs::run_cancel(&app, caller.org(), id, how, &account).await?.into()))
}

#[cfg(test)]
mod tests {
    use holm_domain::{
        ErrorCode,
        run::{OutcomeKind, RunState},
    };
    use http::StatusCode;
    use serde_json::json;

    use super::*;
    use crate::testing::World;

    #[tokio::test]
    async fn a_queued_run_ends_and_a_leased_one_is_marked() {
        let world = World::new().await;
        let id = world.queue_run().await;
        let path = format!("/v1/runs/{id}/cancel");
        world.other_org().post(&path, &json!({})).await.problem(ErrorCode::NotFound);
        let run: RunView = world.member().post(&path, &json!({})).await.json(StatusCode::OK);
        assert_eq!((run.state, run.outcome.unwrap().kind), (RunState::Ended, OutcomeKind::Cancelled));
        let again: RunView = world.member().post(&path, &json!({"kill": true})).await.json(StatusCode::OK);
        assert_eq!((again.state, again.cancel), (RunState::Ended, Some(Cancel::Terminate)));

        let held = world.claim_run().await;
        let path = format!("/v1/runs/{}/cancel", held.run);
        for (body, cancel) in
            [(json!({}), Cancel::Terminate), (json!({"kill": true}), Cancel::Kill), (json!({}), Cancel::Kill)]
        {
            let run: RunView = world.member().post(&path, &body).await.json(StatusCode::OK);
            assert_eq!((run.state, run.cancel), (RunState::Claimed, Some(cancel)));
        }
    }
}
