//! `DELETE /v1/runs/{id}`: remove a run that has ended, with all that belongs to it.

use std::sync::Arc;

use axum::extract::State;
use holm_api::problem::Problem;
use http::StatusCode;

use crate::{
    app::App,
    auth::{May, Run},
    http::extract::RunPath,
    ops,
    problem::Failure,
};

/// Delete a run
///
/// Removes a run that has ended, with its log, its events and its changes.
#[utoipa::path(
    delete, path = "/v1/runs/{id}", tag = "runs", operation_id = "run_delete",
    params(("id" = String, Path, description = "The run, as `run_…`.")),
    responses(
        (status = 204, description = "It is gone."),
        (status = 409, description = "`conflict`: it has not ended.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn delete(
    State(app): State<Arc<App>>,
    caller: May<Run>,
    RunPath(id): RunPath,
) -> Result<StatusCode, Failure> {
    ops::runs::run_delete(&app, caller.org(), id).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt as _;
    use holm_domain::ErrorCode;

    use super::*;
    use crate::testing::World;

    #[tokio::test]
    async fn only_what_has_ended_is_deleted_with_its_blobs() {
        let world = World::new().await;
        let held = world.claim_keeping_run().await;
        let path = format!("/v1/runs/{}", held.run);
        world.append_log(held, 1, &["a\n"]).await;
        world.put_changes(held, b"tar").await;
        world.member().delete(&path).await.problem(ErrorCode::Conflict);
        world.finish(held, 2).await;
        world.other_org().delete(&path).await.problem(ErrorCode::NotFound);
        assert_eq!(world.member().delete(&path).await.status, StatusCode::NO_CONTENT);
        for gone in ["", "/logs", "/events", "/changes"] {
            world.member().get(&format!("{path}{gone}")).await.problem(ErrorCode::NotFound);
        }
        world.member().delete(&path).await.problem(ErrorCode::NotFound);
        let blobs: Vec<_> = world.app().store.blobs().list_of_run(world.org, held.run).try_collect().await.unwrap();
        assert!(blobs.is_empty(), "{blobs:?}");
    }
}
