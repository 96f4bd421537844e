//! `GET /v1/run-token`: what a run token stands for.

use std::sync::Arc;

use axum::extract::State;
use holm_api::{problem::Problem, run_token::RunTokenView};

use crate::{app::App, auth::run_token::RunBearer, ops, problem::Failure};

/// What a run token stands for
///
/// Asked with a run token, which an agent is given with each lease. It stands for something only while that very lease lives.
#[utoipa::path(
    get, path = "/v1/run-token", tag = "runs", operation_id = "run_token",
    responses(
        (status = 200, description = "The run and its lease.", body = RunTokenView),
        (status = 401, description = "`unauthenticated`: it is no run token, has expired, or its key was withdrawn.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`stale_fence`: the lease lives no more; `conflict`: the run has ended.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn run_token(
    State(app): State<Arc<App>>,
    RunBearer(claims): RunBearer,
) -> Result<axum::Json<RunTokenView>, Failure> {
    Ok(axum::Json(ops::run_tokens::run_token_view(&app, &claims).await?))
}

#[cfg(test)]
mod tests;
