//! `POST /v1/hosts/{id}/uncordon`: has a host take new runs again.

use std::sync::Arc;

use axum::extract::State;
use holm_api::{hosts::HostView, problem::Problem};

use crate::{
    app::App,
    auth::{Administer, May},
    http::extract::HostPath,
    ops,
    problem::Failure,
};

/// Uncordon a host
///
/// It takes new runs again, unless its agent says that something else stands against that.
#[utoipa::path(
    post, path = "/v1/hosts/{id}/uncordon", tag = "hosts", operation_id = "host_uncordon",
    params(("id" = String, Path, description = "The host, by the identity of its agent, as `agt_…`.")),
    responses(
        (status = 200, description = "The host as it is now.", body = HostView),
        (status = 404, description = "`not_found`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn uncordon(
    State(app): State<Arc<App>>,
    caller: May<Administer>,
    HostPath(id): HostPath,
) -> Result<axum::Json<HostView>, Failure> {
    Ok(axum::Json(ops::hosts::host_uncordon(&app, &caller.token, id).await?))
}
