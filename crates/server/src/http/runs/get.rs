//! `GET /v1/runs/{id}`: look at a run.

use std::sync::Arc;

use axum::extract::State;
use holm_api::runs::RunView;

use crate::{
    app::App,
    auth::{May, Read},
    http::extract::RunPath,
    ops,
    problem::Failure,
};

/// Look at a run
#[utoipa::path(
    get, path = "/v1/runs/{id}", tag = "runs", operation_id = "run_get",
    params(("id" = String, Path, description = "The run, as `run_…`.")),
    responses((status = 200, description = "The run.", body = RunView))
)]
pub async fn get(
    State(app): State<Arc<App>>,
    caller: May<Read>,
    RunPath(id): RunPath,
) -> Result<axum::Json<RunView>, Failure> {
    Ok(axum::Json(ops::run_of(&app, caller.org(), id).await?.into()))
}

#[cfg(test)]
mod tests {
    use holm_domain::ErrorCode;
    use http::StatusCode;

    use super::*;
    use crate::testing::World;

    #[tokio::test]
    async fn a_run_is_shown_to_its_org_alone() {
        let world = World::new().await;
        let id = world.queue_run().await;
        let path = format!("/v1/runs/{id}");
        let run: RunView = world.member().get(&path).await.json(StatusCode::OK);
        assert_eq!(run.id, id);
        world.other_org().get(&path).await.problem(ErrorCode::NotFound);
        let unknown = format!("/v1/runs/{}", crate::ids::run());
        world.member().get(&unknown).await.problem(ErrorCode::NotFound);
        for malformed in ["/v1/runs/x", "/v1/runs/run_zz", "/v1/runs/..%2f..%2fetc"] {
            let problem = world.member().get(malformed).await.problem(ErrorCode::InvalidField);
            assert_eq!(problem.field.as_deref(), Some("id"));
        }
    }
}
